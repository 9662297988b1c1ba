"""Counts what a run had from its data sources. The counts stand in a small file that is mapped into memory, so that they survive
the node (though not the machine) at any moment, and cost nothing to keep."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ptm.model import DataUse

_COUNTS = struct.Struct("<QQQ")


class Meter:
    """The counts of all sources of a run, in the order of `names`. To be added to by one thread."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._names = tuple(names)
        size = _COUNTS.size * len(self._names)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)

    def add(self, name: str, *, requests: int = 0, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """`bytes_in` went from the run to the source, `bytes_out` came back."""
        at = self._names.index(name) * _COUNTS.size
        had = _COUNTS.unpack_from(self._map, at)
        _COUNTS.pack_into(self._map, at, had[0] + requests, had[1] + bytes_in, had[2] + bytes_out)

    def bytes_out(self, name: str) -> int:
        """What came back from a source so far."""
        return int(_COUNTS.unpack_from(self._map, self._names.index(name) * _COUNTS.size)[2])

    def close(self) -> None:
        self._map.close()


def read_use(path: Path, names: Sequence[str]) -> tuple[DataUse, ...]:
    """What stands in a meter's file; nothing used if there is none."""
    data = b""
    with suppress(FileNotFoundError):
        data = path.read_bytes()
    data = data.ljust(_COUNTS.size * len(names), b"\0")
    counts = [_COUNTS.unpack_from(data, number * _COUNTS.size) for number in range(len(names))]
    return tuple(
        DataUse(name=name, requests=had[0], bytes_in=had[1], bytes_out=had[2]) for name, had in zip(names, counts, strict=True)
    )
