"""Runs as plain processes, for simulation and the demo. This is no sandbox: a run has the node's own rights, network and files.

It keeps the native contract, the time limit, the rules for outputs and the bounded log, and gives a run none of the node's
variables. A run does not outlive its node: it is killed when the node stops, and by the kernel (Linux) when the node dies.
"Images" are folders with an executable `run`, named in `process_images` of node.toml.

What this does not do: limit memory, CPU share, disk or processes; follow a process that leaves the run's session.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from ptm.config import DataSource, FileSource, Home, HttpSource, Limits, NodeConfig, PostgresSource, SparqlSource
from ptm.errors import RunnerError
from ptm.files import private_folder
from ptm.image import ImageRef
from ptm.model import DataUse
from ptm.node.contract import Places, environment, exit_reason
from ptm.node.outputs import MIB, BoundedLog, take_folder
from ptm.node.runner import Exit, Interrupt, ResolvedImage, RunSpec

MAX_IMAGE_FILES = 10_000
MAX_IMAGE_BYTES = 1024**3
CHUNK = 64 * 1024
DRAIN_S = 5
"""How long to read on from a run that has ended, in case a child that left the session holds its output open."""
PATH = "/usr/local/bin:/usr/bin:/bin"

LAUNCHER = """
import ctypes, os, resource, signal, sys
parent, cpu_s, file_bytes = map(int, sys.argv[1:4])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != parent:
    os._exit(1)
for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_FSIZE, file_bytes)):
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))
try:
    os.execv(sys.argv[4], sys.argv[4:])
except OSError as e:
    sys.stderr.write(f"run cannot be started: {e.strerror}\\n")
    os._exit(126)
"""
"""Starts a run with its resource limits on and tied to the node's life (PR_SET_PDEATHSIG is 1). A process of its own rather
than code between fork and exec, which may deadlock in a node with threads."""


@dataclass
class _Run:
    process: subprocess.Popen[bytes]
    folder: Path
    pump: threading.Thread
    started: datetime
    started_at: float


class ProcessRunner:
    """Fulfils `ptm.node.runner.Runner`, for simulation. `wait` has to be called by the thread that called `start`: to the
    kernel, the node is that thread."""

    sandboxed = False
    durable = False

    def __init__(self, config: NodeConfig, home: Home) -> None:
        self._config, self._home = config, home
        self._runs: dict[str, _Run] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        for label, folder in self._config.process_images.items():
            if not os.access(folder / "run", os.X_OK) or not (folder / "run").is_file():
                raise RunnerError(f"{label} has no executable file run", hint="check [process_images] in node.toml")

    def close(self) -> None:
        """Kill what still runs."""
        with self._lock:
            runs, self._runs = list(self._runs.values()), {}
        for run in runs:
            _kill(run)

    def resolve(self, image: ImageRef, interrupted: Callable[[], Interrupt | None] = lambda: None) -> ResolvedImage:
        """The digest is made of the folder's names, modes and contents. `interrupted` is not asked: nothing here takes long."""
        name = f"{image.name}:{image.tag}"
        folder = self._config.process_images.get(name if image.tag else image.label)
        if folder is None:
            raise RunnerError(
                f"the site has no process image {image.label}", hint="[process_images] in its node.toml maps names to folders"
            )
        folder = folder.absolute()
        digest = folder_digest(folder, image.label)
        if image.digest not in (None, digest):
            raise RunnerError(
                f"{image.label} is not what the task asked for: its digest is {digest}", hint="put a task with this digest"
            )
        return ResolvedImage(digest, str(folder))

    def start(self, spec: RunSpec, image: ResolvedImage) -> str:
        if spec.gpus:
            raise RunnerError(
                "this site runs no containers, and so gives no GPU", hint="put the task again without --gpus, or ask another site"
            )
        handle = f"{spec.task}-{spec.attempt}"
        folder = self._home.spool / spec.task / "process"
        with self._lock:
            if any(name.startswith(f"{spec.task}-") for name in self._runs):
                raise RunnerError("this task runs at this site already")
            shutil.rmtree(folder, ignore_errors=True)
            try:
                self._runs[handle] = _launch(spec, Path(image.handle), folder)
            except OSError as e:
                shutil.rmtree(folder, ignore_errors=True)
                raise RunnerError(f"the run could not be started: {e.strerror}") from e
        return handle

    def wait(self, handle: str, limits: Limits, interrupted: Callable[[], Interrupt | None]) -> Exit:
        run = self._run(handle)
        pause = 0.01
        while not _has_ended(run):
            why = interrupted()
            if why == "stopping":
                return _end(run, "the node was stopped during the run", why)
            if why == "canceled":
                return _end(run, "canceled", why)
            if time.monotonic() - run.started_at >= limits.time_s:
                return _end(run, f"time limit of {limits.time_s} s reached")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        return _end(run)

    def collect(self, handle: str, limits: Limits, outputs: Path, log: Path) -> str | None:
        run = self._run(handle)
        shutil.copyfile(run.folder / "log", log)
        return take_folder(run.folder / "output", outputs, limits)

    def usage(self, handle: str) -> tuple[DataUse, ...]:
        """Nothing is counted here: there is no gateway."""
        return ()

    def sweep(self, keep: Collection[str]) -> None:
        """Nothing to do: images are folders of the site, and runs do not outlive the node."""

    def remove(self, handle: str) -> None:
        with self._lock:
            run = self._runs.pop(handle, None)
        if run is not None:
            _kill(run)
            shutil.rmtree(run.folder, ignore_errors=True)

    def find(self, task: str) -> str | None:
        """A run of this node process; never one of an earlier."""
        with self._lock:
            return next((handle for handle in self._runs if handle.startswith(f"{task}-")), None)

    def _run(self, handle: str) -> _Run:
        with self._lock:
            if handle not in self._runs:
                raise RunnerError("the run is gone", hint="put the task again")
            return self._runs[handle]


