"""Sending to a trusted party: what arrives, in which order, and what is left when it is cut short at any place."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ptm import envelope, layout
from ptm.errors import (
    AlreadyExists,
    BadSignature,
    NotAllowed,
    NotForUs,
    NotFound,
    PtmError,
    Unreachable,
    UsageError,
    VerificationError,
)
from ptm.model import SentFile
from ptm.registry import Registry, now_utc
from ptm.seal import open_manifest, unseal_bytes
from ptm.store.memory import MemoryStore
from ptm.transfer import Receipt, Transfer
from ptm.trustedparty import send as sending
from ptm.trustedparty.outbox import Outbox
from ptm.trustedparty.send import Prepared, Source
from ptm.trustedparty.sent import overview, wait_for_answer
from tests.federation import Federation


class Killed(BaseException):
    """`kill -9`: no `except Exception` sees it."""


class KillAt:
    """A hook that kills at the k-th operation, before or after it takes effect."""

    def __init__(self, k: int) -> None:
        self.left = k

    def __call__(self, verb: str, key: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def nothing(verb: str, key: str) -> None:
    """A hook that lets all pass."""


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def federation(store: MemoryStore, tmp_path: Path) -> Federation:
    return Federation(store, tmp_path).create().admit(clinic="site", ttp="party", alice="researcher")


@pytest.fixture
def clinic(federation: Federation) -> Registry:
    registry = federation.registry("clinic")
    registry.roster()
    return registry


@pytest.fixture
def outbox(clinic: Registry) -> Outbox:
    return Outbox(clinic.home.outbox)


@pytest.fixture
def files(tmp_path: Path) -> list[Source]:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "diagnoses.csv").write_bytes(b"id,diagnosis\n1,C34\n")
    (folder / "empty.csv").write_bytes(b"")
    (folder / "big.bin").write_bytes(os.urandom(1_000_000))
    return [Source(path.name, path) for path in sorted(folder.iterdir())]


def send(registry: Registry, outbox: Outbox, files: list[Source], **more: str) -> Transfer:
    return sending.send(registry, outbox, files, to="ttp", collection="link-2026", **more)  # type: ignore[arg-type]


def send_and_die(registry: Registry, outbox: Outbox, files: list[Source], store: MemoryStore) -> None:
    """Killed right after the manifest was put."""

    def die(verb: str, key: str) -> None:
        if verb == "create":
            raise Killed

    store.after = die
    with pytest.raises(Killed):
        send(registry, outbox, files)
    store.after = nothing


def inbox(store: MemoryStore) -> list[str]:
    return [info.key for info in store.list("inbox/")]


def received(federation: Federation, transfer: Transfer) -> dict[str, bytes]:
    """What the party finds: every file by its name, checked against what was signed."""
    party = federation.registry("ttp")
    found = party.read(layout.transfer_manifest("ttp", "clinic", transfer.id), Transfer, "clinic")
    assert found.id == envelope.transfer_id(found.created, party.id, "clinic", found.nonce)
    listed = open_manifest(found.manifest, party.keys.identity, registry=party.id, task=found.id, sealed_by="clinic")
    opened: dict[str, bytes] = {}
    for file in found.files:
        cipher = party.store.get(layout.transfer_file("ttp", "clinic", found.id, file.name, "age"), 10**9)
        assert (len(cipher), hashlib.sha256(cipher).hexdigest()) == (file.size, file.sha256)
        clear = unseal_bytes(cipher, party.keys.identity, 10**9)
        assert (len(clear), hashlib.sha256(clear).hexdigest()) == (listed[file.name].size, listed[file.name].sha256)
        opened[file.name] = clear
    assert set(listed) == set(opened)
    return opened


def answer(federation: Federation, prepared: Prepared, *, signer: str = "ttp", at: str = "", **other: object) -> Receipt:
    """The party's receipt, put where it belongs; `other` changes what it says."""
    transfer = prepared.transfer
    said: dict[str, object] = {
        "registry": federation.registry("ttp").id,
        "transfer": transfer.id,
        "sender": transfer.sender,
        "party": "ttp",
        "collection": transfer.collection,
        "seen_sha256": prepared.sha256,
        "state": "accepted",
        "files": transfer.files,
        "created": now_utc(),
    }
    receipt = Receipt.model_validate(said | other)
    key = layout.receipt("ttp", transfer.sender, at or transfer.id, prepared.sha256)
    federation.store.put(key, federation.registry(signer).sign(receipt))
    return receipt


