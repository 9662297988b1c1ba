"""What a worker must not forget: one SQLite file with a row per run it took on.

A run's phase only moves forward: `claimed → starting → started → (held →) spooled → delivered`. It is written before the step
that it announces, so after a crash the row says what may have happened (`ptm.node.run` continues from it). A
delivered row is kept until the task has expired: so an entry put back into the queue is not run again."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ptm.errors import PtmError
from ptm.model import format_time

Phase = Literal["claimed", "starting", "started", "held", "spooled", "delivered"]
Memo = Literal["terms", "held", "decided"]

_SCHEMA = """
create table if not exists runs (
    task text primary key,
    user text not null,
    task_sha256 text not null,
    attempt text not null,
    task_body blob not null,
    phase text not null,
    handle text,
    image_digest text,
    result blob,
    expires text not null
) strict;
create index if not exists runs_phase on runs (phase);
create index if not exists runs_user on runs (user, attempt);
create table if not exists memos (
    task text not null references runs (task) on delete cascade,
    what text not null,
    body text not null,
    primary key (task, what)
) strict;
"""


@dataclass(frozen=True)
class RunRow:
    """`task_body`: the signed task as it was accepted; `handle`: the runner's; `result`: the signed result as it will
    be, or was, committed."""

    task: str
    user: str
    task_sha256: str
    attempt: str
    task_body: bytes
    phase: Phase
    handle: str | None
    image_digest: str | None
    result: bytes | None


class State:
    """The file, opened. Safe to use from several threads of one process; a second process is kept out by a lock."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=2.0)
            self._db.execute("pragma locking_mode = exclusive")
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.execute("pragma foreign_keys = on")
            self._db.executescript(_SCHEMA)
            self._db.execute("begin immediate")
            self._db.execute("commit")
        except sqlite3.OperationalError as e:
            if "locked" in str(e):
                raise PtmError(
                    "another `ptm node watch` runs with this home", hint="one home, one worker; give the second its own --home"
                ) from e
            raise PtmError(
                f"{path} cannot be used: {e}", hint="check the free space and the permissions of the home folder"
            ) from e
        except sqlite3.DatabaseError as e:
            raise PtmError(
                f"{path} is damaged: {e}", hint="restore it from a backup; without it the node could run old tasks again"
            ) from e

    def close(self) -> None:
        self._db.close()

    def find(self, task: str) -> RunRow | None:
        rows = self._rows("where task = ?", task)
        return rows[0] if rows else None

    def unfinished(self) -> list[RunRow]:
        """Every run that is not delivered."""
        return self._rows("where phase != 'delivered' order by task")

    def open_run(self, task: str, user: str, task_sha256: str, attempt: str, body: bytes, expires: datetime) -> RunRow:
        """Remember that this worker takes on a run (phase `claimed`); returns the row that is there already if there
        is one."""
        self._execute(
            "insert or ignore into runs (task, user, task_sha256, attempt, task_body, phase, expires)"
            " values (?, ?, ?, ?, ?, 'claimed', ?)",
            task,
            user,
            task_sha256,
            attempt,
            body,
            format_time(expires),
        )
        row = self.find(task)
        if row is None:
            raise PtmError(f"the run of task {task} could not be remembered")
        return row

    def remember(self, task: str, what: Memo, body: str) -> None:
        """Keep a text with a run: the terms that it runs on, or what is held of it (JSON, its writer's own)."""
        self._execute("insert or replace into memos (task, what, body) values (?, ?, ?)", task, what, body)

    def recall(self, task: str, what: Memo) -> str | None:
        found = self._ask("select body from memos where task = ? and what = ?", task, what)
        return str(found[0][0]) if found else None

    def runs_since(self, user: str, first_attempt: str, besides: str) -> int:
        """How many runs of this user, besides one task's, were allowed whose attempt id (a ULID, so a time) is not before this
        one."""
        query = (
            "select count(*) from runs join memos on memos.task = runs.task and memos.what = 'terms' "
            "where runs.user = ? and runs.attempt >= ? and runs.task != ?"
        )
        return int(self._ask(query, user, first_attempt, besides)[0][0])

    def held(self, task: str, body: str) -> None:
        """What the run left waits for a person; `body` says what it is."""
        self.remember(task, "held", body)
        self._execute("update runs set phase = 'held' where task = ?", task)

    def starting(self, task: str, image_digest: str) -> None:
        self._execute("update runs set phase = 'starting', image_digest = ? where task = ?", image_digest, task)

    def started(self, task: str, handle: str) -> None:
        self._execute("update runs set phase = 'started', handle = ? where task = ?", handle, task)

    def spooled(self, task: str, result: bytes) -> None:
        self._execute("update runs set phase = 'spooled', result = ? where task = ?", result, task)

    def delivered(self, task: str) -> None:
        self._execute("update runs set phase = 'delivered' where task = ?", task)

    def release(self, task: str) -> None:
        """Forget a run that was not begun: another worker has it."""
        self._execute("delete from runs where phase = 'claimed' and task = ?", task)

    def forget_expired(self, before: datetime) -> None:
        """Drop delivered runs of tasks that expired before this time: such a task would be refused anyway. Give a time a
        day ago, for runs of the day count against budgets."""
        self._execute("delete from runs where phase = 'delivered' and expires < ?", format_time(before))

    def _rows(self, where: str, *values: str) -> list[RunRow]:
        query = "select task, user, task_sha256, attempt, task_body, phase, handle, image_digest, result from runs " + where  # noqa: S608 - `where` is one of three constants of this module
        return [RunRow(*row) for row in self._ask(query, *values)]

    def _ask(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.OperationalError as e:
            raise PtmError(f"the node's state cannot be read: {e}", hint="check the disk of the home folder") from e

    def _execute(self, statement: str, *values: object) -> None:
        try:
            with self._lock:
                self._db.execute(statement, values)
        except sqlite3.OperationalError as e:
            raise PtmError(f"the node's state cannot be written: {e}", hint="check the free space of the home folder") from e
