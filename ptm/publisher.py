"""The TUF repository's writer: signs and publishes what `ptm.coordinator` decides, so that a crash or a rival leaves
the old roster or the new one. The list of reviewed images (the delegated role `algorithms`) is signed by reviewers; here it
only gets its place in the snapshot.

Order: `targets/<sha256>.roster.json`, `N.targets.json`, `M.snapshot.json` (each write-once), `timestamp.json` last. A
change is decided when its `N.targets.json` is created: of two coordinators one wins, the other gets `AlreadyExists`.
What somebody left half published is published by whoever comes next (`settled`). The timestamp always has its
snapshot's version number, so publishing a state twice is harmless, and a late writer's older timestamp is found and
put right.

What it reads, it verifies as a member would (signatures, versions, hashes, and never older than this home has seen),
but for expiry: a coordinator has to be able to renew what has expired. What it does not do: judge members, or keep
keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import LengthOrHashMismatchError, UnsignedMetadataError
from tuf.api.metadata import Delegations, Metadata, MetaFile, Root, Snapshot, T, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from ptm import algorithms, layout
from ptm.envelope import MAX_DOCUMENT_BYTES, load, parse_json
from ptm.errors import (
    AlreadyExists,
    BadSignature,
    Malformed,
    MixAndMatch,
    NotFound,
    PtmError,
    Rollback,
    TooLarge,
    UntrustedRoot,
    UsageError,
)
from ptm.files import write_atomic
from ptm.model import Roster
from ptm.store.base import Store
from ptm.trust import LIMITS, ROSTER_FILE, parse_metadata, read_local, read_pinned, read_root

ROOT_DAYS = 365
TARGETS_DAYS = 90
SNAPSHOT_DAYS = 90
TIMESTAMP_DAYS = 30
MAX_ROUNDS = 5
_HASHES = ["sha256"]
_AGAIN = "another coordinator changed the registry at the same moment; run the command again"
_PRETTY = JSONSerializer(compact=False)


@dataclass(frozen=True)
class State:
    """The newest that was signed and is there, verified. `published` is the snapshot that the timestamp names; 0 and
    None: not yet written."""

    root: Root
    roster: Roster | None
    targets: Targets | None
    snapshot: Snapshot | None
    timestamp: Timestamp | None
    algorithms: MetaFile | None = None
    """The newest list of reviewed images: the one that the snapshot names, or one after it that enough reviewers signed."""

    @property
    def current(self) -> bool:
        """Does the snapshot name the newest targets and the newest list?"""
        if self.targets is None or self.snapshot is None:
            return False
        named = self.snapshot.meta
        return named["targets.json"].version == self.targets.version and named.get(algorithms.FILE) == self.algorithms

    @property
    def complete(self) -> bool:
        """Would a member see all of it?"""
        if self.snapshot is None or self.timestamp is None:
            return False
        return self.current and self.snapshot.version == self.timestamp.snapshot_meta.version

    @property
    def expiries(self) -> dict[str, datetime]:
        """When each role that is written expires."""
        files = (self.root, self.targets, self.snapshot, self.timestamp)
        return {signed.type: signed.expires for signed in files if signed is not None}


class Publisher:
    """One registry's metadata, with the key of the roles targets, snapshot and timestamp."""

    def __init__(self, store: Store, trust: Path, key: Ed25519PrivateKey) -> None:
        self._store, self._trust, self._signer = store, trust, CryptoSigner(key)

    def settled(self, now: datetime) -> State:
        """The newest state, after publishing what was left half published. Nothing is written if nothing was."""
        for _ in range(MAX_ROUNDS):
            state = self.load()
            if state.complete or state.targets is None:
                return state
            self._finish(state, now)
        raise AlreadyExists("the registry changes as fast as it is read", hint=_AGAIN)

    def publish(self, state: State, roster: Roster, now: datetime, delegations: Delegations | None = None) -> State:
        """Make this the roster (and, if given, these the delegations), and return the state after it. `AlreadyExists` if
        somebody else was first; nothing of ours is seen then."""
        body = _document(roster)
        target = TargetFile.from_data(ROSTER_FILE, body, _HASHES)
        version = state.targets.version + 1 if state.targets else 1
        targets = Targets(
            version=version,
            expires=now + timedelta(days=TARGETS_DAYS),
            targets={ROSTER_FILE: target},
            delegations=delegations or (state.targets.delegations if state.targets else None),
        )
        self._store.create(layout.trust_target(f"{target.hashes['sha256']}.{ROSTER_FILE}"), body)
        self._create(targets)
        return self.settled(now)

    def publish_algorithms(self, state: State, signed: Metadata[Targets], now: datetime) -> State:
        """Make this the list of reviewed images, and return the state after it. `AlreadyExists` if somebody else was first."""
        before = algorithms.images_of(algorithms.listed(self._store, state.algorithms).signed) if state.algorithms else ()
        for image in set(algorithms.images_of(signed.signed)) - set(before):
            folder, _, name = image.path.rpartition("/")
            key = layout.trust_target(f"{folder}/{image.target.hashes['sha256']}.{name}")
            self._store.create(key, image.record)
        file = f"{signed.signed.version}.{algorithms.FILE}"
        try:
            self._store.create(layout.trust_metadata(file), signed.to_bytes(_PRETTY))
        except AlreadyExists as e:
            raise AlreadyExists(f"{file} was written by somebody else meanwhile", hint=_AGAIN) from e
        return self.settled(now)

    def renew(self, state: State, now: datetime) -> State:
        """Publish the same again with later expiries: snapshot and timestamp always, targets once half of their life
        is over."""
        if state.targets is None or state.roster is None:
            raise NotFound("the registry was never finished", hint="run `ptm registry create` again")
        if state.targets.expires - now < timedelta(days=TARGETS_DAYS / 2):
            return self.publish(state, state.roster, now)
        self._finish(state, now, renew=True)
        return self.settled(now)

    def load(self) -> State:
        """The newest state in the store, published or not. Raises as a member's refresh would, but not for expiry."""
        root = self._newest_root()
        self._check_own_key(root)
        timestamp = self._published(root)
        snapshot = self._newest(root, Snapshot, timestamp.snapshot_meta if timestamp else None)
        self._check_not_older(root, snapshot)
        meta = snapshot.meta["targets.json"] if snapshot else None
        targets = self._newest(root, Targets, meta)
        reviewed = self._algorithms(targets, snapshot.meta.get(algorithms.FILE) if snapshot else None)
        return State(root, self._roster(targets) if targets else None, targets, snapshot, timestamp, reviewed)

    def _finish(self, state: State, now: datetime, *, renew: bool = False) -> None:
        """Snapshot (if it does not name the newest targets) and timestamp."""
        if state.targets is None:
            raise ValueError("nothing to publish")
        snapshot = state.snapshot
        if renew or snapshot is None or not state.current:
            meta = {"targets.json": _meta(state.targets.version, self._get(_file(state.targets)))}
            snapshot = Snapshot(
                version=snapshot.version + 1 if snapshot else 1,
                expires=now + timedelta(days=SNAPSHOT_DAYS),
                meta=meta if state.algorithms is None else meta | {algorithms.FILE: state.algorithms},
            )
            self._create(snapshot)
        named = _meta(snapshot.version, self._get(_file(snapshot)))
        timestamp = Timestamp(version=snapshot.version, expires=now + timedelta(days=TIMESTAMP_DAYS), snapshot_meta=named)
        body = self._sign(timestamp)
        self._store.put(layout.trust_metadata("timestamp.json"), body)
        write_atomic(self._trust / "timestamp.json", body, mode=0o600)

    def _create(self, signed: T) -> None:
        try:
            self._store.create(layout.trust_metadata(_file(signed)), self._sign(signed))
        except AlreadyExists as e:
            raise AlreadyExists(f"{_file(signed)} was written by somebody else meanwhile", hint=_AGAIN) from e

    def _sign(self, signed: T) -> bytes:
        metadata = Metadata[T](signed)
        metadata.sign(self._signer)
        return metadata.to_bytes(_PRETTY)

    def _newest_root(self) -> Root:
        """From the pinned root along the chain of rotations; each signed by the one before it and by itself
        (specification, 5.3)."""
        metadata = newest_root(self._store, self._trust)
        if (self._trust / "root.json").exists() and read_local(self._trust, Root).signed.version > metadata.signed.version:
            raise Rollback("the registry hides a root that this home has seen")
        return metadata.signed

    def _check_own_key(self, root: Root) -> None:
        if self._signer.public_key.keyid not in root.roles[Targets.type].keyids:
            raise BadSignature(
                "keys/roles.pem of this home is not the key that the registry's root names",
                hint="is --home the coordinator's, and the URL right?",
            )

    def _published(self, root: Root) -> Timestamp | None:
        try:
            return self._verified(root, Timestamp, "timestamp.json").signed
        except NotFound:
            return None

    def _newest(self, root: Root, kind: type[T], meta: MetaFile | None) -> T | None:
        """The file that `meta` names, or the newest one after it that somebody created and nothing names yet."""
        newest: T | None = None
        if meta is not None:
            newest = self._version(root, kind, meta.version)
            _check_hashes(meta, self._get(_file(newest)), _file(newest))
        version = meta.version + 1 if meta else 1
        while self._exists(f"{version}.{kind.type}.json"):
            newest = self._version(root, kind, version)
            version += 1
        return newest

    def _algorithms(self, targets: Targets | None, named: MetaFile | None) -> MetaFile | None:
        board = algorithms.board_of(targets) if targets else None
        newest = named
        if board is not None:
            for version, body in algorithms.signed_after(self._store, board, named.version if named else 0):
                newest = _meta(version, body)
        return newest

    def _version(self, root: Root, kind: type[T], version: int) -> T:
        file = f"{version}.{kind.type}.json"
        try:
            signed = self._verified(root, kind, file).signed
        except NotFound as e:
            raise MixAndMatch(f"{file} is missing, though the registry names it") from e
        if signed.version != version:
            raise MixAndMatch(f"{file} is version {signed.version} under another's name")
        return signed

    def _check_not_older(self, root: Root, found: Snapshot | None) -> None:
        try:
            seen = read_local(self._trust, Timestamp)
            root.verify_delegate(Timestamp.type, seen.signed_bytes, seen.signatures)
        except (FileNotFoundError, Malformed, UnsignedMetadataError):
            return
        if found is None or found.version < seen.signed.snapshot_meta.version:
            raise Rollback("the registry's metadata is older than what this home has seen already")

    def _roster(self, targets: Targets) -> Roster:
        target = targets.targets[ROSTER_FILE]
        file = f"{target.hashes['sha256']}.{ROSTER_FILE}"
        try:
            body = self._store.get(layout.trust_target(file), MAX_DOCUMENT_BYTES)
        except NotFound as e:
            raise MixAndMatch(f"{file} is missing, though the registry names it") from e
        _check_hashes(target, body, file)
        parse_json(body)
        return load(Roster, body)

    def _verified(self, root: Root, kind: type[T], file: str) -> Metadata[T]:
        metadata = parse_metadata(self._get(file), kind, file)
        try:
            root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError as e:
            raise BadSignature(f"{file} is not signed with the key that the registry's root names", hint=MixAndMatch.hint) from e
        return metadata

    def _get(self, file: str) -> bytes:
        try:
            return self._store.get(layout.trust_metadata(file), LIMITS.targets_max_length)
        except TooLarge as e:
            raise MixAndMatch(f"{file} has more than {LIMITS.targets_max_length} bytes") from e

    def _exists(self, file: str) -> bool:
        try:
            self._store.head(layout.trust_metadata(file))
        except NotFound:
            return False
        return True


