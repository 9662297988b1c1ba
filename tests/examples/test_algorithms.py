"""The vertical example's two algorithms: what is linked, fitted and refused, and that no word of it tells a value."""

from __future__ import annotations

import hashlib
import hmac
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from examples.vertical.build import write_images
from examples.vertical.pooled import pooled_fit
from tests.examples.algorithms import KEY, Algorithms, Ran, pseudonymous

pytestmark = pytest.mark.slow

LINEAR = {"kind": "linear", "outcome": "visits", "covariates": ["diseases", "income"]}
LOGISTIC = {"kind": "logistic", "outcome": "ill", "covariates": ["diseases", "income"]}
HEAD = "name,born,visits\n"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture
def algorithms(images: Path, tmp_path: Path) -> Algorithms:
    return Algorithms(images, tmp_path)


def who(ran: Ran) -> list[str]:
    """The pseudonyms, in the order of the rows."""
    assert ran.code == 0, ran.log
    return [row[0] for row in ran.rows[1:]]


# --- pseudonyms ---


def test_a_pseudonym_is_hmac_sha_256_of_the_normalised_identifier(algorithms: Algorithms) -> None:
    ran = algorithms.pseudonymise(HEAD + '"Müller, Zoë",1961-03-05,4\n')
    expected = hmac.new(KEY, b"muller zoe\x1f1961-03-05", hashlib.sha256).hexdigest()
    assert ran.rows == [["pseudonym", "visits"], [expected, "4"]]


@pytest.mark.parametrize(
    "spelling",
    [
        '"MÜLLER-STRAUSS, ANA"',
        "ana müller strauß",
        "  Ana   Muller-Strauß ",
        "Ana Mu\u0308ller\u00a0Strauß",
        "ANA_MÜLLER.STRAUSS",
        "Ａｎａ Müller Strauß",
        "Müller‐Strauß Ana",
    ],
)
def test_spellings_of_one_name_give_one_pseudonym(algorithms: Algorithms, spelling: str) -> None:
    first, second = who(algorithms.pseudonymise(HEAD + f"Ana Müller-Strauß,1961-03-05,1\n{spelling},1961-03-05,2\n"))
    assert first == second


@pytest.mark.parametrize(
    "other", ["Ana Müller,1961-03-05", "Ana Müller-Strauß,1961-05-03", "Ana Mueller-Strauß,1961-03-05", "李 伟,1961-03-05"]
)
def test_another_person_has_another_pseudonym(algorithms: Algorithms, other: str) -> None:
    first, second = who(algorithms.pseudonymise(HEAD + f"Ana Müller-Strauß,1961-03-05,1\n{other},2\n"))
    assert first != second


def test_letters_do_not_wander_from_one_part_of_the_identifier_to_the_next(algorithms: Algorithms) -> None:
    rules = {"identifier": [{"column": "name", "kind": "text"}, {"column": "born", "kind": "text"}]}
    first, second = who(algorithms.pseudonymise(HEAD + "Jo Ann,Lee,1\nJo,Ann Lee,2\n", rules))
    assert first != second


def test_another_key_gives_other_pseudonyms(algorithms: Algorithms) -> None:
    table = HEAD + "Ana,1961-03-05,1\n"
    one, other = algorithms.pseudonymise(table), algorithms.pseudonymise(table, key=bytes(reversed(KEY)))
    assert who(one) != who(other)


def test_rows_without_a_whole_identifier_are_left_out_and_counted(algorithms: Algorithms) -> None:
    table = HEAD + "Ana,1961-03-05,1\n,1961-03-05,2\n -- ,1961-03-05,3\nBea,,4\nCleo,1961-02-30,5\n"
    ran = algorithms.pseudonymise(table)
    assert [row[1:] for row in ran.rows] == [["visits"], ["1"]]
    assert "5 rows read, 4 left out without an identifier, 1 written" in ran.log


def test_the_order_of_the_rows_says_nothing(algorithms: Algorithms) -> None:
    rows = [f"Person {number},1961-03-05,{number % 3}\n" for number in range(40)]
    assert algorithms.pseudonymise(HEAD + "".join(rows)).outputs == algorithms.pseudonymise(HEAD + "".join(rows[::-1])).outputs


