"""Keys: what is built can be taken apart again, no two things share a key, and any other shape is nobody's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptm import layout
from ptm.layout import QueueEntry
from ptm.store.base import check_key

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
ulids = st.from_regex(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", fullmatch=True)
file_names = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1, max_size=50).filter(
    lambda name: name not in (".", "..") and not name.startswith(".ptm-")
)
TASK = "01KAMV3ZR5F2J7Q8XG4M1W9ABC"
DIGEST = "sha256:" + "a" * 64


# round trips


@given(site=names, user=names, task=ulids)
def test_property_a_queue_key_comes_back_as_it_was(site: str, user: str, task: str) -> None:
    key = layout.queue(site, user, task)
    assert layout.parse_queue(key) == QueueEntry(key, site, user, task, cancel=False)
    cancel = layout.cancel(site, user, task)
    assert layout.parse_queue(cancel) == QueueEntry(cancel, site, user, task, cancel=True)


@given(user=names, task=ulids)
def test_property_a_task_key_comes_back_as_it_was(user: str, task: str) -> None:
    assert layout.parse_task(layout.task(user, task)) == (user, task)


@given(site=names, worker=names)
def test_property_a_heartbeat_key_comes_back_as_it_was(site: str, worker: str) -> None:
    assert layout.parse_heartbeat(layout.heartbeat(site, worker)) == (site, worker)


@given(site=names, user=names, number=st.integers(1, 1_000_000))
def test_property_a_days_run_and_an_approval_come_back_as_they_were(site: str, user: str, number: int) -> None:
    assert layout.parse_day_run(layout.day_run(site, "2026-11-22", user, number)) == number
    assert layout.parse_approval(layout.approval(site, DIGEST)) == (DIGEST, None)
    assert layout.parse_approval(layout.withdrawal(site, DIGEST, "b" * 64)) == (DIGEST, "b" * 64)


@given(site=names, task=ulids, epoch=st.integers(1, 9999))
def test_property_a_claim_key_comes_back_as_it_was(site: str, task: str, epoch: int) -> None:
    assert layout.parse_claim(layout.claim(site, task, epoch)) == epoch


@given(one=names, other=names, task=ulids, attempt=ulids, name=file_names, epoch=st.integers(1, 9999))
def test_property_every_key_is_one_that_every_store_takes_and_no_two_are_alike(
    one: str, other: str, task: str, attempt: str, name: str, epoch: int
) -> None:
    keys = [
        layout.MARKER,
        layout.trust_metadata("1.root.json"),
        layout.trust_target("roster.json"),
        layout.task(one, task),
        layout.task_input(one, task, name),
        layout.queue(one, other, task),
        layout.cancel(one, other, task),
        layout.heartbeat(one, other),
        layout.claim(one, task, epoch),
        layout.refusal(one, task, epoch % 20),
        layout.result(one, task),
        layout.output(one, task, attempt, name),
        layout.scratch(one, other) + "x",
        layout.approval(one, DIGEST),
        layout.withdrawal(one, DIGEST, "b" * 64),
        layout.day_run(one, "2026-11-22", other, epoch),
    ]
    assert [check_key(key) for key in keys] == keys
    assert len(set(keys)) == len(keys)


# who may write where


@given(site=names, user=names, task=ulids, attempt=ulids, name=file_names)
def test_property_prefixes_keep_members_apart(site: str, user: str, task: str, attempt: str, name: str) -> None:
    of_the_site = [
        layout.heartbeat(site, site),
        layout.claim(site, task, 1),
        layout.refusal(site, task, 0),
        layout.result(site, task),
        layout.output(site, task, attempt, name),
        layout.scratch(site, site),
        layout.approval(site, DIGEST),
        layout.withdrawal(site, DIGEST, "b" * 64),
        layout.day_run(site, "2026-11-22", user, 1),
    ]
    assert all(key.startswith(f"sites/{site}/") for key in of_the_site)
    of_the_user = [layout.task(user, task), layout.task_input(user, task, name)]
    assert all(key.startswith(f"users/{user}/") for key in of_the_user)
    queued = [layout.queue(site, user, task), layout.cancel(site, user, task)]
    assert all(key.startswith(f"queue/{site}/{user}/") for key in queued)


# hostile keys


@pytest.mark.parametrize(
    "key",
    [
        "",
        f"queue/maastro/alice/{TASK}",
        f"queue/maastro/alice/{TASK}.json\n",
        f"queue/maastro/alice/{TASK}.json/x",
        f"/queue/maastro/alice/{TASK}.json",
        f"x/queue/maastro/alice/{TASK}.json",
        f"queue//alice/{TASK}.json",
        f"queue/maastro/{TASK}.json",
        f"queue/maastro/../{TASK}.json",
        f"queue/maastro/al/ice/{TASK}.json",
        f"queue/Maastro/alice/{TASK}.json",
        f"queue/maastro/-alice/{TASK}.json",
        f"queue/maastro/{'a' * 64}/{TASK}.json",
        f"queue/maastro/alic\u0435/{TASK}.json",
        f"queue/maastro/alice/{TASK.lower()}.json",
        f"queue/maastro/alice/8{TASK[1:]}.json",
        f"queue/maastro/alice/{TASK[:-1]}U.json",
        f"queue/maastro/alice/{TASK}.cancel.cancel.json",
        f"queue/maastro/alice/{TASK}xcancel.json",
        f"queue/maastro/alice/{TASK}.JSON",
        f"queue/maastro/alice/{TASK}xjson",
    ],
)
def test_a_queue_key_of_any_other_shape_is_nobodys(key: str) -> None:
    assert layout.parse_queue(key) is None


@pytest.mark.parametrize(
    "parse, key",
    [
        (layout.parse_task, f"users/alice/tasks/{TASK}/inputs/task.json"),
        (layout.parse_task, f"users/alice/tasks/{TASK}/task.json.age"),
        (layout.parse_task, f"users/../tasks/{TASK}/task.json"),
        (layout.parse_heartbeat, "sites/maastro/workers/a/b.json"),
        (layout.parse_heartbeat, "sites/maastro/workers/.json"),
        (layout.parse_claim, f"sites/maastro/runs/{TASK}/claim.0.json"),
        (layout.parse_claim, f"sites/maastro/runs/{TASK}/claim.01.json"),
        (layout.parse_claim, f"sites/maastro/runs/{TASK}/claim.10000.json"),
        (layout.parse_claim, f"sites/maastro/runs/{TASK}/claim.-1.json"),
        (layout.parse_claim, f"sites/maastro/runs/{TASK}/claim.١.json"),
        (layout.parse_claim, f"sites/maastro/runs/{TASK}/claim.1xjson"),
    ],
)
def test_any_other_key_of_a_wrong_shape_is_nobodys_too(parse: Callable[[str], object], key: str) -> None:
    assert parse(key) is None


@given(st.text(max_size=120))
def test_property_arbitrary_text_is_nobodys_key(text: str) -> None:
    for parse in (layout.parse_queue, layout.parse_task, layout.parse_heartbeat, layout.parse_claim):
        assert parse(text) is None


@given(
    names | st.text(max_size=40),
    names | st.text(max_size=40),
    ulids | ulids.map(lambda task: f"{task}.cancel") | st.text(max_size=40),
)
def test_property_what_parses_as_a_queue_key_is_built_back_to_the_very_same_key(site: str, user: str, task: str) -> None:
    key = f"queue/{site}/{user}/{task}.json"
    entry = layout.parse_queue(key)
    if entry is not None:
        build = layout.cancel if entry.cancel else layout.queue
        assert build(entry.site, entry.user, entry.task) == entry.key == key
