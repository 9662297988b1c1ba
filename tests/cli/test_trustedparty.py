"""`ptm trustedparty`, as the people of a party type it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.commandline import CommandLine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ptm(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A registry in a folder, the party `ttp`, and `clinic`."""
    folder = tmp_path_factory.mktemp("party")
    ptm = CommandLine(folder)
    (folder / "bucket").mkdir()
    root = ptm.ok("--home", "coord", "registry", "create", f"file://{folder}/bucket")
    kinds = {"ttp": "party", "other": "party", "clinic": "site", "jane": "researcher"}
    for name, kind in kinds.items():
        ptm.ok("--home", name, "member", "request", "--name", name, "--kind", kind, "-o", f"{name}.json")
    ptm.ok("--home", "coord", "member", "admit", *(f"{name}.json" for name in kinds), "--yes")
    for name in kinds:
        ptm.ok("--home", name, "join", f"file://{folder}/bucket", "--root", root)
    return ptm


def test_session_of_a_party(ptm: CommandLine, tmp_path: Path) -> None:
    missing = ptm.run("--home", "ttp", "trustedparty", "watch", "--once")
    assert (missing.code, "`ptm trustedparty init` writes it" in missing.err) == (2, True)
    made = ptm.run(
        "--home", "ttp", "trustedparty", "init", "--collection", "link", "--sender", r"clinic=a\.csv", "--researcher", "jane"
    )  # fmt: skip
    assert made.code == 0 and "--to ttp --collection link" in made.err
    assert "\"clinic\" = ['a\\.csv']" in (ptm.folder / "ttp/party.toml").read_text()
    assert ptm.run("--home", "ttp", "trustedparty", "init").code == 12
    assert "1 collection(s)" in ptm.ok("--home", "ttp", "trustedparty", "check")
    (ptm.folder / "a.csv").write_text("id\n1\n")
    sent = ptm.ok("--home", "clinic", "inbox", "send", "a.csv", "--to", "ttp", "--collection", "link")
    assert (
        f"{sent.split()[-1]} of clinic: accepted into link: a.csv"
        in ptm.run("--home", "ttp", "trustedparty", "watch", "--once").err
    )
    listed = json.loads(ptm.ok("--home", "ttp", "trustedparty", "list", "link", "--json"))
    assert (listed["complete"], listed["files"][0]["transfer"], listed["purges"]) == (True, sent.split()[-1], [])
    assert (ptm.folder / "ttp/collections/link/clinic/a.csv").read_text() == "id\n1\n"
    assert "link" in ptm.ok("--home", "ttp", "trustedparty", "list")

    words = ("--home", "ttp", "trustedparty", "purge", "link", "--by", "Eve Holt", "--reason", "study ended")
    assert "a.csv" in ptm.ok(*words, "--dry-run")
    typo = ptm.run(*words, "--sender", "clnic")
    assert (typo.code, "its senders are clinic" in typo.err) == (2, True)
    assert (ptm.folder / "ttp/collections/link/clinic/a.csv").exists()
    assert json.loads(ptm.ok(*words, "--json")) == {
        "files": [{"sender": "clinic", "name": "a.csv", "transfer": sent.split()[-1]}],
        "done": True,
    }
    assert not (ptm.folder / "ttp/collections/link/clinic/a.csv").exists()
    shown = json.loads(ptm.ok("--home", "ttp", "trustedparty", "list", "link", "--json"))
    assert [(purge["by"], purge["reason"]) for purge in shown["purges"]] == [("Eve Holt", "study ended")]
    assert "purged" in ptm.run("--home", "ttp", "trustedparty", "list", "link").err

    log = ptm.folder / "ttp/party-audit.jsonl"
    events = [entry["event"] for entry in json.loads(ptm.ok("--home", "ttp", "trustedparty", "audit", "--json"))]
    assert "transfer-accepted" in events
    assert "nothing was changed" in ptm.run("--home", "ttp", "trustedparty", "audit", "--verify").err
    log.write_text(log.read_text().replace("a.csv", "b.csv"))
    assert ptm.run("--home", "ttp", "trustedparty", "audit", "--verify").code == 11


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watch_stops_when_told(ptm: CommandLine, number: signal.Signals) -> None:
    (ptm.folder / "clinic/party.toml").write_text("poll_s = 600\n")
    running = ptm.start("--home", "clinic", "trustedparty", "watch")
    try:
        deadline = time.monotonic() + 20
        audit = ptm.folder / "clinic/party-audit.jsonl"
        before = audit.stat().st_size if audit.exists() else 0
        while not audit.exists() or audit.stat().st_size == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(number)
        assert running.wait(20) == 0
    finally:
        running.kill()
    assert b"party-stopped" in (ptm.folder / "clinic/party-audit.jsonl").read_bytes().splitlines()[-1]


@pytest.mark.parametrize("name", ["jane", "clinic"])
def test_who_is_no_party_has_no_collections(ptm: CommandLine, name: str) -> None:
    answer = ptm.run("--home", name, "trustedparty", "init")
    assert (answer.code, "only a trusted party has collections" in answer.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("init", "--collection", "x"), "go together"),
        (("init", "--collection", "x", "--sender", "clinic=("), "regular expression"),
        (("init", "--collection", "X", "--sender", "clinic=a"), "is not a name"),
        (("init", "--collection", "x", "--sender", "clinic"), "takes NAME=VALUE"),
        (("init", "--collection", "x", "--sender", "clinic=a", "--purge", "soon"), "purge"),
    ],
)
def test_wrong_flag_is_explained_and_writes_nothing(ptm: CommandLine, words: tuple[str, ...], said: str) -> None:
    home = ptm.folder / "other"
    answer = ptm.run("--home", "other", "trustedparty", *words)
    assert (answer.code, said in answer.err, (home / "party.toml").exists()) == (2, True, False), answer.err
