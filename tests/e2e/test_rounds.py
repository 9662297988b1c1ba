"""The main job, for real: one researcher, three sites with node processes of their own, two rounds; image pulled from
a real image registry, run by a real engine; on a folder and on a real MinIO (issue 2, point 2)."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import CommandLine
from tests.servers import build_image

SITES = ("maastro", "umcu", "radboud")
ROWS = {"maastro": [1.0, 2.0, 3.0], "umcu": [10.0, 20.0], "radboud": [5.0, 5.0, 5.0, 9.0]}
MEAN_AND_SPREAD = """#!/usr/bin/python3
import json, os, pathlib
values = [float(line) for line in pathlib.Path(os.environ["PTM_DATA_COHORT"]).read_text().split()[1:]]
center = json.loads(pathlib.Path(os.environ["PTM_INPUT_DIR"], "round.json").read_text())["center"]
summary = {"n": len(values), "sum": sum(values), "squares": sum((v - center) ** 2 for v in values), "uid": os.getuid()}
pathlib.Path(os.environ["PTM_OUTPUT_DIR"], "summary.json").write_text(json.dumps(summary))
pathlib.Path(os.environ["PTM_OUTPUT_DIR"], "bulk.bin").write_bytes(os.urandom(1) * 300_000)
print("round done at", os.environ["PTM_SITE"])
"""

pytestmark = pytest.mark.slow


@contextmanager
def consortium(line: CommandLine, url: str, image: str) -> Iterator[str]:
    """Everything from `registry create` to three watching nodes, by command line; yields the root fingerprint."""
    fingerprint = line.ok("--home", "coord", "registry", "create", url)
    line.ok("--home", "alice", "member", "request", "--name", "alice", "--kind", "researcher", "-o", "alice.request.json")
    for site in SITES:
        line.ok("--home", site, "member", "request", "--name", site, "--kind", "site", "-o", f"{site}.request.json")
    line.ok("--home", "coord", "member", "admit", *(f"{name}.request.json" for name in ("alice", *SITES)))
    nodes = []
    for name in ("alice", *SITES):
        line.ok("--home", name, "join", url, "--root", fingerprint)
    for site in SITES:
        cohort = line.folder / f"{site}.csv"
        cohort.write_text("value\n" + "".join(f"{v}\n" for v in ROWS[site]))
        line.ok(
            "--home",
            site,
            "node",
            "init",
            "--image",
            image.replace(".", r"\."),
            "--data",
            f"cohort={cohort}",
            "--runner",
            "docker",
        )
        toml = line.folder / site / "node.toml"
        toml.write_text(toml.read_text().replace("poll_s = 5.0", "poll_s = 0.5"))
        nodes.append(line.start("--home", site, "node", "watch"))
    try:
        yield fingerprint
    finally:
        for node in nodes:
            node.send_signal(signal.SIGTERM)
        codes = [node.wait(timeout=60) for node in nodes]
    assert codes == [0, 0, 0], "a node did not stop cleanly"


def one_round(line: CommandLine, image: str, center: float, out: str) -> dict[str, Any]:
    (line.folder / "round.json").write_text(json.dumps({"center": center}))
    sites = [word for site in SITES for word in ("--site", site)]
    task = line.ok(
        *("--home", "alice", "task", "put", "--image", image, *sites, "--input", "round.json", "--data", "cohort"),
        *("--purpose", "Mean and spread", "--expires", "1d"),
    )
    assert len(task) == 26
    table = line.ok("--home", "alice", "results", "fetch", task, "--wait", "--timeout", "120", "-o", out)
    assert table.count("completed") == 3
    return {site: json.loads((line.folder / out / site / "summary.json").read_text()) for site in SITES}


def two_rounds(line: CommandLine, url: str, image: str) -> None:
    with consortium(line, url, image):
        first = one_round(line, image, 0.0, "out1")
        mean = sum(s["sum"] for s in first.values()) / sum(s["n"] for s in first.values())
        second = one_round(line, image, mean, "out2")
    pooled = [v for values in ROWS.values() for v in values]
    assert mean == pytest.approx(sum(pooled) / len(pooled))
    assert sum(s["squares"] for s in second.values()) == pytest.approx(sum((v - mean) ** 2 for v in pooled))
    assert all(s["uid"] != 0 for s in second.values())
    for out in ("out1", "out2"):
        assert "verified 3 result(s)" in line.run("--home", "alice", "results", "verify", out).err
        for site in SITES:
            assert {p.name for p in (line.folder / out / site).iterdir()} == {
                "summary.json",
                "bulk.bin",
                "log.txt",
                "result.json",
                "task.json",
            }
            assert "round done" in (line.folder / out / site / "log.txt").read_text()


@pytest.fixture(scope="module")
def image(docker_engine: Any, base_image: str, image_registry: Any) -> str:
    """A real image in a real image registry, gone from the engine again, so that a node has to pull it."""
    built = build_image(docker_engine, base_image, "ptm-e2e/spread:1", {"/run.py": MEAN_AND_SPREAD}, ["/run.py"])
    name = f"{image_registry.host}/consortium/spread:1"
    image_registry.push(built, "consortium/spread:1")
    return name


def test_three_sites_two_rounds_on_a_folder(tmp_path: Path, image: str) -> None:
    two_rounds(CommandLine(tmp_path), f"file://{tmp_path}/registry", image)


def test_three_sites_two_rounds_on_minio(tmp_path: Path, image: str, minio: Any) -> None:
    url = f"s3://ptm-e2e-rounds/consortium/x?endpoint_url={minio.endpoint_url}&region=us-east-1"
    two_rounds(CommandLine(tmp_path, minio.env()), url, image)
    assert minio.secret_key not in "".join(path.read_text() for path in tmp_path.rglob("*.toml"))
