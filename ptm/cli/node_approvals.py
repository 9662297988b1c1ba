"""`ptm node approvals|unapprove`: which images a site has approved for good (`approval = "first-use"`), and taking that back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ptm.cli.node_decide import site_registry
from ptm.cli.pages import Command
from ptm.cli.show import json_option, note, print_json, print_table

if TYPE_CHECKING:
    from ptm.node.firstuse import Given


@click.command(cls=Command)
@json_option
@click.pass_obj
def approvals(home: str | None, /, as_json: bool) -> None:
    """List the images that this site has approved by their first use, and the approvals that were taken back.

    \b
    Example:
      ptm node approvals
    """
    from ptm.node.firstuse import given_approvals

    found = given_approvals(site_registry(home))
    if as_json:
        print_json([_facts(given) for given in found])
        return
    if not found:
        note("no image is approved by its first use")
        return
    columns = ("image", "digest", "", "by", "at", "reason")
    print_table(columns, ((given.image, given.image_digest, *_last(given)) for given in found))


@click.command(cls=Command)
@click.argument("image", metavar="IMAGE@DIGEST")
@click.option("--by", required=True, metavar="NAME", help="Who takes it back; it stands in the registry and in the audit log.")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it travels in clear.")
@click.option("--dry-run", is_flag=True, help="Say what would be taken back, and write nothing.")
@json_option
@click.pass_obj
def unapprove(home: str | None, /, image: str, by: str, reason: str, dry_run: bool, as_json: bool) -> None:
    """Take back the first-use approval of an image: the next task with it is asked about again, at every worker.

    IMAGE@DIGEST may be the digest alone. Runs that were accepted before go on. Doing it again is no error.

    \b
    Example:
      ptm node unapprove myConsortium/count@sha256:… --by "J. Jansen" --reason "a flaw was found"
    """
    from ptm.node.firstuse import unapprove as take_back

    registry = site_registry(home)
    done = take_back(registry, image, by, reason, dry_run)
    said = "is taken back" if registry.image_approval(done.image_digest) is None else "would be taken back"
    if as_json:
        print_json(done.model_dump(mode="json", exclude={"type", "registry", "site", "approval_sha256"}))
        return
    note(
        f"{done.image} ({done.image_digest}): the approval by {done.approved_by} of {done.approved:%Y-%m-%d %H:%M} UTC"
        f" {said}, by {done.by}"
    )


def _last(given: Given) -> tuple[str, str, str, str]:
    """What was said about it last: state, by whom, when, why."""
    said = given.withdrawal or given.approval
    assert said is not None
    return "taken back" if given.withdrawal else "approved", said.by, f"{said.created:%Y-%m-%d %H:%M}", said.reason


def _facts(given: Given) -> dict[str, Any]:
    facts: dict[str, Any] = {"image": given.image, "image_digest": given.image_digest, "approved": given.approval is not None}
    if given.approval is not None:
        said = given.approval.model_dump(mode="json")
        return facts | {"by": said["by"], "reason": said["reason"], "time": said["created"]}
    assert given.withdrawal is not None
    said = given.withdrawal.model_dump(mode="json")
    return facts | {
        "by": said["by"],
        "reason": said["reason"],
        "time": said["created"],
        "approved_by": said["approved_by"],
        "approved_time": said["approved"],
    }
