"""How many runs has a researcher had at this site today (UTC), at all of its workers together? For `runs_per_day`.

Each accepted run is written once into the registry under its day, its researcher and the next free number. Two workers that
accept at the same moment want the same number, and the one that does not get it counts again: so a budget is never overrun.
What a count costs grows with one researcher's runs of one day, never with the days before.

Whoever runs the bucket can hide such a note, and no more than that: so a worker's own runs count in any case
(`ptm.node.state`)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from ptm import layout
from ptm.errors import AlreadyExists, NotFound, TooLarge, VerificationError
from ptm.registry import Registry, new_nonce, now_utc
from ptm.workers import DayRun

MAX_KNOWN = 10_000
log = logging.getLogger("ptm.node")


class DayRuns:
    """One worker's view of the site's runs of today. Safe to use from several threads."""

    def __init__(self, registry: Registry, worker: str) -> None:
        self._registry, self._worker = registry, worker
        self._known: dict[str, DayRun] = {}
        self._lock = threading.Lock()

    def count(self, user: str, besides: str) -> int:
        """How many runs of this researcher, besides one task's. `StoreError`."""
        return len({run.task for _, run in self._today(user) if run is not None} - {besides})

    def add(self, user: str, task: str) -> bool:
        """Count a run, once. False if another worker counted one at the same moment: look again whether it still may."""
        found = list(self._today(user))
        if any(run is not None and run.task == task for _, run in found):
            return True
        taken, day = {number for number, _ in found}, _today()
        run = DayRun(
            registry=self._registry.id,
            site=self._registry.me,
            user=user,
            day=day,
            number=next(number for number in range(1, len(taken) + 2) if number not in taken),
            task=task,
            worker=self._worker,
            nonce=new_nonce(),
            created=now_utc(),
        )
        try:
            self._registry.store.create(layout.day_run(run.site, day, user, run.number), self._registry.sign(run))
        except AlreadyExists:
            return False
        return True

    def _today(self, user: str) -> Iterator[tuple[int, DayRun | None]]:
        """Every number that is taken, and whose; None for what is not believed."""
        for info in self._registry.store.list(layout.day_runs_of(self._registry.me, _today(), user)):
            number = layout.parse_day_run(info.key)
            if number is not None:
                yield number, self._read(info.key)

    def _read(self, key: str) -> DayRun | None:
        """What is written once and was believed needs no second look."""
        with self._lock:
            if key in self._known:
                return self._known[key]
        try:
            run = self._registry.read_own(key, DayRun)
        except (NotFound, TooLarge):
            return None
        except VerificationError as e:
            log.warning("ignored: %s: %s", key, e)
            return None
        if layout.day_run(run.site, run.day, run.user, run.number) != key:
            log.warning("ignored: %s holds another run's note", key)
            return None
        with self._lock:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = run
        return run


def _today() -> str:
    return f"{now_utc():%Y-%m-%d}"
