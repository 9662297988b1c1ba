"""What a site allows: nothing by default, whole names only, the first rule that matches, never more than the site's limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptm.config import Limits
from ptm.model import Deliver, Resources
from ptm.node.policy import Allowed, LoadedPolicy, Refused, Usage, decide, run_limits
from ptm.node.policyfile import covers
from ptm.node.rules import AllowRule, Policy
from ptm.node.verify import VerifiedTask
from tests.node.policies import CONFIG, DIGESTS, SHA, naive_match, pairs, rules, tasks, verified

ANY = {"images": [".*"], "data": ["*"]}
NONE_YET = Usage()
NOTHING = frozenset[str]()


def loaded(*found: dict[str, Any]) -> LoadedPolicy:
    """A policy of these rules; the first stands on line 10, the next on line 20."""
    policy = Policy.model_validate_json(json.dumps({"allow": found}))
    return LoadedPolicy(policy, SHA, tuple(range(10, 10 * len(found) + 10, 10)))


def ask(
    *found: dict[str, Any], usage: Usage = NONE_YET, reviewed: frozenset[str] = frozenset(), **task: Any
) -> Allowed | Refused:
    return decide(verified(**task), loaded(*found), CONFIG, usage, reviewed)


def allowed(*found: dict[str, Any], **task: Any) -> bool:
    return isinstance(ask(*found, **task), Allowed)


def test_the_empty_policy_allows_nothing() -> None:
    assert isinstance(refused := ask(), Refused)
    assert (refused.rule, refused.policy_sha256) == (None, SHA)
    assert "does not allow the image myConsortium/count:1" in refused.reason


# images


@pytest.mark.parametrize(
    ("image", "pattern", "matches"),
    [
        ("myConsortium/count:1", r"myConsortium/.*:.*", True),
        ("myConsortium/count:1", r"myConsortium/count", False),  # a prefix is no match: the ancestor's hole
        ("myConsortium/algo-evil:1", r"myConsortium/algo:1", False),
        ("evil/myConsortium/count:1", r"myConsortium/.*:.*", False),
        ("myConsortium/count", r"myConsortium/count:latest", True),
        ("myConsortium/count:1@" + DIGESTS[0], r"myConsortium/count:1", False),  # the digest runs, whatever the tag says
        ("myConsortium/count:1@" + DIGESTS[0], r"myConsortium/count(:1|@sha256:a+)", True),
        ("myConsortium/count:1@" + DIGESTS[0], r"myConsortium/.*:.*", True),
        ("myConsortium/count@" + DIGESTS[0], r"myConsortium/count:1", False),
        ("myConsortium/count@" + DIGESTS[0], r"myConsortium/count@sha256:a+", True),
    ],
)
def test_patterns_match_whole_names(image: str, pattern: str, matches: bool) -> None:
    assert allowed({"images": [pattern]}, image=image) is matches


def test_a_digest_rule_takes_no_tag_and_no_other_digest() -> None:
    rule = {"digests": [DIGESTS[0]]}
    assert allowed(rule, image=f"any/name@{DIGESTS[0]}")
    assert not allowed(rule, image=f"any/name@{DIGESTS[1]}")
    assert isinstance(refused := ask(rule, image="any/name:1"), Refused)
    assert "by its digest" in refused.reason


def test_a_tag_is_not_enough_where_a_digest_is_required() -> None:
    rule = {"images": ["a/x:1", "a/x@sha256:.*"], "require_digest": True}
    assert not allowed(rule, image="a/x:1")
    assert isinstance(found := ask(rule, image=f"a/x:1@{DIGESTS[0]}"), Allowed)
    assert found.require_digest


def test_only_reviewed_digests_where_the_rule_says_so() -> None:
    image = f"a/x@{DIGESTS[0]}"
    assert not allowed({"reviewed": True}, image=image)
    assert not allowed({"reviewed": True}, image=image, reviewed=frozenset({DIGESTS[1]}))
    assert not allowed({"reviewed": True}, image="a/x:1", reviewed=frozenset(DIGESTS))
    assert isinstance(found := ask({"reviewed": True}, image=image, reviewed=frozenset(DIGESTS)), Allowed)
    assert found.reviewed


# who asks, for what


@pytest.mark.parametrize(
    ("condition", "asked"),
    [
        ({"researchers": ["bob"]}, {}),
        ({"organisations": ["UM"]}, {}),
        ({"organisations": ["UM"]}, {"organisation": ""}),
        ({"studies": ["heart"]}, {}),
        ({"studies": ["heart"]}, {"study": "heart-2"}),
        ({"data": ["cohort"]}, {"data": ("cohort", "genomes")}),
        ({"data": []}, {"data": ("cohort",)}),
        ({}, {"data": ("cohort",)}),  # a rule that says nothing of data grants none
        ({}, {"recipients": ("alice", "mallory")}),  # nor does anybody but the asker receive
        ({"recipients": ["ttp"]}, {}),
        ({"commands": ["count"]}, {"command": ("count", "--all")}),
        ({"commands": ["count --all"]}, {"command": ("count --all",)}),  # one argument with a space is not two
        ({"commands": ["count.*"]}, {"command": ("count", "x\ny")}),
        ({"commands": ["count"]}, {}),
        ({"commands": [".*"]}, {"command": ("x" * 4000, "y" * 200)}),
        ({"env": ["LANG"]}, {"env": {"LANG": "C", "LD_PRELOAD": "/x.so"}}),
        ({"env": []}, {"env": {"LANG": "C"}}),
        ({}, {"env": {"PYTHONPATH": "/ptm/input"}}),  # nor is a variable set that no rule names
        ({}, {"resources": Resources(gpus=1)}),  # nor a GPU given
        ({"max_gpus": 1}, {"resources": Resources(gpus=2)}),
        ({"max_cpu_cores": 1}, {"resources": Resources(cpu_cores=2)}),
        ({"max_ram_gb": 1}, {"resources": Resources(ram_gb=1.5)}),
        ({"max_disk_gb": 1}, {"resources": Resources(disk_gb=1.5)}),
        ({"max_time": "1m"}, {"time_limit_s": 61}),
    ],
)
def test_a_task_beyond_one_condition_is_refused_by_default(condition: dict[str, Any], asked: dict[str, Any]) -> None:
    assert isinstance(refused := ask({"images": [".*"]} | condition, **asked), Refused)
    assert refused.rule is None
    assert refused.reason.startswith("the site's policy does not allow ")


@pytest.mark.parametrize(
    ("condition", "asked"),
    [
        ({"researchers": ["bob", "alice"]}, {}),
        ({"organisations": ["Maastro"]}, {}),
        ({"studies": ["heart"]}, {"study": "heart"}),
        ({"data": ["cohort", "genomes"]}, {"data": ("genomes",)}),
        ({"data": ["*"]}, {"data": ("cohort", "genomes")}),
        ({"recipients": ["@researcher", "bob"]}, {"recipients": ("bob", "alice")}),
        ({"recipients": ["*"]}, {"recipients": ("anybody",)}),
        ({"commands": ["count( --all)?"]}, {"command": ("count", "--all")}),
        ({"commands": ["'count --all'"]}, {"command": ("count --all",)}),
        ({"commands": ["()"]}, {}),
        ({"env": ["LANG"]}, {"env": {"LANG": "C"}}),
        ({"env": ["*"]}, {"env": {"LANG": "C", "PYTHONPATH": "/x"}}),
        ({"env": []}, {}),
        ({"max_gpus": 2}, {"resources": Resources(gpus=2)}),
        ({"max_gpus": 2}, {}),
        ({"max_cpu_cores": 2, "max_time": "1m"}, {"resources": Resources(cpu_cores=2), "time_limit_s": 60}),
    ],
)
def test_a_task_within_the_conditions_is_allowed(condition: dict[str, Any], asked: dict[str, Any]) -> None:
    assert allowed({"images": [".*"]} | condition, **asked)


def test_a_refusal_names_the_gpus_and_the_variables_that_were_asked_for() -> None:
    rule = {"images": [".*"], "max_gpus": 1, "env": ["LANG"]}
    assert isinstance(refused := ask(rule, resources=Resources(gpus=2), env={"LD_PRELOAD": "/x.so"}), Refused)
    assert refused.reason == "the site's policy does not allow the variable LD_PRELOAD; nor 2 GPU(s)"


def test_a_refusal_does_not_tell_what_the_rule_would_take() -> None:
    rule = {"images": [".*"], "researchers": ["carol"], "studies": ["secret-study"], "organisations": ["Hidden Hospital"]}
    assert isinstance(refused := ask(rule), Refused)
    assert not any(word in refused.reason + refused.hint for word in ("carol", "secret-study", "Hidden"))


def test_a_refusal_speaks_of_the_rule_that_is_nearest() -> None:
    other = {"images": ["other/.*:.*"], "researchers": ["bob"]}
    assert isinstance(refused := ask(other, {"images": ["myConsortium/.*:.*"], "studies": ["heart"]}), Refused)
    assert "names no study" in refused.reason
    assert "image" not in refused.reason


def test_a_reason_fits_into_a_result_however_much_was_asked_for() -> None:
    names = tuple(f"{number:02}{'x' * 60}" for number in range(64))
    asked = {"data": names, "recipients": names, "command": ("y" * 4096,), "env": {f"A{name}": "" for name in names}}
    rule = {"images": ["()"], "organisations": ["UM"], "commands": ["x"], "env": []}
    assert isinstance(refused := ask(rule, organisation="é" * 2000, image="a/" + "b" * 300, **asked), Refused)
    assert len(refused.reason) < 2000
    assert isinstance(unknown := ask(ANY, data=names), Refused)
    assert "and 59 more" in unknown.reason


def test_a_reason_is_one_line() -> None:
    assert isinstance(refused := ask({"images": [".*"], "commands": ["x"]}, command=("a\n\tb",)), Refused)
    assert refused.reason.isprintable()


# which rule, and its terms


def test_the_first_match_decides_and_is_named_with_its_line() -> None:
    first = {"images": ["other/.*:.*"]}
    second = {"images": ["myConsortium/.*:.*"], "approval": "manual", "approval_timeout": "3d", "logs": False}
    assert isinstance(found := ask(first, second, ANY), Allowed)
    assert found.rule == "rule 2, line 20 of policy.toml"
    assert (found.approval, found.approval_timeout_s, found.logs, found.release) == ("manual", 3 * 86400, False, "auto")
    assert found.policy_sha256 == SHA


def test_a_rule_with_images_only_means_what_it_meant_before() -> None:
    assert isinstance(found := ask({"images": [".*"]}), Allowed)
    assert (found.approval, found.release, found.logs) == ("auto", "auto", True)
    assert found.limits == CONFIG.limits
    assert (found.outputs.names, found.outputs.min_cell) == ((), None)
    assert (found.outputs.max_files, found.outputs.max_mb) == (CONFIG.limits.output_files, CONFIG.limits.output_mb)


def test_output_rules_and_limits_are_the_smaller_of_site_and_rule() -> None:
    terms = {"names": [r".*\.csv"], "max_files": 3, "max_mb": 99999, "min_cell": 10}
    rule = {"images": [".*"], "outputs": terms, "max_time": "10m", "max_cpu_cores": 64}
    assert isinstance(found := ask(rule), Allowed)
    assert (found.outputs.max_files, found.outputs.max_mb) == (3, CONFIG.limits.output_mb)
    assert (found.outputs.names, found.outputs.min_cell) == ((r".*\.csv",), 10)
    assert (found.limits.output_files, found.limits.time_s, found.limits.cpu_cores) == (3, 600, 4)


def test_a_used_up_budget_refuses_and_no_rule_below_is_asked() -> None:
    rule = {"images": [".*"], "runs_per_day": 2}
    assert isinstance(ask(rule, ANY, usage=Usage(1)), Allowed)
    assert isinstance(refused := ask(rule, ANY, usage=Usage(2)), Refused)
    assert refused.rule == "rule 1, line 10 of policy.toml"
    assert "today" in refused.reason


def test_a_data_source_that_the_site_has_not() -> None:
    assert isinstance(decision := ask(ANY, data=("cohort", "unknown")), Refused)
    assert "unknown" in decision.reason
    assert "cohort" not in decision.reason


def test_only_the_data_that_was_asked_for_is_granted() -> None:
    assert isinstance(found := ask(ANY, data=("cohort",)), Allowed)
    assert list(found.data) == ["cohort"]


@pytest.mark.parametrize(
    "asked",
    [
        {"resources": Resources(ram_gb=3.0)},
        {"resources": Resources(cpu_cores=5)},
        {"resources": Resources(disk_gb=11.0)},
        {"time_limit_s": 3601},
    ],
)
def test_more_than_the_site_gives(asked: dict[str, object]) -> None:
    assert isinstance(decision := ask(ANY, **asked), Refused)
    assert "the site gives at most" in decision.reason


@given(st.integers(1, 1024), st.floats(0.01, 65536), st.floats(0.01, 1048576), st.integers(1, 10**7), rules)
def test_limits_never_exceed_the_sites_or_the_rules(
    cores: int, ram: float, disk: float, seconds: int, rule: dict[str, Any]
) -> None:
    asked = verified(resources=Resources(cpu_cores=cores, ram_gb=ram, disk_gb=disk), time_limit_s=seconds).task
    (found,) = loaded(rule).policy.allow
    limits, most = run_limits(asked, CONFIG, found), CONFIG.limits
    for name, cap in (
        ("cpu_cores", "max_cpu_cores"),
        ("ram_gb", "max_ram_gb"),
        ("disk_gb", "max_disk_gb"),
        ("time_s", "max_time"),
    ):
        assert getattr(limits, name) <= min(getattr(most, name), getattr(found, cap) or 10**9)
    assert isinstance(limits, Limits)


# for random policies and tasks (issue 3, point 3)

policies = st.lists(rules, max_size=4)
digests = st.frozensets(st.sampled_from(DIGESTS))
usages = st.builds(Usage, st.integers(0, 4))


NAMED = {"outputs": {"names": [".*"]}}


def test_names_of_what_is_delivered_are_fixed_or_looked_at_for_the_researcher_sees_them() -> None:
    for rule in ({"deliver": ["ttp"], **NAMED}, {"deliver": ["ttp"], "release": "manual"}):
        loaded({"images": [".*"], **rule})
    with pytest.raises(ValueError, match=r"needs outputs\.names"):
        loaded({"images": [".*"], "deliver": ["ttp"]})


@pytest.mark.parametrize(
    ("rule", "to", "decides"),
    [
        ({}, None, True),
        ({}, "ttp", False),
        ({"deliver": ["ttp", "other"], **NAMED}, "ttp", True),
        ({"deliver": ["ttp"], **NAMED}, "other", False),
        ({"deliver": ["ttp"], **NAMED}, None, False),
    ],
)
def test_outputs_for_a_party_need_a_rule_of_their_own_and_such_a_rule_gives_none_to_the_researcher(
    rule: dict[str, Any], to: str | None, decides: bool
) -> None:
    task = verified(deliver=Deliver(to=to, collection="link-2026") if to else None)
    assert isinstance(decide(task, loaded({"images": [".*"], **rule}), CONFIG, Usage(), frozenset()), Allowed) is decides


@pytest.mark.parametrize(("said", "leaves"), [({}, False), ({"logs": True}, True), ({"logs": False}, False)])
def test_the_log_of_a_run_for_a_party_stays_unless_the_rule_says_it_leaves(said: dict[str, Any], leaves: bool) -> None:
    task = verified(deliver=Deliver(to="ttp", collection="link-2026"))
    found = decide(task, loaded({"images": [".*"], "deliver": ["ttp"], **NAMED, **said}), CONFIG, Usage(), frozenset())
    assert isinstance(found, Allowed)
    assert found.logs is leaves


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(policies, st.lists(tasks, min_size=1, max_size=4), usages, digests)
def test_nothing_is_allowed_that_no_rule_matches(
    found: list[dict[str, Any]], asked: list[VerifiedTask], usage: Usage, reviewed: frozenset[str]
) -> None:
    policy = loaded(*found)
    for task in asked:
        decision = decide(task, policy, CONFIG, usage, reviewed)
        matching = [index for index, rule in enumerate(found) if naive_match(rule, task, reviewed)]
        if not matching:
            assert isinstance(decision, Refused)
            assert decision.rule is None
            continue
        first = found[matching[0]]
        assert decision.rule == policy.name_of(matching[0])
        if isinstance(decision, Allowed):
            assert (decision.approval, decision.release) == (first.get("approval", "auto"), first.get("release", "auto"))
            assert decision.logs is first.get("logs", not first.get("deliver"))
            assert usage.runs_today < first.get("runs_per_day", 10**9)
            assert set(decision.data) == set(task.task.data)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(policies, rules, tasks, usages, digests)
def test_a_rule_added_below_never_changes_an_earlier_decision(
    found: list[dict[str, Any]], below: dict[str, Any], task: VerifiedTask, usage: Usage, reviewed: frozenset[str]
) -> None:
    before = decide(task, loaded(*found), CONFIG, usage, reviewed)
    after = decide(task, loaded(*found, below), CONFIG, usage, reviewed)
    if before.rule is not None:
        assert after == before
    elif naive_match(below, task, reviewed):
        assert after.rule == f"rule {len(found) + 1}, line {10 * len(found) + 10} of policy.toml"
    else:
        assert isinstance(after, Refused)
        assert after.rule is None


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(pairs, st.lists(tasks, min_size=1, max_size=4), digests)
def test_a_rule_called_unreachable_really_is(
    pair: tuple[dict[str, Any], dict[str, Any]], found: list[VerifiedTask], reviewed: frozenset[str]
) -> None:
    upper, lower = pair
    above, below = (AllowRule.model_validate_json(json.dumps(rule)) for rule in (upper, lower))
    assert covers(above, above)
    for task in found if covers(above, below) else ():
        assert naive_match(upper, task, reviewed) or not naive_match(lower, task, reviewed)
