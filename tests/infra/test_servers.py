"""The test servers themselves: they are real, and a missing one is told, not passed over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import boto3
import docker
import pytest
from botocore.exceptions import EndpointConnectionError

from tests import servers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run_pytest(test: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one test file in a pytest of its own, with the project's conftest."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.conftest",
        "--rootdir",
        str(ROOT),
        str(test),
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PTM_")}
    return subprocess.run(command, cwd=ROOT, env={**clean, **env}, capture_output=True, text=True, check=False)


@pytest.fixture
def wants_minio(tmp_path: Path) -> Path:
    path = tmp_path / "test_wants_minio.py"
    path.write_text("def test_it(minio): pass\n")
    return path


def test_missing_server_is_skipped_with_its_name_and_the_way_to_get_it(wants_minio: Path) -> None:
    done = run_pytest(wants_minio, PTM_MINIO="/nonexistent/minio")

    assert done.returncode == 0, done.stdout
    assert "go install github.com/minio/minio@latest" in done.stdout
    assert "servers not found, tests skipped: minio" in done.stdout


def test_missing_server_that_is_required_fails_the_run(wants_minio: Path) -> None:
    done = run_pytest(wants_minio, PTM_MINIO="/nonexistent/minio", PTM_REQUIRE="docker,minio")

    assert done.returncode == 1, done.stdout
    assert "servers required but not found, tests failed: minio" in done.stdout


def test_missing_engine_is_skipped_and_fails_when_required(tmp_path: Path) -> None:
    test = tmp_path / "test_wants_docker.py"
    test.write_text("def test_it(image_registry, base_image): pass\n")
    nowhere = f"unix://{tmp_path}/no.sock"

    assert "servers not found, tests skipped: docker" in run_pytest(test, DOCKER_HOST=nowhere).stdout
    assert run_pytest(test, DOCKER_HOST=nowhere, PTM_REQUIRE="docker").returncode == 1


def test_misspelt_requirement_is_refused_rather_than_ignored(wants_minio: Path) -> None:
    done = run_pytest(wants_minio, PTM_REQUIRE="dokcer")

    assert done.returncode != 0
    assert "dokcer" in done.stdout + done.stderr


def test_moto_answers(moto_server: servers.Moto) -> None:
    client = servers.s3_client(moto_server.endpoint_url, "any", "any")

    assert isinstance(client.list_buckets()["Buckets"], list)


def test_minio_is_found_by_its_environment_and_survives_an_outage(minio: servers.Minio, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in minio.env().items():
        monkeypatch.setenv(name, value)
    bucket = minio.make_bucket()
    client = boto3.Session().client("s3", endpoint_url=minio.endpoint_url)
    client.put_object(Bucket=bucket, Key="a/b", Body=b"kept")

    minio.stop()
    with pytest.raises(EndpointConnectionError):
        client.get_object(Bucket=bucket, Key="a/b")
    minio.start()

    assert client.get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"kept"


def test_image_is_built_pushed_pulled_by_digest_and_runs_without_network(
    docker_engine: docker.DockerClient, image_registry: servers.Registry, base_image: str
) -> None:
    program = "#!/usr/bin/env python3\nimport csv, http.server, json, math, socket, urllib.request\nprint(json.dumps(math.pi))\n"
    servers.build_image(docker_engine, base_image, "ptm-test/pi:1", {"/opt/pi/run": program}, ["/opt/pi/run"])

    digest = image_registry.push("ptm-test/pi:1", "lab/pi:1")
    docker_engine.images.remove("ptm-test/pi:1")
    docker_engine.images.pull(f"{image_registry.host}/lab/pi@{digest}")
    output = docker_engine.containers.run(
        f"{image_registry.host}/lab/pi@{digest}", remove=True, network_mode="none", user="65534"
    )

    assert digest.startswith("sha256:")
    assert output.startswith(b"3.14159")
