"""What an image may try on a real container engine, beyond `tests/node/test_docker.py`."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from ptm.config import FileSource, TcpSource
from ptm.image import parse_image
from tests.node.bench import LIMITS, Bench, bench, no_container_left

pytestmark = pytest.mark.slow
__all__ = ["bench", "no_container_left"]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A folder of data with another file system mounted below it, in which everybody may write."""
    folder = tmp_path / "data"
    (folder / "below").mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "mode=1777", "none", str(folder / "below")]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder / "below")], check=True)


def test_a_file_system_below_a_data_source_cannot_be_written_to(bench: Bench, mounted: Path) -> None:
    """An engine makes only the top of a bind read-only."""
    code = """
        import pathlib
        try:
            pathlib.Path("/ptm/data/cohort/below/planted").write_text("x")
        except OSError:
            print("refused")
    """
    ran = bench.run(bench.spec(code, data={"cohort": FileSource(path=mounted)}))
    assert ran.log.strip() == "refused"
    assert list((mounted / "below").iterdir()) == []


def test_a_disk_hog_that_deletes_its_files_while_they_are_open_is_ended_before_the_disk_is_full(
    tmp_path: Path, base_image: str, docker_engine: docker.DockerClient
) -> None:
    """The engine measures files by their names, and these have none."""
    code = """
        import os, time
        held = []
        for number in range(60):
            held.append(open("/tmp/x", "wb", buffering=0))
            os.unlink("/tmp/x")
            held[-1].write(bytes(20_000_000))
            time.sleep(0.05)
        time.sleep(600)
    """
    free = shutil.disk_usage(docker_engine.info()["DockerRootDir"]).free / 1024**3
    bench = Bench(tmp_path, base_image, keep_free_gb=free - 0.5)
    spec = bench.spec(code, limits=LIMITS.model_copy(update={"disk_gb": 0.1}))
    handle = bench.start(spec)
    try:
        end = bench.runner.wait(handle, spec.limits, lambda: None)
    finally:
        bench.runner.remove(handle)
        bench.runner.close()
    assert (end.reason or "").startswith("the site's disk has less than")


def test_a_container_with_labels_of_its_image_makes_the_node_delete_nothing(
    bench: Bench, tmp_path: Path, docker_engine: docker.DockerClient
) -> None:
    """An image that a steward starts by hand brings its labels along, and those may say anything."""
    victim = tmp_path / "victim" / "gateway" / "patients.csv"
    victim.parent.mkdir(parents=True)
    victim.write_text("x")
    bench.home.spool.mkdir(parents=True, exist_ok=True)
    for task in (str(tmp_path / "victim"), "../victim", "../../" + str(tmp_path / "victim"), "", "x\n\x1b[2J"):
        labels = {"ptm.worker": "w1", "ptm.task": task, "ptm.role": "run"}
        by_hand = docker_engine.containers.create(bench.image, ["true"], labels=labels)
        try:
            bench.runner.sweep(())
            assert victim.read_text() == "x", f"the label {task!r} had the node delete a folder"
            by_hand.reload()
        finally:
            by_hand.remove(force=True)


@pytest.mark.parametrize("gateway", [False, True])
def test_an_image_learns_neither_the_sites_name_servers_nor_its_cgroups(bench: Bench, gateway: bool) -> None:
    code = """
        import os
        print([line for line in open("/etc/resolv.conf") if line.split()[:1] in (["nameserver"], ["search"], ["domain"])])
        print([line.strip().rpartition(":")[2] for line in open("/proc/self/cgroup")])
        print(os.readlink("/proc/self/ns/cgroup"))
    """
    data = {"db": TcpSource(kind="tcp", host="127.0.0.1", port=1)} if gateway else {}
    resolv, cgroups, namespace = bench.run(bench.spec(code, data=data)).log.splitlines()
    assert ast.literal_eval(resolv) == ["nameserver 127.0.0.1\n"]
    assert set(ast.literal_eval(cgroups)) == {"/"}
    assert namespace != str(Path("/proc/self/ns/cgroup").readlink())


@pytest.fixture
def lying_image(bench: Bench, docker_engine: docker.DockerClient) -> Iterator[str]:
    """An image whose settings say what only the node may say."""
    made = docker_engine.containers.create(bench.image, ["true"])
    settings = {
        "Env": ["PTM_TASK=evil", "PTM_OUTPUT_DIR=/elsewhere", "HOME=/root"],
        "Labels": {"ptm.task": "evil", "ptm.worker": "evil", "ptm.role": "gateway", "ptm.sources": "graph"},
        "User": "root",
        "StopSignal": "SIGUSR1",
        "Healthcheck": {"Test": ["CMD-SHELL", "touch /tmp/health"], "Interval": 1_000_000_000},
        "Volumes": {"/ptm/output": {}, "/ptm/input": {}, "/elsewhere": {}},
        "ExposedPorts": {"80/tcp": {}},
        "OnBuild": ["RUN evil"],
    }
    made.commit("ptm-test/lying", "1", conf=settings)
    made.remove()
    yield "ptm-test/lying:1"
    docker_engine.images.remove("ptm-test/lying:1", force=True)


@pytest.mark.parametrize("read_only_root", [True, False])
def test_what_an_image_says_of_itself_changes_nothing_about_its_run(
    bench: Bench, docker_engine: docker.DockerClient, lying_image: str, read_only_root: bool
) -> None:
    code = """
        import os, pathlib, time
        time.sleep(2.5)
        told = [os.environ[name] for name in ("PTM_TASK", "PTM_OUTPUT_DIR", "HOME")]
        print(*told, os.getuid(), open("/ptm/input/q").read(), os.path.exists("/tmp/health"))
        pathlib.Path("/ptm/output/a").write_text("1")
    """
    bench.config = bench.config.model_copy(update={"read_only_root": read_only_root})
    bench.runner.close()
    bench.runner = bench.new_runner()
    spec = bench.spec(code, image=parse_image(lying_image), inputs={"q": b"asked"})
    handle = bench.start(spec)
    found = docker_engine.api.inspect_container(handle)
    ran = bench.collect(handle, spec, bench.runner.wait(handle, spec.limits, lambda: None))
    assert bench.runner.find(spec.task) == handle
    volumes = {mount["Name"] for mount in found["Mounts"] if mount["Type"] == "volume"}
    bench.runner.remove(handle)
    assert ran.log.split() == [spec.task, "/ptm/output", "/tmp", str(os.getuid() or 65534), "asked", "False"]
    assert (ran.end.exit_code, ran.files) == (0, {"a": b"1"})
    assert found["Config"]["Labels"]["ptm.sources"] == "" and found["Config"]["Labels"]["ptm.role"] == "run"
    assert volumes and not volumes & {volume.name for volume in docker_engine.volumes.list()}
