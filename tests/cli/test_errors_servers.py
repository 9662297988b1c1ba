"""The walk through errors, at real servers: MinIO that says no, a disk that is full (issue 2, point 5)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.walk import WATCH, WHOLE_PUT, Walk, copied, make_federation, tree
from tests.commandline import CommandLine
from tests.servers import Minio

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walk")
    make_federation(folder)
    return folder


@pytest.fixture
def walk(made: Path, tmp_path: Path) -> Walk:
    return copied(made, tmp_path / "w")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk, and not in every container")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, leave: int) -> None:
    """Fill a disk up, but for some bytes."""
    with (place / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            file.truncate(max(0, file.tell() - leave))


def at(minio: Minio, bucket: str) -> str:
    return f"s3://{bucket}/study?endpoint_url={minio.endpoint_url}&region=us-east-1"


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_denied_and_not_repeated(walk: Walk, minio: Minio, wrong: str) -> None:
    url = at(minio, minio.make_bucket())
    variables = minio.env() | {wrong: "wrong-credential", "PTM_REGISTRY": url}
    for command in (WHOLE_PUT, ("--home", "alice", "member", "list"), ("--home", "alice", "results", "list")):
        walk.refused(*command, code=10, says="denied", hint="credentials", variables=variables)
    create = ("--home", "c2", "registry", "create", url)
    walk.refused(*create, code=10, says="denied", hint="credentials", variables=minio.env() | {wrong: "wrong-credential"})
    answer = CommandLine(walk.folder, variables).run(*WHOLE_PUT)
    assert "wrong-credential" not in answer.err
    assert minio.secret_key not in answer.err


def test_a_bucket_that_is_not_there_is_named(walk: Walk, minio: Minio) -> None:
    variables = minio.env() | {"PTM_REGISTRY": at(minio, "no-such-bucket")}
    for command in (WHOLE_PUT, ("--home", "alice", "member", "list")):
        walk.refused(*command, code=10, says="there is no such bucket", hint="bucket's name", variables=variables)


def test_a_bucket_without_a_registry_is_named(walk: Walk, minio: Minio) -> None:
    url = at(minio, minio.make_bucket())
    join = ("--home", "alice", "join", url, "--root", "0" * 64)
    walk.refused(*join, code=10, says="there is no registry at", hint="URL", variables=minio.env())


@pytest.mark.parametrize("leave", [0, 4096])
def test_a_full_disk_under_the_registry_is_one_line_and_leaves_no_task(walk: Walk, small_disk: Path, leave: int) -> None:
    registry = walk.folder / "registry"
    subprocess.run(["cp", "-a", f"{registry}/.", str(small_disk)], check=True)
    params = walk.folder / "params.bin"
    params.write_bytes(os.urandom(200_000))
    fill(small_disk, leave)
    kept = {path: digest for path, digest in tree(small_disk).items() if not path.startswith("trust")}
    variables = {"PTM_REGISTRY": f"file://{small_disk}"}
    put = (*WHOLE_PUT, "--input", "params.bin")
    walk.refused(*put, code=10, says="No space left", hint="free space", variables=variables, changes=True)
    assert {path: digest for path, digest in tree(small_disk).items() if not path.startswith("trust")} == kept


def test_a_full_disk_under_the_output_leaves_nothing_of_a_result(walk: Walk, small_disk: Path) -> None:
    (walk.folder / "count" / "run").write_text('#!/bin/sh\nhead -c 3000000 /dev/zero > "$PTM_OUTPUT_DIR/big"\n')
    task = walk.line.ok(*WHOLE_PUT)
    walk.line.ok(*WATCH)
    out = small_disk / "out"
    fetch = ("--home", "alice", "results", "fetch", task, "-o", str(out))
    walk.refused(*fetch, code=1, says="No space left", hint="free space", changes=True)
    assert not out.exists() or list(out.iterdir()) == []
    walk.line.ok(*fetch[:-1], str(walk.folder / "elsewhere"))


def test_a_full_disk_under_the_home_makes_no_half_request(walk: Walk, small_disk: Path) -> None:
    fill(small_disk, 0)
    request = ("--home", str(small_disk / "new"), "member", "request", "--name", "new", "--kind", "site", "-o", "new.json")
    walk.refused(*request, code=1, says="No space left", hint="free space", changes=True)
    assert not (walk.folder / "new.json").exists()
    (small_disk / "filler").unlink()
    walk.line.ok(*request)
