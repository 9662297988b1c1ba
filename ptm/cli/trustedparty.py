"""`ptm trustedparty`: receive encrypted files into collections, and purge them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ptm.cli.arguments import name_and_value
from ptm.cli.auditlog import print_entries, report_json, say_whether_whole
from ptm.cli.pages import Group
from ptm.cli.show import json_option, note, print_json, print_table
from ptm.errors import UsageError

if TYPE_CHECKING:
    from ptm.transfer import Purge
    from ptm.trustedparty.collection import CollectionState


@click.group(cls=Group)
def trustedparty() -> None:
    """Receive encrypted files into collections, and purge them."""


@trustedparty.command()
@click.option("--collection", metavar="NAME", help="A collection to begin with.  [default: an example, in a comment]")
@click.option(
    "--sender",
    "senders",
    multiple=True,
    metavar="MEMBER=PATTERN",
    help="Who sends what: a regular expression that matches a file's whole name; repeat.",
)
@click.option("--researcher", "researchers", multiple=True, metavar="NAME", help="Who may compute on it; repeat. None: nobody.")
@click.option("--purge", metavar="WHEN", help="When its files go: used, or after days, as 30d.  [default: only by hand]")
@click.pass_obj
def init(
    home: str | None, /, collection: str | None, senders: tuple[str, ...], researchers: tuple[str, ...], purge: str | None
) -> None:
    """Write party.toml into the home, for you to edit.

    \b
    Examples:
      ptm trustedparty init
      ptm trustedparty init --collection link-2026 --researcher jane --purge used \\
                            --sender 'clinic=diagnoses\\.csv' --sender 'statistics=incomes\\.csv'
    """
    from ptm.config import find_home, load_profile
    from ptm.trustedparty.settings import write_party_file

    place = find_home(home)
    profile = load_profile(place)
    if profile.kind != "party":
        raise UsageError(
            f"{profile.member} is a {profile.kind}, and only a trusted party has collections",
            hint="`ptm inbox fetch` takes what was passed on to you; is --home the right one?",
        )
    if bool(collection) != bool(senders) or (not collection and (researchers or purge)):
        raise UsageError("--collection and --sender go together, and --researcher and --purge with them", hint="or give none")
    patterns: dict[str, list[str]] = {}
    for text in senders:
        member, pattern = name_and_value(text, "--sender")
        patterns.setdefault(member, []).append(pattern)
    write_party_file(place, name=collection, senders=patterns, researchers=researchers, purge=purge)
    note(f"wrote {place.party}")
    note("next: edit it, `ptm trustedparty check`, then `ptm trustedparty watch`")
    note(f"members send with: ptm inbox send FILE --to {profile.member} --collection {collection or 'NAME'}")


@trustedparty.command()
@click.pass_obj
def check(home: str | None) -> None:
    """Try everything that receiving needs, and say what is missing.

    \b
    Example:
      ptm trustedparty check
    """
    import shutil

    from ptm import layout
    from ptm.config import find_home
    from ptm.registry import Registry
    from ptm.trustedparty.settings import MEGABYTE, need_party

    place = find_home(home)
    config = need_party(place)
    click.echo(f"settings  ok: {len(config.collection)} collection(s)")
    registry = Registry.open(place)
    roster = registry.roster()
    member = roster.active(registry.me)
    click.echo(f"registry  ok: {registry.store.url}, roster version {roster.version}, valid until {roster.expires:%Y-%m-%d}")
    click.echo(f"member    ok: {member.name} ({member.kind})")
    for rule in config.collection:
        for name in (*rule.senders, *rule.researchers):
            if roster.member(name) is None:
                note(f"settings  note: {rule.name} names {name}, which the roster does not know (yet)")
    waiting = sum(1 for _ in registry.store.list_prefixes(layout.inbox_of(registry.me)))
    click.echo(f"inbox     ok: {waiting} sender(s) have something there")
    free = shutil.disk_usage(place.path).free // MEGABYTE
    if free < config.min_free_mb:
        raise UsageError(f"{free} MB of disk are free, less than min_free_mb = {config.min_free_mb}", hint="free space")
    click.echo(f"disk      ok: {free} MB free")


@trustedparty.command()
@click.option("--once", is_flag=True, help="Handle what is there, then exit.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.pass_obj
def watch(home: str | None, /, once: bool, verbose: bool) -> None:
    """Watch the inbox: verify what members send, publish it into collections, answer, and purge what is due.

    What is taken or refused is said in the log, and to the sender. With --once, exit code 1 if something has to wait. Else it
    runs until it gets SIGTERM or Ctrl-C. It may be stopped, or killed, at any time: the next start goes on with what was begun.

    \b
    Examples:
      ptm trustedparty watch
      ptm trustedparty watch --once
    """
    import os

    from ptm.cli.watching import log_to_stderr, stop_on_signals
    from ptm.config import find_home
    from ptm.registry import Registry
    from ptm.trustedparty.settings import need_party
    from ptm.trustedparty.watch import Party

    place = find_home(home)
    config = need_party(place)
    registry = Registry.open(place)
    log_to_stderr(verbose)
    stop = stop_on_signals()
    if not Party(place, registry, config).watch(stop, once=once):
        os._exit(0)  # a connection hangs, in a thread that Python would wait for; the next start makes it good


@trustedparty.command("list")
@click.argument("collection", required=False)
@json_option
@click.pass_obj
def list_(home: str | None, /, collection: str | None, as_json: bool) -> None:
    """List the collections, and what is missing; or one of them, with its files and what was purged.

    \b
    Examples:
      ptm trustedparty list
      ptm trustedparty list link-2026 --json
    """
    from ptm.config import find_home
    from ptm.registry import Registry
    from ptm.trustedparty.collection import Collections
    from ptm.trustedparty.purge import records
    from ptm.trustedparty.settings import need_party

    place = find_home(home)
    collections = Collections(place, need_party(place))
    states = [collections.state(name) for name in ([collection] if collection else sorted(collections.names))]
    purged: list[Purge] = []
    if collection:
        registry = Registry.open(place)
        purged = records(registry, registry.me, collection)
    if as_json:
        shown = [_as_json(state) for state in states]
        print_json({**shown[0], "purges": [record.model_dump(mode="json") for record in purged]} if collection else shown)
    elif collection:
        _show(states[0], purged)
    else:
        print_table(
            ("collection", "complete", "files", "bytes", "missing"),
            [
                (s.name, "yes" if s.complete else "no", len(s.files), sum(f.size for f in s.files), "; ".join(s.missing))
                for s in states
            ],
        )


def _as_json(state: CollectionState) -> dict[str, Any]:
    from ptm.model import format_time

    return {
        "collection": state.name,
        "complete": state.complete,
        "missing": list(state.missing),
        "folder": str(state.folder),
        "files": [
            {
                "sender": file.sender,
                "name": file.name,
                "size": file.size,
                "sha256": file.sha256,
                "transfer": file.transfer,
                "arrived": format_time(file.arrived),
            }
            for file in state.files
        ],
    }


def _show(state: CollectionState, purged: list[Purge]) -> None:
    from ptm.model import format_time

    rows = [(file.sender, file.name, file.size, format_time(file.arrived), file.transfer) for file in state.files]
    if rows:
        print_table(("sender", "file", "bytes", "arrived", "transfer"), rows)
    for missing in state.missing:
        note(f"missing: {missing}")
    note(f"{'complete' if state.complete else 'not complete'}; files are in {state.folder}")
    for record in purged:
        why = (
            f"asked by {record.by}: {record.reason}"
            if record.by
            else f"used by task {record.task}"
            if record.task
            else record.why
        )
        note(f"purged {format_time(record.created)}: {len(record.files)} file(s), {why}")


@trustedparty.command()
@click.argument("collection")
@click.option("--sender", metavar="NAME", help="Only this sender's files.")
@click.option("--by", "person", required=True, metavar="NAME", help="Who decides it, for the record.")
@click.option("--reason", required=True, metavar="TEXT", help="Why, for the record.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
@click.pass_obj
def purge(
    home: str | None, /, collection: str, sender: str | None, person: str, reason: str, dry_run: bool, as_json: bool
) -> None:
    """Remove a collection's files, on a signed record in the registry and in the audit log.

    Files that a run uses go when it has ended. If `ptm trustedparty watch` runs, it does the work.

    \b
    Example:
      ptm trustedparty purge link-2026 --by 'Eve Holt' --reason 'study ended'
    """
    from ptm.config import find_home
    from ptm.registry import Registry
    from ptm.trustedparty.byhand import purge_by_hand
    from ptm.trustedparty.settings import need_party

    place = find_home(home)
    config = need_party(place)
    asked = purge_by_hand(
        place, Registry.open(place), config, collection, sender=sender, person=person, reason=reason, dry_run=dry_run
    )
    if as_json:
        files = [{"sender": file.sender, "name": file.name, "transfer": file.transfer} for file in asked.files]
        print_json({"files": files, "done": asked.done})
        return
    if asked.files:
        print_table(("sender", "file", "bytes"), [(file.sender, file.name, file.size) for file in asked.files])
    if dry_run:
        note("nothing was removed: this was a dry run")
    elif asked.files:
        note("purged" if asked.done else asked.why)
    else:
        note("there is nothing to purge")


@trustedparty.command()
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the newest N entries.")
@click.option("--verify", is_flag=True, help="Check that no entry was changed or taken out of the middle.")
@json_option
@click.pass_obj
def audit(home: str | None, /, last: int | None, verify: bool, as_json: bool) -> None:
    """Print what was accepted, refused and purged here, oldest first, or check that nothing in it was changed.

    Exit code 11 if the check finds something. A log that was cut off at its end is not noticed: compare the number of entries,
    or the head, with one noted elsewhere.

    \b
    Examples:
      ptm trustedparty audit --last 20
      ptm trustedparty audit --verify
    """
    from ptm.audit import verify as check_chain
    from ptm.config import find_home

    path = find_home(home).party_audit
    if not verify:
        print_entries(path, None, last, as_json)
        return
    report = check_chain(path)
    if as_json:
        print_json(report_json(report))
    else:
        click.echo(f"entries   {report.entries}")
        click.echo(f"head      {report.head}")
    say_whether_whole(report)
