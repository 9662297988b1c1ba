"""What a party makes of a manifest in its inbox, before it fetches a byte of what the manifest announces.

The rules, in this order: the sender is a member who may act now, and signed it; it is for this party and registry, lies where its
sender and id say, and its id is its sender's own; no transfer of that id was accepted before; the collection takes files of these
names, sizes and numbers from this sender; the sealed list is this transfer's, and names the same files; the names are free, and
the sender's quota and the disk have room. What only time can mend (a full disk, a collection that is in use) is waited for, all
else is refused with the reason.

No I/O: what the ledger and the disk say comes in as arguments. Fetching is `ptm.trustedparty.receive`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from ptm import envelope
from ptm.config import FUTURE_TOLERANCE_S
from ptm.errors import Malformed, NotAllowed, NotForUs, VerificationError
from ptm.keys import MemberKeys
from ptm.layout import TransferKey
from ptm.model import PlainFile, as_text
from ptm.seal import open_manifest
from ptm.transfer import Transfer
from ptm.trust import TrustedRoster
from ptm.trustedparty.ledger import Room, fold, space
from ptm.trustedparty.settings import MEGABYTE, CollectionRule, PartyConfig

NEW_ID = "send the files again as a new transfer"
SENDERS_NAME = "check the collection's name, or ask {} to name you as a sender of it"
MAX_AGE_DAYS = 90
"""What the bucket kept back for longer is not taken: its sender has given up, or the study is over and its data are purged."""


@dataclass(frozen=True)
class Take:
    """A transfer to fetch: each file is bounded by the signed size of its ciphertext, and the sealed one of its plaintext."""

    transfer: Transfer
    rule: CollectionRule
    plain: Mapping[str, PlainFile]

    @property
    def bytes(self) -> int:
        """How much of the disk it takes in the end."""
        return _stored(self.transfer, self.rule, self.plain)


@dataclass(frozen=True)
class Refuse:
    """A refusal: one line, and one of advice. `transfer` is set if its sender signed it."""

    reason: str
    hint: str | None
    transfer: Transfer | None = None


@dataclass(frozen=True)
class Wait:
    """Not now; nobody's fault."""

    why: str


@dataclass(frozen=True)
class Ignore:
    """Nobody to answer: left where it is."""

    why: str


@dataclass(frozen=True)
class Facts:
    """What the ledger and the disk say. `taken`: whether a transfer of this id was accepted; `room`: of a collection and sender;
    `free`: bytes of disk."""

    taken: Callable[[str], bool]
    room: Callable[[str, str], Room]
    free: int


@dataclass(frozen=True)
class Desk:
    """Who judges: the registry's id, the party's name, keys and configuration."""

    registry: str
    me: str
    keys: MemberKeys
    config: PartyConfig


def judge(
    body: bytes | None, key: TransferKey, desk: Desk, roster: TrustedRoster, facts: Facts, now: datetime
) -> Take | Refuse | Wait | Ignore:
    """The verdict on the bytes of a manifest that lay at a key; None if there are too many to read."""
    if roster.member(key.sender) is None:
        return Ignore(f"{key.sender} is not a member of this registry")
    if facts.free < desk.config.min_free_mb * MEGABYTE:  # refusals are kept, so even they wait
        return Wait(f"the disk has less room than min_free_mb = {desk.config.min_free_mb}")
    transfer = None
    try:
        transfer = _identify(body, key, desk, roster)
        return _admit(transfer, desk, facts, now)
    except VerificationError as e:
        return refusal(e, transfer)


def refusal(error: VerificationError, transfer: Transfer | None) -> Refuse:
    return Refuse(as_text(str(error)), error.hint and as_text(error.hint), transfer)


def _identify(body: bytes | None, key: TransferKey, desk: Desk, roster: TrustedRoster) -> Transfer:
    """The transfer, if it is what its key says and its sender signed it."""
    member = roster.active(key.sender)
    if body is None:
        raise Malformed(f"the manifest has more than {envelope.MAX_DOCUMENT_BYTES} bytes", hint="send fewer files at once")
    transfer = envelope.verify(body, Transfer, desk.registry, member.sign_key)
    if transfer.party != desk.me:
        raise NotForUs(f"is for {transfer.party}, not for {desk.me}")
    if (transfer.sender, transfer.id) != (key.sender, key.transfer):
        raise NotAllowed("lies under another sender or id than it was signed for", hint="somebody copied it in the bucket")
    if transfer.id != envelope.transfer_id(transfer.created, desk.registry, transfer.sender, transfer.nonce):
        raise NotAllowed("its id was not made by its sender", hint=NEW_ID)
    return transfer


