"""A member's view of a registry: documents on top of a store, always verified against the roster.

Rules: what is returned was signed by the member whose path it lies under, is of this registry, and is of the type
asked for. What a caller still has to judge (is it for this site, is it too old, may it say that) is said in the types
of `ptm.node.verify` and `ptm.results`. Keys come from `ptm.layout` only."""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

from ptm import envelope, layout
from ptm.config import Home, Profile, load_profile
from ptm.envelope import MAX_DOCUMENT_BYTES, AnyDocument
from ptm.errors import AlreadyExists, NotAllowed, NotFound, StoreError, TooLarge, TrustError, UsageError, VerificationError
from ptm.keys import MemberKeys, load_keys
from ptm.model import Cancel, Document, Refusal, SealedFile, Task
from ptm.notes import MAX_NOTES, ImageApproval, ImageWithdrawal, Note, RunRecord
from ptm.seal import check_cipher, measure
from ptm.store.base import Store
from ptm.store.urls import open_store
from ptm.trust import TrustedRoster, refresh
from ptm.workers import Claim, Heartbeat

SHOWS_TASKS = "`ptm task list` shows your tasks"
MAX_QUEUE = 10_000
"""A poll looks at no more entries than this; the rest is seen when these are gone."""
MAX_REFUSALS = 20
MAX_CACHED = 2000
log = logging.getLogger("ptm.registry")
MAX_REFUSALS_OF_USER = 4
"""Notes on one task id for one user: another member's junk under it does not use up the rest."""


