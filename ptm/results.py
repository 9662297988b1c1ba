"""Results, from the bucket to a researcher's folder: believed step by step, and nothing half-believed is ever left there.

Order: signature of the site, task digest, site and recipients; then size and SHA-256 of each ciphertext; then
decryption; then the sealed manifest. A site's folder is built beside its place and renamed into it when all of it has
verified. `verify_folder` does the same again later, offline, from the saved envelopes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyrage

from ptm import envelope, layout
from ptm.envelope import MAX_DOCUMENT_BYTES
from ptm.errors import AlreadyExists, DigestMismatch, Malformed, NotAllowed, NotForUs, PtmError, VerificationError
from ptm.files import sync_folder, write_atomic
from ptm.model import RESULT_NAME, TASK_NAME, PlainFile, Result, Task
from ptm.registry import Registry
from ptm.seal import check_plain, measure, open_manifest, unseal
from ptm.trust import TrustedRoster

BUILDING = ".ptm-"
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}
"""What a rename says when something has come into its place meanwhile: another fetch, or what does not belong there."""


@dataclass(frozen=True)
class SavedResult:
    """One site's verified result and the folder that holds its files, `result.json`, `task.json` and (where there is
    one) `log.txt`."""

    result: Result
    folder: Path

    @property
    def duration_s(self) -> int | None:
        start = self.result.start_time
        return None if start is None else int((self.result.end_time - start).total_seconds())


def believe(raw: bytes, site: str, task: Task, task_sha256: str, sign_key: str) -> Result:
    """A result, if this site signed it, for this very task, to these recipients. `VerificationError` says which of it
    is wrong."""
    result = envelope.verify(raw, Result, task.registry, sign_key)
    if result.site != site:
        raise NotForUs(f"the result lies under {site} and is {result.site}'s")
    if (result.task, result.user) != (task.id, task.user):
        raise NotForUs(f"the result is of task {result.task} of {result.user}, not of {task.id}")
    if site not in task.sites:
        raise NotForUs(f"the task was never for {site}")
    if result.task_sha256 != task_sha256:
        raise DigestMismatch(f"{site} ran another task under this id (its digest is {result.task_sha256[:16]}…)")
    if result.recipients != task.recipients or result.image != task.image:
        raise NotForUs(f"{site} changed the recipients or the image of the task")
    sent = result.delivered
    if sent is not None and (task.deliver is None or (sent.to, sent.collection) != (task.deliver.to, task.deliver.collection)):
        raise NotForUs(f"{site} delivered the outputs to {sent.to}/{sent.collection}, which the task does not ask for")
    if task.deliver is not None and result.outputs:
        raise NotForUs(f"{site} sent outputs that were to be delivered to {task.deliver.to}")
    return result


def save_result(
    registry: Registry, roster: TrustedRoster, raw: bytes, site: str, task: Task, task_sha256: str, into: Path
) -> SavedResult:
    """Verify a site's result and put its files into `into/<site>/`. If they are there from before, they are checked
    again instead."""
    member = roster.active(site)
    result = believe(raw, site, task, task_sha256, member.sign_key)
    place = into / site
    if os.path.lexists(place):
        return _same_again(registry, place, raw, site, task, task_sha256, member.sign_key)
    into.mkdir(parents=True, exist_ok=True)
    try:
        with _building(into) as building:
            _fill(registry, building, result)
            write_atomic(building / TASK_NAME, _record(registry, task, task_sha256))
            write_atomic(building / RESULT_NAME, raw)
            building.chmod(0o777 & ~_umask_of(building / RESULT_NAME))
            building.rename(place)
            sync_folder(into)
    except OSError as e:
        if e.errno not in _TAKEN:
            raise
        return _same_again(registry, place, raw, site, task, task_sha256, member.sign_key)
    return SavedResult(result, place)


@contextlib.contextmanager
def _building(into: Path) -> Iterator[Path]:
    """A new folder in `into`, removed on an error. It is locked while it is filled, so what a killed fetch left is told from what
    another fetch is at work on; the former is removed first."""
    for left in into.glob(f"{BUILDING}*"):
        with contextlib.suppress(OSError):
            lock = _lock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    building, lock = _locked_folder(into)
    try:
        yield building
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _locked_folder(into: Path) -> tuple[Path, int]:
    """Made anew if another fetch takes it for a leftover before it is locked."""
    while True:
        building = Path(tempfile.mkdtemp(dir=into, prefix=BUILDING))
        with contextlib.suppress(FileNotFoundError):
            lock = _lock(building, fcntl.LOCK_EX)
            if building.exists():
                return building, lock
            os.close(lock)


def _lock(folder: Path, how: int) -> int:
    """An open descriptor that holds the lock. `OSError` if another has it, and if this is no folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def verify_folder(registry: Registry, roster: TrustedRoster, folder: Path) -> list[SavedResult | tuple[Path, PtmError]]:
    """Check every site's folder below a folder again, offline. A folder that fails comes back with its error."""
    found: list[SavedResult | tuple[Path, PtmError]] = []
    for place in sorted(path for path in folder.iterdir() if _is_of_a_site(path, roster)):
        try:
            found.append(_verify_saved(registry, roster, place))
        except PtmError as e:
            found.append((place, e))
    return found


