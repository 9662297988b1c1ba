"""Attacks on uploading while sealing: journals that nobody wrote so, servers with odd answers, disks that are full, and failures
of the one side while the other goes on."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from ptm import layout
from ptm.errors import AlreadyExists, PtmError, StoreError, Unreachable, UsageError
from ptm.store.base import Progress, Store
from ptm.store.file import FileStore
from ptm.store.memory import MemoryStore
from ptm.store.s3 import S3Store
from ptm.store.s3_parts import PART_BYTES
from ptm.store.urls import open_store
from ptm.transfer import Format
from ptm.trustedparty import sealing, uploading
from ptm.trustedparty import send as sending
from ptm.trustedparty.streams import Broken, Following, Growth
from tests.servers import REGION, Minio
from tests.store.contract import Stopping
from tests.store.proxy import Fault, run_proxy
from tests.trustedparty.senders import Killed, Sender

BODY = os.urandom(2 * PART_BYTES + 12345)


class Chunked(MemoryStore):
    """A store in memory that reads by the chunk, as real ones do. `entered` is set when the first chunk was read, and what comes
    after waits for `go`; `read` is how many bytes were."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go, self.read = threading.Event(), threading.Event(), 0

    def upload(self, key: str, source: BinaryIO, progress: Progress | None = None) -> None:
        body = b""
        while chunk := source.read(100_000):
            body += chunk
            self.read += len(chunk)
            self.entered.set()
            assert self.go.wait(20)
        super().upload(key, io.BytesIO(body), progress)


