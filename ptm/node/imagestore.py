"""The images of a worker on its engine: pulled and pinned before a run, and removed when they were not used for long.

Which images this worker pulled, and when each was last used, stands in `images.json` in the node's home. Only those are ever
removed, and only by the names under which they were pulled: an image that was there before, or that somebody gave a name of
their own, stays.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from ptm.config import Home, NodeConfig
from ptm.errors import RunnerError
from ptm.files import write_atomic
from ptm.image import ImageRef
from ptm.node.docker import SEE_LOG, Engine, EngineAway, EngineRefused, Missing
from ptm.node.images import engine_name, pull_trouble, repo_digest
from ptm.node.runner import Interrupt, ResolvedImage

log = logging.getLogger("ptm.node")
Event = dict[str, Any]
Ask = Callable[[], Interrupt | None]
Record = dict[str, dict[str, str]]

PULL_STALL_S = 600
"""How long a pull may go without any sign of progress."""


class Images:
    """Safe to call from several threads."""

    def __init__(self, engine: Engine, config: NodeConfig, home: Home) -> None:
        self._engine, self._config = engine, config
        self._path = home.path / "images.json"
        self._lock = threading.Lock()

    def resolve(self, image: ImageRef, interrupted: Ask = lambda: None) -> ResolvedImage:
        """`interrupted` ends the wait for a pull with a `RunnerError`."""
        name, reference = self._reference(image)
        if self._config.pull == "never":
            return self._local(image, name, reference)
        before = self._engine.image_ids()
        pulled = self._pull(image, name, interrupted)
        found = self._engine.image(f"{name}@{pulled}" if pulled else reference)
        digest = pulled or repo_digest(found.get("RepoDigests") or (), name, image.digest)
        self._note(str(found["Id"]), name, new=found["Id"] not in before)
        return _resolved(image, digest, str(found["Id"]))

    def local_or_pulled(self, image: ImageRef) -> str:
        """The handle of an image of the site's own, pulled only if it is not there."""
        try:
            return self._local(image, *self._reference(image)).handle
        except EngineAway:
            raise
        except RunnerError:
            return self.resolve(image).handle

    def sweep(self, now: datetime) -> None:
        """Remove what this worker pulled and has not used for `keep_images_days`."""
        if self._config.keep_images_days is None:
            return
        oldest = now - timedelta(days=self._config.keep_images_days)
        with self._lock:
            record = self._read()
            for identity, entry in list(record.items()):
                if datetime.fromisoformat(entry["used"]) <= oldest and self._remove(identity, entry["name"]):
                    del record[identity]
                    self._write(record)

    def _remove(self, identity: str, name: str) -> bool:
        """Whether the image is gone, or at least everything that this worker has to do with it."""
        try:
            found = self._engine.image(identity)
            names = [*(found.get("RepoTags") or ()), *(found.get("RepoDigests") or ())]
            for reference in names:
                if reference.partition("@")[0] == name or reference.rpartition(":")[0] == name:
                    self._engine.remove_image(reference)
        except Missing:
            return True
        except EngineRefused as e:
            log.info("the image %s stays for now: %s", identity, e.said)
            return False
        log.info("removed the image %s (%s), not used for %s days", name, identity, self._config.keep_images_days)
        return True

    def _note(self, identity: str, name: str, *, new: bool) -> None:
        with self._lock:
            record = self._read()
            if new or identity in record:
                record[identity] = {"name": name, "used": datetime.now(UTC).isoformat()}
                self._write(record)

    def _read(self) -> Record:
        """An unreadable record is none: its images stay."""
        try:
            return dict(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as e:
            log.warning("%s cannot be read, so the images in it stay for ever: %s", self._path, e)
            return {}

    def _write(self, record: Record) -> None:
        try:
            write_atomic(self._path, json.dumps(record, indent=2).encode(), mode=0o600)
        except OSError as e:
            log.warning("%s cannot be written: %s", self._path, e.strerror)

    def _reference(self, image: ImageRef) -> tuple[str, str]:
        """The engine's name for an image, without and with the tag or digest."""
        name = engine_name(image, self._config.mirrors)
        return name, f"{name}@{image.digest}" if image.digest else f"{name}:{image.tag}"

    def _local(self, image: ImageRef, name: str, reference: str) -> ResolvedImage:
        """An image that the engine has already; one that never saw a registry goes by its id."""
        try:
            found = self._engine.image(reference)
        except Missing as e:
            found = self._engine_id(image, e)
        identity = str(found["Id"])
        digests = [*(found.get("RepoDigests") or ()), f"@{identity}"]
        return _resolved(image, repo_digest(digests, name, image.digest), identity)

    def _engine_id(self, image: ImageRef, missing: Missing) -> dict[str, Any]:
        """An image whose digest is the engine's own id of it."""
        with suppress(Missing):
            if image.digest is not None:
                return self._engine.image(image.digest)
        raise RunnerError(
            f"the site has no image {image.label} and does not pull", hint='pull = "never" in its node.toml'
        ) from missing

    def _pull(self, image: ImageRef, name: str, interrupted: Ask) -> str | None:
        """Pull, and return the digest of what came if the engine tells. In a thread of its own, so that a stuck pull can be
        left."""
        events: queue.Queue[Event | RunnerError | None] = queue.Queue()
        threading.Thread(target=self._pull_into, args=(image, name, events), name="ptm-pull", daemon=True).start()
        digest = None
        for event in _until_stalled(image.label, events, interrupted):
            if "error" in event:
                raise _pull_failed(image, name, str(event["error"]))
            status = str(event.get("status", ""))
            if status.startswith("Digest: sha256:"):
                digest = status.removeprefix("Digest: ")
        return digest

    def _pull_into(self, image: ImageRef, name: str, events: queue.Queue[Event | RunnerError | None]) -> None:
        try:
            for event in self._engine.pull(name, image.digest or image.tag or "latest"):
                events.put(event)
            events.put(None)
        except EngineRefused as e:
            events.put(_pull_failed(image, name, e.said))
        except RunnerError as e:
            events.put(e)


def _resolved(image: ImageRef, digest: str | None, handle: str) -> ResolvedImage:
    if digest is None:
        raise RunnerError(f"the engine does not tell the digest of {image.label}", hint=SEE_LOG)
    if image.digest is not None and digest != image.digest:
        raise RunnerError(f"the engine has another image for {image.label} than the digest that was asked for", hint=SEE_LOG)
    return ResolvedImage(digest, handle)


def _until_stalled(label: str, events: queue.Queue[Event | RunnerError | None], interrupted: Ask) -> Iterator[Event]:
    """The events of a pull up to its end; an error if it fails, comes to a halt or is interrupted."""
    seen = time.monotonic()
    while True:
        try:
            event = events.get(timeout=0.5)
        except queue.Empty:
            event = {}
        if event is None:
            return
        if isinstance(event, RunnerError):
            raise event
        if interrupted() is not None:
            raise RunnerError(f"the pull of {label} was interrupted")
        if event:
            seen = time.monotonic()
            yield event
        elif time.monotonic() - seen > PULL_STALL_S:
            raise RunnerError(
                f"the pull of {label} made no progress for {PULL_STALL_S} s", hint="the site should look at its network"
            )


def _pull_failed(image: ImageRef, name: str, said: str) -> RunnerError:
    log.warning("pull of %s as %s: %s", image.label, name, said)
    return pull_trouble(image.label, said)
