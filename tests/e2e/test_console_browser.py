"""A steward with a real browser beside a real node: looks, approves, looks at the outputs, keeps one back and releases the rest.

With PTM_SCREENSHOTS=FOLDER the pages of the first run are kept as `console-*.png` (`make screenshots`)."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import CommandLine
from tests.federation import image_folder
from tests.node.test_console import png

SCRIPT = """#!/usr/bin/env python3
import os, pathlib
out, given = (pathlib.Path(os.environ[name]) for name in ("PTM_OUTPUT_DIR", "PTM_INPUT_DIR"))
(out / "survival.csv").write_text("arm,n,events,median_months\\nA,112,64,18.4\\nB,109,51,23.1\\n")
(out / "rare.csv").write_text("stage,n\\nIV,3\\n")
(out / "curve.png").write_bytes((given / "curve.png").read_bytes())
(out / "summary.html").write_text("<script>document.title = 'owned'</script><b>Two arms</b>")
print("221 patients in two arms")
"""
POLICY = """
[[allow]]
images = ['demo/.*:.*']
approval = "manual"
release = "manual"
outputs = { min_cell = 10 }
"""
Chromium = Callable[..., AbstractContextManager[Any]]


class Place:
    """A registry in a folder, a researcher, a site whose node runs, and the site's page."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ptm = folder, CommandLine(folder)

    def __call__(self, home: str, *words: str) -> str:
        return self.ptm.ok("--home", str(self.folder / home), *words)

    def put(self) -> str:
        return self(
            "alice", "task", "put", "--image", "demo/survival:1", "--site", "maastro", "--input", "params.json",
            "--input", "curve.png", "--purpose", "Survival by treatment arm", "--expires", "1d",
        )  # fmt: skip

    def reaches(self, task: str, state: str) -> None:
        wait_for(lambda: json.loads(self("alice", "task", "show", task, "--json"))["states"][0]["state"] == state)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return self.ptm.start("--home", str(self.folder / "maastro"), "node", *words)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    (tmp_path / "params.json").write_text('{"arms": ["A", "B"], "min_age": 60}\n')
    (tmp_path / "curve.png").write_bytes(curve())
    url = f"file://{tmp_path}/registry"
    root = place("coord", "registry", "create", url)
    for name, kind in (("maastro", "site"), ("alice", "researcher")):
        place(name, "member", "request", "--name", name, "--kind", kind, "-o", f"{name}.json")
    place("coord", "member", "admit", "maastro.json", "alice.json")
    for name in ("maastro", "alice"):
        place(name, "join", url, "--root", root)
    image = image_folder(tmp_path / "survival", SCRIPT)
    place("maastro", "node", "init", "--runner", "process", "--unsafe-no-sandbox", "--process-image", f"demo/survival:1={image}")
    (tmp_path / "maastro" / "policy.toml").write_text(POLICY)
    settings = tmp_path / "maastro" / "node.toml"
    settings.write_text(settings.read_text().replace("poll_s = 5.0", "poll_s = 0.2\nlease_s = 8.0"))
    children = [place.start("watch"), place.start("console")]
    try:
        yield place
    finally:
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()


