"""What a member believes: the roster, read from nothing but verified TUF targets (design, section 5;
docs/adr/0003-why-tuf.md).

A member pins one root by its fingerprint, once. From then on `refresh` follows the TUF client workflow (specification
1.0, section 5) with python-tuf's Updater over a store, and keeps what it has verified in the home's `trust/` folder,
so that nothing older is ever believed again.

Rules:
- The fingerprint is the SHA-256 of a root file's bytes, 64 hex digits: `sha256sum trust/metadata/1.root.json` shows
  the same. Nothing is parsed before it matches.
- Each attack has its own error: `UntrustedRoot`, `Rollback`, `Frozen`, `ExpiredTimestamp`, `MixAndMatch`,
  `BadSignature`, `Malformed`.
- Only a missing next root means "no newer root". A store that denies or does not answer is `AccessDenied` or
  `Unreachable`, as itself.
- Time is read once per refresh, by python-tuf. Processes and threads that share a home take turns (`locked`).

What it does not do: write to the registry (`ptm.publisher`), or decide what a member may do.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, T, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from ptm import layout
from ptm.complaint import unknown_member
from ptm.envelope import MAX_DOCUMENT_BYTES, load, parse_json
from ptm.errors import (
    BadSignature,
    ExpiredTimestamp,
    Frozen,
    Malformed,
    MixAndMatch,
    NotAllowed,
    NotForUs,
    NotFound,
    PtmError,
    Rollback,
    StoreError,
    TooLarge,
    TrustError,
    UntrustedRoot,
    UsageError,
)
from ptm.files import hold_lock, private_folder, write_atomic
from ptm.model import Member, Roster, format_time
from ptm.store.base import Store

LIMITS = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=1,
    root_max_length=64 * 1024,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=64 * 1024,
    targets_max_length=64 * 1024,
)
"""The most that is read before it is verified. The roster itself is a document, of at most `MAX_DOCUMENT_BYTES`."""
ROSTER_FILE = "roster.json"
PINNED_FILE = "pinned.root.json"
LOCK_FILE = "lock"


@dataclass(frozen=True)
class TrustedRoster:
    """A roster that came out of verified targets. `version` is the targets' version; `expires` the earliest of the
    four roles' expiries."""

    roster: Roster
    version: int
    expires: datetime

    @property
    def registry(self) -> str:
        return self.roster.registry

    @functools.cached_property
    def _by_name(self) -> dict[str, Member]:
        return {member.name: member for member in self.roster.members}

    def member(self, name: str) -> Member | None:
        """A member, also a revoked one."""
        return self._by_name.get(name)

    def active(self, name: str) -> Member:
        """A member who may act now; `NotAllowed` says whether they are unknown or revoked."""
        member = self.member(name)
        if member is None:
            raise NotAllowed(f"{name} is not a member of this registry", hint="`ptm member list` shows the members")
        if member.revoked is not None:
            raise NotAllowed(f"{name} was revoked on {format_time(member.revoked)}", hint="ask the coordinator")
        return member

    def named(self, name: str) -> Member:
        """The same for a name that a person typed: if nobody has it, that is a slip of the pen, `UsageError`."""
        if self.member(name) is None:
            raise unknown_member([name], (m.name for m in self.roster.members if m.revoked is None))
        return self.active(name)


@dataclass(frozen=True)
class RootState:
    """What is trusted at the moment, for people to look at."""

    version: int
    fingerprint: str
    threshold: int
    keyids: tuple[str, ...]
    expires: dict[str, datetime]


def fingerprint_of(root: bytes) -> str:
    """The fingerprint of a root file: SHA-256 of its bytes, hex."""
    return hashlib.sha256(root).hexdigest()


def parse_fingerprint(text: str) -> str:
    """A fingerprint as a person may type it (upper case, spaces, colons) in its one spelling; `UsageError`."""
    plain = re.sub(r"[\s:]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", plain, re.ASCII):
        raise UsageError(
            f"{text[:80]!r} is not a root fingerprint: it has 64 hex digits",
            hint="`ptm registry show` prints it at the coordinator's",
        )
    return plain


def pin_root(store: Store, home_trust: Path, fingerprint: str) -> None:
    """Find the root with this fingerprint, from version 1 upward, and make it this home's anchor.

    `NotFound` if the store holds no root at all, `UntrustedRoot` if none of its roots is the one; nothing is changed then.
    """
    wanted = parse_fingerprint(fingerprint)
    version = 0
    for version in range(1, LIMITS.max_root_rotations + 2):
        body = read_root(store, version)
        if body is None:
            break
        if fingerprint_of(body) == wanted:
            _check_self_signed(body)
            with locked(home_trust):
                write_atomic(home_trust / PINNED_FILE, body, mode=0o600)
            return
    if version == 1:
        raise NotFound(f"there is no registry at {store.url}", hint="check the URL, its prefix included")
    raise UntrustedRoot(f"none of the roots of {store.url} has the fingerprint {wanted}")


