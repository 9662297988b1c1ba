"""The run itself: get the image, wait for a place, stage the inputs, start, wait, collect.

Everything up to the collected outputs; what becomes of them is for `ptm.node.airlock`. A run that was started by an earlier
process of this worker is found again, never started twice."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ptm.errors import RunnerError
from ptm.image import parse_image
from ptm.model import DataUse, Task
from ptm.node.collected import make_readable
from ptm.node.runner import Exit, Interrupt, ResolvedImage, RunSpec
from ptm.node.spool import RunFolder
from ptm.node.stage import stage_inputs
from ptm.node.state import RunRow
from ptm.node.terms import Terms
from ptm.node.worker import Ask, Ending, Worker

log = logging.getLogger("ptm.node")
RESTARTED = Ending("failed", "the node restarted in the middle of the run, and the run was gone", "put the task again")
Ran = tuple[Ending, bool]
"""How it ended, and whether anything ran whose files lie in the run's folder now."""


def execute(worker: Worker, row: RunRow, task: Task, terms: Terms, interrupted: Ask) -> Ran | None:
    """Run it, or find it running. None if the node is being stopped and the run goes on, or has not started yet."""
    ran = _execute(worker, row, task, terms, interrupted)
    if ran is None:
        return None
    ending, started = ran
    return replace(ending, policy_sha256=terms.policy_sha256, decided_by=terms.decided_by), started


def _execute(worker: Worker, row: RunRow, task: Task, terms: Terms, interrupted: Ask) -> Ran | None:
    running = worker.runner.find(task.id) if row.phase in ("starting", "started") else None
    if running is not None:
        return _attend(worker, row.image_digest, running, terms, task, interrupted)
    if row.phase == "started" or (row.phase == "starting" and not worker.runner.durable):
        return RESTARTED, False
    log.info("task %s: getting the image %s", task.id, task.image)
    image: ResolvedImage | None = None
    try:
        image = worker.runner.resolve(parse_image(task.image), interrupted)
        waited = _wait_for_slot(worker, interrupted)
    except RunnerError:
        waited = interrupted()
        if waited is None:
            raise
    if waited == "canceled":
        return Ending("canceled", f"canceled by {task.user} before it started"), False
    if waited == "stopping" or image is None:
        return None
    try:
        if terms.image_digest not in (None, image.digest):
            return _moved(task, terms, image), False
        return _start(worker, row, task, terms, image, interrupted)
    finally:
        worker.slots.release()


def _start(worker: Worker, row: RunRow, task: Task, terms: Terms, image: ResolvedImage, interrupted: Ask) -> Ran | None:
    inputs = stage_inputs(worker.registry, task, terms.limits)
    make_readable(worker, task)
    worker.state.starting(task.id, image.digest)
    worker.audit.record("run-started", task.id, attempt=row.attempt, image_digest=image.digest, data=list(terms.data))
    handle = worker.runner.start(_spec(worker, row, task, terms, inputs), image)
    worker.state.started(task.id, handle)
    shutil.rmtree(inputs, ignore_errors=True)
    log.info("task %s: running", task.id)
    return _attend(worker, image.digest, handle, terms, task, interrupted)


def _moved(task: Task, terms: Terms, image: ResolvedImage) -> Ending:
    reason = f"the image {task.image} is not the one that was approved ({terms.image_digest}): it is {image.digest} now"
    return Ending("rejected", reason, "put the task again, best by digest", None, image.digest)


def _attend(worker: Worker, digest: str | None, handle: str, terms: Terms, task: Task, interrupted: Ask) -> Ran | None:
    """Wait for a run that is there, and collect what it leaves."""
    end = worker.runner.wait(handle, terms.limits, interrupted)
    if end.interrupted == "stopping" and end.reason is None:
        log.info("task %s: left running; the next start of this node goes on with it", task.id)
        return None
    folder = RunFolder(worker.registry.home, task.id)
    broken = worker.runner.collect(handle, terms.limits, folder.fresh("outputs"), folder.log)
    if broken is not None:
        folder.fresh("outputs")
    found = worker.runner.usage(handle)
    used = tuple(DataUse(name=u.name, requests=u.requests, bytes_in=u.bytes_in, bytes_out=u.bytes_out) for u in found)
    ending = replace(_ending(end, broken, digest, task, terms), data_use=used)
    worker.audit.record(
        "run-ended",
        task.id,
        state=ending.state,
        exit_code=ending.exit_code,
        reason=ending.reason,
        outputs=len(list((folder.path / "outputs").iterdir())),
        bytes=sum(path.stat().st_size for path in (folder.path / "outputs").iterdir()),
        data_use=[use.model_dump(mode="json") for use in used],
    )
    return ending, True


def _ending(end: Exit, broken: str | None, digest: str | None, task: Task, terms: Terms) -> Ending:
    state: Literal["completed", "failed", "canceled"] = "failed"
    reason = end.reason or broken
    hint = "the run's log.txt may say more" if end.exit_code and terms.logs else None
    if end.interrupted == "canceled":
        state, reason, hint = "canceled", f"canceled by {task.user} while it ran", None
    elif reason is None and end.exit_code == 0:
        state = "completed"
    return Ending(state, reason, hint, end.exit_code, digest, end.start_time, end.end_time)


def _spec(worker: Worker, row: RunRow, task: Task, terms: Terms, inputs: Path) -> RunSpec:
    return RunSpec(
        registry=worker.registry.id,
        site=worker.registry.me,
        worker=worker.config.worker,
        user=task.user,
        task=task.id,
        attempt=row.attempt,
        image=parse_image(task.image),
        command=task.command,
        env=dict(task.env),
        workdir=task.workdir,
        inputs=inputs,
        data={name: worker.config.data[name] for name in terms.data},
        limits=terms.limits,
        gpus=task.resources.gpus or 0,
    )


def _wait_for_slot(worker: Worker, interrupted: Ask) -> Interrupt | None:
    """Wait for a place among those that may run at once. An interrupt ends the wait without one."""
    while not worker.slots.acquire(timeout=0.5):
        why = interrupted()
        if why is not None:
            return why
    why = interrupted()
    if why is not None:
        worker.slots.release()
    return why


def clear(worker: Worker, row: RunRow) -> None:
    """Remove what the run left in the engine, once all that matters of it is safe. An engine that is away is no reason to hold
    anything up."""
    current = worker.state.find(row.task)
    try:
        handle = (current and current.handle) or worker.runner.find(row.task)
        if handle is not None:
            worker.runner.remove(handle)
    except RunnerError as e:
        log.warning("task %s: %s", row.task, e)
