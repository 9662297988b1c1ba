"""`ptm demo`: a whole federation on this machine, and what there is to see of it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptm.cli.pages import Command
from ptm.cli.show import json_option, note, print_json
from ptm.errors import UsageError

if TYPE_CHECKING:
    from ptm.demo.engine import Wanted
    from ptm.demo.play import Outcome

INDENT = 19
NEEDED = ("numpy", "statsmodels", "matplotlib")
RUNNERS = {
    "docker": "containers: no network, no privileges, bounded memory and time",
    "process": "plain processes",
}
NO_SANDBOX = (
    "This is no sandbox: a run could read and change all that you can.",
    "A real node refuses to work so, unless its node.toml tells it to.",
)
WHAT_LIES_THERE = {
    "trust": "the signed list of members and their keys (TUF)",
    "users": "the researcher's signed tasks",
    "queue": "what waits for a hospital: nothing any more",
    "sites": "claims, signed results with sealed files, heartbeats",
}


@click.command(cls=Command)
@click.option(
    "--runner",
    type=click.Choice(["auto", "docker", "process"]),
    default="auto",
    show_default=True,
    help="auto: containers if an engine answers, else processes.",
)
@click.option(
    "--base-image",
    default="python:3.12-slim",
    show_default=True,
    metavar="IMAGE",
    help="What the demo's image is built on: has python3.",
)
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default="demo-out",
    show_default=True,
    help="Folder for everything; with a number if an earlier demo is there.",
)
@json_option
def demo(runner: Wanted, base_image: str, output: Path, as_json: bool) -> None:
    """A whole federation on this machine, on real data, in well under a minute.

    A registry in a folder, a coordinator, a researcher, and three hospitals with a node process each. They fit a logistic
    regression together, on 569 patients of whom no row leaves its hospital. Afterwards you can look at everything.

    \b
    Example:
      ptm demo --runner process --output /tmp/demo
    """
    _check_packages()
    from ptm.demo.engine import choose
    from ptm.demo.folder import make_folder
    from ptm.demo.play import play

    if os.environ.pop("PTM_REGISTRY", None):
        note("ptm: warning: PTM_REGISTRY is set; the demo does without, and the commands it suggests need it unset")
    say = _clock()
    if runner != "process":
        say("image", f"building demo/logistic:1 on {base_image}" + (", if an engine answers" if runner == "auto" else ""))
    sandbox = choose(runner, base_image)
    folder = make_folder(output.absolute())
    say("runner", RUNNERS[sandbox.runner])
    if sandbox.runner == "process":
        for line in (*([f"No containers: {sandbox.why_not}."] if sandbox.why_not else []), *NO_SANDBOX):
            note(" " * INDENT + line)
    outcome = play(folder, sandbox, say)
    if as_json:
        print_json(_as_dict(outcome))
    else:
        _show(outcome)


def _check_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f"the demo needs {', '.join(missing)}", hint="pip install 'ptm[demo]'")


def _clock() -> Callable[[str, str], None]:
    """Prints lines with the seconds since now, to stderr."""
    begun = time.monotonic()
    return lambda word, line: note(f"{time.monotonic() - begun:5.1f} s  {word:<8}  {line}")


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    from ptm.demo.data import LABELS
    from ptm.demo.table import coefficient_table, traffic_table

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100)
    click.echo("\nCoefficients, per standard deviation of the measurement\n")
    console.print(coefficient_table(outcome.fit, outcome.pooled, LABELS))
    click.echo(
        f"\nFederated and pooled fit are equal to {_decimals(outcome.difference)} decimals"
        f" (largest difference {outcome.difference:.1e})."
    )
    click.echo(f"\nWhat left each hospital in {len(outcome.rounds)} rounds, in bytes\n")
    console.print(traffic_table(outcome.traffic))
    click.echo("\nThe summaries are sums: for a million patients they would hardly be longer.")
    _show_place(outcome)


def _show_place(outcome: Outcome) -> None:
    folder = outcome.federation.folder
    registry = outcome.federation.registry
    click.echo(f"\nForest plot   {_shown(outcome.plot)}")
    click.echo(f"Registry      {_shown(registry)}")
    for name, what in WHAT_LIES_THERE.items():
        count = sum(path.is_file() for path in (registry / name).rglob("*"))
        click.echo(f"{'':14}{name + '/':<8}{count:3} files  {what}")
    ptm, home = _myself(), shlex.quote(_shown(folder / "alice"))
    last = shlex.quote(_shown(folder / "results" / f"round-{len(outcome.rounds)}"))
    click.echo("\nLook around (README.txt there says what is what):\n")
    click.echo(f"  find {shlex.quote(_shown(registry))} -type f | head -40")
    click.echo(f"  {ptm} --home {home} task list")
    click.echo(f"  {ptm} --home {home} results verify {last}")
    click.echo(f"  {ptm} --home {home} member list")


def _decimals(difference: float) -> int:
    """To how many decimals two numbers with this difference are equal; 12 at most, for the rest is rounding."""
    return max(d for d in range(13) if difference < 0.5 * 10.0**-d or d == 0)


def _shown(path: Path) -> str:
    """A path as a person would type it from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _myself() -> str:
    """The command that a person has to type to get this very ptm."""
    called = Path(sys.argv[0])
    if called.name != "ptm":
        return f"{shlex.quote(sys.executable)} -m ptm"
    found = shutil.which("ptm")
    if found and Path(found).absolute() == called.absolute():
        return "ptm"
    return shlex.quote(str(called))


def _as_dict(outcome: Outcome) -> dict[str, Any]:
    from dataclasses import asdict

    low, high = outcome.fit.interval
    names = ("(intercept)", *outcome.fit.model.covariates)
    coefficients = [
        {
            "name": name,
            "federated": float(outcome.fit.beta[i]),
            "pooled": float(outcome.pooled.beta[i]),
            "standard_error": float(outcome.fit.standard_error[i]),
            "pooled_standard_error": float(outcome.pooled.standard_error[i]),
            "odds_ratio": float(outcome.fit.odds_ratio[i - 1]) if i else None,
            "interval": [float(low[i - 1]), float(high[i - 1])] if i else None,
        }
        for i, name in enumerate(names)
    ]
    return {
        "folder": str(outcome.federation.folder),
        "registry": outcome.federation.registry.as_uri(),
        "runner": outcome.sandbox.runner,
        "why_not_docker": outcome.sandbox.why_not,
        "coefficients": coefficients,
        "largest_difference": outcome.difference,
        "rounds": [asdict(one) for one in outcome.rounds],
        "bytes": [asdict(one) for one in outcome.traffic],
        "plot": str(outcome.plot),
    }
