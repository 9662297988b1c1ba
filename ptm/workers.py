"""What the workers of a site tell each other through the registry: who runs which task, who is alive, and how many runs a
researcher has had today.

All signed with the site's key, and read by its own workers only (a heartbeat also by who checks an audit log). No I/O:
`ptm.registry` and `ptm.node` write and read them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ptm.model import MAX_FILES, Document, Name, Nonce, Sha256, Time, Ulid

MAX_DAY_RUNS = 1_000_000


class Claim(Document):
    """A worker's write-once statement that it runs a task. An economy, not a safety: `result.json` decides."""

    TYPE: ClassVar[str] = "ptm/claim@1"

    type: Literal["ptm/claim@1"] = "ptm/claim@1"
    task: Ulid
    task_sha256: Sha256
    site: Name
    worker: Name
    epoch: Annotated[int, Field(ge=1, le=9999)]
    nonce: Nonce
    created: Time


class Heartbeat(Document):
    """`beat` counts up while the worker lives; readers compare it with what they saw before, on their own clock, and
    never compare `created`."""

    TYPE: ClassVar[str] = "ptm/worker@1"

    type: Literal["ptm/worker@1"] = "ptm/worker@1"
    site: Name
    worker: Name
    session: Nonce
    beat: Annotated[int, Field(ge=0, le=2**53 - 1)]
    stopped: bool = False
    running: Annotated[tuple[Ulid, ...], Field(max_length=MAX_FILES)] = ()
    version: Annotated[str, Field(max_length=40)]
    audit_head: Sha256 | None = None
    created: Time


class DayRun(Document):
    """A run of one researcher that the site accepted on `day` (UTC), the `number`th of that day (`runs_per_day` in a policy).

    Write-once under its number, so two workers never count two runs as one."""

    TYPE: ClassVar[str] = "ptm/day-run@1"

    type: Literal["ptm/day-run@1"] = "ptm/day-run@1"
    site: Name
    user: Name
    day: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$", examples=["2026-11-22"])]
    number: Annotated[int, Field(ge=1, le=MAX_DAY_RUNS)]
    task: Ulid
    worker: Name
    nonce: Nonce
    created: Time
