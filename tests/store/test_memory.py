"""The memory double keeps the contract, shares nothing, and fails where a test tells it to."""

from __future__ import annotations

import pytest

from ptm.errors import AccessDenied, AlreadyExists, StoreError, Unreachable
from ptm.store.memory import MemoryStore
from tests.store.contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


def test_two_memory_stores_share_nothing() -> None:
    one, other = MemoryStore(), MemoryStore()
    one.put("k", b"x")
    assert list(other.list("")) == []
    assert one.url != other.url


def test_denied_verb_is_denied_and_leaves_the_store_as_it_was() -> None:
    def deny(verb: str, key: str) -> None:
        if key.startswith("secret/"):
            raise AccessDenied(f"{verb} {key}")

    store = MemoryStore(before=deny)
    for call in (lambda: store.get("secret/x", 1), lambda: store.put("secret/x", b""), lambda: list(store.list("secret/"))):
        with pytest.raises(AccessDenied):
            call()
    assert list(store.list("")) == []


def test_reply_lost_after_commit_is_won_when_called_again() -> None:
    lost: list[str] = []

    def lose_first_reply(verb: str, key: str) -> None:
        if verb == "create" and not lost:
            lost.append(key)
            raise Unreachable(f"{key}: reply lost")

    store = MemoryStore(after=lose_first_reply)
    with pytest.raises(Unreachable):
        store.create("k", b"ours")
    store.create("k", b"ours")
    with pytest.raises(AlreadyExists):
        store.create("k", b"theirs")


def test_probe_of_a_store_that_cannot_be_reached_raises() -> None:
    def down(verb: str, key: str) -> None:
        raise Unreachable("down")

    with pytest.raises(StoreError):
        MemoryStore(before=down).probe("scratch/")
