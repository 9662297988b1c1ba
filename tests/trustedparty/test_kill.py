"""Sender and party killed at random moments: the short version of `python -m bench.kills`, with other dice each time."""

from __future__ import annotations

import random
import secrets
from pathlib import Path

import pytest

from ptm.store.urls import open_store
from tests.commandline import CommandLine
from tests.federation import Federation
from tests.servers import REGION, Minio
from tests.trustedparty.killing import Killing

pytestmark = pytest.mark.slow


def kill(folder: Path, url: str, kills: int, environment: dict[str, str] | None = None) -> None:
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")  # shown if it fails: brings the same dice back
    federation = Federation(open_store(url), folder).create().admit(clinic="site", ttp="party")
    Killing(federation, CommandLine(folder, environment), random.Random(seed)).run(kills)


def test_on_a_folder(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    kill(tmp_path, f"file://{tmp_path}/bucket", 12)


def test_on_minio(tmp_path: Path, minio: Minio, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in minio.env().items():
        monkeypatch.setenv(name, value)
    kill(tmp_path, f"s3://{minio.make_bucket()}/x?endpoint_url={minio.endpoint_url}&region={REGION}", 8, minio.env())
