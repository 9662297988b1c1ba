"""One task's way through a node: verify → decide → (data) → (approval) → claim → run → collect → check → (airlock) → spool →
deliver (design, section 6).

`handle` takes a queue entry that this worker knows nothing of; `resume` takes up a run that was left unfinished by a
crash, an outage, or a wait for a person. Both return when there is nothing more to do for now; an outage of the store
surfaces as `StoreError`, and the caller tries again later. Whatever else goes wrong becomes a signed result with a
reason."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace

from ptm import envelope
from ptm.errors import DigestMismatch, NotAllowed, NotFound, PtmError, StoreError, TooLarge, VerificationError
from ptm.layout import QueueEntry
from ptm.model import Task
from ptm.node.accept import authentic, judge, refuse, take_on
from ptm.node.airlock import Verdict, after_run, elsewhere, look
from ptm.node.approval import permitted
from ptm.node.collected import begin_use, data_is_there, end_use
from ptm.node.delivery import place_of
from ptm.node.execute import clear, execute
from ptm.node.policy import Allowed
from ptm.node.spool import RunFolder, deliver, spool_result
from ptm.node.state import RunRow
from ptm.node.terms import Terms
from ptm.node.verify import AuthenticTask
from ptm.node.worker import Ask, Ending, Worker

log = logging.getLogger("ptm.node")
UPDATED = Ending("failed", "the node was updated in the middle of the run", "put the task again")


def handle(worker: Worker, entry: QueueEntry, interrupted: Ask) -> None:
    """Do all there is to do for a queue entry now, or nothing if another worker holds it or a person is waited for."""
    known = worker.state.find(entry.task)
    if known is not None and known.user == entry.user:
        resume(worker, known, interrupted)
        return
    try:
        body = worker.registry.read_raw(entry.key)
    except NotFound:
        return
    except TooLarge as e:
        refuse(worker, entry, b"", e)
        return
    found = authentic(worker, body, entry)
    if isinstance(found, VerificationError):
        refuse(worker, entry, body, found)
        return
    _consider(worker, found, body, interrupted)


def _consider(worker: Worker, found: AuthenticTask, body: bytes, interrupted: Ask) -> None:
    """Decide about a task, and go on with it if it is ours to go on with."""
    task, me = found.task, worker.registry.me
    record = worker.registry.record(me, task.id)
    if record.finished:
        log.info("task %s: has a result already; taken out of the queue", task.id)
        end_use(worker, task, completed=False)
        worker.state.delivered(task.id)
        worker.registry.dequeue(me, task.user, task.id)
        return
    decision = judge(worker, found, interrupted)
    step: Terms | Ending | None = decision if isinstance(decision, Ending) else None
    if isinstance(decision, Allowed):
        step = elsewhere(record, found.sha256, decision.release_timeout_s)
        if step is None and record.asked("awaiting-release", found.sha256) is None:
            if record.claimed and not worker.claims.take(task.id, found.sha256):
                _let_go(worker, task)
                return
            if not data_is_there(worker, found, record):
                return
            step = permitted(worker, found, decision, record, interrupted)
    if step is None or (isinstance(step, Terms) and not begin_use(worker, found, record)):
        return
    if (isinstance(step, Terms) or record.claimed) and not worker.claims.take(task.id, found.sha256):
        _let_go(worker, task)
        return
    row, step = take_on(worker, found, body, step, interrupted)
    _go_on(worker, row, task, step, interrupted)


def _let_go(worker: Worker, task: Task) -> None:
    """Another worker holds the task. If this one had it and had not begun, it is that worker's now."""
    end_use(worker, task, completed=False)
    row = worker.state.find(task.id)
    if row is not None and row.phase == "claimed":
        log.info("task %s: another worker has taken it over", task.id)
        RunFolder(worker.registry.home, task.id).remove()
        worker.state.release(task.id)


def resume(worker: Worker, row: RunRow, interrupted: Ask) -> None:
    """Go on with a run that this worker took on before."""
    if row.phase in ("spooled", "delivered"):
        clear(worker, row)
        deliver(worker, row)
        return
    task = envelope.load(Task, envelope.parse(row.task_body).canonical)
    if row.phase == "claimed":
        _consider(worker, AuthenticTask(task, row.task_sha256), row.task_body, interrupted)
        return
    kept = worker.state.recall(row.task, "terms")
    terms = envelope.load(Terms, kept.encode()) if kept is not None else UPDATED
    _go_on(worker, row, task, terms, interrupted)


