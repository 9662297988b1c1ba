"""What happened at this worker, for people who have to answer for it: one JSON line per event, hash-chained, never rewritten.

Each entry has its number, the hash of the entry before, and its own hash: SHA-256 over the RFC 8785 form of everything else in
it. So nothing in the middle can be changed or left out unseen. What the chain alone cannot show is that its end was cut off, or
all of it written anew: for that every result, and the heartbeat, carries the newest hash out of the site (`audit_head`), and
`verify` wants to see those again.

An entry is on disk before `record` returns. A line without its end is what a crash leaves; it was never reported as written, so
opening cuts it off and says so in the next entry. A whole line that is not what it should be is an alarm, never repaired.

What it does not do: keep a second writer out (`ptm.node.state` does), hold anything secret, or ever forget."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import rfc8785
from pydantic import Field

from ptm.envelope import load, parse_json
from ptm.errors import PtmError, UsageError, VerificationError
from ptm.files import sync_folder
from ptm.model import Frozen, Sha256, Time, Ulid, format_time
from ptm.registry import now_utc

FIRST = "0" * 64
"""What the first entry gives as the hash before it."""
MAX_LINE = 1024 * 1024
MAX_ONCE = 4096
BLOCK = 256 * 1024
VERIFY = "`ptm node audit --verify` checks all of it"
MOVE_IT = "find out who changed it; keep the file elsewhere, and a new one begins at the next start"
Fact = str | int | bool | None | list[Any] | dict[str, Any]


class Entry(Frozen):
    """One line. `facts` are the event's own."""

    n: Annotated[int, Field(ge=1)]
    time: Time
    event: Annotated[str, Field(pattern=r"^[a-z]+(-[a-z]+)*$", max_length=60)]
    task: Ulid | None = None
    facts: dict[str, Any] = {}
    previous: Sha256
    hash: Sha256


@dataclass
class Report:
    """What a check of the chain found. `problems` is empty if it is whole; `missing` are the wanted hashes it does not hold,
    and where each was seen."""

    entries: int = 0
    head: str = FIRST
    problems: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    torn: bool = False
    workers: set[str] = field(default_factory=set)

    @property
    def whole(self) -> bool:
        return not self.problems and not self.missing


class Audit:
    """The log, open for writing. Safe to use from several threads of the one process that writes it."""

    def __init__(self, path: Path, now: Callable[[], datetime] = now_utc) -> None:
        self._path, self._now, self._lock = path, now, threading.Lock()
        self._count, self._head = 0, FIRST
        self._once: set[str] = set()
        try:
            new = not path.exists()
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            if new:
                sync_folder(path.parent)
            torn = self._continue()
        except OSError as e:
            raise PtmError(f"{path} cannot be used: {e.strerror}", hint="check the free space and the permissions") from e
        if torn:
            self.record("recovered", bytes_cut_off=len(torn), sha256=hashlib.sha256(torn).hexdigest())

    @property
    def head(self) -> str:
        """The newest entry's hash."""
        return self._head

    def close(self) -> None:
        os.close(self._file)

    def record(self, event: str, task: str | None = None, **facts: Fact) -> str:
        """Write an entry, durably, and return its hash. `PtmError` if that is not possible: nothing is done unrecorded."""
        with self._lock:
            entry = _entry(self._count + 1, self._now(), event, task, facts, self._head)
            self._append(rfc8785.dumps(entry) + b"\n")
            self._count, self._head = self._count + 1, str(entry["hash"])
            return self._head

    def record_once(self, event: str, task: str, **facts: Fact) -> None:
        """The same, but not what this process has recorded before: for what whoever runs the bucket can have done over and over,
        by hiding what came of it. Of more than `MAX_ONCE` the memory starts anew."""
        said = json.dumps([event, task, facts], sort_keys=True)
        if said in self._once:
            return
        self.record(event, task, **facts)
        if len(self._once) >= MAX_ONCE:
            self._once.clear()
        self._once.add(said)

    def _append(self, line: bytes) -> None:
        """All of a line, or none of it."""
        size = os.fstat(self._file).st_size
        try:
            left = line
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as e:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise PtmError(
                f"the audit log cannot be written: {e.strerror}", hint="check the free space of the home folder"
            ) from e

    def _continue(self) -> bytes:
        """Find the end of the chain; cut off and return what a crash left of a line."""
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, 2 * MAX_LINE, max(0, size - 2 * MAX_LINE))
        whole, end, torn = tail.rpartition(b"\n")
        if not end and size > len(tail):
            raise PtmError(f"{self._path} does not end like an audit log", hint=MOVE_IT)
        if torn:
            os.ftruncate(self._file, size - len(torn))
            os.fsync(self._file)
        if end:
            try:
                last = _read(whole.rpartition(b"\n")[2])
            except VerificationError as e:
                raise PtmError(f"{self._path}: the last entry is damaged: {e}", hint=MOVE_IT) from e
            self._count, self._head = last.n, last.hash
        return torn