def sent_by(registry: Registry, outbox: Outbox, transfer: Transfer) -> Prepared:
    return Prepared(outbox.path / transfer.id, transfer, outbox.sent_body(transfer.id))


def contents(files: list[Source]) -> dict[str, bytes]:
    return {file.name: file.path.read_bytes() for file in files}


# what arrives


def test_party_opens_what_was_sent_and_nothing_of_it_is_in_clear(
    federation: Federation, clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore
) -> None:
    transfer = send(clinic, outbox, files, purpose="linkage")

    assert received(federation, transfer) == contents(files)
    assert (transfer.sender, transfer.party, transfer.collection, transfer.purpose) == ("clinic", "ttp", "link-2026", "linkage")
    everything = b"".join(store.get(key, 10**9) for key in inbox(store))
    assert b"id,diagnosis" not in everything
    for clear in contents(files).values():
        assert hashlib.sha256(clear).hexdigest().encode() not in everything


def test_manifest_is_written_last(clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore) -> None:
    written: list[str] = []
    store.after = lambda verb, key: written.append(key) if verb in ("upload", "put", "create") else None
    send(clinic, outbox, files)
    assert [key.rpartition("/")[2] for key in written] == ["big.bin.age", "diagnoses.csv.age", "empty.csv.age", "manifest.json"]


def test_nothing_but_the_manifest_is_kept_of_what_was_sent(clinic: Registry, outbox: Outbox, files: list[Source]) -> None:
    transfer = send(clinic, outbox, files)
    assert sorted(path.name for path in outbox.path.rglob("*") if path.is_file()) == [".lock", f"{transfer.id}.json"]
    assert outbox.path.stat().st_mode & 0o777 == 0o700


def test_progress_adds_up_to_the_sizes_of_both_stages(clinic: Registry, outbox: Outbox, files: list[Source]) -> None:
    moved: dict[str, int] = {}
    totals: dict[str, int] = {}

    def stages(stage: str, total: int) -> Callable[[int], None]:
        totals[stage], moved[stage] = total, 0

        def step(size: int) -> None:
            moved[stage] += size

        return step

    transfer = sending.send(clinic, outbox, files, to="ttp", collection="link-2026", stages=stages)
    clear, sealed = sum(len(body) for body in contents(files).values()), sum(file.size for file in transfer.files)
    assert moved == {"sealing": clear, "sending": sealed}
    assert totals == {"sealing": clear, "sending": clear}  # how big the files are when they are sealed is not known before


def test_link_that_a_person_names_is_followed(
    federation: Federation, clinic: Registry, outbox: Outbox, files: list[Source], tmp_path: Path
) -> None:
    link = tmp_path / "latest.csv"
    link.symlink_to(files[1].path)
    transfer = send(clinic, outbox, [Source("latest.csv", link)])
    assert received(federation, transfer) == {"latest.csv": files[1].path.read_bytes()}


# what is refused before anything is written


def refusals(tmp_path: Path) -> Iterator[tuple[str, list[Source], str]]:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.csv").write_text("a")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    a = tmp_path / "a.csv"
    yield "nothing to send", [], "give the files"
    yield "is a folder", [Source("folder", tmp_path / "folder")], "pack it"
    yield "is not there", [Source("x", tmp_path / "missing")], "path"
    yield "is not there", [Source("x", tmp_path / "broken")], "path"
    yield "not a regular file", [Source("pipe", tmp_path / "pipe")], "copy"
    yield "not a regular file", [Source("null", Path(os.devnull))], "copy"
    yield "same name", [Source("a.csv", a), Source("A.CSV", a)], "NAME=FILE"
    for name in ("", ".", "..", "../a", "a/b", "a\nb", ".ptm-x", "x" * 201):
        yield "file name", [Source(name, a)], "NAME=FILE"
    yield "at most 256", [Source(f"{n}", a) for n in range(257)], "pack"


def test_sources_that_cannot_be_sent_are_refused_with_a_hint_and_leave_nothing(
    clinic: Registry, outbox: Outbox, tmp_path: Path, store: MemoryStore
) -> None:
    for said, sources, hint in refusals(tmp_path):
        with pytest.raises(UsageError, match=said) as caught:
            send(clinic, outbox, sources)
        assert hint in str(caught.value.hint)
    assert not outbox.path.exists()
    assert inbox(store) == []


