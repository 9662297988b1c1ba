"""Reads `policy.toml`, says on which line a mistake is, and keeps the last good policy while the node runs.

Mistakes are `ConfigError`s with line and hint: no TOML, an unknown key, a bad value or expression, a pattern that can
match no image's name, a pattern that takes for ever on some text, and a rule that can never decide because one above it
matches all that it matches. That is found rule by rule (identical or wider conditions); a rule that only several others
together hide is not found."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ptm.complaint import what_is_wrong
from ptm.config import MAX_TOML_BYTES
from ptm.errors import ConfigError
from ptm.node.patterns import first_slow
from ptm.node.policy import MAX_COMMAND, LoadedPolicy
from ptm.node.rules import ANY, AllowRule, OutputTerms, Policy
from ptm.node.tomllines import line_of, lines_of

MAX_IMAGE, MAX_NAME = 400, 200
"""The longest image name and the longest file name (`ptm.model`)."""
SETTLE_S = 1.0
"""A changed file is read when it has not changed again for so long: an editor may be in the middle of writing it."""
_ANY_IMAGE = {".*", ".+", ".*:.*", ".+:.+", "(?s).*"}
_LITERAL = re.compile(r"(?:[A-Za-z0-9_/:@-]|\\[^A-Za-z0-9])+", re.ASCII)
_KEYS = "docs/policy.md lists the keys of a rule"
_GPUS = "max_gpus = 1 lets a task ask for one GPU; without it none"
_HINTS = {
    "gpu": _GPUS,
    "gpus": _GPUS,
    "max_gpu": _GPUS,
    "min_cell": "the rules for outputs go into outputs = { … }",
    "max_files": "the rules for outputs go into outputs = { … }",
    "max_mb": "the rules for outputs go into outputs = { … }",
}
log = logging.getLogger("ptm.node")


class PolicyFile:
    """One `policy.toml`. Safe to use from several threads; `reload` also from a signal handler."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._asked = False
        self._good: LoadedPolicy | None = None
        self._read: tuple[int, ...] | None = None
        self._changed: tuple[tuple[int, ...] | None, float] | None = None

    def load(self) -> LoadedPolicy:
        """The file as it is now. `ConfigError` names the line."""
        try:
            with self.path.open("rb") as file:
                raw = file.read(MAX_TOML_BYTES + 1)
        except FileNotFoundError as e:
            raise ConfigError(f"there is no {self.path}", hint="`ptm node init` writes the files of a node") from e
        except OSError as e:
            raise ConfigError(f"{self.path} cannot be read: {e.strerror}") from e
        return read_policy(raw, str(self.path))

    def current(self) -> LoadedPolicy:
        """The policy that counts: the file's, or the last good one while the file has a mistake, which is logged once.

        Only the first call can raise (`ConfigError`): there is no good one before it."""
        with self._lock:
            now = self._stamp()
            if self._good is None:
                self._good, self._read = self.load(), now
            elif self._asked or self._settled(now):
                self._asked = False
                self._take(self._good, now)
            return self._good

    def reload(self) -> None:
        """Read the file again at the next `current`, changed or not (SIGHUP)."""
        self._asked = True

    def _take(self, good: LoadedPolicy, now: tuple[int, ...] | None) -> None:
        self._read, self._changed = now, None
        try:
            found = self.load()
        except ConfigError as e:
            log.error("%s (%s); the policy %.12s stays in force", e, e.hint or _KEYS, good.sha256)
            return
        if found.sha256 != good.sha256:
            log.info("policy %.12s is in force now, with %d rule(s)", found.sha256, len(found.policy.allow))
        self._good = found

    def _stamp(self) -> tuple[int, ...] | None:
        """What tells one state of the file from another without reading it; None if it is away."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _settled(self, now: tuple[int, ...] | None) -> bool:
        """The file is another than the one that was read, and has been so for a while."""
        if now == self._read:
            self._changed = None
            return False
        if self._changed is None or self._changed[0] != now:
            self._changed = (now, self._clock())
        return self._clock() - self._changed[1] >= SETTLE_S


def read_policy(raw: bytes, name: str) -> LoadedPolicy:
    """The policy in a file's bytes; `name` is what messages call the file."""
    if len(raw) > MAX_TOML_BYTES:
        raise ConfigError(f"{name} has more than {MAX_TOML_BYTES} bytes", hint="a policy is a page or two")
    try:
        text = raw.decode("utf-8")
        table = tomllib.loads(text)
    except UnicodeDecodeError as e:
        raise ConfigError(f"{name}: line {raw[: e.start].count(10) + 1}: not UTF-8", hint="save the file as UTF-8") from e
    except tomllib.TOMLDecodeError as e:
        raise _not_toml(e, name, text) from e
    except RecursionError as e:
        raise ConfigError(f"{name}: nested too deeply", hint=_KEYS) from e
    lines = lines_of(text)
    try:
        policy = Policy.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as e:
        errors = e.errors(include_url=False, include_input=False)
        first = min(errors, key=lambda error: line_of(error["loc"], lines))
        raise _mistake(first, name, line_of(first["loc"], lines)) from e
    loaded = LoadedPolicy(
        policy,
        hashlib.sha256(raw).hexdigest(),
        tuple(line_of(("allow", index), lines) for index in range(len(policy.allow))),
    )
    _check_patterns(policy, name, lines)
    _check_reach(loaded, name)
    _check_speed(policy, name, lines)
    return loaded


