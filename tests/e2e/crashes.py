"""What the tests of crashes (and `make soak`) share: a site whose node is a process of its own that can be killed, an image that
leaves a mark of its own each time it runs, the count of starts as the engine tells it, and a TCP proxy that holds back what
passes through it.

What this does not do: pretend. Node, engine, image registry and S3 server are real.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ptm.client import RunResult, TaskHandle
from ptm.node.setup import write_node_files
from ptm.registry import Registry
from tests.commandline import CommandLine
from tests.federation import Federation

GATED = """#!/usr/bin/python3
import os, pathlib, time, uuid
mark = uuid.uuid4().hex
print("mark", mark, flush=True)
gate = pathlib.Path(os.environ["PTM_DATA_GATE"])
while not (gate / os.environ["PTM_TASK"]).exists() and not (gate / "open").exists():
    time.sleep(0.02)
out = pathlib.Path(os.environ["PTM_OUTPUT_DIR"])
(out / "mark.txt").write_text(mark)
(out / "bulk.bin").write_bytes(mark.encode() * 10_000)
"""
"""Runs until its gate (a data source of the site) is opened. The mark is in its log and in its outputs: they have to agree."""
GATED_PROCESS = "#!" + sys.executable + GATED.removeprefix("#!/usr/bin/python3")


def wait_for(what: str, condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for: {what}"
        time.sleep(0.01)


class Gate:
    """A TCP proxy that holds back what passes through it: everything, while `hold()` is on, or what a client says from the first
    time that it says `word`; with `replies`, what it says gets through and the answer is held back."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open = threading.Event()
        self._open.set()
        self.held = threading.Event()
        self._word: bytes | None = None
        self._replies = self._once = False

    def hold(self, word: bytes | None = None, *, replies: bool = False, once: bool = False) -> None:
        """`once`: only the first connection, and that for good."""
        self.held.clear()
        self._word, self._replies, self._once = word, replies, once
        self._open.clear()

    def release(self) -> None:
        self._word = None
        self._open.set()

    def close(self) -> None:
        self.release()
        self._listener.close()

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed: the test is over
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def _may_catch(self) -> bool:
        return not (self._once and self.held.is_set())

    def _handle(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._upstream) as server:
            caught = threading.Event()
            back = threading.Thread(target=self._pump, args=(server, client, caught, False), daemon=True)
            back.start()
            self._pump(client, server, caught, True)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, caught: threading.Event, asking: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self._open.is_set() and (self._word is None or (asking and self._word in data)) and self._may_catch():
                    caught.set()
                    self.held.set()
                if caught.is_set() and not (asking and self._replies):
                    self._open.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def run_gate(upstream: str) -> Iterator[Gate]:
    """A gate before a URL's host or before `host:port`."""
    parts = urlsplit(upstream if "://" in upstream else f"tcp://{upstream}")
    assert parts.hostname and parts.port
    gate = Gate(parts.hostname, parts.port)
    threading.Thread(target=gate.serve, daemon=True).start()
    try:
        yield gate
    finally:
        gate.close()


