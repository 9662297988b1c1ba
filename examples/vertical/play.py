"""The example as a session of `ptm` commands: what each person types, in which order, and what must be true afterwards.

Rules: everything lies in one folder, but for the bucket if there is one. Every step that ptm has a command for is that command,
in a process of its own, and is told to `say`. Nodes look once where in earnest they watch, so nothing runs on. What differs
from the pooled fit, or shows something to somebody who may not see it, is a `PtmError`, not a line to be overlooked.

It leaves the folder to look at; `people` makes the tables, `build` the images."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from examples.vertical import witness
from examples.vertical.build import LINK_AND_FIT, PSEUDONYMISE, build_images, write_images
from examples.vertical.people import CLINIC, COLUMNS, MODELS, STATISTICS, Row, Truth, people, table_of, truth
from examples.vertical.people import write_source as write_table
from ptm.errors import PtmError
from ptm.store.urls import open_store

PARTY, RESEARCHER, COORDINATOR = "ttp", "jane", "coordinator"
COLLECTION = "link-2026"
FILES = {CLINIC: "visits.csv", STATISTICS: "insurance.csv"}
TOLERANCE = 0.5e-6
"""Equal to 6 decimals."""
KINDS = {CLINIC: "site", STATISTICS: "site", PARTY: "party", RESEARCHER: "researcher"}
Say = Callable[[str, str], None]
Runner = Literal["docker", "process"]


@dataclass(frozen=True)
class Line:
    """A coefficient, ours beside statsmodels'."""

    model: str
    name: str
    ours: float
    pooled: float
    error: float
    pooled_error: float

    @property
    def difference(self) -> float:
        return max(abs(self.ours - self.pooled), abs(self.error - self.pooled_error))


@dataclass(frozen=True)
class Outcome:
    """What there is to show. `saw` says in words what each party had; all of it was looked for."""

    folder: Path
    senders: dict[str, dict[str, int]]
    counts: list[dict[str, int]]
    lines: list[Line]
    saw: dict[str, str]

    @property
    def difference(self) -> float:
        return max(line.difference for line in self.lines)