def now_utc() -> datetime:
    """The wall clock, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def new_nonce() -> str:
    return secrets.token_hex(16)


@dataclass
class _Cached:
    roster: TrustedRoster
    at: float


class Registry:
    """One member's access: a store, the member's keys, and the roster. Safe to use from several threads."""

    def __init__(self, home: Home, profile: Profile, store: Store, keys: MemberKeys) -> None:
        self.home, self.profile, self.store, self.keys = home, profile, store, keys
        self._lock = threading.Lock()
        self._cached: _Cached | None = None
        self._notes: dict[str, Note] = {}

    @classmethod
    def open(cls, home: Home) -> Registry:
        """The registry that this home has joined. Touches no network yet."""
        profile = load_profile(home)
        return cls(home, profile, open_store(profile.registry), load_keys(home.keys))

    @property
    def id(self) -> str:
        return self.profile.registry_id

    @property
    def me(self) -> str:
        return self.profile.member

    def roster(self, max_age_s: float = 0.0) -> TrustedRoster:
        """The verified roster, refreshed if the one at hand is older than `max_age_s` on this process's monotonic clock.

        Raises `TrustError` for one that may not be acted on, an expired one included.
        """
        with self._lock:
            if self._cached is None or time.monotonic() - self._cached.at > max_age_s or self._cached.roster.expires <= now_utc():
                self._cached = _Cached(refresh(self.store, self.home.trust, expect_registry=self.id), time.monotonic())
            return self._cached.roster

    # documents

    def sign(self, document: Document) -> bytes:
        return envelope.sign(document, self.keys.signing)

    def read(self, key: str, kind: type[AnyDocument], signer: str, roster: TrustedRoster | None = None) -> AnyDocument:
        """The document at a key, verified as signed by this member. `NotFound`, `VerificationError`."""
        return envelope.verify(self.read_raw(key), kind, self.id, signing_key(roster or self.roster(60), signer))

    def read_raw(self, key: str) -> bytes:
        return self.store.get(key, MAX_DOCUMENT_BYTES)

    def read_own(self, key: str, kind: type[AnyDocument]) -> AnyDocument:
        """The document at a key, verified as signed with this home's own key."""
        return envelope.verify(self.read_raw(key), kind, self.id, self.keys.sign_key)

    def exists(self, key: str) -> bool:
        try:
            self.store.head(key)
        except NotFound:
            return False
        return True

    def fetch_sealed(self, file: SealedFile, key: str, sink: BinaryIO, label: str) -> None:
        """A sealed file's ciphertext into an empty stream, from the document or from its own object; size and digest
        checked, and wound back to the start."""
        if file.inline is not None:
            sink.write(file.inline)
        else:
            self.store.download(key, sink, file.size)
        sink.seek(0)
        check_cipher(measure(sink), file.size, file.sha256, label)
        sink.seek(0)

    # a site's queue and runs

    def queue(self, site: str) -> Iterator[layout.QueueEntry | str]:
        """What waits for a site, oldest key first per user, at most `MAX_QUEUE`; a key of any other shape comes back
        as the text it is. One listing; if there is more than that, one for each member, who get the same share each."""
        keys = [info.key for info in itertools.islice(self.store.list(layout.queue_of(site)), MAX_QUEUE + 1)]
        if len(keys) > MAX_QUEUE:
            keys = list(self._shared_queue(site))
        for key in keys:
            yield layout.parse_queue(key) or key

    def _shared_queue(self, site: str) -> Iterator[str]:
        """The first keys of each member's, so that a flood hides nobody else's tasks. What lies under no member's name is
        left alone until there is room again."""
        members = self.roster(300).roster.members
        share = max(1, MAX_QUEUE // max(1, len(members)))
        for member in members:
            mine = self.store.list(layout.queue_of_user(site, member.name))
            yield from (info.key for info in itertools.islice(mine, share))

    def dequeue(self, site: str, user: str, task: str) -> None:
        """Take a task and a wish to cancel it out of the queue."""
        self.store.delete(layout.queue(site, user, task))
        self.store.delete(layout.cancel(site, user, task))

    def claim(self, task: str, task_sha256: str, worker: str, epoch: int) -> bool:
        """Try to become the one who runs this task. True if we are. Write-once, so of several workers one wins."""
        claim = Claim(
            registry=self.id,
            task=task,
            task_sha256=task_sha256,
            site=self.me,
            worker=worker,
            epoch=epoch,
            nonce=new_nonce(),
            created=now_utc(),
        )
        try:
            self.store.create(layout.claim(self.me, task, epoch), self.sign(claim))
        except AlreadyExists:
            return False
        return True

    def claims(self, site: str, task: str) -> list[int]:
        """The epochs claimed so far, ascending."""
        found = (layout.parse_claim(info.key) for info in self.store.list(layout.run(site, task) + "claim."))
        return sorted(epoch for epoch in found if epoch is not None)

    def commit(self, result_body: bytes, task: str) -> bool:
        """Write a result, once. True if it is this one that counts, False if another was committed first."""
        try:
            self.store.create(layout.result(self.me, task), result_body)
        except AlreadyExists:
            return False
        return True

    def refuse(self, refusal: Refusal) -> None:
        """Leave a signed note that what lay in the queue is not what it says. Bounded, in all and for one user: who
        keeps at it is not answered for ever."""
        body, said = self.sign(refusal), 0
        for number in range(MAX_REFUSALS):
            key = layout.refusal(self.me, refusal.task, number)
            try:
                self.store.create(key, body)
            except AlreadyExists:
                said += self._is_note_for(key, refusal.user)
                if said < MAX_REFUSALS_OF_USER:
                    continue
            return

    def _is_note_for(self, key: str, user: str) -> bool:
        try:
            return self.read_own(key, Refusal).user == user
        except (VerificationError, NotFound, TooLarge):
            return False

    # what people are waited for, and decide

    def record(self, site: str, task: str, roster: TrustedRoster | None = None) -> RunRecord:
        """What the registry shows of a run. One listing, and one read for each note not seen before. A note that is not
        believed is left out: whoever runs the bucket can hide a note anyway. `roster` is for another member's site."""
        prefix, found, claimed, finished = layout.run(site, task), list[str](), False, False
        for info in self.store.list(prefix):
            claimed = claimed or layout.parse_claim(info.key) is not None
            finished = finished or info.key == layout.result(site, task)
            if layout.parse_note(info.key) and len(found) < MAX_NOTES:
                found.append(info.key)
        notes = (self._note(key, site, task, roster) for key in found)
        return RunRecord(claimed, finished, tuple(note for note in notes if note is not None))

    def _note(self, key: str, site: str, task: str, roster: TrustedRoster | None) -> Note | None:
        """A note is written once, so one that was believed needs no second look."""
        known = self._notes.get(key)
        if known is not None:
            return known
        try:
            note = self.read_own(key, Note) if site == self.me else self.read(key, Note, site, roster)
        except (NotFound, TooLarge):
            return None
        except TrustError:
            raise
        except VerificationError as e:
            log.warning("ignored: %s: %s", key, e)
            return None
        parsed = layout.parse_note(key)
        if parsed is None or (note.task, note.site, note.what) != (task, site, parsed[1]):
            log.warning("ignored: %s holds a note about something else", key)
            return None
        if len(self._notes) >= MAX_CACHED:
            self._notes.clear()
        self._notes[key] = note
        return note

    def write_note(self, note: Note) -> None:
        """Leave a note at the next free number. The very same note twice is there once. `StoreError` if none is free."""
        taken = [found[0] for info in self.store.list(layout.run(self.me, note.task)) if (found := layout.parse_note(info.key))]
        start = min(max(taken, default=-1) + 1, 999)
        body = self.sign(note)
        for number in [*range(start, 1000), *range(start)][:MAX_NOTES]:
            try:
                self.store.create(layout.note(self.me, note.task, number, note.what), body)
            except AlreadyExists:
                continue
            return
        raise StoreError(f"the run of task {note.task} has too many notes", hint="look at its folder in the registry")

    def image_approval(self, image_digest: str) -> ImageApproval | None:
        """This site's own first-use approval of an image, if there is one that is believed and was not taken back."""
        found = self.given_approval(image_digest)
        return found[0] if found is not None and self.withdrawal(image_digest, found[1]) is None else None

    def given_approval(self, image_digest: str) -> tuple[ImageApproval, str] | None:
        """The same, taken back or not, and the SHA-256 of its signed part."""
        try:
            parsed = envelope.parse(self.read_raw(layout.approval(self.me, image_digest)))
            approval = envelope.verify(parsed, ImageApproval, self.id, self.keys.sign_key)
        except (NotFound, TooLarge):
            return None
        except VerificationError as e:
            log.warning("ignored: the approval of %s: %s", image_digest, e)
            return None
        return (approval, parsed.sha256) if (approval.site, approval.image_digest) == (self.me, image_digest) else None

    def withdrawal(self, image_digest: str, approval_sha256: str) -> ImageWithdrawal | None:
        """Who took this approval of an image back, if somebody of this site did."""
        try:
            found = self.read_own(layout.withdrawal(self.me, image_digest, approval_sha256), ImageWithdrawal)
        except (NotFound, TooLarge):
            return None
        except VerificationError as e:
            log.warning("ignored: the withdrawal of %s: %s", image_digest, e)
            return None
        return (
            found if (found.site, found.image_digest, found.approval_sha256) == (self.me, image_digest, approval_sha256) else None
        )

    def approve_image(self, approval: ImageApproval) -> None:
        """Write a first-use approval. No error if the image was approved before. One that was taken back makes room."""
        key, body = layout.approval(self.me, approval.image_digest), self.sign(approval)
        try:
            self.store.create(key, body)
        except AlreadyExists:
            if self.image_approval(approval.image_digest) is not None:
                return
            if self.given_approval(approval.image_digest) is None:
                raise
            self.store.delete(key)
            self.store.create(key, body)

    def beat(self, heartbeat: Heartbeat) -> None:
        self.store.put(layout.heartbeat(self.me, heartbeat.worker), self.sign(heartbeat))

    # a researcher's tasks

    def task_bytes(self, task: str) -> bytes:
        """The signed task as the researcher recorded it. `UsageError` for what is no task id, `NotFound` with a hint."""
        if not layout.is_task_id(task):
            raise UsageError(f"{task!r} is not a task's id, which has 26 letters and digits", hint=SHOWS_TASKS)
        try:
            return self.read_raw(layout.task(self.me, task))
        except NotFound:
            raise NotFound(f"{self.me} has no task {task}", hint=SHOWS_TASKS) from None

    def own_task(self, task: str) -> tuple[Task, str]:
        """A task of this member's own, verified with its own key, and its digest."""
        document, digest, _ = self.own_record(task)
        return document, digest

    def own_record(self, task: str) -> tuple[Task, str, bytes]:
        """The same, with the very bytes that were verified."""
        body = self.task_bytes(task)
        parsed = envelope.parse(body)
        document = envelope.verify(parsed, Task, self.id, self.keys.sign_key)
        if document.id != task:
            raise NotAllowed(
                f"the record of task {task} holds another task ({document.id})", hint="somebody swapped objects in the bucket"
            )
        return document, parsed.sha256, body

    def cancel(self, site: str, cancel: Cancel) -> None:
        """Ask a site to cancel. No error if it was asked before; `VerificationError` if something else lies there."""
        key = layout.cancel(site, self.me, cancel.task)
        try:
            self.store.create(key, self.sign(cancel))
        except AlreadyExists:
            self.read_own(key, Cancel)

    def refusals(self, site: str, task: str, roster: TrustedRoster) -> list[Refusal]:
        """A site's notes that it found something else than this member's task; those of other users' making are left out."""
        found: list[Refusal] = []
        for number in range(MAX_REFUSALS):
            try:
                note = self.read(layout.refusal(site, task, number), Refusal, site, roster)
            except NotFound:
                break
            if (note.user, note.task, note.site) == (self.me, task, site):
                found.append(note)
        return found

    def result_bytes(self, site: str, task: str) -> bytes | None:
        try:
            return self.read_raw(layout.result(site, task))
        except NotFound:
            return None


def signing_key(roster: TrustedRoster, name: str) -> str:
    """The Ed25519 key (hex) of a member who may sign now; `NotAllowed` if unknown or revoked."""
    return roster.active(name).sign_key
