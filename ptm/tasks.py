"""A researcher's tasks: make, put, follow, cancel.

A task is put in three steps: inputs, the researcher's own record, then a copy of the same signed bytes into every
site's queue. The record comes before the first copy, so a fan-out that was cut short can be taken up again from it,
by the task's id, without making a second task."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import Field, ValidationError

from ptm import envelope, layout
from ptm.complaint import complaint
from ptm.config import MAX_LIFETIME_S
from ptm.envelope import load, parse_json
from ptm.errors import (
    AlreadyExists,
    Malformed,
    NotFound,
    PtmError,
    StoreError,
    TooLarge,
    Unreachable,
    UsageError,
    VerificationError,
)
from ptm.image import parse_image
from ptm.model import (
    INLINE_TOTAL_BYTES,
    MAX_FILES,
    Cancel,
    Deliver,
    EnvName,
    Frozen,
    Name,
    PlainFile,
    Resources,
    Result,
    SealedFile,
    Task,
    Text,
)
from ptm.notes import Note
from ptm.registry import Registry, new_nonce, now_utc
from ptm.seal import seal_file, seal_manifest
from ptm.trust import TrustedRoster

PARALLEL = 16
"""Requests to the store at once, in a fan-out."""
_DURATION = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class TaskRequest(Frozen):
    """What a researcher asks for, before it is sealed and signed; also the shape of a task file (`ptm task put task.json`).

    `inputs` maps names to paths (relative to the task file). `expires` is a duration such as `7d`, `12h` or `90m`;
    there is no default."""

    image: str
    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    expires: str
    purpose: Text = ""
    study: Name | None = None
    command: tuple[str, ...] = ()
    env: dict[EnvName, str] = {}
    workdir: str | None = None
    inputs: dict[str, Path] = {}
    data: tuple[Name, ...] = ()
    deliver: Deliver | None = None
    resources: Resources = Resources()
    time_limit_s: int | None = None


@dataclass(frozen=True)
class PutReport:
    """Where a task arrived: `queued` sites, `finished` ones (they have a result already), and `failed` ones with the
    reason."""

    task: str
    queued: tuple[str, ...]
    finished: tuple[str, ...]
    failed: Mapping[str, PtmError]


@dataclass(frozen=True)
class SiteStatus:
    """One site's share of a task. `state` is one of the design's run states, or `not put` for a site that the fan-out
    did not reach."""

    site: str
    state: str
    reason: str | None = None


def read_request(path: Path) -> TaskRequest:
    """A task file: JSON in the shape of `TaskRequest`. Input paths in it are relative to the file."""
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}", hint="docs/format.md shows a task file") from e
    try:
        parse_json(raw)
        request = load(TaskRequest, raw)
    except VerificationError as e:
        raise UsageError(f"{path}: {e}", hint="docs/format.md shows a task file") from e
    return request.model_copy(update={"inputs": {name: path.parent / file for name, file in request.inputs.items()}})


def parse_duration(text: str) -> timedelta:
    """`90s`, `15m`, `12h`, `7d`, `2w`: at least a second, at most 366 days."""
    match = _DURATION.fullmatch(text.strip())
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= MAX_LIFETIME_S:
        raise UsageError(f"{text!r} is not a duration up to a year", hint="write it like 90m, 12h, 7d or 2w")
    return timedelta(seconds=seconds)


def put_task(registry: Registry, request: TaskRequest, inputs: Mapping[str, bytes] | None = None) -> PutReport:
    """Check, seal, sign and put a new task. `inputs` adds inputs from memory to those that the request names as files.

    Everything that can be wrong with the request is found before anything is written (`UsageError`, `NotAllowed`). A
    site that could not be reached is in the report."""
    roster = registry.roster()
    check_request(registry, roster, request)
    sources = _sources(request, inputs or {})
    created, nonce = now_utc(), new_nonce()
    task_id = envelope.task_id(created, registry.id, registry.me, nonce)
    with tempfile.TemporaryDirectory(prefix="ptm-put-") as folder:
        sealed, manifest = _seal_inputs(registry, roster, request.sites, task_id, sources, Path(folder))
        try:
            task = Task(
                registry=registry.id,
                id=task_id,
                user=registry.me,
                nonce=nonce,
                created=created,
                expires=created + parse_duration(request.expires),
                purpose=request.purpose,
                study=request.study,
                image=request.image,
                command=request.command,
                env=request.env,
                workdir=request.workdir,
                resources=request.resources,
                time_limit_s=request.time_limit_s,
                data=request.data,
                deliver=request.deliver,
                sites=request.sites,
                recipients=(registry.me,),
                inputs=sealed,
                manifest=manifest,
            )
            body = registry.sign(task)
        except (ValidationError, Malformed) as e:
            raise unfit(e) from e
        for file in sealed:
            if file.content is None:
                with (Path(folder) / f"{file.name}.age").open("rb") as cipher:
                    registry.store.upload(layout.task_input(registry.me, task_id, file.name), cipher)
    registry.store.create(layout.task(registry.me, task_id), body)
    return _fan_out(registry, task, body)


def resume_task(registry: Registry, task_id: str) -> PutReport:
    """Put a task that was recorded before into the queue of every site that has neither it nor a result yet."""
    task, _, body = registry.own_record(task_id)
    if task.expires <= now_utc():
        raise UsageError(f"task {task_id} has expired", hint="put a new task")
    return _fan_out(registry, task, body)


def cancel_task(registry: Registry, task_id: str, reason: str = "") -> PutReport:
    """Ask every site of a task that has no result yet to cancel it."""
    task, _ = registry.own_task(task_id)
    cancel = Cancel(registry=registry.id, task=task_id, user=registry.me, created=now_utc(), reason=reason)
    return _at_sites(registry, task, lambda site: registry.cancel(site, cancel))


def list_tasks(registry: Registry) -> list[Task]:
    """This member's own tasks, newest first. A record that does not verify is left out; `show` says why."""
    ids = [found[1] for info in registry.store.list(layout.tasks_of(registry.me)) if (found := layout.parse_task(info.key))]

    def read(task_id: str) -> Task | None:
        try:
            return registry.own_task(task_id)[0]
        except (VerificationError, NotFound, TooLarge):
            return None

    with ThreadPoolExecutor(PARALLEL) as pool:
        return [task for task in pool.map(read, sorted(ids, reverse=True)) if task]


