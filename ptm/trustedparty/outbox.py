"""The outbox: what this home is sending, and the signed manifests of what it has sent, in files that survive a crash anywhere.

    <home>/outbox/<transfer>/plan.json       what is to be sent, and which files are sealed; written first
                             files/          the sealed files
                             manifest.json   the signed manifest, when all are sealed
                             parts/          what the store remembers of files on their way (`Store.upload_resumable`)
                             lock            held by the process that is at it
    <home>/outbox/sent/<transfer>.json          the manifest's bytes as they went into the inbox
    <home>/outbox/sent/<transfer>.answer.json   the party's receipt, once it was verified
    <home>/outbox/sent/<transfer>.purged.json   the party's record that it removed the files, once it was verified

Rules: a transfer is one process's at a time (`flock`, which ends with the process). A folder goes when its manifest lies in
`sent/`. Everything here is private (mode 0700), for a plan has the digests of plaintexts.

No network. What is done with a transfer is in `ptm.trustedparty.send`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ptm.envelope import load
from ptm.errors import NotFound, UsageError
from ptm.files import hold_lock, private_folder, write_atomic
from ptm.layout import is_task_id
from ptm.model import MAX_FILES, FileName, Frozen, Name, Nonce, PlainFile, SentFile, Sha256, Text, Time, Ulid
from ptm.transfer import SUFFIX, Format, FromRun, Purge, Receipt

SHOWS_SENT = "`ptm inbox list` shows what this home sent"
_SENT, _ANSWER, _PURGED = "sent", ".answer.json", ".purged.json"


class Inner(Frozen):
    """What a file that this home received has in clear. `format` is that of the file on disk, sealed to this home; None if it
    lies in clear."""

    format: Format | None
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class PlannedFile(Frozen):
    """A file to send: its name in the transfer, and the file on this machine as it was when the transfer was begun. `inner`: of a
    file that is passed on."""

    name: FileName
    path: Path
    size: Annotated[int, Field(ge=0)]
    modified_ns: int
    inner: Inner | None = None


class Done(Frozen):
    """A file that is sealed."""

    plain: PlainFile
    cipher: SentFile


class Plan(Frozen):
    """A transfer that was begun. `done` are the files sealed so far, in the order of `files`."""

    id: Ulid
    nonce: Nonce
    created: Time
    party: Name
    collection: Name
    format: Format = "age"
    purpose: Text = ""
    run: FromRun | None = None
    files: Annotated[tuple[PlannedFile, ...], Field(min_length=1, max_length=MAX_FILES)]
    done: tuple[Done, ...] = ()

    def sends_what(self, other: Plan) -> bool:
        """Whether both send files of these places and names to the same collection."""
        return self._what() == other._what()

    def _what(self) -> tuple[object, ...]:
        return (self.party, self.collection, self.format, {(file.name, file.path) for file in self.files})


class TransferFolder:
    """The folder of one transfer that is being sent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / "manifest.json"
        self._plan = path / "plan.json"

    def make(self) -> None:
        for folder in (self.path, self.path / "files", self.path / "parts"):
            private_folder(folder)

    def sealed(self, name: str, format: Format) -> Path:
        return self.path / "files" / f"{name}.{SUFFIX[format]}"

    def journal(self, number: int) -> Path:
        return self.path / "parts" / f"{number}.json"

    def save_plan(self, plan: Plan) -> None:
        write_atomic(self._plan, plan.model_dump_json().encode(), mode=0o600)

    def read_plan(self) -> Plan | None:
        """None if nothing was begun in this folder; `VerificationError` if the plan is none."""
        try:
            return load(Plan, self._plan.read_bytes())
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """The plan goes first: a folder without one is nobody's."""
        self._plan.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