def test_byte_order_mark_windows_lines_semicolons_and_blank_lines_are_read(algorithms: Algorithms) -> None:
    plain = algorithms.pseudonymise(HEAD + "Zoë,1961-03-05,1\n").rows
    assert algorithms.pseudonymise(b"\xef\xbb\xbfname,born,visits\r\n\r\nZo\xc3\xab,1961-03-05,1\r\n").rows == plain
    rules = {"delimiter": ";", "encoding": "cp1252"}
    assert algorithms.pseudonymise(b"name;born;visits\nZo\xeb;1961-03-05;1\n", rules).rows == plain


def test_a_researcher_who_asks_for_names_or_for_what_may_not_leave_is_refused(algorithms: Algorithms) -> None:
    table = "name,born,visits,street\nAna,1961-03-05,1,Main\n"
    for column in ("name", "born", "street", "salary"):
        assert algorithms.pseudonymise(table, columns=["visits", column]).refused("does not let", column)


def test_a_researcher_cannot_name_the_key_or_the_identifier_or_take_the_key_for_a_table(algorithms: Algorithms) -> None:
    table = HEAD + "Ana,1961-03-05,1\n"
    assert algorithms.pseudonymise(table, key=KEY, identifier=["visits"]).refused("unknown field", "identifier")
    assert algorithms.pseudonymise(table, data="linkage-key").refused("data must be")
    assert algorithms.pseudonymise(table, output="../visits.csv").refused("output must be")


def test_a_site_that_would_let_an_identifying_column_leave_is_told(algorithms: Algorithms) -> None:
    ran = algorithms.pseudonymise(HEAD + "Ana,1961-03-05,1\n", {"may_leave": ["visits", "born"]})
    assert ran.refused("linkage.json", "identifies")


@pytest.mark.parametrize("key", [None, b"", KEY[:31], bytes(32), b"a pass phrase, aaaaaaaaaaaaaaaaa", bytes(5000)])
def test_a_key_that_is_missing_short_or_not_random_is_refused(algorithms: Algorithms, key: bytes | None) -> None:
    assert algorithms.pseudonymise(HEAD + "Ana,1961-03-05,1\n", key=key).refused("linkage-key")


SECRET = "Wollstonecraft"


@pytest.mark.parametrize(
    "table",
    [
        HEAD + f"{SECRET},1961-03-05\n",
        HEAD + f"{SECRET},1961-03-05,1,2\n",
        HEAD + f'"{SECRET},1961-03-05,1\n',
        HEAD + f'"{SECRET}" x,1961-03-05,1\n',
        (HEAD + f"{SECRET},1961-03-05,").encode() + b"\xff\n",
        HEAD + f"{SECRET},1961-03-05," + "9" * 200_000 + "\n",
        f"name,born,visits,visits\n{SECRET},1961-03-05,1,1\n",
        f"name,visits\n{SECRET},1\n",
        "",
        HEAD,
    ],
)
def test_a_broken_table_is_refused_without_a_value_in_the_log(algorithms: Algorithms, table: str | bytes) -> None:
    ran = algorithms.pseudonymise(table)
    assert ran.refused() and SECRET not in ran.log and "1961" not in ran.log


# --- linking ---


