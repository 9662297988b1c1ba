"""What a worker remembers survives a crash, and is not shared with a second process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ptm.errors import PtmError
from ptm.node.state import State

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def opened(folder: Path) -> State:
    return State(folder / "state.sqlite")


def test_a_run_moves_forward_and_is_found_again_after_a_restart(tmp_path: Path) -> None:
    state = opened(tmp_path)
    state.open_run("T1", "alice", "d", "A1", b"task", NOW)
    state.starting("T1", "sha256:x")
    state.started("T1", "container-1")
    state.close()

    state = opened(tmp_path)
    (row,) = state.unfinished()
    assert (row.phase, row.handle, row.image_digest, row.task_body) == ("started", "container-1", "sha256:x", b"task")
    state.spooled("T1", b"result")
    state.delivered("T1")
    assert state.unfinished() == []
    found = state.find("T1")
    assert found is not None
    assert found.result == b"result"


def test_taking_on_a_run_twice_gives_the_first_row(tmp_path: Path) -> None:
    state = opened(tmp_path)
    state.open_run("T1", "alice", "d", "A1", b"task", NOW)
    assert state.open_run("T1", "alice", "d", "A2", b"other", NOW).attempt == "A1"


def test_only_delivered_runs_of_expired_tasks_are_forgotten(tmp_path: Path) -> None:
    state = opened(tmp_path)
    for task, expires in (("OLD", NOW - timedelta(days=1)), ("NEW", NOW + timedelta(days=1)), ("STUCK", NOW - timedelta(days=1))):
        state.open_run(task, "alice", "d", "A", b"", expires)
    state.delivered("OLD")
    state.delivered("NEW")
    state.forget_expired(NOW)
    assert [task for task in ("OLD", "NEW", "STUCK") if state.find(task)] == ["NEW", "STUCK"]


def test_a_second_process_with_the_same_home_is_refused(tmp_path: Path) -> None:
    holder = opened(tmp_path)
    script = f"from pathlib import Path; from ptm.node.state import State; State(Path({str(tmp_path / 'state.sqlite')!r}))"
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode != 0
    assert "another `ptm node watch` runs with this home" in second.stderr
    holder.close()


def test_killed_in_the_middle_it_opens_again(tmp_path: Path) -> None:
    script = f"""
from datetime import datetime, UTC
from pathlib import Path
from ptm.node.state import State
state = State(Path({str(tmp_path / "state.sqlite")!r}))
for n in range(10**6):
    state.open_run(f"T{{n}}", "alice", "d", "A", b"x" * 1000, datetime.now(UTC))
    print(n, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    last = 0
    for line in child.stdout:
        last = int(line)
        if last >= 20:
            break
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    state = opened(tmp_path)
    assert all(state.find(f"T{n}") for n in range(last + 1))


def test_a_damaged_file_is_not_silently_replaced(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").write_bytes(b"this is not a database, it only looks like a file" * 100)
    with pytest.raises(PtmError, match="damaged"):
        opened(tmp_path)


def test_the_file_is_private(tmp_path: Path) -> None:
    opened(tmp_path)
    assert (tmp_path / "state.sqlite").stat().st_mode & 0o777 == 0o600
