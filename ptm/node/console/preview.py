"""Shows what is in a file that somebody else made, without ever letting it do anything: text and tables as text (the templates
escape them), PNG and JPEG as pictures after their first bytes and their size in pixels were looked at, all else not at all.

Everything is bounded: bytes read, characters, lines, rows, columns, pixels. Where the file's digest is known, all of the file is
measured, and one that is not what was listed is not shown.

What it does not do: execute, decompress or render; SVG and HTML are text."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import stat
import struct
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from ptm.model import PlainFile

MAX_IMAGE = 4 * 1024 * 1024
MAX_PIXELS = 40_000_000
MAX_TEXT = 20_000
MAX_LINES = 400
MAX_ROWS, MAX_COLUMNS, MAX_CELL = 100, 30, 200
MAX_IMAGES = 32
TABLES = {".csv": ",", ".tsv": "\t"}
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Preview:
    """One file for people. `cut`: there is more than is shown. `note` says why there is nothing to see, or what is wrong."""

    name: str
    size: int
    kind: Literal["text", "table", "image", "none", "changed"]
    sha256: str = ""
    text: str = ""
    rows: tuple[tuple[str, ...], ...] = ()
    image: str = ""
    note: str = ""
    cut: bool = False


class Images:
    """The pictures on the pages shown last, by digest: the browser gets the very bytes that were looked at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def keep(self, kind: str, body: bytes) -> str:
        name = hashlib.sha256(body).hexdigest()
        with self._lock:
            self._kept[name] = (kind, body)
            self._kept.move_to_end(name)
            while len(self._kept) > MAX_IMAGES:
                self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> tuple[str, bytes] | None:
        """Media type and content."""
        with self._lock:
            return self._kept.get(name)


def visible(text: str) -> str:
    """Text without what is not seen but does something: control characters, and those that turn the direction of writing."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def preview(path: Path, images: Images, listed: PlainFile | None = None) -> Preview:
    """The beginning of a file. `listed`: what it has to be. Never through a link, and never waiting for a pipe."""
    name = path.name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                return Preview(name, 0, "changed", note="not a regular file")
            head = file.read(MAX_IMAGE + 1)
            if listed is not None:
                size, digest = _measure(file, head)
                if (size, digest) != (listed.size, listed.sha256):
                    return Preview(name, size, "changed", digest, note="not what the run left: somebody changed it")
                return _show(name, size, head, images, digest)
            return _show(name, about.st_size, head, images, "")
    except OSError as e:
        return Preview(name, 0, "changed", note=f"cannot be read: {e.strerror}")


def _measure(file: BinaryIO, head: bytes) -> tuple[int, str]:
    size, hashed = len(head), hashlib.sha256(head)
    while chunk := file.read(_CHUNK):
        size += len(chunk)
        hashed.update(chunk)
    return size, hashed.hexdigest()


def _show(name: str, size: int, head: bytes, images: Images, digest: str) -> Preview:
    kind = "image/png" if head.startswith(_PNG) else "image/jpeg" if head.startswith(_JPEG) else ""
    if kind:
        pixels = _png_pixels(head) if kind == "image/png" else _jpeg_pixels(head)
        if len(head) > MAX_IMAGE or not 0 < pixels <= MAX_PIXELS:
            return Preview(name, size, "none", digest, note="a picture too large to show here, or not a whole one")
        return Preview(name, size, "image", digest, image=images.keep(kind, head))
    beginning = head[: 4 * MAX_TEXT]
    cut = len(beginning) < size
    try:
        text = beginning.decode("utf-8")
    except UnicodeDecodeError as e:
        if not (cut and e.start >= len(beginning) - 3):
            return Preview(name, size, "none", digest, note="not text, and no picture that is shown here")
        text = beginning[: e.start].decode("utf-8")
    if "\0" in text:
        return Preview(name, size, "none", digest, note="not text, and no picture that is shown here")
    delimiter = TABLES.get(Path(name).suffix.lower())
    if delimiter is not None:
        table = _table(text, delimiter)
        if table is not None:
            return Preview(name, size, "table", digest, rows=table[0], cut=cut or table[1])
    return _text(name, size, text, digest, cut)


def _text(name: str, size: int, text: str, digest: str, cut: bool) -> Preview:
    lines = text[:MAX_TEXT].replace("\r\n", "\n").split("\n")
    cut = cut or len(text) > MAX_TEXT or len(lines) > MAX_LINES
    return Preview(name, size, "text", digest, text="\n".join(lines[:MAX_LINES]), cut=cut)


def _table(text: str, delimiter: str) -> tuple[tuple[tuple[str, ...], ...], bool] | None:
    """The first rows and columns, and whether anything was cut; None if it is no table."""
    rows: list[tuple[str, ...]] = []
    cut = False
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if len(rows) >= MAX_ROWS:
                cut = True
                break
            cut = cut or len(row) > MAX_COLUMNS or any(len(cell) > MAX_CELL for cell in row)
            rows.append(tuple(cell[:MAX_CELL] for cell in row[:MAX_COLUMNS]))
    except csv.Error:
        return None
    return tuple(rows), cut


def _png_pixels(head: bytes) -> int:
    """Width times height (PNG, section 11.2.1: the header is the first chunk)."""
    if len(head) < 24 or head[12:16] != b"IHDR":
        return 0
    width, height = struct.unpack(">II", head[16:24])
    return int(width * height)


def _jpeg_pixels(head: bytes) -> int:
    """Width times height from the frame header (ITU-T T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[at + 5 : at + 9])
            return int(width * height)
        at += 2 + length
    return 0
