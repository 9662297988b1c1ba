"""`ptm results`: fetch, list and verify results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptm.cli.pages import Group
from ptm.cli.show import clean, json_option, note, print_json, print_table
from ptm.errors import PtmError, RunFailed, UsageError, VerificationError

if TYPE_CHECKING:
    from ptm.client import RunResult, TaskHandle
    from ptm.results import SavedResult

COLUMNS = ("site", "state", "exit code", "duration", "files", "image digest", "reason")


@click.group(cls=Group)
def results() -> None:
    """Fetch, list and verify results."""


@results.command()
@click.argument("task_id", metavar="TASK")
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to put them.  [default: a folder named as the task]",
)
@click.option("--wait", is_flag=True, help="Wait until every site has answered.")
@click.option(
    "--timeout", metavar="SECONDS", type=click.FloatRange(min=0), help="With --wait: no longer than this.  [default: for ever]"
)
@json_option
@click.pass_obj
def fetch(home: str | None, task_id: str, folder: Path | None, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Fetch, verify and decrypt the results of a task into DIR/SITE/.

    Without --wait, takes what is there. Nothing unverified or partial is ever left in the folder. Exit code 13 when a
    site's run did not complete, 14 when a site has not answered; what the others sent is delivered all the same.

    \b
    Example:
      ptm results fetch 01KAMV3ZR5F2J7Q8XG4M1W9ABC --wait --timeout 600 -o out
    """
    from ptm.cli.progress import waiting
    from ptm.client import Client

    handle = Client(home).task(task_id)
    found: list[RunResult] = []
    try:
        with waiting(len(handle.task.sites), wait) as advance:
            for result in handle.results(timeout if wait else 0, folder or Path(task_id)):
                found.append(result)
                advance(f"{result.site}: {result.state}")
    finally:
        if found:
            _print([result.saved for result in found], as_json, [_answer(handle, result) for result in found])
    failed = [result for result in found if not result.ok]
    if failed:
        reasons = "; ".join(f"{result.site} {result.state}: {result.reason}" for result in failed)
        raise RunFailed(f"{len(failed)} of {len(found)} runs did not complete: {reasons}", hint=failed[0].saved.result.hint)


@results.command("list")
@json_option
@click.pass_obj
def list_(home: str | None, as_json: bool) -> None:
    """List what each site has done with each of your tasks.

    \b
    Example:
      ptm results list
    """
    from ptm.client import Client
    from ptm.tasks import task_status

    client = Client(home)
    rows = [(task, status) for task in client.tasks() for status in task_status(client.registry, task)]
    if as_json:
        print_json([{"task": t.id, "image": t.image, "site": s.site, "state": s.state, "reason": s.reason} for t, s in rows])
        return
    print_table(("task", "image", "site", "state", "reason"), ((t.id, t.image, s.site, s.state, s.reason) for t, s in rows))


@results.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@json_option
@click.pass_obj
def verify(home: str | None, folder: Path, as_json: bool) -> None:
    """Check fetched results again, offline: signatures, task, and every file.

    Uses the keys of this home and the roster that it last verified; asks the registry nothing.

    \b
    Example:
      ptm results verify out
    """
    from ptm.client import Client
    from ptm.results import SavedResult, verify_folder
    from ptm.trust import last_roster

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="give the folder that `ptm results fetch -o` filled")
    registry = Client(home).registry
    checked = verify_folder(registry, last_roster(registry.home.trust, expect_registry=registry.id), folder)
    if not checked:
        raise UsageError(f"{folder} holds no results", hint="it has a folder per site, each with a result.json")
    _print([item for item in checked if isinstance(item, SavedResult)], as_json)
    bad = [item for item in checked if not isinstance(item, SavedResult)]
    if bad:
        raise VerificationError(
            "; ".join(f"{path.name}: {error}" for path, error in bad), hint="fetch it again into another folder"
        )
    note(f"verified {len(checked)} result(s) in {folder}")


def _print(saved: list[SavedResult], as_json: bool, answers: Sequence[str] = ()) -> None:
    """`answers`: what trusted parties said to what was delivered to them, for each result; none: nobody was asked."""
    told = dict(zip((item.folder for item in saved), answers, strict=False))
    if as_json:
        print_json([_as_dict(item, told.get(item.folder)) for item in saved])
        return
    print_table(COLUMNS, (_row(item) for item in saved))
    for item in saved:
        sent = item.result.delivered
        if sent is not None:
            answer = f": {told[item.folder]}" if item.folder in told else ""
            click.echo()
            click.echo(clean(f"{item.result.site} delivered to {sent.to}/{sent.collection}, transfer {sent.transfer}{answer}"))
            print_table(("file", "sealed bytes", "SHA-256"), ((file.name, file.size, file.sha256) for file in sent.files))


def _answer(handle: TaskHandle, result: RunResult) -> str:
    """The party's receipt in words. That it cannot be had is no reason to withhold the result."""
    if result.delivered is None:
        return ""
    try:
        receipt = handle.receipt(result)
    except PtmError as e:
        return f"the receipt cannot be read: {e}"
    if receipt is None:
        return "no receipt yet"
    if receipt.state == "accepted":
        return f"accepted at {receipt.created:%Y-%m-%d %H:%M} UTC"
    return f"refused: {receipt.reason}" + (f" ({receipt.hint})" if receipt.hint else "")


def _row(item: SavedResult) -> tuple[Any, ...]:
    result = item.result
    digest = (result.image_digest or "").removeprefix("sha256:")[:12]
    duration = "" if item.duration_s is None else f"{item.duration_s} s"
    code = "" if result.exit_code is None else result.exit_code
    return (result.site, result.state, code, duration, len(result.outputs), digest, result.reason or "")


def _as_dict(item: SavedResult, answer: str | None = None) -> dict[str, Any]:
    result = item.result
    kept = {"task", "site", "state", "exit_code", "reason", "image", "image_digest", "start_time", "end_time", "delivered"}
    return result.model_dump(mode="json", include=kept) | {
        "duration_s": item.duration_s,
        "files": [file.name for file in result.outputs],
        "folder": str(item.folder),
        **({"receipt": answer} if answer else {}),
    }
