"""`ptm registry`: make, show, probe and renew a registry; name its reviewers."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ptm.cli.pages import Group
from ptm.cli.show import json_option, note, print_json, print_table

if TYPE_CHECKING:
    from ptm.trust import RootState

WARN_DAYS = {"root": 30, "targets": 21, "snapshot": 21, "timestamp": 10}
"""Fewer days than these to an expiry are warned of."""


@click.group(cls=Group)
def registry() -> None:
    """Make, show, probe and renew a registry.

    \b
    Example:  ptm registry create file:///srv/registry
    """


@registry.command()
@click.argument("url", metavar="URL")
@click.option("--name", default="", metavar="TEXT", help="What people call this registry.")
@click.option("--member-name", default="coordinator", show_default=True, metavar="NAME", help="Your own name in the roster.")
@click.option("--organisation", default="", help="Your organisation, as the roster shows it.")
@click.option(
    "--root-key",
    "root_keys",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Private key file (PEM) of the root; made if it is not there; repeat for several.  [default: keys/root.pem]",
)
@click.option(
    "--threshold",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="How many root keys have to sign a root.",
)
@click.pass_obj
def create(
    home: str | None, url: str, name: str, member_name: str, organisation: str, root_keys: tuple[Path, ...], threshold: int
) -> None:
    """Make a registry at URL and become its coordinator.

    Prints the root's fingerprint, which every member needs to join. The bucket or folder is made if it may be.
    If it was interrupted, give the same command again.

    \b
    Examples:
      ptm registry create file:///srv/registry
      ptm registry create 's3://study?endpoint_url=https://minio.example:9000'
      ptm registry create file:///srv/registry --threshold 2 \\
                          --root-key a.pem --root-key b.pem --root-key c.pem
    """
    from ptm.config import find_home
    from ptm.coordinator import create_registry
    from ptm.registry import now_utc
    from ptm.store.urls import make_store

    fingerprint = create_registry(
        make_store(url),
        find_home(home).make(),
        name=name,
        organisation=organisation,
        root_keys=root_keys,
        threshold=threshold,
        now=now_utc(),
        member_name=member_name,
    )
    click.echo(fingerprint)
    note("members join with this fingerprint; keep the root keys off-line, and a copy of keys/ somewhere safe")


@registry.command()
@json_option
@click.pass_obj
def show(home: str | None, as_json: bool) -> None:
    """Show the registry: its root, when what expires, and how many members it has.

    \b
    Example:  ptm registry show --json
    """
    from ptm.config import find_home, load_profile
    from ptm.model import format_time
    from ptm.registry import now_utc
    from ptm.store.urls import open_store
    from ptm.trust import read_state, refresh

    where = find_home(home)
    profile = load_profile(where)
    trusted = refresh(open_store(profile.registry), where.trust, expect_registry=profile.registry_id)
    state = read_state(where.trust)
    active = sum(member.revoked is None for member in trusted.roster.members)
    warnings = expiry_warnings(state, now_utc())
    if as_json:
        print_json(
            {
                "registry": profile.registry,
                "id": trusted.registry,
                "name": trusted.roster.name,
                "roster_version": trusted.version,
                "members": active,
                "revoked": len(trusted.roster.members) - active,
                "root": {
                    "version": state.version,
                    "fingerprint": state.fingerprint,
                    "threshold": state.threshold,
                    "keys": list(state.keyids),
                },
                "expires": {role: format_time(at) for role, at in state.expires.items()},
                "warnings": warnings,
            }
        )
        return
    rows = [
        ("registry", profile.registry),
        ("id", trusted.registry),
        ("name", trusted.roster.name),
        ("members", f"{active} ({len(trusted.roster.members) - active} revoked), version {trusted.version}"),
        ("root", f"version {state.version}, signed by {state.threshold} of {len(state.keyids)}"),
        ("fingerprint", state.fingerprint),
        *(("root key", keyid) for keyid in state.keyids),
        *((f"{role} expires", format_time(at)) for role, at in state.expires.items()),
    ]
    print_table(("what", "value"), rows)
    for warning in warnings:
        note(f"ptm: warning: {warning}")


@registry.command()
@json_option
@click.pass_obj
def renew(home: str | None, as_json: bool) -> None:
    """Sign the roster again, so that it does not expire.

    Once a week is plenty; once in 30 days is the least. When it has expired, nobody works until it is renewed.

    A list of reviewed images that has its signatures is published on the way.

    \b
    Example:  ptm registry renew
    """
    from ptm import coordinator
    from ptm.config import find_home, load_profile
    from ptm.model import format_time
    from ptm.registry import now_utc
    from ptm.store.urls import open_store

    where = find_home(home)
    expires = coordinator.renew(open_store(load_profile(where).registry), where, now_utc())
    if as_json:
        print_json({"expires": {role: format_time(at) for role, at in expires.items()}})
        return
    print_table(("role", "expires"), [(role, format_time(at)) for role, at in expires.items()])


@registry.command()
@click.option("--add", multiple=True, metavar="MEMBER", help="Member who reviews from now on. May be given several times.")
@click.option("--remove", multiple=True, metavar="MEMBER", help="Member who does not review any more.")
@click.option("--threshold", type=click.IntRange(1), help="How many of them have to sign.  [default: as before]")
@json_option
@click.pass_obj
def reviewers(home: str | None, add: tuple[str, ...], remove: tuple[str, ...], threshold: int | None, as_json: bool) -> None:
    """Say who reviews images, and how many of them have to sign; without options, show it.

    It takes effect at once. A list of reviewed images that lacks signatures by the new rule counts for nothing until the
    reviewers have signed it again. See docs/reviewed-algorithms.md.

    \b
    Example:  ptm registry reviewers --add alice --add bob --add carol --threshold 2
    """
    from ptm import coordinator, reviewing
    from ptm.config import find_home, load_profile
    from ptm.registry import now_utc
    from ptm.store.urls import open_store

    where = find_home(home)
    store = open_store(load_profile(where).registry)
    if add or remove or threshold is not None:
        coordinator.set_reviewers(store, where, add=add, remove=remove, threshold=threshold, now=now_utc())
    desk = reviewing.look(store, where)
    board = desk.reviewed.board
    names = [desk.names[key] for key in board.keys] if board else []
    if as_json:
        print_json({"reviewers": names, "threshold": board.threshold if board else 0})
        return
    print_table(("reviewer",), [(name,) for name in names])
    note(f"{board.threshold} of {len(names)} have to sign" if board else "nobody reviews images in this registry")
    if desk.reviewed.lapsed and desk.reviewed.trouble:
        note(f"ptm: warning: {desk.reviewed.trouble}: no image counts as reviewed until they sign again")


@registry.command("rotate-root")
@click.option(
    "--add-key",
    "add",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Private key file (PEM) that joins the root; made if it is not there; repeat.",
)
@click.option(
    "--remove-key", "remove", multiple=True, metavar="KEYID|FILE", help="Root key that leaves, by id or by its file; repeat."
)
@click.option(
    "--threshold",
    type=click.IntRange(1),
    metavar="N",
    help="How many root keys have to sign from now on.  [default: as before]",
)
@click.option(
    "--sign-with",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Root key file to sign with; repeat until the old root's threshold is met.  [default: keys/root.pem]",
)
@click.pass_obj
def rotate_root(
    home: str | None, add: tuple[Path, ...], remove: tuple[str, ...], threshold: int | None, sign_with: tuple[Path, ...]
) -> None:
    """Publish the next root: other keys, another threshold, or just a later expiry.

    Members follow by themselves. Prints the new root's fingerprint, for those who join from now on; the old one still works.

    \b
    Examples:
      ptm registry rotate-root
      ptm registry rotate-root --add-key new.pem --remove-key old.pem \\
                               --sign-with old.pem
    """
    from ptm import coordinator
    from ptm.config import find_home, load_profile
    from ptm.registry import now_utc
    from ptm.store.urls import open_store

    where = find_home(home)
    store = open_store(load_profile(where).registry)
    click.echo(
        coordinator.rotate_root(store, where, add=add, remove=remove, threshold=threshold, sign_with=sign_with, now=now_utc())
    )


@registry.command()
@json_option
@click.pass_obj
def probe(home: str | None, as_json: bool) -> None:
    """Try out what the store can do, with scratch objects that are removed again.

    \b
    Example:  ptm registry probe
    """
    from ptm import layout
    from ptm.config import find_home, load_profile
    from ptm.store.changes import announces
    from ptm.store.urls import open_store

    profile = load_profile(find_home(home))
    store, scratch = open_store(profile.registry), layout.probe(profile.kind, profile.member)
    found = store.probe(scratch)
    facts = {
        "exclusive_create": found.exclusive_create,
        "versioned": found.versioned,
        "wake_ups": announces(store, scratch),
        "shareable": found.shareable,
    }
    if as_json:
        print_json(facts)
        return
    print_table(("what", "found"), [(name.replace("_", " "), "yes" if value else "no") for name, value in facts.items()])
    if not found.shareable:
        note("ptm: warning: do not run several workers of one site on this store")


@registry.command()
@click.argument("member")
@click.pass_obj
def policy(home: str | None, member: str) -> None:
    """Print the bucket policy of a member: what it may read and write, and nothing else.

    For whoever runs the bucket: attach it to that member's credentials. It is S3's own language, which AWS and MinIO take.

    \b
    Example:  ptm registry policy maastro > maastro.json
    """
    from ptm.bucketpolicy import policy_for
    from ptm.config import find_home, load_profile
    from ptm.registry import Registry

    place = find_home(home)
    known = Registry.open(place).roster().named(member)
    print_json(policy_for(load_profile(place).registry, known.name, known.kind))


def expiry_warnings(state: RootState, now: datetime) -> list[str]:
    """What is about to expire, as lines for people."""
    left = {role: (at - now).days for role, at in state.expires.items()}
    command = {"root": "rotate-root"}
    return [
        f"the {role} expires in {days} days: the coordinator runs `ptm registry {command.get(role, 'renew')}`"
        for role, days in left.items()
        if days < WARN_DAYS[role]
    ]
