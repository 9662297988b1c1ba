"""Hostile images, on the real engine, through one node that goes on all the while: each ends within its limits, as failed with a
reason or completed with the proof that it could do nothing, and the node runs the next task (issue 3, point 1).

What a tar stream can hold that a container's file system cannot (`../`, absolute names) is in `tests/node/test_outputs.py`.
"""

from __future__ import annotations

import json
import socket
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from ptm.client import RunResult
from ptm.config import NodeConfig
from ptm.model import Resources
from ptm.node.containers import DockerRunner
from ptm.store.memory import MemoryStore
from tests.federation import Federation
from tests.node.test_gateway import endpoint
from tests.servers import build_image

pytestmark = pytest.mark.slow
LIMITS = {"ram_gb": 0.125, "pids": 32, "disk_gb": 20, "time_s": 30, "output_mb": 1, "output_files": 8, "log_kb": 16}
GOOD = "open('/ptm/output/fine.txt', 'w').write('fine')"


@dataclass
class Site:
    """A node that runs, and a researcher who puts tasks."""

    federation: Federation
    engine: docker.DockerClient
    base: str
    folder: Path

    def image(self, name: str, code: str) -> str:
        """An image whose command is a python program."""
        tag = f"ptm-test/{name}:1"
        program = "#!/usr/bin/python3\n" + textwrap.dedent(code)
        build_image(self.engine, self.base, tag, {"/hostile.py": program}, ["/hostile.py"])
        return tag

    def run(self, name: str, code: str, *, data: tuple[str, ...] = (), time_limit_s: int = 30, **resources: Any) -> RunResult:
        """Put a hostile task and a good one behind it, and see the good one through."""
        hostile = self.federation.client().put(
            self.image(name, code), ["maastro"], data=data, time_limit_s=time_limit_s, resources=Resources(**resources)
        )
        good = self.federation.client().put("ptm-test/good:1", ["maastro"])
        out = self.folder / name
        (result,) = hostile.results(timeout=90, folder=out / "hostile")
        (after,) = good.results(timeout=60, folder=out / "good")
        assert (after.state, after.reason, after.files) == ("completed", None, ("fine.txt",)), "the node runs the next task"
        return result