def newest_root(store: Store, trust: Path) -> Metadata[Root]:
    """The newest root that a chain of threshold signatures leads to from the pinned one, expired or not."""
    current = parse_metadata(read_pinned(trust), Root, "the pinned root")
    for _ in range(LIMITS.max_root_rotations):
        file = f"{current.signed.version + 1}.root.json"
        body = read_root(store, current.signed.version + 1)
        if body is None:
            return current
        following = parse_metadata(body, Root, file)
        check_root(current.signed, following, file)
        current = following
    raise UntrustedRoot(f"the registry has more than {LIMITS.max_root_rotations} roots after the pinned one")


def check_root(previous: Root | None, root: Metadata[Root], file: str) -> None:
    """`UntrustedRoot` unless the root follows the previous one and enough keys of both signed it (specification,
    5.3.4 and 5.3.5)."""
    expected = previous.version + 1 if previous else 1
    if root.signed.version != expected:
        raise MixAndMatch(f"{file} is version {root.signed.version} under another's name")
    result = root.signed.get_root_verification_result(previous, root.signed_bytes, root.signatures)
    if not result:
        raise UntrustedRoot(f"{file} is not signed by enough keys of the root before it, or of its own")


def write_root(store: Store, previous: Root | None, root: Root, keys: list[Ed25519PrivateKey]) -> bytes:
    """Sign a root with all of these keys and create it; its bytes. `UsageError` if the keys are too few, before
    anything is written."""
    metadata = Metadata(root)
    for key in keys:
        metadata.sign(CryptoSigner(key), append=True)
    file = _file(root)
    try:
        check_root(previous, metadata, file)
    except PtmError as e:
        raise UsageError(
            f"these keys are too few to sign {file}: it takes the threshold of the old root's keys and of the new one's",
            hint="name more key files with --sign-with",
        ) from e
    body = metadata.to_bytes(_PRETTY)
    try:
        store.create(layout.trust_metadata(file), body)
    except AlreadyExists as e:
        raise AlreadyExists(f"{file} was written by somebody else meanwhile", hint=_AGAIN) from e
    return body


def _file(signed: Root | Targets | Snapshot | Timestamp) -> str:
    return f"{signed.version}.{signed.type}.json"


def _meta(version: int, body: bytes) -> MetaFile:
    return MetaFile.from_data(version, body, _HASHES)


def _check_hashes(meta: MetaFile | TargetFile, body: bytes, file: str) -> None:
    try:
        meta.verify_length_and_hashes(body)
    except LengthOrHashMismatchError as e:
        raise MixAndMatch(f"{file} does not belong with the rest of the registry's metadata") from e


def _document(roster: Roster) -> bytes:
    body = roster.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"
    if len(body) > MAX_DOCUMENT_BYTES:
        raise UsageError(f"the roster would have {len(body)} bytes, more than {MAX_DOCUMENT_BYTES}", hint="use a second registry")
    return body
