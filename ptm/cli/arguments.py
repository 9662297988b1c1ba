"""Parsing of arguments that several commands take."""

from __future__ import annotations

from ptm.errors import UsageError


def name_and_value(text: str, option: str) -> tuple[str, str]:
    """`NAME=VALUE`, neither of them empty; `UsageError` names the option."""
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise UsageError(f"{option} takes NAME=VALUE, not {text!r}")
    return name, value
