"""Runs the vertical example's algorithms as ptm's process runner does: the image's `run`, with the contract's variables."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.vertical.build import LINK_AND_FIT, PSEUDONYMISE, folder_of

KEY = bytes(range(7, 7 + 32))


@dataclass(frozen=True)
class Ran:
    """How a run ended, and the text of each file that it left."""

    code: int
    log: str
    outputs: dict[str, str]

    @property
    def rows(self) -> list[list[str]]:
        """The only output, as a table."""
        (text,) = self.outputs.values()
        return list(csv.reader(io.StringIO(text)))

    @property
    def fit(self) -> dict[str, Any]:
        assert self.code == 0, self.log
        found: dict[str, Any] = json.loads(self.outputs["fit.json"])
        return found

    def refused(self, *words: str) -> bool:
        """Whether it refused, in one line with these words, and left nothing."""
        lines = self.log.splitlines()
        said = lines[-1] if lines else ""
        return self.code == 1 and not self.outputs and said.startswith("refused: ") and all(word in said for word in words)


class Algorithms:
    """Both images, in folders, and a fresh place for each run."""

    def __init__(self, images: Path, scratch: Path) -> None:
        self._images, self._scratch, self._runs = images, scratch, 0

    def pseudonymise(
        self, table: str | bytes, rules: Mapping[str, Any] | None = None, key: bytes | None = KEY, **asked: Any
    ) -> Ran:
        """On a table with the columns name, born and more; `asked` goes over the usual question for `visits`."""
        place = self._place()
        (place / "people").mkdir()
        (place / "people" / "table.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
        (place / "people" / "linkage.json").write_text(json.dumps(RULES | dict(rules or {})))
        data = {"people": place / "people", "linkage-key": place / "key"}
        if key is not None:
            data["linkage-key"].write_bytes(key)
        question = {"data": "people", "columns": ["visits"], "output": "visits.csv"} | asked
        return self._run(PSEUDONYMISE, place, question, data)

    def link(self, files: Mapping[str, str | bytes], *models: Mapping[str, Any], **asked: Any) -> Ran:
        """On a collection of `<sender>/<name>` files."""
        place = self._place()
        (place / "link-2026").mkdir()
        for name, text in files.items():
            path = place / "link-2026" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        question = {"data": "link-2026", "models": list(models)} | asked
        return self._run(LINK_AND_FIT, place, question, {"link-2026": place / "link-2026"})

    def _place(self) -> Path:
        self._runs += 1
        place = self._scratch / str(self._runs)
        for name in ("input", "output"):
            (place / name).mkdir(parents=True)
        return place

    def _run(self, image: str, place: Path, question: Mapping[str, Any], data: Mapping[str, Path]) -> Ran:
        (place / "input" / "input.json").write_text(json.dumps(question))
        shown = {"PTM_DATA_" + name.upper().replace("-", "_"): str(path) for name, path in data.items()}
        done = subprocess.run(
            [str(folder_of(image, self._images) / "run")],
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
            | {"PTM_INPUT_DIR": str(place / "input"), "PTM_OUTPUT_DIR": str(place / "output")}
            | shown,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        outputs = {path.name: path.read_text() for path in (place / "output").iterdir()}
        return Ran(done.returncode, done.stdout + done.stderr, outputs)


RULES: dict[str, Any] = {
    "identifier": [{"column": "name", "kind": "name"}, {"column": "born", "kind": "date"}],
    "may_leave": ["visits", "diseases"],
}


def pseudonymous(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A delivered file: who a row is about is given by a number, or by a text that is taken as it is."""
    lines = [",".join(["pseudonym", *header])]
    lines += [",".join([f"{who:064x}" if isinstance(who, int) else str(who), *map(str, cells)]) for who, *cells in rows]
    return "\n".join(lines) + "\n"
