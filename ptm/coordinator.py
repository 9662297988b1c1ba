"""What a coordinator does: make a registry, admit and revoke members, name reviewers, publish what they signed, renew, and
rotate the root.

Rules:
- Every change starts from the newest verified state and is published whole (`ptm.publisher`); a command that was
  interrupted is given again, and finishes the job.
- The root keys sign roots only. The key `keys/roles.pem` signs targets, snapshot and timestamp; who has it is a
  coordinator, on as many machines as it is copied to.
- `now` comes from the caller: expiries are counted from it.

What it does not do: change the roles key (that takes a second registry for now), or delete old metadata.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Metadata, Role, Root, Snapshot, Targets, Timestamp

from ptm import layout, reviewing
from ptm.admission import already_member, check_request
from ptm.algorithms import MAX_REVIEWERS, Board, approved, board_of, next_version
from ptm.complaint import unknown_member
from ptm.config import Home, Profile, load_profile, save_profile
from ptm.enrolment import filled, member_keys
from ptm.errors import AlreadyExists, KeyFileError, NotAllowed, NotFound, UsageError
from ptm.files import private_folder
from ptm.keys import MemberKeys, load_signing_key, write_signing_key
from ptm.model import Member, MemberRequest, Roster
from ptm.publisher import ROOT_DAYS, Publisher, State, newest_root, write_root
from ptm.reviewing import Proposal
from ptm.store.base import Store
from ptm.trust import fingerprint_of, locked, parse_metadata, pin_root, read_root

ROOT_KEY = "root.pem"
ROLES_KEY = "roles.pem"
FORMAT = "ptm-registry@1"
_READ_ME = (
    "A registry of ptm. Members put signed, encrypted files here; `ptm --help` reads them. "
    "The registry id that counts is the one in trust/."
)
_ROLES = (Targets.type, Snapshot.type, Timestamp.type)


def _ignore(member: Member) -> None:
    """The caller does not ask."""


def create_registry(
    store: Store,
    home: Home,
    *,
    name: str,
    organisation: str,
    root_keys: Sequence[Path],
    threshold: int,
    now: datetime,
    member_name: str = "coordinator",
) -> str:
    """Make a registry, with this home as its coordinator; the fingerprint of its root. Key files that are not there are made.

    `AlreadyExists` if there is a registry, or another home's unfinished one: nothing is changed. After a crash the
    same call finishes what it began."""
    _check_vacant(store)
    paths = list(root_keys) or [home.keys / ROOT_KEY]
    if not 1 <= threshold <= len(paths):
        raise UsageError(
            f"a threshold of {threshold} with {len(paths)} root key(s) can never be met", hint="name more --root-key files"
        )
    _check_home(store, home)
    private_folder(home.keys)
    keys = [_load_or_make(path) for path in paths]
    roles, own = _load_or_make(home.keys / ROLES_KEY), member_keys(home)
    first = _first_roster(name, member_name, organisation, own, now)
    root = _first_root(keys, roles, threshold, now)
    fingerprint = fingerprint_of(_create_or_adopt(store, root, keys))
    pin_root(store, home.trust, fingerprint)
    with locked(home.trust):
        publisher = Publisher(store, home.trust, roles)
        state = publisher.settled(now)
        if state.roster is None:
            state = publisher.publish(state, first, now)
    roster = _roster(state)
    save_profile(home, _profile(store, roster, own, fingerprint))
    marker = {"format": FORMAT, "registry": roster.registry, "read_me": _READ_ME}
    store.create(layout.MARKER, json.dumps(marker, indent=2).encode() + b"\n")
    return fingerprint


def admit(
    store: Store,
    home: Home,
    requests: Sequence[MemberRequest],
    now: datetime,
    known: Callable[[Member], None] = _ignore,
) -> list[Member]:
    """Put members into the roster, all or none; their lines of it, in the requests' order. `known` hears of those in it before.

    Raises what `ptm.admission.check_request` raises. The requests' signatures were checked by
    `envelope.verify_request`, and who they are by a person."""
    with locked(home.trust):
        publisher = _publisher(store, home)
        state = publisher.settled(now)
        roster = before = _roster(state)
        reserved = frozenset(str(key.keyval["public"]) for key in state.root.keys.values())
        lines = []
        for request in requests:
            member = already_member(request, roster)
            if member is not None:
                known(member)
            else:
                check_request(request, roster, reserved)
                member = Member(**request.model_dump(exclude={"type", "created"}), admitted=now)
                roster = roster.model_copy(update={"members": (*roster.members, member)})
            lines.append(member)
        if roster != before:
            publisher.publish(state, roster, now)
    return lines


def revoke(store: Store, home: Home, names: Sequence[str], now: datetime) -> list[Member]:
    """Revoke members, all or none; their lines of the roster. One that was revoked before stays as it is. Who was a
    reviewer is none any more: a list that lives on their signature lapses, until enough of the others have signed again.
    `UsageError` for an unknown name, `NotAllowed` for oneself."""
    me = load_profile(home).member
    with locked(home.trust):
        publisher = _publisher(store, home)
        state = publisher.settled(now)
        roster = _roster(state)
        _check_known(names, roster)
        if me in names:
            raise NotAllowed(f"{me} is this home itself", hint="let another coordinator do it")
        members = tuple(
            m.model_copy(update={"revoked": now}) if m.name in names and m.revoked is None else m for m in roster.members
        )
        if members != roster.members:
            after = roster.model_copy(update={"members": members})
            gone = {member.sign_key for member in members if member.revoked is not None}
            board = _board(state)
            keys = tuple(key for key in board.keys if key not in gone) if board else ()
            left = Board(keys, board.threshold).delegations() if board else None
            publisher.publish(state, after, now, left)
    return [member for member in members if member.name in names]


def renew(store: Store, home: Home, now: datetime) -> dict[str, datetime]:
    """Sign the same roster again, so that it lives on; also after it expired. A list of reviewed images that has its
    signatures is published on the way. When each role expires now (the root is not renewed by this: `rotate_root`)."""
    with locked(home.trust):
        publisher = _publisher(store, home)
        state, _ = _publish_reviewed(store, publisher, publisher.settled(now), now)
        return publisher.renew(state, now).expiries


def set_reviewers(
    store: Store, home: Home, *, add: Sequence[str], remove: Sequence[str], threshold: int | None, now: datetime
) -> tuple[tuple[str, ...], int]:
    """Say which members review images, and how many of them have to sign; names and threshold as they are then.

    `NotAllowed` for a revoked member, `UsageError` for an unknown name and for a threshold that can never be met. A list that
    does not have the signatures that it takes from now on lapses, until it has been signed again."""
    with locked(home.trust):
        publisher = _publisher(store, home)
        state = publisher.settled(now)
        roster = _roster(state)
        before = _board(state) or Board((), 0)
        active = {member.name: member.sign_key for member in roster.members if member.revoked is None}
        names = {key: name for name, key in active.items()}
        _check_known(add, roster)
        revoked = sorted(set(add) - set(active))
        if revoked:
            raise NotAllowed(f"{', '.join(revoked)}: not an active member", hint="`ptm member list` shows the members")
        absent = sorted(set(remove) - {names[key] for key in before.keys if key in names})
        if absent:
            raise UsageError(f"{', '.join(absent)}: not a reviewer", hint="`ptm registry reviewers` shows who is")
        unwanted = {active[name] for name in remove}
        chosen = dict.fromkeys((*before.keys, *(active[name] for name in add)))
        keys = tuple(key for key in chosen if key in names and key not in unwanted)
        board = Board(keys, before.threshold if threshold is None else threshold)
        if not 1 <= board.threshold <= len(keys) <= MAX_REVIEWERS:
            raise UsageError(
                f"a threshold of {board.threshold} with {len(keys)} reviewer(s) does not work",
                hint=f"1 <= threshold <= reviewers <= {MAX_REVIEWERS}; see --threshold",
            )
        if board != before:
            publisher.publish(state, roster, now, board.delegations())
    return tuple(names[key] for key in board.keys), board.threshold


def publish_reviewed(store: Store, home: Home, now: datetime) -> Proposal | None:
    """Publish the next list of reviewed images if enough reviewers have signed it; None if there is none such."""
    with locked(home.trust):
        publisher = _publisher(store, home)
        return _publish_reviewed(store, publisher, publisher.settled(now), now)[1]


def is_coordinator(home: Home) -> bool:
    """Has this home the key that publishes?"""
    return (home.keys / ROLES_KEY).exists()


def _board(state: State) -> Board | None:
    return board_of(state.targets) if state.targets else None


def _publish_reviewed(store: Store, publisher: Publisher, state: State, now: datetime) -> tuple[State, Proposal | None]:
    board = _board(state)
    if board is None:
        return state, None
    named = state.algorithms
    names = {member.sign_key: member.name for member in _roster(state).members}
    current = approved(store, board, named, now)
    version = next_version(store, named.version if named else 0)
    for proposal in reviewing.waiting(store, board, names, current, version):
        if proposal.complete and proposal.metadata.signed.expires > now:
            after = publisher.publish_algorithms(state, proposal.metadata, now)
            if after.algorithms is None or after.algorithms.version < version:
                raise AlreadyExists("the reviewers were changed at the same moment", hint="run the command again")
            return after, proposal
    return state, None


def rotate_root(
    store: Store,
    home: Home,
    *,
    add: Sequence[Path],
    remove: Sequence[str | Path],
    threshold: int | None,
    sign_with: Sequence[Path],
    now: datetime,
) -> str:
    """Publish the next root, with other keys, another threshold, or only a later expiry; its fingerprint.

    `add`: private key files, made if they are not there. `remove`: key files or key ids (or their first 8 or more hex
    digits). It is signed with all keys of `add`, and of `sign_with` or else `keys/root.pem`; those must reach the
    threshold of the old root and of the new one."""
    with locked(home.trust):
        old = newest_root(store, home.trust).signed
        added = [_load_or_make(path) for path in add]
        signing = [load_signing_key(path) for path in sign_with or _own_root_key(home)]
        new = Root.from_dict(json.loads(json.dumps(old.to_dict())))
        for keyid in {_find_key(old, given) for given in remove}:
            new.revoke_key(keyid, Root.type)
        for key in added:
            new.add_key(_public(key), Root.type)
        role = new.roles[Root.type]
        role.threshold = role.threshold if threshold is None else threshold
        if not 1 <= role.threshold <= len(role.keyids):
            raise UsageError(
                f"a threshold of {role.threshold} with {len(role.keyids)} root key(s) can never be met", hint="see --threshold"
            )
        new.version, new.expires = old.version + 1, now + timedelta(days=ROOT_DAYS)
        wanted = {*old.roles[Root.type].keyids, *role.keyids}
        signers = {_public(key).keyid: key for key in (*signing, *added) if _public(key).keyid in wanted}
        return fingerprint_of(write_root(store, old, new, list(signers.values())))


def _check_vacant(store: Store) -> None:
    try:
        store.head(layout.MARKER)
    except NotFound:
        return
    raise AlreadyExists(
        f"there is a registry at {store.url}", hint="choose another prefix or folder; `ptm registry show` shows your own"
    )


def _check_home(store: Store, home: Home) -> None:
    """A home is of one registry. One whose creation was interrupted may go on."""
    if not home.profile.exists():
        return
    body = read_root(store, 1)
    if body is None or fingerprint_of(body) != load_profile(home).root_fingerprint:
        raise UsageError(f"{home.path} has joined a registry already", hint="use another --home")


def _first_roster(name: str, member_name: str, organisation: str, own: MemberKeys, now: datetime) -> Roster:
    me = filled(
        Member,
        name=member_name,
        kind="coordinator",
        organisation=organisation,
        sign_key=own.sign_key,
        age_key=own.age_key,
        admitted=now,
    )
    return filled(Roster, registry=str(uuid.uuid4()), name=name, members=(me,))


def _first_root(keys: Sequence[Ed25519PrivateKey], roles: Ed25519PrivateKey, threshold: int, now: datetime) -> Root:
    root = Root(version=1, expires=now + timedelta(days=ROOT_DAYS), consistent_snapshot=True)
    for key in keys:
        root.add_key(_public(key), Root.type)
    for role in _ROLES:
        root.add_key(_public(roles), role)
    root.roles[Root.type].threshold = threshold
    if len(root.roles[Root.type].keyids) != len(keys):
        raise UsageError("two of the root keys are the same key", hint="name each --root-key once")
    return root


def _create_or_adopt(store: Store, root: Root, keys: list[Ed25519PrivateKey]) -> bytes:
    """Write the first root, or go on with the one that the same keys wrote before a crash."""
    body = read_root(store, 1)
    if body is None:
        try:
            return write_root(store, None, root, keys)
        except AlreadyExists:
            body = read_root(store, 1)
    found = parse_metadata(body or b"", Root, "1.root.json")
    if _who(found) != _who(Metadata(root)):
        raise AlreadyExists(
            f"there is an unfinished registry with other keys at {store.url}",
            hint="choose another prefix or folder, or remove its trust/ first",
        )
    return body or b""


def _who(root: Metadata[Root]) -> dict[str, tuple[frozenset[str], int]]:
    roles: dict[str, Role] = root.signed.roles
    return {name: (frozenset(role.keyids), role.threshold) for name, role in roles.items()}


def _publisher(store: Store, home: Home) -> Publisher:
    path = home.keys / ROLES_KEY
    if not is_coordinator(home):
        raise KeyFileError(f"{home.path} is not a coordinator's home: it has no keys/{ROLES_KEY}", hint="is --home right?")
    return Publisher(store, home.trust, load_signing_key(path))


def _check_known(names: Sequence[str], roster: Roster) -> None:
    unknown = sorted(set(names) - {member.name for member in roster.members})
    if unknown:
        raise unknown_member(unknown, (member.name for member in roster.members if member.revoked is None))


def _roster(state: State) -> Roster:
    if state.roster is None:
        raise NotFound("the registry was never finished", hint="run `ptm registry create` again")
    return state.roster


def _profile(store: Store, roster: Roster, own: MemberKeys, fingerprint: str) -> Profile:
    for member in roster.members:
        if member.sign_key == own.sign_key:
            return Profile(
                registry=store.url,
                registry_id=roster.registry,
                member=member.name,
                kind=member.kind,
                root_fingerprint=fingerprint,
            )
    raise AlreadyExists(f"the unfinished registry at {store.url} is another member's", hint="use the --home that began it")


def _load_or_make(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        private_folder(path.parent)
        write_signing_key(path, Ed25519PrivateKey.generate())
    return load_signing_key(path)


def _own_root_key(home: Home) -> list[Path]:
    path = home.keys / ROOT_KEY
    return [path] if path.exists() else []


def _public(key: Ed25519PrivateKey | Ed25519PublicKey) -> SSlibKey:
    return SSlibKey.from_crypto(key.public_key() if isinstance(key, Ed25519PrivateKey) else key)


def _find_key(root: Root, given: str | Path) -> str:
    """A root key's id, from the id, its beginning, or the key's file."""
    keyids = root.roles[Root.type].keyids
    text = str(given)
    wanted = _public(load_signing_key(Path(given))).keyid if Path(given).exists() else text
    found = [keyid for keyid in keyids if len(wanted) >= 8 and keyid.startswith(wanted)]
    if len(found) != 1:
        raise UsageError(f"{text} is not one of the root's keys", hint="`ptm registry show` lists their ids")
    return found[0]
