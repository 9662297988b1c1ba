"""What is wrong with a value that a person gave (a flag, a setting, a task file), in a line for people.

Of pydantic's, only the first complaint is told, with the place and, where it is short, the value. Not for documents of others:
what they hold reaches no terminal (`ptm.envelope.load`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from pydantic import ValidationError

from ptm.errors import UsageError

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
_SHOWN = 60


def complaint(error: ValidationError) -> str:
    """`where: what`, in one line; just `what` if it is about all of it."""
    first = error.errors(include_url=False)[0]
    place, what = [str(part) for part in first["loc"]], what_is_wrong(first["type"], first["msg"], first.get("ctx", {}))
    if first["type"] not in ("missing", "extra_forbidden") and isinstance(first["input"], str | int | float):
        shown = repr(first["input"])
        what = f"{shown} {what}" if len(shown) <= _SHOWN and shown not in what and what.startswith("is ") else what
    return ": ".join(part for part in (".".join(place), what) if part)


def unknown_member(names: Sequence[str], active: Iterable[str]) -> UsageError:
    """Names (one or more) that nobody in the roster has; the hint names the `active` members whom the first may have meant."""
    near = difflib.get_close_matches(names[0], list(active))
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return UsageError(f"{', '.join(names)}: not a member of this registry", hint=f"{meant}`ptm member list` shows the members")


def what_is_wrong(kind: str, message: str, context: dict[str, object]) -> str:
    """One of pydantic's complaints (its type, message and context), in words for people."""
    match kind:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "there is no such setting"
        case "tuple_type" | "list_type":
            return 'is not a list: put it in brackets, like ["one", "two"]'
        case "union_tag_invalid":
            return f"kind {context['tag']!r} is none of {context['expected_tags']}"
        case "string_pattern_mismatch" if context["pattern"] == NAME_PATTERN:
            return "is not a name: lower-case letters, digits and '-', at most 63, not '-' first"
        case "string_pattern_mismatch":
            return f"is not of the form {context['pattern']}"
        case _ if message.startswith("Input should be "):
            return message.replace("Input should be ", "is not ", 1).partition(",")[0] if "valid" in message else _bounds(message)
        case _:
            return message.removeprefix("Value error, ")


def _bounds(message: str) -> str:
    return message.replace("Input should be ", "has to be ", 1)
