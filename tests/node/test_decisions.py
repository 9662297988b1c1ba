"""People decide: runs wait for approval and outputs for release, whatever crashes, restarts or is attacked meanwhile."""

from __future__ import annotations

import json
import shutil
import stat
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ptm import layout
from ptm.audit import entries
from ptm.client import TaskHandle
from ptm.errors import DigestMismatch, PtmError, UsageError
from ptm.model import Result
from ptm.node import decisions
from ptm.notes import ImageApproval, Note
from ptm.registry import Registry, now_utc
from ptm.store.memory import MemoryStore
from tests.federation import COUNT, FailOnce, Federation, image_folder, outcome, second_home, wait_for

pytestmark = pytest.mark.slow

APPROVAL = {"approval": "manual"}
RELEASE = {"release": "manual"}
BOTH = APPROVAL | RELEASE
SECRET_NAME = """#!/bin/sh
echo 'a,b\n3,4' > "$PTM_OUTPUT_DIR/jan-jansen-has-it.csv"
echo '{"n": 40}' > "$PTM_OUTPUT_DIR/total.json"
echo said something
"""


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", mallory="researcher", maastro="site")


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """`count` leaves a mark each time it runs; `two` gives two files; `bad` fails."""
    marks = tmp_path / "marks"
    marks.mkdir()
    return {
        "demo/count:1": image_folder(tmp_path / "count", COUNT + f"\nimport tempfile; tempfile.mkstemp(dir={str(marks)!r})\n"),
        "demo/two:1": image_folder(tmp_path / "two", SECRET_NAME),
        "demo/bad:1": image_folder(tmp_path / "bad", "#!/bin/sh\necho patient 12 is ill\nexit 7\n"),
    }


def runs(folder: Path) -> int:
    return len(list((folder / "marks").iterdir()))


def site(federation: Federation) -> Registry:
    return federation.registry("maastro")


def state(task: TaskHandle) -> str:
    return task.status()[0].state


def events(federation: Federation) -> list[str]:
    return [entry.event for entry in entries(federation.home("maastro").audit)]


# approval


