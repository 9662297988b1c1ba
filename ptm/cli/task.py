"""`ptm task`: put, list, show and cancel tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptm.cli.arguments import name_and_value
from ptm.cli.pages import Group
from ptm.cli.show import clean, json_option, note, print_json, print_table
from ptm.errors import UsageError

if TYPE_CHECKING:
    from ptm.client import Client
    from ptm.tasks import PutReport, TaskRequest


@click.group(cls=Group)
def task() -> None:
    """Put, list, show and cancel tasks."""


@task.command()
@click.argument("file", required=False, metavar="[FILE]", type=click.Path(path_type=Path))
@click.option("--image", metavar="NAME:TAG", help="Container image, by tag or by digest.")
@click.option("--site", "sites", multiple=True, metavar="NAME", help="A site to run at; repeat for several.")
@click.option(
    "--input", "inputs", multiple=True, metavar="[NAME=]FILE", help="An input file, sealed to the sites; repeat for several."
)
@click.option("--data", multiple=True, metavar="NAME", help="A data source to ask the sites for; repeat for several.")
@click.option("--deliver", metavar="PARTY/COLLECTION", help="Outputs go to a trusted party's collection instead of to you.")
@click.option("--purpose", metavar="TEXT", help="What it is for; the site's steward reads this.")
@click.option("--study", metavar="NAME", help="The study it belongs to; a site may allow some studies only.")
@click.option("--expires", metavar="DURATION", help="When it lapses if not run: 90m, 12h, 7d, 2w.")
@click.option("--command", "command_text", metavar="WORDS", help="Arguments for the image, split as a shell would.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable for the container. Not secret: it travels in clear.")
@click.option("--workdir", metavar="DIR", help="Working directory in the container.")
@click.option("--cpu-cores", type=int, metavar="N", help="CPU cores to ask for.")
@click.option("--ram-gb", type=float, metavar="GB", help="Memory to ask for.")
@click.option("--disk-gb", type=float, metavar="GB", help="Disk to ask for.")
@click.option("--gpus", type=int, metavar="N", help="GPUs to ask for; a site gives none unless its policy says so.")
@click.option("--time-limit", metavar="DURATION", help="Time to ask for: 90s, 15m, 2h.")
@click.option("--task", "task_id", metavar="TASK", help="Finish putting this task; makes no second one.")
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
@click.pass_obj
def put(home: str | None, /, file: Path | None, task_id: str | None, dry_run: bool, **flags: Any) -> None:
    """Seal, sign and put a task; prints its id, and nothing else, on stdout.

    The task comes from the flags or from a JSON FILE (flags win where both say something). Inputs are sealed to every
    site and to you; image, command, env and purpose can be read by whoever runs the bucket.

    \b
    Examples:
      ptm task put --image myConsortium/count:1 --site maastro --input params.json \\
                   --data cohort --purpose "Count patients" --expires 7d
      ptm task put task.json --site maastro --site umcu
      ptm task put --image myConsortium/pseudonymise:1 --site maastro --data cohort \\
                   --deliver ttp/link-2026 --purpose "Link" --expires 7d
    """
    from ptm.client import Client, raise_for_failed
    from ptm.tasks import check_request, put_task, resume_task

    client = Client(home)
    if task_id:
        report = resume_task(client.registry, task_id)
    else:
        request = _request(file, flags)
        if dry_run:
            check_request(client.registry, client.registry.roster(), request)
            note(f"this task could be put: {request.image} at {', '.join(request.sites)}")
            return
        report = put_task(client.registry, request)
    click.echo(report.task)
    _tell(report)
    raise_for_failed(report)


@task.command("list")
@json_option
@click.pass_obj
def list_(home: str | None, /, as_json: bool) -> None:
    """List your tasks, newest first.

    \b
    Example:
      ptm task list --json
    """
    from ptm.client import Client

    tasks = Client(home).tasks()
    if as_json:
        print_json([found.model_dump(mode="json", exclude={"inputs", "manifest"}, exclude_none=True) for found in tasks])
        return
    columns = ("task", "made", "expires", "image", "sites", "purpose")
    print_table(
        columns,
        (
            (t.id, f"{t.created:%Y-%m-%d %H:%M}", f"{t.expires:%Y-%m-%d %H:%M}", t.image, ", ".join(t.sites), t.purpose[:40])
            for t in tasks
        ),
    )


@task.command()
@click.argument("task_id", metavar="TASK")
@json_option
@click.pass_obj
def show(home: str | None, /, task_id: str, as_json: bool) -> None:
    """Show a task and how far each site has got with it.

    \b
    Example:
      ptm task show 01KAMV3ZR5F2J7Q8XG4M1W9ABC
    """
    from ptm.client import Client

    handle = Client(home).task(task_id)
    found, states = handle.task, handle.status()
    if as_json:
        sites = [{"site": s.site, "state": s.state, "reason": s.reason} for s in states]
        print_json(found.model_dump(mode="json", exclude={"inputs", "manifest"}, exclude_none=True) | {"states": sites})
        return
    shown = {
        "task": found.id,
        "image": found.image,
        "purpose": found.purpose,
        "study": found.study,
        "data": ", ".join(found.data),
        "deliver": f"{found.deliver.to}/{found.deliver.collection}" if found.deliver else None,
    }
    for label, value in shown.items():
        if value is not None or label != "deliver":
            click.echo(f"{label:8} {clean(value or '')}")
    click.echo(f"{'expires':8} {found.expires:%Y-%m-%d %H:%M} UTC")
    click.echo()
    print_table(("site", "state", "reason"), ((s.site, s.state, s.reason) for s in states))


@task.command()
@click.argument("task_id", metavar="TASK")
@click.option("--reason", default="", metavar="TEXT", help="Why; the sites see it.")
@click.pass_obj
def cancel(home: str | None, /, task_id: str, reason: str) -> None:
    """Ask every site that has no result yet to cancel a task.

    \b
    Example:
      ptm task cancel 01KAMV3ZR5F2J7Q8XG4M1W9ABC --reason "wrong cohort"
    """
    from ptm.client import raise_for_failed

    report = _client(home).task(task_id).cancel(reason)
    _tell(report)
    raise_for_failed(report)


def _client(home: str | None) -> Client:
    from ptm.client import Client

    return Client(home)


def _tell(report: PutReport) -> None:
    if report.queued:
        note(f"asked {len(report.queued)} site(s): {', '.join(report.queued)}")
    if report.finished:
        note(f"already have a result from: {', '.join(report.finished)}")


def _request(file: Path | None, flags: dict[str, Any]) -> TaskRequest:
    """One request from a task file and flags; what the flags say replaces what the file says."""
    from pydantic import ValidationError

    from ptm.tasks import TaskRequest, read_request, unfit

    said = _from_flags(flags)
    if file is not None:
        said = read_request(file).model_dump(exclude_unset=True) | said
    for needed, option in (("image", "--image"), ("sites", "--site"), ("expires", "--expires")):
        if not said.get(needed):
            raise UsageError(f"a task needs {option}", hint="`ptm task put --help` has an example")
    try:
        return TaskRequest.model_validate(said)
    except ValidationError as e:
        raise unfit(e) from e


def _from_flags(flags: dict[str, Any]) -> dict[str, Any]:
    import shlex

    from ptm.tasks import parse_duration

    try:
        words = tuple(shlex.split(flags["command_text"] or ""))
    except ValueError as e:
        raise UsageError(f"--command: {e}", hint="quote it as for a shell") from e
    said: dict[str, Any] = {
        "image": flags["image"],
        "sites": tuple(flags["sites"]),
        "expires": flags["expires"],
        "purpose": flags["purpose"],
        "study": flags["study"],
        "command": words,
        "env": dict(name_and_value(text, "--env") for text in flags["env"]),
        "workdir": flags["workdir"],
        "inputs": _inputs(flags["inputs"]),
        "data": tuple(flags["data"]),
        "deliver": _deliver(flags["deliver"]),
        "resources": {name: flags[name] for name in ("cpu_cores", "ram_gb", "disk_gb", "gpus") if flags[name] is not None},
        "time_limit_s": int(parse_duration(flags["time_limit"]).total_seconds()) if flags["time_limit"] else None,
    }
    return {name: value for name, value in said.items() if value}


def _deliver(text: str | None) -> dict[str, str] | None:
    if not text:
        return None
    party, slash, collection = text.partition("/")
    if not party or not slash or not collection:
        raise UsageError(f"--deliver {text}: not PARTY/COLLECTION", hint="--deliver ttp/link-2026")
    return {"to": party, "collection": collection}


def _inputs(given: tuple[str, ...]) -> dict[str, Path]:
    """`FILE` is named as the file is; `NAME=FILE` gives it another name. A file whose own path has an '=' needs a name."""
    found: dict[str, Path] = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not separator:
            name, path = Path(text).name, text
        if name in found:
            raise UsageError(f"two inputs are named {name}", hint="--input OTHERNAME=FILE")
        found[name] = Path(path)
    return found
