"""Transfers that are not what they say: each is refused with its reason in a signed receipt (or taken as the plain file that
it is), nothing of it is published, and the inbox and the quarantine are clean afterwards."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from datetime import timedelta

import pytest

from ptm import envelope, layout
from ptm.errors import PtmError
from ptm.model import SentFile
from ptm.registry import new_nonce, now_utc
from ptm.seal import seal_bytes
from ptm.store.memory import MemoryStore
from ptm.transfer import Receipt
from ptm.trustedparty import watch
from tests.trustedparty.parties import Parcel, World, refused

CHUNK = 64 * 1024 + 16


def lying(world: World, key: str, parcel: Parcel) -> None:
    """Put a parcel's objects under other keys: `key` is the manifest's."""
    world.store.put(key, parcel.body)
    folder = key.removesuffix("manifest.json")
    for name, body in parcel.objects.items():
        world.store.upload(f"{folder}files/{name}.age", io.BytesIO(body))


# who


def test_sender_signs_with_a_key_that_is_not_the_rosters(world: World) -> None:
    refused(world, world.send({"a.csv": b"x"}, signer="mallory"), "is signed with another key")


def test_member_puts_its_own_transfer_under_another_sender(world: World) -> None:
    parcel = world.parcel({"a.csv": b"x"}, "mallory")
    lying(world, layout.transfer_manifest("ttp", "clinic", parcel.transfer.id), parcel)
    refused(world, parcel, "is signed with another key", sender="clinic")


def test_copy_of_a_transfer_under_another_sender_is_refused_and_the_first_one_taken(world: World) -> None:
    parcel = world.send({"a.csv": b"x"})
    lying(world, layout.transfer_manifest("ttp", "statistics", parcel.transfer.id), parcel)
    world.poll()
    mine, copied = world.receipt(parcel), world.receipt(parcel, "statistics")
    assert mine is not None and mine.state == "accepted"
    assert copied is not None and copied.state == "refused"
    assert world.published() == {"link/clinic/a.csv": b"x"}
    assert world.inbox() == []


def test_signed_manifest_under_another_id(world: World) -> None:
    parcel, other = world.parcel({"a.csv": b"x"}), world.parcel({"b.csv": b"x"})
    lying(world, other.key(), parcel)
    world.poll()
    receipt = world.registry("clinic").read_raw(layout.receipt("ttp", "clinic", other.transfer.id, parcel.seen))
    assert b"another sender or id" in receipt
    assert (world.published(), world.inbox()) == ({}, [])


def test_id_that_somebody_else_made(world: World) -> None:
    theirs = world.parcel({"a.csv": b"x"}, "statistics").transfer.id
    refused(world, world.send({"a.csv": b"x"}, id=theirs), "its id was not made by its sender")


def test_nonce_that_does_not_make_the_id(world: World) -> None:
    refused(world, world.send({"a.csv": b"x"}, nonce=new_nonce()), "its id was not made by its sender")


def test_revoked_sender_is_told_so(world: World) -> None:
    parcel = world.send({"a.csv": b"x"})
    world.federation.revoke("clinic")
    world.poll()
    key = layout.receipt("ttp", "clinic", parcel.transfer.id, parcel.seen)
    receipt = world.registry("ttp").read_own(key, Receipt)
    assert (receipt.state, world.published(), world.inbox()) == ("refused", {}, [])
    assert "clinic was revoked" in (receipt.reason or "")


def test_unknown_sender_is_left_alone_and_warned_of_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    parcel = world.parcel({"a.csv": b"x"})
    key = layout.transfer_manifest("ttp", "stranger", parcel.transfer.id)
    lying(world, key, parcel)
    other = world.send({"b.csv": b"x"})
    world.poll()
    assert key in world.inbox()
    assert caplog.text.count("stranger, who is not a member") == 1
    assert world.receipt(other) is not None
    assert list(world.store.list("sites/ttp/receipts/stranger/")) == []


def test_member_who_is_no_sender_of_the_collection(world: World) -> None:
    refused(world, world.send({"a.csv": b"x"}, "mallory"), "mallory may not send to a collection link")


def test_collection_that_is_not_there_is_refused_in_the_same_words(world: World) -> None:
    refused(world, world.send({"a.csv": b"x"}, collection="nowhere"), "clinic may not send to a collection nowhere")


def test_manifest_for_another_party(world: World) -> None:
    parcel = world.parcel({"a.csv": b"x"}, party="statistics")
    lying(world, layout.transfer_manifest("ttp", "clinic", parcel.transfer.id), parcel)
    refused(world, parcel, "is for statistics, not for ttp")


def test_manifest_for_another_registry(world: World) -> None:
    refused(world, world.send({"a.csv": b"x"}, registry="0b9e8a52-2d8c-4a52-9d0e-0a6b7c8d9e0f"), "signed for another registry")


# what it was sealed to


def test_files_and_list_sealed_to_somebody_else(world: World) -> None:
    refused(world, world.send({"a.csv": b"x"}, to="statistics"), "cannot be opened: sealed to somebody else")


def test_file_sealed_to_somebody_else(world: World) -> None:
    key = world.registry("ttp").roster().active("statistics").age_key

    def bend(objects: dict[str, bytes]) -> None:
        objects["a.csv"] = seal_bytes(b"x", [key])

    refused(world, world.send({"a.csv": b"x"}, bend=bend), "a.csv: cannot be opened: sealed to somebody else")


def test_sealed_list_copied_from_another_transfer(world: World) -> None:
    theirs = world.parcel({"a.csv": b"secret"})
    parcel = world.parcel({"a.csv": b"x"}, manifest=theirs.transfer.manifest)
    refused(world, parcel.put(world.store), "was sealed for another task")


def test_another_senders_ciphertext_and_list_copied_into_ones_own_transfer(world: World) -> None:
    """So nobody has somebody else's file published, or decrypted, as their own."""
    theirs = world.parcel({"incomes.csv": b"secret"}, "statistics")
    parcel = world.parcel(
        {"incomes.csv": b"x"}, bend=lambda objects: objects.update(theirs.objects), manifest=theirs.transfer.manifest
    )
    refused(world, parcel.put(world.store), "was sealed for another task")


