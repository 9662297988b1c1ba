"""May this verified task run at this site? Pure: a task, the site's policy and its configuration in; `Allowed` or
`Refused` out.

Rules are read top to bottom, the first match allows, no match refuses, and an empty policy allows nothing. Image
patterns must match the whole name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ptm.config import AllowRule, FileSource, Limits, NodeConfig, Policy, SparqlSource
from ptm.image import ImageRef, parse_image
from ptm.model import Resources, Task
from ptm.node.verify import VerifiedTask


@dataclass(frozen=True)
class Allowed:
    """What the run gets: its image, its limits (never above the site's) and the data sources it was granted."""

    image: ImageRef
    limits: Limits
    data: dict[str, FileSource | SparqlSource]


@dataclass(frozen=True)
class Refused:
    reason: str
    hint: str


def decide(verified: VerifiedTask, policy: Policy, config: NodeConfig) -> Allowed | Refused:
    task = verified.task
    image = parse_image(task.image)
    if not any(_matches(rule, image) for rule in policy.allow):
        named = " with this digest" if image.tag and image.digest else ""
        return Refused(
            f"the site's policy does not allow the image {image.label}{named}", "ask the site to add it to its policy.toml"
        )
    unknown = [name for name in task.data if name not in config.data]
    if unknown:
        return Refused(f"the site has no data source named {', '.join(unknown)}", "ask the site how its data sources are named")
    excess = _excess(task.resources, task.time_limit_s, config.limits)
    if excess:
        return Refused(f"the task asks for {excess}", "ask for less, or ask the site to raise its limits in node.toml")
    return Allowed(image, run_limits(task, config), {name: config.data[name] for name in task.data})


def _matches(rule: AllowRule, image: ImageRef) -> bool:
    """Every name of the image has to match a pattern of the rule as a whole."""
    return all(any(re.fullmatch(pattern, name) for pattern in rule.images) for name in image.policy_names)


def run_limits(task: Task, config: NodeConfig) -> Limits:
    """What this run gets: what it asked for, never above the site's limits, which are also what it gets where it did
    not ask."""
    asked = {name: value for name, value in task.resources.model_dump().items() if value is not None}
    if task.time_limit_s is not None:
        asked["time_s"] = task.time_limit_s
    return config.limits.model_copy(update={name: min(value, getattr(config.limits, name)) for name, value in asked.items()})


def _excess(asked: Resources, time_limit_s: int | None, limits: Limits) -> str | None:
    """The first thing of which more is asked than the site gives, in words."""
    for name, unit in (("cpu_cores", "CPU cores"), ("ram_gb", "GB of memory"), ("disk_gb", "GB of disk")):
        value, most = getattr(asked, name), getattr(limits, name)
        if value is not None and value > most:
            return f"{value:g} {unit}, and the site gives at most {most:g}"
    if time_limit_s is not None and time_limit_s > limits.time_s:
        return f"{time_limit_s} s, and the site gives at most {limits.time_s} s"
    return None
