"""Reviewed images: m of n reviewers sign one list, on machines of their own; what anybody else does to it counts for nothing."""

from __future__ import annotations

import io
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Metadata, Targets

from ptm import coordinator, layout, reviewing
from ptm.algorithms import ReviewedImage, images_of, reviewed, reviewed_digests
from ptm.config import Home
from ptm.enrolment import join
from ptm.errors import AlreadyExists, KeyFileError, Malformed, MixAndMatch, NotAllowed, PtmError, Rollback, UsageError
from ptm.keys import load_keys
from ptm.reviewing import Proposal
from ptm.trust import pin_root, refresh
from tests.registries import DAY, NOW, World

COUNT, PLOT = f"lab/count@sha256:{'a' * 64}", f"lab/plot@sha256:{'b' * 64}"
A, B = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
REVIEWERS = ("alice", "bob", "carol")


class Review(World):
    """A registry with three reviewers, two of whom have to sign; maastro is a member who reviews nothing."""

    def __init__(self, path: Path, threshold: int = 2) -> None:
        super().__init__(path)
        self.admit(*REVIEWERS, "maastro")
        for name in (*REVIEWERS, "maastro"):
            join(self.store, self.home(name), self.fingerprint)
        self.reviewers(add=REVIEWERS, threshold=threshold)

    def home(self, name: str) -> Home:
        return Home(self.path / name)

    def reviewers(self, add: tuple[str, ...] = (), remove: tuple[str, ...] = (), threshold: int | None = None) -> None:
        coordinator.set_reviewers(self.store, self.coord, add=add, remove=remove, threshold=threshold, now=NOW)

    def approve(self, name: str, *images: str, now: Any = NOW) -> Proposal:
        return reviewing.approve(self.store, self.home(name), images or (COUNT,), now)

    def withdraw(self, name: str, *images: str) -> Proposal:
        return reviewing.withdraw(self.store, self.home(name), images or (COUNT,), NOW)

    def publish(self) -> Proposal | None:
        return coordinator.publish_reviewed(self.store, self.coord, NOW)

    def reviewed(self, *images: str) -> None:
        """Let these be approved by alice and bob, and published."""
        self.approve("alice", *images)
        self.approve("bob", *images)
        assert self.publish() is not None

    def digests(self) -> frozenset[str]:
        """What a member believes to be reviewed."""
        return reviewed_digests(self.store, self.trust)

    def trouble(self) -> str | None:
        return reviewed(self.store, self.trust).trouble


@pytest.fixture
def world(tmp_path: Path) -> Review:
    return Review(tmp_path)


# the way of an approval


def test_an_image_is_reviewed_once_two_reviewers_signed_and_the_coordinator_published(world: Review) -> None:
    assert world.approve("alice").progress == "1 of 2 signatures"
    assert world.digests() == frozenset()
    assert world.approve("bob").complete
    assert world.digests() == frozenset()
    done = world.publish()
    assert done is not None
    assert done.signed_by == ("alice", "bob")
    found = reviewed(world.store, world.trust)
    assert (found.images, found.version, found.expires) == (
        (ReviewedImage(image="lab/count", digest=A),),
        1,
        NOW + 365 * DAY,
    )
    assert world.digests() == {A}


def test_one_signature_of_two_is_published_by_nothing(world: Review) -> None:
    world.approve("alice")
    assert world.publish() is None
    coordinator.renew(world.store, world.coord, NOW)
    assert world.digests() == frozenset()


def test_a_renewal_publishes_what_is_complete(world: Review) -> None:
    world.approve("alice")
    world.approve("carol")
    coordinator.renew(world.store, world.coord, NOW)
    assert world.digests() == {A}


def test_later_images_join_the_list_and_others_stay(world: Review) -> None:
    world.reviewed(COUNT)
    world.reviewed(PLOT)
    assert world.digests() == {A, B}


def test_a_withdrawal_takes_as_many_signatures(world: Review) -> None:
    world.reviewed(COUNT, PLOT)
    assert not world.withdraw("bob").complete
    assert world.digests() == {A, B}
    done = world.withdraw("carol")
    assert [image.digest for image in done.removed] == [A]
    world.publish()
    assert world.digests() == {B}