def test_another_senders_ciphertext_under_ones_own_list(world: World) -> None:
    theirs = world.parcel({"a.csv": b"secret"}, "statistics")
    parcel = world.send({"a.csv": b"guess!"}, bend=lambda objects: objects.update(theirs.objects))
    refused(world, parcel, "a.csv is not the file that was sealed")


# ciphertexts, changed after they were signed


def flip(body: bytes) -> bytes:
    return body[:-5] + bytes([body[-5] ^ 1]) + body[-4:]


def reorder(body: bytes) -> bytes:
    head = len(body) - 4 * CHUNK
    chunks = [body[head + n * CHUNK : head + (n + 1) * CHUNK] for n in range(4)]
    return body[:head] + chunks[1] + chunks[0] + chunks[2] + chunks[3]


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda body: body[:-1],
    "truncated at a chunk": lambda body: body[:-CHUNK],
    "cut to nothing": lambda body: b"",
    "flipped": flip,
    "reordered chunks": reorder,
}


@pytest.mark.parametrize("how", CHANGES)
def test_ciphertext_changed_in_the_bucket(world: World, how: str) -> None:
    parcel = world.send({"a.csv": b"z" * (4 * 64 * 1024)})
    world.store.upload(parcel.key("a.csv"), io.BytesIO(CHANGES[how](parcel.objects["a.csv"])))
    refused(world, parcel, "a.csv is not what was signed")


@pytest.mark.parametrize("how", CHANGES)
def test_ciphertext_changed_and_signed_so_by_its_sender(world: World, how: str) -> None:
    def bend(objects: dict[str, bytes]) -> None:
        objects["a.csv"] = CHANGES[how](objects["a.csv"]) or b"?"

    refused(world, world.send({"a.csv": b"z" * (4 * 64 * 1024)}, bend=bend), "a.csv")


