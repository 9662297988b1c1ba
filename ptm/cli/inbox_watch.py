"""`ptm inbox watch`: send what is dropped into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ptm.cli.pages import Command


@click.command(cls=Command)
@click.argument("folder", type=click.Path(file_okay=False, exists=True, path_type=Path), metavar="FOLDER")
@click.option("--to", required=True, metavar="PARTY", help="The trusted party.")
@click.option("--collection", required=True, metavar="NAME", help="The party's collection that the files are for.")
@click.option(
    "--format", type=click.Choice(["age", "crypt4gh"]), default="age", show_default=True, help="How the files are encrypted."
)
@click.option("--once", is_flag=True, help="Send what is there, then exit.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.pass_obj
def watch(
    home: str | None,
    /,
    folder: Path,
    to: str,
    collection: str,
    format: Literal["age", "crypt4gh"],
    once: bool,
    verbose: bool,
) -> None:
    """Send every file that is dropped into a folder.

    A file is taken when nobody has written to it for two seconds, and moved to FOLDER/sent once it is with the party, or to
    FOLDER/failed, with the reason beside it, if it cannot be sent or the party refuses it. Links, folders, dotfiles and
    unfinished downloads (*.part, *.tmp, *.crdownload, *~) are left where they are. An outage is waited for. With --once, exit
    code 1 if a file failed or could not be sent for now.

    \b
    Example:
      ptm inbox watch /data/outgoing --to ttp --collection link-2026
    """
    import os
    from functools import partial

    from ptm.cli.watching import log_to_stderr, stop_on_signals
    from ptm.config import find_home
    from ptm.registry import Registry
    from ptm.stop import run_until_stopped
    from ptm.trustedparty.dropfolder import DropFolder

    log_to_stderr(verbose)
    drop = DropFolder(folder, Registry.open(find_home(home)), to=to, collection=collection, format=format)
    stop = stop_on_signals()
    if not run_until_stopped(partial(drop.watch, stop, once=once), stop, 5):
        os._exit(0)  # a big file is on its way, in threads that Python would wait for; the next start goes on with it
