"""The folder that a demo leaves behind: where it may be, and the note in it for whoever finds it.

Rule: nothing that is there is touched. Beside an earlier demo, a new one gets a number.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from ptm.errors import AlreadyExists

NOTE = "README.txt"
_FIRST_LINE = "This folder was made by `ptm demo`."
_NOTE = f"""\
{_FIRST_LINE} It may be deleted whole; nothing else refers to it.

registry/       what would be a bucket: everything that the members exchanged, and nothing else
coordinator/    the coordinator's home: its keys, and what it has verified
alice/          the researcher's home
northside/ …    each hospital's home: keys, node.toml, policy.toml, state
data/           each hospital's patients (in real life on three different machines)
image/          what runs at the hospitals
results/        what alice fetched, verified and decrypted, by round and hospital
logs/           what each node said
requests/       the public keys with which each member asked to be admitted
forest.png      the answer

The keys in here were made for the demo. Do not use them for anything else.
"""


def make_folder(wanted: Path) -> Path:
    """Make the folder for a demo, with its note. `AlreadyExists` if something else than an earlier demo is at the place."""
    place = wanted
    for number in itertools.count(2):
        try:
            place.mkdir(parents=True)
            break
        except FileExistsError:
            if place.is_dir() and not any(place.iterdir()):
                break
            if place == wanted and not _is_demo(place):
                raise AlreadyExists(
                    f"{wanted} is there already, and is not a demo's", hint="name another folder with --output"
                ) from None
        place = wanted.with_name(f"{wanted.name}-{number}")
    (place / NOTE).write_text(_NOTE, encoding="utf-8")
    return place


def _is_demo(folder: Path) -> bool:
    try:
        with (folder / NOTE).open(encoding="utf-8") as file:
            return file.readline().startswith(_FIRST_LINE)
    except (OSError, UnicodeDecodeError):
        return False
