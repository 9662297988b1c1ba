"""From an ended run to a committed result: seal, sign, keep on disk, deliver.

Order, so that nothing is lost and nothing is said twice: outputs are sealed into the spool, the signed result is
written to the node's state (phase `spooled`), only then may the container go; large outputs are uploaded, the result
is created (the commit), the spool goes, the queue entry goes. Every step can be done again after a crash; the queue entry goes
last, because it is what brings a node back to the steps before."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ptm import envelope, layout
from ptm.config import Home
from ptm.errors import DigestMismatch, TooLarge, VerificationError
from ptm.files import private_folder, sync_folder
from ptm.model import INLINE_TOTAL_BYTES, LOG_NAME, MAX_DECISIONS, Delivered, PlainFile, Result, SealedFile, Task, as_text
from ptm.node import delivery
from ptm.node.collected import end_use
from ptm.node.state import RunRow
from ptm.node.worker import Ending, Worker
from ptm.registry import Registry, now_utc
from ptm.seal import seal_file, seal_manifest
from ptm.trust import TrustedRoster

log = logging.getLogger("ptm.node")
LOOK_S = 3600.0
"""Nobody looks at a run's inputs for longer: an older folder of them is what a crash left."""


@dataclass(frozen=True)
class Leaving:
    """The files that go out with a result. `listed`: what they have to be, where somebody looked at them before."""

    outputs: tuple[Path, ...] = ()
    log: Path | None = None
    listed: tuple[PlainFile, ...] | None = None


NOTHING = Leaving()


class RunFolder:
    """Where one run's files lie at the site while they are needed: `spool/<task>/`, mode 0700."""

    def __init__(self, home: Home, task: str) -> None:
        self.path = home.spool / task

    @property
    def held(self) -> Path:
        """What waits for a person to look at it, in clear."""
        return self.path / "held"

    @property
    def log(self) -> Path:
        return self.path / LOG_NAME

    @property
    def transfer(self) -> Path:
        """What is on its way to a trusted party, sealed."""
        return self.path / "transfer"

    def fresh(self, name: str) -> Path:
        """An empty private folder in it."""
        folder = self.path / name
        shutil.rmtree(folder, ignore_errors=True)
        return private_folder(folder)

    def sealed(self, name: str) -> Path:
        return self.path / "sealed" / f"{name}.age"

    def keep_back(self, names: Iterable[str]) -> None:
        """Remember, beside the held files, that these may not leave: whatever the registry shows later. `OSError`."""
        folder = private_folder(self.path / "withheld")
        for name in names:
            (folder / name).touch(mode=0o600)
        sync_folder(folder)

    def kept_back(self) -> frozenset[str]:
        """The names of the files that `keep_back` was told of."""
        try:
            return frozenset(path.name for path in (self.path / "withheld").iterdir())
        except FileNotFoundError:
            return frozenset()

    def drop(self, *names: str) -> None:
        """Remove these folders in it."""
        for name in names:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def sweep_spool(home: Home, keep: set[str]) -> None:
    """Remove the folders of all runs but these: what a crash left of runs that are over, or that were never remembered."""
    if home.spool.is_dir():
        for path in home.spool.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)
    _sweep_looks(home.path / "look")


@contextlib.contextmanager
def look_folder(home: Home) -> Iterator[Path]:
    """A private folder for what a person looks at now, gone afterwards. It is in the home and not in /tmp, so that what a crash
    leaves of it is found: by the next look, or by the node."""
    looks = private_folder(home.path / "look")
    _sweep_looks(looks)
    with tempfile.TemporaryDirectory(dir=looks) as folder:
        yield Path(folder)


def _sweep_looks(looks: Path) -> None:
    for path in looks.iterdir() if looks.is_dir() else ():
        with contextlib.suppress(OSError):  # another look's own, gone meanwhile
            if time.time() - path.stat().st_mtime > LOOK_S:
                shutil.rmtree(path, ignore_errors=True)


def spool_result(worker: Worker, row: RunRow, task: Task, ending: Ending, leaving: Leaving = NOTHING) -> RunRow:
    """Seal what leaves, sign the result, and remember it as `spooled`. `DigestMismatch` if a file is not the one that was
    looked at."""
    registry, state = worker.registry, worker.state
    roster = registry.roster(300)
    folder = RunFolder(registry.home, row.task)
    delivered: Delivered | None = None
    if task.deliver is not None and leaving.outputs:
        sources, listed = leaving.outputs, leaving.listed
        delivered = delivery.seal_for_party(registry, folder.transfer, task, row.task_sha256, sources, listed)
        leaving = replace(leaving, outputs=())
    outputs, log_file, manifest = _seal_outputs(registry, roster, folder, task, leaving)
    result = Result(
        registry=registry.id,
        task=task.id,
        task_sha256=row.task_sha256,
        user=task.user,
        site=registry.me,
        worker=worker.config.worker,
        attempt=row.attempt,
        state=ending.state,
        exit_code=ending.exit_code,
        reason=ending.reason and as_text(ending.reason),
        hint=ending.hint and as_text(ending.hint),
        image=task.image,
        image_digest=ending.image_digest,
        start_time=ending.start_time,
        end_time=ending.end_time or now_utc(),
        roster_version=roster.version,
        recipients=task.recipients,
        outputs=outputs,
        log=log_file,
        manifest=manifest,
        delivered=delivered,
        policy_sha256=ending.policy_sha256,
        decided_by=ending.decided_by[-MAX_DECISIONS:],
        data_use=ending.data_use,
        audit_head=_record(worker, row, ending, (*outputs, *((log_file,) if log_file else ())), delivered),
    )
    state.spooled(row.task, registry.sign(result))
    for left in ("outputs", "held", "process"):
        shutil.rmtree(folder.path / left, ignore_errors=True)
    folder.log.unlink(missing_ok=True)
    spooled = state.find(row.task)
    assert spooled is not None
    return spooled


