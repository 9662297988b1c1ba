"""What a member believes, and each attack on it with its own error."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import MetaFile

from ptm import coordinator, layout
from ptm.errors import (
    AccessDenied,
    BadSignature,
    ExpiredTimestamp,
    Frozen,
    Malformed,
    MixAndMatch,
    NotAllowed,
    NotForUs,
    NotFound,
    PtmError,
    Rollback,
    StoreError,
    TrustError,
    Unreachable,
    UsageError,
)
from ptm.trust import pin_root, read_state, refresh
from tests.registries import DAY, NOW, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def rotate(world: World, **changes: Any) -> str:
    given: dict[str, Any] = {"add": [], "remove": [], "threshold": None, "sign_with": [], "now": NOW}
    return coordinator.rotate_root(world.store, world.coord, **(given | changes))


# the roster


def test_a_member_sees_who_was_admitted(world: World) -> None:
    world.admit("maastro", "alice")
    trusted = world.refresh()
    assert [m.name for m in trusted.roster.members if m.kind == "site"] == ["maastro", "alice"]
    assert trusted.active("maastro").kind == "site"
    assert trusted.version == 2
    assert trusted.expires == NOW + 30 * DAY


def test_a_revoked_member_is_known_but_not_active(world: World) -> None:
    world.admit("maastro")
    coordinator.revoke(world.store, world.coord, ["maastro"], NOW)
    trusted = world.refresh()
    assert trusted.member("maastro") is not None
    with pytest.raises(NotAllowed, match="revoked"):
        trusted.active("maastro")


def test_an_unknown_member_is_not_active(world: World) -> None:
    assert world.refresh().member("nobody") is None
    with pytest.raises(NotAllowed, match="not a member"):
        world.refresh().active("nobody")


def test_a_name_that_a_person_mistyped_is_their_mistake_and_a_revoked_member_is_refused(world: World) -> None:
    world.admit("maastro", "ttp")
    coordinator.revoke(world.store, world.coord, ["ttp"], NOW)
    trusted = world.refresh()
    assert trusted.named("maastro") == trusted.active("maastro")
    with pytest.raises(UsageError, match="mastro: not a member") as caught:
        trusted.named("mastro")
    assert str(caught.value.hint).startswith("did you mean maastro? ")
    with pytest.raises(UsageError) as caught:
        trusted.named("tpp")
    assert "ttp" not in str(caught.value.hint), "a revoked member is no advice"
    with pytest.raises(NotAllowed, match="ttp was revoked"):
        trusted.named("ttp")


def test_another_registry_at_the_same_url_is_not_ours(world: World) -> None:
    with pytest.raises(NotForUs):
        refresh(world.store, world.trust, expect_registry="00000000-0000-4000-8000-000000000000")


def test_threads_that_share_a_home_all_see_the_roster(world: World) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(world.refresh().version)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 6


# rollback


def test_rollback_of_the_whole_bucket_is_refused(world: World) -> None:
    before = world.snapshot_of_bucket()
    world.admit("maastro")
    world.refresh()
    world.restore(before)
    with pytest.raises(Rollback):
        world.refresh()


def test_rollback_of_the_timestamp_alone_is_refused(world: World) -> None:
    old = world.get("timestamp.json")
    world.admit("maastro")
    world.refresh()
    world.put("timestamp.json", old)
    with pytest.raises(Rollback, match=r"timestamp\.json"):
        world.refresh()


def test_rollback_of_the_roster_by_a_newer_snapshot_is_refused(world: World) -> None:
    """A snapshot that goes on counting but names the targets of before."""
    world.admit("maastro")
    world.refresh()
    old_targets = MetaFile.from_data(1, world.get("1.targets.json"), ["sha256"])
    snapshot = world.resign("2.snapshot.json", lambda s: (setattr(s, "version", 3), s.meta.update({"targets.json": old_targets})))
    world.put("3.snapshot.json", snapshot)
    meta = MetaFile.from_data(3, snapshot, ["sha256"])
    world.put(
        "timestamp.json", world.resign("timestamp.json", lambda t: (setattr(t, "version", 3), setattr(t, "snapshot_meta", meta)))
    )
    with pytest.raises(Rollback, match=r"snapshot\.json"):
        world.refresh()


def test_rollback_of_the_root_is_not_believed(world: World) -> None:
    """A bucket that hides the newer root: the member goes on from the root it has."""
    rotate(world)
    world.refresh()
    world.store.delete(layout.trust_metadata("2.root.json"))
    world.refresh()
    assert read_state(world.trust).version == 2


# freeze and expiry


def test_freeze_an_expired_timestamp_is_its_own_error(tmp_path: Path) -> None:
    world = World(tmp_path, now=NOW - 31 * DAY)
    with pytest.raises(ExpiredTimestamp):
        world.refresh()


def test_freeze_a_timestamp_that_expires_after_it_was_seen_is_refused_too(world: World) -> None:
    """The same timestamp as before: python-tuf finds out only at the snapshot."""
    world.refresh()
    expired = world.resign("timestamp.json", lambda t: setattr(t, "expires", NOW - DAY))
    world.put("timestamp.json", expired)
    (world.trust / "timestamp.json").write_bytes(expired)
    with pytest.raises(ExpiredTimestamp):
        world.refresh()


def test_freeze_an_expired_root_says_that_it_is_the_root(tmp_path: Path) -> None:
    world = World(tmp_path, now=NOW - 366 * DAY)
    coordinator.renew(world.store, world.coord, NOW)
    with pytest.raises(Frozen, match="root") as caught:
        world.refresh()
    assert "rotate-root" in str(caught.value.hint)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_freeze_expired_snapshot_or_targets_are_refused(world: World, role: str) -> None:
    targets = world.resign("1.targets.json", lambda t: setattr(t, "expires", NOW - DAY) if role == "targets" else None)
    world.put("1.targets.json", targets)

    def point(snapshot: Any) -> None:
        snapshot.meta["targets.json"] = MetaFile.from_data(1, targets, ["sha256"])
        snapshot.expires = NOW - DAY if role == "snapshot" else snapshot.expires

    snapshot = world.resign("1.snapshot.json", point)
    world.put("1.snapshot.json", snapshot)
    meta = MetaFile.from_data(1, snapshot, ["sha256"])
    world.put("timestamp.json", world.resign("timestamp.json", lambda t: setattr(t, "snapshot_meta", meta)))
    with pytest.raises(Frozen, match=role):
        world.refresh()


def test_renewal_ends_the_expiry(tmp_path: Path) -> None:
    world = World(tmp_path, now=NOW - 91 * DAY)
    with pytest.raises(ExpiredTimestamp):
        world.refresh()
    coordinator.renew(world.store, world.coord, NOW)
    assert world.refresh().expires == NOW + 30 * DAY


# mix-and-match, swap, truncation


def test_mix_and_match_of_snapshots_is_refused(world: World) -> None:
    world.admit("maastro")
    world.put("2.snapshot.json", world.get("1.snapshot.json"))
    with pytest.raises(MixAndMatch):
        world.refresh()


def test_mix_and_match_of_targets_is_refused(world: World) -> None:
    world.admit("maastro")
    world.put("2.targets.json", world.get("1.targets.json"))
    with pytest.raises(MixAndMatch):
        world.refresh()


def test_a_file_of_another_role_is_refused(world: World) -> None:
    world.put("timestamp.json", world.get("1.snapshot.json"))
    with pytest.raises(MixAndMatch):
        world.refresh()


def test_a_swapped_roster_is_refused(world: World) -> None:
    old = world.store.get(world.roster_key(), 2**20)
    world.admit("maastro")
    world.store.put(world.roster_key(), old)
    with pytest.raises(MixAndMatch):
        world.refresh()


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_truncated_roster_is_refused(world: World, cut: int) -> None:
    key = world.roster_key()
    world.store.put(key, world.store.get(key, 2**20)[:cut])
    with pytest.raises(MixAndMatch):
        world.refresh()


@pytest.mark.parametrize("file", ["1.snapshot.json", "1.targets.json"])
def test_a_hidden_file_is_refused(world: World, file: str) -> None:
    world.store.delete(layout.trust_metadata(file))
    with pytest.raises(MixAndMatch, match="missing"):
        world.refresh()


def test_a_hidden_roster_is_refused(world: World) -> None:
    world.store.delete(world.roster_key())
    with pytest.raises(MixAndMatch, match="missing"):
        world.refresh()


def test_a_hidden_timestamp_is_no_finished_registry(world: World) -> None:
    world.store.delete(layout.trust_metadata("timestamp.json"))
    with pytest.raises(NotFound, match="timestamp"):
        world.refresh()


def test_an_endless_timestamp_is_refused(world: World) -> None:
    world.put("timestamp.json", b" " * 2**20)
    with pytest.raises(MixAndMatch, match="longer"):
        world.refresh()


def test_a_roster_kept_on_disk_is_checked_again(world: World) -> None:
    """A half-written file from a crash, or one that was meddled with."""
    world.refresh()
    (world.trust / "roster.json").write_bytes(b"{")
    assert world.names() == ["coordinator"]


# signatures


def test_a_timestamp_signed_by_somebody_else_is_a_bad_signature(world: World) -> None:
    forged = world.resign("timestamp.json", lambda t: setattr(t, "version", 9), [world.coord.keys / "root.pem"])
    world.put("timestamp.json", forged)
    with pytest.raises(BadSignature, match=r"timestamp\.json"):
        world.refresh()


def test_metadata_that_is_not_json_is_malformed(world: World) -> None:
    world.put("timestamp.json", b"\xff{")
    with pytest.raises(Malformed):
        world.refresh()


def test_whatever_byte_is_flipped_nothing_but_the_true_roster_is_ever_believed(world: World) -> None:
    world.admit("maastro")
    truth = refresh(world.store, world.trust).roster
    keys = [info.key for info in world.store.list("trust/") if not info.key.endswith("/1.root.json")]
    for number, key in enumerate(keys):
        body = world.store.get(key, 2**20)
        for position in range(number % 7, len(body), 61):
            trust = world.path / f"flip-{number}-{position}"
            pin_root(world.store, trust, world.fingerprint)
            world.store.put(key, body[:position] + bytes([body[position] ^ 0x21]) + body[position + 1 :])
            try:
                assert refresh(world.store, trust).roster == truth
            except TrustError as e:
                assert str(e)
            except PtmError as e:
                assert isinstance(e, Malformed | BadSignature)
            world.store.put(key, body)


# the store's own trouble is never taken for "there is no newer root"


@pytest.mark.parametrize("error", [AccessDenied("no"), Unreachable("no"), StoreError("no")])
@pytest.mark.parametrize("file", ["2.root.json", "timestamp.json", "2.targets.json", "roster.json"])
def test_a_store_in_trouble_surfaces_as_itself(world: World, error: StoreError, file: str) -> None:
    world.admit("maastro")

    def trouble(verb: str, key: str) -> None:
        if key.endswith(file):
            raise error

    world.store.before = trouble
    with pytest.raises(type(error)) as caught:
        world.refresh()
    assert caught.value is error


def test_a_root_too_large_is_not_read(world: World) -> None:
    world.put("2.root.json", b" " * 2**20 + b" ")
    with pytest.raises(MixAndMatch, match="longer"):
        world.refresh()


def test_a_trust_folder_that_cannot_be_written_is_said_in_one_line(world: World) -> None:
    (world.trust / "root_history").write_bytes(b"in the way")
    with pytest.raises(TrustError, match="cannot be used"):
        world.refresh()


def test_a_home_that_lost_its_root_link_in_a_crash_goes_on(world: World) -> None:
    """python-tuf removes and remakes the link `root.json`; a kill in between leaves none."""
    world.refresh()
    (world.trust / "root.json").unlink()
    assert world.names() == ["coordinator"]
