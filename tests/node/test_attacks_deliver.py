"""Attacks on deliveries to a trusted party, and on runs that use its collections, that were found by trying."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ptm import layout
from ptm.errors import NotForUs, Unreachable, VerificationError
from ptm.model import Delivered
from ptm.node import watch
from ptm.store.memory import MemoryStore
from ptm.transfer import Receipt
from ptm.trustedparty.send import receipt_for
from tests.federation import Federation, image_folder, wait_for
from tests.node.parties import purge_all, receive, send_both, state, users, write_party

IMAGE = """#!/bin/sh
printf 'pseudonym,diagnosis\\n5f1c,E11\\n' > "$PTM_OUTPUT_DIR/diagnoses.csv"
"""
TELLTALE = """#!/bin/sh
touch "$PTM_OUTPUT_DIR/patient-12-has-E11.csv"
"""


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation(MemoryStore(), tmp_path).create()
    made.admit(alice="researcher", maastro="site", umcu="site", ttp="party")
    write_party(made)
    return made


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    return {
        "demo/pseudonymise:1": image_folder(tmp_path / "pseudonymise", IMAGE),
        "demo/telltale:1": image_folder(tmp_path / "telltale", TELLTALE),
        "demo/link:1": image_folder(tmp_path / "link", "#!/bin/sh\ntrue\n"),
    }


def memory(federation: Federation) -> MemoryStore:
    assert isinstance(federation.store, MemoryStore)
    return federation.store


# the researcher finds the party's answer, and no other


@pytest.fixture
def delivered(federation: Federation, images: dict[str, Path], tmp_path: Path) -> Delivered:
    task = federation.client().put("demo/pseudonymise:1", ["maastro"], deliver=("ttp", "link-2026"))
    federation.run_once("maastro", images=images, rule={"deliver": ["ttp"], "outputs": {"names": [".*"]}})
    (result,) = task.results(timeout=0, folder=tmp_path / "out")
    assert result.delivered is not None
    return result.delivered


def junk(federation: Federation, delivered: Delivered) -> None:
    """So many objects beside the receipt that who tries them one after the other does not come to it."""
    for number in range(40):
        key = layout.receipt("ttp", "maastro", delivered.transfer, f"{number:064x}")
        federation.store.put(key, b"junk")


def test_junk_beside_the_receipt_does_not_hide_it(federation: Federation, delivered: Delivered) -> None:
    junk(federation, delivered)
    assert receipt_for(federation.registry("alice"), "maastro", delivered) is None
    receive(federation)
    receipt = receipt_for(federation.registry("alice"), "maastro", delivered)
    assert receipt is not None
    assert (receipt.state, receipt.files) == ("accepted", delivered.files)


def test_a_refusal_of_something_else_under_the_transfers_name_is_not_the_answer(
    federation: Federation, delivered: Delivered
) -> None:
    """The bucket shows the party junk first, and the party says no to that."""
    key = layout.transfer_manifest("ttp", "maastro", delivered.transfer)
    manifest = federation.store.get(key, 1024 * 1024)
    files = {info.key: federation.store.get(info.key, info.size) for info in federation.store.list("inbox/")}
    federation.store.put(key, b"junk")
    receive(federation)
    assert receipt_for(federation.registry("alice"), "maastro", delivered) is None

    for name, body in files.items():
        federation.store.put(name, body)
    federation.store.put(key, manifest)
    receive(federation)
    receipt = receipt_for(federation.registry("alice"), "maastro", delivered)
    assert receipt is not None
    assert receipt.state == "accepted"


def test_a_receipt_that_is_moved_forged_or_about_other_files_is_not_believed(
    federation: Federation, delivered: Delivered
) -> None:
    receive(federation)
    alice = federation.registry("alice")
    key = layout.receipt("ttp", "maastro", delivered.transfer, delivered.manifest_sha256)
    body = federation.store.get(key, 1024 * 1024)

    moved = delivered.model_copy(update={"manifest_sha256": "0" * 64})
    federation.store.put(layout.receipt("ttp", "maastro", delivered.transfer, "0" * 64), body)
    with pytest.raises(NotForUs):
        receipt_for(alice, "maastro", moved)

    with pytest.raises(NotForUs, match="other files"):
        receipt_for(alice, "maastro", delivered.model_copy(update={"collection": "another"}))

    receipt = alice.read(key, Receipt, "ttp")
    federation.store.put(key, federation.registry("umcu").sign(receipt))
    with pytest.raises(VerificationError):
        receipt_for(alice, "maastro", delivered)


# what may leave with a delivery


def test_names_of_delivered_files_are_seen_by_all_so_a_rule_says_which_they_may_be(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    """The researcher, and whoever reads the bucket, gets the names. An image of the researcher's could put data into them."""
    task = federation.client().put("demo/telltale:1", ["maastro"], deliver=("ttp", "link-2026"))
    federation.run_once("maastro", images=images, rule={"deliver": ["ttp"], "outputs": {"names": [r"diagnoses\.csv"]}})
    (result,) = task.results(timeout=0, folder=tmp_path / "out")
    assert (result.state, result.delivered) == ("failed", None)
    assert not [info.key for info in federation.store.list("") if "patient" in info.key]
    assert "patient-12" not in (result.reason or "")


# what is in use


def test_a_bucket_that_takes_a_task_away_in_the_middle_of_the_claim_keeps_no_collection_held(
    federation: Federation, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection that is held is not purged: whoever runs the bucket could keep data there for as long as the node runs."""
    monkeypatch.setattr(watch, "SWEEP_EVERY_S", 0.2)
    send_both(federation, tmp_path)
    task = federation.client().put("demo/link:1", ["ttp"], data=["link-2026"])
    queued = layout.queue("ttp", "alice", task.id)

    def vanish(verb: str, key: str) -> None:
        if verb == "create" and "/claim." in key:
            memory(federation).before = calm
            federation.store.delete(queued)
            raise Unreachable("no answer")

    calm, memory(federation).before = memory(federation).before, vanish
    stop = threading.Event()
    running = threading.Thread(target=federation.node("ttp", images=images).watch, args=(stop,), daemon=True)
    running.start()
    try:
        wait_for(lambda: memory(federation).before is calm)
        wait_for(lambda: users(federation) == [])
        purge_all(federation)
        assert state(federation).files == ()
    finally:
        stop.set()
        running.join(20)