def test_the_list_survives_admissions_and_renewals_of_the_targets(world: Review) -> None:
    world.reviewed(COUNT)
    world.admit("umcu")
    coordinator.renew(world.store, world.coord, NOW + 60 * DAY)
    assert world.digests() == {A}


def test_another_tuf_client_finds_the_record_of_an_image(world: Review) -> None:
    world.reviewed(COUNT)
    image = ReviewedImage(image="lab/count", digest=A)
    key = layout.trust_target(f"algorithms/{image.target.hashes['sha256']}.{'a' * 64}")
    image.target.verify_length_and_hashes(world.store.get(key, 1000))


def test_a_registry_without_reviewers_has_nothing_reviewed_and_says_so(tmp_path: Path) -> None:
    plain = World(tmp_path)
    assert reviewed_digests(plain.store, plain.trust) == frozenset()
    assert "no reviewers" in str(reviewed(plain.store, plain.trust).trouble)


# refusals


def test_a_member_who_is_no_reviewer_cannot_sign(world: Review) -> None:
    with pytest.raises(NotAllowed, match="not a reviewer") as caught:
        world.approve("maastro")
    assert "reviewers --add maastro" in str(caught.value.hint)


def test_the_same_approval_twice_is_told_how_far_it_is(world: Review) -> None:
    world.approve("alice")
    with pytest.raises(AlreadyExists, match="1 of 2 signatures"):
        world.approve("alice")


def test_an_image_on_the_list_is_not_approved_again_before_half_a_year(world: Review) -> None:
    world.reviewed(COUNT)
    with pytest.raises(AlreadyExists, match="reviewed already"):
        world.approve("carol")
    assert world.approve("carol", now=NOW + 200 * DAY).metadata.signed.expires == NOW + 565 * DAY


def test_the_same_digest_by_another_name_is_refused(world: Review) -> None:
    world.reviewed(COUNT)
    with pytest.raises(AlreadyExists, match="lab/count"):
        world.approve("carol", f"evil/other@{A}")


@pytest.mark.parametrize("text", ["lab/count:1", "lab/count", "lab/count@sha256:abc", "", f"@{A}"])
def test_an_image_without_a_digest_cannot_be_approved(world: Review, text: str) -> None:
    with pytest.raises(UsageError):
        world.approve("alice", text)


def test_what_is_not_on_the_list_cannot_be_withdrawn(world: Review) -> None:
    world.approve("alice")
    with pytest.raises(UsageError, match="not on the list"):
        world.withdraw("alice")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"threshold": 4}, UsageError),
        ({"threshold": 0}, UsageError),
        ({"remove": REVIEWERS}, UsageError),
        ({"remove": ("maastro",)}, UsageError),
        ({"add": ("nobody",)}, UsageError),
    ],
)
def test_a_board_that_makes_no_sense_changes_nothing(world: Review, changes: dict[str, Any], error: type[PtmError]) -> None:
    before = world.snapshot_of_bucket()
    with pytest.raises(error):
        world.reviewers(**changes)
    assert world.snapshot_of_bucket() == before


def test_the_first_board_needs_a_threshold(tmp_path: Path) -> None:
    plain = World(tmp_path)
    plain.admit("alice")
    with pytest.raises(UsageError, match="threshold"):
        coordinator.set_reviewers(plain.store, plain.coord, add=["alice"], remove=[], threshold=None, now=NOW)


def test_a_revoked_member_cannot_become_a_reviewer(world: Review) -> None:
    coordinator.revoke(world.store, world.coord, ["maastro"], NOW)
    with pytest.raises(NotAllowed, match="maastro"):
        world.reviewers(add=("maastro",))


def test_only_a_coordinator_names_reviewers_and_publishes(world: Review) -> None:
    with pytest.raises(KeyFileError):
        coordinator.set_reviewers(world.store, world.home("alice"), add=["maastro"], remove=[], threshold=1, now=NOW)
    with pytest.raises(KeyFileError):
        coordinator.publish_reviewed(world.store, world.home("alice"), NOW)


