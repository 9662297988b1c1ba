"""A party passes files on, and members who are no party take them: whole, once, and never in clear on the party's disk."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from ptm import layout
from ptm.errors import DigestMismatch, PtmError, SealError, UsageError
from ptm.registry import Registry
from ptm.store.file import FileStore
from ptm.transfer import Format
from ptm.trustedparty import fetch as fetching
from ptm.trustedparty import send as sending
from ptm.trustedparty.fetch import Taken
from ptm.trustedparty.forward import forward
from ptm.trustedparty.outbox import Outbox
from ptm.trustedparty.send import Source
from ptm.trustedparty.sent import overview
from tests.commandline import CommandLine
from tests.trustedparty import parties
from tests.trustedparty.parties import World

pytestmark = pytest.mark.slow

FORMATS = get_args(Format)
WORD = b"a diagnosis that nobody else may read; "
SECRET = WORD * 20_000
"""A little under 1 MB: many segments."""


def write_config(world: World) -> None:
    """The party's configuration in its file, as forwarding and the command line read it."""
    (rule,) = world.config.collection
    lines = [
        f"min_free_mb = {world.config.min_free_mb}",
        "[[collection]]",
        'name = "link"',
        f"sealed = {str(rule.sealed).lower()}",
    ]
    lines += ["[collection.senders]", "clinic = ['.*']"]
    world.federation.home("ttp").party.write_text("\n".join(lines) + "\n")


@pytest.fixture(params=[False, True], ids=["kept-in-clear", "kept-sealed"])
def holding(world: World, request: pytest.FixtureRequest) -> World:
    """The party holds link/clinic/a.csv."""
    world.reconfigure(researchers=[] if request.param else ["jane"], sealed=request.param)
    write_config(world)
    world.send({"a.csv": SECRET})
    world.poll()
    return world


def pass_on(world: World, what: str = "link/clinic/a.csv", **more: object) -> str:
    home = world.federation.home("ttp")
    values: dict[str, object] = {"to": "jane", "collection": "for-jane", **more}
    return forward(world.registry("ttp"), home, what, **values).id  # type: ignore[arg-type]


def fetch(registry: Registry, folder: Path, **more: object) -> list[Taken]:
    values: dict[str, object] = {"max_mb": 64, "stop": threading.Event(), **more}
    return fetching.fetch(registry, folder, **values)  # type: ignore[arg-type]


def inbox(world: World, member: str = "jane") -> list[str]:
    return [info.key for info in world.store.list(layout.inbox_of(member))]


def files_below(folder: Path) -> Iterator[Path]:
    return (Path(place, name) for place, _, names in os.walk(folder) for name in names)


@pytest.mark.parametrize("format", FORMATS)
def test_passed_on_and_fetched_whole_with_a_receipt(holding: World, tmp_path: Path, format: Format) -> None:
    sent = pass_on(holding, format=format, purpose="as agreed")
    jane = holding.registry("jane")
    (waits,) = fetching.waiting(jane)
    assert waits.transfer is not None
    assert (waits.sender, waits.id, waits.transfer.purpose) == ("ttp", sent, "as agreed")

    (taken,) = fetch(jane, tmp_path / "got")

    (path,) = taken.files
    assert path == tmp_path / "got" / "for-jane" / "ttp" / "a.csv"
    assert path.read_bytes() == SECRET
    assert path.stat().st_mode & 0o777 == 0o600
    assert inbox(holding) == []
    assert fetch(jane, tmp_path / "got") == []
    ttp = holding.registry("ttp")
    assert [(item.to, item.state) for item in overview(ttp, Outbox(ttp.home.outbox))] == [("jane", "accepted")]