def _is_of_a_site(path: Path, roster: TrustedRoster) -> bool:
    """Also one from which the envelope was taken away; not one that a fetch is still building."""
    if not path.is_dir() or path.name.startswith(BUILDING):
        return False
    member = roster.member(path.name)
    return (path / RESULT_NAME).exists() or (member is not None and member.kind in ("site", "party"))


def _verify_saved(registry: Registry, roster: TrustedRoster, place: Path) -> SavedResult:
    parsed = envelope.parse(_read_bounded(place / TASK_NAME))
    task = envelope.verify(parsed, Task, registry.id, registry.keys.sign_key)
    member = roster.member(place.name)
    if member is None:
        raise NotAllowed(f"{place.name} is not in the roster")
    result = believe(_read_bounded(place / RESULT_NAME), place.name, task, parsed.sha256, member.sign_key)
    _check_files(registry, place, result)
    return SavedResult(result, place)


def _same_again(
    registry: Registry, place: Path, raw: bytes, site: str, task: Task, task_sha256: str, sign_key: str
) -> SavedResult:
    """A folder that is there already: fine if it holds this very result, whole; never overwritten otherwise."""
    try:
        same = _read_bounded(place / RESULT_NAME) == raw
    except VerificationError:
        same = False
    if not same:
        raise AlreadyExists(f"{place} is there already and holds something else", hint="give another folder with -o")
    result = believe(raw, site, task, task_sha256, sign_key)
    _check_files(registry, place, result)
    return SavedResult(result, place)


def _record(registry: Registry, task: Task, task_sha256: str) -> bytes:
    """The task's record as the registry has it now, if it is still the task."""
    _, digest, body = registry.own_record(task.id)
    if digest != task_sha256:
        raise DigestMismatch(f"the record of task {task.id} was exchanged", hint="somebody changes objects in the bucket")
    return body


def _fill(registry: Registry, building: Path, result: Result) -> None:
    """Fetch, check and decrypt every file of a result into a folder."""
    if not result.files:
        return
    listed = _manifest(registry, result)
    for file in result.files:
        with tempfile.TemporaryFile(dir=building) as cipher, (building / file.name).open("xb") as clear:
            key = layout.output(result.site, result.task, result.attempt, file.name)
            registry.fetch_sealed(file, key, cipher, f"{result.site}/{file.name}")
            check_plain(unseal(cipher, clear, registry.keys.identity), listed.get(file.name), file.name)
            clear.flush()
            os.fsync(clear.fileno())


def _check_files(registry: Registry, place: Path, result: Result) -> None:
    """The saved files against the sealed manifest: nothing changed, nothing missing, nothing added."""
    listed = _manifest(registry, result) if result.files else {}
    expected = {file.name for file in result.files}
    present = {path.name for path in place.iterdir()} - {RESULT_NAME, TASK_NAME}
    if present != expected:
        odd = ", ".join(sorted(present ^ expected))
        raise DigestMismatch(f"{place} does not hold just the files of the result: {odd}")
    for name in sorted(expected):
        with _open_regular(place / name) as file:
            check_plain(measure(file), listed.get(name), f"{place.name}/{name}")


def _manifest(registry: Registry, result: Result) -> dict[str, PlainFile]:
    identity: pyrage.x25519.Identity = registry.keys.identity
    return open_manifest(result.manifest or "", identity, registry=registry.id, task=result.task, sealed_by=result.site)


def _open_regular(path: Path) -> BinaryIO:
    """A file to read, never through a link."""
    if path.is_symlink() or not path.is_file():
        raise DigestMismatch(f"{path} is not a regular file")
    return path.open("rb")


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as e:
        raise Malformed(f"{path} cannot be read: {e.strerror}") from e


def _umask_of(written: Path) -> int:
    return 0o666 & ~written.stat().st_mode
