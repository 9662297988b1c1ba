"""How the benchmarks measure: alternating repeats in one run, and the median."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def medians(repeats: int, *acts: Callable[[], object]) -> list[float]:
    """The median seconds of each act, taken in turns so that a busy moment hits all of them; one round to warm up is
    not counted."""
    for act in acts:
        act()
    rounds = [[seconds(act) for act in acts] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def command(*words: str) -> Callable[[], object]:
    return lambda: subprocess.run(words, check=True, capture_output=True)
