"""Fixtures for the real servers, and what happens when one is missing.

Rules: a test that asks for a server which this machine has not got is skipped, and the skip says which one and how to get it; if
`PTM_REQUIRE` (a comma-separated list of `age`, `chromium`, `docker`, `minio` and `postgres`) names it, the test fails instead.
The last line of a run sums up. `image_registry` and `base_image` count as docker.
No test finds credentials or a profile of the person who runs it.

How the servers are started stands in `servers.py`; this file does nothing but that in the form of fixtures.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import docker
import pytest

from ptm.node import quiet
from tests import servers

Chromium = Callable[..., AbstractContextManager[Any]]
KINDS = {
    "age": "age",
    "minio": "minio",
    "minio_events": "minio",
    "docker_engine": "docker",
    "image_registry": "docker",
    "base_image": "docker",
    "postgres": "postgres",
    "chromium": "chromium",
}


def pytest_configure() -> None:
    """Refuse a misspelt requirement before any test runs. A run in the background of a shell ignores Ctrl-C, and every `ptm` that
    a test starts would inherit that."""
    servers.required()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def no_cloud_credentials() -> Iterator[None]:
    """Nothing of the caller's AWS set-up reaches a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("AWS_") and n != "AWS_CA_BUNDLE"]:
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def moto_server() -> Iterator[servers.Moto]:
    """moto's S3 server: `.endpoint_url`; any credentials."""
    with servers.run_moto() as moto:
        yield moto


@pytest.fixture(scope="session")
def minio() -> Iterator[servers.Minio]:
    """A real MinIO: `.endpoint_url`, `.access_key`, `.secret_key`, `.make_bucket()`, `.env()`, `.stop()` and `.start()`."""
    try:
        servers.find_minio()
    except servers.ServerMissing as missing:
        servers.give_up(missing)
    with servers.run_minio() as server:
        yield server


@pytest.fixture(scope="session")
def minio_events() -> Iterator[servers.Minio]:
    """The same of another release, one that announces changes."""
    try:
        binary = servers.find_minio_events()
    except servers.ServerMissing as missing:
        servers.give_up(missing)
    with servers.run_minio(binary) as server:
        yield server


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[docker.DockerClient]:
    """A docker-py client of a real container engine. Images made with `servers.build_image` go at the end."""
    try:
        engine = servers.connect_engine()
    except servers.ServerMissing as missing:
        servers.give_up(missing)
    yield engine
    servers.remove_built_images(engine)
    engine.close()


@pytest.fixture(scope="session")
def image_registry(docker_engine: docker.DockerClient) -> Iterator[servers.Registry]:
    """A real image registry: `.host`, `.push(local_tag, "name:tag") -> digest`, and `.stop()`/`.start()` for an outage."""
    try:
        servers.find_registry()
    except servers.ServerMissing as missing:
        servers.give_up(missing)
    with servers.run_registry(docker_engine) as registry:
        yield registry


@pytest.fixture(scope="session")
def age() -> str:
    """The path of Debian's age."""
    try:
        return str(servers.find_age())
    except servers.ServerMissing as missing:
        servers.give_up(missing)


@pytest.fixture(scope="session")
def chromium() -> Chromium:
    """`with chromium(javascript=False) as browser:` is a new headless Chromium, driven by selenium."""
    try:
        servers.find_chromium()
    except servers.ServerMissing as missing:
        servers.give_up(missing)
    return servers.run_chromium


@pytest.fixture(scope="session")
def base_image(docker_engine: docker.DockerClient) -> str:
    """The name of an image in the engine that has python3 and its standard library, and little else."""
    try:
        return servers.ensure_base_image(docker_engine)
    except servers.ServerMissing as missing:
        servers.give_up(missing)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note with each test which servers it asks for, so that the summary knows (also of tests that ran in another process)."""
    for item in items:
        kinds = {KINDS[name] for name in getattr(item, "fixturenames", ()) if name in KINDS}
        item.user_properties.extend(("server", kind) for kind in sorted(kinds))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which servers were not found, whatever else was printed."""
    reports = [r for group in terminalreporter.stats.values() for r in group if isinstance(r, pytest.TestReport)]
    asked = {str(value) for report in reports for name, value in report.user_properties if name == "server"}
    skipped = _not_found(r for r in reports if r.skipped)
    failed = _not_found(r for r in reports if r.failed)
    if failed:
        terminalreporter.write_line(f"servers required but not found, tests failed: {', '.join(sorted(failed))}", red=True)
    if skipped:
        terminalreporter.write_line(f"servers not found, tests skipped: {', '.join(sorted(skipped))}", yellow=True)
    for kind, how in sorted({**skipped, **failed}.items()):
        terminalreporter.write_line(f"  {kind}: {how}")
    if asked and not skipped and not failed:
        terminalreporter.write_line(f"all real servers found: {', '.join(sorted(asked))}", green=True)


def _not_found(reports: Iterable[pytest.TestReport]) -> dict[str, str]:
    """Which servers were not found, and how to get them: pytest's own summary cuts the reasons to the width of the terminal."""
    reasons = [report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext for report in reports]
    found = [re.search(r"server not found: (\w+): (.*)", reason) for reason in reasons]
    return {match[1]: match[2] for match in found if match}


@pytest.fixture(autouse=True)
def _warnings_are_said_anew() -> None:
    """A test sees its own warnings of the gateway, whatever an earlier one brought about."""
    quiet.forget()
