"""What a trusted party answered to outputs that a site delivered to it, for the researcher who may not see them.

A result names the transfer and its files, not the manifest's digest. So of all answers to that transfer's name the one that
accepts these very files counts, and else the newest refusal: somebody may have put something else under the name."""

from __future__ import annotations

import itertools

from ptm import layout
from ptm.errors import NotFound, TooLarge, VerificationError
from ptm.model import Delivered
from ptm.registry import Registry
from ptm.transfer import Receipt

MAX_LOOKED = 20


def receipt_for(registry: Registry, site: str, delivered: Delivered) -> Receipt | None:
    """The party's signed answer; None if there is none yet that is believed. `StoreError`, `TrustError`, and `NotAllowed` if the
    party is no member any more."""
    roster = registry.roster(60)
    roster.active(delivered.to)
    found = []
    for info in itertools.islice(registry.store.list(layout.receipts_of(delivered.to, site, delivered.transfer)), MAX_LOOKED):
        try:
            receipt = registry.read(info.key, Receipt, delivered.to, roster)
        except (NotFound, TooLarge, VerificationError):
            continue
        if layout.parse_receipt(info.key) == (receipt.party, receipt.sender, receipt.transfer, receipt.seen_sha256):
            found.append(receipt)
    accepted = [receipt for receipt in found if receipt.state == "accepted" and receipt.files == delivered.files]
    refused = [receipt for receipt in found if receipt.state == "refused"]
    return next(iter(accepted), None) or max(refused, key=lambda receipt: receipt.created, default=None)
