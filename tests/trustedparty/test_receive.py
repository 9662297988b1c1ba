"""What a trusted party does with transfers that are as they should be, and with what only time can mend."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from ptm import audit, layout
from ptm.errors import ConfigError, PtmError, Unreachable
from ptm.files import hold_lock
from ptm.store.file import FileStore
from ptm.store.memory import MemoryStore
from ptm.transfer import Transfer
from ptm.trustedparty.collection import place_of
from ptm.trustedparty.settings import PartyConfig, load_party, write_party_file
from tests.federation import wait_for
from tests.trustedparty import parties
from tests.trustedparty.parties import World


def test_transfer_is_published_answered_and_taken_out_of_the_inbox(world: World) -> None:
    parcel = world.send({"a.csv": b"id,x\n1,2\n", "b.csv": b"y" * 300_000})
    world.poll()
    receipt = world.receipt(parcel)
    assert receipt is not None
    assert (receipt.state, receipt.files, receipt.reason) == ("accepted", parcel.transfer.files, None)
    assert world.published() == {"link/clinic/a.csv": b"id,x\n1,2\n", "link/clinic/b.csv": b"y" * 300_000}
    assert (world.inbox(), world.quarantine()) == ([], [])


def test_published_files_are_this_accounts_alone(world: World) -> None:
    world.send({"a.csv": b"secret"})
    world.poll()
    home = world.federation.home("ttp")
    assert stat.S_IMODE((home.collections / "link/clinic/a.csv").stat().st_mode) == 0o600
    for folder in ("", "link", "link/clinic"):
        assert stat.S_IMODE((home.collections / folder).stat().st_mode) == 0o700


def test_empty_file_is_a_file(world: World) -> None:
    parcel = world.send({"empty.csv": b""})
    world.poll()
    receipt = world.receipt(parcel)
    assert receipt is not None and receipt.state == "accepted"
    assert world.published() == {"link/clinic/empty.csv": b""}


def test_crypt4gh_is_published_like_age(world: World) -> None:
    parcel = world.send({"a.csv": b"g" * 200_000}, format="crypt4gh")
    world.poll()
    receipt = world.receipt(parcel)
    assert receipt is not None and receipt.state == "accepted", receipt
    assert world.published() == {"link/clinic/a.csv": b"g" * 200_000}


def test_sealed_collection_keeps_the_verified_ciphertext(world: World) -> None:
    world.reconfigure(researchers=[], sealed=True)
    parcel = world.send({"a.csv": b"for somebody else"})
    world.poll()
    assert world.published() == {"link/clinic/a.csv.age": parcel.objects["a.csv"]}
    (held,) = world.collections().state("link").files
    assert (held.name, held.format, held.size) == ("a.csv", "age", 17)
    assert place_of(world.federation.home("ttp"), held).is_file()
    assert not world.collections().is_source("link")


def test_everything_is_on_the_audit_log(world: World) -> None:
    world.send({"a.csv": b"x"})
    world.send({"nobody.exe": b"x"})
    world.poll()
    path = world.federation.home("ttp").party_audit
    assert audit.verify(path).whole
    events = [entry.event for entry in audit.entries(path)]
    assert sorted(events) == ["party-started", "party-stopped", "transfer-accepted", "transfer-refused"]


def test_accepted_id_is_not_taken_again_when_bucket_hides_the_receipt_and_replays(world: World) -> None:
    parcel = world.send({"a.csv": b"x"})
    world.poll()
    world.store.delete(layout.receipt("ttp", "clinic", parcel.transfer.id, parcel.seen))
    (world.federation.home("ttp").collections / "link/clinic/a.csv").unlink()  # so that it would be free to be published again
    parcel.put(world.store)
    world.poll()
    receipt = world.receipt(parcel)
    assert receipt is not None and receipt.state == "accepted"
    assert (world.published(), world.inbox()) == ({}, [])


def test_outage_in_the_middle_of_a_file_is_no_refusal(world: World) -> None:
    parcel = world.send({"a.csv": b"x"})
    assert isinstance(world.store, MemoryStore)

    def fail(verb: str, key: str) -> None:
        if verb == "download":
            raise Unreachable("the network went away")

    world.store.before = fail
    with pytest.raises(PtmError, match="could not be taken for now"):
        world.poll()
    assert (world.receipt(parcel), world.quarantine()) == (None, [])
    world.store.before = lambda verb, key: None
    world.poll()
    receipt = world.receipt(parcel)
    assert receipt is not None and receipt.state == "accepted"


def test_full_disk_is_waited_for_and_warned_of(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parcel = world.send({"a.csv": b"x" * 1000})
    full = shutil._ntuple_diskusage(10**9, 10**9, 999)  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr("ptm.trustedparty.receive.shutil.disk_usage", lambda path: full)
        with pytest.raises(PtmError, match="could not be taken for now"):
            world.poll()
    assert world.receipt(parcel) is None
    assert "too little room" in caplog.text
    world.poll()
    assert world.published() == {"link/clinic/a.csv": b"x" * 1000}


def test_disk_that_fills_up_while_a_file_arrives_leaves_nothing_and_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource
    import signal

    parcel = world.send({"a.csv": os.urandom(2_000_000)})
    world.collections().close()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # a real error of the kernel's: EFBIG
        with pytest.raises(PtmError, match="could not be taken for now"):
            world.poll()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert (world.receipt(parcel), world.quarantine(), world.published()) == (None, [], {})
    world.poll()
    receipt = world.receipt(parcel)
    assert receipt is not None and receipt.state == "accepted"


def test_second_watch_on_one_home_is_kept_out(world: World) -> None:
    with hold_lock(world.federation.home("ttp").party_lock) as mine:
        assert mine
        with pytest.raises(PtmError, match="another `ptm trustedparty watch`"):
            world.poll()


def test_party_on_a_file_store_reacts_within_a_second_and_stops_when_told(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    world = parties.world(tmp_path / "homes", FileStore(tmp_path / "bucket"))
    world.config = world.config.model_copy(update={"poll_s": 600.0})
    stop = threading.Event()
    thread = threading.Thread(target=world.party().watch, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: (world.federation.home("ttp").party_audit).exists())
        threading.Event().wait(1.0)
        world.send({"a.csv": b"x"})
        wait_for(lambda: world.published() != {}, 3)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_idle_poll_is_one_listing_however_many_transfers_there_were(world: World) -> None:
    for number in range(5):
        world.send({f"{number}.csv": b"x"})
    world.poll()
    asked: list[str] = []
    assert isinstance(world.store, MemoryStore)
    world.store.before = lambda verb, key: asked.append(f"{verb} {key}") if not key.startswith("trust/") else None
    world.poll()
    assert asked == ["list inbox/ttp/"]


# the configuration


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("poll_s = 0", "poll_s"),
        ("colection = 1", "colection"),
        ('[[collection]]\nname = "A"\n[collection.senders]\nclinic = ["x"]', "name"),
        ('[[collection]]\nname = "a"', "senders"),
        ('[[collection]]\nname = "a"\n[collection.senders]\nclinic = []', "senders.clinic"),
        ('[[collection]]\nname = "a"\n[collection.senders]\nclinic = ["("]', "regular expression"),
        ('[[collection]]\nname = "a"\npurge = "soon"\n[collection.senders]\nclinic = ["x"]', "purge"),
        ('[[collection]]\nname = "a"\nquota_mb = 1\n[collection.senders]\nclinic = ["x"]', "quota_mb"),
        ('[[collection]]\nname = "a"\nsealed = true\nresearchers = ["j"]\n[collection.senders]\nclinic = ["x"]', "sealed"),
        ('[[collection]]\nname = "a"\n[collection.senders]\nclinic = ["x"]\n' * 2, "two collections"),
        ("x = [", "party.toml"),
    ],
)
def test_mistake_in_the_file_is_an_error_that_names_it(world: World, text: str, where: str) -> None:
    home = world.federation.home("ttp")
    home.party.write_text(text)
    with pytest.raises(ConfigError, match=where) as caught:
        load_party(home)
    assert "party.toml" in str(caught.value)
    assert "docs/trusted-party.md" in (caught.value.hint or "")


def test_written_file_reads_back(world: World) -> None:
    home = world.federation.home("ttp")
    assert load_party(home) is None
    write_party_file(home, name="link", senders={"clinic": [r"a\.csv"]}, researchers=["jane"], purge="30d")
    config = load_party(home)
    assert isinstance(config, PartyConfig)
    assert (config.collection[0].senders, config.collection[0].purge) == ({"clinic": (r"a\.csv",)}, "30d")


def test_what_the_library_sends_is_taken(world: World, tmp_path: Path) -> None:
    from ptm.trustedparty.send import Source, announce, prepare, receipt_of, upload

    (tmp_path / "a.csv").write_bytes(b"id,x\n")
    clinic = world.registry("clinic")
    prepared = prepare(clinic, tmp_path / "out", [Source("a.csv", tmp_path / "a.csv")], to="ttp", collection="link")
    upload(clinic, prepared)
    announce(clinic, prepared)
    world.poll()
    receipt = receipt_of(clinic, prepared.transfer, prepared.sha256)
    assert receipt is not None and receipt.state == "accepted"
    assert world.published() == {"link/clinic/a.csv": b"id,x\n"}
    assert json.loads(prepared.body)["signed"]["type"] == Transfer.TYPE
