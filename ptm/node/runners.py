"""Which runner a node gets. The engine's client is imported only where it is asked for."""

from __future__ import annotations

from ptm.config import Home, NodeConfig
from ptm.node.runner import Runner


def make_runner(config: NodeConfig, registry: str, site: str, home: Home) -> Runner:
    """The runner that `config` names, of this site in the registry with this id. Nothing is connected to or started yet."""
    if config.runner == "process":
        from ptm.node.process import ProcessRunner

        return ProcessRunner(config, home)
    from ptm.node.containers import DockerRunner

    return DockerRunner(config, registry, site, home)