# reviewers change


def test_a_revoked_reviewers_signature_counts_no_more_until_another_signs(world: Review) -> None:
    world.reviewed(COUNT, PLOT)
    coordinator.revoke(world.store, world.coord, ["alice"], NOW)
    assert world.digests() == frozenset()
    assert "1 of 2 signatures" in str(world.trouble())
    assert {image.digest for image in reviewed(world.store, world.trust).lapsed} == {A, B}
    world.approve("bob", COUNT)
    world.approve("carol", COUNT)
    world.publish()
    assert world.digests() == {A}


def test_the_roster_is_read_while_the_list_has_lapsed(world: Review) -> None:
    world.reviewed(COUNT)
    world.reviewers(threshold=3)
    assert world.digests() == frozenset()
    assert "alice" in world.names()


def test_a_reviewer_more_changes_nothing_about_the_list(world: Review) -> None:
    world.reviewed(COUNT)
    world.reviewers(add=("maastro",))
    assert world.digests() == {A}


def test_a_signature_of_a_reviewer_who_was_removed_since_is_not_counted(world: Review) -> None:
    world.approve("alice")
    world.reviewers(remove=("alice",))
    assert not world.approve("bob").complete
    assert world.publish() is None


def test_an_expired_list_counts_for_nothing_and_says_so(world: Review) -> None:
    world.approve("alice", now=NOW - 400 * DAY)
    world.approve("bob", now=NOW - 400 * DAY)
    assert coordinator.publish_reviewed(world.store, world.coord, NOW - 400 * DAY) is not None
    coordinator.renew(world.store, world.coord, NOW)
    assert world.digests() == frozenset()
    assert "expired" in str(world.trouble())
    world.reviewed(COUNT)
    assert world.digests() == {A}


# proposals next to each other


def test_of_two_proposals_the_one_published_first_makes_the_other_void(world: Review) -> None:
    world.approve("alice", COUNT)
    world.approve("bob", PLOT)
    world.approve("carol", COUNT)
    world.publish()
    assert world.digests() == {A}
    assert reviewing.look(world.store, world.home("bob")).proposals == ()
    world.approve("bob", PLOT)
    world.approve("alice", PLOT)
    world.publish()
    assert world.digests() == {A, B}


def test_two_first_signatures_at_the_same_moment_come_together(world: Review) -> None:
    """Both began a proposal of their own, with another expiry; whoever gives the command again joins the other's."""
    before = world.snapshot_of_bucket()
    world.approve("alice", now=NOW)
    (mine,) = world.store.list(layout.PENDING)
    body = world.store.get(mine.key, 2**20)
    world.restore(before)
    world.approve("bob", now=NOW + DAY / 24)
    world.store.put(mine.key, body)
    complete = []
    for name in ("alice", "bob"):
        try:
            complete.append(world.approve(name, now=NOW + DAY / 24).complete)
        except AlreadyExists:
            continue
    assert complete == [True]
    world.publish()
    assert world.digests() == {A}


def test_a_proposal_that_carries_more_than_was_said_is_not_joined(world: Review) -> None:
    """Alice proposes two images, and tells bob about one."""
    world.approve("alice", COUNT, PLOT)
    joined = world.approve("bob", COUNT)
    assert (joined.progress, [image.digest for image in joined.added]) == ("1 of 2 signatures", [A])
    assert world.publish() is None


def test_a_part_of_a_proposal_is_another_proposal(world: Review) -> None:
    world.approve("alice", COUNT, PLOT)
    assert [image.digest for image in world.approve("alice", COUNT).added] == [A]
    assert world.approve("bob", COUNT).complete


def plant(world: Review, name: str, signed: Targets, under: str | None = None) -> None:
    """A list of somebody's own making, signed with their key, under theirs or another's name."""
    metadata = Metadata(signed)
    metadata.sign(CryptoSigner(load_keys(world.home(name).keys).signing))
    digest = reviewing._digest(metadata.signed_bytes)
    world.store.put(layout.pending(under or name, signed.version, digest), metadata.to_bytes())


