"""Runs in containers: fulfils `ptm.node.runner.Runner` on a container engine (`ptm.node.docker`).

The engine holds all state: a run is found again by its name and labels after a restart of the node, and the name makes a second
start of it impossible. Files go in and out as tar streams, so the engine may be another machine's (data sources and the
gateway's sockets then have to be there). An engine that is away is waited for.

What this does not do: hold a run to its disk limit exactly (it is measured every few seconds), count what is written to a
volume that the image itself declares (it goes with the container), or stop the clock of a run while the node is down (the limit
is late by then).
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ptm.config import FileSource, Home, Limits, NodeConfig, SparqlSource
from ptm.errors import RunnerError
from ptm.image import ImageRef, parse_image
from ptm.node import gateway, sandbox
from ptm.node.contract import OUTPUT_DIR, exit_reason
from ptm.node.docker import PATIENCE_S, SEE_LOG, Conflict, Engine, EngineAway, EngineRefused, Missing, parse_time, patiently
from ptm.node.images import engine_name, pull_trouble, repo_digest
from ptm.node.outputs import input_tar, take_tar, write_log
from ptm.node.runner import Exit, Interrupt, ResolvedImage, RunSpec

log = logging.getLogger("ptm.node")
State = dict[str, Any]
Event = dict[str, Any]
Ask = Callable[[], Interrupt | None]

PULL_STALL_S = 600
"""How long a pull may go without any sign of progress."""
GATEWAY_START_S = 20
KILL_S = 60
SIZE_EVERY_S = 10
TAKEN = "this task has a container at this site already"
TAKEN_HINT = "`docker ps --all` shows it to the site"


class DockerRunner:
    """Fulfils `ptm.node.runner.Runner`. One for each worker."""

    sandboxed = True
    durable = True

    def __init__(self, config: NodeConfig, registry: str, site: str, home: Home) -> None:
        self._config, self._registry, self._site, self._home = config, registry, site, home
        self._user = _user(config.run_as)
        self._gateways = gateway.Gateways()
        self._engine = Engine()

    def check(self) -> None:
        self._engine.ping()

    def close(self) -> None:
        """Let go of the engine and end the gateways. Runs go on; a gateway is back with `find`."""
        self._gateways.close()
        self._engine.close()

    # --- images ---

    def resolve(self, image: ImageRef, interrupted: Ask = lambda: None) -> ResolvedImage:
        """`interrupted` ends the wait for a pull with a `RunnerError`."""
        name, reference = self._reference(image)
        if self._config.pull == "never":
            return self._local(image, name, reference)
        pulled = self._pull(image, name, interrupted)
        found = self._engine.image(f"{name}@{pulled}" if pulled else reference)
        digest = pulled or repo_digest(found.get("RepoDigests") or (), name, image.digest)
        return _resolved(image, digest, str(found["Id"]))

    def _reference(self, image: ImageRef) -> tuple[str, str]:
        """The engine's name for an image, without and with the tag or digest."""
        name = engine_name(image, self._config.mirrors)
        return name, f"{name}@{image.digest}" if image.digest else f"{name}:{image.tag}"

    def _local(self, image: ImageRef, name: str, reference: str) -> ResolvedImage:
        """An image that the engine has already; one that never saw a registry goes by its id."""
        try:
            found = self._engine.image(reference)
        except Missing as e:
            found = self._engine_id(image, e)
        identity = str(found["Id"])
        digests = [*(found.get("RepoDigests") or ()), f"@{identity}"]
        return _resolved(image, repo_digest(digests, name, image.digest), identity)

    def _engine_id(self, image: ImageRef, missing: Missing) -> dict[str, Any]:
        """An image whose digest is the engine's own id of it."""
        with suppress(Missing):
            if image.digest is not None:
                return self._engine.image(image.digest)
        raise RunnerError(
            f"the site has no image {image.label} and does not pull", hint='pull = "never" in its node.toml'
        ) from missing

    def _pull(self, image: ImageRef, name: str, interrupted: Ask) -> str | None:
        """Pull, and return the digest of what came if the engine tells. In a thread of its own, so that a stuck pull can be
        left."""
        events: queue.Queue[Event | RunnerError | None] = queue.Queue()
        threading.Thread(target=self._pull_into, args=(image, name, events), name="ptm-pull", daemon=True).start()
        digest = None
        for event in _until_stalled(image.label, events, interrupted):
            if "error" in event:
                raise _pull_failed(image, name, str(event["error"]))
            status = str(event.get("status", ""))
            if status.startswith("Digest: sha256:"):
                digest = status.removeprefix("Digest: ")
        return digest

    def _pull_into(self, image: ImageRef, name: str, events: queue.Queue[Event | RunnerError | None]) -> None:
        try:
            for event in self._engine.pull(name, image.digest or image.tag or "latest"):
                events.put(event)
            events.put(None)
        except EngineRefused as e:
            events.put(_pull_failed(image, name, e.said))
        except RunnerError as e:
            events.put(e)

    # --- a run ---

    def start(self, spec: RunSpec, image: ResolvedImage) -> str:
        names = sandbox.Names(spec.registry, spec.site, spec.worker, spec.task)
        self._clear_leftovers(names)
        made: list[str] = []
        try:
            network = self._start_gateway(spec, names, made)
            config = sandbox.run_config(spec, image.handle, self._user, names, network)
            made.append(self._engine.create(names.run, config))
            self._engine.put(made[-1], input_tar(spec.inputs, *self._user))
            self._engine.start(made[-1])
        except BaseException as e:
            for handle in reversed(made):
                with suppress(RunnerError):
                    self._engine.remove(handle)
            self._gateways.stop(spec.task, self._gateway_folder(spec.task))
            if isinstance(e, EngineRefused):
                raise _start_trouble(e, spec) from e
            raise
        return made[-1]

    def _clear_leftovers(self, names: sandbox.Names) -> None:
        """A crash amid a start leaves a container that never ran, or a sidecar alone. A container that ran is a run, and
        stays."""
        with suppress(Missing):
            if _started(self._engine.inspect(names.run)["State"]) is not None:
                raise RunnerError(TAKEN, hint=TAKEN_HINT)
        self._remove_both(names, names.run)

    def _remove_both(self, names: sandbox.Names, run: str) -> None:
        """The sidecar first, so that a crash in between leaves what can be found again; Podman wants it the other way round."""
        with suppress(EngineRefused):
            self._engine.remove(names.gateway)
        self._engine.remove(run)
        self._engine.remove(names.gateway)

    def wait(self, handle: str, limits: Limits, interrupted: Ask) -> Exit:
        deadline: float | None = None
        size_due = time.monotonic() + SIZE_EVERY_S / 10
        away_until: float | None = None
        pause = 0.05
        while True:
            why = interrupted()
            if why == "stopping":
                return Exit(None, None, None, datetime.now(UTC), "stopping")
            try:
                if why == "canceled":
                    return self._kill(handle, "canceled", why)
                state = self._engine.inspect(handle)["State"]
                if not state["Running"]:
                    return _ended(state, limits)
                if deadline is None:
                    deadline = time.monotonic() + limits.time_s - self._elapsed(state)
                if time.monotonic() >= deadline:
                    return self._kill(handle, f"time limit of {limits.time_s} s reached")
                if time.monotonic() >= size_due:
                    if self._engine.written(handle) > limits.disk_gb * 1024**3:
                        return self._kill(handle, f"disk limit of {limits.disk_gb:g} GB reached")
                    size_due = time.monotonic() + SIZE_EVERY_S
                away_until = None
            except Missing as e:
                raise RunnerError(
                    "the run's container is gone", hint="somebody removed it at the site; put the task again"
                ) from e
            except EngineAway:
                away_until = away_until or time.monotonic() + PATIENCE_S
                if time.monotonic() > away_until:
                    raise
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def _elapsed(self, state: State) -> float:
        """Seconds since the run's start, both times by the engine's clock."""
        started = _started(state)
        return max(0.0, (self._engine.now() - started).total_seconds()) if started else 0.0

    def _kill(self, handle: str, reason: str, why: Interrupt | None = None) -> Exit:
        self._engine.kill(handle)
        deadline = time.monotonic() + KILL_S
        while (state := self._engine.inspect(handle)["State"])["Running"]:
            if time.monotonic() > deadline:
                raise RunnerError("the container could not be killed", hint=SEE_LOG)
            time.sleep(0.1)
        return Exit(None, reason, _started(state), parse_time(state["FinishedAt"]) or datetime.now(UTC), why)

    def collect(self, handle: str, limits: Limits, outputs: Path, log: Path) -> str | None:
        def once() -> str | None:
            for left in outputs.iterdir():
                left.unlink()
            self._engine.log(handle, lambda chunks: write_log(chunks, log, limits.log_kb))
            return self._engine.archive(
                handle, OUTPUT_DIR, lambda chunks: take_tar(chunks, Path(OUTPUT_DIR).name, outputs, limits)
            )

        try:
            return patiently(once)
        except Missing:
            return "the output folder is gone"

    def remove(self, handle: str) -> None:
        with suppress(Missing):
            names = self._names(patiently(lambda: self._engine.inspect(handle))["Config"]["Labels"]["ptm.task"])
            patiently(lambda: self._remove_both(names, handle))
            self._gateways.stop(names.task, self._gateway_folder(names.task))

    def sweep(self, keep: set[str]) -> None:
        """Never a container that runs: that would be a run of a node whose state was lost, for people to look into."""
        for handle in self._engine.labelled(f"ptm.worker={self._config.worker}"):
            with suppress(Missing):
                task = self._engine.inspect(handle)["Config"]["Labels"].get("ptm.task", "")
                names = self._names(task)
                if task not in keep and not self._is_running(names.run):
                    self._remove_both(names, names.run)

    def _is_running(self, name: str) -> bool:
        with suppress(Missing):
            return bool(self._engine.inspect(name)["State"]["Running"])
        return False

    def find(self, task: str) -> str | None:
        """A container that was made and never started is removed, and not found."""
        names = self._names(task)
        try:
            found = patiently(lambda: self._engine.inspect(names.run))
        except Missing:
            patiently(lambda: self._engine.remove(names.gateway))
            return None
        if _started(found["State"]) is None:
            patiently(lambda: self._remove_both(names, names.run))
            return None
        if found["State"]["Running"]:
            self._serve_again(task, found["Config"]["Labels"])
        return str(found["Id"])

    # --- the gateway ---

    def _start_gateway(self, spec: RunSpec, names: sandbox.Names, made: list[str]) -> str:
        """The network of a run: none, or the namespace of a sidecar through which it reaches its SPARQL sources."""
        urls = {name: source.url for name, source in spec.data.items() if isinstance(source, SparqlSource)}
        if not urls:
            return "none"
        ports = gateway.ports(urls)
        sockets = gateway.make_folder(self._gateway_folder(spec.task))
        self._gateways.serve(spec.task, sockets, {port: urls[name] for name, port in ports.items()})
        config = sandbox.gateway_config(self._gateway_image(), self._user, names, str(sockets), list(ports.values()))
        made.append(self._engine.create(names.gateway, config))
        self._engine.start(made[-1])
        self._wait_until_ready(made[-1])
        return f"container:{made[-1]}"

    def _wait_until_ready(self, sidecar: str) -> None:
        deadline = time.monotonic() + GATEWAY_START_S
        while gateway.READY not in (said := self._engine.log(sidecar, b"".join)):
            if time.monotonic() > deadline or not self._engine.inspect(sidecar)["State"]["Running"]:
                log.warning("the gateway's sidecar said: %s", said[-2000:].decode(errors="replace"))
                raise RunnerError("the site's gateway did not start", hint="gateway_image in node.toml has to have python3")
            time.sleep(0.05)

    def _gateway_image(self) -> str:
        if self._config.gateway_image is None:
            raise RunnerError(
                "the site has no gateway for SPARQL sources", hint="gateway_image in its node.toml: any image with python3"
            )
        image = parse_image(self._config.gateway_image)
        try:
            return self._local(image, *self._reference(image)).handle
        except EngineAway:
            raise
        except RunnerError:
            return self.resolve(image).handle

    def _serve_again(self, task: str, labels: dict[str, str]) -> None:
        """After a restart of the node, with what its configuration grants now."""
        names = [name for name in labels.get(sandbox.SPARQL_LABEL, "").split(",") if name]
        sources = {port: self._config.data.get(name) for name, port in gateway.ports(names).items()}
        urls = {port: source.url for port, source in sources.items() if isinstance(source, SparqlSource)}
        if urls:
            self._gateways.serve(task, gateway.make_folder(self._gateway_folder(task)), urls)

    def _gateway_folder(self, task: str) -> Path:
        return self._home.spool / task / "gateway"

    def _names(self, task: str) -> sandbox.Names:
        return sandbox.Names(self._registry, self._site, self._config.worker, task)


