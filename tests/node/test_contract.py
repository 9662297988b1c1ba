"""The native contract's variables and paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptm.config import FileSource, SparqlSource
from ptm.node.contract import Places, container_places, data_variable, environment, exit_reason

COHORT = FileSource(path=Path("/srv/cohort.csv"))
GENES = FileSource(path=Path("/srv/genes"))
GRAPH = SparqlSource(kind="sparql", url="http://graph.example:8890/sparql")


def test_a_container_finds_data_at_fixed_paths_and_endpoints_at_the_gateway() -> None:
    data = {"graph": GRAPH, "my-cohort": COHORT, "genes": GENES}
    places = container_places(data, {"graph": "http://127.0.0.1:3030/sparql"})
    env = environment("T", "maastro", data, places, {})
    assert env == {
        "PTM_TASK": "T",
        "PTM_SITE": "maastro",
        "PTM_INPUT_DIR": "/ptm/input",
        "PTM_OUTPUT_DIR": "/ptm/output",
        "HOME": "/tmp",
        "PTM_DATA_GRAPH": "http://127.0.0.1:3030/sparql",
        "PTM_DATA_MY_COHORT": "/ptm/data/my-cohort",
        "PTM_DATA_GENES": "/ptm/data/genes",
        "SPARQL_ENDPOINT": "http://127.0.0.1:3030/sparql",
        "DATABASE_URI": "/ptm/data/my-cohort",
    }


def test_the_sites_own_url_never_reaches_a_container() -> None:
    data = {"graph": GRAPH}
    env = environment("T", "s", data, container_places(data, {"graph": "http://127.0.0.1:3030/sparql"}), {})
    assert not any("graph.example" in value for value in env.values())


def test_a_task_cannot_override_what_the_contract_sets() -> None:
    data = {"cohort": COHORT}
    asked = {"HOME": "/root", "PTM_SITE": "other", "DATABASE_URI": "/etc/shadow", "PTM_DATA_COHORT": "/x", "ALPHA": "0.05"}
    env = environment("T", "maastro", data, container_places(data, {}), asked)
    assert (env["HOME"], env["PTM_SITE"]) == ("/tmp", "maastro")
    assert (env["DATABASE_URI"], env["PTM_DATA_COHORT"]) == ("/ptm/data/cohort", "/ptm/data/cohort")
    assert env["ALPHA"] == "0.05"


def test_a_process_gets_the_same_variables_with_other_places() -> None:
    places = Places("/p/in", "/p/out", "/p/home", {"cohort": "/srv/cohort.csv"})
    env = environment("T", "s", {"cohort": COHORT}, places, {})
    assert (env["PTM_INPUT_DIR"], env["PTM_DATA_COHORT"], env["DATABASE_URI"]) == ("/p/in", "/srv/cohort.csv", "/srv/cohort.csv")


def test_without_sources_no_variable_names_one() -> None:
    env = environment("T", "s", {}, container_places({}, {}), {})
    assert "SPARQL_ENDPOINT" not in env and "DATABASE_URI" not in env


def test_names_of_data_variables() -> None:
    assert data_variable("a-b-1") == "PTM_DATA_A_B_1"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0, None),
        (1, "exit code 1"),
        (126, "exit code 126 (the command may not be executed)"),
        (127, "exit code 127 (a command was not found)"),
        (128, "exit code 128"),
        (137, "exit code 137 (ended by SIGKILL)"),
        (139, "exit code 139 (ended by SIGSEGV)"),
        (255, "exit code 255"),
    ],
)
def test_exit_codes_in_words(code: int, reason: str | None) -> None:
    assert exit_reason(code) == reason


def test_a_task_cannot_name_a_source_of_its_own_where_it_has_none() -> None:
    """An honest image would open what these name: under the process runner any file of the site's."""
    asked = {"DATABASE_URI": "/etc/passwd", "SPARQL_ENDPOINT": "http://elsewhere/", "MODE": "fast"}
    env = environment("T", "s", {}, container_places({}, {}), asked)
    assert "SPARQL_ENDPOINT" not in env and "DATABASE_URI" not in env
    assert env["MODE"] == "fast"
