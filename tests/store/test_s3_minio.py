"""The S3 store keeps the contract on a real MinIO, and says "denied" when a policy or a key denies."""

from __future__ import annotations

import io
import json
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from ptm.errors import AccessDenied, AlreadyExists, Unreachable
from ptm.store.base import Store
from ptm.store.s3 import S3Store
from ptm.store.s3_parts import PART_BYTES
from ptm.store.urls import open_store
from tests.servers import Minio
from tests.store.s3_contract import S3Contract, client_of, set_versioned


def use(patch: pytest.MonkeyPatch, access_key: str, secret_key: str) -> None:
    patch.setenv("AWS_ACCESS_KEY_ID", access_key)
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)


@pytest.mark.slow
class TestS3StoreOnMinio(S3Contract):
    @pytest.fixture(autouse=True)
    def credentials(self, minio: Minio, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, minio.access_key, minio.secret_key)

    @pytest.fixture
    def endpoint_url(self, minio: Minio) -> str:
        return minio.endpoint_url

    def test_upload_given_up_by_the_server_in_the_middle_is_begun_again(self, store: S3Store, tmp_path: Path) -> None:
        body, journal, moved = os.urandom(6 * PART_BYTES), tmp_path / "journal", list[int]()

        def give_up(size: int) -> None:
            if not moved:
                upload = json.loads(journal.read_bytes().splitlines()[0])
                client_of(store).abort_multipart_upload(Bucket=store.bucket, Key=upload["full"], UploadId=upload["id"])
            moved.append(size)

        store.upload_resumable("big", io.BytesIO(body), journal, give_up)
        assert store.get("big", len(body)) == body
        assert sum(moved) == len(body)

    @pytest.mark.parametrize("wrong", ["key", "secret"])
    def test_wrong_credentials_are_denied_for_every_verb(
        self, minio: Minio, store: S3Store, url: str, monkeypatch: pytest.MonkeyPatch, wrong: str
    ) -> None:
        store.put("there", b"x")
        use(monkeypatch, *((minio.access_key, "wrong-secret") if wrong == "secret" else ("nobody-known", minio.secret_key)))
        denied = open_store(url)
        for key in ("there", "missing"):
            assert_denied(denied, key)
        for call in (lambda: list(denied.list("")), lambda: list(denied.list_prefixes("")), lambda: denied.probe("scratch/")):
            with pytest.raises(AccessDenied):
                call()

    def test_policy_of_one_prefix_denies_the_others_and_never_says_missing(
        self, minio: Minio, store: S3Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine, all_of = f"{store.bucket}/some/prefix/sites/mine/*", f"arn:aws:s3:::{store.bucket}"
        statements = [
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
                "Resource": [f"arn:aws:s3:::{mine}"],
            },
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": [all_of],
                "Condition": {"StringLike": {"s3:prefix": ["some/prefix/sites/mine/*"]}},
            },
        ]
        use(monkeypatch, *add_user(minio, tmp_path, statements))
        store.put("sites/theirs/k", b"secret")
        member = open_store(url)

        member.create("sites/mine/k", b"ours")
        with pytest.raises(AlreadyExists):
            member.create("sites/mine/k", b"other")
        assert [info.key for info in member.list("sites/mine/")] == ["sites/mine/k"]
        assert member.probe("sites/mine/scratch/").shareable
        for key in ("sites/theirs/k", "sites/theirs/missing"):
            assert_denied(member, key)
        for call in (lambda: list(member.list("")), lambda: list(member.list_prefixes("sites/"))):
            with pytest.raises(AccessDenied):
                call()
        assert store.get("sites/theirs/k", 99) == b"secret"

    def test_versioned_bucket_is_found_by_a_member_who_may_not_ask_for_versioning(
        self, minio: Minio, store: S3Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        verbs = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"]
        bucket = f"arn:aws:s3:::{store.bucket}"
        allowed = add_user(minio, tmp_path, [{"Effect": "Allow", "Action": verbs, "Resource": [bucket, f"{bucket}/*"]}])
        set_versioned(store.bucket, minio.endpoint_url)
        use(monkeypatch, *allowed)
        member = open_store(url)
        assert (member.probe("scratch/").versioned, list(member.list(""))) == (True, [])

    def test_member_who_may_write_but_not_read_is_told_so_when_the_key_exists(
        self, minio: Minio, store: S3Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        statements = [{"Effect": "Allow", "Action": ["s3:PutObject"], "Resource": [f"arn:aws:s3:::{store.bucket}/*"]}]
        use(monkeypatch, *add_user(minio, tmp_path, statements))
        store.put("k", b"x")
        member = open_store(url)
        member.create("new", b"y")
        with pytest.raises(AccessDenied, match="could not learn") as caught:
            member.create("k", b"y")
        assert "s3:GetObject" in str(caught.value.hint)

    def test_server_down_and_up_again_is_unreachable_meanwhile_only(self, minio: Minio, store: S3Store, url: str) -> None:
        store.put("k", b"x")
        minio.stop()
        try:
            with pytest.raises(Unreachable):
                S3Store(store.bucket, endpoint_url=minio.endpoint_url, timeout_seconds=2).get("k", 1)
        finally:
            minio.start()
        assert store.get("k", 1) == b"x"


def assert_denied(store: Store, key: str) -> None:
    for call in (
        lambda: store.get(key, 9),
        lambda: store.head(key),
        lambda: store.download(key, io.BytesIO(), 9),
        lambda: store.create(key, b"x"),
        lambda: store.put(key, b"x"),
        lambda: store.upload(key, io.BytesIO(b"x")),
        lambda: store.delete(key),
    ):
        with pytest.raises(AccessDenied):
            call()


def add_user(minio: Minio, folder: Path, statements: list[dict[str, object]]) -> tuple[str, str]:
    """Make a MinIO user with a policy, and return its access key and secret key."""
    name, secret = f"member-{secrets.token_hex(4)}", secrets.token_hex(16)
    admin = MinioAdmin(
        endpoint=urlsplit(minio.endpoint_url).netloc,
        credentials=StaticProvider(minio.access_key, minio.secret_key),
        secure=False,
    )
    policy = folder / "policy.json"
    policy.write_text(json.dumps({"Version": "2012-10-17", "Statement": statements}))
    admin.policy_add(name, str(policy))
    admin.user_add(name, secret)
    admin.attach_policy([name], user=name)
    return name, secret
