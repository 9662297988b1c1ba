"""`ptm inbox forward` and `ptm inbox fetch`: a trusted party passes a file on, and a member who is no party takes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ptm.cli.pages import Command
from ptm.cli.show import in_bytes, json_option, note, print_json, print_table
from ptm.errors import PtmError, UsageError

if TYPE_CHECKING:
    from ptm.registry import Registry
    from ptm.trustedparty.fetch import Taken, Waiting


@click.command(cls=Command)
@click.argument("what", metavar="COLLECTION/SENDER/NAME")
@click.option("--to", required=True, metavar="MEMBER", help="Who gets it.")
@click.option("--collection", required=True, metavar="NAME", help="What it is for: the receiver's collection, if it has some.")
@click.option(
    "--format", type=click.Choice(["age", "crypt4gh"]), default="age", show_default=True, help="How it is encrypted on its way."
)
@click.option("--purpose", default="", metavar="TEXT", help="What it is for. Not secret: it travels in clear.")
@click.pass_obj
def forward(
    home: str | None,
    /,
    what: str,
    to: str,
    collection: str,
    format: Literal["age", "crypt4gh"],
    purpose: str,
) -> None:
    """Pass a file that this trusted party received on to another member; prints the transfer's id.

    It is sealed anew for that member, from stream to stream: of a file in a sealed collection nothing is written in clear. If it
    is interrupted, the same command goes on where it was. A file that was computed here is sent with `ptm inbox send`.

    \b
    Example:
      ptm inbox forward genomes/clinic/cohort.vcf --to jane --collection genomes
    """
    from ptm.cli.progress import moving
    from ptm.config import find_home
    from ptm.registry import Registry
    from ptm.trustedparty.forward import forward as pass_on

    place = find_home(home)
    with moving() as stages:
        sent = pass_on(
            Registry.open(place), place, what, to=to, collection=collection, format=format, purpose=purpose, stages=stages
        )
    click.echo(sent.id)
    note(f"sent {sent.files[0].name}, {in_bytes(sent.files[0].size)} encrypted, to {to}")
    note(f"{to} takes it with `ptm inbox fetch`, or `ptm trustedparty watch`")


@click.command(cls=Command)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="Where the files go.")
@click.option("--list", "only_list", is_flag=True, help="List what waits; take nothing.")
@click.option("--from", "sender", metavar="MEMBER", help="Only what this member sent.")
@click.option(
    "--max-mb", type=click.IntRange(1, 1_048_576), default=1024, show_default=True, help="Leave bigger transfers where they are."
)
@json_option
@click.pass_obj
def fetch(home: str | None, /, output: Path | None, only_list: bool, sender: str | None, max_mb: int, as_json: bool) -> None:
    """Take what members sent to you into a folder, if you are no trusted party.

    What verifies is decrypted to FOLDER/<collection>/<sender>/<name>, answered with a receipt, and removed from the inbox; what
    does not is refused. What is too big, or would overwrite a file, is left where it is, with exit code 1. Give the same FOLDER
    each time: it remembers what was taken (in .ptm-inbox).

    \b
    Examples:
      ptm inbox fetch --list
      ptm inbox fetch -o received --from ttp
    """
    import threading

    from ptm.config import find_home
    from ptm.registry import Registry
    from ptm.trustedparty import fetch as fetching

    if only_list == (output is not None):
        raise UsageError("give -o FOLDER, or --list", hint="`ptm inbox fetch --list` shows what waits")
    registry = Registry.open(find_home(home))
    if output is None:
        _list(registry, sender, as_json)
        return
    taken = fetching.fetch(registry, output, sender=sender, max_mb=max_mb, stop=threading.Event())
    if as_json:
        print_json([_as_dict(found) for found in taken])
    else:
        for found in taken:
            for path in found.files:
                click.echo(path)
            if found.refused:
                note(f"transfer {found.id} of {found.sender} was refused: {found.refused}")
    left = [found for found in taken if found.left]
    for found in left[1:]:
        note(f"transfer {found.id} of {found.sender}: {found.left}")
    if left:
        raise PtmError(f"transfer {left[0].id} of {left[0].sender}: {left[0].left}", hint="the same command takes it then")
    if not taken:
        note("nothing waits")


def _list(registry: Registry, sender: str | None, as_json: bool) -> None:
    from ptm.trustedparty.fetch import waiting

    found = list(waiting(registry, sender))
    if as_json:
        print_json([_as_listed(item) for item in found])
        return
    if not found:
        note("nothing waits")
        return
    rows = []
    for item in found:
        sent = item.transfer
        about = (
            (sent.collection, ", ".join(file.name for file in sent.files)[:40], sent.purpose) if sent else ("?", "?", item.why)
        )
        rows.append((item.id, item.sender, *about[:2], in_bytes(item.size), about[2]))
    print_table(("transfer", "from", "collection", "files", "encrypted", "purpose"), rows)


def _as_listed(item: Waiting) -> dict[str, Any]:
    sent = item.transfer
    return {
        "transfer": item.id,
        "from": item.sender,
        "collection": sent.collection if sent else None,
        "files": [file.name for file in sent.files] if sent else [],
        "size": item.size,
        "purpose": sent.purpose if sent else None,
        "invalid": item.why or None,
    }


def _as_dict(found: Taken) -> dict[str, Any]:
    files = [str(path) for path in found.files]
    why = {"refused": found.refused or None, "left": found.left or None}
    return {"transfer": found.id, "from": found.sender, "files": files, **why}
