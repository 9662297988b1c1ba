"""Wake-ups from a folder of this machine, through watchdog (inotify).

Rules: the folder need not be there, and is never made here: the nearest one that is there is watched, without what is below it,
and then the next deeper one when that appears. Links below the root are not followed, as in the store. Where inotify gives out (a
limit of the system, no permission), and for what other machines write to a network file system, there are no wake-ups; that is
logged once, and tried again from time to time.

What this does not do: report files that are deleted or read, which would make a loop that lists a folder wake itself."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

log = logging.getLogger("ptm.store")
LOOK_AGAIN_S = 30.0
"""How often it is seen to that the right folder is watched: it may have been removed and made anew."""
_APPEARS = [FileCreatedEvent, FileMovedEvent, DirCreatedEvent, DirMovedEvent]
_ELSEWHERE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "fuse.")


@dataclass(frozen=True)
class _Place:
    """A folder that is there; `whole` if it is the one that matters. Another folder at the same path is another place."""

    path: Path
    device: int
    inode: int
    whole: bool


class FolderWatch(FileSystemEventHandler):
    """Calls `wake` soon after something appears in the folder at `segments` below `root`. Never raises."""

    def __init__(self, root: Path, segments: Sequence[str], wake: Callable[[], None], *, recursive: bool = True) -> None:
        self._root, self._segments, self._wake, self._recursive = root, tuple(segments), wake, recursive
        self._observer: BaseObserver | None = None
        self._place: _Place | None = None
        self._said: set[str] = set()
        self._closed = False
        self._look = threading.Event()
        self._arm()
        self._thread = threading.Thread(target=self._keep_armed, name="wake-ups", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        self._look.set()
        self._thread.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """watchdog calls this, in a thread of its own."""
        if self._place is None or self._place.whole:
            self._wake()
        else:
            self._look.set()

    def _keep_armed(self) -> None:
        while not self._closed:
            self._look.wait(LOOK_AGAIN_S)
            self._look.clear()
            if not self._closed:
                self._arm()
        self._disarm()

    def _arm(self) -> None:
        """Watch the deepest folder that is there. Again, if a deeper one has appeared before that one was watched."""
        try:
            while (place := self._find()) != self._place or (self._observer is not None and not self._observer.emitters):
                self._disarm()
                if place is None:
                    return
                self._watch(place)
                self._wake()
        except OSError as e:
            self._disarm()
            self._say(f"{self._root}: {os.strerror(e.errno) if e.errno else e}: no wake-ups, only the poll counts")

    def _watch(self, place: _Place) -> None:
        self._observer = Observer()
        self._observer.start()
        self._place = place
        self._observer.schedule(self, str(place.path), recursive=place.whole and self._recursive, event_filter=_APPEARS)
        if kind := _network(place.path):
            self._say(f"{self._root} is on {kind}: for what other machines write there are no wake-ups, only the poll counts")

    def _disarm(self) -> None:
        observer, self._observer, self._place = self._observer, None, None
        if observer is not None:
            observer.stop()
            observer.join(5)

    def _find(self) -> _Place | None:
        """The deepest folder on the way that is there; None if not even the root is."""
        try:
            found = self._root.stat()
        except FileNotFoundError:
            return None
        path, depth = self._root, 0
        for segment in self._segments:
            try:
                deeper = os.lstat(path / segment)
            except FileNotFoundError:
                break
            if not stat.S_ISDIR(deeper.st_mode):
                break
            path, found, depth = path / segment, deeper, depth + 1
        return _Place(path, found.st_dev, found.st_ino, depth == len(self._segments))

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.info("%s", text)


def _network(path: Path) -> str:
    """The kind of network file system that a folder is on; empty if it is on none, or nobody can tell."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        point = before.split(" ")[4].encode().decode("unicode_escape", errors="replace")
        if path.resolve().is_relative_to(point) and len(point) >= best:
            best, kind = len(point), after.split(" ")[0]
    return kind if kind.startswith(_ELSEWHERE) else ""
