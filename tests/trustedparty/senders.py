"""A member who sends to a trusted party, with a big file and a small one, in a federation on any store."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ptm.registry import Registry
from ptm.store.base import Store
from ptm.transfer import Format, Transfer
from ptm.trustedparty import send as sending
from ptm.trustedparty.outbox import Outbox
from ptm.trustedparty.send import Source
from tests.federation import Federation

Step = Callable[[int], None]


class Killed(BaseException):
    """`kill -9`: no `except Exception` sees it."""


def nothing(moved: int) -> None:
    """A step of which nobody takes note."""


class Sender:
    def __init__(self, store: Store, folder: Path, big: int) -> None:
        self.store, self.federation = store, Federation(store, folder).create().admit(clinic="site", ttp="party")
        self.registry: Registry = self.federation.registry("clinic")
        self.registry.roster()
        self.outbox = Outbox(self.registry.home.outbox)
        self.small, self.big = folder / "a.csv", folder / "big.bin"
        self.small.write_bytes(b"id\n1\n")
        self.big.write_bytes(os.urandom(big))

    def send(self, *paths: Path, format: Format = "age", sealing: Step = nothing, moved: Step = nothing) -> Transfer:
        """`sealing` and `moved` are told of each step of the two stages."""
        return sending.send(
            self.registry,
            self.outbox,
            [Source(path.name, path) for path in paths],
            to="ttp",
            collection="c",
            format=format,
            stages=lambda stage, total: sealing if stage == "sealing" else moved,
        )

    def resume(self) -> Transfer:
        (transfer,) = sending.resume_all(self.registry, self.outbox).sent
        return transfer

    def objects(self) -> list[str]:
        """The ends of the keys in the inbox."""
        return [info.key.rpartition("/")[2] for info in self.store.list("inbox/")]