def images(*labels: str) -> dict[str, Any]:
    found = [reviewing.parse_reviewed(label) for label in labels]
    return {image.path: image.target for image in found}


def test_a_list_with_a_hidden_part_is_nobodys_proposal(world: Review) -> None:
    """What a reviewer would not see is signed by nobody: a field of its own, a wrong name, a delegation to somebody else."""
    hidden = Targets(version=1, expires=NOW + 300 * DAY, targets=images(COUNT), unrecognized_fields={"x": 1})
    plant(world, "alice", hidden)
    misnamed = images(COUNT)
    misnamed[f"algorithms/{'a' * 64}"].unrecognized_fields["custom"]["digest"] = B
    plant(world, "alice", Targets(version=1, expires=NOW + 300 * DAY, targets=misnamed))
    delegating = Targets(version=1, expires=NOW + 300 * DAY, targets=images(COUNT))
    delegating.delegations = Metadata[Targets].from_bytes(newest_targets(world)).signed.delegations
    plant(world, "alice", delegating)
    assert reviewing.look(world.store, world.home("bob")).proposals == ()
    assert world.approve("bob").progress == "1 of 2 signatures"


def newest_targets(world: Review) -> bytes:
    version = refresh(world.store, world.trust).version
    return world.get(f"{version}.targets.json")


@pytest.mark.parametrize("days", [-1, 900])
def test_a_proposal_that_has_expired_or_lives_too_long_is_not_joined(world: Review, days: int) -> None:
    plant(world, "alice", Targets(version=1, expires=NOW + days * DAY, targets=images(COUNT)))
    assert world.approve("bob").progress == "1 of 2 signatures"


# attacks


def test_who_is_no_reviewer_adds_no_signature_under_a_reviewers_name(world: Review) -> None:
    world.approve("alice")
    signed = reviewing.look(world.store, world.home("alice")).proposals[0].metadata.signed
    plant(world, "maastro", signed)
    plant(world, "maastro", signed, under="bob")
    assert world.publish() is None


def test_one_reviewers_signature_copied_under_another_name_counts_once(world: Review) -> None:
    world.approve("alice")
    (info,) = world.store.list(layout.PENDING)
    world.store.put(info.key.replace("alice", "bob"), world.store.get(info.key, 2**20))
    assert world.publish() is None


def test_rubbish_in_the_pending_folder_stops_nobody(world: Review) -> None:
    for key, body in (
        ("trust/pending/alice/x.json", b"{"),
        (layout.pending("bob", 1, "0" * 64), b"\xff"),
        (layout.pending("alice", 1, "1" * 64), world.get("1.snapshot.json")),
        (layout.pending("carol", 1, "2" * 64), b" " * (2**20 + 1)),
    ):
        world.store.upload(key, io.BytesIO(body))
    world.reviewed(COUNT)
    assert world.digests() == {A}


def test_an_occupied_place_of_a_signature_is_said_not_overwritten(world: Review) -> None:
    key = layout.pending("alice", 1, world_digest(world))
    world.store.put(key, b"mine")
    with pytest.raises(AlreadyExists, match="something else"):
        world.approve("alice")
    assert world.store.get(key, 100) == b"mine"


def world_digest(world: Review) -> str:
    return reviewing._digest(Metadata(Targets(version=1, expires=NOW + 365 * DAY, targets=images(COUNT))).signed_bytes)


def test_a_list_planted_after_the_published_one_is_passed_over(world: Review) -> None:
    """Whoever holds the bucket, or one reviewer, writes the next list themselves."""
    world.reviewed(COUNT)
    signed = Metadata(Targets(version=2, expires=NOW + 300 * DAY, targets=images(COUNT, PLOT)))
    signed.sign(CryptoSigner(load_keys(world.home("alice").keys).signing))
    world.put("2.algorithms.json", signed.to_bytes())
    world.put("3.algorithms.json", b"\xff")
    world.store.upload(layout.trust_metadata("4.algorithms.json"), io.BytesIO(b" " * 2**21))
    coordinator.renew(world.store, world.coord, NOW)
    assert world.digests() == {A}
    world.reviewed(PLOT)
    assert (world.digests(), reviewed(world.store, world.trust).version) == ({A, B}, 5)


