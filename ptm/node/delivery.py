"""A run's outputs to a trusted party, past the researcher: sealed to the party into the run's folder, sent as a transfer of this
site's.

Order, so that of several workers of a site one transfer counts and none is lost: the files are uploaded, the result is committed,
and only whose result it is announces its transfer (the manifest). Before that the party does not look at it. A loser takes its
files out again. Every step can be done again after a crash; the run is not over before its transfer is announced. Nothing here
waits for the party: its receipt is for whoever asks."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from ptm.errors import AlreadyExists, DigestMismatch, NotAllowed, NotFound, UsageError, VerificationError
from ptm.model import Deliver, Delivered, PlainFile, Result, Task
from ptm.node.terms import list_files
from ptm.registry import Registry
from ptm.transfer import FromRun
from ptm.trustedparty import send
from ptm.trustedparty.send import Prepared, Source

log = logging.getLogger("ptm.node")


def place_of(deliver: Deliver) -> str:
    """How people write where outputs go: `ttp/link-2026`."""
    return f"{deliver.to}/{deliver.collection}"


def seal_for_party(
    registry: Registry,
    folder: Path,
    task: Task,
    task_sha256: str,
    outputs: Sequence[Path],
    listed: Sequence[PlainFile] | None,
) -> Delivered:
    """Seal outputs into `folder` as a signed transfer, which is in no bucket yet. `listed`: what they have to be.

    `NotAllowed` if the party is no member (any more) or cannot be sent this, `DigestMismatch` for a file that is not as it was
    when a person looked at it."""
    assert task.deliver is not None
    shutil.rmtree(folder, ignore_errors=True)
    _check_unchanged(outputs, listed)
    try:
        prepared = send.prepare(
            registry,
            folder,
            [Source(path.name, path) for path in outputs],
            to=task.deliver.to,
            collection=task.deliver.collection,
            purpose=task.purpose,
            run=FromRun(task=task.id, task_sha256=task_sha256),
        )
    except UsageError as e:
        raise NotAllowed(str(e), hint=e.hint) from e
    _check_unchanged(outputs, listed)
    transfer = prepared.transfer
    return Delivered(
        to=transfer.party,
        collection=transfer.collection,
        transfer=transfer.id,
        manifest_sha256=prepared.sha256,
        files=transfer.files,
    )


def obstacle(registry: Registry, result: Result) -> str | None:
    """Why what a result delivers cannot be sent, if the roster says so: the party was revoked."""
    if result.delivered is None:
        return None
    try:
        registry.roster(300).active(result.delivered.to)
    except NotAllowed as e:
        return str(e)
    return None


def upload(registry: Registry, folder: Path, result: Result) -> Prepared | None:
    """Bring the sealed files of a result that delivers to the bucket. None if there are none, or nobody to take them any more."""
    if result.delivered is None:
        return None
    why = obstacle(registry, result)
    if why is not None:
        log.error("transfer %s is not sent: %s", result.delivered.transfer, why)
        give_up(registry, folder)
        return None
    prepared = send.reopen(registry, folder)
    send.upload(registry, prepared)
    return prepared


def announce(registry: Registry, prepared: Prepared) -> None:
    """The result is the one that counts: from here on the transfer is the party's."""
    send.announce(registry, prepared)
    log.info("task %s: outputs sent to %s", prepared.transfer.run and prepared.transfer.run.task, prepared.transfer.party)


def give_up(registry: Registry, folder: Path) -> None:
    """Nobody is there to take it any more: what was uploaded goes again. `folder` may hold nothing whole."""
    with contextlib.suppress(NotFound, VerificationError):
        withdraw(registry, send.reopen(registry, folder))


def withdraw(registry: Registry, prepared: Prepared) -> None:
    """The result is not the one that counts: nor is the transfer."""
    try:
        send.withdraw(registry, prepared)
    except AlreadyExists:
        log.error(
            "transfer %s was announced, and the result that says so is not in the registry any more; somebody tampers with it",
            prepared.transfer.id,
        )


def _check_unchanged(outputs: Sequence[Path], listed: Sequence[PlainFile] | None) -> None:
    if listed is not None and not set(list_files(outputs)) <= set(listed):
        raise DigestMismatch("a held output was changed at the site after the run")
