"""Writes a node's first `node.toml` and `policy.toml`, with comments, for a person to edit; reads them back."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from ptm.config import Home, Limits, NodeConfig, Policy, read_toml, toml_string
from ptm.errors import AlreadyExists, ConfigError
from ptm.files import write_atomic

_NODE = """\
# How this worker works. What it may run is in policy.toml. Checked by `ptm node check`; read when `ptm node watch` starts.
worker = {worker}            # unique among this site's workers
runner = {runner}
unsafe_no_sandbox = {unsafe}    # true only for simulation: the process runner is no sandbox
parallel = {parallel}                    # runs at once
poll_s = {poll_s:<23}# seconds between looks at the queue
pull = {pull}               # "never": only images that are already on this machine
{gateway}
# The most that one run may take, and what it gets when the task does not say.
[limits]
{limits}
"""
_POLICY = """\
# What this site allows. Rules are read top to bottom; what no rule allows is refused. An empty file allows nothing.
# images: regular expressions that must match the whole of name:tag (and of name@sha256:... where a task gives a digest).
"""


def default_worker(site: str) -> str:
    """A worker name that no other worker of the site is likely to have."""
    return f"{site[:50]}-{secrets.token_hex(3)}"


def write_node_files(
    home: Home,
    *,
    worker: str,
    runner: str,
    unsafe_no_sandbox: bool,
    parallel: int,
    pull: str,
    gateway_image: str | None,
    images: Sequence[str],
    data: Mapping[str, str],
    mirrors: Mapping[str, str],
    process_images: Mapping[str, Path],
    poll_s: float = 5.0,
) -> None:
    """Write both files, or neither. `AlreadyExists` if there is one; `ConfigError` if what was asked for makes no
    valid configuration.

    `data` maps names to a path (a file or folder) or to the http(s) URL of a SPARQL endpoint.
    """
    for path in (home.node, home.policy):
        if path.exists():
            raise AlreadyExists(f"{path} is there already", hint="edit it, or move it away")
    node = _NODE.format(
        worker=toml_string(worker),
        runner=toml_string(runner),
        unsafe="true" if unsafe_no_sandbox else "false",
        parallel=parallel,
        poll_s=poll_s,
        pull=toml_string(pull),
        gateway=f"gateway_image = {toml_string(gateway_image)}\n" if gateway_image else "",
        limits="\n".join(f"{name} = {value}" for name, value in Limits().model_dump().items()),
    )
    node += "".join(_data_table(name, value) for name, value in data.items())
    node += _table("mirrors", mirrors, "Where the engine gets an image whose name starts like this.")
    node += _table(
        "process_images", {name: str(path) for name, path in process_images.items()}, "Simulation: folders instead of images."
    )
    policy = _POLICY
    if images:
        policy += "\n[[allow]]\nimages = [" + ", ".join(toml_string(pattern) for pattern in images) + "]\n"
    home.make()
    _write_checked(home.node, node, NodeConfig)
    try:
        _write_checked(home.policy, policy, Policy)
    except ConfigError:
        home.node.unlink()
        raise


def load_node(home: Home) -> tuple[NodeConfig, Policy]:
    """Both files, checked."""
    return read_toml(home.node, NodeConfig), read_toml(home.policy, Policy)


def _write_checked(path: Path, text: str, kind: type[NodeConfig | Policy]) -> None:
    """Write a file only if it reads back as what it should be."""
    trial = path.with_name(f".ptm-{path.name}")
    write_atomic(trial, text.encode(), mode=0o600)
    try:
        read_toml(trial, kind)
    except ConfigError as e:
        raise ConfigError(
            str(e).replace(str(trial), path.name), hint=(e.hint or "").replace(trial.name, path.name) or None
        ) from e
    else:
        trial.rename(path)
    finally:
        trial.unlink(missing_ok=True)


def _data_table(name: str, value: str) -> str:
    if value.startswith(("http://", "https://")):
        return f'\n[data.{name}]\nkind = "sparql"\nurl = {toml_string(value)}\n'
    return f'\n[data.{name}]\nkind = "file"\npath = {toml_string(str(Path(value).absolute()))}\n'


def _table(name: str, values: Mapping[str, str], comment: str) -> str:
    if not values:
        return ""
    lines = "".join(f"{toml_string(key)} = {toml_string(value)}\n" for key, value in values.items())
    return f"\n# {comment}\n[{name}]\n{lines}"
