"""What goes into a run and comes out: inputs as a tar stream, flat regular files under the rules, a bounded log. Nothing here
knows an engine.

A run's output is hostile. The rules: regular files only (no link of either kind, device, pipe, socket or folder), one path
segment by the rules of `ptm.model.OutputName`, no two names alike but for case or the way accents are written, at most
`output_files` files and `output_mb` MiB. Nothing is followed, nothing is extracted by tarfile itself, and nothing is written
outside the folder given. Memory is constant. A broken rule comes back as one line for the researcher; the folder then holds
leftovers that the caller throws away.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

from pydantic import TypeAdapter, ValidationError

from ptm.config import Limits
from ptm.errors import RunnerError
from ptm.model import OutputName

CHUNK = 1024 * 1024
MIB = 1024 * 1024
_NAME: TypeAdapter[str] = TypeAdapter(OutputName)
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
}


class _BrokenRule(Exception):
    pass


class _Target:
    """The folder that outputs are written to, and what is left of the limits."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._names: set[str] = set()
        self._room = limits.output_mb * MIB

    def write(self, name: str, size: int, read: Callable[[int], bytes]) -> None:
        """Take one file of `size` bytes. What it really has is counted too."""
        self._admit(name)
        if size > self._room:
            raise self._too_large()
        with (self._folder / name).open("xb") as sink:
            while chunk := read(CHUNK):
                self._room -= len(chunk)
                if self._room < 0:
                    raise self._too_large()
                sink.write(chunk)

    def _admit(self, name: str) -> None:
        try:
            _NAME.validate_python(name)
        except ValidationError as e:
            problem = e.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
            raise _BrokenRule(f"the output {shown(name)} may not be named so: {problem}") from e
        alike = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        if alike in self._names:
            raise _BrokenRule(f"there are two outputs named {shown(name)} (capitals, and how accents are written, do not count)")
        self._names.add(alike)
        if len(self._names) > self._limits.output_files:
            raise _BrokenRule(f"there are more than {self._limits.output_files} output files, the site's limit")

    def _too_large(self) -> _BrokenRule:
        return _BrokenRule(f"the outputs have more than {self._limits.output_mb} MB, the site's limit")


