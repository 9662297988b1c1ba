"""Attacks on a trusted party that were found by trying: each test is one, and failed before it was mended.

Whoever runs the bucket may keep, hide, copy and put back what it likes; a sender is a member who lies; and what was purged has to
be gone, whatever the bucket does."""

from __future__ import annotations

import io
import os
import shutil
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from ptm import audit, c4gh, layout
from ptm.errors import PtmError, Unreachable, UsageError
from ptm.registry import now_utc
from ptm.store.memory import MemoryStore
from ptm.transfer import Purge
from ptm.trustedparty import receive
from ptm.trustedparty.byhand import purge_by_hand
from ptm.trustedparty.collection import Collections
from ptm.trustedparty.dropfolder import DropFolder
from ptm.trustedparty.ledger import Ledger
from ptm.trustedparty.outbox import Outbox
from ptm.trustedparty.purge import records
from ptm.trustedparty.send import Source, send
from ptm.trustedparty.sent import overview
from ptm.trustedparty.settings import PartyConfig
from tests.trustedparty.parties import LINK, World, config, refused

BOTH = {"clinic": [r".*\.csv"], "statistics": [r".*\.csv"]}
SECRET = b"patient,diagnosis\n12,E11 diabetes mellitus type 2\n"


def memory(world: World) -> MemoryStore:
    assert isinstance(world.store, MemoryStore)
    return world.store


def later(world: World, days: float) -> None:
    world.now = lambda: now_utc() + timedelta(days=days)


def purge_records(world: World, name: str = "link") -> list[str]:
    return [file.name for record in records(world.registry("clinic"), "ttp", name) for file in record.files]


# a sender uses the party to read another's file


def with_more_packets(world: World, cipher: bytes, packets: list[bytes]) -> bytes:
    """A Crypt4GH file of somebody else's, with packets of one's own in its header: anybody can encrypt those to the party."""
    from crypt4gh import header

    recipient = c4gh._raw_key(world.registry("ttp").keys.age_key, "age")
    stream = io.BytesIO(cipher)
    theirs = list(header.parse(stream))
    mine = [sealed for packet in packets for sealed in header.encrypt(packet, [(0, os.urandom(32), recipient)])]
    return bytes(header.serialize(theirs + mine)) + stream.read()


def test_a_byte_of_anothers_crypt4gh_file_cannot_be_guessed_by_an_edit_list_of_ones_own(world: World) -> None:
    """Acceptance would say that the guess was right: every file could be read so, byte by byte."""
    from crypt4gh.header import make_packet_data_edit_list

    world.reconfigure(senders=BOTH)
    victim = world.parcel({"diagnoses.csv": SECRET}, format="crypt4gh").objects["diagnoses.csv"]
    at, guess = SECRET.index(b"E11"), b"E11"
    forged = with_more_packets(world, victim, [make_packet_data_edit_list([at, len(guess)])])

    attack = world.parcel(
        {"guess.csv": guess}, "statistics", format="crypt4gh", bend=lambda objects: objects.update({"guess.csv": forged})
    )
    refused(world, attack.put(world.store), "edit list")


def test_a_header_with_many_keys_for_the_party_does_not_make_every_segment_cost_a_thousand_tries(world: World) -> None:
    from crypt4gh.header import make_packet_data_enc

    world.reconfigure(senders=BOTH)
    packets = [make_packet_data_enc(0, os.urandom(32)) for _ in range(900)]
    attack = world.parcel(
        {"a.csv": SECRET},
        format="crypt4gh",
        bend=lambda objects: objects.update({"a.csv": with_more_packets(world, objects["a.csv"], packets)}),
    )
    refused(world, attack.put(world.store), "keys")


# the bucket keeps something back, and shows it later


def test_a_transfer_that_was_refused_as_from_the_future_is_not_taken_when_it_is_put_back(world: World) -> None:
    """Its receipt says refused; to take it all the same would make the receipt a lie."""
    later(world, -0.1)
    parcel = world.send({"a.csv": b"x"})
    refused(world, parcel, "future")

    later(world, 0)
    refused(world, parcel.put(world.store), "future")


