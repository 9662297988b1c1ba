"""What holds for every S3 server besides the contract: the ambiguous PUT, addresses, buckets and versions.

A subclass supplies the fixture `endpoint_url` and sees to credentials in the environment.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from ptm.errors import AccessDenied, AlreadyExists, StoreError, Unreachable, UsageError
from ptm.store.s3 import S3Store
from ptm.store.s3_parts import PART_BYTES
from ptm.store.urls import make_store, open_store
from tests.store.contract import Stopping, UrlContract, keys
from tests.store.proxy import Fault, Proxy, run_proxy


def no_sleep(seconds: float) -> None:
    """Back-off of a test."""


class S3Contract(UrlContract):
    @pytest.fixture
    def url(self, endpoint_url: str) -> str:
        return f"s3://test-{secrets.token_hex(8)}/some/prefix?endpoint_url={endpoint_url}&region=us-east-1"

    @pytest.fixture
    def store(self, url: str) -> S3Store:
        store = make_store(url)
        assert isinstance(store, S3Store)
        return store

    @pytest.fixture
    def proxy(self, endpoint_url: str) -> Iterator[Proxy]:
        with run_proxy(endpoint_url) as proxy:
            yield proxy

    @pytest.fixture
    def behind(self, store: S3Store, proxy: Proxy) -> S3Store:
        """The same store, through the proxy."""
        return S3Store(
            store.bucket, "some/prefix", endpoint_url=proxy.endpoint_url, region="us-east-1", timeout_seconds=5, sleep=no_sleep
        )

    @pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.SAY_503])
    def test_reply_lost_after_commit_the_caller_learns_that_it_won(
        self, store: S3Store, behind: S3Store, proxy: Proxy, fault: Fault
    ) -> None:
        proxy.faults = [fault]
        behind.create("k", b"ours")
        assert (proxy.puts, proxy.faults) == (1, [])  # it read the key, and did not put blindly again
        assert store.get("k", 99) == b"ours"

    def test_request_lost_before_commit_is_put_again(self, store: S3Store, behind: S3Store, proxy: Proxy) -> None:
        proxy.faults = [Fault.LOSE_REQUEST, Fault.LOSE_REQUEST]
        behind.create("k", b"ours")
        assert proxy.puts == 3
        assert store.get("k", 99) == b"ours"

    @pytest.mark.parametrize("theirs", [b"them", b"much longer than ours", b""])
    def test_request_lost_and_a_rival_wrote_the_caller_learns_that_it_lost(
        self, store: S3Store, behind: S3Store, proxy: Proxy, theirs: bytes
    ) -> None:
        proxy.faults = [Fault.LOSE_REQUEST]
        proxy.meanwhile = lambda: store.create("k", theirs)
        with pytest.raises(AlreadyExists):
            behind.create("k", b"ours")
        assert store.get("k", 99) == theirs

    def test_refusal_lost_as_a_rival_was_first_the_caller_learns_that_it_lost(
        self, store: S3Store, behind: S3Store, proxy: Proxy
    ) -> None:
        store.create("k", b"them")
        proxy.faults = [Fault.LOSE_REPLY]
        with pytest.raises(AlreadyExists):
            behind.create("k", b"ours")

    def test_our_object_deleted_while_the_reply_was_lost_is_put_again(
        self, store: S3Store, behind: S3Store, proxy: Proxy
    ) -> None:
        proxy.faults = [Fault.LOSE_REPLY]
        proxy.meanwhile = lambda: store.delete("k")
        behind.create("k", b"ours")
        assert store.get("k", 99) == b"ours"

    def test_every_request_lost_is_unreachable_and_the_same_call_again_is_safe(
        self, store: S3Store, behind: S3Store, proxy: Proxy
    ) -> None:
        proxy.faults = [Fault.LOSE_REQUEST] * 5
        with pytest.raises(Unreachable):
            behind.create("k", b"ours")
        assert proxy.puts == 5
        behind.create("k", b"ours")
        assert store.get("k", 99) == b"ours"

    def test_lost_reply_of_a_plain_put_is_repeated_by_the_sdk(self, store: S3Store, behind: S3Store, proxy: Proxy) -> None:
        proxy.faults = [Fault.LOSE_REPLY]
        behind.put("k", b"ours")
        assert proxy.puts == 2
        assert store.get("k", 99) == b"ours"

    def test_interrupted_multipart_upload_leaves_no_object(self, store: S3Store, behind: S3Store, proxy: Proxy) -> None:
        proxy.faults = [Fault.LOSE_REQUEST] * 40
        with pytest.raises(Unreachable):
            behind.upload("big", io.BytesIO(bytes(20_000_000)))
        assert keys(store) == []

    @pytest.mark.parametrize("growing_to", [None, 10 * PART_BYTES])
    def test_only_the_parts_that_are_missing_are_sent_again(
        self, store: S3Store, behind: S3Store, proxy: Proxy, tmp_path: Path, growing_to: int | None
    ) -> None:
        body = os.urandom(9 * PART_BYTES + 12345)
        with pytest.raises(KeyboardInterrupt):
            behind.upload_resumable("big", Stopping(body, 5 * PART_BYTES), tmp_path / "journal", growing_to=growing_to)
        held = parts_of(store)
        assert 1 <= held <= 5

        proxy.puts = 0
        behind.upload_resumable("big", io.BytesIO(body), tmp_path / "journal")
        assert proxy.puts == 10 - held
        assert store.get("big", len(body)) == body

    def test_source_that_grows_takes_up_nothing_and_what_was_sent_before_is_removed(self, store: S3Store, tmp_path: Path) -> None:
        first, second, journal = os.urandom(7 * PART_BYTES), os.urandom(2 * PART_BYTES), tmp_path / "journal"
        with pytest.raises(KeyboardInterrupt):
            store.upload_resumable("big", Stopping(first, 6 * PART_BYTES), journal, growing_to=len(first))
        assert parts_of(store) > 0
        store.upload_resumable("big", io.BytesIO(second), journal, growing_to=len(first))
        assert store.get("big", len(second)) == second
        assert parts_of(store) == 0

    def test_part_that_the_server_has_otherwise_is_sent_again(self, store: S3Store, tmp_path: Path) -> None:
        body, journal = os.urandom(4 * PART_BYTES), tmp_path / "journal"
        with pytest.raises(KeyboardInterrupt):
            store.upload_resumable("big", Stopping(body, 3 * PART_BYTES), journal)
        upload = json.loads(journal.read_bytes().splitlines()[0])
        client_of(store).upload_part(
            Bucket=store.bucket, Key=upload["full"], UploadId=upload["id"], PartNumber=1, Body=bytes(PART_BYTES)
        )
        store.upload_resumable("big", io.BytesIO(body), journal)
        assert store.get("big", len(body)) == body

    def test_upload_that_the_server_has_given_up_is_begun_again(self, store: S3Store, tmp_path: Path) -> None:
        body, journal, moved = os.urandom(3 * PART_BYTES), tmp_path / "journal", list[int]()
        with pytest.raises(KeyboardInterrupt):
            store.upload_resumable("big", Stopping(body, 2 * PART_BYTES), journal)
        upload = json.loads(journal.read_bytes().splitlines()[0])
        client_of(store).abort_multipart_upload(Bucket=store.bucket, Key=upload["full"], UploadId=upload["id"])

        store.upload_resumable("big", io.BytesIO(body), journal, moved.append)
        assert store.get("big", len(body)) == body
        assert sum(moved) == len(body)

    def test_crash_after_the_object_was_finished_sends_nothing_again(
        self, store: S3Store, behind: S3Store, proxy: Proxy, tmp_path: Path
    ) -> None:
        body, journal, kept = os.urandom(3 * PART_BYTES), tmp_path / "journal", list[bytes]()
        behind.upload_resumable("big", io.BytesIO(body), journal, lambda moved: kept.append(journal.read_bytes()))
        journal.write_bytes(max(kept, key=len))  # as a process that died before it removed its journal leaves it

        proxy.puts, moved = 0, list[int]()
        behind.upload_resumable("big", io.BytesIO(body), journal, moved.append)
        assert (proxy.puts, sum(moved), journal.exists()) == (0, len(body), False)

    @pytest.mark.parametrize("junk", [b"", b"{", b"[1]\n", b'{"id": 1}\n', b"\xff\n"])
    def test_journal_that_is_no_such_thing_begins_again(self, store: S3Store, tmp_path: Path, junk: bytes) -> None:
        body, journal = os.urandom(2 * PART_BYTES), tmp_path / "journal"
        journal.write_bytes(junk)
        store.upload_resumable("big", io.BytesIO(body), journal)
        assert store.get("big", len(body)) == body

    def test_abandoned_upload_leaves_no_parts_at_the_server(self, store: S3Store, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            store.upload_resumable("big", Stopping(bytes(6 * PART_BYTES), 5 * PART_BYTES), tmp_path / "journal")
        assert parts_of(store) > 0
        store.abandon("big", tmp_path / "journal")
        assert parts_of(store) == 0

    def test_source_that_became_shorter_is_an_error_and_leaves_no_object(self, store: S3Store, tmp_path: Path) -> None:
        class Shrinking(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                return b"" if self.tell() >= PART_BYTES else super().read(size)

        with pytest.raises(StoreError, match="shorter"):
            store.upload_resumable("big", Shrinking(bytes(3 * PART_BYTES)), tmp_path / "journal")
        assert keys(store) == []

    def test_server_gone_in_the_middle_is_unreachable_and_the_same_call_ends_it(
        self, store: S3Store, behind: S3Store, proxy: Proxy, tmp_path: Path
    ) -> None:
        body = os.urandom(5 * PART_BYTES)
        proxy.faults = [Fault.LOSE_REQUEST] * 60
        with pytest.raises(Unreachable):
            behind.upload_resumable("big", io.BytesIO(body), tmp_path / "journal")
        assert keys(store) == []
        proxy.faults = []
        behind.upload_resumable("big", io.BytesIO(body), tmp_path / "journal")
        assert store.get("big", len(body)) == body

    def test_stopped_server_is_unreachable_for_every_verb(self, behind: S3Store, proxy: Proxy) -> None:
        proxy.close()
        for call in (
            lambda: behind.get("k", 1),
            lambda: behind.head("k"),
            lambda: list(behind.list("")),
            lambda: behind.create("k", b""),
            lambda: behind.delete("k"),
            lambda: behind.upload("k", io.BytesIO(b"x")),
            lambda: behind.download("k", io.BytesIO(), 1),
            lambda: behind.probe("scratch/"),
        ):
            with pytest.raises(Unreachable) as caught:
                call()
            assert caught.value.hint

    def test_stores_of_other_prefixes_do_not_see_each_other(self, store: S3Store, endpoint_url: str) -> None:
        def at(prefix: str) -> S3Store:
            return S3Store(store.bucket, prefix, endpoint_url=endpoint_url, region="us-east-1")

        store.put("k", b"1")
        at("some/prefix2").put("other", b"2")
        assert keys(store) == ["k"]
        assert keys(at("")) == ["some/prefix/k", "some/prefix2/other"]
        assert at("some").get("prefix/k", 1) == b"1"

    def test_missing_bucket_is_neither_missing_key_nor_empty_listing(self, endpoint_url: str) -> None:
        store = open_store(f"s3://no-such-bucket-here?endpoint_url={endpoint_url}&region=us-east-1")
        for call in (
            lambda: store.get("k", 1),
            lambda: store.head("k"),
            lambda: list(store.list("")),
            lambda: list(store.list_prefixes("")),
            lambda: store.create("k", b""),
            lambda: store.put("k", b""),
        ):
            with pytest.raises(StoreError, match="NoSuchBucket") as caught:
                call()
            assert type(caught.value) is StoreError
            assert "registry create" in str(caught.value.hint)

    def test_making_a_bucket_that_is_there_is_no_error_and_keeps_its_objects(self, store: S3Store, url: str) -> None:
        store.put("k", b"x")
        make_store(url)
        assert store.get("k", 1) == b"x"

    def test_versioned_bucket_is_found_by_the_probe(self, store: S3Store, endpoint_url: str) -> None:
        set_versioned(store.bucket, endpoint_url)
        found = store.probe("scratch/")
        assert (found.versioned, found.shareable, found.exclusive_create) == (True, False, True)
        assert keys(store) == []

    def test_no_credentials_are_denied_with_a_hint(self, store: S3Store, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        poor = open_store(url)
        for call in (lambda: poor.get("k", 1), lambda: poor.create("k", b""), lambda: list(poor.list(""))):
            with pytest.raises(AccessDenied) as caught:
                call()
            assert "AWS_ACCESS_KEY_ID" in str(caught.value.hint)

    def test_unknown_profile_is_a_usage_error(self, endpoint_url: str) -> None:
        with pytest.raises(UsageError, match="nobody") as caught:
            open_store(f"s3://bucket?endpoint_url={endpoint_url}&profile=nobody")
        assert caught.value.hint


def client_of(store: S3Store) -> Any:
    endpoint = store.url.partition("endpoint_url=")[2].partition("&")[0]
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")


def parts_of(store: S3Store, key: str = "big") -> int:
    """How many parts of unfinished uploads the server holds for a key."""
    client, found = client_of(store), 0
    listed = client.list_multipart_uploads(Bucket=store.bucket, Prefix=f"some/prefix/{key}")
    for upload in listed.get("Uploads", []):
        parts = client.list_parts(Bucket=store.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        found += len(parts.get("Parts", []))
    return found


def set_versioned(bucket: str, endpoint_url: str) -> None:
    client = boto3.client("s3", endpoint_url=endpoint_url, region_name="us-east-1")
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