def _shown(source: DataSource) -> str:
    """Where a source is. There is no gateway here, so nothing adds the site's credentials either."""
    if isinstance(source, FileSource):
        return str(source.path.absolute())
    if isinstance(source, SparqlSource | HttpSource):
        return source.url
    if isinstance(source, PostgresSource):
        return f"postgresql://{source.user}@{source.host}:{source.port}/{source.database}"
    return f"tcp://{source.host}:{source.port}"


def _launch(spec: RunSpec, image: Path, folder: Path) -> _Run:
    for name in ("input", "output", "home", "work"):
        private_folder(folder / name)
    for source in spec.inputs.iterdir():
        shutil.copyfile(source, folder / "input" / source.name)
    data = {name: _shown(source) for name, source in spec.data.items()}
    places = Places(str(folder / "input"), str(folder / "output"), str(folder / "home"), data)
    asked = {"PATH": PATH, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **spec.env}
    limits = [str(os.getpid()), str(spec.limits.time_s * spec.limits.cpu_cores + 1), str(spec.limits.output_mb * MIB)]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", LAUNCHER, *limits, str(image / "run"), *spec.command],
        env=environment(spec.task, spec.site, spec.data, places, asked),
        cwd=folder / "work",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    pump = threading.Thread(target=_pump, args=(process.stdout, folder / "log", spec.limits.log_kb), name="ptm-log", daemon=True)
    (folder / "log").touch(mode=0o600)
    pump.start()
    return _Run(process, folder, pump, datetime.now(UTC), time.monotonic())


def _pump(source: BinaryIO, log: Path, limit_kb: int) -> None:
    """Read all that a run says, so that it never blocks, and keep what fits."""
    with source, log.open("wb", buffering=0) as sink:
        bounded = BoundedLog(sink, limit_kb)
        while chunk := os.read(source.fileno(), CHUNK):
            bounded.write(chunk)


def _has_ended(run: _Run) -> bool:
    """Without reaping it: as long as it is not reaped, its process group is still its own and can be killed safely."""
    return (
        run.process.returncode is not None
        or os.waitid(os.P_PID, run.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    )


def _end(run: _Run, reason: str | None = None, why: Interrupt | None = None) -> Exit:
    """Kill the run with all of its group, and say how it ended. `reason` is given if it is the node that ends it."""
    _kill(run)
    run.pump.join(DRAIN_S)
    code = run.process.returncode if run.process.returncode >= 0 else 128 - run.process.returncode
    now = datetime.now(UTC)
    if reason is not None:
        return Exit(None, reason, run.started, now, why)
    return Exit(code, exit_reason(code), run.started, now)


def _kill(run: _Run) -> None:
    """Kill the whole group, and reap. No effect the second time."""
    if run.process.returncode is None:
        os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()


def folder_digest(folder: Path, label: str) -> str:
    """`sha256:` over all files below `folder`: sorted relative name, whether executable, link target or content."""
    total = hashlib.sha256()
    room = MAX_IMAGE_BYTES
    try:
        for path in _sorted_files(folder, label):
            kind, digest, size = _file_digest(path, room)
            room -= size
            if room < 0:
                raise RunnerError(f"the folder of {label} has more than {MAX_IMAGE_BYTES} bytes")
            total.update(f"{kind} {digest} {path.relative_to(folder)}\0".encode("utf-8", "surrogateescape"))
    except OSError as e:
        raise RunnerError(
            f"the folder of {label} cannot be read: {e.strerror}", hint="check [process_images] in node.toml"
        ) from e
    return f"sha256:{total.hexdigest()}"


def _sorted_files(folder: Path, label: str) -> list[Path]:
    found: list[Path] = []
    for path in _below(folder):
        found.append(path)
        if len(found) > MAX_IMAGE_FILES:
            raise RunnerError(f"the folder of {label} has more than {MAX_IMAGE_FILES} files")
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _below(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path))
            else:
                yield Path(entry.path)


def _file_digest(path: Path, room: int) -> tuple[str, str, int]:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "link", hashlib.sha256(os.fsencode(path.readlink())).hexdigest(), 0
    if not stat.S_ISREG(mode):
        raise OSError(0, f"{path.name} is no regular file")
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as source:
        while (chunk := source.read(1024 * 1024)) and size <= room:
            digest.update(chunk)
            size += len(chunk)
    return "run" if mode & 0o100 else "file", digest.hexdigest(), size
