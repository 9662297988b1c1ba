"""The trusted party's loop: look into the inbox, give every sender the same share, purge what is due, and stop cleanly.

Rules: an idle poll costs one listing of the party's own inbox, however many transfers there were. A transfer that meets an
outage, a full disk or a collection in use comes again after a pause that doubles up to a minute. Many keys of one sender's keep
nobody else waiting. A wake-up (`ptm.store.changes`) only makes a poll come sooner; it is never believed.

Nothing here looks into a transfer: that is `ptm.trustedparty.receive`."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial

from ptm import layout
from ptm.audit import Audit
from ptm.config import ROSTER_MAX_AGE_S, Home
from ptm.errors import PtmError, Unreachable
from ptm.files import hold_lock
from ptm.layout import TransferKey
from ptm.pauses import MAX_PAUSE_S, Of, Pauses
from ptm.registry import Registry, now_utc
from ptm.stop import run_until_stopped
from ptm.store.changes import Alarm, watch_changes
from ptm.trustedparty.arrival import Stopped
from ptm.trustedparty.ledger import Ledger
from ptm.trustedparty.purge import Purger
from ptm.trustedparty.receive import Receiver, Unannounced
from ptm.trustedparty.settings import PartyConfig

log = logging.getLogger("ptm.party")
MAX_KEYS = 10_000
"""Keys of one listing. If there are more, the senders are looked at one by one, with the same share for each."""
ROUND_S = 30.0
"""A poll takes on no further transfer after this: then it looks again who else is there."""
STOP_GRACE_S = 20.0
MAX_WARNED = 1000


class Party:
    """A trusted party at work. `watch` returns when `stop` is set, or, with `once`, when nothing is left that it can do."""

    def __init__(self, home: Home, registry: Registry, config: PartyConfig, now: Callable[[], datetime] = now_utc) -> None:
        self._home, self._registry, self._config, self._now = home, registry, config, now
        self._pauses = Pauses[Of]()
        self._served: dict[str, float] = {}
        self._warned: set[str] = set()
        self._unavailable = False
        self._unpurged: PtmError | None = None
        self._alarm = Alarm()

    def watch(self, stop: threading.Event, *, once: bool = False) -> bool:
        """Run until told to stop; False if something still hung in a connection when the time for that was over. `PtmError` if
        another one runs with this home; with `once` also for an outage, or if something has to wait."""
        ended = run_until_stopped(partial(self._watch, stop, once), stop, STOP_GRACE_S)
        if not ended:
            log.warning("the store does not answer; stopped without waiting any longer")
        return ended

    def _watch(self, stop: threading.Event, once: bool) -> None:
        with hold_lock(self._home.party_lock) as mine, contextlib.ExitStack() as stack:
            if not mine:
                raise PtmError("another `ptm trustedparty watch` runs with this home", hint="one home, one watch")
            ledger = Ledger(self._home.ledger)
            stack.callback(ledger.close)
            audit = Audit(self._home.party_audit, self._now)
            stack.callback(audit.close)
            self._ledger = ledger
            self._receiver = Receiver(self._home, self._registry, self._config, ledger, audit, stop, self._now)
            self._purger = Purger(self._home, self._registry, ledger, audit, self._now)
            self._receiver.sweep()
            audit.record("party-started", party=self._registry.me)
            if not once:
                inbox = layout.inbox_of(self._registry.me)
                stack.enter_context(watch_changes(self._registry.store, inbox, self._alarm.ring))
            self._loop(stop, once)
            audit.record("party-stopped", party=self._registry.me)
        left = len(self._pauses.failing())
        if once and self._unpurged is not None:
            raise self._unpurged
        if once and left:
            raise PtmError(
                f"{left} transfer(s) could not be taken for now", hint="the log above says why; run the same command again"
            )

    def _loop(self, stop: threading.Event, once: bool) -> None:
        while not stop.is_set():
            more = self._poll(stop, once)
            if once and not more:
                return
            if not more:
                self._alarm.wait(self._config.poll_s, stop)

    def _poll(self, stop: threading.Event, once: bool) -> bool:
        """Look once, and do what there is; True if there is more that could be done at once."""
        self._purge()
        try:
            self._registry.roster(self._config.poll_s if once else ROSTER_MAX_AGE_S)
            for answer in self._ledger.unfinished()[: self._config.max_pending]:
                self._try(answer.sender, answer.transfer, partial(self._receiver.finish, answer))
            waiting = self._look()
        except (PtmError, OSError) as e:
            if once:
                raise
            self._say_unavailable(str(e))
            return False
        if self._unavailable:
            log.info("going on")
            self._unavailable = False
            self._pauses.hurry()
        return self._serve(waiting, stop)

    def _purge(self) -> None:
        """Before the store is asked anything: what it answers, or does not, is no reason to keep a file longer."""
        self._unpurged = None
        try:
            self._purger.plan_aged(self._config)
            self._purger.carry_out()
        except PtmError as e:
            self._unpurged = e
            self._warn_once(f"purging: {e}; trying again")

    def _look(self) -> dict[str, list[TransferKey]]:
        """The manifests that wait, by sender, oldest id first; only those of members, revoked ones included."""
        found: dict[str, list[TransferKey]] = {}
        inbox = layout.inbox_of(self._registry.me)
        infos = list(itertools.islice(self._registry.store.list(inbox), MAX_KEYS + 1))
        if len(infos) > MAX_KEYS:
            keys = list(self._shared())
        else:
            keys = [key for info in infos if (key := self._parse(info.key))]
        for key in keys:
            found.setdefault(key.sender, []).append(key)
        roster = self._registry.roster(ROSTER_MAX_AGE_S)
        for sender in [name for name in found if roster.member(name) is None]:
            self._warn_once(f"left alone: transfers of {sender}, who is not a member of this registry")
            del found[sender]
        keep = {(key.sender, key.transfer) for keys in found.values() for key in keys}
        self._pauses.keep(keep | {(answer.sender, answer.transfer) for answer in self._ledger.unfinished()})
        return found

    def _parse(self, key: str) -> TransferKey | None:
        parsed = layout.parse_transfer(key)
        if parsed is None and not layout.is_transfer_file(key):
            self._warn_once(f"ignored: {key!r} is not a key that ptm makes")
        return parsed

    def _shared(self) -> Iterator[TransferKey]:
        """When the inbox is crowded: the first transfers of each member's, announced or not, by listing folders only."""
        store, me = self._registry.store, self._registry.me
        members = self._registry.roster(ROSTER_MAX_AGE_S).roster.members
        share = max(1, MAX_KEYS // max(1, len(members)))
        for member in members:
            folders = store.list_prefixes(layout.inbox_of_sender(me, member.name))
            for folder in itertools.islice(folders, share):
                key = layout.parse_transfer(f"{folder}manifest.json")
                if key:
                    yield key

    # serving

    def _serve(self, waiting: dict[str, list[TransferKey]], stop: threading.Event) -> bool:
        """One of each sender's in turn, who waited longest first; True if time was up before all had their turn."""
        senders = sorted(waiting, key=lambda sender: self._served.get(sender, 0.0))
        self._served = {sender: at for sender, at in self._served.items() if sender in waiting}
        turns = itertools.zip_longest(*(waiting[sender] for sender in senders))
        due = (key for turn in turns for key in turn if key is not None and self._pauses.due((key.sender, key.transfer)))
        until = time.monotonic() + ROUND_S
        for number, key in enumerate(due):
            if stop.is_set():
                return False
            if number == self._config.max_pending or time.monotonic() > until:
                return True
            self._served[key.sender] = time.monotonic()
            if not self._try(key.sender, key.transfer, partial(self._receiver.handle, key)):
                return False
        return False

    def _try(self, sender: str, transfer: str, act: Callable[[], str | None]) -> bool:
        """Do something about a transfer. What goes wrong means a later try, and does not end the watch. False to end the round:
        the store does not answer, or it is time to stop."""
        of, answers = (sender, transfer), True
        if not self._pauses.due(of):
            return True
        try:
            why = act()
        except Stopped:
            return False
        except Unannounced:
            self._pauses.rest(of, MAX_PAUSE_S)
            return True
        except (PtmError, OSError) as e:
            why, answers = str(e), not isinstance(e, Unreachable)
        except Exception as e:
            log.exception("transfer %s of %s: unexpected fault", transfer, sender)
            why = f"unexpected fault: {type(e).__name__}"
        if why is None:
            self._pauses.forget(of)
        else:
            self._pauses.lengthen(of)
            self._warn_once(f"transfer {transfer} of {sender}: {why}; trying again later")
        return answers

    def _warn_once(self, text: str) -> None:
        if len(self._warned) >= MAX_WARNED:
            self._warned.clear()
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

    def _say_unavailable(self, why: str) -> None:
        if not self._unavailable:
            log.warning("%s; nothing is taken until that is over", why)
        self._unavailable = True
