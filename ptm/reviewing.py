"""What reviewers do: sign the next list of reviewed images, one after another, each on their own machine, through the bucket
(docs/adr/0007-reviewed-algorithms.md).

A signature that waits for others is `trust/pending/<reviewer>/<version>.<digest>.json`: TUF metadata of the whole next list
with this one signature. Who has the roles key puts m of them together and publishes (`ptm.coordinator.publish_reviewed`).

Rules:
- A reviewer signs bytes of their own making: the list in force, plus or minus the images that they named. Somebody else's
  proposal is joined only if it is exactly that. Nothing rides along.
- A list that lapsed is nobody's starting point: what shall be on the next one is named again.
- Signatures are made for one version. Of two proposals that wait at the same time, the one published first makes the other void.
- What lies in the pending folder and is not a reviewer's own, well-formed, current signature is ignored.

What it does not do: look at images, or publish.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from securesystemslib.signer import CryptoSigner, Signature
from tuf.api.metadata import Metadata, Targets
from tuf.api.serialization.json import JSONSerializer

from ptm import layout
from ptm.algorithms import MAX_IMAGES, Board, Reviewed, ReviewedImage, images_of, next_version, public_key, reviewed
from ptm.config import Home, load_profile
from ptm.envelope import MAX_DOCUMENT_BYTES
from ptm.errors import AlreadyExists, Malformed, MixAndMatch, NotAllowed, NotFound, TooLarge, UsageError
from ptm.image import parse_image
from ptm.keys import MemberKeys, load_keys
from ptm.store.base import Store
from ptm.trust import TrustedRoster, parse_metadata, refresh

LIST_DAYS = 365
MAX_PENDING = 1000
"""No more waiting signatures than this are looked at."""
_PRETTY = JSONSerializer(compact=False)


@dataclass(frozen=True)
class Proposal:
    """A next list, and who has signed it so far (names, sorted). `added` and `removed`: against the list in force."""

    metadata: Metadata[Targets]
    added: tuple[ReviewedImage, ...]
    removed: tuple[ReviewedImage, ...]
    signed_by: tuple[str, ...]
    threshold: int

    @property
    def complete(self) -> bool:
        return len(self.signed_by) >= self.threshold

    @property
    def digest(self) -> str:
        return _digest(self.metadata.signed_bytes)

    @property
    def progress(self) -> str:
        return f"{len(self.signed_by)} of {self.threshold} signatures"


@dataclass(frozen=True)
class Desk:
    """What one look at the registry showed: the list, the members, and the proposals that wait for signatures."""

    roster: TrustedRoster
    reviewed: Reviewed
    version: int
    proposals: tuple[Proposal, ...]

    @property
    def names(self) -> dict[str, str]:
        """Public key (hex) to name."""
        return {member.sign_key: member.name for member in self.roster.roster.members}


def look(store: Store, home: Home) -> Desk:
    """The list in force and what waits, verified."""
    trusted = refresh(store, home.trust, expect_registry=load_profile(home).registry_id)
    found = reviewed(store, home.trust)
    version = next_version(store, found.version)
    names = {member.sign_key: member.name for member in trusted.roster.members}
    proposals = waiting(store, found.board, names, found.images, version) if found.board else ()
    return Desk(trusted, found, version, proposals)


def approve(store: Store, home: Home, images: Sequence[str], now: datetime) -> Proposal:
    """Sign the list in force plus these images (`name@sha256:…`), as a first signature or as the next one.

    `NotAllowed` if this member is no reviewer; `AlreadyExists` if all of them are on the list, or if this member has signed
    this already."""
    wanted = [parse_reviewed(text) for text in images]
    desk = look(store, home)
    board, keys, me = _reviewer(desk, home)
    by_digest = {image.digest: image for image in desk.reviewed.images}
    for image in wanted:
        known = by_digest.setdefault(image.digest, image)
        if known != image:
            raise AlreadyExists(f"{image.digest} has the name {known.image} on the list", hint="the digest is what counts")
    if len(by_digest) == len(desk.reviewed.images) and not _aging(desk.reviewed, now):
        raise AlreadyExists(
            f"reviewed already: {', '.join(image.label for image in wanted)}", hint="`ptm algorithm list` shows the list"
        )
    return _sign(store, desk, board, keys, me, tuple(by_digest.values()), now)


def withdraw(store: Store, home: Home, images: Sequence[str], now: datetime) -> Proposal:
    """Sign the list in force without these images. It takes as many signatures as approving did. Raises as `approve` does;
    `UsageError` if an image is not on the list."""
    unwanted = {parse_reviewed(text).digest for text in images}
    desk = look(store, home)
    board, keys, me = _reviewer(desk, home)
    missing = unwanted - desk.reviewed.digests
    if missing:
        raise UsageError(
            f"not on the list of reviewed images: {', '.join(sorted(missing))}",
            hint=desk.reviewed.trouble or "`ptm algorithm list` shows the list; what merely waits for signatures is not on it",
        )
    kept = tuple(image for image in desk.reviewed.images if image.digest not in unwanted)
    return _sign(store, desk, board, keys, me, kept, now)


def parse_reviewed(text: str) -> ReviewedImage:
    """`name@sha256:…` as a person types it, a tag in between is dropped; `UsageError`."""
    try:
        ref = parse_image(text)
    except ValueError as e:
        raise UsageError(str(e), hint="give the digest that was reviewed: NAME@sha256:…") from e
    if ref.digest is None:
        raise UsageError(
            f"{text} has no digest: a tag can be moved after the review", hint="NAME@sha256:…, as `docker images --digests` shows"
        )
    if len(ref.name) > 300:
        raise UsageError(f"{text[:60]}… is too long a name", hint="at most 300 characters")
    return ReviewedImage(image=ref.name, digest=ref.digest)


def waiting(
    store: Store, board: Board, names: Mapping[str, str], current: tuple[ReviewedImage, ...], version: int
) -> tuple[Proposal, ...]:
    """The proposals for this version with at least one reviewer's signature, those with the most signatures first."""
    reviewers = {names[key]: key for key in board.keys if key in names}
    found: dict[str, tuple[Metadata[Targets], dict[str, Signature]]] = {}
    for count, info in enumerate(store.list(layout.PENDING)):
        key = layout.parse_pending(info.key)
        if count >= MAX_PENDING:
            break
        if key is None or key.version != version or key.member not in reviewers:
            continue
        metadata = _partial(store, key)
        if metadata is None:
            continue
        keyid = public_key(reviewers[key.member]).keyid
        signature = metadata.signatures.get(keyid)
        if signature and board.signers(metadata.signed_bytes, {keyid: signature}):
            _, signatures = found.setdefault(key.digest, (metadata, {}))
            signatures[keyid] = signature
    proposals = [_proposal(board, names, current, metadata.signed, signatures) for metadata, signatures in found.values()]
    return tuple(sorted(proposals, key=lambda one: (-len(one.signed_by), one.digest)))


