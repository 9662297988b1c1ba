"""What became of what this home sent: from the outbox, and from the party's verified receipts and records of purges.

What was verified once is kept in the outbox, and not asked for again. A receipt that is not believed is said to be so."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from ptm.errors import TooLarge, TrustError, VerificationError
from ptm.registry import Registry
from ptm.transfer import Purge, Receipt, Transfer
from ptm.trustedparty.outbox import Outbox, Plan, TransferFolder
from ptm.trustedparty.purge import records
from ptm.trustedparty.send import own_transfer, receipt_of

State = Literal["sealing", "sending", "sent", "accepted", "refused", "unverified", "purged"]
PARALLEL = 16
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
CLOCKS_APART = timedelta(days=1)


@dataclass(frozen=True)
class Sent:
    """A transfer of this home's. `size` is the ciphertext's in bytes (while it is being sealed: the plaintext's). `unverified`:
    there is an answer that is not to be believed, `reason` says why. `purged`: accepted, and later removed by the party."""

    id: str
    to: str
    collection: str
    created: datetime
    files: tuple[str, ...]
    size: int
    state: State
    reason: str | None = None
    hint: str | None = None


def overview(registry: Registry, outbox: Outbox) -> list[Sent]:
    """Everything that this home sent or is sending, newest first. One request for each transfer without a known answer, and for
    each collection with files that may be there still, one listing and one request for each purge of it since."""
    unfinished = [_unfinished(outbox, plan, folder) for plan, folder in reversed(outbox.unfinished())]
    known = {found.id for found in unfinished}
    with ThreadPoolExecutor(PARALLEL) as pool:
        sent = list(pool.map(lambda item: _sent(registry, outbox, *item), (i for i in outbox.sent() if i[0] not in known)))
    return sorted((*unfinished, *_with_purges(registry, outbox, sent)), key=lambda found: found.id, reverse=True)


def wait_for_answer(
    registry: Registry, outbox: Outbox, transfer_id: str, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> Receipt | None:
    """The party's answer to a transfer that was sent, waited for this long; None if there is none by then."""
    deadline = time.monotonic() + seconds
    for pause in _pauses():
        body = outbox.sent_body(transfer_id)
        receipt = _answer(registry, outbox, own_transfer(registry, body), body)
        left = deadline - time.monotonic()
        if receipt is not None or left <= 0:
            return receipt
        sleep(min(pause, left))
    raise AssertionError("pauses never end")


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(LONGEST_PAUSE_S, pause * 1.5)


def _answer(registry: Registry, outbox: Outbox, transfer: Transfer, body: bytes) -> Receipt | None:
    receipt = outbox.answer(transfer.id)
    if receipt is None:
        receipt = receipt_of(registry, transfer, hashlib.sha256(body).hexdigest())
        if receipt is not None:
            outbox.keep_answer(receipt)
    return receipt


def _unfinished(outbox: Outbox, plan: Plan, folder: TransferFolder) -> Sent:
    signed = folder.manifest.exists()
    size = sum(done.cipher.size for done in plan.done) if signed else sum(file.size for file in plan.files)
    interrupted = None if outbox.is_held(plan.id) else "interrupted"
    return Sent(
        plan.id,
        plan.party,
        plan.collection,
        plan.created,
        tuple(file.name for file in plan.files),
        size,
        "sending" if signed else "sealing",
        interrupted,
        interrupted and "`ptm inbox resume` goes on",
    )


def _sent(registry: Registry, outbox: Outbox, transfer_id: str, body: bytes) -> Sent:
    transfer = own_transfer(registry, body)
    state: State = "sent"
    reason = hint = None
    try:
        receipt = _answer(registry, outbox, transfer, body)
    except TrustError:
        raise
    except (VerificationError, TooLarge) as e:
        state, reason, hint = "unverified", str(e), e.hint
    else:
        if receipt is not None:
            state, reason, hint = receipt.state, receipt.reason, receipt.hint
    files = tuple(file.name for file in transfer.files)
    size = sum(file.size for file in transfer.files)
    return Sent(transfer_id, transfer.party, transfer.collection, transfer.created, files, size, state, reason, hint)


def _with_purges(registry: Registry, outbox: Outbox, sent: list[Sent]) -> list[Sent]:
    """The same, with what was accepted and is purged since, by the party's verified records."""
    known = {found.id: outbox.purge(found.id) for found in sent if found.state == "accepted"}
    there = [found for found in sent if found.id in known and known[found.id] is None]
    for place in {(found.to, found.collection) for found in there}:
        here = [found for found in there if (found.to, found.collection) == place]
        since = min(found.created for found in here) - CLOCKS_APART
        gone: set[tuple[str, str]] = set()
        for record in records(registry, *place, since):
            gone |= {(file.transfer, file.sha256) for file in record.files if file.sender == registry.me}
            for found in (found for found in here if known[found.id] is None):
                files = own_transfer(registry, outbox.sent_body(found.id)).files
                if all((found.id, file.sha256) in gone for file in files):
                    known[found.id] = record
                    outbox.keep_purge(found.id, record)
    gone_by = {number: record for number, record in known.items() if record is not None}
    return [replace(s, state="purged", reason=_in_words(gone_by[s.id])) if s.id in gone_by else s for s in sent]


def _in_words(record: Purge) -> str:
    """When files were removed, and why."""
    why = {"used": f"after task {record.task}", "age": "by age", "asked": f"by {record.by}: {record.reason}"}[record.why]
    return f"{record.created:%Y-%m-%d %H:%M} UTC, {why}"
