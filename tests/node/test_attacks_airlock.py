"""Attacks on what waits for a person: by whoever runs the bucket, by a researcher with a good key, by another account on the
node's machine, by a crash at any step."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ptm import layout
from ptm.audit import Audit, entries, verify
from ptm.cli import node_decide
from ptm.client import TaskHandle
from ptm.errors import DigestMismatch, PtmError, UsageError
from ptm.node import decisions
from ptm.node.airlock import released_names
from ptm.node.firstuse import unapprove
from ptm.node.state import State
from ptm.registry import Registry
from ptm.store.memory import MemoryStore
from tests.e2e.test_full_disk import Small, fill, small_disk
from tests.federation import Federation, image_folder, outcome, second_home, wait_for
from tests.node.test_decisions import APPROVAL, BOTH, RELEASE, SECRET_NAME, events, held, site, state

pytestmark = pytest.mark.slow

__all__ = ["small_disk"]  # a fixture

RARE = "jan-jansen-has-it.csv"
MANY = """#!/usr/bin/env python3
import json, os, pathlib
out = pathlib.Path(os.environ["PTM_OUTPUT_DIR"])
deep = 1
for _ in range(4):
    deep = {chr(0x1F600) * 300: deep}
for n in range(256):
    (out / ('"' * 190 + f"{n:03}.json")).write_text(json.dumps(deep))