def _record(worker: Worker, row: RunRow, ending: Ending, files: tuple[SealedFile, ...], delivered: Delivered | None) -> str:
    """What is about to leave, in the audit log; returns the head that the result carries."""
    return worker.audit.record(
        "result-signed",
        row.task,
        user=row.user,
        attempt=row.attempt,
        state=ending.state,
        reason=ending.reason,
        exit_code=ending.exit_code,
        policy_sha256=ending.policy_sha256,
        files=[{"name": file.name, "sealed_bytes": file.size, "sealed_sha256": file.sha256} for file in files],
        delivered=delivered.model_dump(mode="json") if delivered else None,
        data_use=[use.model_dump(mode="json") for use in ending.data_use],
    )


def deliver(worker: Worker, row: RunRow) -> None:
    """Bring a spooled result to the bucket and take the task out of the queue. Any `StoreError` leaves it spooled, to
    be tried again."""
    registry = worker.registry
    if row.phase == "spooled" and row.result is not None:
        result, body = _unless_undeliverable(worker, row, row.result)
        committed = _commit(worker, row, result, body)
        sha256 = hashlib.sha256(body).hexdigest()
        worker.audit.record("result-delivered" if committed else "result-dropped", row.task, bytes=len(body), sha256=sha256)
        task = envelope.load(Task, envelope.parse(row.task_body).canonical)
        end_use(worker, task, completed=committed and result.state == "completed")
        worker.state.delivered(row.task)
    RunFolder(registry.home, row.task).remove()
    registry.dequeue(registry.me, row.user, row.task)


def _unless_undeliverable(worker: Worker, row: RunRow, body: bytes) -> tuple[Result, bytes]:
    """The result as it goes out, and its signed bytes: another one, if the party that its outputs are for was revoked since
    they were sealed and nothing of it is out yet."""
    registry = worker.registry
    result = envelope.load(Result, envelope.parse(body).canonical)
    why = delivery.obstacle(registry, result)
    if why is None or registry.exists(layout.result(registry.me, row.task)):
        return result, body
    log.warning("task %s: %s", row.task, why)
    delivery.give_up(registry, RunFolder(registry.home, row.task).transfer)
    reason = as_text(f"the outputs could not be delivered: {why}")
    instead = result.model_copy(update={"state": "failed", "exit_code": None, "reason": reason, "delivered": None})
    worker.audit.record("delivery-given-up", row.task, reason=reason)
    body = registry.sign(instead)
    worker.state.spooled(row.task, body)
    return instead, body


def _commit(worker: Worker, row: RunRow, result: Result, body: bytes) -> bool:
    """True if this result is the one that counts. What goes to a party is announced then, and only then."""
    registry = worker.registry
    folder = RunFolder(registry.home, row.task)
    transfer = delivery.upload(registry, folder.transfer, result)
    large = [file.name for file in result.files if file.content is None]
    for name in large:
        with folder.sealed(name).open("rb") as source:
            registry.store.upload(layout.output(registry.me, row.task, row.attempt, name), source)
    if registry.commit(body, row.task):
        log.info("task %s: %s%s", row.task, result.state, f": {result.reason}" if result.reason else "")
        if transfer is not None:
            delivery.announce(registry, transfer)
            worker.audit.record("outputs-delivered", row.task, transfer=transfer.transfer.id, party=transfer.transfer.party)
        return True
    for name in large:
        registry.store.delete(layout.output(registry.me, row.task, row.attempt, name))
    if transfer is not None:
        delivery.withdraw(registry, transfer)
    try:
        registry.read_own(layout.result(registry.me, row.task), Result)
        log.warning("task %s: another worker's result was committed first; this one is dropped", row.task)
    except (VerificationError, TooLarge) as e:
        log.error(
            "task %s: the registry holds a result that this site did not sign (%s); somebody tampers with the bucket", row.task, e
        )
    return False


def _seal_outputs(
    registry: Registry, roster: TrustedRoster, folder: RunFolder, task: Task, leaving: Leaving
) -> tuple[tuple[SealedFile, ...], SealedFile | None, str | None]:
    sources = [*leaving.outputs, *((leaving.log,) if leaving.log else ())]
    if not sources:
        return (), None, None
    recipients = [roster.active(name).age_key for name in task.recipients]
    folder.fresh("sealed")
    plain: list[PlainFile] = []
    sealed: list[SealedFile] = []
    room = INLINE_TOTAL_BYTES
    for path in sources:
        with path.open("rb") as clear:
            listed, file = seal_file(clear, folder.sealed(path.name), path.name, recipients, room)
        if leaving.listed is not None and listed not in leaving.listed:
            raise DigestMismatch("a held output was changed at the site after the run")
        plain.append(listed)
        sealed.append(file)
        room -= file.size if file.content is not None else 0
    manifest = seal_manifest(registry.id, task.id, registry.me, plain, recipients)
    log_file = sealed.pop() if leaving.log else None
    return tuple(sealed), log_file, manifest
