"""What a runner must do: the node's only view of containers (`ptm.node.docker`) and of simulated ones (`ptm.node.process`).

The order is `resolve → start → wait → collect → remove`. Everything between `start` and `remove` survives a restart
of the node: `find` gives the handle back, and a run is never started twice. All methods raise
`ptm.errors.RunnerError` (with a hint) and nothing of a library. Safe to call from several threads."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from ptm.config import DataSource, Limits
from ptm.image import ImageRef
from ptm.model import DataUse

Interrupt = Literal["canceled", "stopping"]


@dataclass(frozen=True)
class RunSpec:
    """One run, ready to start: only what a verified and allowed task asks for, within the site's limits.

    `inputs` is a private folder with the decrypted input files (flat). `limits` are this run's own, already bounded
    by the site's. `gpus`: how many the run gets; a runner that cannot give them raises `RunnerError`."""

    registry: str
    site: str
    worker: str
    user: str
    task: str
    attempt: str
    image: ImageRef
    command: tuple[str, ...]
    env: dict[str, str]
    workdir: str | None
    inputs: Path
    data: dict[str, DataSource]
    limits: Limits
    gpus: int = 0


@dataclass(frozen=True)
class ResolvedImage:
    """What will run: `digest` (`sha256:…`) goes into the result, `handle` is what the runner starts it by (never a tag)."""

    digest: str
    handle: str


@dataclass(frozen=True)
class Exit:
    """How a run ended. `reason` is None for exit code 0, else one line for people: the time limit, the memory limit,
    a cancel, the exit code.

    `exit_code` is None if nothing ran to an end of its own. `interrupted` is set if it was the node that ended the
    wait; with `stopping` the run goes on (a container) and is found again, unless the runner says otherwise in
    `reason`."""

    exit_code: int | None
    reason: str | None
    start_time: datetime | None
    end_time: datetime
    interrupted: Interrupt | None = None


class Runner(Protocol):
    sandboxed: bool
    """False: runs what it is given with the node's own rights; for simulation only."""

    durable: bool
    """True: a run outlives the node, and `find` gives it back after a restart."""

    def check(self) -> None:
        """Raise `RunnerError` if nothing could be run here now (no engine, denied), with a hint."""

    def resolve(self, image: ImageRef, interrupted: Callable[[], Interrupt | None] = ...) -> ResolvedImage:
        """Pull (or look up) an image and pin it. May take long and holds up nobody else; an interrupt ends it with a
        `RunnerError`."""

    def start(self, spec: RunSpec, image: ResolvedImage) -> str:
        """Make and start the run with every limit on. Returns its handle. Leaves nothing behind if it fails."""

    def wait(self, handle: str, limits: Limits, interrupted: Callable[[], Interrupt | None]) -> Exit:
        """Wait until the run ends, its time limit (from its own start) is over, or `interrupted` says so (asked at
        least every second).

        At a time limit or a cancel the run is killed. With `stopping` it is left as it is, if it can outlive the node."""

    def collect(self, handle: str, limits: Limits, outputs: Path, log: Path) -> str | None:
        """Write the run's output files (flat, regular files only) into the empty folder `outputs` and its log to the
        file `log`.

        Returns None, or one line that says which rule the outputs broke (a link, a device, a folder, a name, too
        many, too large): the run has then failed, and `outputs` is to be thrown away. The log is cut to its limit and
        says so."""

    def usage(self, handle: str) -> tuple[DataUse, ...]:
        """What the run had from its data sources so far, by name; nothing for files, and nothing after `remove`."""

    def sweep(self, keep: Collection[str]) -> None:
        """Remove what nobody needs any more: what runs of this worker left, but for the tasks in `keep`, and images that this
        worker pulled and has not used for `keep_images_days`. Trouble is logged, never raised."""

    def remove(self, handle: str) -> None:
        """Remove what the run left in the engine. No error if it is gone."""

    def find(self, task: str) -> str | None:
        """The handle of this worker's run of this task, running or ended, if there is one."""

    def close(self) -> None:
        """Let go of the engine. A durable runner's runs go on; another's are ended."""
