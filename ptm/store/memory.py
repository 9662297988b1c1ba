"""A store in memory: the double that tests of the layers above use instead of a server.

It is held to the same contract as the real ones. Each instance has its own objects: two stores share nothing. `before` and
`after` are where a test puts a fault: each is called with the verb and the key (or prefix), outside the lock, just before an
operation takes effect and just after it took effect; what it raises goes to the caller. An `after` that raises is a lost reply.

What it does not do: durability, and constant memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

from ptm.errors import NotFound, TooLarge
from ptm.store.base import Capabilities, ObjectInfo, Progress, Store, check_key, check_prefix
from ptm.store.checks import check_folder, check_small
from ptm.store.exclusive import Outcome, is_exclusive, settle

Hook = Callable[[str, str], None]


def _nothing(verb: str, key: str) -> None:
    """The hook of a store without faults."""


class MemoryStore(Store):
    """A dictionary behind a lock."""

    def __init__(self, *, before: Hook = _nothing, after: Hook = _nothing) -> None:
        self.url = f"memory:{id(self):x}"
        self.before = before
        self.after = after
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: str, limit: int) -> bytes:
        body = self._find("get", key)
        if len(body) > limit:
            raise TooLarge(f"{key}: {len(body)} bytes are more than {limit}")
        return body

    def create(self, key: str, body: bytes) -> None:
        settle(key, self._attempt(check_key(key), check_small(key, body)))

    def put(self, key: str, body: bytes) -> None:
        self._write("put", key, body)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(self._below("list", check_prefix(prefix)))

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        found = self._below("list_prefixes", check_folder(prefix))
        segments = (info.key[len(prefix) :].split("/", 1) for info in found)
        return iter(dict.fromkeys(f"{prefix}{parts[0]}/" for parts in segments if len(parts) == 2))

    def head(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(self._find("head", key)))

    def delete(self, key: str) -> None:
        self.before("delete", check_key(key))
        with self._lock:
            self._objects.pop(key, None)
        self.after("delete", key)

    def upload(self, key: str, source: BinaryIO, progress: Progress | None = None) -> None:
        check_key(key)
        body = source.read()
        self._write("upload", key, body)
        if progress and body:
            progress(len(body))

    def download(self, key: str, sink: BinaryIO, limit: int, progress: Progress | None = None) -> int:
        body = self._find("download", key)
        if len(body) > limit:
            raise TooLarge(f"{key}: {len(body)} bytes are more than {limit}")
        sink.write(body)
        if progress and body:
            progress(len(body))
        return len(body)

    def probe(self, scratch: str) -> Capabilities:
        exclusive = is_exclusive(self._attempt, lambda key: self.get(key, 1024), self.delete, check_folder(scratch))
        return Capabilities(exclusive_create=exclusive, versioned=False)

    def _attempt(self, key: str, body: bytes) -> Outcome:
        self.before("create", key)
        with self._lock:
            won = self._objects.setdefault(key, bytes(body)) == body
        self.after("create", key)
        return Outcome.WON if won else Outcome.LOST

    def _find(self, verb: str, key: str) -> bytes:
        self.before(verb, check_key(key))
        with self._lock:
            body = self._objects.get(key)
        self.after(verb, key)
        if body is None:
            raise NotFound(f"{key} is not there")
        return body

    def _write(self, verb: str, key: str, body: bytes) -> None:
        self.before(verb, check_key(key))
        with self._lock:
            self._objects[key] = bytes(body)
        self.after(verb, key)

    def _below(self, verb: str, prefix: str) -> tuple[ObjectInfo, ...]:
        self.before(verb, prefix)
        with self._lock:
            found = [ObjectInfo(key, len(body)) for key, body in self._objects.items() if key.startswith(prefix)]
        self.after(verb, prefix)
        return tuple(sorted(found, key=lambda info: info.key.encode()))
