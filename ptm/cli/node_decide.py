"""`ptm node pending|show|approve|deny|release|withhold|audit`: what waits for a person, what they decide, and what happened.

All but `audit` work beside a running node and on any machine with the site's home; `audit` reads the log of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptm.cli.auditlog import print_entries, report_json, say_whether_whole
from ptm.cli.pages import Command
from ptm.cli.show import clean, json_option, note, print_json, print_table
from ptm.errors import UsageError

if TYPE_CHECKING:
    from ptm.model import Decision
    from ptm.node.decisions import Release, Waiting
    from ptm.registry import Registry

PREVIEW = 2000
"""How many characters of a text input `show` prints."""


def _who(required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--expect", metavar="SHA256", help="Only if this is what waits: `bound to`, as `show` printed it."),
            click.option("--reason", default="", required=required, help="Why; the researcher reads it, in clear."),
            click.option(
                "--by", required=True, metavar="NAME", help="Who decides; it stands in the result and in the audit log."
            ),
            click.argument("task_id", metavar="TASK"),
        ):
            command = option(command)
        return command

    return add


@click.command(cls=Command)
@json_option
@click.pass_obj
def pending(home: str | None, /, as_json: bool) -> None:
    """List what waits for a person or for data at this site, and what was released and waits for the worker that has its files.

    \b
    Example:
      ptm node pending
    """
    from ptm.node.decisions import pending as waiting_here

    found = waiting_here(site_registry(home))
    if as_json:
        print_json([_facts(waiting) for waiting in found])
        return
    if not found:
        note("nothing waits for a person")
        return
    columns = ("task", "waits for", "since", "who", "image", "data", "outputs to", "purpose")
    for waiting in found:
        if waiting.what == "worker":
            note(_left_behind(waiting))
    print_table(
        columns,
        (
            (
                w.task.id,
                f"worker {w.asked.worker}" if w.what == "worker" else w.what,
                f"{w.asked.created:%Y-%m-%d %H:%M}",
                w.task.user,
                w.task.image,
                ", ".join(w.task.data),
                w.outputs_to,
                w.task.purpose[:40],
            )
            for w in found
        ),
    )
    for w in found:
        if w.what == "data":
            note(f"{w.task.id}: {clean(w.asked.reason)}")


@click.command(cls=Command)
@click.argument("task_id", metavar="TASK")
@click.option(
    "--inputs", "folder", type=click.Path(path_type=Path), help="Also write all inputs, in clear, into this new folder."
)
@json_option
@click.pass_obj
def show(home: str | None, /, task_id: str, folder: Path | None, as_json: bool) -> None:
    """Show one run that waits: who asks for what and why, its inputs in clear, or where its held outputs lie.

    \b
    Example:
      ptm node show 01KAMV3ZR5F2J7Q8XG4M1W9ABC --inputs /tmp/look
    """
    from ptm.node.decisions import find, write_inputs
    from ptm.node.spool import look_folder

    registry = site_registry(home)
    waiting = find(registry, task_id)
    with look_folder(registry.home) as scratch:
        paths = write_inputs(registry, waiting, folder or scratch / "inputs")
        facts = _facts(waiting) | {"inputs": [{"name": path.name, "size": path.stat().st_size} for path in paths]}
        if as_json:
            print_json(facts)
            return
        _print_facts(facts)
        for path in paths:
            _print_input(path)
    if folder is not None:
        note(f"wrote the inputs to {folder}; remove them when you have read them")


@click.command(cls=Command)
@_who(required=False)
@click.pass_obj
def approve(home: str | None, /, task_id: str, by: str, reason: str, expect: str | None) -> None:
    """Let a run start. Where the policy says first-use, also every later run of the same image.

    \b
    Example:
      ptm node approve 01KAMV3ZR5F2J7Q8XG4M1W9ABC --by "J. Jansen" --reason "as agreed in study 12"
    """
    from ptm.node import decisions

    _say(task_id, decisions.approve(site_registry(home), task_id, by=by, reason=reason, expect=expect))


@click.command(cls=Command)
@_who(required=True)
@click.pass_obj
def deny(home: str | None, /, task_id: str, by: str, reason: str, expect: str | None) -> None:
    """Refuse a run that waits for approval.

    \b
    Example:
      ptm node deny 01KAMV3ZR5F2J7Q8XG4M1W9ABC --by "J. Jansen" --reason "no ethics approval"
    """
    from ptm.node import decisions

    _say(task_id, decisions.deny(site_registry(home), task_id, by=by, reason=reason, expect=expect))


@click.command(cls=Command)
@_who(required=False)
@json_option
@click.pass_obj
def release(home: str | None, /, task_id: str, by: str, reason: str, expect: str | None, as_json: bool) -> None:
    """Let held outputs leave, all but the files that were withheld. Prints which files these are.

    \b
    Example:
      ptm node release 01KAMV3ZR5F2J7Q8XG4M1W9ABC --by "J. Jansen"
    """
    from ptm.node import decisions

    released = decisions.release(site_registry(home), task_id, by=by, reason=reason, expect=expect)
    if as_json:
        print_json(_release_facts(task_id, released))
    elif released.leaves or released.withheld:
        rows = [(f.name, f.size, "leaves") for f in released.leaves] + [(f.name, f.size, "withheld") for f in released.withheld]
        print_table(("held", "size", ""), rows)
    if not released.leaves:
        note("no file leaves, only how the run ended")
    _say(task_id, released.decision)


@click.command(cls=Command)
@_who(required=True)
@click.option("--file", "files", multiple=True, metavar="NAME", help="Only this file; repeat. The rest still waits.")
@click.pass_obj
def withhold(home: str | None, /, task_id: str, by: str, reason: str, expect: str | None, files: tuple[str, ...]) -> None:
    """Keep held outputs: all, which ends the run as rejected, or single files.

    All takes a release back, too, as long as the run has no result: what its worker is sending at that moment may still leave.

    \b
    Examples:
      ptm node withhold 01KAMV3ZR5F2J7Q8XG4M1W9ABC --by "J. Jansen" --reason "shows single patients"
      ptm node withhold 01KAMV3ZR5F2J7Q8XG4M1W9ABC --file rare.csv --by "J. Jansen" --reason "small counts"
    """
    from ptm.node import decisions

    _say(task_id, decisions.withhold(site_registry(home), task_id, by=by, reason=reason, files=files, expect=expect))


@click.command(cls=Command)
@click.option("--task", "task_id", metavar="TASK", help="Only what is about this task.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the newest N entries.")
@click.option("--verify", is_flag=True, help="Check the whole chain, and against this worker's results in the registry.")
@json_option
@click.pass_obj
def audit(home: str | None, /, task_id: str | None, last: int | None, verify: bool, as_json: bool) -> None:
    """Print this worker's audit log, oldest first, or check that nothing in it was changed or cut off.

    Exit code 11 if the check finds something.

    \b
    Examples:
      ptm node audit --last 20
      ptm node audit --verify
    """
    from ptm.config import find_home

    if verify:
        _verify(home, as_json)
    else:
        print_entries(find_home(home).audit, task_id, last, as_json)


def _verify(home: str | None, as_json: bool) -> None:
    from ptm.config import NodeConfig, find_home, read_toml
    from ptm.node.witness import verify_against_registry

    place = find_home(home)
    worker = read_toml(place.node, NodeConfig).worker
    report, seen, others = verify_against_registry(site_registry(home), place.audit, worker)
    if as_json:
        print_json({**report_json(report), "results": seen, "results_of_other_workers": others})
    else:
        click.echo(f"entries   {report.entries}")
        click.echo(f"head      {report.head}")
        click.echo(f"results   {seen} of this worker in the registry, {others} of others")
    say_whether_whole(report)


def site_registry(home: str | None) -> Registry:
    """The registry of this home, if it is a site's."""
    from ptm.config import find_home
    from ptm.registry import Registry

    registry = Registry.open(find_home(home))
    if registry.profile.kind not in ("site", "party"):
        raise UsageError(f"{registry.me} is a {registry.profile.kind}, and only a site decides", hint="is --home the right one?")
    return registry


