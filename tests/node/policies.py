"""Random policies and tasks for the property tests, and a second, naive opinion on which rule matches: written on plain
dictionaries as TOML gives them, without any code of ptm's."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from ptm.config import NodeConfig
from ptm.model import Deliver, Resources, Task
from ptm.node.verify import VerifiedTask

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SHA = "5" * 64
DIGESTS = tuple("sha256:" + digit * 64 for digit in "ab")
CONFIG = NodeConfig.model_validate(
    {
        "worker": "w",
        "runner": "process",
        "unsafe_no_sandbox": True,
        "data": {"cohort": {"kind": "file", "path": "/data/cohort.csv"}, "genomes": {"kind": "file", "path": "/data/g"}},
        "limits": {"cpu_cores": 4},
    },
    strict=False,
)
TASK: dict[str, Any] = {
    "registry": "0a1b2c3d-0000-4000-8000-000000000001",
    "id": "01KAMV3ZR5F2J7Q8XG4M1W9ABC",
    "user": "alice",
    "nonce": "0" * 32,
    "created": NOW,
    "expires": NOW + timedelta(days=1),
    "image": "myConsortium/count:1",
    "sites": ("maastro",),
    "recipients": ("alice",),
}
_PATTERNS = ["a/x:1", "a/.*:.*", r"b/y:\d", ".*", "a/x", "b@sha256:.*"]
_IMAGES = ["a/x:1", "a/x:2", "a/x-evil:1", "b/y:1", f"a/x:1@{DIGESTS[0]}", f"b@{DIGESTS[0]}", f"b@{DIGESTS[1]}"]
_COMMANDS = [(), ("count",), ("count", "--all"), ("count --all",), ("rm", "x\ny")]


def verified(organisation: str = "Maastro", **changes: object) -> VerifiedTask:
    """A task as it comes out of verification."""
    return VerifiedTask(Task.model_validate(TASK | changes), "0" * 64, organisation)


def _some(values: list[str], least: int = 1) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=least, max_size=2, unique=True)


def _sometimes(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """A dictionary with a few of these keys."""
    keys = st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True)
    return keys.flatmap(lambda chosen: st.fixed_dictionaries({key: fields[key] for key in chosen}))


_images: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"images": [".*"]}),
    st.just({"images": [".*"]}),
    st.fixed_dictionaries({"images": _some(_PATTERNS)}),
    st.fixed_dictionaries({"digests": _some(list(DIGESTS))}),
    st.just({"reviewed": True}),
    st.fixed_dictionaries({"images": _some(_PATTERNS), "digests": _some(list(DIGESTS))}),
)
_conditions = _sometimes(
    {
        "require_digest": st.booleans(),
        "reviewed": st.just(True),
        "researchers": _some(["alice", "bob"]),
        "organisations": _some(["Maastro", "UM"]),
        "studies": _some(["heart", "lung"]),
        "data": _some(["cohort", "genomes", "*"], 0),
        "recipients": _some(["alice", "bob", "@researcher", "*"]),
        "deliver": _some(["ttp", "other"], 0),
        "commands": _some(["count", "count.*", "count --all", ".*"]),
        "env": _some(["LANG", "SEED", "*"], 0),
        "max_cpu_cores": st.integers(1, 3),
        "max_ram_gb": st.sampled_from([0.5, 1.5]),
        "max_disk_gb": st.sampled_from([0.5, 1.5]),
        "max_gpus": st.integers(0, 2),
        "max_time": st.sampled_from(["5m", "2h"]),
        "runs_per_day": st.integers(1, 3),
        "approval": st.sampled_from(["auto", "manual", "first-use"]),
        "release": st.sampled_from(["auto", "manual"]),
        "logs": st.booleans(),
    }
)


def _named(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule that delivers says what the files are called."""
    return rule | {"outputs": {"names": [".*"]}} if rule.get("deliver") else rule


rules: st.SearchStrategy[dict[str, Any]] = st.builds(lambda image, rest: _named(image | rest), _images, _conditions)
pairs: st.SearchStrategy[tuple[dict[str, Any], dict[str, Any]]] = st.builds(
    lambda rule, other, which: (rule, _named(rule | other)) if which else (_named(rule | other), rule),
    rules,
    _conditions,
    st.booleans(),
)
"""Two rules that differ in a few conditions, so that one often takes more than the other."""
tasks: st.SearchStrategy[VerifiedTask] = st.builds(
    lambda image, organisation, rest: verified(organisation, image=image, **rest),
    st.sampled_from(_IMAGES),
    st.sampled_from(["Maastro", "UM", ""]),
    _sometimes(
        {
            "user": st.sampled_from(["alice", "bob"]),
            "study": st.sampled_from(["heart", "other"]),
            "data": _some(["cohort", "genomes", "unknown"]).map(tuple),
            "recipients": _some(["alice", "bob", "carol"]).map(tuple),
            "deliver": st.sampled_from([Deliver(to=to, collection="link") for to in ("ttp", "other", "third")]),
            "command": st.sampled_from(_COMMANDS),
            "env": st.sampled_from([{"LANG": "C"}, {"LANG": "C", "LD_PRELOAD": "/x"}]),
            "resources": st.builds(
                Resources,
                cpu_cores=st.integers(1, 5),
                ram_gb=st.sampled_from([None, 1.0, 2.0]),
                gpus=st.sampled_from([None, None, 1, 2]),
            ),
            "time_limit_s": st.sampled_from([60, 3600, 7201]),
        }
    ),
)


def naive_match(rule: dict[str, Any], found: VerifiedTask, reviewed: frozenset[str]) -> bool:
    """Does this rule match? From docs/policy.md, condition by condition."""
    task = found.task
    name, _, digest = task.image.partition("@")
    labels = ([name] if ":" in name else []) + ([f"{name.split(':')[0]}@{digest}"] if digest else [])
    takers = [task.user if who == "@researcher" else who for who in rule.get("recipients", ["@researcher"])]
    granted = rule.get("data", [])
    seconds = {"5m": 300, "2h": 7200}.get(rule.get("max_time", ""), 10**9)
    asked = task.resources
    return all(
        [
            "images" not in rule or all(any(re.fullmatch(pattern, label) for pattern in rule["images"]) for label in labels),
            "digests" not in rule or digest in rule["digests"],
            not rule.get("require_digest") or digest != "",
            not rule.get("reviewed") or digest in reviewed,
            "researchers" not in rule or task.user in rule["researchers"],
            "organisations" not in rule or found.organisation in rule["organisations"],
            "studies" not in rule or task.study in rule["studies"],
            all(source in granted or "*" in granted for source in task.data),
            all(who in takers or "*" in takers for who in task.recipients),
            (task.deliver.to in rule.get("deliver", [])) if task.deliver else not rule.get("deliver"),
            "commands" not in rule or any(re.fullmatch(pattern, shlex.join(task.command)) for pattern in rule["commands"]),
            all(variable in rule.get("env", []) or "*" in rule.get("env", []) for variable in task.env),
            (asked.cpu_cores or 0) <= rule.get("max_cpu_cores", 10**9),
            (asked.ram_gb or 0) <= rule.get("max_ram_gb", 10**9),
            (asked.disk_gb or 0) <= rule.get("max_disk_gb", 10**9),
            (asked.gpus or 0) <= rule.get("max_gpus", 0),
            (task.time_limit_s or 0) <= seconds,
        ]
    )
