"""`ptm node`: set up, check and run a site's node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from ptm.cli.arguments import name_and_value
from ptm.cli.node_approvals import approvals, unapprove
from ptm.cli.node_console import console
from ptm.cli.node_decide import COMMANDS as DECIDE
from ptm.cli.node_policy import policy
from ptm.cli.pages import Group
from ptm.cli.show import note
from ptm.errors import UsageError


@click.group(cls=Group)
def node() -> None:
    """Set up, check and run a site's node."""


node.add_command(policy)
node.add_command(console)
node.add_command(approvals)
node.add_command(unapprove)
for command in DECIDE:
    node.add_command(command)


@node.command()
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="PATTERN",
    help="Allow images whose whole name:tag matches; repeat. None: nothing may run.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="NAME=PATH|URL",
    help="A data source: a file or folder, http(s)://… (SPARQL), rest+http(s)://… (FHIR, REST), postgresql://USER@HOST/NAME, "
    "or tcp://HOST:PORT; repeat.",
)
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME=FILE",
    help="The token or password of a data source: a file of mode 0600 that stays where it is; repeat.",
)
@click.option("--runner", type=click.Choice(["docker", "process"]), default="docker", show_default=True, help="What runs a task.")
@click.option("--unsafe-no-sandbox", is_flag=True, help="Confirm that the process runner does not protect this machine.")
@click.option(
    "--process-image",
    "process_images",
    multiple=True,
    metavar="NAME:TAG=DIR",
    help="Process runner: the folder whose `run` stands for an image.",
)
@click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="PREFIX=WHERE",
    help="Where to pull images from whose name starts with PREFIX; repeat.",
)
@click.option("--gateway-image", metavar="NAME:TAG", help="Any image with python3; needed for data sources that are no files.")
@click.option(
    "--pull",
    type=click.Choice(["always", "never"]),
    default="always",
    show_default=True,
    help="never: only images already on this machine.",
)
@click.option("--parallel", type=click.IntRange(1, 256), default=2, show_default=True, metavar="N", help="Runs at once.")
@click.option("--worker", metavar="NAME", help="This worker's name.  [default: made from the site's]")
@click.pass_obj
def init(home: str | None, /, images: tuple[str, ...], data: tuple[str, ...], worker: str | None, **flags: Any) -> None:
    """Write node.toml and policy.toml into the home, for you to edit.

    \b
    Examples:
      ptm node init --image 'myConsortium/.*:.*' --data cohort=/data/cohort.csv \\
                    --mirror myConsortium=registry.example/myconsortium
      ptm node init --runner process --unsafe-no-sandbox \\
                    --image 'demo/.*:.*' --process-image 'demo/count:1=./count'
    """
    from ptm.config import find_home, load_profile
    from ptm.node.setup import default_worker, write_node_files

    place = find_home(home)
    profile = load_profile(place)
    if profile.kind not in ("site", "party"):
        raise UsageError(f"{profile.member} is a {profile.kind}, and only a site has a node", hint="is --home the right one?")
    _check_flags(data, flags)
    write_node_files(
        place,
        worker=worker or default_worker(profile.member),
        runner=flags["runner"],
        unsafe_no_sandbox=flags["unsafe_no_sandbox"],
        parallel=flags["parallel"],
        pull=flags["pull"],
        gateway_image=flags["gateway_image"],
        images=images,
        data=dict(_data(text) for text in data),
        secrets_of=dict(_secret(text, data) for text in flags["secrets"]),
        mirrors=dict(name_and_value(text, "--mirror") for text in flags["mirrors"]),
        process_images={
            name: _folder(path) for name, path in (name_and_value(text, "--process-image") for text in flags["process_images"])
        },
    )
    note(f"wrote {place.node} and {place.policy}")
    if not images:
        note("no --image was given: the policy allows nothing yet")


