"""What an image may try on a real container engine, beyond `tests/node/test_docker.py`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptm.config import FileSource
from tests.node.bench import Bench, bench, no_container_left

pytestmark = pytest.mark.slow
__all__ = ["bench", "no_container_left"]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A folder of data with another file system mounted below it, in which everybody may write."""
    folder = tmp_path / "data"
    (folder / "below").mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "mode=1777", "none", str(folder / "below")]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder / "below")], check=True)


def test_a_file_system_below_a_data_source_cannot_be_written_to(bench: Bench, mounted: Path) -> None:
    """An engine makes only the top of a bind read-only."""
    code = """
        import pathlib
        try:
            pathlib.Path("/ptm/data/cohort/below/planted").write_text("x")
        except OSError:
            print("refused")
    """
    ran = bench.run(bench.spec(code, data={"cohort": FileSource(path=mounted)}))
    assert ran.log.strip() == "refused"
    assert list((mounted / "below").iterdir()) == []