def test_ciphertext_extended_in_the_bucket(world: World) -> None:
    parcel = world.send({"a.csv": b"x"})
    world.store.upload(parcel.key("a.csv"), io.BytesIO(parcel.objects["a.csv"] + b"more"))
    refused(world, parcel, "a.csv is longer than")


def test_ciphertext_extended_and_signed_so(world: World) -> None:
    def bend(objects: dict[str, bytes]) -> None:
        objects["a.csv"] += b"more"

    refused(world, world.send({"a.csv": b"x"}, bend=bend), "a.csv")


def test_two_files_ciphertexts_swapped_in_the_bucket(world: World) -> None:
    parcel = world.send({"a.csv": b"1", "b.csv": b"2"})
    world.store.upload(parcel.key("a.csv"), io.BytesIO(parcel.objects["b.csv"]))
    world.store.upload(parcel.key("b.csv"), io.BytesIO(parcel.objects["a.csv"]))
    refused(world, parcel, "a.csv is ")  # of another length, or with another digest


def test_two_files_ciphertexts_swapped_and_signed_so(world: World) -> None:
    def bend(objects: dict[str, bytes]) -> None:
        objects["a.csv"], objects["b.csv"] = objects["b.csv"], objects["a.csv"]

    refused(world, world.send({"a.csv": b"1", "b.csv": b"2"}, bend=bend), "a.csv is not the file that was sealed")


def test_last_file_of_many_is_wrong_and_none_is_published(world: World) -> None:
    parcel = world.send({f"{n}.csv": b"x" for n in range(5)})
    world.store.upload(parcel.key("4.csv"), io.BytesIO(b"junk"))
    refused(world, parcel, "4.csv is not what was signed")


def test_file_that_is_missing(world: World) -> None:
    parcel = world.send({"a.csv": b"1", "b.csv": b"2"})
    world.store.delete(parcel.key("b.csv"))
    refused(world, parcel, "b.csv is not in the inbox")


# the same again


def test_file_sent_twice_is_taken_once(world: World) -> None:
    world.send({"a.csv": b"first"})
    world.poll()
    second = world.send({"a.csv": b"second"})
    world.poll()
    receipt = world.receipt(second)
    assert receipt is not None and "a.csv is there already" in (receipt.reason or "")
    assert "ask ttp to purge it" in (receipt.hint or "")
    assert (world.published(), world.inbox()) == ({"link/clinic/a.csv": b"first"}, [])


@pytest.mark.parametrize("name", ["A.CSV", "a\u0301.csv"])
def test_name_that_some_disk_takes_for_one_that_is_there(world: World, name: str) -> None:
    world.reconfigure(senders={"clinic": [r".*"]})
    first = "a.csv" if name == "A.CSV" else "\u00c1.csv"
    world.send({first: b"first"})
    world.poll()
    second = world.send({name: b"second"})
    world.poll()
    receipt = world.receipt(second)
    assert receipt is not None and "is there already" in (receipt.reason or "")
    assert world.published() == {f"link/clinic/{first}": b"first"}


def test_one_transfer_that_names_a_file_twice(world: World) -> None:
    parcel = world.parcel({"a.csv": b"x"})
    refused(world, world.send({"a.csv": b"x"}, files=parcel.transfer.files * 2), "a file is named twice")


def test_one_transfer_with_two_names_that_differ_in_accents_only(world: World) -> None:
    refused(world, world.send({"\u00e1.csv": b"1", "a\u0301.csv": b"2"}), "the same name but for case or accents")


@pytest.mark.parametrize("hidden", [False, True], ids=["", "with the receipt hidden"])
def test_accepted_transfer_put_back_into_the_inbox(world: World, hidden: bool) -> None:
    parcel = world.send({"a.csv": b"x"})
    world.poll()
    key = layout.receipt("ttp", "clinic", parcel.transfer.id, parcel.seen)
    receipt = world.store.get(key, 2**20)
    (world.federation.home("ttp").collections / "link/clinic/a.csv").unlink()
    if hidden:
        world.store.delete(key)
    parcel.put(world.store)
    world.poll()
    assert (world.published(), world.inbox()) == ({}, [])
    assert world.store.get(key, 2**20) == receipt


