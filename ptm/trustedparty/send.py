"""Sending encrypted files to a trusted party: seal, upload, and only then announce.

    prepare    seals every file into a folder and signs the manifest; nothing is in the bucket yet
    upload     the sealed files, big ones in parts; may be called again, and sends what is missing
    announce   the manifest, create-if-absent: from here on the transfer is the party's

`send` does all three in the outbox, the first two at the same time (`ptm.trustedparty.uploading`), and takes up a transfer of
the same files that was interrupted; `resume_all` takes up every one. A transfer keeps its id and its bytes through all
interruptions, and is announced at most once: the party answers before it removes a manifest, so one that is neither there nor
answered was never announced.

What counts is what was sealed: a file may change or go afterwards.

What it does not do: learn what became of a transfer (`ptm.trustedparty.sent`), or watch a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptm import envelope, layout
from ptm.errors import AlreadyExists, NotForUs, NotFound, PtmError, TooLarge, UsageError, VerificationError
from ptm.model import Delivered
from ptm.registry import Registry
from ptm.store.base import Progress
from ptm.transfer import Format, FromRun, Receipt, Transfer
from ptm.trustedparty.outbox import SHOWS_SENT, Outbox, TransferFolder
from ptm.trustedparty.sealing import seal_plan
from ptm.trustedparty.sources import Source as Source
from ptm.trustedparty.sources import check_party, check_unchanged, make_plan
from ptm.trustedparty.uploading import Stages, seal_and_upload, take_back, upload_sealed


@dataclass(frozen=True)
class Prepared:
    """A transfer whose files are sealed and whose manifest is signed. `body` is the manifest as it goes into the inbox."""

    folder: Path
    transfer: Transfer
    body: bytes

    @property
    def sha256(self) -> str:
        """The digest by which the party's receipt names this manifest."""
        return hashlib.sha256(self.body).hexdigest()

    def sealed(self, name: str) -> Path:
        """The sealed file of that name."""
        return TransferFolder(self.folder).sealed(name, self.transfer.format)


@dataclass(frozen=True)
class Resumed:
    """What became of the transfers that were taken up: `failed` by their id."""

    sent: tuple[Transfer, ...]
    failed: Mapping[str, PtmError]


# the steps