def _go_on(worker: Worker, row: RunRow, task: Task, step: Terms | Ending, interrupted: Ask) -> None:
    """From a remembered run to its delivered result, or to the airlock. Everything but an outage of the store ends in a
    result."""
    try:
        verdict = Verdict(step) if isinstance(step, Ending) else _run(worker, row, task, step, interrupted)
    except StoreError as e:
        if not isinstance(e, NotFound | TooLarge) or _is_held(worker, row):
            raise
        verdict = Verdict(Ending("failed", f"an input could not be read: {e}", "put the task again"))
    except PtmError as e:
        if _is_held(worker, row):
            raise
        verdict = Verdict(Ending("failed", str(e), e.hint))
    except OSError as e:
        if _is_held(worker, row):
            raise PtmError(f"task {task.id}: {_disk_trouble(e)}", hint="nothing is lost; it is tried again") from e
        verdict = Verdict(Ending("failed", _disk_trouble(e), "ask the site to look at its disk"))
    except Exception as e:
        log.exception("task %s: unexpected fault", task.id)
        if _is_held(worker, row):
            raise PtmError(
                f"task {task.id}: unexpected fault ({type(e).__name__})", hint="nothing is lost; it is tried again"
            ) from e
        verdict = Verdict(Ending("failed", f"an unexpected fault at the site ({type(e).__name__})", "the site's log says more"))
    if verdict is not None:
        _finish(worker, row, task, _with_terms(verdict, step))


def _run(worker: Worker, row: RunRow, task: Task, terms: Terms, interrupted: Ask) -> Verdict | None:
    if row.phase == "held":
        return look(worker, row, task, terms, interrupted)
    ran = execute(worker, row, task, terms, interrupted)
    if ran is None:
        return None
    ending, started = ran
    return after_run(worker, row, task, terms, ending) if started else Verdict(ending)


def _with_terms(verdict: Verdict, step: Terms | Ending) -> Verdict:
    """A result says which policy allowed its run, and who, also when the run went wrong."""
    ending = verdict.ending
    if isinstance(step, Ending) or ending.policy_sha256 is not None:
        return verdict
    return replace(verdict, ending=replace(ending, policy_sha256=step.policy_sha256, decided_by=step.decided_by))


def _finish(worker: Worker, row: RunRow, task: Task, verdict: Verdict) -> None:
    ending = _unless_nothing_to_deliver(task, verdict)
    room = () if verdict.leaving.outputs else ("outputs",)  # what does not leave makes room for what says so
    RunFolder(worker.registry.home, task.id).drop("inputs", "download", *room)
    try:
        spooled = spool_result(worker, row, task, ending, verdict.leaving)
    except (NotAllowed, DigestMismatch, OSError) as e:
        if isinstance(e, OSError | DigestMismatch) and _is_held(worker, row):
            why = _disk_trouble(e) if isinstance(e, OSError) else str(e)
            raise PtmError(
                f"what is held cannot be sealed: {why}", hint="put it right; it is tried again, and nothing is lost"
            ) from e
        reason = _disk_trouble(e) if isinstance(e, OSError) else f"the outputs could not be sealed: {e}"
        RunFolder(worker.registry.home, task.id).remove()
        spooled = spool_result(worker, row, task, replace(ending, state="failed", reason=reason, hint=None, exit_code=None))
    clear(worker, row)
    deliver(worker, spooled)


def _unless_nothing_to_deliver(task: Task, verdict: Verdict) -> Ending:
    """A run whose outputs are for a party has not done what was asked if there are none."""
    ending = verdict.ending
    if task.deliver is None or ending.state != "completed" or verdict.leaving.outputs:
        return ending
    reason = f"the run left no file to deliver to {place_of(task.deliver)}"
    return replace(ending, state="failed", reason=reason, hint="the image writes what is to be delivered to PTM_OUTPUT_DIR")


def _is_held(worker: Worker, row: RunRow) -> bool:
    """What waits for a person is never given up for a fault of the machine."""
    current = worker.state.find(row.task)
    return current is not None and current.phase == "held"


def _disk_trouble(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the site's disk is full"
    return f"the site could not read or write a file: {error.strerror or type(error).__name__}"
