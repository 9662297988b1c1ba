"""After a run: what may leave, and what a person has to look at first.

With `release = "auto"` the automatic checks decide: a finding fails the run, and nothing of its outputs leaves. With `release =
"manual"` everything that a run left waits for a person: files, log, and how it ended, for an exit code and a reason are the run's
words, too. It waits in clear in a private folder of the worker that ran it, never in the bucket. A signed note asks; its digest
binds the answer to these very files, and they are measured once more while they are sealed.

The answer comes as a note (`ptm.node.decisions` writes it). Withheld as a whole, the run ends `rejected` with the person's
reason; single files withheld are left out. A cancel or a time-out ends the wait, and the files are removed."""

from __future__ import annotations

import base64
import json
import logging
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from ptm.envelope import load
from ptm.errors import VerificationError
from ptm.files import sync_folder
from ptm.model import LOG_NAME, Decision, FinalState, Task
from ptm.node.checks import check_outputs, for_the_researcher
from ptm.node.execute import clear
from ptm.node.spool import NOTHING, Leaving, RunFolder
from ptm.node.state import RunRow
from ptm.node.terms import Finding, HeldList, HeldRun, Terms, WithheldFiles, in_words, list_files
from ptm.node.worker import Ask, Ending, Worker
from ptm.notes import Note, RunRecord, decisions
from ptm.registry import Registry, new_nonce, now_utc
from ptm.seal import seal_bytes, unseal_bytes

log = logging.getLogger("ptm.node")
MAX_DETAILS = 192 * 1024


@dataclass(frozen=True)
class Verdict:
    """How a run ends, and what goes out with it."""

    ending: Ending
    leaving: Leaving = NOTHING


def after_run(worker: Worker, row: RunRow, task: Task, terms: Terms, ending: Ending) -> Verdict | None:
    """What becomes of a run that has just been collected. None: it is held, and a person is asked."""
    folder = RunFolder(worker.registry.home, task.id)
    outputs = sorted((folder.path / "outputs").iterdir()) if ending.state == "completed" else []
    findings = check_outputs(outputs, terms)
    if terms.release == "manual" and ending.state in ("completed", "failed"):
        _hold(worker, row, task, terms, ending, outputs, findings)
        return None
    kept = folder.log if terms.logs and terms.release == "auto" and folder.log.exists() else None
    if not findings:
        return Verdict(ending, Leaving(tuple(outputs), kept))
    worker.audit.record("outputs-refused", task.id, findings=[finding.text for finding in findings[:10]])
    for finding in findings:
        log.warning("task %s: %s: %s", task.id, finding.file or "the outputs", finding.text)
    reason = for_the_researcher(findings, terms)
    failed = replace(ending, state="failed", reason=reason, hint="ask the site which outputs it lets out")
    return Verdict(failed, Leaving((), kept))


def _hold(
    worker: Worker, row: RunRow, task: Task, terms: Terms, ending: Ending, outputs: list[Path], findings: tuple[Finding, ...]
) -> None:
    folder = RunFolder(worker.registry.home, task.id)
    held = folder.fresh("held")
    for path in [*outputs, *([folder.log] if terms.logs and folder.log.exists() else [])]:
        path.rename(held / path.name)
        (held / path.name).chmod(0o400)
    outcome = "completed" if ending.state == "completed" else f"failed: {ending.reason}"[:2000]
    listing = HeldList(salt=new_nonce(), files=list_files(held.iterdir()), findings=findings, outcome=outcome)
    run = HeldRun(
        state="completed" if ending.state == "completed" else "failed",
        reason=ending.reason,
        hint=ending.hint,
        exit_code=ending.exit_code,
        image_digest=ending.image_digest,
        start_time=ending.start_time,
        end_time=ending.end_time or now_utc(),
        data_use=ending.data_use,
        since=now_utc(),
        listing=listing,
    )
    _sync(held)
    size = sum(file.size for file in listing.files)
    worker.audit.record("outputs-held", task.id, files=len(listing.files), bytes=size, held_sha256=listing.sha256)
    worker.state.held(task.id, run.model_dump_json())
    clear(worker, row)
    _ask(worker, row, run)


