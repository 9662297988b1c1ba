"""Which images the registry's reviewers have approved: the TUF delegated role `algorithms`, read from nothing but verified
metadata (docs/adr/0007-reviewed-algorithms.md).

The registry's targets delegate `algorithms/*` to the reviewers: members whom the coordinator named, m of whom have to
sign. Each target of the role is one image: its path has the image's digest, its `custom` part the name for people.

Rules:
- What counts is what m reviewers of *now* signed and what has not expired. A list that lapsed (a reviewer was revoked, the
  threshold raised, a year went by) counts for nothing, and says why: `Reviewed.trouble`.
- What was tampered with is no lapsed list but an error, as for the roster: the snapshot names the list's very bytes.
- Decided by digest only. A name is for people; another name for the same bytes is the same image.

What it does not do: propose, sign or publish (`ptm.reviewing`), or judge a task (`ptm.node.policy`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AfterValidator, Field, ValidationError
from securesystemslib.signer import Key, Signature, SSlibKey
from tuf.api.exceptions import ExpiredMetadataError, LengthOrHashMismatchError, UnsignedMetadataError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Snapshot, TargetFile, Targets

from ptm import layout
from ptm.envelope import MAX_DOCUMENT_BYTES
from ptm.errors import Malformed, MixAndMatch, NotFound, TooLarge
from ptm.image import parse_image
from ptm.model import Frozen, ImageDigest, format_time
from ptm.store.base import Store
from ptm.trust import parse_metadata, read_local, updated

ROLE = "algorithms"
FILE = f"{ROLE}.json"
MAX_IMAGES = 2000
MAX_REVIEWERS = 64
MAX_SKIPPED = 64
"""The most files in a row after the published one that are looked at and not believed."""


def _bare_name(name: str) -> str:
    if parse_image(name).name != name:
        raise ValueError("an image of the list has no tag")
    return name


class ReviewedImage(Frozen):
    """One image of the list: the name without a tag, for people, and the digest, which counts."""

    image: Annotated[str, AfterValidator(_bare_name), Field(max_length=300)]
    digest: ImageDigest

    @property
    def label(self) -> str:
        return f"{self.image}@{self.digest}"

    @property
    def path(self) -> str:
        """The target's path: `algorithms/<64 hex digits>`."""
        return f"{ROLE}/{self.digest.removeprefix('sha256:')}"

    @property
    def record(self) -> bytes:
        """The target's bytes, for other TUF clients: ptm itself reads `custom`."""
        return json.dumps(self.model_dump(), sort_keys=True).encode() + b"\n"

    @property
    def target(self) -> TargetFile:
        target = TargetFile.from_data(self.path, self.record, ["sha256"])
        target.unrecognized_fields["custom"] = self.model_dump()
        return target


@dataclass(frozen=True)
class Board:
    """Who reviews: their Ed25519 public keys (hex), and how many of them have to sign."""

    keys: tuple[str, ...]
    threshold: int

    def delegations(self) -> Delegations:
        """As the registry's targets have it."""
        keys: dict[str, Key] = {key.keyid: key for key in map(public_key, self.keys)}
        role = DelegatedRole(ROLE, list(keys), self.threshold, True, paths=[f"{ROLE}/*"])
        return Delegations(keys, {ROLE: role})

    def signers(self, payload: bytes, signatures: Mapping[str, Signature]) -> tuple[str, ...]:
        """The keys of the board that have signed these bytes."""
        judge = Targets(delegations=self.delegations())
        signed = judge.get_verification_result(ROLE, payload, dict(signatures)).signed
        return tuple(key for key in self.keys if public_key(key).keyid in signed)

    def agreed(self, signers: tuple[str, ...]) -> bool:
        return len(signers) >= self.threshold


@dataclass(frozen=True)
class Reviewed:
    """The list as it stands. `images` are approved now. `lapsed` are those listed last when nothing is approved now;
    `trouble` says why nothing is. `signed_by` are public keys (hex). `version` 0: there is no list yet."""

    images: tuple[ReviewedImage, ...] = ()
    lapsed: tuple[ReviewedImage, ...] = ()
    trouble: str | None = None
    version: int = 0
    expires: datetime | None = None
    board: Board | None = None
    signed_by: tuple[str, ...] = ()

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(image.digest for image in self.images)


def reviewed_digests(store: Store, home_trust: Path) -> frozenset[str]:
    """The digests (`sha256:…`) of the images approved now. Raises what `ptm.trust.refresh` raises."""
    return reviewed(store, home_trust).digests


def reviewed(store: Store, home_trust: Path) -> Reviewed:
    """The list of reviewed images, verified, from the newest metadata. A list that lapsed has no `images` and a `trouble`;
    one that was tampered with raises, as `ptm.trust.refresh` does."""
    with updated(store, home_trust) as updater:
        board = board_of(read_local(home_trust, Targets).signed)
        if board is None:
            return Reviewed(trouble="this registry has no reviewers")
        meta = read_local(home_trust, Snapshot).signed.meta.get(FILE)
        if meta is None:
            return Reviewed(board=board, trouble="no image has been approved yet")
        try:
            updater.get_targetinfo(f"{ROLE}/any")  # python-tuf loads a delegated role when something below it is asked for
        except (UnsignedMetadataError, ExpiredMetadataError):
            return _lapsed(board, listed(store, meta))
        return _standing(board, parse_metadata((home_trust / FILE).read_bytes(), Targets, FILE))


