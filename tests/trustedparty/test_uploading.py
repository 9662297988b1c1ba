"""Uploading while sealing, on MinIO: what is in the bucket when, and what is left when one of the two ends before the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptm import layout
from ptm.errors import Unreachable, UsageError
from ptm.seal import unseal
from ptm.store.s3 import S3Store
from ptm.store.urls import open_store
from ptm.transfer import Transfer
from ptm.trustedparty import send as sending
from ptm.trustedparty import uploading
from ptm.trustedparty.streams import Broken, Following, Growth
from tests.servers import REGION, Minio, s3_client
from tests.trustedparty.senders import Killed, Sender, Step

pytestmark = pytest.mark.slow
SIZE = 60_000_000


class OnMinio(Sender):
    """A sender whose registry is on MinIO, and a look into the bucket."""

    def __init__(self, minio: Minio, folder: Path) -> None:
        self.bucket = minio.make_bucket()
        self.client: Any = s3_client(minio.endpoint_url, minio.access_key, minio.secret_key)
        store = open_store(f"s3://{self.bucket}/x?endpoint_url={minio.endpoint_url}&region={REGION}")
        super().__init__(store, folder, SIZE)

    def key(self, path: Path) -> str:
        ((plan, _),) = self.outbox.unfinished()
        return layout.transfer_file("ttp", "clinic", plan.id, path.name, "age")

    def parts(self, key: str) -> int:
        """How many parts of unfinished uploads there are. (MinIO lists uploads by the whole key only.)"""
        listed = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=f"x/{key}").get("Uploads", [])
        found = [self.client.list_parts(Bucket=self.bucket, Key=f"x/{key}", UploadId=upload["UploadId"]) for upload in listed]
        return sum(len(parts.get("Parts", [])) for parts in found)

    def check(self, transfer: Transfer, *paths: Path) -> None:
        """The party finds these files and nothing else."""
        assert self.objects() == [*(f"{path.name}.age" for path in paths), "manifest.json"]
        party, scratch = self.federation.registry("ttp"), self.federation.folder / "arrived"
        for path in paths:
            with scratch.open("wb") as sink:
                party.store.download(layout.transfer_file("ttp", "clinic", transfer.id, path.name, "age"), sink, 2 * SIZE)
            with scratch.open("rb") as cipher, (self.federation.folder / "clear").open("wb") as clear:
                unseal(cipher, clear, party.keys.identity)
            assert (self.federation.folder / "clear").read_bytes() == path.read_bytes()
        assert self.outbox.unfinished() == []


@pytest.fixture
def sender(minio: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnMinio:
    for name, value in minio.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(uploading, "FOLLOW_BYTES", 1_000_000)
    return OnMinio(minio, tmp_path)


def once(at: int, act: Callable[[], None]) -> Step:
    """Acts when so many bytes have passed."""
    passed = [0]

    def step(moved: int) -> None:
        before, passed[0] = passed[0], passed[0] + moved
        if before < at <= passed[0]:
            act()

    return step


def test_parts_are_in_the_bucket_before_the_file_is_sealed_but_no_object_is(sender: OnMinio) -> None:
    seen: list[tuple[int, list[str], int]] = []

    def look() -> None:
        deadline = time.monotonic() + 60
        while sender.parts(sender.key(sender.big)) == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        ((plan, _),) = sender.outbox.unfinished()
        seen.append((sender.parts(sender.key(sender.big)), sender.objects(), len(plan.done)))

    transfer = sender.send(sender.big, sealing=once(50_000_000, look))
    ((parts, objects, done),) = seen
    assert parts > 0
    assert (objects, done) == ([], 0)
    sender.check(transfer, sender.big)


def test_object_is_whole_only_when_the_plan_has_its_file_as_sealed(sender: OnMinio, monkeypatch: pytest.MonkeyPatch) -> None:
    save, seen = sending.TransferFolder.save_plan, list[tuple[int, list[str]]]()

    def slowly(folder: sending.TransferFolder, plan: Any) -> None:
        time.sleep(0.5 if plan.done else 0)  # all of it is uploaded by then but the end
        seen.append((len(plan.done), sender.objects()))
        save(folder, plan)

    monkeypatch.setattr(sending.TransferFolder, "save_plan", slowly)
    sender.check(sender.send(sender.big), sender.big)
    assert seen == [(0, []), (1, [])]


@pytest.mark.parametrize("at", [1, 30_000_000, SIZE])
def test_killed_while_both_go_on_the_same_transfer_ends_whole(sender: OnMinio, at: int) -> None:
    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        sender.send(sender.small, sender.big, sealing=once(at, kill))
    ((plan, _),) = sender.outbox.unfinished()
    key = sender.key(sender.big)
    transfer = sender.resume()
    assert transfer.id == plan.id
    sender.check(transfer, sender.small, sender.big)
    assert sender.parts(key) == 0


def test_killed_when_it_is_sealed_only_the_missing_parts_are_sent(sender: OnMinio) -> None:
    def kill() -> None:
        deadline = time.monotonic() + 60
        while not sender.outbox.unfinished()[0][0].done and time.monotonic() < deadline:
            time.sleep(0.05)
        raise Killed

    with pytest.raises(Killed):
        sender.send(sender.big, moved=once(30_000_000, kill))
    journal = sender.outbox.unfinished()[0][1].journal(0)
    held = sender.parts(sender.key(sender.big))
    assert held >= 3
    kept = journal.read_bytes().splitlines()[0]

    journals: list[bytes] = []
    stages = lambda stage, total: lambda moved: journals.append(journal.read_bytes())  # noqa: E731
    (transfer,) = sending.resume_all(sender.registry, sender.outbox, stages).sent
    assert {found.splitlines()[0] for found in journals} == {kept}, "the same upload went on"
    sender.check(transfer, sender.big)


def test_file_that_changes_meanwhile_takes_everything_back(sender: OnMinio) -> None:
    keys: list[str] = []

    def change() -> None:
        keys.extend(sender.key(path) for path in (sender.small, sender.big))
        with sender.big.open("ab") as file:
            file.write(b"more")

    with pytest.raises(UsageError, match="changed while it was read"):
        sender.send(sender.small, sender.big, sealing=once(50_000_000, change))
    assert sender.objects() == []
    assert [sender.parts(key) for key in keys] == [0, 0]
    assert sender.outbox.unfinished() == []
    assert [path.name for path in sender.outbox.path.iterdir()] == [".lock"]


def test_store_that_goes_away_ends_no_sealing(sender: OnMinio, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(self: S3Store, key: str, *rest: object, **more: object) -> None:
        raise Unreachable("down")

    with monkeypatch.context() as broken:
        broken.setattr(S3Store, "upload_resumable", down)
        with pytest.raises(Unreachable):
            sender.send(sender.small, sender.big)
    ((plan, folder),) = sender.outbox.unfinished()
    assert len(plan.done) == 2
    assert folder.manifest.exists()
    kept = sender.big.read_bytes()
    sender.big.unlink()
    transfer = sender.resume()
    sender.big.write_bytes(kept)
    sender.check(transfer, sender.small, sender.big)


def test_transfer_that_was_not_sealed_can_be_cancelled_and_nothing_of_it_stays(sender: OnMinio) -> None:
    def kill() -> None:
        deadline = time.monotonic() + 60
        while (not sender.objects() or not sender.parts(sender.key(sender.big))) and time.monotonic() < deadline:
            time.sleep(0.05)
        raise Killed

    with pytest.raises(Killed):
        sender.send(sender.small, sender.big, sealing=once(50_000_000, kill))
    key = sender.key(sender.big)
    ((plan, _),) = sender.outbox.unfinished()
    sending.cancel(sender.registry, sender.outbox, plan.id)
    assert (sender.objects(), sender.parts(key), sender.outbox.unfinished()) == ([], 0, [])


def test_ctrl_c_while_both_go_on_ends_both(sender: OnMinio) -> None:
    def press() -> None:
        raise KeyboardInterrupt

    sealed: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        sender.send(sender.big, sealing=sealed.append, moved=once(10_000_000, press))
    so_far = sum(sealed)
    time.sleep(0.3)
    assert sum(sealed) == so_far
    sender.check(sender.resume(), sender.big)


def test_reader_waits_for_what_is_not_there_and_gets_every_byte(tmp_path: Path) -> None:
    growth, path = Growth(), tmp_path / "file"
    with path.open("wb", buffering=0) as file, path.open("rb") as same:
        file.write(b"abc")
        growth.add(3)
        reader = Following(same, growth)
        assert reader.read(2) == b"ab"
        file.write(b"d")
        growth.add(1)
        growth.end()
        assert reader.read() == b"cd"
        assert reader.read(5) == b""


def test_reader_learns_that_no_more_comes_and_so_does_the_writer() -> None:
    growth = Growth()
    growth.add(3)
    growth.stop()
    with pytest.raises(Broken):
        growth.wait(4)
    with pytest.raises(BrokenPipeError):
        growth.add(1)
