"""The real servers that tests talk to: how each is found, started and stopped.

Rules: everything listens on 127.0.0.1 on a free port, keeps its data in a temporary folder, has random credentials and is stopped
by who started it. A server that this machine has not got raises `ServerMissing`, whose text says which one and how to get it;
`give_up` makes it a skip, or a failure if `PTM_REQUIRE` names it. A server that is there and does not start is a `RuntimeError`,
never a skip.

What this does not do: install or download anything but Debian's packages for the base image (`.ci/run` does), pretend to be S3 or
Docker, or look after the containers of a test.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import boto3
import docker
import docker.errors
import pytest

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

KINDS = frozenset({"age", "chromium", "docker", "minio", "postgres"})
BASE_IMAGE = "ptm-test/base:bookworm"
SESSION_LABEL = "ptm-test.session"
REGION = "us-east-1"
MINIO_EVENTS = "v0.0.0-20250907161309-07c3a429bfed"
"""RELEASE.2025-09-07T16-13-09Z, the one that `infra/minio-compose.yml` runs."""
START_SECONDS = 30
CHROMIUM = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync", "window-size=1200,1100"),
    *("disable-background-networking", "disable-component-update", "disable-dev-shm-usage", "hide-scrollbars"),
)
"""`no-sandbox` because CI is root; the pages are this project's own."""
HERE = Path(__file__).parent


class ServerMissing(Exception):
    """This machine has no such server. `kind` is what `PTM_REQUIRE` calls it; the text says how to get it."""

    def __init__(self, kind: str, how: str) -> None:
        super().__init__(f"server not found: {kind}: {how}")
        self.kind = kind


def required() -> set[str]:
    """The servers whose absence is a failure."""
    named = {name.strip() for name in os.environ.get("PTM_REQUIRE", "").split(",")} - {""}
    if unknown := named - KINDS:
        raise pytest.UsageError(f"PTM_REQUIRE names {', '.join(sorted(unknown))}; it knows {', '.join(sorted(KINDS))}")
    return named


def give_up(missing: ServerMissing) -> NoReturn:
    """Skip the test, or fail it if the server is required."""
    if missing.kind in required():
        pytest.fail(f"{missing} (required by PTM_REQUIRE)", pytrace=False)
    pytest.skip(str(missing))


def cache_dir() -> Path:
    """Where `.ci/run` and these functions keep what takes long to make."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptm-ci"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A server as a child process. It has started when `ready_url` answers 200; `log` is the file that holds what it prints."""

    command: Sequence[str]
    ready_url: str
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    _child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; no effect if it runs."""
        if self._child is not None and self._child.poll() is None:
            return
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                cwd=self.log.parent,
            )
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.ready_url):
            if self._child.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.command[0]} did not answer at {self.ready_url}:\n{tail}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it and wait until it is gone; no effect if it does not run."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def _folder(prefix: str) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# --- S3 -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moto:
    """moto's S3 server in a thread of this process. It takes any credentials."""

    endpoint_url: str


@contextlib.contextmanager
def run_moto() -> Iterator[Moto]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Moto(f"http://{host}:{port}")
    finally:
        server.stop()


@dataclass(frozen=True)
class Minio:
    """A real MinIO. `stop()` and `start()` make an outage: port, credentials and data stay the same."""

    endpoint_url: str
    access_key: str
    secret_key: str
    process: Process

    def env(self) -> dict[str, str]:
        """The environment by which boto3 finds these credentials."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str | None = None) -> str:
        """Make a bucket, with a random name unless one is given, and return its name."""
        bucket = name or f"test-{secrets.token_hex(8)}"
        s3_client(self.endpoint_url, self.access_key, self.secret_key).create_bucket(Bucket=bucket)
        return bucket

    def stop(self) -> None:
        self.process.stop()

    def start(self) -> None:
        self.process.start()


def s3_client(endpoint_url: str, access_key: str, secret_key: str) -> Any:
    """A plain boto3 client, for a test to look at a bucket without ptm."""
    session = boto3.Session(aws_access_key_id=access_key, aws_secret_access_key=secret_key, region_name=REGION)
    return session.client("s3", endpoint_url=endpoint_url)


def find_minio() -> Path:
    """The MinIO server's binary: `PTM_MINIO`, else the PATH, else the cache folder."""
    return _find_binary("minio", "PTM_MINIO")


