"""The vertical example from end to end, as a person runs it: on a folder with processes, and on MinIO with real containers.

The example checks itself; what it says is not taken for it here."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from examples.vertical import people, witness
from examples.vertical.build import LINK_AND_FIT, PSEUDONYMISE
from examples.vertical.pooled import pooled_fit
from ptm.store.base import Store
from ptm.store.urls import open_store
from tests import servers

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "examples" / "vertical" / "README.md"


@dataclass(frozen=True)
class Played:
    """An example that has ended."""

    folder: Path
    store: Store
    environment: Mapping[str, str]
    out: str
    images: set[str] | None = None

    @property
    def key(self) -> bytes:
        return (self.folder / "data" / "clinic" / "linkage.key").read_bytes()

    @property
    def fit(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "results" / "link" / "ttp" / "fit.json").read_bytes())
        return found

    def ptm(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ptm", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def environment(more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PTM_", "AWS_"))}
    return kept | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])} | dict(more)


def play(folder: Path, variables: Mapping[str, str], url: str | None, *options: str) -> Played:
    shown = environment(variables)
    words = [*(["--store", url] if url else []), *options]
    done = subprocess.run(
        [sys.executable, "-m", "examples.vertical", "--output", str(folder), *words],
        cwd=ROOT,
        env=shown,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    store = open_store(url or (folder / "registry").as_uri())
    return Played(folder, store, shown, done.stdout)


@pytest.fixture(scope="module", params=["folder", "minio"])
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """An example in a folder with processes, and one in a real MinIO with real containers."""
    folder = tmp_path_factory.mktemp("vertical") / "out"
    if request.param == "folder":
        yield play(folder, {}, None)
        return
    base, engine = request.getfixturevalue("base_image"), request.getfixturevalue("docker_engine")
    minio: servers.Minio = request.getfixturevalue("minio")
    url = f"s3://{minio.make_bucket()}/vertical?endpoint_url={minio.endpoint_url}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in minio.env().items():
            patch.setenv(name, value)
        found = play(folder, minio.env(), url, "--runner", "docker", "--base-image", base)
        names = (PSEUDONYMISE, LINK_AND_FIT)
        yield replace(found, images={str(engine.images.get(name).id) for name in names})
        for name in names:
            engine.images.remove(name, force=True)


@pytest.fixture(scope="module")
def tables() -> dict[str, list[people.Row]]:
    everybody = people.people()
    return {party: people.table_of(party, everybody) for party in people.COLUMNS}


@pytest.fixture(scope="module")
def known(tables: dict[str, list[people.Row]]) -> people.Truth:
    return people.truth(tables)


@pytest.fixture
def sought(played: Played, tables: dict[str, list[people.Row]]) -> witness.Sought:
    names = {row.cells["name"] for rows in tables.values() for row in rows}
    return witness.Sought(witness.spellings(names) | witness.shapes(played.key))


# --- the example ---


def test_the_people_are_the_same_on_every_machine(known: people.Truth) -> None:
    assert known.senders == {
        "clinic": {"rows": 2158, "linked": 1797, "unmatched": 287, "multiple": 74},
        "statistics": {"rows": 2106, "linked": 1797, "unmatched": 239, "multiple": 70},
    }
    assert (known.linked, len(known.complete)) == (1797, 1736)


@pytest.mark.slow
def test_the_counts_are_those_of_a_linkage_by_who_is_who(played: Played, known: people.Truth) -> None:
    assert played.fit["senders"] == known.senders
    for model in played.fit["models"]:
        assert (model["counts"]["linked"], model["counts"]["used"]) == (known.linked, len(known.complete))


@pytest.mark.slow
def test_both_models_equal_the_pooled_fit_to_6_decimals(played: Played, known: people.Truth) -> None:
    assert [model["kind"] for model in played.fit["models"]] == ["linear", "logistic"]
    for told, (kind, outcome, covariates) in zip(played.fit["models"], people.MODELS, strict=True):
        pooled = pooled_fit(kind, outcome, covariates, known.complete)
        assert [one["estimate"] for one in told["coefficients"]] == pytest.approx(pooled.coefficients, abs=1e-6)
        assert [one["standard_error"] for one in told["coefficients"]] == pytest.approx(pooled.standard_errors, abs=1e-6)


@pytest.mark.slow
def test_no_name_and_no_key_is_in_the_bucket_or_with_the_trusted_party_or_the_researcher(
    played: Played, sought: witness.Sought
) -> None:
    assert sought.in_(witness.in_store(played.store)) == {}
    for member in ("ttp", "jane", "results", "coordinator"):
        assert sought.in_(witness.in_folder(played.folder / member)) == {}, member
    at_clinic = sought.in_(witness.in_folder(played.folder / "data"))
    assert at_clinic.keys() == {"a name", "the linkage key"}, "the search does not find what is there"


@pytest.mark.slow
def test_the_researcher_has_an_answer_and_receipts_and_no_file_of_a_data_party(played: Played) -> None:
    results = played.folder / "results"
    files = {str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()}
    each = {f"{party}/{party}/{name}" for party in people.COLUMNS for name in ("result.json", "task.json")}
    assert files == each | {f"link/ttp/{name}" for name in ("fit.json", "log.txt", "result.json", "task.json")}
    for party, name in (("clinic", "visits.csv"), ("statistics", "insurance.csv")):
        signed = json.loads((results / party / party / "result.json").read_bytes())["signed"]
        assert signed["state"] == "completed" and not signed.get("outputs")
        assert [file["name"] for file in signed["delivered"]["files"]] == [name]


@pytest.mark.slow
def test_the_collection_is_gone_and_the_inbox_empty_and_a_signed_record_says_what_went(played: Played) -> None:
    assert not [path for path in (played.folder / "ttp" / "collections").rglob("*") if path.is_file()]
    assert list(played.store.list("inbox/")) == []
    (record,) = played.store.list("sites/ttp/purges/link-2026/")
    purge = json.loads(played.store.get(record.key, 1 << 20))["signed"]
    assert (purge["why"], {file["sender"] for file in purge["files"]}) == ("used", set(people.COLUMNS))


@pytest.mark.slow
def test_the_runs_were_containers_of_these_images_where_that_was_asked(played: Played) -> None:
    results = (played.folder / "results").glob("*/*/result.json")
    ran = {json.loads(path.read_bytes())["signed"]["image_digest"] for path in results}
    assert len(ran) == 2 and (played.images is None or ran == played.images)


@pytest.mark.slow
def test_a_data_party_gives_pseudonymised_rows_to_nobody_but_the_trusted_party(played: Played) -> None:
    question = str(played.folder / "questions" / "clinic" / "input.json")
    words = ("task", "put", "--image", PSEUDONYMISE, "--site", "clinic", "--data", "people", "--data", "linkage-key")
    asked = ("--home", "jane", *words, "--input", question, "--expires", "1d")
    for to in ("jane/link-2026", "statistics/link-2026"):
        answer = played.ptm(*asked, "--deliver", to)
        assert answer.returncode and "Traceback" not in answer.stderr
    task = played.ptm(*asked).stdout.strip()
    assert played.ptm("--home", "clinic", "node", "watch", "--once").returncode == 0
    state = json.loads(played.ptm("--home", "jane", "task", "show", task, "--json").stdout)["states"][0]
    assert state["state"] == "rejected" and "outputs that come to the researcher" in state["reason"]


@pytest.mark.slow
def test_it_prints_every_command_and_the_table(played: Played) -> None:
    assert len(re.findall(r"^ +\$ ptm --home \w+ ", played.out, re.MULTILINE)) >= 20
    assert re.search(r"^logistic saw_doctor +coinsurance +-0\.216626 +-0\.216626 ", played.out, re.MULTILINE)
    assert re.search(r"Largest difference .*: \d\.\de-(0[89]|1\d)", played.out)


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, "-m", "examples.vertical", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment({}), capture_output=True, text=True, check=False)
    assert done.returncode == 12 and "is there already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- the search ---


@pytest.mark.parametrize(
    "shown", ["Müller-Strauß, Ana", "müller-strauß ana", "ana muller strauss", "MÜLLER-STRAUSS ANA", "Ana Müller Strauß"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_a_name_is_found_as_it_may_be_written(shown: str, encoding: str) -> None:
    sought = witness.Sought(witness.spellings(["Müller-Strauß, Ana"]))
    assert sought.in_([("here", b"\x00\xff" + shown.encode(encoding) + b"1")]) == {"a name": {"here"}}


@pytest.mark.parametrize("before", range(4))
def test_the_key_is_found_as_bytes_in_hex_and_anywhere_in_base64(before: int) -> None:
    key = bytes(range(100, 132))
    sought = witness.Sought(witness.shapes(key))
    padded = b"x" * before + key + b"yz"
    for text in (padded, padded.hex().encode(), padded.hex().upper().encode(), base64.b64encode(padded)):
        assert sought.in_([("here", b"{" + text + b"}"), ("there", text[:20])]) == {"the linkage key": {"here"}}


def test_a_pseudonym_is_found_in_a_table_and_other_digests_are_not() -> None:
    known = {"ab" * 32}
    things = [("here", b"pseudonym,x\n" + b"ab" * 32 + b",1\n"), ("there", b"cd" * 32), ("longer", b"ab" * 33)]
    assert witness.pseudonyms_in(things, known) == {"here"}


# --- README.md ---


def block(name: str) -> str:
    found = re.search(rf"<!-- tested: {name} -->\n```\w*\n(.+?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.slow
def test_the_readmes_session_runs_as_it_stands(tmp_path: Path, known: people.Truth) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in (("ptm", "-m ptm"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (commands / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block("session")],
        cwd=tmp_path,
        env=environment({"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    fit = json.loads((tmp_path / "out" / "ttp" / "fit.json").read_bytes())
    assert fit["senders"] == known.senders
    shown = re.search(r"^```json\n(.+?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    for name, value in re.findall(r'"name": "(\S+?)", "estimate": (-?[\d.]+)', shown[1]):
        assert any(one["name"] == name and f"{one['estimate']:.6f}" == value for one in fit["models"][0]["coefficients"])
