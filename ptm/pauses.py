"""When a node looks at a task again, a trusted party at a transfer, or a drop folder at a file."""

from __future__ import annotations

import time

MAX_PAUSE_S = 60.0
Of = tuple[str, str]
"""User and task id, or sender and transfer id: what lies under one member's name never touches another's, whatever its id. For a
file of a drop folder, which is nobody else's, an empty name and the file's."""


class Pauses:
    """When something may be looked at again: at once, after a poll's rest, or after a pause that doubles with each outage."""

    def __init__(self) -> None:
        self._until: dict[Of, float] = {}
        self._length: dict[Of, float] = {}

    def due(self, of: Of) -> bool:
        return time.monotonic() >= self._until.get(of, 0.0)

    def since(self, of: Of) -> float:
        """From when on it was due; 0.0 for one never looked at."""
        return self._until.get(of, 0.0)

    def lengthen(self, of: Of) -> None:
        self._length[of] = min(MAX_PAUSE_S, 2 * self._length.get(of, 0.5))
        self._until[of] = time.monotonic() + self._length[of]

    def rest(self, of: Of, seconds: float) -> None:
        self._length.pop(of, None)
        self._until[of] = time.monotonic() + seconds

    def keep(self, those: set[Of]) -> None:
        """Forget all others, so that nothing grows with the number of those ever seen."""
        for of in set(self._until) - those:
            self.forget(of)

    def hurry(self) -> None:
        """An outage is over: what failed may be tried at once."""
        for of in list(self._length):
            self._until.pop(of, None)

    def failing(self) -> set[Of]:
        """Those whose last try met an outage."""
        return set(self._length)

    def forget(self, of: Of) -> None:
        self._until.pop(of, None)
        self._length.pop(of, None)
