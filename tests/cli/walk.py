"""A joined federation in a folder for the walks through errors, and the check that every refusal of a command passes."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ptm.store.file import FileStore
from tests.commandline import CommandLine
from tests.federation import Federation, image_folder

PUT = ("--home", "alice", "task", "put", "--image", "demo/count:1")
WHOLE_PUT = (*PUT, "--site", "maastro", "--expires", "7d")
WATCH = ("--home", "maastro", "node", "watch", "--once")
MISSING_TASK = "01KAMV3ZR5F2J7Q8XG4M1W9ABC"


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, and a digest of it; without logs, and what looking at the roster leaves (`trust/` of a home)."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes() if os.access(path, os.R_OK) else b"").hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[1:2] != ("trust",) and path.suffix != ".log"
    }


@dataclass(frozen=True)
class Walk:
    """The command line where `coord`, `alice`, `maastro` (a process-runner node) and the revoked `gone` have homes."""

    line: CommandLine

    @property
    def folder(self) -> Path:
        return self.line.folder

    @property
    def url(self) -> str:
        return f"file://{self.folder}/registry"

    def refused(
        self,
        *words: str,
        code: int,
        says: str,
        hint: str | None,
        variables: Mapping[str, str] | None = None,
        changes: bool = False,
    ) -> None:
        """A command has to fail with one line of error that holds `says`, a hint that holds `hint` (None: no hint), nothing on
        stdout, and every file as it was."""
        before = tree(self.folder)
        line = replace(self.line, variables={**(self.line.variables or {}), **(variables or {})})
        answer = line.run(*words)
        said = f"ptm {' '.join(words)}\n{answer.out}{answer.err}"
        errors, hints, rest = split(answer.err)
        assert (answer.code, answer.out) == (code, ""), said
        assert len(errors) == 1, said
        assert says in errors[0], said
        assert [hint is not None and hint in shown for shown in hints] == ([] if hint is None else [True]), said
        assert rest == [], said
        assert "unexpected" not in errors[0], said
        assert changes or tree(self.folder) == before, said


def without_powers(line: CommandLine) -> CommandLine:
    """The same, where even root may read only what modes allow."""
    if os.geteuid() != 0:
        return line
    if shutil.which("setpriv") is None:
        pytest.skip("root reads everything, unless there is setpriv (of util-linux)")
    return replace(line, prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all"))


def split(err: str) -> tuple[list[str], list[str], list[str]]:
    """The lines of error, of hint, and everything else; a log (of `node watch`) and warnings count as neither."""
    lines = [line for line in err.splitlines() if not line.startswith(("ptm: warning: ", "20"))]
    errors = [line for line in lines if line.startswith("ptm: error: ")]
    hints = [line for line in lines if line.startswith("ptm: hint: ")]
    return errors, hints, [line for line in lines if line not in errors + hints]


def make_federation(folder: Path) -> None:
    """Written once, then copied for every test (`copied`)."""
    (folder / "registry").mkdir(parents=True)
    federation = Federation(FileStore(folder / "registry"), folder).create()
    federation.admit(alice="researcher", maastro="site", gone="site")
    federation.revoke("gone")
    (folder / "cohort.csv").write_text("age\n61\n57\n70\n")
    image_folder(folder / "count")
    line = CommandLine(folder)
    line.ok(
        *("--home", "maastro", "node", "init", "--image", "demo/.*:.*", "--data", "cohort=cohort.csv", "--runner", "process"),
        *("--unsafe-no-sandbox", "--process-image", "demo/count:1=count"),
    )


def copied(made: Path, to: Path) -> Walk:
    """The federation at another place: homes name the registry and their files by absolute paths, which are put right."""
    shutil.copytree(made, to, symlinks=True, dirs_exist_ok=True)
    for toml in to.glob("*/*.toml"):
        toml.write_text(toml.read_text().replace(str(made), str(to)))
    return Walk(CommandLine(to))