@dataclass
class Play:
    """One run of the example in an empty `folder`, with the registry at `store` (a URL)."""

    folder: Path
    store: str
    runner: Runner
    base_image: str
    say: Say
    tables: dict[str, list[Row]] = field(init=False)
    key: bytes = field(init=False)
    pseudonyms: set[str] = field(init=False)

    def run(self) -> Outcome:
        self.found_and_admit()
        self.deal_data()
        self.set_up()
        link = self.ask_too_early()
        asked = self.deliver()
        sealed = self.look_into_bucket()
        self.receive()
        at_party = self._found(witness.in_folder(self.home(PARTY)))
        answer = self.fetch(link, asked)
        self.purge()
        return self.judge(answer, sealed, at_party)

    # who there is

    def found_and_admit(self) -> None:
        root = self.ptm(COORDINATOR, "registry", "create", self.store, "--name", "vertical")
        self.say("registry", f"{self.store.split('?')[0]}, root {root[:16]}…")
        requests = {name: str(self.folder / f"{name}.request.json") for name in KINDS}
        with ThreadPoolExecutor(2) as side_by_side:
            list(side_by_side.map(lambda name: self._request(name, requests[name]), KINDS))
            self.ptm(COORDINATOR, "member", "admit", *requests.values())
            list(side_by_side.map(lambda name: self.ptm(name, "join", self.store, "--root", root), KINDS))
        self.say("members", ", ".join(f"{name} ({kind})" for name, kind in KINDS.items()))

    def _request(self, name: str, path: str) -> None:
        self.ptm(name, "member", "request", "--name", name, "--kind", KINDS[name], "-o", path)

    # what they have

    def deal_data(self) -> None:
        """Each data party's table, and the key that they share by other means than ptm."""
        everybody = people()
        self.tables = {party: table_of(party, everybody) for party in COLUMNS}
        self.key = secrets.token_bytes(32)
        for party, rows in self.tables.items():
            write_table(party, rows, self.data(party) / "people")
            linkage_key = self.data(party) / "linkage.key"
            linkage_key.write_bytes(self.key)
            # Who may read it is for the folder above to say: in a container another user reads it.
            linkage_key.chmod(0o644)
            self.data(party).chmod(0o700)
            self.say("data", f"{party}: {len(rows)} rows of {', '.join(COLUMNS[party])}; name and birth date; the key")

    def set_up(self) -> None:
        """node.toml and policy.toml of all three, and the party's collection."""
        images = write_images(self.folder / "images")
        if self.runner == "docker":
            build_images(images, self.base_image)
            self.say("images", f"built on {self.base_image}: {', '.join(images)}")
        sandbox = ["--runner", "process", "--unsafe-no-sandbox"] if self.runner == "process" else []
        for party in COLUMNS:
            data = self.data(party)
            sources = ("--data", f"people={data / 'people'}", "--data", f"linkage-key={data / 'linkage.key'}")
            self._init(party, PSEUDONYMISE, images, sandbox, *sources)
            self._allow(party, PSEUDONYMISE, ["people", "linkage-key"], FILES[party], f'deliver = ["{PARTY}"]')
        self._init(PARTY, LINK_AND_FIT, images, sandbox)
        self._allow(PARTY, LINK_AND_FIT, [COLLECTION], "fit.json", "runs_per_day = 5")
        senders = [word for party in COLUMNS for word in ("--sender", f"{party}={_pattern(FILES[party])}")]
        collection = ("--collection", COLLECTION, "--researcher", RESEARCHER, "--purge", "used")
        self.ptm(PARTY, "trustedparty", "init", *collection, *senders)
        self.say("policies", f"data parties: {PSEUDONYMISE}, for delivery to {PARTY} only; {PARTY}: {LINK_AND_FIT}")

    def _init(self, member: str, image: str, images: dict[str, Path], sandbox: Sequence[str], *sources: str) -> None:
        folders = ("--process-image", f"{image}={images[image]}") if sandbox else ()
        self.ptm(member, "node", "init", "--image", image, "--pull", "never", *sources, *sandbox, *folders)

    def _allow(self, member: str, image: str, data: Sequence[str], output: str, more: str) -> None:
        (self.home(member) / "policy.toml").write_text(
            f"[[allow]]\nimages = ['{image}']\nresearchers = [\"{RESEARCHER}\"]\ndata = {json.dumps(data)}\n"
            f"outputs = {{ names = ['{_pattern(output)}'], max_files = 1 }}\n{more}\n"
        )

    # what happens

    def ask_too_early(self) -> str:
        """The question to the trusted party, before it has any data: the task waits."""
        models = [{"kind": kind, "outcome": outcome, "covariates": covariates} for kind, outcome, covariates in MODELS]
        question = self._question(PARTY, {"data": COLLECTION, "models": models, "min_rows": 100})
        task = self._put(LINK_AND_FIT, PARTY, [COLLECTION], question, "Does who pays more see a doctor less?")
        self.ptm(PARTY, "node", "watch", "--once")
        state = json.loads(self.ptm(RESEARCHER, "task", "show", task, "--json"))["states"][0]
        if state["state"] != "waiting_data":
            raise PtmError(f"the task at {PARTY} is {state['state']} and should wait for data")
        self.say("waits", f"{PARTY}: {state['reason']}")
        return task

    def deliver(self) -> dict[str, str]:
        """A task at each data party, whose output goes to the trusted party."""
        asked = {}
        for party, columns in COLUMNS.items():
            question = self._question(party, {"data": "people", "columns": columns, "output": FILES[party]})
            sources = ["people", "linkage-key"]
            purpose = "Pseudonyms for the linkage of 2026"
            to = ("--deliver", f"{PARTY}/{COLLECTION}")
            asked[party] = self._put(PSEUDONYMISE, party, sources, question, purpose, *to)
        with ThreadPoolExecutor(2) as side_by_side:
            list(side_by_side.map(lambda party: self.ptm(party, "node", "watch", "--once"), COLUMNS))
        self.say("sent", f"{', '.join(COLUMNS)}: pseudonymised, sealed to {PARTY}, put into the bucket")
        return asked

    def receive(self) -> None:
        """The trusted party takes what came, runs the question that waited, and answers."""
        self.ptm(PARTY, "trustedparty", "watch", "--once")
        held = sorted(path for path in (self.home(PARTY) / "collections").rglob("*.csv"))
        self.say("arrived", f"{PARTY} holds {len(held)} files: {', '.join(path.parent.name for path in held)}")
        pseudonyms = {text.decode() for path in held for text in witness.PSEUDONYM.findall(path.read_bytes())}
        if len(held) != len(COLUMNS) or not pseudonyms:
            raise PtmError(f"{PARTY} does not hold one file of each data party")
        self.pseudonyms = pseudonyms
        self.ptm(PARTY, "node", "watch", "--once")
        self.say("linked", f"{PARTY} has run {LINK_AND_FIT} on {COLLECTION}")

    def fetch(self, link: str, asked: dict[str, str]) -> dict[str, Any]:
        """What the researcher gets: the answer, and of the data parties a receipt each."""
        results = self.folder / "results"
        self.ptm(RESEARCHER, "results", "fetch", link, "-o", str(results / "link"))
        for party, task in asked.items():
            self.ptm(RESEARCHER, "results", "fetch", task, "-o", str(results / party))
            left = {path.name for path in (results / party / party).iterdir()}
            delivered = json.loads((results / party / party / "result.json").read_bytes())["signed"]["delivered"]
            if left != {"result.json", "task.json"} or delivered["to"] != PARTY:
                raise PtmError(f"{RESEARCHER} got more of {party} than a receipt: {', '.join(sorted(left))}")
        answer: dict[str, Any] = json.loads((results / "link" / PARTY / "fit.json").read_bytes())
        return answer

    def purge(self) -> None:
        """The collection goes when it has been used."""
        self.ptm(PARTY, "trustedparty", "watch", "--once")
        left = [path for path in (self.home(PARTY) / "collections").rglob("*") if path.is_file()]
        records = [info.key for info in open_store(self.store).list(f"sites/{PARTY}/purges/")]
        if left or len(records) != 1:
            raise PtmError(f"the collection was used and is not purged: {len(left)} files, {len(records)} records")
        self.say("purged", f"{PARTY} removed the collection and signed a record of it")

    # what must be true

    def look_into_bucket(self) -> list[str]:
        """What lies in the bucket on the way; all files of the inbox are age ciphertext."""
        things = list(witness.in_store(open_store(self.store)))
        inbox = [(where, body) for where, body in things if where.startswith(f"inbox/{PARTY}/") and "/files/" in where]
        open_ones = [where for where, body in inbox if not body.partition(b"\n")[2].startswith(witness.AGE_HEADER)]
        if len(inbox) != len(COLUMNS) or open_ones:
            raise PtmError(f"the inbox should hold {len(COLUMNS)} ciphertexts: {len(inbox)} files, {len(open_ones)} in clear")
        return self._found(things)

    def judge(self, answer: dict[str, Any], sealed: list[str], at_party: list[str]) -> Outcome:
        """The answer against the pooled fit, and everybody's things against what they may have."""
        known = truth(self.tables)
        lines = _lines(answer, known)
        counts = [model["counts"] for model in answer["models"]]
        if answer["senders"] != known.senders or any(
            (count["linked"], count["used"]) != (known.linked, len(known.complete)) for count in counts
        ):
            raise PtmError("the linkage did not find who belongs together")
        outcome = Outcome(self.folder, answer["senders"], counts, lines, self._check_what_they_saw(sealed, at_party))
        if not outcome.difference < TOLERANCE:
            raise PtmError(f"the linked and the pooled fit differ by {outcome.difference:.1e}")
        return outcome

    def _check_what_they_saw(self, sealed: list[str], at_party: list[str]) -> dict[str, str]:
        if not all(self._found(witness.in_folder(self.data(party))) for party in COLUMNS):
            raise PtmError("the search for names does not find them where they are")
        researcher = [*witness.in_folder(self.home(RESEARCHER)), *witness.in_folder(self.folder / "results")]
        bucket = list(witness.in_store(open_store(self.store)))
        wrong = {
            "the bucket, on the way": sealed,
            f"{PARTY}": [*at_party, *self._found(witness.in_folder(self.home(PARTY)))],
            f"{RESEARCHER}": [*self._found(researcher), *witness.pseudonyms_in(researcher, self.pseudonyms)],
            "the bucket": [*self._found(bucket), *witness.pseudonyms_in(bucket, self.pseudonyms)],
            f"{PARTY}, after the purge": list(witness.pseudonyms_in(witness.in_folder(self.home(PARTY)), self.pseudonyms)),
        }
        if leaks := {who: found for who, found in wrong.items() if found}:
            raise PtmError(f"somebody saw what they may not: {leaks}")
        return {
            RESEARCHER: "coefficients, standard errors, counts; no name, no pseudonym, no row, no key",
            PARTY: f"{len(self.pseudonyms)} pseudonyms with their columns, until the purge; no name, no key",
            "the bucket": f"{len(bucket)} objects: signed documents and ciphertext; no name, no pseudonym, no key",
        }

    def _found(self, things: witness.Things) -> list[str]:
        return [f"{kind} in {where}" for kind, places in self._sought.in_(things).items() for where in sorted(places)]

    @cached_property
    def _sought(self) -> witness.Sought:
        names = {row.cells["name"] for rows in self.tables.values() for row in rows}
        return witness.Sought(witness.spellings(names) | witness.shapes(self.key))

    # how it is done

    def home(self, member: str) -> Path:
        return self.folder / member

    def data(self, party: str) -> Path:
        return self.folder / "data" / party

    def _question(self, site: str, question: dict[str, Any]) -> Path:
        path = self.folder / "questions" / site / "input.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(question, indent=2) + "\n")
        return path

    def _put(self, image: str, site: str, data: Sequence[str], question: Path, purpose: str, *more: str) -> str:
        sources = [word for name in data for word in ("--data", name)]
        return self.ptm(
            RESEARCHER,
            *("task", "put", "--image", image, "--site", site, *sources, "--input", str(question)),
            *("--purpose", purpose, "--expires", "1d", *more),
        )

    def ptm(self, member: str, *words: str) -> str:
        """One command of one member; its stdout. `PtmError` with its own words if it fails."""
        self.say("$", " ".join(["ptm", "--home", member, *(_short(word, self.folder) for word in words)]))
        done = subprocess.run(
            [sys.executable, "-m", "ptm", "--home", str(self.home(member)), *words],
            env={name: value for name, value in os.environ.items() if not name.startswith("PTM_")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        (self.folder / "logs").mkdir(exist_ok=True)
        with (self.folder / "logs" / f"{member}.log").open("a") as log:
            log.write(f"$ ptm {' '.join(words)}\n{done.stdout}{done.stderr}")
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise PtmError(
                f"{member}: `ptm {' '.join(words[:2])}` failed: {' '.join(said[-2:])}", hint=f"see {self.folder / 'logs'}"
            )
        return done.stdout.strip()


def _lines(answer: dict[str, Any], known: Truth) -> list[Line]:
    from examples.vertical.pooled import pooled_fit

    lines = []
    for told, (kind, outcome, covariates) in zip(answer["models"], MODELS, strict=True):
        pooled = pooled_fit(kind, outcome, covariates, known.complete)
        rows = zip(told["coefficients"], pooled.coefficients, pooled.standard_errors, strict=True)
        for entry, estimate, error in rows:
            lines.append(Line(f"{kind} {outcome}", entry["name"], entry["estimate"], estimate, entry["standard_error"], error))
    return lines


def _pattern(name: str) -> str:
    return name.replace(".", r"\.")


def _short(word: str, folder: Path) -> str:
    """A word of a command as a person in the folder would type it."""
    shown = re.sub(rf"(^|=){re.escape(str(folder))}/", r"\1", word)
    return f"'{shown}'" if {" ", "?", "*", "\\"} & set(shown) else shown