def task_status(registry: Registry, task: Task, sites: Iterable[str] | None = None) -> list[SiteStatus]:
    """What each site has done with a task so far."""
    roster = registry.roster(60)
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(lambda site: _site_status(registry, roster, task, site), sites or task.sites))


def _waiting(asked: Note) -> SiteStatus:
    """A person at the site has been asked, and has not answered yet."""
    state, what = ("awaiting_approval", "approve") if asked.what == "awaiting-approval" else ("awaiting_release", "release")
    since = f"{asked.created:%Y-%m-%d %H:%M} UTC"
    return SiteStatus(asked.site, state, f"since {since}, until somebody at the site {what}s it")


def _site_status(registry: Registry, roster: TrustedRoster, task: Task, site: str) -> SiteStatus:
    """What is there of a site's. An outage is raised; an object that cannot be had is that one site's affair."""
    try:
        return _look_at(registry, roster, task, site)
    except Unreachable:
        raise
    except StoreError as e:
        return SiteStatus(site, "unverified", f"what {site} has written cannot be read: {e}")


def _look_at(registry: Registry, roster: TrustedRoster, task: Task, site: str) -> SiteStatus:
    try:
        result = registry.read(layout.result(site, task.id), Result, site, roster)
        return SiteStatus(site, result.state, result.reason)
    except NotFound:
        pass
    except VerificationError as e:
        return SiteStatus(site, "unverified", f"the result at {site} is not believed: {e}")
    record = registry.record(site, task.id, roster)
    asked = record.open()
    if asked is not None:
        return _waiting(asked)
    lacking = record.waiting_data()
    if lacking is not None:
        return SiteStatus(site, "waiting_data", f"since {lacking.created:%Y-%m-%d %H:%M} UTC: {lacking.reason}")
    if record.claimed:
        return SiteStatus(site, "running")
    if registry.exists(layout.queue(site, registry.me, task.id)):
        expired = task.expires <= now_utc()
        return SiteStatus(site, "expired" if expired else "queued", "the site did not take it up in time" if expired else None)
    try:
        refusals = registry.refusals(site, task.id, roster)
    except VerificationError as e:
        return SiteStatus(site, "unverified", f"a note at {site} is not believed: {e}")
    if refusals:
        return SiteStatus(site, "rejected", f"{refusals[-1].reason} (`ptm task put --task {task.id}` puts it back)")
    return SiteStatus(site, "not put", f"`ptm task put --task {task.id}` puts it there")


