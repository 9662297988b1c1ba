"""The drop folder: what is put into it is sent to a trusted party's collection.

    FOLDER/NAME               dropped; taken once nobody has written to it for a while
    FOLDER/sending/NAME       on its way
    FOLDER/sent/NAME          with the party; stays here if the party accepts it
    FOLDER/failed/NAME        could not be sent, or the party refused it: NAME.reason.txt says why

Rules: every file is a transfer of its own. Only regular files at the top are taken: not links, folders or pipes, and not names
that programs give to what is not finished yet. An outage is no failure: the file stays in `sending/` and is tried again. Nothing
is written over: a second file of the same name is numbered.

Kill -9 at any moment: a file is in one of these places (for a moment under two names, of which the next start removes one).
Before anything of a transfer is announced, its id lies in `sending/.NAME.id`; whether the outbox has sent that id then tells
whether the file still is to be sent. Beside a file in `sent/` that is not answered yet lies `.NAME.id`, too.

What this does not do: read a file (`ptm.trustedparty.send` does), or empty `sent/` and `failed/`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ptm.complaint import NAME_PATTERN
from ptm.errors import AlreadyExists, NotFound, PtmError, TrustError, Unreachable, UsageError, VerificationError
from ptm.files import hold_lock, write_atomic
from ptm.layout import is_task_id
from ptm.pauses import Pauses
from ptm.registry import Registry
from ptm.store.base import Progress
from ptm.store.changes import Alarm
from ptm.store.changes_file import FolderWatch
from ptm.transfer import Format
from ptm.trustedparty.dropfiles import Look, as_lines, could_be_replaced, files_in, has_writer, journal_of, look_at, move
from ptm.trustedparty.outbox import Outbox, Plan
from ptm.trustedparty.send import Source, cancel, send
from ptm.trustedparty.sent import wait_for_answer
from ptm.trustedparty.sources import check_party
from ptm.trustedparty.uploading import Stage, Stages

log = logging.getLogger("ptm.dropfolder")
SETTLE_S = 2.0
LOOK_S = 0.25
POLL_S = 5.0
MAX_NAME_BYTES = 200
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".download", "~")


class DropFolder:
    """A folder whose files go to one collection of one party. `watch` returns when `stop` is set, or, with `once`, when all that
    is there was looked after."""

    def __init__(
        self,
        folder: Path,
        registry: Registry,
        *,
        to: str,
        collection: str,
        format: Format = "age",
        settle_s: float = SETTLE_S,
        stages: Stages | None = None,
    ) -> None:
        self._folder, self._registry, self._outbox = folder.absolute(), registry, Outbox(registry.home.outbox)
        self._to, self._collection, self._format, self._settle_s, self._stages = to, collection, format, settle_s, stages
        self._sending, self._sent, self._failed = (self._folder / name for name in ("sending", "sent", "failed"))
        self._looks: dict[str, tuple[Look, float]] = {}
        self._pauses, self._answers = Pauses[str](), Pauses[str]()
        self._said: set[str] = set()
        self._failures = 0
        self._alarm = Alarm()

    def watch(self, stop: threading.Event, *, once: bool = False) -> None:
        """`UsageError` if the folder or the party is none, or another process watches the folder; with `once` also `PtmError` if
        a file failed, or could not be sent for now."""
        self._make()
        try:
            check_party(self._registry, self._to)
        except Unreachable as e:
            if once:
                raise
            self._say(f"{e}; trying again")
        with self._alone(), contextlib.closing(FolderWatch(self._folder, (), self._alarm.ring, recursive=False)):
            while not stop.is_set():
                unsettled = self._round(stop)
                if once and not unsettled:
                    break
                self._alarm.wait(LOOK_S if unsettled else POLL_S, stop)
        left = len(self._pauses.failing())
        if once and (left or self._failures):
            hint = f"{self._failed} has the reasons" if self._failures else "run the same command again"
            raise PtmError(f"{self._failures} file(s) failed, {left} could not be sent for now", hint=hint)

    # the folder

    def _make(self) -> None:
        if not re.fullmatch(NAME_PATTERN, self._collection):
            raise UsageError(f"{self._collection!r} is not the name of a collection", hint="lower-case letters, digits and '-'")
        if not self._folder.is_dir():
            raise UsageError(f"{self._folder} is not a folder", hint="make it first")
        for folder, mode in ((self._sending, 0o700), (self._sent, 0o777), (self._failed, 0o777)):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode)
            if folder.is_symlink() or not folder.is_dir():
                raise UsageError(
                    f"{folder} is not a folder", hint="a drop folder needs the names sending, sent and failed for itself"
                )
        for folder in (self._folder, self._sending):
            if why := could_be_replaced(folder, add=folder == self._folder):
                raise UsageError(
                    f"what is in {folder} could be replaced by files of this account's that nobody dropped: {why}",
                    hint=f"`chown` it to this account, and `chmod {'+t' if folder == self._folder else '700'}` it",
                )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with hold_lock(self._sending / ".lock") as mine:
            if not mine:
                raise UsageError(f"another process watches {self._folder}", hint="one folder, one watch")
            yield

    def _round(self, stop: threading.Event) -> bool:
        """Look once at everything; True if a file is not settled yet."""
        for path in files_in(self._sending):
            if not stop.is_set():
                self._guarded(path.name, self._go_on)
        unsettled = False
        found = sorted(self._folder.iterdir())
        self._looks = {path.name: self._looks[path.name] for path in found if path.name in self._looks}
        for path in found:
            if stop.is_set() or path in (self._sending, self._sent, self._failed) or not self._may_be_sent(path):
                continue
            if not self._is_whole(path):
                unsettled = True
            elif not (self._sending / path.name).exists():
                self._guarded(path.name, self._take)
        for journal in sorted(self._sent.glob(".*.id")):
            if not stop.is_set():
                self._look_for_answer(journal)
        return unsettled

    def _guarded(self, name: str, act: Callable[[str], None]) -> None:
        """What goes wrong with one file is not another's affair; it is tried again."""
        if not self._pauses.due(name):
            return
        try:
            act(name)
        except (PtmError, OSError) as e:
            self._pauses.lengthen(name)
            self._say(f"{name}: {e}; trying again")
        else:
            self._pauses.forget(name)

    def _may_be_sent(self, path: Path) -> bool:
        """Whether this is a file to send, once it is whole; if it is something that never will be, that is said."""
        name = path.name
        if name.startswith(".") or name.lower().endswith(UNFINISHED):
            return False
        try:
            info = path.lstat()
        except FileNotFoundError:
            return False
        if stat.S_ISREG(info.st_mode) and len(os.fsencode(name)) <= MAX_NAME_BYTES:
            return True
        what = "a folder" if stat.S_ISDIR(info.st_mode) else "a link" if stat.S_ISLNK(info.st_mode) else "no regular file"
        self._say(
            f"{name}: not sent, left where it is: {'its name is too long' if stat.S_ISREG(info.st_mode) else f'it is {what}'}"
        )
        return False

    def _is_whole(self, path: Path) -> bool:
        """Whether nobody has changed a file for the settle time, nor has it open for writing as far as that can be told."""
        look, now = look_at(path), time.monotonic()
        before, since = self._looks.get(path.name, (None, now))
        if look is None or look != before:
            since = now
        if look is not None:
            self._looks[path.name] = (look, since)
        return look is not None and now - since >= self._settle_s and not has_writer(path)

    # sending

    def _take(self, name: str) -> None:
        """A whole file begins its way: from here on it has a place where nobody else writes."""
        self._journal(name).unlink(missing_ok=True)
        (self._folder / name).rename(self._sending / name)
        self._looks.pop(name, None)
        self._go_on(name)

    def _go_on(self, name: str) -> None:
        path = self._sending / name
        look = look_at(path)
        if look is None:
            self._fail(name, "it was replaced by something that is no regular file", None)
            return
        known = self._known(name)
        if known is None or not self._was_sent(known):
            begun = self._begun(path)
            if known is not None and begun is None:
                self._fail(name, f"transfer {known} was given up", "drop the file again to send it")
                return
            check_party(self._registry, begun.party if begun else self._to)
            try:
                known = self._send(path, begun)
            except UsageError as e:
                self._cannot(name, look, begun, e)
                return
            log.info("%s: sent as transfer %s", name, known)
        final = move(path, self._sent, known)
        self._journal(name).unlink(missing_ok=True)
        self._answers.forget(final)

    def _send(self, path: Path, begun: Plan | None) -> str:
        """Send a file; one that was begun as it was begun, whatever is asked for now. Its id is kept before it is announced."""
        name = path.name

        def stages(stage: Stage, total: int) -> Progress:
            if plan := self._begun(path):
                write_atomic(self._journal(name), plan.id.encode(), mode=0o600)
            return self._stages(stage, total) if self._stages else lambda moved: None

        sent = send(
            self._registry,
            self._outbox,
            [Source(begun.files[0].name if begun else name, path)],
            to=begun.party if begun else self._to,
            collection=begun.collection if begun else self._collection,
            format=begun.format if begun else self._format,
            purpose=begun.purpose if begun else "",
            stages=stages,
        )
        return sent.id

    def _cannot(self, name: str, look: Look, begun: Plan | None, error: UsageError) -> None:
        """It is the file's fault, unless another process sends it just now, or it changed meanwhile: then once more."""
        path = self._sending / name
        plan = self._begun(path)
        if plan is not None and self._outbox.is_held(plan.id):
            raise error
        if plan is not None:
            with contextlib.suppress(AlreadyExists):
                cancel(self._registry, self._outbox, plan.id)
        self._journal(name).unlink(missing_ok=True)
        changed = begun is not None and (look.size, look.modified_ns) != (begun.files[0].size, begun.files[0].modified_ns)
        if changed or look_at(path) != look:
            raise error
        self._fail(name, str(error), error.hint)

    def _begun(self, path: Path) -> Plan | None:
        """The transfer of this file that was begun and has not ended."""
        for plan, _ in self._outbox.unfinished():
            if [file.path for file in plan.files] == [path]:
                return plan
        return None

    def _was_sent(self, transfer_id: str) -> bool:
        """Whether it is announced, and the outbox is through with it."""
        if any(plan.id == transfer_id for plan, _ in self._outbox.unfinished()):
            return False
        try:
            self._outbox.sent_body(transfer_id)
        except NotFound:
            return False
        return True

    def _journal(self, name: str) -> Path:
        return journal_of(self._sending / name)

    def _known(self, name: str) -> str | None:
        try:
            text = self._journal(name).read_text(errors="replace")
        except FileNotFoundError:
            return None
        return text if is_task_id(text) else None

    def _fail(self, name: str, reason: str, hint: str | None) -> None:
        self._failures += 1
        log.warning("%s: failed: %s", name, reason)
        move(self._sending / name, self._failed, None, reason=as_lines(reason, hint))
        self._journal(name).unlink(missing_ok=True)

    # answers

    def _look_for_answer(self, journal: Path) -> None:
        """A file that the party accepts stays where it is; one that it refuses goes to those that failed."""
        name = journal.name.removeprefix(".").removesuffix(".id")
        if not self._answers.due(name):
            return
        if look_at(journal) is None:  # a pipe, say: nothing of ours
            return
        transfer_id = journal.read_text(errors="replace")
        try:
            receipt = wait_for_answer(self._registry, self._outbox, transfer_id, 0) if is_task_id(transfer_id) else None
        except NotFound:  # the outbox does not know it any more, so nobody will
            journal.unlink()
            return
        except (PtmError, OSError) as e:
            if isinstance(e, VerificationError) and not isinstance(e, TrustError):
                self._say(f"{name}: there is an answer to transfer {transfer_id} that is not to be believed: {e}")
            receipt = None
        if receipt is None:
            self._answers.lengthen(name)
            return
        if receipt.state == "refused" and (self._sent / name).exists():
            self._failures += 1
            log.warning("%s: %s refused transfer %s: %s", name, receipt.party, transfer_id, receipt.reason)
            reason = f"{receipt.party} refused transfer {transfer_id}: {receipt.reason}"
            move(self._sent / name, self._failed, None, reason=as_lines(reason, receipt.hint))
        else:
            log.info("%s: %s %s transfer %s", name, receipt.party, receipt.state, transfer_id)
        journal.unlink(missing_ok=True)
        self._answers.forget(name)

    def _say(self, text: str) -> None:
        if text not in self._said and len(self._said) < 1000:
            self._said.add(text)
            log.warning("%s", text)