def test_a_list_published_with_too_few_signatures_counts_for_nothing(world: Review) -> None:
    """The roles key is stolen: its thief can name reviewers, but not speak for those who are."""
    world.reviewed(COUNT)

    def names_another(snapshot: Any) -> None:
        snapshot.version += 1
        body = world.get("1.algorithms.json")
        metadata = Metadata[Targets].from_bytes(body)
        metadata.signed.targets.update(images(PLOT))
        world.put("1.algorithms.json", metadata.to_bytes())
        snapshot.meta["algorithms.json"] = snapshot.meta["algorithms.json"].from_data(1, metadata.to_bytes(), ["sha256"])

    version = max(int(k.rpartition("/")[2].split(".")[0]) for k in world.snapshot_of_bucket() if k.endswith("snapshot.json"))
    snapshot = world.resign(f"{version}.snapshot.json", names_another)
    world.put(f"{version + 1}.snapshot.json", snapshot)

    def points(timestamp: Any) -> None:
        timestamp.version = version + 1
        timestamp.snapshot_meta = timestamp.snapshot_meta.from_data(version + 1, snapshot, ["sha256"])

    world.put("timestamp.json", world.resign("timestamp.json", points))
    assert world.digests() == frozenset()
    assert "0 of 2 signatures" in str(world.trouble())


def test_rollback_to_a_list_before_a_withdrawal_is_refused(world: Review) -> None:
    world.reviewed(COUNT)
    before = world.snapshot_of_bucket()
    world.withdraw("alice")
    world.withdraw("bob")
    world.publish()
    assert world.digests() == frozenset()
    world.restore(before)
    with pytest.raises(Rollback):
        world.digests()


@pytest.mark.parametrize("body", [b"", b"{}", None])
def test_a_list_that_was_tampered_with_or_hidden_is_an_error(world: Review, body: bytes | None) -> None:
    world.reviewed(COUNT)
    if body is None:
        world.store.delete(layout.trust_metadata("1.algorithms.json"))
    else:
        world.put("1.algorithms.json", body)
    with pytest.raises(MixAndMatch):
        world.digests()


def test_an_old_list_put_in_place_of_the_new_one_is_an_error(world: Review) -> None:
    world.reviewed(COUNT)
    world.withdraw("alice")
    world.withdraw("bob")
    world.publish()
    world.put("2.algorithms.json", world.get("1.algorithms.json"))
    with pytest.raises(MixAndMatch):
        world.digests()


def test_a_list_kept_on_disk_is_checked_again(world: Review) -> None:
    world.reviewed(COUNT)
    world.digests()
    metadata = Metadata[Targets].from_bytes((world.trust / "algorithms.json").read_bytes())
    metadata.signed.targets.update(images(PLOT))
    (world.trust / "algorithms.json").write_bytes(metadata.to_bytes())
    assert world.digests() == {A}


def test_whatever_byte_is_flipped_nothing_else_is_ever_reviewed(world: Review) -> None:
    world.reviewed(COUNT)
    key = layout.trust_metadata("1.algorithms.json")
    body = world.store.get(key, 2**20)
    for position in range(0, len(body), 37):
        trust = world.path / f"flip-{position}"
        pin_root(world.store, trust, world.fingerprint)
        world.store.put(key, body[:position] + bytes([body[position] ^ 0x21]) + body[position + 1 :])
        with pytest.raises(MixAndMatch):
            reviewed_digests(world.store, trust)


def second_role(delegations: Any, role: Any) -> None:
    """One that answers for the paths of `algorithms` before it is asked."""
    delegations.roles = {"other": DelegatedRole("other", role.keyids, 1, True, paths=role.paths), **delegations.roles}


def another_name(delegations: Any, role: Any) -> None:
    delegations.roles = {"other": DelegatedRole("other", role.keyids, role.threshold, True, paths=role.paths)}


