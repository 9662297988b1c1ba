"""`ptm inbox`: send encrypted files to a trusted party, and see what became of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ptm.cli.inbox_key import export_key
from ptm.cli.inbox_pass import fetch, forward
from ptm.cli.inbox_watch import watch
from ptm.cli.pages import Group
from ptm.cli.show import clean, in_bytes, json_option, note, print_json, print_table
from ptm.errors import PtmError, TimedOut

if TYPE_CHECKING:
    from ptm.registry import Registry
    from ptm.transfer import Transfer
    from ptm.trustedparty.outbox import Outbox
    from ptm.trustedparty.send import Source
    from ptm.trustedparty.sent import Sent


@click.group(cls=Group)
def inbox() -> None:
    """Send encrypted files, pass them on, and fetch what was sent to you."""


inbox.add_command(watch)
inbox.add_command(forward)
inbox.add_command(fetch)
inbox.add_command(export_key)


@inbox.command()
@click.argument("files", nargs=-1, required=True, metavar="[NAME=]FILE...")
@click.option("--to", required=True, metavar="PARTY", help="The trusted party; from one, any member.")
@click.option("--collection", required=True, metavar="NAME", help="The party's collection that they are for.")
@click.option(
    "--format", type=click.Choice(["age", "crypt4gh"]), default="age", show_default=True, help="How the files are encrypted."
)
@click.option("--purpose", default="", metavar="TEXT", help="What it is for. Not secret: it travels in clear.")
@click.option("--wait", metavar="DURATION", help="Wait so long for the party's answer: 90s, 10m, 2h.")
@json_option
@click.pass_obj
def send(
    home: str | None,
    /,
    files: tuple[str, ...],
    to: str,
    collection: str,
    format: Literal["age", "crypt4gh"],
    purpose: str,
    wait: str | None,
    as_json: bool,
) -> None:
    """Seal files to a trusted party and send them; prints the transfer's id on stdout.

    Names, sizes and purpose can be read by whoever runs the bucket; the files by the party alone. NAME=FILE gives a file another
    name. If it is interrupted, the same command goes on where it was. With --wait, exit code 1 when the party refuses them, 14
    when it has not answered in time.

    \b
    Example:
      ptm inbox send incomes.csv --to ttp --collection link-2026
    """
    from ptm.cli.progress import moving
    from ptm.tasks import parse_duration
    from ptm.trustedparty import send as sending

    seconds = parse_duration(wait).total_seconds() if wait else None
    registry, outbox = _open(home)
    try:
        with moving() as stages:
            sent = sending.send(
                registry,
                outbox,
                [_source(text) for text in files],
                to=to,
                collection=collection,
                format=format,
                purpose=purpose,
                stages=stages,
            )
    except KeyboardInterrupt:
        _tell_how_to_go_on(outbox)
        raise
    if not as_json:
        click.echo(sent.id)
    _tell(sent)
    _report(registry, outbox, sent, seconds, as_json)


@inbox.command()
@click.pass_obj
def resume(home: str | None, /) -> None:
    """Go on with every transfer that was interrupted; prints the ids of those that are sent.

    What is sealed is not sealed again, and what the bucket has is not sent again.

    \b
    Example:
      ptm inbox resume
    """
    from ptm.cli.progress import moving
    from ptm.trustedparty import send as sending

    registry, outbox = _open(home)
    try:
        with moving() as stages:
            resumed = sending.resume_all(registry, outbox, stages)
    except KeyboardInterrupt:
        _tell_how_to_go_on(outbox)
        raise
    for sent in resumed.sent:
        click.echo(sent.id)
        _tell(sent)
    if not resumed.sent and not resumed.failed:
        note("nothing was interrupted")
    for transfer, error in list(resumed.failed.items())[1:]:
        note(f"transfer {transfer}: {error}")
    for transfer, error in resumed.failed.items():
        raise type(error)(f"transfer {transfer}: {error}", hint=error.hint or f"`ptm inbox cancel {transfer}` gives it up")


@inbox.command("list")
@json_option
@click.pass_obj
def list_(home: str | None, as_json: bool) -> None:
    """List what this home has sent, newest first, and what the parties answered.

    States: sealing and sending (here, not with the party yet), sent (not answered yet), accepted, refused, purged (accepted, and
    removed by the party since, as its signed record says); unverified is an answer that is not to be believed. In JSON, size is
    the ciphertext's in bytes.

    \b
    Example:
      ptm inbox list
    """
    from ptm.trustedparty.sent import overview

    registry, outbox = _open(home)
    found = overview(registry, outbox)
    if as_json:
        print_json([_as_dict(item) for item in found])
        return
    if not found:
        note("nothing was sent from this home")
        return
    print_table(
        ("transfer", "made (UTC)", "to", "files", "encrypted", "state"),
        (
            (
                t.id,
                f"{t.created:%Y-%m-%d %H:%M}",
                f"{t.to}/{t.collection}",
                ", ".join(t.files)[:40],
                in_bytes(t.size),
                t.state,
            )
            for t in found
        ),
    )
    for said in (t for t in found if t.reason):
        click.echo(clean(f"{said.id} {said.state}: " + "; ".join(part for part in (said.reason, said.hint) if part)))


@inbox.command()
@click.argument("transfer", metavar="TRANSFER")
@click.pass_obj
def cancel(home: str | None, transfer: str) -> None:
    """Give up a transfer that was interrupted, and remove what of it lies here and in the bucket.

    A transfer that is with the party already cannot be taken back: ask the party.

    \b
    Example:
      ptm inbox cancel 01KAMV3ZR5F2J7Q8XG4M1W9ABC
    """
    from ptm.trustedparty import send as sending

    registry, outbox = _open(home)
    sending.cancel(registry, outbox, transfer)
    note(f"transfer {transfer} was given up")


def _open(home: str | None) -> tuple[Registry, Outbox]:
    from ptm.config import find_home
    from ptm.registry import Registry
    from ptm.trustedparty.outbox import Outbox

    place = find_home(home)
    return Registry.open(place), Outbox(place.outbox)


def _source(text: str) -> Source:
    """`FILE` is named as the file is; `NAME=FILE` gives it another name. A file whose own path has an '=' needs a name."""
    from ptm.trustedparty.send import Source

    name, separator, path = text.partition("=")
    return Source(name, Path(path)) if separator else Source(Path(text).name, Path(text))


def _tell(sent: Transfer) -> None:
    size = sum(file.size for file in sent.files)
    note(f"sent {len(sent.files)} file(s), {in_bytes(size)} encrypted, to {sent.party} for {sent.collection}")


def _tell_how_to_go_on(outbox: Outbox) -> None:
    if outbox.unfinished():
        note("every file that is sealed is kept, and what of it was sent: the same command, or `ptm inbox resume`, goes on")


def _report(registry: Registry, outbox: Outbox, sent: Transfer, seconds: float | None, as_json: bool) -> None:
    """Wait for the answer if asked to, print JSON if asked to, and raise what the answer comes to."""
    from ptm.trustedparty.sent import wait_for_answer

    receipt = None if seconds is None else wait_for_answer(registry, outbox, sent.id, seconds)
    if as_json:
        state = receipt.state if receipt else "sent"
        found = {"id": sent.id, "to": sent.party, "collection": sent.collection, "files": [file.name for file in sent.files]}
        size = sum(file.size for file in sent.files)
        print_json(found | {"size": size, "state": state, "reason": receipt.reason if receipt else None})
    if seconds is None:
        note(f"`ptm inbox list` shows whether {sent.party} took it")
        return
    if receipt is None:
        raise TimedOut(f"{sent.party} has not answered yet", hint="`ptm inbox list` shows its answer when there is one")
    if receipt.state == "refused":
        raise PtmError(f"{sent.party} refused it: {receipt.reason}", hint=receipt.hint)
    note(f"{sent.party} accepted it")


def _as_dict(sent: Sent) -> dict[str, Any]:
    return dataclasses.asdict(sent) | {"created": f"{sent.created:%Y-%m-%dT%H:%M:%SZ}", "files": list(sent.files)}
