"""What a document may say, and what it may not. All of it from JSON, strictly, as it comes out of a registry."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ptm import envelope
from ptm.errors import Malformed
from ptm.model import (
    INLINE_BYTES,
    INLINE_TOTAL_BYTES,
    Document,
    FileName,
    OutputName,
    Result,
    Roster,
    SealedFile,
    Task,
    Time,
    format_time,
    parse_time,
)

REGISTRY = "a1111111-1111-4111-8111-111111111111"
NOW = "2026-11-22T10:30:00Z"
TASK_ID = "01KAMV3ZR5F2J7Q8XG4M1W9ABC"
DIGEST = "0" * 64

TASK: dict[str, Any] = {
    "type": "ptm/task@1",
    "registry": REGISTRY,
    "id": TASK_ID,
    "user": "alice",
    "nonce": "0" * 32,
    "created": NOW,
    "expires": "2026-11-29T10:30:00Z",
    "image": "myConsortium/count:1",
    "sites": ["maastro"],
    "recipients": ["alice"],
}
RESULT: dict[str, Any] = {
    "type": "ptm/result@1",
    "registry": REGISTRY,
    "task": TASK_ID,
    "task_sha256": DIGEST,
    "user": "alice",
    "site": "maastro",
    "worker": "maastro-1",
    "attempt": TASK_ID,
    "state": "completed",
    "exit_code": 0,
    "image": "myConsortium/count:1",
    "end_time": NOW,
    "roster_version": 2,
    "recipients": ["alice"],
}


def sealed(name: str, content: str | None = None) -> dict[str, Any]:
    file: dict[str, Any] = {"name": name, "size": 200, "sha256": DIGEST}
    return file if content is None else {**file, "content": content}


def member(name: str, sign_key: str = "1" * 64, letter: str = "q") -> dict[str, Any]:
    return {"name": name, "kind": "site", "sign_key": sign_key, "age_key": "age1" + letter * 58, "admitted": NOW}


def load(kind: type[Document], **fields: object) -> Document:
    """A document from JSON, as a task or a result with some fields changed; None takes a field away."""
    merged = {**(TASK if kind is Task else RESULT), **fields}
    return envelope.load(kind, json.dumps({k: v for k, v in merged.items() if v is not None}).encode())


def refused(kind: type[Document], match: str, **fields: object) -> None:
    with pytest.raises(Malformed, match=match):
        load(kind, **fields)


def test_the_smallest_task_and_result_are_fine() -> None:
    load(Task)
    load(Result)


# tasks


@pytest.mark.parametrize("field", sorted(set(TASK) - {"type"}))
def test_a_task_without_a_required_field_is_refused(field: str) -> None:
    refused(Task, f"{field}: Field required", **{field: None})


@pytest.mark.parametrize(
    "field, value",
    [
        ("id", TASK_ID.lower()),
        ("id", "81KAMV3ZR5F2J7Q8XG4M1W9ABC"),
        ("id", TASK_ID + "\n"),
        ("user", "Alice"),
        ("user", "-alice"),
        ("user", "a" * 64),
        ("user", "alice\n"),
        ("user", "../bob"),
        ("user", ""),
        ("user", 7),
        ("nonce", "0" * 31),
        ("registry", REGISTRY + "0"),
        ("image", "count:1; rm -rf /"),
        ("image", "--privileged"),
        ("image", "a/../b:1"),
        ("image", "count:1\n"),
        ("image", "count@sha256:" + "0" * 63),
        ("image", ""),
        ("contract", "shell"),
        ("workdir", "relative"),
        ("workdir", "/a\nb"),
        ("time_limit_s", 0),
        ("time_limit_s", True),
        ("time_limit_s", "60"),
        ("time_limit_s", 60.5),
        ("time_limit_s", 10**30),
        ("sites", []),
        ("sites", "maastro"),
        ("sites", {"maastro": 1}),
        ("sites", ["maastro", "maastro"]),
        ("sites", ["s"] * 1001),
        ("recipients", []),
        ("data", ["Cohort"]),
        ("data", ["cohort", "cohort"]),
        ("command", "sh -c true"),
        ("command", ["a\x1b[2J"]),
        ("command", ["a\x00b"]),
        ("command", [""]),
        ("command", ["x"] * 65),
        ("purpose", "\x1b]0;owned\x07"),
        ("purpose", "\u202egnp.exe"),
        ("purpose", "x" * 2001),
        ("env", {"PTM_TASK": "1"}),
        ("env", {"A=B": "1"}),
        ("env", {"A": 1}),
        ("env", {"A": "x\x00"}),
        ("resources", {"cpu_cores": 0}),
        ("resources", {"cpu_cores": 1.5}),
        ("resources", {"ram_gb": -1}),
        ("resources", {"gpu": 1}),
        ("resources", {"gpus": 0}),
        ("resources", {"gpus": 65}),
        ("resources", {"gpus": True}),
        ("expires", NOW),
        ("expires", "2026-11-29T10:30:00+00:00"),
        ("manifest", "AAAA"),
        ("priority", 1),
    ],
)
def test_a_bad_value_in_a_task_is_refused_and_the_field_named(field: str, value: object) -> None:
    with pytest.raises(Malformed) as refusal:
        load(Task, **{field: value})
    assert field in str(refusal.value) or "Value error" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_inputs_without_their_manifest_are_refused_and_the_other_way_round() -> None:
    refused(Task, "go together", inputs=[sealed("params.json")])
    refused(Task, "go together", manifest="AAAA")
    load(Task, inputs=[sealed("params.json")], manifest="AAAA")


def test_inputs_whose_names_differ_only_in_case_are_refused() -> None:
    refused(Task, "twice", inputs=[sealed("A.csv"), sealed("a.CSV")], manifest="AAAA")


def test_a_document_cannot_be_changed_after_it_was_made() -> None:
    task = load(Task)
    with pytest.raises(ValidationError):
        task.user = "bob"  # type: ignore[attr-defined]


# results


@pytest.mark.parametrize(
    "fields",
    [
        {"exit_code": 1},
        {"exit_code": None},
        {"reason": "but"},
        {"state": "failed", "exit_code": 0, "reason": None},
        {"state": "failed", "exit_code": 1},
        {"state": "rejected", "exit_code": None, "reason": ""},
    ],
)
def test_a_state_that_its_exit_code_or_reason_belies_is_refused(fields: dict[str, object]) -> None:
    refused(Result, "completed means|says why", **fields)


@pytest.mark.parametrize("state", ["queued", "running", "done", "COMPLETED", ""])
def test_a_state_that_is_not_final_is_no_result(state: str) -> None:
    refused(Result, "state", state=state, exit_code=None, reason="why")


@pytest.mark.parametrize("name", ["result.json", "RESULT.JSON", "task.json", "log.txt"])
def test_an_output_cannot_take_the_place_of_ptms_own_files(name: str) -> None:
    refused(Result, "ptm's own", outputs=[sealed(name)], manifest="AAAA")
    with pytest.raises(ValidationError):
        TypeAdapter(OutputName).validate_python(name)


def test_a_log_by_another_name_is_refused() -> None:
    refused(Result, "the log is named", log=sealed("stdout.txt"), manifest="AAAA")


def test_the_manifest_lists_the_outputs_and_the_log_last() -> None:
    result = load(Result, outputs=[sealed("b"), sealed("a")], log=sealed("log.txt"), manifest="AAAA")
    assert isinstance(result, Result)
    assert [file.name for file in result.files] == ["b", "a", "log.txt"]


# file names


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "a\x00b",
        "a\nb",
        "a\x7f",
        "\u202etxt.exe",
        "\u2028",
        ".ptm-x",
        "é" * 101,
        "a\ud800",
    ],
)
def test_a_name_that_could_lead_out_of_a_folder_or_hide_something_is_refused(name: str) -> None:
    with pytest.raises((ValidationError, UnicodeEncodeError)):
        TypeAdapter(FileName).validate_python(name)


@pytest.mark.parametrize("name", ["a", "Überleben (2).csv", "...", ".hidden", "-rf", "é" * 100, "result.json"])
def test_an_odd_but_harmless_name_is_taken(name: str) -> None:
    assert TypeAdapter(FileName).validate_python(name) == name


@given(st.text(max_size=210))
def test_property_a_file_name_is_always_one_printable_segment(name: str) -> None:
    try:
        TypeAdapter(FileName).validate_python(name)
    except (ValidationError, UnicodeEncodeError):
        return
    assert "/" not in name and "\\" not in name and name.isprintable() and name not in ("", ".", "..")


# base64


@pytest.mark.parametrize("text", ["QQ", "QQ=", "QR==", "QQ==\n", " QQ==", "Q Q==", "QQ==QQ==", "Q-_=", "====", "é==="])
def test_base64_that_is_not_the_one_spelling_is_refused(text: str) -> None:
    refused(Task, "base64", inputs=[sealed("a", text)], manifest="AAAA")
    refused(Task, "base64", inputs=[sealed("a")], manifest=text)


@given(st.binary(max_size=300))
def test_property_content_comes_back_as_it_was(data: bytes) -> None:
    file = SealedFile(name="a", size=1, sha256=DIGEST, content=base64.b64encode(data).decode())
    assert file.inline == data


def test_content_over_64_kib_does_not_travel_inside() -> None:
    load(Task, inputs=[sealed("a", base64.b64encode(bytes(INLINE_BYTES)).decode())], manifest="AAAA")
    refused(Task, "at most", inputs=[sealed("a", base64.b64encode(bytes(INLINE_BYTES + 3)).decode())], manifest="AAAA")


def test_all_that_may_travel_inside_fits_into_a_document() -> None:
    in_base64 = 4 * ((INLINE_TOTAL_BYTES + 2) // 3) + 4 * ((192 * 1024 + 2) // 3)
    assert in_base64 < envelope.MAX_DOCUMENT_BYTES


# times


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22 10:30:00Z",
        "2026-11-22T10:30:00",
        "2026-11-22T10:30:00z",
        "2026-11-22T10:30:00.5Z",
        "2026-11-22T10:30:00+01:00",
        "2026-13-22T10:30:00Z",
        "2026-02-30T10:30:00Z",
        "2026-11-22T10:30:60Z",
        "1969-12-31T23:59:59Z",
        "٢٠٢٦-11-22T10:30:00Z",
        "2026-11-22T10:30:00Z\n",
        1763807400,
        None,
    ],
)
def test_a_time_has_one_spelling(text: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Time).validate_json(json.dumps(text))


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))
def test_property_a_time_survives_to_the_second(moment: datetime) -> None:
    whole = moment.replace(microsecond=0)
    assert parse_time(format_time(whole)) == whole


# the roster


@pytest.mark.parametrize(
    "second", [member("maastro", "2" * 64, "p"), member("other", "1" * 64, "p"), member("other", "2" * 64, "q")]
)
def test_two_members_never_share_a_name_or_a_key(second: dict[str, Any]) -> None:
    roster = {"type": "ptm/roster@1", "registry": REGISTRY, "members": [member("maastro"), second]}
    with pytest.raises(Malformed, match="two members share a"):
        envelope.load(Roster, json.dumps(roster).encode())


@pytest.mark.parametrize("age_key", ["age1" + "b" * 58, "age1" + "q" * 57, "AGE1" + "Q" * 58, "AGE-SECRET-KEY-1" + "Q" * 58])
def test_what_is_no_age_recipient_does_not_get_into_a_roster(age_key: str) -> None:
    roster = {"type": "ptm/roster@1", "registry": REGISTRY, "members": [{**member("maastro"), "age_key": age_key}]}
    with pytest.raises(Malformed, match="age_key"):
        envelope.load(Roster, json.dumps(roster).encode())
