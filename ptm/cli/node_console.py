"""`ptm node console`: a local page on which stewards look at what waits, and decide."""

from __future__ import annotations

import click

from ptm.cli.node_decide import site_registry
from ptm.cli.pages import Command
from ptm.cli.show import note


@click.command(cls=Command)
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default="any free one", help="Port on 127.0.0.1.")
@click.pass_obj
def console(home: str | None, /, port: int) -> None:
    """Serve a page on this machine to look at what runs and waits, and to decide.

    Prints an address that opens the page once, in one browser. The page ends with Ctrl-C, with its own button, and when
    nobody used it for 15 minutes.

    \b
    Examples:
      ptm node console
      ptm node console --port 8700
    """
    from ptm.node.console.server import Console

    page = Console(site_registry(home))
    page.run(port, click.echo)
    note("the page is closed")