@pytest.fixture
def address(place: Place) -> str:
    """What `ptm node console` printed."""
    (log,) = place.folder.glob("*console*.log")
    wait_for(lambda: "/start?token=" in log.read_text())
    found = re.search(r"http://127\.0\.0\.1:\S+", log.read_text())
    assert found is not None
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("javascript", [True, False], ids=["with-javascript", "without-javascript"])
def test_a_steward_approves_previews_and_releases_a_run(place: Place, address: str, chromium: Chromium, javascript: bool) -> None:
    task = place.put()
    place.reaches(task, "awaiting_approval")
    with chromium(javascript=javascript) as browser:
        browser.get("data:text/html,<title>off</title><script>document.title = 'on'</script>")
        assert browser.title == ("on" if javascript else "off")
        browser.get(address)
        assert address.rpartition("/start")[0] + "/" == browser.current_url
        keep(browser, "overview", javascript)
        press(browser, "a", "Look")
        assert '"min_age": 60' in text(browser)
        keep(browser, "approval", javascript)
        fill(browser, by="J. Jansen", reason="study 12")
        press(browser, "button", "Approve")
        assert f"approved {task}, by J. Jansen" in text(browser)

        place.reaches(task, "awaiting_release")
        browser.refresh()
        press(browser, "a", "Look")
        assert "row 2, column 2 has 3, below 10" in text(browser)
        assert [cell.text for cell in browser.find_elements("xpath", "//section[contains(., 'survival.csv')]//td")][-4:] == [
            "B", "109", "51", "23.1",
        ]  # fmt: skip
        (picture,) = browser.find_elements("css selector", "img")
        assert picture.size["width"] > 100
        assert "<script>document.title = 'owned'</script>" in text(browser)
        assert browser.title != "owned"
        keep(browser, "release", javascript)
        browser.find_element("css selector", "input[type=checkbox][value='rare.csv']").click()
        fill(browser, by="J. Jansen", reason="small counts")
        press(browser, "button", "Withhold the ticked files")
        assert f"withheld 1 file(s) of {task}" in text(browser)
        press(browser, "button", "Release the rest")
        assert f"released {task}, by J. Jansen" in text(browser)

        place.reaches(task, "completed")
        press(browser, "a", "Audit log")
        assert "released" in text(browser)
        keep(browser, "audit", javascript)
        press(browser, "a", "Check that nothing was changed or cut off")
        assert "Nothing was changed or cut off." in text(browser)
        press(browser, "a", "Health")
        wait_for(lambda: browser.refresh() or " alive " in text(browser))
        keep(browser, "health", javascript)
        complaints = [entry["message"] for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
        assert complaints == []

    place("alice", "results", "fetch", task, "-o", "out")
    assert sorted(path.name for path in (place.folder / "out" / "maastro").iterdir()) == [
        "curve.png", "log.txt", "result.json", "summary.html", "survival.csv", "task.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_second_browser_with_the_same_address_gets_nothing(place: Place, address: str, chromium: Chromium) -> None:
    with chromium() as first:
        first.get(address)
        assert "Waits for a person" in text(first)
        with chromium() as second:
            second.get(address)
            assert "used already" in text(second)
            second.get(first.current_url)
            assert "no session" in text(second)
        first.refresh()
        assert "Waits for a person" in text(first)


def text(browser: Any) -> str:
    return str(browser.find_element("css selector", "body").text)


def press(browser: Any, tag: str, words: str) -> None:
    """Click on what has these words, and wait until another page is there."""
    before = browser.find_element("css selector", "main")
    browser.find_element("xpath", f"//{tag}[normalize-space()='{words}']").click()
    wait_for(lambda: any(found != before for found in browser.find_elements("css selector", "main")))


def fill(browser: Any, **values: str) -> None:
    for name, value in values.items():
        box = browser.find_element("css selector", f"input[name={name}]")
        box.clear()
        box.send_keys(value)


def keep(browser: Any, name: str, wanted: bool) -> None:
    """The whole page as a picture for the docs."""
    folder = os.environ.get("PTM_SCREENSHOTS")
    if not folder or not wanted:
        return
    height = browser.execute_script("return document.querySelector('main').getBoundingClientRect().bottom + scrollY")
    clip = {"x": 0, "y": 0, "width": 1200, "height": min(height, 2000), "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    (Path(folder) / f"console-{name}.png").write_bytes(base64.b64decode(taken["data"]))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def curve() -> bytes:
    """A picture of two falling curves, drawn without a library."""
    width, height = 480, 240
    rows = [bytearray(b"\xff" * 3 * width) for _ in range(height)]
    for rate, colour in ((2.2, b"\xb4\x23\x18"), (1.3, b"\x1a\x5f\xb4")):
        steps = [int((height - 20) * (1 - math.exp(-rate * step / 20))) + 10 for step in range(21)]
        for x in range(width):
            step, start = divmod(x, width // 20)
            for y in range(steps[max(0, step - (start < 3))], steps[step] + 3):
                rows[y][3 * x : 3 * x + 3] = colour
    return png(width, height, b"".join(b"\0" + bytes(row) for row in rows))