def test_a_transfer_that_was_held_back_for_months_is_not_taken_any_more(world: World) -> None:
    """Its sender has long sent another one, or the study is over and its data are purged."""
    parcel = world.send({"a.csv": b"x"})
    later(world, 91)
    refused(world, parcel, "more than 90 days ago")


def test_a_transfer_that_took_its_time_is_taken(world: World) -> None:
    parcel = world.send({"a.csv": b"x"})
    later(world, 89)
    world.poll()
    receipt = world.receipt(parcel)
    assert receipt is not None
    assert receipt.state == "accepted"


# what has to go, goes


@pytest.fixture
def two_collections(world: World) -> World:
    rules = [LINK | {"name": name, "purge": "30d"} for name in ("link", "other")]
    world.config = PartyConfig.model_validate({"min_free_mb": 0, "poll_s": 0.05, "collection": rules}, strict=False)
    world.send({"a.csv": SECRET})
    world.send({"b.csv": SECRET}, collection="other")
    world.poll()
    assert len(world.published()) == 2
    return world


@pytest.mark.parametrize("how", ["trust/", "sites/ttp/purges/"])
def test_a_bucket_that_does_not_answer_keeps_no_file_from_being_purged(two_collections: World, how: str) -> None:
    """Neither a frozen list of members nor a record that cannot be written: the files go, and the records follow."""
    world = two_collections

    def silent(verb: str, key: str) -> None:
        if key.startswith(how):
            raise Unreachable("no answer")

    calm, memory(world).before = memory(world).before, silent
    later(world, 31)
    with pytest.raises(PtmError):
        world.poll()
    assert world.published() == {}

    memory(world).before = calm
    world.poll()
    assert purge_records(world) == ["a.csv"]
    assert purge_records(world, "other") == ["b.csv"]


def test_junk_in_the_place_of_a_purges_record_stops_neither_the_record_nor_the_party(world: World) -> None:
    """Whoever runs the bucket has refused the record, to learn its name."""
    world.reconfigure(purge="30d")
    world.send({"a.csv": SECRET})
    world.poll()

    def planting(verb: str, key: str) -> None:
        if verb == "create" and key.startswith("sites/ttp/purges/"):
            memory(world).before = calm
            world.store.put(key, b"junk")
            raise Unreachable("no answer")

    calm, memory(world).before = memory(world).before, planting
    later(world, 31)
    with pytest.raises(PtmError):
        world.poll()
    later(world, 0)
    parcel = world.send({"b.csv": b"x"})
    world.poll()
    assert purge_records(world) == ["a.csv"]
    receipt = world.receipt(parcel)
    assert receipt is not None
    assert receipt.state == "accepted"


def test_one_file_that_cannot_be_removed_stops_neither_other_purges_nor_the_party(two_collections: World) -> None:
    world = two_collections
    place = world.federation.home("ttp").collections / "link" / "clinic" / "a.csv"
    place.unlink()
    place.mkdir()
    (place / "x").touch()
    later(world, 31)
    parcel = world.send({"c.csv": b"x"}, collection="other")
    with pytest.raises(PtmError):
        world.poll()
    assert list(world.published()) == ["link/clinic/a.csv/x", "other/clinic/c.csv"]
    assert purge_records(world) == []
    assert purge_records(world, "other") == ["b.csv"]
    receipt = world.receipt(parcel)
    assert receipt is not None
    assert receipt.state == "accepted"


class Crash(BaseException):
    """The process is gone."""


def in_clear(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and SECRET in path.read_bytes()]


