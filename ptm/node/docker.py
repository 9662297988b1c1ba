"""The API of Docker Engine, or of Podman's Docker-compatible socket (`DOCKER_HOST`), as the node uses it. The sole import of
`docker`.

Only old and plain calls are used, so that both engines have them. Every failure is a `RunnerError`, of a kind that says whether
to try again. What an engine said goes to the site's log and not into the error, for errors reach the researcher and an engine
names the paths and hosts of the site. What this does not do: decide anything.
"""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors
import requests
import urllib3.exceptions

from ptm.errors import RunnerError

log = logging.getLogger("ptm.node")
T = TypeVar("T")

CALL_S = 120
"""How long one answer of the engine may take."""
PATIENCE_S = 300
"""How long an engine that is away (a restart, an upgrade) is waited for."""
CHUNK = 1024 * 1024
SEE_LOG = "the site's log says what the engine said"


class EngineAway(RunnerError):
    """No answer, or one that broke off: the same call may work in a while."""

    hint = "start Docker or Podman's socket and set DOCKER_HOST; `ptm node check` tries it"


class EngineRefused(RunnerError):
    """The engine says no. `said` is in its own words, for the site's eyes only."""

    hint = SEE_LOG

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class Missing(EngineRefused):
    """The engine has no such container, image or path."""


class Conflict(EngineRefused):
    """A name that is taken, or a state in which that cannot be done."""


