"""Brings sealed files into a party's inbox: from the outbox, or while they are being sealed, and takes them back.

Rules:
- Sealing, in a thread of its own, never waits for the network. The file in the outbox is what counts, and what an interrupted
  upload goes on with.
- The end of a file is told to its upload after the plan says that it is sealed. So what the inbox has whole is as it lies in the
  outbox; of a file that has to be sealed anew there are parts at most, which `Store.upload_resumable` gives up.
- A file's sealing that is interrupted is begun anew, and so is what was sent of it; so it has to be worth it (`FOLLOW_BYTES`).
- A store that cannot be reached does not end the sealing: the next start has no more to do than to upload. Ctrl-C ends both, and
  costs the file that is just being sealed. A failure of the sealing takes everything back.

What it does not do: announce anything (`ptm.trustedparty.send`)."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import BinaryIO, Literal, cast

from ptm import layout
from ptm.errors import NotFound, PtmError, StoreError
from ptm.registry import Registry
from ptm.store.base import Progress
from ptm.transfer import SUFFIX, Transfer
from ptm.trustedparty.outbox import Plan, TransferFolder
from ptm.trustedparty.sealing import at_most, seal_plan
from ptm.trustedparty.streams import Broken, Following, Growth

Stage = Literal["sealing", "sending"]
Stages = Callable[[Stage, int], Progress]
"""Called when a stage begins, with its number of bytes (about); what it returns is told of each step."""

FOLLOW_BYTES = 256 * 1024 * 1024
"""Files from this size on are uploaded while they are sealed. Of a smaller one, sealed in a second, nothing is sent twice."""
GRACE_S = 5.0
"""How long a sealing that was stopped is waited for: it may be reading from a disk that does not answer."""
log = logging.getLogger("ptm.trustedparty")


def upload_sealed(
    registry: Registry, folder: TransferFolder, about: Plan | Transfer, number: int, progress: Progress | None
) -> None:
    """Bring one sealed file into the inbox, unless it is there."""
    name = about.files[number].name
    key, path = _key(registry, about, name), folder.sealed(name, about.format)
    size = path.stat().st_size
    if not _is_there(registry, key, size):
        with path.open("rb") as cipher:
            registry.store.upload_resumable(key, cipher, folder.journal(number), progress)
    elif progress:
        progress(size)


def seal_and_upload(
    registry: Registry, folder: TransferFolder, plan: Plan, key: str, stages: Stages | None
) -> tuple[Transfer, bytes]:
    """Seal what is not sealed yet to the party's age key, sign, and bring all of it into the inbox meanwhile: the transfer, and
    its manifest's bytes. Raises what sealing raises, and nothing is left then; or `StoreError`."""
    left = {number: plan.files[number] for number in range(len(plan.done), len(plan.files))}
    growths = {number: Growth() for number in left}
    clear = sum(file.size for file in left.values())
    sealed = stages and stages("sealing", clear)
    moved = stages and stages("sending", clear + sum(done.cipher.size for done in plan.done))

    def stop() -> None:
        for growth in growths.values():
            growth.stop()

    sealing: Future[tuple[Transfer, bytes]] = Future()

    def seal() -> None:
        try:
            sealing.set_result(seal_plan(registry, folder, plan, key, sealed, growths))
        except BaseException as e:
            sealing.set_exception(e)
            stop()

    thread = threading.Thread(target=seal, name="seal", daemon=True)
    try:
        thread.start()
        outage = _upload_all(registry, folder, plan, growths, moved)
        transfer, body = sealing.result()
    except BaseException as e:
        stop()
        if thread.is_alive():
            thread.join(GRACE_S)
        if isinstance(e, Exception) and sealing.done() and e is sealing.exception():
            _give_up(registry, folder, plan)
        raise
    if outage is not None:
        raise outage
    return transfer, body


def take_back(registry: Registry, folder: TransferFolder, about: Plan | Transfer) -> None:
    """Remove from the inbox whatever of these files is there."""
    names = [file.name for file in about.files]
    for number, name in enumerate(names):
        key = _key(registry, about, name)
        registry.store.abandon(key, folder.journal(number))
        registry.store.delete(key)


def _upload_all(
    registry: Registry, folder: TransferFolder, plan: Plan, growths: Mapping[int, Growth], progress: Progress | None
) -> PtmError | Broken | None:
    """Bring all files into the inbox, one after the other. What ended it, if the sealing is to go on."""
    try:
        for number in range(len(plan.files)):
            _upload(registry, folder, plan, number, growths, progress)
    except Broken as e:
        return e
    except OSError as e:
        return PtmError(f"{folder.path}: {e.strerror or e}", hint="check that disk, then `ptm inbox resume`")
    except StoreError as e:
        log.warning("transfer %s: sealing goes on, so that `ptm inbox resume` has no more to do than to send: %s", plan.id, e)
        return e
    return None


def _upload(
    registry: Registry, folder: TransferFolder, plan: Plan, number: int, growths: Mapping[int, Growth], progress: Progress | None
) -> None:
    """Bring a file into the inbox: one that is sealed, or a big one from when there is some of it."""
    growth, size = growths.get(number), at_most(plan.files[number])
    if growth is None or size < FOLLOW_BYTES:
        if growth is not None:
            growth.wait(sys.maxsize)
        upload_sealed(registry, folder, plan, number, progress)
        return
    growth.wait(1)
    name = plan.files[number].name
    with folder.sealed(name, plan.format).open("rb") as file:
        source = cast(BinaryIO, Following(file, growth))
        key = _key(registry, plan, name)
        registry.store.upload_resumable(key, source, folder.journal(number), progress, growing_to=size)


def _give_up(registry: Registry, folder: TransferFolder, plan: Plan) -> None:
    """Nothing is left of a transfer that cannot be sealed; of it all is, if the store cannot be reached."""
    try:
        take_back(registry, folder, plan)
    except StoreError as e:
        log.warning("transfer %s: `ptm inbox cancel %s` removes what is in the inbox; not now: %s", plan.id, plan.id, e)
        return
    folder.remove()


def _is_there(registry: Registry, key: str, size: int) -> bool:
    """Whether a file is in the inbox: an object is whole or not there, and nobody else writes under this transfer's id."""
    try:
        return registry.store.head(key).size == size
    except NotFound:
        return False


def _key(registry: Registry, about: Plan | Transfer, name: str) -> str:
    return layout.transfer_file(about.party, registry.me, about.id, name, SUFFIX[about.format])
