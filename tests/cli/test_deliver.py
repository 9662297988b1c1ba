"""`--deliver`, and what the command line shows of outputs that go to a trusted party and of runs that wait for data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptm.store.file import FileStore
from tests.commandline import CommandLine
from tests.federation import Federation, image_folder
from tests.node.parties import receive, write_party

pytestmark = pytest.mark.slow

IMAGE = '#!/bin/sh\necho p > "$PTM_OUTPUT_DIR/diagnoses.csv"\n'
PUT = ("--home", "alice", "task", "put", "--image", "demo/p:1", "--site", "maastro", "--expires", "1d")
RULE = {"deliver": ["ttp"], "release": "manual"}


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    (tmp_path / "registry").mkdir()
    made = Federation(FileStore(tmp_path / "registry"), tmp_path).create()
    made.admit(alice="researcher", maastro="site", umcu="site", ttp="party")
    write_party(made)
    return made


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("ttp", "not PARTY/COLLECTION"),
        ("/link", "not PARTY/COLLECTION"),
        ("umcu/link", "umcu is a site"),
        ("ttp/Link X", "deliver"),
    ],
)
def test_a_delivery_that_cannot_be_is_found_before_anything_is_written(federation: Federation, said: str, why: str) -> None:
    answer = CommandLine(federation.folder).run(*PUT, "--deliver", said)
    assert answer.code == 2
    assert why in answer.err
    assert list(federation.store.list("users/")) == []


def test_researcher_and_steward_see_where_outputs_go_and_what_the_party_says(federation: Federation, tmp_path: Path) -> None:
    line, images = CommandLine(tmp_path), {"demo/p:1": image_folder(tmp_path / "p", IMAGE)}
    (tmp_path / "task.json").write_text(
        json.dumps(
            {"image": "demo/p:1", "sites": ["maastro"], "expires": "1d", "deliver": {"to": "ttp", "collection": "link-2026"}}
        )
    )
    task = line.ok("--home", "alice", "task", "put", "task.json")
    assert "ttp/link-2026" in line.ok("--home", "alice", "task", "show", task)
    federation.run_once("maastro", images=images, rule=RULE)
    assert "ttp/link-2026" in line.ok("--home", "maastro", "node", "pending")
    assert json.loads(line.ok("--home", "maastro", "node", "show", task, "--json"))["outputs_to"] == "ttp/link-2026"
    line.ok("--home", "maastro", "node", "release", task, "--by", "Jansen")
    federation.run_once("maastro", images=images, rule=RULE)
    receive(federation)
    (found,) = json.loads(line.ok("--home", "alice", "results", "fetch", task, "-o", "out", "--json"))
    assert (found["files"], found["delivered"]["to"], found["receipt"][:11]) == ([], "ttp", "accepted at")
    assert "delivered to ttp/link-2026" in line.ok("--home", "alice", "results", "verify", "out")