class Engine:
    """A client of the engine, connected when first used. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: docker.APIClient | None = None

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def ping(self) -> None:
        with self._calls("answer") as api:
            api.ping()

    def now(self) -> datetime:
        """The engine's own clock."""
        with self._calls("tell the time") as api:
            return parse_time(str(api.info().get("SystemTime", ""))) or datetime.now(UTC)

    def root(self) -> Path:
        """The folder, on the engine's machine, that holds its containers and volumes."""
        with self._calls("say where its files are") as api:
            return Path(str(api.info().get("DockerRootDir") or "/"))

    def image(self, reference: str) -> dict[str, Any]:
        with self._calls("look up an image") as api:
            return dict(api.inspect_image(reference))  # type: ignore[no-untyped-call]

    def pull(self, name: str, tag: str) -> Iterator[dict[str, Any]]:
        """Pull by tag or digest, and tell what happens. A failure may also be told as an event with an `error`."""
        with self._calls("pull an image") as api:
            yield from api.pull(name, tag=tag, stream=True, decode=True)

    def create(self, name: str, config: dict[str, Any]) -> str:
        with self._calls("make a container") as api:
            return str(api.create_container_from_config(config, name)["Id"])  # type: ignore[no-untyped-call]

    def put(self, handle: str, path: str, tar: Iterator[bytes]) -> None:
        """Unpack a tar stream in a folder of the container."""
        with self._calls("take the inputs") as api:
            api.put_archive(handle, path, tar)

    def start(self, handle: str) -> None:
        with self._calls("start a container") as api:
            api.start(handle)

    def inspect(self, handle: str) -> dict[str, Any]:
        with self._calls("look up a container") as api:
            return dict(api.inspect_container(handle))

    def written(self, handle: str) -> int:
        """Bytes in the container's own layer."""
        with self._calls("measure a container") as api:
            listed = api.containers(all=True, size=True, filters={"id": handle})
        return int(listed[0].get("SizeRw") or 0) if listed else 0

    def in_volumes(self, names: Collection[str]) -> int:
        """Bytes in these volumes. 0 if the engine is measuring already, as an old one says, or cannot tell."""
        try:
            with self._calls("measure its volumes") as api:
                listed = api.df().get("Volumes") or ()
        except EngineRefused:
            return 0
        return sum(max(0, int((v.get("UsageData") or {}).get("Size") or 0)) for v in listed if v.get("Name") in names)

    def kill(self, handle: str) -> None:
        """No error if it does not run (any more)."""
        try:
            with self._calls("kill a container") as api:
                api.kill(handle)
        except EngineRefused:  # Docker calls it a conflict, Podman a fault of its own
            if self.inspect(handle)["State"]["Running"]:
                raise

    def log(self, handle: str, take: Callable[[Iterator[bytes]], T]) -> T:
        """Give stdout and stderr to `take`, which need not read all."""
        with self._calls("hand out a log") as api:
            with contextlib.closing(api.logs(handle, stdout=True, stderr=True, stream=True, follow=False)) as stream:
                return take(stream)

    def archive(self, handle: str, path: str, take: Callable[[Iterator[bytes]], T]) -> T:
        """Give a file or folder of a container to `take` as a tar stream, which need not read all."""
        with self._calls("hand out the outputs") as api:
            chunks, _ = api.get_archive(handle, path, chunk_size=CHUNK)
            return take(chunks)

    def remove(self, handle: str) -> None:
        """Remove a container with its volumes, killing it if it runs. No error if it is gone, or going."""
        with contextlib.suppress(Missing), self._calls("remove a container") as api:
            api.remove_container(handle, v=True, force=True)

    def build(self, context: bytes, tag: str, arguments: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Build an image from a tar of its folder, and tell what happens; for the demo, never for a node. The base is pulled
        unless it is there. A failure may also be told as an event with an `error`."""
        with self._calls("build an image") as api:
            yield from api.build(
                fileobj=io.BytesIO(context),
                custom_context=True,
                tag=tag,
                buildargs=dict(arguments),
                rm=True,
                forcerm=True,
                decode=True,
            )

    def image_ids(self) -> set[str]:
        with self._calls("list the images") as api:
            return {str(found["Id"]) for found in api.images()}

    def remove_image(self, reference: str) -> None:
        """Take a name off an image, and the image with its last name. No error if it is gone; `Conflict` if it is in use."""
        with contextlib.suppress(Missing), self._calls("remove an image") as api:
            api.remove_image(reference)

    def labelled(self, label: str) -> list[str]:
        """Handles of all containers with a label (`name=value`), running or not."""
        with self._calls("list the containers") as api:
            return [str(found["Id"]) for found in api.containers(all=True, filters={"label": label})]

    @contextlib.contextmanager
    def _calls(self, doing: str) -> Iterator[docker.APIClient]:
        try:
            yield self._api()
        except docker.errors.APIError as e:
            said = str(e.explanation or e)
            log.debug("the engine, asked to %s: %s", doing, said)
            kind = {404: Missing, 409: Conflict}.get(e.status_code or 0, EngineRefused)
            raise kind(f"the container engine could not {doing}", said) from e
        except (docker.errors.DockerException, requests.RequestException, urllib3.exceptions.HTTPError) as e:
            raise EngineAway(f"the container engine does not answer: {_cause(e)}") from e
        except (ConnectionError, TimeoutError, struct.error) as e:
            raise EngineAway(f"the container engine broke off: {_cause(e)}") from e

    def _api(self) -> docker.APIClient:
        with self._lock:
            if self._client is None:
                self._client = docker.from_env(timeout=CALL_S).api
            return self._client


def patiently(call: Callable[[], T]) -> T:
    """Make a call again and again while the engine is away, for as long as it is waited for."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except EngineAway:
            if time.monotonic() > until:
                raise
        time.sleep(1)


def parse_time(text: str) -> datetime | None:
    """RFC 3339 with up to nanoseconds, in any zone. None for an engine's "never" (the year 1) and for what is no time."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if when.year < 1970 or when.tzinfo is None else when.astimezone(UTC)


def _cause(error: BaseException) -> str:
    """The system's own word for what is wrong, from under the layers of libraries, in one line."""
    found: list[object] = [error]
    for candidate in found:
        if isinstance(candidate, OSError) and candidate.strerror:
            return candidate.strerror.lower()
        if isinstance(candidate, BaseException) and len(found) < 50:
            found += [*candidate.args, *filter(None, (candidate.__cause__, candidate.__context__))]
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
