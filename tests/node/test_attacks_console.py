"""Attacks on the stewards' page by whoever has an account on the machine, by a crash, and by what a log can grow to."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from ptm import layout
from ptm.audit import Audit
from ptm.node import decisions, spool
from ptm.node.console import pages, server
from ptm.node.spool import look_folder, sweep_spool
from tests.federation import Federation, second_home, wait_for
from tests.node.test_console import BOTH, Browser, arrived, asked, browser, check_harmless, federation, held, images

pytestmark = pytest.mark.slow

__all__ = ["arrived", "browser", "federation", "images"]  # fixtures


def say(arrived: Browser, *lines: str) -> bytes:
    """Bytes of a request, and the first line of what comes back."""
    port = urlsplit(arrived.url).port or 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
        wire.sendall("\r\n".join(lines).replace("PORT", str(port)).encode() + b"\r\n\r\n")
        return wire.recv(4096).split(b"\r\n")[0]


# another account on this machine


def test_connections_that_say_nothing_do_not_keep_the_steward_out(arrived: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are closed after a while, and before that if they are many."""
    monkeypatch.setattr(server, "STRANGER_S", 2.0)
    monkeypatch.setattr(server, "MAX_STRANGERS", 20)
    arrived.enter()
    port = urlsplit(arrived.url).port or 0
    wires = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]
    for wire in wires[::2]:
        wire.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1")
    try:
        wait_for(lambda: _closed(wires) >= 80, 2)
        assert arrived.get("/").status_code == 200
        wait_for(lambda: _closed(wires) == 100, 10)
        assert arrived.get("/").status_code == 200
    finally:
        for wire in wires:
            wire.close()


def _closed(wires: list[socket.socket]) -> int:
    closed = 0
    for wire in wires:
        wire.setblocking(False)
        try:
            closed += wire.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            continue
        except ConnectionError:
            closed += 1
    return closed


def test_a_body_without_end_and_without_a_session_is_not_taken_in(arrived: Browser) -> None:
    def endless() -> object:
        for _ in range(10_000):
            yield b"x" * 100_000

    try:
        answer = requests.post(arrived.base + "/end", data=endless(), headers={"Origin": arrived.origin}, timeout=30)
        assert answer.status_code == 403
    except requests.ConnectionError:
        pass  # closed while we were still talking
    arrived.enter()


@pytest.mark.parametrize(
    "lines",
    [
        ("GET BASE/ HTTP/1.1", "Host: 127.0.0.1:PORT", "Host: evil.example"),
        ("GET BASE/ HTTP/1.1", "Host: evil.example", "X-Forwarded-Host: 127.0.0.1:PORT"),
        ("GET http://evil.example/ HTTP/1.1", "Host: 127.0.0.1:PORT"),
        ("GET BASE/../ HTTP/1.1", "Host: 127.0.0.1:PORT"),
        ("GET BASE/%73tart/../run HTTP/1.1", "Host: 127.0.0.1:PORT"),
        ("POST BASE/end HTTP/1.1", "Host: 127.0.0.1:PORT", "Origin: http://127.0.0.1:PORT", "Origin: http://evil.example",
         "Content-Length: 0"),
        ("POST BASE/end HTTP/1.1", "Host: 127.0.0.1:PORT", "Content-Length: 5", "Transfer-Encoding: chunked"),
        ("GET BASE/ HTTP/1.1", "Host: 127.0.0.1:PORT", "Cookie: ptm-PORT=x\x01y"),
        ("GET BASE/ HTTP/1.1", "Host: 127.0.0.1:PORT", "X: " + "x" * 100_000),
        ("CONNECT 127.0.0.1:22 HTTP/1.1", "Host: 127.0.0.1:PORT"),
        ("\x16\x03\x01 hello",),
    ],
)  # fmt: skip
def test_headers_that_say_two_things_open_nothing(arrived: Browser, lines: tuple[str, ...]) -> None:
    base = urlsplit(arrived.base).path
    status = say(arrived, *(line.replace("BASE", base) for line in lines)).split(b" ")[1]
    assert status in (b"400", b"403"), status
    arrived.enter()


def test_the_address_tells_nobody_who_reads_the_process_list(arrived: Browser) -> None:
    mine = Path(f"/proc/{os.getpid()}/cmdline").read_bytes() + Path(f"/proc/{os.getpid()}/environ").read_bytes()
    assert urlsplit(arrived.url).query.removeprefix("token=").encode() not in mine


