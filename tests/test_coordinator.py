"""What a coordinator decides: a registry made, members revoked, metadata renewed, the root rotated."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ptm import coordinator, layout
from ptm.config import Home, load_profile
from ptm.errors import (
    AlreadyExists,
    NotAllowed,
    NotFound,
    UsageError,
)
from ptm.store.memory import MemoryStore
from ptm.trust import read_state
from tests.registries import DAY, NOW, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# create


def test_a_registry_has_its_marker_and_its_coordinator(world: World) -> None:
    roster = world.refresh().roster
    assert [m.kind for m in roster.members] == ["coordinator"]
    assert roster.registry.encode() in world.store.get(layout.MARKER, 10_000)
    profile = load_profile(world.coord)
    assert (profile.registry_id, profile.root_fingerprint) == (roster.registry, world.fingerprint)


def test_key_files_are_made_for_their_owner_only(world: World) -> None:
    for name in ("root.pem", "roles.pem", "sign.pem", "age.txt"):
        assert stat.S_IMODE((world.coord.keys / name).stat().st_mode) == 0o600


def test_a_second_registry_at_the_same_place_is_refused_and_changes_nothing(world: World, tmp_path: Path) -> None:
    before = world.snapshot_of_bucket()
    with pytest.raises(AlreadyExists):
        world.create()
    with pytest.raises(AlreadyExists):
        create(world.store, Home(tmp_path / "other"))
    assert world.snapshot_of_bucket() == before


def test_a_home_is_of_one_registry(world: World) -> None:
    other = MemoryStore()
    with pytest.raises(UsageError, match="joined"):
        create(other, world.coord)
    assert list(other.list("")) == []


@pytest.mark.parametrize(("keys", "threshold"), [(1, 2), (2, 3), (2, 0)])
def test_a_threshold_that_can_never_be_met_is_refused(tmp_path: Path, keys: int, threshold: int) -> None:
    store = MemoryStore()
    with pytest.raises(UsageError, match="never be met"):
        create(store, Home(tmp_path / "coord"), [tmp_path / f"{i}.pem" for i in range(keys)], threshold)
    assert list(store.list("")) == []


def test_the_same_root_key_twice_is_refused(tmp_path: Path) -> None:
    store = MemoryStore()
    with pytest.raises(UsageError, match="same key"):
        create(store, Home(tmp_path / "coord"), [tmp_path / "a.pem"] * 2, 2)
    assert list(store.list("")) == []


@pytest.mark.parametrize("name", ["Upper", "-x", "", "a" * 64, "a/b"])
def test_a_bad_member_name_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    store = MemoryStore()
    with pytest.raises(UsageError, match="name"):
        create(store, Home(tmp_path / "coord"), member_name=name)
    assert list(store.list("")) == []


def create(
    store: MemoryStore, home: Home, root_keys: list[Path] | None = None, threshold: int = 1, member_name: str = "boss"
) -> str:
    return coordinator.create_registry(
        store,
        home,
        name="",
        organisation="",
        root_keys=root_keys or [],
        threshold=threshold,
        now=NOW,
        member_name=member_name,
    )


# revoke


def test_revoking_twice_keeps_the_first_date(world: World) -> None:
    world.admit("maastro")
    coordinator.revoke(world.store, world.coord, ["maastro"], NOW)
    (line,) = coordinator.revoke(world.store, world.coord, ["maastro"], NOW + DAY)
    assert line.revoked == NOW


def test_an_unknown_name_revokes_nobody(world: World) -> None:
    world.admit("maastro")
    with pytest.raises(UsageError, match="nobody"):
        coordinator.revoke(world.store, world.coord, ["maastro", "nobody"], NOW)
    assert world.refresh().active("maastro")


def test_a_coordinator_does_not_revoke_itself(world: World) -> None:
    with pytest.raises(NotAllowed, match="itself"):
        coordinator.revoke(world.store, world.coord, ["coordinator"], NOW)


# renew and rotate


def test_renewal_leaves_targets_until_half_of_their_life_is_over(world: World) -> None:
    coordinator.renew(world.store, world.coord, NOW + 10 * DAY)
    assert world.refresh().version == 1
    expires = coordinator.renew(world.store, world.coord, NOW + 46 * DAY)
    assert world.refresh().version == 2
    assert expires["targets"] == NOW + 136 * DAY
    assert expires["timestamp"] == NOW + 76 * DAY


def rotate(world: World, **changes: object) -> str:
    given = {"add": [], "remove": [], "threshold": None, "sign_with": [], "now": NOW}
    return coordinator.rotate_root(world.store, world.coord, **(given | changes))  # type: ignore[arg-type]


def test_rotation_by_key_id_and_by_file(world: World, tmp_path: Path) -> None:
    world.refresh()
    (old,) = read_state(world.trust).keyids
    rotate(world, add=[tmp_path / "new.pem"], remove=[old[:8]])
    world.refresh()
    (new,) = read_state(world.trust).keyids
    assert new != old
    rotate(world, add=[tmp_path / "third.pem"], remove=[tmp_path / "new.pem"], sign_with=[tmp_path / "new.pem"])
    world.refresh()
    assert read_state(world.trust).version == 3


@pytest.mark.parametrize("bad", [{"remove": ["00000000"]}, {"threshold": 2}, {"remove": ["a"]}])
def test_a_rotation_that_makes_no_sense_writes_nothing(world: World, bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        rotate(world, **bad)
    with pytest.raises(NotFound):
        world.get("2.root.json")


@pytest.mark.parametrize("signers", [["a.pem"], ["b.pem", "x.pem"]])
def test_a_rotation_with_too_few_of_the_old_keys_writes_nothing(tmp_path: Path, signers: list[str]) -> None:
    world = World(tmp_path, root_keys=("a.pem", "b.pem", "c.pem"), threshold=2)
    with pytest.raises(UsageError, match="too few"):
        rotate(world, add=[tmp_path / "x.pem"], sign_with=[tmp_path / name for name in signers])
    with pytest.raises(NotFound):
        world.get("2.root.json")
