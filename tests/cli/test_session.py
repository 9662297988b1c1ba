"""The issue's "A real session", command for command, on a folder and on MinIO, in containers and in processes; and what a
researcher meets when a site fails, does not answer, or they themselves lose patience."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.walk import MISSING_TASK, WATCH, WHOLE_PUT, Walk, copied, make_federation
from tests.commandline import CommandLine
from tests.servers import build_image

pytestmark = pytest.mark.slow
COUNT = """#!/usr/bin/python3
import json, os, pathlib
rows = len(pathlib.Path(os.environ["DATABASE_URI"]).read_text().splitlines()) - 1
limit = json.loads(pathlib.Path(os.environ["PTM_INPUT_DIR"], "params.json").read_text())["at_least"]
out = pathlib.Path(os.environ["PTM_OUTPUT_DIR"], "count.json")
out.write_text(json.dumps({"rows": rows if rows >= limit else None}))
print("counted at", os.environ["PTM_SITE"])
"""


@pytest.fixture(scope="module")
def pulled_from(docker_engine: Any, base_image: str, image_registry: Any) -> str:
    """The image registry that has `myconsortium/count:1`; the engine has it not."""
    built = build_image(docker_engine, base_image, "ptm-session/count:1", {"/run.py": COUNT}, ["/run.py"])
    image_registry.push(built, "myconsortium/count:1")
    return str(image_registry.host)


def said(line: CommandLine, command: str) -> str:
    """What a command, written as in a shell, has on stdout; it has to succeed."""
    return line.ok(*shlex.split(command))


def the_session(line: CommandLine, url: str, init: str) -> str:
    """Every command of the issue, in its order and its form; returns the task's id. Only the folders differ, and `init` adds
    options to `node init`."""
    (line.folder / "cohort.csv").write_text("age\n61\n57\n70\n")
    (line.folder / "params.json").write_text('{"at_least": 2}')
    fingerprint = said(line, f"--home coord registry create {url}")
    assert len(bytes.fromhex(fingerprint)) == 32
    assert said(line, "--home maastro member request --name maastro --kind site -o maastro.request.json") == ""
    assert said(line, "--home alice   member request --name alice   --kind researcher -o alice.request.json") == ""
    said(line, "--home coord   member admit maastro.request.json alice.request.json")
    said(line, f"--home maastro join {url} --root {fingerprint}")
    said(line, f"--home alice   join {url} --root {fingerprint}")
    said(line, f"--home maastro node init --image 'myConsortium/.*:.*' --data cohort={line.folder}/cohort.csv {init}")
    said(line, "--home maastro node check")
    put = "task put --image myConsortium/count:1 --site maastro --input params.json --data cohort --purpose '…' --expires 7d"
    task = said(line, f"--home alice   {put}")
    assert len(task) == 26
    assert "queued" in said(line, f"--home alice task show {task}")
    said(line, "--home maastro node watch --once")
    table = said(line, f"--home alice   results fetch {task} --wait --timeout 600 -o out").splitlines()
    assert table[0] == "site      state       exit code   duration   files   image digest   reason"
    assert table[2].split()[:3] == ["maastro", "completed", "0"]
    place = line.folder / "out" / "maastro"
    assert {path.name for path in place.iterdir()} == {"count.json", "result.json", "log.txt", "task.json"}
    assert json.loads((place / "count.json").read_text()) == {"rows": 3}
    assert (place / "log.txt").read_text() == "counted at maastro\n"
    assert json.loads((place / "result.json").read_text())["signed"]["type"] == "ptm/result@1"
    verified = line.run("--home", "alice", "results", "verify", "out")
    assert (verified.code, verified.err) == (0, "verified 1 result(s) in out\n")
    return task


def looked_at(line: CommandLine, task: str) -> None:
    """All that is shown or listed, as a program reads it; with PTM_HOME in place of --home."""
    alice = CommandLine(line.folder, {**(line.variables or {}), "PTM_HOME": str(line.folder / "alice")})
    assert [found["id"] for found in json.loads(alice.ok("task", "list", "--json"))] == [task]
    assert json.loads(alice.ok("task", "show", task, "--json"))["states"][0]["state"] == "completed"
    assert json.loads(alice.ok("results", "list", "--json"))[0]["state"] == "completed"
    (result,) = json.loads(alice.ok("results", "fetch", task, "-o", "out", "--json"))
    assert (result["exit_code"], result["files"]) == (0, ["count.json"])
    assert json.loads(alice.ok("results", "verify", "out", "--json"))[0]["task"] == task
    assert [m["name"] for m in json.loads(alice.ok("member", "list", "--json"))] == ["coordinator", "maastro", "alice"]
    assert json.loads(alice.ok("registry", "show", "--json"))["members"] == 3
    assert "completed" in alice.ok("results", "list")
    assert task in alice.ok("task", "list")


def test_the_session_on_a_folder(tmp_path: Path, pulled_from: str) -> None:
    line = CommandLine(tmp_path)
    mirror = f"--runner docker --mirror myConsortium/={pulled_from}/myconsortium/"
    task = the_session(line, f"file://{tmp_path}/registry", mirror)
    looked_at(line, task)
    result = json.loads((tmp_path / "out" / "maastro" / "result.json").read_text())["signed"]
    assert result["image"] == "myConsortium/count:1"
    assert result["image_digest"].startswith("sha256:")


def test_the_session_on_minio(tmp_path: Path, pulled_from: str, minio: Any) -> None:
    line = CommandLine(tmp_path, minio.env())
    url = f"'s3://ptm-cli-session/study?endpoint_url={minio.endpoint_url}&region=us-east-1'"
    looked_at(line, the_session(line, url, f"--runner docker --mirror myConsortium/={pulled_from}/myconsortium/"))


def test_the_session_in_processes(tmp_path: Path) -> None:
    (tmp_path / "count").mkdir()
    (tmp_path / "count" / "run").write_text(COUNT)
    (tmp_path / "count" / "run").chmod(0o755)
    line = CommandLine(tmp_path)
    process = "--runner process --unsafe-no-sandbox --process-image 'myConsortium/count:1=./count'"
    looked_at(line, the_session(line, f"file://{tmp_path}/registry", process))


# what goes wrong


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation whose second site, umcu, allows nothing."""
    folder = tmp_path_factory.mktemp("session")
    make_federation(folder)
    line = CommandLine(folder)
    line.ok("--home", "umcu", "member", "request", "--name", "umcu", "--kind", "site")
    line.ok("--home", "coord", "member", "admit", "umcu.request.json")
    root = json.loads(line.ok("--home", "coord", "registry", "show", "--json"))["root"]["fingerprint"]
    line.ok("--home", "umcu", "join", f"file://{folder}/registry", "--root", root)
    line.ok("--home", "umcu", "node", "init", "--runner", "process", "--unsafe-no-sandbox")
    return folder


