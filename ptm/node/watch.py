"""The node's loop: poll the site's queue, give each task a thread, beat, deliver what is spooled, and stop cleanly.

Rules: a poll costs one listing of the site's own queue prefix, however many tasks have been finished. A task that is
in hand is not touched again; one that met an outage is tried again after a pause that doubles up to a minute. Nothing
here looks into a task: that is `ptm.node.run`."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from importlib.metadata import version

from ptm import layout
from ptm.audit import Audit
from ptm.config import Home, NodeConfig
from ptm.errors import NotFound, PtmError, StoreError, TooLarge, Unreachable, VerificationError
from ptm.layout import QueueEntry
from ptm.model import as_text
from ptm.node.claims import Claims
from ptm.node.collected import let_go, of_party, with_collections
from ptm.node.dayruns import DayRuns
from ptm.node.run import handle, resume
from ptm.node.runner import Interrupt, Runner
from ptm.node.spool import sweep_spool
from ptm.node.state import State
from ptm.node.verify import verify_cancel
from ptm.node.worker import Ask, PolicySource, ReviewedImages, Worker
from ptm.pauses import Of, Pauses
from ptm.registry import Registry, new_nonce, now_utc
from ptm.stop import run_until_stopped
from ptm.store.changes import Alarm, watch_changes
from ptm.trust import TrustedRoster
from ptm.workers import Heartbeat

log = logging.getLogger("ptm.node")
MAX_WAITING = 64
"""Tasks in hand beyond those that run: getting images, waiting for a slot."""
MAX_WAITING_OF_USER = 16
"""… of one user, so that however many they put, another's task still gets in."""
SWEEP_EVERY_S = 3600.0
"""How often what runs left behind, and images not used any more, are looked for."""
LAST_WORDS_S = 10.0
"""How long, after `stop_grace_s`, the last heartbeat may take."""
Work = Callable[[Ask], None]


