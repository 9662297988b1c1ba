"""Files go after use, by age, or because a person asked: on record, and never while somebody uses them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ptm import audit
from ptm.errors import Unreachable
from ptm.registry import now_utc
from ptm.store.memory import MemoryStore
from ptm.transfer import Purge
from ptm.trustedparty.ledger import MAX_PURGED, HeldFile, Ledger
from ptm.trustedparty.purge import records
from tests.trustedparty.parties import Parcel, World

TASK = "01KAMV3ZR5F2J7Q8XG4M1W9ABC"


def asked(world: World, sender: str | None = None) -> None:
    ledger = Ledger(world.federation.home("ttp").ledger)
    ledger.plan_purge("link", "asked", world.now(), sender=sender, person="eve", reason="study ended")
    ledger.close()


def seen_by(world: World, name: str = "clinic") -> list[Purge]:
    return records(world.registry(name), "ttp", "link")


@pytest.fixture
def held(world: World) -> Parcel:
    parcel = world.send({"a.csv": b"x"})
    world.send({"incomes.csv": b"i"}, "statistics")
    world.poll()
    return parcel


def test_used_collection_is_purged_on_signed_record(world: World) -> None:
    world.reconfigure(senders={"clinic": [r"a\.csv"]}, purge="used")
    parcel = world.send({"a.csv": b"x"})
    world.poll()
    node = world.collections()
    assert node.begin_use("link", TASK)
    node.end_use("link", TASK, completed=True)
    assert node.state("link").files == ()
    world.poll()
    (record,) = seen_by(world)
    assert (record.why, record.task, record.by) == ("used", TASK, None)
    (file,) = record.files
    assert (file.sender, file.transfer, file.name) == ("clinic", parcel.transfer.id, "a.csv")
    assert file.sha256 == parcel.transfer.files[0].sha256
    assert world.published() == {}


def test_old_files_are_purged_and_young_ones_stay(world: World) -> None:
    world.reconfigure(purge="30d")
    world.now = lambda: now_utc() - timedelta(days=31)
    world.send({"old.csv": b"x"})
    # the sender's clock is right: the party's is behind, so what it sees must not look like the future
    world.now = lambda: now_utc()
    world.poll()
    world.send({"young.csv": b"y"})
    world.now = lambda: now_utc() + timedelta(days=29)
    world.poll()
    assert sorted(world.published()) == ["link/clinic/old.csv", "link/clinic/young.csv"]
    world.now = lambda: now_utc() + timedelta(days=31)
    world.poll()
    assert list(world.published()) == ["link/clinic/young.csv"]
    (record,) = seen_by(world)
    assert (record.why, [file.name for file in record.files]) == ("age", ["old.csv"])


def test_person_purges_one_senders_files(world: World, held: Parcel) -> None:
    asked(world, "clinic")
    world.poll()
    assert list(world.published()) == ["link/statistics/incomes.csv"]
    (record,) = seen_by(world)
    assert (record.why, record.by, record.reason) == ("asked", "eve", "study ended")


def test_purge_is_on_the_audit_log(world: World, held: Parcel) -> None:
    asked(world)
    world.poll()
    path = world.federation.home("ttp").party_audit
    (entry,) = [entry for entry in audit.entries(path) if entry.event == "purged"]
    assert entry.facts["by"] == "eve"
    assert [file["name"] for file in entry.facts["files"]] == ["a.csv", "incomes.csv"]


def test_name_is_free_again_after_a_purge(world: World, held: Parcel) -> None:
    asked(world)
    again = world.send({"a.csv": b"anew"})
    world.poll()
    receipt = world.receipt(again)
    assert receipt is not None and receipt.state == "accepted"
    assert world.published() == {"link/clinic/a.csv": b"anew"}


def test_purged_transfer_is_not_taken_again(world: World, held: Parcel) -> None:
    asked(world)
    world.poll()
    held.put(world.store)
    world.poll()
    assert (world.published(), world.inbox()) == ({}, [])


def test_collection_in_use_is_purged_when_nobody_uses_it_any_more(world: World) -> None:
    world.reconfigure(senders={"clinic": [r"a\.csv"]})
    world.send({"a.csv": b"x"})
    world.poll()
    node = world.collections()
    assert node.begin_use("link", TASK)
    asked(world)
    world.poll()
    assert list(world.published()) == ["link/clinic/a.csv"]
    node.end_use("link", TASK, completed=False)
    world.poll()
    assert world.published() == {}


def test_file_that_a_person_removed_by_hand_is_purged_all_the_same(world: World, held: Parcel) -> None:
    (world.federation.home("ttp").collections / "link/clinic/a.csv").unlink()
    asked(world)
    world.poll()
    assert len(seen_by(world)[0].files) == 2


@pytest.mark.parametrize("lost", ["before", "after"])
def test_record_that_could_not_be_written_is_written_later_and_once(world: World, held: Parcel, lost: str) -> None:
    asked(world)
    assert isinstance(world.store, MemoryStore)

    def fail(verb: str, key: str) -> None:
        if "/purges/" in key:
            raise Unreachable("the network went away")

    setattr(world.store, lost, fail)
    with pytest.raises(Unreachable):
        world.poll()
    assert world.published() == {}
    setattr(world.store, lost, lambda verb, key: None)
    world.poll()
    assert len(seen_by(world)) == 1


def test_record_that_the_party_did_not_sign_is_not_believed(world: World, held: Parcel) -> None:
    asked(world)
    world.poll()
    (info,) = world.store.list("sites/ttp/purges/link/")
    world.store.put(info.key, world.store.get(info.key, 10**6).replace(b"study ended", b"nothing was"))
    assert (seen_by(world), seen_by(world, "ttp")) == ([], [])


def test_more_files_than_one_record_holds_go_on_several(world: World) -> None:
    ledger = Ledger(world.federation.home("ttp").ledger)
    count = 2 * MAX_PURGED + 1
    with ledger._transaction() as ask:
        for number in range(count):
            ask(
                "insert into files values (?, ?, 'link', 'clinic', ?, ?, ?, 0, ?, ?, null, 0, '2026-01-01T00:00:00Z', 1, null)",
                TASK, number, f"{number}.csv", f"{number}.csv", f"{number}.csv", "0" * 64, "0" * 64,
            )  # fmt: skip
    asked_for: list[HeldFile] = ledger.plan_purge("link", "asked", now_utc(), person="eve")
    ledger.close()
    world.poll()
    assert len(asked_for) == count
    assert sorted(len(record.files) for record in seen_by(world)) == [1, MAX_PURGED, MAX_PURGED]
