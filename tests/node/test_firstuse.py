"""A first-use approval is taken back: every worker asks again, nobody can put the old approval back, and it is all on record."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ptm import layout
from ptm.audit import entries
from ptm.client import TaskHandle
from ptm.errors import PtmError, Unreachable, UsageError
from ptm.node import decisions
from ptm.node.firstuse import given_approvals, unapprove, withdrawals
from ptm.notes import ImageWithdrawal
from ptm.registry import Registry, now_utc
from ptm.store.memory import MemoryStore
from tests.federation import COUNT, FailOnce, Federation, image_folder, second_home

pytestmark = pytest.mark.slow

RULE = {"approval": "first-use"}


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", mallory="researcher", maastro="site")


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    return {"demo/count:1": image_folder(tmp_path / "count", COUNT)}


@pytest.fixture
def digest(federation: Federation, images: dict[str, Path]) -> str:
    """The image, approved on its first use and used."""
    task = put(federation)
    federation.run_once("maastro", images=images, rule=RULE)
    decisions.approve(site(federation), task.id, by="Jansen", reason="seen the code")
    federation.run_once("maastro", images=images, rule=RULE)
    assert state(task) == "completed"
    found = site(federation).record("maastro", task.id).notes[0].image_digest
    assert found is not None
    return found


def put(federation: Federation) -> TaskHandle:
    return federation.client().put("demo/count:1", ["maastro"])


def site(federation: Federation) -> Registry:
    return federation.registry("maastro")


def state(task: TaskHandle) -> str:
    return task.status()[0].state


def test_an_approval_taken_back_is_asked_for_again_at_every_worker_at_once(
    federation: Federation, images: dict[str, Path], digest: str
) -> None:
    second = second_home(federation, "maastro")
    unapprove(site(federation), f"demo/count@{digest}", by="de Vries", reason="a flaw was found")
    task = put(federation)
    federation.run_once("maastro", images=images, rule=RULE, home=second, worker="w2")
    federation.run_once("maastro", images=images, rule=RULE)
    assert state(task) == "awaiting_approval"
    (said,) = [entry.facts for entry in entries(second.audit) if entry.event == "image-unapproved"]
    assert (said["by"], said["reason"], said["image_digest"]) == ("de Vries", "a flaw was found", digest)


def test_a_worker_that_runs_all_the_time_sees_it_at_its_next_look(
    federation: Federation, images: dict[str, Path], digest: str
) -> None:
    import threading

    stop = threading.Event()
    node = federation.node("maastro", images=images, rule=RULE)
    thread = threading.Thread(target=node.watch, args=(stop,))
    thread.start()
    try:
        before = put(federation)
        reaches(before, "completed")
        unapprove(site(federation), digest, by="de Vries", reason="a flaw")
        after = put(federation)
        reaches(after, "awaiting_approval")
    finally:
        stop.set()
        thread.join()


def reaches(task: TaskHandle, wanted: str) -> None:
    deadline = time.monotonic() + 20
    while state(task) != wanted:
        assert time.monotonic() < deadline, state(task)
        time.sleep(0.05)


def test_it_can_be_approved_anew_and_taken_back_anew(federation: Federation, images: dict[str, Path], digest: str) -> None:
    for round_, by in enumerate(("first", "second"), 1):
        unapprove(site(federation), digest, by=by, reason="a flaw")
        task = put(federation)
        federation.run_once("maastro", images=images, rule=RULE)
        assert state(task) == "awaiting_approval"
        decisions.approve(site(federation), task.id, by="Jansen", reason=f"mended {round_}")
        federation.run_once("maastro", images=images, rule=RULE)
        again = put(federation)
        federation.run_once("maastro", images=images, rule=RULE)
        assert (state(task), state(again)) == ("completed", "completed")
    shown = [
        (given.approval and given.approval.reason, given.withdrawal and given.withdrawal.by)
        for given in given_approvals(site(federation))
    ]
    assert shown[0] == ("mended 2", None)
    assert sorted(str(by) for _, by in shown[1:]) == ["first", "second"]


def test_the_bucket_puts_the_old_approval_back_and_it_counts_for_nothing(
    federation: Federation, images: dict[str, Path], digest: str
) -> None:
    key = layout.approval("maastro", digest)
    genuine = federation.store.get(key, 10**6)
    unapprove(site(federation), digest, by="de Vries", reason="a flaw")
    federation.store.create(key, genuine)
    task = put(federation)
    federation.run_once("maastro", images=images, rule=RULE)
    assert state(task) == "awaiting_approval"
    assert [given.approval for given in given_approvals(site(federation))] == [None]
    decisions.approve(site(federation), task.id, by="Jansen", reason="mended")
    approval = site(federation).image_approval(digest)
    assert approval is not None and approval.reason == "mended"


def test_mallory_cannot_take_an_approval_back(federation: Federation, images: dict[str, Path], digest: str) -> None:
    given = site(federation).given_approval(digest)
    assert given is not None
    mallory = federation.registry("mallory")
    forged = ImageWithdrawal(
        registry=mallory.id,
        site="maastro",
        image="demo/count:1",
        image_digest=digest,
        approval_sha256=given[1],
        approved_by="Jansen",
        approved=now_utc(),
        by="Jansen",
        created=now_utc(),
    )
    key = layout.withdrawal("maastro", digest, given[1])
    federation.store.create(key, mallory.sign(forged))
    task = put(federation)
    federation.run_once("maastro", images=images, rule=RULE)
    assert state(task) == "completed"
    with pytest.raises(PtmError, match="something else lies in its place") as caught:
        unapprove(site(federation), digest, by="de Vries", reason="a flaw")
    assert key in str(caught.value.hint)


def test_taking_it_back_twice_is_no_error_and_the_first_word_stands(federation: Federation, digest: str) -> None:
    first = unapprove(site(federation), digest, by="de Vries", reason="a flaw")
    assert unapprove(site(federation), digest, by="Jansen", reason="another") == first
    assert [taken.by for taken in withdrawals(site(federation), digest)] == ["de Vries"]


def test_a_dry_run_writes_nothing(federation: Federation, digest: str) -> None:
    before = list(federation.store.list(""))
    said = unapprove(site(federation), digest, by="de Vries", reason="a flaw", dry_run=True)
    assert (said.approved_by, said.by) == ("Jansen", "de Vries")
    assert list(federation.store.list("")) == before


@pytest.mark.parametrize("image", ["demo/count:1", "sha256:abc", "", "sha256:" + "0" * 64, "demo/other@sha256:" + "0" * 64])
def test_what_is_not_approved_cannot_be_taken_back(federation: Federation, digest: str, image: str) -> None:
    with pytest.raises(UsageError) as caught:
        unapprove(site(federation), image, by="de Vries", reason="a flaw")
    assert "ptm node approvals" in str(caught.value.hint)
    assert site(federation).image_approval(digest) is not None


def test_a_withdrawal_needs_a_name(federation: Federation, digest: str) -> None:
    with pytest.raises(UsageError, match="not well-formed"):
        unapprove(site(federation), digest, by="", reason="a flaw")


@pytest.mark.parametrize("k", range(1, 8))
def test_an_outage_at_any_store_operation_leaves_one_withdrawal(federation: Federation, digest: str, k: int) -> None:
    store = federation.store
    assert isinstance(store, MemoryStore)
    here = site(federation)
    here.roster()
    store.before = FailOnce(k)
    for _ in range(2):
        try:
            unapprove(here, digest, by="de Vries", reason="a flaw")
        except Unreachable:
            continue
    assert here.image_approval(digest) is None
    assert len(withdrawals(here, digest)) == 1
    assert not here.exists(layout.approval("maastro", digest))