def people(count: int = 120, seed: int = 1) -> list[dict[str, Any]]:
    """Made-up people with an outcome of both kinds."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        diseases, income = draw.randint(0, 4), draw.gauss(2000, 500)
        visits = 2 + 0.8 * diseases - 0.001 * income + draw.gauss(0, 1)
        ill = int(draw.random() < 0.3 + 0.1 * diseases)
        found.append({"number": number, "diseases": diseases, "income": income, "visits": visits, "ill": ill})
    return found


def clinic(rows: Sequence[dict[str, Any]]) -> list[list[object]]:
    return [[row["number"], row["visits"], row["ill"], row["diseases"]] for row in rows]


def office(rows: Sequence[dict[str, Any]]) -> list[list[object]]:
    return [[row["number"], row["income"]] for row in rows]


def collection(left: Sequence[Sequence[object]], right: Sequence[Sequence[object]]) -> dict[str, str | bytes]:
    return {
        "clinic/visits.csv": pseudonymous(["visits", "ill", "diseases"], left),
        "statistics/incomes.csv": pseudonymous(["income"], right),
    }


def assert_equals_pooled(told: dict[str, Any], covariates: list[str], rows: Sequence[dict[str, float]]) -> None:
    pooled = pooled_fit(told["kind"], told["outcome"], covariates, rows)
    assert [one["name"] for one in told["coefficients"]] == ["(intercept)", *covariates]
    assert [one["estimate"] for one in told["coefficients"]] == pytest.approx(pooled.coefficients, rel=1e-8, abs=1e-10)
    assert [one["standard_error"] for one in told["coefficients"]] == pytest.approx(pooled.standard_errors, rel=1e-8)


def test_zero_and_multiple_matches_are_dropped_and_counted_on_both_sides(algorithms: Algorithms) -> None:
    """0-9 only at the clinic, 110-119 only at the office; 20 twice at the clinic, 21 three times at the office, 22 twice at both;
    5 twice at the clinic and nowhere else: without a match, not with several."""
    rows = people()
    left = clinic([*rows[:110], rows[20], rows[22], rows[5]])
    right = office([*rows[10:], rows[21], rows[21], rows[22]])
    random.Random(2).shuffle(left)
    told = algorithms.link(collection(left, right), LINEAR).fit
    assert told["senders"] == {
        "clinic": {"rows": 113, "linked": 97, "unmatched": 11, "multiple": 5},
        "statistics": {"rows": 113, "linked": 97, "unmatched": 10, "multiple": 6},
    }
    assert_equals_pooled(told["models"][0], ["diseases", "income"], [rows[n] for n in range(10, 110) if n not in (20, 21, 22)])


def test_rows_with_a_missing_value_are_dropped_and_counted_for_the_models_that_need_it(algorithms: Algorithms) -> None:
    rows = people()
    left, right = clinic(rows), office(rows)
    left[3][1], left[4][3], right[4][1], right[9][1] = "", "NA", "NaN", "null"
    told = algorithms.link(collection(left, right), LINEAR, LOGISTIC).fit
    assert told["models"][0]["counts"] == {"linked": 120, "incomplete": 3, "used": 117}
    whole = [row for row in rows if row["number"] not in (4, 9)]
    events = sum(row["ill"] for row in whole)
    assert told["models"][1]["counts"] == {"linked": 120, "incomplete": 2, "used": 118, "events": events}
    assert_equals_pooled(told["models"][1], ["diseases", "income"], whole)


def test_parties_without_a_person_in_common_get_no_answer(algorithms: Algorithms) -> None:
    rows = people(240)
    assert algorithms.link(collection(clinic(rows[:120]), office(rows[120:])), LINEAR).refused("fewer than 50")


def test_fewer_than_50_linked_rows_are_refused_whatever_is_asked_and_the_number_is_not_told(algorithms: Algorithms) -> None:
    files = collection(clinic(people(49)), office(people(120)))
    ran = algorithms.link(files, LINEAR, min_rows=1)
    assert ran.refused("fewer than 50") and "49" not in ran.log
    assert algorithms.link(collection(clinic(people(50)), office(people(50))), LINEAR).code == 0


def test_a_researcher_can_only_raise_how_many_rows_it_takes(algorithms: Algorithms) -> None:
    assert algorithms.link(collection(clinic(people()), office(people())), LINEAR, min_rows=121).refused("fewer than 121")


def test_nearly_as_many_coefficients_as_rows_are_refused(algorithms: Algorithms) -> None:
    names = [f"x{number}" for number in range(12)]
    draw = random.Random(3)
    wide = pseudonymous(names, [[n, *(draw.gauss(0, 1) for _ in names)] for n in range(120)])
    files = collection(clinic(people()), []) | {"statistics/incomes.csv": wide}
    assert algorithms.link(files, LINEAR | {"covariates": names}).refused("for each coefficient")


def test_a_column_that_marks_few_people_is_refused(algorithms: Algorithms) -> None:
    """A covariate that is 1 for one person would have that person's outcome for its coefficient."""
    rows = people()
    marked = [[row["number"], 1 if row["number"] == 7 else 0] for row in rows]
    assert algorithms.link(collection(clinic(rows), marked), LINEAR).refused("'income'", "few people")


