"""Is there room left on the file system that holds the engine's containers and volumes? Pure, but for one look at it.

What a run writes is measured through the engine, which sees files by name: a file that was deleted while it is open, and a
million files with nothing in them, have no size there. So below a reserve every run is ended, before the site's disk is full.

What this does not do: say which run it was; or see the disk of an engine on another machine.
"""

from __future__ import annotations

import os
from pathlib import Path

FILES_SHARE = 20
"""One in so many of a file system's inodes is kept free."""


def shortage(root: Path, keep_free_gb: float) -> str | None:
    """What there is too little of below this folder, in one line for the researcher. None if that is not to be seen here."""
    try:
        found = os.statvfs(root)
    except OSError:
        return None
    if found.f_bavail * found.f_frsize < keep_free_gb * 1024**3:
        return f"the site's disk has less than {keep_free_gb:g} GB left"
    if found.f_favail * FILES_SHARE < found.f_files:
        return "the site's disk has hardly room for new files"
    return None
