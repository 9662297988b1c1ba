"""Which image runs, on a real container engine and a real image registry."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import docker
import pytest

from ptm.errors import RunnerError
from ptm.image import parse_image
from tests import servers
from tests.node.bench import Bench, bench, no_container_left

pytestmark = pytest.mark.slow
__all__ = ["bench", "no_container_left"]


@pytest.fixture(scope="session")
def two_images(docker_engine: docker.DockerClient, base_image: str) -> tuple[str, str]:
    names = ("ptm-test/one:1", "ptm-test/two:1")
    for name in names:
        servers.build_image(docker_engine, base_image, name, {"/which": name}, ["python3", "-c", "print(open('/which').read())"])
    return names


@pytest.fixture
def puller(tmp_path: Path, image_registry: servers.Registry) -> Bench:
    return Bench(tmp_path, "unused:1", pull="always", mirrors={"myConsortium": f"{image_registry.host}/my"})


def run_image(bench: Bench, image: str) -> tuple[str, str]:
    spec = bench.spec("", image=parse_image(image), command=())
    return bench.runner.resolve(spec.image).digest, bench.run(spec).log.strip()


def test_a_moved_tag_runs_the_new_image_and_a_digest_the_old(
    puller: Bench, image_registry: servers.Registry, two_images: tuple[str, str]
) -> None:
    first = image_registry.push(two_images[0], "my/count:1")
    assert run_image(puller, "myConsortium/count:1") == (first, "ptm-test/one:1")
    second = image_registry.push(two_images[1], "my/count:1")
    assert run_image(puller, "myConsortium/count:1") == (second, "ptm-test/two:1")
    assert run_image(puller, f"myConsortium/count:1@{first}") == (first, "ptm-test/one:1")
    assert first != second


def test_what_was_resolved_runs_even_if_the_tag_moves_before_the_start(
    puller: Bench, image_registry: servers.Registry, two_images: tuple[str, str]
) -> None:
    image_registry.push(two_images[0], "my/moves:1")
    spec = puller.spec("", image=parse_image("myConsortium/moves:1"), command=())
    resolved = puller.runner.resolve(spec.image)
    image_registry.push(two_images[1], "my/moves:1")
    puller.runner.resolve(spec.image)
    handle = puller.runner.start(spec, resolved)
    ran = puller.collect(handle, spec, puller.runner.wait(handle, spec.limits, lambda: None))
    puller.runner.remove(handle)
    assert ran.log.strip() == "ptm-test/one:1"


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("myConsortium/none:1", "there is no image|does not exist"),
        ("myConsortium/count:none", "there is no image"),
        (f"myConsortium/count@sha256:{'0' * 64}", "there is no image"),
        ("127.0.0.1:1/count:1", "does not answer"),
        ("Other/count:1", "capitals"),
    ],
)
def test_an_image_that_cannot_be_had(
    puller: Bench, image_registry: servers.Registry, two_images: tuple[str, str], image: str, told: str
) -> None:
    image_registry.push(two_images[0], "my/count:1")
    with pytest.raises(RunnerError, match=told) as caught:
        puller.runner.resolve(parse_image(image))
    assert caught.value.hint and image_registry.host not in f"{caught.value} {caught.value.hint}"


def test_pull_never_takes_what_is_there_and_asks_nobody(bench: Bench, docker_engine: docker.DockerClient) -> None:
    resolved = bench.runner.resolve(parse_image(bench.image))
    assert resolved.digest == resolved.handle == docker_engine.images.get(bench.image).id
    assert bench.runner.resolve(parse_image(f"{bench.image}@{resolved.digest}")) == resolved
    with pytest.raises(RunnerError, match="does not pull"):
        bench.runner.resolve(parse_image("ptm-test/nothing:1"))


def test_a_stuck_pull_holds_up_nobody_and_can_be_interrupted(
    puller: Bench, image_registry: servers.Registry, two_images: tuple[str, str]
) -> None:
    image_registry.push(two_images[0], "my/quick:1")
    stuck, result = threading.Event(), []

    def resolve_stuck(port: int) -> None:
        try:
            puller.runner.resolve(parse_image(f"127.0.0.1:{port}/slow:1"), lambda: "stopping" if stuck.is_set() else None)
        except RunnerError as e:
            result.append(str(e))

    with silent_server() as port:
        thread = threading.Thread(target=resolve_stuck, args=(port,))
        thread.start()
        time.sleep(0.5)
        assert puller.runner.resolve(parse_image("myConsortium/quick:1")).digest.startswith("sha256:")
        assert thread.is_alive(), result
        stuck.set()
        thread.join(10)
    assert len(result) == 1 and "interrupted" in result[0]


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# what is removed again


def has(engine: docker.DockerClient, digest: str) -> bool:
    return any(digest in name for image in engine.images.list() for name in image.attrs["RepoDigests"] or [])


def test_an_image_that_was_pulled_and_not_used_for_long_is_removed_and_no_other(
    puller: Bench,
    image_registry: servers.Registry,
    two_images: tuple[str, str],
    base_image: str,
    docker_engine: docker.DockerClient,
) -> None:
    servers.build_image(docker_engine, base_image, "ptm-test/passing:1", {"/which": "passing"}, ["cat", "/which"])
    passing = image_registry.push("ptm-test/passing:1", "my/passing:1")
    docker_engine.images.remove("ptm-test/passing:1")
    there = image_registry.push(two_images[0], "my/there:1")
    assert run_image(puller, "myConsortium/passing:1") == (passing, "passing")
    assert run_image(puller, "myConsortium/there:1") == (there, "ptm-test/one:1")
    images = puller.new_runner()._images  # after a restart
    now = datetime.now(UTC)
    images.sweep(now + timedelta(days=29))
    assert has(docker_engine, passing)

    spec = puller.spec("", image=parse_image("myConsortium/passing:1"), command=("sleep", "60"))
    handle = puller.start(spec)
    images.sweep(now + timedelta(days=31))
    assert has(docker_engine, passing), "it is in use"
    puller.runner.remove(handle)
    images.sweep(now + timedelta(days=31))
    assert not has(docker_engine, passing)
    assert has(docker_engine, there), "it was there before this worker pulled it under another name"
    assert run_image(puller, "myConsortium/passing:1") == (passing, "passing")
    images.sweep(now + timedelta(days=32))


def test_a_damaged_record_of_images_removes_nothing(puller: Bench, tmp_path: Path) -> None:
    (tmp_path / "images.json").write_text("{")
    puller.runner.sweep(set())


def test_an_ended_container_of_no_known_task_is_removed_and_a_running_one_never(bench: Bench) -> None:
    running, ended = bench.spec("import time; time.sleep(600)"), bench.spec("print('done')")
    handle, done = bench.start(running), bench.start(ended)
    bench.runner.wait(done, ended.limits, lambda: None)
    bench.runner.sweep({ended.task})
    assert bench.runner.find(ended.task) == done, "its task is known"
    bench.runner.sweep(set())
    assert bench.runner.find(ended.task) is None
    assert bench.runner.find(running.task) == handle, "a run of a node whose state was lost: for people to look into"
    bench.runner.remove(handle)
