"""May this verified task run at this site? Pure: a task, the site's policy, its configuration, what this researcher has
used and what was reviewed in; `Allowed` or `Refused` out.

Rules are read top to bottom. The first whose conditions all hold decides, no match refuses, and an empty policy allows
nothing. The rule that decides may still refuse (the day's runs are used up, or node.toml has no such data source or
gives less): no rule below it is asked then. So a rule added below never changes what an earlier one decided.

Not here: looking up what was used or reviewed, waiting for people, and checking outputs. They act on what `Allowed`
says."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from ptm.config import DataSource, Limits, NodeConfig
from ptm.image import ImageRef, parse_image
from ptm.model import Resources, Task
from ptm.node.rules import ANY, ASKER, AllowRule, Approval, Policy, Release
from ptm.node.verify import VerifiedTask

MAX_REASON = 1500
"""A reason is cut here, so that it fits into a result whatever was asked for."""
MAX_COMMAND = 4096
"""A longer command, written as for a shell, matches no pattern."""
_RESOURCES = (("cpu_cores", "CPU cores"), ("ram_gb", "GB of memory"), ("disk_gb", "GB of disk"))


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy, the SHA-256 of the file that said so, and each rule's line in it (none for a policy made in memory)."""

    policy: Policy
    sha256: str
    lines: tuple[int, ...] = ()

    def name_of(self, index: int) -> str:
        """How people and results call a rule: `rule 2, line 14 of policy.toml`."""
        line = f", line {self.lines[index]}" if index < len(self.lines) else ""
        return f"rule {index + 1}{line} of policy.toml"


@dataclass(frozen=True)
class Usage:
    """What this researcher has had at this site today (UTC): runs that were accepted, however they ended."""

    runs_today: int = 0


@dataclass(frozen=True)
class OutputRules:
    """What may leave. `names`: patterns of which one has to match the whole name; none given: any name."""

    max_files: int
    max_mb: int
    names: tuple[str, ...] = ()
    min_cell: int | None = None


@dataclass(frozen=True)
class Allowed:
    """What the run gets: its image, its limits (never above the site's), the data sources it was granted, and the terms
    of the rule that allowed it."""

    image: ImageRef
    limits: Limits
    data: dict[str, DataSource]
    rule: str
    policy_sha256: str
    approval: Approval
    approval_timeout_s: int | None
    release: Release
    release_timeout_s: int | None
    logs: bool
    outputs: OutputRules
    reviewed: bool
    require_digest: bool
    gpus: int = 0


@dataclass(frozen=True)
class Refused:
    """`rule` is the one that matched and refused all the same, or None if none matched."""

    reason: str
    hint: str
    policy_sha256: str
    rule: str | None = None


@dataclass(frozen=True)
class RuleTrial:
    """One rule against one task: what of the task the rule does not allow, in words; nothing: it matches."""

    rule: str
    misses: tuple[str, ...]


def decide(
    verified: VerifiedTask, loaded: LoadedPolicy, config: NodeConfig, usage: Usage, reviewed: frozenset[str]
) -> Allowed | Refused:
    """`reviewed`: the digests (`sha256:…`) of the registry's reviewed algorithms."""
    nearest: list[str] | None = None
    for index, rule in enumerate(loaded.policy.allow):
        found = misses(rule, verified, reviewed)
        if not found:
            return _grant(index, rule, verified.task, loaded, config, usage)
        if nearest is None or _distance(found) < _distance(nearest):
            nearest = found
    what = "; nor ".join(nearest or [f"the image {parse_image(verified.task.image).label}"])[:MAX_REASON]
    return Refused(f"the site's policy does not allow {what}", "ask the site to add it to its policy.toml", loaded.sha256)


def trials(verified: VerifiedTask, loaded: LoadedPolicy, reviewed: frozenset[str]) -> tuple[RuleTrial, ...]:
    """Every rule against one task, for people to see which rule decides and why the others do not."""
    return tuple(
        RuleTrial(loaded.name_of(index), tuple(misses(rule, verified, reviewed)))
        for index, rule in enumerate(loaded.policy.allow)
    )


def misses(rule: AllowRule, verified: VerifiedTask, reviewed: frozenset[str]) -> list[str]:
    """What of this task the rule does not allow, each fit to follow "does not allow"; empty if the rule matches.

    The words go to the researcher, so they tell what was asked for and never what else the rule would take."""
    task = verified.task
    return [*_image_misses(rule, task, reviewed), *_person_misses(rule, verified), *_run_misses(rule, task)]


def matches(patterns: tuple[str, ...], text: str) -> bool:
    """One of the patterns matches the whole text."""
    return any(re.fullmatch(pattern, text) for pattern in patterns)


def command_line(task: Task) -> str:
    """A task's command as a shell would be given it, so that one argument with a space differs from two."""
    return shlex.join(task.command)


def run_limits(task: Task, config: NodeConfig, rule: AllowRule | None = None) -> Limits:
    """What this run gets: what it asked for, never above the site's and the rule's limits, which are also what it gets
    where it did not ask. (GPUs are no limit: a run has those that it asked for, or is refused.)"""
    limits = _narrowed(config.limits, rule) if rule else config.limits
    asked = {name: value for name, _ in _RESOURCES if (value := getattr(task.resources, name)) is not None}
    if task.time_limit_s is not None:
        asked["time_s"] = task.time_limit_s
    return limits.model_copy(update={name: min(value, getattr(limits, name)) for name, value in asked.items()})


