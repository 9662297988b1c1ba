"""Runs the real `ptm` in a process of its own, as a person would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit code, and its two outputs as text."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class CommandLine:
    """Commands given in one folder, with some variables on top of a bare environment."""

    folder: Path
    variables: Mapping[str, str] | None = None
    prefix: tuple[str, ...] = ()
    """A command that runs the command, such as `setpriv`."""

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "DOCKER_HOST", "TMPDIR") if name in os.environ}
        kept["PYTHONPATH"] = str(Path(__file__).parent.parent)
        return kept | {"HOME": str(self.folder), "COLUMNS": "160"} | dict(self.variables or {})

    def run(self, *words: str, timeout: float = 120) -> Answer:
        """One command; never raises for its exit code."""
        done = subprocess.run(
            [*self.prefix, sys.executable, "-m", "ptm", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, timeout: float = 120) -> str:
        """One command that has to succeed; its stdout without the last newline."""
        answer = self.run(*words, timeout=timeout)
        assert answer.code == 0, f"ptm {' '.join(words)}\n{answer.out}\n{answer.err}"
        assert "Traceback" not in answer.err
        return answer.out.rstrip("\n")

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command that goes on, such as `node watch`; its stderr goes to a file named after it."""
        log = (self.folder / f"{'-'.join(w.strip('-') for w in words if '/' not in w)}.log").open("w")
        return subprocess.Popen(
            [sys.executable, "-m", "ptm", *words], cwd=self.folder, env=self.environment, stdout=log, stderr=log, text=True
        )
