"""A trusted party and its senders, anew for each test: made once, then copied, for making keys takes its time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ptm.store.memory import MemoryStore
from tests.federation import Federation
from tests.trustedparty import parties


@pytest.fixture(scope="session")
def _first_world(tmp_path_factory: pytest.TempPathFactory) -> parties.World:
    return parties.world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(_first_world: parties.World, tmp_path: Path) -> parties.World:
    first, store = _first_world.federation, MemoryStore()
    for info in first.store.list(""):
        store.put(info.key, first.store.get(info.key, info.size))
    shutil.copytree(first.folder, tmp_path / "homes", symlinks=True)
    return parties.World(Federation(store, tmp_path / "homes", first.fingerprint), parties.config())
