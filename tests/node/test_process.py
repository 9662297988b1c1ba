"""The process runner: the same contract and rules without a sandbox, and nothing of it outlives the node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ulid import ULID

from ptm.config import FileSource, Home, Limits, NodeConfig, SparqlSource
from ptm.errors import RunnerError
from ptm.image import parse_image
from ptm.node.process import ProcessRunner
from ptm.node.runner import Exit, Interrupt, RunSpec

LIMITS = Limits(time_s=30, output_mb=1, output_files=4, log_kb=4)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = folder / "image"
        self.image.mkdir()
        self.program("")
        config = NodeConfig(worker="w1", runner="process", unsafe_no_sandbox=True, process_images={"demo/count:1": self.image})
        self.runner = ProcessRunner(config, Home(folder / "home"))

    def program(self, code: str) -> None:
        path = self.image / "run"
        path.write_text(f"#!{sys.executable}\n{textwrap.dedent(code)}")
        path.chmod(0o755)

    def spec(self, **changes: Any) -> RunSpec:
        inputs = self.folder / "inputs"
        inputs.mkdir(exist_ok=True)
        spec = RunSpec(
            registry="r",
            site="maastro",
            worker="w1",
            user="alice",
            task=str(ULID()),
            attempt=str(ULID()),
            image=parse_image("demo/count:1"),
            command=(),
            env={},
            workdir=None,
            inputs=inputs,
            data={},
            limits=LIMITS,
        )
        return replace(spec, **changes)

    def run(
        self, code: str, interrupted: Callable[[], Interrupt | None] = lambda: None, **changes: Any
    ) -> tuple[Exit, str | None, dict[str, bytes], str]:
        self.program(code)
        spec = self.spec(**changes)
        handle = self.runner.start(spec, self.runner.resolve(spec.image))
        end = self.runner.wait(handle, spec.limits, interrupted)
        outputs, log = self.folder / "outputs", self.folder / "log"
        outputs.mkdir()
        broken = self.runner.collect(handle, spec.limits, outputs, log)
        self.runner.remove(handle)
        return end, broken, {p.name: p.read_bytes() for p in outputs.iterdir()}, log.read_text(errors="replace")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.runner.close()


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Ended, or only waiting to be reaped by whoever is its parent now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except FileNotFoundError:
        return True


def test_a_run_finds_inputs_data_and_command_and_leaves_outputs_and_a_log(bench: Bench) -> None:
    (bench.folder / "inputs").mkdir()
    (bench.folder / "inputs" / "params.json").write_text("{}")
    (bench.folder / "cohort.csv").write_text("age\n61\n")
    data = {
        "cohort": FileSource(path=bench.folder / "cohort.csv"),
        "graph": SparqlSource(kind="sparql", url="http://graph.example/sparql"),
    }
    code = """
        import os, pathlib, sys
        out = pathlib.Path(os.environ["PTM_OUTPUT_DIR"])
        (out / "a").write_text(open(os.environ["PTM_INPUT_DIR"] + "/params.json").read())
        (out / "b").write_text(open(os.environ["PTM_DATA_COHORT"]).read())
        (out / "c").write_text(" ".join([os.environ["SPARQL_ENDPOINT"], os.environ["ALPHA"], *sys.argv[1:]]))
        print("said"); print("complained", file=sys.stderr)
    """
    end, broken, files, log = bench.run(code, data=data, env={"ALPHA": "1"}, command=("x", "y z"))
    assert (end.exit_code, end.reason, broken) == (0, None, None), log
    assert files == {"a": b"{}", "b": b"age\n61\n", "c": b"http://graph.example/sparql 1 x y z"}
    assert sorted(log.splitlines()) == ["complained", "said"]


def test_nothing_of_the_nodes_environment_files_or_folder_is_handed_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_SECRET", "hunter2")
    descriptor = os.open(bench.folder, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    code = """
        import os, resource
        print(sorted(os.environ))
        print(os.listdir(os.getcwd()), sorted(os.listdir("/proc/self/fd")), end=" ")
        print(resource.getrlimit(resource.RLIMIT_CORE), os.getsid(0) == os.getpid())
    """
    _, _, _, log = bench.run(code)
    os.close(descriptor)
    names, rest = log.splitlines()
    known = {"HOME", "LANG", "PATH", "PTM_INPUT_DIR", "PTM_OUTPUT_DIR", "PTM_SITE", "PTM_TASK", "PYTHONDONTWRITEBYTECODE"}
    assert set(eval(names)) - {"LC_CTYPE"} == known
    assert rest == "[] ['0', '1', '2', '3'] (0, 0) True"


@pytest.mark.parametrize(
    ("code", "exit_code", "reason"),
    [
        ("raise SystemExit(3)", 3, "exit code 3"),
        ("import os; os.kill(os.getpid(), 11)", 139, "exit code 139 (ended by SIGSEGV)"),
    ],
)
def test_a_failed_run_has_an_exit_code_and_a_reason(bench: Bench, code: str, exit_code: int, reason: str) -> None:
    end, *_ = bench.run(code)
    assert (end.exit_code, end.reason) == (exit_code, reason)


def test_a_run_that_cannot_be_executed_fails_with_a_reason(bench: Bench) -> None:
    (bench.image / "run").write_text("#!/no/such/interpreter\n")
    spec = bench.spec()
    handle = bench.runner.start(spec, bench.runner.resolve(spec.image))
    assert bench.runner.wait(handle, LIMITS, lambda: None).exit_code == 126


FAMILY = """
    import os, signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    if child:
        print(os.getpid(), child, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("why", "time_s", "reason"),
    [
        (None, 1, "time limit of 1 s reached"),
        ("canceled", 30, "canceled"),
        ("stopping", 30, "the node was stopped during the run"),
    ],
)
def test_a_run_is_killed_with_its_children(bench: Bench, why: Interrupt | None, time_s: int, reason: str) -> None:
    begun = time.monotonic()
    end, _, _, log = bench.run(
        FAMILY, lambda: why if time.monotonic() > begun + 0.7 else None, limits=LIMITS.model_copy(update={"time_s": time_s})
    )
    assert (end.exit_code, end.reason, end.interrupted) == (None, reason, why)
    parent, child = map(int, log.split())
    wait_for(lambda: is_gone(parent) and is_gone(child))


