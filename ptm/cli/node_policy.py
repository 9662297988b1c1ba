"""`ptm node policy`: what the site's policy says, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptm.cli.pages import Group
from ptm.cli.show import clean, json_option, print_json
from ptm.errors import PtmError

if TYPE_CHECKING:
    from ptm.config import Home
    from ptm.node.policy import Allowed, LoadedPolicy
    from ptm.node.trial import Trial


@click.group(cls=Group)
def policy() -> None:
    """Ask the site's policy what it would decide."""


@policy.command("test")
@click.argument("file", metavar="TASK.json", type=click.Path(path_type=Path))
@click.option("--user", metavar="NAME", help="Who asks; a signed task says so itself.")
@click.option("--runs-today", type=click.IntRange(0), default=0, show_default=True, help="How many runs they have had today.")
@json_option
@click.pass_obj
def test(home: str | None, /, file: Path, user: str | None, runs_today: int, as_json: bool) -> None:
    """Say which rule of policy.toml decides about a task, and why.

    TASK.json is a signed task or a plain task file. Nothing is run, and signatures are not checked. Exit code 1 if the
    policy refuses the task. The registry is asked only if a rule names organisations or reviewed algorithms.

    \b
    Examples:
      ptm node policy test task.json --user alice
      ptm node policy test task.json --json
    """
    from ptm.config import find_home
    from ptm.node.policy import Allowed, Usage
    from ptm.node.setup import load_node
    from ptm.node.trial import read_task, try_policy

    place = find_home(home)
    config, loaded = load_node(place)
    task = read_task(file, user)
    organisation, reviewed = _from_registry(place, loaded, task.user)
    trial = try_policy(task, organisation, loaded, config, Usage(runs_today), reviewed)
    if as_json:
        print_json(_as_json(trial))
    else:
        _print(trial)
    if not isinstance(trial.decision, Allowed):
        raise PtmError(trial.decision.reason, hint=trial.decision.hint)


def _from_registry(place: Home, loaded: LoadedPolicy, user: str) -> tuple[str, frozenset[str]]:
    """The user's organisation and the reviewed digests, as far as the policy asks for them."""
    from ptm.algorithms import reviewed_digests
    from ptm.node.trial import names_organisations, names_reviewed
    from ptm.registry import Registry

    organisation, reviewed = "", frozenset[str]()
    if names_organisations(loaded) or names_reviewed(loaded):
        registry = Registry.open(place)
        member = registry.roster().member(user)
        organisation = member.organisation if member else ""
        if names_reviewed(loaded):
            reviewed = reviewed_digests(registry.store, place.trust)
    return organisation, reviewed


def _print(trial: Trial) -> None:
    from ptm.node.policy import Allowed

    decision = trial.decision
    if isinstance(decision, Allowed):
        click.echo(f"allowed by {decision.rule}")
        for label, value in _terms(decision).items():
            click.echo(f"  {label.replace('_', ' '):10} {clean(_words(value))}")
    else:
        click.echo(f"refused by {decision.rule}" if decision.rule else "refused: no rule matches")
    for rule in trial.rules:
        if rule.rule == decision.rule:
            click.echo(f"{rule.rule}: matches; the rules below it are not asked")
            break
        click.echo(f"{rule.rule}: does not match")
        for miss in rule.misses:
            click.echo(clean(f"  does not allow {miss}"))


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)


def _terms(allowed: Allowed) -> dict[str, Any]:
    """What the run would get, without what the rule does not limit."""
    outputs = allowed.outputs
    return {
        "image": allowed.image.label,
        "data": list(allowed.data),
        "approval": _waiting(allowed.approval, allowed.approval_timeout_s),
        "release": _waiting(allowed.release, allowed.release_timeout_s),
        "logs": "leave with the outputs" if allowed.logs else "stay at the site",
        "outputs": {
            "max_files": outputs.max_files,
            "max_mb": outputs.max_mb,
            "names": list(outputs.names) or None,
            "min_cell": outputs.min_cell,
        },
        "limits": allowed.limits.model_dump(mode="json"),
        "gpus": allowed.gpus,
    }


def _waiting(how: str, timeout_s: int | None) -> str:
    return how if timeout_s is None else f"{how}, for at most {timeout_s} s"


def _as_json(trial: Trial) -> dict[str, Any]:
    from ptm.node.policy import Allowed

    decision = trial.decision
    allowed = isinstance(decision, Allowed)
    return {
        "allowed": allowed,
        "rule": decision.rule,
        "reason": None if isinstance(decision, Allowed) else decision.reason,
        "terms": _json_terms(decision) if isinstance(decision, Allowed) else None,
        "policy_sha256": decision.policy_sha256,
        "rules": [{"rule": found.rule, "matches": not found.misses, "misses": list(found.misses)} for found in trial.rules],
    }


def _json_terms(allowed: Allowed) -> dict[str, Any]:
    return _terms(allowed) | {
        "approval": allowed.approval,
        "approval_timeout_s": allowed.approval_timeout_s,
        "release": allowed.release,
        "release_timeout_s": allowed.release_timeout_s,
        "logs": allowed.logs,
        "reviewed": allowed.reviewed,
        "require_digest": allowed.require_digest,
    }
