"""Outputs that go to a trusted party past the researcher: where the policy allows it, looked at as any outputs, and exactly one
transfer of a run, whatever crashes and however many workers a site has."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from ptm import layout
from ptm.audit import entries
from ptm.client import TaskHandle
from ptm.errors import NotAllowed, NotForUs, PtmError, UsageError
from ptm.model import Deliver, Result
from ptm.node import decisions, delivery, run, spool
from ptm.node.verify import AuthenticTask, verify
from ptm.registry import now_utc
from ptm.store.memory import MemoryStore
from tests.federation import FailOnce, Federation, image_folder, outcome, second_home
from tests.node.parties import crash_at, receive, state, write_party

pytestmark = pytest.mark.slow

SECRET = b"pseudonym,diagnosis\n5f1c,E11\n"
IMAGE = f"""#!/bin/sh
printf '{SECRET.decode().encode("unicode_escape").decode()}' > "$PTM_OUTPUT_DIR/diagnoses.csv"
echo patient 12 is ill
"""
RULE = {"deliver": ["ttp"], "outputs": {"names": [".*"]}}


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation(MemoryStore(), tmp_path).create()
    made.admit(alice="researcher", maastro="site", umcu="site", ttp="party", other="party")
    write_party(made)
    return made


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    return {
        "demo/pseudonymise:1": image_folder(tmp_path / "pseudonymise", IMAGE),
        "demo/nothing:1": image_folder(tmp_path / "nothing", "#!/bin/sh\ntrue\n"),
        "demo/bad:1": image_folder(tmp_path / "bad", IMAGE + "exit 3\n"),
    }


def put(federation: Federation, image: str = "demo/pseudonymise:1", to: str = "ttp", **more: object) -> TaskHandle:
    return federation.client().put(image, ["maastro"], deliver=(to, "link-2026"), **more)  # type: ignore[arg-type]


def inbox(federation: Federation) -> list[str]:
    return [info.key for info in federation.store.list("inbox/")]


def received(federation: Federation) -> list[bytes]:
    receive(federation)
    return [path.read_bytes() for path in federation.home("ttp").collections.rglob("*") if path.is_file()]


def events(federation: Federation) -> list[str]:
    return [entry.event for entry in entries(federation.home("maastro").audit)]


def test_outputs_go_to_the_party_and_the_researcher_gets_sizes_digests_and_the_receipt(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    task = put(federation, purpose="Link them")
    federation.run_once("maastro", images=images, rule=RULE)

    result = outcome(task, tmp_path)
    assert (result.state, result.files, result.log) == ("completed", (), "")
    assert sorted(path.name for path in result.folder.iterdir()) == ["result.json", "task.json"]
    delivered = result.delivered
    assert delivered is not None
    assert (delivered.to, delivered.collection, [file.name for file in delivered.files]) == (
        "ttp",
        "link-2026",
        ["diagnoses.csv"],
    )
    assert task.receipt(result) is None

    assert received(federation) == [SECRET]
    receipt = task.receipt(result)
    assert receipt is not None
    assert (receipt.state, receipt.files, receipt.sender) == ("accepted", delivered.files, "maastro")
    assert inbox(federation) == []
    assert list(federation.home("maastro").spool.iterdir()) == []
    assert [name for name in events(federation) if name in ("outputs-delivered", "result-delivered")] == [
        "outputs-delivered",
        "result-delivered",
    ]


def test_what_the_party_says_no_to_the_researcher_reads(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    write_party(federation, text=federation.home("ttp").party.read_text().replace("diagnoses", "somethingelse"))
    task = put(federation)
    federation.run_once("maastro", images=images, rule=RULE)
    assert received(federation) == []
    receipt = task.receipt(outcome(task, tmp_path))
    assert receipt is not None
    assert receipt.state == "refused"
    assert "diagnoses.csv" in (receipt.reason or "")


# who may


@pytest.mark.parametrize(
    ("rule", "deliver", "reason"),
    [
        ({}, ("ttp", "link-2026"), "does not allow delivering to ttp"),
        ({"deliver": ["other"], "outputs": {"names": [".*"]}}, ("ttp", "link-2026"), "does not allow delivering to ttp"),
        (RULE, None, "does not allow outputs that come to the researcher"),
    ],
)
def test_the_policy_says_to_which_party_and_a_rule_for_a_party_gives_the_researcher_nothing(
    federation: Federation,
    images: dict[str, Path],
    tmp_path: Path,
    rule: dict[str, object],
    deliver: tuple[str, str] | None,
    reason: str,
) -> None:
    """The last is a researcher who leaves the delivery out, to have the rows themselves."""
    task = federation.client().put("demo/pseudonymise:1", ["maastro"], deliver=deliver)
    federation.run_once("maastro", images=images, rule=rule)
    result = outcome(task, tmp_path)
    assert (result.state, result.files, result.delivered) == ("rejected", (), None)
    assert reason in (result.reason or "")
    assert "policy.toml" in (result.saved.result.hint or "")
    assert inbox(federation) == []


def test_only_to_a_party_that_is_a_member(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="umcu is a site"):
        put(federation, to="umcu")
    with pytest.raises(UsageError, match="nobody: not a member"):
        put(federation, to="nobody")
    task = put(federation)
    federation.revoke("ttp")
    federation.run_once("maastro", images=images, rule=RULE)
    assert outcome(task, tmp_path).state == "rejected"


def test_a_task_by_another_client_that_delivers_to_a_site_is_refused_at_the_node(federation: Federation) -> None:
    task = put(federation).task.model_copy(update={"deliver": Deliver(to="umcu", collection="link-2026")})
    with pytest.raises(NotAllowed, match="umcu is a site"):
        verify(AuthenticTask(task, "0" * 64), federation.registry("maastro").roster(), "maastro", now_utc())


# what leaves


def test_the_log_stays_unless_the_rule_says_otherwise(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = put(federation)
    federation.run_once("maastro", images=images, rule=RULE | {"logs": True})
    assert "patient 12" in outcome(task, tmp_path).log


def test_a_run_that_failed_or_left_nothing_delivers_nothing(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    bad, nothing = put(federation, "demo/bad:1"), put(federation, "demo/nothing:1")
    federation.run_once("maastro", images=images, rule=RULE)
    assert outcome(bad, tmp_path).reason == "exit code 3"
    assert outcome(nothing, tmp_path).reason == "the run left no file to deliver to ttp/link-2026"
    assert {outcome(task, tmp_path).state for task in (bad, nothing)} == {"failed"}
    assert inbox(federation) == []


def test_checks_are_as_for_any_outputs(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    task = put(federation)
    federation.run_once("maastro", images=images, rule=RULE | {"outputs": {"names": [r"incomes\.csv"]}})
    assert outcome(task, tmp_path).state == "failed"
    assert inbox(federation) == []


@pytest.mark.parametrize("released", [True, False])
def test_a_steward_sees_where_they_go_and_decides(
    federation: Federation, images: dict[str, Path], tmp_path: Path, released: bool
) -> None:
    rule = RULE | {"release": "manual"}
    task = put(federation)
    federation.run_once("maastro", images=images, rule=rule)
    (waiting,) = decisions.pending(federation.registry("maastro"))
    assert (waiting.what, waiting.outputs_to) == ("release", "ttp/link-2026")
    assert inbox(federation) == []
    decide = decisions.release if released else decisions.withhold
    decide(federation.registry("maastro"), task.id, by="Jansen", reason="looked")
    federation.run_once("maastro", images=images, rule=rule)
    result = outcome(task, tmp_path)
    assert (result.state, result.delivered is not None) == (("completed", True) if released else ("rejected", False))
    assert received(federation) == ([SECRET] if released else [])


def test_held_files_that_were_changed_are_not_sent(federation: Federation, images: dict[str, Path], tmp_path: Path) -> None:
    rule = RULE | {"release": "manual"}
    task = put(federation)
    federation.run_once("maastro", images=images, rule=rule)
    decisions.release(federation.registry("maastro"), task.id, by="Jansen")
    held = spool.RunFolder(federation.home("maastro"), task.id).held / "diagnoses.csv"
    held.chmod(0o600)
    held.write_text("names\nJan Jansen\n")
    with contextlib.suppress(PtmError):
        federation.run_once("maastro", images=images, rule=rule)
    assert inbox(federation) == []
    assert task.status()[0].state != "completed"


# once, and only once


def test_of_two_workers_one_transfer_is_announced_and_the_other_is_withdrawn(
    federation: Federation, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have run it, and come with their results at the same time: the claim is an economy, not a safety."""
    second = second_home(federation, "maastro")
    task = put(federation)
    with monkeypatch.context() as dying:
        crash_at(dying, federation.node("maastro", images=images, rule=RULE), delivery, "upload", after=True)
    assert len(inbox(federation)) == 1
    for info in list(federation.store.list(layout.run("maastro", task.id) + "claim.")):
        federation.store.delete(info.key)
    federation.run_once("maastro", images=images, rule=RULE, home=second, worker="maastro-2")
    federation.run_once("maastro", images=images, rule=RULE)

    result = outcome(task, tmp_path)
    assert result.saved.result.worker == "maastro-2"
    assert result.delivered is not None
    assert [key.split("/")[3] for key in inbox(federation) if key.endswith("manifest.json")] == [result.delivered.transfer]
    assert {key.split("/")[3] for key in inbox(federation)} == {result.delivered.transfer}
    assert received(federation) == [SECRET]
    receipt = task.receipt(result)
    assert receipt is not None
    assert receipt.state == "accepted"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (delivery.send, "prepare"),
        (spool, "_record"),
        (run, "deliver"),
        (delivery.send, "upload"),
        (spool, "_commit"),
        (delivery.send, "announce"),
        (spool, "end_use"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("party_first", [False, True])
def test_a_crash_between_any_two_steps_sends_it_once(
    federation: Federation,
    images: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    after: bool,
    party_first: bool,
) -> None:
    """… also if the party has taken what is there before the node is back."""
    rule = RULE | {"release": "manual"}  # so that what was run is still there after the crash
    task = put(federation)
    federation.run_once("maastro", images=images, rule=rule)
    decisions.release(federation.registry("maastro"), task.id, by="Jansen")
    with monkeypatch.context() as dying:
        crash_at(dying, federation.node("maastro", images=images, rule=rule), place, name, after=after)
    if party_first:
        receive(federation)
    for _ in range(2):
        federation.run_once("maastro", images=images, rule=rule)
        receive(federation)
    result = outcome(task, tmp_path)
    assert result.state == "completed"
    assert received(federation) == [SECRET]
    assert inbox(federation) == []
    assert len(state(federation).files) == 1
    receipt = task.receipt(result)
    assert receipt is not None
    assert receipt.state == "accepted"
    assert list(federation.store.list("queue/")) == []


@pytest.mark.parametrize("k", range(1, 45, 3))
def test_an_outage_at_any_moment_sends_it_once(federation: Federation, images: dict[str, Path], tmp_path: Path, k: int) -> None:
    task = put(federation)
    assert isinstance(federation.store, MemoryStore)
    calm, federation.store.before = federation.store.before, FailOnce(k)
    with contextlib.suppress(PtmError):
        federation.run_once("maastro", images=images, rule=RULE)
    federation.store.before = calm
    federation.run_once("maastro", images=images, rule=RULE)
    result = outcome(task, tmp_path)
    assert result.state == "completed"
    assert received(federation) == [SECRET]
    assert inbox(federation) == []


@pytest.mark.parametrize(("place", "name", "after"), [(spool, "_commit", False), (delivery.send, "upload", True)])
def test_a_party_that_was_revoked_before_the_result_was_out_gets_nothing_and_the_researcher_learns_it(
    federation: Federation,
    images: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    after: bool,
) -> None:
    task = put(federation)
    with monkeypatch.context() as dying:
        crash_at(dying, federation.node("maastro", images=images, rule=RULE), place, name, after=after)
    federation.revoke("ttp")
    federation.run_once("maastro", images=images, rule=RULE)
    result = outcome(task, tmp_path)
    assert (result.state, result.delivered) == ("failed", None)
    assert "ttp" in (result.reason or "")
    assert inbox(federation) == []
    assert "delivery-given-up" in events(federation)


def test_a_party_that_was_revoked_between_the_result_and_the_announcement_gets_nothing(
    federation: Federation, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result stands; that nobody took the files is to be seen from the receipt that is not there."""
    task = put(federation)
    with monkeypatch.context() as dying:
        crash_at(dying, federation.node("maastro", images=images, rule=RULE), delivery.send, "announce", after=False)
    federation.revoke("ttp")
    federation.run_once("maastro", images=images, rule=RULE)
    assert inbox(federation) == []
    assert list(federation.store.list("queue/")) == []
    result = outcome(task, tmp_path)
    assert result.delivered is not None
    with pytest.raises(NotAllowed):
        federation.client().task(task.id).receipt(result)


@pytest.mark.parametrize(
    ("asked", "changed"),
    [
        (("ttp", "link-2026"), {"to": "other"}),
        (("ttp", "link-2026"), {"collection": "another"}),
        (None, {}),
    ],
)
def test_a_site_that_delivers_elsewhere_than_asked_is_not_believed(
    federation: Federation, images: dict[str, Path], tmp_path: Path, asked: tuple[str, str] | None, changed: dict[str, str]
) -> None:
    honest = put(federation)
    federation.run_once("maastro", images=images, rule=RULE)
    registry = federation.registry("maastro")
    result = registry.read_own(layout.result("maastro", honest.id), Result)
    assert result.delivered is not None
    task = federation.client().put("demo/pseudonymise:1", ["maastro"], deliver=asked)
    _, digest = federation.registry("alice").own_task(task.id)
    forged = result.model_copy(
        update={"task": task.id, "task_sha256": digest, "delivered": result.delivered.model_copy(update=changed)}
    )
    registry.commit(registry.sign(forged), task.id)
    with pytest.raises(NotForUs, match="delivered the outputs to"):
        outcome(task, tmp_path)


def test_a_site_that_sends_the_researcher_what_was_for_the_party_is_not_believed(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    plain = federation.client().put("demo/pseudonymise:1", ["maastro"])
    federation.run_once("maastro", images=images)
    registry = federation.registry("maastro")
    result = registry.read_own(layout.result("maastro", plain.id), Result)
    task = put(federation)
    _, digest = federation.registry("alice").own_task(task.id)
    registry.commit(registry.sign(result.model_copy(update={"task": task.id, "task_sha256": digest})), task.id)
    with pytest.raises(NotForUs, match="sent outputs that were to be delivered to ttp"):
        outcome(task, tmp_path)


def test_an_answer_to_something_else_under_the_transfers_name_hides_no_acceptance(
    federation: Federation, images: dict[str, Path], tmp_path: Path
) -> None:
    """Somebody who can write to the bucket puts junk where the manifest was; the party refuses that, on record."""
    task = put(federation)
    federation.run_once("maastro", images=images, rule=RULE)
    receive(federation)
    result = outcome(task, tmp_path)
    assert result.delivered is not None
    key = layout.transfer_manifest("ttp", "maastro", result.delivered.transfer)
    federation.store.put(key, b"{}")
    receive(federation)
    receipt = task.receipt(result)
    assert receipt is not None
    assert receipt.state == "accepted"