def _user(run_as: str | None) -> tuple[int, int]:
    """Whom a run is run as: the configured user, else the node's own, and nobody in place of root."""
    if run_as is not None:
        user, _, group = run_as.partition(":")
        return int(user), int(group)
    return (os.getuid(), os.getgid()) if os.getuid() != 0 else sandbox.NOBODY


def _resolved(image: ImageRef, digest: str | None, handle: str) -> ResolvedImage:
    if digest is None:
        raise RunnerError(f"the engine does not tell the digest of {image.label}", hint=SEE_LOG)
    if image.digest is not None and digest != image.digest:
        raise RunnerError(f"the engine has another image for {image.label} than the digest that was asked for", hint=SEE_LOG)
    return ResolvedImage(digest, handle)


def _until_stalled(label: str, events: queue.Queue[Event | RunnerError | None], interrupted: Ask) -> Iterator[Event]:
    """The events of a pull up to its end; an error if it fails, comes to a halt or is interrupted."""
    seen = time.monotonic()
    while True:
        try:
            event = events.get(timeout=0.5)
        except queue.Empty:
            event = {}
        if event is None:
            return
        if isinstance(event, RunnerError):
            raise event
        if interrupted() is not None:
            raise RunnerError(f"the pull of {label} was interrupted")
        if event:
            seen = time.monotonic()
            yield event
        elif time.monotonic() - seen > PULL_STALL_S:
            raise RunnerError(
                f"the pull of {label} made no progress for {PULL_STALL_S} s", hint="the site should look at its network"
            )


