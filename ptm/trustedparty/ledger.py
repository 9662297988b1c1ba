"""What a trusted party must not forget: one SQLite file with every answer it gave, every file it holds, who uses what, and what
is due to be purged.

Rules. An answer is here before anything of it is seen outside: after a crash the row says what is still to be done
(`publishing → answering → done`). An id that was accepted stays accepted for ever, whatever the bucket shows. Files of a
collection that is in use, or has a purge due, do not change hands: each such decision is one transaction, for the node, the
watch and a person's command may all have the file open (write-ahead log).

What this does not do: touch a collection's files, or the bucket."""

# ruff: noqa: S608 - what statements are put together from are constants of this module

from __future__ import annotations

import contextlib
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ulid import ULID

from ptm.errors import PtmError
from ptm.model import format_time, parse_time
from ptm.transfer import Format

Phase = Literal["publishing", "answering", "done"]
Why = Literal["used", "age", "asked"]
MAX_PURGED = 1000
"""Files in one record of a purge."""
BUSY_S = 10.0
LEAST_BYTES = 4096
"""What a file counts at least: an empty one takes an inode, a row and lines of the log."""
_SCHEMA = """
create table if not exists answers (
    transfer text not null,
    seen text not null,
    sender text not null,
    state text not null,
    phase text not null,
    receipt blob not null,
    primary key (transfer, seen)
) strict;
create unique index if not exists answers_accepted on answers (transfer) where state = 'accepted';
create index if not exists answers_unfinished on answers (phase) where phase != 'done';
create table if not exists files (
    transfer text not null,
    number integer not null,
    collection text not null,
    sender text not null,
    name text not null,
    folded text not null,
    stored text not null,
    size integer not null,
    sha256 text not null,
    cipher_sha256 text not null,
    format text,
    bytes integer not null,
    arrived text not null,
    published integer not null default 0,
    purge text,
    primary key (transfer, number)
) strict;
create unique index if not exists files_name on files (collection, sender, folded);
create index if not exists files_purge on files (purge) where purge is not null;
create table if not exists uses (collection text not null, task text not null, primary key (collection, task)) strict;
create table if not exists purges (
    id text primary key,
    collection text not null,
    why text not null,
    task text,
    person text,
    reason text not null,
    body blob,
    done integer not null default 0
) strict;
create index if not exists purges_due on purges (collection) where done = 0;
"""
_FILE = "transfer, number, collection, sender, name, stored, size, sha256, cipher_sha256, format, bytes, arrived"
_DUE = "exists (select 1 from purges where collection = ? and done = 0)"
_BUSY = "exists (select 1 from uses where collection = ?)"


@dataclass(frozen=True)
class HeldFile:
    """A file of a collection. `size` and `sha256` are the plaintext's; `format` is that of the file on disk, None if it lies in
    clear; `stored` is what it is called there, `bytes` how many it takes; `number` its place in its transfer."""

    transfer: str
    number: int
    collection: str
    sender: str
    name: str
    stored: str
    size: int
    sha256: str
    cipher_sha256: str
    format: Format | None
    bytes: int
    arrived: datetime


@dataclass(frozen=True)
class Answer:
    """An answer to a manifest with the digest `seen`, and how far it was carried out. `receipt`: the signed bytes."""

    transfer: str
    seen: str
    sender: str
    state: Literal["accepted", "refused"]
    phase: Phase
    receipt: bytes


@dataclass(frozen=True)
class Room:
    """What of a sender's is in a collection: names (folded) and bytes (`space`); `leaving` are names that are being purged;
    `busy` if nothing may be published there for now."""

    names: frozenset[str]
    leaving: frozenset[str]
    bytes: int
    busy: bool


@dataclass(frozen=True)
class DuePurge:
    """Files that have to go. `body`: the signed record, from when they are gone."""

    id: str
    collection: str
    why: Why
    task: str | None
    person: str | None
    reason: str
    body: bytes | None


def fold(name: str) -> str:
    """Names that some disk or some person takes for the same have the same folded form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def space(size: int) -> int:
    """What a file of this size counts towards its sender's quota."""
    return max(size, LEAST_BYTES)


