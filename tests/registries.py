"""A registry in memory with its coordinator, for tests of trust: an attack is a line or two on top of it.

Everything is real (keys, signatures, python-tuf, files on disk) but the store. The one who attacks holds the bucket; where a test
needs signed metadata that the coordinator would never write, it signs it with the coordinator's own key.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from ptm import coordinator, layout
from ptm.config import Home
from ptm.enrolment import write_request
from ptm.keys import load_signing_key
from ptm.model import Kind, MemberRequest
from ptm.store.memory import MemoryStore
from ptm.trust import TrustedRoster, pin_root, refresh

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


class World:
    """A registry, the home of its coordinator, and a member's trust folder with the root pinned."""

    def __init__(
        self,
        path: Path,
        *,
        now: datetime = NOW,
        store: MemoryStore | None = None,
        root_keys: tuple[str, ...] = (),
        threshold: int = 1,
    ) -> None:
        self.path = path
        self.store = store or MemoryStore()
        self.coord = Home(path / "coord")
        self.trust = path / "member" / "trust"
        self.root_keys = [path / name for name in root_keys]
        self.threshold = threshold
        self.fingerprint = self.create(now)
        pin_root(self.store, self.trust, self.fingerprint)

    def create(self, now: datetime = NOW) -> str:
        return coordinator.create_registry(
            self.store, self.coord, name="study", organisation="", root_keys=self.root_keys, threshold=self.threshold, now=now
        )

    def request(self, name: str, kind: Kind = "site") -> MemberRequest:
        """A request with keys of its own, in the home `name`."""
        home = Home(self.path / name)
        return write_request(home, self.path / f"{name}.request.json", name=name, kind=kind, organisation="", now=NOW)

    def admit(self, *names: str, now: datetime = NOW) -> None:
        coordinator.admit(self.store, self.coord, [self.request(name) for name in names], now)

    def refresh(self) -> TrustedRoster:
        return refresh(self.store, self.trust)

    def names(self) -> list[str]:
        """What the member believes."""
        return [member.name for member in self.refresh().roster.members]

    # the bucket, as whoever runs it sees it

    def get(self, file: str) -> bytes:
        return self.store.get(layout.trust_metadata(file), 2**20)

    def put(self, file: str, body: bytes) -> None:
        self.store.put(layout.trust_metadata(file), body)

    def snapshot_of_bucket(self) -> dict[str, bytes]:
        return {info.key: self.store.get(info.key, 2**20) for info in self.store.list("")}

    def restore(self, objects: dict[str, bytes]) -> None:
        """Put the bucket back to what it was."""
        for info in list(self.store.list("")):
            self.store.delete(info.key)
        for key, body in objects.items():
            self.store.put(key, body)

    def roster_key(self) -> str:
        """The key of the newest roster target."""
        newest = max(
            int(info.key.rpartition("/")[2].split(".")[0]) for info in self.store.list("trust/metadata/") if "targets" in info.key
        )
        targets = Metadata.from_bytes(self.get(f"{newest}.targets.json")).signed
        return layout.trust_target(f"{targets.targets['roster.json'].hashes['sha256']}.roster.json")

    # what only a stolen or careless roles key could do

    def resign(self, file: str, change: Callable[[Any], None], keys: list[Path] | None = None) -> bytes:
        """A file changed and signed again, by the roles key or by these."""
        metadata: Metadata[Any] = Metadata.from_bytes(self.get(file))
        change(metadata.signed)
        metadata.signatures.clear()
        for path in keys or [self.coord.keys / "roles.pem"]:
            metadata.sign(CryptoSigner(load_signing_key(path)), append=True)
        return metadata.to_bytes()
