"""`ptm node policy test` and the policy's part of `ptm node check`: what a policy would say, before any task comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_registry import Shell

NODE = """\
worker = "m-1"
runner = "process"
unsafe_no_sandbox = true
[data.cohort]
path = "cohort.csv"
"""
POLICY = """\
[[allow]]
images = ['other/.*:.*']

[[allow]]
images = ['myConsortium/.*:.*']
data = ["cohort"]
approval = "manual"
approval_timeout = "2h"
runs_per_day = 3
"""


@pytest.fixture
def ptm(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A site with a node and a policy, that has joined nothing; the working folder is where task files lie."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "node.toml").write_text(NODE)
    write_policy(tmp_path, POLICY)
    (tmp_path / "cohort.csv").write_text("a\n1\n")
    return Shell(tmp_path, capsys)


def write_policy(folder: Path, text: str) -> None:
    (folder / "site" / "policy.toml").write_text(text)


def task_file(folder: Path, **changes: Any) -> str:
    request = {"image": "myConsortium/count:1", "sites": ["maastro"], "expires": "7d", "data": ["cohort"]} | changes
    (folder / "task.json").write_text(json.dumps(request))
    return "task.json"


def try_(ptm: Shell, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = ptm("site", "node", "policy", "test", *arguments, "--json")
    return code, json.loads(ptm.out)


def federation(ptm: Shell) -> None:
    """A registry that the site and alice (of Maastro) have joined."""
    assert ptm("coord", "registry", "create", ptm.url) == 0
    fingerprint = ptm.out.strip()
    for name, kind in (("site", "site"), ("alice", "researcher")):
        member = ("--name", name, "--kind", kind, "--organisation", "Maastro", "-o", f"{name}.request.json")
        assert ptm(name, "member", "request", *member) == 0, ptm.err
        assert ptm("coord", "member", "admit", f"{name}.request.json") == 0, ptm.err
        assert ptm(name, "join", ptm.url, "--root", fingerprint) == 0, ptm.err


def test_it_says_which_rule_decides_and_why_the_others_do_not(ptm: Shell) -> None:
    assert ptm("site", "node", "policy", "test", task_file(ptm.path), "--user", "alice") == 0
    assert "allowed by rule 2, line 4 of policy.toml" in ptm.out
    assert "manual, for at most 7200 s" in ptm.out
    assert "rule 1, line 1 of policy.toml: does not match\n  does not allow the image myConsortium/count:1" in ptm.out
    assert ptm.err == ""


def test_it_prints_the_same_as_json(ptm: Shell) -> None:
    code, found = try_(ptm, task_file(ptm.path), "--user", "alice")
    assert (code, found["allowed"], found["rule"]) == (0, True, "rule 2, line 4 of policy.toml")
    assert (found["terms"]["approval"], found["terms"]["approval_timeout_s"]) == ("manual", 7200)
    assert [rule["matches"] for rule in found["rules"]] == [False, True]
    assert len(found["policy_sha256"]) == 64


def test_a_refused_task_is_exit_code_1_with_the_reason_that_the_researcher_would_see(ptm: Shell) -> None:
    task = task_file(ptm.path, data=["genomes"])
    assert ptm("site", "node", "policy", "test", task, "--user", "alice") == 1
    assert "no rule matches" in ptm.out
    assert "does not allow the data source genomes" in ptm.out
    assert ptm.err.startswith("ptm: error: the site's policy does not allow the data source genomes\nptm: hint: ")
    code, found = try_(ptm, task, "--user", "alice")
    assert (code, found["allowed"], found["rule"], found["terms"]) == (1, False, None, None)


def test_the_days_runs_can_be_tried_too(ptm: Shell) -> None:
    assert try_(ptm, task_file(ptm.path), "--user", "alice", "--runs-today", "2")[0] == 0
    code, found = try_(ptm, task_file(ptm.path), "--user", "alice", "--runs-today", "3")
    assert (code, found["rule"]) == (1, "rule 2, line 4 of policy.toml")
    assert "today" in found["reason"]


def test_gpus_and_variables_are_refused_unless_a_rule_says_so_and_the_answer_shows_them(ptm: Shell) -> None:
    task = task_file(ptm.path, resources={"gpus": 1}, env={"SEED": "1"})
    assert ptm("site", "node", "policy", "test", task, "--user", "alice") == 1
    assert "does not allow the variable SEED\n  does not allow 1 GPU(s)" in ptm.out
    write_policy(ptm.path, POLICY + 'env = ["SEED"]\nmax_gpus = 1\n')
    assert ptm("site", "node", "policy", "test", task, "--user", "alice") == 0
    assert "gpus       1\n" in ptm.out
    assert try_(ptm, task_file(ptm.path), "--user", "alice")[1]["terms"]["gpus"] == 0


def test_a_signed_task_has_the_gpus_that_were_asked_for(ptm: Shell) -> None:
    federation(ptm)
    put = ("--image", "myConsortium/count:1", "--site", "site", "--expires", "1d", "--gpus")
    assert ptm("alice", "task", "put", *put, "2") == 0, ptm.err
    assert ptm("alice", "task", "show", ptm.out.strip(), "--json") == 0
    assert json.loads(ptm.out)["resources"] == {"gpus": 2}
    for wrong in ("0", "65", "-1", "1.5"):
        assert ptm("alice", "task", "put", *put, wrong) == 2
        assert "gpus" in ptm.err


def test_a_pattern_that_would_hold_up_the_node_is_a_mistake(ptm: Shell) -> None:
    write_policy(ptm.path, "[[allow]]\nimages = ['myConsortium/([a-z]+-?)+:.*']\n")
    assert ptm("site", "node", "policy", "test", task_file(ptm.path), "--user", "alice") != 0
    assert "line 2: 'myConsortium/([a-z]+-?)+:.*' would take for ever" in ptm.err
    assert "repetition inside a repetition" in ptm.err


def test_a_plain_task_file_needs_a_user(ptm: Shell) -> None:
    assert ptm("site", "node", "policy", "test", task_file(ptm.path)) == 2
    assert "--user NAME" in ptm.err


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"signed": {}}', '{"image": "x"}', '{"image": "a b", "sites": ["x"], "expires": "1d"}']
)
def test_a_file_that_is_no_task_is_a_usage_error(ptm: Shell, text: str) -> None:
    (ptm.path / "bad.json").write_text(text)
    assert ptm("site", "node", "policy", "test", "bad.json", "--user", "alice") == 2
    assert ptm.err.startswith("ptm: error: ")
    assert "unexpected" not in ptm.err


def test_a_signed_task_says_itself_who_asks_and_for_which_study(ptm: Shell) -> None:
    federation(ptm)
    put = ("--image", "myConsortium/count:1", "--site", "site", "--study", "heart", "--expires", "1d")
    assert ptm("alice", "task", "put", *put) == 0, ptm.err
    (signed,) = (ptm.path / "reg").rglob("users/alice/tasks/*/task.json")
    write_policy(ptm.path, "[[allow]]\nimages = ['.*']\nstudies = ['heart']\nresearchers = ['alice']\n")
    assert try_(ptm, str(signed))[0] == 0
    code, found = try_(ptm, str(signed), "--user", "bob")
    assert (code, "a task of bob" in found["reason"]) == (1, True)
    assert ptm.json("alice", "task", "list")[0]["study"] == "heart"


def test_the_organisation_is_the_rosters(ptm: Shell) -> None:
    federation(ptm)
    write_policy(ptm.path, "[[allow]]\nimages = ['.*']\ndata = ['cohort']\norganisations = ['Maastro']\n")
    assert try_(ptm, task_file(ptm.path), "--user", "alice")[0] == 0
    assert try_(ptm, task_file(ptm.path), "--user", "stranger")[0] == 1


def test_reviewed_algorithms_come_from_the_registry(ptm: Shell) -> None:
    federation(ptm)
    write_policy(ptm.path, "[[allow]]\nreviewed = true\ndata = ['cohort']\n")
    code, found = try_(ptm, task_file(ptm.path, image="a/x@sha256:" + "a" * 64), "--user", "alice")
    assert (code, "not among the reviewed" in found["reason"]) == (1, True)


def test_control_characters_of_a_task_reach_no_terminal(ptm: Shell) -> None:
    write_policy(ptm.path, "[[allow]]\nimages = ['.*']\ncommands = ['x']\n")
    task = task_file(ptm.path, command=["\x1b[2J"])
    assert ptm("site", "node", "policy", "test", task, "--user", "alice") in (1, 2)
    assert "\x1b" not in ptm.out + ptm.err


# ptm node check


def test_check_names_the_line_of_a_mistake(ptm: Shell) -> None:
    write_policy(ptm.path, POLICY + "aproval = 'auto'\n")
    assert ptm("site", "node", "check") == 2
    assert "policy.toml: line 10: unknown key aproval" in ptm.err
    assert "ptm: hint: did you mean approval?" in ptm.err


def test_check_finds_a_data_source_that_node_toml_has_not(ptm: Shell) -> None:
    write_policy(ptm.path, POLICY.replace('["cohort"]', '["cohrot"]'))
    assert ptm("site", "node", "check") == 2
    assert "line 4: rule 2 grants an unknown data source, cohrot" in ptm.err
    assert "cohort" in ptm.err


def test_check_notes_names_that_the_roster_has_not(ptm: Shell) -> None:
    federation(ptm)
    write_policy(ptm.path, POLICY + "researchers = ['alice', 'alcie']\norganisations = ['Maastro', 'Mastro']\n")
    assert ptm("site", "node", "check") == 0, ptm.err
    assert "policy    ok: 2 rule(s), SHA-256 " in ptm.out
    assert [line.split(" names ")[1].split(",")[0] for line in ptm.err.splitlines() if "policy" in line] == ["Mastro", "alcie"]


def test_init_writes_a_policy_that_grants_the_data_it_was_given_and_nothing_else(ptm: Shell) -> None:
    federation(ptm)
    for file in ("node.toml", "policy.toml"):
        (ptm.path / "site" / file).unlink()
    words = ("--image", "myConsortium/.*:.*", "--data", "cohort=cohort.csv", "--runner", "process", "--unsafe-no-sandbox")
    assert ptm("site", "node", "init", *words) == 0, ptm.err
    assert try_(ptm, task_file(ptm.path), "--user", "alice")[0] == 0
    assert try_(ptm, task_file(ptm.path, image="other/x:1"), "--user", "alice")[0] == 1


def test_init_refuses_a_pattern_that_can_match_nothing_and_writes_neither_file(ptm: Shell) -> None:
    federation(ptm)
    for file in ("node.toml", "policy.toml"):
        (ptm.path / "site" / file).unlink()
    assert ptm("site", "node", "init", "--image", "myConsortium/count") == 2
    assert "can match no image" in ptm.err
    assert not (ptm.path / "site" / "node.toml").exists()
