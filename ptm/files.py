"""Files on this machine, written so that a crash leaves the old one or the new one, never half of one; and locks on them.

Secrets get mode 0600 before a byte is in them. What is published into a person's folder gets the mode their umask gives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def private_folder(path: Path) -> Path:
    """Make a folder that only this account can enter (mode 0700), and so its parents where they are missing; return it."""
    if not path.parent.exists():
        private_folder(path.parent)
    path.mkdir(exist_ok=True, mode=0o700)
    return path


def write_atomic(path: Path, data: bytes, *, mode: int | None = None, exclusive: bool = False) -> None:
    """Write a whole file: temp file in the same folder, fsync, rename. `mode` None means as the umask says.

    `exclusive`: raise `FileExistsError` instead of replacing.
    """
    with atomic_file(path, mode=mode, exclusive=exclusive) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int | None = None, exclusive: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write (and read back) that appears at `path` only when the block ends without an error."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".ptm-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), _default_mode() if mode is None else mode)
            os.fsync(file.fileno())
        if exclusive:
            os.link(temporary, path)
        else:
            Path(temporary).replace(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()


@contextlib.contextmanager
def hold_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file, which is made if need be, until the block ends, or the process, however it ends. False if another process
    holds it; with `wait` that is waited for."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except BlockingIOError:
            mine = False
        yield mine
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make a rename in this folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _default_mode() -> int:
    return 0o666 & ~_UMASK


def _read_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_UMASK = _read_umask()
