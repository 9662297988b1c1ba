"""One task's way through a node, with real keys, signatures and processes: what ends how, and what an outage at any
moment does not change."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ptm import envelope, layout
from ptm.client import RunResult
from ptm.errors import AccessDenied, NotForUs, PtmError, Unreachable, VerificationError
from ptm.model import Cancel
from ptm.node.claims import Claims
from ptm.registry import new_nonce, now_utc
from ptm.store.memory import MemoryStore
from tests.federation import COUNT, FailOnce, Federation, image_folder, second_home, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return (
        Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", mallory="researcher", maastro="site", umcu="site")
    )


@pytest.fixture
def count(tmp_path: Path) -> dict[str, Path]:
    """An image that counts, and leaves a mark each time it runs."""
    marks = tmp_path / "marks"
    marks.mkdir()
    script = COUNT + f"\nimport tempfile; tempfile.mkstemp(dir={str(marks)!r})\n"
    return {"demo/count:1": image_folder(tmp_path / "count", script)}


def runs(folder: Path) -> int:
    return len(list((folder / "marks").iterdir()))


def only(results: object) -> RunResult:
    (result,) = results  # type: ignore[misc]
    return result  # type: ignore[no-any-return]


def test_a_task_travels_and_comes_back(federation: Federation, count: dict[str, Path], tmp_path: Path) -> None:
    cohort = tmp_path / "cohort.csv"
    cohort.write_text("id\n1\n2\n3\n")
    task = federation.client().put(
        "demo/count:1", ["maastro"], inputs={"params.json": b"{}", "large.bin": b"x" * 300_000}, data=["cohort"], purpose="Count"
    )
    federation.run_once("maastro", images=count, data={"cohort": {"kind": "file", "path": cohort}})

    result = only(task.results(timeout=0, folder=tmp_path / "out"))

    assert (result.state, result.exit_code, result.reason) == ("completed", 0, None)
    assert result.json("count.json")["rows"] == 3
    assert result.json("count.json")["inputs"]["large.bin"] == "x" * 300_000
    assert "counted 3 rows" in result.log
    assert list(federation.store.list("queue/")) == []
    assert not any((federation.home("maastro").spool).rglob("*.*"))


@pytest.mark.parametrize(
    ("settings", "put", "state", "reason"),
    [
        ({"allow": ""}, {}, "rejected", "does not allow the image demo/count:1"),
        ({"allow": "demo/coun"}, {}, "rejected", "does not allow"),
        ({}, {"data": ["genomes"]}, "rejected", "no data source named genomes"),
        ({}, {"time_limit_s": 999_999}, "rejected", "gives at most"),
        ({"images": {}}, {}, "failed", "demo/count:1"),
    ],
)
def test_what_may_not_run_ends_with_a_signed_reason(
    federation: Federation,
    count: dict[str, Path],
    tmp_path: Path,
    settings: dict[str, object],
    put: dict[str, object],
    state: str,
    reason: str,
) -> None:
    task = federation.client().put("demo/count:1", ["maastro"], **put)  # type: ignore[arg-type]
    federation.run_once("maastro", **({"images": count} | settings))
    result = only(task.results(timeout=0, folder=tmp_path / "out"))
    assert result.state == state
    assert reason in (result.reason or "")
    assert runs(tmp_path) == 0
    assert list(federation.store.list("queue/")) == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/bin/sh\nexit 3\n", "exit code 3"),
        ('#!/bin/sh\nln -s /etc/passwd "$PTM_OUTPUT_DIR/leak"\n', "leak"),
        ('#!/bin/sh\necho x > "$PTM_OUTPUT_DIR/result.json"\n', "result.json"),
        ('#!/bin/sh\nmkdir "$PTM_OUTPUT_DIR/sub"\n', "sub"),
    ],
)
def test_a_run_that_goes_wrong_fails_with_a_reason_and_leaks_nothing(
    federation: Federation, tmp_path: Path, script: str, reason: str
) -> None:
    task = federation.client().put("demo/bad:1", ["maastro"])
    federation.run_once("maastro", images={"demo/bad:1": image_folder(tmp_path / "bad", script)})
    result = only(task.results(timeout=0, folder=tmp_path / "out"))
    assert result.state == "failed"
    assert reason in (result.reason or "")
    assert result.files == ()


def test_expired_before_it_was_seen(federation: Federation, count: dict[str, Path], tmp_path: Path) -> None:
    task = federation.client().put("demo/count:1", ["maastro"], expires="1s")
    time.sleep(1.1)
    federation.run_once("maastro", images=count)
    assert only(task.results(timeout=0, folder=tmp_path / "out")).state == "expired"
    assert runs(tmp_path) == 0


def test_canceled_before_it_started(federation: Federation, count: dict[str, Path], tmp_path: Path) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    task.cancel("wrong cohort")
    federation.run_once("maastro", images=count)
    assert only(task.results(timeout=0, folder=tmp_path / "out")).state == "canceled"
    assert runs(tmp_path) == 0
    assert list(federation.store.list("queue/")) == []


def test_canceled_while_it_runs(federation: Federation, tmp_path: Path) -> None:
    image = image_folder(tmp_path / "slow", f"#!/bin/sh\ntouch {tmp_path}/begun; sleep 60\n")
    task = federation.client().put("demo/slow:1", ["maastro"])
    stop = threading.Event()
    node = federation.node("maastro", images={"demo/slow:1": image})
    thread = threading.Thread(target=node.watch, args=(stop,))
    thread.start()
    try:
        wait_for((tmp_path / "begun").exists)
        task.cancel()
        assert only(task.results(timeout=20, folder=tmp_path / "out")).state == "canceled"
    finally:
        stop.set()
        thread.join()


def test_an_outage_of_one_look_ends_no_run_of_a_node_that_looks_once(federation: Federation, tmp_path: Path) -> None:
    """A process does not outlive its node, so a node that gave up at once would have killed the run."""
    image = image_folder(
        tmp_path / "slow", f"#!/bin/sh\ntouch {tmp_path}/begun; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done\n"
    )
    task = federation.client().put("demo/slow:1", ["maastro"])
    store = federation.store
    assert isinstance(store, MemoryStore)

    def away(verb: str, key: str) -> None:
        if verb == "list" and key == "queue/maastro/" and (tmp_path / "begun").exists() and not (tmp_path / "go").exists():
            (tmp_path / "go").touch()
            raise Unreachable("the network went away")

    store.before = away
    federation.run_once("maastro", images={"demo/slow:1": image})

    assert (tmp_path / "go").exists()
    assert only(task.results(timeout=0, folder=tmp_path / "out")).state == "completed"


def test_mallorys_cancel_does_not_stop_alices_task(federation: Federation, count: dict[str, Path], tmp_path: Path) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    mallory = federation.registry("mallory")
    cancel = Cancel(registry=mallory.id, task=task.id, user="alice", created=now_utc())
    federation.store.create(layout.cancel("maastro", "alice", task.id), mallory.sign(cancel))
    federation.run_once("maastro", images=count)
    assert only(task.results(timeout=0, folder=tmp_path / "out")).state == "completed"


def test_mallorys_own_cancel_under_alices_id_stops_nothing(federation: Federation, tmp_path: Path) -> None:
    """Well signed, in mallory's own part of the queue, while alice's run is going on."""
    image = image_folder(
        tmp_path / "slow", f"#!/bin/sh\ntouch {tmp_path}/begun; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done\n"
    )
    task = federation.client().put("demo/slow:1", ["maastro"])
    stop = threading.Event()
    thread = threading.Thread(target=federation.node("maastro", images={"demo/slow:1": image}).watch, args=(stop,))
    thread.start()
    try:
        wait_for((tmp_path / "begun").exists)
        mallory = federation.registry("mallory")
        mallory.cancel("maastro", Cancel(registry=mallory.id, task=task.id, user="mallory", created=now_utc()))
        wait_for(lambda: list(federation.store.list("queue/maastro/mallory/")) == [])
        (tmp_path / "go").touch()
        assert only(task.results(timeout=20, folder=tmp_path / "out")).state == "completed"
    finally:
        stop.set()
        thread.join()


def test_a_tampered_queue_entry_is_refused_aloud_and_the_task_can_be_put_back(
    federation: Federation, count: dict[str, Path], tmp_path: Path
) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    key = layout.queue("maastro", "alice", task.id)
    federation.store.put(key, federation.store.get(key, 10**6).replace(b"demo/count:1", b"demo/evil:1"))
    federation.run_once("maastro", images=count)
    assert task.status()[0].state == "rejected"
    with pytest.raises(NotForUs, match="signature does not match"):
        list(task.results(timeout=0, folder=tmp_path / "out"))

    task.resume()
    federation.run_once("maastro", images=count)

    assert only(task.results(timeout=0, folder=tmp_path / "out")).state == "completed"


def test_mallory_cannot_use_up_alices_run(federation: Federation, count: dict[str, Path], tmp_path: Path) -> None:
    """A task that mallory signed herself, under alice's id, in her own part of the queue."""
    task = federation.client().put("demo/count:1", ["maastro"])
    mallory = federation.registry("mallory")
    forged = task.task.model_copy(update={"user": "mallory", "recipients": ("mallory",)})
    federation.store.create(layout.queue("maastro", "mallory", task.id), mallory.sign(forged))
    federation.run_once("maastro", images=count)
    assert only(task.results(timeout=0, folder=tmp_path / "out")).state == "completed"
    assert runs(tmp_path) == 1