def _left_behind(waiting: Waiting) -> str:
    assert waiting.released is not None
    return (
        f"task {waiting.task.id} was released by {waiting.released.by}, and worker {waiting.asked.worker} has not sent it yet; "
        "if that machine is gone for good, `ptm node withhold` ends the run"
    )


def _say(task_id: str, decision: Decision) -> None:
    which = f" ({decision.files} file(s))" if decision.files else ""
    at = f"{decision.time:%Y-%m-%d %H:%M} UTC"
    note(f"{task_id}: {decision.what}{which} by {decision.by} at {at}; the node acts on it at its next look")


def _release_facts(task_id: str, released: Release) -> dict[str, Any]:
    """A release, as `--json` shows it."""
    return {
        "task": task_id,
        **released.decision.model_dump(mode="json", exclude={"files"}),
        "leaves": [file.model_dump(mode="json") for file in released.leaves],
        "withheld": [file.model_dump(mode="json") for file in released.withheld],
    }


def _facts(waiting: Waiting) -> dict[str, Any]:
    """A run that waits, as `--json` shows it."""
    task, held = waiting.task, waiting.held
    facts: dict[str, Any] = {
        "task": task.id,
        "waits_for": waiting.what,
        "since": waiting.asked.model_dump(mode="json")["created"],
        "user": task.user,
        "organisation": waiting.organisation,
        "purpose": task.purpose,
        "study": task.study,
        "image": task.image,
        "image_digest": waiting.asked.image_digest,
        "command": list(task.command),
        "env": dict(task.env),
        "resources": task.resources.model_dump(mode="json", exclude_none=True),
        "data": list(task.data),
        "recipients": list(task.recipients),
        "outputs_to": waiting.outputs_to,
        "expires": task.model_dump(mode="json")["expires"],
        "first_use": waiting.asked.first_use,
        "bound_to": waiting.seen,
    }
    if waiting.what == "data":
        facts["missing"] = waiting.asked.reason
    if held is not None:
        facts["worker"] = waiting.asked.worker
        facts["released_by"] = waiting.released.by if waiting.released else None
        facts["outcome"] = held.outcome
        facts["folder"] = str(waiting.folder) if waiting.folder else None
        facts["held"] = [file.model_dump(mode="json") | {"withheld": file.name in waiting.withheld} for file in held.files]
        facts["findings"] = [finding.model_dump(mode="json") for finding in held.findings]
    return facts