"""


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", mallory="researcher", maastro="site")


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    return {
        "demo/two:1": image_folder(tmp_path / "two", SECRET_NAME),
        "demo/many:1": image_folder(tmp_path / "many", MANY),
    }


def elsewhere(federation: Federation) -> Registry:
    """The same site on another machine, on which no file is held."""
    here = federation.registry("maastro")
    return Registry(second_home(federation, "maastro"), here.profile, federation.store, here.keys)


def hide_new(federation: Federation, task: TaskHandle, act: Callable[[], object]) -> None:
    """Whoever runs the bucket hides the notes that this leaves, at once and for good."""
    before = {info.key for info in federation.store.list(layout.run("maastro", task.id))}
    act()
    for key in {info.key for info in federation.store.list(layout.run("maastro", task.id))} - before:
        federation.store.delete(key)


# the bucket hides, brings back, plants


def test_a_withheld_file_does_not_leave_though_its_note_was_hidden_before_the_node_saw_it(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    """The steward withholds and releases beside the files: what was withheld there is remembered there."""
    task = held(federation, images)
    registry = site(federation)
    hide_new(
        federation,
        task,
        lambda: decisions.withhold(registry, task.id, by="Jansen", reason="a name", files=[RARE]),
    )
    assert decisions.find(site(federation), task.id).withheld == (RARE,)
    decisions.release(elsewhere(federation), task.id, by="Pietersen")
    federation.run_once("maastro", images=images, rule=RELEASE)
    assert outcome(task, tmp_path).files == ("total.json",)


def test_withheld_as_a_whole_and_hidden_a_later_release_lets_no_file_out(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = held(federation, images)
    hide_new(federation, task, lambda: decisions.withhold(site(federation), task.id, by="Jansen", reason="all of it"))
    decisions.release(elsewhere(federation), task.id, by="Pietersen")
    federation.run_once("maastro", images=images, rule=RELEASE)
    result = outcome(task, tmp_path)
    assert (result.files, result.log) == ((), "")


def test_a_release_names_what_leaves_and_nothing_else_does(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    """Two machines; the note is shown to the one that releases, and hidden from the one that has the files."""
    task = held(federation, images)
    away = elsewhere(federation)
    before = {info.key for info in federation.store.list(layout.run("maastro", task.id))}
    decisions.withhold(away, task.id, by="Jansen", reason="a name", files=[RARE])
    decisions.release(away, task.id, by="Jansen")
    record = away.record("maastro", task.id)
    (released,) = [note for note in record.notes if note.what == "released"]
    assert sorted(released_names(away, released)) == ["log.txt", "total.json"]
    withheld = {info.key for info in federation.store.list(layout.run("maastro", task.id)) if "withheld" in info.key} - before
    for key in withheld:
        federation.store.delete(key)
    federation.run_once("maastro", images=images, rule=RELEASE)
    assert outcome(task, tmp_path).files == ("total.json",)


def test_a_withholding_that_is_hidden_after_it_was_shown_makes_the_release_ask_again(
    federation: Federation, images: dict[str, Path]
) -> None:
    """The page said that one file stays; what it then decides may not say another thing."""
    task = held(federation, images)
    away = elsewhere(federation)
    keys = {info.key for info in federation.store.list(layout.run("maastro", task.id))}
    decisions.withhold(away, task.id, by="Jansen", reason="a name", files=[RARE])
    shown = decisions.find(away, task.id)
    for key in {info.key for info in federation.store.list(layout.run("maastro", task.id))} - keys:
        federation.store.delete(key)
    for seen in (shown.seen, shown.bound_to):
        with pytest.raises(DigestMismatch, match="not what was looked at"):
            decisions.release(away, task.id, by="Jansen", expect=seen)


@pytest.mark.parametrize("planted", ["junk", "another task's result"])
def test_a_planted_result_does_not_destroy_what_is_held(
    federation: Federation, images: dict[str, Path], tmp_path: Path, planted: str
) -> None:
    other = federation.client().put("demo/two:1", ["maastro"])
    federation.run_once("maastro", images=images)
    task = held(federation, images)
    body = b"{}" if planted == "junk" else federation.store.get(layout.result("maastro", other.id), 10**6)
    federation.store.create(layout.result("maastro", task.id), body)
    with pytest.raises(PtmError, match=r"could not be finished|tampers"):
        federation.run_once("maastro", images=images, rule=RELEASE)
    folder = federation.home("maastro").spool / task.id / "held"
    assert (folder / "total.json").exists()
    federation.store.delete(layout.result("maastro", task.id))
    decisions.release(site(federation), task.id, by="Jansen")
    federation.run_once("maastro", images=images, rule=RELEASE)
    assert outcome(task, tmp_path).state == "completed"


def test_a_question_that_is_hidden_again_and_again_does_not_fill_the_audit_log(
    federation: Federation, images: dict[str, Path]
) -> None:
    task = federation.client().put("demo/two:1", ["maastro"])
    node = federation.node("maastro", images=images, rule=APPROVAL)
    stop, hidden = threading.Event(), 0
    thread = threading.Thread(target=node.watch, args=(stop,))
    thread.start()
    try:
        for _ in range(5):
            key = layout.note("maastro", task.id, 0, "awaiting-approval")
            wait_for(lambda key=key: site(federation).exists(key))  # type: ignore[misc]
            federation.store.delete(key)
            hidden += 1
    finally:
        stop.set()
        thread.join()
    assert (hidden, events(federation).count("approval-asked")) == (5, 1)


# people on two machines


def release_meanwhile(federation: Federation, images: dict[str, Path], task: str) -> None:
    """Somebody else releases it, and it leaves, in the moment in which a withholding is written."""
    store, other = federation.store, site(federation)
    assert isinstance(store, MemoryStore)

    def meanwhile(verb: str, key: str) -> None:
        if verb == "create" and key.endswith("withheld.json"):
            store.before = lambda verb, key: None
            decisions.release(other, task, by="de Vries")
            federation.run_once("maastro", images=images, rule=RELEASE)

    store.before = meanwhile


def test_a_release_in_the_same_moment_as_a_withheld_file_is_said_to_who_withholds(
    federation: Federation, images: dict[str, Path]
) -> None:
    task = held(federation, images)
    release_meanwhile(federation, images, task.id)
    with pytest.raises(PtmError, match=r"de Vries|has a result"):
        decisions.withhold(elsewhere(federation), task.id, by="Jansen", reason="a name", files=[RARE])


def test_a_withholding_that_comes_after_the_result_is_said_to_be_too_late(
    federation: Federation, images: dict[str, Path]
) -> None:
    task = held(federation, images)
    release_meanwhile(federation, images, task.id)
    with pytest.raises(PtmError, match="too late"):
        decisions.withhold(elsewhere(federation), task.id, by="Jansen", reason="all of it")


def test_two_people_release_different_files_in_the_same_moment_and_only_what_both_named_leaves(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = held(federation, images)
    store, other = federation.store, elsewhere(federation)
    assert isinstance(store, MemoryStore)

    def meanwhile(verb: str, key: str) -> None:
        if verb == "create" and key.endswith("released.json"):
            store.before = lambda verb, key: None
            keys = {info.key for info in store.list(layout.run("maastro", task.id))}
            decisions.withhold(other, task.id, by="Jansen", reason="a name", files=[RARE])
            decisions.release(other, task.id, by="Jansen")
            for key in {info.key for info in store.list(layout.run("maastro", task.id))} - keys:
                if key.endswith("withheld.json"):
                    store.delete(key)

    store.before = meanwhile
    decisions.release(site(federation), task.id, by="de Vries")
    federation.run_once("maastro", images=images, rule=RELEASE)
    assert outcome(task, tmp_path).files == ("total.json",)


def test_released_and_its_worker_is_gone_for_good_pending_says_so_and_withhold_ends_it(
    federation: Federation, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = second_home(federation, "maastro")
    task = federation.client().put("demo/two:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=RELEASE, home=second, worker="w2")
    decisions.release(site(federation), task.id, by="Jansen")
    shutil.rmtree(second.path)
    (waiting,) = decisions.pending(site(federation))
    assert (waiting.what, waiting.asked.worker, waiting.task.id) == ("worker", "w2", task.id)
    assert waiting.released is not None and waiting.released.by == "Jansen"
    monkeypatch.setattr(node_decide, "site_registry", lambda home: site(federation))
    listed = CliRunner().invoke(node_decide.pending, obj=None)
    assert "worker w2" in listed.stdout and "`ptm node withhold` ends the run" in listed.stderr
    shown = CliRunner().invoke(node_decide.show, [task.id], obj=None)
    assert "released by    Jansen" in shown.stdout and RARE in shown.stdout
    assert decisions.release(site(federation), task.id, by="Jansen").decision.by == "Jansen"
    with pytest.raises(UsageError, match="released already"):
        decisions.withhold(site(federation), task.id, by="Jansen", reason="x", files=["total.json"])

    decisions.withhold(site(federation), task.id, by="Jansen", reason="its disk is gone")
    assert decisions.pending(site(federation)) == []
    stop = threading.Event()
    node = federation.node("maastro", images=images, rule=RELEASE, worker="w1", lease_s=1)
    thread = threading.Thread(target=node.watch, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: federation.registry("alice").result_bytes("maastro", task.id) is not None)
    finally:
        stop.set()
        thread.join()
    result = outcome(task, tmp_path)
    assert (result.state, result.reason) == ("rejected", "withheld by the site (Jansen): its disk is gone")


def test_a_release_can_be_taken_back_while_the_files_are_still_there(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = held(federation, images)
    decisions.release(site(federation), task.id, by="Jansen")
    decisions.withhold(site(federation), task.id, by="de Vries", reason="stop")
    federation.run_once("maastro", images=images, rule=RELEASE)
    result = outcome(task, tmp_path)
    assert (result.state, result.reason, result.files) == ("rejected", "withheld by the site (de Vries): stop", ())


def test_a_first_use_approval_that_a_crash_cut_short_is_whole_when_it_is_given_again(
    federation: Federation, images: dict[str, Path]
) -> None:
    rule = {"approval": "first-use"}
    task = federation.client().put("demo/two:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=rule)
    store = federation.store
    assert isinstance(store, MemoryStore)

    def crash(verb: str, key: str) -> None:
        if "/approvals/" in key and verb == "create":
            raise KeyboardInterrupt

    store.before = crash
    with pytest.raises(KeyboardInterrupt):
        decisions.approve(site(federation), task.id, by="Jansen")
    store.before = lambda verb, key: None
    decisions.approve(site(federation), task.id, by="Jansen")
    digest = str(site(federation).record("maastro", task.id).notes[0].image_digest)
    assert site(federation).image_approval(digest) is not None
    unapprove(site(federation), digest, by="de Vries", reason="a fault in it")
    decisions.approve(site(federation), task.id, by="Jansen")
    assert site(federation).image_approval(digest) is None, "the same answer again gives back nothing that was taken back"


# a researcher with a good key


def test_names_and_findings_as_long_as_they_get_can_still_be_asked_about(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    """256 files whose names and contents make the question as large as it gets."""
    task = held(federation, images, "demo/many:1", outputs={"min_cell": 10, "names": ["x"]})
    (waiting,) = decisions.pending(site(federation))
    assert waiting.held is not None
    assert len([file for file in waiting.held.files if file.name != "log.txt"]) == 256
    assert waiting.held.findings[-1].text.startswith("and ")
    decisions.withhold(site(federation), task.id, by="Jansen", reason="x", files=[file.name for file in waiting.held.files][:255])
    decisions.release(site(federation), task.id, by="Jansen")
    federation.run_once("maastro", images=images, rule=RELEASE)
    assert len(outcome(task, tmp_path).files) == 1


def test_a_flood_of_one_researcher_hides_nobody_elses_task(
    federation: Federation, images: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "MAX_LOOKED", 10)
    for _ in range(30):
        federation.client("alice").put("demo/two:1", ["maastro"])
    wanted = federation.client("mallory").put("demo/two:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    found = decisions.pending(site(federation))
    assert len(found) == 10
    assert wanted.id in {waiting.task.id for waiting in found}


# another account on this machine


@pytest.mark.parametrize("trap", ["a folder", "a link"])
def test_inputs_are_not_written_into_a_folder_that_somebody_else_laid_out(
    federation: Federation, images: dict[str, Path], tmp_path: Path, trap: str
) -> None:
    """/tmp/look, made beforehand by whoever wants to read along."""
    task = federation.client().put("demo/two:1", ["maastro"], inputs={"p.json": b"secret"})
    federation.run_once("maastro", images=images, rule=APPROVAL)
    waiting = decisions.find(site(federation), task.id)
    laid = tmp_path / "laid"
    laid.mkdir(mode=0o777)
    laid.chmod(0o777)
    target = laid
    if trap == "a link":
        target = tmp_path / "look"
        target.symlink_to(laid)
    with pytest.raises(UsageError, match="is there already"):
        decisions.write_inputs(site(federation), waiting, target)
    assert list(laid.iterdir()) == []
    (path,) = decisions.write_inputs(site(federation), waiting, tmp_path / "new" / "look")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_held_file_with_a_second_name_elsewhere_is_no_way_in(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    """A hard link made by the node's own account: a write through it is found when the file is sealed."""
    task = held(federation, images)
    total = federation.home("maastro").spool / task.id / "held" / "total.json"
    os.link(total, tmp_path / "second")
    decisions.release(elsewhere(federation), task.id, by="Jansen")
    (tmp_path / "second").chmod(0o600)
    (tmp_path / "second").write_text('{"n": 41}')
    with pytest.raises(PtmError, match="could not be finished"):
        federation.run_once("maastro", images=images, rule=RELEASE)
    assert federation.registry("alice").result_bytes("maastro", task.id) is None


