"""The gateway's sidecar containers: how a run gets the network namespace through which it reaches its data sources
(`ptm.node.gateway` is the other end). One sidecar for each run that was granted a source behind the gateway."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from ptm.config import GatewaySource, Home, NodeConfig
from ptm.errors import ConfigError, RunnerError
from ptm.image import parse_image
from ptm.model import DataUse
from ptm.node import gateway, sandbox
from ptm.node.budget import over_budget
from ptm.node.docker import Engine
from ptm.node.imagestore import Images
from ptm.node.runner import RunSpec

log = logging.getLogger("ptm.node")
GATEWAY_START_S = 20


class Sidecars:
    """Safe to call from several threads."""

    def __init__(self, engine: Engine, images: Images, config: NodeConfig, home: Home, user: tuple[int, int]) -> None:
        self._engine, self._images, self._config, self._home, self._user = engine, images, config, home, user
        self._gateways = gateway.Gateways()

    def close(self) -> None:
        """End the node's side. The sidecars go on, and are served again with `serve_again`."""
        self._gateways.close()

    def start(self, spec: RunSpec, names: sandbox.Names, made: list[str]) -> str:
        """The network of a run: none, or the namespace of a sidecar, which is added to `made` as soon as it is there."""
        sources = sandbox.behind_gateway(spec.data)
        if not sources:
            return "none"
        folder = self.folder(names)
        self._serve(names, sources, list(sources))
        config = sandbox.gateway_config(
            self._image(), self._user, names, str(folder / "sockets"), list(gateway.ports(sources).values())
        )
        made.append(self._engine.create(names.gateway, config))
        self._engine.start(made[-1])
        self._wait_until_ready(made[-1])
        return f"container:{made[-1]}"

    def serve_again(self, names: sandbox.Names, labels: dict[str, str]) -> None:
        """After a restart of the node, with what its configuration grants now."""
        granted = _granted(labels)
        sources = self._granted_sources(granted)
        if sources:
            self._serve(names, sources, granted)

    def stop(self, names: sandbox.Names) -> None:
        self._gateways.stop(names.task, self.folder(names))

    def usage(self, names: sandbox.Names, labels: dict[str, str]) -> tuple[DataUse, ...]:
        """What a run has had so far, by the labels of its container."""
        granted = _granted(labels)
        return gateway.usage(self.folder(names), granted) if granted else ()

    def over_budget(self, names: sandbox.Names, labels: dict[str, str]) -> str | None:
        """Why a run has had too much of a source, in one line, if it has."""
        sources = self._granted_sources(_granted(labels))
        return over_budget(self.usage(names, labels), sources) if sources else None

    def folder(self, names: sandbox.Names) -> Path:
        """Where a run's sockets and counts lie: in the spool, or in the folder that node and engine share."""
        if self._config.gateway_folder is not None:
            return self._config.gateway_folder / names.run
        return self._home.spool / names.task / "gateway"

    def _granted_sources(self, granted: list[str]) -> dict[str, GatewaySource]:
        """Those that there still are, as they are set now."""
        return sandbox.behind_gateway({name: self._config.data[name] for name in granted if name in self._config.data})

    def _serve(self, names: sandbox.Names, sources: dict[str, GatewaySource], granted: list[str]) -> None:
        try:
            self._gateways.serve(names.task, self.folder(names), sources, granted)
        except ConfigError as e:
            log.error("task %s: %s", names.task, e)
            raise RunnerError(
                "the site cannot read its own credentials for a data source", hint="the site's log says which; `ptm node check`"
            ) from e

    def _wait_until_ready(self, sidecar: str) -> None:
        deadline = time.monotonic() + GATEWAY_START_S
        while gateway.READY not in (said := self._engine.log(sidecar, b"".join)):
            if time.monotonic() > deadline or not self._engine.inspect(sidecar)["State"]["Running"]:
                log.warning("the gateway's sidecar said: %s", said[-2000:].decode(errors="replace"))
                raise RunnerError(
                    "the site's gateway did not start",
                    hint="gateway_image in node.toml has to have python3; a node in a container needs gateway_folder",
                )
            time.sleep(0.05)

    def _image(self) -> str:
        if self._config.gateway_image is None:
            raise RunnerError(
                "the site has no gateway for its data sources", hint="gateway_image in its node.toml: any image with python3"
            )
        return self._images.local_or_pulled(parse_image(self._config.gateway_image))


def _granted(labels: dict[str, str]) -> list[str]:
    return [name for name in labels.get(sandbox.SOURCES_LABEL, "").split(",") if name]
