"""How the site is doing, for people: its workers by their heartbeats, the roster, the policy, what runs.

A heartbeat's own time is never believed: a worker is alive if its beat changed while this process looked (`Beats`, which is
asked every few seconds). Nothing here acts on what it finds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from ptm import layout
from ptm.config import NodeConfig, read_toml
from ptm.errors import ConfigError, NotFound, PtmError, TooLarge, TrustError, VerificationError
from ptm.layout import QueueEntry
from ptm.model import Task
from ptm.node.policyfile import PolicyFile
from ptm.node.trial import strangers
from ptm.node.verify import authenticate
from ptm.registry import Registry, now_utc
from ptm.workers import Heartbeat

MAX_WORKERS = 50
SOON = timedelta(days=2)
"""A roster that ends sooner than this is worth a word with the coordinator."""
DEFAULT_LEASE_S = 60.0


@dataclass(frozen=True)
class Worker:
    """One worker as it was seen. `quiet_s`: how long its beat has not changed while this process looked."""

    name: str
    state: str
    quiet_s: int
    well: bool
    beat: Heartbeat | None = None


@dataclass(frozen=True)
class Running:
    """A run that a worker says it has. `task` if it can still be read from the queue."""

    worker: str
    id: str
    task: Task | None


@dataclass(frozen=True)
class Health:
    """`problems`: what somebody has to see to, each in a line."""

    workers: tuple[Worker, ...]
    problems: tuple[str, ...]
    roster_version: int | None = None
    roster_expires: datetime | None = None
    policy_rules: int | None = None
    policy_sha256: str = ""


@dataclass
class _Seen:
    beat: tuple[str, int]
    first: float
    changed: float | None = None


class Beats:
    """What the workers' heartbeats said when, on this process's own clock."""

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._clock = registry, clock
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._lease_s = DEFAULT_LEASE_S

    def look(self) -> tuple[Worker, ...]:
        """Read every heartbeat of the site. `StoreError`."""
        names = [found[1] for info in self._registry.store.list(layout.workers_of(self._registry.me))
                 if (found := layout.parse_heartbeat(info.key))]  # fmt: skip
        return tuple(self._worker(name) for name in sorted(names)[:MAX_WORKERS])

    def lease(self, config: NodeConfig) -> None:
        self._lease_s = config.lease_s

    def _worker(self, name: str) -> Worker:
        try:
            beat = self._registry.read_own(layout.heartbeat(self._registry.me, name), Heartbeat)
        except TrustError:
            raise
        except (VerificationError, NotFound, TooLarge):
            return Worker(name, "its heartbeat is not signed by this site", 0, False)
        now = self._clock()
        with self._lock:
            seen = self._seen.setdefault(name, _Seen((beat.session, beat.beat), now))
            if seen.beat != (beat.session, beat.beat):
                seen.beat, seen.changed = (beat.session, beat.beat), now
            quiet = now - (seen.first if seen.changed is None else seen.changed)
        if beat.stopped:
            return Worker(name, "stopped", int(quiet), True, beat)
        if quiet > self._lease_s:
            return Worker(name, "silent", int(quiet), False, beat)
        return Worker(name, "alive" if seen.changed is not None else "looking", int(quiet), True, beat)


def health(registry: Registry, beats: Beats) -> Health:
    """All of it. What cannot be read is a problem in the list, not an error."""
    problems: list[str] = []
    version, expires, rules, digest = None, None, None, ""
    workers: tuple[Worker, ...] = ()
    try:
        beats.lease(read_toml(registry.home.node, NodeConfig))
    except ConfigError as e:
        problems.append(_said(e))
    loaded = None
    try:
        loaded = PolicyFile(registry.home.policy).load()
        rules, digest = len(loaded.policy.allow), loaded.sha256
    except ConfigError as e:
        problems.append(f"policy: {_said(e)}; a running node keeps the one before")
    try:
        roster = registry.roster()
        version, expires = roster.version, roster.expires
        if expires - now_utc() < SOON:
            problems.append(f"the roster is valid until {expires:%Y-%m-%d %H:%M} UTC only: ask the coordinator to renew it")
        if loaded is not None:
            problems += (
                f"policy: {rule} names {name}, which the roster does not know" for rule, name in strangers(loaded, roster)
            )
        workers = beats.look()
    except PtmError as e:
        problems.append(_said(e))
    problems += (f"worker {worker.name}: {worker.state}" for worker in workers if not worker.well)
    return Health(workers, tuple(problems), version, expires, rules, digest)


def running(registry: Registry, workers: tuple[Worker, ...]) -> tuple[list[Running], int]:
    """What runs now, and how many other tasks lie in the queue."""
    entries = {entry.task: entry for entry in registry.queue(registry.me) if isinstance(entry, QueueEntry) and not entry.cancel}
    found = [Running(name, task, _task(registry, entries.get(task))) for name, task in _claimed(workers)]
    return found, len(entries.keys() - {run.id for run in found})


def _claimed(workers: tuple[Worker, ...]) -> Iterator[tuple[str, str]]:
    for worker in workers:
        if worker.beat is not None and not worker.beat.stopped:
            yield from ((worker.name, task) for task in worker.beat.running)


def _task(registry: Registry, entry: QueueEntry | None) -> Task | None:
    if entry is None:
        return None
    try:
        return authenticate(registry.read_raw(entry.key), entry, registry.roster(60)).task
    except TrustError:
        raise
    except (NotFound, TooLarge, VerificationError):
        return None


def _said(error: PtmError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)
