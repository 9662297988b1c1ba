"""A purge that a person asks for, on the command line, beside a watch that may be running: only one of the two carries it out."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from ptm.audit import Audit
from ptm.complaint import complaint
from ptm.config import Home
from ptm.errors import UsageError
from ptm.files import hold_lock
from ptm.model import Person, Text
from ptm.registry import Registry, now_utc
from ptm.trustedparty.ledger import HeldFile, Ledger
from ptm.trustedparty.purge import Purger
from ptm.trustedparty.settings import PartyConfig


@dataclass(frozen=True)
class Asked:
    """`files` that are to go; `done` if they went, else `why` not yet."""

    files: tuple[HeldFile, ...]
    done: bool
    why: str = ""


def purge_by_hand(
    home: Home,
    registry: Registry,
    config: PartyConfig,
    collection: str,
    *,
    sender: str | None,
    person: str,
    reason: str,
    dry_run: bool = False,
) -> Asked:
    """Have a collection's files go, all or a sender's. With `dry_run` nothing happens. `UsageError`; `StoreError` if the record
    could not be written: the files are gone then, and the next watch writes it."""
    rule = config.rule(collection)
    if rule is None:
        raise UsageError(f"there is no collection {collection}", hint="`ptm trustedparty list` shows them")
    try:
        TypeAdapter(Person).validate_python(person)
        TypeAdapter(Text).validate_python(reason)
    except ValidationError as e:
        raise UsageError(f"--by, --reason: {complaint(e)}") from e
    ledger = Ledger(home.ledger)
    try:
        if sender is not None and sender not in {*rule.senders, *(file.sender for file in ledger.held(collection))}:
            raise UsageError(f"{sender} sends nothing to {collection}", hint=f"its senders are {', '.join(rule.senders)}")
        if dry_run:
            return Asked(tuple(file for file in ledger.held(collection) if sender in (None, file.sender)), False)
        files = tuple(ledger.plan_purge(collection, "asked", now_utc(), sender=sender, person=person, reason=reason))
        if users := ledger.users(collection):
            return Asked(files, False, f"in use by task {users[0]}: the watch purges them when that has ended")
        with hold_lock(home.party_lock) as mine:
            if not mine:
                return Asked(files, False, "the running watch purges them at its next poll")
            audit = Audit(home.party_audit)
            try:
                Purger(home, registry, ledger, audit, now_utc).carry_out()
            finally:
                audit.close()
        return Asked(files, True)
    finally:
        ledger.close()
