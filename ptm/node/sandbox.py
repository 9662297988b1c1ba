"""How a run's container is locked up: every limit and every lock, as the JSON of the engine API (Docker Engine API v1.41,
ContainerCreate). Pure.

A run gets no network, no capability, no way to gain privileges, no user that is root, no swap, no more of CPU, memory and
processes than its limits say, no GPU that it was not allowed, no file larger than its disk limit, a bounded log, a root file
system that it cannot write to (but for `/ptm/output` and `/tmp`, volumes of its own that go with it), and no variable of the
node's. The engine's own seccomp profile and hidden paths stay as they are; no namespace of the host and no socket of the engine
is ever shared. The image's entrypoint stays; a task's command takes the place of the image's CMD, as TES has it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptm.config import DataSource, FileSource, GatewaySource, Limits
from ptm.node import contract, gateway
from ptm.node.runner import RunSpec

RUN, GATEWAY = "run", "gateway"
SOURCES_LABEL = "ptm.sources"
SCRATCH = "/tmp"  # noqa: S108 - in the container
NOBODY = (65534, 65534)
LEAST_MEMORY = 8 * 1024 * 1024
"""Below this an engine refuses to make a container, or the run cannot even start."""
LOG_ROOM = 32
"""The engine's log file has a time and a wrapping for every line: so many times the log's limit is what it may take."""
GATEWAY_LIMITS = Limits(cpu_cores=1, ram_gb=0.0625, pids=16, log_kb=64)

Config = dict[str, Any]


@dataclass(frozen=True)
class Names:
    """What this worker's containers for one task are called. The same task gets the same names, so the engine itself refuses a
    second run."""

    registry: str
    site: str
    worker: str
    task: str

    @property
    def run(self) -> str:
        of_whom = hashlib.sha256(f"{self.registry}/{self.site}/{self.worker}".encode()).hexdigest()[:12]
        return f"ptm-{of_whom}-{self.task}"

    @property
    def gateway(self) -> str:
        return f"{self.run}-gateway"

    def labels(self, role: str) -> dict[str, str]:
        mine = {"registry": self.registry, "site": self.site, "worker": self.worker, "task": self.task, "role": role}
        return {f"ptm.{key}": value for key, value in mine.items()}


def run_config(spec: RunSpec, image: str, user: tuple[int, int], names: Names, network: str, read_only: bool = True) -> Config:
    """The container of a run. `network` is `none`, or the gateway's namespace."""
    sources = behind_gateway(spec.data)
    mounts = [
        _bind(str(s.path.absolute()), f"{contract.DATA_DIR}/{n}") for n, s in spec.data.items() if isinstance(s, FileSource)
    ]
    if read_only:
        mounts += [{"Type": "volume", "Target": target} for target in (contract.ROOT, SCRATCH)]
    labels = names.labels(RUN) | {"ptm.attempt": spec.attempt, SOURCES_LABEL: ",".join(sources)}
    host = _host(spec.limits, network, mounts) | {"ReadonlyRootfs": read_only, "DeviceRequests": _gpus(spec.gpus)}
    config = _base(image, user, labels, host)
    config["Env"] = [f"{name}={value}" for name, value in (_environment(spec, sources) | _no_gpus(spec.gpus)).items()]
    if spec.command:
        config["Cmd"] = list(spec.command)
    if spec.workdir:
        config["WorkingDir"] = spec.workdir
    return config


def gateway_config(image: str, user: tuple[int, int], names: Names, sockets: str, open_ports: Sequence[int]) -> Config:
    """The sidecar that forwards from loopback to the node's sockets."""
    host = _host(GATEWAY_LIMITS, "none", [_bind(sockets, gateway.MOUNT)]) | {"ReadonlyRootfs": True}
    config = _base(image, user, names.labels(GATEWAY), host)
    config["Entrypoint"] = ["python3"]
    config["Cmd"] = gateway.forwarder_arguments(open_ports)
    return config


def behind_gateway(data: Mapping[str, DataSource]) -> dict[str, GatewaySource]:
    """The sources that a container reaches through the gateway."""
    return {name: source for name, source in data.items() if not isinstance(source, FileSource)}


def _environment(spec: RunSpec, sources: Mapping[str, GatewaySource]) -> dict[str, str]:
    endpoints = {name: gateway.inside_url(port, sources[name]) for name, port in gateway.ports(sources).items()}
    places = contract.container_places(spec.data, endpoints)
    return contract.environment(spec.task, spec.site, spec.data, places, spec.env)


def _gpus(count: int) -> list[Config]:
    """Whatever driver the engine has for GPUs may answer."""
    return [{"Driver": "", "Count": count, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}] if count else []


def _no_gpus(count: int) -> dict[str, str]:
    """Where NVIDIA's runtime is an engine's default, an image or a task gets every GPU by setting this variable, without asking
    the engine. `void` is NVIDIA's word for none (Container Toolkit, "Environment variables")."""
    return {} if count else {"NVIDIA_VISIBLE_DEVICES": "void"}


def _base(image: str, user: tuple[int, int], labels: dict[str, str], host: Config) -> Config:
    return {
        "Image": image,
        "User": f"{user[0]}:{user[1]}",
        "Labels": labels,
        "Tty": False,
        "OpenStdin": False,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def _host(limits: Limits, network: str, mounts: list[Config]) -> Config:
    """Without a name server of its own a container is shown those of the host, which it cannot reach, but could tell."""
    memory = max(LEAST_MEMORY, int(limits.ram_gb * 1024**3))
    disk = max(1, int(limits.disk_gb * 1024**3))
    return {
        "NetworkMode": network,
        **({"Dns": ["127.0.0.1"], "DnsSearch": ["."]} if network == "none" else {}),
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Memory": memory,
        "MemorySwap": memory,
        "CpuPeriod": 100_000,
        "CpuQuota": 100_000 * limits.cpu_cores,
        "PidsLimit": limits.pids,
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}, {"Name": "fsize", "Soft": disk, "Hard": disk}],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": f"{LOG_ROOM * limits.log_kb}k", "max-file": "2"}},
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "Mounts": mounts,
    }


def _bind(source: str, target: str) -> Config:
    """Not recursive: an engine makes only the top of a bind read-only, and what is mounted below it could be written to."""
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": True, "BindOptions": {"NonRecursive": True}}