class Clinic(Sender):
    """A sender with files that a test is quick with."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store, folder, 2_000_000)

    def left(self) -> list[str]:
        return [path.name for path in self.outbox.path.iterdir() if path.name not in (".lock", "sent")]


@pytest.fixture
def follow_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "FOLLOW_BYTES", 1)


@pytest.fixture
def clinic(tmp_path: Path, follow_all: None) -> Clinic:
    return Clinic(MemoryStore(), tmp_path)


@pytest.fixture
def bucket(minio: Minio, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    for name, value in minio.env().items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://{minio.make_bucket()}/x?endpoint_url={minio.endpoint_url}&region={REGION}")
    assert isinstance(store, S3Store)
    return store


def begun(store: S3Store, journal: Path, *, growing: bool = True) -> dict[str, Any]:
    """An upload of `BODY` that was interrupted after a part or two: the first line of its journal."""
    with pytest.raises(KeyboardInterrupt):
        store.upload_resumable("k", Stopping(BODY, 2 * PART_BYTES), journal, growing_to=len(BODY) if growing else None)
    return cast("dict[str, Any]", json.loads(journal.read_bytes().splitlines()[0]))


def uploads(store: S3Store) -> int:
    """Unfinished uploads at the server."""
    return len(store._client.list_multipart_uploads(Bucket=store.bucket, Prefix="x/k").get("Uploads", []))


# journals


@pytest.mark.slow
@pytest.mark.parametrize("part_bytes", [0, -1, 10**15, "8", 8388608.5, None, 1])
def test_absurd_part_size_in_the_journal_is_not_believed(bucket: S3Store, tmp_path: Path, part_bytes: object) -> None:
    journal, asked = tmp_path / "journal", list[int]()
    first = begun(bucket, journal)
    journal.write_text(json.dumps({**first, "part_bytes": part_bytes}) + "\n")

    class Asked(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(-1 if size is None else size)
            return super().read(size)

    bucket.upload_resumable("k", Asked(BODY), journal)
    assert bucket.get("k", len(BODY)) == BODY
    assert (min(asked) >= 0, max(asked) <= PART_BYTES, uploads(bucket)) == (True, True, 0)


@pytest.mark.slow
@pytest.mark.parametrize("line", ['[1, null, null]\n["2", "a", null]', "[1, 5, 5]", '[[], "a", 1]', '{"a": 1}', "7", "\xff"])
def test_notes_that_are_none_are_passed_over_also_when_the_server_has_lost_the_upload(
    bucket: S3Store, tmp_path: Path, line: str
) -> None:
    journal = tmp_path / "journal"
    first = begun(bucket, journal)
    bucket._client.abort_multipart_upload(Bucket=bucket.bucket, Key="x/k", UploadId=first["id"])
    journal.write_text(f"{json.dumps(first)}\n{line}\n", encoding="latin-1")
    bucket.upload_resumable("k", io.BytesIO(BODY), journal)
    assert bucket.get("k", len(BODY)) == BODY


@pytest.mark.slow
@pytest.mark.parametrize("growing", [False, True], ids=["size known", "size null"])
def test_file_that_becomes_shorter_while_it_goes_on_is_no_object(bucket: S3Store, tmp_path: Path, growing: bool) -> None:
    journal = tmp_path / "journal"
    begun(bucket, journal, growing=growing)

    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size) if self.tell() < PART_BYTES else b""

    with pytest.raises(StoreError, match="shorter"):
        bucket.upload_resumable("k", Shrinking(BODY), journal)
    assert list(bucket.list("")) == []


def test_file_that_is_shorter_than_it_was_said_to_be_has_no_end(tmp_path: Path) -> None:
    growth, path = Growth(), tmp_path / "file"
    path.write_bytes(b"abc")
    growth.add(5)
    with path.open("rb") as file:
        reader = Following(file, growth)
        file.seek(3)
        with pytest.raises((Broken, OSError, PtmError)):
            reader.read(2)  # nothing would be the end


# servers


@pytest.mark.slow
@pytest.mark.parametrize("answer", [None, "", '""'])
def test_part_without_an_etag_is_an_error_of_the_store(bucket: S3Store, tmp_path: Path, answer: str | None) -> None:
    def forget(parsed: dict[str, Any], **rest: object) -> None:
        parsed.pop("ETag")
        if answer is not None:
            parsed["ETag"] = answer

    bucket._transfers.meta.events.register("after-call.s3.UploadPart", forget)
    with pytest.raises(StoreError):
        bucket.upload_resumable("k", io.BytesIO(BODY), tmp_path / "journal", growing_to=len(BODY))
    assert list(bucket.list("")) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_REPLY, Fault.SAY_503])
def test_part_whose_request_or_reply_is_lost_is_sent_again_from_its_start(
    bucket: S3Store, minio: Minio, tmp_path: Path, fault: Fault
) -> None:
    with run_proxy(minio.endpoint_url) as proxy:
        behind = S3Store(bucket.bucket, "x", endpoint_url=proxy.endpoint_url, region=REGION, timeout_seconds=5)
        proxy.faults = [fault, fault]
        behind.upload_resumable("k", io.BytesIO(BODY), tmp_path / "journal", growing_to=len(BODY))
        assert (proxy.puts, proxy.faults) == (5, [])
    assert hashlib.sha256(bucket.get("k", 2 * len(BODY))).digest() == hashlib.sha256(BODY).digest()


# the two threads


def test_sealing_fails_and_the_store_is_down_what_is_in_the_inbox_can_still_be_cancelled(clinic: Clinic) -> None:
    def change(moved: int) -> None:
        if moved > 1000:
            with clinic.big.open("ab") as file:
                file.write(b"more")

    def down(verb: str, key: str) -> None:
        if verb == "delete":
            raise Unreachable("down")

    clinic.store.before = down
    with pytest.raises(UsageError, match="changed while it was read"):
        clinic.send(clinic.small, clinic.big, sealing=change)
    assert clinic.objects() == ["a.csv.age"]
    clinic.store.before = lambda verb, key: None
    for plan, _ in clinic.outbox.unfinished():
        sending.cancel(clinic.registry, clinic.outbox, plan.id)
    assert (clinic.objects(), clinic.left()) == ([], [])


def test_disk_that_is_full_for_the_journal_too_is_said_so_and_nothing_is_left(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As S3's uploads keep their journal on the disk that the sealed file fills."""
    failed = threading.Event()

    def full(self: MemoryStore, key: str, source: BinaryIO, *rest: object, **more: object) -> None:
        source.read(1)
        failed.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def step(moved: int) -> None:
        if moved > 1000 and failed.wait(10):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(MemoryStore, "upload_resumable", full)
        with pytest.raises(PtmError, match="full"):
            clinic.send(clinic.big, sealing=lambda moved: step(moved) if clinic_has_grown(clinic) else None)
    assert (clinic.objects(), clinic.left()) == ([], [])