def find_minio_events() -> Path:
    """A MinIO server that announces changes: `PTM_MINIO_EVENTS`, else the cache folder. What came after the release of September
    2025 takes the request and then holds every event back (its writer cannot flush, since minio/minio#21651)."""
    return _find_binary("minio", "PTM_MINIO_EVENTS", on_path=False, folder="events", version=MINIO_EVENTS)


def find_age() -> Path:
    """Debian's age, from the PATH."""
    found = shutil.which("age")
    if found is None:
        raise ServerMissing("age", "on Debian and Ubuntu: apt install age")
    return Path(found)


def find_mc() -> Path:
    """MinIO's client: `PTM_MC`, else the cache folder. Not the PATH, where `mc` is often Midnight Commander."""
    return _find_binary("mc", "PTM_MC", on_path=False)


def _find_binary(name: str, variable: str, *, on_path: bool = True, folder: str = "", version: str = "latest") -> Path:
    cached = cache_dir() / "bin" / folder / name
    if chosen := os.environ.get(variable):
        candidates = [chosen]
    else:
        candidates = [(shutil.which(name) if on_path else None) or "", str(cached)]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK) and Path(candidate).is_file():
            return Path(candidate).absolute()
    how = f"set {variable} to its path, or: CGO_ENABLED=0 GOBIN={cached.parent} go install github.com/minio/{name}@{version}"
    raise ServerMissing("minio", how)


@contextlib.contextmanager
def run_minio(binary: Path | None = None) -> Iterator[Minio]:
    binary = binary or find_minio()
    with _folder("ptm-minio-") as folder:
        access_key, secret_key = secrets.token_hex(8), secrets.token_hex(20)
        address, console = (f"127.0.0.1:{free_port()}" for _ in range(2))
        process = Process(
            command=[str(binary), "server", str(folder / "data"), "--address", address, "--console-address", console],
            ready_url=f"http://{address}/minio/health/live",
            log=folder / "log",
            env={"MINIO_ROOT_USER": access_key, "MINIO_ROOT_PASSWORD": secret_key},
        )
        process.start()
        try:
            yield Minio(f"http://{address}", access_key, secret_key, process)
        finally:
            process.stop()


# --- a browser ------------------------------------------------------------------------------------------------------------------


def find_chromium() -> tuple[Path, Path]:
    """Chromium and its driver, of one version."""
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(found):
        raise ServerMissing("chromium", "apt install chromium chromium-driver")
    browser, driver = (Path(str(path)) for path in found)
    return browser, driver


@contextlib.contextmanager
def run_chromium(*, javascript: bool = True) -> Iterator[WebDriver]:
    """A new headless browser with nothing in it, which asks nobody but the pages it is given."""
    from selenium import webdriver

    browser, driver = find_chromium()
    with _folder("ptm-chromium-") as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(browser)
        for word in CHROMIUM:
            options.add_argument(f"--{word}")
        options.add_argument(f"--user-data-dir={profile}")
        if not javascript:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        started = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(driver)))
        try:
            yield started
        finally:
            started.quit()


# --- containers -----------------------------------------------------------------------------------------------------------------


def connect_engine() -> docker.DockerClient:
    """A client of the container engine that `DOCKER_HOST` (or the default socket) leads to."""
    how = "start Docker Engine (or Podman's Docker-compatible socket) and set DOCKER_HOST if it is not at the default socket"
    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except docker.errors.DockerException as error:
        raise ServerMissing("docker", f"{how} ({str(error).splitlines()[0][:120]})") from error
    return client


def remove_built_images(engine: docker.DockerClient) -> None:
    """Remove what `build_image` made in this process."""
    images = engine.images.list(filters={"label": f"{SESSION_LABEL}={os.getpid()}"})
    _remove(engine, [str(image.id) for image in images])


def remove_images_of(engine: docker.DockerClient, host: str) -> None:
    """Remove every name that the engine holds of a registry that is about to go."""
    images = [image.attrs for image in engine.images.list()]
    names = [name for attrs in images for kind in ("RepoTags", "RepoDigests") for name in attrs.get(kind) or []]
    _remove(engine, [name for name in names if name.startswith(f"{host}/")])


def _remove(engine: docker.DockerClient, names: Sequence[str]) -> None:
    for name in names:
        with contextlib.suppress(docker.errors.ImageNotFound):  # went with another of its names
            engine.images.remove(name, force=True)


