"""Looks at what a run left, before it may leave: how many files, how large, how named, and the smallest count in tables.

`min_cell` guards against slips, not against an image that wants to smuggle. It errs on the side of a finding: every whole
number from 1 to below the smallest allowed counts as a cell of a table, whatever its column is called (so write tables
without a running index), in CSV, TSV, JSON and JSON lines; a file of any other kind has a finding, for nobody looked into it.
A zero is no finding. The log is text and is not looked into; `logs = false` keeps it.

Constant memory but for JSON, of which a file above `MAX_JSON_BYTES` is a finding by itself. Nothing in a file can make this
raise."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ptm.model import LOG_NAME
from ptm.node.outputs import MIB, shown
from ptm.node.policy import matches
from ptm.node.terms import Finding, Terms

MAX_JSON_BYTES = 32 * MIB
MAX_FINDINGS = 50
"""Enough for a person to see what is wrong; the rest is only counted."""
MAX_DEPTH = 100
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d{1,40},\d{1,40}\s*", re.ASCII)
_NUMBER = re.compile(r"\s*[+]?\d{1,40}(?:\.\d{0,40})?(?:[eE][+-]?\d{1,2})?\s*", re.ASCII)
_DELIMITERS = ",;\t|"
Cells = Iterator[tuple[str, object]]
"""Where in a file, and what stands there."""


def check_outputs(paths: Iterable[Path], terms: Terms) -> tuple[Finding, ...]:
    """What the run's terms have against these files; empty if nothing. The log is left out."""
    files = sorted(path for path in paths if path.name != LOG_NAME)
    found = [*_together(files, terms)]
    for path in files:
        if terms.names and not matches(terms.names, path.name):
            found.append(Finding(rule="names", file=_name(path), text="the policy allows no file of this name"))
        if terms.min_cell is not None:
            found += _small_cells(path, terms.min_cell)
    if len(found) > MAX_FINDINGS:
        rest = len(found) - MAX_FINDINGS
        found = [*found[:MAX_FINDINGS], Finding(rule=found[MAX_FINDINGS].rule, text=f"and {rest} more finding(s)")]
    return tuple(found)


def for_the_researcher(findings: Iterable[Finding], terms: Terms) -> str:
    """Why the outputs may not leave, in words that tell nothing of what is in them."""
    words = {
        "files": f"there are more than {terms.max_files} files",
        "size": f"they have more than {terms.max_mb} MB",
        "names": "a file is not named as the site's policy wants it",
        "min_cell": f"a table shows a count below {terms.min_cell}, or a file is none that can be checked for that",
    }
    rules = dict.fromkeys(finding.rule for finding in findings)
    return "the outputs may not leave: " + "; ".join(words[rule] for rule in rules)


def _together(files: list[Path], terms: Terms) -> Iterator[Finding]:
    if len(files) > terms.max_files:
        yield Finding(rule="files", text=f"{len(files)} files, and the policy allows {terms.max_files}")
    total = sum(path.stat().st_size for path in files)
    if total > terms.max_mb * MIB:
        yield Finding(rule="size", text=f"{total} bytes, and the policy allows {terms.max_mb} MB")


def _small_cells(path: Path, least: int) -> list[Finding]:
    """One finding for a file: its first small count, and how many there are."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        return [_finding(path, "is neither CSV nor JSON, so its counts were not checked")]
    first, count = "", 0
    try:
        for where, value in reader(path):
            number = _whole(value)
            if number is not None and 0 < number < least:
                first = first or f"{where} has {number}"
                count += 1
    except (ValueError, csv.Error, RecursionError, OSError) as e:
        return [
            _finding(path, f"cannot be read as {path.suffix[1:].upper()}, so its counts were not checked ({type(e).__name__})")
        ]
    if not count:
        return []
    more = f", and {count - 1} more such cell(s)" if count > 1 else ""
    return [_finding(path, f"{first}, below {least}{more}")]


def _finding(path: Path, text: str) -> Finding:
    return Finding(rule="min_cell", file=_name(path), text=text[:500])


def _name(path: Path) -> str:
    return path.name if path.name.isprintable() else shown(path.name)


def _whole(value: object) -> int | None:
    """A whole number, however it is written."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return None
    number = float(value)
    return int(number) if number.is_integer() else None


def _csv(path: Path) -> Cells:
    """Every cell, and what stands in it between the other delimiters: a title above the table can hide which one it uses. If the
    first line has none, blanks are one as well."""
    with path.open(encoding="utf-8-sig", errors="strict", newline="") as file:
        start = file.readline(64 * 1024)
        file.seek(0)
        delimiter = max(_DELIMITERS, key=start.count)
        for row, cells in enumerate(csv.reader(file, delimiter=delimiter), 1):
            for column, cell in enumerate(cells, 1):
                if "\0" in cell:
                    raise ValueError("not text")
                for part in _parts(cell) if delimiter in start else re.split(r"[\s,;|]+", cell):
                    yield f"row {row}, column {column}", part.strip("\"' ")


def _parts(cell: str) -> list[str]:
    if _DECIMAL_COMMA.fullmatch(cell):
        return [cell.replace(",", ".")]
    return re.split("[,;\t|]", cell)


def _json(path: Path) -> Cells:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError("too large")
    yield from _inside(json.loads(path.read_bytes(), object_pairs_hook=_Pairs), "", 0)


def _json_lines(path: Path) -> Cells:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_JSON_BYTES + 1), b""), 1):
            if len(line) > MAX_JSON_BYTES:
                raise ValueError("too large")
            if line.strip():
                yield from _inside(json.loads(line, object_pairs_hook=_Pairs), f"line {number}", 0)


class _Pairs(list[tuple[str, object]]):
    """An object of JSON as it is written: a name that stands in it twice has two values."""


def _inside(value: object, where: str, depth: int) -> Cells:
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    if isinstance(value, _Pairs):
        for key, below in value:
            yield from _inside(below, f"{where}.{shown(key)[1:-1]}"[:200], depth + 1)
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _inside(below, f"{where}[{index}]"[:200], depth + 1)
    else:
        yield where.removeprefix(".") or "the file", value


_READERS: dict[str, Callable[[Path], Cells]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
