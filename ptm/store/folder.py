"""What the file store needs of an operating system: folders entered without following links, temporary files, listings, errors.

Every path is walked from the root, one segment at a time, relative to the folder opened before it. Functions raise `OSError`
for the caller to translate with `as_store_errors`, except where a plain `StoreError` says more.

What it does not do: know of create, put or the other verbs; see `ptm.store.file`."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ptm.errors import AccessDenied, InvalidKey, NotFound, StoreError, Unreachable
from ptm.store.base import ObjectInfo, check_key

TEMP_FOLDER = ".ptm-tmp"
STALE_SECONDS = 24 * 60 * 60
MAKE_TRIES = 5
KEPT_FOLDERS = 3

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def as_store_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` about a key or a prefix into the `StoreError` that says what it means."""
    try:
        yield
    except FileNotFoundError as e:
        raise NotFound(f"{what} is not there") from e
    except (IsADirectoryError, NotADirectoryError) as e:
        hint = "a folder cannot hold an object and a folder of the same name; remove the one that does not belong there"
        raise StoreError(f"{what}: an object is in the way of a folder, or a folder of an object", hint=hint) from e
    except OSError as e:
        raise _translate(what, e) from e


def _translate(what: str, e: OSError) -> StoreError:
    reason = f"{what}: {os.strerror(e.errno) if e.errno else e}"
    if isinstance(e, PermissionError) or e.errno == errno.EROFS:
        return AccessDenied(
            reason, hint="check owner, group and mode of the registry's folder, and that it is not mounted read-only"
        )
    if e.errno in _FULL:
        return StoreError(
            reason, hint="free space (or raise the quota) where the registry's folder is; the same command may be given again"
        )
    return Unreachable(reason, hint="check the disk or the mount of the registry's folder; the same command may be given again")


def open_folder(root: Path, segments: Sequence[str], *, make: bool = False) -> int:
    """Open a folder below the root and return its descriptor, made with its parents if `make`.

    `Unreachable` if the root is not there, `StoreError` if a segment is a symbolic link, else `OSError`.
    """
    try:
        fd = os.open(root, _FOLDER_FLAGS)
    except (FileNotFoundError, NotADirectoryError) as e:
        hint = "check the path and that it is mounted; `ptm registry create` makes a new registry"
        what = "is not a folder" if isinstance(e, NotADirectoryError) else "does not exist"
        raise Unreachable(f"folder {root} {what}", hint=hint) from e
    for segment in segments:
        try:
            deeper = _enter(fd, segment, make)
        finally:
            os.close(fd)
        fd = deeper
    return fd


def _enter(fd: int, name: str, make: bool) -> int:
    for _ in range(MAKE_TRIES):
        try:
            return os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
        except FileNotFoundError:
            if not make:
                raise
        except OSError:
            refuse_link(fd, name)
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o777, dir_fd=fd)
        sync(fd)  # also when another writer has just made it: it may not have got to this line
    raise Unreachable(f"folder {name} is removed as fast as it is made")


