"""What a worker keeps with a run in its state, so that a restart, or a policy that changed meanwhile, changes nothing about it:
the terms it was accepted on, and what is held of it.

`HeldList` also travels, sealed to the site itself, in the note that asks for a release."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import rfc8785
from pydantic import Field

from ptm.config import Limits
from ptm.model import (
    LOG_NAME,
    MAX_FILES,
    DataUse,
    Decision,
    FileName,
    Frozen,
    ImageDigest,
    Name,
    Nonce,
    PlainFile,
    Sha256,
    Text,
    Time,
)
from ptm.node.policy import Allowed
from ptm.seal import measure


class Terms(Frozen):
    """How a run was allowed: by which rule of which policy, approved by whom, and what happens to what it leaves."""

    rule: str
    policy_sha256: Sha256
    limits: Limits
    data: tuple[Name, ...] = ()
    image_digest: ImageDigest | None = None
    decided_by: tuple[Decision, ...] = ()
    release: Literal["auto", "manual"] = "auto"
    release_timeout_s: int | None = None
    logs: bool = True
    max_files: int
    max_mb: int
    names: tuple[str, ...] = ()
    min_cell: int | None = None


class Finding(Frozen):
    """What an automatic check has against a file, or against all of them together. For people at the site only: the text may
    quote what the run wrote."""

    rule: Literal["files", "size", "names", "min_cell"]
    file: Text | None = None
    text: Text


class HeldList(Frozen):
    """What is held of a run: the files that a release lets out, and what the checks found. `salt` is random."""

    salt: Nonce
    files: Annotated[tuple[PlainFile, ...], Field(max_length=MAX_FILES + 1)] = ()
    findings: Annotated[tuple[Finding, ...], Field(max_length=100)] = ()
    outcome: Text = ""

    @property
    def sha256(self) -> str:
        """What a release is bound to. With the salt it tells nobody what the files are."""
        return hashlib.sha256(rfc8785.dumps(self.model_dump(mode="json", include={"salt", "files"}))).hexdigest()


class WithheldFiles(Frozen):
    """The names of single files withheld. They stay at the site: a name may tell something, too."""

    names: Annotated[tuple[FileName, ...], Field(min_length=1, max_length=MAX_FILES + 1)]


class HeldRun(Frozen):
    """How a run that is held ended, for the result that it gets when it is released."""

    state: Literal["completed", "failed"]
    reason: Text | None = None
    hint: Text | None = None
    exit_code: int | None = None
    image_digest: ImageDigest | None = None
    start_time: Time | None = None
    end_time: Time
    data_use: tuple[DataUse, ...] = ()
    since: Time
    listing: HeldList


def make_terms(allowed: Allowed, image_digest: str | None, decided_by: tuple[Decision, ...]) -> Terms:
    """`image_digest`: the image that was approved, where one had to be."""
    return Terms(
        rule=allowed.rule,
        policy_sha256=allowed.policy_sha256,
        limits=allowed.limits,
        data=tuple(allowed.data),
        image_digest=image_digest,
        decided_by=decided_by,
        release=allowed.release,
        release_timeout_s=allowed.release_timeout_s,
        logs=allowed.logs,
        max_files=allowed.outputs.max_files,
        max_mb=allowed.outputs.max_mb,
        names=allowed.outputs.names,
        min_cell=allowed.outputs.min_cell,
    )


def list_files(paths: Iterable[Path]) -> tuple[PlainFile, ...]:
    """Name, size and SHA-256 of each file, by name, the log last. Never through a link."""
    found = []
    for path in sorted(paths, key=lambda path: (path.name == LOG_NAME, path.name)):
        if path.is_symlink() or not path.is_file():
            raise OSError(0, f"{path.name} is no regular file")
        with path.open("rb") as file:
            measured = measure(file)
        found.append(PlainFile(name=path.name, size=measured.size, sha256=measured.sha256))
    return tuple(found)


def in_words(seconds: int) -> str:
    """A time-out for people: `3 days`, `90 minutes`."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds % length == 0:
            count = seconds // length
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{seconds} s"
