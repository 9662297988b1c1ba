"""GPUs: a task asks for them, a rule allows them, and the engine is asked for them; without any of it there are none.

No GPU is needed: the real engine here has none, takes the request when it makes the container, and says no at its start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from ptm.errors import RunnerError
from ptm.image import parse_image
from ptm.model import Resources
from ptm.node import sandbox
from ptm.store.memory import MemoryStore
from tests.federation import COUNT, Federation, image_folder
from tests.node.bench import Bench, bench, no_container_left, run_once

__all__ = ["bench", "no_container_left"]
pytestmark = pytest.mark.slow
RULE = {"max_gpus": 2}


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(MemoryStore(), tmp_path / "federation").create().admit(alice="researcher", maastro="site")


def test_the_engine_is_asked_for_as_many_as_the_task_asked_for_and_of_no_certain_maker(
    bench: Bench, docker_engine: docker.DockerClient
) -> None:
    spec = bench.spec("print('here')", gpus=2)
    names = sandbox.Names(spec.registry, spec.site, spec.worker, spec.task)
    image = bench.runner.resolve(spec.image)
    config = sandbox.run_config(spec, image.handle, sandbox.NOBODY, names, "none")
    handle = docker_engine.api.create_container_from_config(config, names.run)["Id"]  # type: ignore[no-untyped-call]
    try:
        host = docker_engine.api.inspect_container(handle)["HostConfig"]
    finally:
        docker_engine.api.remove_container(handle, v=True, force=True)
    (asked,) = host["DeviceRequests"]
    assert (asked["Driver"], asked["Count"], asked["Capabilities"]) == ("", 2, [["gpu"]])
    assert (host["CapDrop"], host["Privileged"], host["Devices"] or []) == (["ALL"], False, [])


def test_a_run_that_asks_for_none_gets_none_whatever_its_task_sets(bench: Bench, docker_engine: docker.DockerClient) -> None:
    """Where NVIDIA's runtime is the engine's default, this variable alone would hand out every GPU."""
    code = "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])"
    handle = bench.start(bench.spec(code, env={"NVIDIA_VISIBLE_DEVICES": "all"}))
    try:
        assert not docker_engine.api.inspect_container(handle)["HostConfig"]["DeviceRequests"]
    finally:
        bench.runner.remove(handle)
    assert bench.run(bench.spec(code, env={"NVIDIA_VISIBLE_DEVICES": "all"})).log == "void\n"


def test_an_image_that_sets_the_variable_itself_gets_none_either(bench: Bench, docker_engine: docker.DockerClient) -> None:
    container = docker_engine.containers.create(bench.image)
    image = container.commit(repository="ptm-test/wants-gpu", tag="1", changes="ENV NVIDIA_VISIBLE_DEVICES=all")
    container.remove()
    try:
        code = "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])"
        assert image.attrs["Config"]["Env"][-1] == "NVIDIA_VISIBLE_DEVICES=all"
        assert bench.run(bench.spec(code, image=parse_image("ptm-test/wants-gpu:1"))).log == "void\n"
    finally:
        docker_engine.images.remove("ptm-test/wants-gpu:1", force=True)


def test_an_engine_without_a_gpu_says_so_and_nothing_is_left(bench: Bench, docker_engine: docker.DockerClient) -> None:
    if docker_engine.info().get("Runtimes", {}).get("nvidia"):
        pytest.skip("this engine may have GPUs")
    with pytest.raises(RunnerError, match=r"could not give 1 GPU") as caught:
        bench.start(bench.spec("print('here')", gpus=1))
    assert "--gpus" in str(caught.value.hint)
    assert "driver" not in str(caught.value), "the engine's own words stay at the site"


def test_a_run_that_cannot_have_its_gpu_fails_aloud_and_the_next_one_runs(
    federation: Federation, base_image: str, tmp_path: Path, docker_engine: docker.DockerClient
) -> None:
    if docker_engine.info().get("Runtimes", {}).get("nvidia"):
        pytest.skip("this engine may have GPUs")
    wants = federation.client().put(base_image, ["maastro"], command=["true"], resources=Resources(gpus=1))
    plain = federation.client().put(base_image, ["maastro"], command=["true"])
    run_once(federation, "maastro", rule=RULE)
    (failed,) = wants.results(timeout=0, folder=tmp_path / "wants")
    (fine,) = plain.results(timeout=0, folder=tmp_path / "plain")
    assert (failed.state, failed.exit_code) == ("failed", None)
    assert "could not give 1 GPU" in str(failed.reason)
    assert "--gpus" in str(failed.saved.result.hint)
    assert (fine.state, fine.reason) == ("completed", None)


@pytest.mark.parametrize(
    ("rule", "gpus", "state", "reason"),
    [
        ({}, 1, "rejected", "does not allow 1 GPU(s)"),
        ({"max_gpus": 1}, 2, "rejected", "does not allow 2 GPU(s)"),
        ({"max_gpus": 1}, 1, "failed", "gives no GPU"),
        ({"max_gpus": 1}, None, "completed", ""),
    ],
)
def test_a_site_gives_gpus_only_by_its_policy_and_only_in_containers(
    federation: Federation, tmp_path: Path, rule: dict[str, object], gpus: int | None, state: str, reason: str
) -> None:
    images = {"demo/count:1": image_folder(tmp_path / "count", COUNT)}
    task = federation.client().put("demo/count:1", ["maastro"], resources=Resources(gpus=gpus))
    federation.run_once("maastro", images=images, rule=rule)
    (result,) = task.results(timeout=0, folder=tmp_path / "out")
    assert result.state == state
    assert reason in str(result.reason)


def test_a_task_without_gpus_is_signed_as_it_was_before_there_were_any(federation: Federation) -> None:
    for resources in (None, Resources(cpu_cores=1)):
        task = federation.client().put("demo/count:1", ["maastro"], resources=resources)
        signed = json.loads(federation.registry("alice").task_bytes(task.id))["signed"]
        assert signed["resources"] == ({} if resources is None else {"cpu_cores": 1})


def test_a_spec_without_gpus_asks_the_engine_for_nothing(bench: Bench) -> None:
    spec = replace(bench.spec("0"), gpus=0)
    names = sandbox.Names(spec.registry, spec.site, spec.worker, spec.task)
    assert sandbox.run_config(spec, "image", sandbox.NOBODY, names, "none")["HostConfig"]["DeviceRequests"] == []
