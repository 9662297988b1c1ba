"""What the listing of a site's queue, which is all that an idle poll asks of the store besides the roster, costs after many
finished tasks beside what it cost after none; on a folder and in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.timing import medians
from ptm import layout
from ptm.store.file import FileStore

FINISHED = 20_000


def measure() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as scratch:
        store = FileStore(Path(scratch))
        store.put("queue/maastro/alice/01KAMV3ZR5F2J7Q8XG4M1W9ABC.json", b"{}")

        def poll() -> None:
            list(store.list(layout.queue_of("maastro")))

        (before,) = medians(50, poll)
        for n in range(FINISHED):
            place = Path(scratch) / layout.result("maastro", f"01KAMV3ZR5F2J7Q8XG4M{n:06d}")
            place.parent.mkdir(parents=True)
            place.write_bytes(b"{}")
        (after,) = medians(50, poll)
    yield f"a poll after {FINISHED} finished tasks ÷ after none", f"{after / before:.2f}"
