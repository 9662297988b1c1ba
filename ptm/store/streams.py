"""Callers' streams and progress, made fit for an SDK that closes what it uploads and reports from several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import BinaryIO

from ptm.store.base import Progress


class Source:
    """A caller's stream as the SDK may see it: it stays open, and what it raises is kept apart from what the SDK raises."""

    def __init__(self, source: BinaryIO) -> None:
        self.seek = source.seek
        self.tell = source.tell
        self._source = source
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._source.read(size)
        except Exception as e:
            self.error = e
            raise

    def close(self) -> None:
        """The stream is its caller's to close."""


def one_at_a_time(progress: Progress | None) -> Callable[[int], None] | None:
    """The SDK reports from several threads; a caller's progress bar hears one at a time."""
    if progress is None:
        return None
    lock = threading.Lock()

    def report(moved: int) -> None:
        with lock:
            progress(moved)

    return report
