"""What `policy.toml` may say, as strict types: `[[allow]]` rules, each with the conditions of a match and the terms of a
run that it allows.

Rule: a condition that is absent is met by every task, with four exceptions on the safe side: without `data` a rule grants
no data source, without `env` it lets no variable be set (`PYTHONPATH` and `LD_PRELOAD` make a program another one),
without `max_gpus` it gives no GPU, and without `recipients` only the researcher who asks may receive the outputs. A rule
has to say which images it is about. Which rule decides is for `ptm.node.policy`; the file, its lines and rules that can
never decide are for `ptm.node.policyfile`. No I/O."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ptm.config import Pattern
from ptm.errors import UsageError
from ptm.model import MAX_GPUS, Frozen, ImageDigest, Name
from ptm.tasks import parse_duration

ANY = "*"
"""In `data`: every data source of node.toml. In `env`: every variable. In `recipients`: every member."""
ASKER = "@researcher"
"""In `recipients`: the researcher who asks."""
Approval = Literal["auto", "manual", "first-use"]
Release = Literal["auto", "manual"]
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


def _data_name(text: str) -> str:
    if text != ANY and not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is neither the name of a data source nor {ANY!r}")
    return text


def _variable(text: str) -> str:
    if text != ANY and not _VARIABLE.fullmatch(text):
        raise ValueError(f"{text!r} is neither the name of a variable nor {ANY!r}")
    return text


def _recipient(text: str) -> str:
    if text not in (ANY, ASKER) and not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is neither a member's name nor {ASKER!r} nor {ANY!r}")
    return text


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("a duration is written like '90m', '12h', '3d' or '2w'")
    try:
        return int(parse_duration(value).total_seconds())
    except UsageError as e:
        raise ValueError(str(e)) from None


Duration = Annotated[int, BeforeValidator(_seconds)]
Patterns = Annotated[tuple[Annotated[Pattern, Field(min_length=1, max_length=1000)], ...], Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(min_length=1)]


class OutputTerms(Frozen):
    """What may leave: file names (patterns that match the whole name), how many, how much in all, and the smallest count
    that a cell of a CSV or JSON table may show."""

    names: Patterns | None = None
    max_files: Annotated[int, Field(ge=1, le=256)] | None = None
    max_mb: Annotated[int, Field(ge=1)] | None = None
    min_cell: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class AllowRule(Frozen):
    """One `[[allow]]`. Lists mean "one of these", and all conditions have to hold together."""

    # conditions: the image
    images: Patterns | None = None
    digests: Annotated[tuple[ImageDigest, ...], Field(min_length=1)] | None = None
    require_digest: bool = False
    reviewed: bool = False
    # conditions: who asks, for what
    researchers: Names | None = None
    organisations: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = None
    studies: Names | None = None
    data: tuple[Annotated[str, AfterValidator(_data_name)], ...] = ()
    recipients: Annotated[tuple[Annotated[str, AfterValidator(_recipient)], ...], Field(min_length=1)] = (ASKER,)
    deliver: tuple[Name, ...] = ()
    # conditions: how it is run
    commands: Patterns | None = None
    env: tuple[Annotated[str, AfterValidator(_variable)], ...] = ()
    max_cpu_cores: Annotated[int, Field(ge=1, le=1024)] | None = None
    max_ram_gb: Annotated[float, Field(gt=0, le=65536, allow_inf_nan=False)] | None = None
    max_disk_gb: Annotated[float, Field(gt=0, le=1048576, allow_inf_nan=False)] | None = None
    max_gpus: Annotated[int, Field(ge=0, le=MAX_GPUS)] = 0
    max_time: Duration | None = None
    # terms
    runs_per_day: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    approval: Approval = "auto"
    approval_timeout: Duration | None = None
    release: Release = "auto"
    release_timeout: Duration | None = None
    logs: bool | None = None
    outputs: OutputTerms = OutputTerms()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.images is None and self.digests is None and not self.reviewed:
            raise ValueError("a rule says which images it is about: images, digests, or reviewed = true")
        if self.approval_timeout is not None and self.approval == "auto":
            raise ValueError("approval_timeout means nothing with approval = 'auto'")
        if self.deliver and self.release == "auto" and self.outputs.names is None:
            raise ValueError(
                "deliver with release = 'auto' needs outputs.names: the researcher sees the names of what is delivered,"
                " and an image could write data into them"
            )
        if self.release_timeout is not None and self.release == "auto":
            raise ValueError("release_timeout means nothing with release = 'auto'")
        return self


class Policy(Frozen):
    """`policy.toml`: what this site allows. Empty allows nothing."""

    allow: tuple[AllowRule, ...] = ()


def has_budget(policy: Policy) -> bool:
    """Whether any rule counts runs."""
    return any(rule.runs_per_day is not None for rule in policy.allow)