def test_mallory_cannot_have_alices_inputs_decrypted(federation: Federation, tmp_path: Path) -> None:
    """Alice's ciphertexts, copied into a task of mallory's own whose image gives back what it gets."""
    secret = federation.client().put("demo/count:1", ["maastro"], inputs={"secret.txt": b"patient list"}).task
    mallory = federation.registry("mallory")
    nonce, created = new_nonce(), now_utc()
    theft = secret.model_copy(
        update={
            "id": envelope.task_id(created, mallory.id, "mallory", nonce),
            "user": "mallory",
            "nonce": nonce,
            "created": created,
            "recipients": ("mallory",),
        }
    )
    body = mallory.sign(theft)
    for key in (layout.task("mallory", theft.id), layout.queue("maastro", "mallory", theft.id)):
        federation.store.create(key, body)
    federation.run_once("maastro", images={"demo/count:1": image_folder(tmp_path / "count")})
    result = only(federation.client("mallory").task(theft.id).results(timeout=0, folder=tmp_path / "out"))
    assert result.state == "failed"
    assert "sealed for another task" in (result.reason or "")


def test_a_task_put_back_by_the_bucket_is_not_run_again(federation: Federation, count: dict[str, Path], tmp_path: Path) -> None:
    """Whoever runs the bucket deletes result and claim and puts the old queue entry back."""
    task = federation.client().put("demo/count:1", ["maastro"])
    body = federation.store.get(layout.queue("maastro", "alice", task.id), 10**6)
    federation.run_once("maastro", images=count)
    first = federation.store.get(layout.result("maastro", task.id), 10**6)
    for info in list(federation.store.list(layout.run("maastro", task.id))):
        federation.store.delete(info.key)
    federation.store.put(layout.queue("maastro", "alice", task.id), body)
    federation.run_once("maastro", images=count)
    assert runs(tmp_path) == 1
    assert list(federation.store.list("queue/")) == []
    assert not federation.registry("alice").exists(layout.result("maastro", task.id)) or (
        federation.store.get(layout.result("maastro", task.id), 10**6) == first
    )


