"""Streams for big files on their way: a pipe between threads, in memory; a file that is synced while it is written; and one that
is read while it is written."""

from __future__ import annotations

import errno
import os
import sys
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


class Broken(Exception):
    """What is followed was stopped."""


class Growth:
    """How much there is of a file that one thread writes and another reads meanwhile. Either may stop it, even
    after its end: then what was read is not wanted any more."""

    def __init__(self) -> None:
        self._size = 0
        self._turn = threading.Condition()
        self._ended = self._stopped = False

    def add(self, size: int) -> None:
        """So many bytes more can be read. `BrokenPipeError` if it was stopped; 0 asks just that."""
        with self._turn:
            if self._stopped:
                raise BrokenPipeError("nobody reads any more")
            self._size += size
            self._turn.notify_all()

    def end(self) -> None:
        """That was all."""
        with self._turn:
            self._ended = True
            self._turn.notify_all()

    def stop(self) -> None:
        """Nothing more is to come, or to be read."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def wait(self, size: int) -> int:
        """Wait for so many bytes, or the end: how many of them there are. `Broken` if it was stopped."""
        with self._turn:
            self._turn.wait_for(lambda: self._ended or self._stopped or self._size >= size)
            if self._stopped:
                raise Broken("it was stopped")
            return min(size, self._size)


class Following:
    """A file that grows, to be read from its start: who reads waits for what is not there yet."""

    def __init__(self, file: BinaryIO, growth: Growth) -> None:
        self._file, self._growth, self._forgotten = file, growth, 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        start = self.tell()
        if start - self._forgotten >= SYNC_BYTES:
            _forget(self._file.fileno(), start)
            self._forgotten = start
        wanted = self._growth.wait(start + size if size >= 0 else sys.maxsize) - start
        chunk = self._file.read(wanted)
        if len(chunk) < wanted:
            raise OSError(errno.EIO, "became shorter while it was read")
        return chunk


class Synced:
    """A file to write. What is written goes to the disk meanwhile, in a thread, so that `sync` has little left to do. `growth` is
    told of what can be read. With `forget`, what is on the disk leaves the system's cache, which has better uses than a file of
    gigabytes that nobody reads at once."""

    def __init__(self, file: BinaryIO, growth: Growth | None = None, *, forget: bool = False) -> None:
        self._file, self._growth, self._forget, self._new = file, growth, forget, 0
        self._syncing: threading.Thread | None = None

    def write(self, chunk: bytes) -> int:
        self._file.write(chunk)
        if self._growth is not None:
            self._file.flush()
            self._growth.add(len(chunk))
        self._new += len(chunk)
        if self._new >= SYNC_BYTES and not (self._syncing and self._syncing.is_alive()):
            self._file.flush()
            self._new, descriptor = 0, os.dup(self._file.fileno())
            self._syncing = threading.Thread(target=self._to_disk, args=(descriptor,), name="sync")
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

    def _to_disk(self, descriptor: int) -> None:
        try:
            os.fsync(descriptor)
            if self._forget:
                _forget(descriptor, 0)
        except OSError:
            pass  # `sync` asks again, and raises
        finally:
            os.close(descriptor)


def _forget(descriptor: int, size: int) -> None:
    """Take so much of a file (0: all of it) out of the system's cache, if it is on the disk. Only a wish."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_DONTNEED)