@pytest.fixture(scope="module")
def site(docker_engine: docker.DockerClient, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("hostile")
    federation = Federation(MemoryStore(), folder).create().admit(alice="researcher", maastro="site")
    (folder / "cohort.csv").write_text("age\n61\n")
    with endpoint() as (url, _):
        settings = {
            "worker": "maastro-1",
            "pull": "never",
            "gateway_image": base_image,
            "data": {"graph": {"kind": "sparql", "url": url}, "cohort": {"kind": "file", "path": folder / "cohort.csv"}},
            "limits": LIMITS,
        }
        config = NodeConfig.model_validate(settings, strict=False)
        runner = DockerRunner(config, federation.registry("maastro").id, "maastro", federation.home("maastro"))
        node = federation.node("maastro", runner=runner, parallel=1, **settings)
        stop = threading.Event()
        thread = threading.Thread(target=node.watch, args=(stop,))
        thread.start()
        here = Site(federation, docker_engine, base_image, folder / "out")
        here.image("good", GOOD)
        yield here
        assert thread.is_alive(), "the node stayed healthy to the end"
        stop.set()
        thread.join(60)
    label = f"ptm.registry={federation.registry('maastro').id}"
    left = docker_engine.containers.list(all=True, filters={"label": label})
    for container in left:
        container.remove(force=True, v=True)
    assert left == []


USES_UP = {
    "fork-bomb": ("time limit of 3 s", {"time_limit_s": 3}, """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """),
    "zombie-maker": ("time limit of 3 s", {"time_limit_s": 3}, """
        import os, time
        while True:
            try:
                if os.fork() == 0:
                    os._exit(0)
            except OSError:
                time.sleep(0.01)
        """),
    "memory-hog": ("memory limit of 0.125 GB", {}, """
        held = []
        while True:
            held.append(bytearray(10_000_000))
        """),
    "memory-hog-in-shared-memory": ("memory limit of 0.125 GB|exit code 1", {}, """
        for number in range(200):
            open(f"/dev/shm/{number}", "wb").write(bytes(1_000_000))
        """),
    "endless-run": ("time limit of 2 s", {"time_limit_s": 2}, """
        import signal, time
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            time.sleep(1)
        """),
    "disk-filler": ("disk limit of 0.02 GB", {"disk_gb": 0.02}, """
        import time
        try:
            for number in range(40):
                open(f"/tmp/{number}", "wb").write(bytes(1_000_000))
        finally:
            time.sleep(60)
        """),
    "disk-filler-of-outputs": ("disk limit of 0.02 GB", {"disk_gb": 0.02}, """
        import time
        for number in range(40):
            open(f"/ptm/output/{number}", "wb").write(bytes(1_000_000))
        time.sleep(60)
        """),
    "disk-filler-in-one-file": ("exit code 1", {"disk_gb": 0.02}, """
        open("/tmp/big", "wb").write(bytes(30_000_000))
        """),
    "log-flood": ("time limit of 4 s", {"time_limit_s": 4}, """
        import os
        while True:
            os.write(1, b"x" * 60_000 + b"\\n")
        """),
    "log-flood-of-one-line": ("time limit of 3 s", {"time_limit_s": 3}, """
        import os
        while True:
            os.write(2, b"\\x1b[2J" + b"x" * 60_000)
        """),
}  # fmt: skip


@pytest.mark.parametrize("name", USES_UP)
def test_an_image_that_uses_up_the_machine_is_ended_with_a_reason(site: Site, name: str) -> None:
    reason, limits, code = USES_UP[name]
    begun = time.monotonic()
    result = site.run(name, code, **limits)
    assert result.state == "failed" and time.monotonic() - begun < 60
    assert any(word in (result.reason or "") for word in reason.split("|")), result.reason
    assert len(result.log) < 20_000
    if "flood" in name:
        assert "the log was cut here, at the site's limit of 16 KB" in result.log


SMUGGLES = {
    "link-to-shadow": ("symbolic link", "os.symlink('/etc/shadow', 'x')"),
    "link-up": ("symbolic link", "os.symlink('../../../..', 'x')"),
    "hard-link-to-a-system-file": ("exit code 1", "os.link('/etc/passwd', 'x')"),
    "hard-link-to-data": ("exit code 1", "os.link('/ptm/data/cohort', 'x')"),
    "hard-link-between-outputs": ("hard link", "open('y', 'w'); os.link('y', 'x')"),
    "names-that-climb": ("may not be named so", r"open('..\\..\\evil', 'w')"),
    "names-with-orders-for-a-terminal": ("may not be named so", r"open('\x1b]0;x\x07', 'w')"),
    "names-with-lines": ("may not be named so", r"open('a\nb', 'w')"),
    "name-of-ours": ("may not be named so", "open('result.json', 'w')"),
    "names-that-differ-in-case": ("two outputs named", "open('a', 'w'); open('A', 'w')"),
    "deep-folders": ("is a folder", "[(os.mkdir('d'), os.chdir('d')) for _ in range(500)]"),
    "pipe": ("named pipe", "os.mkfifo('x')"),
    "device": ("exit code 1", "os.mknod('x', 0o20666, os.makedev(1, 8))"),
    "many-small-files": ("more than 8 output files", "[open(str(n), 'w').close() for n in range(100_000)]"),
    "sparse-file": ("more than 1 MB", "open('x', 'wb').truncate(10 * 1024**3)"),
    "output-folder-replaced": ("exit code 1", "os.rmdir('/ptm/output'); os.symlink('/etc', '/ptm/output')"),
}


@pytest.mark.parametrize("name", SMUGGLES)
def test_an_image_that_smuggles_fails_and_nothing_leaves(site: Site, name: str) -> None:
    reason, code = SMUGGLES[name]
    result = site.run(name, f"import os; os.chdir('/ptm/output'); {code}", data=("cohort",))
    assert result.state == "failed" and reason in (result.reason or ""), (result.reason, result.log)
    assert result.files == () and "root:" not in result.log


PRIVILEGES = """
    import ctypes, errno, glob, json, os, socket, stat, subprocess
    libc = ctypes.CDLL(None, use_errno=True)
    could = []
    def attempt(name, call):
        try:
            if call() not in (-1, None, False):
                could.append(name)
        except (OSError, subprocess.SubprocessError):
            pass
    def write(path):
        with open(path, "a") as file:
            file.write("x")
        return True
    for path in ("/etc/passwd", "/etc/shadow", "/usr/bin/python3", "/hostile.py", "/root/x", "/ptm/x", "/ptm/data/x", "/x",
                 "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/oom_score_adj_", "/sys/fs/cgroup/x",
                 "/sys/kernel/uevent_helper", "/dev/sda", "/dev/mem", "/dev/kmsg"):
        attempt("write " + path, lambda: write(path))
    for path in ("/etc/shadow", "/proc/kcore", "/proc/kmsg", "/dev/mem", "/proc/1/mem_", "/sys/firmware/acpi/tables/DSDT"):
        attempt("read " + path, lambda: len(open(path, "rb").read(64)) > 0)
    attempt("setuid", lambda: os.setuid(0) is None)
    attempt("setgid", lambda: os.setgid(0) is None)
    attempt("setgroups", lambda: os.setgroups([0]) is None)
    attempt("chown", lambda: os.chown("/tmp", 0, 0) is None)
    attempt("mknod", lambda: os.mknod("/tmp/sda", stat.S_IFBLK | 0o666, os.makedev(8, 0)) is None)
    attempt("chroot", lambda: os.chroot("/tmp") is None)
    attempt("mount", lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
    attempt("umount", lambda: libc.umount(b"/proc"))
    attempt("unshare user", lambda: libc.unshare(0x10000000))
    attempt("unshare net", lambda: libc.unshare(0x40000000))
    attempt("setns", lambda: libc.setns(os.open("/proc/1/ns/net", os.O_RDONLY), 0))
    attempt("ptrace init", lambda: libc.ptrace(16, 1, 0, 0))
    attempt("reboot", lambda: libc.reboot(0x1234567))
    for name, number in (("bpf", 321), ("keyctl", 250), ("kexec_load", 246), ("init_module", 175), ("open_by_handle_at", 304),
                         ("perf_event_open", 298), ("userfaultfd", 323)):
        attempt(name, lambda: libc.syscall(number, 0, 0, 0, 0, 0))
    attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
    attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    attempt("sudo", lambda: subprocess.run(["su", "-c", "id"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0)
    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
    capabilities = [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
    locked = [status["NoNewPrivs"], status["Seccomp"]]
    open("/ptm/output/report.json", "w").write(json.dumps(
        {"could": could, "ids": [os.getuid(), os.geteuid(), os.getgid()], "capabilities": capabilities, "locked": locked}))
"""


def test_an_image_that_wants_to_be_root_can_do_nothing_that_root_can(site: Site) -> None:
    result = site.run("privileges", PRIVILEGES)
    assert result.state == "completed", (result.reason, result.log)
    report = result.json("report.json")
    assert report["could"] == []
    assert 0 not in report["ids"]
    assert {int(value, 16) for value in report["capabilities"]} == {0} and report["locked"] == ["1", "2"]


LOOKS_ROUND = """
    import json, os, stat
    sockets, secrets = [], []
    for root, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(root, name) not in ("/proc", "/sys")]
        for name in names:
            path = os.path.join(root, name)
            try:
                mode = os.stat(path, follow_symlinks=False).st_mode
                if stat.S_ISSOCK(mode):
                    sockets.append(path)
                if stat.S_ISREG(mode) and name in ("sign.pem", "age.txt", "state.sqlite", "node.toml"):
                    secrets.append(path)
            except OSError:
                pass
    processes = {}
    for number in filter(str.isdigit, os.listdir("/proc")):
        processes[number] = open(f"/proc/{number}/cmdline").read()
    said = {
        "sockets": sockets, "secrets": secrets, "processes": processes, "environment": dict(os.environ),
        "mounts": open("/proc/self/mountinfo").read(), "cgroup": open("/proc/self/cgroup").read(),
        "hostname": os.uname().nodename,
    }
    open("/ptm/output/report.json", "w").write(json.dumps(said))
"""


def test_an_image_that_looks_round_finds_nothing_of_the_node_or_the_engine(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_SECRET", "hunter2")
    result = site.run("looks-round", LOOKS_ROUND, data=("graph",))
    assert result.state == "completed", (result.reason, result.log)
    report = result.json("report.json")
    assert report["sockets"] == [] and report["secrets"] == [], "no engine's socket, no gateway's, no key"
    assert list(report["processes"]) == ["1"], "no process of the host, the engine or the sidecar"
    assert "hunter2" not in json.dumps(report) and "docker.sock" not in json.dumps(report)
    assert str(site.folder.parent) not in json.dumps(report), "nor a path of the node's"
    assert socket.gethostname() != report["hostname"]


PROBES = """
    import errno, json, os, socket
    reached, why = [], {}
    targets = json.loads(os.environ["TARGETS"])
    for host, port in targets:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            probe = socket.socket(family, kind)
            probe.settimeout(3)
            try:
                probe.connect((host, port))
                probe.send(b"GET / HTTP/1.0\\r\\n\\r\\n")
                reached.append([host, port, int(kind), probe.recv(10).decode()])
            except OSError as e:
                why[f"{host} {port} {int(kind)}"] = errno.errorcode.get(e.errno or 0, str(e))
    names = ("example.org", "localhost.localdomain", "host.docker.internal", "metadata.google.internal", "gateway")
    for name in names:
        try:
            reached.append([name, socket.getaddrinfo(name, 80)])
        except OSError:
            pass
    listeners = [line.split()[1] for line in open("/proc/net/tcp").read().splitlines()[1:] if line.split()[3] == "0A"]
    named = [line.split()[7] for line in open("/proc/net/unix").read().splitlines()[1:] if len(line.split()) > 7]
    interfaces = [name for _, name in socket.if_nameindex() if not name.startswith("tunl")]
    routes = open("/proc/net/route").read().splitlines()[1:]
    open("/ptm/output/report.json", "w").write(json.dumps({"reached": reached, "why": why, "listeners": listeners,
        "named": named, "interfaces": interfaces, "routes": routes}))
"""


@pytest.fixture
def neighbours(docker_engine: docker.DockerClient, base_image: str) -> Iterator[list[tuple[str, int]]]:
    """Addresses where somebody does answer: another container, the bridge and the host; and those of the world outside."""
    container = docker_engine.containers.run(base_image, ["python3", "-m", "http.server", "8000"], detach=True)
    with socket.create_server(("0.0.0.0", 0)) as listener:
        try:
            deadline = time.monotonic() + 20
            while True:
                container.reload()
                networks = container.attrs["NetworkSettings"]["Networks"]
                other, bridge = networks["bridge"]["IPAddress"], networks["bridge"]["Gateway"]
                try:
                    socket.create_connection((other, 8000), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline, (
                        "the neighbour has to be reachable from here for the test to tell anything"
                    )
                    time.sleep(0.1)
            port = listener.getsockname()[1]
            socket.create_connection((bridge, port), timeout=5).close()
            yield [(other, 8000), (bridge, port), (bridge, 22), ("127.0.0.1", port), ("::1", port)]
        finally:
            container.remove(force=True)


@pytest.mark.parametrize("data", [(), ("graph",)], ids=["no network", "behind the gateway"])
def test_an_image_that_probes_the_network_reaches_nobody(
    site: Site, neighbours: list[tuple[str, int]], data: tuple[str, ...]
) -> None:
    world = [("169.254.169.254", 80), ("8.8.8.8", 53), ("1.1.1.1", 443), ("fd00:ec2::254", 80), ("2606:4700::1111", 443)]
    targets = [*neighbours, *world, ("255.255.255.255", 67), ("224.0.0.251", 5353), ("127.0.0.11", 53)]
    code = f"import os; os.environ['TARGETS'] = {json.dumps(json.dumps(targets))}\n" + textwrap.dedent(PROBES)
    result = site.run("probes-" + ("gateway" if data else "none"), code, data=data)
    assert result.state == "completed", (result.reason, result.log)
    report = result.json("report.json")
    assert report["reached"] == [] and len(report["why"]) == 2 * len(targets)
    assert {"ENETUNREACH", "ECONNREFUSED"} >= {
        said for where, said in report["why"].items() if where.endswith(" 1") and ":" not in where
    }
    assert report["interfaces"] == ["lo"] and report["routes"] == [] and report["named"] == []
    assert len(report["listeners"]) == len(data), "only the source it was granted"


def test_a_child_that_is_left_behind_goes_with_the_run(site: Site, docker_engine: docker.DockerClient) -> None:
    code = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while True:
                    time.sleep(1)
            os._exit(0)
        print("left a child")
    """
    result = site.run("left-child", code)
    assert (result.state, result.log) == ("completed", "left a child\n")
