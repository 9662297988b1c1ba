"""What would the policy say to this task? For a steward who edits `policy.toml`, before any such task has come.

Rule: nothing is believed here and nothing is done. A signed task is taken as it stands, its signature unchecked: the
answer is about the policy, not about the task. Also finds names in a policy that the roster has not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ptm import envelope
from ptm.config import NodeConfig
from ptm.envelope import load, parse_json
from ptm.errors import UsageError, VerificationError
from ptm.model import Task
from ptm.node.policy import Allowed, LoadedPolicy, Refused, RuleTrial, Usage, decide, trials
from ptm.node.rules import ANY, ASKER
from ptm.node.verify import VerifiedTask
from ptm.registry import now_utc
from ptm.tasks import parse_duration, read_request, unfit
from ptm.trust import TrustedRoster

_NOBODY = {"registry": "00000000-0000-0000-0000-000000000000", "id": "0" * 26, "nonce": "0" * 32}


@dataclass(frozen=True)
class Trial:
    """The decision, and every rule with what of the task it does not allow."""

    task: Task
    decision: Allowed | Refused
    rules: tuple[RuleTrial, ...]


def try_policy(
    task: Task, organisation: str, loaded: LoadedPolicy, config: NodeConfig, usage: Usage, reviewed: frozenset[str]
) -> Trial:
    """Decide as a node would, and tell for every rule why it does not match."""
    verified = VerifiedTask(task, "0" * 64, organisation)
    return Trial(task, decide(verified, loaded, config, usage, reviewed), trials(verified, loaded, reviewed))


def read_task(path: Path, user: str | None) -> Task:
    """A signed `task.json`, or a plain task file as `ptm task put` takes it; `user` is who asks, and has to be given for a
    plain one. `UsageError` for anything else."""
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}") from e
    try:
        outer = parse_json(raw)
        if isinstance(outer, dict) and "signed" in outer:
            task = load(Task, envelope.parse(raw).canonical)
            return task if user is None else _as({**task.model_dump(), "recipients": _swapped(task, user)}, user)
    except VerificationError as e:
        raise UsageError(f"{path}: {e}", hint="give a signed task.json or a task file (docs/format.md)") from e
    if user is None:
        raise UsageError(f"{path} is not signed, so it does not say who asks", hint="--user NAME")
    request = read_request(path)
    created = now_utc()
    asked = request.model_dump(exclude={"inputs", "expires"}, exclude_none=True)
    return _as({**_NOBODY, **asked, "created": created, "expires": created + parse_duration(request.expires)}, user)


def names_organisations(loaded: LoadedPolicy) -> bool:
    return any(rule.organisations for rule in loaded.policy.allow)


def names_reviewed(loaded: LoadedPolicy) -> bool:
    return any(rule.reviewed for rule in loaded.policy.allow)


def strangers(loaded: LoadedPolicy, roster: TrustedRoster) -> Iterator[tuple[str, str]]:
    """(rule, name) of every researcher, recipient, party and organisation that no member of the roster is: a slip of the pen, or
    somebody who is still to be admitted."""
    members = [member for member in roster.roster.members if member.revoked is None]
    names = {member.name for member in members} | {ANY, ASKER}
    organisations = {member.organisation for member in members}
    for index, rule in enumerate(loaded.policy.allow):
        asked = {*(rule.researchers or ()), *rule.recipients, *rule.deliver} - names
        for stranger in sorted(asked | (set(rule.organisations or ()) - organisations)):
            yield loaded.name_of(index), stranger


def _as(values: dict[str, object], user: str) -> Task:
    """A task as this user would have put it: inputs left out, for no rule looks at them."""
    kept = {name: value for name, value in values.items() if name not in ("inputs", "manifest")}
    try:
        return Task.model_validate({"recipients": (user,), **kept, "user": user})
    except ValidationError as e:
        raise unfit(e) from e


def _swapped(task: Task, user: str) -> tuple[str, ...]:
    """The task's recipients with another user in the place of its own."""
    return tuple(dict.fromkeys(user if name == task.user else name for name in task.recipients))
