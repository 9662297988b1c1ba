"""The demo's federation: a registry in a folder, a coordinator, a researcher, and three hospitals with a node process each.

Everything is made with the functions that the command line calls, and a node is `ptm node watch` with a home of its own.

Rules: all of it lies in one folder. Nodes write their logs to files there. They are stopped when the demo ends, also by
Ctrl-C, and by `ptm.demo.guard` when it is killed. It computes nothing and prints nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ptm import coordinator, enrolment, layout
from ptm.config import Home
from ptm.demo.data import SHARES, write_hospitals
from ptm.demo.guard import GRACE_S
from ptm.envelope import verify_request
from ptm.errors import RunnerError
from ptm.files import private_folder
from ptm.model import Kind
from ptm.node.setup import write_node_files
from ptm.registry import now_utc
from ptm.store.base import Store
from ptm.store.urls import make_store

COORDINATOR, RESEARCHER = "coordinator", "alice"
HOSPITALS = tuple(SHARES)
IMAGE = "demo/logistic:1"
POLL_S = 0.1
"""A node of the demo looks at its queue this often; a real one need not."""
START_S = 30.0
MAIN_ERROR = "ptm: error: "


@dataclass(frozen=True)
class Federation:
    """Where everything lies: `folder/<member>` is a member's home, `folder/registry` what in real life is a bucket."""

    folder: Path

    @property
    def registry(self) -> Path:
        return self.folder / "registry"

    @property
    def image(self) -> Path:
        """A copy of the folder that the demo's container image is built from."""
        return self.folder / "image"

    def home(self, member: str) -> Home:
        return Home(self.folder / member)

    def data(self, hospital: str) -> Path:
        return self.folder / "data" / f"{hospital}.csv"

    def log(self, hospital: str) -> Path:
        return self.folder / "logs" / f"{hospital}.log"

    def open_store(self) -> Store:
        return make_store(self.registry.as_uri())

    def found(self) -> str:
        """Make the registry and its coordinator; the root's fingerprint."""
        return coordinator.create_registry(
            self.open_store(),
            self.home(COORDINATOR).make(),
            name="demo",
            organisation="",
            root_keys=(),
            threshold=1,
            now=now_utc(),
            member_name=COORDINATOR,
        )

    def admit(self, fingerprint: str) -> None:
        """Each member makes keys and a request, the coordinator admits them all, and each joins."""
        store, requests = self.open_store(), self.folder / "requests"
        private_folder(requests)
        kinds: dict[str, Kind] = {RESEARCHER: "researcher", **dict.fromkeys(HOSPITALS, "site")}
        asked = []
        for name, kind in kinds.items():
            path = requests / f"{name}.request.json"
            enrolment.write_request(self.home(name), path, name=name, kind=kind, organisation="", now=now_utc())
            asked.append(verify_request(path.read_bytes()))
        coordinator.admit(store, self.home(COORDINATOR), asked, now_utc())
        for name in kinds:
            enrolment.join(store, self.home(name), fingerprint)

    def deal_data(self) -> dict[str, int]:
        """Give each hospital its patients; hospital to size of its file in bytes."""
        folder = self.folder / "data"
        folder.mkdir()
        sizes = {}
        for name, path in write_hospitals(folder).items():
            path.chmod(0o644)  # a container's user is not the person who runs the demo
            sizes[name] = path.stat().st_size
        return sizes

    def copy_image(self) -> None:
        """Put the demo's image beside the rest, to read, and for the process runner to run."""
        self.image.mkdir()
        for name, body in image_files().items():
            (self.image / name).write_bytes(body)
        (self.image / "run").chmod(0o755)

    def set_up_nodes(self, runner: str) -> None:
        """Write each hospital's node.toml and policy.toml: the demo's image may run, and nothing else."""
        for name in HOSPITALS:
            write_node_files(
                self.home(name),
                worker=f"{name}-1",
                runner=runner,
                unsafe_no_sandbox=runner == "process",
                parallel=1,
                pull="never",
                gateway_image=None,
                images=[IMAGE],
                data={"cohort": str(self.data(name))},
                mirrors={},
                process_images={IMAGE: self.image} if runner == "process" else {},
                poll_s=POLL_S,
            )


def image_files() -> dict[str, bytes]:
    """What the demo's image is built from, by file name."""
    return {part.name: part.read_bytes() for part in files("ptm.demo").joinpath("image").iterdir() if part.is_file()}


class Nodes:
    """The running node processes, one for each hospital."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._guard: subprocess.Popen[bytes] | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start them all; returns at once."""
        (self._federation.folder / "logs").mkdir(exist_ok=True)
        self._guard = _python("-m", "ptm.demo.guard", log=self._federation.log("guard"), group=0, stdin=subprocess.PIPE)
        for name in HOSPITALS:
            command = ("-m", "ptm", "--home", str(self._federation.home(name).path), "node", "watch")
            self._children[name] = _python(*command, log=self._federation.log(name), group=self._guard.pid)

    def wait_ready(self) -> None:
        """Wait until each has had its first look at the registry. `RunnerError` if one does not come that far."""
        store, deadline = self._federation.open_store(), time.monotonic() + START_S
        waiting = set(HOSPITALS)
        while waiting := {name for name in waiting if not any(store.list(layout.workers_of(name)))}:
            self.check()
            if time.monotonic() > deadline:
                raise RunnerError(f"the node of {', '.join(sorted(waiting))} does not start", hint=self._see_log(min(waiting)))
            time.sleep(0.05)

    def check(self) -> None:
        """`RunnerError` if a node has ended."""
        for name, child in self._children.items():
            if child.poll() is not None:
                lines = self._federation.log(name).read_text(errors="replace").splitlines()
                said = [line.removeprefix(MAIN_ERROR) for line in lines if line.startswith(MAIN_ERROR)]
                why = said[-1] if said else f"exit code {child.returncode}"
                raise RunnerError(f"the node of {name} ended: {why}", hint=self._see_log(name))

    def stop(self) -> None:
        """Stop them all, gently for a while. Whatever interrupts this, none is left."""
        try:
            for child in self._children.values():
                child.terminate()
            deadline = time.monotonic() + GRACE_S
            for child in self._children.values():
                child.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return
        finally:
            for process in (*self._children.values(), *([self._guard] if self._guard else [])):
                process.kill()
                process.wait()
            self._children.clear()
            if self._guard and self._guard.stdin:
                self._guard.stdin.close()

    def _see_log(self, name: str) -> str:
        return f"see {self._federation.log(name)}"


@contextmanager
def running(federation: Federation) -> Iterator[Nodes]:
    """The hospitals' nodes, for as long as the block lasts. SIGTERM ends the block as Ctrl-C does."""
    nodes = Nodes(federation)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.stop()
        signal.signal(signal.SIGTERM, before)


def _python(*arguments: str, log: Path, group: int, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdin=stdin,
            stdout=file,
            stderr=file,
            env=_environment(os.environ),
            cwd=log.parent,
            process_group=group,
        )


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the person's own ptm settings may point a node elsewhere."""
    return {name: value for name, value in given.items() if not name.startswith("PTM_") or name == "PTM_DEBUG"}
