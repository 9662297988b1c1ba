"""The stewards' page: one browser, one time; nothing foreign runs in it; what was looked at is what is decided."""

from __future__ import annotations

import asyncio
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from ptm.audit import Audit
from ptm.client import TaskHandle
from ptm.node import decisions
from ptm.node.console.preview import MAX_COLUMNS, MAX_IMAGES, MAX_ROWS, MAX_TEXT, Images, preview
from ptm.node.console.server import Console
from ptm.node.console.session import Door
from ptm.store.memory import MemoryStore
from tests.federation import Federation, image_folder

pytestmark = pytest.mark.slow

XSS = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
BOTH = {"approval": "manual", "release": "manual"}
SCRIPT = f"""#!/usr/bin/env python3
import os, pathlib
out = pathlib.Path(os.environ["PTM_OUTPUT_DIR"])
(out / "table.csv").write_text('''name,n\\n"{XSS}",12\\n''')
(out / "note.txt").write_text('''{XSS} \\x1b[31m \\u202e''')
(out / "picture.svg").write_text('''<svg xmlns="http://www.w3.org/2000/svg">{XSS}</svg>''')
(out / "page.html").write_text('''{XSS}''')
(out / "liar.png").write_text('''{XSS}''')
(out / "b&lt;i>'onx='1.txt").write_text("odd name")
(out / "huge.txt").write_text("A" * 3_000_000)
(out / "huge.csv").write_text("\\n".join(",".join(["7"] * 500) for _ in range(5000)))
(out / "zeros.bin").write_bytes(bytes(1000))
pathlib.Path(os.environ["PTM_INPUT_DIR"], "plot.png").exists() and (out / "plot.png").write_bytes(
    pathlib.Path(os.environ["PTM_INPUT_DIR"], "plot.png").read_bytes())
"""