@dataclass
class Site:
    """A site with one node process at a time. Its gate is the data source `gate`, a folder."""

    federation: Federation
    name: str
    home_name: str
    line: CommandLine
    engine: Any = None
    node: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)
    _events: Any = field(default=None, init=False)
    _started: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.log = self.federation.folder / f"{self.home_name}.log"
        self.gate.mkdir(exist_ok=True)
        if self.engine is not None:  # listened to from the beginning: an engine remembers its last 256 events only
            filters = {"label": ["ptm.role=run"], "event": "start", "type": "container"}
            self._events = self.engine.events(filters=filters, decode=True)
            threading.Thread(target=self._note_starts, daemon=True).start()

    @property
    def gate(self) -> Path:
        return self.federation.folder / "gate"

    @property
    def registry(self) -> Registry:
        return self.federation.registry(self.name)

    def open(self, task: str) -> None:
        (self.gate / task).touch()

    # the node

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        assert self.node is None or self.node.poll() is not None
        words = [sys.executable, "-m", "ptm", "--home", str(self.federation.folder / self.home_name), "node", "watch", *flags]
        with self.log.open("ab") as log:
            self.node = subprocess.Popen(
                words, cwd=self.line.folder, env=self.line.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self.node

    def kill(self) -> None:
        """kill -9, at once."""
        assert self.node is not None
        self.node.kill()
        self.node.wait()

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 40) -> int:
        """Ask it to stop, and return its exit code."""
        assert self.node is not None
        self.node.send_signal(how)
        return self.node.wait(timeout=seconds)

    def said(self, text: str, times: int = 1) -> bool:
        return self.log.exists() and self.log.read_text().count(text) >= times

    def end(self) -> None:
        if self.node is not None and self.node.poll() is None:
            self.kill()
        if self._events is not None:
            self._events.close()

    # what it left

    def containers(self, task: str | None = None, status: str | None = None) -> list[Any]:
        label = f"ptm.task={task}" if task else f"ptm.registry={self.federation.registry('alice').id}"
        filters = {"label": label} | ({"status": status} if status else {})
        return list(self.engine.containers.list(all=True, filters=filters, ignore_removed=True))

    def starts(self, task: str) -> int:
        """How often the engine started a container of this task, since there is this site."""
        time.sleep(0.3)  # what the engine announced has arrived by then
        return self._started.count(task)

    def _note_starts(self) -> None:
        with contextlib.suppress(Exception):  # the stream was closed: the test is over
            for event in self._events:
                self._started.append(event["Actor"]["Attributes"]["ptm.task"])

    def leftovers(self) -> list[str]:
        """All that must be gone when everything is delivered."""
        spool = self.federation.home(self.home_name).spool
        found = [str(path) for path in spool.iterdir()] if spool.is_dir() else []
        found += [info.key for info in self.federation.store.list("queue/")]
        found += [info.key for info in self.federation.store.list(f"sites/{self.name}/probe/")]
        if self.engine is not None:
            found += [container.name for container in self.containers()]
        return found

    def descriptors(self) -> int:
        assert self.node is not None
        return len(list(Path(f"/proc/{self.node.pid}/fd").iterdir()))

    def threads(self) -> int:
        assert self.node is not None
        return len(list(Path(f"/proc/{self.node.pid}/task").iterdir()))


def make_site(federation: Federation, line: CommandLine, name: str = "maastro", home: str | None = None, **settings: Any) -> Site:
    """Write the node's files; the home is the member's own unless another is given. `settings` are those of node.toml."""
    site = Site(federation, name, home or name, line, settings.pop("engine", None))
    first = {"poll_s": settings.pop("poll_s", 0.2), "runner": "docker", "pull": "never", "parallel": 2}
    named: dict[str, Any] = {key: settings.pop(key, value) for key, value in first.items()}
    images = settings.pop("process_images", {})
    place = federation.home(site.home_name)
    write_node_files(
        place,
        worker=settings.pop("worker", site.home_name),
        unsafe_no_sandbox=named["runner"] == "process",
        gateway_image=None,
        images=[r".*"],
        data={"gate": str(site.gate)},
        mirrors=settings.pop("mirrors", {}),
        process_images=images,
        **named,
    )
    extra = "".join(f"{key} = {value}\n" for key, value in settings.items())
    place.node.write_text(extra + place.node.read_text())
    return site


def only(task: TaskHandle, folder: Path, timeout: float = 60) -> RunResult:
    (result,) = task.results(timeout=timeout, folder=folder / f"out-{task.id}")
    return result


def check_once(site: Site, task: TaskHandle) -> None:
    """Exactly one result, completed, of the one run that there was; nothing left."""
    result = only(task, site.federation.folder)
    assert (result.state, result.reason) == ("completed", None)
    mark = result.read("mark.txt").decode()
    assert result.log == f"mark {mark}\n", "outputs and log are of different runs"
    assert result.read("bulk.bin") == mark.encode() * 10_000
    keys = [info.key for info in site.federation.store.list(f"sites/{site.name}/runs/{task.id}/")]
    assert [key for key in keys if key.endswith("result.json")] == [f"sites/{site.name}/runs/{task.id}/result.json"]
    assert len([key for key in keys if "/outputs/" in key]) == 1, keys
    if site.engine is not None:
        assert site.starts(task.id) == 1
    wait_for(f"nothing left, but there is {site.leftovers()}", lambda: not site.leftovers(), 10)
