"""Where the demo's runs take place: in containers if an engine can build the demo's image, else in plain processes.

A process is no sandbox. A real node runs nothing that way unless its owner says `unsafe_no_sandbox = true`, which the demo
does for its own three nodes, and says so.
"""

from __future__ import annotations

import io
import tarfile
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Literal

from ptm.demo.federation import IMAGE, image_files
from ptm.errors import RunnerError

Wanted = Literal["auto", "docker", "process"]
HINT = "start Docker or Podman, name another --base-image (any with python3), or leave out --runner docker"


@dataclass(frozen=True)
class Sandbox:
    """The runner of all three nodes. `why_not` is set if containers were wanted and could not be had."""

    runner: Literal["docker", "process"]
    why_not: str | None = None


def choose(wanted: Wanted, base_image: str) -> Sandbox:
    """Build the demo's image on `base_image`, or go without an engine. `RunnerError` if it was to be `docker` and cannot be."""
    if wanted == "process":
        return Sandbox("process")
    try:
        _build(base_image)
    except RunnerError as e:
        if wanted == "docker":
            raise RunnerError(str(e), hint=HINT) from e
        return Sandbox("process", str(e))
    return Sandbox("docker")


def clear(sandbox: Sandbox, registry: str) -> None:
    """Remove the containers that an interrupted demo's nodes left to be found again."""
    if sandbox.runner == "process":
        return
    from ptm.node.docker import Engine

    with closing(Engine()) as engine, suppress(RunnerError):  # an engine that is gone has no containers that run
        for handle in engine.labelled(f"ptm.registry={registry}"):
            with suppress(RunnerError):  # it is being removed already
                engine.remove(handle)


def _build(base_image: str) -> None:
    from ptm.node.docker import Engine, EngineRefused

    with closing(Engine()) as engine:
        engine.ping()
        try:
            for event in engine.build(_tar(image_files()), IMAGE, {"BASE": base_image}):
                if "error" in event:
                    raise EngineRefused("the build failed", str(event["error"]))
        except EngineRefused as e:
            said = " ".join(e.said.split())[:200]
            raise RunnerError(f"the engine cannot build the image on {base_image}: {said}") from e


def _tar(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(body), 0o755 if name == "run" else 0o644
            tar.addfile(member, io.BytesIO(body))
    return packed.getvalue()