def prepare(
    registry: Registry,
    folder: Path,
    sources: Sequence[Source],
    *,
    to: str,
    collection: str,
    format: Format = "age",
    purpose: str = "",
    run: FromRun | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Seal files into `folder`, which is made (private), and sign the manifest. `progress` is told of plaintext bytes.

    `UsageError` and `NotAllowed` before anything is written; after any other error nothing of the folder is left."""
    plan = make_plan(registry, sources, to=to, collection=collection, format=format, purpose=purpose, run=run)
    key = check_party(registry, to)
    made = TransferFolder(folder)
    made.make()
    made.save_plan(plan)
    try:
        return Prepared(folder, *seal_plan(registry, made, plan, key, progress))
    except Exception:
        made.remove()
        raise


def reopen(registry: Registry, folder: Path) -> Prepared:
    """A transfer that was prepared in this folder. `NotFound` if sealing did not end, `VerificationError` if it is not whole.
    The sizes of the sealed files are looked at here; their digests by the party."""
    place = TransferFolder(folder)
    try:
        body = place.manifest.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"nothing is sealed in {folder}", hint="send the files again") from None
    transfer = own_transfer(registry, body)
    prepared = Prepared(folder, transfer, body)
    for file in transfer.files:
        path = prepared.sealed(file.name)
        if not path.is_file() or path.stat().st_size != file.size:
            raise VerificationError(
                f"{path} is not as it was sealed", hint=f"`ptm inbox cancel {transfer.id}`, then send the files again"
            )
    return prepared


def upload(registry: Registry, prepared: Prepared, progress: Progress | None = None) -> None:
    """Bring every sealed file into the inbox that is not there yet; `progress` is told of ciphertext bytes, also of those that
    were there. Does nothing for a transfer that was announced."""
    transfer = prepared.transfer
    if is_announced(registry, prepared):
        return
    check_party(registry, transfer.party)
    for number in range(len(transfer.files)):
        upload_sealed(registry, TransferFolder(prepared.folder), transfer, number, progress)


def announce(registry: Registry, prepared: Prepared) -> None:
    """Put the manifest into the inbox, once. Does nothing if the party has had it already."""
    if not is_announced(registry, prepared):
        registry.store.create(_manifest_key(prepared.transfer), prepared.body)


def is_announced(registry: Registry, prepared: Prepared) -> bool:
    """Whether the party has, or had, this manifest. `AlreadyExists` if something else lies in its place."""
    where = _where(registry, prepared)
    if where == "another":
        raise AlreadyExists(
            f"{_manifest_key(prepared.transfer)} holds something else than this transfer",
            hint=f"somebody wrote into the bucket: `ptm inbox cancel {prepared.transfer.id}`, then send the files again",
        )
    return where != "not there"


def withdraw(registry: Registry, prepared: Prepared) -> None:
    """Remove from the inbox what was uploaded of a transfer that was not announced; `AlreadyExists` if it was. What somebody else
    put in the place of its manifest stays."""
    transfer = prepared.transfer
    if _where(registry, prepared) in ("announced", "answered"):
        raise AlreadyExists(f"transfer {transfer.id} is with {transfer.party} already", hint=SHOWS_SENT)
    take_back(registry, TransferFolder(prepared.folder), transfer)


def _where(registry: Registry, prepared: Prepared) -> Literal["not there", "announced", "answered", "another"]:
    """Where a manifest is. It is looked for before the receipt: the party writes a receipt before it removes a manifest."""
    transfer = prepared.transfer
    try:
        found = registry.read_raw(_manifest_key(transfer))
    except NotFound:
        answer = layout.receipt(transfer.party, transfer.sender, transfer.id, prepared.sha256)
        return "answered" if registry.exists(answer) else "not there"
    except TooLarge:
        return "another"
    return "announced" if found == prepared.body else "another"


def receipt_of(registry: Registry, transfer: Transfer, seen_sha256: str) -> Receipt | None:
    """The party's answer to the manifest with these bytes, verified; None if there is none yet. `VerificationError`."""
    sent = Delivered(
        to=transfer.party,
        collection=transfer.collection,
        transfer=transfer.id,
        manifest_sha256=seen_sha256,
        files=transfer.files,
    )
    return _answer_to(registry, transfer.sender, sent)


def receipt_for(registry: Registry, site: str, delivered: Delivered) -> Receipt | None:
    """The same, for a researcher, who may not see what a site delivered but has the result that says so. Also `NotAllowed` if the
    party is no member any more."""
    registry.roster(60).active(delivered.to)
    return _answer_to(registry, site, delivered)


def _answer_to(registry: Registry, sender: str, sent: Delivered) -> Receipt | None:
    """The receipt that lies under the digest of the very manifest.

    `VerificationError` for one that is not to be believed: not signed by the party, about another transfer, or accepting other
    files than were sent."""
    about = (sent.to, sender, sent.transfer, sent.manifest_sha256)
    key = layout.receipt(*about)
    try:
        receipt = registry.read(key, Receipt, sent.to)
    except NotFound:
        return None
    if (receipt.party, receipt.sender, receipt.transfer, receipt.seen_sha256) != about:
        raise NotForUs(f"{key} answers another transfer", hint="somebody swapped objects in the bucket")
    if receipt.state == "accepted" and (receipt.collection, receipt.files) != (sent.collection, sent.files):
        raise NotForUs(f"{key} accepts other files than were sent", hint=f"ask {sent.to} which ones it has")
    return receipt


# in the outbox


def send(
    registry: Registry,
    outbox: Outbox,
    sources: Sequence[Source],
    *,
    to: str,
    collection: str,
    format: Format = "age",
    purpose: str = "",
    stages: Stages | None = None,
) -> Transfer:
    """Prepare, upload and announce. If a transfer of the same files to the same collection was interrupted, that one goes on
    instead of a second one; `UsageError` if a file that was sealed for it has changed since."""
    plan = make_plan(registry, sources, to=to, collection=collection, format=format, purpose=purpose)
    for begun, _ in outbox.unfinished():
        if begun.sends_what(plan):
            check_unchanged(begun, plan)
            with outbox.take_up(begun.id) as folder:
                if folder is None:
                    raise UsageError(f"another process is sending these files (transfer {begun.id})", hint=SHOWS_SENT)
                return _go_on(registry, outbox, folder, stages)
    with outbox.begin(plan) as folder:
        return _go_on(registry, outbox, folder, stages)


def resume_all(registry: Registry, outbox: Outbox, stages: Stages | None = None) -> Resumed:
    """Take up every transfer that was interrupted, but those that another process is at. One's failure is not another's."""
    sent: list[Transfer] = []
    failed: dict[str, PtmError] = {}
    for plan, _ in outbox.unfinished():
        with outbox.take_up(plan.id) as folder:
            if folder is None:
                continue
            try:
                sent.append(_go_on(registry, outbox, folder, stages))
            except PtmError as e:
                failed[plan.id] = e
    return Resumed(tuple(sent), failed)


def cancel(registry: Registry, outbox: Outbox, transfer_id: str) -> None:
    """Give up a transfer that was interrupted, and remove what of it lies here and in the inbox. `AlreadyExists` if it is with
    the party already."""
    with outbox.take_up(transfer_id) as folder:
        if folder is None:
            raise _not_interrupted(outbox, transfer_id)
        plan = folder.read_plan()
        try:
            prepared = _as_signed(registry, folder)
        except NotFound:
            if plan is not None:
                take_back(registry, folder, plan)
            folder.remove()
            return
        try:
            withdraw(registry, prepared)
        except AlreadyExists:
            outbox.finish(folder, prepared.body)
            raise
        folder.remove()


def _not_interrupted(outbox: Outbox, transfer_id: str) -> PtmError:
    if any(plan.id == transfer_id for plan, _ in outbox.unfinished()):
        return UsageError(f"another process is sending transfer {transfer_id}", hint="stop that one first")
    outbox.sent_body(transfer_id)
    return AlreadyExists(f"transfer {transfer_id} is with its party already", hint=SHOWS_SENT)


def _go_on(registry: Registry, outbox: Outbox, folder: TransferFolder, stages: Stages | None) -> Transfer:
    """Bring a transfer that was begun to its end, from wherever it is."""
    plan = folder.read_plan()
    if plan is None:
        raise NotFound(f"nothing was begun in {folder.path}", hint=SHOWS_SENT)
    try:
        prepared = reopen(registry, folder.path)
    except NotFound:
        key = check_party(registry, plan.party)
        prepared = Prepared(folder.path, *seal_and_upload(registry, folder, plan, key, stages))
        check_party(registry, plan.party)  # sealing may have taken hours
    else:
        upload(registry, prepared, stages and stages("sending", sum(file.size for file in prepared.transfer.files)))
    announce(registry, prepared)
    outbox.finish(folder, prepared.body)
    return prepared.transfer


# the inbox


def own_transfer(registry: Registry, body: bytes) -> Transfer:
    """A manifest of this home's own, verified with its own key."""
    return envelope.verify(body, Transfer, registry.id, registry.keys.sign_key)


def _as_signed(registry: Registry, folder: TransferFolder) -> Prepared:
    """A transfer to withdraw: whether its sealed files are still whole does not matter. `NotFound` if it was never signed."""
    try:
        body = folder.manifest.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"nothing is sealed in {folder.path}") from None
    return Prepared(folder.path, own_transfer(registry, body), body)


def _manifest_key(transfer: Transfer) -> str:
    return layout.transfer_manifest(transfer.party, transfer.sender, transfer.id)
