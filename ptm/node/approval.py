"""Before a run: does a person have to say yes, and have they?

A question and its answer are signed notes in the run's prefix (`ptm.notes`), so any worker of the site may ask, and whichever
sees the answer first goes on, by the usual claim. Nothing is claimed, and nothing is kept on disk, while a person thinks. What is
approved is one task with one image digest: if the image's tag has moved when the run starts, it does not start."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from ptm.errors import RunnerError
from ptm.model import Decision, format_time
from ptm.node.firstuse import withdrawals
from ptm.node.policy import Allowed
from ptm.node.terms import Terms, in_words, make_terms
from ptm.node.verify import AuthenticTask
from ptm.node.worker import Ask, Ending, Worker
from ptm.notes import Note, RunRecord, decisions
from ptm.registry import now_utc

log = logging.getLogger("ptm.node")


def permitted(
    worker: Worker, found: AuthenticTask, allowed: Allowed, record: RunRecord, interrupted: Ask
) -> Terms | Ending | None:
    """The terms to run on, or the ending of a run that nobody wants, or None while a person is waited for."""
    if allowed.approval == "auto":
        return make_terms(allowed, None, ())
    asked = record.asked("awaiting-approval", found.sha256)
    if asked is None:
        return _ask(worker, found, allowed, interrupted)
    answer = record.answer(asked)
    if answer is not None:
        return _answered(worker, allowed, answer)
    first = _first_use(worker, allowed, str(asked.image_digest))
    if first is not None:
        _close(worker, asked, first.decided_by[0])
        return first
    return _timed_out(allowed, asked, now_utc())


def _ask(worker: Worker, found: AuthenticTask, allowed: Allowed, interrupted: Ask) -> Terms | Ending | None:
    """Find out what would run, and ask a person about it."""
    task = found.task
    try:
        digest = worker.runner.resolve(allowed.image, interrupted).digest
    except RunnerError as e:
        if interrupted() == "stopping":
            return None
        if interrupted() == "canceled":
            return Ending("canceled", f"canceled by {task.user} before it started")
        return Ending("failed", str(e), e.hint, policy_sha256=allowed.policy_sha256)
    first = _first_use(worker, allowed, digest)
    if first is not None:
        return first
    note = Note(
        registry=worker.registry.id,
        task=task.id,
        task_sha256=found.sha256,
        user=task.user,
        site=worker.registry.me,
        what="awaiting-approval",
        worker=worker.config.worker,
        image_digest=digest,
        first_use=allowed.approval == "first-use",
        created=now_utc(),
    )
    if allowed.approval == "first-use":
        _record_withdrawal(worker, task.id, digest)
    worker.audit.record_once("approval-asked", task.id, user=task.user, image=task.image, image_digest=digest, rule=allowed.rule)
    worker.registry.write_note(note)
    log.info("task %s of %s: waits for approval (`ptm node pending`)", task.id, task.user)
    return None


def _record_withdrawal(worker: Worker, task: str, digest: str) -> None:
    """Why an image that was approved once is asked about again."""
    for taken in withdrawals(worker.registry, digest)[-1:]:
        worker.audit.record_once(
            "image-unapproved", task, image_digest=digest, by=taken.by, reason=taken.reason, time=format_time(taken.created)
        )


def _first_use(worker: Worker, allowed: Allowed, digest: str) -> Terms | None:
    """A first-use rule is satisfied by an approval of this image that was given before."""
    approval = worker.registry.image_approval(digest) if allowed.approval == "first-use" else None
    if approval is None:
        return None
    decision = Decision(what="approved", by=approval.by, reason=approval.reason, time=approval.created)
    return make_terms(allowed, digest, (decision,))


def _close(worker: Worker, asked: Note, given: Decision) -> None:
    """Answer a question that an approval of the image for another task has made idle, so that nobody is asked any longer."""
    answer = asked.model_copy(
        update={"what": given.what, "worker": None, "by": given.by, "reason": given.reason, "created": given.time}
    )
    worker.registry.write_note(answer)


def _answered(worker: Worker, allowed: Allowed, answer: Note) -> Terms | Ending:
    decided = decisions([answer])
    worker.audit.record_once(
        answer.what, answer.task, by=answer.by, reason=answer.reason, image_digest=answer.image_digest, user=answer.user
    )
    if answer.what == "approved":
        return make_terms(allowed, answer.image_digest, decided)
    reason = f"denied by the site ({answer.by})" + (f": {answer.reason}" if answer.reason else "")
    return Ending(
        "rejected", reason[:2000], None, None, answer.image_digest, policy_sha256=allowed.policy_sha256, decided_by=decided
    )


def _timed_out(allowed: Allowed, asked: Note, now: datetime) -> Ending | None:
    limit = allowed.approval_timeout_s
    if limit is None or now - asked.created < timedelta(seconds=limit):
        return None
    reason = f"nobody at the site approved it in {in_words(limit)}"
    return Ending("rejected", reason, "ask the site, then put the task again", policy_sha256=allowed.policy_sha256)