def test_a_key_that_ptm_does_not_make_is_ignored(federation: Federation, count: dict[str, Path]) -> None:
    federation.store.put("queue/maastro/alice/../x".replace("../", ""), b"junk")
    federation.store.put("queue/maastro/ALICE/01KAMV3ZR5F2J7Q8XG4M1W9ABC.json", b"junk")
    federation.run_once("maastro", images=count)
    assert len(list(federation.store.list("queue/"))) == 2


def test_a_site_that_was_revoked_does_not_start(federation: Federation, count: dict[str, Path]) -> None:
    federation.revoke("maastro")
    with pytest.raises(VerificationError, match="revoked"):
        federation.run_once("maastro", images=count)


def test_a_researcher_admitted_a_moment_ago_is_not_refused(
    federation: Federation, count: dict[str, Path], tmp_path: Path
) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=federation.node("maastro", images=count).watch, args=(stop,))
    thread.start()
    try:
        time.sleep(0.3)
        federation.admit(bob="researcher")
        task = federation.client("bob").put("demo/count:1", ["maastro"])
        assert only(task.results(timeout=20, folder=tmp_path / "out")).state == "completed"
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_outage_at_any_store_operation_loses_nothing_and_runs_nothing_twice(
    federation: Federation, count: dict[str, Path], tmp_path: Path, when: str
) -> None:
    """For k = 1, 2, …: the k-th operation of the node's store fails (before it takes effect, or its reply is lost),
    and the node is started again."""
    store = federation.store
    assert isinstance(store, MemoryStore)
    done = False
    for tasks, k in enumerate(range(1, 200, 2), 1):
        task = federation.client().put("demo/count:1", ["maastro"], inputs={"big": b"x" * 100_000})
        fault = FailOnce(k)
        setattr(store, when, fault)
        for _ in range(20):
            try:
                federation.run_once("maastro", images=count)
                break
            except PtmError:
                time.sleep(0.05)
        setattr(store, when, lambda verb, key: None)
        result = only(task.results(timeout=0, folder=tmp_path / f"out{k}"))
        assert result.state == "completed", (k, result.reason)
        assert runs(tmp_path) == tasks, k
        if not fault.fired:
            done = True
            break
    assert done, "the node never got through without meeting the fault"


