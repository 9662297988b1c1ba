"""Two streams for big files on their way: a pipe between threads, in memory, and a file that is synced while it is written."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import BinaryIO

ROOM = 4
"""Chunks in a pipe. Who writes makes them, of 1 MiB at most."""
SYNC_BYTES = 64 * 1024 * 1024


class Pipe:
    """Bytes from one thread to another, a few chunks at most. One writes and ends it, one reads and closes it; a writer whose
    reader has closed it gets `BrokenPipeError`. (An `os.pipe` takes 64 KiB at a time: thousands of turns between the threads.)"""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._turn = threading.Condition()
        self._ended = self._closed = False

    def write(self, chunk: bytes) -> int:
        with self._turn:
            self._turn.wait_for(lambda: self._closed or len(self._chunks) < ROOM)
            if self._closed:
                raise BrokenPipeError("nobody reads any more")
            if chunk:
                self._chunks.append(chunk)
            self._turn.notify_all()
        return len(chunk)

    def flush(self) -> None:
        """Nothing is held back."""

    def end(self) -> None:
        with self._turn:
            self._ended = True
            self._turn.notify_all()

    def read(self, size: int = -1) -> bytes:
        """Some bytes, at most `size`; none when it has ended."""
        with self._turn:
            self._turn.wait_for(lambda: self._chunks or self._ended)
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            if 0 <= size < len(chunk):
                self._chunks.appendleft(chunk[size:])
                chunk = chunk[:size]
            self._turn.notify_all()
        return chunk

    def close(self) -> None:
        with self._turn:
            self._closed = True
            self._chunks.clear()
            self._turn.notify_all()


class Synced:
    """A file to write. What is written goes to the disk meanwhile, in a thread, so that `sync` has little left to do."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._new = file, 0
        self._syncing: threading.Thread | None = None

    def write(self, chunk: bytes) -> int:
        self._file.write(chunk)
        self._new += len(chunk)
        if self._new >= SYNC_BYTES and not (self._syncing and self._syncing.is_alive()):
            self._file.flush()
            self._new, self._syncing = 0, threading.Thread(target=_sync, args=(os.dup(self._file.fileno()),), name="sync")
            self._syncing.start()
        return len(chunk)

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        """All of it is on the disk."""
        self._file.flush()
        if self._syncing:
            self._syncing.join()
        os.fsync(self._file.fileno())


def _sync(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    except OSError:
        pass  # `sync` asks again, and raises
    finally:
        os.close(descriptor)
