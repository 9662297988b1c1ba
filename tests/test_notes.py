"""What a run's notes say together: the one about missing data, beside questions and answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from ptm import layout
from ptm.notes import Note, RunRecord

NOW = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)
COMMON: dict[str, Any] = {
    "registry": "0a1b2c3d-0000-4000-8000-000000000001",
    "task": "01KAMV3ZR5F2J7Q8XG4M1W9ABC",
    "task_sha256": "a" * 64,
    "user": "alice",
    "site": "ttp",
}


def waiting(after: int, reason: str = "umcu has not sent incomes", **changes: object) -> Note:
    return Note.model_validate(
        COMMON | {"what": "waiting-data", "reason": reason, "created": NOW + timedelta(seconds=after)} | changes
    )


def asked(after: int) -> Note:
    digest = "sha256:" + "b" * 64
    return Note(**COMMON, what="awaiting-approval", image_digest=digest, created=NOW + timedelta(seconds=after))


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ((), None),
        ((waiting(1, "first"), waiting(2, "second")), "second"),
        ((waiting(2, "second"), waiting(1, "first")), "second"),
        ((waiting(1, "first"), waiting(1, "later, in the same second")), "later, in the same second"),
        ((waiting(1), asked(2)), None),
        ((waiting(1), asked(1)), None),
        ((waiting(1, "before"), asked(2), waiting(3, "again")), "again"),
    ],
)
def test_the_newest_note_about_data_counts_until_something_else_is_as_new(notes: tuple[Note, ...], expected: str | None) -> None:
    found = RunRecord(claimed=False, finished=False, notes=notes).waiting_data()
    assert (found and found.reason) == expected


def test_a_run_that_is_claimed_or_over_waits_for_no_data() -> None:
    assert RunRecord(claimed=True, finished=False, notes=(waiting(1),)).waiting_data() is None
    assert RunRecord(claimed=False, finished=True, notes=(waiting(1),)).waiting_data() is None


def test_a_note_about_another_task_under_the_same_name_does_not_count() -> None:
    record = RunRecord(claimed=False, finished=False, notes=(waiting(1, task_sha256="c" * 64),))
    assert record.waiting_data("a" * 64) is None
    assert record.open() is None


@pytest.mark.parametrize("changes", [{"reason": ""}, {"by": "Jansen"}])
def test_a_note_about_data_says_what_is_missing_and_is_nobodys_decision(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        waiting(1, **changes)


def test_its_key_is_one_that_ptm_makes() -> None:
    assert layout.parse_note(layout.note("ttp", COMMON["task"], 7, "waiting-data")) == (7, "waiting-data")
