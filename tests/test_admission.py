"""Who is admitted: names and keys are given out once, and a key that is nobody's secret is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ptm import admission, coordinator
from ptm.errors import (
    AlreadyExists,
    BadKey,
    NotAllowed,
)
from ptm.keys import load_signing_key
from ptm.model import MemberRequest
from tests.registries import DAY, NOW, World

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def admit(world: World, *requests: MemberRequest) -> list[str]:
    return [m.name for m in coordinator.admit(world.store, world.coord, requests, NOW)]


def test_members_are_admitted_together(world: World) -> None:
    assert admit(world, world.request("maastro"), world.request("alice", "researcher")) == ["maastro", "alice"]
    assert world.names() == ["coordinator", "maastro", "alice"]


def test_admitting_again_is_a_no_op_that_says_so(world: World) -> None:
    request = world.request("maastro")
    admit(world, request)
    before = world.snapshot_of_bucket()
    heard: list[str] = []
    coordinator.admit(world.store, world.coord, [request], NOW + DAY, lambda member: heard.append(member.name))
    assert heard == ["maastro"]
    assert world.snapshot_of_bucket() == before


def test_a_bad_request_keeps_the_good_one_out_too(world: World) -> None:
    good, bad = world.request("maastro"), world.request("alice").model_copy(update={"sign_key": "01" + "00" * 31})
    before = world.snapshot_of_bucket()
    with pytest.raises(BadKey):
        admit(world, good, bad)
    assert world.snapshot_of_bucket() == before


def test_a_taken_name_is_refused(world: World) -> None:
    admit(world, world.request("maastro"))
    with pytest.raises(AlreadyExists, match="maastro"):
        admit(world, world.request("other").model_copy(update={"name": "maastro"}))


def test_two_requests_for_one_name_are_refused(world: World) -> None:
    with pytest.raises(AlreadyExists):
        admit(world, world.request("maastro"), world.request("other").model_copy(update={"name": "maastro"}))
    assert world.names() == ["coordinator"]


@pytest.mark.parametrize("field", ["sign_key", "age_key"])
def test_a_taken_key_is_refused(world: World, field: str) -> None:
    first = world.request("maastro")
    admit(world, first)
    with pytest.raises(BadKey, match="maastro's"):
        admit(world, world.request("other").model_copy(update={field: getattr(first, field)}))


def test_another_kind_with_the_same_keys_is_refused(world: World) -> None:
    request = world.request("maastro")
    admit(world, request)
    with pytest.raises(AlreadyExists):
        admit(world, request.model_copy(update={"kind": "coordinator"}))


def test_the_registrys_own_key_is_refused(world: World) -> None:
    key = load_signing_key(world.coord.keys / "roles.pem").public_key().public_bytes_raw().hex()
    with pytest.raises(BadKey, match="registry's own"):
        admit(world, world.request("maastro").model_copy(update={"sign_key": key}))


@pytest.mark.parametrize("field", ["name", "sign_key", "age_key"])
def test_nothing_of_a_revoked_member_is_given_out_again(world: World, field: str) -> None:
    old = world.request("maastro")
    admit(world, old)
    coordinator.revoke(world.store, world.coord, ["maastro"], NOW)
    with pytest.raises((NotAllowed, BadKey)):
        admit(world, world.request("other").model_copy(update={field: getattr(old, field)}))
    with pytest.raises(NotAllowed, match="revoked"):
        admit(world, old)


def torsion_points() -> list[tuple[int, int]]:
    """The eight points of low order: the multiples of L times some point, by the curve's own addition."""
    order = 2**252 + 27742317777372353535851937790883648493
    for y in itertools.count(2):
        x = square_root((y * y - 1) * pow(D * y * y + 1, -1, P) % P)
        if x is not None:
            found, point = [(0, 1)], times(order, (x, y))
            while len(found) < 8 and point != found[0] and add(found[-1], point) != found[0]:
                found.append(add(found[-1], point))
            if len(found) == 8:
                return found
    raise AssertionError