def wider_paths(delegations: Any, role: Any) -> None:
    role.paths = ["*"]


@pytest.mark.parametrize("change", [second_role, another_name, wider_paths])
def test_delegations_that_ptm_did_not_make_are_refused(world: Review, change: Any) -> None:
    def changed(targets: Any) -> None:
        change(targets.delegations, targets.delegations.roles["algorithms"])
        bump(targets)

    version = refresh(world.store, world.trust).version
    world.put(f"{version + 1}.targets.json", world.resign(f"{version}.targets.json", changed))
    with pytest.raises(Malformed, match="delegate"):
        world.publish()


def rename(target: Any) -> None:
    target.unrecognized_fields["custom"]["image"] = "lab/other"


def lengthen(target: Any) -> None:
    target.length += 1


def tag(target: Any) -> None:
    target.unrecognized_fields["custom"]["image"] = "lab/count:1"


@pytest.mark.parametrize("change", [rename, lengthen, tag, lambda target: target.unrecognized_fields.clear()])
def test_a_target_that_is_not_what_it_says_is_malformed(change: Any) -> None:
    targets = Targets(targets=images(COUNT))
    assert [image.digest for image in images_of(targets)] == [A]
    change(targets.targets[f"algorithms/{'a' * 64}"])
    with pytest.raises(Malformed):
        images_of(targets)


def bump(signed: Any) -> None:
    signed.version += 1


# crashes and rivals


class Crash(Exception):
    """The process is gone."""


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_write_of_a_publication_leaves_the_old_list_or_the_new(tmp_path: Path, after: bool) -> None:
    for count in range(20):
        (tmp_path / f"{count}").mkdir()
        world = Review(tmp_path / f"{count}")
        world.approve("alice")
        world.approve("bob")
        left = itertools.count(count, -1)

        def hook(verb: str, key: str, left: Any = left) -> None:
            if verb in ("create", "put") and next(left) == 0:
                raise Crash

        setattr(world.store, "after" if after else "before", hook)
        try:
            world.publish()
            died = False
        except Crash:
            died = True
        world.store.after = world.store.before = lambda verb, key: None
        if not died:
            break
        assert world.digests() in (frozenset(), {A})
        world.publish()
        assert world.digests() == {A}
        world.reviewed(PLOT)
        assert world.digests() == {A, B}
    assert count == 4  # record, list, snapshot, timestamp


def test_a_rival_who_changes_the_reviewers_at_the_same_moment_blocks_nothing(world: Review, tmp_path: Path) -> None:
    """The list is written, and lacks a signature a moment later: it is passed over, and the next one gets the next number."""
    rival = Home(tmp_path / "rival")
    shutil.copytree(world.coord.path, rival.path)
    world.approve("alice")
    world.approve("bob")

    def hook(verb: str, key: str) -> None:
        if verb == "create" and key.endswith("1.algorithms.json"):
            world.store.before = lambda verb, key: None
            coordinator.set_reviewers(world.store, rival, add=[], remove=["alice"], threshold=2, now=NOW)

    world.store.before = hook
    with pytest.raises(AlreadyExists):
        world.publish()
    assert world.digests() == frozenset()
    world.approve("bob")
    world.approve("carol")
    world.publish()
    assert (world.digests(), reviewed(world.store, world.trust).version) == ({A}, 2)


def test_a_lost_signature_is_given_again(world: Review) -> None:
    def gone(verb: str, key: str) -> None:
        if key.startswith(layout.PENDING) and verb == "create":
            raise Crash

    world.store.before = gone
    with pytest.raises(Crash):
        world.approve("alice")
    world.store.before = lambda verb, key: None
    assert world.approve("alice").signed_by == ("alice",)


def test_a_pending_key_comes_back_as_it_was_and_other_shapes_are_nobodys() -> None:
    key = layout.pending("alice", 12, "0" * 64)
    assert layout.parse_pending(key) == layout.PendingKey(key, "alice", 12, "0" * 64)
    for other in (key + "x", key.replace("12.", "012."), key.replace("alice", "../x"), key.replace("alice", "A")):
        assert layout.parse_pending(other) is None