def take_tar(chunks: Iterable[bytes], root: str, target: Path, limits: Limits) -> str | None:
    """Write the files of a tar stream to the empty folder `target`. Every entry starts with `root`, the folder that was archived.

    Returns None or the broken rule. `RunnerError` if the stream is damaged or ends early, for then nobody knows what is missing.
    """
    sink = _Target(target, limits)
    try:
        with tarfile.open(
            fileobj=_Reader(chunks), mode="r|", tarinfo=_StrictInfo, encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for entry in tar:
                _take_entry(tar, entry, root, sink)
    except _BrokenRule as e:
        return str(e)
    except (tarfile.TarError, ValueError) as e:
        raise RunnerError("the outputs came damaged or cut off out of the engine", hint="the engine's own log may say why") from e
    return None


class _StrictInfo(tarfile.TarInfo):
    """tarfile takes a damaged header, or none, for the end of the archive. Here only the end is the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # not in typeshed
            raise
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(str(e)) from e


def _take_entry(tar: tarfile.TarFile, entry: tarfile.TarInfo, root: str, sink: _Target) -> None:
    path = entry.name.removeprefix("./").rstrip("/")
    regular = entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
    if path == root:
        if not entry.isdir():
            raise _BrokenRule("the output folder was replaced by something else")
        return
    name = path.removeprefix(f"{root}/")
    if not regular:
        raise _BrokenRule(f"the output {shown(name)} is {_KINDS.get(entry.type, 'no regular file')}; only plain files may leave")
    if not path.startswith(f"{root}/"):
        raise _BrokenRule(f"the output {shown(name)} is not in the output folder")
    source = tar.extractfile(entry)
    if source is None:
        raise tarfile.ReadError("a file without content")
    sink.write(name, entry.size, source.read)


def take_folder(folder: Path, target: Path, limits: Limits) -> str | None:
    """The same for a folder on this machine, in which something may still be at work: each file is opened once, no link
    followed."""
    sink = _Target(target, limits)
    try:
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return "the output folder was replaced by something else"
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                _take_file(root, entry.name, sink)
    except _BrokenRule as e:
        return str(e)
    finally:
        os.close(root)
    return None


def _take_file(root: int, name: str, sink: _Target) -> None:
    before = os.stat(name, dir_fd=root, follow_symlinks=False)
    if not stat.S_ISREG(before.st_mode):
        raise _BrokenRule(f"the output {shown(name)} is {_kind(before.st_mode)}; only plain files may leave")
    if before.st_nlink > 1:
        raise _BrokenRule(f"the output {shown(name)} is a hard link; only plain files may leave")
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
    except OSError as e:
        raise _BrokenRule(f"the output {shown(name)} cannot be read") from e
    with os.fdopen(descriptor, "rb") as source:
        now = os.fstat(source.fileno())
        if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            raise _BrokenRule(f"the output {shown(name)} was exchanged while it was read")
        sink.write(name, now.st_size, source.read)


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((text for test, text in kinds if test(mode)), "a device")


def shown(name: str) -> str:
    """A hostile name, fit for one line of text."""
    return ascii(name if len(name) <= 60 else name[:57] + "...")


def write_log(chunks: Iterable[bytes], log: Path, limit_kb: int) -> None:
    """Write a log, cut at `limit_kb` KiB; a log that was cut says so in its last line. Stops reading there."""
    with log.open("wb") as sink:
        bounded = BoundedLog(sink, limit_kb)
        for chunk in chunks:
            if not bounded.write(chunk):
                break


class BoundedLog:
    """A log that is being written: takes what comes, keeps what fits."""

    def __init__(self, sink: BinaryIO, limit_kb: int) -> None:
        self._sink, self._limit_kb = sink, limit_kb
        self._room = limit_kb * 1024
        self._cut = False

    def write(self, chunk: bytes) -> bool:
        """False once the log is full: nothing more will be kept."""
        if self._cut:
            return False
        self._sink.write(chunk[: self._room])
        self._cut = len(chunk) > self._room
        self._room -= min(len(chunk), self._room)
        if self._cut:
            self._sink.write(f"\n[ptm: the log was cut here, at the site's limit of {self._limit_kb} KB]\n".encode())
        return not self._cut


def input_tar(inputs: Path, uid: int, gid: int, root: str = "ptm") -> Iterator[bytes]:
    """A tar stream with `ptm/input/` (files 0444) and an empty `ptm/output/` (0700), both the run's user's; constant memory.
    `root` is what stands in it in place of `ptm`, `.` for the folder that it is unpacked in."""
    yield folder_entry(root, 0o755)
    yield _header(f"{root}/input", tarfile.DIRTYPE, 0o755, (uid, gid))
    yield _header(f"{root}/output", tarfile.DIRTYPE, 0o700, (uid, gid))
    for path in sorted(inputs.iterdir()):
        with path.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            yield _header(f"{root}/input/{path.name}", tarfile.REGTYPE, 0o444, (uid, gid), size)
            yield from _content(source, size)
    yield bytes(2 * tarfile.BLOCKSIZE)


def scratch_tar() -> Iterator[bytes]:
    """A tar stream that makes the folder it is unpacked in one that everybody may write to, as /tmp is."""
    yield folder_entry(".", 0o1777)
    yield bytes(2 * tarfile.BLOCKSIZE)


def folder_entry(name: str, mode: int) -> bytes:
    """The entry of one folder, root's own."""
    return _header(name, tarfile.DIRTYPE, mode, (0, 0))


def _header(name: str, kind: bytes, mode: int, owner: tuple[int, int], size: int = 0) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size = kind, mode, size
    entry.uid, entry.gid = owner
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _content(source: BinaryIO, size: int) -> Iterator[bytes]:
    left = size
    while left:
        chunk = source.read(min(CHUNK, left))
        if not chunk:
            raise RunnerError("an input became shorter while it was read")
        left -= len(chunk)
        yield chunk
    if padding := bytes(-size % tarfile.BLOCKSIZE):
        yield padding


class _Reader(io.RawIOBase):
    """An iterator of chunks as a file to read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        parts, missing = [], size
        while missing:
            if not self._held:
                self._held = next(self._chunks, b"")
                if not self._held:
                    break
            part, self._held = self._held[:missing], self._held[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)