def test_one_model_that_is_refused_means_no_answer_to_any(algorithms: Algorithms) -> None:
    bad = LINEAR | {"covariates": ["height"]}
    assert algorithms.link(collection(clinic(people()), office(people())), LINEAR, bad).refused("'height'")


def test_a_column_that_both_parties_have_is_refused_rather_than_guessed(algorithms: Algorithms) -> None:
    files = collection(clinic(people()), [])
    files["statistics/incomes.csv"] = pseudonymous(["diseases"], [[n, 1] for n in range(120)])
    assert algorithms.link(files, LINEAR | {"covariates": ["diseases"]}).refused("'diseases'", "more than once")


@pytest.mark.parametrize("model", [LINEAR | {"covariates": ["pseudonym"]}, LINEAR | {"outcome": "pseudonym"}])
def test_the_pseudonym_is_no_covariate(algorithms: Algorithms, model: dict[str, Any]) -> None:
    assert algorithms.link(collection(clinic(people()), office(people())), model).refused("none of them the pseudonym")


def test_a_collection_of_other_than_two_files_of_two_senders_is_refused(algorithms: Algorithms) -> None:
    files = collection(clinic(people()), office(people()))
    assert algorithms.link(files | {"third/x.csv": "pseudonym\n"}, LINEAR).refused("two senders")
    assert algorithms.link(files | {"clinic/more.csv": "pseudonym\n"}, LINEAR).refused("one file of each")


def test_names_in_place_of_pseudonyms_are_refused_and_not_repeated(algorithms: Algorithms) -> None:
    ran = algorithms.link(collection([["Wollstonecraft", 1, 1, 1]], office(people())), LINEAR)
    assert ran.refused("something other than pseudonyms") and "Woll" not in ran.log


@pytest.mark.parametrize("cell", ["inf", "1e999", "many", "1,5", "0x10", "--"])
def test_a_cell_that_is_no_number_is_refused_and_not_repeated(algorithms: Algorithms, cell: str) -> None:
    left = clinic(people())
    left[5][3] = f'"{cell}"'
    ran = algorithms.link(collection(left, office(people())), LINEAR)
    assert ran.refused("'diseases'", "not a number") and cell not in ran.log


# --- fitting ---


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (1e6, 1e-3), (-3e4, 1e5)])
def test_both_models_equal_the_pooled_fit_on_any_scale(algorithms: Algorithms, seed: int, shift: float, stretch: float) -> None:
    rows = [row | {"income": row["income"] * stretch + shift} for row in people(200, seed)]
    told = algorithms.link(collection(clinic(rows), office(rows)), LINEAR, LOGISTIC).fit["models"]
    shown = [{**row, "income": row["income"] - shift} for row in rows]  # statsmodels itself needs the shift taken out
    for one in told:
        pooled = pooled_fit(one["kind"], one["outcome"], ["diseases", "income"], shown)
        assert [c["estimate"] for c in one["coefficients"]][1:] == pytest.approx(pooled.coefficients[1:], rel=1e-6)
        assert [c["standard_error"] for c in one["coefficients"]][1:] == pytest.approx(pooled.standard_errors[1:], rel=1e-6)


def test_the_answer_holds_coefficients_standard_errors_and_counts_and_nothing_else(algorithms: Algorithms) -> None:
    ran = algorithms.link(collection(clinic(people()), office(people())), LINEAR, LOGISTIC)
    assert ran.outputs.keys() == {"fit.json"}
    assert ran.fit.keys() == {"senders", "models"}
    for one in ran.fit["models"]:
        assert one.keys() == {"kind", "outcome", "coefficients", "counts"}
        assert {name for entry in one["coefficients"] for name in entry} == {"name", "estimate", "standard_error"}
        assert all(isinstance(count, int) for count in one["counts"].values())