def check_request(registry: Registry, roster: TrustedRoster, request: TaskRequest) -> None:
    if registry.profile.kind != "researcher":
        raise UsageError(
            f"{registry.me} is a {registry.profile.kind}, and only a researcher may put tasks", hint="is --home the right one?"
        )
    roster.active(registry.me)
    if not request.sites:
        raise UsageError("the task names no site", hint="--site NAME, as often as needed")
    for name in request.sites:
        if roster.named(name).kind not in ("site", "party"):
            raise UsageError(f"{name} is not a site", hint="`ptm member list` shows the sites")
    if request.deliver is not None and (kind := roster.named(request.deliver.to).kind) != "party":
        raise UsageError(
            f"{request.deliver.to} is a {kind}, and only to a party outputs are delivered", hint="--deliver PARTY/COLLECTION"
        )
    parse_duration(request.expires)
    try:
        parse_image(request.image)
    except ValueError as e:
        raise UsageError(str(e), hint="--image NAME:TAG, for example myConsortium/count:1") from e


def _sources(request: TaskRequest, inputs: Mapping[str, bytes]) -> dict[str, Callable[[], BinaryIO]]:
    """How to open each input; every one is looked at before anything is written."""
    sources: dict[str, Callable[[], BinaryIO]] = {name: partial(io.BytesIO, data) for name, data in inputs.items()}
    for name, path in request.inputs.items():
        if not path.is_file():
            raise UsageError(
                f"input {path} is not there, or not a file", hint="--input takes the path of a file; pack a folder into one"
            )
        try:
            path.open("rb").close()
        except OSError as e:
            raise UsageError(f"input {path} cannot be read: {e.strerror}", hint="--input takes files that you may read") from e
        sources[name] = partial(_open, path)
    if len(sources) > MAX_FILES:
        raise UsageError(f"a task takes at most {MAX_FILES} inputs", hint="pack them into one file")
    return sources


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _seal_inputs(
    registry: Registry,
    roster: TrustedRoster,
    sites: Iterable[str],
    task_id: str,
    sources: Mapping[str, Callable[[], BinaryIO]],
    folder: Path,
) -> tuple[tuple[SealedFile, ...], str | None]:
    """Seal each input to every addressed site and to the researcher."""
    recipients = [roster.active(name).age_key for name in (*sites, registry.me)]
    plain: list[PlainFile] = []
    sealed: list[SealedFile] = []
    room = INLINE_TOTAL_BYTES
    for name, opened in sources.items():
        try:
            PlainFile(name=name, size=0, sha256="0" * 64)
        except ValidationError as e:
            raise UsageError(f"input name {name!r}: {complaint(e)}", hint="--input NAME=FILE gives it another name") from e
        with opened() as clear:
            listed, file = seal_file(clear, folder / f"{name}.age", name, recipients, room)
        plain.append(listed)
        sealed.append(file)
        room -= file.size if file.content is not None else 0
    if not sealed:
        return (), None
    return tuple(sealed), seal_manifest(registry.id, task_id, registry.me, plain, recipients)


def _fan_out(registry: Registry, task: Task, body: bytes) -> PutReport:
    def put(site: str) -> None:
        try:
            registry.store.create(layout.queue(site, registry.me, task.id), body)
        except AlreadyExists as e:
            raise StoreError(
                f"the queue of {site} holds something else under this task's id", hint="the site will refuse it; then try again"
            ) from e

    return _at_sites(registry, task, put)


def _at_sites(registry: Registry, task: Task, act: Callable[[str], None]) -> PutReport:
    """Do something at every site of a task that has no result yet, in parallel; one site's failure is not another's."""

    def one(site: str) -> bool | PtmError:
        try:
            if registry.exists(layout.result(site, task.id)):
                return False
            act(site)
        except PtmError as e:
            return e
        return True

    with ThreadPoolExecutor(PARALLEL) as pool:
        outcomes = dict(zip(task.sites, pool.map(one, task.sites), strict=True))
    return PutReport(
        task.id,
        tuple(site for site, outcome in outcomes.items() if outcome is True),
        tuple(site for site, outcome in outcomes.items() if outcome is False),
        {site: outcome for site, outcome in outcomes.items() if isinstance(outcome, PtmError)},
    )


def unfit(error: ValidationError | Malformed) -> UsageError:
    """The error for a task that cannot be."""
    problem = complaint(error) if isinstance(error, ValidationError) else str(error)
    return UsageError(f"the task is not well-formed: {problem}", hint="`ptm task put --help` has examples")