def test_a_run_waits_until_it_is_approved_and_the_researcher_sees_it(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = federation.client().put("demo/count:1", ["maastro"], inputs={"p.json": b'{"min_age": 60}'}, purpose="Count them")
    federation.run_once("maastro", images=images, rule=APPROVAL)
    assert state(task) == "awaiting_approval"
    assert runs(tmp_path) == 0
    (waiting,) = decisions.pending(site(federation))
    assert (waiting.what, waiting.task.purpose, waiting.asked.image_digest is not None) == ("approval", "Count them", True)
    (shown,) = decisions.write_inputs(site(federation), waiting, tmp_path / "look")
    assert shown.read_bytes() == b'{"min_age": 60}'

    decisions.approve(site(federation), task.id, by="Jansen", reason="study 12")
    assert decisions.pending(site(federation)) == []
    federation.run_once("maastro", images=images, rule=APPROVAL)

    result = outcome(task, tmp_path)
    assert (result.state, runs(tmp_path)) == ("completed", 1)
    (decision,) = result.saved.result.decided_by
    assert (decision.what, decision.by, decision.reason) == ("approved", "Jansen", "study 12")
    assert result.saved.result.policy_sha256 is not None
    assert "approved" in events(federation)


def test_a_denied_run_never_starts_and_the_researcher_reads_why(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    decisions.deny(site(federation), task.id, by="Jansen", reason="no ethics approval")
    federation.run_once("maastro", images=images, rule=APPROVAL)
    result = outcome(task, tmp_path)
    assert (result.state, result.reason) == ("rejected", "denied by the site (Jansen): no ethics approval")
    assert [d.what for d in result.saved.result.decided_by] == ["denied"]
    assert runs(tmp_path) == 0


def test_nobody_approves_in_time(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    rule = APPROVAL | {"approval_timeout": "1s"}
    federation.run_once("maastro", images=images, rule=rule)
    assert state(task) == "awaiting_approval"
    time.sleep(2)
    federation.run_once("maastro", images=images, rule=rule)
    result = outcome(task, tmp_path)
    assert (result.state, result.reason) == ("rejected", "nobody at the site approved it in 1 s")
    assert runs(tmp_path) == 0


def test_canceled_or_expired_while_it_waits_for_approval(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    canceled = federation.client().put("demo/count:1", ["maastro"])
    expired = federation.client().put("demo/count:1", ["maastro"], expires="3s")
    federation.run_once("maastro", images=images, rule=APPROVAL)
    assert (state(canceled), state(expired)) == ("awaiting_approval", "awaiting_approval")
    canceled.cancel()
    time.sleep(3)
    federation.run_once("maastro", images=images, rule=APPROVAL)
    assert (outcome(canceled, tmp_path).state, outcome(expired, tmp_path).state) == ("canceled", "expired")
    assert runs(tmp_path) == 0


def test_first_use_asks_once_for_each_image(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    rule = {"approval": "first-use"}
    first, beside = (federation.client().put("demo/count:1", ["maastro"]) for _ in range(2))
    federation.run_once("maastro", images=images, rule=rule)
    decisions.approve(site(federation), first.id, by="Jansen")
    federation.run_once("maastro", images=images, rule=rule)
    second = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=rule)
    assert [outcome(task, tmp_path).state for task in (first, beside, second)] == ["completed"] * 3
    assert decisions.pending(site(federation)) == []
    assert [d.by for d in outcome(second, tmp_path).saved.result.decided_by] == ["Jansen"]

    (images["demo/count:1"] / "added").write_text("another image under the same tag")
    third = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=rule)
    assert state(third) == "awaiting_approval"


def test_the_image_was_exchanged_after_its_approval(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    decisions.approve(site(federation), task.id, by="Jansen")
    (images["demo/count:1"] / "evil").write_text("x")
    federation.run_once("maastro", images=images, rule=APPROVAL)
    result = outcome(task, tmp_path)
    assert result.state == "rejected"
    assert "is not the one that was approved" in (result.reason or "")
    assert runs(tmp_path) == 0


def test_mallory_cannot_approve_with_her_own_key_nor_with_another_tasks_note(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    """Whoever can write to the bucket forges a note, and copies a real one from another run."""
    good, wanted = (federation.client().put("demo/count:1", ["maastro"]) for _ in range(2))
    federation.run_once("maastro", images=images, rule=APPROVAL)
    decisions.approve(site(federation), good.id, by="Jansen")
    record = site(federation).record("maastro", good.id)
    real = next(note for note in record.notes if note.what == "approved")
    forged = real.model_copy(
        update={"task": wanted.id, "task_sha256": site(federation).record("maastro", wanted.id).notes[0].task_sha256}
    )
    federation.store.create(layout.note("maastro", wanted.id, 1, "approved"), federation.registry("mallory").sign(forged))
    body = federation.store.get(layout.note("maastro", good.id, 1, "approved"), 10**6)
    federation.store.create(layout.note("maastro", wanted.id, 2, "approved"), body)
    federation.run_once("maastro", images=images, rule=APPROVAL)
    assert runs(tmp_path) == 1
    assert state(wanted) == "awaiting_approval"


def test_mallory_cannot_approve_an_image_with_her_own_key(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    rule = {"approval": "first-use"}
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=rule)
    digest = site(federation).record("maastro", task.id).notes[0].image_digest
    assert digest is not None
    mallory = federation.registry("mallory")
    forged = ImageApproval(
        registry=mallory.id, site="maastro", image="demo/count:1", image_digest=digest, by="Jansen", created=now_utc()
    )
    federation.store.create(layout.approval("maastro", digest), mallory.sign(forged))
    federation.run_once("maastro", images=images, rule=rule)
    assert state(task) == "awaiting_approval"
    assert runs(tmp_path) == 0


def test_the_bucket_hides_a_denial_and_the_run_still_does_not_start(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    decisions.deny(site(federation), task.id, by="Jansen", reason="no")
    federation.store.delete(layout.note("maastro", task.id, 1, "denied"))
    federation.run_once("maastro", images=images, rule=APPROVAL)
    assert state(task) == "awaiting_approval"
    assert runs(tmp_path) == 0


# what people may do


def test_the_same_answer_twice_is_fine_and_another_is_too_late(federation: Federation, images: dict[str, Path]) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    first = decisions.approve(site(federation), task.id, by="Jansen")
    assert decisions.approve(site(federation), task.id, by="de Vries") == first
    with pytest.raises(UsageError, match="was approved already, by Jansen"):
        decisions.deny(site(federation), task.id, by="de Vries", reason="late")


@pytest.mark.parametrize("what", ["approve", "deny", "release", "withhold"])
def test_a_decision_about_what_does_not_wait_is_a_clear_error(federation: Federation, images: dict[str, Path], what: str) -> None:
    act: Callable[..., object] = getattr(decisions, what)
    task = federation.client().put("demo/count:1", ["maastro"])
    with pytest.raises(UsageError, match=r"no run of task .* waits"):
        act(site(federation), task.id, by="Jansen", reason="x")
    federation.run_once("maastro", images=images)
    with pytest.raises(UsageError, match="has a result already"):
        act(site(federation), task.id, by="Jansen", reason="x")


def test_a_release_is_not_an_approval(federation: Federation, images: dict[str, Path]) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    with pytest.raises(UsageError, match="waits"):
        decisions.release(site(federation), task.id, by="Jansen")


@pytest.mark.parametrize("by", ["", "x" * 300, "bell\a"])
def test_a_decision_needs_a_name(federation: Federation, images: dict[str, Path], by: str) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    with pytest.raises(UsageError, match="not well-formed"):
        decisions.approve(site(federation), task.id, by=by)


def test_nothing_is_decided_if_something_else_waits_than_was_shown(federation: Federation, images: dict[str, Path]) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    with pytest.raises(DigestMismatch, match="not what was looked at"):
        decisions.approve(site(federation), task.id, by="Jansen", expect="sha256:" + "0" * 64)
    assert len(decisions.pending(site(federation))) == 1


def test_two_people_decide_in_the_same_moment_and_the_no_counts(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    store = federation.store
    assert isinstance(store, MemoryStore)
    other = site(federation)

    def meanwhile(verb: str, key: str) -> None:
        if verb == "create" and key.endswith("approved.json"):
            store.before = lambda verb, key: None
            decisions.deny(other, task.id, by="de Vries", reason="stop")

    store.before = meanwhile
    with pytest.raises(PtmError, match="denied in the same moment by de Vries"):
        decisions.approve(site(federation), task.id, by="Jansen")
    federation.run_once("maastro", images=images, rule=APPROVAL)
    assert outcome(task, tmp_path).state == "rejected"
    assert runs(tmp_path) == 0


# release


def held(federation: Federation, images: dict[str, Path], image: str = "demo/two:1", **rule: Any) -> TaskHandle:
    task = federation.client().put(image, ["maastro"])
    federation.run_once("maastro", images=images, rule=RELEASE | rule)
    assert state(task) == "awaiting_release"
    return task


def test_outputs_wait_in_clear_in_a_private_folder_and_nothing_of_them_is_in_the_bucket(
    federation: Federation, images: dict[str, Path]
) -> None:
    task = held(federation, images)
    (waiting,) = decisions.pending(site(federation))
    assert waiting.folder is not None and waiting.held is not None
    assert stat.S_IMODE(waiting.folder.stat().st_mode) == 0o700
    assert {path.name for path in waiting.folder.iterdir()} == {"jan-jansen-has-it.csv", "total.json", "log.txt"}
    assert (waiting.folder / "total.json").read_text().strip() == '{"n": 40}'
    stored = b"".join(federation.store.get(info.key, 10**7) for info in federation.store.list(layout.run("maastro", task.id)))
    assert b"jansen" not in stored
    assert all(file.sha256.encode() not in stored for file in waiting.held.files)
    assert not federation.registry("alice").exists(layout.result("maastro", task.id))


def test_released_outputs_arrive_as_they_were_looked_at(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = held(federation, images)
    decisions.release(site(federation), task.id, by="Jansen", reason="fine")
    federation.run_once("maastro", images={})
    result = outcome(task, tmp_path)
    assert (result.state, sorted(result.files)) == ("completed", ["jan-jansen-has-it.csv", "total.json"])
    assert "said something" in result.log
    assert [(d.what, d.by, d.reason) for d in result.saved.result.decided_by] == [("released", "Jansen", "fine")]
    assert not list(federation.home("maastro").spool.rglob("*.*"))


def test_a_single_file_is_withheld_and_not_even_its_name_leaves(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = held(federation, images)
    for _ in range(2):
        decisions.withhold(site(federation), task.id, by="Jansen", reason="a name", files=["jan-jansen-has-it.csv", "log.txt"])
    (waiting,) = decisions.pending(site(federation))
    assert sorted(waiting.withheld) == ["jan-jansen-has-it.csv", "log.txt"]
    decisions.release(site(federation), task.id, by="Jansen")
    federation.run_once("maastro", images=images, rule=RELEASE)
    result = outcome(task, tmp_path)
    assert (result.state, result.files, result.log) == ("completed", ("total.json",), "")
    assert [(d.what, d.files) for d in result.saved.result.decided_by] == [("withheld", 2), ("released", None)]
    stored = b"".join(federation.store.get(info.key, 10**7) for info in federation.store.list("sites/maastro/runs/"))
    assert b"jansen-has-it" not in stored


def test_hiding_the_note_of_a_withheld_file_does_not_let_it_out(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    """Whoever runs the bucket, with the researcher, deletes the note before the node sees it. The release repeats it."""
    task = held(federation, images)
    before = {info.key for info in federation.store.list(f"sites/maastro/runs/{task.id}/")}
    decisions.withhold(site(federation), task.id, by="Jansen", reason="a name", files=["jan-jansen-has-it.csv"])
    (note,) = {info.key for info in federation.store.list(f"sites/maastro/runs/{task.id}/")} - before
    decisions.release(site(federation), task.id, by="Jansen")
    federation.store.delete(note)
    federation.run_once("maastro", images=images, rule=RELEASE)
    result = outcome(task, tmp_path)
    assert (result.state, result.files) == ("completed", ("total.json",))


def test_a_withholding_that_the_node_has_seen_is_not_forgotten_when_its_note_is_hidden(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    """Hidden before the second person releases, who therefore cannot know of it."""
    task = held(federation, images)
    before = {info.key for info in federation.store.list(f"sites/maastro/runs/{task.id}/")}
    decisions.withhold(site(federation), task.id, by="Jansen", reason="a name", files=["jan-jansen-has-it.csv"])
    federation.run_once("maastro", images=images, rule=RELEASE)
    (note,) = {info.key for info in federation.store.list(f"sites/maastro/runs/{task.id}/")} - before
    federation.store.delete(note)
    decisions.release(site(federation), task.id, by="Pietersen")
    federation.run_once("maastro", images=images, rule=RELEASE)
    assert outcome(task, tmp_path).files == ("total.json",)


def test_a_file_that_is_not_held_cannot_be_withheld(federation: Federation, images: dict[str, Path]) -> None:
    task = held(federation, images)
    with pytest.raises(UsageError, match=r"no file named other\.csv is held"):
        decisions.withhold(site(federation), task.id, by="Jansen", reason="x", files=["other.csv"])


def test_withheld_as_a_whole_nothing_leaves(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = held(federation, images)
    decisions.withhold(site(federation), task.id, by="Jansen", reason="single patients")
    federation.run_once("maastro", images=images, rule=RELEASE)
    result = outcome(task, tmp_path)
    assert (result.state, result.reason) == ("rejected", "withheld by the site (Jansen): single patients")
    assert (result.files, result.log, result.exit_code) == ((), "", None)
    assert not list(federation.home("maastro").spool.rglob("*.*"))


def test_a_failed_runs_log_and_exit_code_wait_too(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    """An image that tells a secret by its log and its exit code."""
    task = held(federation, images, "demo/bad:1")
    (waiting,) = decisions.pending(site(federation))
    assert waiting.held is not None
    assert waiting.held.outcome == "failed: exit code 7"
    decisions.withhold(site(federation), task.id, by="Jansen", reason="no")
    federation.run_once("maastro", images=images, rule=RELEASE)
    raw = federation.store.get(layout.result("maastro", task.id), 10**6)
    assert (outcome(task, tmp_path).exit_code, b"exit code" in raw) == (None, False)


def test_a_failed_run_that_is_released_is_failed(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = held(federation, images, "demo/bad:1")
    decisions.release(site(federation), task.id, by="Jansen")
    federation.run_once("maastro", images=images, rule=RELEASE)
    result = outcome(task, tmp_path)
    assert (result.state, result.exit_code, result.log) == ("failed", 7, "patient 12 is ill\n")


@pytest.mark.parametrize("harm", ["change", "remove", "add", "link"])
def test_held_files_that_are_not_what_the_run_left_do_not_leave(
    federation: Federation, images: dict[str, Path], tmp_path: Path, harm: str
) -> None:
    task = held(federation, images)
    folder = federation.home("maastro").spool / task.id / "held"
    total = folder / "total.json"

    def spoil() -> None:
        if harm != "add":
            total.unlink()
        if harm == "change":
            total.write_text('{"n": 41}')
        if harm == "link":
            total.symlink_to("/etc/passwd")
        if harm == "add":
            (folder / "more.csv").write_text("x")

    spoil()
    with pytest.raises(DigestMismatch, match="not what the run left"):
        decisions.release(site(federation), task.id, by="Jansen")
    registry = federation.registry("maastro")
    elsewhere = Registry(second_home(federation, "maastro"), registry.profile, federation.store, registry.keys)
    decisions.release(elsewhere, task.id, by="Jansen")  # at another machine, which has no files to look at
    if harm == "add":
        federation.run_once("maastro", images=images, rule=RELEASE)
        assert sorted(outcome(task, tmp_path).files) == ["jan-jansen-has-it.csv", "total.json"]
        return
    with pytest.raises(PtmError, match="could not be finished"):
        federation.run_once("maastro", images=images, rule=RELEASE)
    assert federation.registry("alice").result_bytes("maastro", task.id) is None
    assert sum(1 for _ in (federation.home("maastro").spool / task.id / "held").iterdir()), "nothing is thrown away for it"


def test_nobody_releases_in_time(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = held(federation, images, release_timeout="1s")
    time.sleep(2)
    federation.run_once("maastro", images=images, rule=RELEASE)
    result = outcome(task, tmp_path)
    assert (result.state, result.reason, result.files) == ("rejected", "nobody at the site released it in 1 s", ())


def test_canceled_while_it_waits_for_release(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = held(federation, images)
    task.cancel()
    federation.run_once("maastro", images=images, rule=RELEASE)
    result = outcome(task, tmp_path)
    assert (result.state, result.files, result.log) == ("canceled", (), "")


def test_a_policy_that_changes_meanwhile_releases_nothing(federation: Federation, images: dict[str, Path]) -> None:
    task = held(federation, images)
    federation.run_once("maastro", images=images)
    federation.run_once("maastro", images=images, allow="")
    assert state(task) == "awaiting_release"


def test_expiry_does_not_take_what_is_held(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = federation.client().put("demo/two:1", ["maastro"], expires="4s")
    federation.run_once("maastro", images=images, rule=RELEASE)
    time.sleep(4)
    federation.run_once("maastro", images=images, rule=RELEASE)
    assert state(task) == "awaiting_release"
    decisions.release(site(federation), task.id, by="Jansen")
    federation.run_once("maastro", images=images, rule=RELEASE)
    assert outcome(task, tmp_path).state == "completed"


# automatic checks


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [({"min_cell": 10}, "a count below 10"), ({"names": [r".*\.json"]}, "not named as the site's policy wants it")],
)
def test_a_finding_fails_a_run_that_nobody_looks_at_and_tells_nothing_of_it(
    federation: Federation, images: dict[str, Path], tmp_path: Path, outputs: dict[str, object], reason: str
) -> None:
    task = federation.client().put("demo/two:1", ["maastro"])
    federation.run_once("maastro", images=images, rule={"outputs": outputs, "logs": False})
    result = outcome(task, tmp_path)
    assert (result.state, result.files, result.log) == ("failed", (), "")
    assert reason in (result.reason or "")
    assert "jansen" not in str(result.saved.result)
    assert "outputs-refused" in events(federation)


def test_a_finding_is_shown_to_the_steward_who_decides(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = held(federation, images, outputs={"min_cell": 10})
    (waiting,) = decisions.pending(site(federation))
    assert waiting.held is not None
    (finding,) = waiting.held.findings
    assert (finding.file, finding.rule) == ("jan-jansen-has-it.csv", "min_cell")
    decisions.release(site(federation), task.id, by="Jansen", reason="agreed")
    federation.run_once("maastro", images=images, rule=RELEASE)
    assert outcome(task, tmp_path).state == "completed"


def test_a_log_that_may_not_leave_does_not(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    for terms in ({"logs": False}, {"logs": False, **RELEASE}):
        task = federation.client().put("demo/two:1", ["maastro"])
        federation.run_once("maastro", images=images, rule=terms)
        if "release" in terms:
            decisions.release(site(federation), task.id, by="Jansen")
            federation.run_once("maastro", images=images, rule=terms)
        result = outcome(task, tmp_path)
        assert (result.state, result.log, len(result.files)) == ("completed", "", 2)


# budgets


def test_a_days_runs_are_counted_also_after_a_restart(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    rule = {"runs_per_day": 2}
    tasks = []
    for _ in range(3):
        tasks.append(federation.client().put("demo/count:1", ["maastro"], expires="1h"))
        federation.run_once("maastro", images=images, rule=rule)
    assert [outcome(task, tmp_path).state for task in tasks] == ["completed", "completed", "rejected"]
    assert runs(tmp_path) == 2


# crashes, restarts, several workers


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_outage_at_any_store_operation_starts_nothing_unasked_and_lets_nothing_out_unasked(
    federation: Federation, images: dict[str, Path], tmp_path: Path, when: str
) -> None:
    """For k = 1, 6, …: the k-th operation of the node's store fails (before it takes effect, or its reply is lost), and the
    node is started again; after each of its stops a person answers."""
    store = federation.store
    assert isinstance(store, MemoryStore)
    done = False
    for tasks, k in enumerate(range(1 if when == "before" else 3, 600, 5), 1):
        task = federation.client().put("demo/count:1", ["maastro"], inputs={"big": b"x" * 100_000})
        fault = FailOnce(k)
        run_until(federation, images, lambda task=task: state(task) == "awaiting_approval", when, fault)
        assert runs(tmp_path) == tasks - 1, k
        decisions.approve(site(federation), task.id, by="Jansen")
        run_until(federation, images, lambda task=task: state(task) == "awaiting_release", when, fault)
        assert runs(tmp_path) == tasks, k
        assert not site(federation).exists(layout.result("maastro", task.id))
        decisions.release(site(federation), task.id, by="Jansen")
        run_until(federation, images, lambda: list(store.list("queue/")) == [], when, fault)
        result = outcome(task, tmp_path)
        assert result.state == "completed", (k, result.reason)
        assert [d.what for d in result.saved.result.decided_by] == ["approved", "released"], k
        assert runs(tmp_path) == tasks, k
        if not fault.fired:
            done = True
            break
    assert done, "the node never got through without meeting the fault"


def test_an_outage_at_any_store_operation_of_a_person_leaves_one_decision(
    federation: Federation, images: dict[str, Path]
) -> None:
    store = federation.store
    assert isinstance(store, MemoryStore)
    for when in ("before", "after"):
        for k in range(1, 40):
            task = federation.client().put("demo/count:1", ["maastro"])
            federation.run_once("maastro", images=images, rule={"approval": "first-use"})
            registry, fault = site(federation), FailOnce(k)
            setattr(store, when, fault)
            try:
                decisions.approve(registry, task.id, by="Jansen")
            except PtmError:
                setattr(store, when, lambda verb, key: None)
                decisions.approve(registry, task.id, by="Jansen")
            setattr(store, when, lambda verb, key: None)
            answers = [note for note in registry.record("maastro", task.id).notes if note.by]
            assert len(answers) == 1, (when, k)
            for info in list(store.list("sites/maastro/approvals/")):
                store.delete(info.key)
            task.cancel()
            federation.run_once("maastro", images=images, rule={"approval": "first-use"})
            if not fault.fired:
                break
        else:
            pytest.fail("the decision never got through without meeting the fault")


def test_decisions_work_while_the_node_runs(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    stop = threading.Event()
    thread = threading.Thread(target=federation.node("maastro", images=images, rule=BOTH).watch, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: state(task) == "awaiting_approval")
        decisions.approve(site(federation), task.id, by="Jansen")
        wait_for(lambda: state(task) == "awaiting_release")
        decisions.release(site(federation), task.id, by="de Vries")
        wait_for(lambda: state(task) == "completed")
    finally:
        stop.set()
        thread.join()
    assert [d.by for d in outcome(task, tmp_path).saved.result.decided_by] == ["Jansen", "de Vries"]
    assert runs(tmp_path) == 1


def test_two_workers_ask_once_run_once_and_only_the_one_that_holds_the_files_lets_them_out(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    homes = {"w1": federation.home("maastro"), "w2": second_home(federation, "maastro")}
    for _ in range(2):
        for worker, home in homes.items():
            federation.run_once("maastro", images=images, rule=BOTH, home=home, worker=worker)
    asked = [note for note in site(federation).record("maastro", task.id).notes if note.what == "awaiting-approval"]
    assert len(asked) == 1
    decisions.approve(site(federation), task.id, by="Jansen")
    federation.run_once("maastro", images=images, rule=BOTH, home=homes["w2"], worker="w2")
    assert state(task) == "awaiting_release"
    federation.run_once("maastro", images=images, rule=BOTH, home=homes["w1"], worker="w1", lease_s=1)
    time.sleep(1.2)
    federation.run_once("maastro", images=images, rule=BOTH, home=homes["w1"], worker="w1", lease_s=1)
    assert (state(task), runs(tmp_path)) == ("awaiting_release", 1)
    decisions.release(site(federation), task.id, by="Jansen")
    federation.run_once("maastro", images=images, rule=BOTH, home=homes["w1"], worker="w1")
    assert not site(federation).exists(layout.result("maastro", task.id))
    federation.run_once("maastro", images=images, rule=BOTH, home=homes["w2"], worker="w2")
    result = outcome(task, tmp_path)
    assert (result.state, result.saved.result.worker, runs(tmp_path)) == ("completed", "w2", 1)


def test_the_worker_that_held_the_files_is_gone_for_good_and_a_person_ends_it(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    second = second_home(federation, "maastro")
    task = federation.client().put("demo/two:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=RELEASE, home=second, worker="w2")
    shutil.rmtree(second.path)
    decisions.withhold(site(federation), task.id, by="Jansen", reason="its disk is gone")
    node = federation.node("maastro", images=images, rule=RELEASE, worker="w1", lease_s=1)
    stop = threading.Event()
    thread = threading.Thread(target=node.watch, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: site(federation).exists(layout.result("maastro", task.id)))
    finally:
        stop.set()
        thread.join()
    assert outcome(task, tmp_path).reason == "withheld by the site (Jansen): its disk is gone"


def test_a_rival_does_not_end_as_expired_what_another_worker_runs(federation: Federation, images: dict[str, Path]) -> None:
    task = federation.client().put("demo/two:1", ["maastro"], expires="3s")
    second = second_home(federation, "maastro")
    federation.run_once("maastro", images=images, rule=RELEASE, home=second, worker="w2")
    time.sleep(3)
    federation.run_once("maastro", images=images, rule=RELEASE, worker="w1")
    assert state(task) == "awaiting_release"


def test_many_that_wait_do_not_keep_a_new_task_waiting(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    """More wait for a person than a node takes in hand at once."""
    for _ in range(70):
        federation.client().put("demo/two:1", ["maastro"])
    stop = threading.Event()
    node = federation.node("maastro", images=images, allow="demo/two:1", rule=APPROVAL, poll_s=0.2)
    thread = threading.Thread(target=node.watch, args=(stop,))
    thread.start()
    try:
        time.sleep(1)
        last = federation.client().put("demo/other:1", ["maastro"])
        wait_for(lambda: state(last) == "rejected")
    finally:
        stop.set()
        thread.join()


def test_a_poll_looks_only_at_what_waits_however_many_are_finished(federation: Federation, images: dict[str, Path]) -> None:
    store = federation.store
    assert isinstance(store, MemoryStore)
    for _ in range(5):
        federation.client().put("demo/two:1", ["maastro"])
    federation.run_once("maastro", images=images)
    task = federation.client().put("demo/two:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    touched: list[str] = []
    store.before = lambda verb, key: touched.append(key)
    federation.run_once("maastro", images=images, rule=APPROVAL)
    store.before = lambda verb, key: None
    assert {key.split("/")[3] for key in touched if key.startswith("sites/maastro/runs/")} == {task.id}


def test_notes_that_are_junk_are_ignored_and_a_decision_still_finds_a_place(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    for number in (1, 2, 998, 999):
        federation.store.put(layout.note("maastro", task.id, number, "approved"), b"{}")
        federation.store.put(layout.note("maastro", task.id, number, "denied"), b"junk")
    decisions.approve(site(federation), task.id, by="Jansen")
    federation.run_once("maastro", images=images, rule=APPROVAL)
    assert outcome(task, tmp_path).state == "completed"


def test_a_note_keeps_the_clock_of_its_question(federation: Federation, images: dict[str, Path]) -> None:
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images=images, rule=APPROVAL)
    raw = federation.store.get(layout.note("maastro", task.id, 0, "awaiting-approval"), 10**6)
    note = Note.model_validate_json(json.dumps(json.loads(raw)["signed"]))
    assert timedelta(0) <= now_utc() - note.created < timedelta(minutes=1)
    assert Result.TYPE != Note.TYPE


def run_until(
    federation: Federation, images: dict[str, Path], done: Callable[[], bool], when: str, fault: Callable[[str, str], None]
) -> None:
    """Start the node, with the fault in its store, again and again, as an init system would."""
    for _ in range(20):
        setattr(federation.store, when, fault)
        try:
            federation.run_once("maastro", images=images, rule=BOTH)
        except PtmError:
            time.sleep(0.05)
        finally:
            setattr(federation.store, when, lambda verb, key: None)
        if done():
            return
    pytest.fail("the node did not get there")
