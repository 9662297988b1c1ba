"""`ptm inbox watch` as a person starts, stops and kills it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ptm.store.file import FileStore
from ptm.trustedparty.watch import Party
from tests.commandline import CommandLine
from tests.federation import Federation, wait_for
from tests.trustedparty import parties

pytestmark = pytest.mark.slow
WATCH = ("--home", "clinic", "inbox", "watch", "outgoing", "--to", "ttp", "--collection", "link")


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    (tmp_path / "registry").mkdir()
    (tmp_path / "outgoing").mkdir()
    return Federation(FileStore(tmp_path / "registry"), tmp_path).create().admit(ttp="party", clinic="site")


@pytest.fixture
def line(federation: Federation) -> CommandLine:
    return CommandLine(federation.folder)


def poll(federation: Federation) -> None:
    import threading

    Party(federation.home("ttp"), federation.registry("ttp"), parties.config()).watch(threading.Event(), once=True)


def test_once_sends_what_is_there_and_later_tells_what_the_party_refused(federation: Federation, line: CommandLine) -> None:
    folder = federation.folder / "outgoing"
    (folder / "a.csv").write_text("x")
    (folder / "b.doc").write_text("x")
    assert line.ok(*WATCH, "--once") == ""
    assert (folder / "sent" / "a.csv").read_text() == "x"
    poll(federation)
    answer = line.run(*WATCH, "--once")
    assert answer.code == 1
    assert "ptm: error: 1 file(s) failed" in answer.err
    assert str(folder / "failed") in answer.err
    assert "ttp refused transfer" in (folder / "failed" / "b.doc.reason.txt").read_text()
    assert line.ok(*WATCH, "--once") == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_success(federation: Federation, line: CommandLine, number: signal.Signals) -> None:
    folder = federation.folder / "outgoing"
    process = line.start(*WATCH)
    try:
        (folder / "a.csv").write_text("x")
        wait_for((folder / "sent" / "a.csv").exists)
        process.send_signal(number)
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()


def test_killed_at_any_time_every_file_is_sent_once(federation: Federation, line: CommandLine) -> None:
    folder = federation.folder / "outgoing"
    store = federation.store
    for n in range(12):
        (folder / f"{n}.csv").write_text(str(n))
    for _ in range(6):
        process = line.start(*WATCH)
        try:
            wait_for((folder / "sending").is_dir)
            sent = len(list((folder / "sent").glob("*.csv")))
            if sent < 12:
                wait_for(lambda sent=sent: len(list((folder / "sent").glob("*.csv"))) > sent)  # type: ignore[misc]
        finally:
            process.kill()
            process.wait()
    line.ok(*WATCH, "--once")
    manifests = [info.key for info in store.list("inbox/") if info.key.endswith("manifest.json")]
    assert len(manifests) == 12
    poll(federation)
    assert sorted(path.name for path in (federation.home("ttp").collections / "link" / "clinic").iterdir()) == sorted(
        f"{n}.csv" for n in range(12)
    )


@pytest.mark.parametrize(
    ("words", "says", "hint"),
    [
        (("--to", "clinic", "--collection", "link"), "not a trusted party", "ptm member list"),
        (("--to", "nobody", "--collection", "link"), "nobody", ""),
        (("--to", "ttp", "--collection", "No Name"), "collection", ""),
    ],
)
def test_a_wrong_destination_is_said_at_once_and_touches_no_file(
    federation: Federation, line: CommandLine, words: tuple[str, ...], says: str, hint: str
) -> None:
    (federation.folder / "outgoing" / "a.csv").write_text("x")
    answer = line.run("--home", "clinic", "inbox", "watch", "outgoing", "--once", *words)
    assert answer.code != 0
    assert says in answer.err
    assert hint in answer.err
    assert (federation.folder / "outgoing" / "a.csv").read_text() == "x"


def test_help_shows_an_example(line: CommandLine) -> None:
    assert "ptm inbox watch /data/outgoing --to ttp" in line.ok("inbox", "watch", "--help")
