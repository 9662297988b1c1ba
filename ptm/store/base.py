"""What a store must do. The comments here are the contract; `tests/store/contract.py` holds every store to it.

A store maps keys to objects. It knows nothing of tasks, keys of members or signatures, and it is not trusted:
whatever it returns is checked by the layers above. What the layers above do rely on is `create`.

Errors: a store raises only `ptm.errors.StoreError` and its subclasses. In particular "denied" is `AccessDenied`, never
`NotFound`, and an answer that promises nothing (time-out, 5xx after retries, refused connection) is `Unreachable`.
Every method is safe to call from several threads.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from ptm.errors import InvalidKey

MAX_KEY_BYTES = 900
MAX_SEGMENT_BYTES = 230


@dataclass(frozen=True)
class ObjectInfo:
    """One object in a listing: its key and its size in bytes."""

    key: str
    size: int


@dataclass(frozen=True)
class Capabilities:
    """What a probe found. `shareable` is what the node asks: may several workers serve one site here?

    `exclusive_create`: in an N-way race on a scratch key exactly one writer won, and a later create was refused.
    `versioned`: the bucket keeps old versions, so a delete does not free space.
    """

    exclusive_create: bool
    versioned: bool

    @property
    def shareable(self) -> bool:
        return self.exclusive_create and not self.versioned


class Progress(Protocol):
    """Called with the number of bytes moved since the last call: less than 0 when a part has to be sent again."""

    def __call__(self, moved: int, /) -> None: ...


class Store(abc.ABC):
    """A flat map from keys to objects, below one bucket and prefix or below one folder.

    Keys are '/'-separated, without leading or trailing '/', and must pass `check_key`; every method raises `InvalidKey`
    before it touches anything for one that does not. (A prefix to list may end in '/', and may be empty.)
    """

    url: str
    """The URL a person would write to open this store again. Holds no secret."""

    @abc.abstractmethod
    def get(self, key: str, limit: int) -> bytes:
        """The whole object. `NotFound` if there is none, `TooLarge` if it has more than `limit` bytes:
        never more than limit + 1 bytes are read into memory, whatever size the store announced."""

    @abc.abstractmethod
    def create(self, key: str, body: bytes) -> None:
        """Write a small object (at most 1 MiB) if and only if the key is absent; of several writers exactly one wins.

        Returns if the object is there with exactly this body and is durable: also when the reply to an earlier
        attempt was lost, and also when the very same body was there before (bodies that may race carry a nonce, so
        equal bytes mean that it was us). Raises `AlreadyExists` if the key holds anything else; it is then unchanged.
        Raises `Unreachable` if the outcome could not be learnt; calling again with the same body is safe. A reader at
        any time sees nothing or the whole object, also after `kill -9`. Never retried blindly by an SDK: after a
        time-out, 409, 412 or 5xx the key is read, and only if it is absent put again."""

    @abc.abstractmethod
    def put(self, key: str, body: bytes) -> None:
        """Write or overwrite a small object atomically. For the few mutable keys: heartbeats and TUF's timestamp."""

    @abc.abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with the prefix, in ascending order of the UTF-8 bytes of the key, however
        many there are. No error if there is none. An object that is created or deleted meanwhile may or may not be
        seen. Unfinished writes are never listed."""

    @abc.abstractmethod
    def list_prefixes(self, prefix: str) -> Iterator[str]:
        """The distinct next segments below a prefix that ends in '/' (or is empty): `a/b/c` and `a/b/d` below `a/`
        give `a/b/` once. Only segments that have something below them; ascending; however many there are."""

    @abc.abstractmethod
    def head(self, key: str) -> ObjectInfo:
        """The object's size without its content. `NotFound` if there is none."""

    @abc.abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; no error if it is already gone. `AccessDenied` if that is not allowed."""

    @abc.abstractmethod
    def upload(self, key: str, source: BinaryIO, progress: Progress | None = None) -> None:
        """Write an object of any size from a readable, seekable binary stream (from its current position), in
        constant memory. Overwrites. All or nothing: an interrupted upload leaves no object at the key (or the one
        that was there)."""

    def upload_resumable(
        self, key: str, source: BinaryIO, journal: Path, progress: Progress | None = None, growing_to: int | None = None
    ) -> None:
        """As `upload`, for objects that may take hours: after an interruption of any kind (`kill -9` too), a call with the same
        key, the same content and the same journal sends only what the store has not got yet; what it has is reported to
        `progress` as moved. `journal` is a path in a private folder, for one key and one process at a time: the store
        keeps there what it has to know, and removes it when the object is there.

        `growing_to`: the source is still being written, of about so many bytes, and its `read` waits for what is not there yet.
        There is no object before it has ended; what of another one the journal remembers is given up. After an interruption,
        the next call has the whole content, and no `growing_to`.

        A store that cannot go on in the middle sends all of it again: this default."""
        self.upload(key, source, progress)

    def abandon(self, key: str, journal: Path) -> None:
        """Give up an upload that was interrupted: remove what of it lies at the store, and the journal. No error if there is
        nothing, or if the upload ended; an object at the key stays."""
        check_key(key)

    @abc.abstractmethod
    def download(self, key: str, sink: BinaryIO, limit: int, progress: Progress | None = None) -> int:
        """Append an object to a writable binary stream in constant memory and return its size in bytes.
        `NotFound`; `TooLarge` as soon as more than `limit` bytes are announced or arrive (the sink may then hold a part)."""

    @abc.abstractmethod
    def probe(self, scratch: str) -> Capabilities:
        """Find out by trying, with objects below the prefix `scratch` (which ends in '/'), that are removed afterwards."""


def check_key(key: str) -> str:
    """Return the key if any store may be asked for it, else raise `InvalidKey`.

    A key is at most 900 bytes of UTF-8 in '/'-separated segments, each of 1 to 230 bytes; no segment is `.` or `..`
    or starts with `.ptm-` (reserved for unfinished writes on file stores); no control characters, no backslash, no
    lone surrogates."""
    try:
        encoded = key.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidKey(f"key {key!r} is not Unicode text") from None
    if len(encoded) > MAX_KEY_BYTES:
        raise InvalidKey(f"key of {len(encoded)} bytes is longer than {MAX_KEY_BYTES}: {key[:40]!r}…")
    if any(ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F or c == "\\" for c in key):
        raise InvalidKey(f"key {key!r} has a control character or a backslash")
    for segment in key.split("/"):
        if segment in ("", ".", "..") or segment.startswith(".ptm-") or len(segment.encode()) > MAX_SEGMENT_BYTES:
            raise InvalidKey(f"key {key!r} has the segment {segment[:40]!r}, which is not allowed")
    return key


def check_prefix(prefix: str) -> str:
    """Return a prefix to list if it is empty or a key, with or without one '/' at its end; else raise `InvalidKey`."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix
