"""The researcher's Python interface; the command line calls the same code.

import ptm

client = ptm.Client()
task = client.put(image="myConsortium/count:1", sites=["maastro"], inputs={"params.json": b"{}"}, data=["cohort"])
for result in task.results(timeout=600):
    print(result.site, result.state, result.read("count.json"))
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ptm import layout
from ptm.config import Home, find_home
from ptm.errors import NotForUs, StoreError, TimedOut, Unreachable, UsageError
from ptm.model import Deliver, Delivered, Resources, Task
from ptm.registry import Registry, now_utc
from ptm.results import SavedResult, save_result
from ptm.tasks import (
    PARALLEL,
    PutReport,
    SiteStatus,
    TaskRequest,
    cancel_task,
    list_tasks,
    put_task,
    resume_task,
    task_status,
    unfit,
)
from ptm.transfer import Receipt
from ptm.trustedparty.send import receipt_for

POLL_S = 0.2
MAX_POLL_S = 5.0
"""A waiting client looks after a fifth of a second at first and whenever a site has answered, then ever less often, but
never less often than every five seconds."""
GRACE = timedelta(minutes=2)
"""How long after a task's expiry a result may still be on its way."""
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RunResult:
    """What one site answered. `files` lie in `folder`, decrypted and verified; the log, where there is one, is
    `log.txt` in it."""

    saved: SavedResult

    @property
    def site(self) -> str:
        return self.saved.result.site

    @property
    def state(self) -> str:
        """`completed`, `failed`, `rejected`, `canceled` or `expired`."""
        return self.saved.result.state

    @property
    def ok(self) -> bool:
        return self.state == "completed"

    @property
    def exit_code(self) -> int | None:
        return self.saved.result.exit_code

    @property
    def reason(self) -> str | None:
        return self.saved.result.reason

    @property
    def folder(self) -> Path:
        return self.saved.folder

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.saved.result.outputs)

    @property
    def delivered(self) -> Delivered | None:
        """What went to a trusted party instead of coming here: name, size and SHA-256 of each file, as ciphertext."""
        return self.saved.result.delivered

    def read(self, name: str) -> bytes:
        """An output file's bytes. `UsageError` if the result has no such file."""
        if name not in self.files:
            raise UsageError(f"{self.site} returned no file named {name}", hint=f"it returned: {', '.join(self.files) or 'none'}")
        return (self.folder / name).read_bytes()

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))

    @property
    def log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""


@dataclass
class TaskHandle:
    """A task that was put. Holds no connection; `ptm.Client().task(id)` gives it back later, also on another day."""

    registry: Registry
    id: str
    report: PutReport | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    @cached_property
    def _own(self) -> tuple[Task, str]:
        return self.registry.own_task(self.id)

    @property
    def task(self) -> Task:
        return self._own[0]

    def status(self) -> list[SiteStatus]:
        return task_status(self.registry, self.task)

    def cancel(self, reason: str = "") -> PutReport:
        return cancel_task(self.registry, self.id, reason)

    def resume(self) -> PutReport:
        """Finish a fan-out that was cut short."""
        return resume_task(self.registry, self.id)

    def results(self, timeout: float | None = 3600, folder: Path | str | None = None) -> Iterator[RunResult]:
        """Each site's verified result as it arrives. Raises `TimedOut` after `timeout` seconds (None: wait for ever)
        with some sites still missing.

        Files go to `folder/<site>/`, or to a temporary folder that lives as long as this object. A result that is not
        believed raises its `VerificationError` when the other sites' have been given. A run that failed is a result
        too: see `RunResult.ok`."""
        into = self._place(folder)
        task, digest = self._own
        waiting, doubts = set(task.sites), list[Exception]()
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = POLL_S
        while True:
            looks = _patiently(partial(self._look, task, digest, sorted(waiting), into), deadline)
            waiting -= looks.keys()
            for found in looks.values():
                if isinstance(found, RunResult):
                    yield found
                else:
                    doubts.append(found)
            if not waiting:
                break
            over = task.expires + GRACE < now_utc()
            if over or (deadline is not None and time.monotonic() + pause > deadline):
                if doubts:
                    break
                self._missing(task, waiting)
            time.sleep(pause)
            pause = POLL_S if looks else min(MAX_POLL_S, pause * 1.2)
        if doubts:
            raise doubts[0]

    def receipt(self, result: RunResult) -> Receipt | None:
        """What the trusted party answered to a result's outputs that were delivered to it; None if nothing yet."""
        delivered = result.delivered
        return None if delivered is None else receipt_for(self.registry, result.site, delivered)

    def _place(self, folder: Path | str | None) -> Path:
        if folder is not None:
            return Path(folder)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ptm-results-")
        return Path(self._folder.name)

    def _look(self, task: Task, digest: str, sites: Sequence[str], into: Path) -> dict[str, RunResult | Exception]:
        """What there is now: verified and saved results, and the error of each that is not believed; sites that have
        not answered are left out."""
        roster = self.registry.roster(60)

        def look(site: str) -> RunResult | Exception | None:
            try:
                raw = self.registry.result_bytes(site, task.id)
                if raw is not None:
                    return RunResult(save_result(self.registry, roster, raw, site, task, digest, into))
                notes = self.registry.refusals(site, task.id, roster)
            except Unreachable:
                raise
            except Exception as e:
                return e
            if not notes or self.registry.exists(layout.queue(site, task.user, task.id)):
                return None
            return NotForUs(f"{site} refused what it found in its queue: {notes[-1].reason}", hint=notes[-1].hint)

        with ThreadPoolExecutor(min(PARALLEL, len(sites))) as pool:
            return {site: found for site, found in zip(sites, pool.map(look, sites), strict=True) if found is not None}

    def _missing(self, task: Task, waiting: set[str]) -> None:
        states = "; ".join(
            f"{status.site} is {status.state}" + (f" ({status.reason})" if status.reason else "")
            for status in task_status(self.registry, task, sorted(waiting))
        )
        raise TimedOut(
            f"no result yet from {len(waiting)} of {len(task.sites)} sites: {states}", hint="the same command may be given again"
        )


