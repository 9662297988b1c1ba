"""Automatic checks of outputs: what is found, what is not, and that no file can break them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptm.config import Limits
from ptm.node.checks import check_outputs, for_the_researcher
from ptm.node.terms import Terms


def terms(**changes: object) -> Terms:
    base: dict[str, object] = {"rule": "r", "policy_sha256": "0" * 64, "limits": Limits(), "max_files": 10, "max_mb": 1}
    return Terms.model_validate(base | changes)


def found(folder: Path, name: str, body: str | bytes, least: int = 10) -> list[str]:
    path = folder / name
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return [finding.text for finding in check_outputs([path], terms(min_cell=least))]


@pytest.mark.parametrize(
    ("name", "body", "where"),
    [
        ("t.csv", "sex,n\nf,40\nm,9\n", "row 3, column 2 has 9, below 10"),
        ("t.csv", "\ufeffn\r\n9\r\n", "row 2, column 1"),
        ("t.csv", "sex;n\nf;40\nm;3\n", "row 3, column 2"),
        ("t.CSV", 'sex,n\n"a, b"," 4 "\n', "row 2, column 2"),
        ("t.csv", "sex,n\nm,9.0\n", "row 2, column 2"),
        ("t.csv", "sex,n\nm,+007\n", "row 2, column 2"),
        ("t.tsv", "sex\tn\nm\t5\n", "row 2, column 2"),
        ("t.csv", "3,50\n", "row 1, column 1"),
        ("t.csv", "n\n3.000000000000000000e+00\n", "row 2, column 1 has 3"),
        ("t.csv", "group n\nx 3\n", "row 2, column 1 has 3"),
        ("t.csv", "sex,n\nm,3\n".encode("utf-16"), "cannot be read as CSV"),
        ("t.csv", "sex,n\nm,3\n".encode("utf-16-le"), "cannot be read as CSV"),
        ("t.csv", "Counts of the study\nsex;n\nm;3\n", "row 3, column 1 has 3"),
        ("t.csv", "Counts; by sex\nsex,n\nm,3\n", "row 3, column 1 has 3"),
        ("t.csv", 'Counts, by sex\n"sex";"n"\n"m";"3"\n', "row 3, column 1 has 3"),
        ("t.csv", "sex;n\nm;3,0\n", "row 2, column 2 has 3"),
        ("t.json", '{"n": 3, "n": 40}', "n has 3"),
        ("t.json", '{"groups": [{"n": 40}, {"n": 2}]}', "groups[1].n has 2"),
        ("t.json", '{"n": 2.0}', "n has 2"),
        ("t.json", '{"n": "2"}', "n has 2"),
        ("t.json", "3", "the file has 3"),
        ("t.jsonl", '{"n": 40}\n\n{"n": 1}\n', "line 3.n has 1"),
    ],
)
def test_a_small_count_is_found_where_it_stands(tmp_path: Path, name: str, body: str | bytes, where: str) -> None:
    (text,) = found(tmp_path, name, body)
    assert where in text


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("t.csv", "sex,n,mean\nf,40,3.5\nm,0,-2\nx,10,1e-3\n"),
        ("t.csv", "sex;n;mean\nf;40;3,5\nm;12;0,25\n"),
        ("t.json", '{"n": 10, "mean": 2.5, "none": null, "yes": true, "low": -3, "zero": 0}'),
        ("t.json", '{"5": 100}'),
        ("t.csv", ""),
    ],
)
def test_large_counts_zeros_fractions_and_labels_are_no_finding(tmp_path: Path, name: str, body: str) -> None:
    assert found(tmp_path, name, body) == []


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("model.bin", b"\x00\x01"),
        ("t", b"1,2"),
        ("t.json", b"{"),
        ("t.json", b"[" * 100_000),
        ("t.json", b"[" * 200 + b"50" + b"]" * 200),
        ("t.json", b"\xff\xfe"),
        ("t.json", b"9" * 10_000),
        ("t.jsonl", b"{}\n{\n"),
        ("t.csv", b"a," + b"x" * 200_000 + b"\n"),
    ],
)
def test_what_cannot_be_checked_is_a_finding(tmp_path: Path, name: str, body: bytes) -> None:
    (text,) = found(tmp_path, name, body)
    assert "not checked" in text


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=300), name=st.sampled_from(["t.csv", "t.tsv", "t.json", "t.jsonl", "t.ndjson"]))
def test_property_no_content_breaks_the_checks(tmp_path_factory: pytest.TempPathFactory, body: bytes, name: str) -> None:
    found(tmp_path_factory.mktemp("x"), name, body)


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(st.integers(0, 30), min_size=1, max_size=20), least=st.integers(1, 20))
def test_property_a_table_has_a_finding_just_when_it_has_a_small_count(
    tmp_path_factory: pytest.TempPathFactory, cells: list[int], least: int
) -> None:
    folder = tmp_path_factory.mktemp("x")
    small = any(0 < cell < least for cell in cells)
    assert bool(found(folder, "t.csv", "n\n" + "\n".join(map(str, cells)) + "\n", least)) == small
    assert bool(found(folder, "t.json", json.dumps({"n": cells}), least)) == small


def test_names_number_and_size_are_checked_and_the_log_is_not(tmp_path: Path) -> None:
    for name in ("good.csv", "bad.txt", "log.txt"):
        (tmp_path / name).write_bytes(b"x" * 700_000)
    rules = terms(names=(r"[a-z]+\.csv",), max_files=1)
    findings = check_outputs(tmp_path.iterdir(), rules)
    assert [(finding.rule, finding.file) for finding in findings] == [("files", None), ("size", None), ("names", "bad.txt")]
    said = for_the_researcher(findings, rules)
    assert "bad" not in said
    assert "more than 1 files" in said


def test_a_pattern_has_to_match_the_whole_name(tmp_path: Path) -> None:
    (tmp_path / "total.csv.exe").write_text("x")
    assert check_outputs(tmp_path.iterdir(), terms(names=(r"total\.csv",)))


def test_a_thousand_findings_are_a_few_lines(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text("x")
    findings = check_outputs(tmp_path.iterdir(), terms(names=("none",), max_files=1000))
    assert len(findings) == 51
    assert findings[-1].text == "and 150 more finding(s)"
