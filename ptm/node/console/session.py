"""Who may use the stewards' page: whoever has the one-time token that the command printed, in one browser, until they are idle.

The token is exchanged for a cookie at its first use and void from then on; there is one session, and no second token. All
comparisons take the same time whatever is given. Nothing of it is ever on disk.

What it does not do: know people. Who decides says their name, as on the command line; the machine's accounts keep others out."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

IDLE_S = 900.0
"""A page that nobody used for so long is over; so is a token."""


def _random() -> str:
    return secrets.token_urlsafe(32)


@dataclass
class Session:
    """One browser's. `csrf` stands in each form; `by` is the name given last; `said` is shown once, on the next page."""

    cookie: str = field(default_factory=_random)
    csrf: str = field(default_factory=_random)
    by: str = ""
    said: str = ""

    def take_said(self) -> str:
        said, self.said = self.said, ""
        return said


class Door:
    """One token, then one session, then nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, idle_s: float = IDLE_S) -> None:
        self.token = _random()
        self._clock, self._idle_s = clock, idle_s
        self._used = self._ended = False
        self._session: Session | None = None
        self._last = clock()

    @property
    def over(self) -> bool:
        """Ended, or idle for too long: nobody gets in any more."""
        return self._ended or self._clock() - self._last > self._idle_s

    def enter(self, token: str) -> Session | None:
        """The session, for the token's first use."""
        if self._used or self.over or not same(token, self.token):
            return None
        self._used, self._session, self._last = True, Session(), self._clock()
        return self._session

    def find(self, cookie: str) -> Session | None:
        """The session of this cookie; being asked for is what keeps it from being idle."""
        if self._session is None or self.over or not same(cookie, self._session.cookie):
            return None
        self._last = self._clock()
        return self._session

    def end(self) -> None:
        self._ended = True


def same(given: str, secret: str) -> bool:
    """Equal, in a time that tells nothing of where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())
