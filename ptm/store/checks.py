"""Checks of arguments that every store makes besides `check_key` and `check_prefix`, before it touches anything."""

from __future__ import annotations

from ptm.errors import InvalidKey, TooLarge
from ptm.store.base import check_prefix

MAX_CREATE_BYTES = 1024 * 1024


def check_folder(prefix: str) -> str:
    """Return a prefix that is empty or ends in '/', else raise `InvalidKey`."""
    if prefix and not prefix.endswith("/"):
        raise InvalidKey(f"prefix {prefix!r} does not end in '/'")
    return check_prefix(prefix)


def check_small(key: str, body: bytes) -> bytes:
    """Return a body that may be created, else raise `TooLarge`."""
    if len(body) > MAX_CREATE_BYTES:
        raise TooLarge(f"{key}: {len(body)} bytes are more than the {MAX_CREATE_BYTES} of a write-once object")
    return body