def test_second_manifest_under_an_accepted_id(world: World) -> None:
    parcel = world.send({"a.csv": b"x"})
    world.poll()
    t = parcel.transfer
    again = world.parcel({"b.csv": b"y"}, id=t.id, nonce=t.nonce, created=t.created).put(world.store)
    world.poll()
    receipt = world.receipt(again)
    assert receipt is not None and "a transfer of this id was accepted before" in (receipt.reason or "")
    assert (world.published(), world.inbox()) == ({"link/clinic/a.csv": b"x"}, [])


def test_refusal_stands_when_the_same_bytes_come_again_after_the_rules_changed(world: World) -> None:
    parcel = world.send({"a.txt": b"x"})
    refused(world, parcel, "does not take a file of the name a.txt")
    world.reconfigure(senders={"clinic": [r".*"]})
    refused(world, parcel.put(world.store), "does not take a file of the name a.txt")


# names and numbers


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "/etc/passwd", "..", "a\\b", "a\nb", "\x1b[31mx", ".ptm-x", "x" * 300, "é" * 101, "", "a\u202eb"],
)
def test_path_trick_in_a_name(world: World, name: str) -> None:
    parcel = world.parcel({"a.csv": b"x"}, files=(SentFile.model_construct(name=name, size=1, sha256="0" * 64),))
    world.store.put(parcel.key(), parcel.body)
    refused(world, parcel, "files.0.name")


def test_name_that_the_collection_does_not_take(world: World) -> None:
    refused(world, world.send({"a.csv.exe": b"x"}), "link does not take a file of the name a.csv.exe from clinic")


def test_another_senders_name(world: World) -> None:
    refused(world, world.send({"diagnoses.csv": b"x"}, "statistics"), "does not take a file of the name diagnoses.csv")


def test_more_files_than_allowed(world: World) -> None:
    world.reconfigure(max_files=2)
    refused(world, world.send({f"{n}.csv": b"x" for n in range(3)}), "has 3 files; link takes 2 at a time")


def test_more_bytes_than_allowed_are_never_fetched(world: World) -> None:
    parcel = world.send({"a.csv": b"x" * 5_000_000})
    asked = []
    assert isinstance(world.store, MemoryStore)
    world.store.before = lambda verb, key: asked.append(verb)
    refused(world, parcel, "link takes 4 MB at a time")
    assert "download" not in asked


def test_more_bytes_than_a_sender_may_have_there(world: World) -> None:
    for name in "ab":
        world.send({f"{name}.csv": b"x" * 3_500_000})
    world.poll()
    third = world.send({"c.csv": b"x" * 3_500_000})
    world.poll()
    receipt = world.receipt(third)
    assert receipt is not None and "clinic would have more than 8 MB in link" in (receipt.reason or "")
    assert sorted(world.published()) == ["link/clinic/a.csv", "link/clinic/b.csv"]


def test_sealed_list_that_names_other_files(world: World) -> None:
    refused(world, world.send({"a.csv": b"x"}, listed={"b.csv": b"x"}), "names other files than the manifest")


def test_sealed_list_that_names_more_files(world: World) -> None:
    refused(world, world.send({"a.csv": b"x"}, listed={"a.csv": b"x", "b.csv": b"x"}), "names other files than the manifest")


def test_sealed_list_with_another_size(world: World) -> None:
    refused(world, world.send({"a.csv": b"xyz"}, listed={"a.csv": b"x"}), "a.csv: has more than 1 bytes")


def test_sealed_list_with_another_digest(world: World) -> None:
    refused(world, world.send({"a.csv": b"x"}, listed={"a.csv": b"y"}), "a.csv is not the file that was sealed")


def test_sealed_list_with_a_size_that_no_ciphertext_can_hold(world: World) -> None:
    refused(world, world.send({"a.csv": b"x"}, listed={"a.csv": b"x" * 10_000}), "longer in clear than it is encrypted")


