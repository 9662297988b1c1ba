"""`ptm registry` on a folder: what goes to stdout, what to stderr, and which exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptm import coordinator
from ptm.cli.main import run
from ptm.config import Home, load_profile
from ptm.store.urls import make_store
from tests.registries import DAY, NOW


class Shell:
    """Runs command lines in one folder; the last one's output."""

    def __init__(self, path: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.path, self._capture = path, capture
        self.url = f"file://{path}/reg"
        self.out = self.err = ""

    def __call__(self, home: str, *arguments: str) -> int:
        code = run(["--home", str(self.path / home), *arguments])
        self.out, self.err = self._capture.readouterr()
        return code

    def json(self, home: str, *arguments: str) -> Any:
        assert self(home, *arguments, "--json") == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def ptm(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


def test_create_prints_the_fingerprint_and_nothing_else(ptm: Shell) -> None:
    assert ptm("coord", "registry", "create", ptm.url) == 0
    assert len(ptm.out.strip()) == 64
    assert int(ptm.out, 16) >= 0
    assert "fingerprint" in ptm.err


def test_create_twice_is_already_there(ptm: Shell) -> None:
    ptm("coord", "registry", "create", ptm.url)
    assert ptm("coord", "registry", "create", ptm.url) == 12
    assert ptm.err.startswith("ptm: error: there is a registry")
    assert "ptm: hint:" in ptm.err
    assert ptm.out == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["http://example"], 2),
        (["reg"], 2),
        (["file:///dev/null/reg"], 10),
        (["{url}", "--threshold", "2"], 2),
        (["{url}", "--threshold", "0"], 2),
        (["{url}", "--member-name", "A b"], 2),
    ],
)
def test_a_bad_create_is_one_line_and_a_code(ptm: Shell, arguments: list[str], code: int) -> None:
    assert ptm("coord", "registry", "create", *(a.replace("{url}", ptm.url) for a in arguments)) == code
    assert ptm.err.count("ptm: error:") == 1
    assert "Traceback" not in ptm.err
    assert ptm.out == ""


def test_show_tells_the_root_and_the_expiries(ptm: Shell) -> None:
    ptm("coord", "registry", "create", ptm.url, "--name", "Lung study")
    fingerprint = ptm.out.strip()
    shown = ptm.json("coord", "registry", "show")
    assert shown["root"]["fingerprint"] == fingerprint
    assert (shown["name"], shown["members"], shown["root"]["threshold"], shown["warnings"]) == ("Lung study", 1, 1, [])
    assert set(shown["expires"]) == {"root", "targets", "snapshot", "timestamp"}
    assert ptm("coord", "registry", "show") == 0
    assert fingerprint in ptm.out
    assert "Lung study" in ptm.out


def old_registry(ptm: Shell, days: int) -> Home:
    home = Home(ptm.path / "coord").make()
    coordinator.create_registry(
        make_store(ptm.url), home, name="", organisation="", root_keys=[], threshold=1, now=NOW - days * DAY
    )
    return home


def test_show_warns_well_before_an_expiry(ptm: Shell) -> None:
    old_registry(ptm, 25)
    assert ptm("coord", "registry", "show") == 0
    assert "warning: the timestamp expires in" in ptm.err
    assert "ptm registry renew" in ptm.err
    assert len(ptm.json("coord", "registry", "show")["warnings"]) == 1


def test_an_expired_registry_is_refused_until_it_is_renewed(ptm: Shell) -> None:
    old_registry(ptm, 40)
    assert ptm("coord", "registry", "show") == 11
    assert "timestamp expired" in ptm.err
    assert "renew" in ptm.err
    assert ptm("coord", "registry", "renew") == 0
    assert "timestamp" in ptm.out
    assert ptm("coord", "registry", "show") == 0


def test_renew_says_when_what_expires(ptm: Shell) -> None:
    ptm("coord", "registry", "create", ptm.url)
    assert set(ptm.json("coord", "registry", "renew")["expires"]) == {"root", "targets", "snapshot", "timestamp"}


def test_two_of_three_root_keys_and_a_rotation(ptm: Shell) -> None:
    keys = [part for name in "abc" for part in ("--root-key", f"{name}.pem")]
    assert ptm("coord", "registry", "create", ptm.url, *keys, "--threshold", "2") == 0
    first = ptm.out.strip()
    assert ptm("coord", "registry", "rotate-root", "--sign-with", "a.pem") == 2
    assert "too few" in ptm.err
    rotation = ["--sign-with", "a.pem", "--sign-with", "b.pem", "--remove-key", "a.pem", "--add-key", "d.pem"]
    assert ptm("coord", "registry", "rotate-root", *rotation) == 0
    second = ptm.out.strip()
    assert second != first
    root = ptm.json("coord", "registry", "show")["root"]
    assert (root["version"], root["fingerprint"], root["threshold"], len(root["keys"])) == (2, second, 2, 3)


def test_probe_leaves_nothing_behind(ptm: Shell) -> None:
    ptm("coord", "registry", "create", ptm.url)
    found = ptm.json("coord", "registry", "probe")
    assert found["exclusive_create"] is found["shareable"] is True
    store = make_store(load_profile(Home(ptm.path / "coord")).registry)
    assert [info.key for info in store.list("users/")] == []


@pytest.mark.parametrize("command", ["show", "renew", "rotate-root", "probe"])
def test_a_home_without_a_registry_is_told_so(ptm: Shell, command: str) -> None:
    assert ptm("nobody", "registry", command) == 2
    assert "has not joined" in ptm.err


@pytest.mark.parametrize(
    "command",
    [
        *(f"registry {name}" for name in ("create", "show", "renew", "rotate-root", "probe")),
        *(f"member {name}" for name in ("request", "admit", "revoke", "list")),
        "join",
    ],
)
def test_every_commands_help_has_an_example(ptm: Shell, command: str) -> None:
    assert ptm("x", *command.split(), "--help") == 0
    assert "Example" in ptm.out
    assert f"ptm {command}" in ptm.out
