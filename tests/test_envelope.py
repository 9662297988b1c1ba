"""Signed documents against hostile bytes. What a document may say is tested in `test_model.py`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ptm import envelope
from ptm.errors import BadSignature, Malformed, NotForUs
from ptm.model import Cancel, Line, MemberRequest, Task
from ptm.workers import Claim

REGISTRY = "a1111111-1111-4111-8111-111111111111"
OTHER_REGISTRY = "b2222222-2222-4222-8222-222222222222"
NOW = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
PUBLIC = KEY.public_key().public_bytes_raw().hex()
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
OTHER_PUBLIC = OTHER_KEY.public_key().public_bytes_raw().hex()
NONCE = "0" * 32
TASK = envelope.task_id(NOW, REGISTRY, "alice", NONCE)
CANCEL = Cancel(registry=REGISTRY, task=TASK, user="alice", created=NOW, reason="wrong cohort")
SIGNED = envelope.sign(CANCEL, KEY)


def resigned(change: dict[str, object]) -> bytes:
    """CANCEL's fields with a change, signed properly: what a malicious member can make."""
    signed = {**json.loads(SIGNED)["signed"], **change}
    canonical = rfc8785.dumps(signed)
    signatures = [{"keyid": envelope.key_id(PUBLIC), "sig": KEY.sign(canonical).hex()}]
    return json.dumps({"signed": signed, "signatures": signatures}).encode()


def with_signature(**change: object) -> bytes:
    outer = json.loads(SIGNED)
    outer["signatures"][0].update(change)
    return json.dumps(outer).encode()


def verify(raw: bytes) -> Cancel:
    return envelope.verify(raw, Cancel, REGISTRY, PUBLIC)


# what must be accepted


def test_a_signed_document_comes_back_as_it_was() -> None:
    assert verify(SIGNED) == CANCEL


def test_layout_and_order_of_the_json_are_not_part_of_what_is_signed() -> None:
    outer = json.loads(SIGNED)
    shuffled = {"signatures": outer["signatures"], "signed": dict(reversed(outer["signed"].items()))}
    assert verify(json.dumps(shuffled).encode()) == CANCEL
    assert envelope.parse(json.dumps(shuffled).encode()).sha256 == envelope.parse(SIGNED).sha256


def test_a_document_is_stored_so_that_a_person_can_read_it() -> None:
    assert b'\n    "reason": "wrong cohort"' in SIGNED
    assert SIGNED.endswith(b"}\n")


names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=("C", "Z")) | st.sampled_from(" \n\t"), max_size=200)
times = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(lambda t: t.replace(microsecond=0))
nonces = st.binary(min_size=16, max_size=16).map(bytes.hex)


@given(user=names, created=times, reason=texts, nonce=nonces)
def test_property_what_is_signed_verifies_and_is_the_same(user: str, created: datetime, reason: str, nonce: str) -> None:
    task = envelope.task_id(created, REGISTRY, user, nonce)
    document = Cancel(registry=REGISTRY, task=task, user=user, created=created, reason=reason)
    assert verify(envelope.sign(document, KEY)) == document


@given(
    user=names,
    sites=st.lists(names, min_size=1, max_size=5, unique=True),
    created=times,
    nonce=nonces,
    purpose=texts,
    command=st.lists(texts.filter(bool), max_size=4),
    ram=st.floats(min_value=0.001, max_value=65536),
)
def test_property_a_task_verifies_and_is_the_same(
    user: str, sites: list[str], created: datetime, nonce: str, purpose: str, command: list[Line], ram: float
) -> None:
    task = Task(
        registry=REGISTRY,
        id=envelope.task_id(created, REGISTRY, user, nonce),
        user=user,
        nonce=nonce,
        created=created,
        expires=created + timedelta(days=7),
        purpose=purpose,
        image="demo/count:1",
        command=tuple(command),
        resources={"ram_gb": ram},  # type: ignore[arg-type]
        sites=tuple(sites),
        recipients=(user,),
    )
    assert envelope.verify(envelope.sign(task, KEY), Task, REGISTRY, PUBLIC) == task


# what must be refused: by somebody without the key


@given(at=st.integers(0, len(SIGNED) - 1), mask=st.integers(1, 255))
def test_property_no_changed_byte_changes_what_is_believed(at: int, mask: int) -> None:
    changed = bytearray(SIGNED)
    changed[at] ^= mask
    try:
        believed = verify(bytes(changed))
    except (Malformed, NotForUs, BadSignature):
        return
    assert believed == CANCEL  # white space, or the case of a hex digit


@given(length=st.integers(0, len(SIGNED) - 2))
def test_property_a_truncated_document_is_refused(length: int) -> None:
    with pytest.raises(Malformed):
        envelope.parse(SIGNED[:length])


