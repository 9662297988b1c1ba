"""On which line of a TOML text a setting stands, for messages. `tomllib` reads values without saying where they were.

Rule: the text has been read by `tomllib` before, so it is valid TOML 1.0, and only where things begin has to be found:
comments, strings of all four kinds and brackets are told apart, nothing is judged. A key's own spelling (quotes,
escapes, dots) is read by `tomllib` again."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

Path = tuple[str | int, ...]
Token = tuple[str, int]
_TOKEN = re.compile(
    r"""
    (?P<skip> [ \t\r]+ | \#[^\n]* )
  | (?P<token> \"\"\"(?:[^\\]|\\.)*?\"{3,5} | '''.*?'{3,5} | "(?:[^"\\\n]|\\.)*" | '[^'\n]*' | [\[\]{},=\n] | [^\s\#"'\[\]{},=]+ )
    """,
    re.VERBOSE | re.DOTALL,
)


def lines_of(text: str) -> dict[Path, int]:
    """The first line of every table, key and array element of valid TOML: `("allow", 1, "images", 0)` → 14. Tables of an
    array (`[[allow]]`) count from 0. What lies deeper inside one value has the line of what holds it: see `line_of`."""
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    for statement in _statements(text):
        words = [word for word, _ in statement]
        if words[0] == "[":
            table = _enter(_key(words), counts, of_array=words[1] == "[")
            for depth in range(1, len(table) + 1):
                lines.setdefault(table[:depth], statement[0][1])
            continue
        split = words.index("=")
        path = (*table, *_key(words[:split]))
        for depth in range(len(table) + 1, len(path) + 1):
            lines.setdefault(path[:depth], statement[0][1])
        for index, line in enumerate(_elements(statement[split + 1 :])):
            lines[(*path, index)] = line
    return lines


def line_of(path: Path, lines: dict[Path, int]) -> int:
    """The line of a setting, or of the nearest thing around it."""
    return next((lines[path[:size]] for size in range(len(path), 0, -1) if path[:size] in lines), 1)


def _tokens(text: str) -> Iterator[Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        if match["token"]:
            yield match["token"], line
        line += match[0].count("\n")


def _statements(text: str) -> Iterator[list[Token]]:
    """Headers, and keys with their values: what ends at a newline outside all brackets."""
    statement: list[Token] = []
    depth = 0
    for word, line in _tokens(text):
        if word == "\n":
            if depth == 0 and statement:
                yield statement
                statement = []
            continue
        depth += (word in ("[", "{")) - (word in ("]", "}"))
        statement.append((word, line))
    if statement:
        yield statement


def _key(words: list[str]) -> tuple[str, ...]:
    """The parts of a dotted key."""
    value: object = tomllib.loads("".join(word for word in words if word not in "[]") + " = 0")
    parts: list[str] = []
    while isinstance(value, dict):
        part, value = next(iter(value.items()))
        parts.append(part)
    return tuple(parts)


def _enter(key: tuple[str, ...], counts: dict[Path, int], *, of_array: bool) -> Path:
    """Where a header leads: through the last table of every array on the way, and into a new one for `[[…]]`."""
    path: Path = ()
    for part in key[:-1]:
        path = (*path, part)
        if path in counts:
            path = (*path, counts[path] - 1)
    path = (*path, key[-1])
    if not of_array:
        return path
    counts[path] = counts.get(path, 0) + 1
    return (*path, counts[path] - 1)


def _elements(value: list[Token]) -> Iterator[int]:
    """The line on which each element of an array begins; nothing for another value."""
    if value[0][0] != "[":
        return
    depth, expected = 0, True
    for word, line in value:
        if depth == 1 and expected and word != "]":
            yield line
            expected = False
        depth += (word in ("[", "{")) - (word in ("]", "}"))
        expected = expected or (word == "," and depth == 1)
