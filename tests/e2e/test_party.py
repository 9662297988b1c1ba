"""A site delivers to a trusted party, another member sends, and the party's node computes on both: real containers, command line,
a folder and a real MinIO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptm.store.urls import open_store
from tests.commandline import CommandLine
from tests.federation import Federation
from tests.node.parties import receive, send_file, state, write_party
from tests.servers import build_image

pytestmark = pytest.mark.slow
PSEUDONYMISE = """#!/usr/bin/python3
import os, pathlib
rows = pathlib.Path(os.environ["PTM_DATA_COHORT"]).read_text()
pathlib.Path(os.environ["PTM_OUTPUT_DIR"], "diagnoses.csv").write_text(rows.replace("jan", "5f1c"))
print("jan was here")
"""
LINK = """#!/usr/bin/python3
import json, os, pathlib
folder = pathlib.Path("/ptm/data/link-2026")
rows = {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.csv"))}
try:
    (folder / "maastro" / "diagnoses.csv").write_text("changed")
except OSError:
    rows["read-only"] = "yes"
pathlib.Path(os.environ["PTM_OUTPUT_DIR"], "linked.json").write_text(json.dumps(rows | {"uid": str(os.getuid())}))
"""
POLICIES = {
    "maastro": """[[allow]]\nimages = ['ptm-e2e/pseudonymise:1']\ndata = ["cohort"]\n"""
    """deliver = ["ttp"]\noutputs = { names = ['.*'] }\n""",
    "ttp": """[[allow]]\nimages = ['ptm-e2e/link:1']\ndata = ["link-2026"]\n""",
}


@pytest.fixture(scope="module")
def images(docker_engine: Any, base_image: str) -> None:
    build_image(docker_engine, base_image, "ptm-e2e/pseudonymise:1", {"/run.py": PSEUDONYMISE}, ["/run.py"])
    build_image(docker_engine, base_image, "ptm-e2e/link:1", {"/run.py": LINK}, ["/run.py"])


def deliver_and_link(line: CommandLine, url: str) -> None:
    folder = line.folder
    federation = Federation(open_store(url), folder).create()
    federation.admit(alice="researcher", maastro="site", umcu="site", ttp="party")
    write_party(federation, 'purge = "used"')
    (folder / "cohort.csv").write_text("who,diagnosis\njan,E11\n")
    data = {"maastro": ("--data", f"cohort={folder}/cohort.csv"), "ttp": ()}
    for site, policy in POLICIES.items():
        line.ok("--home", site, "node", "init", "--pull", "never", *data[site])
        federation.home(site).policy.write_text(policy)
    assert "link-2026, a collection" in line.ok("--home", "ttp", "node", "check")

    put = ("--home", "alice", "task", "put", "--expires", "1d", "--purpose", "Link them")
    link = line.ok(*put, "--image", "ptm-e2e/link:1", "--site", "ttp", "--data", "link-2026")
    line.ok("--home", "ttp", "node", "watch", "--once")
    assert "waiting_data" in line.ok("--home", "alice", "task", "show", link)
    assert "maastro has not sent" in json.loads(line.ok("--home", "ttp", "node", "pending", "--json"))[0]["missing"]

    sent = line.ok(
        *put, "--image", "ptm-e2e/pseudonymise:1", "--site", "maastro", "--data", "cohort", "--deliver", "ttp/link-2026"
    )
    line.ok("--home", "maastro", "node", "watch", "--once")
    shown = line.ok("--home", "alice", "results", "fetch", sent, "-o", "sent")
    assert "delivered to ttp/link-2026" in shown
    assert "no receipt yet" in shown
    assert "jan" not in "".join(path.read_text() for path in (folder / "sent").rglob("*") if path.is_file())

    send_file(federation, "umcu", "incomes.csv", b"who,income\n5f1c,100\n", folder)
    receive(federation)
    assert "accepted at" in line.ok("--home", "alice", "results", "fetch", sent, "-o", "sent")
    assert "verified 1 result" in line.run("--home", "alice", "results", "verify", "sent").err

    line.ok("--home", "ttp", "node", "watch", "--once")
    line.ok("--home", "alice", "results", "fetch", link, "-o", "linked")
    linked = json.loads((folder / "linked" / "ttp" / "linked.json").read_text())
    assert linked.pop("uid") != "0"
    assert linked == {
        "maastro/diagnoses.csv": "who,diagnosis\n5f1c,E11\n",
        "umcu/incomes.csv": "who,income\n5f1c,100\n",
        "read-only": "yes",
    }
    receive(federation)
    assert state(federation).files == ()


def test_delivered_and_linked_on_a_folder(tmp_path: Path, images: None) -> None:
    (tmp_path / "registry").mkdir()
    deliver_and_link(CommandLine(tmp_path), f"file://{tmp_path}/registry")


def test_delivered_and_linked_on_minio(tmp_path: Path, images: None, minio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in minio.env().items():
        monkeypatch.setenv(name, value)
    url = f"s3://{minio.make_bucket()}/x?endpoint_url={minio.endpoint_url}&region=us-east-1"
    deliver_and_link(CommandLine(tmp_path, minio.env()), url)