def board_of(targets: Targets) -> Board | None:
    """Who reviews, as verified targets say; None if nobody ever did. `Malformed` for any delegation but ptm's one."""
    if targets.delegations is None:
        return None
    roles = targets.delegations.roles or {}
    try:
        (role,) = roles.values()
        keys = tuple(str(targets.delegations.keys[keyid].keyval["public"]) for keyid in role.keyids)
        board = Board(keys, role.threshold)
        ours = board.delegations() == targets.delegations
    except (ValueError, KeyError) as e:
        raise Malformed("the registry's targets delegate something else than algorithms/") from e
    if not ours:
        raise Malformed("the registry's targets delegate something else than algorithms/")
    return board


def approved(store: Store, board: Board, meta: MetaFile | None, now: datetime) -> tuple[ReviewedImage, ...]:
    """The images of the list that a snapshot names; none if it lapsed."""
    if meta is None:
        return ()
    metadata = listed(store, meta)
    lives = board.agreed(board.signers(metadata.signed_bytes, metadata.signatures)) and metadata.signed.expires > now
    return images_of(metadata.signed) if lives else ()


def listed(store: Store, meta: MetaFile) -> Metadata[Targets]:
    """The list that a snapshot names, its hash checked, its signatures not."""
    file = f"{meta.version}.{FILE}"
    body = _read(store, meta.version)
    if body is None:
        raise MixAndMatch(f"{file} is missing, though the registry names it")
    try:
        meta.verify_length_and_hashes(body)
    except LengthOrHashMismatchError as e:
        raise MixAndMatch(f"{file} does not belong with the rest of the registry's metadata") from e
    return parse_metadata(body, Targets, file)


def signed_after(store: Store, board: Board, version: int) -> Iterator[tuple[int, bytes]]:
    """The lists after a version that lie in the store and that this board signed: version and bytes, ascending. Others are
    passed over, for anybody with access to the bucket can put them there."""
    for number in _numbers_after(store, version):
        try:
            body = _read(store, number) or b""
            metadata = parse_metadata(body, Targets, f"{number}.{FILE}")
            images_of(metadata.signed)
        except (Malformed, MixAndMatch):
            continue
        if metadata.signed.version == number and board.agreed(board.signers(metadata.signed_bytes, metadata.signatures)):
            yield number, body


def next_version(store: Store, version: int) -> int:
    """The number that the next list after this version gets: the first that nobody has taken."""
    return max(_numbers_after(store, version), default=version) + 1


def images_of(targets: Targets) -> tuple[ReviewedImage, ...]:
    """The images of a list, by name and digest. `Malformed` if a target is not exactly as `ReviewedImage.target` makes it."""
    found = []
    for path, target in targets.targets.items():
        try:
            image = ReviewedImage.model_validate(target.custom)
        except ValidationError as e:
            raise Malformed(f"{path[:100]!r} in the list of reviewed images is not an image") from e
        if (image.path, image.target) != (path, target):
            raise Malformed(f"{path[:100]!r} in the list of reviewed images is not what it says")
        found.append(image)
    return tuple(sorted(found, key=lambda image: (image.image, image.digest)))


def public_key(sign_key: str) -> SSlibKey:
    """A member's Ed25519 public key (hex), as TUF has it."""
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(sign_key)))


def _standing(board: Board, metadata: Metadata[Targets]) -> Reviewed:
    return Reviewed(
        images=images_of(metadata.signed),
        version=metadata.signed.version,
        expires=metadata.signed.expires,
        board=board,
        signed_by=board.signers(metadata.signed_bytes, metadata.signatures),
    )


def _lapsed(board: Board, metadata: Metadata[Targets]) -> Reviewed:
    was = _standing(board, metadata)
    trouble = f"the list of reviewed images has {len(was.signed_by)} of {board.threshold} signatures of today's reviewers"
    if board.agreed(was.signed_by):
        trouble = f"the list of reviewed images expired on {format_time(metadata.signed.expires)}"
    return replace(was, images=(), lapsed=was.images, trouble=trouble)


def _numbers_after(store: Store, version: int) -> Iterator[int]:
    for number in range(version + 1, version + 1 + MAX_SKIPPED):
        try:
            store.head(layout.trust_metadata(f"{number}.{FILE}"))
        except NotFound:
            return
        yield number


def _read(store: Store, version: int) -> bytes | None:
    file = f"{version}.{FILE}"
    try:
        return store.get(layout.trust_metadata(file), MAX_DOCUMENT_BYTES)
    except NotFound:
        return None
    except TooLarge as e:
        raise MixAndMatch(f"{file} has more than {MAX_DOCUMENT_BYTES} bytes") from e
