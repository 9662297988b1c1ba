"""The anchor of all trust: pinning a root by its fingerprint, and following its rotations."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from ptm import coordinator
from ptm.errors import (
    MixAndMatch,
    NotFound,
    UntrustedRoot,
    UsageError,
)
from ptm.store.memory import MemoryStore
from ptm.trust import parse_fingerprint, pin_root, read_state, refresh
from tests.registries import NOW, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def rotate(world: World, **changes: Any) -> str:
    given: dict[str, Any] = {"add": [], "remove": [], "threshold": None, "sign_with": [], "now": NOW}
    return coordinator.rotate_root(world.store, world.coord, **(given | changes))


# the fingerprint


def test_the_fingerprint_is_what_sha256sum_prints(world: World) -> None:
    assert world.fingerprint == hashlib.sha256(world.get("1.root.json")).hexdigest()


def test_a_fingerprint_may_be_typed_in_capitals_with_spaces_and_colons(world: World, tmp_path: Path) -> None:
    groups = [world.fingerprint[i : i + 4].upper() for i in range(0, 64, 4)]
    pin_root(world.store, tmp_path / "a", " ".join(groups))
    pin_root(world.store, tmp_path / "b", ":".join(groups))
    assert parse_fingerprint(" ".join(groups)) == world.fingerprint


@pytest.mark.parametrize("text", ["", "12", "g" * 64, "0" * 63, "0" * 65, "٠" * 64])
def test_what_is_no_fingerprint_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_fingerprint(text)


def test_a_wrong_fingerprint_pins_nothing(world: World, tmp_path: Path) -> None:
    with pytest.raises(UntrustedRoot, match="fingerprint"):
        pin_root(world.store, tmp_path / "other", "0" * 64)
    with pytest.raises(UntrustedRoot, match="not pinned"):
        refresh(world.store, tmp_path / "other")


def test_an_empty_store_is_no_registry(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no registry"):
        pin_root(MemoryStore(), tmp_path, "0" * 64)


def test_a_root_whose_signatures_were_stripped_is_refused_even_by_its_own_fingerprint(world: World, tmp_path: Path) -> None:
    stripped = world.get("1.root.json").replace(b'"sig": "', b'"sig": "00')
    world.put("1.root.json", stripped)
    with pytest.raises(UntrustedRoot, match="own keys"):
        pin_root(world.store, tmp_path / "other", hashlib.sha256(stripped).hexdigest())


def test_a_member_may_join_by_a_later_root(world: World, tmp_path: Path) -> None:
    later = rotate(world)
    pin_root(world.store, tmp_path / "late", later)
    assert refresh(world.store, tmp_path / "late").registry == world.refresh().registry


# the root's chain


def test_a_swapped_root_is_not_followed(world: World, tmp_path: Path) -> None:
    """Somebody makes a registry of their own and puts its root after ours."""
    (tmp_path / "mallory").mkdir()
    other = World(tmp_path / "mallory")
    rotate(other)
    world.put("2.root.json", other.get("2.root.json"))
    with pytest.raises(UntrustedRoot, match=r"2\.root\.json"):
        world.refresh()


def test_a_root_under_a_later_ones_name_is_refused(world: World) -> None:
    world.put("2.root.json", world.get("1.root.json"))
    with pytest.raises(MixAndMatch):
        world.refresh()


def test_two_of_three_root_keys_lead_over_three_versions(tmp_path: Path) -> None:
    world = World(tmp_path, root_keys=("a.pem", "b.pem", "c.pem"), threshold=2)
    a, b, c, d = (tmp_path / f"{name}.pem" for name in "abcd")
    rotate(world, sign_with=[a, b])
    rotate(world, add=[d], remove=[a], sign_with=[b, c])
    last = rotate(world, threshold=3, sign_with=[b, c, d])
    world.refresh()
    state = read_state(world.trust)
    assert (state.version, state.threshold, state.fingerprint, len(state.keyids)) == (4, 3, last, 3)


def test_a_root_under_the_threshold_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, root_keys=("a.pem", "b.pem", "c.pem"), threshold=2)
    world.put("2.root.json", world.resign("1.root.json", lambda r: setattr(r, "version", 2), [tmp_path / "a.pem"]))
    with pytest.raises(UntrustedRoot):
        world.refresh()


def test_one_key_signing_twice_does_not_make_a_threshold(tmp_path: Path) -> None:
    world = World(tmp_path, root_keys=("a.pem", "b.pem"), threshold=2)
    body = world.resign("1.root.json", lambda r: setattr(r, "version", 2), [tmp_path / "a.pem", tmp_path / "a.pem"])
    world.put("2.root.json", body)
    with pytest.raises(UntrustedRoot):
        world.refresh()


def test_a_new_root_that_only_its_own_keys_signed_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, root_keys=("a.pem", "b.pem"), threshold=2)
    rotate(world, add=[tmp_path / "x.pem", tmp_path / "y.pem"], sign_with=[tmp_path / "a.pem", tmp_path / "b.pem"])
    world.put("2.root.json", world.resign("2.root.json", lambda r: None, [tmp_path / "x.pem", tmp_path / "y.pem"]))
    with pytest.raises(UntrustedRoot):
        world.refresh()
