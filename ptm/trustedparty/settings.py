"""`party.toml`: what a trusted party collects, from whom, how much of it, who may compute on it and when it goes.

Nothing is collected that is not named here. A mistake in the file is a `ConfigError` that names the file and the setting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ptm.config import Home, Megabytes, Pattern, read_toml, toml_string
from ptm.errors import AlreadyExists, ConfigError, UsageError
from ptm.files import write_atomic
from ptm.model import MAX_FILES, Frozen, Name

MEGABYTE = 1024 * 1024
Purging = Literal["used"] | Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}d$")]


class CollectionRule(Frozen):
    """One `[[collection]]`. `senders` maps each sender to patterns: every pattern has to be met by a file, and a file has to
    match one (the whole name). `purge`: after a run that completed has used it, or so many days (`30d`) after a file arrived."""

    name: Name
    researchers: tuple[Name, ...] = ()
    max_mb: Megabytes = 1024
    max_files: Annotated[int, Field(ge=1, le=MAX_FILES)] = 16
    quota_mb: Annotated[int, Field(ge=1, le=1024 * 1_048_576)] = 4096
    purge: Purging | None = None
    sealed: bool = False
    senders: Annotated[dict[Name, Annotated[tuple[Pattern, ...], Field(min_length=1)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.quota_mb < self.max_mb:
            raise ValueError("quota_mb is less than max_mb: a transfer of the allowed size would never be taken")
        if self.sealed and (self.researchers or self.purge == "used"):
            raise ValueError("a sealed collection is only passed on: nobody computes on it, so it has no researchers or use")
        return self

    @property
    def keep(self) -> timedelta | None:
        """How long a file stays, if that is limited."""
        return timedelta(days=int(self.purge[:-1])) if self.purge and self.purge != "used" else None

    def pattern_of(self, sender: str, name: str) -> str | None:
        """The first pattern of a sender's that a file name matches."""
        return next((pattern for pattern in self.senders.get(sender, ()) if re.fullmatch(pattern, name)), None)

    def missing(self, held: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """What is not there yet, in words; `held`: the names of each sender's files."""
        return tuple(
            f"{sender} has not sent {pattern}"
            for sender, patterns in self.senders.items()
            for pattern in patterns
            if not any(re.fullmatch(pattern, name) for name in held.get(sender, ()))
        )


class PartyConfig(Frozen):
    """`party.toml`. `max_pending`: transfers looked at in one poll, with the same share for each sender."""

    poll_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    min_free_mb: Annotated[int, Field(ge=0, le=1_048_576)] = 1024
    max_pending: Annotated[int, Field(ge=1, le=10_000)] = 1000
    collection: tuple[CollectionRule, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [rule.name for rule in self.collection]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"there are two collections of the name {twice}")
        return self

    def rule(self, name: str) -> CollectionRule | None:
        return next((rule for rule in self.collection if rule.name == name), None)


_FILE = """\
# What this trusted party collects. Nothing else is taken. Checked by `ptm trustedparty check`; read when
# `ptm trustedparty watch` starts. Every setting: docs/trusted-party.md.
poll_s = 5.0          # seconds between looks at the inbox; where the store can tell of changes it is quicker
min_free_mb = 1024    # of disk that is always left: a transfer that would take it waits
max_pending = 1000    # transfers looked at in one poll, with the same share for each sender
{collection}"""
_COLLECTION = """
[[collection]]
name = {name}
researchers = [{researchers}]    # who may compute on it, when it is complete; none: nobody
max_mb = 1024         # of one transfer
max_files = 16        # of one transfer
quota_mb = 4096       # of all that one sender may have here at a time
{purge}
sealed = false        # true: kept as ciphertext, to be passed on; nobody computes on it
[collection.senders]  # a file has to match one pattern in full, and every pattern has to be met by a file
{senders}
"""
_PURGE = '# purge = "used"      # goes after a run that completed has used it; or "30d": that long after a file arrived'


def load_party(home: Home) -> PartyConfig | None:
    """The party's configuration; None if this home has no `party.toml`."""
    return read_toml(home.party, PartyConfig) if home.party.exists() else None


def need_party(home: Home) -> PartyConfig:
    """The same, for who cannot do without."""
    config = load_party(home)
    if config is None:
        raise UsageError(f"there is no {home.party}", hint="`ptm trustedparty init` writes it; or is --home another one?")
    return config


def write_party_file(
    home: Home, *, name: str | None, senders: Mapping[str, Sequence[str]], researchers: Sequence[str], purge: str | None
) -> None:
    """Write the first `party.toml`, with comments, for a person to edit; without a name, its one collection is an example in a
    comment. `AlreadyExists`; `ConfigError` for what makes no valid configuration."""
    shown = _COLLECTION.format(
        name=toml_string(name or "link-2026"),
        researchers=", ".join(toml_string(who) for who in (researchers if name else ["jane"])),
        purge=f"purge = {toml_string(purge)}" if purge else _PURGE,
        senders="\n".join(
            f"{toml_string(sender)} = [{', '.join(toml_string(pattern) for pattern in patterns)}]"
            for sender, patterns in (senders if name else {"clinic": [r"diagnoses\.csv"]}).items()
        ),
    )
    if not name:
        shown = "".join(f"# {line}\n" if line else "\n" for line in shown.splitlines())
    trial = home.party.with_name(".ptm-party.toml")
    try:
        write_atomic(trial, _FILE.format(collection=shown).encode(), mode=0o600)
        try:
            read_toml(trial, PartyConfig)
        except ConfigError as e:
            raise ConfigError(str(e).replace(str(trial), home.party.name), hint=e.hint) from e
        try:
            write_atomic(home.party, trial.read_bytes(), mode=0o600, exclusive=True)
        except FileExistsError as e:
            raise AlreadyExists(f"{home.party} is there already", hint="edit it, or move it away") from e
    finally:
        trial.unlink(missing_ok=True)
