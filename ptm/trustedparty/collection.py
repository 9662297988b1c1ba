"""A trusted party's collections as its node and its people see them: what is there, what is missing, and who may compute on it.

Rule: while a run uses a collection, nothing is published into it or purged from it, and a run begins only on a complete one.
The ledger decides that, in one transaction, whichever process asks. Files get in by `ptm.trustedparty.receive`, and go by
`ptm.trustedparty.purge`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ptm.config import Home
from ptm.errors import UsageError
from ptm.registry import now_utc
from ptm.trustedparty.ledger import HeldFile, Ledger
from ptm.trustedparty.settings import CollectionRule, PartyConfig, load_party

__all__ = ["CollectionState", "Collections", "HeldFile", "load_party", "place_of"]


@dataclass(frozen=True)
class CollectionState:
    """`missing` says in words what keeps it from being complete; `files` are those that are there and stay for now."""

    name: str
    complete: bool
    missing: tuple[str, ...]
    folder: Path
    files: tuple[HeldFile, ...]


class Collections:
    """The collections of one party. Several processes may have them open at once."""

    def __init__(self, home: Home, config: PartyConfig, now: Callable[[], datetime] = now_utc) -> None:
        self._home, self._config, self._now = home, config, now
        self._ledger = Ledger(home.ledger)

    def close(self) -> None:
        self._ledger.close()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(rule.name for rule in self._config.collection)

    def may_compute(self, name: str, researcher: str) -> bool:
        """Whether this researcher may compute on it, complete or not."""
        return researcher in self._rule(name).researchers

    def is_source(self, name: str) -> bool:
        """Whether it can be a data source: not if it is kept sealed."""
        return not self._rule(name).sealed

    def state(self, name: str) -> CollectionState:
        rule = self._rule(name)
        files = tuple(self._ledger.held(name))
        missing = self._missing(rule, files)
        return CollectionState(name, not missing, missing, self._home.collections / name, files)

    def begin_use(self, name: str, task: str) -> bool:
        """True if it is complete: from now on, until `end_use`, nothing is published into it or purged from it. The same task
        may ask again."""
        rule = self._rule(name)
        return self._ledger.begin_use(name, task, lambda files: not self._missing(rule, files))

    def end_use(self, name: str, task: str, completed: bool) -> None:
        """The run is over. If it completed and the collection goes after use, its files are due to be purged. No error if the
        task did not use it (any more)."""
        rule = self._config.rule(name)
        goes = completed and rule is not None and rule.purge == "used"
        self._ledger.end_use(name, task, purge=goes, now=self._now())

    def users(self, name: str) -> list[str]:
        """The tasks that use it."""
        return self._ledger.users(name)

    def _rule(self, name: str) -> CollectionRule:
        rule = self._config.rule(name)
        if rule is None:
            raise UsageError(f"there is no collection {name}", hint=f"{self._home.party} has: {', '.join(sorted(self.names))}")
        return rule

    def _missing(self, rule: CollectionRule, files: Iterable[HeldFile]) -> tuple[str, ...]:
        names: dict[str, list[str]] = {}
        gone = []
        for file in files:
            if place_of(self._home, file).is_file():
                names.setdefault(file.sender, []).append(file.name)
            else:
                gone.append(f"somebody removed {file.sender}/{file.name} from the folder")
        return (*gone, *rule.missing(names))


def place_of(home: Home, file: HeldFile) -> Path:
    """Where a published file lies."""
    return home.collections / file.collection / file.sender / file.stored