class Disk:
    """Remembers every file that appears below a folder while it looks, and the bytes of each at its longest."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stop = folder, threading.Event()
        self.seen: dict[Path, bytes] = {}
        self.thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stop.is_set():
            self.look()

    def look(self) -> None:
        for path in files_below(self._folder):
            try:
                body = path.read_bytes()
            except OSError:
                continue  # gone meanwhile, or no file
            if len(body) >= len(self.seen.get(path, b"")):
                self.seen[path] = body

    def __enter__(self) -> Disk:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.thread.join()


@pytest.mark.parametrize("kept", FORMATS)
def test_nothing_of_a_sealed_file_is_in_clear_on_the_partys_disk(
    world: World, tmp_path: Path, kept: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    world.reconfigure(researchers=[], sealed=True)
    write_config(world)
    world.send({"a.csv": SECRET}, format=kept)
    with Disk(tmp_path) as disk:
        world.poll()

        def pause(stage: str, total: int) -> object:
            return lambda moved: disk.look()

        pass_on(world, stages=pause)

    (tmp_path / "control").write_bytes(WORD)
    disk.look()
    assert [path.name for path, body in disk.seen.items() if WORD in body] == ["control"]
    names = {path.name for path in disk.seen}
    assert f"a.csv.{'age' if kept == 'age' else 'c4gh'}" in names
    outbox = world.federation.home("ttp").outbox
    assert any(path.is_relative_to(outbox) and len(body) > 100_000 for path, body in disk.seen.items())


@pytest.mark.parametrize("format", FORMATS)
def test_file_that_changed_on_the_partys_disk_is_not_passed_on(world: World, format: Format) -> None:
    world.reconfigure(researchers=[], sealed=True)
    write_config(world)
    world.send({"a.csv": bytes(65_536) + SECRET[: 3 * 65_536]}, format=format)
    world.poll()
    (path,) = files_below(world.federation.home("ttp").collections)
    body, segment = path.read_bytes(), 65_536 + 28 if format == "crypt4gh" else 65_536 + 16
    path.write_bytes(body[: -2 * segment] + body[-segment:] + body[-2 * segment : -segment])

    with pytest.raises((SealError, DigestMismatch)):
        pass_on(world)
    assert inbox(world) == []
    assert [p for p in files_below(world.federation.home("ttp").outbox) if p.stat().st_size] == []


def test_interrupted_forward_goes_on_with_the_same_transfer(holding: World, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(stage: str, total: int) -> object:
        def step(moved: int) -> None:
            if stage == "sending":
                raise Killed

        return step

    with pytest.raises(Killed):
        pass_on(holding, stages=kill)
    ttp = holding.registry("ttp")
    ((begun, _),) = Outbox(ttp.home.outbox).unfinished()
    assert pass_on(holding) == begun.id
    (taken,) = fetch(holding.registry("jane"), tmp_path / "got")
    assert taken.files[0].read_bytes() == SECRET


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("link/clinic", UsageError),
        ("other/clinic/a.csv", UsageError),
        ("link/clinic/b.csv", UsageError),
        ("link/statistics/a.csv", UsageError),
        ("link/clinic/../../keys/age.txt", UsageError),
    ],
)
def test_only_what_the_party_holds_is_passed_on(holding: World, what: str, error: type[PtmError]) -> None:
    with pytest.raises(error) as caught:
        pass_on(holding, what)
    assert caught.value.hint
    assert inbox(holding) == []


def test_only_a_party_sends_to_members_who_are_none(world: World, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x")
    sources = [Source("a.csv", tmp_path / "a.csv")]
    for sender, allowed in (("clinic", False), ("jane", False), ("ttp", True)):
        registry = world.registry(sender)
        outbox = Outbox(registry.home.outbox)
        if allowed:
            sending.send(registry, outbox, sources, to="statistics", collection="computed")
        else:
            with pytest.raises(UsageError, match="not a trusted party"):
                sending.send(registry, outbox, sources, to="statistics", collection="computed")
    (taken,) = fetch(world.registry("statistics"), tmp_path / "got")
    assert [path.read_bytes() for path in taken.files] == [b"x"]


# fetching


@pytest.fixture
def sent(holding: World) -> World:
    pass_on(holding)
    return holding


def test_what_is_too_big_or_in_the_way_is_left_where_it_is(sent: World, tmp_path: Path) -> None:
    jane = sent.registry("jane")
    before = inbox(sent)
    in_the_way = tmp_path / "got" / "for-jane" / "ttp" / "a.csv"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_bytes(b"mine")

    (taken,) = fetch(jane, tmp_path / "got")
    assert "is there already" in taken.left
    assert (in_the_way.read_bytes(), inbox(sent)) == (b"mine", before)

    in_the_way.rename(tmp_path / "elsewhere")
    (taken,) = fetch(jane, tmp_path / "got")
    assert in_the_way.read_bytes() == SECRET


def test_bigger_than_asked_for_is_left_where_it_is(world: World, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(bytes(1_100_000))
    ttp = world.registry("ttp")
    sending.send(ttp, Outbox(ttp.home.outbox), [Source("big.bin", tmp_path / "big.bin")], to="jane", collection="c")
    before = inbox(world)

    (taken,) = fetch(world.registry("jane"), tmp_path / "got", max_mb=1)
    assert "--max-mb" in taken.left
    assert inbox(world) == before
    (taken,) = fetch(world.registry("jane"), tmp_path / "got", max_mb=2)
    assert len(taken.files) == 1


def test_sender_can_be_chosen(sent: World, tmp_path: Path) -> None:
    assert fetch(sent.registry("jane"), tmp_path / "got", sender="clinic") == []
    assert len(fetch(sent.registry("jane"), tmp_path / "got", sender="ttp")) == 1


def test_file_that_was_taken_may_be_moved_and_is_not_taken_again(sent: World, tmp_path: Path) -> None:
    """Somebody with the bucket puts the old transfer back."""
    jane, old = sent.registry("jane"), {key: sent.store.get(key, 2**21) for key in inbox(sent)}
    (taken,) = fetch(jane, tmp_path / "got")
    taken.files[0].unlink()
    for key, body in old.items():
        sent.store.put(key, body)

    (again,) = fetch(jane, tmp_path / "got")
    assert (again.files, again.refused, again.left) == ((), "", "")
    assert [path for path in files_below(tmp_path / "got") if path.name == "a.csv"] == []
    assert inbox(sent) == []


def test_changed_in_the_bucket_is_refused_and_the_sender_told(sent: World, tmp_path: Path) -> None:
    (key,) = [key for key in inbox(sent) if key.endswith(".age")]
    body = bytearray(sent.store.get(key, 2**21))
    body[-1] ^= 1
    sent.store.put(key, bytes(body))

    (taken,) = fetch(sent.registry("jane"), tmp_path / "got")
    assert "is not what was signed" in taken.refused
    assert [path for path in files_below(tmp_path / "got") if ".ptm-inbox" not in path.parts] == []
    ttp = sent.registry("ttp")
    (told,) = overview(ttp, Outbox(ttp.home.outbox))
    assert (told.state, "is not what was signed" in (told.reason or "")) == ("refused", True)


def test_trusted_party_is_told_to_watch_instead(world: World, tmp_path: Path) -> None:
    write_config(world)
    with pytest.raises(UsageError, match="is a trusted party"):
        fetch(world.registry("ttp"), tmp_path / "got")


def test_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    world = parties.world(tmp_path, FileStore(tmp_path / "bucket"))
    write_config(world)
    world.send({"a.csv": SECRET, "b.csv": b""})
    world.poll()
    line = CommandLine(tmp_path)
    sent = line.ok("--home", "ttp", "inbox", "forward", "link/clinic/a.csv", "--to", "jane", "--collection", "for-jane")

    (shown,) = json.loads(line.ok("--home", "jane", "inbox", "fetch", "--list", "--json"))
    assert (shown["transfer"], shown["from"], shown["files"]) == (sent, "ttp", ["a.csv"])
    assert "for-jane" in line.ok("--home", "jane", "inbox", "fetch", "--list")
    got = line.ok("--home", "jane", "inbox", "fetch", "-o", "got")
    assert Path(got).read_bytes() == SECRET
    assert "accepted" in line.ok("--home", "ttp", "inbox", "list")
    assert "nothing waits" in line.run("--home", "jane", "inbox", "fetch", "-o", "got").err
    assert line.run("--home", "jane", "inbox", "fetch").code == 2
    assert [path.name for path in (tmp_path / "got" / "for-jane" / "ttp").iterdir()] == ["a.csv"]