def heavy_tailed(seed: int) -> list[dict[str, Any]]:
    """People with a few covariates of enormous size, on which Newton's method with whole steps runs away."""
    draw, rows = random.Random(seed), []
    spread = draw.choice([0.5, 2, 5, 10])
    for number in range(60):
        a = math.exp(draw.gauss(0, spread)) if draw.random() < 0.7 else draw.gauss(0, 1)
        b = math.exp(draw.gauss(0, spread) * draw.choice([1, 0.1]))
        ill = int(draw.random() < draw.choice([0.02, 0.5, 1 / (1 + math.exp(-min(a, 50) + 3))]))
        rows.append({"number": number, "visits": 0, "ill": ill, "diseases": a, "income": b})
    return rows


@pytest.mark.parametrize("seed", [52, 211])
def test_where_whole_newton_steps_run_away_the_maximum_is_found_all_the_same(algorithms: Algorithms, seed: int) -> None:
    rows = heavy_tailed(seed)
    (told,) = algorithms.link(collection(clinic(rows), office(rows)), LOGISTIC).fit["models"]
    at, *slopes = [one["estimate"] for one in told["coefficients"]]
    residuals = []
    for row in rows:
        eta = at + slopes[0] * row["diseases"] + slopes[1] * row["income"]
        residuals.append(row["ill"] - (1 / (1 + math.exp(-eta)) if eta > -700 else 0.0))
    for name in ("diseases", "income"):
        score = math.fsum(residual * row[name] for residual, row in zip(residuals, rows, strict=True))
        assert abs(score) < 1e-7 * math.fsum(abs(row[name]) for row in rows)
    assert abs(math.fsum(residuals)) < 1e-7


def separated(people: list[dict[str, Any]], outcome: Any) -> dict[str, str | bytes]:
    return collection(clinic([row | {"ill": int(outcome(row))} for row in people]), office(people))


def test_complete_separation_is_refused(algorithms: Algorithms) -> None:
    assert algorithms.link(separated(people(), lambda row: row["income"] > 2000), LOGISTIC).refused("separation")


def test_separation_of_a_part_is_refused(algorithms: Algorithms) -> None:
    """Everybody with 4 diseases is ill; among the others it is a matter of chance."""
    model = LOGISTIC | {"covariates": ["four"]}
    draw = random.Random(5)
    rows = [row | {"ill": int(row["diseases"] == 4 or draw.random() < 0.5)} for row in people(300)]
    files = collection(clinic(rows), []) | {
        "statistics/incomes.csv": pseudonymous(["four"], [[row["number"], int(row["diseases"] == 4)] for row in rows])
    }
    assert algorithms.link(files, model).refused("separation")


@pytest.mark.parametrize("seed", range(6))
def test_collinear_covariates_are_refused_whichever_way_rounding_falls(algorithms: Algorithms, seed: int) -> None:
    rows = people(seed=seed)
    mixed = [[row["number"], row["income"], 0.1 * row["diseases"] + 0.7 * row["income"] - seed] for row in rows]
    files = collection(clinic(rows), []) | {"statistics/incomes.csv": pseudonymous(["income", "mixed"], mixed)}
    covariates = ["diseases", "income", "mixed"]
    for model in (LINEAR, LOGISTIC):
        assert algorithms.link(files, model | {"covariates": covariates}).refused("collinear")


def test_an_outcome_that_follows_exactly_is_refused(algorithms: Algorithms) -> None:
    rows = [row | {"visits": 1 + 2 * row["diseases"] + 3 * round(row["income"])} for row in people()]
    right = [[row["number"], round(row["income"])] for row in rows]
    assert algorithms.link(collection(clinic(rows), right), LINEAR).refused("exactly")


def test_an_outcome_other_than_0_and_1_is_no_logistic_one(algorithms: Algorithms) -> None:
    files = collection(clinic(people()), office(people()))
    assert algorithms.link(files, LOGISTIC | {"outcome": "visits"}).refused("other than 0 and 1")


@pytest.mark.parametrize(
    "question",
    [
        {"models": []},
        {"models": [LINEAR] * 9},
        {"models": [LINEAR | {"kind": "cox"}]},
        {"min_rows": True},
        {"data": "."},
        {"x": 1},
    ],
)
def test_a_question_that_is_none_is_refused(algorithms: Algorithms, question: dict[str, Any]) -> None:
    asked = {"models": [LINEAR]} | question
    assert algorithms.link(collection(clinic(people()), office(people())), **asked).refused()
