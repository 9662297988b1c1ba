"""`ptm node pending|show|approve|deny|release|withhold|audit`, as a steward types them beside a running node."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click import Command
from click.testing import CliRunner, Result

from ptm.cli import node_decide
from ptm.node import decisions
from ptm.store.memory import MemoryStore
from tests.commandline import CommandLine
from tests.federation import Federation, image_folder

SCRIPT = """#!/bin/sh
cp "$PTM_INPUT_DIR/params.json" "$PTM_OUTPUT_DIR/echo.json"
echo 'n\n3' > "$PTM_OUTPUT_DIR/rare.csv"
"""
PARAMS = '{"min_age": 60} \x1b[31mred'
POLICY = """
[[allow]]
images = ['demo/.*:.*']
approval = "manual"
release = "manual"
outputs = { min_cell = 10 }
"""


class Sites:
    """A registry in a folder, a researcher and a site whose node runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ptm = folder, CommandLine(folder)

    def __call__(self, home: str, *words: str) -> str:
        return self.ptm.ok("--home", str(self.folder / home), *words)

    def fails(self, home: str, *words: str) -> tuple[int, str]:
        answer = self.ptm.run("--home", str(self.folder / home), *words)
        assert answer.code != 0
        assert "Traceback" not in answer.err
        return answer.code, answer.err

    def put(self) -> str:
        return self(
            "alice", "task", "put", "--image", "demo/echo:1", "--site", "maastro", "--input", "params.json",
            "--purpose", "Look here", "--expires", "1d",
        )  # fmt: skip

    def state(self, task: str) -> str:
        found: str = json.loads(self("alice", "task", "show", task, "--json"))["states"][0]["state"]
        return found

    def reaches(self, task: str, state: str) -> None:
        wait_for(lambda: self.state(task) == state)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    sites = Sites(tmp_path_factory.mktemp("decide"))
    (sites.folder / "params.json").write_text(PARAMS)
    url = f"file://{sites.folder}/registry"
    root = sites("coord", "registry", "create", url)
    for name, kind in (("maastro", "site"), ("alice", "researcher")):
        sites(name, "member", "request", "--name", name, "--kind", kind, "-o", f"{name}.json")
    sites("coord", "member", "admit", "maastro.json", "alice.json")
    for name in ("maastro", "alice"):
        sites(name, "join", url, "--root", root)
    image = image_folder(sites.folder / "echo", SCRIPT)
    sites("maastro", "node", "init", "--runner", "process", "--unsafe-no-sandbox", "--process-image", f"demo/echo:1={image}")
    (sites.folder / "maastro" / "policy.toml").write_text(POLICY)
    settings = sites.folder / "maastro" / "node.toml"
    settings.write_text(settings.read_text().replace("poll_s = 5.0", "poll_s = 0.2"))
    node = sites.ptm.start("--home", str(sites.folder / "maastro"), "node", "watch")
    try:
        yield sites
    finally:
        node.terminate()
        try:
            node.wait(20)
        except subprocess.TimeoutExpired:
            node.kill()


@pytest.mark.slow
def test_a_steward_approves_looks_withholds_one_file_and_releases_the_rest(sites: Sites) -> None:
    task = sites.put()
    sites.reaches(task, "awaiting_approval")
    (waiting,) = json.loads(sites("maastro", "node", "pending", "--json"))
    assert (waiting["task"], waiting["waits_for"], waiting["user"], waiting["image"]) == (
        task,
        "approval",
        "alice",
        "demo/echo:1",
    )
    shown = sites("maastro", "node", "show", task, "--inputs", str(sites.folder / "look"))
    assert '{"min_age": 60}' in shown
    assert waiting["image_digest"] in shown
    assert "\x1b" not in shown + sites("maastro", "node", "pending")
    assert (sites.folder / "look" / "params.json").read_text() == PARAMS

    sites("maastro", "node", "approve", task, "--by", "J. Jansen", "--expect", waiting["bound_to"])
    sites.reaches(task, "awaiting_release")
    held = json.loads(sites("maastro", "node", "show", task, "--json"))
    assert [file["name"] for file in held["held"]] == ["echo.json", "rare.csv", "log.txt"]
    assert [(finding["file"], finding["rule"]) for finding in held["findings"]] == [
        ("echo.json", "min_cell"),
        ("rare.csv", "min_cell"),
    ]
    assert (Path(held["folder"]) / "rare.csv").read_text() == "n\n3\n"
    assert "row 2, column 1 has 3, below 10" in sites("maastro", "node", "show", task)

    sites("maastro", "node", "withhold", task, "--by", "J. Jansen", "--reason", "small", "--file", "rare.csv")
    said = sites("maastro", "node", "release", task, "--by", "J. Jansen", "--reason", "fine")
    assert [line.split()[::2] for line in said.splitlines()[2:]] == [
        ["echo.json", "leaves"],
        ["log.txt", "leaves"],
        ["rare.csv", "withheld"],
    ]
    sites.reaches(task, "completed")
    sites("alice", "results", "fetch", task, "-o", "out")
    assert sorted(path.name for path in (sites.folder / "out" / "maastro").iterdir()) == [
        "echo.json", "log.txt", "result.json", "task.json",
    ]  # fmt: skip
    decided = json.loads((sites.folder / "out" / "maastro" / "result.json").read_text())["signed"]["decided_by"]
    assert [(d["what"], d["by"]) for d in decided] == [
        ("approved", "J. Jansen"),
        ("withheld", "J. Jansen"),
        ("released", "J. Jansen"),
    ]
    assert json.loads(sites("maastro", "node", "pending", "--json")) == []

    said = sites("maastro", "node", "audit", "--task", task)
    assert [line.split()[1] for line in said.splitlines()][:4] == ["approval-asked", "approved", "task-accepted", "run-started"]
    report = json.loads(sites("maastro", "node", "audit", "--verify", "--json"))
    assert report["whole"] is True
    assert len(json.loads(sites("maastro", "node", "audit", "--last", "3", "--json"))) == 3