def covers(upper: AllowRule, lower: AllowRule) -> bool:
    """Whatever matches the lower rule matches the upper one too. False where that cannot be told."""
    if not _covers_images(upper.images, lower.images) or not _within(lower.digests, upper.digests):
        return False
    if upper.require_digest and not (lower.require_digest or lower.reviewed or lower.digests):
        return False
    if upper.reviewed and not lower.reviewed:
        return False
    for field in ("researchers", "organisations", "studies", "commands"):
        if not _within(getattr(lower, field), getattr(upper, field)):
            return False
    for field in ("data", "recipients", "env"):
        if ANY not in getattr(upper, field) and not set(getattr(lower, field)) <= set(getattr(upper, field)):
            return False
    if bool(upper.deliver) != bool(lower.deliver) or not set(lower.deliver) <= set(upper.deliver):
        return False
    for field in ("max_cpu_cores", "max_ram_gb", "max_disk_gb", "max_time"):
        above, below = getattr(upper, field), getattr(lower, field)
        if above is not None and (below is None or below > above):
            return False
    return lower.max_gpus <= upper.max_gpus


def _within(narrow: tuple[str, ...] | None, wide: tuple[str, ...] | None) -> bool:
    return wide is None or (narrow is not None and set(narrow) <= set(wide))


def _covers_images(upper: tuple[str, ...] | None, lower: tuple[str, ...] | None) -> bool:
    if upper is None or any(pattern in _ANY_IMAGE for pattern in upper):
        return True
    return lower is not None and all(pattern in upper or _matches_literal(upper, pattern) for pattern in lower)


def _matches_literal(patterns: tuple[str, ...], text: str) -> bool:
    """The text is a pattern that matches one name only, and one of these patterns matches that."""
    if not _LITERAL.fullmatch(text):
        return False
    name = re.sub(r"\\(.)", r"\1", text)
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _check_reach(loaded: LoadedPolicy, name: str) -> None:
    for index, rule in enumerate(loaded.policy.allow):
        for above in range(index):
            if covers(loaded.policy.allow[above], rule):
                raise ConfigError(
                    f"{name}: line {loaded.lines[index]}: rule {index + 1} can never decide: rule {above + 1}"
                    f" (line {loaded.lines[above]}) matches all that it matches",
                    hint="the first match wins: put the narrower rule first, or take this one out",
                )


def _check_patterns(policy: Policy, name: str, lines: dict[tuple[str | int, ...], int]) -> None:
    """A name without a tag has `:latest`, and one without both has neither: a literal pattern needs a colon."""
    for index, rule in enumerate(policy.allow):
        for place, pattern in enumerate(rule.images or ()):
            if _LITERAL.fullmatch(pattern) and ":" not in pattern:
                line = line_of(("allow", index, "images", place), lines)
                raise ConfigError(
                    f"{name}: line {line}: {pattern!r} can match no image: the whole name has a tag",
                    hint=f"for every tag write '{pattern}:.*'",
                )


def _check_speed(policy: Policy, name: str, lines: dict[tuple[str | int, ...], int]) -> None:
    """No pattern may hold up the node, whatever a researcher calls an image, a command or a file."""
    asked: list[tuple[str, int]] = []
    places: list[tuple[str | int, ...]] = []
    for index, rule in enumerate(policy.allow):
        for key, patterns, length in (
            (("images",), rule.images, MAX_IMAGE),
            (("commands",), rule.commands, MAX_COMMAND),
            (("outputs", "names"), rule.outputs.names, MAX_NAME),
        ):
            asked += [(pattern, length) for pattern in patterns or ()]
            places += [("allow", index, *key, place) for place in range(len(patterns or ()))]
    try:
        slow = first_slow(asked)
    except OSError as e:
        raise ConfigError(
            f"{name}: its patterns cannot be tried: {e.strerror}", hint="look at the machine, then try again"
        ) from e
    if slow is not None:
        raise ConfigError(
            f"{name}: line {line_of(places[slow], lines)}: {asked[slow][0]!r} would take for ever on some text",
            hint="write no repetition inside a repetition, as in (a+)+, and [^/]* for all but one of several .* in a row",
        )


def _mistake(error: ErrorDetails, name: str, line: int) -> ConfigError:
    where = [part for part in error["loc"] if isinstance(part, str)]
    key = where[-1] if where else ""
    if error["type"] == "extra_forbidden":
        known = Policy if len(error["loc"]) == 1 else OutputTerms if "outputs" in where[:-1] else AllowRule
        near = difflib.get_close_matches(key, known.model_fields, 1)
        hint = _HINTS.get(key) or (f"did you mean {near[0]}?" if near else _KEYS)
        return ConfigError(f"{name}: line {line}: unknown key {key}", hint=hint)
    said = what_is_wrong(error["type"], error["msg"], error.get("ctx", {}))
    hint = "quote it in single quotes, so that a backslash is a backslash" if "regular expression" in said else _KEYS
    return ConfigError(f"{name}: line {line}: {key + ': ' if key != 'allow' else ''}{said}", hint=hint)


def _not_toml(error: tomllib.TOMLDecodeError, name: str, text: str) -> ConfigError:
    """tomllib ends its messages with "(at line 3, column 5)" or "(at end of document)"."""
    said, _, place = str(error).rpartition(" (at ")
    match = re.match(r"line (\d+)", place)
    line = int(match[1]) if match else max(1, len(text.splitlines()))
    return ConfigError(f"{name}: line {line}: {said or error}", hint="the file is TOML, https://toml.io")
