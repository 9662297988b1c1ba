"""A researcher's command that is killed in the middle, and a fan-out that does not reach every site: what is there says what to
do, and nothing half-done is left (issue 2, "fan-out is resumable", "nothing unverified or partial is ever left in DIR")."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ptm import layout
from ptm.errors import AccessDenied, StoreError
from ptm.store.memory import MemoryStore
from ptm.store.urls import open_store
from tests.commandline import CommandLine
from tests.e2e.crashes import Gate, wait_for
from tests.federation import Federation, image_folder

pytestmark = pytest.mark.slow
OnMinio = tuple[Federation, CommandLine, Gate]
PUT = ("--home", "alice", "task", "put", "--image", "demo/x:1", "--expires", "1d")
TWENTY = [f"site{n}" for n in range(20)]
BULKY = """#!/bin/sh
head -c 300000 /dev/urandom > "$PTM_OUTPUT_DIR/bulk.bin"
"""


def test_put_killed_between_the_record_and_the_queue_is_finished_without_a_second_task(on_minio: OnMinio) -> None:
    federation, line, gate = on_minio
    gate.hold(b"/queue/maastro/")
    put = line.start(*PUT, "--site", "maastro")
    wait_for("the fan-out", gate.held.is_set)
    put.kill()
    put.wait()
    (task,) = (found.id for found in federation.client().tasks())
    assert federation.client().task(task).status()[0].state == "not put"
    gate.release()

    assert task in line.ok("--home", "alice", "task", "list")
    assert line.ok("--home", "alice", "task", "put", "--task", task) == task

    assert [found.id for found in federation.client().tasks()] == [task]
    assert federation.registry("alice").exists(layout.queue("maastro", "alice", task))


def test_a_queue_that_cannot_be_written_is_named_and_the_same_task_is_finished_later(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    federation = Federation(open_store(f"file://{tmp_path}/registry"), tmp_path).create()
    federation.admit(alice="researcher", **dict.fromkeys(TWENTY, "site"))  # type: ignore[arg-type]
    line = CommandLine(tmp_path)
    blocked = tmp_path / "registry/queue/site7"
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("in the way")

    answer = line.run(*PUT, *(word for site in TWENTY for word in ("--site", site)))

    assert answer.code == 10
    task = answer.out.strip()
    error, hint = answer.err.splitlines()[-2:]
    assert "reached 19 of 20 sites; not site7" in error
    assert f"ptm task put --task {task}" in hint
    blocked.unlink()
    assert line.ok("--home", "alice", "task", "put", "--task", task) == task
    assert [found.id for found in federation.client().tasks()] == [task]
    assert len(list(federation.store.list("queue/"))) == 20


def test_a_queue_that_is_denied_is_named_and_the_same_task_is_finished_later(tmp_path: Path) -> None:
    store = MemoryStore()
    federation = Federation(store, tmp_path).create()
    federation.admit(alice="researcher", **dict.fromkeys(TWENTY, "site"))  # type: ignore[arg-type]

    def deny(verb: str, key: str) -> None:
        if verb == "create" and key.startswith("queue/site7/"):
            raise AccessDenied(f"{key}: denied")

    store.before = deny
    with pytest.raises(StoreError, match=r"reached 19 of 20 sites; not site7: .*denied") as caught:
        federation.client().put("demo/x:1", TWENTY)
    assert caught.value.exit_code == 10
    store.before = lambda verb, key: None
    (task,) = federation.client().tasks()
    assert task.id in (caught.value.hint or "")
    assert federation.client().task(task.id).resume().failed == {}
    assert len(federation.client().tasks()) == 1
    assert len(list(store.list("queue/"))) == 20


@pytest.fixture
def finished(on_minio: OnMinio, tmp_path: Path) -> tuple[CommandLine, Gate, str]:
    federation, line, gate = on_minio
    images: dict[str, Any] = {"demo/x:1": image_folder(tmp_path / "bulky", BULKY)}
    task = federation.client().put("demo/x:1", ["maastro"])
    federation.run_once("maastro", images=images)
    return line, gate, task.id


def test_fetch_killed_in_the_middle_leaves_nothing_partial_and_not_in_the_way(finished: tuple[CommandLine, Gate, str]) -> None:
    line, gate, task = finished
    words = ("--home", "alice", "results", "fetch", task, "-o", "out")
    gate.hold(b"/outputs/", replies=True)
    fetch = line.start(*words)
    wait_for("the download", gate.held.is_set)
    fetch.kill()
    fetch.wait()
    gate.release()
    assert not (line.folder / "out/maastro").exists()

    line.ok(*words)

    assert [path.name for path in (line.folder / "out").iterdir()] == ["maastro"], "what the killed one left is still there"
    assert "verified 1 result(s)" in line.run("--home", "alice", "results", "verify", "out").err


def test_what_a_fetch_killed_just_before_its_end_left_is_not_taken_for_a_result(finished: tuple[CommandLine, Gate, str]) -> None:
    line, _, task = finished
    line.ok("--home", "alice", "results", "fetch", task, "-o", "out")
    shutil.copytree(line.folder / "out/maastro", line.folder / "out/.ptm-abcdefgh")
    answer = line.run("--home", "alice", "results", "verify", "out")
    assert (answer.code, "verified 1 result(s)" in answer.err) == (0, True), answer.err