def test_a_release_that_cannot_be_sealed_is_on_record_once(federation: Federation, images: dict[str, Path]) -> None:
    task = held(federation, images)
    decisions.release(elsewhere(federation), task.id, by="Jansen")
    (federation.home("maastro").spool / task.id / "held" / "total.json").unlink()
    for _ in range(3):
        with pytest.raises(PtmError, match="could not be finished"):
            federation.run_once("maastro", images=images, rule=RELEASE)
    assert events(federation).count("released") == 1


# crashes


class Killed(BaseException):
    """What no handler of the node catches, as nothing of it runs after a `kill -9`."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("answer", ["release", "withhold", "one file"])
def test_killed_at_any_write_to_disk_nothing_leaves_that_was_not_released(
    federation: Federation, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, answer: str
) -> None:
    """For k = 1, 2, …: the node ends at its k-th write to its state or its audit log, and is started again."""
    left, dead = [0], threading.Event()

    def killing(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            if dead.is_set():
                raise Killed
            left[0] -= 1
            if left[0] != 0:
                return write(*arguments)
            if when == "after":
                write(*arguments)
            dead.set()
            raise Killed

        return wrapped

    monkeypatch.setattr(State, "_execute", killing(State._execute))
    monkeypatch.setattr(Audit, "_append", killing(Audit._append))

    def once() -> None:
        dead.clear()
        try:
            node = federation.node("maastro", images=images, rule=BOTH)
        except Killed:
            return
        with contextlib.suppress(PtmError, Killed):
            node.watch(threading.Event(), once=True)
        with contextlib.suppress(OSError):
            node._state.close()
            node._audit.close()

    for k in range(1 if when == "before" else 2, 60, 2):
        task = federation.client().put("demo/two:1", ["maastro"])
        left[0] = k
        for _ in range(8):
            once()
            if state(task) == "awaiting_approval":
                decisions.approve(site(federation), task.id, by="Jansen")
            if state(task) == "awaiting_release" and not decided(federation, task):
                assert not site(federation).exists(layout.result("maastro", task.id))
                decide(federation, task, answer)
            if list(federation.store.list("queue/")) == []:
                break
        else:
            pytest.fail(f"the node did not get there ({k})")
        result = outcome(task, tmp_path)
        if result.state != "failed":  # the process runner cannot find again what it ran
            assert result.state == {"withhold": "rejected"}.get(answer, "completed"), k
        wanted = {"release": (RARE, "total.json"), "one file": ("total.json",), "withhold": ()}[answer]
        assert result.files in ((), wanted), k
        assert not list(federation.home("maastro").spool.iterdir()), (
            k,
            result.reason,
            list(federation.home("maastro").spool.rglob("*")),
        )
        if left[0] > 0:
            break
    else:
        pytest.fail("the node never got through")
    assert verify(federation.home("maastro").audit).whole
    assert [entry.n for entry in entries(federation.home("maastro").audit)][-1] > 20


def test_a_full_disk_takes_nothing_of_what_is_held_and_it_leaves_when_there_is_room(
    federation: Federation, images: dict[str, Path], tmp_path: Path, small_disk: Small
) -> None:
    script = """#!/bin/sh