@pytest.fixture
def walk(made: Path, tmp_path: Path) -> Iterator[Walk]:
    yield copied(made, tmp_path / "w")


def fetch(task: str, *more: str) -> tuple[str, ...]:
    return ("--home", "alice", "results", "fetch", task, "-o", "out", *more)


def test_a_failed_site_is_13_and_the_completed_one_is_delivered(walk: Walk) -> None:
    task = walk.line.ok(*WHOLE_PUT, "--site", "umcu", "--data", "cohort")
    walk.line.ok(*WATCH)
    walk.line.ok("--home", "umcu", "node", "watch", "--once")
    answer = walk.line.run(*fetch(task, "--wait", "--timeout", "60", "--json"))
    assert answer.code == 13
    assert answer.err.startswith("ptm: error: 1 of 2 runs did not complete: umcu rejected: the site's policy does not allow")
    assert {run["site"]: run["state"] for run in json.loads(answer.out)} == {"maastro": "completed", "umcu": "rejected"}
    assert json.loads((walk.folder / "out" / "maastro" / "count.json").read_text())["rows"] == 3
    assert "verified 2 result(s)" in walk.line.run("--home", "alice", "results", "verify", "out").err


@pytest.mark.parametrize("wait", [(), ("--wait", "--timeout", "1")])
def test_a_silent_site_is_14_and_the_completed_one_is_delivered(walk: Walk, wait: tuple[str, ...]) -> None:
    task = walk.line.ok(*WHOLE_PUT, "--site", "umcu", "--data", "cohort")
    walk.line.ok(*WATCH)
    answer = walk.line.run(*fetch(task, *wait))
    assert (answer.code, answer.out.count("completed")) == (14, 1)
    assert answer.err.startswith("ptm: error: no result yet from 1 of 2 sites: umcu is queued\nptm: hint: ")
    assert (walk.folder / "out" / "maastro" / "count.json").exists()
    walk.line.ok("--home", "umcu", "node", "watch", "--once")
    assert walk.line.run(*fetch(task, *wait)).code == 13


