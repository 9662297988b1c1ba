"""What waits for a person at this site, and what they decide: approve, deny, release, withhold. The command line and the
stewards' page call this.

Works beside a running node and on any machine of the site that has its keys: questions and answers are notes in the registry
(`ptm.notes`). Only the held files themselves lie with the worker that ran them; where they are here, a release first checks that
they are still what was asked about, and a withholding is remembered beside them. Giving the same answer twice is no error;
another answer than was given is one, and so is an answer nobody waits for. One answer can be taken back: a release, by
withholding all, as long as the registry has no result. So somebody can end what a worker that is gone for good would never send.

What it does not do: act on a decision (`ptm.node.approval`, `ptm.node.airlock`), or write the audit log, which is the node's."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ptm import layout
from ptm.complaint import complaint
from ptm.errors import DigestMismatch, NotFound, PtmError, TooLarge, TrustError, UsageError, VerificationError
from ptm.files import private_folder
from ptm.layout import QueueEntry
from ptm.model import Decided, Decision, PlainFile, Task
from ptm.node.airlock import ReleasedFiles, held_list, released_names, seal_details, withheld_names
from ptm.node.delivery import place_of
from ptm.node.spool import RunFolder
from ptm.node.stage import open_inputs
from ptm.node.terms import HeldList, WithheldFiles, list_files
from ptm.node.verify import authenticate
from ptm.notes import ImageApproval, Note, RunRecord, decisions
from ptm.registry import Registry, now_utc
from ptm.tasks import PARALLEL

log = logging.getLogger("ptm.node")
MAX_LOOKED = 2000
"""No more tasks of the queue than this are looked at for `pending`."""
SEE_PENDING = "`ptm node pending` shows what waits"


@dataclass(frozen=True)
class Waiting:
    """One run that a person is waited for, or data (`what` is `data`, and `asked.reason` says which), or that was released and
    waits for the worker that has its files (`what` is `worker`, and `released` the answer). `held` is there for a release and
    for the last of these; `folder`, if its files lie in this home. `organisation`: the researcher's."""

    task: Task
    organisation: str
    what: Literal["approval", "release", "data", "worker"]
    asked: Note
    held: HeldList | None = None
    folder: Path | None = None
    withheld: tuple[str, ...] = ()
    released: Note | None = None

    @property
    def outputs_to(self) -> str:
        """Who gets the outputs: the recipients, or instead of them a trusted party's collection."""
        return place_of(self.task.deliver) if self.task.deliver else ", ".join(self.task.recipients)

    @property
    def bound_to(self) -> str:
        """The image's digest, or that of the list of the held files that a release would let out (with the list's salt)."""
        if self.held is None:
            return str(self.asked.image_digest or "")
        leaving = tuple(file for file in self.held.files if file.name not in self.withheld)
        return self.held.model_copy(update={"files": leaving}).sha256

    @property
    def seen(self) -> str:
        """All that a person was shown: the task's own bytes, too."""
        return f"{self.asked.task_sha256} {self.bound_to}"


@dataclass(frozen=True)
class Release:
    """A release, with the files that it lets out and those that were withheld before."""

    decision: Decision
    leaves: tuple[PlainFile, ...]
    withheld: tuple[PlainFile, ...]


def pending(registry: Registry) -> list[Waiting]:
    """Everything that waits for a person or for data, oldest question first, and what was released and did not leave yet. One
    listing of the queue, and of each run in it; of more than `MAX_LOOKED`, each researcher gets the same share."""
    candidates = list(dict.fromkeys(_candidates(registry)))
    if len(candidates) > MAX_LOOKED:
        log.warning("only %d of %d tasks in the queue were looked at", MAX_LOOKED, len(candidates))
        candidates = _shares(candidates)[:MAX_LOOKED]
    with ThreadPoolExecutor(PARALLEL) as pool:
        found = [waiting for waiting in pool.map(partial(_look, registry), candidates) if waiting is not None]
    return sorted(found, key=lambda waiting: (waiting.asked.created, waiting.task.id))