def _pull_failed(image: ImageRef, name: str, said: str) -> RunnerError:
    log.warning("pull of %s as %s: %s", image.label, name, said)
    return pull_trouble(image.label, said)


def _start_trouble(error: EngineRefused, spec: RunSpec) -> RunnerError:
    """Why a container could not be started, in words that name nothing of the site but the data sources that the researcher
    knows."""
    if isinstance(error, Conflict):
        return RunnerError(TAKEN, hint=TAKEN_HINT)
    log.warning("task %s: the container could not be started: %s", spec.task, error.said)
    said = error.said
    if "executable file not found" in said or "exec:" in said or "exec format error" in said:
        return RunnerError(
            "the image's command cannot be started", hint="the command is not in the image, or may not be executed"
        )
    for name, source in spec.data.items():
        if isinstance(source, FileSource) and str(source.path) in said:
            return RunnerError(f"the data source {name} is not there", hint="ask the site to check [data] in its node.toml")
    return RunnerError("the container could not be started", hint=SEE_LOG)


def _started(state: State) -> datetime | None:
    return parse_time(state["StartedAt"])


def _ended(state: State, limits: Limits) -> Exit:
    """How a container came to its end by itself, or by the kernel."""
    code = int(state["ExitCode"])
    if _started(state) is None:
        return Exit(None, "the container never started", None, datetime.now(UTC))
    out_of_memory = code != 0 and state.get("OOMKilled")
    reason = f"memory limit of {limits.ram_gb:g} GB reached" if out_of_memory else exit_reason(code)
    return Exit(code, reason, _started(state), parse_time(state["FinishedAt"]) or datetime.now(UTC))
