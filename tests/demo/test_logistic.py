"""The demo's science: sums from three sites give the fit on all rows, and the image refuses what it must."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ptm.demo.data import LABELS, MODEL, SHARES, load, split, write_hospitals
from ptm.demo.logistic import Fit, Model, fit, moments_input, newton_step, parse_derivatives, parse_moments
from ptm.demo.plot import forest_plot
from ptm.demo.pooled import pooled_fit
from ptm.demo.table import coefficient_table, largest_difference
from ptm.errors import Malformed, PtmError

pytestmark = pytest.mark.slow

RUN = Path(str(files("ptm.demo").joinpath("image/run")))
GOOD_DERIVATIVES: dict[str, Any] = {
    "kind": "derivatives",
    "n": 40,
    "log_likelihood": -3.0,
    "gradient": [0.0, 0.0],
    "information": [[1.0, 0.0], [0.0, 1.0]],
}


class Site:
    """One run of the image's script, as the process runner starts it: the contract's variables, private folders."""

    def __init__(self, folder: Path, data: Path | str) -> None:
        self.inputs, self.outputs, self.data = folder / "in", folder / "out", data
        self.inputs.mkdir(parents=True)
        self.outputs.mkdir()

    def run(self, **documents: Any) -> subprocess.CompletedProcess[str]:
        for name, document in documents.items():
            text = document if isinstance(document, str) else json.dumps(document)
            (self.inputs / f"{name}.json").write_text(text)
        env = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "PTM_INPUT_DIR": str(self.inputs),
            "PTM_OUTPUT_DIR": str(self.outputs),
            "PTM_DATA_COHORT": str(self.data),
            "PTM_SITE": "northside",
            "PTM_TASK": "01TASK",
        }
        return subprocess.run([RUN], env=env, capture_output=True, text=True, timeout=60, check=False)

    @property
    def summary(self) -> bytes:
        return (self.outputs / "summary.json").read_bytes()


@pytest.fixture
def new_site(tmp_path: Path) -> Callable[[str], Site]:
    """Makes a site with the given CSV text as its cohort."""

    def make(text: str) -> Site:
        data = tmp_path / "cohort"
        data.write_text(text)
        return Site(tmp_path / "site", data)

    return make


def ask_processes(folder: Path, hospitals: dict[str, Path]) -> Callable[[int, dict[str, Any]], dict[str, bytes]]:
    def ask(number: int, document: dict[str, Any]) -> dict[str, bytes]:
        answers = {}
        for name, data in hospitals.items():
            site = Site(folder / f"{number}-{name}", data)
            done = site.run(input=document)
            assert done.returncode == 0, done.stderr
            answers[name] = site.summary
        return answers

    return ask


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    folder = tmp_path_factory.mktemp("federation")
    return fit(MODEL, ask_processes(folder, write_hospitals(folder)))


@pytest.fixture(scope="module")
def pooled() -> Fit:
    return pooled_fit(MODEL, split(load()))


def small_table(rows: int, outcome: str = "y", covariate: str = "x") -> str:
    return f"{outcome},{covariate}\n" + "".join(f"{i % 2},{(i * 7) % 5}.5\n" for i in range(rows))


def question(**changes: Any) -> dict[str, Any]:
    return moments_input(Model(outcome="y", covariates=("x",))) | changes


# --- the fit -------------------------------------------------------------------------------------------------------


def test_sums_of_three_sites_give_the_pooled_fit_to_more_than_6_decimals(federated: Fit, pooled: Fit) -> None:
    assert largest_difference(federated, pooled) < 1e-8
    assert federated.log_likelihood == pytest.approx(pooled.log_likelihood, abs=1e-8)
    assert (federated.n, federated.events) == (pooled.n, pooled.events)


def test_newton_converges_within_8_rounds(federated: Fit) -> None:
    assert federated.rounds <= 8


def test_no_single_site_finds_the_pooled_coefficients_alone(pooled: Fit) -> None:
    # so the agreement above is the federation's doing
    for name, patients in split(load()).items():
        assert largest_difference(pooled_fit(MODEL, {name: patients}), pooled) > 0.01


def test_odds_ratios_and_intervals_follow_from_coefficients_and_errors(federated: Fit, pooled: Fit) -> None:
    low, high = federated.interval
    assert np.all(low < federated.odds_ratio) and np.all(federated.odds_ratio < high)
    assert np.allclose(np.log(federated.odds_ratio), pooled.beta[1:], atol=1e-8)
    assert np.allclose(np.log(high / low) / 2, 1.959964 * pooled.standard_error[1:], atol=1e-6)


def test_a_separated_outcome_ends_in_an_error_not_in_a_loop(tmp_path: Path) -> None:
    data = tmp_path / "separated.csv"
    data.write_text("y,x\n" + "".join(f"{int(i >= 20)},{i}\n" for i in range(40)))
    with pytest.raises(PtmError, match="cannot be estimated") as caught:
        fit(Model(outcome="y", covariates=("x",)), ask_processes(tmp_path, {"northside": data}))
    assert caught.value.hint


def test_one_covariate_given_twice_under_two_names_is_not_estimable(tmp_path: Path) -> None:
    data = tmp_path / "twice.csv"
    data.write_text("y,a,b\n" + "".join(f"{i % 2},{i % 5},{i % 5}\n" for i in range(40)))
    with pytest.raises(PtmError, match="cannot be estimated"):
        fit(Model(outcome="y", covariates=("a", "b")), ask_processes(tmp_path, {"northside": data}))


def test_a_constant_covariate_is_named(tmp_path: Path) -> None:
    data = tmp_path / "constant.csv"
    data.write_text("y,x\n" + "".join(f"{i % 2},3\n" for i in range(40)))
    with pytest.raises(PtmError, match="covariate x is the same"):
        fit(Model(outcome="y", covariates=("x",)), ask_processes(tmp_path, {"northside": data}))


def test_a_site_whose_patients_change_between_rounds_is_noticed(tmp_path: Path) -> None:
    full, short = tmp_path / "full.csv", tmp_path / "short.csv"
    full.write_text(small_table(40))
    short.write_text(small_table(30))

    def ask(number: int, document: dict[str, Any]) -> dict[str, bytes]:
        return ask_processes(tmp_path, {"northside": full if number < 2 else short})(number, document)

    with pytest.raises(Malformed, match="changed between two rounds"):
        fit(Model(outcome="y", covariates=("x",)), ask)


# --- a site's answer is not believed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'{"kind": "moments", "n": 40, "events": 20, "sum": [1.0, 2.0], "sum_of_squares": [1.0]}',
        b'{"kind": "moments", "n": 40, "events": 41, "sum": [1.0], "sum_of_squares": [1.0]}',
        b'{"kind": "moments", "n": 0, "events": 0, "sum": [1.0], "sum_of_squares": [1.0]}',
        b'{"kind": "moments", "n": 40, "events": 20, "sum": [NaN], "sum_of_squares": [1.0]}',
        b'{"kind": "moments", "n": 40, "events": 20, "sum": ["1"], "sum_of_squares": [1.0]}',
        b'{"kind": "moments", "n": 40, "events": 20, "sum": [1.0], "sum_of_squares": [1.0], "rows": []}',
    ],
)
def test_moments_of_another_shape_are_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        parse_moments(body, Model(outcome="y", covariates=("x",)))


@pytest.mark.parametrize(
    "change",
    [
        {"gradient": [0.0]},
        {"gradient": [0.0, 1e999]},
        {"information": [[1.0, 0.0]]},
        {"information": [[1.0, 0.0], [0.0]]},
        {"log_likelihood": 1.0},
        {"kind": "moments"},
    ],
)
def test_derivatives_of_another_shape_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        parse_derivatives(json.dumps(GOOD_DERIVATIVES | change).encode(), Model(outcome="y", covariates=("x",)))


def test_an_information_matrix_that_is_not_positive_is_refused() -> None:
    body = json.dumps(GOOD_DERIVATIVES | {"information": [[-1.0, 0.0], [0.0, 1.0]]}).encode()
    with pytest.raises(PtmError, match="not positive"):
        newton_step({"northside": parse_derivatives(body, Model(outcome="y", covariates=("x",)))})


# --- the image's script --------------------------------------------------------------------------------------------


def refused(site: Site, **documents: Any) -> str:
    """Runs the site, and sees to it that a refusal is a refusal: exit code 1, one line, no output."""
    done = site.run(**documents)
    assert done.returncode == 1
    assert not list(site.outputs.iterdir())
    assert done.stderr.startswith("refused: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_the_script_is_executable_and_imports_the_standard_library_only(new_site: Callable[[str], Site]) -> None:
    site = new_site(small_table(40))
    (site.inputs / "input.json").write_text(json.dumps(question()))
    env = {"PTM_INPUT_DIR": str(site.inputs), "PTM_OUTPUT_DIR": str(site.outputs), "PTM_DATA_COHORT": str(site.data)}
    # -I -S: no site-packages at all
    done = subprocess.run([sys.executable, "-I", "-S", RUN], env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert os.access(RUN, os.X_OK)


def test_the_log_tells_what_was_done(new_site: Callable[[str], Site]) -> None:
    done = new_site(small_table(40)).run(input=question())
    assert "site northside, task 01TASK" in done.stdout
    assert "40 complete rows" in done.stdout
    assert done.stderr == ""


def test_every_file_of_the_input_folder_is_read(new_site: Callable[[str], Site]) -> None:
    site = new_site(small_table(40))
    done = site.run(design={"model": "logistic", "outcome": "y", "covariates": ["x"]}, round={"beta": [0.0, 0.0]})
    assert done.returncode == 0, done.stderr
    assert json.loads(site.summary)["kind"] == "derivatives"


def test_9_rows_are_refused_whatever_min_rows_asks(new_site: Callable[[str], Site]) -> None:
    assert "fewer than 10" in refused(new_site(small_table(9)), input=question(min_rows=1))


def test_min_rows_is_the_least_that_is_answered(new_site: Callable[[str], Site]) -> None:
    site = new_site(small_table(40))
    assert "fewer than 41" in refused(site, input=question(min_rows=41))
    assert site.run(input=question(min_rows=40)).returncode == 0


def test_rows_without_a_value_do_not_count_as_rows(new_site: Callable[[str], Site]) -> None:
    assert "fewer than 10" in refused(new_site(small_table(9) + "1,\n,2\n0,NA\n"), input=question())


def test_a_missing_column_is_named_and_the_others_are_not(new_site: Callable[[str], Site]) -> None:
    message = refused(new_site(small_table(40, covariate="hiv_status")), input=question())
    assert "'x'" in message and "hiv_status" not in message


@pytest.mark.parametrize("cell", ["secret-mrn-4711", "inf", "1e999", "0x10"])
def test_a_cell_that_is_no_number_is_refused_without_being_shown(new_site: Callable[[str], Site], cell: str) -> None:
    message = refused(new_site(small_table(40) + f"1,{cell}\n"), input=question())
    assert "'x'" in message and cell not in message


def test_an_outcome_other_than_0_and_1_is_refused(new_site: Callable[[str], Site]) -> None:
    assert "other than 0 and 1" in refused(new_site(small_table(40) + "2,1.5\n"), input=question())


def test_a_row_cut_short_is_refused(new_site: Callable[[str], Site]) -> None:
    assert "cells" in refused(new_site(small_table(40) + "1\n"), input=question())


def test_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refused(Site(tmp_path / "site", tmp_path / "nothing"), input=question())


def test_data_behind_a_url_is_read_as_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text(small_table(40))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        by_url = Site(tmp_path / "url", f"http://127.0.0.1:{server.server_port}/cohort.csv")
        absent = Site(tmp_path / "absent", f"http://127.0.0.1:{server.server_port}/absent.csv")
        assert by_url.run(input=question()).returncode == 0
        assert "cannot be read" in refused(absent, input=question())
        server.shutdown()
    by_file = Site(tmp_path / "file", tmp_path / "cohort.csv")
    by_file.run(input=question())
    assert by_url.summary == by_file.summary


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "cox"}, "logistic"),
        ({"covariates": []}, "at least one covariate"),
        ({"covariates": ["x", "x"]}, "different column names"),
        ({"covariates": ["y"]}, "different column names"),
        ({"covariates": [1]}, "different column names"),
        ({"beta": [0.0]}, "beta must be a list of 2"),
        ({"beta": [0.0, float("nan")]}, "beta must be a list of 2"),
        ({"beta": [0.0, 10**400]}, "too large"),
        ({"beta": [1e308, 1e308]}, "too large"),
        ({"beta": [0.0, 0.0], "scale": [0.0]}, "scale must be positive"),
        ({"min_rows": True}, "whole number"),
        ({"data": "../../etc/passwd"}, "name of a data source"),
        ({"filter": "age > 90"}, "unknown field in the input: filter"),
    ],
)
def test_a_question_it_does_not_understand_is_refused(
    new_site: Callable[[str], Site], changes: dict[str, Any], reason: str
) -> None:
    assert reason in refused(new_site(small_table(40)), input=question(**changes))


def test_inputs_that_contradict_each_other_are_refused(new_site: Callable[[str], Site]) -> None:
    assert "min_rows twice" in refused(new_site(small_table(40)), input=question(), other={"min_rows": 10})


def test_an_input_that_is_not_json_is_refused(new_site: Callable[[str], Site]) -> None:
    assert "input.json is not a JSON file" in refused(new_site(small_table(40)), input="{")


# --- the data ------------------------------------------------------------------------------------------------------


def test_the_split_gives_every_patient_to_exactly_one_of_three_unequal_hospitals() -> None:
    rows = load()
    hospitals = split(rows)
    ids = [row["id"] for patients in hospitals.values() for row in patients]
    assert len(rows) == len(set(ids)) == len(ids) == 569
    assert {name: len(patients) for name, patients in hospitals.items()} == {"northside": 284, "riverside": 171, "lakeside": 114}
    assert list(hospitals) == list(SHARES)


def test_the_split_is_the_same_on_every_machine() -> None:
    hospitals = split(list(reversed(load())))
    assert [hospitals[name][0]["id"] for name in SHARES] == ["502", "210", "459"]
    assert hospitals == split(load())


def test_another_seed_gives_another_split() -> None:
    assert split(load(), seed="other") != split(load())


def test_a_hospitals_file_has_its_patients_and_a_header(tmp_path: Path) -> None:
    written = write_hospitals(tmp_path)
    with written["lakeside"].open(newline="") as file:
        assert list(csv.DictReader(file)) == split(load())["lakeside"]


# --- what a person sees --------------------------------------------------------------------------------------------


def test_the_table_shows_both_fits_with_the_same_6_decimals(federated: Fit, pooled: Fit) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(coefficient_table(federated, pooled, LABELS))
    text = console.export_text()
    for label, beta in zip(["(intercept)", *LABELS.values()], pooled.beta, strict=True):
        line = next(line for line in text.splitlines() if label in line)
        assert line.count(f" {beta:.6f} ") == 2


def test_the_forest_plot_is_a_png_with_a_picture_in_it(federated: Fit, tmp_path: Path) -> None:
    forest_plot(federated, LABELS, "Malignancy of a breast mass", tmp_path / "forest.png")
    body = (tmp_path / "forest.png").read_bytes()
    assert body.startswith(b"\x89PNG\r\n\x1a\n") and len(body) > 10_000
