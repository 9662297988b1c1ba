"""What somebody does to become a member: make keys, write a request, and, once admitted, join.

Rules: private keys never leave the home. Joining pins the registry's root by fingerprint before anything else of the registry
is believed, and the profile is written last, so an interrupted join is given again. A home is of one registry.
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from ptm.complaint import complaint
from ptm.config import Home, Profile, read_toml, save_profile
from ptm.envelope import AnyModel, sign
from ptm.errors import AlreadyExists, BadKey, NotAllowed, UsageError
from ptm.files import write_atomic
from ptm.keys import AGE_FILE, SIGN_FILE, MemberKeys, create_keys, load_keys
from ptm.model import Frozen, Kind, Member, MemberRequest, Name, Roster, Text, format_time
from ptm.store.base import Store
from ptm.trust import parse_fingerprint, pin_root, refresh


class _Applicant(Frozen):
    """What a person types of a request."""

    name: Name
    organisation: Text


def member_keys(home: Home) -> MemberKeys:
    """This home's member keys, made if there are none."""
    if (home.keys / SIGN_FILE).exists() or (home.keys / AGE_FILE).exists():
        return load_keys(home.keys)
    home.make()
    return create_keys(home.keys)


def write_request(home: Home, path: Path, *, name: str, kind: Kind, organisation: str, now: datetime) -> MemberRequest:
    """Write a signed membership request, as it is handed to the coordinator; keys are made if there are none.

    `AlreadyExists` if there is a file at `path`; `UsageError` for a bad name. No keys are made then.
    """
    if path.exists():
        raise AlreadyExists(f"there is a file already: {path}", hint="name another one with -o")
    filled(_Applicant, name=name, organisation=organisation)
    keys = member_keys(home)
    request = filled(
        MemberRequest,
        name=name,
        kind=kind,
        organisation=organisation,
        sign_key=keys.sign_key,
        age_key=keys.age_key,
        created=now,
    )
    try:
        write_atomic(path, sign(request, keys.signing), exclusive=True)
    except FileExistsError as e:
        raise AlreadyExists(f"there is a file already: {path}", hint="name another one with -o") from e
    return request


def filled(kind: type[AnyModel], /, **fields: object) -> AnyModel:
    """A model from what a person gave; `UsageError` names the field at fault."""
    try:
        return kind(**fields)
    except ValidationError as e:
        raise UsageError(complaint(e)) from e


def join(store: Store, home: Home, fingerprint: str) -> Profile:
    """Pin the root, read the roster, find this home's keys in it, and write the profile. May be done again.

    `UntrustedRoot`; `NotAllowed` if the keys are not in the roster or were revoked; `NotForUs` if the home is of another
    registry. Nothing in the home is changed then.
    """
    keys = load_keys(home.keys)
    with tempfile.TemporaryDirectory(prefix="ptm-join-") as aside:
        pin_root(store, Path(aside), fingerprint)
        trusted = refresh(store, Path(aside), expect_registry=_joined(home))
    member = find_member(trusted.roster, keys)
    pin_root(store, home.trust, fingerprint)
    trusted = refresh(store, home.trust, expect_registry=trusted.registry)
    profile = Profile(
        registry=store.url,
        registry_id=trusted.registry,
        member=member.name,
        kind=member.kind,
        root_fingerprint=parse_fingerprint(fingerprint),
    )
    save_profile(home, profile)
    return profile


def find_member(roster: Roster, keys: MemberKeys) -> Member:
    """Whose keys these are. `NotAllowed` if nobody's or a revoked member's, `BadKey` if only one of the two is known."""
    for member in roster.members:
        if (member.sign_key == keys.sign_key) != (member.age_key == keys.age_key):
            raise BadKey(
                f"only one of this home's two keys is {member.name}'s", hint="restore both files of keys/ from one backup"
            )
        if member.sign_key == keys.sign_key:
            if member.revoked is not None:
                raise NotAllowed(f"{member.name} was revoked on {format_time(member.revoked)}", hint="ask the coordinator")
            return member
    raise NotAllowed(
        "the keys of this home are not in the roster: not admitted yet",
        hint="give the coordinator the file that `ptm member request` wrote; after `ptm member admit`, join again",
    )


def _joined(home: Home) -> str | None:
    """The id of the registry that this home has joined."""
    return read_toml(home.profile, Profile).registry_id if home.profile.exists() else None
