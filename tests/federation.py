"""A small federation for tests: a coordinator, researchers and sites with homes of their own, on any store. All keys,
signatures and TUF metadata are real.

Nodes run in this process (`Federation.node`), with the process runner or whatever runner a test gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ptm import coordinator
from ptm.client import Client, RunResult, TaskHandle
from ptm.config import Home, Limits, NodeConfig, Profile, load_profile
from ptm.enrolment import join, write_request
from ptm.errors import Unreachable
from ptm.keys import load_keys
from ptm.model import Kind
from ptm.node.policy import LoadedPolicy
from ptm.node.rules import Policy
from ptm.node.runner import Runner
from ptm.node.runners import make_runner
from ptm.node.watch import Node
from ptm.registry import Registry, now_utc
from ptm.store.base import Store


@dataclass(frozen=True)
class Fixed:
    """A policy that was never in a file."""

    loaded: LoadedPolicy

    def current(self) -> LoadedPolicy:
        return self.loaded


def one_rule(images: str, **terms: object) -> Fixed:
    """A policy of one rule for all images that match, with every data source; no images: an empty policy."""
    rules = [{"images": [images], "data": ["*"], **terms}] if images else []
    said = json.dumps(rules, sort_keys=True).encode()
    return Fixed(LoadedPolicy(Policy.model_validate({"allow": rules}, strict=False), hashlib.sha256(said).hexdigest(), (1,)))


@dataclass
class Federation:
    """`registry(name)` and `client(name)` are a member's view; every member's home is `folder/<name>`."""

    store: Store
    folder: Path
    fingerprint: str = ""
    _registries: dict[str, Registry] = field(default_factory=dict)

    def home(self, name: str) -> Home:
        return Home(self.folder / name)

    def create(self, now: datetime | None = None) -> Federation:
        home = self.home("coord").make()
        self.fingerprint = coordinator.create_registry(
            self.store, home, name="test", organisation="", root_keys=[], threshold=1, now=now or now_utc()
        )
        return self

    def admit(self, **kinds: Kind) -> Federation:
        """Make keys for members, admit them, and let them join: `admit(alice="researcher", maastro="site")`."""
        requests = []
        for name, kind in kinds.items():
            home = self.home(name).make()
            path = self.folder / f"{name}.request.json"
            requests.append(write_request(home, path, name=name, kind=kind, organisation="", now=now_utc()))
        coordinator.admit(self.store, self.home("coord"), requests, now_utc())
        for name in kinds:
            join(self.store, self.home(name), self.fingerprint)
        return self

    def revoke(self, *names: str) -> None:
        coordinator.revoke(self.store, self.home("coord"), list(names), now_utc())

    def profile(self, name: str) -> Profile:
        return load_profile(self.home(name))

    def registry(self, name: str, store: Store | None = None) -> Registry:
        """A member's registry on this federation's own store object (or on a wrapper of it)."""
        home = self.home(name)
        return Registry(home, load_profile(home), store or self.store, load_keys(home.keys))

    def client(self, name: str = "alice", store: Store | None = None) -> Client:
        client = Client.__new__(Client)
        client.home, client.registry = self.home(name), self.registry(name, store)
        return client

    def node(
        self,
        site: str,
        *,
        images: Mapping[str, Path] | None = None,
        allow: str = r".*",
        rule: Mapping[str, object] | None = None,
        runner: Runner | None = None,
        home: Home | None = None,
        store: Store | None = None,
        **settings: object,
    ) -> Node:
        """A node of a site. Without `runner` it is the process runner, with `images` as its folders. `rule` adds to the policy's
        one rule."""
        place = home or self.home(site)
        values: dict[str, object] = {
            "worker": f"{site}-1",
            "runner": "process",
            "unsafe_no_sandbox": True,
            "poll_s": 0.05,
            "process_images": dict(images or {}),
            "limits": Limits(time_s=60),
            "stop_grace_s": 5.0,
        }
        config = NodeConfig.model_validate(values | settings, strict=False)
        policy = one_rule(allow, **(rule or {}))
        registry = Registry(place, load_profile(self.home(site)), store or self.store, load_keys(self.home(site).keys))
        return Node(place, registry, config, policy, runner or make_runner(config, registry.id, site, place))

    def run_once(self, site: str, **settings: object) -> None:
        """Let a site handle what is there."""
        self.node(site, **settings).watch(threading.Event(), once=True)  # type: ignore[arg-type]


COUNT = """#!/usr/bin/env python3
import json, os, pathlib, sys
rows = 0
for name, path in sorted(os.environ.items()):
    if name.startswith("PTM_DATA_"):
        rows += len(pathlib.Path(path).read_text().splitlines()) - 1
inputs = {p.name: p.read_text() for p in pathlib.Path(os.environ["PTM_INPUT_DIR"]).iterdir()}
out = pathlib.Path(os.environ["PTM_OUTPUT_DIR"])
(out / "count.json").write_text(json.dumps({"rows": rows, "inputs": inputs, "site": os.environ["PTM_SITE"]}))
print("counted", rows, "rows")
"""


def image_folder(folder: Path, script: str = COUNT) -> Path:
    """A folder that stands for an image: an executable `run`."""
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "run"
    run.write_text(script)
    run.chmod(0o755)
    return folder


def second_home(federation: Federation, site: str) -> Home:
    """Another machine of the same site: the same keys and trust, its own state."""
    target = federation.home(f"{site}-second")
    source = federation.home(site)
    target.make()
    shutil.copytree(source.keys, target.keys)
    shutil.copytree(source.trust, target.trust, symlinks=True)
    shutil.copy(source.profile, target.profile)
    return target


class FailOnce:
    """A hook that raises at the k-th operation of any thread but the test's own, once."""

    def __init__(self, k: int) -> None:
        self.left, self.fired, self._lock = k, False, threading.Lock()

    def __call__(self, verb: str, key: str) -> None:
        with self._lock:
            self.left -= 1
            if self.left != 0:
                return
            self.fired = True
        raise Unreachable(f"{verb} {key}: the network went away")


@contextlib.contextmanager
def running(watch: Callable[[threading.Event], object], seconds: float = 15) -> Iterator[None]:
    """While this is open, a node, party or drop folder watches in a thread of its own; then it has to stop in time."""
    stop = threading.Event()
    thread = threading.Thread(target=watch, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(seconds)
        assert not thread.is_alive()


def outcome(task: TaskHandle, folder: Path) -> RunResult:
    """The one result of a task for one site, with its files in a new folder below this one."""
    (result,) = task.results(timeout=0, folder=folder / f"out-{time.monotonic_ns()}")
    return result


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
