"""`kill -9` of a sender and of the trusted party, real processes both, at random moments and as often as asked; and somebody who
looks at the collection all the while, and knows what every file has to be from the moment that it is there."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ptm import layout
from ptm.transfer import Receipt
from ptm.trustedparty.ledger import Ledger
from ptm.trustedparty.outbox import Outbox
from ptm.trustedparty.sent import overview
from tests.commandline import CommandLine
from tests.federation import Federation

PARTY = """
poll_s = 0.2
min_free_mb = 0
[[collection]]
name = "link"
max_mb = 64
quota_mb = 100000
[collection.senders]
clinic = ['.*\\.csv']
"""
SIZES = (0, 100, 70_000, 2_000_000, 20_000_000)
"""The last one goes in parts."""
PTM = """
import sys
from ptm.cli.main import run
from ptm.trustedparty import uploading
uploading.FOLLOW_BYTES = 1_000_000
sys.exit(run(sys.argv[1:]))
"""
"""`ptm` that uploads while it seals, though the files are small."""


@dataclass
class Lookout:
    """Looks at what is published, without a pause. `partial`: files that were not whole when they were seen."""

    folder: Path
    expected: dict[str, str]
    seen: set[Path] = field(default_factory=set)
    partial: list[str] = field(default_factory=list)
    looks: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            time.sleep(0.002)

    def look(self) -> None:
        self.looks += 1
        for place, _, names in os.walk(self.folder):
            for path in (Path(place, name) for name in names):
                if path in self.seen:
                    continue
                self.seen.add(path)
                if hashlib.sha256(path.read_bytes()).hexdigest() != self.expected.get(path.name):
                    self.partial.append(str(path))

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


@dataclass
class Killing:
    """A federation with the sender `clinic` and the party `ttp`, and what happened to it."""

    federation: Federation
    line: CommandLine
    dice: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)
    current: str = ""
    states: Counter[str] = field(default_factory=Counter)

    def run(self, kills: int) -> None:
        """Kill so often, then let all come to its end, and check."""
        self.federation.home("ttp").party.write_text(PARTY)
        look = Lookout(self.federation.home("ttp").collections, self.expected)
        try:
            while self.kills.total() < kills:
                self._ensure()
                time.sleep(self.dice.uniform(0.05, 2.0))
                self._kill(self.dice.choice(("sender", "party")))
            self._end("party", kill=True)
            while not self._sender_is_done():
                time.sleep(0.05)
            self.line.ok("--home", "clinic", "inbox", "resume")
            self.line.ok("--home", "ttp", "trustedparty", "watch", "--once")
        finally:
            for who in list(self.running):
                self._end(who, kill=True)
            look.end()
        look.look()
        assert look.partial == []
        self._check()

    # the processes

    def _ensure(self) -> None:
        if "party" not in self.running:
            self._start("party", "--home", "ttp", "trustedparty", "watch")
        if self._sender_is_done():
            self._start("sender", *self._what_to_send())

    def _what_to_send(self) -> tuple[str, ...]:
        """What was interrupted, by either command; else a new file, of which one in six has a name that is refused."""
        send = ("--home", "clinic", "inbox", "send", "--to", "ttp", "--collection", "link")
        if self.current:
            return self.dice.choice((("--home", "clinic", "inbox", "resume"), (*send, self.current)))
        number = len(self.expected)
        self.current = f"{number}.csv" if self.dice.randrange(6) else f"{number}.exe"
        body = self.dice.randbytes(1000) * (self.dice.choice(SIZES) // 1000)
        (self.line.folder / self.current).write_bytes(body)
        self.expected[self.current] = hashlib.sha256(body).hexdigest()
        return (*send, self.current)

    def _sender_is_done(self) -> bool:
        """Whether none is running. One that was not killed has to have ended well."""
        sender = self.running.get("sender")
        if sender is None:
            return True
        if sender.poll() is None:
            return False
        assert sender.returncode == 0, self._log("sender")
        del self.running["sender"]
        self.current = ""
        return True

    def _start(self, who: str, *words: str) -> None:
        with self._open_log(who) as log:
            log.write(f"{' '.join(words)}\n".encode())
            log.flush()
            self.running[who] = subprocess.Popen(
                [sys.executable, "-c", PTM, *words], cwd=self.line.folder, env=self.line.environment, stdout=log, stderr=log
            )

    def _kill(self, who: str) -> None:
        process = self.running.get(who)
        if process is None or process.poll() is not None:
            assert who == "sender" or process is None, self._log(who)
            return
        self._end(who, kill=True)
        self.kills[who] += 1

    def _end(self, who: str, *, kill: bool) -> None:
        process = self.running.pop(who, None)
        if process is not None:
            process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            process.wait(30)

    def _open_log(self, who: str) -> IO[bytes]:
        return (self.line.folder / f"{who}.log").open("ab")

    def _log(self, who: str) -> str:
        return (self.line.folder / f"{who}.log").read_text()[-4000:]

    # the end

    def _check(self) -> None:
        """Every transfer is accepted once, or refused; every file lies there once, or nowhere; nothing is left over."""
        clinic, ttp = self.federation.registry("clinic"), self.federation.registry("ttp")
        sent = overview(clinic, Outbox(clinic.home.outbox))
        self.states = Counter(item.state for item in sent)
        accepted = [name for item in sent if item.state == "accepted" for name in item.files]
        for item in sent:
            if item.state != "accepted":
                assert item.state == "refused", item
                # a sender that was killed when all was done is told to send the file again, and that is refused
                why = "is there already" if set(item.files) <= set(accepted) else "does not take a file of the name"
                assert why in (item.reason or ""), item
            answers = list(ttp.store.list(f"sites/ttp/receipts/clinic/{item.id}/"))
            assert len(answers) == 1
            assert ttp.read_own(answers[0].key, Receipt).state == item.state
        ledger = Ledger(ttp.home.ledger)
        held = Counter(file.name for file in ledger.held("link"))
        assert ledger.unfinished() == []
        ledger.close()
        published = [path for path in ttp.home.collections.rglob("*") if path.is_file()]
        assert held == Counter(accepted) == Counter(path.name for path in published)
        assert set(held.values()) <= {1}
        for path in published:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == self.expected[path.name]
        assert list(ttp.store.list(layout.inbox_of("ttp"))) == []
        assert list(ttp.home.quarantine.iterdir()) == []
        assert Outbox(clinic.home.outbox).unfinished() == []
