"""The drop folder: what is sent, what is left alone, what fails and says why; nothing is sent twice, whatever crashes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ptm import layout
from ptm.errors import PtmError, Unreachable, UsageError
from ptm.store.memory import MemoryStore
from ptm.trustedparty import dropfiles, dropfolder
from ptm.trustedparty.dropfolder import DropFolder
from ptm.trustedparty.outbox import Outbox
from ptm.trustedparty.send import cancel
from tests.federation import running, wait_for
from tests.trustedparty.parties import World

pytestmark = pytest.mark.slow

SETTLE_S = 0.15


class Killed(BaseException):
    """`kill -9`: no `except Exception` sees it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "outgoing"
    path.mkdir()
    return path


@pytest.fixture
def drop(world: World, folder: Path) -> Callable[..., DropFolder]:
    def make(**more: object) -> DropFolder:
        settings = {"to": "ttp", "collection": "link", "settle_s": SETTLE_S} | more
        return DropFolder(folder, world.registry("clinic"), **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture
def store(world: World) -> MemoryStore:
    assert isinstance(world.store, MemoryStore)
    return world.store


def once(drop: DropFolder) -> None:
    drop.watch(threading.Event(), once=True)


def tree(folder: Path) -> set[str]:
    """Every file in a drop folder, without what only ptm looks at."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith(".")}


def manifests(world: World) -> list[str]:
    return [key for key in world.inbox() if key.endswith("manifest.json")]


# sending


def test_a_dropped_file_is_sent_and_published_and_stays_in_sent(
    world: World, folder: Path, drop: Callable[..., DropFolder]
) -> None:
    with running(drop().watch):
        (folder / "patients.csv").write_text("id\n1\n")
        wait_for(lambda: tree(folder) == {"sent/patients.csv"})
    world.poll()
    assert world.published() == {"link/clinic/patients.csv": b"id\n1\n"}
    once(drop())
    assert tree(folder) == {"sent/patients.csv"}
    assert list((folder / "sent").glob(".*.id")) == []


def test_a_file_that_grows_is_sent_when_it_is_whole(world: World, folder: Path, drop: Callable[..., DropFolder]) -> None:
    with running(drop().watch):
        for n in range(10):
            with (folder / "patients.csv").open("a") as file:
                file.write(f"{n}\n")
            time.sleep(SETTLE_S / 3)
        wait_for(lambda: tree(folder) == {"sent/patients.csv"})
    world.poll()
    assert world.published() == {"link/clinic/patients.csv": b"".join(b"%d\n" % n for n in range(10))}


def test_a_file_that_somebody_holds_open_for_writing_is_waited_for(folder: Path, drop: Callable[..., DropFolder]) -> None:
    with running(drop().watch):
        with (folder / "patients.csv").open("w") as file:
            file.write("id\n")
            file.flush()
            time.sleep(5 * SETTLE_S)
            assert tree(folder) == {"patients.csv"}
        wait_for(lambda: tree(folder) == {"sent/patients.csv"})


@pytest.mark.parametrize("name", [".hidden.csv", "a.csv.part", "a.tmp", "a.csv.crdownload", "a.csv~", "A.TMP"])
def test_what_programs_have_not_finished_is_left_alone(
    world: World, folder: Path, drop: Callable[..., DropFolder], name: str
) -> None:
    (folder / name).write_text("x")
    once(drop())
    assert (folder / name).exists()
    assert world.inbox() == []


def test_links_folders_and_pipes_are_left_where_they_are_with_a_reason(
    world: World, folder: Path, tmp_path: Path, drop: Callable[..., DropFolder], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "link.csv").symlink_to(tmp_path / "secret")
    (folder / "folder.csv").mkdir()
    (folder / "folder.csv" / "deep.csv").write_text("x")
    os.mkfifo(folder / "pipe.csv")
    once(drop())
    assert world.inbox() == []
    assert tree(folder) == {"link.csv", "folder.csv/deep.csv", "pipe.csv"}
    assert [record.message.partition(":")[0] for record in caplog.records if "left where it is" in record.message] == [
        "folder.csv",
        "link.csv",
        "pipe.csv",
    ]


def test_a_file_that_is_swapped_for_a_link_before_it_is_taken_is_not_followed(
    world: World, folder: Path, tmp_path: Path, drop: Callable[..., DropFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "a.csv").write_text("x")
    made = drop()
    take = made._take

    def swap(name: str) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "secret")
        take(name)

    monkeypatch.setattr(made, "_take", swap)
    with pytest.raises(PtmError):
        once(made)
    assert world.inbox() == []
    assert "replaced" in (folder / "failed" / "a.csv.reason.txt").read_text()


def test_a_second_file_of_the_same_name_writes_over_nothing(world: World, folder: Path, drop: Callable[..., DropFolder]) -> None:
    for text in ("first", "second"):
        (folder / "a.csv").write_text(text)
        once(drop())
    assert {path.name: path.read_text() for path in (folder / "sent").glob("*.csv")} == {"a.csv": "first", "a-2.csv": "second"}


# refusals


def test_a_refused_file_goes_from_sent_to_failed_with_the_partys_reason(
    world: World, folder: Path, drop: Callable[..., DropFolder]
) -> None:
    (folder / "notes.txt").write_text("x")
    once(drop())
    assert tree(folder) == {"sent/notes.txt"}
    world.poll()
    with pytest.raises(PtmError, match="1 file"):
        once(drop())
    assert tree(folder) == {"failed/notes.txt", "failed/notes.txt.reason.txt"}
    assert "ttp refused transfer" in (folder / "failed" / "notes.txt.reason.txt").read_text()
    once(drop())


def test_a_name_that_cannot_be_sent_fails_with_the_reason_and_the_next_file_goes_on(
    world: World, folder: Path, drop: Callable[..., DropFolder]
) -> None:
    (folder / "a\nb.csv").write_text("x")
    (folder / "b.csv").write_text("x")
    with pytest.raises(PtmError, match="1 file"):
        once(drop())
    assert tree(folder) == {"failed/a\nb.csv", "failed/a\nb.csv.reason.txt", "sent/b.csv"}
    assert Outbox(world.federation.home("clinic").outbox).unfinished() == []


def test_a_party_that_is_none_is_an_error_at_once_and_touches_no_file(folder: Path, drop: Callable[..., DropFolder]) -> None:
    (folder / "a.csv").write_text("x")
    with pytest.raises(UsageError, match="not a trusted party"):
        once(drop(to="jane"))
    assert tree(folder) == {"a.csv"}


def test_two_watches_of_one_folder_are_refused(folder: Path, drop: Callable[..., DropFolder]) -> None:
    with running(drop().watch):
        wait_for((folder / "sending" / ".lock").exists)
        with pytest.raises(UsageError, match="another process"):
            once(drop())


@pytest.mark.parametrize("name", ["sent", "failed", "sending"])
def test_a_link_in_place_of_a_folder_of_its_own_is_refused(
    folder: Path, tmp_path: Path, drop: Callable[..., DropFolder], name: str
) -> None:
    (folder / name).symlink_to(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        once(drop())


# outages and crashes


def test_an_outage_is_no_failure(
    world: World, store: MemoryStore, folder: Path, drop: Callable[..., DropFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropfolder, "POLL_S", 0.1)
    down = True

    def cut(verb: str, key: str) -> None:
        if down and key.startswith(layout.inbox_of("ttp")):
            raise Unreachable("the network went away")

    store.before = cut
    (folder / "a.csv").write_text("x")
    with running(drop().watch):
        wait_for(lambda: tree(folder) == {"sending/a.csv"})
        time.sleep(0.5)
        assert tree(folder) == {"sending/a.csv"}
        down = False
        wait_for(lambda: tree(folder) == {"sent/a.csv"})
    assert len(manifests(world)) == 1


def test_with_once_an_outage_is_told(store: MemoryStore, folder: Path, drop: Callable[..., DropFolder]) -> None:
    def cut(verb: str, key: str) -> None:
        if key.startswith(layout.inbox_of("ttp")):
            raise Unreachable("the network went away")

    store.before = cut
    (folder / "a.csv").write_text("x")
    with pytest.raises(PtmError, match="1 could not be sent"):
        once(drop())
    assert tree(folder) == {"sending/a.csv"}


def test_a_transfer_that_was_begun_goes_on_as_it_was_begun_whatever_is_asked_for_now(
    world: World, store: MemoryStore, folder: Path, drop: Callable[..., DropFolder]
) -> None:
    """Started again for another collection, it must not send the file to both."""
    test_with_once_an_outage_is_told(store, folder, drop)
    store.before = lambda verb, key: None
    once(drop(collection="other"))
    assert tree(folder) == {"sent/a.csv"}
    assert Outbox(world.federation.home("clinic").outbox).unfinished() == []
    world.poll()
    assert world.published() == {"link/clinic/a.csv": b"x"}


def test_a_transfer_that_a_person_gave_up_meanwhile_is_not_sent_again(
    world: World, store: MemoryStore, folder: Path, drop: Callable[..., DropFolder]
) -> None:
    test_with_once_an_outage_is_told(store, folder, drop)
    store.before = lambda verb, key: None
    outbox = Outbox(world.federation.home("clinic").outbox)
    cancel(world.registry("clinic"), outbox, outbox.unfinished()[0][0].id)
    with pytest.raises(PtmError):
        once(drop())
    assert "given up" in (folder / "failed" / "a.csv.reason.txt").read_text()
    assert world.inbox() == []


def killed_at(step: int, made: DropFolder, store: MemoryStore, patch: pytest.MonkeyPatch) -> bool:
    """Run with a kill at the n-th change of a file or an object (just after it); whether it came to that."""
    left = step
    real_link, real_unlink, real_rename, real_write = os.link, Path.unlink, Path.rename, dropfolder.write_atomic

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    def link(*a: object, **k: object) -> None:
        real_link(*a, **k)  # type: ignore[arg-type]
        count()

    def unlink(self: Path, missing_ok: bool = False) -> None:
        real_unlink(self, missing_ok=missing_ok)
        count()

    def rename(self: Path, target: Path) -> Path:
        moved = real_rename(self, target)
        count()
        return moved

    def write(*a: object, **k: object) -> None:
        real_write(*a, **k)  # type: ignore[arg-type]
        count()

    with patch.context() as patched:
        patched.setattr(os, "link", link)
        patched.setattr(Path, "unlink", unlink)
        patched.setattr(Path, "rename", rename)
        patched.setattr(dropfolder, "write_atomic", write)
        patched.setattr(dropfiles, "write_atomic", write)
        store.after = lambda verb, key: count()
        try:
            once(made)
        except Killed:
            return True
        finally:
            store.after = lambda verb, key: None
    return False


def test_killed_after_any_step_a_file_is_sent_exactly_once(
    world: World, store: MemoryStore, folder: Path, drop: Callable[..., DropFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    for steps in range(1, 200):
        text = f"step {steps}"
        before = len(manifests(world))
        (folder / "a.csv").write_text(text)
        was_killed = killed_at(steps, drop(settle_s=0.01), store, monkeypatch)
        once(drop(settle_s=0.01))
        assert len(manifests(world)) == before + 1, f"step {steps}"
        assert Outbox(world.federation.home("clinic").outbox).unfinished() == []
        assert [path.read_text() for path in (folder / "sent").glob("*.csv")] == [text], f"step {steps}"
        assert tree(folder) == {"sent/a.csv"}, f"step {steps}"
        for path in (folder / "sent").iterdir():
            path.unlink()
        if not was_killed:
            break
    assert steps > 10


def test_killed_after_any_step_of_a_refusal_the_file_fails_once_with_its_reason(
    world: World, store: MemoryStore, folder: Path, drop: Callable[..., DropFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in range(1, 100):
        (folder / "notes.txt").write_text("x")
        once(drop(settle_s=0.01))
        world.poll()
        try:
            was_killed = killed_at(steps, drop(), store, monkeypatch)
        except PtmError:
            was_killed = False
        with contextlib.suppress(PtmError):
            once(drop())
        assert tree(folder) == {"failed/notes.txt", "failed/notes.txt.reason.txt"}, f"step {steps}"
        for path in (folder / "failed").iterdir():
            path.unlink()
        if not was_killed:
            break
    assert steps > 3