def _print_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if name in ("inputs", "held", "findings") or value in (None, "", [], {}):
            continue
        shown = ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)
        click.echo(f"{name.replace('_', ' '):14} {clean(shown)}")
    if facts["waits_for"] != "approval":
        if facts["folder"] is None:
            note(f"the files lie with worker {facts['worker']}, not here")
        click.echo()
        print_table(("held", "size", ""), ((f["name"], f["size"], "withheld" if f["withheld"] else "") for f in facts["held"]))
        if facts["findings"]:
            click.echo()
            print_table(("check", "file", "found"), ((f["rule"], f["file"], f["text"]) for f in facts["findings"]))


def _print_input(path: Path) -> None:
    """The beginning of an input, if it is text."""
    with path.open("rb") as file:
        raw = file.read(4 * PREVIEW)
    click.echo(f"\n--- input {clean(path.name)} ({path.stat().st_size} bytes)")
    try:
        text = raw.decode("utf-8") if len(raw) < 4 * PREVIEW else raw.decode("utf-8", "replace")
    except UnicodeDecodeError:
        click.echo("(not text; `--inputs DIR` writes it)")
        return
    click.echo("\n".join(clean(line) for line in text[:PREVIEW].splitlines()))
    if len(text) > PREVIEW:
        click.echo("(and more; `--inputs DIR` writes all of it)")


COMMANDS = (pending, show, approve, deny, release, withhold, audit)
