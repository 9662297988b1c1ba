"""Writes a node's first `node.toml` and `policy.toml`, with comments, for a person to edit; reads them back."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ptm.config import MAX_PATH, Home, HttpSource, Limits, NodeConfig, read_toml, toml_string
from ptm.errors import AlreadyExists, ConfigError
from ptm.files import write_atomic
from ptm.node.datatext import source_table
from ptm.node.patterns import first_slow
from ptm.node.policy import LoadedPolicy
from ptm.node.policyfile import PolicyFile
from ptm.node.rules import ANY

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
# What this site allows. Rules are read top to bottom, the first that matches decides, and what none matches is refused.
# An empty file allows nothing. Every key: docs/policy.md. After a change: `ptm node check`, `ptm node policy test TASK.json`;
# a running node takes the change up by itself.
#
# [[allow]]
# images = ['myConsortium/glm:2\\..*']     # regular expressions that match the whole name:tag; single quotes keep the backslash
# data = ["cohort"]                       # data sources of node.toml that these images may be given; without this: none
# env = ["SEED"]                          # variables that a task may set; without this: none
# researchers = ["alice"]                 # without this: every researcher of the registry
# approval = "manual"                     # a person approves each run; "first-use": each image once
# release = "manual"                      # a person looks at the outputs before they leave
# outputs = { names = ['.*\\.csv'], max_mb = 10, min_cell = 10 }
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
    secrets_of: Mapping[str, Path] | None = None,
    poll_s: float = 5.0,
) -> None:
    """Write both files, or neither. `AlreadyExists` if there is one; `ConfigError` if what was asked for makes no
    valid configuration.

    `data` maps names to a path or URL (`ptm.node.datatext`), `secrets_of` to the file of a secret.
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
    node += "".join(source_table(name, value, (secrets_of or {}).get(name)) for name, value in data.items())
    node += _table("mirrors", mirrors, "Where the engine gets an image whose name starts like this.")
    node += _table(
        "process_images", {name: str(path) for name, path in process_images.items()}, "Simulation: folders instead of images."
    )
    policy = _POLICY
    if images:
        policy += f"\n[[allow]]\nimages = {_array(images)}\n"
        policy += f"data = {_array(data)}\n" if data else ""
    home.make()
    _write_checked(home.node, node, lambda path: read_toml(path, NodeConfig))
    try:
        _write_checked(home.policy, policy, lambda path: PolicyFile(path).load())
    except ConfigError:
        home.node.unlink()
        raise


def load_node(home: Home) -> tuple[NodeConfig, LoadedPolicy]:
    """Both files, each checked by itself."""
    config = read_toml(home.node, NodeConfig)
    _check_paths(home, config)
    return config, PolicyFile(home.policy).load()


def _check_paths(home: Home, config: NodeConfig) -> None:
    """An image chooses the paths that it asks for; no pattern of them may hold up the gateway."""
    asked = [(name, path) for name, source in config.data.items() if isinstance(source, HttpSource) for path in source.paths]
    try:
        slow = first_slow([(path, MAX_PATH) for _, path in asked])
    except OSError as e:
        raise ConfigError(f"{home.node}: its patterns cannot be tried: {e.strerror}", hint="look at the machine") from e
    if slow is not None:
        name, path = asked[slow]
        raise ConfigError(
            f"{home.node}: data source {name}: {path!r} would take for ever on some path",
            hint="write no repetition inside a repetition, as in (a+)+, and [^/]* in place of .*",
        )


def check_sources(home: Home, config: NodeConfig, loaded: LoadedPolicy) -> None:
    """`ConfigError` if a rule of the policy grants a data source that node.toml has not."""
    for index, rule in enumerate(loaded.policy.allow):
        missing = [name for name in rule.data if name not in (ANY, *config.data)]
        if missing:
            raise ConfigError(
                f"{home.policy}: line {loaded.lines[index]}: rule {index + 1} grants an unknown data source, {missing[0]}",
                hint=f"{home.node} has: {', '.join(config.data) or 'no data source'}",
            )


def _array(values: Iterable[str]) -> str:
    return "[" + ", ".join(toml_string(value) for value in values) + "]"


def _write_checked(path: Path, text: str, read: Callable[[Path], object]) -> None:
    """Write a file only if it reads back as what it should be."""
    trial = path.with_name(f".ptm-{path.name}")
    write_atomic(trial, text.encode(), mode=0o600)
    try:
        read(trial)
    except ConfigError as e:
        raise ConfigError(
            str(e).replace(str(trial), path.name), hint=(e.hint or "").replace(trial.name, path.name) or None
        ) from e
    else:
        trial.rename(path)
    finally:
        trial.unlink(missing_ok=True)


def _table(name: str, values: Mapping[str, str], comment: str) -> str:
    if not values:
        return ""
    lines = "".join(f"{toml_string(key)} = {toml_string(value)}\n" for key, value in values.items())
    return f"\n# {comment}\n[{name}]\n{lines}"
