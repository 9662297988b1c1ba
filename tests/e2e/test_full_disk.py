"""A disk that is full, at each place where a node or a researcher writes: a small tmpfs stands for it. Either the run fails and
says so, or it is taken up again when there is room; the node lives (design, section 1)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ptm.store.urls import open_store
from tests.commandline import CommandLine
from tests.e2e.crashes import Site, check_once, make_site, only, wait_for
from tests.federation import Federation
from tests.servers import build_image

pytestmark = pytest.mark.slow
MIB = 1024 * 1024
LARGE = "ptm-crash/large:1"
LARGE_RUN = """#!/usr/bin/python3
import os, pathlib
pathlib.Path(os.environ["PTM_OUTPUT_DIR"], "large.bin").write_bytes(os.urandom(8 * 1024 * 1024))
"""
Small = Callable[[Path, int], Path]


@pytest.fixture
def small_disk() -> Iterator[Small]:
    """Mounts a tmpfs of some MiB at a folder."""
    mounted: list[Path] = []
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small disk wants a mount, and that wants root on Linux")

    def mount(folder: Path, size_mb: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=700", "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a small disk wants a mount: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave not a byte."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    return filler


@pytest.fixture
def site(tmp_path: Path, small_disk: Small, world: list[Site], docker_engine: Any) -> Site:
    """A site whose home has 6 MiB."""
    small_disk(tmp_path / "maastro", 6)
    (tmp_path / "registry").mkdir()
    federation = Federation(open_store(f"file://{tmp_path}/registry"), tmp_path).create()
    federation.admit(alice="researcher", maastro="site")
    made = make_site(federation, CommandLine(tmp_path), engine=docker_engine)
    world.append(made)
    return made


def still_works(site: Site, image: str) -> None:
    task = site.federation.client().put(image, ["maastro"], data=["gate"])
    site.open(task.id)
    check_once(site, task)
    assert site.stop() == 0


def test_no_room_for_the_inputs(site: Site, gated: str, tmp_path: Path) -> None:
    task = site.federation.client().put(gated, ["maastro"], inputs={"large.bin": os.urandom(8 * MIB)}, data=["gate"])
    site.start()
    result = only(task, tmp_path, timeout=30)
    assert (result.state, result.reason) == ("failed", "the site's disk is full")
    wait_for("nothing left", lambda: not site.leftovers(), 10)
    still_works(site, gated)


def test_no_room_for_the_outputs(site: Site, gated: str, docker_engine: Any, base_image: str, tmp_path: Path) -> None:
    build_image(docker_engine, base_image, LARGE, {"/run.py": LARGE_RUN}, ["/run.py"])
    task = site.federation.client().put(LARGE, ["maastro"])
    site.start()
    result = only(task, tmp_path, timeout=30)
    assert (result.state, result.reason) == ("failed", "the site's disk is full")
    wait_for("nothing left", lambda: not site.leftovers(), 10)
    still_works(site, gated)


def test_no_room_for_the_state_before_a_task_is_taken_on(site: Site, gated: str) -> None:
    site.start()
    wait_for("the node", lambda: next(iter(site.federation.store.list("sites/maastro/workers/")), None))
    filler = fill(site.federation.home("maastro").path)
    task = site.federation.client().put(gated, ["maastro"], data=["gate"])
    site.open(task.id)
    wait_for("the trouble", lambda: site.said("the node's state cannot be written"))
    filler.unlink()
    check_once(site, task)
    assert site.stop() == 0


def test_no_room_for_the_state_while_a_container_runs(site: Site, gated: str) -> None:
    task = site.federation.client().put(gated, ["maastro"], data=["gate"])
    site.start()
    wait_for("the run", lambda: site.said("running"))
    filler = fill(site.federation.home("maastro").path)
    site.open(task.id)
    wait_for("the trouble", lambda: site.said("trying again later"))
    assert site.containers(task.id), "the container went before its result was safe"
    filler.unlink()
    check_once(site, task)
    assert site.stop() == 0


def test_no_room_for_the_registry(tmp_path: Path, small_disk: Small) -> None:
    root = small_disk(tmp_path / "registry", 1)
    federation = Federation(open_store(f"file://{root}"), tmp_path).create().admit(alice="researcher", maastro="site")
    line = CommandLine(tmp_path)
    (tmp_path / "large.bin").write_bytes(os.urandom(2 * MIB))
    put = ("--home", "alice", "task", "put", "--image", "demo/x:1", "--site", "maastro", "--expires", "1d")
    answers = [line.run(*put, "--input", "large.bin")]
    filler = fill(root)
    answers.append(line.run(*put))
    for answer in answers:
        error, hint = answer.err.splitlines()
        assert answer.code == 10
        assert error.startswith("ptm: error: ")
        assert "No space left" in error
        assert hint.startswith("ptm: hint: free space")
    filler.unlink()
    assert federation.client().tasks() == []
    assert line.ok(*put)
