"""One task's way through a node: verify → decide → claim → resolve → stage → run → collect → spool → deliver (design,
section 6).

`handle` takes a queue entry that this worker knows nothing of; `resume` takes up a run that was left unfinished by a
crash or an outage. Both return when there is nothing more to do for now; an outage of the store surfaces as
`StoreError`, and the caller tries again later. Whatever else goes wrong becomes a signed result with a reason."""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ulid import ULID

from ptm import envelope, layout
from ptm.config import ROSTER_MAX_AGE_S, Limits, NodeConfig, Policy
from ptm.errors import NotAllowed, NotFound, Outdated, PtmError, RunnerError, StoreError, TooLarge, VerificationError
from ptm.image import parse_image
from ptm.layout import QueueEntry
from ptm.model import Refusal, Task, as_text
from ptm.node.claims import Claims
from ptm.node.policy import Allowed, Refused, decide, run_limits
from ptm.node.runner import Exit, Interrupt, Runner, RunSpec
from ptm.node.spool import Ending, RunFolder, deliver, spool_result
from ptm.node.stage import stage_inputs
from ptm.node.state import RunRow, State
from ptm.node.verify import AuthenticTask, authenticate, verify
from ptm.registry import Registry, now_utc

log = logging.getLogger("ptm.node")
Ask = Callable[[], Interrupt | None]
RESTARTED = Ending("failed", "the node restarted in the middle of the run, and the run was gone", "put the task again")


@dataclass(frozen=True)
class Worker:
    """All that a run needs of its node. `slots` bounds how many run at once; pulling an image takes none."""

    registry: Registry
    config: NodeConfig
    policy: Policy
    runner: Runner
    state: State
    claims: Claims
    slots: threading.Semaphore


def handle(worker: Worker, entry: QueueEntry, interrupted: Ask) -> None:
    """Do all there is to do for a queue entry, or nothing if another worker holds it."""
    known = worker.state.find(entry.task)
    if known is not None and known.user == entry.user:
        resume(worker, known, interrupted)
        return
    try:
        body = worker.registry.read_raw(entry.key)
    except NotFound:
        return
    except TooLarge as e:
        _refuse(worker, entry, b"", e)
        return
    found = _authenticate(worker, body, entry)
    if isinstance(found, VerificationError):
        _refuse(worker, entry, body, found)
        return
    if worker.registry.exists(layout.result(worker.registry.me, entry.task)):
        log.info("task %s: has a result already; taken out of the queue", entry.task)
        worker.registry.dequeue(worker.registry.me, entry.user, entry.task)
        return
    decision = _judge(worker, found, interrupted)
    if isinstance(decision, Allowed) and not worker.claims.take(entry.task, found.sha256):
        return
    log.info("task %s of %s: %s", entry.task, entry.user, "accepted" if isinstance(decision, Allowed) else decision.state)
    row = worker.state.open_run(entry.task, entry.user, found.sha256, str(ULID()), body, found.task.expires)
    _go_on(worker, row, found.task, decision, interrupted)


def resume(worker: Worker, row: RunRow, interrupted: Ask) -> None:
    """Go on with a run that this worker took on before."""
    if row.phase in ("spooled", "delivered"):
        _clear(worker, row)
        deliver(worker.registry, worker.state, row)
        return
    task = envelope.load(Task, envelope.parse(row.task_body).canonical)
    decision: Allowed | Ending
    if row.phase == "claimed":
        decision = _judge(worker, AuthenticTask(task, row.task_sha256), interrupted)
        if isinstance(decision, Allowed) and not worker.claims.take(row.task, row.task_sha256):
            log.info("task %s: another worker has taken it over", row.task)
            RunFolder(worker.registry.home, row.task).remove()
            worker.state.release(row.task)
            return
    else:
        decision = Allowed(
            parse_image(task.image),
            run_limits(task, worker.config),
            {n: worker.config.data[n] for n in task.data if n in worker.config.data},
        )
    _go_on(worker, row, task, decision, interrupted)


def _authenticate(worker: Worker, body: bytes, entry: QueueEntry) -> AuthenticTask | VerificationError:
    """With a roster up to five minutes old; before a refusal, with a fresh one, for the user may have been admitted since.

    A roster that may not be acted on is not the task's fault: its `TrustError` is raised, never returned.
    """
    for max_age in (ROSTER_MAX_AGE_S, 0):
        roster = worker.registry.roster(max_age)
        try:
            return authenticate(body, entry, roster)
        except VerificationError as e:
            error = e
    return error


def _judge(worker: Worker, found: AuthenticTask, interrupted: Ask) -> Allowed | Ending:
    """Verify and decide. What may not run comes back as the ending it gets."""
    if interrupted() == "canceled":
        return Ending("canceled", f"canceled by {found.task.user} before it started")
    roster = worker.registry.roster(ROSTER_MAX_AGE_S)
    try:
        verified = verify(found, roster, worker.registry.me, now_utc())
    except Outdated as e:
        return Ending("expired", str(e), e.hint or "put the task again with a later --expires")
    except VerificationError as e:
        return Ending("rejected", str(e), e.hint)
    decision = decide(verified, worker.policy, worker.config)
    return Ending("rejected", decision.reason, decision.hint) if isinstance(decision, Refused) else decision


def _refuse(worker: Worker, entry: QueueEntry, body: bytes, error: PtmError) -> None:
    log.warning("%s: refused: %s", entry.key, error)
    worker.registry.refuse(
        Refusal(
            registry=worker.registry.id,
            task=entry.task,
            user=entry.user,
            site=worker.registry.me,
            seen_sha256=hashlib.sha256(body).hexdigest(),
            reason=as_text(str(error)),
            hint=f"somebody changed the queue entry; `ptm task put --task {entry.task}` puts the signed task back",
            created=now_utc(),
        )
    )
    worker.registry.store.delete(entry.key)