def _sync(folder: Path) -> None:
    """The only copy of a run's outputs: on disk before the container goes."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _ask(worker: Worker, row: RunRow, run: HeldRun) -> None:
    registry = worker.registry
    note = Note(
        registry=registry.id,
        task=row.task,
        task_sha256=row.task_sha256,
        user=row.user,
        site=registry.me,
        what="awaiting-release",
        worker=worker.config.worker,
        image_digest=run.image_digest,
        held_sha256=run.listing.sha256,
        details=seal_details(registry, run.listing),
        created=run.since,
    )
    registry.write_note(note)
    log.info("task %s of %s: held until a person releases it (`ptm node pending`)", row.task, row.user)


def look(worker: Worker, row: RunRow, task: Task, terms: Terms, interrupted: Ask) -> Verdict | None:
    """What becomes of a held run now. None: it waits on."""
    held = load(HeldRun, (worker.state.recall(row.task, "held") or "").encode())
    if interrupted() == "canceled":
        return Verdict(_without_content(held, terms, "canceled", f"canceled by {task.user} while it waited for release"))
    record = worker.registry.record(worker.registry.me, row.task)
    if record.finished:
        return Verdict(_without_content(held, terms, "failed", "another worker's result was committed first"))
    asked = _question(record, row, held)
    if asked is None:
        _ask(worker, row, held)
        return None
    withheld = _withheld_so_far(worker, row.task, record, asked)
    answer = record.answer(asked)
    if answer is not None:
        return _answered(worker, row, terms, held, answer, record.partial(asked), withheld)
    limit = terms.release_timeout_s
    if limit is not None and now_utc() - held.since >= timedelta(seconds=limit):
        return Verdict(_without_content(held, terms, "rejected", f"nobody at the site released it in {in_words(limit)}"))
    return None


def _withheld_so_far(worker: Worker, task: str, record: RunRecord, asked: Note) -> frozenset[str]:
    """The files withheld, remembered here from the moment they are seen: hiding the note later lets nothing out."""
    kept: list[str] = json.loads(worker.state.recall(task, "withheld") or "[]")
    told = [note for note in (*record.partial(asked), *record.answers(asked)) if note.details]
    together = frozenset(kept).union(*(withheld_names(worker.registry, note) for note in told))
    if together != frozenset(kept):
        worker.state.remember(task, "withheld", json.dumps(sorted(together)))
    return together


def _question(record: RunRecord, row: RunRow, held: HeldRun) -> Note | None:
    """This worker's own question, about the very files that it holds."""
    asked = [note for note in record.notes if note.what == "awaiting-release" and note.task_sha256 == row.task_sha256]
    return next((note for note in asked if note.held_sha256 == held.listing.sha256), None)


def _answered(
    worker: Worker,
    row: RunRow,
    terms: Terms,
    held: HeldRun,
    answer: Note,
    partial: tuple[Note, ...],
    withheld: frozenset[str],
) -> Verdict:
    decided = decisions([*partial, answer])
    for decision in decided:
        worker.audit.record(
            decision.what,
            row.task,
            by=decision.by,
            reason=decision.reason,
            files=decision.files,
            held_sha256=held.listing.sha256,
            user=row.user,
        )
    if answer.what == "withheld":
        return Verdict(_without_content(held, terms, "rejected", withheld_reason(answer), decided))
    folder = RunFolder(worker.registry.home, row.task).held
    names = [file.name for file in held.listing.files if file.name not in withheld]
    outputs = tuple(folder / name for name in names if name != LOG_NAME)
    kept = folder / LOG_NAME if LOG_NAME in names else None
    ending = Ending(
        held.state,
        held.reason,
        held.hint,
        held.exit_code,
        held.image_digest,
        held.start_time,
        held.end_time,
        terms.policy_sha256,
        (*terms.decided_by, *decided),
        held.data_use,
    )
    return Verdict(ending, Leaving(outputs, kept, held.listing.files))


def elsewhere(record: RunRecord, task_sha256: str, timeout_s: int | None) -> Ending | None:
    """What another worker of the site holds of this task ends here only if a person withheld it, or nobody cared in time: that
    worker may be gone for good. Its files are none of our business."""
    asked = record.asked("awaiting-release", task_sha256)
    if asked is None:
        return None
    answer = record.answer(asked)
    if answer is not None and answer.what == "withheld":
        return Ending("rejected", withheld_reason(answer), None, decided_by=decisions([answer]))
    if answer is None and timeout_s is not None and now_utc() - asked.created >= timedelta(seconds=timeout_s):
        return Ending("rejected", f"nobody at the site released it in {in_words(timeout_s)}")
    return None


def withheld_reason(answer: Note) -> str:
    return (f"withheld by the site ({answer.by})" + (f": {answer.reason}" if answer.reason else ""))[:2000]


def _without_content(held: HeldRun, terms: Terms, state: FinalState, reason: str, decided: tuple[Decision, ...] = ()) -> Ending:
    """An ending that tells nothing of what the run wrote: no exit code, no words of its own."""
    return Ending(
        state,
        reason,
        None,
        None,
        held.image_digest,
        held.start_time,
        held.end_time,
        terms.policy_sha256,
        (*terms.decided_by, *decided),
        held.data_use,
    )


# what travels in notes, for the site itself only


def seal_details(registry: Registry, details: HeldList | WithheldFiles) -> str:
    """As age ciphertext in base64, to this site's own key: names and findings are nobody else's business."""
    own = str(registry.keys.identity.to_public())
    return base64.b64encode(seal_bytes(details.model_dump_json().encode(), [own])).decode()


def held_list(registry: Registry, asked: Note) -> HeldList:
    """What a question is about, if it is what the question is bound to."""
    listing = load(HeldList, unseal_bytes(base64.b64decode(asked.details or ""), registry.keys.identity, MAX_DETAILS))
    if listing.sha256 != asked.held_sha256:
        raise VerificationError("the list of held files is not the one that the note is bound to")
    return listing


def withheld_names(registry: Registry, note: Note) -> tuple[str, ...]:
    raw = unseal_bytes(base64.b64decode(note.details or ""), registry.keys.identity, MAX_DETAILS)
    return load(WithheldFiles, raw).names
