"""What is written, by whom, and that a crash or a rival leaves the old roster or the new one."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ptm import coordinator, layout
from ptm.config import Home, load_profile
from ptm.errors import (
    AlreadyExists,
    BadSignature,
    KeyFileError,
    MixAndMatch,
    PtmError,
    Rollback,
    Unreachable,
    UntrustedRoot,
    UsageError,
)
from ptm.keys import load_signing_key
from ptm.model import MemberRequest, Roster
from ptm.publisher import Publisher
from ptm.store.memory import MemoryStore
from ptm.trust import refresh
from tests.registries import DAY, NOW, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def admit(world: World, *requests: MemberRequest) -> list[str]:
    return [m.name for m in coordinator.admit(world.store, world.coord, requests, NOW)]


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


def rotate(world: World, **changes: object) -> str:
    given = {"add": [], "remove": [], "threshold": None, "sign_with": [], "now": NOW}
    return coordinator.rotate_root(world.store, world.coord, **(given | changes))  # type: ignore[arg-type]


# who may write


def test_a_home_without_the_roles_key_is_told_so(world: World, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="not a coordinator's"):
        coordinator.admit(world.store, Home(tmp_path / "maastro"), [world.request("maastro")], NOW)


def test_a_coordinator_of_another_registry_writes_nothing_here(world: World, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    other = World(tmp_path / "two")
    shutil.copy(other.coord.keys / "roles.pem", world.coord.keys / "roles.pem")
    before = world.snapshot_of_bucket()
    with pytest.raises(BadSignature):
        world.admit("maastro")
    assert world.snapshot_of_bucket() == before


def test_a_coordinator_does_not_sign_a_state_that_was_put_back(world: World) -> None:
    """The bucket hides a revocation, hoping that the coordinator will sign the old roster as the newest."""
    world.admit("maastro")
    before = world.snapshot_of_bucket()
    coordinator.revoke(world.store, world.coord, ["maastro"], NOW)
    world.restore(before)
    with pytest.raises(Rollback):
        coordinator.renew(world.store, world.coord, NOW)


def test_a_coordinator_follows_no_swapped_root(world: World, tmp_path: Path) -> None:
    """Somebody puts a root of their own making after ours, to have the roster signed for their keys."""
    (tmp_path / "mallory").mkdir()
    other = World(tmp_path / "mallory")
    rotate(other)
    world.put("2.root.json", other.get("2.root.json"))
    for act in (lambda: world.admit("maastro"), lambda: rotate(world)):
        with pytest.raises(UntrustedRoot):
            act()


def test_a_coordinator_does_not_continue_a_hidden_root(world: World) -> None:
    rotate(world)
    refresh(world.store, world.coord.trust)
    world.store.delete(layout.trust_metadata("2.root.json"))
    with pytest.raises(Rollback):
        world.admit("maastro")


@pytest.mark.parametrize("file", ["targets", "snapshot"])
def test_an_old_file_planted_under_the_next_name_is_not_published(world: World, file: str) -> None:
    """What a crash left behind is published by whoever comes next; a replay of the old state must not pass for that."""
    world.admit("maastro")
    world.put(f"3.{file}.json", world.get(f"1.{file}.json"))
    with pytest.raises(MixAndMatch):
        world.admit("alice")
    assert world.names() == ["coordinator", "maastro"]


@pytest.mark.parametrize("file", ["timestamp.json", "2.snapshot.json", "2.targets.json", "3.targets.json"])
def test_a_coordinator_takes_nothing_that_the_roles_key_did_not_sign(world: World, file: str) -> None:
    world.admit("maastro")
    role = file.removesuffix(".json").rpartition(".")[2]
    source = file if role == "timestamp" else f"2.{role}.json"
    world.put(file, world.resign(source, lambda signed: None, [world.coord.keys / "root.pem"]))
    with pytest.raises((BadSignature, MixAndMatch)):
        world.admit("alice")


def test_a_coordinator_signs_no_roster_that_was_swapped(world: World) -> None:
    old = world.store.get(world.roster_key(), 2**20)
    world.admit("maastro")
    world.store.put(world.roster_key(), old)
    with pytest.raises(MixAndMatch):
        world.admit("alice")


def test_a_second_coordinators_home_writes_as_well(world: World, tmp_path: Path) -> None:
    second = Home(tmp_path / "second")
    shutil.copytree(world.coord.path, second.path)
    world.admit("maastro")
    coordinator.admit(world.store, second, [world.request("alice")], NOW)
    world.admit("bob")
    assert world.names() == ["coordinator", "maastro", "alice", "bob"]


# crashes: the power fails before or after the k-th write


class Crash(Exception):
    """The process is gone."""


def crash_at(store: MemoryStore, count: int, *, after: bool) -> None:
    """Let a store die at its count-th write, before it is done or after. Restores itself by `heal`."""
    left = itertools.count(count, -1)

    def hook(verb: str, key: str) -> None:
        if verb in ("create", "put") and next(left) == 0:
            raise Crash

    store.after, store.before = (hook, nothing) if after else (nothing, hook)


def nothing(verb: str, key: str) -> None:
    """No fault."""


def heal(store: MemoryStore) -> None:
    store.after = store.before = nothing


def crashes(act: Callable[[], object], store: MemoryStore, count: int, after: bool) -> bool:
    """Does the act die at this write? False if it has no so many writes."""
    crash_at(store, count, after=after)
    try:
        act()
    except Crash:
        return True
    finally:
        heal(store)
    return False


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_write_of_a_creation_is_made_good_by_the_same_command(tmp_path: Path, after: bool) -> None:
    for count in range(20):
        store, home = MemoryStore(), Home(tmp_path / f"{count}")
        if not crashes(lambda store=store, home=home: create(store, home), store, count, after):
            break
        if after and any(info.key == layout.MARKER for info in store.list("")):
            with pytest.raises(AlreadyExists):
                create(store, home)
        else:
            create(store, home)
        roster = refresh(store, home.trust, expect_registry=load_profile(home).registry_id).roster
        assert [m.name for m in roster.members] == ["boss"]
        assert roster.registry.encode() in store.get(layout.MARKER, 10_000)
    assert count == 6  # root, roster, targets, snapshot, timestamp, marker


def test_somebody_elses_unfinished_registry_is_left_alone(tmp_path: Path) -> None:
    store = MemoryStore()
    assert crashes(lambda: create(store, Home(tmp_path / "one")), store, 3, True)
    before = {info.key for info in store.list("")}
    with pytest.raises(AlreadyExists, match="unfinished"):
        create(store, Home(tmp_path / "two"))
    assert {info.key for info in store.list("")} == before


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_write_of_an_admission_leaves_the_old_roster_or_the_new(tmp_path: Path, after: bool) -> None:
    for count in range(20):
        (tmp_path / f"{count}").mkdir()
        world = World(tmp_path / f"{count}")
        request = world.request("maastro")
        if not crashes(lambda world=world, request=request: admit(world, request), world.store, count, after):
            break
        assert world.names() in (["coordinator"], ["coordinator", "maastro"])
        admit(world, request)
        assert world.names() == ["coordinator", "maastro"]
        world.admit("alice")
        assert world.names() == ["coordinator", "maastro", "alice"]
    assert count == 4  # roster, targets, snapshot, timestamp


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_write_of_a_renewal_is_made_good_by_the_next(world: World, after: bool) -> None:
    for count in range(2):
        assert crashes(lambda: coordinator.renew(world.store, world.coord, NOW + DAY), world.store, count, after)
        world.refresh()
        coordinator.renew(world.store, world.coord, NOW + DAY)
        assert world.refresh().expires == NOW + 31 * DAY


def test_another_command_finishes_what_a_crash_left(world: World) -> None:
    """The crash came after the decision (N.targets.json): whoever comes next publishes it, then does their own."""
    request = world.request("maastro")
    assert crashes(lambda: admit(world, request), world.store, 2, False)
    assert world.names() == ["coordinator"]
    coordinator.renew(world.store, world.coord, NOW)
    assert world.names() == ["coordinator", "maastro"]


# rivals: two coordinators on two machines


@pytest.fixture
def rival(world: World, tmp_path: Path) -> Home:
    home = Home(tmp_path / "rival")
    shutil.copytree(world.coord.path, home.path)
    return home


@pytest.mark.parametrize("moment", ["roster.json", "2.targets.json"])
def test_of_two_coordinators_at_once_one_wins_and_the_other_is_told_to_run_again(world: World, rival: Home, moment: str) -> None:
    mine, theirs = world.request("maastro"), world.request("alice")
    at_moment(world.store, moment, lambda: coordinator.admit(world.store, rival, [theirs], NOW))
    with pytest.raises(AlreadyExists) as caught:
        admit(world, mine)
    assert "again" in str(caught.value.hint)
    assert world.names() == ["coordinator", "alice"]
    admit(world, mine)
    assert world.names() == ["coordinator", "alice", "maastro"]


@pytest.mark.parametrize("moment", ["2.snapshot.json", "timestamp.json"])
def test_a_rival_in_the_middle_of_a_publication_loses_nothing_and_undoes_nothing(world: World, rival: Home, moment: str) -> None:
    """The rival publishes ours, then its own; our older timestamp, written last, is put right at once."""
    mine, theirs = world.request("maastro"), world.request("alice")
    at_moment(world.store, moment, lambda: (coordinator.admit(world.store, rival, [theirs], NOW), world.refresh()))
    try:
        admit(world, mine)
    except AlreadyExists:
        admit(world, mine)
    assert world.names() == ["coordinator", "maastro", "alice"]


def at_moment(store: MemoryStore, file: str, act: Callable[[], object]) -> None:
    """Let something happen just before a file is written for the first time."""

    def hook(verb: str, key: str) -> None:
        if verb in ("create", "put") and key.endswith(file):
            store.before = nothing
            act()

    store.before = hook


def test_a_lost_reply_is_not_a_lost_roster(world: World) -> None:
    """The store went away in the middle; the same command later finishes."""

    def gone(verb: str, key: str) -> None:
        if key.endswith("2.snapshot.json"):
            raise Unreachable("gone")

    request = world.request("maastro")
    world.store.after = gone
    with pytest.raises(PtmError):
        admit(world, request)
    world.store.after = nothing
    admit(world, request)
    assert world.names() == ["coordinator", "maastro"]


def test_a_roster_that_is_too_large_is_refused_before_anything_is_written(world: World) -> None:
    publisher = Publisher(world.store, world.coord.trust, load_signing_key(world.coord.keys / "roles.pem"))
    state = publisher.load()
    assert state.roster
    (boss,) = state.roster.members
    many = tuple(
        boss.model_copy(update={"name": f"m{i}", "sign_key": f"{i:064x}", "age_key": f"{i}", "organisation": "x" * 900})
        for i in range(1000)
    )
    before = world.snapshot_of_bucket()
    with pytest.raises(UsageError, match="roster"):
        publisher.publish(state, Roster.model_construct(registry=state.roster.registry, members=many), NOW)
    assert world.snapshot_of_bucket() == before
