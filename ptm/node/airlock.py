"""After a run: what may leave, and what a person has to look at first.

With `release = "auto"` the automatic checks decide: a finding fails the run, and nothing of its outputs leaves. With `release =
"manual"` everything that a run left waits for a person: files, log, and how it ended, for an exit code and a reason are the run's
words, too. It waits in clear in a private folder of the worker that ran it, never in the bucket. A signed note asks; its digest
binds the answer to these very files, and they are measured once more while they are sealed.

The answer comes as a note (`ptm.node.decisions` writes it). Withheld as a whole, the run ends `rejected` with the person's
reason. A release names the files that leave; those that were withheld here, or in any note that was ever seen here, stay
nevertheless. A cancel or a time-out ends the wait, and the files are removed."""

from __future__ import annotations

import base64
import json
import logging
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ptm import layout
from ptm.envelope import load
from ptm.errors import NotFound, TooLarge, VerificationError
from ptm.files import sync_folder
from ptm.model import LOG_NAME, MAX_FILES, Decision, FileName, FinalState, Frozen, Result, Task
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
        _check_result(worker.registry, row)
        return Verdict(_without_content(held, terms, "failed", "another worker's result was committed first"))
    asked = _question(record, row, held)
    if asked is None:
        _ask(worker, row, held)
        return None
    withheld = _withheld_so_far(worker.registry, row.task, record, asked)
    answer = record.answer(asked)
    if answer is not None:
        decided = decisions([*record.partial(asked), answer])
        _record(worker, row, held, decided)
        if answer.what == "withheld":
            return Verdict(_without_content(held, terms, "rejected", withheld_reason(answer), decided))
        named = [released_names(worker.registry, note) for note in record.answers(asked)]
        return _released(worker, row, terms, held, decided, frozenset.intersection(*named) - withheld)
    limit = terms.release_timeout_s
    if limit is not None and now_utc() - held.since >= timedelta(seconds=limit):
        return Verdict(_without_content(held, terms, "rejected", f"nobody at the site released it in {in_words(limit)}"))
    return None


def _check_result(registry: Registry, row: RunRow) -> None:
    """What is held is given up only for a result that is this run's own: anybody who can write to the bucket can plant one."""
    try:
        result = registry.read_own(layout.result(registry.me, row.task), Result)
        own = (result.task, result.task_sha256) == (row.task, row.task_sha256)
    except (VerificationError, NotFound, TooLarge):
        own = False
    if not own:
        raise VerificationError(
            f"task {row.task}: the registry holds a result that this site did not give to it; somebody tampers with the bucket",
            hint="what is held is kept; have that object removed",
        )


def _withheld_so_far(registry: Registry, task: str, record: RunRecord, asked: Note) -> frozenset[str]:
    """The files withheld, remembered here from the moment they are seen: hiding the note later lets nothing out."""
    folder = RunFolder(registry.home, task)
    kept = folder.kept_back()
    together = kept.union(*(withheld_names(registry, note) for note in record.partial(asked)))
    if together != kept:
        folder.keep_back(together - kept)
    return together


def _question(record: RunRecord, row: RunRow, held: HeldRun) -> Note | None:
    """This worker's own question, about the very files that it holds."""
    asked = [note for note in record.notes if note.what == "awaiting-release" and note.task_sha256 == row.task_sha256]
    return next((note for note in asked if note.held_sha256 == held.listing.sha256), None)


def _record(worker: Worker, row: RunRow, held: HeldRun, decided: tuple[Decision, ...]) -> None:
    """Each decision is on record once, however often what it says has to be tried."""
    known: list[str] = json.loads(worker.state.recall(row.task, "decided") or "[]")
    new = [decision for decision in decided if decision.model_dump_json() not in known]
    for decision in new:
        worker.audit.record(
            decision.what,
            row.task,
            by=decision.by,
            reason=decision.reason,
            files=decision.files,
            held_sha256=held.listing.sha256,
            user=row.user,
        )
    if new:
        worker.state.remember(row.task, "decided", json.dumps([*known, *(decision.model_dump_json() for decision in new)]))


def _released(
    worker: Worker, row: RunRow, terms: Terms, held: HeldRun, decided: tuple[Decision, ...], leaving: frozenset[str]
) -> Verdict:
    folder = RunFolder(worker.registry.home, row.task).held
    names = [file.name for file in held.listing.files if file.name in leaving]
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


class ReleasedFiles(Frozen):
    """The names of the files that a release lets out. There may be none: how the run ended is let out, too."""

    names: Annotated[tuple[FileName, ...], Field(max_length=MAX_FILES + 1)] = ()


def seal_details(registry: Registry, details: HeldList | WithheldFiles | ReleasedFiles) -> str:
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


def released_names(registry: Registry, note: Note) -> frozenset[str]:
    raw = unseal_bytes(base64.b64decode(note.details or ""), registry.keys.identity, MAX_DETAILS)
    return frozenset(load(ReleasedFiles, raw).names)
