"""What a site allows: nothing by default, whole names only, never more than the site's limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptm.config import AllowRule, Limits, NodeConfig, Policy
from ptm.model import Resources, Task
from ptm.node.policy import Allowed, Refused, decide, run_limits
from ptm.node.verify import VerifiedTask

NOW = datetime(2026, 11, 22, tzinfo=UTC)
CONFIG = NodeConfig.model_validate(
    {"worker": "w", "data": {"cohort": {"kind": "file", "path": "/data/cohort.csv"}}}, strict=False
)


def verified(**changes: object) -> VerifiedTask:
    values: dict[str, object] = {
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
    return VerifiedTask(Task.model_validate(values | changes), "0" * 64)


def policy(*patterns: str) -> Policy:
    return Policy(allow=(AllowRule(images=patterns),)) if patterns else Policy()


def test_the_empty_policy_allows_nothing() -> None:
    assert isinstance(decide(verified(), Policy(), CONFIG), Refused)


@pytest.mark.parametrize(
    ("image", "pattern", "allowed"),
    [
        ("myConsortium/count:1", r"myConsortium/.*:.*", True),
        ("myConsortium/count:1", r"myConsortium/count", False),  # a prefix is no match: the ancestor's hole
        ("myConsortium/algo-evil:1", r"myConsortium/algo:1", False),
        ("evil/myConsortium/count:1", r"myConsortium/.*:.*", False),
        ("myConsortium/count", r"myConsortium/count:latest", True),
        ("myConsortium/count:1@sha256:" + "a" * 64, r"myConsortium/count:1", False),  # the digest runs, whatever the tag says
        ("myConsortium/count:1@sha256:" + "a" * 64, r"myConsortium/count(:1|@sha256:a+)", True),
        ("myConsortium/count:1@sha256:" + "a" * 64, r"myConsortium/.*:.*", True),
        ("myConsortium/count@sha256:" + "a" * 64, r"myConsortium/count:1", False),
        ("myConsortium/count@sha256:" + "a" * 64, r"myConsortium/count@sha256:a+", True),
    ],
)
def test_patterns_match_whole_names(image: str, pattern: str, allowed: bool) -> None:
    assert isinstance(decide(verified(image=image), policy(pattern), CONFIG), Allowed) is allowed


def test_a_data_source_that_the_site_has_not() -> None:
    decision = decide(verified(data=("cohort", "genomes")), policy(".*"), CONFIG)
    assert isinstance(decision, Refused)
    assert "genomes" in decision.reason
    assert "cohort" not in decision.reason


def test_only_the_data_that_was_asked_for_is_granted() -> None:
    assert isinstance(allowed := decide(verified(), policy(".*"), CONFIG), Allowed)
    assert allowed.data == {}


@pytest.mark.parametrize(
    "asked",
    [
        {"resources": Resources(ram_gb=3.0)},
        {"resources": Resources(cpu_cores=2)},
        {"resources": Resources(disk_gb=11.0)},
        {"time_limit_s": 3601},
    ],
)
def test_more_than_the_site_gives(asked: dict[str, object]) -> None:
    decision = decide(verified(**asked), policy(".*"), CONFIG)
    assert isinstance(decision, Refused)
    assert "the site gives at most" in decision.reason


@given(st.integers(1, 1024), st.floats(0.01, 65536), st.floats(0.01, 1048576), st.integers(1, 10**7))
def test_limits_never_exceed_the_sites(cores: int, ram: float, disk: float, seconds: int) -> None:
    task = verified(resources=Resources(cpu_cores=cores, ram_gb=ram, disk_gb=disk), time_limit_s=seconds).task
    limits, most = run_limits(task, CONFIG), Limits()
    assert limits.cpu_cores <= most.cpu_cores
    assert limits.ram_gb <= most.ram_gb
    assert limits.disk_gb <= most.disk_gb
    assert limits.time_s <= most.time_s


@given(
    st.lists(st.sampled_from([r"a/.*:1", r"b/x:.*", r".*", r"c@sha256:.*", r""]), max_size=4),
    st.sampled_from(["a/y:1", "b/x:2", "d:1"]),
)
def test_a_rule_below_never_takes_away_what_was_allowed(patterns: list[str], image: str) -> None:
    before = isinstance(decide(verified(image=image), policy(*patterns), CONFIG), Allowed)
    after = isinstance(decide(verified(image=image), policy(*patterns, r"z/.*:9"), CONFIG), Allowed)
    assert before == after
