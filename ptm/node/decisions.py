"""What waits for a person at this site, and what they decide: approve, deny, release, withhold. The command line and the
stewards' page call this.

Works beside a running node and on any machine of the site that has its keys: questions and answers are notes in the registry
(`ptm.notes`). Only the held files themselves lie with the worker that ran them; where they are here, a release first checks that
they are still what was asked about. Giving the same answer twice is no error; another answer than was given is one, and so is an
answer nobody waits for.

What it does not do: act on a decision (`ptm.node.approval`, `ptm.node.airlock`), or write the audit log, which is the node's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ptm import layout
from ptm.complaint import complaint
from ptm.errors import DigestMismatch, NotFound, PtmError, TooLarge, TrustError, UsageError, VerificationError
from ptm.files import private_folder
from ptm.layout import QueueEntry
from ptm.model import Decided, Decision, Task
from ptm.node.airlock import held_list, seal_details, withheld_names
from ptm.node.delivery import place_of
from ptm.node.spool import RunFolder
from ptm.node.stage import open_inputs
from ptm.node.terms import HeldList, WithheldFiles, list_files
from ptm.node.verify import authenticate
from ptm.notes import ImageApproval, Note, RunRecord, decisions
from ptm.registry import Registry, now_utc

log = logging.getLogger("ptm.node")
SEE_PENDING = "`ptm node pending` shows what waits"


@dataclass(frozen=True)
class Waiting:
    """One run that a person is waited for, or data (`what` is `data`, and `asked.reason` says which). `bound_to` is what an
    answer is bound to: the image's digest, or that of the held files' list. `held` is there for a release; `folder`, if its files
    lie in this home. `organisation`: the researcher's."""

    task: Task
    organisation: str
    what: Literal["approval", "release", "data"]
    asked: Note
    held: HeldList | None = None
    folder: Path | None = None
    withheld: tuple[str, ...] = ()

    @property
    def outputs_to(self) -> str:
        """Who gets the outputs: the recipients, or instead of them a trusted party's collection."""
        return place_of(self.task.deliver) if self.task.deliver else ", ".join(self.task.recipients)

    @property
    def bound_to(self) -> str:
        return str((self.asked.image_digest if self.what == "approval" else self.asked.held_sha256) or "")

    @property
    def seen(self) -> str:
        """All that a person was shown: the task's own bytes, too."""
        return f"{self.asked.task_sha256} {self.bound_to}"


def pending(registry: Registry) -> list[Waiting]:
    """Everything that waits for a person or for data, oldest question first. One listing of the queue, and of each run in it."""
    found: dict[tuple[str, str], Waiting] = {}
    for user, task in _candidates(registry):
        try:
            waiting = _waiting(registry, user, task, registry.record(registry.me, task))
        except TrustError:
            raise
        except VerificationError as e:
            log.warning("task %s of %s: %s", task, user, e)
            continue
        if waiting is not None:
            found[user, task] = waiting
    return sorted(found.values(), key=lambda waiting: (waiting.asked.created, waiting.task.id))


def find(registry: Registry, task_id: str) -> Waiting:
    """The one run of this task that waits. `UsageError` if none does, saying what became of it."""
    record = registry.record(registry.me, task_id)
    for user in dict.fromkeys(note.user for note in record.notes):
        waiting = _waiting(registry, user, task_id, record)
        if waiting is not None:
            return waiting
    raise _nothing_waits(registry, task_id, record)


def write_inputs(registry: Registry, waiting: Waiting, folder: Path) -> list[Path]:
    """Decrypt the task's inputs into a new private folder, for the person to read."""
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="give a folder that is not there yet")
    private_folder(folder)
    open_inputs(registry, waiting.task, folder)
    return sorted(folder.iterdir())


def approve(registry: Registry, task_id: str, *, by: str, reason: str = "", expect: str | None = None) -> Decision:
    """Let a run start. For a first-use rule also: let every later run of the same image start."""
    return _decide(registry, task_id, "approved", by, reason, expect)


