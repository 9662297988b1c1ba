"""The policies that `ptm registry policy` prints, attached to members' credentials on a real MinIO."""

from __future__ import annotations

import io
import json
import secrets
import threading
from pathlib import Path
from typing import Any

import pytest

from ptm.bucketpolicy import policy_for
from ptm.errors import AccessDenied, UsageError
from ptm.model import Kind
from ptm.store.base import Store
from ptm.store.urls import open_store
from ptm.trustedparty.watch import Party
from tests.servers import Minio
from tests.store.test_s3_minio import add_user, use
from tests.trustedparty import parties

KINDS: dict[str, Kind] = {"ttp": "party", "clinic": "site", "statistics": "site", "jane": "researcher", "coord": "coordinator"}


@pytest.fixture
def url(minio: Minio, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, minio.access_key, minio.secret_key)
    return f"s3://{minio.make_bucket()}/study-{secrets.token_hex(2)}?endpoint_url={minio.endpoint_url}"


@pytest.fixture
def member(minio: Minio, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`member(name)`: the store, with credentials that have this member's policy."""

    def make(name: str) -> Store:
        statements: list[dict[str, object]] = policy_for(url, name, KINDS[name])["Statement"]
        with monkeypatch.context() as patch:
            use(patch, minio.access_key, minio.secret_key)
            made = add_user(minio, tmp_path, statements)
            use(patch, *made)
            return open_store(url)

    return make


@pytest.mark.slow
def test_transfer_goes_through_with_nothing_but_the_members_own_rights(url: str, member: Any, tmp_path: Path) -> None:
    admin = open_store(url)
    world = parties.world(tmp_path / "homes", admin)
    clinic, ttp = member("clinic"), member("ttp")
    parcel = world.parcel({"a.csv": b"x" * 100})
    parcel.put(clinic)
    Party(world.federation.home("ttp"), world.federation.registry("ttp", ttp), world.config).watch(threading.Event(), once=True)
    assert world.published() == {"link/clinic/a.csv": b"x" * 100}
    assert list(admin.list("inbox/")) == []
    (receipt,) = clinic.list(f"sites/ttp/receipts/clinic/{parcel.transfer.id}/")
    assert b'"accepted"' in clinic.get(receipt.key, 2**20)


@pytest.mark.slow
def test_sender_may_not_see_or_touch_others_transfers_nor_answer_for_the_party(url: str, member: Any) -> None:
    admin, clinic, ttp = open_store(url), member("clinic"), member("ttp")
    admin.put("inbox/ttp/statistics/1/manifest.json", b"theirs")
    clinic.upload("inbox/ttp/clinic/1/files/a.csv.age", io.BytesIO(b"mine"))
    for key in ("inbox/ttp/statistics/1/manifest.json", "inbox/clinic2/statistics/x"):
        for act in (lambda k: clinic.get(k, 9), lambda k: clinic.put(k, b"x"), clinic.delete):
            with pytest.raises(AccessDenied):
                act(key)
    for key in ("sites/ttp/receipts/clinic/1/x.json", "sites/ttp/purges/link/1.json", "trust/x", "inbox/ttp/x"):
        with pytest.raises(AccessDenied):
            clinic.put(key, b"forged")
    with pytest.raises(AccessDenied):
        list(clinic.list("inbox/ttp/"))
    assert [info.key for info in ttp.list("inbox/ttp/")] == [
        "inbox/ttp/clinic/1/files/a.csv.age",
        "inbox/ttp/statistics/1/manifest.json",
    ]
    ttp.delete("inbox/ttp/statistics/1/manifest.json")
    ttp.create("sites/ttp/receipts/clinic/1/x.json", b"answer")
    with pytest.raises(AccessDenied):
        ttp.put("sites/clinic/runs/x", b"x")


@pytest.mark.slow
def test_researcher_fetches_what_is_passed_on_to_it(url: str, member: Any) -> None:
    admin, jane = open_store(url), member("jane")
    admin.upload("inbox/jane/ttp/1/files/a.csv.age", io.BytesIO(b"sealed"))
    assert jane.get("inbox/jane/ttp/1/files/a.csv.age", 9) == b"sealed"
    jane.create("sites/jane/receipts/ttp/1/x.json", b"answer")
    jane.delete("inbox/jane/ttp/1/files/a.csv.age")
    with pytest.raises(AccessDenied):
        jane.put("sites/jane/runs/x", b"x")


@pytest.mark.slow
def test_researcher_writes_its_own_tasks_only(url: str, member: Any) -> None:
    jane = member("jane")
    jane.create("users/jane/tasks/1/task.json", b"x")
    jane.create("queue/clinic/jane/1.json", b"x")
    assert [info.key for info in jane.list("users/jane/")] == ["users/jane/tasks/1/task.json"]
    for key in ("users/bob/x", "queue/clinic/bob/1.json", "sites/clinic/x", "trust/x"):
        with pytest.raises(AccessDenied):
            jane.put(key, b"x")


def test_policy_is_json_and_only_for_buckets() -> None:
    assert "study/inbox/*/clinic/*" in json.dumps(policy_for("s3://bucket/study", "clinic", "site"))
    with pytest.raises(UsageError, match="is not a bucket"):
        policy_for("file:///srv/registry", "clinic", "site")