def _go_on(worker: Worker, row: RunRow, task: Task, decision: Allowed | Ending, interrupted: Ask) -> None:
    """From a remembered run to its delivered result. Everything but an outage of the store ends in a result."""
    try:
        ending = decision if isinstance(decision, Ending) else _run(worker, row, task, decision, interrupted)
    except StoreError as e:
        if not isinstance(e, NotFound | TooLarge):
            raise
        ending = Ending("failed", f"an input could not be read: {e}", "put the task again")
    except PtmError as e:
        ending = Ending("failed", str(e), e.hint)
    except OSError as e:
        ending = Ending("failed", _disk_trouble(e), "ask the site to look at its disk")
    except Exception as e:
        log.exception("task %s: unexpected fault", task.id)
        ending = Ending("failed", f"an unexpected fault at the site ({type(e).__name__})", "the site's log says more")
    if ending is None:
        return
    _finish(worker, row, task, ending)


def _finish(worker: Worker, row: RunRow, task: Task, ending: Ending) -> None:
    folder = RunFolder(worker.registry.home, task.id)
    folder.drop("inputs", "download", *(() if ending.state == "completed" else ("outputs",)))
    try:
        spooled = spool_result(worker.registry, worker.state, worker.config.worker, row, task, ending)
    except (NotAllowed, OSError) as e:
        folder.remove()
        reason = _disk_trouble(e) if isinstance(e, OSError) else f"the outputs could not be sealed: {e}"
        failed = Ending("failed", reason, None, None, ending.image_digest, ending.start_time, ending.end_time)
        spooled = spool_result(worker.registry, worker.state, worker.config.worker, row, task, failed)
    _clear(worker, row)
    deliver(worker.registry, worker.state, spooled)


def _clear(worker: Worker, row: RunRow) -> None:
    """Remove what the run left in the engine; its result is safe in the spool by now. An engine that is away is no
    reason to hold the result back."""
    current = worker.state.find(row.task)
    try:
        handle = (current and current.handle) or worker.runner.find(row.task)
        if handle is not None:
            worker.runner.remove(handle)
    except RunnerError as e:
        log.warning("task %s: %s", row.task, e)


def _run(worker: Worker, row: RunRow, task: Task, allowed: Allowed, interrupted: Ask) -> Ending | None:
    """Run it, or find it running. None if the node is being stopped and the run goes on, or has not started yet."""
    running = worker.runner.find(task.id) if row.phase in ("starting", "started") else None
    if running is not None:
        return _attend(worker, row.image_digest, running, allowed.limits, task, interrupted)
    if row.phase == "started" or (row.phase == "starting" and not worker.runner.durable):
        return RESTARTED
    log.info("task %s: getting the image %s", task.id, task.image)
    try:
        image = worker.runner.resolve(allowed.image, interrupted)
        waited = _wait_for_slot(worker, interrupted)
    except RunnerError:
        waited = interrupted()
        if waited is None:
            raise
    if waited == "canceled":
        return Ending("canceled", f"canceled by {task.user} before it started")
    if waited == "stopping":
        return None
    try:
        inputs = stage_inputs(worker.registry, task, allowed.limits)
        worker.state.starting(task.id, image.digest)
        handle = worker.runner.start(_spec(worker, row, task, allowed, inputs), image)
        worker.state.started(task.id, handle)
        shutil.rmtree(inputs, ignore_errors=True)
        log.info("task %s: running", task.id)
        return _attend(worker, image.digest, handle, allowed.limits, task, interrupted)
    finally:
        worker.slots.release()


def _attend(worker: Worker, digest: str | None, handle: str, limits: Limits, task: Task, interrupted: Ask) -> Ending | None:
    """Wait for a run that is there, and collect what it leaves."""
    end = worker.runner.wait(handle, limits, interrupted)
    if end.interrupted == "stopping" and end.reason is None:
        log.info("task %s: left running; the next start of this node goes on with it", task.id)
        return None
    folder = RunFolder(worker.registry.home, task.id)
    broken = worker.runner.collect(handle, limits, folder.fresh("outputs"), folder.log)
    if broken is not None:
        folder.fresh("outputs")
    return _ending(end, broken, digest, task)


def _ending(end: Exit, broken: str | None, digest: str | None, task: Task) -> Ending:
    state: Literal["completed", "failed", "canceled"] = "failed"
    reason = end.reason or broken
    hint = "the run's log.txt may say more" if end.exit_code else None
    if end.interrupted == "canceled":
        state, reason, hint = "canceled", f"canceled by {task.user} while it ran", None
    elif reason is None and end.exit_code == 0:
        state = "completed"
    return Ending(state, reason, hint, end.exit_code, digest, end.start_time, end.end_time)


def _spec(worker: Worker, row: RunRow, task: Task, allowed: Allowed, inputs: Path) -> RunSpec:
    return RunSpec(
        registry=worker.registry.id,
        site=worker.registry.me,
        worker=worker.config.worker,
        user=task.user,
        task=task.id,
        attempt=row.attempt,
        image=allowed.image,
        command=task.command,
        env=dict(task.env),
        workdir=task.workdir,
        inputs=inputs,
        data=allowed.data,
        limits=allowed.limits,
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


def _disk_trouble(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the site's disk is full"
    return f"the site could not read or write a file: {error.strerror or type(error).__name__}"
