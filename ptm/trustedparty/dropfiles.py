"""Files of a drop folder: whether one changes still, and moving one so that nothing is written over and a crash shows.

Every function may be called again after a crash. What this does not do: decide what happens to a file; see
`ptm.trustedparty.dropfolder`."""

from __future__ import annotations

import errno
import fcntl
import grp
import itertools
import os
import pwd
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ptm.files import sync_folder, write_atomic

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Look:
    """A file as it was when it was looked at; another file, or another content, looks different."""

    inode: int
    size: int
    modified_ns: int


def could_be_replaced(folder: Path, *, add: bool) -> str | None:
    """Why another account (root apart) could put something of its own in the place of what lies in a folder; None if it could
    not. `add`: it may add files, if the folder's sticky bit keeps it from renaming others'."""
    info = folder.stat()
    if info.st_uid not in (0, os.geteuid()):
        return "it belongs to another account"
    others = info.st_mode & stat.S_IWOTH or (info.st_mode & stat.S_IWGRP and not _is_private(info.st_gid))
    return "others may write there" if others and not (add and info.st_mode & stat.S_ISVTX) else None


def _is_private(gid: int) -> bool:
    """Whether a group is this account's alone, as many systems give one to each account."""
    try:
        account, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return (account.pw_gid, account.pw_name) == (gid, group.gr_name) and set(group.gr_mem) <= {account.pw_name}


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def journal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.id")


def look_at(path: Path) -> Look | None:
    """None if there is no regular file (any more)."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return Look(info.st_ino, info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else None


def has_writer(path: Path) -> bool:
    """Whether a process of this machine has the file open for writing; False if that cannot be told (it takes a lease, which the
    file's owner can get, on a local file system)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as e:
        return e.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


def move(path: Path, folder: Path, transfer_id: str | None, reason: str | None = None) -> str:
    """Move a file into another folder under a name that is free there, with its id or its reason beside it; returns that name.
    If this was cut short before, it goes on where it was."""
    for number in itertools.count(1):
        target = folder / (path.name if number == 1 else f"{path.stem}-{number}{path.suffix}")
        beside = target.with_name(f"{target.name}.reason.txt")
        if beside.exists() and not target.exists():
            continue
        finish: Callable[[], object] = path.unlink
        try:
            os.link(path, target, follow_symlinks=False)
        except FileExistsError:
            if not os.path.samestat(path.lstat(), target.lstat()):
                continue
        except OSError as e:
            if e.errno not in _NO_LINKS:
                raise
            if target.exists():
                continue
            finish = partial(path.rename, target)
        if transfer_id:
            write_atomic(journal_of(target), transfer_id.encode(), mode=0o600)
        if reason:
            write_atomic(beside, reason.encode())
        finish()
        sync_folder(folder)
        return target.name
    raise AssertionError("numbers never end")


def as_lines(reason: str, hint: str | None) -> str:
    return "".join(f"{' '.join(line.split())}\n" for line in (reason, hint) if line)
