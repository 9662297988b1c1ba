"""Who may be put into a roster: the checks on a membership request, pure, against a roster at hand.

Rules: a name and a key are given out once, for ever, revoked members included. A public key is a point that only its
owner's secret leads to: one of low order (RFC 7748, section 6.1; RFC 8032, section 5.1.3) gives every signature or
every secret away, so it is refused here rather than wherever it is used.

What it does not do: find out who somebody is. Two people compare fingerprints for that.
"""

from __future__ import annotations

import pyrage

from ptm.errors import AlreadyExists, BadKey, NotAllowed
from ptm.model import Member, MemberRequest, Roster, format_time

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P

LOW_ORDER_Y = frozenset(
    int.from_bytes(bytes.fromhex(encoded), "little")
    for encoded in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
)
"""The y coordinates of edwards25519's eight torsion points (both signs of x)."""

LOW_ORDER_RECIPIENTS = frozenset(
    {
        "age1ahlllllllllllllllllllllllllllllllllllllllllllllllalsn46ayy",
        "age1ahlllllllllllllllllllllllllllllllllllllllllllllllllsh3g6la",
        "age1amlllllllllllllllllllllllllllllllllllllllllllllllalselrwrv",
        "age1amlllllllllllllllllllllllllllllllllllllllllllllllllsam3fc4",
        "age1anlllllllllllllllllllllllllllllllllllllllllllllllals4n2t7m",
        "age1anllllllllllllllllllllllllllllllllllllllllllllllllls3hcv9z",
        "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z",
        "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqzqqsuwj9m",
        "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqj7vrya",
        "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqzqqk67yly",
        "age1t7wft09r2zxzfvwsk92eeql0tvzyghxytqwgapkcyf8dm5ylz8ts72fzt7",
        "age1t7wft09r2zxzfvwsk92eeql0tvzyghxytqwgapkcyf8dm5ylz9ts6wm9s8",
        "age1ur4h5lpmgxu2u9jku0a0r87ydtdqnr0tnsetrlvxvgz3vh6fhqqqzyt4v9",
        "age1ur4h5lpmgxu2u9jku0a0r87ydtdqnr0tnsetrlvxvgz3vh6fhzqqxqejhu",
    }
)
"""The age recipients of Curve25519's points of low order, in every encoding that X25519 (RFC 7748, section 5) takes
for one."""


def already_member(request: MemberRequest, roster: Roster) -> Member | None:
    """The member that this very request has made already, if it has."""
    for member in roster.members:
        same = (member.name, member.kind, member.sign_key, member.age_key) == (
            request.name,
            request.kind,
            request.sign_key,
            request.age_key,
        )
        if same and member.revoked is None:
            return member
    return None


def check_request(request: MemberRequest, roster: Roster, reserved: frozenset[str] = frozenset()) -> None:
    """Raise unless the request may become a new line of the roster.

    `AlreadyExists`: the name is taken. `NotAllowed`: it is a revoked member's. `BadKey`: a key is taken (also by one
    of `reserved`, the registry's own keys, hex), of low order, or not a key."""
    for member in roster.members:
        if member.name == request.name and member.revoked is not None:
            raise NotAllowed(
                f"{request.name} was revoked on {format_time(member.revoked)}; neither the name nor the keys come back",
                hint="make a request with another name, in a new --home",
            )
        if member.name == request.name:
            raise AlreadyExists(
                f"there is a member {request.name} with other keys or of another kind", hint="choose another name"
            )
        if member.sign_key == request.sign_key or member.age_key == request.age_key:
            raise BadKey(f"{request.name} asks for a key that is {member.name}'s", hint="every member makes keys of their own")
    if request.sign_key in reserved:
        raise BadKey(f"{request.name} asks for a key that is the registry's own", hint="every member makes keys of their own")
    check_sign_key(request.sign_key, request.name)
    check_age_key(request.age_key, request.name)


def check_sign_key(sign_key: str, name: str) -> None:
    """`BadKey` unless the hex is the canonical encoding of a point on edwards25519 that is not of low order (RFC
    8032, section 5.1.3)."""
    encoded = int.from_bytes(bytes.fromhex(sign_key), "little")
    y = encoded & (2**255 - 1)
    x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    if y >= _P or pow(x_squared, (_P - 1) // 2, _P) not in (0, 1):
        raise BadKey(f"{name}'s signing key is not a point of edwards25519", hint="make keys with `ptm member request`")
    if y in LOW_ORDER_Y:
        raise BadKey(
            f"{name}'s signing key is a point of low order: anybody could sign for it", hint="make keys with `ptm member request`"
        )


def check_age_key(age_key: str, name: str) -> None:
    """`BadKey` unless it is an age X25519 recipient, in its one spelling, that is not of low order."""
    try:
        spelled = str(pyrage.x25519.Recipient.from_str(age_key))
    except pyrage.RecipientError as e:
        raise BadKey(f"{name}'s age key is not an age recipient", hint="make keys with `ptm member request`") from e
    if spelled != age_key:
        raise BadKey(f"{name}'s age key is not spelled as age spells it", hint="make keys with `ptm member request`")
    if age_key in LOW_ORDER_RECIPIENTS:
        raise BadKey(
            f"{name}'s age key is a point of low order: anybody could read what is sealed to it",
            hint="make keys with `ptm member request`",
        )
