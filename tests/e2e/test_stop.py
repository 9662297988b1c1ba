"""A node that is asked to stop, and several workers of a site of which one stops or dies (issue 2: "SIGTERM finishes or hands
over cleanly"; design, section 4)."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import CommandLine
from tests.e2e.crashes import GATED_PROCESS, Site, check_once, make_site, only, wait_for
from tests.federation import Federation, image_folder

pytestmark = pytest.mark.slow
BOTH = pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])


@BOTH
def test_a_container_goes_on_while_the_node_is_stopped_and_is_found_again(
    tmp_path: Path, world: list[Site], on_folder: Federation, gated: str, docker_engine: Any, how: signal.Signals
) -> None:
    site = make_site(on_folder, CommandLine(tmp_path), engine=docker_engine)
    world.append(site)
    task = on_folder.client().put(gated, ["maastro"], data=["gate"])
    site.start()
    wait_for("the run", lambda: site.said("running"))
    assert site.stop(how, seconds=10) == 0
    assert site.containers(task.id, "running")
    site.start()
    site.open(task.id)
    check_once(site, task)
    assert site.stop(how, seconds=10) == 0


@BOTH
def test_a_process_ends_with_its_node_and_the_result_says_so(
    tmp_path: Path, world: list[Site], on_folder: Federation, how: signal.Signals
) -> None:
    images = {"demo/gated:1": image_folder(tmp_path / "gated", GATED_PROCESS)}
    site = make_site(on_folder, CommandLine(tmp_path), runner="process", process_images=images)
    world.append(site)
    task = on_folder.client().put("demo/gated:1", ["maastro"], data=["gate"])
    site.start()
    wait_for("the run", lambda: site.said("running"))
    assert site.stop(how, seconds=10) == 0
    result = only(task, tmp_path, timeout=0)
    assert (result.state, result.reason) == ("failed", "the node was stopped during the run")
    assert site.leftovers() == []


def second_worker(federation: Federation, line: CommandLine, engine: Any, **settings: Any) -> Site:
    """Another machine of the same site: the same keys and trust, its own state."""
    source, target = federation.home("maastro"), federation.home("second").make()
    shutil.copytree(source.keys, target.keys)
    shutil.copytree(source.trust, target.trust, symlinks=True)
    shutil.copy(source.profile, target.profile)
    return make_site(federation, line, home="second", engine=engine, **settings)


def two_workers(federation: Federation, folder: Path, engine: Any, gated: str, lease_s: float) -> tuple[Site, Site, Any, Any]:
    """The first runs one task and has claimed another, for which it has no room; the second has nothing to do."""
    first = make_site(federation, CommandLine(folder), engine=engine, parallel=1, lease_s=lease_s)
    second = second_worker(federation, CommandLine(folder), engine, lease_s=lease_s)
    begun = federation.client().put(gated, ["maastro"], data=["gate"])
    first.start()
    wait_for("the run", lambda: first.said("running"))
    waiting = federation.client().put(gated, ["maastro"], data=["gate"])
    wait_for("the claim of another", lambda: first.said("accepted", 2))
    second.start()
    wait_for("the second worker", (federation.folder / "second/state.sqlite").exists)
    second.open(waiting.id)
    return first, second, begun, waiting


def test_what_a_stopped_worker_had_not_begun_is_taken_over_at_once_and_the_rest_is_left_to_it(
    tmp_path: Path, world: list[Site], on_folder: Federation, gated: str, docker_engine: Any
) -> None:
    first, second, begun, waiting = two_workers(on_folder, tmp_path, docker_engine, gated, lease_s=60)
    world += [first, second]
    assert first.stop(seconds=10) == 0
    assert only(waiting, tmp_path, timeout=15).state == "completed"
    assert first.starts(waiting.id) == 1
    first.open(begun.id)
    first.start()
    assert only(begun, tmp_path, timeout=15).state == "completed"
    assert first.starts(begun.id) == 1
    wait_for("nothing left", lambda: not first.leftovers() + second.leftovers(), 10)
    assert first.stop() == 0
    assert second.stop() == 0


def test_what_a_killed_worker_held_is_taken_over_after_its_lease_and_its_own_late_result_is_dropped(
    tmp_path: Path, world: list[Site], on_folder: Federation, gated: str, docker_engine: Any
) -> None:
    first, second, begun, waiting = two_workers(on_folder, tmp_path, docker_engine, gated, lease_s=2)
    world += [first, second]
    time.sleep(1)
    first.kill()
    killed = time.monotonic()
    second.open(begun.id)
    results = [only(task, tmp_path, timeout=30) for task in (waiting, begun)]
    assert [result.state for result in results] == ["completed"] * 2
    assert {result.saved.result.worker for result in results} == {"second"}
    assert time.monotonic() - killed >= 1, "taken over before the lease was over"
    first.start()
    wait_for("nothing left", lambda: not first.leftovers() + second.leftovers(), 15)
    assert first.starts(waiting.id) == 1
    assert first.starts(begun.id) == 2, "a killed worker's run goes on in its container, and at the one that took over"
    assert first.said("another worker's result was committed first")
    assert on_folder.registry("maastro").claims("maastro", waiting.id) == [1, 2]
