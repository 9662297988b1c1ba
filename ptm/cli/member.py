"""`ptm member` and `ptm join`: ask for membership; admit, revoke and list members; join."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ptm.cli.pages import Command, Group
from ptm.cli.show import clean, json_option, note, print_json, print_table

if TYPE_CHECKING:
    from ptm.model import Kind, Member, MemberRequest

KINDS = ("researcher", "site", "party", "coordinator")
"""`ptm.model.Kind`, here once more, so that help needs no pydantic."""


@click.group(cls=Group)
def member() -> None:
    """Ask for membership; admit, revoke and list members.

    \b
    Example:  ptm member request --name maastro --kind site -o maastro.request.json
    """


@member.command()
@click.option("--name", required=True, metavar="NAME", help="Your name in the registry: a-z, 0-9 and '-'.")
@click.option(
    "--kind",
    required=True,
    type=click.Choice(KINDS),
    metavar="KIND",
    help=f"What you are: {', '.join(KINDS)}.",
)
@click.option("--organisation", default="", help="Your organisation, as the roster shows it.")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="File to write.  [default: NAME.request.json]"
)
@click.pass_obj
def request(home: str | None, name: str, kind: Kind, organisation: str, output: Path | None) -> None:
    """Make your keys, and a request with their public halves for the coordinator.

    Keys that are there already are used. The fingerprint it prints is to be compared with the coordinator by telephone.

    \b
    Example:  ptm member request --name maastro --kind site -o maastro.request.json
    """
    from ptm.config import find_home
    from ptm.enrolment import write_request
    from ptm.keys import fingerprint
    from ptm.registry import now_utc

    path = output or Path(f"{name}.request.json")
    made = write_request(find_home(home), path, name=name, kind=kind, organisation=organisation, now=now_utc())
    note(f"wrote {path}; hand it to the coordinator, and compare this fingerprint with them by telephone:")
    note(fingerprint(made.sign_key, made.age_key))


@member.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--yes", is_flag=True, help="Do not ask (in a terminal).")
@json_option
@click.pass_obj
def admit(home: str | None, files: tuple[Path, ...], yes: bool, as_json: bool) -> None:
    """Admit the members whose request FILEs these are: all of them or none.

    Compare each fingerprint with its owner by telephone first: the file proves that they have the keys, not who they are.

    \b
    Example:  ptm member admit maastro.request.json alice.request.json
    """
    from ptm import coordinator
    from ptm.config import find_home, load_profile
    from ptm.registry import now_utc
    from ptm.store.urls import open_store

    where = find_home(home)
    requests = [_read_request(path) for path in files]
    store = open_store(load_profile(where).registry)
    if sys.stdin.isatty() and not yes:
        _confirm(requests)
    members = coordinator.admit(store, where, requests, now_utc(), lambda one: note(f"{one.name} is a member already"))
    _print_members(members, as_json)


@member.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@json_option
@click.pass_obj
def revoke(home: str | None, names: tuple[str, ...], as_json: bool) -> None:
    """Revoke members: all of them or none.

    It takes effect at each member's next look at the roster. The names and keys are never given out again.

    \b
    Example:  ptm member revoke alice
    """
    from ptm import coordinator
    from ptm.config import find_home, load_profile
    from ptm.registry import now_utc
    from ptm.store.urls import open_store

    where = find_home(home)
    store = open_store(load_profile(where).registry)
    _print_members(coordinator.revoke(store, where, names, now_utc()), as_json)


@member.command("list")
@json_option
@click.pass_obj
def list_members(home: str | None, as_json: bool) -> None:
    """List the members, revoked ones included, from the verified roster.

    \b
    Example:  ptm member list --json
    """
    from ptm.config import find_home, load_profile
    from ptm.store.urls import open_store
    from ptm.trust import refresh

    where = find_home(home)
    profile = load_profile(where)
    trusted = refresh(open_store(profile.registry), where.trust, expect_registry=profile.registry_id)
    _print_members(trusted.roster.members, as_json)


@click.command(cls=Command)
@click.argument("url", metavar="URL")
@click.option("--root", required=True, metavar="FINGERPRINT", help="The root's fingerprint, 64 hex digits, from the coordinator.")
@json_option
@click.pass_obj
def join(home: str | None, url: str, root: str, as_json: bool) -> None:
    """Join the registry at URL, once the coordinator has admitted you.

    May be given again, for example after the registry has moved to another URL.

    Get the fingerprint from the coordinator by another way than the bucket: it is what all trust rests on.

    \b
    Example:  ptm join file:///srv/registry --root FINGERPRINT
    """
    from ptm import enrolment
    from ptm.config import find_home
    from ptm.store.urls import open_store

    profile = enrolment.join(open_store(url), find_home(home), root)
    if as_json:
        print_json(profile.model_dump(mode="json"))
        return
    note(f"joined {clean(profile.registry)} as {profile.kind} {profile.member}")


def _read_request(path: Path) -> MemberRequest:
    from ptm.envelope import MAX_DOCUMENT_BYTES, verify_request
    from ptm.errors import UsageError, VerificationError

    try:
        with path.open("rb") as file:
            body = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}", hint="`ptm member request` writes such a file") from e
    try:
        return verify_request(body)
    except VerificationError as e:
        raise type(e)(f"{path}: {e}", hint="ask for the file again; `ptm member request` writes it") from e


def _confirm(requests: list[MemberRequest]) -> None:
    from ptm.keys import fingerprint

    for one in requests:
        who = clean(f"{one.kind} {one.name} ({one.organisation or 'no organisation given'})")
        note(f"{who}\n  {fingerprint(one.sign_key, one.age_key)}")
    click.confirm("Did you compare these fingerprints with their owners?", abort=True, err=True)


def _print_members(members: Sequence[Member], as_json: bool) -> None:
    from ptm.keys import fingerprint
    from ptm.model import format_time

    if as_json:
        print_json(
            [m.model_dump(mode="json", exclude_none=True) | {"fingerprint": fingerprint(m.sign_key, m.age_key)} for m in members]
        )
        return
    rows = [
        (
            m.name,
            m.kind,
            m.organisation,
            fingerprint(m.sign_key, m.age_key),
            format_time(m.admitted),
            m.revoked and format_time(m.revoked),
        )
        for m in members
    ]
    print_table(("name", "kind", "organisation", "fingerprint", "admitted", "revoked"), rows)
