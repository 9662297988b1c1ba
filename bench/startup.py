"""`ptm --help` beside `python -c pass`: the bound is 3 times. And what is not answered from a stored page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from bench.timing import command, medians


def measure() -> Iterator[tuple[str, str]]:
    ptm = str(Path(sys.executable).with_name("ptm"))
    python = sys.executable
    floor, usage, click, task = medians(
        25,
        command(python, "-c", "pass"),
        command(ptm, "--help"),
        command(python, "-c", "import click"),
        command(ptm, "task", "put", "--help"),
    )
    yield "python -c pass", f"{floor * 1000:.0f} ms"
    yield "ptm --help ÷ python -c pass (bound: 3)", f"{usage / floor:.2f}"
    yield "python -c 'import click' ÷ python -c pass", f"{click / floor:.2f}"
    yield "ptm task put --help ÷ python -c pass", f"{task / floor:.2f}"