def _partial(store: Store, key: layout.PendingKey) -> Metadata[Targets] | None:
    """What lies at a pending key, if it is a list of the shape that we would make, under its own digest."""
    try:
        metadata = parse_metadata(store.get(key.key, MAX_DOCUMENT_BYTES), Targets, key.key)
        ours = _list(key.version, images_of(metadata.signed), metadata.signed.expires)
    except (NotFound, TooLarge, Malformed, MixAndMatch):
        return None
    payload = metadata.signed_bytes
    return metadata if Metadata(ours).signed_bytes == payload and _digest(payload) == key.digest else None


def _proposal(
    board: Board,
    names: Mapping[str, str],
    current: Iterable[ReviewedImage],
    signed: Targets,
    signatures: dict[str, Signature],
) -> Proposal:
    metadata = Metadata(signed, signatures)
    images = images_of(signed)
    signers = board.signers(metadata.signed_bytes, signatures)
    return Proposal(
        metadata,
        added=tuple(image for image in images if image not in set(current)),
        removed=tuple(image for image in current if image not in set(images)),
        signed_by=tuple(sorted(names[key] for key in signers)),
        threshold=board.threshold,
    )


def _sign(
    store: Store, desk: Desk, board: Board, keys: MemberKeys, me: str, images: tuple[ReviewedImage, ...], now: datetime
) -> Proposal:
    """Join the proposal that is exactly this list, or begin one."""
    if len(images) > MAX_IMAGES:
        raise UsageError(f"the list would have {len(images)} images, more than {MAX_IMAGES}", hint="withdraw what nobody uses")
    latest = now + timedelta(days=LIST_DAYS + 1)
    same = [
        p
        for p in desk.proposals
        if set(images_of(p.metadata.signed)) == set(images) and now < p.metadata.signed.expires <= latest
    ]
    if same and me in same[0].signed_by:
        hint = (
            "the coordinator publishes it: `ptm algorithm publish`" if same[0].complete else "other reviewers have to sign it too"
        )
        raise AlreadyExists(f"{me} has signed this already: {same[0].progress}", hint=hint)
    expires = same[0].metadata.signed.expires if same else now + timedelta(days=LIST_DAYS)
    metadata = Metadata(_list(desk.version, images, expires))
    metadata.sign(CryptoSigner(keys.signing))
    digest = _digest(metadata.signed_bytes)
    key = layout.pending(me, desk.version, digest)
    try:
        store.create(key, metadata.to_bytes(_PRETTY))
    except AlreadyExists as e:
        raise AlreadyExists(
            f"somebody put something else at {key}", hint="ask the bucket's owner to remove it, then sign again"
        ) from e
    signatures = (same[0].metadata.signatures if same else {}) | metadata.signatures
    return _proposal(board, desk.names, desk.reviewed.images, metadata.signed, signatures)


def _list(version: int, images: Iterable[ReviewedImage], expires: datetime) -> Targets:
    """The one way that a list is written, so that reviewers of the same opinion sign the same bytes."""
    return Targets(version=version, expires=expires, targets={image.path: image.target for image in images})


def _reviewer(desk: Desk, home: Home) -> tuple[Board, MemberKeys, str]:
    keys, me = load_keys(home.keys), load_profile(home).member
    board = desk.reviewed.board
    if board is None or keys.sign_key not in board.keys:
        raise NotAllowed(
            f"{me} is not a reviewer of this registry", hint=f"the coordinator decides: `ptm registry reviewers --add {me}`"
        )
    return board, keys, me


def _aging(standing: Reviewed, now: datetime) -> bool:
    """Is half of the list's life over, so that signing the same again makes sense?"""
    return standing.expires is not None and standing.expires - now < timedelta(days=LIST_DAYS / 2)


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
