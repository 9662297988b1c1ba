"""`runs_per_day` counts a researcher's runs at all workers of a site, whoever races, crashes or tampers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ptm import layout
from ptm.client import TaskHandle
from ptm.errors import PtmError
from ptm.node.dayruns import DayRuns
from ptm.registry import now_utc
from ptm.store.memory import MemoryStore
from ptm.workers import DayRun
from tests.federation import COUNT, FailOnce, Federation, image_folder, second_home

pytestmark = pytest.mark.slow

TASKS = [f"01KAMV3ZR5F2J7Q8XG4M1W9A{number:02d}" for number in range(20)]
BUDGET = {"runs_per_day": 2}


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", mallory="researcher", maastro="site")


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    return {"demo/count:1": image_folder(tmp_path / "count", COUNT)}


def quiet(verb: str, key: str) -> None:
    """No fault."""


def states(tasks: list[TaskHandle], folder: Path) -> list[str]:
    return [r.state for task in tasks for r in task.results(timeout=0, folder=folder / f"out-{time.monotonic_ns()}")]


def days(federation: Federation, worker: str = "w1") -> DayRuns:
    return DayRuns(federation.registry("maastro"), worker)


def put(federation: Federation) -> TaskHandle:
    return federation.client().put("demo/count:1", ["maastro"], expires="1h")


def test_a_budget_is_one_for_all_workers_of_a_site(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    homes = {"w1": federation.home("maastro"), "w2": second_home(federation, "maastro")}
    tasks = []
    for worker in ("w1", "w2", "w1", "w2"):
        tasks.append(put(federation))
        federation.run_once("maastro", images=images, rule=BUDGET, home=homes[worker], worker=worker)
    assert states(tasks, tmp_path) == ["completed", "completed", "rejected", "rejected"]
    (refused,) = tasks[2].results(timeout=0, folder=tmp_path / "refused")
    assert "has had 2 run(s) at this site today" in str(refused.reason)


def test_two_workers_that_accept_in_the_same_moment_do_not_overrun_a_budget(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    """The first has looked and may go on; before it counts its run, the second takes the last one of the day."""
    store = federation.store
    assert isinstance(store, MemoryStore)
    task = put(federation)

    def meanwhile(verb: str, key: str) -> None:
        if verb == "create" and key.startswith("sites/maastro/days/"):
            store.before = quiet
            assert days(federation, "w2").add("alice", TASKS[0])

    store.before = meanwhile
    federation.run_once("maastro", images=images, rule={"runs_per_day": 1}, worker="w1")
    assert states([task], tmp_path) == ["rejected"]


def test_a_race_is_won_by_one_and_the_other_counts_again(federation: Federation) -> None:
    store = federation.store
    assert isinstance(store, MemoryStore)
    ours, theirs = days(federation), days(federation, "w2")

    def meanwhile(verb: str, key: str) -> None:
        if verb == "create":
            store.before = quiet
            assert theirs.add("alice", TASKS[1])

    store.before = meanwhile
    assert not ours.add("alice", TASKS[0])
    assert ours.count("alice", TASKS[0]) == 1
    assert ours.add("alice", TASKS[0])
    assert (ours.count("alice", TASKS[0]), ours.count("alice", "")) == (1, 2)


def test_many_workers_count_every_run_once(federation: Federation) -> None:
    def count(task: str) -> None:
        mine = days(federation)
        while not mine.add("alice", task):
            pass

    threads = [threading.Thread(target=count, args=(task,)) for task in TASKS for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert days(federation).count("alice", "") == len(TASKS)
    assert days(federation).count("mallory", "") == 0


def test_a_run_that_is_counted_twice_counts_once(federation: Federation) -> None:
    """A crash between the count and the start, and the task is taken up again: here, or by another worker."""
    assert days(federation).add("alice", TASKS[0])
    assert days(federation).add("alice", TASKS[0])
    assert days(federation, "w2").add("alice", TASKS[0])
    assert days(federation).count("alice", "") == 1
    assert days(federation).count("alice", TASKS[0]) == 0


def test_mallory_cannot_use_up_alices_day(federation: Federation) -> None:
    """Who can write into the bucket signs with the wrong key, and copies the site's own notes elsewhere."""
    assert days(federation).add("mallory", TASKS[0])
    (today,) = (key.split("/")[3] for key in [info.key for info in federation.store.list(layout.days_of("maastro"))])
    genuine = federation.store.get(layout.day_run("maastro", today, "mallory", 1), 10**6)
    forged = DayRun(
        registry=federation.registry("mallory").id,
        site="maastro",
        user="alice",
        day=today,
        number=1,
        task=TASKS[1],
        worker="w1",
        nonce="0" * 32,
        created=now_utc(),
    )
    federation.store.create(layout.day_run("maastro", today, "alice", 1), federation.registry("mallory").sign(forged))
    federation.store.create(layout.day_run("maastro", today, "alice", 2), genuine)
    federation.store.create(layout.day_run("maastro", today, "alice", 4), b"{}")
    federation.store.create(layout.day_runs_of("maastro", today, "alice") + "junk", b"{}")
    assert days(federation).count("alice", "") == 0
    assert days(federation).add("alice", TASKS[2])
    assert federation.registry("maastro").exists(layout.day_run("maastro", today, "alice", 3))
    assert days(federation).count("alice", "") == 1


