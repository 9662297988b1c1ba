"""When the engine's file system counts as full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ptm.node.diskroom import shortage

GB = 1024**3 // 4096


@pytest.mark.parametrize(
    ("free_gb", "files", "free_files", "told"),
    [
        (5, 1_000_000, 900_000, None),
        (0.5, 1_000_000, 900_000, "less than 1 GB"),
        (5, 1_000_000, 10_000, "new files"),
        (5, 0, 0, None),
    ],
)
def test_too_little_room_or_too_few_inodes_is_told(
    monkeypatch: pytest.MonkeyPatch, free_gb: float, files: int, free_files: int, told: str | None
) -> None:
    """A file system without a number of inodes (btrfs) says 0 of 0."""
    free = int(free_gb * GB)
    found = os.statvfs_result((4096, 4096, 100 * GB, free, free, files, free_files, free_files, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    said = shortage(Path("/"), 1)
    assert said is None if told is None else told in str(said)


def test_a_folder_that_is_on_another_machine_tells_nothing(tmp_path: Path) -> None:
    assert shortage(tmp_path / "elsewhere", 1e9) is None
