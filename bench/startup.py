"""`ptm --help` beside `python -c pass` and `aws`-less Python's own floor: the bound is 3 times (issue 2, point 4)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from bench.timing import command, medians


def measure() -> Iterator[tuple[str, str]]:
    ptm = str(Path(sys.executable).with_name("ptm"))
    floor, usage, task = medians(
        15, command(sys.executable, "-c", "pass"), command(ptm, "--help"), command(ptm, "task", "put", "--help")
    )
    yield "python -c pass", f"{floor * 1000:.0f} ms"
    yield "ptm --help ÷ python -c pass (bound: 3)", f"{usage / floor:.2f}"
    yield "ptm task put --help ÷ python -c pass", f"{task / floor:.2f}"
