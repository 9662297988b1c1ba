"""Receiving by hand, for a member that is no trusted party: what waits in its inbox, and one look that takes it into a folder.

It is verified, decrypted, published and answered as at a party (`ptm.trustedparty.receive`), under a policy that takes any
collection and name from any member. Who is no party asked for these files, or looks at the list first; so what is too big, or
has a name that is taken in the folder, is left in the inbox instead of refused.

    FOLDER/<collection>/<sender>/<name>     what was taken
    FOLDER/.ptm-inbox/                      what must not be forgotten: the answers given, files on their way, an audit log

Rule: what was taken into a folder is not taken into it again, whatever the bucket shows; another folder does not know of it. A
file may be moved away, for once it is there it is the reader's."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptm import envelope, layout
from ptm.audit import Audit
from ptm.config import Home
from ptm.errors import NotFound, PtmError, StoreError, TooLarge, UsageError, VerificationError
from ptm.files import hold_lock, private_folder
from ptm.layout import TransferKey
from ptm.model import MAX_FILES, Name
from ptm.registry import Registry, now_utc
from ptm.transfer import Receipt, Transfer
from ptm.trustedparty.ledger import Ledger
from ptm.trustedparty.receive import Receiver
from ptm.trustedparty.settings import MEGABYTE, CollectionRule, PartyConfig, load_party

MIN_FREE_MB = 64


@dataclass(frozen=True)
class Waiting:
    """A transfer in the inbox. Without `transfer` its manifest is not to be believed, and `why` says so."""

    sender: str
    id: str
    seen: str
    transfer: Transfer | None
    why: str = ""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.transfer.files) if self.transfer else 0


@dataclass(frozen=True)
class Taken:
    """What became of a transfer: its files (none if they were taken before); or it was `refused`; or it was `left` in the inbox,
    each with the reason."""

    sender: str
    id: str
    files: tuple[Path, ...] = ()
    refused: str = ""
    left: str = ""


class Landing(Home):
    """A folder as the home of its own receiving."""

    @property
    def collections(self) -> Path:
        return self.path.parent


class _AnyCollection(PartyConfig):
    """Takes what any of the members sends."""

    members: tuple[Name, ...]
    max_mb: int

    def rule(self, name: str) -> CollectionRule:
        senders: dict[str, tuple[str, ...]] = dict.fromkeys(self.members, (".*",))
        return CollectionRule(name=name, max_mb=self.max_mb, max_files=MAX_FILES, quota_mb=1024 * self.max_mb, senders=senders)


def waiting(registry: Registry, sender: str | None = None) -> Iterator[Waiting]:
    """What lies in this member's inbox, of members of the registry, oldest first for each sender."""
    roster = registry.roster()
    for info in registry.store.list(layout.inbox_of(registry.me)):
        key = layout.parse_transfer(info.key)
        if key is not None and sender in (None, key.sender) and roster.member(key.sender) is not None:
            yield _look(registry, key)


def _look(registry: Registry, key: TransferKey) -> Waiting:
    body = b""
    try:
        body = registry.read_raw(key.key)
        sign_key = registry.roster(60).active(key.sender).sign_key
        transfer, why = envelope.verify(body, Transfer, registry.id, sign_key), ""
    except (VerificationError, TooLarge, NotFound) as e:
        transfer, why = None, str(e)
    return Waiting(key.sender, key.transfer, hashlib.sha256(body).hexdigest(), transfer, why)


def fetch(registry: Registry, folder: Path, *, sender: str | None = None, max_mb: int, stop: threading.Event) -> list[Taken]:
    """Take what waits. `UsageError`; `StoreError` and `OSError` for an outage or a full disk: the next call goes on."""
    if load_party(registry.home) is not None:
        raise UsageError("this home is a trusted party, which takes by its own rules", hint="`ptm trustedparty watch`")
    landing = Landing(private_folder(folder.absolute() / ".ptm-inbox"))
    with hold_lock(landing.party_lock) as mine, contextlib.ExitStack() as stack:
        if not mine:
            raise UsageError(f"another `ptm inbox fetch` writes into {folder}", hint="wait for it, or give another folder")
        ledger, audit = Ledger(landing.ledger), Audit(landing.party_audit)
        stack.callback(ledger.close)
        stack.callback(audit.close)
        members = tuple(member.name for member in registry.roster().roster.members)
        config = _AnyCollection(min_free_mb=MIN_FREE_MB, members=members, max_mb=max_mb)
        receiver = Receiver(landing, registry, config, ledger, audit, stop, now_utc)
        return _Fetcher(registry, landing, ledger, receiver, max_mb).fetch(sender)


@dataclass
class _Fetcher:
    registry: Registry
    landing: Landing
    ledger: Ledger
    receiver: Receiver
    max_mb: int

    def fetch(self, sender: str | None) -> list[Taken]:
        self.receiver.sweep()
        done = []
        for answer in self.ledger.unfinished():
            self.receiver.finish(answer)
            done.append(self._became(answer.sender, answer.transfer, answer.seen))
        self.ledger.hand_over()
        for found in waiting(self.registry, sender):
            done.append(self._take(found))
            self.ledger.hand_over()
        return done

    def _take(self, found: Waiting) -> Taken:
        why = self._in_the_way(found.transfer) if found.transfer else None
        if why is None:
            key = layout.transfer_manifest(self.registry.me, found.sender, found.id)
            try:
                why = self.receiver.handle(TransferKey(key, self.registry.me, found.sender, found.id))
            except StoreError:
                raise
            except PtmError as e:
                why = str(e)
        return Taken(found.sender, found.id, left=why) if why else self._became(found.sender, found.id, found.seen)

    def _in_the_way(self, transfer: Transfer) -> str | None:
        """What a party would refuse, and here is left for another try."""
        if sum(file.size for file in transfer.files) > self.max_mb * MEGABYTE:
            return f"has more than {self.max_mb} MB: give --max-mb"
        folder = self.landing.collections / transfer.collection / transfer.sender
        taken = next((file.name for file in transfer.files if (folder / file.name).exists()), None)
        return f"{folder / taken} is there already: move it away, or give another folder" if taken else None

    def _became(self, sender: str, transfer: str, seen: str) -> Taken:
        receipt = self.registry.read_own(layout.receipt(self.registry.me, sender, transfer, seen), Receipt)
        if receipt.state == "refused":
            return Taken(sender, transfer, refused=receipt.reason or "")
        files = self.ledger.files_of(transfer)
        places = (self.landing.collections / file.collection / file.sender / file.stored for file in files)
        return Taken(sender, transfer, tuple(places))