@pytest.mark.slow
def test_a_denial_reaches_the_researcher(sites: Sites) -> None:
    task = sites.put()
    sites.reaches(task, "awaiting_approval")
    sites("maastro", "node", "deny", task, "--by", "J. Jansen", "--reason", "no ethics approval")
    sites.reaches(task, "rejected")
    code, said = sites.fails("alice", "results", "fetch", task, "-o", "denied")
    assert code == 13
    assert "denied by the site (J. Jansen): no ethics approval" in said


@pytest.mark.slow
def test_what_cannot_be_decided_is_said_in_one_line_with_a_hint(sites: Sites) -> None:
    code, said = sites.fails("maastro", "node", "approve", "01KAMV3ZR5F2J7Q8XG4M1W9ABC", "--by", "J. Jansen")
    assert (code, len(said.splitlines())) == (2, 2)
    assert "ptm node pending" in said
    assert sites.fails("maastro", "node", "deny", "01KAMV3ZR5F2J7Q8XG4M1W9ABC", "--by", "J. Jansen")[0] == 2
    assert "only a site decides" in sites.fails("alice", "node", "pending")[1]


@pytest.mark.slow
def test_a_changed_audit_log_is_found_out_by_the_command(sites: Sites, tmp_path: Path) -> None:
    log = sites.folder / "maastro" / "audit.jsonl"
    copy = sites.folder / "changed"
    copy.mkdir()
    for name in ("keys", "trust", "profile.toml", "node.toml"):
        (copy / name).symlink_to(sites.folder / "maastro" / name)
    lines = log.read_bytes().splitlines(keepends=True)
    (copy / "audit.jsonl").write_bytes(b"".join([lines[0].replace(b"process", b"docker!"), *lines[1:]]))
    code, said = sites.fails("changed", "node", "audit", "--verify")
    assert code == 11
    assert "entry 1 was changed" in said
    (copy / "audit.jsonl").write_bytes(lines[0])
    code, said = sites.fails("changed", "node", "audit", "--verify")
    assert code == 11
    assert "there is no entry" in said


def test_a_release_prints_which_files_leave_and_which_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", maastro="site")
    images = {"demo/echo:1": image_folder(tmp_path / "echo", SCRIPT)}
    task = federation.client().put("demo/echo:1", ["maastro"], inputs={"params.json": b"{}"})
    federation.run_once("maastro", images=images, rule={"release": "manual"})
    monkeypatch.setattr(node_decide, "site_registry", lambda home: federation.registry("maastro"))

    def steward(command: Command, *words: str) -> Result:
        answer = CliRunner().invoke(command, [task.id, "--by", "J. Jansen", *words], obj=None)
        assert answer.exit_code == 0, answer.output
        return answer

    steward(node_decide.withhold, "--file", "rare.csv", "--reason", "small")
    said = steward(node_decide.release, "--reason", "fine")
    rows = [line.split() for line in said.stdout.splitlines()[2:]]
    assert rows == [["echo.json", "2", "leaves"], ["log.txt", "0", "leaves"], ["rare.csv", "4", "withheld"]]
    assert "released by J. Jansen" in said.stderr

    again = json.loads(steward(node_decide.release, "--json").stdout)
    assert (again["task"], again["what"], again["by"], again["reason"]) == (task.id, "released", "J. Jansen", "fine")
    assert [(file["name"], file["size"]) for file in again["leaves"]] == [("echo.json", 2), ("log.txt", 0)]
    assert [(file["name"], file["size"]) for file in again["withheld"]] == [("rare.csv", 4)]


def test_a_release_of_no_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", maastro="site")
    images = {"demo/echo:1": image_folder(tmp_path / "echo", SCRIPT)}
    task = federation.client().put("demo/echo:1", ["maastro"], inputs={"params.json": b"{}"})
    federation.run_once("maastro", images=images, rule={"release": "manual"})
    site = federation.registry("maastro")
    decisions.withhold(site, task.id, by="J. Jansen", reason="small", files=["echo.json", "rare.csv", "log.txt"])
    monkeypatch.setattr(node_decide, "site_registry", lambda home: site)
    said = CliRunner().invoke(node_decide.release, [task.id, "--by", "J. Jansen"], obj=None)
    assert "leaves" not in said.stdout
    assert "no file leaves, only how the run ended" in said.stderr


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)