def deny(registry: Registry, task_id: str, *, by: str, reason: str, expect: str | None = None) -> Decision:
    """Refuse a run that waits for approval; the researcher gets the reason."""
    return _decide(registry, task_id, "denied", by, reason, expect)


def release(registry: Registry, task_id: str, *, by: str, reason: str = "", expect: str | None = None) -> Decision:
    """Let held outputs leave, all but the files that were withheld."""
    return _decide(registry, task_id, "released", by, reason, expect)


def withhold(
    registry: Registry, task_id: str, *, by: str, reason: str, files: Sequence[str] = (), expect: str | None = None
) -> Decision:
    """Keep what is held: all of it, which ends the run as rejected; or single files, and the rest still waits for a release."""
    return _decide(registry, task_id, "withheld", by, reason, expect, tuple(dict.fromkeys(files)))


def _decide(
    registry: Registry, task_id: str, what: Decided, by: str, reason: str, expect: str | None, files: tuple[str, ...] = ()
) -> Decision:
    """`expect`: what the person was shown (`Waiting.seen`, or `bound_to`); if something else waits now, nothing is decided."""
    record = registry.record(registry.me, task_id)
    asked = _question(record, what)
    if asked is None or record.finished:
        raise _nothing_waits(registry, task_id, record)
    answer = record.answer(asked)
    if answer is not None:
        return _again(task_id, what, files, answer)
    waiting = find(registry, task_id)
    if waiting.asked.what != asked.what:
        raise _nothing_waits(registry, task_id, record)
    if expect not in (None, waiting.bound_to, waiting.seen):
        raise DigestMismatch(f"what waits now is not what was looked at ({waiting.bound_to})", hint="look at it again")
    if waiting.what == "release":
        _check_held(waiting, files)
    if files and set(files) <= set(waiting.withheld):
        return decisions(record.partial(waiting.asked))[-1]
    note = _note(registry, waiting, what, by, reason, files or (waiting.withheld if what == "released" else ()))
    registry.write_note(note)
    decision = _check_it_counts(registry, task_id, note)
    if what == "approved" and asked.first_use:
        registry.approve_image(_image_approval(registry, waiting, note))
    return decision


def _question(record: RunRecord, what: Decided) -> Note | None:
    return record.asked("awaiting-approval" if what in ("approved", "denied") else "awaiting-release")


def _again(task_id: str, what: Decided, files: tuple[str, ...], answer: Note) -> Decision:
    """The same answer again changes nothing; another is too late."""
    if answer.what == what and not files:
        return decisions([answer])[0]
    raise UsageError(
        f"task {task_id} was {answer.what} already, by {answer.by} at {answer.created:%Y-%m-%d %H:%M} UTC",
        hint="a decision stands",
    )


def _note(registry: Registry, waiting: Waiting, what: Decided, by: str, reason: str, files: tuple[str, ...]) -> Note:
    asked = waiting.asked
    try:
        return Note(
            registry=registry.id,
            task=asked.task,
            task_sha256=asked.task_sha256,
            user=asked.user,
            site=registry.me,
            what=what,
            image_digest=asked.image_digest,
            held_sha256=asked.held_sha256,
            by=by,
            reason=reason,
            files=len(files) or None if what == "withheld" else None,
            details=seal_details(registry, WithheldFiles(names=files)) if files else None,
            created=now_utc(),
        )
    except ValidationError as e:
        raise UsageError(f"the decision is not well-formed: {complaint(e)}", hint="--by NAME and --reason TEXT") from e


def _image_approval(registry: Registry, waiting: Waiting, note: Note) -> ImageApproval:
    return ImageApproval(
        registry=registry.id,
        site=registry.me,
        image=waiting.task.image,
        image_digest=waiting.bound_to,
        by=str(note.by),
        reason=note.reason,
        created=note.created,
    )


