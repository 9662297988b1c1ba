"""Runs in containers: fulfils `ptm.node.runner.Runner` on a container engine (`ptm.node.docker`).

The engine holds all state: a run is found again by its name and labels after a restart of the node, and the name makes a second
start of it impossible. Files go in and out as tar streams, so the engine may be another machine's (data sources and the
gateway's sockets then have to be there). An engine that is away is waited for.

What this does not do: hold a run to its disk limit exactly (it is measured every few seconds; only one file alone never gets
larger), or stop the clock of a run while the node is down (the limit is late by then).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ptm.config import FileSource, Home, Limits, NodeConfig
from ptm.errors import RunnerError
from ptm.image import ImageRef
from ptm.model import DataUse
from ptm.node import sandbox
from ptm.node.contract import OUTPUT_DIR, ROOT, exit_reason
from ptm.node.diskroom import shortage
from ptm.node.docker import PATIENCE_S, SEE_LOG, Conflict, Engine, EngineAway, EngineRefused, Missing, parse_time, patiently
from ptm.node.imagestore import Images
from ptm.node.outputs import input_tar, scratch_tar, take_tar, write_log
from ptm.node.runner import Exit, Interrupt, ResolvedImage, RunSpec
from ptm.node.sidecar import Sidecars

log = logging.getLogger("ptm.node")
State = dict[str, Any]
Ask = Callable[[], Interrupt | None]

KILL_S = 60
SIZE_EVERY_S = 3
SIZE_SHARE = 20
"""Measuring takes at most this part of the time (one in so many), on an engine where it is slow."""
TAKEN = "this task has a container at this site already"
TAKEN_HINT = "`docker ps --all` shows it to the site"


class DockerRunner:
    """Fulfils `ptm.node.runner.Runner`. One for each worker."""

    sandboxed = True
    durable = True

    def __init__(self, config: NodeConfig, registry: str, site: str, home: Home) -> None:
        self._config, self._registry, self._site, self._home = config, registry, site, home
        self._user = _user(config.run_as)
        self._engine = Engine()
        self._root: Path | None = None
        self._images = Images(self._engine, config, home)
        self._sidecars = Sidecars(self._engine, self._images, config, home, self._user)

    def check(self) -> None:
        self._engine.ping()

    def close(self) -> None:
        """Let go of the engine and end the gateways. Runs go on; a gateway is back with `find`."""
        self._sidecars.close()
        self._engine.close()

    def resolve(self, image: ImageRef, interrupted: Ask = lambda: None) -> ResolvedImage:
        """`interrupted` ends the wait for a pull with a `RunnerError`."""
        return self._images.resolve(image, interrupted)

    def sweep(self, keep: Collection[str]) -> None:
        """Never a container that runs: that would be a run of a node whose state was lost, for people to look into."""
        try:
            self._images.sweep(datetime.now(UTC))
            for handle in self._engine.labelled(f"ptm.worker={self._config.worker}"):
                with suppress(Missing):
                    found = self._engine.inspect(handle)
                    names = self._names(found["Config"]["Labels"].get("ptm.task", ""))
                    if found["Name"].lstrip("/") not in (names.run, names.gateway):
                        continue  # not one that this node made: an image started by hand brings its labels along
                    if names.task not in keep and not self._is_running(names.run):
                        log.info("task %s: nobody needs its container any more; removed", names.task)
                        self._remove_both(names, names.run)
                        self._sidecars.stop(names)
        except RunnerError as e:
            log.warning("what is not needed any more could not be removed: %s", e)

    # --- a run ---

    def start(self, spec: RunSpec, image: ResolvedImage) -> str:
        names = sandbox.Names(spec.registry, spec.site, spec.worker, spec.task)
        self._clear_leftovers(names)
        made: list[str] = []
        try:
            network = self._sidecars.start(spec, names, made)
            config = sandbox.run_config(spec, image.handle, self._user, names, network, self._config.read_only_root)
            made.append(self._engine.create(names.run, config))
            self._fill(made[-1], spec.inputs)
            self._engine.start(made[-1])
        except BaseException as e:
            for handle in reversed(made):
                with suppress(RunnerError):
                    self._engine.remove(handle)
            self._sidecars.stop(names)
            if isinstance(e, EngineRefused):
                raise _start_trouble(e, spec) from e
            raise
        return made[-1]

    def _fill(self, handle: str, inputs: Path) -> None:
        """Put the inputs in. Into a read-only root an engine puts nothing, but it does into volumes."""
        if not self._config.read_only_root:
            self._engine.put(handle, "/", input_tar(inputs, *self._user))
            return
        self._engine.put(handle, ROOT, input_tar(inputs, *self._user, root="."))
        self._engine.put(handle, sandbox.SCRATCH, scratch_tar())

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
                found = self._engine.inspect(handle)
                state = found["State"]
                labels = found["Config"]["Labels"]
                too_much = self._sidecars.over_budget(self._names(labels["ptm.task"]), labels)
                if not state["Running"]:
                    return replace(_ended(state, limits), reason=too_much) if too_much else _ended(state, limits)
                too_much = too_much or self._shortage()
                if too_much:
                    return self._kill(handle, too_much)
                if deadline is None:
                    deadline = time.monotonic() + limits.time_s - self._elapsed(state)
                if time.monotonic() >= deadline:
                    return self._kill(handle, f"time limit of {limits.time_s} s reached")
                if time.monotonic() >= size_due:
                    begun = time.monotonic()
                    if self._written(handle, found) > limits.disk_gb * 1024**3:
                        return self._kill(handle, f"disk limit of {limits.disk_gb:g} GB reached")
                    size_due = time.monotonic() + max(SIZE_EVERY_S, SIZE_SHARE * (time.monotonic() - begun))
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

    def _shortage(self) -> str | None:
        if self._root is None:
            self._root = self._engine.root()
        return shortage(self._root, self._config.keep_free_gb)

    def _written(self, handle: str, found: State) -> int:
        """Bytes in the container's own layer and in its volumes, those that the image declares among them."""
        volumes = {str(mount["Name"]) for mount in found.get("Mounts") or () if mount.get("Type") == "volume"}
        return self._engine.written(handle) + (self._engine.in_volumes(volumes) if volumes else 0)

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
            self._sidecars.stop(names)

    def usage(self, handle: str) -> tuple[DataUse, ...]:
        try:
            labels = patiently(lambda: self._engine.inspect(handle))["Config"]["Labels"]
        except Missing:
            return ()
        return self._sidecars.usage(self._names(labels["ptm.task"]), labels)

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
            self._sidecars.serve_again(names, found["Config"]["Labels"])
        return str(found["Id"])

    def _names(self, task: str) -> sandbox.Names:
        return sandbox.Names(self._registry, self._site, self._config.worker, task)


def _user(run_as: str | None) -> tuple[int, int]:
    """Whom a run is run as: the configured user, else the node's own, and nobody in place of root."""
    if run_as is not None:
        user, _, group = run_as.partition(":")
        return int(user), int(group)
    return (os.getuid(), os.getgid()) if os.getuid() != 0 else sandbox.NOBODY


def _start_trouble(error: EngineRefused, spec: RunSpec) -> RunnerError:
    """Why a container could not be started, in words that name nothing of the site but the data sources that the researcher
    knows."""
    if isinstance(error, Conflict):
        return RunnerError(TAKEN, hint=TAKEN_HINT)
    log.warning("task %s: the container could not be started: %s", spec.task, error.said)
    said = error.said
    if spec.gpus and any(word in said.lower() for word in ("device driver", "gpu", "nvidia", "cdi device")):
        return RunnerError(
            f"the site's container engine could not give {spec.gpus} GPU(s)",
            hint="ask the site how many it has, or put the task again without --gpus",
        )
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
