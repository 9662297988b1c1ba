"""What a trusted party answered to outputs that a site delivered to it, for the researcher who may not see them.

A result names the transfer, its files and its manifest's digest, so exactly one receipt is the answer."""

from __future__ import annotations

from ptm.model import Delivered
from ptm.registry import Registry
from ptm.transfer import Receipt
from ptm.trustedparty.send import answer_to


def receipt_for(registry: Registry, site: str, delivered: Delivered) -> Receipt | None:
    """The party's signed answer; None if there is none yet. `StoreError`, `TrustError`, `NotAllowed` if the party is no member
    any more, `VerificationError` for an answer that is not to be believed."""
    registry.roster(60).active(delivered.to)
    return answer_to(
        registry,
        site,
        delivered.to,
        delivered.collection,
        delivered.transfer,
        delivered.files,
        seen_sha256=delivered.manifest_sha256,
    )
