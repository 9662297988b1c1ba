"""A trusted party computes on what was sent to it: who may, what is waited for, who sees what, and when it goes, whatever
crashes meanwhile."""

from __future__ import annotations

import contextlib
import stat
import threading
import time
from pathlib import Path

import pytest

from ptm.audit import entries
from ptm.client import TaskHandle
from ptm.errors import ConfigError, PtmError, UsageError
from ptm.node import decisions, run
from ptm.node.console.health import Beats
from ptm.node.console.pages import Pages
from ptm.node.console.session import Session
from ptm.store.memory import MemoryStore
from ptm.trustedparty.purge import records
from tests.federation import FailOnce, Federation, image_folder, outcome, wait_for
from tests.node.parties import crash_at, purge_all, receive, send_both, send_file, state, users, write_party

pytestmark = pytest.mark.slow

LINK = """#!/usr/bin/env python3
import json, os, pathlib
folder = pathlib.Path(os.environ["PTM_DATA_LINK_2026"])
rows = {str(p.relative_to(folder)): len(p.read_text().splitlines()) - 1 for p in sorted(folder.rglob("*")) if p.is_file()}
(pathlib.Path(os.environ["PTM_OUTPUT_DIR"]) / "linked.json").write_text(json.dumps(rows))
"""
BOTH = {"maastro/diagnoses.csv": 2, "umcu/incomes.csv": 1}


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation(MemoryStore(), tmp_path).create()
    made.admit(alice="researcher", mallory="researcher", maastro="site", umcu="site", ttp="party")
    write_party(made)
    return made


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "marks").mkdir()
    mark = f"\nimport tempfile; tempfile.mkstemp(dir={str(tmp_path / 'marks')!r})\n"
    return {
        "demo/link:1": image_folder(tmp_path / "link", LINK + mark),
        "demo/bad:1": image_folder(tmp_path / "bad", "#!/bin/sh\nexit 3\n"),
    }


def runs(folder: Path) -> int:
    return len(list((folder / "marks").iterdir()))


def put(federation: Federation, user: str = "alice", image: str = "demo/link:1", **more: object) -> TaskHandle:
    return federation.client(user).put(image, ["ttp"], data=["link-2026"], **more)  # type: ignore[arg-type]


def notes(federation: Federation, task: TaskHandle) -> list[str]:
    return [info.key.rpartition("/")[2] for info in federation.store.list(f"sites/ttp/runs/{task.id}/")]


