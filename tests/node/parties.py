"""A trusted party beside a federation, for the tests of the node's side: its `party.toml`, its watch, and members who send."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptm.node.watch import Node
from ptm.registry import now_utc
from ptm.store.base import Store
from ptm.transfer import Transfer
from ptm.trustedparty.collection import Collections, CollectionState, load_party
from ptm.trustedparty.ledger import Ledger
from ptm.trustedparty.outbox import Outbox
from ptm.trustedparty.send import Source, send
from ptm.trustedparty.watch import Party
from tests.federation import Federation

COLLECTION = """
min_free_mb = 0
[[collection]]
name = "link-2026"
researchers = ["alice"]
{more}
[collection.senders]
maastro = ['diagnoses\\.csv']
umcu = ['incomes\\.csv']
"""


def write_party(federation: Federation, more: str = "", text: str | None = None) -> None:
    federation.home("ttp").party.write_text(text or COLLECTION.format(more=more))


def receive(federation: Federation, store: Store | None = None) -> None:
    """Let the party handle what is in its inbox, and purge what is due."""
    home = federation.home("ttp")
    config = load_party(home)
    assert config is not None
    Party(home, federation.registry("ttp", store), config).watch(threading.Event(), once=True)


def send_file(federation: Federation, sender: str, name: str, content: bytes, scratch: Path) -> Transfer:
    path = scratch / f"{sender}-{name}"
    path.write_bytes(content)
    outbox = Outbox(federation.home(sender).outbox)
    return send(federation.registry(sender), outbox, [Source(name, path)], to="ttp", collection="link-2026")


def send_both(federation: Federation, scratch: Path) -> None:
    send_file(federation, "maastro", "diagnoses.csv", b"p,d\n1,E11\n2,E10\n", scratch)
    send_file(federation, "umcu", "incomes.csv", b"p,i\n1,100\n", scratch)
    receive(federation)


@contextlib.contextmanager
def _collections(federation: Federation) -> Iterator[Collections]:
    home = federation.home("ttp")
    config = load_party(home)
    assert config is not None
    with contextlib.closing(Collections(home, config)) as collections:
        yield collections


def state(federation: Federation, name: str = "link-2026") -> CollectionState:
    with _collections(federation) as collections:
        return collections.state(name)


def users(federation: Federation, name: str = "link-2026") -> list[str]:
    with _collections(federation) as collections:
        return collections.users(name)


def purge_all(federation: Federation, name: str = "link-2026") -> None:
    """As a person asks for it."""
    ledger = Ledger(federation.home("ttp").ledger)
    try:
        ledger.plan_purge(name, "asked", now_utc(), person="Jansen")
    finally:
        ledger.close()
    receive(federation)


class Crash(BaseException):
    """The process is gone at this point: no `except` of the node's sees it."""


def crash_at(patch: pytest.MonkeyPatch, node: Node, place: object, name: str, *, after: bool) -> None:
    """Run a node until a thread of its dies before or after it calls `place.name`."""
    real, dead, stop = getattr(place, name), threading.Event(), threading.Event()

    def dying(*arguments: object, **named: object) -> object:
        if after:
            real(*arguments, **named)
        dead.set()
        stop.set()
        raise Crash

    patch.setattr(place, name, dying)
    patch.setattr(threading, "excepthook", lambda _: None)
    patience = threading.Timer(20, stop.set)
    patience.start()
    node.watch(stop)
    patience.cancel()
    assert dead.is_set(), f"{name} was never called"