def refuse_link(fd: int, name: str) -> None:
    """Raise `StoreError` if the name in this folder is a symbolic link."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISLNK(os.lstat(name, dir_fd=fd).st_mode):
            hint = "a file store follows no links below its root; remove it, and find out who put it there"
            raise StoreError(f"{name} is a symbolic link", hint=hint)


def prune(root: Path, segments: Sequence[str]) -> None:
    """Remove folders that are empty now, from the deepest up, so that a listing costs no more after a million objects came and
    went. The first `KEPT_FOLDERS` stay: they are members' own, and may have been made with an owner and a mode of their own.
    Writers make a folder again that goes under their hands."""
    for depth in range(len(segments), KEPT_FOLDERS, -1):
        try:
            fd = open_folder(root, segments[: depth - 1])
            try:
                os.rmdir(segments[depth - 1], dir_fd=fd)
            finally:
                os.close(fd)
        except (OSError, StoreError):
            return  # not empty, or not ours to remove


def open_object(fd: int, name: str) -> BinaryIO:
    """Open the regular file of that name in a folder for reading; `StoreError` if it is a link, a pipe or a device, else
    `OSError`."""
    try:
        # O_NONBLOCK: opening a pipe that somebody planted must not wait for its writer
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        refuse_link(fd, name)
        raise
    mode = os.fstat(opened).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(opened, "rb", buffering=0)
    os.close(opened)
    if stat.S_ISDIR(mode):
        raise FileNotFoundError(errno.ENOENT, "a folder is not an object", name)
    raise StoreError(f"{name} is not a regular file", hint="remove it, and find out who put it there")


def sync(fd: int) -> None:
    """Make a folder's entries durable. File systems that cannot sync a folder (EINVAL: some SMB and FUSE mounts) are left to
    their own."""
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise


@dataclass(frozen=True)
class Temp:
    """An unfinished write: a file in the temporary folder (`folder` is its descriptor)."""

    folder: int
    name: str
    file: BinaryIO

    def seal(self) -> None:
        """Make the content durable; nothing may be written afterwards."""
        self.file.flush()
        os.fsync(self.file.fileno())


@contextlib.contextmanager
def temp_file(root: Path) -> Iterator[Temp]:
    """A new file in the temporary folder, removed at the end unless it was renamed."""
    with as_store_errors(TEMP_FOLDER):
        folder = open_folder(root, [TEMP_FOLDER], make=True)
    name = f"{os.getpid()}-{secrets.token_hex(12)}"
    try:
        with as_store_errors(TEMP_FOLDER):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder)
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                yield Temp(folder, name, file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)


def sweep(root: Path, now: float) -> None:
    """Remove what killed writers left more than a day ago. Housekeeping: a reader who may not, or a root that is not there, is
    no error."""
    with contextlib.suppress(OSError, StoreError):
        folder = open_folder(root, [TEMP_FOLDER])
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if now - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS:
                        os.unlink(entry.name, dir_fd=folder)
        finally:
            os.close(folder)


def walk(root: Path, prefix: str) -> Iterator[ObjectInfo]:
    """The objects whose key starts with the prefix, in the byte order of whole keys (so `a-b` before `a/b`), one folder in
    memory at a time."""
    folder, slash, start = prefix.rpartition("/")
    pending = [_entries(root, folder + slash, start)]
    while pending:
        if not pending[-1]:
            pending.pop()
            continue
        found = pending[-1].pop()
        if found.key.endswith("/"):
            pending.append(_entries(root, found.key))
        else:
            yield found


def subfolders(root: Path, prefix: str) -> Iterator[str]:
    """The folders directly below a prefix (as prefixes) that have an object somewhere below them, ascending."""
    for found in reversed(_entries(root, prefix)):
        if found.key.endswith("/") and next(walk(root, found.key), None):
            yield found.key


def _entries(root: Path, folder: str, start: str = "") -> list[ObjectInfo]:
    """Objects and (with a '/' at the end of the key) folders directly in a folder, in descending order; none if it is not
    there."""
    with as_store_errors(folder or str(root)):
        try:
            fd = open_folder(root, folder.split("/")[:-1])
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            with os.scandir(fd) as entries:
                found = [info for entry in entries if entry.name.startswith(start) and (info := _entry(folder, entry))]
        finally:
            os.close(fd)
    return sorted(found, key=lambda info: info.key.encode(), reverse=True)


def _entry(folder: str, entry: os.DirEntry[str]) -> ObjectInfo | None:
    key = folder + entry.name
    try:
        check_key(key)
        info = entry.stat(follow_symlinks=False)
    except (InvalidKey, FileNotFoundError):
        return None
    if stat.S_ISDIR(info.st_mode):
        return ObjectInfo(f"{key}/", 0)
    return ObjectInfo(key, info.st_size) if stat.S_ISREG(info.st_mode) else None


def make_root(root: Path) -> None:
    """Make the root with its parents, durably; no error if it is there."""
    with as_store_errors(str(root)):
        missing = [folder for folder in (root, *root.parents) if not folder.exists()]
        try:
            root.mkdir(parents=True, exist_ok=True)
        except FileExistsError as e:
            raise StoreError(f"{root} is a file", hint="give the path of a folder") from e
        for folder in missing:
            fd = os.open(folder.parent, _FOLDER_FLAGS)
            try:
                sync(fd)
            finally:
                os.close(fd)
        os.close(open_folder(root, []))
