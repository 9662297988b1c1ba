"""Seals what was planned into a transfer's folder, file by file, and signs the manifest.

A file that is sealed is synced and noted in the plan, so that an interruption costs no more than the file it fell into. A file
that changes while it is read is an error: what would be sealed is neither the old one nor the new one. Constant memory.

No store is touched."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import BinaryIO, cast

from pydantic import ValidationError

from ptm.errors import DigestMismatch, Malformed, PtmError, UsageError
from ptm.files import write_atomic
from ptm.keys import MemberKeys
from ptm.model import PlainFile, SentFile
from ptm.registry import Registry
from ptm.seal import seal_manifest
from ptm.store.base import Progress
from ptm.transfer import Transfer
from ptm.trustedparty.formats import seal_stream
from ptm.trustedparty.outbox import Done, Inner, Plan, PlannedFile, TransferFolder
from ptm.trustedparty.sources import open_source
from ptm.trustedparty.streams import Growth, Synced
from ptm.trustedparty.unsealing import opened

SPARE_BYTES = 1024 * 1024
NOBODY_FOLLOWS: Mapping[int, Growth] = MappingProxyType({})
_FULL = {errno.ENOSPC, errno.EDQUOT}


def seal_plan(
    registry: Registry,
    folder: TransferFolder,
    plan: Plan,
    key: str,
    progress: Progress | None,
    growths: Mapping[int, Growth] = NOBODY_FOLLOWS,
) -> tuple[Transfer, bytes]:
    """Seal to the party's age key what is not sealed yet, and sign: the transfer, and its bytes. `growths`, by the number of the
    file, are told how much of it there is; their end comes when the plan has it as sealed."""
    try:
        _check_room(folder, plan)
        for number in range(len(plan.done), len(plan.files)):
            growth = growths.get(number)
            done = _seal_file(registry, folder, plan, plan.files[number], key, progress, growth)
            plan = plan.model_copy(update={"done": (*plan.done, done)})
            _check_wanted(growths)
            folder.save_plan(plan)
            if growth is not None:
                growth.end()
        transfer = _as_transfer(registry, plan, key)
        body = registry.sign(transfer)
        _check_wanted(growths)
        write_atomic(folder.manifest, body, mode=0o600)
    except (ValidationError, Malformed) as e:
        raise UsageError(f"the transfer is not well-formed: {e}", hint="fewer files, or shorter names") from e
    return transfer, body


def _check_wanted(growths: Mapping[int, Growth]) -> None:
    """`BrokenPipeError` if nobody waits for this any more: the folder may be another's by now."""
    for growth in growths.values():
        growth.add(0)


def _seal_file(
    registry: Registry,
    folder: TransferFolder,
    plan: Plan,
    file: PlannedFile,
    key: str,
    progress: Progress | None,
    growth: Growth | None,
) -> Done:
    target = folder.sealed(file.name, plan.format)
    with open_source(file.path) as stored:
        before = os.fstat(stored.fileno())
        counting = cast("BinaryIO", _Counting(stored, progress))
        try:
            target.unlink(missing_ok=True)
            with target.open("xb") as hidden, _in_clear(counting, file.inner, registry.keys) as clear:
                synced = Synced(hidden, growth)
                plain, cipher = seal_stream(plan.format, clear, cast("BinaryIO", synced), key)
                synced.sync()
        except OSError as e:
            raise _not_sealed(file, folder, e) from e
        after = os.fstat(stored.fileno())
    size = file.inner.size if file.inner else before.st_size
    if (before.st_size, before.st_mtime_ns, size) != (after.st_size, after.st_mtime_ns, plain.size):
        raise UsageError(f"{file.path} changed while it was read", hint="send it when nobody writes to it any more")
    if file.inner and plain.sha256 != file.inner.sha256:
        raise DigestMismatch(f"{file.path} is not the file that was received", hint="something changed it on this disk")
    return Done(
        plain=PlainFile(name=file.name, size=plain.size, sha256=plain.sha256),
        cipher=SentFile(name=file.name, size=cipher.size, sha256=cipher.sha256),
    )


def _in_clear(stored: BinaryIO, inner: Inner | None, keys: MemberKeys) -> contextlib.AbstractContextManager[BinaryIO]:
    """What a file says: as it is read, or for one that lies sealed to this home, as it is opened."""
    if inner is None or inner.format is None:
        return contextlib.nullcontext(stored)
    return opened(stored, inner.format, keys, inner.size)


def _not_sealed(file: PlannedFile, folder: TransferFolder, e: OSError) -> PtmError:
    if e.errno in _FULL:
        return PtmError(
            f"the disk of {folder.path.parent} is full", hint="free space there: a sealed copy is kept until it is sent"
        )
    return PtmError(f"{file.path} could not be sealed: {e.strerror or e}", hint="check the file and its disk")


def _check_room(folder: TransferFolder, plan: Plan) -> None:
    """Say that the disk is too small before an hour of sealing, not after."""
    needed = sum(at_most(file) for file in plan.files[len(plan.done) :]) + SPARE_BYTES
    free = shutil.disk_usage(folder.path).free
    if free < needed:
        raise PtmError(
            f"the sealed files take {needed // 10**6} MB, and {folder.path.parent} has {free // 10**6} MB left",
            hint="free space there, or send the files one by one: a sealed copy is kept until it is sent",
        )


def at_most(file: PlannedFile) -> int:
    """How many bytes a file has when it is sealed, but for its header."""
    return file.size + file.size // 1000


def _as_transfer(registry: Registry, plan: Plan, key: str) -> Transfer:
    return Transfer(
        registry=registry.id,
        id=plan.id,
        nonce=plan.nonce,
        sender=registry.me,
        party=plan.party,
        collection=plan.collection,
        format=plan.format,
        purpose=plan.purpose,
        run=plan.run,
        files=tuple(done.cipher for done in plan.done),
        manifest=seal_manifest(registry.id, plan.id, registry.me, [done.plain for done in plan.done], [key]),
        created=plan.created,
    )


class _Counting:
    """A file to read, that tells how much was read."""

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file, self._progress = file, progress

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        if self._progress and chunk:
            self._progress(len(chunk))
        return chunk
