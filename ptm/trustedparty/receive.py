"""Fetches what `ptm.trustedparty.verdict` lets in, publishes it whole, answers, and cleans the inbox.

A file is decrypted while it arrives, into quarantine: the disk never holds it twice, and nothing of it is believed before the
ciphertext had the signed size and digest and the plaintext those of the sealed list. Both sides are bounded by those sizes, so
what lies about them stops early.

The order, for `kill -9` at any point: quarantine → ledger `accepted` (from here on it is published, whatever happens) → files
linked into the collection, never over another one → ledger `published` → receipt → inbox cleaned → ledger `done`. A refusal is in
the ledger before its receipt is out. `finish` carries on from any of these.

What this does not do: decide (`verdict`), or unpack: a zip is one file."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

from ptm import layout
from ptm.audit import Audit
from ptm.config import Home
from ptm.errors import AlreadyExists, DigestMismatch, NotAllowed, NotFound, PtmError, SealError, TooLarge, VerificationError
from ptm.files import private_folder, sync_folder
from ptm.layout import TransferKey
from ptm.model import SentFile
from ptm.registry import Registry
from ptm.seal import check_cipher, check_plain
from ptm.transfer import SUFFIX, Receipt, Transfer
from ptm.trustedparty.arrival import fetch
from ptm.trustedparty.collection import place_of
from ptm.trustedparty.ledger import Answer, HeldFile, Ledger
from ptm.trustedparty.settings import PartyConfig
from ptm.trustedparty.streams import Synced
from ptm.trustedparty.verdict import NEW_ID, Desk, Facts, Ignore, Refuse, Take, Wait, judge, refusal

log = logging.getLogger("ptm.party")
MAX_CLEANED = 2000
"""Objects of one transfer that are removed in one go; the rest the next time."""
ROSTER_AGE_S = 60.0
Clock = Callable[[], datetime]


class Unannounced(PtmError):
    """There is no manifest (yet, or any more)."""


@dataclass
class Receiver:
    """One party's hands. `stop`: when set, a fetch ends soon, with `Stopped`."""

    home: Home
    registry: Registry
    config: PartyConfig
    ledger: Ledger
    audit: Audit
    stop: threading.Event
    now: Clock

    def handle(self, key: TransferKey) -> str | None:
        """Do what there is to do about a manifest. None, or why it has to wait. `Unannounced`; `StoreError` and `OSError` for an
        outage or a full disk: nothing is answered, and the caller comes back."""
        try:
            body: bytes | None = self.registry.read_raw(key.key)
        except NotFound as e:
            raise Unannounced(f"transfer {key.transfer} of {key.sender} is not complete yet") from e
        except TooLarge:
            body = None
        seen = hashlib.sha256(body or b"").hexdigest()
        known = self.ledger.answer(key.transfer, seen)
        if known is not None and known.sender == key.sender:
            self.finish(known)
            return None
        verdict = self._judge(body, key)
        outcome = self._take(verdict, seen) if isinstance(verdict, Take) else verdict
        if isinstance(outcome, Refuse):
            self._refuse(key, seen, outcome)
            return None
        return outcome.why if outcome else None

    def finish(self, answer: Answer) -> None:
        """Carry an answer out, from wherever it was left."""
        if answer.phase == "publishing":
            self._publish(answer)
        self._answer(answer.sender, answer.transfer, answer.seen, answer.receipt)
        if answer.phase != "done":
            self.ledger.finished(answer)

    def sweep(self) -> None:
        """Remove from quarantine what belongs to no transfer that is being published."""
        keep = {answer.transfer for answer in self.ledger.unfinished() if answer.phase == "publishing"}
        for left in private_folder(self.home.quarantine).iterdir():
            if left.name not in keep:
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()

    # taking

    def _judge(self, body: bytes | None, key: TransferKey) -> Take | Refuse | Wait | Ignore:
        desk = Desk(self.registry.id, self.registry.me, self.registry.keys, self.config)
        free = shutil.disk_usage(self.home.path).free
        facts = Facts(lambda transfer: self.ledger.accepted(transfer) is not None, self.ledger.room, free)
        return judge(body, key, desk, self.registry.roster(ROSTER_AGE_S), facts, self.now())

    def _take(self, take: Take, seen: str) -> Wait | Refuse | None:
        """Fetch, accept and publish. What turns out not to be as signed is refused."""
        transfer, folder = take.transfer, self.home.quarantine / take.transfer.id
        try:
            files = self._fetch_all(take, folder)
        except VerificationError as e:
            self._drop(folder)
            return refusal(e, transfer)
        except BaseException:
            self._drop(folder)
            raise
        receipt = self.registry.sign(self._receipt(transfer.sender, transfer.id, seen, transfer))
        answer = Answer(transfer.id, seen, transfer.sender, "accepted", "publishing", receipt)
        if not self.ledger.accept(answer, files):
            self._drop(folder)
            return Wait(f"the collection {transfer.collection} is in use, or being purged")
        names = ", ".join(file.name for file in files)
        log.info("transfer %s of %s: accepted into %s: %s", transfer.id, transfer.sender, transfer.collection, names)
        self.finish(answer)
        return None

    def _fetch_all(self, take: Take, folder: Path) -> list[HeldFile]:
        """Every file into a new folder of quarantine, verified and on disk."""
        self._drop(folder)
        private_folder(folder)
        files = [self._fetch(take, number, file, folder) for number, file in enumerate(take.transfer.files)]
        for file in files:
            if os.path.lexists(place_of(self.home, file)):
                raise NotAllowed(f"{file.name} is there already", hint=f"ask {take.transfer.party} to look into its folder")
        sync_folder(folder)
        sync_folder(folder.parent)
        return files

    def _fetch(self, take: Take, number: int, file: SentFile, folder: Path) -> HeldFile:
        """One file into quarantine, verified."""
        transfer, listed, sealed = take.transfer, take.plain[file.name], take.rule.sealed
        suffix = SUFFIX[transfer.format]
        key = layout.transfer_file(transfer.party, transfer.sender, transfer.id, file.name, suffix)
        try:
            with _new_file(folder / f"{number:03d}") as sink:
                found = fetch(
                    self.registry.store, key, transfer.format, self.registry.keys,
                    limit=file.size, plain_limit=listed.size, sink=sink, sealed=sealed, stop=self.stop,
                )  # fmt: skip
        except NotFound as e:
            raise NotAllowed(f"{file.name} is not in the inbox", hint=NEW_ID) from e
        except TooLarge as e:
            raise DigestMismatch(f"{file.name} is longer than the {file.size} bytes that were signed", hint=NEW_ID) from e
        check_cipher(found.cipher, file.size, file.sha256, file.name)
        if found.refused is not None:
            raise SealError(f"{file.name}: {found.refused}", hint=f"is it sealed to the key of {transfer.party}?")
        check_plain(found.plain, listed, file.name)
        return HeldFile(
            transfer=transfer.id,
            number=number,
            collection=transfer.collection,
            sender=transfer.sender,
            name=file.name,
            stored=f"{file.name}.{suffix}" if sealed else file.name,
            size=found.plain.size,
            sha256=found.plain.sha256,
            cipher_sha256=found.cipher.sha256,
            format=transfer.format if sealed else None,
            bytes=found.cipher.size if sealed else found.plain.size,
            arrived=self.now(),
        )

    def _drop(self, folder: Path) -> None:
        """A folder of quarantine, gone. Trouble with that is for the next sweep."""
        shutil.rmtree(folder, ignore_errors=True)

    # publishing and answering

    def _publish(self, answer: Answer) -> None:
        """Put the files where they belong. Done again after a crash, it does only what is left."""
        files = self.ledger.files_of(answer.transfer)
        folder = self.home.quarantine / answer.transfer
        for file in files:
            self._link(folder / f"{file.number:03d}", place_of(self.home, file))
        self.audit.record(
            "transfer-accepted",
            sender=answer.sender,
            transfer=answer.transfer,
            collection=files[0].collection,
            files=[{"name": file.name, "bytes": file.bytes, "sealed_sha256": file.cipher_sha256} for file in files],
        )
        self.ledger.published(answer.transfer)
        shutil.rmtree(folder, ignore_errors=True)

    def _link(self, held: Path, place: Path) -> None:
        """Give a file its name in the collection. The other name goes when all are there, so a crash leaves both, or the new."""
        for made in (place.parent.parent.parent, place.parent.parent, place.parent):
            private_folder(made)
            sync_folder(made.parent)
        try:
            os.link(held, place)
        except FileExistsError as e:
            if not held.samefile(place):
                raise PtmError(f"{place} is in the way of a file that was accepted", hint="move it away") from e
        sync_folder(place.parent)

    def _refuse(self, key: TransferKey, seen: str, refused: Refuse) -> None:
        log.warning("transfer %s of %s: refused: %s", key.transfer, key.sender, refused.reason)
        receipt = self.registry.sign(self._receipt(key.sender, key.transfer, seen, refused.transfer, refused))
        if refused.transfer is None:  # anybody's bytes: they are answered, but nothing here grows by them
            self._answer(key.sender, key.transfer, seen, receipt)
            return
        answer = Answer(key.transfer, seen, key.sender, "refused", "answering", receipt)
        self.ledger.refuse(answer)
        self.audit.record("transfer-refused", sender=key.sender, transfer=key.transfer, reason=refused.reason)
        self.finish(answer)

    def _receipt(
        self, sender: str, transfer: str, seen: str, document: Transfer | None, refused: Refuse | None = None
    ) -> Receipt:
        return Receipt(
            registry=self.registry.id,
            transfer=transfer,
            sender=sender,
            party=self.registry.me,
            collection=document.collection if document else None,
            seen_sha256=seen,
            state="refused" if refused else "accepted",
            reason=refused.reason if refused else None,
            hint=refused.hint if refused else None,
            files=document.files if document and not refused else (),
            created=self.now(),
        )

    def _answer(self, sender: str, transfer: str, seen: str, receipt: bytes) -> None:
        """The receipt out, then the inbox clean, the manifest last: until then, the next poll sees it again."""
        key = layout.receipt(self.registry.me, sender, transfer, seen)
        try:
            self.registry.store.create(key, receipt)
        except AlreadyExists:
            self._check_receipt(key)
        self._clean(sender, transfer)

    def _check_receipt(self, key: str) -> None:
        """An earlier answer to the same bytes stands. Anything else under this party's own prefix is somebody's tampering."""
        try:
            self.registry.read_own(key, Receipt)
        except (VerificationError, NotFound, TooLarge) as e:
            log.warning("%s is not a receipt of this party's: %s", key, e)

    def _clean(self, sender: str, transfer: str) -> None:
        store, me = self.registry.store, self.registry.me
        manifest = layout.transfer_manifest(me, sender, transfer)
        below = [info.key for info in itertools.islice(store.list(layout.transfer(me, sender, transfer)), MAX_CLEANED)]
        for key in below:
            if key != manifest:
                store.delete(key)
        if len(below) < MAX_CLEANED:
            store.delete(manifest)
        else:
            raise PtmError(f"transfer {transfer} of {sender} left more than {MAX_CLEANED} objects; going on later")


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A private file in quarantine, on disk when the block ends."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb") as file:
        synced = Synced(file, forget=True)
        yield cast(BinaryIO, synced)
        synced.sync()
