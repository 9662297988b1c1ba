"""A node that is killed or stopped at any moment: exactly one result for each task, of one run, and nothing left (issue 2;
design, sections 1, 4 and 6). Node processes, engine, image registry and MinIO are real."""

from __future__ import annotations

import io
import random
import time
from pathlib import Path
from typing import Any

import pytest

from ptm.node import sandbox
from tests.commandline import CommandLine
from tests.e2e.crashes import Gate, Site, check_once, make_site, only, run_gate, wait_for
from tests.federation import Federation

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("moment", ["just after start", "while running", "just after the end"])
def test_kill_9_while_there_is_a_container(
    tmp_path: Path, on_folder: Federation, world: list[Site], gated: str, docker_engine: Any, moment: str
) -> None:
    site = make_site(on_folder, CommandLine(tmp_path), engine=docker_engine)
    world.append(site)
    task = site.federation.client().put(gated, ["maastro"], inputs={"big": b"x" * 200_000}, data=["gate"])
    site.start()
    wait_for("the container", lambda: site.containers(task.id))
    if moment != "just after start":
        wait_for("the run", lambda: site.said("running"))
    if moment == "just after the end":
        site.open(task.id)
        wait_for("its end", lambda: not site.containers(task.id, "running"))
    site.kill()
    site.open(task.id)
    site.start()
    check_once(site, task)
    assert site.stop() == 0


def test_kill_9_while_pulling(
    tmp_path: Path, on_folder: Federation, world: list[Site], gated: str, docker_engine: Any, image_registry: Any
) -> None:
    image_registry.push(gated, "crash/gated:1")
    with run_gate(image_registry.host) as slow:
        site = make_site(on_folder, CommandLine(tmp_path), engine=docker_engine, pull="always")
        world.append(site)
        task = site.federation.client().put(f"127.0.0.1:{slow.port}/crash/gated:1", ["maastro"], data=["gate"])
        site.open(task.id)
        slow.hold()
        site.start()
        wait_for("the pull", slow.held.is_set)
        site.kill()
        slow.release()
        site.start()
        check_once(site, task)
        assert site.stop() == 0
    for name in [tag for found in docker_engine.images.list() for tag in found.tags if f":{slow.port}/" in tag]:
        docker_engine.images.remove(name, force=True)


@pytest.mark.parametrize("replies", [False, True], ids=["before it is written", "before the answer"])
@pytest.mark.parametrize("word", [b"/outputs/", b"result.json", b"DELETE "], ids=["outputs", "result", "queue"])
def test_kill_9_while_delivering(
    tmp_path: Path,
    world: list[Site],
    gated: str,
    docker_engine: Any,
    on_minio: tuple[Federation, CommandLine, Gate],
    word: bytes,
    replies: bool,
) -> None:
    federation, line, gate = on_minio
    site = make_site(federation, line, engine=docker_engine)
    world.append(site)
    task = federation.client().put(gated, ["maastro"], data=["gate"])
    site.start()
    wait_for("the run", lambda: site.said("running"))
    gate.hold(word, replies=replies)
    site.open(task.id)
    wait_for("the delivery", gate.held.is_set)
    site.kill()
    gate.release()
    site.start()
    check_once(site, task)


def test_kill_9_at_random_moments(
    tmp_path: Path, on_folder: Federation, world: list[Site], gated: str, docker_engine: Any
) -> None:
    dice = random.Random(2)
    site = make_site(on_folder, CommandLine(tmp_path), engine=docker_engine)
    world.append(site)
    (site.gate / "open").touch()
    tasks = []
    for _ in range(10):
        if len(tasks) < 4:
            tasks.append(site.federation.client().put(gated, ["maastro"], inputs={"big": b"x" * 200_000}, data=["gate"]))
        site.start()
        time.sleep(dice.uniform(0.5, 2.0))
        site.kill()
    site.start()
    for task in tasks:
        check_once_each(site, task)
    wait_for("nothing left", lambda: not site.leftovers(), 10)
    assert site.stop() == 0


def check_once_each(site: Site, task: Any) -> None:
    only(task, site.federation.folder)
    wait_for("the end of deliveries", lambda: not site.leftovers(), 20)
    check_once(site, task)


def unused_volumes(engine: Any) -> set[str]:
    """Those of no container: another test's containers may be about."""
    return {volume.id for volume in engine.volumes.list(filters={"dangling": True})}


def test_thirty_tasks_leave_no_thread_descriptor_container_or_volume_behind(
    tmp_path: Path, on_folder: Federation, world: list[Site], gated: str, docker_engine: Any
) -> None:
    dockerfile = io.BytesIO(f"FROM {gated}\nVOLUME /scratch\n".encode())
    docker_engine.images.build(fileobj=dockerfile, tag="ptm-crash/volume:1", rm=True, network_mode="none")
    before = unused_volumes(docker_engine)
    site = make_site(on_folder, CommandLine(tmp_path), engine=docker_engine, parallel=4)
    world.append(site)
    (site.gate / "open").touch()
    site.start()

    def some(count: int) -> None:
        tasks = [on_folder.client().put("ptm-crash/volume:1", ["maastro"], data=["gate"]) for _ in range(count)]
        assert {only(task, tmp_path, timeout=120).state for task in tasks} == {"completed"}
        wait_for("nothing left", lambda: not site.leftovers(), 10)

    some(6)
    time.sleep(1)
    threads, descriptors = site.threads(), site.descriptors()
    some(24)
    time.sleep(1)
    assert site.threads() <= threads + 1
    assert site.descriptors() <= descriptors + 2
    wait_for("no volume left", lambda: unused_volumes(docker_engine) <= before)
    assert site.stop() == 0
    docker_engine.images.remove("ptm-crash/volume:1", force=True)


def test_what_a_crash_left_of_runs_that_are_over_is_cleared_and_what_runs_is_not_touched(
    tmp_path: Path, on_folder: Federation, world: list[Site], gated: str, docker_engine: Any
) -> None:
    site = make_site(on_folder, CommandLine(tmp_path), engine=docker_engine)
    world.append(site)
    registry = site.registry
    ended, alone, running = (sandbox.Names(registry.id, "maastro", "maastro", "01KAMV3ZR5F2J7Q8XG4M1W9AB" + c) for c in "CDE")
    docker_engine.containers.create(gated, name=ended.run, labels=ended.labels(sandbox.RUN))
    sidecar = {"name": alone.gateway, "labels": alone.labels(sandbox.GATEWAY), "command": ["sleep", "60"], "entrypoint": ""}
    docker_engine.containers.run(gated, detach=True, **sidecar)
    docker_engine.containers.run(
        gated, ["sleep", "60"], entrypoint="", detach=True, name=running.run, labels=running.labels(sandbox.RUN)
    )
    (on_folder.home("maastro").spool / ended.task / "sealed").mkdir(parents=True)
    on_folder.store.put("sites/maastro/probe/maastro/0123-1", b"left by a killed probe")
    site.start()
    wait_for("the clearing up", lambda: site.leftovers() == [running.run])
    assert site.containers(running.task, "running")
    assert site.stop() == 0