class Node:
    """One worker of a site. `watch` returns when `stop` is set, or, with `once`, when nothing is left that it can do."""

    def __init__(self, home: Home, registry: Registry, config: NodeConfig, policy: PolicySource, runner: Runner) -> None:
        collections = of_party(home, registry.profile.kind)
        config = with_collections(config, collections)
        self._home, self._registry, self._config, self._runner = home, registry, config, runner
        self._policy, self._policy_sha256 = policy, policy.current().sha256
        self._state = State(home.state)
        self._audit = Audit(home.audit)
        claims = Claims(registry, config.worker, config.lease_s)
        slots = threading.Semaphore(config.parallel)
        reviewed = ReviewedImages(registry)
        days = DayRuns(registry, config.worker)
        self._worker = Worker(
            registry, config, policy, runner, self._state, claims, slots, self._audit, reviewed, days, collections
        )
        self._in_hand: dict[Of, threading.Thread] = {}
        self._canceled: set[Of] = set()
        self._pauses = Pauses[Of]()
        self._troubles: dict[Of, str] = {}
        self._sweep_due = time.monotonic()
        self._warned: set[str] = set()
        self._session, self._beats = new_nonce(), 0
        self._unavailable = False
        self._once = False
        self._alarm = Alarm()

    def watch(self, stop: threading.Event, *, once: bool = False) -> bool:
        """Run until told to stop; False if something still hung in a connection when the time for that was over. Raises what
        makes it pointless to begin (`RunnerError`, `AccessDenied`, `TrustError`; with `once` also `Unreachable`)."""
        self._once = once
        ended = run_until_stopped(partial(self._watch, stop, once), stop, self._config.stop_grace_s + LAST_WORDS_S)
        if not ended:
            log.warning("the store or the engine does not answer; stopped without waiting any longer")
        return ended and not self._in_hand

    def _watch(self, stop: threading.Event, once: bool) -> None:
        try:
            self._runner.check()
            self._record_start()
            let_go(self._worker, {row.task for row in self._state.unfinished()})
            self._sweep()
            self._begin(stop, once)
            with self._heartbeats(), self._wake_ups(once):
                self._loop(stop, once)
                self._audit.record("node-stopped", worker=self._config.worker)
            unfinished = [row for row in self._state.unfinished() if row.phase != "held"]
            left = len({(row.user, row.task) for row in unfinished} | self._pauses.failing())
        finally:
            self._runner.close()
            if not self._in_hand:
                self._state.close()
                self._audit.close()
                if self._worker.collections is not None:
                    self._worker.collections.close()
        if once and left:
            raise PtmError(
                f"{left} task(s) could not be finished for now", hint="the log above says why; run the same command again"
            )

    def _record_start(self) -> None:
        self._audit.record(
            "node-started",
            site=self._registry.me,
            worker=self._config.worker,
            version=version("ptm"),
            runner=self._config.runner,
            policy_sha256=self._policy_sha256,
        )

    def _sweep(self) -> None:
        """Once in a while: remove what runs that are over left here, and let go of collections that no run holds. Trouble with it
        is only logged."""
        if time.monotonic() < self._sweep_due:
            return
        self._sweep_due = time.monotonic() + SWEEP_EVERY_S
        keep = {row.task for row in self._state.unfinished()} | {task for _, task in self._in_hand}
        try:
            self._runner.sweep(keep)
            sweep_spool(self._home, keep)
            let_go(self._worker, keep)
        except (PtmError, OSError) as e:
            log.warning("clearing up: %s", e)

    def _look_at_policy(self) -> None:
        """A changed policy file counts from the next task on, and is on record."""
        current = self._policy.current().sha256
        if current != self._policy_sha256:
            self._audit.record("policy-changed", policy_sha256=current, before=self._policy_sha256)
            self._policy_sha256 = current

    def _loop(self, stop: threading.Event, once: bool) -> None:
        try:
            while not stop.is_set():
                begun = self._poll(stop, once)
                if once and not begun and not self._in_hand:
                    break
                self._alarm.wait(0.1 if once else self._config.poll_s, stop)
                self._reap()
        finally:
            self._drain(stop)

    def _wake_ups(self, once: bool) -> contextlib.AbstractContextManager[None]:
        """While this is open, what is put into the site's queue has the loop look at once."""
        if once:
            return contextlib.nullcontext()
        return watch_changes(self._registry.store, layout.queue_of(self._registry.me), self._alarm.ring)

    def _begin(self, stop: threading.Event, once: bool) -> None:
        """The first look at the registry. A node that watches waits for an unreachable store; one that runs once says so."""
        while not stop.is_set():
            try:
                self._registry.roster().active(self._registry.me)
                self._check_sharing()
                return
            except Unreachable as e:
                if once:
                    raise
                self._say_unavailable(str(e))
                stop.wait(self._config.poll_s)

    def _check_sharing(self) -> None:
        """Several workers of one site need create-if-absent to be exclusive. Where it is not, refuse to start beside
        another worker."""
        scratch = layout.scratch(self._registry.me, self._config.worker)
        for info in self._registry.store.list(scratch):
            self._registry.store.delete(info.key)
        found = self._registry.store.probe(scratch)
        if found.shareable:
            return
        why = "keeps old versions" if found.exclusive_create else "does not honour If-None-Match"
        log.warning("this store %s: this site can have one worker only", why)
        for info in self._registry.store.list(layout.workers_of(self._registry.me)):
            other = layout.parse_heartbeat(info.key)
            if other and other[1] != self._config.worker and not self._is_stopped(info.key):
                raise PtmError(
                    f"this store {why}, and the site has another worker, {other[1]}",
                    hint=f"stop that worker, or if it is gone for good delete {info.key}",
                )

    def _is_stopped(self, key: str) -> bool:
        try:
            return self._registry.read_own(key, Heartbeat).stopped
        except (VerificationError, NotFound):
            return False

    # the loop

    def _poll(self, stop: threading.Event, once: bool) -> int:
        """Look once; returns how many threads were begun."""
        try:
            self._look_at_policy()
            self._sweep()
            self._registry.roster(self._config.poll_s if once else 300.0)
            entries = self._look()
            self._runner.check()
            self._state.forget_expired(now_utc() - timedelta(days=1))
        except (PtmError, OSError) as e:
            if once and not self._in_hand:
                raise
            self._say_unavailable(str(e))
            return self._go_on(stop, [])
        if self._unavailable:
            log.info("going on")
            self._unavailable = False
            self._pauses.hurry()
        return self._go_on(stop, entries)

    def _go_on(self, stop: threading.Event, entries: list[QueueEntry]) -> int:
        """Give a thread to each unfinished run and each task in the queue that is due, those first that were not looked at for
        longest: so that many that wait for a person never keep a new one waiting."""
        self._reap()
        work: dict[Of, Work] = {(row.user, row.task): partial(resume, self._worker, row) for row in self._state.unfinished()}
        for entry in entries:
            work.setdefault((entry.user, entry.task), partial(handle, self._worker, entry))
        self._pauses.keep(set(work) | set(self._in_hand))
        self._troubles = {of: text for of, text in self._troubles.items() if of in work or of in self._in_hand}
        due = sorted(work.items(), key=lambda item: self._pauses.since(item[0]))
        return sum(self._begin_thread(of, act, stop) for of, act in due)

    def _look(self) -> list[QueueEntry]:
        """The site's queue, oldest task first. Notes cancels; warns once of keys that are nobody's."""
        tasks: list[QueueEntry] = []
        cancels: list[QueueEntry] = []
        for entry in self._registry.queue(self._registry.me):
            if isinstance(entry, str):
                self._warn_once(entry, f"ignored: {entry!r} is not a key that ptm makes")
            else:
                (cancels if entry.cancel else tasks).append(entry)
        waiting = {(entry.user, entry.task) for entry in tasks} | set(self._in_hand)
        for entry in cancels:
            self._note_cancel(entry, (entry.user, entry.task) in waiting)
        return sorted(tasks, key=lambda entry: entry.task)

    def _note_cancel(self, entry: QueueEntry, waiting: bool) -> None:
        of = (entry.user, entry.task)
        if of in self._canceled and waiting:
            return
        roster = self._registry.roster(300)
        try:
            if not waiting or not self._believes_cancel(entry, roster):
                self._registry.store.delete(entry.key)
                return
        except NotFound:
            return
        except Unreachable:
            raise
        except StoreError as e:  # one object that may not be read or removed: its owner's affair, and nobody else's
            self._warn_once(entry.key, str(e))
            return
        self._canceled.add(of)
        self._pauses.forget(of)

    def _believes_cancel(self, entry: QueueEntry, roster: TrustedRoster) -> bool:
        try:
            verify_cancel(self._registry.read_raw(entry.key), entry, roster)
        except (VerificationError, TooLarge) as e:
            log.warning("%s: refused: %s", entry.key, e)
            return False
        return True

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned and len(self._warned) < 1000:
            self._warned.add(key)
            log.warning("%s", text)

    def _begin_thread(self, of: Of, work: Work, stop: threading.Event) -> bool:
        if of in self._in_hand or not self._has_room(of[0]) or not self._pauses.due(of):
            return False

        def ask() -> Interrupt | None:
            return "canceled" if of in self._canceled else "stopping" if stop.is_set() else None

        thread = threading.Thread(target=self._guarded, args=(of, work, ask), name=f"task-{of[1]}", daemon=True)
        self._in_hand[of] = thread
        thread.start()
        return True

    def _has_room(self, user: str) -> bool:
        theirs = sum(1 for other, _ in self._in_hand if other == user)
        parallel = self._config.parallel
        return len(self._in_hand) < parallel + MAX_WAITING and theirs < parallel + MAX_WAITING_OF_USER

    def _guarded(self, of: Of, work: Work, ask: Ask) -> None:
        """A thread's whole life: an outage means a later try, and no error ends the node."""
        try:
            work(ask)
        except PtmError as e:
            log.warning("task %s: %s; trying again later", of[1], e)
            self._have_trouble(of, str(e))
        except Exception as e:
            log.exception("task %s: unexpected fault; trying again later", of[1])
            self._have_trouble(of, f"unexpected fault: {type(e).__name__}")
        else:
            self._troubles.pop(of, None)
            self._pauses.rest(of, math.inf if self._once else self._config.poll_s)

    def _have_trouble(self, of: Of, text: str) -> None:
        """Wait longer before the next try. The same trouble again is on record once."""
        self._pauses.lengthen(of)
        if self._troubles.get(of) != text:
            self._troubles[of] = text
            with contextlib.suppress(PtmError):
                self._audit.record("trouble", of[1], user=of[0], error=as_text(text)[:1000])

    def _reap(self) -> None:
        for of, thread in list(self._in_hand.items()):
            if not thread.is_alive():
                del self._in_hand[of]
                self._canceled.discard(of)

    def _say_unavailable(self, why: str) -> None:
        if not self._unavailable:
            log.warning("%s; no new tasks until that is over", why)
        self._unavailable = True

    # beating and stopping

    @contextlib.contextmanager
    def _heartbeats(self) -> Iterator[None]:
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(0 if self._beats == 0 else self._config.lease_s / 4):
                self._beat(stopped=False)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=10)
            self._beat(stopped=True)

    def _beat(self, *, stopped: bool) -> None:
        """Tell the other workers that this one lives. A failure is only logged: they wait for a whole lease."""
        self._beats += 1
        try:
            self._registry.beat(
                Heartbeat(
                    registry=self._registry.id,
                    site=self._registry.me,
                    worker=self._config.worker,
                    session=self._session,
                    beat=self._beats,
                    stopped=stopped,
                    running=self._held(stopped),
                    version=version("ptm"),
                    audit_head=self._audit.head,
                    created=now_utc(),
                )
            )
        except PtmError as e:
            log.warning("heartbeat: %s", e)

    def _held(self, stopped: bool) -> tuple[str, ...]:
        """The tasks that other workers must leave to this one. Once stopped, it lets go of those that it had not begun."""
        rows = sorted(self._state.unfinished(), key=lambda row: row.phase == "held")  # those have their note to guard them
        held = [row.task for row in rows if not stopped or row.phase != "claimed" or (row.user, row.task) in self._in_hand]
        return tuple(held[:256])

    def _drain(self, stop: threading.Event) -> None:
        """Give what is in hand `stop_grace_s` to come to a clean point; containers that go on are found again at the
        next start."""
        stop.set()
        deadline = time.monotonic() + self._config.stop_grace_s
        for of, thread in list(self._in_hand.items()):
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning(
                    "task %s: did not come to a stop in %g s; the next start goes on with it", of[1], self._config.stop_grace_s
                )
        self._reap()
