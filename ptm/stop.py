"""Stopping in time, whatever hangs: the work of a node, a trusted party or a drop folder goes on in a thread of its own, and the
thread that gets the signals waits for it, once told to stop no longer than a set time.

A thread that waits for a server's answer cannot be interrupted; a store that takes a request and never answers would otherwise
keep it for minutes after SIGTERM. All of this work may be cut off at any moment (see `ptm.node.spool`), so this too.

What this does not do: end that thread. It is a daemon, and ends with the process."""

from __future__ import annotations

import threading
from collections.abc import Callable

LOOK_S = 0.2


def run_until_stopped(work: Callable[[], None], stop: threading.Event, patience_s: float) -> bool:
    """Do the work. True when it has ended, False if it had not `patience_s` seconds after `stop` was set. Raises what the work
    raises."""
    raised: list[BaseException] = []

    def whole() -> None:
        try:
            work()
        except BaseException as e:
            raised.append(e)

    thread = threading.Thread(target=whole, name="work", daemon=True)
    thread.start()
    while thread.is_alive() and not stop.is_set():
        thread.join(LOOK_S)
    thread.join(patience_s)
    if raised:
        raise raised[0]
    return not thread.is_alive()
