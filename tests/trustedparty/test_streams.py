"""The pipe between two threads: bounded, in order, and nobody waits for ever when the other side is gone."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ptm.trustedparty.streams import ROOM, SYNC_BYTES, Pipe, Synced


def test_all_bytes_arrive_in_order_in_pieces_of_any_size() -> None:
    pipe, body = Pipe(), os.urandom(100_000)

    def write() -> None:
        for at in range(0, len(body), 7_001):
            pipe.write(body[at : at + 7_001])
        pipe.end()

    thread = threading.Thread(target=write)
    thread.start()
    found = bytearray()
    while chunk := pipe.read(3_000):
        assert len(chunk) <= 3_000
        found += chunk
    thread.join(10)
    assert bytes(found) == body
    assert pipe.read() == b""


def test_writer_waits_when_there_is_no_room_and_ends_when_nobody_reads_any_more() -> None:
    pipe, written, broken = Pipe(), list[int](), threading.Event()

    def write() -> None:
        try:
            for n in range(100):
                pipe.write(b"x")
                written.append(n)
        except BrokenPipeError:
            broken.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not broken.wait(0.2)
    assert len(written) == ROOM
    pipe.close()
    thread.join(10)
    assert broken.is_set()


@pytest.mark.parametrize("size", [0, 1, SYNC_BYTES, 2 * SYNC_BYTES + 1])
def test_synced_file_is_whole(tmp_path: Path, size: int) -> None:
    with (tmp_path / "file").open("wb") as file:
        synced = Synced(file)
        for at in range(0, size, 10_000_000):
            synced.write(bytes(min(10_000_000, size - at)))
        synced.sync()
        assert (tmp_path / "file").stat().st_size == size
