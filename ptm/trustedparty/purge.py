"""Removes files from collections, on record: after use, by age, or because a person asked.

The order, for `kill -9` at any point: intent in the ledger (from then on the files count as gone, and nothing comes or goes in
their collection) → files removed → audit log → record signed → ledger → record in the bucket → ledger `done`. So a record says
what was done, not what was meant, and a file whose record could not be written yet is gone all the same.

What this does not do: overwrite disks. A removed file's blocks are the file system's affair; encrypt the disk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ptm import layout
from ptm.audit import Audit
from ptm.config import Home
from ptm.errors import NotFound, TooLarge, VerificationError
from ptm.files import sync_folder
from ptm.registry import Registry
from ptm.transfer import Purge, PurgedFile
from ptm.trustedparty.collection import place_of
from ptm.trustedparty.ledger import DuePurge, HeldFile, Ledger
from ptm.trustedparty.settings import PartyConfig

log = logging.getLogger("ptm.party")


@dataclass
class Purger:
    """One party's; there is one at a time for a home (`ptm.trustedparty.watch.only_one`)."""

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
        """Do what is due and not in use; returns how many purges that were."""
        due = self.ledger.due_purges()
        for purge in due:
            self._carry_out(purge)
        return len(due)

    def _carry_out(self, purge: DuePurge) -> None:
        body = purge.body
        if body is None:
            files = self.ledger.files_of_purge(purge.id)
            self._remove(files)
            self._note(purge, files)
            body = self.registry.sign(self._record(purge, files))
            self.ledger.purge_signed(purge.id, body)
        self.registry.store.create(layout.purge(self.registry.me, purge.collection, purge.id), body)
        self.ledger.purge_done(purge.id)
        log.info("purged from %s (%s)", purge.collection, purge.why)

    def _remove(self, files: list[HeldFile]) -> None:
        folders = set()
        for file in files:
            place = place_of(self.home, file)
            place.unlink(missing_ok=True)
            folders.add(place.parent)
        for folder in folders:
            if folder.exists():
                sync_folder(folder)

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


def records(registry: Registry, party: str, collection: str) -> list[Purge]:
    """The records of a party's purges, verified with its key, oldest first. Those that are not believed are left out, with a
    warning."""
    found: list[Purge] = []
    for info in registry.store.list(layout.purges_of(party, collection)):
        try:
            record = registry.read_own(info.key, Purge) if party == registry.me else registry.read(info.key, Purge, party)
        except (NotFound, TooLarge, VerificationError) as e:
            log.warning("%s: %s", info.key, e)
            continue
        if (record.party, record.collection) == (party, collection):
            found.append(record)
    return found