def test_ctrl_c_while_waiting_is_130_and_breaks_nothing(walk: Walk) -> None:
    task = walk.line.ok(*WHOLE_PUT, "--site", "umcu", "--data", "cohort")
    walk.line.ok(*WATCH)
    waiting = walk.line.start(*fetch(task, "--wait"))
    deadline = time.monotonic() + 30
    while not (walk.folder / "out" / "maastro").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(timeout=20) == 130
    (log,) = walk.folder.glob("*.log")
    assert log.read_text().splitlines()[-1] == "ptm: error: interrupted"
    assert "Traceback" not in log.read_text()
    assert [path.name for path in (walk.folder / "out").iterdir()] == ["maastro"]
    assert "verified 1 result(s)" in walk.line.run("--home", "alice", "results", "verify", "out").err
    walk.line.ok("--home", "umcu", "node", "watch", "--once")
    assert walk.line.run(*fetch(task, "--wait")).code == 13


def test_a_task_file_takes_the_place_of_flags_and_flags_win(walk: Walk) -> None:
    (walk.folder / "in").mkdir()
    (walk.folder / "in" / "params.json").write_text("{}")
    wish = {
        "image": "demo/count:1",
        "sites": ["umcu"],
        "expires": "1d",
        "inputs": {"params.json": "params.json"},
        "data": ["cohort"],
    }
    (walk.folder / "in" / "task.json").write_text(json.dumps(wish))
    dry = walk.line.run("--home", "alice", "task", "put", "in/task.json", "--dry-run")
    assert (dry.code, dry.out, dry.err) == (0, "", "this task could be put: demo/count:1 at umcu\n")
    assert json.loads(walk.line.ok("--home", "alice", "task", "list", "--json")) == []
    task = walk.line.ok("--home", "alice", "task", "put", "in/task.json", "--site", "maastro")
    shown = json.loads(walk.line.ok("--home", "alice", "task", "show", task, "--json"))
    assert (shown["sites"], shown["data"]) == (["maastro"], ["cohort"])
    walk.line.ok(*WATCH)
    walk.line.ok(*fetch(task))
    assert json.loads((walk.folder / "out" / "maastro" / "count.json").read_text())["inputs"] == {"params.json": "{}"}


def test_a_canceled_task_does_not_run_and_says_so(walk: Walk) -> None:
    task = walk.line.ok(*WHOLE_PUT)
    canceled = walk.line.run("--home", "alice", "task", "cancel", task, "--reason", "wrong cohort")
    assert (canceled.code, canceled.out) == (0, "")
    walk.line.ok(*WATCH)
    answer = walk.line.run(*fetch(task))
    assert answer.code == 13
    assert "maastro canceled" in answer.err
    assert json.loads(walk.line.ok("--home", "alice", "results", "list", "--json"))[0]["state"] == "canceled"
    again = walk.line.run("--home", "alice", "task", "cancel", task)
    assert (again.code, again.err) == (0, "already have a result from: maastro\n")


def test_a_put_that_is_finished_later_makes_no_second_task(walk: Walk) -> None:
    task = walk.line.ok(*WHOLE_PUT, "--site", "umcu")
    for entry in (walk.folder / "registry" / "queue" / "umcu").rglob("*.json"):
        entry.unlink()
    states = json.loads(walk.line.ok("--home", "alice", "task", "show", task, "--json"))["states"]
    assert [state["state"] for state in states] == ["queued", "not put"]
    assert walk.line.ok("--home", "alice", "task", "put", "--task", task) == task
    assert [found["id"] for found in json.loads(walk.line.ok("--home", "alice", "task", "list", "--json"))] == [task]
    walk.line.ok("--home", "umcu", "node", "watch", "--once")
    assert "rejected" in walk.line.ok("--home", "alice", "task", "show", task)


def test_a_reader_that_goes_away_is_no_error(walk: Walk) -> None:
    for words in (("--help",), ("task", "put", "--help"), ("--home", "alice", "member", "list")):
        piped = subprocess.run(
            ["bash", "-o", "pipefail", "-c", '"$@" | true', "bash", sys.executable, "-m", "ptm", *words],
            cwd=walk.folder,
            env=walk.line.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert piped.stderr == ""


def test_an_id_that_nobody_has_is_said_to_be_unknown(walk: Walk) -> None:
    walk.refused(*fetch(MISSING_TASK, "--wait"), code=10, says=f"alice has no task {MISSING_TASK}", hint="ptm task list")