def _check_held(waiting: Waiting, files: tuple[str, ...]) -> None:
    """What leaves is what was looked at: the files in this home, if they are here, against the question's own list."""
    assert waiting.held is not None
    listed = {file.name for file in waiting.held.files}
    unknown = [name for name in files if name not in listed]
    if unknown:
        raise UsageError(f"no file named {unknown[0]} is held", hint=f"held are: {', '.join(sorted(listed)) or 'none'}")
    if waiting.folder is not None:
        try:
            same = list_files(waiting.folder.iterdir()) == waiting.held.files
        except OSError:
            same = False
        if not same:
            raise DigestMismatch(
                f"the files in {waiting.folder} are not what the run left",
                hint="somebody changed, added or removed one; put it right, or withhold the run",
            )


def _check_it_counts(registry: Registry, task_id: str, note: Note) -> Decision:
    """Somebody may have decided otherwise in the same moment; a no counts more than a yes."""
    own = decisions([note])[0]
    record = registry.record(registry.me, task_id)
    asked = _question(record, own.what)
    if note.files is not None and (asked is None or note not in record.partial(asked)):
        raise PtmError("the withholding is not to be seen in the registry", hint="somebody hides notes; withhold the whole run")
    answer = record.answer(asked) if asked is not None and note.files is None else None
    if answer is not None and answer.what != note.what:
        raise PtmError(
            f"task {task_id} was {answer.what} in the same moment by {answer.by}, and that counts", hint="talk to them"
        )
    return own


def _candidates(registry: Registry) -> Iterator[tuple[str, str]]:
    """Runs that may wait: those in the queue, and those whose files are held here."""
    for entry in registry.queue(registry.me):
        if isinstance(entry, QueueEntry) and not entry.cancel:
            yield entry.user, entry.task
    for folder in registry.home.spool.glob("*/held"):
        record = registry.record(registry.me, folder.parent.name)
        yield from ((note.user, note.task) for note in record.notes)


def _waiting(registry: Registry, user: str, task_id: str, record: RunRecord) -> Waiting | None:
    own = RunRecord(record.claimed, record.finished, tuple(note for note in record.notes if note.user == user))
    asked = own.open() or own.waiting_data()
    if asked is None:
        return None
    task, organisation = _task_of(registry, asked)
    if asked.what == "waiting-data":
        return Waiting(task, organisation, "data", asked)
    if asked.what == "awaiting-approval":
        return Waiting(task, organisation, "approval", asked)
    held, folder = held_list(registry, asked), RunFolder(registry.home, task_id).held
    names = tuple(name for note in own.partial(asked) for name in withheld_names(registry, note))
    return Waiting(task, organisation, "release", asked, held, folder if folder.is_dir() else None, names)


def _task_of(registry: Registry, asked: Note) -> tuple[Task, str]:
    """The task that a question is about: from the queue, else from the researcher's own record; the note says its digest."""
    roster = registry.roster(60)
    error: PtmError | None = None
    entry = QueueEntry(layout.queue(registry.me, asked.user, asked.task), registry.me, asked.user, asked.task, cancel=False)
    for key in (entry.key, layout.task(asked.user, asked.task)):
        try:
            found = authenticate(registry.read_raw(key), entry, roster)
        except TrustError:
            raise
        except (NotFound, TooLarge, VerificationError) as e:
            error = error or e
            continue
        if found.sha256 == asked.task_sha256:
            member = roster.member(asked.user)
            return found.task, member.organisation if member else ""
    raise VerificationError(f"task {asked.task} of {asked.user} cannot be read: {error or 'it was changed'}")


def _nothing_waits(registry: Registry, task_id: str, record: RunRecord) -> UsageError:
    if record.finished:
        return UsageError(f"task {task_id} has a result already", hint="nothing can be decided about it any more")
    answers = [note for note in record.notes if note.by is not None and note.files is None]
    if answers:
        last = max(answers, key=lambda note: note.created)
        return UsageError(f"task {task_id} waits for nobody: it was {last.what} by {last.by}", hint=SEE_PENDING)
    return UsageError(f"no run of task {task_id} waits for this at {registry.me}", hint=SEE_PENDING)