class Outbox:
    """The outbox of a home. Several processes and threads may use it at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def begin(self, plan: Plan) -> Iterator[TransferFolder]:
        """The new folder of a transfer, with its plan, held until the block ends."""
        folder = TransferFolder(self.path / plan.id)
        with contextlib.ExitStack() as held:
            with self._alone():
                self._sweep()
                folder.make()
                held.enter_context(_hold(folder.path))
                folder.save_plan(plan)
            yield folder

    @contextlib.contextmanager
    def take_up(self, transfer_id: str) -> Iterator[TransferFolder | None]:
        """The folder of a transfer that was begun, held until the block ends; None if another process is at it, or it is gone."""
        if not is_task_id(transfer_id):
            raise UsageError(f"{transfer_id!r} is not a transfer's id, which has 26 letters and digits", hint=SHOWS_SENT)
        folder = TransferFolder(self.path / transfer_id)
        with contextlib.ExitStack() as held:
            with self._alone():
                mine = held.enter_context(_hold(folder.path))
            yield folder if mine and folder.read_plan() is not None else None

    def unfinished(self) -> list[tuple[Plan, TransferFolder]]:
        """The transfers that were begun and did not end, oldest first, whether or not somebody is at them."""
        found = []
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            folder = TransferFolder(path)
            plan = folder.read_plan() if is_task_id(path.name) else None
            if plan is not None:
                found.append((plan, folder))
        return found

    def is_held(self, transfer_id: str) -> bool:
        """Whether a process is at this transfer now."""
        with self.take_up(transfer_id) as folder:
            return folder is None

    def finish(self, folder: TransferFolder, body: bytes) -> None:
        """Keep a manifest that is in the inbox, and let go of the sealed files."""
        private_folder(self.path / _SENT)
        write_atomic(self.path / _SENT / f"{folder.path.name}.json", body, mode=0o600)
        folder.remove()

    def sent_body(self, transfer_id: str) -> bytes:
        """The bytes of a manifest that is in the inbox. `NotFound`."""
        try:
            return (self.path / _SENT / f"{transfer_id}.json").read_bytes()
        except FileNotFoundError:
            raise NotFound(f"this home has sent no transfer {transfer_id}", hint=SHOWS_SENT) from None

    def sent(self) -> Iterator[tuple[str, bytes]]:
        """(id, manifest's bytes) of what was sent, newest first."""
        found = [path for path in (self.path / _SENT).glob("*.json") if is_task_id(path.stem)]
        for path in sorted(found, reverse=True):
            yield path.stem, path.read_bytes()

    def answer(self, transfer_id: str) -> Receipt | None:
        """The receipt that `keep_answer` was given."""
        try:
            return load(Receipt, (self.path / _SENT / f"{transfer_id}{_ANSWER}").read_bytes())
        except FileNotFoundError:
            return None

    def keep_answer(self, receipt: Receipt) -> None:
        """Remember a receipt that was verified: it is written once, so it need not be asked for again."""
        body = receipt.model_dump_json(exclude_none=True).encode()
        write_atomic(self.path / _SENT / f"{receipt.transfer}{_ANSWER}", body, mode=0o600)

    def purge(self, transfer_id: str) -> Purge | None:
        """The record that `keep_purge` was given."""
        try:
            return load(Purge, (self.path / _SENT / f"{transfer_id}{_PURGED}").read_bytes())
        except FileNotFoundError:
            return None

    def keep_purge(self, transfer_id: str, record: Purge) -> None:
        """Remember a record that was verified: what was purged stays so."""
        body = record.model_dump_json(exclude_none=True).encode()
        write_atomic(self.path / _SENT / f"{transfer_id}{_PURGED}", body, mode=0o600)

    def _sweep(self) -> None:
        """Remove folders without a plan: of transfers that ended, or never began, when their process was killed."""
        for path in self.path.iterdir():
            folder = TransferFolder(path)
            if is_task_id(path.name) and folder.read_plan() is None:
                with _hold(path) as mine:
                    if mine:
                        folder.remove()

    def _alone(self) -> contextlib.AbstractContextManager[bool]:
        """No other process makes or takes up a transfer meanwhile."""
        return hold_lock(private_folder(self.path) / ".lock", wait=True)


@contextlib.contextmanager
def _hold(folder: Path) -> Iterator[bool]:
    """Hold a transfer's folder; False if another does, or it is not there."""
    with contextlib.ExitStack() as held:
        try:
            mine = held.enter_context(hold_lock(folder / "lock"))
        except FileNotFoundError:
            mine = False
        yield mine
