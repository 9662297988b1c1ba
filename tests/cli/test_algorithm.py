"""`ptm algorithm` and `ptm registry reviewers`: three reviewers and a coordinator, each with a home of their own, on a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptm.cli.main import run

COUNT, PLOT = f"lab/count@sha256:{'a' * 64}", f"lab/plot:2@sha256:{'b' * 64}"


class Shell:
    """Runs command lines in one folder; the last one's output."""

    def __init__(self, path: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.path, self._capture = path, capture
        self.out = self.err = ""

    def __call__(self, home: str, *arguments: str) -> int:
        code = run(["--home", str(self.path / home), *arguments])
        self.out, self.err = self._capture.readouterr()
        return code

    def ok(self, home: str, *arguments: str) -> str:
        assert self(home, *arguments) == 0, self.err
        return self.out

    def json(self, home: str, *arguments: str) -> Any:
        return json.loads(self.ok(home, *arguments, "--json"))


@pytest.fixture
def ptm(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A registry whose members alice, bob and carol have joined; nobody reviews yet."""
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path, capsys)
    url = f"file://{tmp_path}/reg"
    root = shell.ok("coord", "registry", "create", url).strip()
    for name in ("alice", "bob", "carol"):
        shell.ok(name, "member", "request", "--name", name, "--kind", "researcher")
    shell.ok("coord", "member", "admit", *(f"{name}.request.json" for name in ("alice", "bob", "carol")))
    for name in ("alice", "bob", "carol"):
        shell.ok(name, "join", url, "--root", root)
    return shell


@pytest.fixture
def board(ptm: Shell) -> Shell:
    """… and two of the three have to sign."""
    ptm.ok("coord", "registry", "reviewers", "--add", "alice", "--add", "bob", "--add", "carol", "--threshold", "2")
    return ptm


def digests(shell: Shell, home: str = "carol") -> list[str]:
    return [image["digest"][7:8] for image in shell.json(home, "algorithm", "list")["reviewed"]]


def test_two_of_three_reviewers_approve_an_image_and_the_coordinator_publishes(board: Shell) -> None:
    assert board("alice", "algorithm", "approve", COUNT) == 0
    assert f"+ {COUNT}: 1 of 2 signatures" in board.err
    assert board.out == ""
    assert "1 of 2 signatures (alice)" in board.ok("bob", "algorithm", "list")
    assert digests(board) == []
    board.ok("coord", "algorithm", "publish")
    assert "1 of 2 signatures" in board.err
    assert "nothing to publish" in board.err
    board.ok("bob", "algorithm", "approve", COUNT)
    assert "the coordinator publishes it" in board.err
    board.ok("coord", "algorithm", "publish")
    assert f"published: + {COUNT}" in board.err
    assert digests(board) == ["a"]
    board.ok("carol", "algorithm", "list")
    assert "signed by alice, bob" in board.err


def test_renew_publishes_too_and_a_withdrawal_goes_the_same_way(board: Shell) -> None:
    for command, left in (("approve", ["a", "b"]), ("withdraw", [])):
        for name in ("alice", "carol"):
            board.ok(name, "algorithm", command, COUNT, PLOT)
        board.ok("coord", "registry", "renew")
        assert digests(board) == left


def test_a_reviewer_who_is_the_coordinator_publishes_with_the_last_signature(board: Shell) -> None:
    board.ok("coord", "registry", "reviewers", "--add", "coordinator")
    board.ok("alice", "algorithm", "approve", COUNT)
    assert board.json("coord", "algorithm", "approve", COUNT)["published"] is True
    assert digests(board) == ["a"]


def test_a_proposal_that_another_made_void_is_named(board: Shell) -> None:
    board.ok("alice", "algorithm", "approve", COUNT)
    board.ok("bob", "algorithm", "approve", PLOT)
    board.ok("carol", "algorithm", "approve", COUNT)
    board.ok("coord", "algorithm", "publish")
    assert "void now, to be signed again: + lab/plot@" in board.err
    assert "(signed by bob)" in board.err


@pytest.mark.parametrize(
    ("home", "arguments", "code", "said"),
    [
        ("dave", ["approve", COUNT], 2, "has not joined"),
        ("alice", ["approve", "lab/count:1"], 2, "no digest"),
        ("alice", ["approve"], 2, "Missing argument"),
        ("alice", ["withdraw", COUNT], 2, "not on the list"),
        ("alice", ["publish"], 1, "not a coordinator's home"),
        ("coord", ["approve", COUNT], 11, "not a reviewer"),
    ],
)
def test_a_refusal_is_one_line_and_a_code(board: Shell, home: str, arguments: list[str], code: int, said: str) -> None:
    assert board(home, "algorithm", *arguments) == code
    assert said in board.err
    assert board.err.count("ptm: error:") == 1
    assert "ptm: hint:" in board.err
    assert board.out == ""


def test_approving_twice_is_told_how_far_it_is(board: Shell) -> None:
    board.ok("alice", "algorithm", "approve", COUNT)
    assert board("alice", "algorithm", "approve", COUNT) == 12
    assert "1 of 2 signatures" in board.err


def test_reviewers_are_shown_and_a_lapsed_list_is_warned_of(board: Shell) -> None:
    for name in ("alice", "bob"):
        board.ok(name, "algorithm", "approve", COUNT)
    board.ok("coord", "algorithm", "publish")
    assert board.json("carol", "registry", "reviewers") == {"reviewers": ["alice", "bob", "carol"], "threshold": 2}
    assert board("coord", "registry", "reviewers", "--threshold", "3") == 0
    assert "2 of 3 signatures" in board.err
    assert board("carol", "algorithm", "list") == 0
    assert "lapsed" in board.out
    assert "no image counts as reviewed" in board.err
    assert digests(board) == []


def test_without_reviewers_the_list_says_so(ptm: Shell) -> None:
    ptm.ok("alice", "algorithm", "list")
    assert "no reviewers" in ptm.err
    ptm.ok("alice", "registry", "reviewers")
    assert "nobody reviews" in ptm.err
    assert ptm("alice", "algorithm", "approve", COUNT) == 11
    assert ptm("coord", "registry", "reviewers", "--add", "alice") == 2
    assert "--threshold" in ptm.err


def test_names_from_the_bucket_are_clean_on_a_terminal(board: Shell) -> None:
    """A key of any other shape, or a file that is no list, is shown to nobody."""
    folder = board.path / "reg" / "trust" / "pending" / "alice"
    folder.mkdir(parents=True)
    (folder / f"1.{'0' * 64}.json").write_text('{"signed": "\x1b[2J"}')
    board.ok("bob", "algorithm", "list")
    assert "\x1b" not in board.out + board.err