class Client:
    """A researcher's access to the registry that a home has joined.

    `home`: the folder; by default `PTM_HOME`, else the platform's place. Nothing is read from the network before it
    is needed."""

    def __init__(self, home: str | Path | Home | None = None) -> None:
        self.home = home if isinstance(home, Home) else find_home(None if home is None else str(home))
        self.registry = Registry.open(self.home)

    def put(
        self,
        image: str,
        sites: Sequence[str],
        *,
        inputs: Mapping[str, bytes | str | Path] | None = None,
        data: Sequence[str] = (),
        deliver: tuple[str, str] | None = None,
        purpose: str = "",
        study: str | None = None,
        expires: str = "7d",
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        resources: Resources | None = None,
        time_limit_s: int | None = None,
    ) -> TaskHandle:
        """Seal, sign and put a task. `inputs` maps names to bytes, or to the paths of files (str or Path). `deliver`: the
        trusted party and its collection that the outputs go to, instead of to you.

        Raises `UsageError` or `NotAllowed` before anything is written, and `StoreError` if a site could not be
        reached: the error's text has the task's id, and `client.task(id).resume()` finishes the job."""
        given = inputs or {}
        try:
            request = TaskRequest(
                image=image,
                sites=tuple(sites),
                expires=expires,
                purpose=purpose,
                study=study,
                command=tuple(command),
                env=dict(env or {}),
                workdir=workdir,
                inputs={name: Path(value) for name, value in given.items() if not isinstance(value, bytes)},
                data=tuple(data),
                deliver=Deliver(to=deliver[0], collection=deliver[1]) if deliver else None,
                resources=resources or Resources(),
                time_limit_s=time_limit_s,
            )
        except ValidationError as e:
            raise unfit(e) from e
        handle = self.put_request(request, {name: value for name, value in given.items() if isinstance(value, bytes)})
        if handle.report:
            raise_for_failed(handle.report)
        return handle

    def put_request(self, request: TaskRequest, inputs: Mapping[str, bytes] | None = None) -> TaskHandle:
        """As `put`, from a `TaskRequest`; sites that could not be reached are in the handle's report."""
        report = put_task(self.registry, request, inputs)
        return TaskHandle(self.registry, report.task, report)

    def task(self, task_id: str) -> TaskHandle:
        return TaskHandle(self.registry, task_id)

    def tasks(self) -> list[Task]:
        """This researcher's tasks, newest first."""
        return list_tasks(self.registry)


def raise_for_failed(report: PutReport) -> None:
    """`StoreError` if a site could not be reached, with what to do about it."""
    if report.failed:
        failed = "; ".join(f"{site}: {error}" for site, error in report.failed.items())
        done = len(report.queued) + len(report.finished)
        raise StoreError(
            f"task {report.task} reached {done} of {done + len(report.failed)} sites; not {failed}",
            hint=f"`ptm task put --task {report.task}` finishes the job without a second task",
        )


def _patiently(look: Callable[[], Answer], deadline: float | None) -> Answer:
    """Look again through an outage of the store, until the deadline."""
    pause = POLL_S
    while True:
        try:
            return look()
        except Unreachable:
            if deadline is None or time.monotonic() + pause < deadline:
                time.sleep(pause)
                pause = min(MAX_POLL_S, pause * 2)
            else:
                raise
