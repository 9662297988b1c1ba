"""What a node asks of collections: complete or not, who may compute, and that nothing moves while a run uses one."""

from __future__ import annotations

import threading

import pytest

from ptm.errors import PtmError, UsageError
from tests.trustedparty.parties import World

TASK, OTHER = "01KAMV3ZR5F2J7Q8XG4M1W9ABC", "01KAMV3ZR5F2J7Q8XG4M1W9ABD"


@pytest.fixture
def complete(world: World) -> World:
    world.reconfigure(senders={"clinic": [r"diagnoses\.csv"], "statistics": [r"incomes\.csv"]}, purge="used")
    world.send({"diagnoses.csv": b"d"})
    world.send({"incomes.csv": b"i"}, "statistics")
    world.poll()
    return world


def test_collection_says_what_is_missing_until_it_is_complete(world: World) -> None:
    world.reconfigure(senders={"clinic": [r"diagnoses\.csv", r"x\d\.csv"], "statistics": [r"incomes\.csv"]})
    collections = world.collections()
    assert collections.state("link").missing == (
        r"clinic has not sent diagnoses\.csv",
        r"clinic has not sent x\d\.csv",
        r"statistics has not sent incomes\.csv",
    )
    world.send({"diagnoses.csv": b"d", "x1.csv": b"x"})
    world.poll()
    state = collections.state("link")
    assert (state.complete, state.missing) == (False, (r"statistics has not sent incomes\.csv",))
    assert [(file.sender, file.name, file.size) for file in state.files] == [
        ("clinic", "diagnoses.csv", 1),
        ("clinic", "x1.csv", 1),
    ]
    world.send({"incomes.csv": b"i"}, "statistics")
    world.poll()
    assert collections.state("link").complete
    assert (collections.state("link").folder / "clinic/diagnoses.csv").read_bytes() == b"d"


def test_only_named_researchers_may_compute(world: World) -> None:
    collections = world.collections()
    assert collections.names == {"link"}
    assert [collections.may_compute("link", who) for who in ("jane", "mallory")] == [True, False]
    assert collections.is_source("link")
    with pytest.raises(UsageError, match="no collection other"):
        collections.state("other")


def test_nobody_uses_an_incomplete_collection(world: World) -> None:
    assert not world.collections().begin_use("link", TASK)


def test_file_that_somebody_removed_from_the_folder_is_missing(complete: World) -> None:
    (complete.federation.home("ttp").collections / "link/clinic/diagnoses.csv").unlink()
    state = complete.collections().state("link")
    assert not state.complete
    assert "somebody removed clinic/diagnoses.csv" in state.missing[0]
    assert not complete.collections().begin_use("link", TASK)


def test_nothing_is_published_into_a_collection_in_use(complete: World) -> None:
    complete.reconfigure(senders={"clinic": [r".*\.csv"], "statistics": [r"incomes\.csv"]})
    node = complete.collections()
    assert node.begin_use("link", TASK)
    parcel = complete.send({"more.csv": b"x"})
    with pytest.raises(PtmError, match="could not be taken for now"):
        complete.poll()
    assert (complete.receipt(parcel), "link/clinic/more.csv" in complete.published()) == (None, False)
    node.end_use("link", TASK, completed=True)
    complete.poll()
    assert "link/clinic/more.csv" in complete.published()


def test_use_that_begins_while_a_file_arrives_keeps_it_out(complete: World) -> None:
    complete.reconfigure(senders={"clinic": [r".*\.csv"], "statistics": [r"incomes\.csv"]})
    complete.send({"more.csv": b"x"})

    def begin(verb: str, key: str) -> None:
        if verb == "download":
            assert complete.collections().begin_use("link", TASK)

    complete.store.before = begin  # type: ignore[attr-defined]
    with pytest.raises(PtmError, match="could not be taken for now"):
        complete.poll()
    assert sorted(complete.published()) == ["link/clinic/diagnoses.csv", "link/statistics/incomes.csv"]
    assert complete.quarantine() == []


def test_same_task_may_ask_again_and_several_tasks_may_use_it(complete: World) -> None:
    collections = complete.collections()
    assert [collections.begin_use("link", task) for task in (TASK, TASK, OTHER)] == [True, True, True]


def test_collection_goes_when_the_last_of_its_users_has_ended(complete: World) -> None:
    collections = complete.collections()
    assert collections.begin_use("link", TASK) and collections.begin_use("link", OTHER)
    collections.end_use("link", TASK, completed=True)
    complete.poll()
    assert len(complete.published()) == 2
    assert not collections.begin_use("link", "01KAMV3ZR5F2J7Q8XG4M1W9ABE")
    collections.end_use("link", OTHER, completed=True)
    complete.poll()
    assert complete.published() == {}


def test_run_that_did_not_complete_leaves_the_collection(complete: World) -> None:
    collections = complete.collections()
    collections.begin_use("link", TASK)
    collections.end_use("link", TASK, completed=False)
    complete.poll()
    assert collections.state("link").complete


def test_task_that_does_not_use_it_ends_nothing(complete: World) -> None:
    collections = complete.collections()
    collections.end_use("link", TASK, completed=True)
    complete.poll()
    assert collections.state("link").complete


def test_uses_and_transfers_of_several_processes_never_overlap(complete: World) -> None:
    """Eight threads with a connection each; SQLite keeps them apart as it does processes."""
    failed: list[BaseException] = []

    def use(number: int) -> None:
        try:
            mine = complete.collections()
            for turn in range(10):
                assert mine.begin_use("link", f"{number}-{turn}")
                mine.end_use("link", f"{number}-{turn}", completed=False)
            mine.close()
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
