"""`ptm node approvals|unapprove`, as a steward types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_registry import Shell
from tests.federation import image_folder

POLICY = "[[allow]]\nimages = ['demo/.*:.*']\napproval = 'first-use'\n"


@pytest.fixture
def ptm(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A site that approved demo/count:1 when alice first used it."""
    monkeypatch.chdir(tmp_path)
    ptm = Shell(tmp_path, capsys)
    assert ptm("coord", "registry", "create", ptm.url) == 0
    root = ptm.out.strip()
    for name, kind in (("maastro", "site"), ("alice", "researcher")):
        assert ptm(name, "member", "request", "--name", name, "--kind", kind, "-o", f"{name}.json") == 0
        assert ptm("coord", "member", "admit", f"{name}.json") == 0
        assert ptm(name, "join", ptm.url, "--root", root) == 0
    image = image_folder(tmp_path / "count", "#!/bin/sh\n")
    init = ("--runner", "process", "--unsafe-no-sandbox", "--process-image", f"demo/count:1={image}")
    assert ptm("maastro", "node", "init", *init) == 0
    (tmp_path / "maastro" / "policy.toml").write_text(POLICY)
    task = put(ptm)
    watch(ptm)
    assert ptm("maastro", "node", "approve", task, "--by", "J. Jansen", "--reason", "seen the code") == 0
    watch(ptm)
    assert state(ptm, task) == "completed"
    return ptm


def put(ptm: Shell) -> str:
    assert ptm("alice", "task", "put", "--image", "demo/count:1", "--site", "maastro", "--expires", "1d") == 0
    return ptm.out.strip()


def watch(ptm: Shell) -> None:
    assert ptm("maastro", "node", "watch", "--once") == 0, ptm.err


def state(ptm: Shell, task: str) -> str:
    assert ptm("alice", "task", "show", task, "--json") == 0
    return str(json.loads(ptm.out)["states"][0]["state"])


def listed(ptm: Shell) -> list[dict[str, object]]:
    assert ptm("maastro", "node", "approvals", "--json") == 0
    found: list[dict[str, object]] = json.loads(ptm.out)
    return found


def test_an_approval_is_listed_taken_back_and_asked_for_again(ptm: Shell) -> None:
    (given,) = listed(ptm)
    assert (given["image"], given["approved"], given["by"], given["reason"]) == (
        "demo/count:1",
        True,
        "J. Jansen",
        "seen the code",
    )
    digest = str(given["image_digest"])
    assert ptm("maastro", "node", "approvals") == 0
    assert "demo/count:1" in ptm.out and "approved" in ptm.out

    take_back = ("unapprove", f"demo/count@{digest}", "--by", "M. de Vries", "--reason", "a flaw was found")
    assert ptm("maastro", "node", *take_back, "--dry-run") == 0
    assert "would be taken back" in ptm.err
    assert listed(ptm) == [given]
    for _ in range(2):
        assert ptm("maastro", "node", *take_back) == 0
        assert "by J. Jansen" in ptm.err and "is taken back, by M. de Vries" in ptm.err
    (taken,) = listed(ptm)
    assert (taken["approved"], taken["by"], taken["approved_by"]) == (False, "M. de Vries", "J. Jansen")
    assert ptm("maastro", "node", *take_back, "--json") == 0
    assert json.loads(ptm.out)["image_digest"] == digest

    task = put(ptm)
    watch(ptm)
    assert state(ptm, task) == "awaiting_approval"
    assert ptm("maastro", "node", "audit", "--json", "--last", "10") == 0
    (entry,) = [entry for entry in json.loads(ptm.out) if entry["event"] == "image-unapproved"]
    assert (entry["facts"]["by"], entry["facts"]["reason"]) == ("M. de Vries", "a flaw was found")


def test_nothing_approved_is_said_so(ptm: Shell) -> None:
    assert ptm("maastro", "node", "unapprove", str(listed(ptm)[0]["image_digest"]), "--by", "x", "--reason", "y") == 0
    assert ptm("maastro", "node", "unapprove", "sha256:" + "0" * 64, "--by", "x", "--reason", "y") == 2
    assert "`ptm node approvals` lists what is approved" in ptm.err
    assert ptm("maastro", "node", "unapprove", "demo/count:1", "--by", "x", "--reason", "y") == 2
    assert "names no digest" in ptm.err


def test_only_a_site_takes_back(ptm: Shell) -> None:
    assert ptm("alice", "node", "approvals") == 2
    assert "only a site decides" in ptm.err
