"""The party killed at all kinds of steps, and cut off at every request: every transfer ends accepted once, no partial file is
ever visible, and quarantine and inbox are clean in the end.

`kill -9` is real: a child process kills itself just before its n-th step on the disk (Python's audit events) or its n-th SQL
statement, for every so many n until it gets through (all of them take minutes)."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ptm import audit
from ptm.errors import PtmError, Unreachable
from ptm.store.file import FileStore
from ptm.store.memory import MemoryStore
from ptm.trustedparty.ledger import Ledger
from ptm.trustedparty.purge import records
from tests.trustedparty import parties
from tests.trustedparty.parties import Parcel, World

STEPS = {"open", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.rename", "os.truncate", "shutil.rmtree"}
BIG = os.urandom(100_000)


def steps_of(act: Callable[[], None]) -> int:
    """How many steps something takes, done in a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        left = _count_down(10**6)
        act()
        os.write(writing, str(10**6 - next(left)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return int(answer.read())


def killed_at(step: int, act: Callable[[], None]) -> bool:
    """Do something in a child process that is killed before its n-th step. False if it got through."""
    child = os.fork()
    if child == 0:
        _count_down(step)
        try:
            act()
            os._exit(0)
        except BaseException as e:
            print(f"child: {type(e).__name__}: {e}", file=sys.__stderr__)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _count_down(step: int) -> Iterator[int]:
    left = itertools.count(step - 1, -1)

    def tick(*_: object) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in STEPS and not str(arguments[0]).endswith((".py", ".pyc")):
            tick()

    plain = Ledger.__init__

    def traced(self: Ledger, path: Path) -> None:
        plain(self, path)
        self._db.set_trace_callback(tick)

    Ledger.__init__ = traced  # type: ignore[method-assign]
    sys.addaudithook(hook)
    return left


def accepted_once(world: World, parcel: Parcel, files: dict[str, bytes]) -> None:
    receipt = world.receipt(parcel)
    assert receipt is not None and receipt.state == "accepted"
    held = [file.name for file in world.collections().state("link").files if file.transfer == parcel.transfer.id]
    assert sorted(held) == sorted(files)
    folder = world.federation.home("ttp").collections / "link/clinic"
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert (world.inbox(), world.quarantine()) == ([], [])


@pytest.fixture
def on_disk(tmp_path: Path) -> World:
    (tmp_path / "bucket").mkdir()
    world = parties.world(tmp_path / "homes", FileStore(tmp_path / "bucket"))
    world.reconfigure(quota_mb=1024)
    return world


@pytest.mark.slow
def test_killed_at_every_fourth_step_of_receiving(on_disk: World) -> None:
    on_disk.send({"first.csv": BIG, "first-empty.csv": b""})
    steps = steps_of(on_disk.poll)
    for step in range(1, steps, 4):
        files = {f"{step}-big.csv": BIG, f"{step}-empty.csv": b""}
        parcel = on_disk.send(files)
        assert killed_at(step, on_disk.poll)
        seen = on_disk.federation.home("ttp").collections / "link/clinic"
        for name, body in files.items():
            assert not (seen / name).exists() or (seen / name).read_bytes() == body, f"{name} is partial after step {step}"
        on_disk.poll()
        accepted_once(on_disk, parcel, files)
    assert steps > 150
    assert audit.verify(on_disk.federation.home("ttp").party_audit).whole


@pytest.mark.slow
def test_killed_at_every_fourth_step_of_a_purge(on_disk: World) -> None:
    home = on_disk.federation.home("ttp")

    def ask() -> None:
        on_disk.send({"a.csv": b"x", "b.csv": b"y"})
        on_disk.poll()
        ledger = Ledger(home.ledger)
        ledger.plan_purge("link", "asked", on_disk.now(), person="eve")
        ledger.close()

    ask()
    kills = 0
    for number, step in enumerate(range(1, steps_of(on_disk.poll), 4), start=2):
        ask()
        kills += killed_at(step, on_disk.poll)
        on_disk.poll()
        assert on_disk.published() == {}
        found = records(on_disk.registry("clinic"), "ttp", "link")
        assert len(found) == number
        assert all([file.name for file in record.files] == ["a.csv", "b.csv"] for record in found)
    assert kills > 10


@pytest.mark.slow
def test_killed_at_every_fourth_step_of_a_refusal(on_disk: World) -> None:
    on_disk.send({"first.exe": b"x"})
    for step in range(1, steps_of(on_disk.poll), 4):
        parcel = on_disk.send({f"{step}.csv": b"x"})
        on_disk.store.put(parcel.key(f"{step}.csv"), b"junk")
        killed_at(step, on_disk.poll)
        on_disk.poll()
        receipt = on_disk.receipt(parcel)
        assert receipt is not None and receipt.state == "refused"
        assert (on_disk.published(), on_disk.inbox(), on_disk.quarantine()) == ({}, [], [])


@pytest.mark.parametrize("when", ["before", "after"])
def test_cut_off_at_every_request(world: World, when: str) -> None:
    store = world.store
    assert isinstance(store, MemoryStore)
    world.reconfigure(quota_mb=1024)
    for step in itertools.count(1):
        files = {f"{step}.csv": BIG, f"{step}-2.csv": b""}
        parcel = world.send(files)
        left = itertools.count(step - 1, -1)

        def cut(verb: str, key: str, left: itertools.count[int] = left) -> None:
            if next(left) == 0:
                raise Unreachable(f"{verb} {key}: the network went away")

        setattr(store, when, cut)
        try:
            world.poll()
            done = next(left) > 0
        except PtmError:
            done = False
        finally:
            setattr(store, when, lambda verb, key: None)
        world.poll()
        accepted_once(world, parcel, files)
        if done:
            break
    assert step > 8


def test_quarantine_of_an_interrupted_fetch_is_swept_at_the_next_start(world: World) -> None:
    folder = world.federation.home("ttp").quarantine / "01KAMV3ZR5F2J7Q8XG4M1W9ABC"
    folder.mkdir(parents=True)
    (folder / "000").write_bytes(b"half of some")
    world.poll()
    assert world.quarantine() == []


def test_file_that_a_person_put_in_the_way_is_never_overwritten(world: World) -> None:
    place = world.federation.home("ttp").collections / "link/clinic/a.csv"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"mine")
    parcel = world.send({"a.csv": b"theirs"})
    world.poll()
    receipt = world.receipt(parcel)
    assert receipt is not None and "a.csv is there already" in (receipt.reason or "")
    assert place.read_bytes() == b"mine"
