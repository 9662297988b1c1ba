"""A store in a folder, which may be shared by several machines (NFS, SMB with hard links) and several accounts.

Rules:
- An object is a regular file below the root. It is written to `.ptm-tmp/` under the root first, synced, and then appears at its
  key in one step: `link` (create, which fails if the key is there) or `rename` (put, upload). The folder is synced after. So a
  reader sees nothing or the whole object, also after `kill -9`; what a killed writer left in `.ptm-tmp/` is removed when the
  store is opened a day later.
- Nothing below the root is reached through a symbolic link: each segment is opened relative to the one before it with
  O_NOFOLLOW, so a link that another account plants leads nowhere. A listing passes over links, pipes and devices, and over
  names that are not keys. The root itself may be a link.
- New files and folders have the mode that the umask leaves (0666, 0777), for several members' accounts share the folder.
- An object and a folder cannot share a name: with an object `a`, the key `a/b` cannot be written (in a bucket it can). The
  layout has no such keys.
- What a caller's own stream raises (`source`, `sink`) is the caller's and passes unchanged.

What it does not do: remove empty folders, lock, announce changes, or run where there is no `openat` (Windows)."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from ptm.errors import NotFound, StoreError, TooLarge, Unreachable
from ptm.store import folder
from ptm.store.base import Capabilities, ObjectInfo, Progress, Store, check_key, check_prefix
from ptm.store.checks import check_folder, check_small
from ptm.store.exclusive import Outcome, is_exclusive, settle
from ptm.store.folder import Temp, as_store_errors, open_object, sync, temp_file

CHUNK_BYTES = 1024 * 1024
PARENT_TRIES = 5

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class FileStore(Store):
    """The objects below one folder. Opening it touches nothing but stale temporary files; a root that is not there is
    `Unreachable` when used."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{quote(str(root))}"
        folder.sweep(root, time.time())

    def make_root(self) -> None:
        """Make the root folder with its parents; no error if it is there."""
        folder.make_root(self.root)

    def get(self, key: str, limit: int) -> bytes:
        with self._reading(key, limit) as file:
            body = bytearray()
            while chunk := self._read(key, file, min(CHUNK_BYTES, limit + 1 - len(body))):
                body += chunk
        if len(body) > limit:
            raise _too_large(key, limit)
        return bytes(body)

    def create(self, key: str, body: bytes) -> None:
        settle(key, self._attempt(check_key(key), check_small(key, body)))

    def put(self, key: str, body: bytes) -> None:
        check_key(key)
        with temp_file(self.root) as new:
            self._write(key, new, body)
            self._replace(key, new)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return folder.walk(self.root, check_prefix(prefix))

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        return folder.subfolders(self.root, check_folder(prefix))

    def head(self, key: str) -> ObjectInfo:
        with self._parent(key) as (fd, name), as_store_errors(key):
            info = os.lstat(name, dir_fd=fd)
            if stat.S_ISDIR(info.st_mode):
                raise NotFound(f"{key} is not there")
            if not stat.S_ISREG(info.st_mode):
                raise StoreError(f"{key} is not a regular file", hint="remove it, and find out who put it there")
            return ObjectInfo(key, info.st_size)

    def delete(self, key: str) -> None:
        with contextlib.suppress(NotFound), self._parent(key) as (fd, name), as_store_errors(key):
            if not stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                os.unlink(name, dir_fd=fd)
                sync(fd)
        folder.prune(self.root, key.split("/")[:-1])

    def upload(self, key: str, source: BinaryIO, progress: Progress | None = None) -> None:
        check_key(key)
        with temp_file(self.root) as new:
            while chunk := source.read(CHUNK_BYTES):
                self._write(key, new, chunk)
                if progress:
                    progress(len(chunk))
            self._replace(key, new)

    def download(self, key: str, sink: BinaryIO, limit: int, progress: Progress | None = None) -> int:
        size = 0
        with self._reading(key, limit) as file:
            while chunk := self._read(key, file, CHUNK_BYTES):
                size += len(chunk)
                if size > limit:
                    raise _too_large(key, limit)
                sink.write(chunk)
                if progress:
                    progress(len(chunk))
        return size

    def probe(self, scratch: str) -> Capabilities:
        exclusive = is_exclusive(self._attempt, lambda key: self.get(key, 1024), self.delete, check_folder(scratch))
        return Capabilities(exclusive_create=exclusive, versioned=False)

    def _attempt(self, key: str, body: bytes) -> Outcome:
        with temp_file(self.root) as new, as_store_errors(key):
            self._write(key, new, body)
            new.seal()
            for _ in range(PARENT_TRIES):
                with contextlib.suppress(FileNotFoundError):  # somebody removed the parent while it was empty: make it again
                    return self._link(key, new, body)
            raise Unreachable(f"{key}: its folder is removed as fast as it is made")

    def _link(self, key: str, new: Temp, body: bytes) -> Outcome:
        with self._made_parent(key) as (fd, name):
            try:
                os.link(new.name, name, src_dir_fd=new.folder, dst_dir_fd=fd, follow_symlinks=False)
            except FileExistsError:
                return self._compare(key, fd, name, body)
            except OSError as e:
                if e.errno in _NO_HARD_LINKS:
                    return Outcome.UNSUPPORTED
                raise
            sync(fd)
            return Outcome.WON

    def _compare(self, key: str, fd: int, name: str, body: bytes) -> Outcome:
        """Whose object is there? Ours is made durable once more: the writer before us may have died between link and sync."""
        with open_object(fd, name) as file:
            found = bytearray()
            while chunk := file.read(len(body) + 1 - len(found)):
                found += chunk
            if found != body:
                return Outcome.LOST
            os.fsync(file.fileno())
            sync(fd)
            return Outcome.WON

    def _replace(self, key: str, new: Temp) -> None:
        with as_store_errors(key):
            new.seal()
            for _ in range(PARENT_TRIES):
                with contextlib.suppress(FileNotFoundError), self._made_parent(key) as (fd, name):
                    os.replace(new.name, name, src_dir_fd=new.folder, dst_dir_fd=fd)
                    sync(fd)
                    return
            raise Unreachable(f"{key}: its folder is removed as fast as it is made")

    @contextlib.contextmanager
    def _made_parent(self, key: str) -> Iterator[tuple[int, str]]:
        """The key's folder, made if need be, and the name in it. Raises `OSError`."""
        *segments, name = key.split("/")
        fd = folder.open_folder(self.root, segments, make=True)
        try:
            yield fd, name
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _parent(self, key: str) -> Iterator[tuple[int, str]]:
        """The key's folder, which has to be there, and the name in it; `NotFound` if it is not."""
        *segments, name = check_key(key).split("/")
        with as_store_errors(key):
            try:
                fd = folder.open_folder(self.root, segments)
            except NotADirectoryError as e:
                raise NotFound(f"{key} is not there") from e
        try:
            yield fd, name
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _reading(self, key: str, limit: int) -> Iterator[BinaryIO]:
        with self._parent(key) as (fd, name):
            with as_store_errors(key):
                file = open_object(fd, name)
            with file:
                if os.fstat(file.fileno()).st_size > limit:
                    raise _too_large(key, limit)
                yield file

    @staticmethod
    def _read(key: str, file: BinaryIO, size: int) -> bytes:
        with as_store_errors(key):
            return file.read(size)

    @staticmethod
    def _write(key: str, new: Temp, body: bytes) -> None:
        with as_store_errors(key):
            left = memoryview(body)
            while left:
                left = left[new.file.write(left) :]


def _too_large(key: str, limit: int) -> TooLarge:
    return TooLarge(f"{key}: more than {limit} bytes")
