"""What became of what this home sent: from the outbox, and from the party's verified receipts.

A receipt that was verified once is kept in the outbox, and not asked for again. One that is not believed is said to be so."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ptm.errors import TooLarge, TrustError, VerificationError
from ptm.registry import Registry
from ptm.transfer import Receipt, Transfer
from ptm.trustedparty.outbox import Outbox, Plan, TransferFolder
from ptm.trustedparty.send import own_transfer, receipt_of

State = Literal["sealing", "sending", "sent", "accepted", "refused", "unverified"]
PARALLEL = 16
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


@dataclass(frozen=True)
class Sent:
    """A transfer of this home's. `size` is the ciphertext's in bytes (while it is being sealed: the plaintext's). `unverified`:
    there is an answer that is not to be believed, `reason` says why."""

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
    """Everything that this home sent or is sending, newest first. One request for each transfer without a known answer."""
    unfinished = [_unfinished(outbox, plan, folder) for plan, folder in reversed(outbox.unfinished())]
    known = {found.id for found in unfinished}
    with ThreadPoolExecutor(PARALLEL) as pool:
        sent = list(pool.map(lambda item: _sent(registry, outbox, *item), (i for i in outbox.sent() if i[0] not in known)))
    return sorted((*unfinished, *sent), key=lambda found: found.id, reverse=True)


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
