"""`ptm algorithm`: approve and withdraw reviewed images, list them, and publish what enough reviewers have signed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from ptm.cli.pages import Group
from ptm.cli.show import clean, json_option, note, print_json, print_table

if TYPE_CHECKING:
    from datetime import datetime

    from ptm.config import Home
    from ptm.reviewing import Desk, Proposal
    from ptm.store.base import Store

    Signing = Callable[[Store, Home, Sequence[str], datetime], Proposal]

WARN_DAYS = 60


@click.group(cls=Group)
def algorithm() -> None:
    """Approve, withdraw, list and publish reviewed images.

    Reviewers are named by the coordinator (`ptm registry reviewers`). A policy's rule with `reviewed = true` accepts only
    images on this list.

    \b
    Example:  ptm algorithm approve lab/count@sha256:DIGEST
    """


@algorithm.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE@DIGEST...")
@json_option
@click.pass_obj
def approve(home: str | None, images: tuple[str, ...], as_json: bool) -> None:
    """Sign that you have reviewed these images, as the first reviewer or as the next.

    Images that belong together go into one command: they are approved together. Once enough reviewers have given the same
    command, the coordinator publishes the list. An image that is on the list is signed again in its second half-year.

    \b
    Example:  ptm algorithm approve lab/count@sha256:DIGEST
    """
    from ptm import reviewing

    _sign(reviewing.approve, home, images, as_json)


@algorithm.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE@DIGEST...")
@json_option
@click.pass_obj
def withdraw(home: str | None, images: tuple[str, ...], as_json: bool) -> None:
    """Sign that these images are to leave the list. It takes as many reviewers as approving them did.

    In a hurry, a site takes an image out of its own policy.

    \b
    Example:  ptm algorithm withdraw lab/count@sha256:DIGEST
    """
    from ptm import reviewing

    _sign(reviewing.withdraw, home, images, as_json)


@algorithm.command("list")
@json_option
@click.pass_obj
def list_images(home: str | None, as_json: bool) -> None:
    """List the reviewed images, and what waits for signatures.

    \b
    Example:  ptm algorithm list --json
    """
    from ptm import reviewing
    from ptm.config import find_home, load_profile
    from ptm.model import format_time
    from ptm.registry import now_utc
    from ptm.store.urls import open_store

    where = find_home(home)
    desk = reviewing.look(open_store(load_profile(where).registry), where)
    found = desk.reviewed
    if as_json:
        print_json(_as_json(desk))
        return
    rows = [(image.image, image.digest, "reviewed") for image in found.images]
    rows += [(image.image, image.digest, "lapsed") for image in found.lapsed]
    rows += [row for proposal in desk.proposals for row in _waiting_rows(proposal)]
    print_table(("image", "digest", "state"), rows)
    if found.trouble:
        note(f"ptm: warning: {found.trouble}" + (": no image counts as reviewed" if found.lapsed else ""))
    elif found.expires:
        note(f"version {found.version}, signed by {_signers(desk)}, expires {format_time(found.expires)}")
        if (found.expires - now_utc()).days < WARN_DAYS:
            note("ptm: warning: the list expires soon: the reviewers give `ptm algorithm approve` again")


@algorithm.command()
@json_option
@click.pass_obj
def publish(home: str | None, as_json: bool) -> None:
    """Publish the next list, if enough reviewers have signed it. For a coordinator; `ptm registry renew` does it too.

    \b
    Example:  ptm algorithm publish
    """
    from ptm import coordinator, reviewing
    from ptm.config import find_home, load_profile
    from ptm.registry import now_utc
    from ptm.store.urls import open_store

    where = find_home(home)
    store = open_store(load_profile(where).registry)
    waiting = reviewing.look(store, where).proposals
    done = coordinator.publish_reviewed(store, where, now_utc())
    if done is None:
        for proposal in waiting:
            note(f"waits: {_what(proposal)}: {proposal.progress}")
        note("nothing to publish: no list has enough signatures")
    else:
        note(f"published: {_what(done)}")
        for proposal in waiting:
            if proposal.digest != done.digest:
                note(f"void now, to be signed again: {_what(proposal)} (signed by {', '.join(proposal.signed_by)})")
    if as_json:
        print_json({"published": None if done is None else _proposal_json(done)})


def _sign(act: Signing, home: str | None, images: tuple[str, ...], as_json: bool) -> None:
    from ptm import coordinator
    from ptm.config import find_home, load_profile
    from ptm.registry import now_utc
    from ptm.store.urls import open_store

    where = find_home(home)
    store = open_store(load_profile(where).registry)
    proposal = act(store, where, images, now_utc())
    note(f"signed: {_what(proposal)}: {proposal.progress}")
    published = False
    if proposal.complete and coordinator.is_coordinator(where):
        published = coordinator.publish_reviewed(store, where, now_utc()) is not None
    if published:
        note("published")
    elif proposal.complete:
        note("complete; the coordinator publishes it: `ptm algorithm publish`")
    else:
        note("it counts once enough reviewers have given the same command, and the coordinator has published it")
    if as_json:
        print_json(_proposal_json(proposal) | {"published": published})


def _what(proposal: Proposal) -> str:
    changes = [f"+ {image.label}" for image in proposal.added] + [f"- {image.label}" for image in proposal.removed]
    return clean(", ".join(changes) or "the same list for another year")


def _waiting_rows(proposal: Proposal) -> list[tuple[str, str, str]]:
    state = f"{proposal.progress} ({', '.join(proposal.signed_by)})"
    rows = [(image.image, image.digest, f"waits to be approved: {state}") for image in proposal.added]
    rows += [(image.image, image.digest, f"waits to be withdrawn: {state}") for image in proposal.removed]
    return rows or [("", "", f"the same list for another year: {state}")]


def _signers(desk: Desk) -> str:
    return ", ".join(desk.names.get(key, key[:16]) for key in desk.reviewed.signed_by)


def _as_json(desk: Desk) -> dict[str, object]:
    from ptm.model import format_time

    found = desk.reviewed
    return {
        "version": found.version,
        "expires": format_time(found.expires) if found.expires else None,
        "threshold": found.board.threshold if found.board else 0,
        "reviewers": [desk.names.get(key, key) for key in (found.board.keys if found.board else ())],
        "signed_by": [desk.names.get(key, key) for key in found.signed_by],
        "reviewed": [image.model_dump() for image in found.images],
        "lapsed": [image.model_dump() for image in found.lapsed],
        "trouble": found.trouble,
        "waiting": [_proposal_json(proposal) for proposal in desk.proposals],
    }


def _proposal_json(proposal: Proposal) -> dict[str, object]:
    return {
        "version": proposal.metadata.signed.version,
        "added": [image.model_dump() for image in proposal.added],
        "removed": [image.model_dump() for image in proposal.removed],
        "signed_by": list(proposal.signed_by),
        "threshold": proposal.threshold,
        "complete": proposal.complete,
    }
