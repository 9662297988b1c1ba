"""Open a store by the URL a person wrote.

    file:///absolute/path
    s3://bucket/prefix?endpoint_url=https://host:9000&region=eu-west-1&profile=name      (prefix and parameters as needed)

A URL holds no secret: one that does is refused, and not repeated in the message.

What this does not do: reach the store. A wrong host or a missing folder shows at the first operation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ptm.errors import UsageError
from ptm.store.base import Store
from ptm.store.file import FileStore

if TYPE_CHECKING:
    from ptm.store.s3 import S3Store

FORMS = "write file:///absolute/path or s3://bucket/prefix?endpoint_url=https://host:9000"
PARAMETERS = ("endpoint_url", "region", "profile")

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(url: str) -> Store:
    """The store at a URL; `UsageError` if it is not one."""
    return _open(url)


def make_store(url: str) -> Store:
    """The store at a URL, whose folder or bucket is made unless it is there. `UsageError`, or the `StoreError` that prevents
    it."""
    store = _open(url)
    if isinstance(store, FileStore):
        store.make_root()
    else:
        store.make_bucket()
    return store


def _open(url: str) -> FileStore | S3Store:
    parts = _split(url)
    if parts.scheme == "file":
        return _open_file(parts)
    if parts.scheme == "s3":
        return _open_s3(parts)
    if not parts.scheme:
        raise UsageError(f"{url!r} is not a URL of a registry", hint=FORMS)
    raise UsageError(f"a registry cannot be at {parts.scheme}://", hint=FORMS)


def _split(url: str) -> SplitResult:
    if not url.isprintable() or url != url.strip():
        raise UsageError("the registry's URL has control characters, or spaces around it", hint=FORMS)
    try:
        parts = urlsplit(url)
    except ValueError as e:
        raise UsageError(f"the registry's URL cannot be read: {e}", hint=FORMS) from e
    if "@" in parts.netloc:
        raise UsageError(
            "the registry's URL has a user or a password in it", hint="leave it out; credentials are found as boto3 does"
        )
    if parts.fragment:
        raise UsageError("the registry's URL has a '#' in it", hint="write %23 if it belongs to a name")
    return parts


def _open_file(parts: SplitResult) -> FileStore:
    path = unquote(parts.path, errors="surrogateescape")
    if parts.netloc or not path.startswith("/"):
        raise UsageError("the folder of a file:// registry has to be absolute", hint="write three slashes: file:///absolute/path")
    if parts.query:
        raise UsageError("a file:// URL takes no parameters", hint="write %3F if the '?' belongs to a name")
    root = Path(path)
    if "\0" in path or ".." in root.parts or root == Path("/"):
        raise UsageError(f"{path!r} cannot hold a registry", hint="give a folder of its own, without '..'")
    return FileStore(root)


def _open_s3(parts: SplitResult) -> S3Store:
    if not _BUCKET.fullmatch(parts.netloc):
        hint = "a bucket's name has 3 to 63 lower-case letters, digits, '-' and '.'; host and port go into endpoint_url"
        raise UsageError(
            f"{parts.netloc!r} is not the name of a bucket" if parts.netloc else "the URL names no bucket", hint=hint
        )
    given = _parameters(parts.query)
    from ptm.store.s3 import S3Store

    return S3Store(
        parts.netloc,
        unquote(parts.path),
        endpoint_url=given.get("endpoint_url"),
        region=given.get("region"),
        profile=given.get("profile"),
    )


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as e:
        raise UsageError("the parameters of the registry's URL cannot be read", hint=FORMS) from e
    given = dict(pairs)
    for name, value in pairs:
        if name not in PARAMETERS:
            hint = f"known are {', '.join(PARAMETERS)}; credentials do not belong into a URL"
            raise UsageError(f"the registry's URL has the unknown parameter {name!r}", hint=hint)
        if not value:
            raise UsageError(f"the registry's URL has an empty {name}", hint="leave it out, or give it a value")
    if len(pairs) != len(given):
        raise UsageError("the registry's URL has a parameter twice", hint=FORMS)
    if "endpoint_url" in given:
        _check_endpoint(given["endpoint_url"])
    return given


def _check_endpoint(endpoint_url: str) -> None:
    hint = "write endpoint_url=https://host:9000"
    try:
        parts = urlsplit(endpoint_url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as e:
        raise UsageError("endpoint_url cannot be read", hint=hint) from e
    if "@" in parts.netloc:
        raise UsageError("endpoint_url has a user or a password in it", hint="leave it out; credentials are found as boto3 does")
    if not fits or parts.query or parts.fragment:
        raise UsageError(f"endpoint_url {endpoint_url!r} is not the address of a server", hint=hint)
