"""What a researcher, or whoever can write to the queue, may try against a site's node: nothing of it may stop the node, hold up
others' tasks, or leave a task without an answer."""

from __future__ import annotations

import hashlib
import json
import logging
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from ptm import envelope, layout, registry
from ptm.client import RunResult, TaskHandle
from ptm.errors import AccessDenied, PtmError
from ptm.model import Cancel, Task
from ptm.registry import new_nonce, now_utc
from ptm.store.memory import MemoryStore
from tests.federation import COUNT, Federation, image_folder

pytestmark = pytest.mark.slow


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return (
        Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", mallory="researcher", maastro="site", umcu="site")
    )


@pytest.fixture
def count(tmp_path: Path) -> dict[str, Path]:
    return {"demo/count:1": image_folder(tmp_path / "count", COUNT)}


def outcome(task: TaskHandle, folder: Path) -> RunResult:
    (result,) = task.results(timeout=0, folder=folder)
    return result


def sign_anything(federation: Federation, user: str, signed: dict[str, Any]) -> bytes:
    """A document that ptm would never write, with a good signature of this member's."""
    keys = federation.registry(user).keys
    sig = keys.signing.sign(rfc8785.dumps(signed)).hex()
    keyid = hashlib.sha256(bytes.fromhex(keys.sign_key)).hexdigest()
    return json.dumps({"signed": signed, "signatures": [{"keyid": keyid, "sig": sig}]}).encode()


def task_of(federation: Federation, user: str, **changes: Any) -> dict[str, Any]:
    """The signed part of a well-formed task of this user's, with changes."""
    created = changes.pop("created", now_utc())
    mine, nonce = federation.registry(user), new_nonce()
    task = Task(
        registry=mine.id,
        id=envelope.task_id(max(created, datetime(1970, 1, 1, tzinfo=UTC)), mine.id, user, nonce),
        user=user,
        nonce=nonce,
        created=created,
        expires=created + timedelta(days=1),
        image="demo/count:1",
        sites=("maastro",),
        recipients=(user,),
    )
    return task.model_dump(mode="json", exclude_none=True) | changes


def put(federation: Federation, user: str, body: bytes, task: str) -> TaskHandle:
    federation.store.create(layout.task(user, task), body)
    federation.store.create(layout.queue("maastro", user, task), body)
    return federation.client(user).task(task)


def test_a_reason_longer_than_a_result_may_hold_is_cut_and_the_task_is_answered(
    federation: Federation, count: dict[str, Path], tmp_path: Path
) -> None:
    """64 long names of data sources: the reason that lists them would not fit, and the task would be tried for ever."""
    names = [f"{n:02d}" + "x" * 61 for n in range(64)]
    task = federation.client("mallory").put("demo/count:1", ["maastro"], data=names)
    federation.run_once("maastro", images=count)
    result = outcome(task, tmp_path / "out")
    assert result.state == "rejected"
    assert (result.reason or "").startswith("the site has no data source named 00x")


def test_a_task_for_a_thousand_other_sites_is_answered(federation: Federation, count: dict[str, Path]) -> None:
    body = task_of(federation, "mallory", sites=[f"s{n:03d}" + "y" * 50 for n in range(900)])
    put(federation, "mallory", sign_anything(federation, "mallory", body), body["id"])
    federation.run_once("maastro", images=count)
    assert list(federation.store.list("queue/")) == []
    assert federation.registry("maastro").exists(layout.result("maastro", body["id"]))