def test_an_outage_in_the_middle_does_not_end_a_watching_node(
    federation: Federation, count: dict[str, Path], tmp_path: Path
) -> None:
    store = federation.store
    assert isinstance(store, MemoryStore)
    stop = threading.Event()
    thread = threading.Thread(target=federation.node("maastro", images=count).watch, args=(stop,))
    thread.start()
    try:
        time.sleep(0.3)
        calm = store.before

        def down(verb: str, key: str) -> None:
            if threading.current_thread() is not threading.main_thread():
                raise Unreachable("no route to host")

        store.before = down
        time.sleep(0.5)
        store.before = calm
        task = federation.client().put("demo/count:1", ["maastro"])
        assert only(task.results(timeout=20, folder=tmp_path / "out")).state == "completed"
    finally:
        stop.set()
        thread.join()


def test_a_denied_result_is_kept_and_delivered_later(federation: Federation, count: dict[str, Path], tmp_path: Path) -> None:
    store = federation.store
    assert isinstance(store, MemoryStore)
    task = federation.client().put("demo/count:1", ["maastro"])

    def deny(verb: str, key: str) -> None:
        if key.endswith("result.json") and verb == "create":
            raise AccessDenied("denied")

    store.before = deny
    with pytest.raises(PtmError, match="could not be finished"):
        federation.run_once("maastro", images=count)
    store.before = lambda verb, key: None
    federation.run_once("maastro", images={})  # the image is not even needed any more
    assert only(task.results(timeout=0, folder=tmp_path / "out")).state == "completed"
    assert runs(tmp_path) == 1


def test_several_tasks_run_side_by_side(federation: Federation, tmp_path: Path) -> None:
    """Each run waits until the other has begun: one after the other, neither could ever end."""
    script = (
        f"#!/bin/sh\ntouch {tmp_path}/begun.$PTM_TASK\nwhile [ $(ls {tmp_path}/begun.* | wc -l) -lt 2 ]; do sleep 0.05; done\n"
    )
    image = image_folder(tmp_path / "pair", script)
    tasks = [federation.client().put("demo/pair:1", ["maastro"]) for _ in range(2)]
    federation.run_once("maastro", images={"demo/pair:1": image}, parallel=2)
    assert [only(t.results(timeout=0, folder=tmp_path / t.id)).state for t in tasks] == ["completed"] * 2


def test_two_workers_of_a_site_share_its_tasks_without_doing_any_twice(
    federation: Federation, count: dict[str, Path], tmp_path: Path
) -> None:
    tasks = [federation.client().put("demo/count:1", ["maastro"]) for _ in range(6)]
    stop = threading.Event()
    homes = [federation.home("maastro"), second_home(federation, "maastro")]
    nodes = [federation.node("maastro", images=count, home=home, worker=f"w{n}") for n, home in enumerate(homes)]
    threads = [threading.Thread(target=node.watch, args=(stop,)) for node in nodes]
    for thread in threads:
        thread.start()
    try:
        states = [only(task.results(timeout=30, folder=tmp_path / task.id)).state for task in tasks]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert states == ["completed"] * 6
    assert runs(tmp_path) == 6


def test_a_rival_takes_over_only_after_a_whole_lease_without_a_beat(federation: Federation) -> None:
    """On the rival's own monotonic clock; no time of another machine is looked at."""
    registry = federation.registry("maastro")
    task = federation.client().put("demo/count:1", ["maastro"])
    now = [1000.0]
    holder = Claims(registry, "w1", 60.0)
    rival = Claims(registry, "w2", 60.0, clock=lambda: now[0])
    assert holder.take(task.id, "0" * 64)
    assert holder.take(task.id, "0" * 64), "its own claim, met again after a restart"
    assert not rival.take(task.id, "0" * 64)
    now[0] += 59
    assert not rival.take(task.id, "0" * 64)
    now[0] += 2
    assert rival.take(task.id, "0" * 64)
    assert registry.claims("maastro", task.id) == [1, 2]
    assert not holder.take(task.id, "0" * 64)
