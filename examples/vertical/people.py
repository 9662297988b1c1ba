"""The example's people: 2,400 of the RAND Health Insurance Experiment, dealt out by columns to a clinic and a statistics office.

The measurements are real (public domain; statsmodels ships them), the names and birth dates are made up. Each party lacks some
people, has some twice, has gaps, and spells in its own way; some different people share name and birth date.

Rules: everything depends on SEED alone, through SHA-256, so it is the same on every machine. `truth` knows who is who by number
and uses neither names nor pseudonyms, so that it can be held against what the linkage finds."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

SEED = "ptm-vertical-1"
PEOPLE = 2400
CLINIC, STATISTICS = "clinic", "statistics"
COVARIATES = ("diseases", "limited", "coinsurance", "deductible", "incentive")
MODELS = (("linear", "visits", COVARIATES), ("logistic", "saw_doctor", COVARIATES))
COLUMNS = {CLINIC: ("visits", "saw_doctor", "diseases", "limited"), STATISTICS: ("coinsurance", "deductible", "incentive")}
"""What each party has and lets leave. `visits` to a doctor in a year, and whether there was one; `diseases` counts chronic ones;
`limited`: a physical limitation. `coinsurance` is the logarithm of the share (in %) that the patient pays, plus 1;
`deductible` an individual deductible plan; `incentive` the logarithm of a payment for taking part."""
SOURCE = {
    "visits": "mdvis",
    "diseases": "disea",
    "limited": "physlm",
    "coinsurance": "lncoins",
    "deductible": "idp",
    "incentive": "lpi",
}
GAPS = {CLINIC: ("diseases", 40, "NA"), STATISTICS: ("incentive", 30, "")}
"""Column, in how many rows it is not known, and how that is written."""
ABSENT = {CLINIC: 260, STATISTICS: 310}
TWICE = {CLINIC: 25, STATISTICS: 20}
NAMELESS = {CLINIC: 7, STATISTICS: 4}
NAMESAKES = 6
FIRST = (
    "Anna Zoë José Søren Jürgen Françoise Mara Aisha Chloé Björn Inês Thomas Mary-Jane Noor Ruairí Léa Hans-Peter Sofía Åse Igor"
    " Beatriz Núria Günther Emma Óscar Tove Yusuf Renée Daan Maeve"
)
LAST = (
    "Meijer;García Muñoz;Strauß;Müller-Lüdenscheidt;O'Neill;van der Berg;Lefèvre;Østergård;Nuñez;Schröder;d'Ávila;Ní Bhriain;"
    "Jansen;Peeters;El Idrissi;Åkesson;de la Cruz;Groß;Königs;Bâtiment;Carvalho;Visser;Þórsson;Smith;Jensen;Bakker;Dupré;Keller;"
    "Weiß;Thomas"
)


@dataclass(frozen=True)
class Person:
    """Somebody: `number` is who they are, `alike` whose name and birth date they have (their own, but for namesakes)."""

    number: int
    alike: int
    first: str
    last: str
    born: date
    values: dict[str, str]


@dataclass(frozen=True)
class Row:
    """A row of a party's table: about whom, whether it says so, and its cells by column."""

    person: Person
    named: bool
    cells: dict[str, str]


@dataclass(frozen=True)
class Truth:
    """What a faultless linkage finds: the account of each party's rows, as `fit.json` has it; the people linked; and the rows of
    those of whom everything is known."""

    senders: dict[str, dict[str, int]]
    linked: int
    complete: list[dict[str, float]]


def people() -> list[Person]:
    """Everybody, in the order of the source."""
    text = files("statsmodels.datasets.randhie").joinpath("randhie.csv").read_text(encoding="utf-8")
    source = list(csv.DictReader(io.StringIO(text)))
    chosen = sorted(_ordered(range(len(source)), "people")[:PEOPLE])
    firsts, lasts = FIRST.split(), LAST.split(";")
    found: list[Person] = []
    for number, index in enumerate(chosen):
        values = {name: source[index][column] for name, column in SOURCE.items()}
        values["saw_doctor"] = str(int(float(values["visits"]) > 0))
        born = date(1921, 1, 1) + timedelta(days=_draw("born", number) % 18_000)
        first, last = firsts[_draw("first", number) % len(firsts)], lasts[_draw("last", number) % len(lasts)]
        found.append(Person(number, number, first, last, born, values))
    return _with_namesakes(found)


def _with_namesakes(found: list[Person]) -> list[Person]:
    """Some of those whom both parties have get another's name and birth date."""
    away = {number for party in COLUMNS for number in _absent(party)}
    both = [number for number in _ordered(range(PEOPLE), "namesakes") if number not in away]
    for one, other in zip(both[:NAMESAKES], both[NAMESAKES : 2 * NAMESAKES], strict=True):
        model = found[one]
        found[other] = Person(other, one, model.first, model.last, model.born, found[other].values)
    return found


