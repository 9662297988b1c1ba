"""A trusted party's collections as data sources of its own node (`ptm.trustedparty.collection`; docs/trusted-party.md).

A task may use a collection if the policy's rule grants it by name, as any data source, and the collection's own `researchers`
hold who asks. Until it is complete the run waits: nothing is claimed, one signed note says what is missing, and a change of that
is told at most `MAX_TOLD` times. From just before the claim until its result is out, or it is known that it will not run, the
run holds the collection: nothing is published into it or purged from it meanwhile. The ledger keeps that through a crash, and
what is held by no run (after a crash, or as its task was taken out of the queue before the claim) is let go of at the node's
start and every hour."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from ptm.config import FileSource, Home, NodeConfig
from ptm.errors import ConfigError
from ptm.model import Kind, Task, as_text
from ptm.node.verify import AuthenticTask
from ptm.node.worker import Worker
from ptm.notes import Note, RunRecord
from ptm.registry import now_utc
from ptm.trustedparty.collection import Collections, load_party

log = logging.getLogger("ptm.node")
MAX_TOLD = 16
"""So many notes about missing data one run gets. After that the last one stands, whatever changes."""


def of_party(home: Home, kind: Kind) -> Collections | None:
    """The collections of a home, if it is a trusted party's and has a `party.toml`. `ConfigError` for a mistake in it."""
    party = load_party(home) if kind == "party" else None
    return Collections(home, party) if party is not None else None


def with_collections(config: NodeConfig, collections: Collections | None) -> NodeConfig:
    """The settings with every collection as a folder among the data sources. `ConfigError` if a name is taken twice."""
    if collections is None:
        return config
    twice = sorted(collections.names & set(config.data))
    if twice:
        raise ConfigError(
            f"{twice[0]} is a data source in node.toml and a collection in party.toml", hint="give one of them another name"
        )
    folders = {name: FileSource(kind="folder", path=collections.state(name).folder) for name in sorted(collections.names)}
    return config.model_copy(update={"data": {**config.data, **folders}})


def used_by(worker: Worker, task: Task) -> tuple[str, ...]:
    """The collections among the data that a task asks for."""
    names = worker.collections.names if worker.collections is not None else frozenset[str]()
    return tuple(name for name in task.data if name in names)


def not_for(worker: Worker, task: Task) -> tuple[str, str] | None:
    """Why, and what to do, if this researcher may not compute on a collection that the task asks for."""
    for name in used_by(worker, task):
        assert worker.collections is not None
        if not worker.collections.is_source(name):
            return f"the collection {name} is kept sealed and is no data source", "ask the party what it is for"
        if not worker.collections.may_compute(name, task.user):
            return (
                f"{task.user} may not compute on the collection {name}",
                "ask the party to add you to the collection's researchers in its party.toml",
            )
    return None


def data_is_there(worker: Worker, found: AuthenticTask, record: RunRecord) -> bool:
    """Whether every collection that the task asks for is complete. If not, the researcher is told what is missing."""
    missing = [text for name in used_by(worker, found.task) for text in _missing(worker, name)]
    if missing:
        _tell(worker, found, record, as_text("; ".join(missing)))
    return not missing


def begin_use(worker: Worker, found: AuthenticTask, record: RunRecord) -> bool:
    """Hold every collection that the task asks for. False, and nothing is held, if one is not complete any more."""
    for name in used_by(worker, found.task):
        assert worker.collections is not None
        if not worker.collections.begin_use(name, found.task.id):
            end_use(worker, found.task, completed=False)
            data_is_there(worker, found, record)
            return False
    return True


def end_use(worker: Worker, task: Task, *, completed: bool) -> None:
    """Let go of the collections. No effect the second time, nor for a run that never held them."""
    for name in used_by(worker, task):
        assert worker.collections is not None
        worker.collections.end_use(name, task.id, completed)


def let_go(worker: Worker, keep: set[str]) -> None:
    """Let go of what none of these tasks holds: a crash, or the bucket, came between the hold and the run's own record."""
    if worker.collections is None:
        return
    for name in worker.collections.names:
        for task in set(worker.collections.users(name)) - keep:
            log.info("task %s: does not use the collection %s any more", task, name)
            worker.collections.end_use(name, task, completed=False)


def make_readable(worker: Worker, task: Task) -> None:
    """Let the container's user read what it is shown, whoever that is. The folder above all collections stays this account's
    alone, so on this machine nobody else comes near; and nothing is published into a collection that is in use."""
    for name in used_by(worker, task):
        folder = worker.config.data[name]
        assert isinstance(folder, FileSource)
        folder.path.parent.chmod(0o700)
        for place, _, files in os.walk(folder.path):
            Path(place).chmod(0o755)
            for file in files:
                path = Path(place) / file
                if stat.S_ISREG(path.lstat().st_mode):
                    path.chmod(0o644)


def _missing(worker: Worker, name: str) -> list[str]:
    assert worker.collections is not None
    state = worker.collections.state(name)
    if state.complete:
        return []
    return [f"the collection {name} is not complete: {', '.join(state.missing) or 'files of it are being removed'}"]


def _tell(worker: Worker, found: AuthenticTask, record: RunRecord, missing: str) -> None:
    """One note for as long as the same is missing."""
    told = [note for note in record.notes if note.what == "waiting-data"]
    last = record.waiting_data(found.sha256)
    if record.claimed or len(told) >= MAX_TOLD or (last is not None and last.reason == missing):
        return
    task = found.task
    worker.audit.record("data-waited-for", task.id, user=task.user, data=list(task.data), missing=missing)
    worker.registry.write_note(
        Note(
            registry=worker.registry.id,
            task=task.id,
            task_sha256=found.sha256,
            user=task.user,
            site=worker.registry.me,
            what="waiting-data",
            worker=worker.config.worker,
            reason=missing,
            created=now_utc(),
        )
    )
    log.info("task %s of %s: %s", task.id, task.user, missing)