def test_a_purge_by_hand_after_a_crash_leaves_no_second_name_of_the_file_in_quarantine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says that it is gone."""
    home = world.federation.home("ttp")
    world.send({"a.csv": SECRET})

    def dies(self: Ledger, transfer: str) -> None:
        real(self, transfer)
        raise Crash

    real = Ledger.published
    with monkeypatch.context() as dying:
        dying.setattr(Ledger, "published", dies)
        with pytest.raises(Crash):
            world.party()._watch(threading.Event(), once=True)
    assert len(in_clear(home.path)) == 2

    done = purge_by_hand(home, world.registry("ttp"), world.config, "link", sender=None, person="Eve", reason="over")
    assert done.done
    assert purge_records(world) == ["a.csv"]
    assert in_clear(home.path) == []


def test_what_could_not_be_removed_from_quarantine_goes_with_the_purge(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.send({"a.csv": SECRET})
    monkeypatch.setattr(receive.shutil, "rmtree", lambda *_, **__: None)
    world.poll()
    monkeypatch.undo()
    home = world.federation.home("ttp")
    assert len(in_clear(home.path)) == 2
    purge_by_hand(home, world.registry("ttp"), world.config, "link", sender=None, person="Eve", reason="over")
    assert in_clear(home.path) == []


def test_what_a_purged_file_said_cannot_be_tried_out_on_what_the_party_keeps(world: World) -> None:
    """A digest of a small file in clear is as good as the file to who can guess it: in the ledger, its log, or the audit log."""
    import hashlib

    home = world.federation.home("ttp")
    keep_open = Ledger(home.ledger)  # as a node that runs beside it
    try:
        world.send({"a.csv": SECRET})
        world.poll()
        purge_by_hand(home, world.registry("ttp"), world.config, "link", sender=None, person="Eve", reason="over")
        digest = hashlib.sha256(SECRET).hexdigest().encode()
        kept = {path.name: path.read_bytes() for path in home.path.iterdir() if path.is_file()}
        assert "party.sqlite-wal" in kept
        assert [name for name, body in kept.items() if digest in body] == []
    finally:
        keep_open.close()


# a sender fills the party


def test_empty_files_count_towards_the_quota(world: World) -> None:
    """Each takes an inode, a row and a line of the log, however little is in it."""
    world.reconfigure(max_mb=1, quota_mb=1, max_files=256)
    for letter in "abcd":
        world.send({f"{letter}{number}.csv": b"" for number in range(64)})
    world.poll()
    assert len(world.published()) == 256
    parcel = world.send({"e.csv": b""})
    world.poll()
    receipt = world.receipt(parcel)
    assert receipt is not None
    assert receipt.state == "refused"
    assert "more than 1 MB" in (receipt.reason or "")


def test_refusals_do_not_eat_the_last_of_the_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is kept, so who is refused over and over makes the ledger and the audit log grow."""
    world.config = config().model_copy(update={"min_free_mb": 1024})
    world.send({"nobody.exe": b"x"})
    usage = shutil.disk_usage(world.federation.folder)
    monkeypatch.setattr(receive.shutil, "disk_usage", lambda _: usage._replace(free=1024 * 1024))
    with pytest.raises(PtmError, match="could not be taken"):
        world.poll()
    assert [entry.event for entry in audit.entries(world.federation.home("ttp").party_audit)] == [
        "party-started",
        "party-stopped",
    ]
    monkeypatch.undo()
    world.poll()
    assert world.inbox() == []


# another account of the sender's machine


def drop(world: World, folder: Path) -> DropFolder:
    return DropFolder(folder, world.registry("clinic"), to="ttp", collection="link", settle_s=0)


@pytest.mark.parametrize("mode", [0o777, pytest.param(0o775, marks=pytest.mark.skipif(os.geteuid() != 0, reason="chown"))])
def test_a_drop_folder_in_which_others_can_put_a_link_in_the_place_of_sending_is_refused(
    world: World, tmp_path: Path, mode: int
) -> None:
    """Who can rename `sending` could have this account's own files sent, and taken away: its keys, say."""
    folder = tmp_path / "drop"
    folder.mkdir()
    if mode == 0o775:
        os.chown(folder, -1, 12345)
    folder.chmod(mode)
    with pytest.raises(UsageError, match="could be replaced"):
        drop(world, folder).watch(threading.Event(), once=True)


def test_a_drop_folder_to_which_others_may_add_is_watched(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / "a.csv").write_bytes(SECRET)
    drop(world, folder).watch(threading.Event(), once=True)
    world.poll()
    assert world.published() == {"link/clinic/a.csv": SECRET}


def test_a_drop_folder_of_another_account_is_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    if folder.stat().st_uid == 0:
        os.chown(folder, 12345, 12345)
    with pytest.raises(UsageError, match="could be replaced"):
        drop(world, folder).watch(threading.Event(), once=True)


