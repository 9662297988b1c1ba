"""First-use approvals of images at this site: which there are, and taking one back. The command line calls this.

Works beside a running node and on any machine of the site that has its keys. A withdrawal is signed, and bound to the very
approval that it takes back; then the approval is removed. Every worker looks an approval up in the registry each time it needs
one, so the next run that needs it is asked about again. A run that was accepted before keeps its terms.

What it does not do: write the audit log, which is the node's (`ptm.node.approval` does, when it asks again); or hold against
whoever runs the bucket, who can hide the withdrawal and put the approval back. A rule in `policy.toml` holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from pydantic import ValidationError

from ptm import layout
from ptm.complaint import complaint
from ptm.errors import AlreadyExists, PtmError, UsageError
from ptm.image import parse_image
from ptm.notes import ImageApproval, ImageWithdrawal
from ptm.registry import Registry, now_utc


@dataclass(frozen=True)
class Given:
    """An image that is approved, or was: with `withdrawal`, its approval was taken back."""

    image: str
    image_digest: str
    approval: ImageApproval | None
    withdrawal: ImageWithdrawal | None = None


def given_approvals(registry: Registry) -> list[Given]:
    """Every first-use approval that counts, and every one that was taken back, by image. What is not believed is left out."""
    found: list[Given] = []
    for info in registry.store.list(layout.approvals_of(registry.me)):
        digest, withdrawn = layout.parse_approval(info.key) or ("", None)
        if withdrawn is not None:
            withdrawal = registry.withdrawal(digest, withdrawn)
            found += [Given(withdrawal.image, digest, None, withdrawal)] if withdrawal is not None else []
        elif digest:
            approval = registry.image_approval(digest)
            found += [Given(approval.image, digest, approval)] if approval is not None else []
    return sorted(found, key=lambda given: (given.image, given.image_digest, given.approval is None))


def withdrawals(registry: Registry, image_digest: str) -> list[ImageWithdrawal]:
    """Every time that an approval of this image was taken back, oldest first."""
    keys = [info.key for info in registry.store.list(layout.withdrawals_of(registry.me, image_digest))]
    ids = [found[1] for key in keys if (found := layout.parse_approval(key)) is not None and found[1] is not None]
    believed = [withdrawal for one in ids if (withdrawal := registry.withdrawal(image_digest, one)) is not None]
    return sorted(believed, key=lambda withdrawal: withdrawal.created)


def unapprove(registry: Registry, image: str, by: str, reason: str, dry_run: bool = False) -> ImageWithdrawal:
    """Take the approval of an image back; `image` is its digest, with or without a name before it. Again is no error: what was
    said first is returned. `UsageError` if it never was approved. `dry_run` writes nothing."""
    digest = _digest(image)
    given = registry.given_approval(digest)
    if given is None:
        before = withdrawals(registry, digest)
        if not before:
            _not_approved(registry, digest)
        return before[-1]
    approval, sha256 = given
    withdrawal = registry.withdrawal(digest, sha256) or _withdrawal(approval, sha256, by, reason)
    if dry_run:
        return withdrawal
    try:
        registry.store.create(layout.withdrawal(registry.me, digest, sha256), registry.sign(withdrawal))
    except AlreadyExists as e:
        there = registry.withdrawal(digest, sha256)
        if there is None:
            raise PtmError(
                "the approval could not be taken back: something else lies in its place",
                hint=f"remove {layout.withdrawal(registry.me, digest, sha256)} from the registry",
            ) from e
        withdrawal = there
    registry.store.delete(layout.approval(registry.me, digest))
    return withdrawal


def _withdrawal(approval: ImageApproval, sha256: str, by: str, reason: str) -> ImageWithdrawal:
    try:
        return ImageWithdrawal(
            registry=approval.registry,
            site=approval.site,
            image=approval.image,
            image_digest=approval.image_digest,
            approval_sha256=sha256,
            approved_by=approval.by,
            approved=approval.created,
            by=by,
            reason=reason,
            created=now_utc(),
        )
    except ValidationError as e:
        raise UsageError(f"the withdrawal is not well-formed: {complaint(e)}", hint="--by NAME and --reason TEXT") from e


def _digest(text: str) -> str:
    """`sha256:…`, or the digest of `name@sha256:…`."""
    try:
        digest = parse_image(f"any@{text}" if text.startswith("sha256:") else text).digest
    except ValueError:
        digest = None
    if digest is None:
        raise UsageError(f"{text!r} names no digest", hint="give sha256:… or name@sha256:…, as `ptm node approvals` lists them")
    return digest


def _not_approved(registry: Registry, digest: str) -> NoReturn:
    raise UsageError(f"{registry.me} has not approved {digest}", hint="`ptm node approvals` lists what is approved")
