"""When a node looks at a task again, a trusted party at a transfer, or a drop folder at a file."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Generic, TypeVar

MAX_PAUSE_S = 60.0
Of = tuple[str, str]
"""User and task id, or sender and transfer id: what lies under one member's name never touches another's, whatever its id."""
Key = TypeVar("Key", bound=Hashable)


class Pauses(Generic[Key]):
    """When something may be looked at again: at once, after a poll's rest, or after a pause that doubles with each outage."""

    def __init__(self) -> None:
        self._until: dict[Key, float] = {}
        self._length: dict[Key, float] = {}

    def due(self, of: Key) -> bool:
        return time.monotonic() >= self._until.get(of, 0.0)

    def since(self, of: Key) -> float:
        """From when on it was due; 0.0 for one never looked at."""
        return self._until.get(of, 0.0)

    def lengthen(self, of: Key) -> None:
        self._length[of] = min(MAX_PAUSE_S, 2 * self._length.get(of, 0.5))
        self._until[of] = time.monotonic() + self._length[of]

    def rest(self, of: Key, seconds: float) -> None:
        self._length.pop(of, None)
        self._until[of] = time.monotonic() + seconds

    def keep(self, those: set[Key]) -> None:
        """Forget all others, so that nothing grows with the number of those ever seen."""
        for of in set(self._until) - those:
            self.forget(of)

    def hurry(self) -> None:
        """An outage is over: what failed may be tried at once."""
        for of in list(self._length):
            self._until.pop(of, None)

    def failing(self) -> set[Key]:
        """Those whose last try met an outage."""
        return set(self._length)

    def forget(self, of: Key) -> None:
        self._until.pop(of, None)
        self._length.pop(of, None)