def refresh(store: Store, home_trust: Path, *, expect_registry: str | None = None) -> TrustedRoster:
    """The newest roster, verified. Raises `TrustError` and other `VerificationError`s for what must not be believed,
    `StoreError` for the store's own trouble."""
    with updated(store, home_trust) as updater:
        body = _fetch_roster(updater, home_trust)
        state = read_state(home_trust)
        version = read_local(home_trust, Targets).signed.version
    return _as_roster(body, version, min(state.expires.values()), expect_registry)


def last_roster(home_trust: Path, *, expect_registry: str) -> TrustedRoster:
    """The roster that the last `refresh` verified and left in this private folder, without asking the store; it may have
    expired since."""
    with locked(home_trust):
        targets = read_local(home_trust, Targets).signed
        try:
            body = (home_trust / ROSTER_FILE).read_bytes()
            targets.targets[ROSTER_FILE].verify_length_and_hashes(body)
        except (OSError, KeyError, LengthOrHashMismatchError) as e:
            raise MixAndMatch(f"the roster kept in {home_trust} is not whole", hint="`ptm member list` fetches it anew") from e
        expires = min(read_state(home_trust).expires.values())
    return _as_roster(body, targets.version, expires, expect_registry)


def _as_roster(body: bytes, version: int, expires: datetime, expect_registry: str | None) -> TrustedRoster:
    parse_json(body)
    trusted = TrustedRoster(load(Roster, body), version, expires)
    if expect_registry is not None and trusted.registry != expect_registry:
        raise NotForUs(
            f"the roster is of the registry {trusted.registry}, this home joined {expect_registry}", hint="was the URL changed?"
        )
    return trusted


def read_state(home_trust: Path) -> RootState:
    """What the last refresh left as trusted in this folder."""
    root = read_local(home_trust, Root).signed
    return RootState(
        version=root.version,
        fingerprint=fingerprint_of((home_trust / "root.json").read_bytes()),
        threshold=root.roles[Root.type].threshold,
        keyids=tuple(root.roles[Root.type].keyids),
        expires={
            Root.type: root.expires,
            Targets.type: read_local(home_trust, Targets).signed.expires,
            Snapshot.type: read_local(home_trust, Snapshot).signed.expires,
            Timestamp.type: read_local(home_trust, Timestamp).signed.expires,
        },
    )


@contextlib.contextmanager
def locked(home_trust: Path) -> Iterator[None]:
    """One process and thread at a time in a home's trust folder, which is made if need be."""
    private_folder(home_trust)
    with hold_lock(home_trust / LOCK_FILE, wait=True):
        yield


def read_root(store: Store, version: int) -> bytes | None:
    """A root file, not believed; None if there is none of this version."""
    file = f"{version}.root.json"
    try:
        return store.get(layout.trust_metadata(file), LIMITS.root_max_length)
    except NotFound:
        return None
    except TooLarge as e:
        raise UntrustedRoot(f"{file} has more than {LIMITS.root_max_length} bytes") from e


def read_pinned(home_trust: Path) -> bytes:
    try:
        return (home_trust / PINNED_FILE).read_bytes()
    except FileNotFoundError as e:
        raise UntrustedRoot("this home has not pinned a root", hint="`ptm join URL --root FINGERPRINT`") from e


def read_local(home_trust: Path, kind: type[T]) -> Metadata[T]:
    """Metadata that a refresh verified and kept."""
    return parse_metadata((home_trust / f"{kind.type}.json").read_bytes(), kind, f"{kind.type}.json")


def parse_metadata(body: bytes, kind: type[T], file: str) -> Metadata[T]:
    """Metadata of a role, not believed. `Malformed`, or `MixAndMatch` if it is another role's."""
    try:
        metadata = Metadata[T].from_bytes(body)
    except DeserializationError as e:
        raise Malformed(f"{file} is not TUF metadata") from e
    if metadata.signed.type != kind.type:
        raise MixAndMatch(f"{file} is {metadata.signed.type} metadata")
    return metadata


def _check_self_signed(body: bytes) -> None:
    metadata = parse_metadata(body, Root, "the root")
    try:
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as e:
        raise UntrustedRoot("the root with this fingerprint is not signed by its own keys") from e


@contextlib.contextmanager
def updated(store: Store, home_trust: Path) -> Iterator[Updater]:
    """The TUF client workflow, done for the top-level roles. The folder stays locked; python-tuf's errors come out as ours."""
    with locked(home_trust):
        pinned = read_pinned(home_trust)
        source = _StoreFetcher(store)
        with _as_our_errors(source, home_trust):
            updater = Updater(
                str(home_trust),
                layout.trust_metadata(""),
                target_base_url=layout.trust_target(""),
                fetcher=source,
                config=LIMITS,
                bootstrap=pinned,
            )
            updater.refresh()
            yield updater


