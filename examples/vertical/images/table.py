"""CSV tables and JSON inputs, read strictly and named without showing a value. Part of both images; standard library only.

Rule: the log leaves the site, so a `Refused` names files, columns and line numbers, and never what stands in a cell."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_CELL = 100_000
"""Characters; a quote that is never closed ends here instead of at the end of the file."""
DATA_DIR = "/ptm/data"


class Refused(Exception):
    """The question cannot or may not be answered here; its text is the one line that the researcher reads."""


@dataclass(frozen=True)
class Table:
    """A CSV file with a header: its rows are as long as the header, cells without the white space round them."""

    name: str
    header: list[str]
    rows: list[list[str]]

    def column(self, name: str) -> int:
        """Where a column is. `Refused` if there is none of that name, or more than one."""
        if self.header.count(name) != 1:
            raise Refused(f"column {name!r} is missing from {self.name}, or there more than once")
        return self.header.index(name)


def read_table(path: Path, delimiter: str = ",", encoding: str = "utf-8-sig") -> Table:
    """The whole file. A byte order mark and empty lines are passed over; anything else that is odd is `Refused`."""
    csv.field_size_limit(MAX_CELL)
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            try:
                header = [cell.strip() for cell in next(reader, [])]
                rows = list(_rows(reader, len(header), path.name))
            except csv.Error as e:
                raise Refused(f"{path.name} is not a CSV file (line {reader.line_num})") from e
    except UnicodeDecodeError as e:
        raise Refused(f"{path.name} is not written in {encoding}") from e
    except OSError as e:
        raise Refused(f"{path.name} cannot be read ({type(e).__name__})") from e
    if not header:
        raise Refused(f"{path.name} is empty: it has no header")
    return Table(path.name, header, rows)


def _rows(reader: Any, width: int, name: str) -> Iterator[list[str]]:
    for cells in reader:
        if not cells:
            continue
        if len(cells) != width:
            raise Refused(f"line {reader.line_num} of {name} has {len(cells)} cells, and the header {width}")
        yield [cell.strip() for cell in cells]


def read_object(path: Path, known: set[str]) -> dict[str, Any]:
    """A JSON object with no other fields than the known ones, and none of them twice."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_twice)
    except (OSError, ValueError, RecursionError) as e:
        raise Refused(f"{path.name} is not a JSON file") from e
    if not isinstance(found, dict):
        raise Refused(f"{path.name} is not a JSON object")
    if unknown := found.keys() - known:
        raise Refused(f"{path.name} has an unknown field: {', '.join(sorted(unknown))[:200]!r}")
    return found


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a field is there twice")
    return dict(pairs)


def names(value: Any, what: str) -> list[str]:
    """A list of different column names, at least one."""
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise Refused(f"{what} must be a list of column names")
    if len(set(value)) != len(value):
        raise Refused(f"{what} names a column twice")
    return value


def data_path(name: str) -> Path:
    """Where a data source of the site is: ptm's native contract."""
    return Path(os.environ.get("PTM_DATA_" + name.upper().replace("-", "_")) or f"{DATA_DIR}/{name}")


def folders() -> tuple[Path, Path]:
    """Inputs and outputs."""
    return Path(os.environ.get("PTM_INPUT_DIR", "/ptm/input")), Path(os.environ.get("PTM_OUTPUT_DIR", "/ptm/output"))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
