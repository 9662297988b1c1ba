"""What is to be sent, as a person named it: every mistake is found here, before anything is written.

Symbolic links that a person names are followed; what they lead to has to be a regular file."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from ptm import envelope
from ptm.complaint import complaint
from ptm.errors import UsageError
from ptm.model import MAX_FILES
from ptm.registry import Registry, new_nonce, now_utc
from ptm.transfer import Format, FromRun
from ptm.trustedparty.outbox import Inner, Plan, PlannedFile


@dataclass(frozen=True)
class Source:
    """A file to send, and what it is called in the collection. `inner`: of a file that is passed on."""

    name: str
    path: Path
    inner: Inner | None = None


def make_plan(
    registry: Registry,
    sources: Sequence[Source],
    *,
    to: str,
    collection: str,
    format: Format = "age",
    purpose: str = "",
    run: FromRun | None = None,
) -> Plan:
    """Everything that can be wrong is found here, before anything is written: `UsageError`, `NotAllowed`."""
    if not sources:
        raise UsageError("there is nothing to send", hint="give the files to send")
    if len(sources) > MAX_FILES:
        raise UsageError(f"a transfer has at most {MAX_FILES} files, not {len(sources)}", hint="pack them into one file")
    files = [_planned(source) for source in sources]
    seen: dict[str, PlannedFile] = {}
    for file in files:
        other = seen.setdefault(file.name.casefold(), file)
        if other is not file:
            raise UsageError(
                f"{other.path} and {file.path} would have the same name, {file.name}", hint="NAME=FILE gives a file another name"
            )
    check_party(registry, to)
    created, nonce = now_utc(), new_nonce()
    try:
        return Plan(
            id=envelope.transfer_id(created, registry.id, registry.me, nonce),
            nonce=nonce,
            created=created,
            party=to,
            collection=collection,
            format=format,
            purpose=purpose,
            run=run,
            files=tuple(files),
        )
    except ValidationError as e:
        raise UsageError(complaint(e), hint="`ptm inbox send --help` has an example") from e


def check_party(registry: Registry, to: str) -> str:
    """The age key of a member that may be sent to: a trusted party, or from one, anybody. `UsageError`, `NotAllowed`."""
    roster = registry.roster(60)
    me, member = roster.active(registry.me), roster.named(to)
    if "party" not in (me.kind, member.kind):
        raise UsageError(f"{to} is a {member.kind}, not a trusted party", hint="`ptm member list` shows the parties")
    return member.age_key


def _planned(source: Source) -> PlannedFile:
    with open_source(source.path) as file:
        info = os.fstat(file.fileno())
    try:
        return PlannedFile(
            name=source.name,
            path=source.path.absolute(),
            size=info.st_size,
            modified_ns=max(0, info.st_mtime_ns),
            inner=source.inner,
        )
    except ValidationError as e:
        raise UsageError(f"file name {source.name!r}: {complaint(e)}", hint="NAME=FILE gives it another name") from e


def open_source(path: Path) -> BinaryIO:
    """A regular file to read; `UsageError` says what else it is. A pipe is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UsageError(f"{path} is not there", hint="check the path") from None
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}", hint="send files that you may read") from e
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb", buffering=0)
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a folder", hint="name the files in it, or pack it into one file (tar, zip)")
    raise UsageError(f"{path} is not a regular file", hint="copy what it gives into a file, and send that")


def check_unchanged(begun: Plan, plan: Plan) -> None:
    now = {file.name: file for file in plan.files}
    for file in begun.files[: len(begun.done)]:
        if now[file.name] != file:
            raise UsageError(
                f"{file.path} has changed since transfer {begun.id} was interrupted, which has it as it was",
                hint=f"`ptm inbox resume` sends it as it was; `ptm inbox cancel {begun.id}` gives that transfer up",
            )
