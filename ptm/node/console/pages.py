"""What the pages show and what their forms do: facts from the registry and the home in, HTML out. No HTTP in here.

Rules: every value is escaped, and control characters are shown as such. What is previewed and what the form then decides are
the same thing: the form carries `Waiting.seen` of the very question that was shown, and nothing is decided if another waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ptm.audit import in_words, newest
from ptm.config import NodeConfig, read_toml
from ptm.errors import PtmError, UsageError
from ptm.model import Decision
from ptm.node import decisions
from ptm.node.console.health import Beats, health, running
from ptm.node.console.preview import Images, Preview, preview, visible
from ptm.node.decisions import Waiting
from ptm.node.spool import look_folder
from ptm.node.terms import HeldList
from ptm.node.witness import verify_against_registry
from ptm.registry import Registry

HERE = Path(__file__).parent
MAX_INPUT_BYTES = 64 * 1024 * 1024
"""Inputs larger than this together are not decrypted for a page."""
MAX_SHOWN = 300_000
"""About so many characters of previews are on one page."""
MAX_ENTRIES = 200
MAX_LOG_BYTES = 64 * 1024 * 1024
"""The entries of one task are looked for in so much of the log's end."""


def _finalize(value: object) -> object:
    return visible(value) if type(value) is str else value


def _place(folder: Path) -> str:
    """Where it lies, from the account's own home where it lies in that."""
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def _when(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M} UTC"


def _size(value: int) -> str:
    return f"{value} B" if value < 10_000 else f"{value / 1000:.0f} kB" if value < 10_000_000 else f"{value / 1_000_000:.0f} MB"


class Pages:
    """Each method is one page's HTML, or one form's deed. They wait for the registry: call them from a thread."""

    def __init__(self, registry: Registry, beats: Beats) -> None:
        self.registry, self.beats, self.images = registry, beats, Images()
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"when": _when, "size": _size, "place": _place}

    def render(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(site=self.registry.me, **values)

    def overview(self, **frame: Any) -> str:
        state = health(self.registry, self.beats)
        runs, queued = running(self.registry, state.workers)
        waiting = decisions.pending(self.registry)
        more = queued if queued > decisions.MAX_LOOKED else 0
        queued = max(0, queued - sum(one.what in ("approval", "data") for one in waiting))
        return self.render("overview.html", health=state, runs=runs, queued=queued, more=more, waiting=waiting, **frame)

    def health(self, **frame: Any) -> str:
        return self.render("health.html", health=health(self.registry, self.beats), **frame)

    def run(self, task_id: str, **frame: Any) -> str:
        waiting = decisions.find(self.registry, task_id)
        files, note = self._inputs(waiting) if waiting.held is None else self._held(waiting.held, waiting)
        return self.render("run.html", waiting=waiting, task=waiting.task, files=files, files_note=note, **frame)

    def audit(self, task_id: str | None, **frame: Any) -> str:
        path = self.registry.home.audit
        there = path.exists()
        found, more = newest(path, MAX_ENTRIES, task_id, MAX_LOG_BYTES) if there else ([], False)
        lines = [(entry, in_words(entry.model_copy(update={"task": None})).split(" ", 2)[2:]) for entry in found]
        return self.render("audit.html", lines=lines, task=task_id, most=MAX_ENTRIES, there=there, more=more, **frame)

    def check_audit(self, **frame: Any) -> str:
        home = self.registry.home
        worker = read_toml(home.node, NodeConfig).worker
        report, seen, others = verify_against_registry(self.registry, home.audit, worker)
        return self.render("check.html", report=report, seen=seen, others=others, **frame)

    def decide(self, task_id: str, what: str, *, by: str, reason: str, files: Sequence[str], expect: str) -> Decision:
        """What a form asks for. `UsageError` for one that says two things, or not what was looked at."""
        if not expect:
            raise UsageError("the form does not say what was looked at", hint="open the run's page again")
        if not by.strip():
            raise UsageError("nobody's name was given", hint="go back and fill in who decides")
        if what in ("deny", "withhold", "withhold-files") and not reason.strip():
            raise UsageError("no reason was given", hint="go back and say why; the researcher reads it")
        if (what == "withhold-files") != bool(files):
            raise UsageError(
                "no file is ticked" if not files else "files are ticked, and another button was pressed",
                hint="to keep single files back, tick them and press “Withhold the ticked files”",
            )
        who: Mapping[str, str] = {"by": by.strip(), "reason": reason.strip(), "expect": expect}
        match what:
            case "approve":
                return decisions.approve(self.registry, task_id, **who)
            case "deny":
                return decisions.deny(self.registry, task_id, **who)
            case "release":
                return decisions.release(self.registry, task_id, **who).decision
            case "withhold" | "withhold-files":
                return decisions.withhold(self.registry, task_id, files=tuple(files), **who)
        raise UsageError("the form asks for nothing that can be decided", hint="open the run's page again")

    def _held(self, held: HeldList, waiting: Waiting) -> tuple[list[Preview], str]:
        listed = held.files
        if waiting.folder is None:
            note = f"The files lie with worker {waiting.asked.worker}, not on this machine: look at them there."
            return [Preview(file.name, file.size, "none", file.sha256) for file in listed], note
        folder = waiting.folder
        found = _within_bounds([preview(folder / file.name, self.images, file) for file in listed])
        more = _names(folder) - {file.name for file in listed}
        note = f"In the folder lies what the run did not leave: {', '.join(sorted(more)[:5])}" if more else ""
        return found, note

    def _inputs(self, waiting: Waiting) -> tuple[list[Preview], str]:
        """Decrypted into a private folder that is gone before the page is sent."""
        see = f"`ptm node show {waiting.task.id} --inputs FOLDER` writes them"
        if sum(file.size for file in waiting.task.inputs) > MAX_INPUT_BYTES:
            files = [Preview(file.name, file.size, "none") for file in waiting.task.inputs]
            return files, f"The inputs are too large for this page: {see}."
        with look_folder(self.registry.home) as scratch:
            try:
                paths = decisions.write_inputs(self.registry, waiting, scratch / "inputs")
            except PtmError as e:
                return [], f"The inputs cannot be read: {e}"
            return _within_bounds([preview(path, self.images) for path in paths]), ""


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()


def _within_bounds(files: list[Preview]) -> list[Preview]:
    """As many previews as one page bears; of the rest name, size and digest."""
    shown, pictures, bounded = 0, 0, []
    for file in files:
        shown += len(file.text) + sum(len(cell) + 20 for row in file.rows for cell in row)
        pictures += file.kind == "image"
        if (shown > MAX_SHOWN or pictures > 16) and file.kind in ("text", "table", "image"):
            file = Preview(file.name, file.size, "none", file.sha256, note="no room left on this page")
        bounded.append(file)
    return bounded