class Ledger:
    """The file, opened. Safe to use from several threads, and several processes."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.RLock()
        try:
            path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=BUSY_S)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.execute("pragma secure_delete = on")
            self._db.executescript(_SCHEMA)
        except sqlite3.OperationalError as e:
            raise PtmError(f"{path} cannot be used: {e}", hint="check the free space and permissions of the home folder") from e
        except sqlite3.DatabaseError as e:
            raise PtmError(
                f"{path} is damaged: {e}", hint="restore it from a backup; without it old transfers could be taken again"
            ) from e
        except OSError as e:
            raise PtmError(f"{path} cannot be used: {e.strerror}", hint="check the permissions of the home folder") from e

    def close(self) -> None:
        self._db.close()

    # answers

    def accepted(self, transfer: str) -> Answer | None:
        """The acceptance of a transfer of this id, whatever its manifest was."""
        return next(iter(self._answers("where transfer = ? and state = 'accepted'", transfer)), None)

    def answer(self, transfer: str, seen: str) -> Answer | None:
        return next(iter(self._answers("where transfer = ? and seen = ?", transfer, seen)), None)

    def unfinished(self) -> list[Answer]:
        return self._answers("where phase != 'done' order by transfer")

    def refuse(self, answer: Answer) -> None:
        """Remember a refusal. Nothing changes if this manifest has its answer."""
        with self._transaction():
            self._insert(answer, "or ignore")

    def accept(self, answer: Answer, files: Sequence[HeldFile]) -> bool:
        """Take a transfer: from here on its files are published, whatever happens. False, and nothing, while its collection is in
        use or being purged. `PtmError` if a name is taken: the caller looked before (`room`), and is the only one who adds."""
        collection = files[0].collection
        with self._transaction() as ask:
            if ask(f"select {_BUSY} or {_DUE}", collection, collection)[0][0]:
                return False
            self._insert(answer, "")
            for file in files:
                values = (*(getattr(file, column) for column in _FILE.split(", ")[:-1]), format_time(file.arrived))
                marks = ", ".join("?" * (len(values) + 1))
                ask(f"insert into files ({_FILE}, folded) values ({marks})", *values, fold(file.name))
            return True

    def published(self, transfer: str) -> None:
        """All of an accepted transfer's files are in their folder."""
        with self._transaction() as ask:
            ask("update files set published = 1 where transfer = ?", transfer)
            ask("update answers set phase = 'answering' where transfer = ? and phase = 'publishing'", transfer)

    def finished(self, answer: Answer) -> None:
        """The receipt is out, and the inbox is clean."""
        with self._transaction() as ask:
            ask("update answers set phase = 'done' where transfer = ? and seen = ?", answer.transfer, answer.seen)

    # files

    def files_of(self, transfer: str) -> list[HeldFile]:
        return self._files("where transfer = ? order by number", transfer)

    def held(self, collection: str) -> list[HeldFile]:
        """The files that are there, and not about to go."""
        return self._files("where collection = ? and published and purge is null order by sender, name", collection)

    def room(self, collection: str, sender: str) -> Room:
        with self._transaction() as ask:
            rows = ask("select folded, purge, bytes from files where collection = ? and sender = ?", collection, sender)
            busy = bool(ask(f"select {_BUSY} or {_DUE}", collection, collection)[0][0])
        leaving = frozenset(str(folded) for folded, purge, _ in rows if purge is not None)
        names = frozenset(str(folded) for folded, purge, _ in rows if purge is None)
        return Room(names, leaving, sum(space(int(size)) for _, _, size in rows), busy)

    def hand_over(self) -> None:
        """What was taken for good is its reader's: nothing of it is held any more. The answers stay."""
        with self._transaction() as ask:
            ask("delete from files where transfer in (select transfer from answers where state = 'accepted' and phase = 'done')")

    # uses and purges

    def begin_use(self, collection: str, task: str, complete: Callable[[Sequence[HeldFile]], bool]) -> bool:
        with self._transaction() as ask:
            if ask("select 1 from uses where collection = ? and task = ?", collection, task):
                return True
            publishing = "exists (select 1 from files where collection = ? and not published)"
            if ask(f"select {publishing} or {_DUE}", collection, collection)[0][0] or not complete(self.held(collection)):
                return False
            ask("insert into uses (collection, task) values (?, ?)", collection, task)
            return True

    def end_use(self, collection: str, task: str, *, purge: bool, now: datetime) -> None:
        """`purge`: all that it holds is due to go. Nothing if the task does not use it."""
        with self._transaction() as ask:
            if ask("delete from uses where collection = ? and task = ? returning 1", collection, task) and purge:
                self._plan("used", now, self.held(collection), task=task)

    def users(self, collection: str) -> list[str]:
        """The tasks that use a collection."""
        return [str(row[0]) for row in self._ask("select task from uses where collection = ? order by task", collection)]

    def plan_purge(
        self,
        collection: str,
        why: Why,
        now: datetime,
        *,
        sender: str | None = None,
        before: datetime | None = None,
        person: str | None = None,
        reason: str = "",
    ) -> list[HeldFile]:
        """Have files go: all, a sender's, or those that arrived before a time. Returns which. They go when nobody uses them."""
        with self._transaction():
            files = [file for file in self.held(collection) if sender in (None, file.sender)]
            files = [file for file in files if before is None or file.arrived < before]
            self._plan(why, now, files, person=person, reason=reason)
        return files

    def due_purges(self) -> list[DuePurge]:
        """Those whose collection nobody uses, oldest first."""
        query = (
            "select id, collection, why, task, person, reason, body from purges where done = 0 and not exists "
            "(select 1 from uses where uses.collection = purges.collection) order by id"
        )
        return [DuePurge(*row) for row in self._ask(query)]

    def files_of_purge(self, purge: str) -> list[HeldFile]:
        return self._files("where purge = ? order by sender, name", purge)

    def purge_signed(self, purge: str, body: bytes) -> None:
        """The files are gone; this is the record that says so."""
        with self._transaction() as ask:
            ask("update purges set body = ? where id = ? and body is null", body, purge)

    def purge_done(self, purge: str) -> None:
        """The record is out: names and room are free again."""
        with self._transaction() as ask:
            ask("delete from files where purge = ?", purge)
            ask("update purges set done = 1 where id = ?", purge)
        self._ask("pragma wal_checkpoint(truncate)")  # what was deleted is in the log otherwise until that is full

    def purges(self, collection: str) -> list[DuePurge]:
        """Every purge of a collection, done or due, oldest first."""
        columns = "id, collection, why, task, person, reason, body"
        return [DuePurge(*row) for row in self._ask(f"select {columns} from purges where collection = ? order by id", collection)]

    def _plan(
        self,
        why: Why,
        now: datetime,
        files: Sequence[HeldFile],
        task: str | None = None,
        person: str | None = None,
        reason: str = "",
    ) -> None:
        """Inside a transaction."""
        for at in range(0, len(files), MAX_PURGED):
            some, number = files[at : at + MAX_PURGED], str(ULID.from_datetime(now))
            self._db.execute(
                "insert into purges (id, collection, why, task, person, reason) values (?, ?, ?, ?, ?, ?)",
                (number, some[0].collection, why, task, person, reason),
            )
            keys = [(number, file.transfer, file.number) for file in some]
            self._db.executemany("update files set purge = ? where transfer = ? and number = ?", keys)

    # the file

    def _insert(self, answer: Answer, how: str) -> None:
        values = (answer.transfer, answer.seen, answer.sender, answer.state, answer.phase, answer.receipt)
        statement = f"insert {how} into answers (transfer, seen, sender, state, phase, receipt) values (?, ?, ?, ?, ?, ?)"
        self._db.execute(statement, values)

    def _answers(self, where: str, *values: object) -> list[Answer]:
        return [
            Answer(*row)
            for row in self._ask("select transfer, seen, sender, state, phase, receipt from answers " + where, *values)
        ]

    def _files(self, where: str, *values: object) -> list[HeldFile]:
        rows = self._ask(f"select {_FILE} from files {where}", *values)
        return [_held(row) for row in rows]

    def _ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._errors(), self._lock:
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
        """All that is done in the block, or nothing; nobody else writes meanwhile."""
        with self._errors(), self._lock:
            self._db.execute("begin immediate")
            try:
                yield self._ask
                self._db.execute("commit")
            except BaseException:
                with contextlib.suppress(sqlite3.OperationalError):  # a full disk has rolled it back already
                    self._db.execute("rollback")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise PtmError(f"{self._path.name} cannot be used: {e}", hint="check the free space of the home folder") from e


def _held(row: tuple[Any, ...]) -> HeldFile:
    values: tuple[Any, ...] = (*row[:-1], parse_time(row[-1]))
    return HeldFile(*values)