def test_children_that_a_run_leaves_behind_are_killed_when_it_ends(bench: Bench) -> None:
    end, _, _, log = bench.run("import os, time\nif os.fork():\n  print(os.getpid(), flush=True)\nelse:\n  time.sleep(600)")
    assert end.exit_code == 0
    wait_for(lambda: not group_exists(int(log)))


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return any(not is_gone(int(p.name)) and os.getpgid(int(p.name)) == group for p in Path("/proc").iterdir() if p.name.isdigit())


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_kill_9_of_the_node_kills_the_run(bench: Bench) -> None:
    bench.program("import os, time\nopen(os.environ['PTM_OUTPUT_DIR'] + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    node = textwrap.dedent("""
        import sys
        from pathlib import Path
        from tests.node.test_process import Bench
        bench = Bench.__new__(Bench)
        bench.folder, bench.image = Path(sys.argv[1]), Path(sys.argv[1]) / "image"
        from ptm.config import Home, NodeConfig
        from ptm.node.process import ProcessRunner
        config = NodeConfig(worker="w1", runner="process", unsafe_no_sandbox=True, process_images={"demo/count:1": bench.image})
        runner = ProcessRunner(config, Home(bench.folder / "home"))
        spec = bench.spec()
        runner.wait(runner.start(spec, runner.resolve(spec.image)), spec.limits, lambda: None)
    """)
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", node, str(bench.folder)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    found: list[Path] = []
    wait_for(lambda: bool(found.extend(p for p in bench.folder.rglob("output/pid") if p.read_text()) or found))
    child.send_signal(signal.SIGKILL)
    child.wait()
    wait_for(lambda: is_gone(int(found[0].read_text())))


def test_a_log_flood_is_cut_while_it_runs(bench: Bench) -> None:
    end, _, _, log = bench.run("print('x' * 50_000_000)")
    assert end.exit_code == 0
    assert len(log) < 5 * 1024 and log.splitlines()[-1] == "[ptm: the log was cut here, at the site's limit of 4 KB]"


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("os.symlink('/etc/passwd', 'x')", "symbolic link"),
        ("os.mkdir('x')", "folder"),
        ("os.mkfifo('x')", "named pipe"),
        ("open('result.json', 'w')", "may not be named so"),
        ("[open(n, 'wb').write(bytes(600 * 1024)) for n in 'ab']", "more than 1 MB"),
        ("[open(n, 'w') for n in 'abcde']", "more than 4 output files"),
        ("os.chdir('..'); os.rename('output', 'o'); os.symlink('/etc', 'output')", "replaced"),
    ],
)
def test_hostile_outputs_break_the_same_rules(bench: Bench, code: str, word: str) -> None:
    end, broken, files, log = bench.run(f"import os; os.chdir(os.environ['PTM_OUTPUT_DIR']); {code}")
    assert end.exit_code == 0, log
    assert broken is not None and word in broken
    assert not any(b"root:" in body for body in files.values())


def test_one_file_cannot_grow_beyond_the_limit_on_the_disk(bench: Bench) -> None:
    _, _, _, log = bench.run("import os\ntry: open('big', 'wb').write(bytes(5_000_000))\nexcept OSError as e: print(e.errno)")
    assert log.strip() == "27"


def test_the_digest_changes_with_names_contents_modes_and_links_and_with_nothing_else(bench: Bench) -> None:
    def digest() -> str:
        return bench.runner.resolve(parse_image("demo/count:1")).digest

    seen = [digest()]
    assert digest() == seen[0] and seen[0].startswith("sha256:") and len(seen[0]) == 71
    os.utime(bench.image / "run", (1, 1))
    assert digest() == seen[0]
    for change in (
        lambda: (bench.image / "lib").mkdir() or (bench.image / "lib" / "a.py").write_text("1"),
        lambda: (bench.image / "lib" / "a.py").write_text("2"),
        lambda: (bench.image / "lib" / "a.py").rename(bench.image / "lib" / "b.py"),
        lambda: (bench.image / "lib" / "b.py").chmod(0o755),
        lambda: (bench.image / "link").symlink_to("run"),
    ):
        change()
        seen.append(digest())
    assert len(set(seen)) == 6


def test_a_digest_that_was_asked_for_has_to_be_the_folders(bench: Bench) -> None:
    digest = bench.runner.resolve(parse_image("demo/count:1")).digest
    assert bench.runner.resolve(parse_image(f"demo/count:1@{digest}")).digest == digest
    with pytest.raises(RunnerError, match="is not what the task asked for"):
        bench.runner.resolve(parse_image(f"demo/count:1@sha256:{'0' * 64}"))


def test_an_unknown_image_is_an_error_with_a_hint(bench: Bench) -> None:
    with pytest.raises(RunnerError, match="no process image demo/other:1") as caught:
        bench.runner.resolve(parse_image("demo/other:1"))
    assert "process_images" in (caught.value.hint or "")


def test_check_finds_a_folder_without_an_executable_run(bench: Bench) -> None:
    bench.runner.check()
    (bench.image / "run").chmod(0o644)
    with pytest.raises(RunnerError, match="no executable"):
        bench.runner.check()


def test_a_second_start_of_a_task_is_refused_and_a_restart_finds_nothing(bench: Bench) -> None:
    bench.program("import time; time.sleep(600)")
    spec = bench.spec()
    image = bench.runner.resolve(spec.image)
    handle = bench.runner.start(spec, image)
    with pytest.raises(RunnerError, match="already"):
        bench.runner.start(spec, image)
    assert bench.runner.find(spec.task) == handle
    bench.runner.remove(handle)
    bench.runner.remove(handle)
    assert bench.runner.find(spec.task) is None
    assert not (bench.folder / "home" / "spool" / spec.task / "process").exists()


def test_a_run_that_wants_a_gpu_is_refused_here(bench: Bench) -> None:
    with pytest.raises(RunnerError, match="gives no GPU") as caught:
        bench.run("print('ran')", gpus=1)
    assert "--gpus" in str(caught.value.hint)
