"""Progress on a terminal, on stderr; silent in a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptm.trustedparty.uploading import Stages


@contextlib.contextmanager
def waiting(sites: int, wait: bool) -> Iterator[Callable[[str], None]]:
    """A bar that counts sites which have answered; call what it yields with a line for each."""
    if not (wait and sys.stderr.isatty()):
        yield lambda line: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("waiting for results"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("results", total=sites, last="")

        def advance(line: str) -> None:
            progress.update(bar, advance=1, last=line)

        yield advance


@contextlib.contextmanager
def moving() -> Iterator[Stages | None]:
    """A bar for each stage of files on their way, with bytes, speed and time left."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def begin(stage: str, total: int) -> Callable[[int], None]:
            bar = progress.add_task(stage, total=total)
            return lambda moved: progress.advance(bar, moved)

        yield begin