def _fetch_roster(updater: Updater, home_trust: Path) -> bytes:
    info = updater.get_targetinfo(ROSTER_FILE)
    if info is None or info.length > MAX_DOCUMENT_BYTES:
        raise Malformed(f"the registry's targets have no {ROSTER_FILE} of at most {MAX_DOCUMENT_BYTES} bytes")
    kept = str(home_trust / ROSTER_FILE)
    body = Path(updater.find_cached_target(info, kept) or updater.download_target(info, kept)).read_bytes()
    info.verify_length_and_hashes(body)
    return body


class _StoreFetcher(FetcherInterface):
    """Reads a store for python-tuf: its "URLs" are keys. Remembers what was read, so that an error can be told from
    another."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.file = PINNED_FILE
        self.bodies: dict[str, bytes] = {}

    @property
    def role(self) -> str:
        """The role of the file read last: `timestamp.json` and `3.timestamp.json` are both `timestamp`."""
        return _role(self.file)

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.file = url.rpartition("/")[2]
        try:
            body = self._store.get(url, MAX_DOCUMENT_BYTES)
        except NotFound as e:
            raise DownloadHTTPError(f"{url} is not there", 404) from e
        except TooLarge as e:
            raise DownloadLengthMismatchError(f"more than {MAX_DOCUMENT_BYTES} bytes") from e
        self.bodies[self.role] = body
        return iter([body])


def _role(file: str) -> str:
    return file.removesuffix(".json").rpartition(".")[2]


@contextlib.contextmanager
def _as_our_errors(source: _StoreFetcher, home_trust: Path) -> Iterator[None]:
    try:
        yield
    except DownloadError as e:
        raise _judge_download(e, source) from e
    except ExpiredMetadataError as e:
        raise _judge_expired(source, home_trust) from e
    except RepositoryError as e:
        raise _judge_content(e, source) from e
    except OSError as e:
        raise TrustError(f"{home_trust} cannot be used: {e.strerror}", hint="check its permissions and the free space") from e


def _judge_download(error: DownloadError, source: _StoreFetcher) -> PtmError:
    if not isinstance(error, DownloadHTTPError | DownloadLengthMismatchError) and isinstance(error.__cause__, StoreError):
        return error.__cause__
    if not isinstance(error, DownloadHTTPError):
        return MixAndMatch(f"{source.file} is longer than the registry says it may be")
    if source.role == Timestamp.type:
        return NotFound(
            "there is no finished registry here: it has no timestamp.json",
            hint="check the URL; if it is right, the coordinator runs `ptm registry create` or `renew` again",
        )
    return MixAndMatch(f"{source.file} is missing, though the registry names it")


def _judge_expired(source: _StoreFetcher, home_trust: Path) -> PtmError:
    """Which of the roles it is: root first, as the workflow does (5.3.10); then the timestamp, which python-tuf may
    only find out about later."""
    now = datetime.now(UTC)
    root = read_local(home_trust, Root).signed
    if root.is_expired(now):
        return Frozen(
            f"the registry's root expired on {format_time(root.expires)}",
            hint="ask the coordinator to run `ptm registry rotate-root`",
        )
    timestamp = parse_metadata(source.bodies[Timestamp.type], Timestamp, "timestamp.json").signed
    if timestamp.is_expired(now):
        return ExpiredTimestamp(f"the registry's timestamp expired on {format_time(timestamp.expires)}")
    return Frozen(f"the registry's {source.role} metadata has expired")


def _judge_content(error: RepositoryError, source: _StoreFetcher) -> PtmError:
    file, role = source.file, source.role
    if isinstance(error, UnsignedMetadataError):
        if role == Root.type:
            return UntrustedRoot(f"{file} is not signed by enough keys of the root before it, or of its own")
        return BadSignature(f"{file} is not signed with the key that the registry's root names", hint=MixAndMatch.hint)
    if isinstance(error, DeserializationError):
        return Malformed(f"{file} is not TUF metadata", hint=MixAndMatch.hint)
    if isinstance(error, BadVersionNumberError) and _is_older(source):
        return Rollback(f"{file} is older than what this home has seen already")
    return MixAndMatch(f"{file} does not belong with the rest of the registry's metadata")


def _is_older(source: _StoreFetcher) -> bool:
    """Of a wrong version number: does the file take us back (True), or is it another file than its name says (False)?"""
    if source.role == Timestamp.type:
        return True
    if source.role != Snapshot.type:
        return False
    snapshot = parse_metadata(source.bodies[Snapshot.type], Snapshot, source.file)
    return source.file == f"{snapshot.signed.version}.{Snapshot.type}.json"
