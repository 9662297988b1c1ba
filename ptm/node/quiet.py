"""Warnings that a container can bring about: each said once in a while, so that it cannot write the node's log full."""

from __future__ import annotations

import logging
import threading
import time

log = logging.getLogger("ptm.node")
QUIET_S = 30.0
http_log = logging.getLogger("ptm.gateway")
"""Of aiohttp's server: a traceback for each request that is none."""
http_log.setLevel(logging.CRITICAL)
_said: dict[str, float] = {}
_lock = threading.Lock()


def warn(text: str, *values: object) -> None:
    """A warning in the node's log, unless one with the same text (before its values) was there in the last half minute."""
    with _lock:
        now = time.monotonic()
        if now - _said.get(text, -QUIET_S) < QUIET_S:
            return
        _said[text] = now
    log.warning(text, *values)


def forget() -> None:
    """Begin anew: a test's."""
    with _lock:
        _said.clear()
