"""How an audit log is printed and judged: a node's (`ptm node audit`) and a trusted party's (`ptm trustedparty audit`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptm.cli.show import clean, note, print_json
from ptm.errors import VerificationError

if TYPE_CHECKING:
    from ptm.audit import Entry, Report


def print_entries(path: Path, task: str | None, last: int | None, as_json: bool) -> None:
    """The entries, oldest first: all, those about a task, the newest."""
    from ptm.audit import entries, in_words, newest

    kept: Iterable[Entry] = (entry for entry in entries(path) if task in (None, entry.task))
    if last:
        kept = reversed(newest(path, last, task)[0])
    if as_json:
        print_json([entry.model_dump(mode="json", exclude_none=True) for entry in kept])
        return
    for entry in kept:
        click.echo(clean(in_words(entry)))


def report_json(report: Report) -> dict[str, Any]:
    return {
        "entries": report.entries,
        "head": report.head,
        "problems": report.problems,
        "missing": report.missing,
        "whole": report.whole,
    }


def say_whether_whole(report: Report) -> None:
    """`VerificationError` if the check found something, after all of it has been told."""
    if report.torn:
        note("the last line is not finished: it is being written, or there was a crash; the next start says so in the log")
    problems = [
        *report.problems,
        *(f"there is no entry {head[:16]}…, which {where} names" for head, where in report.missing.items()),
    ]
    if problems:
        for problem in problems:
            note(problem)
        raise VerificationError(
            f"the audit log is not whole: {problems[0]}", hint="keep the file as it is, and find out who changed it"
        )
    note("nothing was changed or cut off")
