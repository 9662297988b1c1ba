"""Which worker of a site runs a task. Claims save work; they do not decide: the first committed `result.json` does.

Rule: a rival takes the next epoch only when the holder's heartbeat has not changed for the lease time on the rival's
own monotonic clock, or the holder has said that it stopped and that it holds this task no more. No clock of another
machine is ever compared. A claim or a heartbeat that is not signed by this site counts as one that never changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ptm import layout
from ptm.errors import NotFound, VerificationError
from ptm.registry import Registry
from ptm.workers import Claim, Heartbeat

MAX_EPOCH = 9999


class Claims:
    """One worker's view of the claims of its site."""

    def __init__(self, registry: Registry, worker: str, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._worker, self._lease_s, self._clock = registry, worker, lease_s, clock
        self._seen: dict[str, tuple[object, float]] = {}
        self._lock = threading.Lock()

    def take(self, task: str, task_sha256: str) -> bool:
        """Try to hold this task. True if it is ours, also if it was ours before a restart."""
        epochs = self._registry.claims(self._registry.me, task)
        if not epochs:
            return self._registry.claim(task, task_sha256, self._worker, 1)
        last = epochs[-1]
        holder = self._holder(task, last)
        if holder == self._worker:
            return True
        if last >= MAX_EPOCH or not self._lapsed(holder, task):
            return False
        return self._registry.claim(task, task_sha256, self._worker, last + 1)

    def _holder(self, task: str, epoch: int) -> str | None:
        try:
            claim = self._registry.read_own(layout.claim(self._registry.me, task, epoch), Claim)
        except (VerificationError, NotFound):
            return None
        return claim.worker if (claim.task, claim.epoch, claim.site) == (task, epoch, self._registry.me) else None

    def _lapsed(self, holder: str | None, task: str) -> bool:
        beat = self._heartbeat(holder) if holder else None
        if beat and beat.stopped and task not in beat.running:
            return True
        value = (beat.session, beat.beat) if beat else None
        key = holder or f"?{task}"
        with self._lock:
            seen = self._seen.get(key)
            if seen is None or seen[0] != value:
                self._seen[key] = (value, self._clock())
                return False
            return self._clock() - seen[1] > self._lease_s

    def _heartbeat(self, worker: str) -> Heartbeat | None:
        try:
            beat = self._registry.read_own(layout.heartbeat(self._registry.me, worker), Heartbeat)
        except (VerificationError, NotFound):
            return None
        return beat if (beat.worker, beat.site) == (worker, self._registry.me) else None
