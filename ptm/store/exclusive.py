"""Create-if-absent, in words every store shares: what an attempt came to, and how to find out by trying that a store keeps its
promise.

A store's `create` is its own `attempt` (which returns an `Outcome`) followed by `settle` (which turns it into the contract's
errors). The probe races `attempt` itself, so that what is measured is what the registry relies on.

What this does not do: it cannot prove exclusiveness, only catch a store that ignores it (no condition, no lock)."""

from __future__ import annotations

import enum
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ptm.errors import AlreadyExists, StoreError

ROUNDS = 5
RACERS = 8


class Outcome(enum.Enum):
    """What one attempt to create came to. An outcome that could not be learnt is not one of these: it is raised as
    `Unreachable`."""

    WON = "the key holds exactly our body"
    LOST = "the key holds something else"
    UNSUPPORTED = "this store cannot create a key only if it is absent"


Attempt = Callable[[str, bytes], Outcome]


def settle(key: str, outcome: Outcome) -> None:
    """Return if the attempt won; raise what `Store.create` promises if it did not."""
    if outcome is Outcome.LOST:
        raise AlreadyExists(f"{key} exists already and holds something else")
    if outcome is Outcome.UNSUPPORTED:
        raise StoreError(
            f"{key}: this store cannot create an object only if it is absent",
            hint="use a file system with hard links, or an S3 server that honours If-None-Match; `ptm registry probe` tells",
        )


def is_exclusive(attempt: Attempt, read: Callable[[str], bytes], delete: Callable[[str], None], scratch: str) -> bool:
    """Race `RACERS` writers for a scratch key, `ROUNDS` times; True if each round had one winner, whose body stayed.

    Leaves nothing behind. Raises the store's errors (`AccessDenied`, `Unreachable`) if it could not be found out.
    """
    nonce = secrets.token_hex(8)
    keys = [f"{scratch}{nonce}-{n}" for n in range(ROUNDS)]
    try:
        return all(_one_winner(attempt, read, key) for key in keys)
    finally:
        for key in keys:
            delete(key)


def _one_winner(attempt: Attempt, read: Callable[[str], bytes], key: str) -> bool:
    bodies = [f"racer {n} {secrets.token_hex(8)}".encode() for n in range(RACERS)]
    outcomes = _race(attempt, key, bodies)
    if outcomes.count(Outcome.WON) != 1 or outcomes.count(Outcome.LOST) != RACERS - 1:
        return False
    winner = bodies[outcomes.index(Outcome.WON)]
    late = attempt(key, b"too late")
    return late is Outcome.LOST and read(key) == winner


def _race(attempt: Attempt, key: str, bodies: list[bytes]) -> list[Outcome]:
    start = threading.Barrier(len(bodies))

    def run(body: bytes) -> Outcome:
        start.wait()
        return attempt(key, body)

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(run, bodies))