@dataclass(frozen=True)
class Registry:
    """A real image registry. `host` is what an image's name starts with; the engine takes 127.0.0.0/8 without TLS."""

    host: str
    engine: docker.DockerClient
    process: Process

    def push(self, local_tag: str, name: str) -> str:
        """Push a local image as `host/name` (`name` is `repository:tag`) and return the manifest's digest, `sha256:…`.
        The engine forgets the name afterwards, so that a pull is a pull."""
        repository, _, tag = name.rpartition(":")
        target = f"{self.host}/{repository}"
        self.engine.images.get(local_tag).tag(target, tag=tag)
        digest = ""
        for line in self.engine.images.push(target, tag=tag, stream=True, decode=True):
            if "error" in line:
                raise RuntimeError(f"push of {target}:{tag} failed: {line['error']}")
            digest = line.get("aux", {}).get("Digest", digest)
        if not digest:
            raise RuntimeError(f"push of {target}:{tag} told no digest")
        self.engine.images.remove(f"{target}:{tag}", noprune=True)
        return str(digest)

    def stop(self) -> None:
        self.process.stop()

    def start(self) -> None:
        self.process.start()


def find_registry() -> Path:
    """The binary of the image registry."""
    binary = shutil.which("docker-registry")
    if binary is None:
        raise ServerMissing("docker", "an image registry is wanted too: apt install docker-registry")
    return Path(binary)


@contextlib.contextmanager
def run_registry(engine: docker.DockerClient) -> Iterator[Registry]:
    binary = find_registry()
    with _folder("ptm-registry-") as folder:
        host = f"127.0.0.1:{free_port()}"
        config = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": host},
        }
        (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        process = Process([str(binary), "serve", str(folder / "config.yml")], f"http://{host}/v2/", folder / "log")
        process.start()
        try:
            yield Registry(host, engine, process)
        finally:
            remove_images_of(engine, host)
            process.stop()


def ensure_base_image(engine: docker.DockerClient) -> str:
    """The name of an image with python3 in it, which is made (once for this machine) if the engine has not got it."""
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "base.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            engine.images.get(BASE_IMAGE)
        except docker.errors.ImageNotFound:
            _import_base(engine, cache / "base.tar")
    return BASE_IMAGE


def _import_base(engine: docker.DockerClient, tarball: Path) -> None:
    repository, _, suite = BASE_IMAGE.partition(":")
    if not tarball.exists():
        if shutil.which("mmdebstrap") is None:
            raise ServerMissing("docker", f"the image {BASE_IMAGE} is wanted too, which is made by: apt install mmdebstrap")
        made = subprocess.run(
            [HERE / "images" / "make-base", tarball, suite], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if made.returncode != 0:
            raise RuntimeError(f"tests/images/make-base failed:\n{made.stderr.decode(errors='replace')[-2000:]}")
    engine.api.import_image(src=str(tarball), repository=repository, tag=suite, changes=['CMD ["python3"]'])
    engine.images.get(BASE_IMAGE)


def build_image(
    engine: docker.DockerClient, base: str, name: str, files: Mapping[str, str | bytes], command: Sequence[str]
) -> str:
    """Build the image `name` from `base`, local files only and without network, and return its id (`sha256:…`).

    `files` maps absolute paths in the image to their content; one that starts with `#!` is made executable.
    The image goes at the end of the session.
    """
    bodies = [(path, body.encode() if isinstance(body, str) else body) for path, body in files.items()]
    lines = [f"FROM {base}", f"LABEL {SESSION_LABEL}={os.getpid()}"]
    lines += [f"COPY {json.dumps([f'file{number}', path])}" for number, (path, _) in enumerate(bodies)]
    lines += [f"CMD {json.dumps(list(command))}"]
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        _add(tar, "Dockerfile", "\n".join(lines).encode())
        for number, (_, body) in enumerate(bodies):
            _add(tar, f"file{number}", body)
    context.seek(0)
    image, _ = engine.images.build(fileobj=context, custom_context=True, tag=name, rm=True, forcerm=True, network_mode="none")
    return str(image.id)


def _add(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(body)
    entry.mode = 0o755 if body.startswith(b"#!") else 0o644
    tar.addfile(entry, io.BytesIO(body))
