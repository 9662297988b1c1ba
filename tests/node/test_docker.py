"""Runs on a real container engine: what a container can do, what it cannot, and what survives.

Every run's command is a python program in the base image. `DOCKER_HOST` says which engine; Podman's socket will do too.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker
import pytest

from ptm.config import FileSource, Home, NodeConfig
from ptm.errors import RunnerError
from ptm.node.containers import DockerRunner
from ptm.node.docker import Engine, EngineAway, EngineRefused
from tests.node.bench import LIMITS, REGISTRY, Bench, bench, no_container_left

pytestmark = pytest.mark.slow
__all__ = ["bench", "no_container_left"]


def test_inputs_data_and_env_go_in_outputs_and_log_come_out(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("age\n61\n")
    (tmp_path / "genes").mkdir()
    (tmp_path / "genes" / "brca").write_text("1")
    code = """
        import os, pathlib, sys
        inside, out = pathlib.Path(os.environ["PTM_INPUT_DIR"]), pathlib.Path(os.environ["PTM_OUTPUT_DIR"])
        assert sorted(p.name for p in inside.iterdir()) == ["big", "params.json"]
        assert (inside / "big").stat().st_size == 5_000_000
        (out / "copy.json").write_bytes((inside / "params.json").read_bytes())
        (out / "data").write_text(open("/ptm/data/cohort").read() + open(os.environ["PTM_DATA_GENES"] + "/brca").read())
        names = ("ALPHA", "PTM_SITE", "DATABASE_URI", "HOME")
        (out / "env").write_text(" ".join(os.environ[name] for name in names) + " " + os.getcwd())
        print("counted"); print("careful", file=sys.stderr)
    """
    spec = bench.spec(
        code,
        inputs={"params.json": b"{}", "big": b"x" * 5_000_000},
        data={"cohort": FileSource(path=tmp_path / "cohort.csv"), "genes": FileSource(path=tmp_path / "genes")},
        env={"ALPHA": "0.05", "HOME": "/root"},
        workdir="/var/tmp",
    )
    before = datetime.now(UTC)
    ran = bench.run(spec)
    assert (ran.end.exit_code, ran.end.reason, ran.broken) == (0, None, None), ran.log
    assert ran.files == {"copy.json": b"{}", "data": b"age\n61\n1", "env": b"0.05 maastro /ptm/data/cohort /tmp /var/tmp"}
    assert sorted(ran.log.splitlines()) == ["careful", "counted"]
    assert ran.end.start_time is not None and before <= ran.end.start_time <= ran.end.end_time <= datetime.now(UTC)


def test_a_container_has_no_rights_no_network_and_nothing_of_the_nodes_environment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NODE_SECRET", "hunter2")
    monkeypatch.setenv("HTTP_PROXY", "http://user:hunter2@proxy.example")
    (tmp_path / "cohort.csv").write_text("age\n")
    (tmp_path / "cohort.csv").chmod(0o666)
    code = """
        import os, resource, socket
        status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0, (name, status[name])
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
        assert os.getuid() != 0 and os.getgid() != 0 and 0 not in os.getgroups(), os.getgroups()
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        assert "hunter2" not in open("/proc/self/environ").read()
        for path in ("/etc/x", "/ptm/x", "/ptm/data/x", "/usr/bin/x"):
            try:
                open(path, "w")
            except OSError as e:
                assert e.errno in (13, 30), (path, e)
            else:
                raise SystemExit(f"wrote {path}")
        for call, *given in (open, "/ptm/data/cohort", "a"), (os.rmdir, "/ptm/output"), (os.setuid, 0), (os.chown, "/tmp", 0, 0):
            try:
                call(*given)
            except OSError:
                continue
            raise SystemExit(f"could {call} {given}")
        assert [name for _, name in socket.if_nameindex()] in (["lo"], ["lo", "tunl0"]), socket.if_nameindex()
        for address in (("8.8.8.8", 53), ("172.17.0.1", 80), ("169.254.169.254", 80)):
            try:
                socket.create_connection(address, timeout=5)
            except OSError as e:
                assert e.errno == 101, (address, e)
            else:
                raise SystemExit(f"reached {address}")
        try:
            socket.getaddrinfo("example.org", 80)
        except OSError:
            print("locked up")
    """
    ran = bench.run(bench.spec(code, data={"cohort": FileSource(path=tmp_path / "cohort.csv")}))
    assert (ran.end.exit_code, ran.log.strip()) == (0, "locked up"), ran.log


def test_run_as_is_the_user_of_the_run(tmp_path: Path, base_image: str) -> None:
    bench = Bench(tmp_path, base_image, run_as="1234:5678")
    ran = bench.run(bench.spec("import os; print(os.getuid(), os.getgid()); open('/ptm/output/x', 'w')"))
    assert (ran.end.exit_code, ran.log.strip(), set(ran.files)) == (0, "1234 5678", {"x"})


def test_memory_hog_is_killed_and_the_reason_says_so(bench: Bench) -> None:
    ran = bench.run(bench.spec("x = bytearray(300 * 1024 * 1024)"))
    assert (ran.end.exit_code, ran.end.reason) == (137, "memory limit of 0.125 GB reached")


def test_fork_bomb_runs_into_the_limit_of_processes(bench: Bench) -> None:
    code = """
        import os, time
        made = 0
        try:
            while made < 200:
                if os.fork() == 0:
                    time.sleep(60)
                made += 1
        except BlockingIOError:
            print("stopped at", made)
    """
    ran = bench.run(bench.spec(code))
    assert ran.end.exit_code == 0 and ran.log.startswith("stopped at") and int(ran.log.split()[-1]) <= 32


def test_endless_run_is_killed_at_its_time_limit_with_what_it_logged(bench: Bench) -> None:
    spec = bench.spec(
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('started', flush=True); time.sleep(600)",
        limits=LIMITS.model_copy(update={"time_s": 2}),
    )
    begun = time.monotonic()
    ran = bench.run(spec)
    assert (ran.end.exit_code, ran.end.reason, ran.end.interrupted) == (None, "time limit of 2 s reached", None)
    assert ran.log == "started\n" and time.monotonic() - begun < 20


def test_a_cancel_kills_the_run(bench: Bench) -> None:
    answers = iter([None, None, None])
    ran = bench.run(bench.spec("import time; time.sleep(600)"), lambda: next(answers, "canceled"))
    assert (ran.end.exit_code, ran.end.reason, ran.end.interrupted) == (None, "canceled", "canceled")


@pytest.mark.parametrize("place", ["/tmp", "/ptm/output"])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_disk_hog_is_killed(tmp_path: Path, base_image: str, place: str, read_only: bool) -> None:
    bench = Bench(tmp_path, base_image, read_only_root=read_only)
    code = f"""
        import time
        for number in range(30):
            with open(f"{place}/{{number}}", "wb") as file:
                file.write(bytes(1024 * 1024))
        time.sleep(600)
    """
    ran = bench.run(bench.spec(code, limits=LIMITS.model_copy(update={"disk_gb": 0.01})))
    assert (ran.end.exit_code, ran.end.reason) == (None, "disk limit of 0.01 GB reached")
    bench.runner.close()


def test_one_file_alone_never_gets_larger_than_the_disk_limit(bench: Bench) -> None:
    code = """
        try:
            open("/tmp/big", "wb").write(bytes(30 * 1024 * 1024))
        except OSError as e:
            print(e.strerror)
    """
    ran = bench.run(bench.spec(code, limits=LIMITS.model_copy(update={"disk_gb": 0.01})))
    assert ran.log == "File too large\n"


def test_the_root_is_read_only_unless_the_site_says_otherwise(tmp_path: Path, base_image: str) -> None:
    code = """
        import errno, os
        def state(path):
            try:
                open(path + "/x", "w")
            except OSError as e:
                return errno.errorcode[e.errno]
            return "written"
        print(*map(state, ("/var/tmp", "/run/lock", "/etc", "/ptm", "/ptm/input", "/tmp", "/ptm/output")))
    """
    said = {}
    for read_only in (True, False):
        bench = Bench(tmp_path / str(read_only), base_image, read_only_root=read_only)
        said[read_only] = bench.run(bench.spec(code)).log.split()
        bench.runner.close()
    assert said[True] == ["EROFS", "EROFS", "EROFS", "EACCES", "written", "written", "written"]
    assert said[False] == ["written", "written", "EACCES", "EACCES", "written", "written", "written"]


def test_what_a_container_shares_with_the_host_is_nothing(bench: Bench, docker_engine: docker.DockerClient) -> None:
    handle = bench.start(bench.spec("import time; time.sleep(600)"))
    host = docker_engine.api.inspect_container(handle)["HostConfig"]
    assert host["SecurityOpt"] == ["no-new-privileges"], "no word of seccomp or apparmor: the engine's own profiles stay"
    assert (host["NetworkMode"], host["IpcMode"], host["PidMode"], host["UTSMode"], host["UsernsMode"]) == (
        "none",
        "private",
        "",
        "",
        "",
    )
    assert host["CgroupnsMode"] == "private"
    assert (host["Privileged"], host["CapAdd"], host["CapDrop"], host["Devices"] or []) == (False, None, ["ALL"], [])
    assert host["ReadonlyRootfs"] is True and not host["Binds"] and [m["Type"] for m in host["Mounts"]] == ["volume", "volume"]
    assert {"/proc/kcore", "/sys/firmware"} <= set(host["MaskedPaths"]) and "/proc/sys" in host["ReadonlyPaths"]
    bench.runner.remove(handle)


def test_volumes_of_a_run_go_with_it(bench: Bench, docker_engine: docker.DockerClient) -> None:
    handle = bench.start(bench.spec("open('/tmp/x', 'w')"))
    volumes = [mount["Name"] for mount in docker_engine.api.inspect_container(handle)["Mounts"]]
    bench.runner.remove(handle)
    left = {volume.name for volume in docker_engine.volumes.list()}
    assert len(volumes) == 2 and not left & set(volumes)


@pytest.mark.parametrize(
    ("code", "reason"), [("raise SystemExit(3)", "exit code 3"), ("import ctypes; ctypes.string_at(0)", "SIGSEGV")]
)
def test_a_failed_run_has_an_exit_code_and_a_reason(bench: Bench, code: str, reason: str) -> None:
    ran = bench.run(bench.spec(code))
    assert ran.end.exit_code not in (0, None) and reason in (ran.end.reason or "")


def test_a_log_flood_is_cut_and_takes_no_disk(bench: Bench) -> None:
    code = "import sys\nfor n in range(400_000): sys.stdout.write(f'line {n} ' + 'x' * 80 + '\\n')"
    ran = bench.run(bench.spec(code))
    assert ran.end.exit_code == 0
    assert len(ran.log) < 17 * 1024 and ran.log.splitlines()[-1] == "[ptm: the log was cut here, at the site's limit of 16 KB]"


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("os.symlink('/etc/shadow', 'x')", "symbolic link"),
        ("open('y', 'w').close(); os.link('y', 'x')", "hard link"),
        ("os.mkdir('x')", "folder"),
        ("os.mkfifo('x')", "named pipe"),
        ("open('log.txt', 'w')", "may not be named so"),
        ("open(b'\\xff\\xfe', 'w')", "may not be named so"),
        ("open('x', 'wb').truncate(2**33)", "more than 1 MB"),
        ("[open(str(n), 'w') for n in range(9)]", "more than 8 output files"),
    ],
)
def test_hostile_outputs_break_a_rule(bench: Bench, code: str, word: str) -> None:
    ran = bench.run(bench.spec(f"import os; os.chdir('/ptm/output'); {code}"))
    assert ran.end.exit_code == 0, ran.log
    assert ran.broken is not None and word in ran.broken
    assert "shadow" not in str(ran.files)


def test_a_new_node_finds_the_run_goes_on_and_its_time_limit_does_not_start_again(bench: Bench) -> None:
    spec = bench.spec("import time; time.sleep(600)", limits=LIMITS.model_copy(update={"time_s": 4}))
    begun = time.monotonic()
    handle = bench.start(spec)
    answers = iter([None, None])
    left = bench.runner.wait(handle, spec.limits, lambda: next(answers, "stopping"))
    assert (left.interrupted, left.reason) == ("stopping", None)
    bench.runner.close()
    time.sleep(2)

    bench.runner = bench.new_runner()
    assert bench.runner.find(spec.task) == handle
    assert bench.runner.wait(handle, spec.limits, lambda: None).reason == "time limit of 4 s reached"
    assert time.monotonic() - begun < 8
    bench.runner.remove(handle)
    bench.runner.remove(handle)
    assert bench.runner.find(spec.task) is None


def test_a_run_that_ended_while_the_node_was_down_is_collected(bench: Bench) -> None:
    spec = bench.spec("open('/ptm/output/x', 'w').write('1'); print('done')")
    handle = bench.start(spec)
    bench.runner.wait(handle, spec.limits, lambda: None)
    bench.runner = bench.new_runner()
    found = bench.runner.find(spec.task)
    assert found == handle
    ran = bench.collect(found, spec, bench.runner.wait(found, spec.limits, lambda: None))
    assert (ran.end.exit_code, ran.broken, ran.files, ran.log) == (0, None, {"x": b"1"}, "done\n")
    bench.runner.remove(found)


def test_another_worker_site_or_registry_does_not_find_the_run(bench: Bench) -> None:
    spec = bench.spec("import time; time.sleep(600)")
    handle = bench.start(spec)
    other = bench.config.model_copy(update={"worker": "w2"})
    assert DockerRunner(other, REGISTRY, "maastro", bench.home).find(spec.task) is None
    assert DockerRunner(bench.config, REGISTRY, "umcg", bench.home).find(spec.task) is None
    assert DockerRunner(bench.config, str(uuid.uuid4()), "maastro", bench.home).find(spec.task) is None
    bench.runner.remove(handle)


def test_a_second_start_of_a_task_is_refused_and_harms_nothing(bench: Bench) -> None:
    spec = bench.spec("import time; time.sleep(600)")
    handle = bench.start(spec)
    with pytest.raises(RunnerError, match="already"):
        bench.start(spec)
    assert bench.runner.find(spec.task) == handle
    bench.runner.remove(handle)


def test_a_crash_between_making_and_starting_a_container_leaves_nothing_in_the_way(
    bench: Bench, docker_engine: docker.DockerClient
) -> None:
    spec = bench.spec("print('ran')")
    handle = bench.start(spec)
    name = docker_engine.containers.get(handle).name
    bench.runner.remove(handle)
    docker_engine.containers.create(bench.image, name=name, labels={"ptm.registry": REGISTRY})
    assert bench.runner.find(spec.task) is None
    docker_engine.containers.create(bench.image, name=name, labels={"ptm.registry": REGISTRY})
    assert bench.run(spec).log == "ran\n"


def test_a_failed_start_leaves_nothing_and_names_no_path_of_the_site(bench: Bench, tmp_path: Path) -> None:
    spec = bench.spec("1", command=("no-such-program",))
    with pytest.raises(RunnerError, match="command cannot be started"):
        bench.start(spec)
    missing = bench.spec("1", data={"cohort": FileSource(path=tmp_path / "gone.csv")})
    with pytest.raises(RunnerError, match="data source cohort is not there") as caught:
        bench.start(missing)
    assert "gone.csv" not in f"{caught.value} {caught.value.hint}"


def test_a_container_that_somebody_removed_is_an_error(bench: Bench, docker_engine: docker.DockerClient) -> None:
    spec = bench.spec("import time; time.sleep(600)")
    handle = bench.start(spec)
    docker_engine.containers.get(handle).remove(force=True, v=True)
    with pytest.raises(RunnerError, match="gone"):
        bench.runner.wait(handle, spec.limits, lambda: None)
    bench.runner.remove(handle)


def test_a_missing_engine_is_one_line_and_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(EngineAway, match="does not answer: no such file") as caught:
        DockerRunner(NodeConfig(worker="w1"), REGISTRY, "maastro", Home(tmp_path)).check()
    assert "DOCKER_HOST" in (caught.value.hint or "") and "\n" not in str(caught.value)


def test_an_engine_that_is_away_for_a_moment_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = bench.spec("import time; time.sleep(3); open('/ptm/output/x', 'w')")
    handle = bench.start(spec)
    real = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/e.sock")
    bench.runner.close()
    threading.Timer(1.0, lambda: (tmp_path / "e.sock").symlink_to(real)).start()
    ran = bench.collect(handle, spec, bench.runner.wait(handle, spec.limits, lambda: None))
    assert (ran.end.exit_code, set(ran.files)) == (0, {"x"})
    bench.runner.remove(handle)


def test_a_container_that_ends_while_it_is_killed_is_no_error_on_podman_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Podman's own words (4.3.1), where Docker answers with a conflict."""

    class Podman(BaseHTTPRequestHandler):
        running = False

        def do_POST(self) -> None:
            self.say(500, {"message": "can only kill running containers. 1 is in state exited: container state improper"})

        def do_GET(self) -> None:
            self.say(200, {"ApiVersion": "1.41", "State": {"Running": self.running}})

        def say(self, status: int, what: dict[str, object]) -> None:
            body = json.dumps(what).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Podman)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_port}")
    engine = Engine()
    try:
        engine.kill("1")
        Podman.running = True
        with pytest.raises(EngineRefused, match="could not kill"):
            engine.kill("1")
    finally:
        engine.close()
        server.shutdown()
        server.server_close()