@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_property_arbitrary_bytes_are_malformed_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(Malformed):
        envelope.parse(raw)


def test_a_flipped_signature_is_refused() -> None:
    sig = bytearray.fromhex(json.loads(SIGNED)["signatures"][0]["sig"])
    sig[0] ^= 1
    with pytest.raises(BadSignature, match="does not match"):
        verify(with_signature(sig=sig.hex()))


@pytest.mark.parametrize("sig", ["", "00", "00" * 63, "00" * 65, "FF" * 64, "00 " * 64])
def test_a_signature_of_a_wrong_length_or_spelling_is_malformed(sig: str) -> None:
    with pytest.raises(Malformed, match="`sig`"):
        verify(with_signature(sig=sig))


@pytest.mark.parametrize("sig", ["00" * 64, "ff" * 64])
def test_a_signature_of_nothing_is_refused(sig: str) -> None:
    with pytest.raises(BadSignature):
        verify(with_signature(sig=sig))


def test_a_changed_field_is_refused() -> None:
    with pytest.raises(BadSignature):
        verify(SIGNED.replace(b"wrong cohort", b"other cohort"))


def test_another_members_signature_is_refused() -> None:
    with pytest.raises(BadSignature, match="another key"):
        verify(envelope.sign(CANCEL, OTHER_KEY))


def test_another_members_signature_under_our_keyid_is_refused() -> None:
    forged = json.loads(envelope.sign(CANCEL, OTHER_KEY))
    forged["signatures"][0]["keyid"] = envelope.key_id(PUBLIC)
    with pytest.raises(BadSignature, match="does not match"):
        verify(json.dumps(forged).encode())


def test_a_key_that_is_no_point_never_verifies_anything() -> None:
    with pytest.raises(BadSignature):
        envelope.verify(with_signature(keyid=envelope.key_id("ff" * 32)), Cancel, REGISTRY, "ff" * 32)


# what must be refused: properly signed, but not for us


def test_a_document_of_another_registry_is_refused() -> None:
    with pytest.raises(NotForUs, match="another registry"):
        envelope.verify(SIGNED, Cancel, OTHER_REGISTRY, PUBLIC)


@pytest.mark.parametrize("registry", [None, 7, REGISTRY.upper(), [REGISTRY], {"id": REGISTRY}])
def test_a_registry_that_is_not_our_id_is_refused_whatever_its_type(registry: object) -> None:
    with pytest.raises(NotForUs):
        verify(resigned({"registry": registry}))


def test_a_document_of_another_type_is_refused_before_its_registry_and_signature_are_looked_at() -> None:
    with pytest.raises(Malformed, match="is of type 'ptm/cancel@1', expected 'ptm/claim@1'"):
        envelope.verify(SIGNED, Claim, OTHER_REGISTRY, OTHER_PUBLIC)


@pytest.mark.parametrize("kind", [None, "", "ptm/cancel@2", "ptm/task@1", 1, ["ptm/cancel@1"]])
def test_an_unknown_type_is_refused(kind: object) -> None:
    with pytest.raises(Malformed, match="is of type"):
        verify(resigned({"type": kind}))


def test_an_unknown_field_is_refused_even_if_it_is_signed() -> None:
    with pytest.raises(Malformed, match="surprise"):
        verify(resigned({"surprise": 1}))


@pytest.mark.parametrize(
    "change",
    [{"reason": 7}, {"reason": None}, {"task": TASK.lower()}, {"user": "Alice"}, {"created": 1763807400}, {"created": "now"}],
)
def test_a_signed_document_that_breaks_its_types_rules_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Malformed, match="cancel: "):
        verify(resigned(change))


# what must be refused: JSON that two parsers could read in two ways


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"{",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'{"signed": {}, "signatures": []} trailing',
        b'{"signed": {}, "signatures": []}',
        b'{"signed": [], "signatures": [{"keyid": "", "sig": ""}]}',
        b'{"signed": {}, "signatures": [{"keyid": "", "sig": ""}, {"keyid": "", "sig": ""}]}',
        b'{"signed": {}, "signatures": [{"keyid": "", "sig": "", "alg": "none"}]}',
        b'{"signed": {}, "signatures": [{"keyid": "", "sig": 7}]}',
        b'{"signed": {}, "signatures": [{"keyid": "", "sig": "zz"}]}',
        b'{"signed": {}, "signatures": [["keyid", "sig"]]}',
        b'{"signed": {}, "signatures": {"keyid": "", "sig": ""}}',
        b'{"signed": {}, "signatures": [{"keyid": "", "sig": ""}], "more": 1}',
    ],
)
def test_what_is_no_envelope_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        envelope.parse(raw)


