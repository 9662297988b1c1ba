"""The native `ptm` contract: which variables and paths a run finds (design, section 7). Pure; it starts nothing and touches no
file.

Inputs lie in `/ptm/input/`, outputs go to `/ptm/output/`, data sources are at `/ptm/data/<name>` or at the URL in
`PTM_DATA_<NAME>`. A runner that is no container puts the same things elsewhere (`Places`), so an algorithm that reads the
variables runs under both. What the contract sets, a task's own `env` cannot change.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from ptm.config import DataSource, FileSource, HttpSource, SparqlSource

ROOT = "/ptm"
INPUT_DIR = f"{ROOT}/input"
OUTPUT_DIR = f"{ROOT}/output"
DATA_DIR = f"{ROOT}/data"


@dataclass(frozen=True)
class Places:
    """Where a run finds its things: folders as it sees them, and a path or a URL for each data source."""

    input_dir: str
    output_dir: str
    home: str
    data: Mapping[str, str]


def container_places(data: Mapping[str, DataSource], endpoints: Mapping[str, str]) -> Places:
    """The places in a container. `endpoints` gives the URL at which the container reaches each source that is no file."""
    shown = {name: f"{DATA_DIR}/{name}" if isinstance(source, FileSource) else endpoints[name] for name, source in data.items()}
    return Places(INPUT_DIR, OUTPUT_DIR, "/tmp", shown)  # noqa: S108 - in the container


def environment(task: str, site: str, data: Mapping[str, DataSource], places: Places, asked: Mapping[str, str]) -> dict[str, str]:
    """All variables of a run: those that the task asked for (`asked`), and over them those of the contract.

    `SPARQL_ENDPOINT` is the first SPARQL source, `DATABASE_URI` the first file, folder or database, in the order in which the
    task names them; without such a source they are not there at all, whatever the task asked for: an algorithm takes them for
    the site's word.
    """
    env = {
        "PTM_TASK": task,
        "PTM_SITE": site,
        "PTM_INPUT_DIR": places.input_dir,
        "PTM_OUTPUT_DIR": places.output_dir,
        "HOME": places.home,
    }
    for name, source in data.items():
        env[data_variable(name)] = places.data[name]
        if not isinstance(source, HttpSource):
            env.setdefault("SPARQL_ENDPOINT" if isinstance(source, SparqlSource) else "DATABASE_URI", places.data[name])
    return {name: value for name, value in asked.items() if name not in ("SPARQL_ENDPOINT", "DATABASE_URI")} | env


def data_variable(name: str) -> str:
    """`my-cohort` is shown as `PTM_DATA_MY_COHORT`."""
    return "PTM_DATA_" + name.upper().replace("-", "_")


def exit_reason(code: int) -> str | None:
    """Why a run with this exit code failed, in one line; None for 0, which is success. Above 128 it is a signal, as in a
    shell."""
    if code == 0:
        return None
    meaning = {126: "the command may not be executed", 127: "a command was not found"}.get(code, "")
    if code > 128 and code - 128 in set(signal.Signals):
        meaning = f"ended by {signal.Signals(code - 128).name}"
    return f"exit code {code}" + (f" ({meaning})" if meaning else "")
