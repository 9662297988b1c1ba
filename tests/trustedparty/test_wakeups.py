"""A trusted party that polls once an hour reacts to a manifest within a second, on a folder and on a real MinIO."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptm.store.base import Store
from ptm.store.file import FileStore
from ptm.store.urls import make_store
from tests.federation import Federation, running, wait_for
from tests.servers import Minio
from tests.store.test_s3_minio import use
from tests.trustedparty import parties
from tests.trustedparty.parties import World

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def party_of(world: World) -> Iterator[None]:
    """The party watches, and has looked into its empty inbox."""
    world.config = world.config.model_copy(update={"poll_s": 3600.0})
    with running(world.party().watch):
        time.sleep(2)
        yield


def copied(world: World, store: Store) -> World:
    for info in world.store.list(""):
        store.put(info.key, world.store.get(info.key, info.size))
    return World(Federation(store, world.federation.folder, world.federation.fingerprint), parties.config())


def reacts(world: World) -> None:
    with party_of(world):
        for name in ("a.csv", "b.csv"):
            parcel = world.send({name: b"x"})
            begun = time.monotonic()
            wait_for(lambda parcel=parcel: world.receipt(parcel) is not None, 5)  # type: ignore[misc]
            assert time.monotonic() - begun < 1.5
    assert set(world.published()) == {"link/clinic/a.csv", "link/clinic/b.csv"}


def test_on_a_folder(world: World, tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    reacts(copied(world, FileStore(tmp_path / "registry")))


def test_on_minio(world: World, minio_events: Minio, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, minio_events.access_key, minio_events.secret_key)
    url = f"s3://test-{secrets.token_hex(8)}?endpoint_url={minio_events.endpoint_url}&region=us-east-1"
    reacts(copied(world, make_store(url)))