def _listed(names: list[str]) -> str:
    """The first five, and how many more."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _distance(found: list[str]) -> tuple[bool, int]:
    """How far a rule is from matching: one about another image is farther than any about this one."""
    return found[0].startswith("the image "), len(found)


def _image_misses(rule: AllowRule, task: Task, reviewed: frozenset[str]) -> list[str]:
    image = parse_image(task.image)
    found = []
    if rule.images is not None and not all(matches(rule.images, name) for name in image.policy_names):
        found.append(f"the image {image.label}")
    if image.digest is None and (rule.digests or rule.reviewed or rule.require_digest):
        return [*found, "an image that is not named by its digest (name@sha256:…)"]
    if rule.digests is not None and image.digest not in rule.digests:
        found.append(f"the digest {image.digest}")
    if rule.reviewed and image.digest not in reviewed:
        found.append(f"the digest {image.digest}, which is not among the reviewed algorithms")
    return found


def _person_misses(rule: AllowRule, verified: VerifiedTask) -> list[str]:
    task = verified.task
    found = []
    if rule.researchers is not None and task.user not in rule.researchers:
        found.append(f"a task of {task.user}")
    if rule.organisations is not None and verified.organisation not in rule.organisations:
        found.append(f"a task of the organisation {verified.organisation[:100]!r}")
    if rule.studies is not None and task.study not in rule.studies:
        found.append(f"the study {task.study}" if task.study else "a task that names no study")
    if ANY not in rule.data and (excess := [name for name in task.data if name not in rule.data]):
        found.append(f"the data source {_listed(excess)}")
    takers = {task.user if name == ASKER else name for name in rule.recipients}
    if ANY not in takers and (excess := [name for name in task.recipients if name not in takers]):
        found.append(f"the recipient {_listed(excess)}")
    if task.deliver is not None and task.deliver.to not in rule.deliver:
        found.append(f"delivering to {task.deliver.to}")
    if task.deliver is None and rule.deliver:
        found.append("outputs that come to the researcher")
    return found


def _run_misses(rule: AllowRule, task: Task) -> list[str]:
    found = []
    command = command_line(task)
    if rule.commands is not None and (len(command) > MAX_COMMAND or not matches(rule.commands, command)):
        found.append(f"the command {' '.join(command.split())[:200] or '(none)'}")
    if ANY not in rule.env and (excess := [name for name in task.env if name not in rule.env]):
        found.append(f"the variable {_listed(excess)}")
    for name, unit in _RESOURCES:
        value, most = getattr(task.resources, name), getattr(rule, f"max_{name}")
        if value is not None and most is not None and value > most:
            found.append(f"{value:g} {unit}")
    if (task.resources.gpus or 0) > rule.max_gpus:
        found.append(f"{task.resources.gpus} GPU(s)")
    if task.time_limit_s is not None and rule.max_time is not None and task.time_limit_s > rule.max_time:
        found.append(f"a run of {task.time_limit_s} s")
    return found


def _grant(index: int, rule: AllowRule, task: Task, loaded: LoadedPolicy, config: NodeConfig, usage: Usage) -> Allowed | Refused:
    """What the matching rule decides: its terms, unless the day's runs or the site's own means say no."""
    name, sha256 = loaded.name_of(index), loaded.sha256
    if rule.runs_per_day is not None and usage.runs_today >= rule.runs_per_day:
        reason = f"{task.user} has had {usage.runs_today} run(s) at this site today, and the policy allows {rule.runs_per_day}"
        return Refused(reason, "put the task again tomorrow (UTC)", sha256, name)
    unknown = [source for source in task.data if source not in config.data]
    if unknown:
        reason = f"the site has no data source named {_listed(unknown)}"
        return Refused(reason, "ask the site how its data sources are named", sha256, name)
    excess = _excess(task.resources, task.time_limit_s, config.limits)
    if excess:
        return Refused(
            f"the task asks for {excess}", "ask for less, or ask the site to raise its limits in node.toml", sha256, name
        )
    limits = run_limits(task, config, rule)
    return Allowed(
        image=parse_image(task.image),
        limits=limits,
        data={source: config.data[source] for source in task.data},
        rule=name,
        policy_sha256=sha256,
        approval=rule.approval,
        approval_timeout_s=rule.approval_timeout,
        release=rule.release,
        release_timeout_s=rule.release_timeout,
        logs=not rule.deliver if rule.logs is None else rule.logs,
        outputs=OutputRules(limits.output_files, limits.output_mb, rule.outputs.names or (), rule.outputs.min_cell),
        reviewed=rule.reviewed,
        require_digest=rule.require_digest,
        gpus=task.resources.gpus or 0,
    )


def _narrowed(limits: Limits, rule: AllowRule) -> Limits:
    """The site's limits, with the rule's own where those are smaller."""
    caps = {
        "cpu_cores": rule.max_cpu_cores,
        "ram_gb": rule.max_ram_gb,
        "disk_gb": rule.max_disk_gb,
        "time_s": rule.max_time,
        "output_mb": rule.outputs.max_mb,
        "output_files": rule.outputs.max_files,
    }
    return limits.model_copy(
        update={name: min(value, getattr(limits, name)) for name, value in caps.items() if value is not None}
    )


def _excess(asked: Resources, time_limit_s: int | None, limits: Limits) -> str | None:
    """The first thing of which more is asked than the site gives, in words."""
    for name, unit in _RESOURCES:
        value, most = getattr(asked, name), getattr(limits, name)
        if value is not None and value > most:
            return f"{value:g} {unit}, and the site gives at most {most:g}"
    if time_limit_s is not None and time_limit_s > limits.time_s:
        return f"{time_limit_s} s, and the site gives at most {limits.time_s} s"
    return None
