"""`ptm demo` as a person runs it: a process of its own, three real nodes, real tasks and results."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from ptm.demo import engine
from ptm.demo.data import LABELS
from ptm.demo.federation import HOSPITALS
from ptm.demo.folder import make_folder
from ptm.errors import AlreadyExists, RunnerError

PTM = (sys.executable, "-m", "ptm")
LIMIT_S = 60
NO_ENGINE = "unix:///nonexistent/engine.sock"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Demo:
    """One that has ended."""

    folder: Path
    code: int
    out: str
    err: str
    seconds: float


def run_demo(folder: Path, *options: str, **env: str) -> Demo:
    begun = time.monotonic()
    done = subprocess.run(
        [*PTM, "demo", "--output", str(folder), *options],
        env=os.environ | env,
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT_S,
        check=False,
    )
    return Demo(folder, done.returncode, done.stdout, done.stderr, time.monotonic() - begun)


@contextmanager
def demo_in_its_rounds(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A demo that is just at it: alice has a result of round 2."""
    with subprocess.Popen(
        [*PTM, "demo", "--output", str(folder), *(options or ("--runner", "process"))],
        cwd=folder.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as demo:
        try:
            wait_until((folder / "results" / "round-2").exists)
            yield demo
        finally:
            demo.kill()


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def processes_of(folder: Path) -> dict[int, str]:
    """All processes that work in a folder (nodes, runs, the guard) or name it, with their command lines."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place, line = (process / "cwd").readlink(), (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if place.is_relative_to(folder) or str(folder) in line:
            found[int(process.name)] = line.replace("\0", " ").strip()
    return found


def nodes_of(folder: Path) -> dict[str, int]:
    """The process of each hospital's node."""
    lines = {line: pid for pid, line in processes_of(folder).items()}
    return {name: pid for line, pid in lines.items() for name in HOSPITALS if line.endswith(f"/{name} node watch")}


def containers_of(engine: docker.DockerClient, folder: Path) -> list[Any]:
    """All containers of a demo's registry, also while some are being removed."""
    registry = json.loads((folder / "registry" / "ptm.json").read_bytes())["registry"]
    found: list[Any] = engine.api.containers(all=True, filters={"label": f"ptm.registry={registry}"})
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A demo in plain processes, by somebody whose own settings point to another registry."""
    return run_demo(
        tmp_path_factory.mktemp("demo") / "a demo", "--runner", "process", PTM_REGISTRY="file:///nonexistent/registry"
    )


# --- what it shows ---


def test_it_ends_well_in_less_than_a_minute_and_leaves_no_process(demo: Demo) -> None:
    assert demo.code == 0, demo.err
    assert demo.seconds < LIMIT_S
    assert not processes_of(demo.folder)


def test_it_prints_the_coefficients_and_that_they_equal_the_pooled_ones_to_6_decimals(demo: Demo) -> None:
    for label in ("(intercept)", *LABELS.values()):
        federated, pooled = re.findall(r"-?\d\.\d{6}", line_of(demo.out, label))[:2]
        assert federated == pooled
    decimals = re.search(r"equal to (\d+) decimals", demo.out)
    assert decimals and int(decimals[1]) >= 6


def test_it_draws_the_forest_plot(demo: Demo) -> None:
    assert (demo.folder / "forest.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_bytes_it_reports_are_those_that_lie_in_the_registry(demo: Demo) -> None:
    for name in HOSPITALS:
        patients, data_file, clear, sealed, objects = [int(n.replace(",", "")) for n in line_of(demo.out, name).split()[1:]]
        rows = (demo.folder / "data" / f"{name}.csv").read_bytes()
        fetched = [p for p in (demo.folder / "results").glob(f"*/{name}/*") if p.name in ("summary.json", "log.txt")]
        runs = (demo.folder / "registry" / "sites" / name / "runs").rglob("*.json")
        assert (patients, data_file) == (rows.count(b"\n") - 1, len(rows))
        assert clear == sum(path.stat().st_size for path in fetched)
        assert objects == sum(path.stat().st_size for path in runs)
        assert clear < sealed < objects


def test_each_round_is_a_real_task_with_a_signed_result_of_each_hospital(demo: Demo) -> None:
    rounds = len(re.findall(r"^ .* round \d", demo.err, re.MULTILINE))
    registry = demo.folder / "registry"
    assert rounds >= 5
    assert len(list((registry / "users" / "alice" / "tasks").iterdir())) == rounds
    for name in HOSPITALS:
        assert len(list((registry / "sites" / name / "runs").glob("*/result.json"))) == rounds


def test_no_patients_row_is_in_the_registry(demo: Demo) -> None:
    rows = {line for p in (demo.folder / "data").iterdir() for line in p.read_bytes().splitlines()[1:]}
    for path in filter(Path.is_file, (demo.folder / "registry").rglob("*")):
        assert not [row for row in rows if row in path.read_bytes()]


def test_it_says_plainly_that_processes_are_no_sandbox(demo: Demo) -> None:
    assert "no sandbox" in demo.err and "A real node refuses" in demo.err


def test_the_commands_it_suggests_work(demo: Demo) -> None:
    suggested = [line.strip() for line in demo.out.split("Look around")[1].splitlines() if line.startswith("  ")]
    assert len(suggested) >= 3
    for command in suggested:
        done = subprocess.run(
            command, shell=True, cwd=demo.folder.parent, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 and done.stdout, f"{command}: {done.stderr}"


# --- containers, or not ---


def test_with_an_engine_the_runs_are_containers_and_none_is_left(
    docker_engine: docker.DockerClient, base_image: str, tmp_path: Path
) -> None:
    demo = run_demo(tmp_path / "out", "--runner", "docker", "--base-image", base_image, "--json")
    assert demo.code == 0, demo.err
    said: dict[str, Any] = json.loads(demo.out)
    assert said["runner"] == "docker" and said["largest_difference"] < 5e-7 and demo.seconds < LIMIT_S
    image = docker_engine.images.get("demo/logistic:1").id
    results = list((tmp_path / "out" / "results").glob("*/*/result.json"))
    assert {json.loads(path.read_bytes())["signed"]["image_digest"] for path in results} == {image}
    assert containers_of(docker_engine, tmp_path / "out") == []


def test_without_an_engine_auto_takes_processes_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    chosen = engine.choose("auto", "python:3.12-slim")
    assert chosen.runner == "process" and "does not answer" in (chosen.why_not or "")


def test_a_base_image_that_cannot_be_had_makes_auto_take_processes_and_docker_fail(docker_engine: docker.DockerClient) -> None:
    nowhere = "localhost:9/nothing:1"
    chosen = engine.choose("auto", nowhere)
    assert chosen.runner == "process" and nowhere in (chosen.why_not or "")
    with pytest.raises(RunnerError, match=nowhere) as failed:
        engine.choose("docker", nowhere)
    assert "--base-image" in (failed.value.hint or "")


def test_docker_without_an_engine_is_one_line_a_hint_and_no_folder(tmp_path: Path) -> None:
    demo = run_demo(tmp_path / "out", "--runner", "docker", DOCKER_HOST=NO_ENGINE)
    assert demo.code == 1 and "ptm: error: the container engine does not answer" in demo.err
    assert "ptm: hint: " in demo.err and "Traceback" not in demo.err
    assert not demo.folder.exists()


# --- being interrupted ---


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_in_the_middle_stops_all_nodes_before_the_demo_ends(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    with demo_in_its_rounds(tmp_path / "out") as demo:
        assert nodes_of(tmp_path).keys() == set(HOSPITALS)
        demo.send_signal(number)
        assert demo.wait(timeout=30) == code
        assert not processes_of(tmp_path)


def test_an_interrupt_while_containers_run_leaves_none(
    docker_engine: docker.DockerClient, base_image: str, tmp_path: Path
) -> None:
    options = ("--runner", "docker", "--base-image", base_image)
    with demo_in_its_rounds(tmp_path / "out", *options) as demo:
        wait_until(lambda: containers_of(docker_engine, tmp_path / "out") != [])
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=30) == 130
    assert not processes_of(tmp_path)
    assert containers_of(docker_engine, tmp_path / "out") == []


def test_when_the_demo_is_killed_its_nodes_do_not_outlive_it(tmp_path: Path) -> None:
    with demo_in_its_rounds(tmp_path / "out") as demo:
        demo.kill()
        demo.wait()
        wait_until(lambda: not processes_of(tmp_path))


def test_a_node_that_dies_ends_the_demo_with_its_name_and_its_log(tmp_path: Path) -> None:
    command = [*PTM, "demo", "--runner", "process", "--output", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as demo:
        wait_until(lambda: "riverside" in nodes_of(tmp_path))
        os.kill(nodes_of(tmp_path)["riverside"], signal.SIGKILL)
        _, err = demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 1 and "the node of riverside ended" in err and "riverside.log" in err
    assert not processes_of(tmp_path)


# --- where it goes ---


def test_a_folder_with_something_else_in_it_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1").write_text("")
    with pytest.raises(AlreadyExists):
        make_folder(tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter-1"]


def test_a_demo_beside_an_earlier_one_gets_a_number(tmp_path: Path) -> None:
    made = [make_folder(tmp_path / "out").name for _ in range(3)]
    assert made == ["out", "out-2", "out-3"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert make_folder(tmp_path / "out") == tmp_path / "out"


def line_of(text: str, word: str) -> str:
    """The line that starts with a word."""
    return next(line for line in text.splitlines() if line.startswith(word))
