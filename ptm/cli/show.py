"""How commands print: tables for people, JSON for programs (`--json`), notes to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")(command)


def print_json(value: object) -> None:
    """Readable JSON in which somebody else's text can steer no terminal: what is not printable stands as `\\uXXXX`."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    click.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def note(text: str) -> None:
    """Something a person wants to know, and a pipe does not."""
    click.echo("\n".join(clean(line) for line in text.split("\n")), err=True)


def clean(text: str) -> str:
    """Text from somebody else, safe for a terminal: control characters (escape sequences) become '?'."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "?" for c in text)


def in_bytes(size: int) -> str:
    """A file's size for people: `272 bytes`, `18.2 kB`, `600.1 MB`."""
    if size < 1000:
        return f"{size} bytes"
    for unit, factor in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if size < 999.95 * factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e12:.1f} TB"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A plain table on stdout, as wide as the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(clean("" if cell is None else str(cell))) for cell in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(table)
