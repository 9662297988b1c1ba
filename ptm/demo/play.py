"""The demo itself: a federation is set up, a logistic regression is fitted through real tasks and results, and the answer is
held against the fit on all rows in one place.

Rules: what is reported was measured on the registry and on the fetched results, not computed from what should be there.
Progress goes to `say`; how it looks, and what is printed at the end, is `ptm.cli.demo`'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptm import layout
from ptm.client import Client, RunResult, TaskHandle
from ptm.demo.data import LABELS, MODEL, load, split
from ptm.demo.engine import Sandbox, clear
from ptm.demo.federation import HOSPITALS, IMAGE, RESEARCHER, Federation, Nodes, running
from ptm.demo.logistic import Fit, fit, newton_step, parse_derivatives
from ptm.demo.table import DECIMALS, Traffic, largest_difference
from ptm.errors import PtmError, RunFailed, TimedOut

ROUND_S = 120.0
"""A round that takes longer is given up."""
LOOK_AFTER_NODES_S = 3.0
TITLE = "Malignancy of a breast mass"
Say = Callable[[str, str], None]
"""A word for what is going on, and a line about it."""


@dataclass(frozen=True)
class Round:
    """One task to all hospitals. The first one asks for the scale and has no likelihood."""

    number: int
    task: str
    seconds: float
    log_likelihood: float | None = None
    largest_change: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What there is to show."""

    federation: Federation
    sandbox: Sandbox
    fit: Fit
    pooled: Fit
    difference: float
    rounds: Sequence[Round]
    traffic: Sequence[Traffic]
    plot: Path


def play(folder: Path, sandbox: Sandbox, say: Say) -> Outcome:
    """Play the whole demo in an empty folder. `PtmError` if the two fits differ in the decimals shown."""
    federation = Federation(folder)
    data_files = _set_up(federation, sandbox, say)
    researcher = _Researcher(federation, say)
    try:
        with running(federation) as nodes:
            nodes.wait_ready()
            say("nodes", f"{len(HOSPITALS)} processes, `ptm node watch`, one for each hospital")
            say("question", f"malignant or benign? logistic regression, {len(MODEL.covariates)} measurements")
            found = researcher.fit(nodes)
    finally:
        clear(sandbox, researcher.client.registry.id)
    say("answer", f"converged after {found.rounds} Newton rounds; the nodes are stopped")
    pooled = _pooled()
    say("check", "statsmodels, on all rows in one place (only to compare)")
    difference = largest_difference(found, pooled)
    if not difference < 0.5 * 10**-DECIMALS:
        raise PtmError(
            f"the federated and the pooled fit differ by {difference:.1e}", hint="this is a fault in ptm: please report it"
        )
    traffic = [researcher.traffic(name, found.n[name], data_files[name]) for name in HOSPITALS]
    return Outcome(federation, sandbox, found, pooled, difference, researcher.rounds, traffic, _plot(federation, found))


def _set_up(federation: Federation, sandbox: Sandbox, say: Say) -> dict[str, int]:
    """Everything up to the start of the nodes; each hospital's size of data file."""
    fingerprint = federation.found()
    say("registry", f"a folder in place of a bucket; root {fingerprint[:16]}…")
    federation.admit(fingerprint)
    say("members", f"admitted: {RESEARCHER}, a researcher; {', '.join(HOSPITALS)}")
    data_files = federation.deal_data()
    counts = {name: len(rows) for name, rows in split(load()).items()}
    dealt = ", ".join(f"{name} {count}" for name, count in counts.items())
    say("data", f"{sum(counts.values())} patients: {dealt}")
    federation.copy_image()
    federation.set_up_nodes(sandbox.runner)
    return data_files


class _Researcher:
    """Alice: asks, collects, and keeps account."""

    def __init__(self, federation: Federation, say: Say) -> None:
        self.client = Client(federation.home(RESEARCHER))
        self.rounds: list[Round] = []
        self._federation, self._say = federation, say
        self._results: list[RunResult] = []

    def fit(self, nodes: Nodes) -> Fit:
        return fit(MODEL, lambda number, document: self._ask(nodes, number, document))

    def _ask(self, nodes: Nodes, number: int, document: dict[str, Any]) -> Mapping[str, bytes]:
        """One round: a task to all hospitals, and their verified, decrypted answers."""
        begun = time.monotonic()
        task = self.client.put(
            image=IMAGE,
            sites=HOSPITALS,
            inputs={"input.json": json.dumps(document).encode()},
            data=["cohort"],
            purpose=f"demo: logistic regression, round {number}",
            expires="1h",
            time_limit_s=60,
        )
        results = self._collect(nodes, task, self._federation.folder / "results" / f"round-{number}")
        answers = {name: results[name].read("summary.json") for name in HOSPITALS}
        self._note(number, task.id, time.monotonic() - begun, answers)
        return answers

    def _collect(self, nodes: Nodes, task: TaskHandle, folder: Path) -> dict[str, RunResult]:
        """All results of a task; looks now and then whether the nodes are still there."""
        deadline = time.monotonic() + ROUND_S
        while True:
            try:
                results = {result.site: result for result in task.results(LOOK_AFTER_NODES_S, folder)}
                break
            except TimedOut:
                nodes.check()
                if time.monotonic() > deadline:
                    raise
        for result in results.values():
            if not result.ok:
                hint = f"see {self._federation.log(result.site)}; `--runner process` needs no container engine"
                raise RunFailed(f"the run at {result.site} {result.state}: {result.reason}", hint=hint)
        self._results.extend(results.values())
        return results

    def _note(self, number: int, task: str, seconds: float, answers: Mapping[str, bytes]) -> None:
        if number == 1:
            self.rounds.append(Round(number, task, seconds))
            self._say("round 1", f"{'sums, to put all on one scale':<48}{seconds:4.1f} s")
            return
        derivatives = {site: parse_derivatives(body, MODEL) for site, body in answers.items()}
        likelihood = sum(d.log_likelihood for d in derivatives.values())
        change = float(np.max(np.abs(newton_step(derivatives)[0])))
        self.rounds.append(Round(number, task, seconds, likelihood, change))
        self._say(f"round {number}", f"log-likelihood {likelihood:9.3f}, largest step {change:7.1e}  {seconds:4.1f} s")

    def traffic(self, hospital: str, patients: int, data_file: int) -> Traffic:
        """What left a hospital, measured on what was fetched and on what lies in the registry."""
        results = [result for result in self._results if result.site == hospital]
        files = [(result.folder / file.name, file.size) for result in results for file in result.saved.result.files]
        store = self.client.registry.store
        return Traffic(
            hospital=hospital,
            patients=patients,
            data_file=data_file,
            clear=sum(path.stat().st_size for path, _ in files),
            sealed=sum(size for _, size in files),
            objects=sum(info.size for one in self.rounds for info in store.list(layout.run(hospital, one.task))),
        )


def _pooled() -> Fit:
    from ptm.demo.pooled import pooled_fit

    return pooled_fit(MODEL, split(load()))


def _plot(federation: Federation, found: Fit) -> Path:
    from ptm.demo.plot import forest_plot

    path = federation.folder / "forest.png"
    forest_plot(found, LABELS, TITLE, path)
    return path
