"""Removes files from collections, on record: after use, by age, or because a person asked.

The order, for `kill -9` at any point: intent in the ledger (from then on the files count as gone, and nothing comes or goes in
their collection) → files removed → audit log → record signed → ledger → record in the bucket → ledger `done`. So a record says
what was done, not what was meant, and a file whose record could not be written yet is gone all the same. All files that are due
go before the first record goes out: whoever runs the bucket keeps no file here by not answering.

What this does not do: overwrite disks. A removed file's blocks are the file system's affair; encrypt the disk."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ulid import ULID

from ptm import layout
from ptm.audit import Audit
from ptm.config import Home
from ptm.errors import AlreadyExists, NotFound, PtmError, TooLarge, Unreachable, VerificationError
from ptm.files import sync_folder
from ptm.registry import Registry
from ptm.transfer import Purge, PurgedFile
from ptm.trustedparty.collection import place_of
from ptm.trustedparty.ledger import DuePurge, HeldFile, Ledger
from ptm.trustedparty.settings import PartyConfig

log = logging.getLogger("ptm.party")


@dataclass
class Purger:
    """One party's; there is one at a time for a home (`Home.party_lock`)."""

    home: Home
    registry: Registry
    ledger: Ledger
    audit: Audit
    now: Callable[[], datetime]

    def plan_aged(self, config: PartyConfig) -> None:
        """Files that were kept as long as their collection says are due."""
        for rule in config.collection:
            if rule.keep is None:
                continue
            before = self.now() - rule.keep
            if any(file.arrived < before for file in self.ledger.held(rule.name)):
                self.ledger.plan_purge(rule.name, "age", self.now(), before=before)

    def carry_out(self) -> int:
        """Do what is due and not in use; returns how many purges that were. One's trouble (the first is raised at the end) is not
        another's."""
        due = self.ledger.due_purges()
        bodies: list[tuple[DuePurge, bytes]] = []
        troubles: list[PtmError] = []
        for purge in due:
            try:
                bodies.append((purge, purge.body or self._remove(purge)))
            except PtmError as e:
                troubles.append(e)
        for purge, body in bodies:
            try:
                self._publish(purge, body)
            except PtmError as e:
                troubles.append(e)
                if isinstance(e, Unreachable):
                    break
        if troubles:
            raise troubles[0]
        return len(due)

    def _remove(self, purge: DuePurge) -> bytes:
        """The files go; returns the signed record, which is in the ledger."""
        files = self.ledger.files_of_purge(purge.id)
        for file in files:
            try:
                self._remove_file(file)
            except OSError as e:
                raise PtmError(
                    f"{place_of(self.home, file)} cannot be purged: {e.strerror or e}", hint="remove what is in the way"
                ) from e
        self._note(purge, files)
        body = self.registry.sign(self._record(purge, files))
        self.ledger.purge_signed(purge.id, body)
        return body

    def _remove_file(self, file: HeldFile) -> None:
        """From its collection; and from quarantine, where a crash may have left its first name."""
        place, first = place_of(self.home, file), self.home.quarantine / file.transfer
        place.unlink(missing_ok=True)
        if first.exists():
            shutil.rmtree(first)
        for folder in (place.parent, first.parent):
            if folder.exists():
                sync_folder(folder)

    def _publish(self, purge: DuePurge, body: bytes) -> None:
        """The record goes out. What somebody put in its place stops nothing: then it lies beside that."""
        key = layout.purge(self.registry.me, purge.collection, purge.id)
        try:
            self.registry.store.create(key, body)
        except AlreadyExists:
            beside = layout.purge(self.registry.me, purge.collection, str(ULID.from_datetime(self.now())))
            log.warning("%s holds something that this party did not write; the record of that purge is %s", key, beside)
            self.registry.store.create(beside, body)
        self.ledger.purge_done(purge.id)
        log.info("purged from %s (%s)", purge.collection, purge.why)

    def _note(self, purge: DuePurge, files: list[HeldFile]) -> None:
        self.audit.record(
            "purged",
            purge.task,
            collection=purge.collection,
            why=purge.why,
            by=purge.person,
            reason=purge.reason or None,
            files=[{"sender": file.sender, "name": file.name, "transfer": file.transfer} for file in files],
        )

    def _record(self, purge: DuePurge, files: list[HeldFile]) -> Purge:
        return Purge(
            registry=self.registry.id,
            party=self.registry.me,
            collection=purge.collection,
            why=purge.why,
            task=purge.task,
            by=purge.person,
            reason=purge.reason,
            files=tuple(
                PurgedFile(sender=file.sender, transfer=file.transfer, name=file.name, sha256=file.cipher_sha256)
                for file in files
            ),
            created=self.now(),
        )


def records(registry: Registry, party: str, collection: str, since: datetime | None = None) -> list[Purge]:
    """The records of a party's purges, verified with its key, oldest first; only those since a time by the party's clock, if one
    is given. Those that are not believed are left out, with a warning."""
    first = layout.purge(party, collection, str(ULID.from_datetime(since))[:10] if since else "")
    found: list[Purge] = []
    for info in registry.store.list(layout.purges_of(party, collection)):
        if info.key < first.removesuffix(".json"):
            continue
        try:
            record = registry.read_own(info.key, Purge) if party == registry.me else registry.read(info.key, Purge, party)
        except (NotFound, TooLarge, VerificationError) as e:
            log.warning("%s: %s", info.key, e)
            continue
        if (record.party, record.collection) == (party, collection):
            found.append(record)
    return found