def test_a_key_given_twice_is_refused_at_every_depth() -> None:
    twice = SIGNED.replace(b'"user": "alice"', b'"user": "mallory", "user": "alice"')
    with pytest.raises(Malformed, match="same key twice"):
        verify(twice)
    with pytest.raises(Malformed, match="same key twice"):
        envelope.parse_json(b'[[{"a": {"b": 1, "b": 1}}]]')


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_a_number_that_json_does_not_know_is_refused(constant: bytes) -> None:
    with pytest.raises(Malformed, match="not a JSON number"):
        envelope.parse_json(b'{"a": ' + constant + b"}")


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9007199254740993", b"1" * 400, b"-" + b"9" * 30])
def test_a_number_that_has_no_canonical_form_is_refused(number: bytes) -> None:
    with pytest.raises(Malformed, match="canonical form"):
        envelope.parse(SIGNED.replace(b'"wrong cohort"', number))


def test_an_integer_of_a_hundred_thousand_digits_is_refused_at_once() -> None:
    with pytest.raises(Malformed):
        envelope.parse_json(b'{"a": ' + b"9" * 100_000 + b"}")


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(Malformed):
        envelope.parse(SIGNED.replace(b"wrong cohort", b"\\ud800"))


@pytest.mark.parametrize("opening, closing", [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("depth", [envelope.MAX_DEPTH + 1, 100_000])
def test_deep_nesting_is_refused_and_harms_nobody(opening: bytes, closing: bytes, depth: int) -> None:
    with pytest.raises(Malformed):
        envelope.parse_json(opening * depth + b"1" + closing * depth)


def test_nesting_up_to_the_limit_is_fine() -> None:
    envelope.parse_json(b"[" * envelope.MAX_DEPTH + b"]" * envelope.MAX_DEPTH)


def test_a_document_over_a_mebibyte_is_not_parsed() -> None:
    with pytest.raises(Malformed, match="more than 1048576"):
        envelope.parse_json(b'"' + b" " * envelope.MAX_DOCUMENT_BYTES + b'"')


def test_a_document_over_a_mebibyte_is_not_signed_either() -> None:
    sites = tuple(f"{'s' * 55}-{n:04d}" for n in range(1000))
    env = {f"N{n}": "é" * 4096 for n in range(64)}
    command = tuple("é" * 4096 for _ in range(64))
    task = Task(
        registry=REGISTRY,
        id=TASK,
        user="alice",
        nonce=NONCE,
        created=NOW,
        expires=NOW + timedelta(days=1),
        image="demo/count:1",
        sites=sites,
        recipients=("alice",),
        env=env,
        command=command,
    )
    with pytest.raises(Malformed, match="more than 1048576"):
        envelope.sign(task, KEY)


# task ids


def test_a_task_id_begins_with_its_time_and_sorts_by_it() -> None:
    later = envelope.task_id(NOW + timedelta(seconds=1), REGISTRY, "alice", NONCE)
    assert later > TASK
    assert TASK[:10] == envelope.task_id(NOW, OTHER_REGISTRY, "bob", NONCE)[:10]


@pytest.mark.parametrize(
    "registry, user, nonce", [(OTHER_REGISTRY, "alice", NONCE), (REGISTRY, "bob", NONCE), (REGISTRY, "alice", "1" * 32)]
)
def test_another_author_registry_or_nonce_makes_another_task_id(registry: str, user: str, nonce: str) -> None:
    assert envelope.task_id(NOW, registry, user, nonce) != TASK


# membership requests


def request(sign_key: str = PUBLIC) -> MemberRequest:
    return MemberRequest(name="alice", kind="researcher", sign_key=sign_key, age_key="age1" + "q" * 58, created=NOW)


def test_a_request_signed_with_the_key_it_asks_for_is_believed() -> None:
    assert envelope.verify_request(envelope.sign(request(), KEY)) == request()


def test_a_request_for_somebody_elses_key_is_refused() -> None:
    with pytest.raises(BadSignature):
        envelope.verify_request(envelope.sign(request(OTHER_PUBLIC), KEY))


def test_another_document_is_no_request() -> None:
    with pytest.raises(Malformed, match="is of type"):
        envelope.verify_request(SIGNED)


def test_the_keyid_is_the_sha256_of_the_raw_key() -> None:
    assert json.loads(SIGNED)["signatures"][0]["keyid"] == envelope.key_id(PUBLIC)
    assert envelope.key_id(PUBLIC) == "34750f98bd59fcfc946da45aaabe933be154a4b5094e1c4abf42866505f3c97e"