def test_notes_that_the_bucket_hides_give_a_worker_no_second_budget(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    tasks = []
    for _ in range(3):
        tasks.append(put(federation))
        federation.run_once("maastro", images=images, rule=BUDGET)
        for info in list(federation.store.list(layout.days_of("maastro"))):
            federation.store.delete(info.key)
    assert states(tasks, tmp_path) == ["completed", "completed", "rejected"]


def test_a_store_that_always_says_taken_does_not_hang_the_node(
    federation: Federation, images: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task = put(federation)
    monkeypatch.setattr(DayRuns, "add", lambda self, user, task: False)
    with pytest.raises(PtmError, match="could not be finished for now"):
        federation.run_once("maastro", images=images, rule=BUDGET)
    assert "the runs of today cannot be counted" in caplog.text
    assert task.status()[0].state == "running"
    monkeypatch.undo()
    federation.run_once("maastro", images=images, rule=BUDGET)
    assert task.status()[0].state == "completed"


def test_a_policy_without_a_budget_counts_nothing_in_the_registry(federation: Federation, images: dict[str, Path]) -> None:
    put(federation)
    federation.run_once("maastro", images=images)
    assert list(federation.store.list(layout.days_of("maastro"))) == []


def test_what_a_count_costs_does_not_grow_with_the_days_before(federation: Federation, images: dict[str, Path]) -> None:
    store = federation.store
    assert isinstance(store, MemoryStore)
    for day in range(10, 30):
        for number in range(1, 50):
            store.create(layout.day_run("maastro", f"2025-11-{day}", "alice", number), b"old")
    seen: list[str] = []
    store.before = lambda verb, key: seen.append(f"{verb} {key}")
    counter = days(federation)
    assert counter.add("alice", TASKS[0])
    assert counter.count("alice", TASKS[0]) == 0
    assert len(seen) <= 5, seen


@pytest.mark.parametrize("k", range(1, 40, 3))
def test_an_outage_while_runs_are_counted_loses_and_repeats_nothing(
    federation: Federation, images: dict[str, Path], tmp_path: Path, k: int
) -> None:
    store = federation.store
    assert isinstance(store, MemoryStore)
    tasks = [put(federation)]
    fail = FailOnce(k)
    store.before = fail
    for _ in range(4):
        try:
            federation.run_once("maastro", images=images, rule={"runs_per_day": 1})
        except PtmError:
            assert fail.fired
    store.before = quiet
    tasks.append(put(federation))
    federation.run_once("maastro", images=images, rule={"runs_per_day": 1})
    assert states(tasks, tmp_path) == ["completed", "rejected"]