def test_control_characters_in_a_signed_tasks_field_names_reach_no_log_and_the_task_is_refused(
    federation: Federation, count: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    body = task_of(federation, "mallory", **{"\x1b]0;owned\x07\nERROR forged line": 1})
    handle = put(federation, "mallory", sign_anything(federation, "mallory", body), body["id"])
    with caplog.at_level(logging.INFO):
        federation.run_once("maastro", images=count)
    assert not any(c in record.getMessage() for record in caplog.records for c in "\x1b\x07\n")
    assert handle.registry.refusals("maastro", body["id"], handle.registry.roster())
    assert list(federation.store.list("queue/")) == []


def test_a_task_from_before_1970_is_refused(federation: Federation, count: dict[str, Path]) -> None:
    """Its time has no place in a task's id; that must not be an unexpected fault, tried again for ever."""
    body = task_of(federation, "mallory", created=datetime(1950, 1, 1, tzinfo=UTC))
    put(federation, "mallory", sign_anything(federation, "mallory", body), body["id"])
    federation.run_once("maastro", images=count)
    assert list(federation.store.list("queue/")) == []


def test_control_characters_in_a_working_directory_are_refused(federation: Federation) -> None:
    with pytest.raises(PtmError, match="workdir"):
        federation.client().put("demo/count:1", ["maastro"], workdir="/\x9b2Jhome")


def test_a_flood_of_odd_keys_under_one_users_name_hides_nobody_elses_tasks(
    federation: Federation, count: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd keys are ignored, and so they stay for ever: they must not fill what a poll looks at."""
    monkeypatch.setattr(registry, "MAX_QUEUE", 40)
    federation.admit(aaron="researcher")
    for n in range(100):
        federation.store.put(f"queue/maastro/aaron/{n:03d}", b"junk")
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=count)
    assert outcome(task, tmp_path / "out").state == "completed"


def test_a_cancel_that_cannot_be_read_stops_only_itself(federation: Federation, count: dict[str, Path], tmp_path: Path) -> None:
    """An object that its writer made unreadable (another account's file of mode 000, a bucket's SSE-C) denies access to all."""
    mallorys = federation.client("mallory").put("demo/count:1", ["maastro"])
    key = layout.cancel("maastro", "mallory", mallorys.id)
    federation.store.put(key, b"junk")
    alices = federation.client().put("demo/count:1", ["maastro"])
    store = federation.store
    assert isinstance(store, MemoryStore)

    def deny(verb: str, touched: str) -> None:
        if touched == key and verb in ("get", "delete"):
            raise AccessDenied(f"{key}: permission denied")

    store.before = deny
    federation.run_once("maastro", images=count)
    store.before = lambda verb, touched: None
    assert outcome(alices, tmp_path / "out").state == "completed"


def test_mallory_cannot_use_up_the_notes_of_alices_task(federation: Federation, count: dict[str, Path]) -> None:
    """By many queue entries of her own under alice's task id, so that alice would never hear of a real refusal."""
    task = federation.client().put("demo/count:1", ["maastro"])
    alices = layout.queue("maastro", "alice", task.id)
    body = federation.store.get(alices, 10**6)
    federation.store.delete(alices)
    for n in range(registry.MAX_REFUSALS + 2):
        federation.store.create(layout.queue("maastro", "mallory", task.id), b"junk %d" % n)
        federation.run_once("maastro", images=count)
    federation.store.put(alices, body.replace(b"demo/count:1", b"demo/evil:1"))
    federation.run_once("maastro", images=count)
    assert task.status()[0].state == "rejected"


def test_a_huge_object_in_a_results_place_leaves_no_task_in_hand_for_ever(federation: Federation, count: dict[str, Path]) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    store = federation.store
    assert isinstance(store, MemoryStore)

    def plant(verb: str, key: str) -> None:
        if verb == "create" and key.endswith("result.json"):
            store.before = lambda verb, key: None
            store.put(key, b"x" * (2**20 + 1))

    store.before = plant
    federation.run_once("maastro", images=count)
    assert list(store.list("queue/")) == []
    assert task.id


def test_what_a_run_leaves_in_the_spool_is_for_the_nodes_account_only(federation: Federation, tmp_path: Path) -> None:
    """Also when a person made the home, with the mode that their umask gave."""
    home = federation.home("maastro")
    home.path.chmod(0o755)
    seen = tmp_path / "modes"
    script = f'#!/bin/sh\nstat -c %a {home.spool} {home.spool}/"$PTM_TASK" > {seen}\n'
    federation.client().put("demo/look:1", ["maastro"])
    federation.run_once("maastro", images={"demo/look:1": image_folder(tmp_path / "look", script)})
    assert seen.read_text().split() == ["700", "700"]
    assert stat.S_IMODE(home.spool.stat().st_mode) == 0o700


def test_a_cancel_in_whose_place_something_else_lies_is_not_taken_for_ours(federation: Federation) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.store.put(layout.cancel("maastro", "alice", task.id), b"junk")
    assert "maastro" in task.cancel().failed
    federation.store.delete(layout.cancel("maastro", "alice", task.id))
    assert task.cancel().queued == ("maastro",)
    assert task.cancel().queued == ("maastro",)
    assert Cancel.TYPE.encode() in federation.store.get(layout.cancel("maastro", "alice", task.id), 10**6)


def test_one_users_many_tasks_do_not_keep_anothers_from_being_looked_at(federation: Federation, tmp_path: Path) -> None:
    """One run at a time, and mallory's never ends: alice's task has to be answered all the same."""
    slow = image_folder(tmp_path / "slow", f"#!/bin/sh\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.05; done\n")
    client = federation.client("mallory")
    for _ in range(90):
        client.put("demo/slow:1", ["maastro"])
    task = federation.client().put("demo/other:1", ["maastro"])
    stop = threading.Event()
    node = federation.node("maastro", images={"demo/slow:1": slow}, allow="demo/slow:1", parallel=1)
    thread = threading.Thread(target=node.watch, args=(stop,))
    thread.start()
    try:
        (result,) = task.results(timeout=20, folder=tmp_path / "out")
        assert result.state == "rejected"
    finally:
        stop.set()
        (tmp_path / "go").touch()
        thread.join()
