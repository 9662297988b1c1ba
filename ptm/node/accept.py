"""From a queue entry to a decision: is it the user's own, may it run here and now, and who has to be asked?

`authentic` and `refuse` handle what is not what a user signed; `judge` asks the policy; `take_on` counts the run against its
researcher's budget and remembers it. Nothing here runs anything."""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime

from ulid import ULID

from ptm import layout
from ptm.config import ROSTER_MAX_AGE_S
from ptm.errors import Outdated, PtmError, StoreError, VerificationError
from ptm.layout import QueueEntry
from ptm.model import Refusal, Task, as_text
from ptm.node.collected import not_for
from ptm.node.policy import Allowed, LoadedPolicy, Refused, Usage, decide
from ptm.node.rules import has_budget
from ptm.node.state import RunRow
from ptm.node.terms import Terms
from ptm.node.verify import AuthenticTask, VerifiedTask, authenticate, verify
from ptm.node.worker import Ask, Ending, Worker
from ptm.registry import now_utc

MAX_RACES = 100
"""So often another worker may have counted a run at the same moment; a store that says so more often is not to be believed."""
log = logging.getLogger("ptm.node")


def authentic(worker: Worker, body: bytes, entry: QueueEntry) -> AuthenticTask | VerificationError:
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


def refuse(worker: Worker, entry: QueueEntry, body: bytes, error: PtmError) -> None:
    log.warning("%s: refused: %s", entry.key, error)
    seen = hashlib.sha256(body).hexdigest()
    worker.audit.record("entry-refused", entry.task, user=entry.user, seen_sha256=seen, reason=str(error)[:1000])
    worker.registry.refuse(
        Refusal(
            registry=worker.registry.id,
            task=entry.task,
            user=entry.user,
            site=worker.registry.me,
            seen_sha256=seen,
            reason=as_text(str(error)),
            hint=f"somebody changed the queue entry; `ptm task put --task {entry.task}` puts the signed task back",
            created=now_utc(),
        )
    )
    worker.registry.store.delete(entry.key)


def judge(worker: Worker, found: AuthenticTask, interrupted: Ask) -> Allowed | Ending:
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
    return _ask_policy(worker, verified)


def _ask_policy(worker: Worker, verified: VerifiedTask) -> Allowed | Ending:
    loaded = worker.policy.current()
    reviewed = worker.reviewed.digests(loaded.policy)
    decision = decide(verified, loaded, worker.config, usage_of(worker, loaded, verified.task), reviewed)
    if isinstance(decision, Refused):
        return Ending("rejected", decision.reason, decision.hint, policy_sha256=decision.policy_sha256)
    refused = not_for(worker, verified.task)
    if refused is not None:
        return Ending("rejected", *refused, policy_sha256=decision.policy_sha256)
    return decision


def usage_of(worker: Worker, loaded: LoadedPolicy, task: Task) -> Usage:
    """What this researcher had at this site today (UTC) besides this task. The registry is asked only if a rule has a budget; a
    worker's own runs count whatever the registry shows."""
    midnight = now_utc().replace(hour=0, minute=0, second=0)
    own = worker.state.runs_since(task.user, _first_ulid(midnight), task.id)
    return Usage(max(own, worker.day_runs.count(task.user, task.id)) if has_budget(loaded.policy) else own)


def take_on(
    worker: Worker, found: AuthenticTask, body: bytes, step: Terms | Ending, interrupted: Ask
) -> tuple[RunRow, Terms | Ending]:
    """Remember the run, with the terms it has. The budget is looked at once more, for another run may have been taken on
    meanwhile, here or by another worker."""
    task = found.task
    with worker.accepting:
        if isinstance(step, Terms):
            step = _counted(worker, found, step, interrupted)
        row = worker.state.open_run(task.id, task.user, found.sha256, str(ULID()), body, task.expires)
        if isinstance(step, Terms):
            worker.state.remember(task.id, "terms", step.model_dump_json())
    _record(worker, found, step)
    return row, step


def _counted(worker: Worker, found: AuthenticTask, terms: Terms, interrupted: Ask) -> Terms | Ending:
    """Count the run among those of the day, if it still may run."""
    for _ in range(MAX_RACES):
        again = judge(worker, found, interrupted)
        if isinstance(again, Ending):
            return again
        if not has_budget(worker.policy.current().policy) or worker.day_runs.add(found.task.user, found.task.id):
            return terms
    raise StoreError("the runs of today cannot be counted", hint=f"look at {layout.days_of(worker.registry.me)} in the registry")


def _record(worker: Worker, found: AuthenticTask, step: Terms | Ending) -> None:
    task = found.task
    said = "accepted" if isinstance(step, Terms) else step.state
    log.info("task %s of %s: %s", task.id, task.user, said)
    worker.audit.record(
        "task-accepted" if isinstance(step, Terms) else "task-not-accepted",
        task.id,
        user=task.user,
        task_sha256=found.sha256,
        image=task.image,
        data=list(task.data),
        deliver=task.deliver.model_dump() if task.deliver else None,
        purpose=task.purpose,
        state=None if isinstance(step, Terms) else step.state,
        reason=None if isinstance(step, Terms) else step.reason,
        rule=step.rule if isinstance(step, Terms) else None,
        policy_sha256=step.policy_sha256,
    )


def _first_ulid(moment: datetime) -> str:
    """The smallest ULID of a moment."""
    return str(ULID.from_datetime(moment))[:10] + "0" * 16
