"""Stores and image registries that go away, hang or come late: the node stays, and nothing is lost (design, sections 1 and 4)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptm import layout
from ptm.workers import Heartbeat
from tests.commandline import CommandLine
from tests.e2e.crashes import Gate, Site, check_once, make_site, only, run_gate, wait_for
from tests.federation import Federation

pytestmark = pytest.mark.slow
OnMinio = tuple[Federation, CommandLine, Gate]


@pytest.fixture
def minio_again(minio: Any) -> Iterator[Any]:
    yield minio
    minio.start()


def test_minio_away_in_the_middle_of_a_run(
    world: list[Site], on_minio: OnMinio, minio_again: Any, gated: str, docker_engine: Any
) -> None:
    federation, line, _ = on_minio
    site = make_site(federation, line, engine=docker_engine)
    world.append(site)
    task = federation.client().put(gated, ["maastro"], data=["gate"])
    site.start()
    wait_for("the run", lambda: site.said("running"))
    minio_again.stop()
    site.open(task.id)
    wait_for("the delivery that fails", lambda: site.said("trying again later"))
    assert site.node is not None
    assert site.node.poll() is None
    minio_again.start()
    check_once(site, task)
    assert site.stop() == 0


def test_a_node_started_while_minio_is_away_waits_for_it(
    world: list[Site], on_minio: OnMinio, minio_again: Any, gated: str, docker_engine: Any
) -> None:
    federation, line, _ = on_minio
    site = make_site(federation, line, engine=docker_engine)
    world.append(site)
    task = federation.client().put(gated, ["maastro"], data=["gate"])
    site.open(task.id)
    minio_again.stop()
    site.start()
    wait_for("its patience", lambda: site.said("no new tasks until that is over"))
    minio_again.start()
    check_once(site, task)
    assert site.stop() == 0


def beats(site: Site) -> int:
    return site.registry.read_own(layout.heartbeat("maastro", "maastro"), Heartbeat).beat


def test_a_connection_that_hangs_for_good_stops_neither_the_heartbeat_nor_the_node_for_long(
    world: list[Site], on_minio: OnMinio, gated: str, docker_engine: Any
) -> None:
    federation, line, gate = on_minio
    site = make_site(federation, line, engine=docker_engine, lease_s=2)
    world.append(site)
    site.start()
    wait_for("the first beat", lambda: next(iter(federation.store.list("sites/maastro/workers/")), None))
    gate.hold(b"list-type=2", once=True)
    wait_for("the poll that hangs", gate.held.is_set)
    before = beats(site)
    task = federation.client().put(gated, ["maastro"], data=["gate"])
    site.open(task.id)
    wait_for("beats meanwhile", lambda: beats(site) >= before + 3, 5)
    assert only(task, federation.folder, timeout=40).state == "completed"
    assert site.stop() == 0


def test_a_store_that_hangs_does_not_keep_a_node_from_stopping(world: list[Site], on_minio: OnMinio, docker_engine: Any) -> None:
    federation, line, gate = on_minio
    site = make_site(federation, line, engine=docker_engine, stop_grace_s=1)
    world.append(site)
    site.start()
    wait_for("the first beat", lambda: next(iter(federation.store.list("sites/maastro/workers/")), None))
    gate.hold()
    wait_for("the store to hang", gate.held.is_set)
    assert site.stop(seconds=15) == 0


def test_an_upload_that_hangs_does_not_keep_a_node_from_stopping_and_is_made_good_later(
    world: list[Site], on_minio: OnMinio, gated: str, docker_engine: Any
) -> None:
    federation, line, gate = on_minio
    site = make_site(federation, line, engine=docker_engine, stop_grace_s=1)
    world.append(site)
    task = federation.client().put(gated, ["maastro"], data=["gate"])
    site.open(task.id)
    gate.hold(b"/outputs/", replies=True)
    site.start()
    wait_for("the upload", gate.held.is_set)
    assert site.stop(seconds=15) == 0
    gate.release()
    site.start()
    check_once(site, task)


def test_a_slow_pull_holds_up_nobody_else_and_can_be_canceled(
    tmp_path: Path, world: list[Site], on_folder: Federation, gated: str, docker_engine: Any, image_registry: Any
) -> None:
    image_registry.push(gated, "crash/quick:1")
    with run_gate(image_registry.host) as slow:
        slow.hold()
        site = make_site(on_folder, CommandLine(tmp_path), engine=docker_engine, pull="always", parallel=1)
        world.append(site)
        stuck = on_folder.client().put(f"127.0.0.1:{slow.port}/crash/quick:1", ["maastro"], data=["gate"])
        quick = on_folder.client().put(f"{image_registry.host}/crash/quick:1", ["maastro"], data=["gate"])
        site.open(quick.id)
        site.start()
        wait_for("the pull", slow.held.is_set)
        assert only(quick, tmp_path, timeout=20).state == "completed"
        stuck.cancel("too slow")
        assert only(stuck, tmp_path, timeout=20).state == "canceled"
        assert site.starts(stuck.id) == 0
        assert site.stop() == 0