def test_sending_that_somebody_else_made_writable_is_refused(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "drop"
    (folder / "sending").mkdir(parents=True)
    (folder / "sending").chmod(0o777)
    with pytest.raises(UsageError, match="could be replaced"):
        drop(world, folder).watch(threading.Event(), once=True)


def test_a_pipe_in_sent_does_not_stop_the_drop_folder(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "drop"
    (folder / "sent").mkdir(parents=True)
    os.mkfifo(folder / "sent" / ".a.csv.id")
    watching = threading.Thread(target=lambda: drop(world, folder).watch(threading.Event(), once=True), daemon=True)
    watching.start()
    watching.join(20)
    stuck = watching.is_alive()
    if stuck:
        (folder / "sent" / ".a.csv.id").write_text("x")
    assert not stuck


# what is in use


def test_a_collection_that_two_hold_is_let_go_when_both_are_through(world: World) -> None:
    world.reconfigure(senders={"clinic": [r".*\.csv"]}, purge="used")
    world.send({"a.csv": SECRET})
    world.poll()
    collections: Collections = world.collections()
    try:
        one, two = "01KAMV3ZR5F2J7Q8XG4M1W9ABC", "01KAMV3ZR5F2J7Q8XG4M1W9ABD"
        assert collections.begin_use("link", one)
        assert collections.begin_use("link", two)
        collections.end_use("link", one, True)
        assert not collections.begin_use("link", "01KAMV3ZR5F2J7Q8XG4M1W9ABE"), "a third cannot keep the purge waiting"
        world.poll()
        assert len(world.published()) == 1
        collections.end_use("link", two, False)
        world.poll()
        assert world.published() == {}
    finally:
        collections.close()
    assert [info.key for info in world.store.list(layout.purges_of("ttp", "link"))]


# what a sender learns of a purge


@pytest.fixture
def purged(world: World, tmp_path: Path) -> tuple[World, Outbox, str, bytes]:
    """What the clinic sent was accepted and purged: its world, outbox, transfer, and the record's bytes."""
    (tmp_path / "a.csv").write_bytes(SECRET)
    clinic = world.registry("clinic")
    outbox = Outbox(world.federation.home("clinic").outbox)
    send(clinic, outbox, [Source("a.csv", tmp_path / "a.csv")], to="ttp", collection="link")
    world.poll()
    assert [item.state for item in overview(clinic, outbox)] == ["accepted"]
    home = world.federation.home("ttp")
    purge_by_hand(home, world.registry("ttp"), world.config, "link", sender=None, person="Eve", reason="over")
    (info,) = world.store.list(layout.purges_of("ttp", "link"))
    return world, outbox, info.key, world.store.get(info.key, info.size)


def test_a_sender_sees_that_its_files_were_purged_and_asks_for_the_record_once(
    purged: tuple[World, Outbox, str, bytes],
) -> None:
    world, outbox, _, _ = purged
    (item,) = overview(world.registry("clinic"), outbox)
    assert item.state == "purged"
    assert "by Eve: over" in (item.reason or "")

    reads: list[str] = []
    memory(world).before = lambda verb, key: reads.append(key) if "purges" in key else None
    assert overview(world.registry("clinic"), outbox) == [item]
    assert reads == []


@pytest.mark.parametrize("how", ["signed by another", "of another collection", "of other files"])
def test_a_purge_that_the_party_did_not_record_is_not_shown(purged: tuple[World, Outbox, str, bytes], how: str) -> None:
    world, outbox, key, body = purged
    record = world.registry("clinic").read(key, Purge, "ttp")
    if how == "signed by another":
        world.store.put(key, world.registry("mallory").sign(record))
    elif how == "of another collection":
        world.store.put(key, world.registry("ttp").sign(record.model_copy(update={"collection": "other"})))
    else:
        files = tuple(file.model_copy(update={"sha256": "0" * 64}) for file in record.files)
        world.store.put(key, world.registry("ttp").sign(record.model_copy(update={"files": files})))
    assert [item.state for item in overview(world.registry("clinic"), outbox)] == ["accepted"]
    world.store.put(key, body)
    assert [item.state for item in overview(world.registry("clinic"), outbox)] == ["purged"]