head -c 2500000 /dev/urandom > "$PTM_OUTPUT_DIR/large.bin"
"""
    images["demo/large:1"] = image_folder(tmp_path / "large", script)
    spool = small_disk(federation.home("maastro").spool, 8)
    task = held(federation, images, "demo/large:1")
    decisions.release(site(federation), task.id, by="Jansen")
    filler = fill(spool)
    for _ in range(2):
        with pytest.raises(PtmError, match="could not be finished"):
            federation.run_once("maastro", images=images, rule=RELEASE)
    assert (spool / task.id / "held" / "large.bin").stat().st_size == 2_500_000
    filler.unlink()
    federation.run_once("maastro", images=images, rule=RELEASE)
    assert outcome(task, tmp_path).files == ("large.bin",)
    assert events(federation).count("released") == 1


def decided(federation: Federation, task: TaskHandle) -> bool:
    notes = site(federation).record("maastro", task.id).notes
    return any(note.what in ("released", "withheld") and note.files is None for note in notes)


def decide(federation: Federation, task: TaskHandle, answer: str) -> None:
    registry = site(federation)
    if answer == "withhold":
        decisions.withhold(registry, task.id, by="Jansen", reason="no")
        return
    held = decisions.find(registry, task.id).held
    if answer == "one file" and held is not None and RARE in {file.name for file in held.files}:
        decisions.withhold(registry, task.id, by="Jansen", reason="no", files=[RARE])
    decisions.release(registry, task.id, by="Jansen")
