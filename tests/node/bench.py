"""A runner on a real container engine with a home of its own, and the way of a run through it. Not a test."""

from __future__ import annotations

import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
import pytest
from ulid import ULID

from ptm.config import Home, Limits, NodeConfig
from ptm.image import parse_image
from ptm.node.containers import DockerRunner
from ptm.node.runner import Exit, Interrupt, RunSpec
from tests.federation import Federation

REGISTRY = str(uuid.uuid4())
LIMITS = Limits(cpu_cores=1, ram_gb=0.125, pids=32, time_s=60, output_mb=1, output_files=8, log_kb=16)


@dataclass(frozen=True)
class Ran:
    end: Exit
    broken: str | None
    files: dict[str, bytes]
    log: str


class Bench:
    """A runner with a home, and the way of a run through it."""

    def __init__(self, home: Path, image: str, **settings: Any) -> None:
        self.home, self.image = Home(home), image
        self.config = NodeConfig.model_validate({"worker": "w1", "pull": "never", **settings}, strict=False)
        self.runner = self.new_runner()

    def new_runner(self) -> DockerRunner:
        return DockerRunner(self.config, REGISTRY, "maastro", self.home)

    def spec(self, code: str, **changes: Any) -> RunSpec:
        """A run of a python program; `inputs` maps names to contents."""
        task = changes.pop("task", str(ULID()))
        inputs = self.home.path / "inputs" / task
        inputs.mkdir(parents=True, exist_ok=True)
        for name, body in changes.pop("inputs", {}).items():
            (inputs / name).write_bytes(body)
        spec = RunSpec(
            registry=REGISTRY,
            site="maastro",
            worker="w1",
            user="alice",
            task=task,
            attempt=str(ULID()),
            image=parse_image(self.image),
            command=("python3", "-c", textwrap.dedent(code)),
            env={},
            workdir=None,
            inputs=inputs,
            data={},
            limits=LIMITS,
        )
        return replace(spec, **changes)

    def start(self, spec: RunSpec) -> str:
        return self.runner.start(spec, self.runner.resolve(spec.image))

    def run(self, spec: RunSpec, interrupted: Callable[[], Interrupt | None] = lambda: None) -> Ran:
        handle = self.start(spec)
        try:
            end = self.runner.wait(handle, spec.limits, interrupted)
            return self.collect(handle, spec, end)
        finally:
            self.runner.remove(handle)

    def collect(self, handle: str, spec: RunSpec, end: Exit) -> Ran:
        folder = self.home.path / "out" / spec.task
        (folder / "outputs").mkdir(parents=True)
        broken = self.runner.collect(handle, spec.limits, folder / "outputs", folder / "log")
        files = {p.name: p.read_bytes() for p in (folder / "outputs").iterdir()}
        return Ran(end, broken, files, (folder / "log").read_text(errors="replace"))


@pytest.fixture(autouse=True)
def no_container_left(docker_engine: docker.DockerClient) -> Iterator[None]:
    """Every run has to be gone after its test, and this looks whether it is."""
    yield
    left = docker_engine.containers.list(all=True, filters={"label": f"ptm.registry={REGISTRY}"})
    names = [container.name for container in left]
    for container in left:
        container.remove(force=True, v=True)
    assert names == []


@pytest.fixture
def bench(tmp_path: Path, base_image: str) -> Iterator[Bench]:
    bench = Bench(tmp_path, base_image, gateway_image=base_image)
    yield bench
    bench.runner.close()


def run_once(federation: Federation, site: str, *, rule: Mapping[str, object] | None = None, **settings: Any) -> None:
    """Let a whole node of a site, with a runner on the real engine, handle what is there."""
    config = NodeConfig.model_validate({"worker": f"{site}-1", "pull": "never", **settings}, strict=False)
    runner = DockerRunner(config, federation.registry(site).id, site, federation.home(site))
    federation.node(site, runner=runner, rule=rule, **settings).watch(threading.Event(), once=True)
