"""Wake-ups: let a poll loop look early, because something was put where it looks.

Rules: a wake-up is a hint, never the truth. It may come late, twice or not at all, so whoever uses it polls as well; nothing that
goes wrong here reaches the loop. Nothing is asked for while nothing happens: a file store is watched through inotify, a MinIO
bucket through one request whose answer never ends. An `Alarm` gathers a burst of wake-ups into one, and lets through at most
two in a second, whoever writes how fast.

What this does not do: say what changed, or see what other machines write to a network file system (the poll does)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from ptm.store.base import Store
from ptm.store.checks import check_folder
from ptm.store.file import FileStore

Wake = Callable[[], None]
GAP_S = 0.5
SETTLE_S = 0.05
PROBE_S = 3.0
LOOK_S = 0.1
"""How soon a waiting loop sees that it is to stop."""


class Alarm:
    """What a poll loop waits on: until it is time, somebody rings, or it is to stop. One loop waits, any thread rings."""

    def __init__(self) -> None:
        self._rung = threading.Event()
        self._earliest = 0.0

    def ring(self) -> None:
        """End the loop's wait; if it does not wait just now, its next one."""
        self._rung.set()

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Whether somebody rang within `seconds` seconds, and it was not told to stop."""
        end = time.monotonic() + seconds
        while not self._rung.wait(max(0.0, min(LOOK_S, end - time.monotonic()))):
            if stop.is_set() or time.monotonic() >= end:
                return False
        now = time.monotonic()
        stop.wait(max(0.0, min(end - now, max(SETTLE_S, self._earliest - now))))
        self._rung.clear()
        self._earliest = time.monotonic() + GAP_S
        return not stop.is_set()


@contextlib.contextmanager
def watch_changes(store: Store, prefix: str, wake: Wake) -> Iterator[None]:
    """Call `wake`, in another thread, soon after an object was put below a prefix that ends in '/', as far as the store can tell.

    Also once when that begins, or begins again after an interruption, as something may have come meanwhile. `wake` has to
    return at once and not raise: `Alarm.ring`."""
    check_folder(prefix)
    with contextlib.ExitStack() as stack:
        if isinstance(store, FileStore):
            from ptm.store.changes_file import FolderWatch

            stack.enter_context(contextlib.closing(FolderWatch(store.root, prefix.rstrip("/").split("/"), wake)))
        elif store.url.startswith("s3:"):
            from ptm.store.changes_s3 import BucketWatch
            from ptm.store.s3 import S3Store

            if isinstance(store, S3Store):
                stack.enter_context(contextlib.closing(BucketWatch(store, prefix, wake)))
        yield


def announces(store: Store, prefix: str, seconds: float = PROBE_S) -> bool:
    """Whether this store can wake a loop, found out by trying; no answer in time is a no."""
    woken = threading.Event()
    with watch_changes(store, prefix, woken.set):
        return woken.wait(seconds)