def _shares(candidates: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first of each researcher, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    places = []
    for user, task in sorted(candidates, key=lambda found: found[1]):
        places.append((seen[user], task, user))
        seen[user] += 1
    return [(user, task) for _, task, user in sorted(places)]


def _look(registry: Registry, of: tuple[str, str]) -> Waiting | None:
    user, task = of
    try:
        return _waiting(registry, user, task, registry.record(registry.me, task))
    except TrustError:
        raise
    except VerificationError as e:
        log.warning("task %s of %s: %s", task, user, e)
        return None


def find(registry: Registry, task_id: str) -> Waiting:
    """The one run of this task that waits (for a person, or for its worker). `UsageError` if none does, saying what became of
    it."""
    record = registry.record(registry.me, task_id)
    for user in dict.fromkeys(note.user for note in record.notes):
        waiting = _waiting(registry, user, task_id, record)
        if waiting is not None:
            return waiting
    raise _nothing_waits(registry, task_id, record)


def write_inputs(registry: Registry, waiting: Waiting, folder: Path) -> list[Path]:
    """Decrypt the task's inputs into a new private folder, for the person to read. A folder that is there already may be
    somebody else's, who would read along."""
    if not folder.parent.exists():
        private_folder(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as e:
        raise UsageError(f"{folder} is there already", hint="give a folder that is not there yet") from e
    except OSError as e:
        raise UsageError(f"{folder} cannot be made: {e.strerror}", hint="give a folder in a place of your own") from e
    open_inputs(registry, waiting.task, folder)
    return sorted(folder.iterdir())


def approve(registry: Registry, task_id: str, *, by: str, reason: str = "", expect: str | None = None) -> Decision:
    """Let a run start. For a first-use rule also: let every later run of the same image start."""
    return _decide(registry, task_id, "approved", by, reason, expect)


def deny(registry: Registry, task_id: str, *, by: str, reason: str, expect: str | None = None) -> Decision:
    """Refuse a run that waits for approval; the researcher gets the reason."""
    return _decide(registry, task_id, "denied", by, reason, expect)


def release(registry: Registry, task_id: str, *, by: str, reason: str = "", expect: str | None = None) -> Release:
    """Let held outputs leave, all but the files that were withheld."""
    asked, answer = _answer(registry, task_id, "released", by, reason, expect)
    held, names = held_list(registry, asked).files, released_names(registry, answer)
    return Release(
        decisions([answer])[0],
        leaves=tuple(file for file in held if file.name in names),
        withheld=tuple(file for file in held if file.name not in names),
    )


def withhold(
    registry: Registry, task_id: str, *, by: str, reason: str, files: Sequence[str] = (), expect: str | None = None
) -> Decision:
    """Keep what is held: all of it, which ends the run as rejected; or single files, and the rest still waits for a release."""
    return _decide(registry, task_id, "withheld", by, reason, expect, tuple(dict.fromkeys(files)))


def _decide(
    registry: Registry, task_id: str, what: Decided, by: str, reason: str, expect: str | None, files: tuple[str, ...] = ()
) -> Decision:
    return decisions([_answer(registry, task_id, what, by, reason, expect, files)[1]])[0]


def _answer(
    registry: Registry, task_id: str, what: Decided, by: str, reason: str, expect: str | None, files: tuple[str, ...] = ()
) -> tuple[Note, Note]:
    """The question, and the answer that it has now. `expect`: what the person was shown (`Waiting.seen`, or `bound_to`); if
    something else waits now, nothing is decided."""
    record = registry.record(registry.me, task_id)
    asked = _question(record, what)
    if asked is None or record.finished:
        raise _nothing_waits(registry, task_id, record)
    answer = record.answer(asked)
    if answer is not None and (answer.what, what, files) != ("released", "withheld", ()):
        return asked, _again(registry, task_id, what, files, asked, answer)
    waiting = find(registry, task_id)
    if waiting.asked.what != asked.what:
        raise _nothing_waits(registry, task_id, record)
    if files and set(files) <= _noted(registry, record, waiting.asked):
        return asked, max(record.partial(waiting.asked), key=lambda note: note.created)
    if expect not in (None, waiting.bound_to, waiting.seen):
        raise DigestMismatch(f"what waits now is not what was looked at ({waiting.bound_to})", hint="look at it again")
    if what == "released" or files:
        _check_held(waiting, files)
    note = _note(registry, waiting, what, by, reason, files)
    registry.write_note(note)
    _check_it_counts(registry, task_id, note)
    if what == "withheld":
        _remember(registry, waiting, files)
    if what == "approved" and asked.first_use:
        registry.approve_image(_image_approval(registry, waiting.task.image, note))
    return asked, note


def _remember(registry: Registry, waiting: Waiting, files: tuple[str, ...]) -> None:
    """Beside the held files, where they lie in this home: then a note that is hidden later lets nothing out."""
    assert waiting.held is not None
    if waiting.folder is None:
        return
    try:
        RunFolder(registry.home, waiting.task.id).keep_back(files or [file.name for file in waiting.held.files])
    except OSError as e:
        raise PtmError(
            f"withheld, but that could not be remembered beside the files: {e.strerror}",
            hint="look at the disk; withhold the run",
        ) from e


def _noted(registry: Registry, record: RunRecord, asked: Note) -> set[str]:
    return {name for note in record.partial(asked) for name in withheld_names(registry, note)}


def _question(record: RunRecord, what: Decided) -> Note | None:
    return record.asked("awaiting-approval" if what in ("approved", "denied") else "awaiting-release")


def _again(registry: Registry, task_id: str, what: Decided, files: tuple[str, ...], asked: Note, answer: Note) -> Note:
    """The same answer again changes nothing, but for what a crash cut short; another is too late."""
    if answer.what == what and not files:
        if what == "approved" and asked.first_use:
            registry.approve_image(_image_approval(registry, _task_of(registry, asked)[0].image, answer))
        return answer
    raise UsageError(
        f"task {task_id} was {answer.what} already, by {answer.by} at {answer.created:%Y-%m-%d %H:%M} UTC",
        hint="withholding all of it counts as long as there is no result" if answer.what == "released" else "a decision stands",
    )


def _note(registry: Registry, waiting: Waiting, what: Decided, by: str, reason: str, files: tuple[str, ...]) -> Note:
    asked = waiting.asked
    details: WithheldFiles | ReleasedFiles | None = WithheldFiles(names=files) if files else None
    if what == "released" and waiting.held is not None:
        details = ReleasedFiles(names=tuple(file.name for file in waiting.held.files if file.name not in waiting.withheld))
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
            files=len(files) or None,
            details=None if details is None else seal_details(registry, details),
            created=now_utc(),
        )
    except ValidationError as e:
        raise UsageError(f"the decision is not well-formed: {complaint(e)}", hint="--by NAME and --reason TEXT") from e


def _image_approval(registry: Registry, image: str, note: Note) -> ImageApproval:
    return ImageApproval(
        registry=registry.id,
        site=registry.me,
        image=image,
        image_digest=str(note.image_digest),
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


def _check_it_counts(registry: Registry, task_id: str, note: Note) -> None:
    """Somebody may have decided otherwise in the same moment; a no counts more than a yes, if it came before the result."""
    what = decisions([note])[0].what
    record = registry.record(registry.me, task_id)
    asked = _question(record, what)
    if note.files is not None and (asked is None or note not in record.partial(asked)):
        raise PtmError("the withholding is not to be seen in the registry", hint="somebody hides notes; withhold the whole run")
    if record.finished and what in ("denied", "withheld"):
        raise PtmError(f"this came too late: task {task_id} has a result already", hint="what it let out is with the researcher")
    answer = record.answer(asked) if asked is not None else None
    if answer is not None and answer.what != note.what:
        raise PtmError(
            f"task {task_id} was {answer.what} in the same moment by {answer.by}, and that counts", hint="talk to them"
        )


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
    asked, answer = own.open() or own.waiting_data(), None
    if asked is None:
        asked, answer = own.released() or (None, None)
    if asked is None:
        return None
    task, organisation = _task_of(registry, asked)
    if asked.what == "waiting-data":
        return Waiting(task, organisation, "data", asked)
    if asked.what == "awaiting-approval":
        return Waiting(task, organisation, "approval", asked)
    held, folder = held_list(registry, asked), RunFolder(registry.home, task_id)
    names = tuple(sorted(_noted(registry, own, asked) | folder.kept_back()))
    what: Literal["release", "worker"] = "release" if answer is None else "worker"
    return Waiting(task, organisation, what, asked, held, folder.held if folder.held.is_dir() else None, names, answer)


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