def test_clock_of_the_sender_in_the_future(world: World) -> None:
    created, nonce = now_utc() + timedelta(hours=1), new_nonce()
    made = envelope.transfer_id(created, world.registry("clinic").id, "clinic", nonce)
    refused(world, world.send({"a.csv": b"x"}, id=made, created=created, nonce=nonce), "is from the future")


@pytest.mark.parametrize("body", [b"", b"{}", b"not json", b"[" * 100_000, b"x" * (1024 * 1024 + 1)], ids=len)
def test_manifest_that_is_none(world: World, body: bytes) -> None:
    parcel = world.parcel({"a.csv": b"x"})
    world.store.upload(parcel.key(), io.BytesIO(body))
    world.poll()
    seen = hashlib.sha256(body if len(body) <= 1024 * 1024 else b"").hexdigest()
    receipt = world.registry("clinic").read_raw(layout.receipt("ttp", "clinic", parcel.transfer.id, seen))
    assert b'"refused"' in receipt
    assert (world.published(), world.inbox()) == ({}, [])


# many


def test_zip_of_200_000_files_is_one_file_and_never_unpacked(world: World) -> None:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as bomb:
        for number in range(200_000):
            bomb.writestr(zipfile.ZipInfo(f"{number}"), b"")
    world.reconfigure(max_mb=64, quota_mb=64)
    parcel = world.send({"many.zip": body.getvalue()})
    world.poll()
    receipt = world.receipt(parcel)
    assert receipt is not None and receipt.state == "accepted"
    assert world.published() == {"link/clinic/many.zip": body.getvalue()}


@pytest.mark.parametrize("where", ["", "01KAMV3ZR5F2J7Q8XG4M1W9ABC/", "01KAMV3ZR5F2J7Q8XG4M1W9ABC/files/"])
def test_ten_thousand_junk_keys_of_one_sender_keep_nobody_else_waiting(world: World, where: str) -> None:
    for number in range(watch.MAX_KEYS + 1):
        world.store.put(f"inbox/ttp/clinic/{where}junk{number}", b"")
    parcel = world.send({"incomes.csv": b"x"}, "statistics")
    own = world.send({"a.csv": b"x"})
    world.poll()
    for sent in (parcel, own):
        receipt = world.receipt(sent)
        assert receipt is not None and receipt.state == "accepted"


def test_ten_thousand_unannounced_transfers_keep_nobody_else_waiting(world: World) -> None:
    for number in range(watch.MAX_KEYS + 1):
        world.store.put(f"inbox/ttp/clinic/01KAMV3ZR5F2J7Q8XG4M{number:06d}/files/a.csv.age", b"")
    parcel = world.send({"incomes.csv": b"x"}, "statistics")
    world.poll()
    receipt = world.receipt(parcel)
    assert receipt is not None and receipt.state == "accepted"


def test_junk_beside_a_transfers_files_is_cleaned_away_with_it(world: World) -> None:
    parcel = world.parcel({"a.csv": b"x"})
    for number in range(5000):
        world.store.put(f"{parcel.key().removesuffix('manifest.json')}junk/{number}", b"")
    parcel.put(world.store)
    for _ in range(3):
        try:
            world.poll()
        except PtmError as e:
            assert "could not be taken for now" in str(e)
    assert world.inbox() == []
    assert world.published() == {"link/clinic/a.csv": b"x"}


def test_one_senders_many_transfers_leave_turns_to_others(world: World) -> None:
    world.config = world.config.model_copy(update={"max_pending": 2})
    for number in range(20):
        world.send({f"{number}.exe": b"x"}, "mallory")
    parcel = world.send({"a.csv": b"x"})
    order: list[str] = []
    assert isinstance(world.store, MemoryStore)
    world.store.after = lambda verb, key: order.append(key) if verb == "create" and "/receipts/" in key else None
    world.poll()
    assert world.receipt(parcel) is not None
    assert [key.split("/")[3] for key in order][:2].count("clinic") == 1
