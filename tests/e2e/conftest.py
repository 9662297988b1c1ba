"""Fixtures of the tests of crashes: an image that runs until its gate is opened, sites whose nodes end with the test, and a
federation in a bucket that the site reaches through a proxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptm.store.urls import open_store
from tests.commandline import CommandLine
from tests.e2e.crashes import GATED, Gate, Site, run_gate
from tests.federation import Federation
from tests.servers import build_image

IMAGE = "ptm-crash/gated:1"


@pytest.fixture(scope="module")
def gated(docker_engine: Any, base_image: str) -> str:
    build_image(docker_engine, base_image, IMAGE, {"/run.py": GATED}, ["/run.py"])
    return IMAGE


@pytest.fixture
def world(tmp_path: Path) -> Iterator[list[Site]]:
    """Sites whose nodes end with the test."""
    sites: list[Site] = []
    yield sites
    for site in sites:
        site.end()
        for container in site.containers() if site.engine else ():
            container.remove(force=True)


@pytest.fixture
def on_folder(tmp_path: Path) -> Federation:
    (tmp_path / "registry").mkdir()
    store = open_store(f"file://{tmp_path}/registry")
    return Federation(store, tmp_path).create().admit(alice="researcher", maastro="site")


@pytest.fixture
def on_minio(tmp_path: Path, minio: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Federation, CommandLine, Gate]]:
    """A federation in a bucket, whose site reaches it through a gate."""
    for name, value in minio.env().items():
        monkeypatch.setenv(name, value)
    with run_gate(minio.endpoint_url) as gate:
        place = f"s3://{minio.make_bucket()}/x?region=us-east-1&endpoint_url="
        federation = Federation(open_store(place + minio.endpoint_url), tmp_path).create()
        federation.admit(alice="researcher", maastro="site")
        yield federation, CommandLine(tmp_path, minio.env() | {"PTM_REGISTRY": f"{place}http://127.0.0.1:{gate.port}"}), gate