def png(width: int = 2, height: int = 2, rows: bytes | None = None) -> bytes:
    """A picture; with other sizes than 2 and no rows, one that lies about its size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = rows or (b"\0" + b"\x20\x90\x40" * 2) * 2
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Tags(HTMLParser):
    """Every tag with its attributes, as a browser's parser finds them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def check_harmless(page: str) -> None:
    """No tag and no attribute that could run or fetch anything, but the page's own."""
    for tag, attributes in Tags(page).found:
        assert tag not in ("script", "svg", "iframe", "object", "embed", "style", "base"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("src", "href", "action", "formaction"):
            assert (attributes.get(name) or "/").startswith("/"), attributes


@dataclass
class Browser:
    """A page server in a thread, and a browser's session with it."""

    url: str
    http: requests.Session = field(default_factory=requests.Session)

    @property
    def origin(self) -> str:
        return "http://" + urlsplit(self.url).netloc

    @property
    def base(self) -> str:
        return self.url.rpartition("/start")[0]

    def enter(self) -> Browser:
        assert self.http.get(self.url).status_code == 200
        return self

    def get(self, path: str, **headers: str) -> requests.Response:
        return self.http.get(self.base + path, headers=headers)

    def fields(self, path: str) -> dict[str, str]:
        """The hidden fields of a page's form."""
        return {
            str(a["name"]): str(a["value"])
            for tag, a in Tags(self.get(path).text).found
            if tag == "input" and a.get("type") == "hidden"
        }

    def post(self, path: str, data: dict[str, object], **headers: str) -> requests.Response:
        return self.http.post(self.base + path, data=data, headers={"Origin": self.origin} | headers)

    def decide(self, task: str, what: str, **data: object) -> requests.Response:
        path = f"/run/{task}"
        return self.post(path, {**self.fields(path), "what": what, "by": "J. Jansen", "reason": "study 12", **data})


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation(MemoryStore(), tmp_path).create().admit(alice="researcher", maastro="site")
    made.home("maastro").policy.write_text("[[allow]]\nimages = ['demo/.*:.*']\n")
    return made


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    return {"demo/nasty:1": image_folder(tmp_path / "nasty", SCRIPT)}


@pytest.fixture
def arrived(federation: Federation) -> Iterator[Browser]:
    """A browser that has the address and did not open it yet."""
    addresses: list[str] = []
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    def announce(url: str) -> None:
        addresses.append(url)
        loops.append(asyncio.get_running_loop())
        ready.set()

    console = Console(federation.registry("maastro"))
    thread = threading.Thread(target=lambda: asyncio.run(console.serve(0, announce, stop)))
    thread.start()
    assert ready.wait(10)
    yield Browser(addresses[0])
    if thread.is_alive():
        loops[0].call_soon_threadsafe(stop.set)
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def browser(arrived: Browser) -> Browser:
    return arrived.enter()


def asked(federation: Federation, images: dict[str, Path], **inputs: bytes) -> TaskHandle:
    named = {name.replace("_", "."): body for name, body in inputs.items()} or {"p.json": b'{"min_age": 60}'}
    task = federation.client().put("demo/nasty:1", ["maastro"], inputs=named, purpose=f"Study {XSS}")
    federation.run_once("maastro", images=images, rule=BOTH)
    return task


def held(federation: Federation, images: dict[str, Path], **inputs: bytes) -> TaskHandle:
    task = asked(federation, images, **inputs)
    decisions.approve(federation.registry("maastro"), task.id, by="Jansen")
    federation.run_once("maastro", images=images, rule=BOTH)
    assert task.status()[0].state == "awaiting_release"
    return task


# who gets in


def test_the_token_opens_one_session_and_is_void_then(arrived: Browser) -> None:
    arrived.enter()
    assert arrived.get("/").status_code == 200
    again = requests.get(arrived.url)
    assert (again.status_code, "used already" in again.text) == (403, True)
    assert "Set-Cookie" not in again.headers


@pytest.mark.parametrize("token", ["", "x", "ü" * 43, "a" * 100_000])
def test_a_guessed_token_opens_nothing_and_spends_nothing(arrived: Browser, token: str) -> None:
    assert requests.get(f"{arrived.base}/start", params={"token": token[:4000]}).status_code == 403
    arrived.enter()


def test_without_the_cookie_there_is_nothing_to_see(browser: Browser) -> None:
    for path in ("/", "/health", "/audit", "/audit/check", "/run/01KAMV3ZR5F2J7Q8XG4M1W9ABC", "/style.css", "/nothing"):
        for cookies in ({}, {f"ptm-{urlsplit(browser.url).port}": "x" * 43}):
            answer = requests.get(browser.base + path, cookies=cookies)
            assert (answer.status_code, "maastro-1" in answer.text) == (403, False)
    assert requests.post(browser.base + "/end", headers={"Origin": browser.origin}).status_code == 403


def test_the_cookie_is_strict_for_this_path_and_no_script_sees_it(arrived: Browser) -> None:
    cookie = requests.get(arrived.url, allow_redirects=False).headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", f"Path={urlsplit(arrived.base).path}/"} <= set(cookie.split("; "))


@pytest.mark.parametrize("host", ["evil.example", "localhost", "127.0.0.1", "127.0.0.1:1", ""])
def test_a_rebound_name_is_refused_with_the_right_cookie_and_cannot_spend_the_token(arrived: Browser, host: str) -> None:
    assert requests.get(arrived.url, headers={"Host": host}).status_code == 403
    arrived.enter()
    assert arrived.get("/", Host=host).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", None])
def test_another_sites_form_decides_nothing(
    federation: Federation, images: dict[str, Path], browser: Browser, origin: str | None
) -> None:
    task = asked(federation, images)
    form = browser.fields(f"/run/{task.id}") | {"what": "approve", "by": "Mallory"}
    headers = {"Origin": origin} if origin else {}
    assert browser.http.post(f"{browser.base}/run/{task.id}", data=form, headers=headers).status_code == 403
    assert len(decisions.pending(federation.registry("maastro"))) == 1


def test_a_request_that_the_browser_marks_as_another_sites_is_refused(browser: Browser) -> None:
    for value in ("cross-site", "same-site"):
        assert browser.get("/", **{"Sec-Fetch-Site": value}).status_code == 403


@pytest.mark.parametrize("csrf", [None, "", "x" * 43])
def test_a_form_without_the_sessions_token_decides_nothing(
    federation: Federation, images: dict[str, Path], browser: Browser, csrf: str | None
) -> None:
    task = asked(federation, images)
    assert browser.decide(task.id, "approve", csrf=csrf).status_code == 403
    assert len(decisions.pending(federation.registry("maastro"))) == 1


def test_a_form_of_another_kind_or_without_end_is_refused(browser: Browser) -> None:
    assert browser.http.post(f"{browser.base}/end", json={}, headers={"Origin": browser.origin}).status_code == 415
    assert browser.post("/end", {"csrf": "x" * 1_000_000}).status_code == 413
    assert browser.get("/").status_code == 200


def test_nobody_gets_in_after_the_idle_time_and_use_keeps_it_open() -> None:
    now = [0.0]
    door = Door(lambda: now[0], idle_s=60)
    session = door.enter(door.token)
    assert session is not None
    for _ in range(3):
        now[0] += 59
        assert door.find(session.cookie) is session
    now[0] += 61
    assert door.find(session.cookie) is None
    assert door.over
    unused = Door(lambda: now[0], idle_s=60)
    now[0] += 61
    assert unused.enter(unused.token) is None


def test_the_page_ends_with_its_button(browser: Browser) -> None:
    assert "closed" in browser.post("/end", dict(browser.fields("/"))).text
    deadline = time.monotonic() + 10
    with pytest.raises(requests.ConnectionError):
        while time.monotonic() < deadline:
            assert requests.get(f"{browser.base}/", cookies=browser.http.cookies).status_code == 403
            time.sleep(0.1)


def test_every_answer_forbids_scripts_frames_foreign_assets_and_keeping(browser: Browser) -> None:
    for answer in (browser.get("/"), browser.get("/nothing"), requests.get(browser.base + "/"), browser.get("/style.css")):
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "form-action 'self'" in policy
        assert "script-src" not in policy and "unsafe" not in policy
        assert (answer.headers["Cache-Control"], answer.headers["X-Content-Type-Options"]) == ("no-store", "nosniff")


# what it shows


def test_what_waits_is_shown_with_its_inputs_and_a_script_in_the_purpose_stays_text(
    federation: Federation, images: dict[str, Path], browser: Browser
) -> None:
    task = asked(federation, images)
    overview, run = browser.get("/").text, browser.get(f"/run/{task.id}").text
    for page in (overview, run):
        check_harmless(page)
        assert "Study &lt;script&gt;" in page
    assert "min_age&#34;: 60" in run
    assert decisions.find(federation.registry("maastro"), task.id).bound_to in run


def test_hostile_outputs_are_shown_as_text_or_not_at_all(
    federation: Federation, images: dict[str, Path], browser: Browser
) -> None:
    task = held(federation, images, plot_png=png())
    page = browser.get(f"/run/{task.id}").text
    check_harmless(page)
    assert "\x1b" not in page and "\u202e" not in page
    assert "b&amp;lt;i&gt;&#39;onx=&#39;1.txt" in page
    assert "<td>&lt;script&gt;" in page
    (picture,) = [a["src"] for tag, a in Tags(page).found if tag == "img"]
    answer = browser.http.get(browser.origin + str(picture))
    assert (answer.content, answer.headers["Content-Type"]) == (png(), "image/png")
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_huge_outputs_are_cut_and_the_page_says_so(federation: Federation, images: dict[str, Path], browser: Browser) -> None:
    task = held(federation, images)
    page = browser.get(f"/run/{task.id}").text
    assert len(page) < 600_000
    assert page.count("There is more than is shown here") == 2


def test_files_that_were_changed_since_are_not_shown_and_not_released(
    federation: Federation, images: dict[str, Path], browser: Browser, tmp_path: Path
) -> None:
    task = held(federation, images)
    folder = decisions.find(federation.registry("maastro"), task.id).folder
    assert folder is not None
    (folder / "note.txt").write_text("another text altogether")
    (tmp_path / "secret").write_text("root:x:0")
    (folder / "page.html").unlink()
    (folder / "page.html").symlink_to(tmp_path / "secret")
    (folder / "more.txt").write_text("x")
    page = browser.get(f"/run/{task.id}").text
    assert "another text altogether" not in page and "root:x:0" not in page
    assert "somebody changed it" in page and "more.txt" in page
    assert browser.decide(task.id, "release").status_code == 409


def test_the_audit_log_is_shown_and_a_script_in_it_stays_text(federation: Federation, browser: Browser) -> None:
    log = Audit(federation.home("maastro").audit)
    log.record("trouble", said=XSS)
    log.close()
    page = browser.get("/audit").text
    check_harmless(page)
    assert "trouble" in page and "&lt;script&gt;" in page


def test_a_mistake_in_the_policy_and_a_dead_worker_are_on_the_health_page(
    federation: Federation, images: dict[str, Path], browser: Browser
) -> None:
    asked(federation, images)
    federation.home("maastro").policy.write_text(f"[[allow]]\nimagges = ['{XSS[:20]}']\n")
    page = browser.get("/health").text
    check_harmless(page)
    assert "unknown key imagges (did you mean images?)" in page
    assert "maastro-1" in page and "stopped" in page and "valid until" in page


# what it decides


def test_approve_withhold_one_file_and_release_the_rest(
    federation: Federation, images: dict[str, Path], browser: Browser, tmp_path: Path
) -> None:
    task = asked(federation, images)
    assert "approved" in browser.decide(task.id, "approve").text
    federation.run_once("maastro", images=images, rule=BOTH)
    kept = browser.decide(task.id, "withhold-files", file=["huge.txt", "huge.csv"])
    assert kept.text.count(">withheld<") == 2
    assert "released" in browser.decide(task.id, "release").text
    federation.run_once("maastro", images=images, rule=BOTH)
    (result,) = task.results(timeout=0, folder=tmp_path / "out")
    assert result.state == "completed"
    assert "note.txt" in result.files and not {"huge.txt", "huge.csv"} & set(result.files)
    assert [(d.what, d.by) for d in result.saved.result.decided_by] == [
        ("approved", "J. Jansen"),
        ("withheld", "J. Jansen"),
        ("released", "J. Jansen"),
    ]


@pytest.mark.parametrize(("start", "what", "says"), [(asked, "deny", "denied by"), (held, "withhold", "withheld by")])
def test_a_no_ends_the_run_and_the_researcher_reads_why(
    federation: Federation,
    images: dict[str, Path],
    browser: Browser,
    tmp_path: Path,
    start: Callable[..., TaskHandle],
    what: str,
    says: str,
) -> None:
    task = start(federation, images)
    assert browser.decide(task.id, what, reason=" ").status_code == 409
    assert browser.decide(task.id, what, by="").status_code == 409
    assert browser.decide(task.id, what).status_code == 200
    federation.run_once("maastro", images=images, rule=BOTH)
    (result,) = task.results(timeout=0, folder=tmp_path / "out")
    assert result.state == "rejected"
    assert says in (result.reason or "") and "study 12" in (result.reason or "")


@pytest.mark.parametrize("expect", ["", "sha256:" + "0" * 64])
def test_nothing_is_decided_that_was_not_looked_at(
    federation: Federation, images: dict[str, Path], browser: Browser, expect: str
) -> None:
    task = asked(federation, images)
    assert browser.decide(task.id, "approve", expect=expect).status_code == 409
    assert len(decisions.pending(federation.registry("maastro"))) == 1


def test_the_form_is_bound_to_the_tasks_own_bytes_not_to_the_image_alone(
    federation: Federation, images: dict[str, Path], browser: Browser
) -> None:
    """The same id and image with other inputs is another thing to look at."""
    task = asked(federation, images)
    waiting = decisions.find(federation.registry("maastro"), task.id)
    assert browser.fields(f"/run/{task.id}")["expect"] == f"{waiting.asked.task_sha256} {waiting.bound_to}"
    assert browser.decide(task.id, "approve", expect=f"{'0' * 64} {waiting.bound_to}").status_code == 409


@pytest.mark.parametrize("what", ["release", "withhold"])
def test_ticked_files_and_another_button_is_asked_about(
    federation: Federation, images: dict[str, Path], browser: Browser, what: str
) -> None:
    task = held(federation, images)
    answer = browser.decide(task.id, what, file="huge.txt")
    assert (answer.status_code, "ticked" in answer.text) == (409, True)
    assert len(decisions.pending(federation.registry("maastro"))) == 1


def test_the_return_key_presses_no_button_that_decides(federation: Federation, images: dict[str, Path], browser: Browser) -> None:
    """A form's first button is its default; this one's is off (HTML, implicit submission)."""
    task = asked(federation, images)
    form = re.search(r'<form id="decide".*?</form>', browser.get(f"/run/{task.id}").text, re.DOTALL)
    assert form is not None
    first = next(attributes for tag, attributes in Tags(form[0]).found if tag == "button")
    assert "disabled" in first


# previews


def test_only_what_begins_like_a_picture_is_one(tmp_path: Path) -> None:
    jpeg = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x0b\x08\x00\x10\x00\x20\x03" + b"\0" * 20
    for name, body, kind in [
        ("a.png", png(), "image"),
        ("a.csv", png(), "image"),
        ("a.jpg", jpeg, "image"),
        ("cut.jpg", jpeg[:12], "none"),
        ("bomb.png", png(60_000, 60_000), "none"),
        ("cut.png", png()[:20], "none"),
        ("a.gif", b"GIF89a\x00\xff", "none"),
        ("a.svg", b"<svg/>", "text"),
        ("big.png", png() + bytes(5_000_000), "none"),
    ]:
        (tmp_path / name).write_bytes(body)
        assert preview(tmp_path / name, Images()).kind == kind, name


def test_previews_are_bounded_and_say_that_they_are_cut(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(("7," * 300 + "\n") * 300)
    (tmp_path / "cell.csv").write_text('"' + "x" * 200_000)
    (tmp_path / "a.txt").write_text("é" * 100_000)
    table, cell, text = (preview(tmp_path / name, Images()) for name in ("a.csv", "cell.csv", "a.txt"))
    assert (len(table.rows), len(table.rows[0]), table.cut) == (MAX_ROWS, MAX_COLUMNS, True)
    assert (sum(len(c) for row in cell.rows for c in row) <= 200, cell.cut) == (True, True)
    assert (len(text.text), text.cut) == (MAX_TEXT, True)


def test_pictures_of_pages_long_gone_are_forgotten() -> None:
    images = Images()
    first = images.keep("image/png", b"first")
    assert images.get(first) is not None
    for number in range(MAX_IMAGES):
        images.keep("image/png", str(number).encode())
    assert images.get(first) is None