def table_of(party: str, everybody: Sequence[Person]) -> list[Row]:
    """A party's rows, shuffled: some people are not there, some twice, some nameless, some with a gap."""
    absent = set(_absent(party))
    here = [person for person in everybody if person.number not in absent]
    chosen = iter(_ordered([person.number for person in here if not _is_namesake(person, everybody)], f"{party} odd"))
    column, gaps, written = GAPS[party]
    nameless = {next(chosen) for _ in range(NAMELESS[party])}
    twice = {next(chosen) for _ in range(TWICE[party])}
    unknown = {next(chosen) for _ in range(gaps)}
    rows = []
    for person in here:
        values = {name: person.values[name] for name in COLUMNS[party]}
        if person.number in unknown:
            values[column] = written
        named = person.number not in nameless
        rows.append(Row(person, named, _identity(party, person, named, again=False) | values))
        if person.number in twice:
            rows.append(Row(person, named, _identity(party, person, named, again=True) | values))
    return [rows[index] for index in _ordered(range(len(rows)), f"{party} shuffle")]


def truth(tables: dict[str, list[Row]]) -> Truth:
    """By who is who, not by names."""
    times = {party: Counter(row.person.alike for row in rows if row.named) for party, rows in tables.items()}
    (one, other), senders = tuple(times), {}
    for party, others in ((one, other), (other, one)):
        own, theirs = times[party], times[others]
        multiple = sum(n for who, n in own.items() if theirs[who] and (n, theirs[who]) != (1, 1))
        unmatched = sum(n for who, n in own.items() if not theirs[who])
        linked = own.total() - multiple - unmatched
        senders[party] = {"rows": own.total(), "linked": linked, "unmatched": unmatched, "multiple": multiple}
    cells: dict[int, dict[str, str]] = {}
    for rows in tables.values():
        for row in rows:
            if row.named and times[one][row.person.alike] == times[other][row.person.alike] == 1:
                cells.setdefault(row.person.number, {}).update(row.cells)
    whole = [values for values in cells.values() if not {"", "NA"} & set(values.values())]
    wanted = {name for names in COLUMNS.values() for name in names}
    return Truth(senders, len(cells), [{name: float(values[name]) for name in wanted} for values in whole])


def write_source(party: str, rows: Iterable[Row], folder: Path) -> None:
    """A party's data source: `table.csv` in the party's own way of writing, and `linkage.json`, what the party allows of it."""
    rows = list(rows)
    folder.mkdir(parents=True)
    encoding, delimiter = ("utf-8", ",") if party == CLINIC else ("cp1252", ";")
    with (folder / "table.csv").open("w", encoding=encoding, newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0].cells), delimiter=delimiter, lineterminator="\r\n")
        table.writeheader()
        table.writerows(row.cells for row in rows)
    form = "%Y-%m-%d" if party == CLINIC else "%d.%m.%Y"
    rules: dict[str, Any] = {
        "identifier": [{"column": "name", "kind": "name"}, {"column": "born", "kind": "date", "format": form}],
        "may_leave": list(COLUMNS[party]),
        "delimiter": delimiter,
        "encoding": encoding,
    }
    (folder / "linkage.json").write_text(json.dumps(rules, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)  # a container's user is not the person who runs the example


def _identity(party: str, person: Person, named: bool, *, again: bool) -> dict[str, str]:
    """Name and birth date as the party writes them; `again`: as on the day when somebody did not find the first entry."""
    if party == CLINIC:
        name = f"{person.last}, {person.first}"
        if again:
            name = unicodedata.normalize("NFD", f" {person.first}  {person.last.lower()}")
        return {"name": name if named else "", "born": person.born.isoformat()}
    name = f"{person.first} {person.last}".upper()
    if again or person.number % 2:
        name = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return {"name": name.replace("'", "’"), "born": f"{person.born:%d.%m.%Y}" if named else "00.00.0000"}


def _absent(party: str) -> list[int]:
    return _ordered(range(PEOPLE), f"{party} absent")[: ABSENT[party]]


def _is_namesake(person: Person, everybody: Sequence[Person]) -> bool:
    return person.alike != person.number or any(other.alike == person.number != other.number for other in everybody)


def _ordered(numbers: Iterable[int], what: str) -> list[int]:
    return sorted(numbers, key=lambda number: _draw(what, number))


def _draw(what: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{SEED}:{what}:{number}".encode()).digest()[:8], "big")