def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    product = D * a[0] * b[0] * a[1] * b[1]
    return (
        (a[0] * b[1] + a[1] * b[0]) * pow(1 + product, -1, P) % P,
        (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, P) % P,
    )


def times(factor: int, point: tuple[int, int]) -> tuple[int, int]:
    result = (0, 1)
    for bit in bin(factor)[2:]:
        result = add(result, result)
        result = add(result, point) if bit == "1" else result
    return result


def square_root(square: int) -> int | None:
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    return root if root * root % P == square else None


def low_order_encodings() -> list[str]:
    """Every 32 bytes that a decoder may take for a torsion point: y or y + p where it fits, either sign bit."""
    values = {y + extra for _, y in torsion_points() for extra in (0, P) if y + extra < 2**255}
    return sorted((value | sign << 255).to_bytes(32, "little").hex() for value in values for sign in (0, 1))


def test_the_table_of_low_order_points_is_the_torsion_subgroup() -> None:
    assert {y for _, y in torsion_points()} == admission.LOW_ORDER_Y


def test_every_encoding_of_a_low_order_signing_key_is_refused(world: World) -> None:
    request = world.request("maastro")
    encodings = low_order_encodings()
    assert len(encodings) == 14
    for encoding in encodings:
        with pytest.raises(BadKey):
            admit(world, request.model_copy(update={"sign_key": encoding}))


def test_a_signing_key_that_is_no_point_of_the_curve_is_refused(world: World) -> None:
    request = world.request("maastro")
    off = next(y for y in range(2, 99) if square_root((y * y - 1) * pow(D * y * y + 1, -1, P) % P) is None)
    for encoding in (off, P + 3, 2**255 - 1):
        with pytest.raises(BadKey, match="not a point"):
            admit(world, request.model_copy(update={"sign_key": encoding.to_bytes(32, "little").hex()}))


def test_honest_keys_pass_the_checks() -> None:
    for _ in range(50):
        admission.check_sign_key(Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex(), "x")
        admission.check_age_key(str(pyrage.x25519.Identity.generate().to_public()), "x")


def bech32(prefix: str, data: bytes) -> str:
    """BIP 173, as age spells its recipients."""
    alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    bits = int.from_bytes(data, "big") << 4
    words = [bits >> shift & 31 for shift in range(255, -1, -5)]
    check = 1
    for value in [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix), *words, *[0] * 6]:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> i & 1 else 0
    check ^= 1
    return prefix + "1" + "".join(alphabet[word] for word in [*words, *(check >> 5 * (5 - i) & 31 for i in range(6))])


def low_order_recipients() -> set[str]:
    """The u of every torsion point (RFC 7748, 4.1: u = (1 + y) / (1 - y)) and the twist's, in all encodings X25519 takes."""
    values = {(1 + y) * pow(1 - y, -1, P) % P for _, y in torsion_points() if y != 1} | {0, P - 1}
    spelled = {value + extra for value in values for extra in (0, P) if value + extra < 2**255}
    return {bech32("age", (value | top << 255).to_bytes(32, "little")) for value in spelled for top in (0, 1)}


def test_the_table_of_low_order_recipients_is_complete() -> None:
    assert low_order_recipients() == admission.LOW_ORDER_RECIPIENTS


def test_every_low_order_recipient_is_refused_though_age_takes_it(world: World) -> None:
    request = world.request("maastro")
    for recipient in admission.LOW_ORDER_RECIPIENTS:
        assert str(pyrage.x25519.Recipient.from_str(recipient)) == recipient
        with pytest.raises(BadKey, match="low order"):
            admit(world, request.model_copy(update={"age_key": recipient}))


def test_a_recipient_with_a_wrong_checksum_is_refused(world: World) -> None:
    request = world.request("maastro")
    last = "q" if request.age_key[-1] != "q" else "p"
    with pytest.raises(BadKey, match="not an age recipient"):
        admit(world, request.model_copy(update={"age_key": request.age_key[:-1] + last}))
