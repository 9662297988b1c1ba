"""`python -m examples.vertical`: the whole example, told step by step; and `… images FOLDER` and `… tables FOLDER`, to do it by
hand."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from examples.vertical.build import write_images
from examples.vertical.people import COLUMNS, people, table_of, write_source
from examples.vertical.play import Outcome, Play, Runner
from ptm.errors import AlreadyExists, PtmError, UsageError

OUTPUT = "demo-out-vertical"
NEEDED = ("numpy", "statsmodels")


@click.group(invoke_without_command=True)
@click.option("--store", metavar="URL", help="Where the registry is: file://… or s3://…  [default: a folder in the output]")
@click.option(
    "--runner",
    type=click.Choice(["docker", "process"]),
    default="process",
    show_default=True,
    help="docker: real containers; process: plain processes, which are no sandbox.",
)
@click.option("--base-image", default="python:3.12-slim", show_default=True, metavar="IMAGE", help="Any image with python3.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=OUTPUT, show_default=True, metavar="DIR")
@click.pass_context
def main(context: click.Context, store: str | None, runner: Runner, base_image: str, output: Path) -> None:
    """Two data parties, a trusted party and a researcher fit models on data that are split by columns."""
    if context.invoked_subcommand:
        return
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(f"the example needs {', '.join(missing)}", hint="pip install 'ptm[demo]'")
    folder = output.absolute()
    if folder.exists() and any(folder.iterdir()):
        raise AlreadyExists(f"{output} is there already", hint="remove it, or name another --output")
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()

    def say(word: str, text: str) -> None:
        click.echo(f"{time.monotonic() - begun:5.1f} s  {word:<8}  {text}" if word != "$" else f"{'':9}$ {text}")

    say("runner", "containers" if runner == "docker" else "plain processes, which are no sandbox")
    show(Play(folder, store or (folder / "registry").as_uri(), runner, base_image, say).run())


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def images(folder: Path) -> None:
    """Write the two images' files into FOLDER, a folder for each, to `docker build` there."""
    for image, place in write_images(folder).items():
        click.echo(f"docker build -t {image} {place}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def tables(folder: Path) -> None:
    """Write each data party's table, and what it allows of it, into FOLDER/PARTY/people."""
    everybody = people()
    for party in COLUMNS:
        write_source(party, table_of(party, everybody), folder / party / "people")
        click.echo(str(folder / party / "people"))


def show(outcome: Outcome) -> None:
    """The counts, the coefficients beside the pooled ones, and who saw what."""
    console = Console(width=None if sys.stdout.isatty() else 100)
    click.echo("\nRows\n")
    console.print(
        _table(["", "rows", "linked", "unmatched", "multiple"], [[who, *c.values()] for who, c in outcome.senders.items()])
    )
    used = ", ".join(f"{count} {what}" for what, count in outcome.counts[-1].items())
    click.echo(f"\nTogether: {used}.\n\nCoefficients\n")
    rows = [
        [line.model, line.name, *(f"{value:.6f}" for value in (line.ours, line.pooled, line.error, line.pooled_error))]
        for line in outcome.lines
    ]
    console.print(_table(["model", "", "linked", "pooled", "s.e. linked", "s.e. pooled"], rows))
    click.echo(
        f"\nLargest difference between the linked and the pooled fit: {outcome.difference:.1e}\n\nWho saw what (looked for)\n"
    )
    for who, saw in outcome.saw.items():
        click.echo(f"  {who:<11} {saw}")
    click.echo(f"\nAll of it lies in {outcome.folder}")


def _table(headings: list[str], rows: Sequence[Sequence[object]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, heading in enumerate(headings):
        text = index == 0 or not heading
        table.add_column(heading, justify="left" if text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    return table


if __name__ == "__main__":
    try:
        main()
    except PtmError as e:
        click.echo(f"error: {e}" + (f"\nhint: {e.hint}" if e.hint else ""), err=True)
        sys.exit(e.exit_code)