def entries(path: Path) -> Iterator[Entry]:
    """Every entry, oldest first; a torn last line is left out. `VerificationError` at one that is damaged; nothing is verified
    beyond that (`verify`)."""
    for number, line in _lines(path):
        try:
            yield _read(line)
        except VerificationError as e:
            raise VerificationError(f"line {number} is damaged: {e}", hint=VERIFY) from e


def newest(path: Path, most: int, task: str | None = None, within: int | None = None) -> tuple[list[Entry], bool]:
    """The newest entries (of one task), newest first, read from the end: what a long log costs is what is shown of it. Looks at
    no more than about `within` bytes, and says whether that left out any. `VerificationError` at one that is damaged."""
    found: list[Entry] = []
    about = None if task is None else task.encode()
    looked = number = 0
    for line in _from_the_end(path):
        looked, number = looked + len(line) + 1, number + 1
        if about is None or about in line:
            try:
                entry = _read(line)
            except VerificationError as e:
                raise VerificationError(f"line {number} from the end is damaged: {e}", hint=VERIFY) from e
            if task in (None, entry.task):
                found.append(entry)
        if len(found) >= most:
            break
        if within is not None and looked > within:
            return found, True
    return found, False


def _from_the_end(path: Path) -> Iterator[bytes]:
    """Every whole line, the last one first. What a crash left of a line is no line."""
    try:
        with path.open("rb") as file:
            at, kept, whole = file.seek(0, os.SEEK_END), b"", False
            while at > 0:
                step = min(BLOCK, at)
                at = file.seek(at - step)
                first, *lines = (file.read(step) + kept).split(b"\n")
                if lines and not whole:
                    lines, whole = lines[:-1], True
                yield from reversed(lines)
                kept = first
                if len(kept) > 2 * MAX_LINE:
                    raise VerificationError("has a line without end", hint=VERIFY)
            if whole:
                yield kept
    except FileNotFoundError as e:
        raise _no_log(path) from e
    except OSError as e:
        raise PtmError(f"{path} cannot be read: {e.strerror}") from e


def _no_log(path: Path) -> UsageError:
    return UsageError(f"there is no {path}", hint="`ptm node watch`, or `ptm trustedparty watch`, writes it")


def verify(path: Path, wanted: Mapping[str, str] | None = None) -> Report:
    """Check every link of the chain, and that it holds the hashes that were seen outside (`wanted`: hash to where)."""
    report = Report(missing=dict(wanted or {}))
    for number, line in _lines(path, report):
        try:
            entry = _read(line)
        except VerificationError as e:
            report.problems.append(f"line {number}: {e}")
            report.entries, report.head = report.entries + 1, ""
            continue
        if entry.n != report.entries + 1:
            report.problems.append(f"line {number}: entry {entry.n} stands where entry {report.entries + 1} should")
        elif report.head and entry.previous != report.head:
            report.problems.append(f"line {number}: does not follow from the entry before it")
        report.entries, report.head = entry.n, entry.hash
        report.missing.pop(entry.hash, None)
        if entry.event == "node-started":
            report.workers.add(str(entry.facts.get("worker")))
    return report


def _lines(path: Path, report: Report | None = None) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(2 * MAX_LINE), b""), 1):
                if not line.endswith(b"\n") and not file.peek(1):
                    if report is not None:
                        report.torn = True
                    return
                yield number, line.rstrip(b"\n")
    except FileNotFoundError as e:
        raise _no_log(path) from e
    except OSError as e:
        raise PtmError(f"{path} cannot be read: {e.strerror}") from e


def _entry(n: int, time: datetime, event: str, task: str | None, facts: dict[str, Fact], previous: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"n": n, "time": format_time(time), "event": event, "previous": previous}
    if task is not None:
        entry["task"] = task
    kept = {name: value for name, value in facts.items() if value is not None}
    if kept:
        entry["facts"] = kept
    return entry | {"hash": hashlib.sha256(rfc8785.dumps(entry)).hexdigest()}


def _read(line: bytes) -> Entry:
    """One line, if its own hash is right."""
    value = parse_json(line)
    entry = load(Entry, line)
    assert isinstance(value, dict)
    said = value.pop("hash")
    try:
        found = hashlib.sha256(rfc8785.dumps(value)).hexdigest()
    except (rfc8785.CanonicalizationError, ValueError) as e:
        raise VerificationError(f"entry {entry.n} was changed: {e}") from e
    if found != said:
        raise VerificationError(f"entry {entry.n} was changed")
    return entry


def in_words(entry: Entry) -> str:
    """One line for people: time, event, task, facts."""
    facts = " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in entry.facts.items())
    return " ".join(part for part in (format_time(entry.time), entry.event, entry.task or "", facts) if part)
