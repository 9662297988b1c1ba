"""What people at a site decide about runs: the documents, and how a run's notes are read together.

Rules: an answer counts for the very thing that was asked about: the same task digest and the same image digest (approval) or
the same held outputs (release). The order of notes means nothing. Where two people answered at the same moment, the one who
said no counts. So an old note, put back or copied by whoever runs the bucket, can decide nothing that it did not decide before.

No I/O; `ptm.registry` reads and writes notes, `ptm.node.approval` and `ptm.node.airlock` act on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ptm.model import (
    MAX_FILES,
    Asked,
    Base64,
    Decided,
    Decision,
    Document,
    Image,
    ImageDigest,
    Name,
    Person,
    Sha256,
    Text,
    Time,
    Ulid,
)

MAX_NOTES = 128
"""No more notes of one run are read or written than this."""


class Note(Document):
    """A site's note in a run's prefix: what a person is waited for, or what a person decided. All of the site's workers
    act on it, and the researcher sees it.

    An approval is bound to the task and to the image's digest, a release to the task and to `held_sha256`: the digest
    of the list of held files together with a random salt, so that it tells nobody what they hold. `details` is that
    list, the names of single files withheld, or the names of the files that a release lets out, as age ciphertext for the
    site itself. What a release does not name stays: hiding an earlier withholding lets nothing more out."""

    TYPE: ClassVar[str] = "ptm/note@1"

    type: Literal["ptm/note@1"] = "ptm/note@1"
    task: Ulid
    task_sha256: Sha256
    user: Name
    site: Name
    what: Asked | Decided | Literal["waiting-data"]
    worker: Name | None = None
    image_digest: ImageDigest | None = None
    held_sha256: Sha256 | None = None
    first_use: bool = False
    by: Person | None = None
    reason: Text = ""
    files: Annotated[int, Field(ge=1, le=MAX_FILES + 1)] | None = None
    details: Base64 | None = None
    created: Time

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.what in ("awaiting-approval", "approved", "denied") and self.image_digest is None:
            raise ValueError("an approval is bound to an image digest")
        if self.what in ("awaiting-release", "released", "withheld") and self.held_sha256 is None:
            raise ValueError("a release is bound to what is held")
        if self.what.startswith(("awaiting-", "waiting-")) != (self.by is None):
            raise ValueError("a decision, and only that, names who took it")
        if self.what == "waiting-data" and not self.reason:
            raise ValueError("a note that data is waited for says what is missing")
        if self.files is not None and (self.what != "withheld" or self.details is None):
            raise ValueError("only a withholding of single files counts files, and says which")
        if self.what == "released" and self.details is None:
            raise ValueError("a release says which files leave")
        return self


class ImageApproval(Document):
    """A person's approval of an image at a site, for all tasks whose rule says `approval = "first-use"`."""

    TYPE: ClassVar[str] = "ptm/image-approval@1"

    type: Literal["ptm/image-approval@1"] = "ptm/image-approval@1"
    site: Name
    image: Image
    image_digest: ImageDigest
    by: Person
    reason: Text = ""
    created: Time


class ImageWithdrawal(Document):
    """A person takes a first-use approval back. It is about that very approval (`approval_sha256`, of its canonical signed
    part) and no other, so one that is put back stays withdrawn, and the image can be approved anew."""

    TYPE: ClassVar[str] = "ptm/image-withdrawal@1"

    type: Literal["ptm/image-withdrawal@1"] = "ptm/image-withdrawal@1"
    site: Name
    image: Image
    image_digest: ImageDigest
    approval_sha256: Sha256
    approved_by: Person
    approved: Time
    by: Person
    reason: Text = ""
    created: Time


@dataclass(frozen=True)
class RunRecord:
    """All that the registry shows of one run: whether it is claimed, whether it has a result, and its notes."""

    claimed: bool
    finished: bool
    notes: tuple[Note, ...] = ()

    def asked(self, what: Asked, task_sha256: str | None = None) -> Note | None:
        """The newest question of this kind about this task (whatever its digest, where the caller knows none)."""
        found = [note for note in self.notes if note.what == what and task_sha256 in (None, note.task_sha256)]
        return max(found, key=lambda note: note.created, default=None)

    def answer(self, asked: Note) -> Note | None:
        """What was decided about this question; a no counts more than a yes, whichever came first."""
        yes, no = ("approved", "denied") if asked.what == "awaiting-approval" else ("released", "withheld")
        found = self.answers(asked)
        answers = [note for note in found if note.what == no] or [note for note in found if note.what == yes]
        return min(answers, key=lambda note: note.created, default=None)

    def answers(self, asked: Note) -> tuple[Note, ...]:
        """Every answer to this question as a whole, of whatever kind."""
        return tuple(note for note in self.notes if _is_about(note, asked) and note.files is None)

    def partial(self, asked: Note) -> tuple[Note, ...]:
        """The withholdings of single files among what this question is about."""
        return tuple(note for note in self.notes if _is_about(note, asked) and note.files is not None)

    def waiting_data(self, task_sha256: str | None = None) -> Note | None:
        """The note that says which data the run waits for, if it still does: nothing was asked, decided or begun since."""
        if self.finished or self.claimed:
            return None
        found = [note for note in reversed(self.notes) if note.what == "waiting-data" and task_sha256 in (None, note.task_sha256)]
        newest = max(found, key=lambda note: note.created, default=None)
        if newest is None or any(note.created >= newest.created for note in self.notes if note.what != "waiting-data"):
            return None
        return newest

    def open(self, task_sha256: str | None = None) -> Note | None:
        """The question that still waits for an answer, if there is one."""
        if self.finished:
            return None
        asked = self.asked("awaiting-release", task_sha256) or self.asked("awaiting-approval", task_sha256)
        return asked if asked is not None and self.answer(asked) is None else None

    def released(self) -> tuple[Note, Note] | None:
        """The question and its answer, where a release was given and what it lets out has not left yet."""
        asked = None if self.finished else self.asked("awaiting-release")
        answer = self.answer(asked) if asked is not None else None
        return (asked, answer) if asked is not None and answer is not None and answer.what == "released" else None


def _is_about(note: Note, asked: Note) -> bool:
    whats = ("approved", "denied") if asked.what == "awaiting-approval" else ("released", "withheld")
    bound = (note.task_sha256, note.image_digest, note.held_sha256)
    return note.what in whats and bound == (asked.task_sha256, asked.image_digest, asked.held_sha256)


def decisions(notes: Iterable[Note]) -> tuple[Decision, ...]:
    """Decisions as a result carries them, oldest first."""
    found = [
        Decision(what=note.what, by=note.by, reason=note.reason, time=note.created, files=note.files)  # type: ignore[arg-type]
        for note in notes
        if note.by is not None
    ]
    return tuple(sorted(found, key=lambda decision: decision.time))