@node.command()
@click.pass_obj
def check(home: str | None) -> None:
    """Try everything that a node needs, and say what is missing.

    \b
    Example:
      ptm node check
    """
    from ptm.config import find_home, load_profile
    from ptm.node.collected import of_party, with_collections
    from ptm.node.credentials import check_source
    from ptm.node.runners import make_runner
    from ptm.node.setup import check_sources, load_node
    from ptm.node.trial import strangers
    from ptm.registry import Registry

    place = find_home(home)
    config, loaded = load_node(place)
    click.echo(f"settings  ok: worker {config.worker}")
    collections = of_party(place, load_profile(place).kind) if place.profile.exists() else None
    check_sources(place, with_collections(config, collections), loaded)
    click.echo(f"policy    ok: {len(loaded.policy.allow)} rule(s), SHA-256 {loaded.sha256[:12]}")
    registry = Registry.open(place)
    roster = registry.roster()
    member = roster.active(registry.me)
    click.echo(f"registry  ok: {registry.store.url}, roster version {roster.version}, valid until {roster.expires:%Y-%m-%d}")
    click.echo(f"member    ok: {member.name} ({member.kind})")
    for rule, stranger in strangers(loaded, roster):
        note(f"policy    note: {rule} names {stranger}, which the roster does not know (yet)")
    for name, source in config.data.items():
        check_source(name, source)
        click.echo(f"data      ok: {name}")
    for name in sorted(collections.names if collections else ()):
        click.echo(f"data      ok: {name}, a collection")
    make_runner(config, registry.id, registry.me, place).check()
    click.echo(f"runner    ok: {config.runner}")


@node.command()
@click.option("--once", is_flag=True, help="Handle what is there, then exit.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.pass_obj
def watch(home: str | None, /, once: bool, verbose: bool) -> None:
    """Watch the site's queue and run what the policy allows.

    Runs until it gets SIGTERM or Ctrl-C: it then takes no new task, gives what it has a moment to finish, and leaves
    running containers for its next start to go on with. A changed policy.toml counts from the next task on; SIGHUP has
    it read at once.

    \b
    Example:
      ptm node watch --once
    """
    import os
    import signal

    from ptm.cli.watching import log_to_stderr, stop_on_signals
    from ptm.config import find_home
    from ptm.node.policyfile import PolicyFile
    from ptm.node.runners import make_runner
    from ptm.node.setup import load_node
    from ptm.node.watch import Node
    from ptm.registry import Registry

    place = find_home(home)
    config, _ = load_node(place)
    policy = PolicyFile(place.policy)
    registry = Registry.open(place)
    log_to_stderr(verbose)
    signal.signal(signal.SIGHUP, lambda *_: policy.reload())
    stop = stop_on_signals()
    if config.runner == "process":
        note("ptm: warning: the process runner is no sandbox: tasks run with this account's rights")
    made = Node(place, registry, config, policy, make_runner(config, registry.id, registry.me, place))
    if not made.watch(stop, once=once):
        os._exit(0)  # an upload hangs, in threads of the SDK that Python would wait for; the next start makes it good


def _check_flags(data: tuple[str, ...], flags: dict[str, Any]) -> None:
    """What the files would be refused for, said in terms of flags."""
    if flags["runner"] == "process" and not flags["unsafe_no_sandbox"]:
        raise UsageError(
            "the process runner is no sandbox: a task could read and change all that this account can",
            hint="use containers, or for simulation confirm it with --unsafe-no-sandbox",
        )
    if flags["runner"] == "docker" and not flags["gateway_image"] and any("://" in text for text in data):
        raise UsageError(
            "a SPARQL data source needs gateway_image, an image with python3 that forwards to it",
            hint="--gateway-image python:3.12-slim, or any image with python3 that the engine can get",
        )


def _data(text: str) -> tuple[str, str]:
    name, value = name_and_value(text, "--data")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
        raise UsageError(f"--data: {name!r} is not a name", hint="lower-case letters, digits and '-'")
    if "://" not in value and not Path(value).exists():
        raise UsageError(f"--data {name}: {value} is not there", hint="give the path of a file or folder, or a URL")
    return name, value


def _secret(text: str, data: tuple[str, ...]) -> tuple[str, Path]:
    name, value = name_and_value(text, "--secret")
    if name not in [name_and_value(other, "--data")[0] for other in data]:
        raise UsageError(f"--secret {name}: there is no --data of that name", hint="give both")
    return name, Path(value)


def _folder(text: str) -> Path:
    path = Path(text).absolute()
    if not (path / "run").is_file():
        raise UsageError(f"--process-image: {path} has no executable `run`", hint="give the folder that holds it")
    return path
