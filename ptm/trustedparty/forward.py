"""Passing on: a file that a party received goes to another member, sealed anew from stream to stream, never in clear on disk.

To its receiver the party is the sender: who the file came from first stands in the party's ledger, and in `purpose` if the party
says so. What was passed on stands in the outbox's history, as all that is sent.

A file that was computed is sent with `ptm inbox send`: a party may send to any member."""

from __future__ import annotations

from ptm.config import Home
from ptm.errors import UsageError
from ptm.registry import Registry
from ptm.transfer import Format, Transfer
from ptm.trustedparty import send as sending
from ptm.trustedparty.collection import Collections, HeldFile, place_of
from ptm.trustedparty.outbox import Inner, Outbox
from ptm.trustedparty.settings import need_party
from ptm.trustedparty.sources import Source
from ptm.trustedparty.uploading import Stages


def forward(
    registry: Registry,
    home: Home,
    what: str,
    *,
    to: str,
    collection: str,
    format: Format = "age",
    purpose: str = "",
    stages: Stages | None = None,
) -> Transfer:
    """Send a held file, named `COLLECTION/SENDER/NAME`, to a member. `UsageError`."""
    source = _source(home, find(home, what))
    return sending.send(
        registry, Outbox(home.outbox), [source], to=to, collection=collection, format=format, purpose=purpose, stages=stages
    )


def find(home: Home, what: str) -> HeldFile:
    """A file that this party holds."""
    collection, sender, name = [*what.split("/", 2), "", ""][:3]
    if not name:
        raise UsageError(f"{what} is not COLLECTION/SENDER/NAME", hint="`ptm trustedparty list` shows what is there")
    collections = Collections(home, need_party(home))
    try:
        files = collections.state(collection).files
    finally:
        collections.close()
    for file in files:
        if (file.sender, file.name) == (sender, name):
            return file
    raise UsageError(f"{collection} has no {name} of {sender}", hint=f"`ptm trustedparty list {collection}` shows what is there")


def _source(home: Home, file: HeldFile) -> Source:
    inner = Inner(format=file.format, size=file.size, sha256=file.sha256)
    return Source(file.name, place_of(home, file), inner)
