"""`infra/minio-compose.yml`, brought up for real with an image that is built from MinIO's binaries."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from botocore.exceptions import ClientError
from docker.models.containers import Container

from tests import servers

INFRA = Path(__file__).parents[2] / "infra"
IMAGE = f"ptm-test/minio:{os.getpid()}"


@dataclass(frozen=True)
class Deployment:
    """The composed services: how to talk to them, and how to give another compose command."""

    command: list[str]
    env: dict[str, str]
    folder: Path
    project: str
    port: int
    console_port: int
    password: str

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def minio_image(docker_engine: docker.DockerClient, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image of `infra/minio/Dockerfile`, built without network."""
    try:
        binaries = {"minio": servers.find_minio(), "mc": servers.find_mc()}
    except servers.ServerMissing as missing:
        servers.give_up(missing)
    context = tmp_path_factory.mktemp("minio-image")
    for name, path in binaries.items():
        shutil.copy(path, context / name)
    shutil.copy(INFRA / "minio" / "Dockerfile", context)
    docker_engine.images.build(path=str(context), tag=IMAGE, buildargs={"BASE": base_image}, rm=True, forcerm=True)
    yield IMAGE
    docker_engine.images.remove(IMAGE, force=True)


@pytest.fixture(scope="module")
def deployment(minio_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The compose file in a folder of its own, brought up as the README says, with credentials from the example."""
    folder = tmp_path_factory.mktemp("infra")
    shutil.copy(INFRA / "minio-compose.yml", folder)
    password = secrets.token_hex(20)
    (folder / "minio.env").write_text((INFRA / "minio.env.example").read_text().replace("CHANGE\n", f"{password}\n"))
    project = f"ptmtest{secrets.token_hex(4)}"
    port, console_port = servers.free_port(), servers.free_port()
    env = {**os.environ, "MINIO_IMAGE": minio_image, "MINIO_PORT": str(port), "MINIO_CONSOLE_PORT": str(console_port)}
    command = [*compose_command(), "-p", project, "-f", "minio-compose.yml"]
    composed = Deployment(command, env, folder, project, port, console_port, password)
    try:
        composed.run("up", "-d")
        yield composed
    finally:
        composed.run("down", "--volumes")


def compose_command() -> list[str]:
    """Debian's docker-compose 1.29, or Compose v2 as the engine's plugin."""
    if found := shutil.which("docker-compose"):
        return [found]
    plugin = ["docker", "compose"]
    if not shutil.which("docker") or subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode != 0:
        servers.give_up(servers.ServerMissing("docker", "Compose is wanted too: apt install docker-compose"))
    return plugin


def service(engine: docker.DockerClient, deployment: Deployment, name: str) -> Container:
    labels = [f"com.docker.compose.project={deployment.project}", f"com.docker.compose.service={name}"]
    (container,) = engine.containers.list(all=True, filters={"label": labels})
    return container


@pytest.mark.slow
def test_minio_is_healthy_and_its_bucket_is_there(docker_engine: docker.DockerClient, deployment: Deployment) -> None:
    bucket = service(docker_engine, deployment, "bucket")
    assert bucket.wait(timeout=60)["StatusCode"] == 0, bucket.logs().decode()

    client = servers.s3_client(f"http://127.0.0.1:{deployment.port}", "ptm-root", deployment.password)
    client.put_object(Bucket="ptm", Key="a/b", Body=b"x", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket="ptm", Key="a/b", Body=b"y", IfNoneMatch="*")

    health = service(docker_engine, deployment, "minio").attrs["State"]["Health"]["Status"]
    assert health == "healthy"
    assert [found["Name"] for found in client.list_buckets()["Buckets"]] == ["ptm"]


@pytest.mark.slow
def test_second_up_keeps_bucket_and_objects(docker_engine: docker.DockerClient, deployment: Deployment) -> None:
    client = servers.s3_client(f"http://127.0.0.1:{deployment.port}", "ptm-root", deployment.password)
    service(docker_engine, deployment, "bucket").wait(timeout=60)
    client.put_object(Bucket="ptm", Key="kept", Body=b"x")

    deployment.run("down")
    deployment.run("up", "-d")

    assert service(docker_engine, deployment, "bucket").wait(timeout=60)["StatusCode"] == 0
    assert client.get_object(Bucket="ptm", Key="kept")["Body"].read() == b"x"


@pytest.mark.slow
def test_console_answers_and_every_port_is_on_loopback_only(docker_engine: docker.DockerClient, deployment: Deployment) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{deployment.console_port}/", timeout=10) as reply:
        assert reply.status == 200

    ports = service(docker_engine, deployment, "minio").attrs["NetworkSettings"]["Ports"]
    assert {binding["HostIp"] for bindings in ports.values() for binding in bindings or []} == {"127.0.0.1"}


@pytest.mark.slow
def test_containers_have_no_capability_and_no_way_to_more(docker_engine: docker.DockerClient, deployment: Deployment) -> None:
    for name in ("minio", "bucket"):
        settings = service(docker_engine, deployment, name).attrs["HostConfig"]
        assert settings["CapDrop"] == ["ALL"]
        assert settings["SecurityOpt"] == ["no-new-privileges:true"]
        assert not settings["Privileged"]


@pytest.mark.slow
def test_password_stands_in_no_process_list_and_no_log(docker_engine: docker.DockerClient, deployment: Deployment) -> None:
    for name in ("minio", "bucket"):
        container = service(docker_engine, deployment, name)
        told = [*container.attrs["Args"], container.attrs["Path"], container.logs().decode()]
        assert not [text for text in told if deployment.password in text]


def test_placeholder_password_is_refused_by_minio(minio: servers.Minio, tmp_path: Path) -> None:
    lines = [line for line in (INFRA / "minio.env.example").read_text().splitlines() if line and not line.startswith("#")]
    example = dict(line.split("=", 1) for line in lines)

    command = [minio.process.command[0], "server", str(tmp_path), "--address", f"127.0.0.1:{servers.free_port()}"]
    done = subprocess.run(command, env={**os.environ, **example}, capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode != 0
    assert "at least 8" in done.stdout + done.stderr