@pytest.mark.parametrize("to", ["clinic", "alice", "coord"])
def test_only_a_trusted_party_is_sent_to(clinic: Registry, outbox: Outbox, files: list[Source], to: str) -> None:
    with pytest.raises(PtmError, match=r"not a trusted party|not a member"):
        sending.send(clinic, outbox, files, to=to, collection="c")
    assert not outbox.path.exists()


def test_party_that_is_unknown_or_revoked_is_not_sent_to(
    federation: Federation, clinic: Registry, outbox: Outbox, files: list[Source]
) -> None:
    with pytest.raises(UsageError, match="not a member"):
        sending.send(clinic, outbox, files, to="tpp", collection="c")
    federation.revoke("ttp")
    with pytest.raises(NotAllowed, match="revoked"):
        send(federation.registry("clinic"), outbox, files)


@pytest.mark.parametrize("collection", ["", "Link", "a/b", ".."])
def test_collection_that_is_no_name_is_a_usage_error(
    clinic: Registry, outbox: Outbox, files: list[Source], collection: str
) -> None:
    with pytest.raises(UsageError, match="collection"):
        sending.send(clinic, outbox, files, to="ttp", collection=collection)


# what goes wrong while sealing


@pytest.mark.parametrize("change", ["grows", "shrinks", "same size"])
def test_file_that_changes_while_it_is_read_is_an_error_and_nothing_is_left(
    clinic: Registry, outbox: Outbox, tmp_path: Path, store: MemoryStore, change: str
) -> None:
    path = tmp_path / "growing.csv"
    path.write_bytes(bytes(500_000))
    os.utime(path, (1, 1))

    def meddle(moved: int) -> None:
        if path.stat().st_mtime_ns != 10**9:
            return
        if change == "shrinks":
            os.truncate(path, 400_000)
        else:
            with path.open("r+b") as file:
                file.seek(0, os.SEEK_END if change == "grows" else os.SEEK_SET)
                file.write(b"more")

    with pytest.raises(UsageError, match="changed while it was read"):
        sending.send(clinic, outbox, [Source("growing.csv", path)], to="ttp", collection="c", stages=lambda stage, total: meddle)
    assert outbox.unfinished() == []
    assert list(outbox.path.rglob("*.age")) == inbox(store) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB, that is full when one wants it."""
    folder = tmp_path / "clinic" / "outbox"
    folder.mkdir(parents=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small disk wants a mount, and that wants root on Linux")
    words = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk wants a mount")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_disk_too_small_is_said_before_anything_is_sealed(federation: Federation, small_disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    path.write_bytes(bytes(9_000_000))
    with pytest.raises(PtmError, match=r"take 10 MB, and .* has 8 MB left") as caught:
        send(federation.registry("clinic"), Outbox(small_disk), [Source("big.bin", path)])
    assert "one by one" in str(caught.value.hint)
    assert [p.name for p in small_disk.iterdir()] == [".lock"]


def test_disk_that_gets_full_in_the_middle_is_said_and_nothing_is_left(
    federation: Federation, small_disk: Path, tmp_path: Path
) -> None:
    path = tmp_path / "big.bin"
    path.write_bytes(bytes(5_000_000))
    filler = small_disk / "filler"

    def fill(moved: int) -> None:
        if not filler.exists():
            filler.write_bytes(bytes(4_000_000))

    with pytest.raises(PtmError, match="is full") as caught:
        sending.send(
            federation.registry("clinic"),
            Outbox(small_disk),
            [Source("big.bin", path)],
            to="ttp",
            collection="c",
            stages=lambda stage, total: fill,
        )
    assert "free space" in str(caught.value.hint)
    assert sorted(p.name for p in small_disk.iterdir()) == [".lock", "filler"]


# what is cut short


@pytest.mark.parametrize("k", range(1, 15))
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_operation_the_same_command_ends_the_same_transfer(
    federation: Federation, outbox: Outbox, files: list[Source], store: MemoryStore, k: int, when: str
) -> None:
    manifests: list[str] = []
    clinic = federation.registry("clinic")
    clinic.roster()
    setattr(store, when, KillAt(k))
    try:
        send(clinic, outbox, files)
        assert k > 9, "the test wants an operation to be killed at"
    except Killed:
        pass
    begun = {plan.id for plan, _ in outbox.unfinished()}
    done = {id for id, _ in outbox.sent()}
    assert len(begun | done) == 1
    store.before = nothing
    store.after = lambda verb, key: manifests.append(key) if verb == "create" else None

    if done:
        return
    transfer = send(clinic, outbox, files)
    assert {transfer.id} == begun
    assert received(federation, transfer) == contents(files)
    assert len({key.split("/")[3] for key in inbox(store)}) == 1
    assert outbox.unfinished() == []


@pytest.mark.parametrize("step", range(8))
def test_killed_while_sealing_goes_on_with_what_is_sealed(
    federation: Federation, clinic: Registry, outbox: Outbox, files: list[Source], step: int
) -> None:
    calls = iter(range(100))

    def kill(moved: int) -> None:
        if next(calls) == step:
            raise Killed

    with pytest.raises(Killed):
        sending.send(clinic, outbox, files, to="ttp", collection="link-2026", stages=lambda stage, total: kill)
    ((plan, folder),) = outbox.unfinished()
    sealed = {done.cipher.name: folder.sealed(done.cipher.name, "age").read_bytes() for done in plan.done}

    resumed = sending.resume_all(clinic, outbox)
    (transfer,) = resumed.sent
    assert transfer.id == plan.id
    assert received(federation, transfer) == contents(files)
    for name, cipher in sealed.items():
        assert federation.store.get(layout.transfer_file("ttp", "clinic", plan.id, name, "age"), 10**9) == cipher


def test_what_the_bucket_has_is_not_sent_again(clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore) -> None:
    def down(verb: str, key: str) -> None:
        if verb == "upload" and "empty" in key:
            raise Unreachable("down")

    store.before = down
    with pytest.raises(Unreachable):
        send(clinic, outbox, files)
    uploads: list[str] = []
    store.before = lambda verb, key: uploads.append(key.rpartition("/")[2]) if verb == "upload" else None
    assert len(sending.resume_all(clinic, outbox).sent) == 1
    assert uploads == ["empty.csv.age"]


@pytest.mark.parametrize("removed", [False, True], ids=["still there", "removed by the party"])
def test_transfer_that_the_party_has_is_never_announced_again(
    federation: Federation, clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore, removed: bool
) -> None:
    send_and_die(clinic, outbox, files, store)
    ((plan, folder),) = outbox.unfinished()
    prepared = sending.reopen(clinic, folder.path)
    if removed:
        answer(federation, prepared)
        for key in inbox(store):
            store.delete(key)

    writes: list[str] = []
    store.before = lambda verb, key: writes.append(verb) if verb in ("upload", "put", "create") else None
    sending.upload(clinic, prepared)
    sending.announce(clinic, prepared)
    (transfer,) = sending.resume_all(clinic, outbox).sent
    assert (transfer.id, writes) == (plan.id, [])
    assert [found.state for found in overview(clinic, outbox)] == ["accepted" if removed else "sent"]


def test_transfer_that_was_announced_ends_though_its_party_was_revoked_since(
    federation: Federation, clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore
) -> None:
    send_and_die(clinic, outbox, files, store)
    federation.revoke("ttp")
    again = federation.registry("clinic")
    assert len(sending.resume_all(again, Outbox(again.home.outbox)).sent) == 1
    assert outbox.unfinished() == []


def test_party_that_is_revoked_while_a_file_is_sealed_is_announced_nothing(
    federation: Federation, clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore
) -> None:
    def revoke(moved: int) -> None:
        if clinic.roster(60).member("ttp").revoked is None:  # type: ignore[union-attr]
            federation.revoke("ttp")
            clinic.roster()

    with pytest.raises(NotAllowed, match="revoked"):
        sending.send(clinic, outbox, files, to="ttp", collection="c", stages=lambda stage, total: revoke)
    assert [key for key in inbox(store) if key.endswith("manifest.json")] == []


def test_killed_after_the_manifest_was_kept_leaves_no_sealed_files_for_ever(
    clinic: Registry, outbox: Outbox, files: list[Source], tmp_path: Path
) -> None:
    prepared = sending.prepare(clinic, tmp_path / "p", files, to="ttp", collection="c")
    left = outbox.path / prepared.transfer.id
    outbox.path.mkdir(parents=True)
    (tmp_path / "p").rename(left)
    (left / "plan.json").unlink()  # as a process leaves it that dies while it removes the folder
    assert outbox.unfinished() == []
    send(clinic, outbox, files)
    assert not left.exists()


def test_file_that_was_sealed_may_change_or_go_and_is_sent_as_it_was(
    federation: Federation, clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore
) -> None:
    before = contents(files)

    def down(verb: str, key: str) -> None:
        if verb == "upload":
            raise Unreachable("down")

    store.before = down
    with pytest.raises(Unreachable):
        send(clinic, outbox, files)
    store.before = nothing
    files[0].path.write_bytes(b"changed")
    with pytest.raises(UsageError, match="has changed since") as caught:
        send(clinic, outbox, files)
    assert "ptm inbox resume" in str(caught.value.hint)
    files[1].path.unlink()
    (transfer,) = sending.resume_all(clinic, outbox).sent
    assert received(federation, transfer) == before


def test_file_that_is_gone_before_it_was_sealed_fails_that_transfer_and_no_other(
    clinic: Registry, outbox: Outbox, files: list[Source]
) -> None:
    def kill(moved: int) -> None:
        raise Killed

    for chosen in (files[:1], files[1:2]):
        with pytest.raises(Killed):
            sending.send(clinic, outbox, chosen, to="ttp", collection="c", stages=lambda stage, total: kill)
    files[0].path.unlink()
    resumed = sending.resume_all(clinic, outbox)
    assert [file.name for transfer in resumed.sent for file in transfer.files] == [files[1].name]
    assert ["is not there" in str(error) for error in resumed.failed.values()] == [True]


def test_outage_while_taking_up_keeps_what_is_sealed(
    federation: Federation, clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore
) -> None:
    calls = iter(range(100))

    def kill(moved: int) -> None:
        if next(calls) == 5:
            raise Killed

    with pytest.raises(Killed):
        sending.send(clinic, outbox, files, to="ttp", collection="c", stages=lambda stage, total: kill)

    def down(verb: str, key: str) -> None:
        raise Unreachable("down")

    store.before = down
    before = sorted(outbox.path.rglob("*.age"))
    resumed = sending.resume_all(federation.registry("clinic"), outbox)
    assert [type(error) for error in resumed.failed.values()] == [Unreachable]
    assert sorted(outbox.path.rglob("*.age")) == before != []


def test_transfer_of_another_process_is_left_alone(clinic: Registry, outbox: Outbox, files: list[Source]) -> None:
    plan = sending.make_plan(clinic, files, to="ttp", collection="link-2026")
    with outbox.begin(plan):
        assert sending.resume_all(clinic, outbox) == sending.Resumed((), {})
        with pytest.raises(UsageError, match="another process"):
            send(clinic, outbox, files)
        with pytest.raises(UsageError, match="another process"):
            sending.cancel(clinic, outbox, plan.id)
        assert [(found.state, found.reason) for found in overview(clinic, outbox)] == [("sealing", None)]
    assert [(found.state, found.reason) for found in overview(clinic, outbox)] == [("sealing", "interrupted")]


def test_sealed_file_that_was_cut_off_on_this_disk_is_not_sent(
    clinic: Registry, tmp_path: Path, files: list[Source], store: MemoryStore
) -> None:
    prepared = sending.prepare(clinic, tmp_path / "p", files, to="ttp", collection="c")
    assert sending.reopen(clinic, tmp_path / "p") == prepared
    os.truncate(prepared.sealed("big.bin"), 1000)
    with pytest.raises(VerificationError, match="not as it was sealed"):
        sending.reopen(clinic, tmp_path / "p")
    with pytest.raises(NotFound):
        sending.reopen(clinic, tmp_path / "other")
    assert inbox(store) == []


# what is given up


def test_cancelled_transfer_leaves_nothing_here_or_there(
    clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore
) -> None:
    def down(verb: str, key: str) -> None:
        if verb == "create":
            raise Unreachable("down")

    store.before = down
    with pytest.raises(Unreachable):
        send(clinic, outbox, files)
    store.before = nothing
    ((plan, _),) = outbox.unfinished()
    assert len(inbox(store)) == 3
    sending.cancel(clinic, outbox, plan.id)
    assert inbox(store) == overview(clinic, outbox) == []
    assert [path.name for path in outbox.path.iterdir()] == [".lock"]


def test_transfer_that_is_with_the_party_cannot_be_cancelled(
    clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore, tmp_path: Path
) -> None:
    transfer = send(clinic, outbox, files)
    with pytest.raises(AlreadyExists, match="with"):
        sending.cancel(clinic, outbox, transfer.id)
    with pytest.raises(NotFound, match="sent no transfer"):
        sending.cancel(clinic, outbox, "0" + "1" * 25)
    with pytest.raises(UsageError, match="not a transfer's id"):
        sending.cancel(clinic, outbox, "../..")
    prepared = sending.prepare(clinic, tmp_path / "p", files, to="ttp", collection="c")
    sending.upload(clinic, prepared)
    sending.announce(clinic, prepared)
    with pytest.raises(AlreadyExists, match="already"):
        sending.withdraw(clinic, prepared)
    assert len(inbox(store)) == 8


def test_something_else_under_the_transfers_name_is_said_and_the_transfer_can_be_given_up(
    clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore
) -> None:
    def squat(verb: str, key: str) -> None:
        if verb == "upload":
            store.before = nothing
            store.put(key.partition("/files/")[0] + "/manifest.json", b"junk")

    store.before = squat
    with pytest.raises(AlreadyExists, match="something else"):
        send(clinic, outbox, files)
    ((plan, _),) = outbox.unfinished()
    sending.cancel(clinic, outbox, plan.id)
    assert outbox.unfinished() == []


# what the party answers


def test_answers_are_shown_from_receipts_that_verify_and_asked_for_once(
    federation: Federation, clinic: Registry, outbox: Outbox, files: list[Source], store: MemoryStore
) -> None:
    accepted, refused, waiting = (send(clinic, outbox, [file]) for file in files)
    answer(federation, sent_by(clinic, outbox, accepted))
    answer(federation, sent_by(clinic, outbox, refused), state="refused", reason="too big", hint="send less", files=())
    found = {item.id: (item.state, item.reason, item.hint) for item in overview(clinic, outbox)}
    assert found == {
        accepted.id: ("accepted", None, None),
        refused.id: ("refused", "too big", "send less"),
        waiting.id: ("sent", None, None),
    }
    reads: list[str] = []
    store.before = lambda verb, key: reads.append(key) if "/receipts/" in key else None
    assert {item.id: (item.state, item.reason, item.hint) for item in overview(clinic, outbox)} == found
    assert [key.split("/")[4] for key in reads] == [waiting.id]


@pytest.mark.parametrize(
    ("forged", "error"),
    [
        ({"signer": "alice"}, BadSignature),
        ({"signer": "clinic"}, BadSignature),
        ({"transfer": "0" + "1" * 25}, NotForUs),
        ({"sender": "alice"}, NotForUs),
        ({"seen_sha256": "0" * 64}, NotForUs),
        ({"collection": "other"}, NotForUs),
        ({"files": (SentFile(name="x", size=1, sha256="0" * 64),)}, NotForUs),
    ],
)
def test_answer_that_is_not_the_partys_to_this_transfer_is_not_believed(
    federation: Federation,
    clinic: Registry,
    outbox: Outbox,
    files: list[Source],
    forged: dict[str, object],
    error: type[VerificationError],
) -> None:
    transfer = send(clinic, outbox, files)
    prepared = sent_by(clinic, outbox, transfer)
    answer(federation, prepared, **forged)  # type: ignore[arg-type]
    with pytest.raises(error):
        sending.receipt_of(clinic, transfer, prepared.sha256)
    assert [item.state for item in overview(clinic, outbox)] == ["unverified"]
    assert outbox.answer(transfer.id) is None


def test_waiting_ends_with_the_answer_or_with_the_time(
    federation: Federation, clinic: Registry, outbox: Outbox, files: list[Source]
) -> None:
    transfer = send(clinic, outbox, files)
    assert wait_for_answer(clinic, outbox, transfer.id, 0.0) is None
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            answer(federation, sent_by(clinic, outbox, transfer))

    receipt = wait_for_answer(clinic, outbox, transfer.id, 60, sleep)
    assert receipt is not None
    assert (receipt.state, len(slept)) == ("accepted", 3)
