"""Is there a text on which a steward's regular expression takes for ever? A researcher chooses image names, commands and file
names, and Python's `re` cannot be stopped: one `(a+)+` would hold up the whole node.

Each repetition of a pattern gives a few hostile texts, as long as what the pattern is asked about may be: what leads up to the
repetition, the repetition many times over, and an end that does not match. A process of its own tries them with a limit on its
CPU time (so a busy machine makes no difference). This finds nested repetitions, overlapping alternatives, and three or more
repetitions in a row that can share out the same text; that it finds everything is not promised."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from re import _parser as parser  # type: ignore[attr-defined]  # the only way to a pattern's parts; a test holds it to what is used
from typing import Any

CPU_S = 2
"""How long one text may take, of CPU time; rounded down to between one second and this."""
MAX_TEXTS = 40
MAX_VARIANTS = 4
MANY = 10
"""A repetition up to this often is none that can take for ever by itself."""
ENDS = ("\n", "\0")
_LIKELY = "a0A-_./:=, "
_CATEGORIES = {"DIGIT": r"\d", "NOT_DIGIT": r"\D", "SPACE": r"\s", "NOT_SPACE": r"\S", "WORD": r"\w", "NOT_WORD": r"\W"}
_REPEATS = {"MAX_REPEAT", "MIN_REPEAT"}
_TRIAL = """
import json, re, resource, sys, time
hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
for number, (pattern, texts) in enumerate(json.load(sys.stdin)):
    print(number, flush=True)
    for text in texts:
        most = int(time.process_time()) + int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_CPU, (most if hard < 0 else min(most, hard), hard))
        re.fullmatch(pattern, text)
"""
_fine: set[tuple[str, int]] = set()
"""What was tried in this process before, and took no time."""


def first_slow(patterns: list[tuple[str, int]]) -> int | None:
    """The first of these (pattern, longest text it is asked about) that can take for ever, by its place in the list. `OSError`
    if they cannot be tried."""
    trials = [(place, hostile_texts(*asked)) for place, asked in enumerate(patterns) if asked not in _fine]
    trials = [(place, texts) for place, texts in trials if texts]
    if trials:
        given = json.dumps([(patterns[place][0], texts) for place, texts in trials])
        tried = _run(given)
        if tried is not None:
            return trials[tried][0]
    _fine.update(patterns)
    return None


def hostile_texts(pattern: str, length: int) -> list[str]:
    """Texts on which a pattern with a weakness takes long. None for one with a single repetition and no choice in it: it has no
    such weakness."""
    tree = parser.parse(pattern)
    repeated = list(_repetitions(tree))
    if len(repeated) < 2 and not any(_has_choice(value[2]) for value in repeated):
        return []
    pumps = [(before, pump) for before, pump in islice(_pumps(tree, ""), MAX_TEXTS) if pump]
    shared = [(pumps[0][0], char) for char, _ in Counter(_literals(tree)).most_common(MAX_VARIANTS) if pumps]
    texts = [(before + pump * length)[: length - 1] for before, pump in dict.fromkeys(pumps + shared)]
    return [text + end for text in texts for end in ENDS]


def _run(given: str) -> int | None:
    """Which trial did not come to its end. The limit ends the process, so it needs no clock of ours."""
    command = [sys.executable, "-I", "-S", "-c", _TRIAL, str(CPU_S)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    if not done.stdout:
        raise OSError(0, "the patterns could not be tried")
    return int(done.stdout.split()[-1])


def _repetitions(tree: Any) -> Iterator[Any]:
    for op, value in tree:
        if str(op) in _REPEATS and value[1] > MANY:
            yield value
        for part in _parts(str(op), value):
            yield from _repetitions(part)


def _has_choice(tree: Any) -> bool:
    return any(str(op) == "BRANCH" or any(_has_choice(part) for part in _parts(str(op), value)) for op, value in tree)


def _literals(tree: Any) -> Iterator[str]:
    """The characters that a pattern spells out: what several `.*` in a row are parted by."""
    for op, value in tree:
        if str(op) == "LITERAL":
            yield chr(value)
        for part in _parts(str(op), value):
            yield from _literals(part)


def _pumps(tree: Any, before: str) -> Iterator[tuple[str, str]]:
    """(what leads up to a repetition, what it repeats) for every repetition, from the outside in."""
    for op, value in tree:
        parts = _parts(str(op), value)
        if str(op) in _REPEATS and value[1] > MANY:
            yield from ((before, pump) for pump in _samples(value[2]))
        for part in parts:
            yield from _pumps(part, before)
        before += next(iter(_sample(str(op), value)), "")


def _parts(op: str, value: Any) -> list[Any]:
    """The patterns inside one part of a pattern."""
    if op in _REPEATS or op == "POSSESSIVE_REPEAT":
        return [value[2]]
    if op == "BRANCH":
        return list(value[1])
    if op == "SUBPATTERN":
        return [value[3]]
    if op == "ATOMIC_GROUP":
        return [value]
    return [value[1]] if op in ("ASSERT", "ASSERT_NOT") else []


def _samples(tree: Any) -> list[str]:
    """A few short texts that a pattern matches, near enough."""
    found = [""]
    for op, value in tree:
        more = _sample(str(op), value) or [""]
        found = [head + tail for head in found for tail in more][:MAX_VARIANTS]
    return found


def _sample(op: str, value: Any) -> list[str]:
    if op == "LITERAL":
        return [chr(value)]
    if op in ("ANY", "NOT_LITERAL"):
        return [next(c for c in _LIKELY if op == "ANY" or ord(c) != value)]
    if op == "IN":
        return [next((c for c in [*_LIKELY, *_named(value)] if _is_in(c, value)), "a")]
    if op in _REPEATS or op == "POSSESSIVE_REPEAT":
        return [sample * max(1, min(value[0], MANY)) for sample in _samples(value[2])]
    if op == "BRANCH":
        return [sample for part in value[1] for sample in _samples(part)[:2]][:MAX_VARIANTS]
    if op in ("SUBPATTERN", "ATOMIC_GROUP"):
        return _samples(_parts(op, value)[0])
    return [""]


def _named(members: Any) -> Iterator[str]:
    """The characters that a class like `[x-z%]` names."""
    for op, value in members:
        if str(op) in ("LITERAL", "RANGE"):
            yield chr(value if str(op) == "LITERAL" else value[0])


def _is_in(char: str, members: Any) -> bool:
    found = negated = False
    for op, value in members:
        name = str(op)
        negated = negated or name == "NEGATE"
        found = found or (
            (name == "LITERAL" and value == ord(char))
            or (name == "RANGE" and value[0] <= ord(char) <= value[1])
            or (name == "CATEGORY" and re.match(_CATEGORIES[str(value).removeprefix("CATEGORY_")], char) is not None)
        )
    return found is not negated
