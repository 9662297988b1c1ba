"""A node that polls once an hour runs a task that is put within two seconds, on a folder and on a real MinIO; and an idle one
asks for nothing."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptm import layout
from ptm.store.base import Store
from ptm.store.file import FileStore
from ptm.store.memory import MemoryStore
from ptm.store.urls import make_store
from tests.federation import Federation, image_folder, running, wait_for
from tests.servers import Minio
from tests.store.test_s3_minio import use

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def watching(federation: Federation, folder: Path, **settings: object) -> Iterator[None]:
    """A node at work, that has looked at its empty queue."""
    node = federation.node("maastro", images={"demo/count:1": image_folder(folder / "count")}, poll_s=3600.0, **settings)
    with running(node.watch):
        time.sleep(2)
        yield


def runs_at_once(store: Store, folder: Path) -> None:
    federation = Federation(store, folder).create().admit(alice="researcher", maastro="site")
    client = federation.client()
    with watching(federation, folder):
        for _ in range(2):
            task = client.put(image="demo/count:1", sites=["maastro"], expires="1d").id
            begun = time.monotonic()
            wait_for(lambda task=task: federation.registry("maastro").exists(layout.result("maastro", task)), 10)  # type: ignore[misc]
            assert time.monotonic() - begun < 2


def test_on_a_folder(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    runs_at_once(FileStore(tmp_path / "registry"), tmp_path)


def test_on_minio(minio_events: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, minio_events.access_key, minio_events.secret_key)
    runs_at_once(
        make_store(f"s3://test-{secrets.token_hex(8)}/some?endpoint_url={minio_events.endpoint_url}&region=us-east-1"), tmp_path
    )


def test_an_idle_node_asks_for_nothing_but_its_heartbeat(tmp_path: Path) -> None:
    store = MemoryStore()
    federation = Federation(store, tmp_path).create().admit(maastro="site")
    with watching(federation, tmp_path, lease_s=3600.0):
        asked: Counter[str] = Counter()
        store.before = lambda verb, key: asked.update([f"{verb} {key}"])
        time.sleep(1)
        assert not asked
        store.before = lambda verb, key: None
