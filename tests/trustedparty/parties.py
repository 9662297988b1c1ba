"""A trusted party for tests, and senders who can lie: a transfer is made by hand, so that a test can bend any part of it before
it is signed, or after.

Keys, signatures, age and TUF are real; the store is one in memory unless a test gives another.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ptm import envelope, layout
from ptm.errors import NotFound
from ptm.model import PlainFile, SentFile
from ptm.registry import Registry, new_nonce, now_utc
from ptm.seal import seal_manifest
from ptm.store.base import Store
from ptm.store.memory import MemoryStore
from ptm.transfer import SUFFIX, Format, Receipt, Transfer
from ptm.trustedparty.collection import Collections
from ptm.trustedparty.formats import seal_stream
from ptm.trustedparty.settings import PartyConfig
from ptm.trustedparty.watch import Party
from tests.federation import Federation

LINK: dict[str, Any] = {
    "name": "link",
    "researchers": ["jane"],
    "max_mb": 4,
    "quota_mb": 8,
    "senders": {"clinic": [r".*\.csv", r".*\.zip"], "statistics": [r"incomes\.csv"]},
}


@dataclass
class Parcel:
    """A transfer before it is in the bucket: `objects` are its ciphertexts by name, `body` its manifest."""

    transfer: Transfer
    body: bytes
    objects: dict[str, bytes]

    @property
    def seen(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    def key(self, name: str = "") -> str:
        """The key of the manifest, or of a file."""
        t = self.transfer
        if name:
            return layout.transfer_file(t.party, t.sender, t.id, name, SUFFIX[t.format])
        return layout.transfer_manifest(t.party, t.sender, t.id)

    def put(self, store: Store) -> Parcel:
        for name, body in self.objects.items():
            store.upload(self.key(name), io.BytesIO(body))
        store.put(self.key(), self.body)
        return self


@dataclass
class World:
    """A federation with the trusted party `ttp`, the senders `clinic` and `statistics`, and `jane`, who computes."""

    federation: Federation
    config: PartyConfig
    now: Callable[[], datetime] = now_utc

    @property
    def store(self) -> Store:
        return self.federation.store

    def registry(self, name: str) -> Registry:
        return self.federation.registry(name)

    def parcel(
        self,
        plains: Mapping[str, bytes],
        sender: str = "clinic",
        *,
        to: str | None = None,
        listed: Mapping[str, bytes] | None = None,
        manifest_of: str | None = None,
        bend: Callable[[dict[str, bytes]], None] = lambda objects: None,
        signer: str | None = None,
        format: Format = "age",
        **change: object,
    ) -> Parcel:
        """A transfer of these plaintexts. `to`: seal to another member's key; `listed`: other plaintexts in the sealed list;
        `bend`: change the ciphertexts before they are measured; `change`: fields of the signed part."""
        registry = self.registry(sender)
        recipient = self.registry("ttp").roster().active(to or "ttp").age_key
        created, nonce = now_utc(), new_nonce()
        transfer_id = str(change.pop("id", envelope.transfer_id(created, registry.id, sender, nonce)))
        objects: dict[str, bytes] = {}
        for name, plain in plains.items():
            sink = io.BytesIO()
            seal_stream(format, io.BytesIO(plain), sink, recipient)
            objects[name] = sink.getvalue()
        bend(objects)
        lines = [PlainFile(name=n, size=len(b), sha256=hashlib.sha256(b).hexdigest()) for n, b in (listed or plains).items()]
        values: dict[str, Any] = {
            "registry": registry.id,
            "id": transfer_id,
            "nonce": nonce,
            "sender": sender,
            "party": "ttp",
            "collection": "link",
            "format": format,
            "files": tuple(SentFile(name=n, size=len(b), sha256=hashlib.sha256(b).hexdigest()) for n, b in objects.items()),
            "manifest": seal_manifest(registry.id, manifest_of or transfer_id, sender, lines, [recipient]),
            "created": created,
        }
        transfer = Transfer.model_construct(**(values | change))
        return Parcel(transfer, envelope.sign(transfer, self.registry(signer or sender).keys.signing), objects)

    def send(self, plains: Mapping[str, bytes], sender: str = "clinic", **more: Any) -> Parcel:
        return self.parcel(plains, sender, **more).put(self.store)

    def party(self, store: Store | None = None) -> Party:
        return Party(self.federation.home("ttp"), self.federation.registry("ttp", store), self.config, self.now)

    def poll(self, store: Store | None = None) -> None:
        """Let the party handle what is there."""
        self.party(store).watch(threading.Event(), once=True)

    def collections(self) -> Collections:
        return Collections(self.federation.home("ttp"), self.config, self.now)

    def receipt(self, parcel: Parcel, sender: str | None = None) -> Receipt | None:
        who = sender or parcel.transfer.sender
        try:
            return self.registry(who).read(layout.receipt("ttp", who, parcel.transfer.id, parcel.seen), Receipt, "ttp")
        except NotFound:
            return None

    def published(self) -> dict[str, bytes]:
        """What lies in the collections' folders, whatever it is, by its path."""
        root = self.federation.home("ttp").collections
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

    def inbox(self) -> list[str]:
        return [info.key for info in self.store.list(layout.inbox_of("ttp"))]

    def quarantine(self) -> list[str]:
        folder = self.federation.home("ttp").quarantine
        return [str(path.relative_to(folder)) for path in folder.rglob("*")] if folder.exists() else []

    def reconfigure(self, **link: object) -> None:
        """Other settings of the collection."""
        self.config = config(**link)


def config(**link: object) -> PartyConfig:
    return PartyConfig.model_validate({"min_free_mb": 0, "poll_s": 0.05, "collection": [LINK | link]}, strict=False)


def world(folder: Path, store: Store | None = None) -> World:
    federation = Federation(store or MemoryStore(), folder).create()
    federation.admit(ttp="party", clinic="site", statistics="site", mallory="site", jane="researcher")
    return World(federation, config())


def refused(world: World, parcel: Parcel, why: str, sender: str | None = None) -> None:
    """After a poll: refused with this reason (part of it), nothing published, inbox and quarantine clean."""
    world.poll()
    receipt = world.receipt(parcel, sender)
    assert receipt is not None, "no receipt"
    assert receipt.state == "refused"
    assert why in (receipt.reason or ""), receipt.reason
    assert world.published() == {}
    assert world.inbox() == []
    assert world.quarantine() == []