def clinic_has_grown(clinic: Clinic) -> bool:
    """Whether some of the big file lies sealed in the outbox."""
    return any(path.stat().st_size > 0 for path in clinic.outbox.path.glob("*/files/*"))


def test_sealing_fails_what_was_sealed_before_is_not_uploaded_to_its_end(
    tmp_path: Path, follow_all: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Chunked()
    clinic = Clinic(store, tmp_path)
    second = tmp_path / "second.bin"
    second.write_bytes(b"x" * 10)
    seal = sealing.seal_plan

    def told(*given: Any) -> Any:
        try:
            return seal(*given)
        finally:
            threading.Timer(0.2, store.go.set).start()  # after the future has its exception

    def gone(moved: int) -> None:
        if store.entered.wait(10):
            second.unlink(missing_ok=True)

    monkeypatch.setattr(uploading, "seal_plan", told)
    with pytest.raises(UsageError, match="is not there"):
        clinic.send(clinic.big, second, sealing=lambda moved: gone(moved) if clinic_has_grown(clinic) else None)
    assert (clinic.objects(), clinic.left()) == ([], [])
    assert store.read <= 500_000, "gigabytes would have been sent, only to be taken back"


def test_thread_that_cannot_be_started_hangs_nothing_and_the_next_send_goes_on(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refused(self: threading.Thread) -> None:
        if self.name.startswith("seal"):
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="start new thread"):
            clinic.send(clinic.big)
    clinic.send(clinic.big)
    assert (clinic.objects(), clinic.left()) == (["big.bin.age", "manifest.json"], [])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("then", ["resume", "cancel"])
def test_killed_at_each_operation_of_the_store_the_transfer_ends_whole_or_not_at_all(
    clinic: Clinic, then: str, after: bool
) -> None:
    def kill(verb: str, key: str) -> None:
        if key.startswith("inbox/"):
            left[0] -= 1
            if left[0] == 0:
                raise Killed

    for k in range(1, 20):
        left = [k]
        setattr(clinic.store, "after" if after else "before", kill)
        try:
            clinic.send(clinic.small, clinic.big)
            break
        except Killed:
            pass
        finally:
            clinic.store.before = clinic.store.after = lambda verb, key: None
        ((plan, _),) = clinic.outbox.unfinished()
        whole = ["a.csv.age", "big.bin.age", "manifest.json"]
        announced = "manifest.json" in clinic.objects()
        if then == "resume":
            assert len(sending.resume_all(clinic.registry, clinic.outbox).sent) == 1
        elif announced:
            with pytest.raises(AlreadyExists):
                sending.cancel(clinic.registry, clinic.outbox, plan.id)
        else:
            sending.cancel(clinic.registry, clinic.outbox, plan.id)
        assert (clinic.objects(), clinic.left()) == (whole if then == "resume" or announced else [], [])
        for key in [info.key for info in clinic.store.list("inbox/")]:
            clinic.store.delete(key)
    assert k > 3


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Clinic]:
    (tmp_path / "store").mkdir()
    yield Clinic(FileStore(tmp_path / "store"), tmp_path)


@pytest.mark.parametrize("format", ["age", "crypt4gh"])
def test_files_about_the_border_are_in_the_inbox_as_they_were_signed(
    on_disk: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    monkeypatch.setattr(uploading, "FOLLOW_BYTES", 65536 * 3 + 196)
    paths = []
    for size in (0, 1, 65536 * 3 - 1, 65536 * 3, 65536 * 3 + 1, 400_000):
        paths.append(tmp_path / f"{size}.bin")
        paths[-1].write_bytes(os.urandom(size))
    transfer = on_disk.send(*paths, format=format)
    assert len(transfer.files) == len(paths)
    for file in transfer.files:
        key = layout.transfer_file("ttp", "clinic", transfer.id, file.name, "age" if format == "age" else "c4gh")
        assert hashlib.sha256(on_disk.store.get(key, 10**6)).hexdigest() == file.sha256
