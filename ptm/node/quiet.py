"""Warnings that a container can bring about: each said once in a while, and not many, so that it cannot fill the node's log."""

from __future__ import annotations

import logging
import threading
import time

log = logging.getLogger("ptm.node")
QUIET_S = 30.0
MOST = 32
"""Different warnings in that time."""
http_log = logging.getLogger("ptm.gateway")
"""Of aiohttp's server: a traceback for each request that is none."""
http_log.setLevel(logging.CRITICAL)
_said: dict[str, float] = {}
_lock = threading.Lock()


def warn(text: str, *values: object) -> None:
    """A warning in the node's log, unless the very same one, or too many, were there in the last half minute."""
    message = text % values
    now = time.monotonic()
    with _lock:
        for old in [known for known, when in _said.items() if now - when >= QUIET_S]:
            del _said[old]
        if message in _said or len(_said) >= MOST:
            return
        _said[message] = now
    log.warning("%s", message)


def forget() -> None:
    """Begin anew: a test's."""
    with _lock:
        _said.clear()