def test_no_page_names_the_token_and_no_link_leads_elsewhere(
    federation: Federation, images: dict[str, Path], arrived: Browser
) -> None:
    token = urlsplit(arrived.url).query.removeprefix("token=")
    arrived.enter()
    task = asked(federation, images)
    for path in ("/", "/audit", "/health", f"/run/{task.id}"):
        answer = arrived.get(path)
        assert token not in answer.text and arrived.http.cookies.values()[0] not in answer.text
        assert answer.headers["Referrer-Policy"] == "same-origin"
        check_harmless(answer.text)


# a crash


def test_inputs_that_a_killed_look_left_in_clear_are_found_and_removed(federation: Federation) -> None:
    home = federation.home("maastro")
    with look_folder(home) as folder:
        assert folder.is_relative_to(home.path) and folder.stat().st_mode & 0o777 == 0o700
        (folder / "secret").write_text("x")
        left = home.path / "look" / "killed"
        left.mkdir()
        old = time.time() - 2 * spool.LOOK_S
        os.utime(left, (old, old))
        sweep_spool(home, set())
        assert folder.exists(), "what somebody looks at now stays"
        assert not left.exists()
    assert list((home.path / "look").iterdir()) == []


def test_a_page_leaves_nothing_in_the_temporary_folder(
    federation: Federation, images: dict[str, Path], browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = asked(federation, images)
    seen: list[Path] = []
    write = decisions.write_inputs

    def watched(registry: object, waiting: object, folder: Path) -> list[Path]:
        seen.append(folder)
        return write(registry, waiting, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(decisions, "write_inputs", watched)
    assert "min_age" in browser.get(f"/run/{task.id}").text
    (folder,) = seen
    assert folder.is_relative_to(federation.home("maastro").path) and not folder.exists()


# a long log


def test_the_audit_page_reads_the_end_of_a_long_log_only(federation: Federation, browser: Browser) -> None:
    path = federation.home("maastro").audit
    log = Audit(path)
    for number in range(1000):
        log.record("trouble", said=f"number {number} " + "x" * 500)
    log.close()
    path.write_bytes(b"not an entry\n" + path.read_bytes() + b'{"torn":')
    answer = browser.get("/audit")
    assert (answer.status_code, answer.text.count("<td>")) == (200, 200)
    assert "number 999 " in answer.text and "number 799 " not in answer.text
    assert answer.text.index("number 999 ") < answer.text.index("number 998 ")


def test_a_task_whose_entries_are_far_back_is_said_to_be_looked_for_in_the_end_only(
    federation: Federation, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = "01KAMV3ZR5F2J7Q8XG4M1W9ABC"
    log = Audit(federation.home("maastro").audit)
    log.record("run-started", task)
    for _ in range(300):
        log.record("trouble", said="x" * 1000)
    log.close()
    assert "run-started" in browser.get(f"/audit?task={task}").text
    monkeypatch.setattr(pages, "MAX_LOG_BYTES", 100_000)
    page = browser.get(f"/audit?task={task}").text
    assert "run-started" not in page and f"ptm node audit --task {task}" in page


# the bucket


def test_a_withholding_that_is_hidden_after_the_page_showed_it_is_not_released_by_that_page(
    federation: Federation, images: dict[str, Path], browser: Browser
) -> None:
    """Withheld on another machine; the note is hidden before the button is pressed."""
    task = held(federation, images)
    here = federation.registry("maastro")
    away = type(here)(second_home(federation, "maastro"), here.profile, federation.store, here.keys)
    before = {info.key for info in federation.store.list(layout.run("maastro", task.id))}
    decisions.withhold(away, task.id, by="Jansen", reason="x", files=["note.txt"])
    form = browser.fields(f"/run/{task.id}") | {"what": "release", "by": "J. Jansen", "reason": "fine"}
    for key in {info.key for info in federation.store.list(layout.run("maastro", task.id))} - before:
        federation.store.delete(key)
    answer = browser.post(f"/run/{task.id}", dict(form))
    assert (answer.status_code, "look at it again" in answer.text) == (409, True)


def test_a_released_run_whose_worker_is_gone_is_on_the_page_and_can_be_ended_there(
    federation: Federation, images: dict[str, Path], browser: Browser
) -> None:
    task = held(federation, images)
    browser.decide(task.id, "release")
    assert "worker maastro-1" in browser.get("/").text
    page = browser.get(f"/run/{task.id}").text
    assert "Released by J. Jansen" in page and 'value="release"' not in page and 'value="withhold-files"' not in page
    assert browser.decide(task.id, "withhold").status_code == 200
    federation.run_once("maastro", images=images, rule=BOTH)
    assert task.status()[0].state == "rejected"
