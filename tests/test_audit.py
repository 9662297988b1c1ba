"""The audit log shows every change, survives every crash, and cannot be cut off unseen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ptm import audit
from ptm.audit import FIRST, Audit, entries, newest, verify
from ptm.errors import PtmError, UsageError, VerificationError
from ptm.node.witness import verify_against_registry
from ptm.store.memory import MemoryStore
from tests.federation import Federation, image_folder, second_home

TASK = "01KAMV3ZR5F2J7Q8XG4M1W9ABC"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of five entries."""
    log = Audit(tmp_path / "audit.jsonl")
    for number in range(5):
        log.record("run-started", TASK, number=number, name="Zoë", files=[{"size": 1}], nothing=None)
    log.close()
    return tmp_path / "audit.jsonl"


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_what_is_recorded_can_be_read_again_and_is_whole(path: Path) -> None:
    found = list(entries(path))
    assert [entry.n for entry in found] == [1, 2, 3, 4, 5]
    assert found[0].previous == FIRST
    assert found[2].facts == {"number": 2, "name": "Zoë", "files": [{"size": 1}]}
    report = verify(path, {found[3].hash: "a result"})
    assert (report.whole, report.entries, report.head) == (True, 5, found[4].hash)


def test_the_hash_is_made_as_the_documents_say(path: Path) -> None:
    """Without any code of ptm's: SHA-256 of the sorted, tight JSON of all but the hash."""
    import hashlib

    for line in lines(path):
        entry = json.loads(line)
        said = entry.pop("hash")
        assert (
            hashlib.sha256(json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()
            == said
        )


def test_a_restart_continues_the_chain(path: Path) -> None:
    log = Audit(path)
    log.record("node-started")
    log.close()
    assert verify(path).entries == 6
    assert verify(path).whole


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("harm", ["change", "remove", "swap", "repeat", "junk", "hash"])
def test_a_changed_log_is_found_out(path: Path, number: int, harm: str) -> None:
    kept = lines(path)
    if harm == "change":
        kept[number] = kept[number].replace(b'"number":', b'"numbed":')
    elif harm == "hash":
        entry = json.loads(kept[number])
        entry["hash"] = "0" * 64
        kept[number] = json.dumps(entry).encode() + b"\n"
    elif harm == "remove":
        if number == 4:
            pytest.skip("cutting off the end is another attack, which the results show")
        del kept[number]
    elif harm == "swap":
        kept[number], kept[number - 1] = kept[number - 1], kept[number]
    elif harm == "repeat":
        kept.insert(number, kept[number])
    elif harm == "junk":
        kept.insert(number, b"\xff\x00 no json\n")
    path.write_bytes(b"".join(kept))
    assert verify(path).problems


def test_a_line_without_an_end_in_the_middle_hides_nothing_after_it(path: Path) -> None:
    path.write_bytes(lines(path)[0] + b"x" * (5 * 1024 * 1024) + b"".join(lines(path)[1:]))
    assert verify(path).problems


def test_entries_rewritten_with_right_hashes_are_found_out_by_what_left_the_site(path: Path) -> None:
    """Somebody with the code and the disk writes the whole chain anew."""
    before = list(entries(path))
    path.unlink()
    log = Audit(path)
    for number in range(5):
        log.record("run-started", TASK, number=number + 1)
    log.close()
    assert verify(path).whole
    assert verify(path, {before[2].hash: "the result of a task"}).missing


def test_an_end_that_was_cut_off_is_found_out_by_what_left_the_site(path: Path) -> None:
    last = list(entries(path))[-1].hash
    path.write_bytes(b"".join(lines(path)[:-1]))
    assert verify(path).whole
    assert verify(path, {last: "the heartbeat"}).missing == {last: "the heartbeat"}


@pytest.mark.parametrize("kept", [1, 50, -2, -1])
def test_a_torn_last_line_is_recovered_from_and_on_record(path: Path, kept: int) -> None:
    whole = path.read_bytes()
    torn = lines(path)[-1][:kept]
    path.write_bytes(whole + torn)
    assert verify(path).whole
    assert verify(path).torn
    assert len(list(entries(path))) == 5
    log = Audit(path)
    log.record("node-started")
    log.close()
    report = verify(path)
    assert (report.whole, report.torn, report.entries) == (True, False, 7)
    assert [entry.event for entry in entries(path)][5:] == ["recovered", "node-started"]


def test_a_power_cut_that_leaves_zeros_is_recovered_from(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(4096))
    log = Audit(path)
    log.close()
    assert verify(path).whole


def test_a_damaged_last_entry_is_an_alarm_and_is_not_repaired(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"number":4', b'"number":9'))
    before = path.read_bytes()
    with pytest.raises(PtmError, match="last entry is damaged"):
        Audit(path)
    assert path.read_bytes() == before


def test_a_long_tail_that_is_no_log_is_not_cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x" * 3 * 1024 * 1024)
    size = path.stat().st_size
    with pytest.raises(PtmError, match="does not end like an audit log"):
        Audit(path)
    assert path.stat().st_size == size


def test_killed_in_the_middle_nothing_reported_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    script = f"""
from pathlib import Path
from ptm.audit import Audit
log = Audit(Path({str(path)!r}))
while True:
    print(log.record("run-ended", number=1, text="x" * 5000), flush=True)
"""
    told: list[str] = []
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for line in child.stdout:
            told.append(line.strip())
            if len(told) % 20 == 0:
                break
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    Audit(path).close()
    assert verify(path, dict.fromkeys(told, "printed")).whole


def test_a_full_disk_leaves_no_half_of_an_entry(tmp_path: Path) -> None:
    """The process may write no more than 20 kB into a file."""
    path = tmp_path / "audit.jsonl"
    script = f"""
import resource, signal
from pathlib import Path
from ptm.errors import PtmError
from ptm.audit import Audit
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = Audit(Path({str(path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
failed = 0
for n in range(30):
    try:
        log.record("run-ended", text="x" * 1000)
    except PtmError:
        failed += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.record("node-stopped", failed=failed)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    report = verify(path)
    assert (report.whole, report.torn) == (True, False)
    last = list(entries(path))[-1]
    assert last.event == "node-stopped"
    assert last.facts["failed"] == 30 - (report.entries - 1) > 0


def test_many_threads_write_one_chain(tmp_path: Path) -> None:
    log = Audit(tmp_path / "audit.jsonl")
    threads = [threading.Thread(target=lambda: [log.record("run-started") for _ in range(20)]) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (verify(tmp_path / "audit.jsonl").whole, verify(tmp_path / "audit.jsonl").entries) == (True, 100)


def test_the_log_is_private_and_a_missing_one_is_said(tmp_path: Path) -> None:
    Audit(tmp_path / "audit.jsonl").close()
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="there is no"):
        list(entries(tmp_path / "none.jsonl"))


def test_a_damaged_line_is_said_while_reading(path: Path) -> None:
    path.write_bytes(b"junk\n" + path.read_bytes())
    with pytest.raises(VerificationError, match="line 1 is damaged"):
        list(entries(path))


@pytest.mark.parametrize("block", [1, 7, 300, 1_000_000])
def test_the_newest_entries_are_read_from_the_end(path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(audit, "BLOCK", block)
    backwards = list(reversed(list(entries(path))))
    assert newest(path, 100) == (backwards, False)
    assert newest(path, 2) == (backwards[:2], False)
    assert newest(path, 5, TASK) == (backwards, False)
    assert newest(path, 5, "01KAMV3ZR5F2J7Q8XG4M1W9ABD") == ([], False)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"torn": "by a crash')
    assert newest(path, 100)[0] == backwards
    path.write_bytes(b"junk\n" + whole)
    assert newest(path, 5)[0] == backwards
    with pytest.raises(VerificationError, match="line 6 from the end is damaged"):
        newest(path, 6)
    path.write_bytes(b"")
    assert newest(path, 1) == ([], False)


def test_a_log_that_is_one_line_without_end_is_not_read_whole(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x" * 5 * 1024 * 1024 + b"\n")
    with pytest.raises(VerificationError, match="without end"):
        newest(path, 1)


# a whole node


def test_every_result_of_a_node_has_its_place_in_the_log_and_a_cut_is_found_out(tmp_path: Path) -> None:
    federation = Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", maastro="site")
    image = {"demo/count:1": image_folder(tmp_path / "count")}
    tasks = [federation.client().put("demo/count:1", ["maastro"]) for _ in range(2)]
    for _ in range(2):
        federation.run_once("maastro", images=image)
    log = federation.home("maastro").audit
    registry = federation.registry("maastro")

    report, seen, others = verify_against_registry(registry, log, "maastro-1")
    assert (report.whole, seen, others) == (True, 2, 0)
    events = [entry.event for entry in entries(log) if entry.task == tasks[0].id]
    assert events == ["task-accepted", "run-started", "run-ended", "result-signed", "result-delivered"]
    assert next(entries(log)).event == "node-started"

    whole = lines(log)
    signed = next(n for n, line in enumerate(whole) if b"result-signed" in line)
    for cut in (signed, len(whole) - 1):
        log.write_bytes(b"".join(whole[:cut]))
        report, _, _ = verify_against_registry(registry, log, "maastro-1")
        assert report.missing, cut
    log.write_bytes(b"".join(whole))
    assert verify_against_registry(registry, log, "maastro-1")[0].whole


def test_another_workers_log_in_the_place_of_this_one_is_found_out(tmp_path: Path) -> None:
    federation = Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", maastro="site")
    second, images = second_home(federation, "maastro"), {"demo/count:1": image_folder(tmp_path / "count")}
    for home, worker in ((federation.home("maastro"), "w1"), (second, "w2")):
        task = federation.client().put("demo/count:1", ["maastro"])
        federation.run_once("maastro", images=images, home=home, worker=worker)
    registry, mine = federation.registry("maastro"), federation.home("maastro").audit
    shutil.copy(second.audit, mine)
    report, _, _ = verify_against_registry(registry, mine, "w1")
    assert report.problems == []
    assert len([where for where in report.missing.values() if where.startswith("the result")]) == 1
    assert "the heartbeat of w1" in report.missing.values()
    assert task.id not in str(report.missing)


def test_results_of_another_worker_are_counted_and_not_looked_for_in_this_log(tmp_path: Path) -> None:
    federation = Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", maastro="site")
    federation.client().put("demo/count:1", ["maastro"])
    federation.run_once("maastro", images={"demo/count:1": image_folder(tmp_path / "count")}, worker="w2")
    other = Audit(tmp_path / "other.jsonl")
    other.record("node-started", worker="w1")
    other.close()
    report, seen, others = verify_against_registry(federation.registry("maastro"), tmp_path / "other.jsonl", "w1")
    assert (report.whole, seen, others) == (True, 0, 1)
