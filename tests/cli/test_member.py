"""`ptm member` and `ptm join`: issue 2's session up to the point where everybody has joined, and what can go wrong in it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import get_args

import pytest

from ptm.cli.member import KINDS
from ptm.config import Home, load_profile
from ptm.model import Kind
from tests.cli.test_registry import Shell


@pytest.fixture
def ptm(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


@pytest.fixture
def fingerprint(ptm: Shell) -> str:
    """A registry with two requests on the table."""
    assert ptm("coord", "registry", "create", ptm.url) == 0
    found = ptm.out.strip()
    assert ptm("maastro", "member", "request", "--name", "maastro", "--kind", "site", "-o", "maastro.request.json") == 0
    assert ptm("alice", "member", "request", "--name", "alice", "--kind", "researcher", "-o", "alice.request.json") == 0
    return found


def test_the_session_of_the_issue(ptm: Shell, fingerprint: str) -> None:
    assert ptm("coord", "member", "admit", "maastro.request.json", "alice.request.json") == 0
    assert "maastro" in ptm.out
    assert ptm("maastro", "join", ptm.url, "--root", fingerprint) == 0
    assert ptm("alice", "join", ptm.url, "--root", fingerprint) == 0
    profile = load_profile(Home(ptm.path / "alice"))
    assert (profile.member, profile.kind, profile.registry, profile.root_fingerprint) == (
        "alice",
        "researcher",
        ptm.url,
        fingerprint,
    )
    members = ptm.json("maastro", "member", "list")
    assert [(m["name"], m["kind"]) for m in members] == [
        ("coordinator", "coordinator"),
        ("maastro", "site"),
        ("alice", "researcher"),
    ]


def test_a_request_shows_the_fingerprint_that_the_coordinator_sees(ptm: Shell, fingerprint: str) -> None:
    ptm("bob", "member", "request", "--name", "bob", "--kind", "party", "-o", "bob.json")
    assert ptm.out == ""
    told = ptm.err.strip().splitlines()[-1]
    ptm("coord", "member", "admit", "bob.json")
    assert told in ptm.out


def test_a_request_holds_no_private_key_and_the_keys_are_private(ptm: Shell, fingerprint: str) -> None:
    request = (ptm.path / "alice.request.json").read_text()
    assert "SECRET" not in request
    assert "PRIVATE" not in request
    for file in ("sign.pem", "age.txt"):
        assert stat.S_IMODE((ptm.path / "alice" / "keys" / file).stat().st_mode) == 0o600


def test_a_request_overwrites_no_file_and_makes_no_keys_then(ptm: Shell) -> None:
    (ptm.path / "x.json").write_text("mine")
    assert ptm("new", "member", "request", "--name", "new", "--kind", "site", "-o", "x.json") == 12
    assert (ptm.path / "x.json").read_text() == "mine"
    assert not (ptm.path / "new" / "keys").exists()


def test_a_second_request_reuses_the_keys(ptm: Shell, fingerprint: str) -> None:
    ptm("alice", "member", "request", "--name", "alice", "--kind", "researcher", "-o", "again.json")
    first, second = (json.loads((ptm.path / f).read_text())["signed"] for f in ("alice.request.json", "again.json"))
    assert (first["sign_key"], first["age_key"]) == (second["sign_key"], second["age_key"])


def test_the_kinds_of_the_help_are_those_of_the_model() -> None:
    assert get_args(Kind) == KINDS


@pytest.mark.parametrize(("name", "kind"), [("A b", "site"), ("a/b", "site"), ("maastro", "king")])
def test_a_bad_name_or_kind_is_a_usage_error(ptm: Shell, name: str, kind: str) -> None:
    assert ptm("x", "member", "request", "--name", name, "--kind", kind) == 2
    assert not (ptm.path / "x").exists()


def test_joining_before_admission_says_what_to_do(ptm: Shell, fingerprint: str) -> None:
    assert ptm("alice", "join", ptm.url, "--root", fingerprint) == 11
    assert "not admitted yet" in ptm.err
    assert "ptm member admit" in ptm.err
    assert not Home(ptm.path / "alice").profile.exists()


def test_joining_without_keys_says_what_to_do(ptm: Shell, fingerprint: str) -> None:
    assert ptm("nobody", "join", ptm.url, "--root", fingerprint) == 1
    assert "ptm member request" in ptm.err


def test_joining_with_a_wrong_fingerprint_is_refused(ptm: Shell, fingerprint: str) -> None:
    ptm("coord", "member", "admit", "alice.request.json")
    assert ptm("alice", "join", ptm.url, "--root", "0" * 64) == 11
    assert "fingerprint" in ptm.err
    assert ptm("alice", "join", ptm.url, "--root", "abc") == 2
    assert not Home(ptm.path / "alice").profile.exists()


def test_joining_again_is_no_error(ptm: Shell, fingerprint: str) -> None:
    ptm("coord", "member", "admit", "alice.request.json")
    for _ in range(2):
        assert ptm("alice", "join", ptm.url, "--root", fingerprint.upper()) == 0
    assert ptm.json("alice", "join", ptm.url, "--root", fingerprint)["member"] == "alice"


def test_a_home_does_not_move_to_another_registry(ptm: Shell, fingerprint: str) -> None:
    ptm("coord", "member", "admit", "alice.request.json")
    ptm("alice", "join", ptm.url, "--root", fingerprint)
    before = {path: path.read_bytes() for path in (ptm.path / "alice").rglob("*") if path.is_file()}
    ptm("coord2", "registry", "create", f"{ptm.url}2")
    other = ptm.out.strip()
    ptm("coord2", "member", "admit", "alice.request.json")
    assert ptm("alice", "join", f"{ptm.url}2", "--root", other) == 11
    assert {path: path.read_bytes() for path in before} == before


def test_a_revoked_member_is_told_so_and_listed(ptm: Shell, fingerprint: str) -> None:
    ptm("coord", "member", "admit", "alice.request.json")
    assert ptm("coord", "member", "revoke", "alice") == 0
    assert ptm("alice", "join", ptm.url, "--root", fingerprint) == 11
    assert "revoked" in ptm.err
    assert "revoked" in ptm.json("coord", "member", "list")[-1]
    assert ptm("coord", "member", "admit", "alice.request.json") == 11


def test_admitting_again_says_so(ptm: Shell, fingerprint: str) -> None:
    ptm("coord", "member", "admit", "alice.request.json")
    assert ptm("coord", "member", "admit", "alice.request.json") == 0
    assert "alice is a member already" in ptm.err


def test_a_request_that_was_changed_is_refused_with_its_file(ptm: Shell, fingerprint: str) -> None:
    path = ptm.path / "alice.request.json"
    path.write_text(path.read_text().replace("researcher", "coordinator"))
    assert ptm("coord", "member", "admit", "maastro.request.json", "alice.request.json") == 11
    assert "alice.request.json" in ptm.err
    assert [m["name"] for m in ptm.json("coord", "member", "list")] == ["coordinator"]


def test_a_missing_request_is_a_usage_error(ptm: Shell, fingerprint: str) -> None:
    assert ptm("coord", "member", "admit", "nothing.json") == 2
    assert "nothing.json" in ptm.err


def test_only_a_coordinator_admits(ptm: Shell, fingerprint: str) -> None:
    ptm("coord", "member", "admit", "alice.request.json")
    ptm("alice", "join", ptm.url, "--root", fingerprint)
    assert ptm("alice", "member", "admit", "maastro.request.json") == 1
    assert "not a coordinator" in ptm.err


def test_control_characters_of_a_request_reach_no_terminal(ptm: Shell, fingerprint: str) -> None:
    code = ptm("eve", "member", "request", "--name", "eve", "--kind", "site", "--organisation", "\x1b[2Jevil", "-o", "eve.json")
    assert code == 2
    assert "\x1b" not in ptm.err


def test_a_key_that_others_can_read_is_refused(ptm: Shell, fingerprint: str) -> None:
    (ptm.path / "coord" / "keys" / "roles.pem").chmod(0o644)
    assert ptm("coord", "member", "admit", "alice.request.json") == 1
    assert "chmod 600" in ptm.err