def _admit(transfer: Transfer, desk: Desk, facts: Facts, now: datetime) -> Take | Wait:
    if facts.taken(transfer.id):
        raise NotAllowed("a transfer of this id was accepted before", hint=NEW_ID)
    if transfer.created > now + timedelta(seconds=FUTURE_TOLERANCE_S):
        raise NotAllowed("is from the future", hint="set the sender's clock, and send the files again")
    if transfer.created < now - timedelta(days=MAX_AGE_DAYS):
        raise NotAllowed(f"was made more than {MAX_AGE_DAYS} days ago", hint=NEW_ID)
    rule = _rule_for(transfer, desk.config)
    plain = open_manifest(
        transfer.manifest, desk.keys.identity, registry=desk.registry, task=transfer.id, sealed_by=transfer.sender
    )
    _check_list(transfer, plain)
    _check_sizes(transfer, rule, plain)
    room = facts.room(rule.name, transfer.sender)
    names = {fold(file.name): file.name for file in transfer.files}
    clash = next((name for folded, name in names.items() if folded in room.names), None)
    if clash:
        raise NotAllowed(f"{clash} is there already", hint=f"ask {desk.me} to purge it: `ptm trustedparty purge {rule.name}`")
    if room.busy or not room.leaving.isdisjoint(names):
        return Wait(f"the collection {rule.name} is in use, or being purged")
    size = _stored(transfer, rule, plain)
    if room.bytes + size > rule.quota_mb * MEGABYTE:
        raise NotAllowed(
            f"{transfer.sender} would have more than {rule.quota_mb} MB in {rule.name}",
            hint=f"ask {desk.me} to purge what is not needed",
        )
    if size + desk.config.min_free_mb * MEGABYTE > facts.free:
        return Wait(f"the disk has too little room for {size} bytes and min_free_mb = {desk.config.min_free_mb}")
    return Take(transfer, rule, plain)


def _rule_for(transfer: Transfer, config: PartyConfig) -> CollectionRule:
    """The collection, if it takes files of these names from this sender."""
    rule = config.rule(transfer.collection)
    if rule is None or transfer.sender not in rule.senders:  # the same words: who is not in it need not know whether it exists
        raise NotAllowed(
            f"{transfer.sender} may not send to a collection {transfer.collection}", hint=SENDERS_NAME.format(transfer.party)
        )
    for file in transfer.files:
        if rule.pattern_of(transfer.sender, file.name) is None:
            raise NotAllowed(
                f"{rule.name} does not take a file of the name {file.name} from {transfer.sender}",
                hint=f"it takes {', '.join(rule.senders[transfer.sender])}",
            )
    return rule


def _check_list(transfer: Transfer, plain: Mapping[str, PlainFile]) -> None:
    """The sealed list names the same files, and no plaintext is longer than its ciphertext."""
    if sorted(plain) != sorted(file.name for file in transfer.files):
        raise NotAllowed("the sealed list names other files than the manifest", hint=NEW_ID)
    if len({fold(name) for name in plain}) != len(plain):
        raise NotAllowed("two files have the same name but for case or accents", hint="name them differently")
    for file in transfer.files:
        if plain[file.name].size > file.size:
            raise NotAllowed(f"{file.name} would be longer in clear than it is encrypted", hint=NEW_ID)


def _check_sizes(transfer: Transfer, rule: CollectionRule, plain: Mapping[str, PlainFile]) -> None:
    if len(transfer.files) > rule.max_files:
        raise NotAllowed(
            f"has {len(transfer.files)} files; {rule.name} takes {rule.max_files} at a time", hint="send fewer at once"
        )
    size = sum(file.size for file in transfer.files)
    if size > rule.max_mb * MEGABYTE:
        raise NotAllowed(f"has {size} bytes; {rule.name} takes {rule.max_mb} MB at a time", hint="send less at once")


def _stored(transfer: Transfer, rule: CollectionRule, plain: Mapping[str, PlainFile]) -> int:
    return sum(space(file.size if rule.sealed else plain[file.name].size) for file in transfer.files)
