"""The gate before the runner: every way in which a task may not be considered, each with its own error."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ptm import envelope, layout
from ptm.errors import BadSignature, Malformed, NotAllowed, NotForUs, Outdated
from ptm.model import Cancel, Kind, Member, Roster, Task
from ptm.node.verify import authenticate, verify, verify_cancel
from ptm.trust import TrustedRoster

NOW = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)
REGISTRY = "0a1b2c3d-0000-4000-8000-000000000001"
OTHER = "0a1b2c3d-0000-4000-8000-000000000002"
NONCE = "00" * 16
KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))
    for n, name in enumerate(("alice", "mallory", "maastro", "gone"), 1)
}


def member(name: str, kind: Kind, revoked: datetime | None = None) -> Member:
    return Member(
        name=name,
        kind=kind,
        sign_key=KEYS[name].public_key().public_bytes_raw().hex(),
        age_key="age1" + "qpzry9x8gf2tvdw0s3jn54khce6mua7l"[list(KEYS).index(name)] * 58,
        admitted=NOW,
        revoked=revoked,
    )


ROSTER = TrustedRoster(
    Roster(
        registry=REGISTRY,
        members=(
            member("alice", "researcher"),
            member("mallory", "researcher"),
            member("maastro", "site"),
            member("gone", "researcher", NOW),
        ),
    ),
    version=3,
    expires=NOW + timedelta(days=30),
)


def make(signer: str = "alice", **changes: object) -> tuple[bytes, layout.QueueEntry]:
    """A task's bytes and the queue entry it lies under, both good unless a test changes something."""
    values: dict[str, object] = {
        "registry": REGISTRY,
        "user": signer,
        "nonce": NONCE,
        "created": NOW,
        "expires": NOW + timedelta(days=7),
        "image": "myConsortium/count:1",
        "sites": ("maastro",),
        "recipients": (signer,),
    } | changes
    registry, user, created = values["registry"], values["user"], values["created"]
    assert isinstance(registry, str)
    assert isinstance(user, str)
    assert isinstance(created, datetime)
    values.setdefault("id", envelope.task_id(created, registry, user, NONCE))
    task = Task.model_validate(values)
    return envelope.sign(task, KEYS[signer]), layout.QueueEntry("k", "maastro", task.user, task.id, False)


def test_a_good_task_is_verified() -> None:
    found = authenticate(*make(), ROSTER)
    assert verify(found, ROSTER, "maastro", NOW).task.image == "myConsortium/count:1"


def test_signed_by_another_member_than_the_path_names() -> None:
    body, entry = make("mallory")
    with pytest.raises(BadSignature, match="another key"):
        authenticate(body, replace(entry, user="alice"), ROSTER)


def test_a_name_that_nobody_has() -> None:
    body, entry = make()
    with pytest.raises(NotAllowed, match="not in the roster"):
        authenticate(body, replace(entry, user="nobody"), ROSTER)


def test_a_task_under_another_id() -> None:
    body, entry = make()
    with pytest.raises(NotForUs, match="under the name"):
        authenticate(body, replace(entry, task="01KAMV3ZR5F2J7Q8XG4M1W9ABC"), ROSTER)


def test_mallory_signs_a_task_under_an_id_of_alices() -> None:
    _, of_alice = make()
    body, entry = make("mallory", id=of_alice.task)
    with pytest.raises(NotAllowed, match="not made by mallory"):
        authenticate(body, entry, ROSTER)


def test_a_task_of_another_registry() -> None:
    with pytest.raises(NotForUs, match="another registry"):
        authenticate(*make(registry=OTHER), ROSTER)


@pytest.mark.parametrize("field", ["image", "sites", "expires", "purpose", "nonce", "data"])
def test_one_changed_field_breaks_the_signature(field: str) -> None:
    body, entry = make(purpose="count", data=("cohort",))
    outer = json.loads(body)
    value = outer["signed"][field]
    outer["signed"][field] = [*value, "extra"] if isinstance(value, list) else value[:-1] + ("1" if value[-1] != "1" else "2")
    with pytest.raises(BadSignature):
        authenticate(json.dumps(outer).encode(), entry, ROSTER)


def test_a_cancel_does_not_pass_for_a_task() -> None:
    _, entry = make()
    cancel = Cancel(registry=REGISTRY, task=entry.task, user="alice", created=NOW)
    with pytest.raises(Malformed, match="expected 'ptm/task@1'"):
        authenticate(envelope.sign(cancel, KEYS["alice"]), entry, ROSTER)


def test_a_revoked_researcher_is_authentic_but_refused() -> None:
    found = authenticate(*make("gone"), ROSTER)
    with pytest.raises(NotAllowed, match="revoked"):
        verify(found, ROSTER, "maastro", NOW)


def test_a_site_may_not_put_tasks() -> None:
    found = authenticate(*make("maastro"), ROSTER)
    with pytest.raises(NotAllowed, match="only a researcher"):
        verify(found, ROSTER, "maastro", NOW)


def test_replayed_at_a_site_it_is_not_for() -> None:
    found = authenticate(*make(), ROSTER)
    with pytest.raises(NotForUs, match="for maastro, not for umcu"):
        verify(found, ROSTER, "umcu", NOW)


def test_expired() -> None:
    found = authenticate(*make(), ROSTER)
    verify(found, ROSTER, "maastro", NOW + timedelta(days=7, seconds=-1))
    with pytest.raises(Outdated, match="expired"):
        verify(found, ROSTER, "maastro", NOW + timedelta(days=7))


def test_made_in_the_future_beyond_five_minutes() -> None:
    found = authenticate(*make(), ROSTER)
    verify(found, ROSTER, "maastro", NOW - timedelta(minutes=5))
    with pytest.raises(NotAllowed, match="future"):
        verify(found, ROSTER, "maastro", NOW - timedelta(minutes=5, seconds=1))


def test_a_task_that_would_live_for_ever() -> None:
    found = authenticate(*make(expires=NOW + timedelta(days=400)), ROSTER)
    with pytest.raises(NotAllowed, match="longer than a year"):
        verify(found, ROSTER, "maastro", NOW)


@pytest.mark.parametrize("name", ["gone", "stranger"])
def test_results_for_somebody_who_is_no_member(name: str) -> None:
    found = authenticate(*make(recipients=("alice", name)), ROSTER)
    with pytest.raises(NotAllowed, match=name):
        verify(found, ROSTER, "maastro", NOW)


def test_a_cancel_counts_only_from_its_own_user() -> None:
    _, entry = make()
    of_alice = Cancel(registry=REGISTRY, task=entry.task, user="alice", created=NOW)
    assert verify_cancel(envelope.sign(of_alice, KEYS["alice"]), entry, ROSTER) == of_alice
    with pytest.raises(BadSignature):
        verify_cancel(envelope.sign(of_alice, KEYS["mallory"]), entry, ROSTER)
    of_mallory = Cancel(registry=REGISTRY, task=entry.task, user="mallory", created=NOW)
    with pytest.raises(NotForUs):
        verify_cancel(envelope.sign(of_mallory, KEYS["alice"]), entry, ROSTER)