def test_a_run_waits_for_the_data_and_goes_on_when_it_is_there(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = put(federation)
    federation.run_once("ttp", images=images)
    (status,) = task.status()
    assert status.state == "waiting_data"
    assert r"maastro has not sent diagnoses\.csv, umcu has not sent incomes\.csv" in (status.reason or "")
    (waiting,) = decisions.pending(federation.registry("ttp"))
    assert (waiting.what, waiting.task.id) == ("data", task.id)
    assert "incomes" in waiting.asked.reason

    send_file(federation, "maastro", "diagnoses.csv", b"p,d\n1,E11\n2,E10\n", tmp_path)
    receive(federation)
    federation.run_once("ttp", images=images)
    assert "diagnoses" not in (task.status()[0].reason or "")
    assert runs(tmp_path) == 0

    send_file(federation, "umcu", "incomes.csv", b"p,i\n1,100\n", tmp_path)
    receive(federation)
    federation.run_once("ttp", images=images)

    result = outcome(task, tmp_path)
    assert (result.state, result.json("linked.json")) == ("completed", BOTH)
    assert users(federation) == []
    assert decisions.pending(federation.registry("ttp")) == []
    assert len(state(federation).files) == 2


def test_nothing_is_claimed_and_one_note_is_written_however_often_the_node_looks(
    federation: Federation, images: dict[str, Path]
) -> None:
    task = put(federation)
    for _ in range(4):
        federation.run_once("ttp", images=images)
    assert notes(federation, task) == ["000.waiting-data.json"]
    events = [entry.event for entry in entries(federation.home("ttp").audit)]
    assert events.count("data-waited-for") == 1


@pytest.mark.parametrize(
    ("more", "user", "reason"),
    [
        ("", "mallory", "mallory may not compute on the collection link-2026"),
        ("sealed = true", "alice", "kept sealed"),
    ],
)
def test_who_may_not_compute_on_it_is_refused_before_it_is_complete_and_after(
    federation: Federation, images: dict[str, Path], tmp_path: Path, more: str, user: str, reason: str
) -> None:
    text = federation.home("ttp").party.read_text()
    write_party(federation, text=text.replace('researchers = ["alice"]', more) if more else text)
    for send_first in (False, True):
        if send_first:
            send_both(federation, tmp_path)
        task = put(federation, user)
        federation.run_once("ttp", images=images)
        result = outcome(task, tmp_path)
        assert result.state == "rejected"
        assert reason in (result.reason or "")
        assert "ask the party" in (result.saved.result.hint or "")
    assert runs(tmp_path) == 0


def test_the_policy_has_to_grant_a_collection_as_any_data_source(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    send_both(federation, tmp_path)
    task = put(federation)
    federation.run_once("ttp", images=images, rule={"data": []})
    assert "does not allow the data source link-2026" in (outcome(task, tmp_path).reason or "")


def test_a_party_toml_makes_no_other_site_a_party(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    federation.home("umcu").party.write_text(federation.home("ttp").party.read_text())
    task = federation.client().put("demo/link:1", ["umcu"], data=["link-2026"])
    federation.run_once("umcu", images=images)
    assert "no data source named link-2026" in (outcome(task, tmp_path).reason or "")


def test_a_name_in_both_files_is_a_mistake(federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="link-2026 is a data source in node"):
        federation.node("ttp", data={"link-2026": {"kind": "file", "path": tmp_path}})


def test_the_data_comes_first_then_a_person_decides(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    """… about something that can run."""
    rule = {"approval": "manual"}
    task = put(federation)
    federation.run_once("ttp", images=images, rule=rule)
    assert task.status()[0].state == "waiting_data"
    time.sleep(1.1)
    send_both(federation, tmp_path)
    federation.run_once("ttp", images=images, rule=rule)
    assert task.status()[0].state == "awaiting_approval"
    assert [waiting.what for waiting in decisions.pending(federation.registry("ttp"))] == ["approval"]
    assert users(federation) == []
    decisions.approve(federation.registry("ttp"), task.id, by="Jansen")
    federation.run_once("ttp", images=images, rule=rule)
    assert outcome(task, tmp_path).json("linked.json") == BOTH


def test_approved_and_meanwhile_incomplete_again_it_waits_again(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    """The data was purged between a person's yes and the start."""
    rule = {"approval": "manual"}
    task = put(federation)
    send_both(federation, tmp_path)
    federation.run_once("ttp", images=images, rule=rule)
    decisions.approve(federation.registry("ttp"), task.id, by="Jansen")
    purge_all(federation)
    time.sleep(1.1)
    federation.run_once("ttp", images=images, rule=rule)
    assert task.status()[0].state == "waiting_data"
    assert (runs(tmp_path), users(federation)) == (0, [])
    send_both(federation, tmp_path)
    federation.run_once("ttp", images=images, rule=rule)
    assert outcome(task, tmp_path).json("linked.json") == BOTH


def test_canceled_or_expired_while_it_waits(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    canceled, expired = put(federation), put(federation, expires="2s")
    federation.run_once("ttp", images=images)
    assert {one.status()[0].state for one in (canceled, expired)} == {"waiting_data"}
    canceled.cancel()
    time.sleep(2.1)
    federation.run_once("ttp", images=images)
    assert (outcome(canceled, tmp_path).state, outcome(expired, tmp_path).state) == ("canceled", "expired")
    assert list(federation.store.list("queue/")) == []


def test_two_tasks_share_it_and_it_goes_after_use_with_a_signed_record(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    write_party(federation, 'purge = "used"')
    send_both(federation, tmp_path)
    first = put(federation)
    federation.run_once("ttp", images=images)
    assert outcome(first, tmp_path).state == "completed"
    late = put(federation)
    federation.run_once("ttp", images=images)
    assert late.status()[0].state == "waiting_data"
    receive(federation)
    assert [path for path in federation.home("ttp").collections.rglob("*") if path.is_file()] == []
    (record,) = records(federation.registry("alice"), "ttp", "link-2026")
    assert (record.why, record.task, len(record.files)) == ("used", first.id, 2)

    send_both(federation, tmp_path)
    federation.run_once("ttp", images=images)
    assert outcome(late, tmp_path).json("linked.json") == BOTH


def test_a_run_that_failed_uses_nothing_up(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    write_party(federation, 'purge = "used"')
    send_both(federation, tmp_path)
    task = put(federation, image="demo/bad:1")
    federation.run_once("ttp", images=images)
    receive(federation)
    assert outcome(task, tmp_path).state == "failed"
    assert (len(state(federation).files), users(federation)) == (2, [])


def test_while_a_run_uses_it_nothing_comes_and_nothing_goes(federation: Federation, tmp_path: Path) -> None:
    """Two runs at once; what one of them completes is purged only when the other is done, too."""
    write_party(federation, 'purge = "used"')
    send_both(federation, tmp_path)
    wait = f"\nimport time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.02)\n"
    images = {
        "demo/link:1": image_folder(tmp_path / "quick", LINK),
        "demo/slow:1": image_folder(tmp_path / "slow", LINK.replace("folder =", f"{wait}folder =", 1)),
    }
    slow = put(federation, image="demo/slow:1")
    stop = threading.Event()
    thread = threading.Thread(target=federation.node("ttp", images=images).watch, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: users(federation) == [slow.id])
        quick = put(federation)
        (result,) = quick.results(timeout=20, folder=tmp_path / "quick-out")
        assert result.state == "completed"
        receive(federation)
        assert len([path for path in federation.home("ttp").collections.rglob("*") if path.is_file()]) == 2
        (tmp_path / "go").touch()
        (result,) = slow.results(timeout=20, folder=tmp_path / "slow-out")
        assert result.json("linked.json") == BOTH
        wait_for(lambda: users(federation) == [])
    finally:
        stop.set()
        thread.join()
    receive(federation)
    assert [path for path in federation.home("ttp").collections.rglob("*") if path.is_file()] == []


def test_files_can_be_read_by_the_containers_user_and_by_nobody_else_on_the_machine(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    send_both(federation, tmp_path)
    task = put(federation)
    federation.run_once("ttp", images=images)
    assert outcome(task, tmp_path).ok
    above = federation.home("ttp").collections
    assert stat.S_IMODE(above.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in above.rglob("*")}
    assert modes == {0o755, 0o644}


@pytest.mark.parametrize("k", range(1, 40, 2))
def test_an_outage_at_any_moment_loses_nothing_and_holds_nothing(
    federation: Federation, images: dict[str, Path], tmp_path: Path, k: int
) -> None:
    write_party(federation, 'purge = "used"')
    task = put(federation)
    federation.run_once("ttp", images=images)
    send_both(federation, tmp_path)
    assert isinstance(federation.store, MemoryStore)
    calm, federation.store.before = federation.store.before, FailOnce(k)
    with contextlib.suppress(PtmError, OSError):
        federation.run_once("ttp", images=images)
    federation.store.before = calm
    for _ in range(2):
        federation.run_once("ttp", images=images)
    assert outcome(task, tmp_path).json("linked.json") == BOTH
    assert users(federation) == []
    assert not state(federation).complete
    assert runs(tmp_path) == 1


@pytest.mark.parametrize(
    ("place", "name"),
    [(run, "begin_use"), (run, "take_on"), (run, "execute"), (run, "spool_result"), (run, "deliver")],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_between_any_two_steps(
    federation: Federation,
    images: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    after: bool,
) -> None:
    write_party(federation, 'purge = "used"')
    send_both(federation, tmp_path)
    task = put(federation)
    with monkeypatch.context() as dying:
        crash_at(dying, federation.node("ttp", images=images), place, name, after=after)
    receive(federation)
    federation.run_once("ttp", images=images)
    receive(federation)
    result = outcome(task, tmp_path)
    assert users(federation) == []
    if result.ok:
        assert result.json("linked.json") == BOTH
        assert state(federation).files == ()
    else:  # the process runner's run is gone with its node
        assert (result.reason or "").startswith("the node restarted in the middle")
        assert len(state(federation).files) == 2


def test_a_crash_between_the_hold_and_the_runs_record_holds_for_no_longer_than_the_next_start(
    federation: Federation, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """… also if the task is taken back before that."""
    send_both(federation, tmp_path)
    task = put(federation)
    with monkeypatch.context() as dying:
        crash_at(dying, federation.node("ttp", images=images), run, "take_on", after=False)
    assert users(federation) == [task.id]
    for info in list(federation.store.list("queue/ttp/")):
        federation.store.delete(info.key)
    federation.run_once("ttp", images=images)
    assert users(federation) == []


def test_the_stewards_page_shows_what_is_missing_and_has_nothing_to_decide(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = put(federation)
    federation.run_once("ttp", images=images)
    registry = federation.registry("ttp")
    pages = Pages(registry, Beats(registry))
    frame = {"base": "", "path": f"/run/{task.id}", "session": Session()}
    page = pages.run(task.id, **frame)
    assert r"umcu has not sent incomes\.csv" in page
    assert "<form id" not in page
    assert task.id in pages.overview(**frame)
    with pytest.raises(UsageError, match="waits for this"):
        decisions.approve(registry, task.id, by="Jansen")
