"""Sealing: age encryption (https://age-encryption.org/v1, X25519 recipients) of streams, measured on both sides.

Encryption is not integrity against somebody who knows the recipient's public key: anybody can seal. So a sealed file
counts only with the size and SHA-256 that a signed document gives for its ciphertext, and its plaintext only with
what the document's sealed manifest gives (`open_manifest`). Constant memory: age works in chunks of 64 KiB."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyrage
import rfc8785

from ptm.envelope import load, parse_json
from ptm.errors import DigestMismatch, SealError
from ptm.model import INLINE_BYTES, PlainFile, SealedFile, SealedManifest

MAX_MANIFEST_BYTES = 160 * 1024
MAX_HEADER_BYTES = 128 * 1024
"""An age file's header has about 100 bytes for each of its recipients, of whom a task has `MAX_SITES` + 1 at most."""

BUFFER_BYTES = 256 * 1024
"""What is copied, hashed and encrypted at a time fits into a processor's own memory: bigger chunks take longer."""
_ARMOR = b"-----BEGIN AGE ENCRYPTED FILE-----"


@dataclass(frozen=True)
class Measure:
    """Size in bytes and SHA-256 (hex) of one side of a sealing."""

    size: int
    sha256: str


class Meter:
    """Counts and hashes what is read from or written to a stream, and remembers the stream's own error (pyrage blurs it)."""

    def __init__(self, stream: BinaryIO, limit: int | None = None, *, hashes: bool = True) -> None:
        self._stream, self._limit = stream, limit
        self._hash = hashlib.sha256() if hashes else None
        self.size = 0
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            chunk = self._stream.read(size)
        except BaseException as e:
            self.error = e
            raise
        self._count(chunk)
        return chunk

    def write(self, chunk: bytes) -> int:
        try:
            self._count(chunk)
            self._stream.write(chunk)
        except BaseException as e:
            self.error = e
            raise
        return len(chunk)

    def flush(self) -> None:
        self._stream.flush()

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self._limit is not None and self.size > self._limit:
            raise SealError(f"has more than {self._limit} bytes")
        if self._hash is not None:
            self._hash.update(chunk)

    def measure(self) -> Measure:
        """Not of one that does not hash."""
        assert self._hash is not None
        return Measure(self.size, self._hash.hexdigest())


class _Raw(io.RawIOBase):
    """A meter, for a buffer to be put on: the libraries move 8 or 64 KiB at a time, which is many calls. `drop` ends it: what is
    left in the buffer goes nowhere."""

    def __init__(self, meter: Meter) -> None:
        self._meter: Meter | None = meter

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As much as there is room for, unless the stream ends: who looks at a header sees all of it."""
        filled = 0
        while self._meter and filled < len(buffer) and (chunk := self._meter.read(len(buffer) - filled)):
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return filled

    def write(self, chunk: memoryview) -> int:  # type: ignore[override]
        if self._meter:
            self._meter.write(bytes(chunk))
        return len(chunk)

    def drop(self) -> None:
        self._meter = None


@contextlib.contextmanager
def buffered(source: Meter, sink: Meter) -> Iterator[tuple[io.BufferedReader, BinaryIO]]:
    """Both, to be read and written in pieces of any size. All that was written is in the sink when the block ends well; after an
    error the rest goes nowhere."""
    reads, writes = _Raw(source), _Raw(sink)
    reader, writer = io.BufferedReader(reads, BUFFER_BYTES), io.BufferedWriter(cast(io.RawIOBase, writes), BUFFER_BYTES)
    try:
        yield cast(io.BufferedReader, reader), writer
        writer.flush()
    finally:
        reads.drop()
        writes.drop()


def seal(source: BinaryIO, sink: BinaryIO, recipients: Sequence[str]) -> tuple[Measure, Measure]:
    """Encrypt a stream to age recipients (`age1…`). Returns the measures of the plaintext and of the ciphertext."""
    plain, cipher = Meter(source), Meter(sink)
    try:
        with buffered(plain, cipher) as (reader, writer):
            pyrage.encrypt_io(reader, writer, [pyrage.x25519.Recipient.from_str(key) for key in recipients])
    except (OSError, ValueError, SealError, pyrage.EncryptError, pyrage.RecipientError) as e:
        raise cause(plain, cipher, e, "cannot be sealed") from e
    raise_swallowed(plain, cipher)
    return plain.measure(), cipher.measure()


def unseal(source: BinaryIO, sink: BinaryIO, identity: pyrage.x25519.Identity, limit: int | None = None) -> Measure:
    """Decrypt a stream, at most `limit` bytes of plaintext. Returns the plaintext's measure.

    `SealError` for a wrong recipient, a flipped bit or a truncation; the sink may then hold a part, which the caller
    throws away."""
    cipher, plain = Meter(_with_checked_header(source), hashes=False), Meter(sink, limit)
    try:
        with buffered(cipher, plain) as (reader, writer):
            pyrage.decrypt_io(reader, writer, [identity])
    except (OSError, ValueError, SealError, pyrage.DecryptError) as e:
        raise cause(plain, cipher, e, "cannot be opened: sealed to somebody else, cut off or changed") from e
    raise_swallowed(plain, cipher)
    return plain.measure()


def seal_bytes(data: bytes, recipients: Sequence[str]) -> bytes:
    sink = io.BytesIO()
    seal(io.BytesIO(data), sink, recipients)
    return sink.getvalue()


def unseal_bytes(data: bytes, identity: pyrage.x25519.Identity, limit: int) -> bytes:
    sink = io.BytesIO()
    unseal(io.BytesIO(data), sink, identity, limit)
    return sink.getvalue()


def seal_file(source: BinaryIO, target: Path, name: str, recipients: Sequence[str], room: int) -> tuple[PlainFile, SealedFile]:
    """Seal one file to `target` (which must not be there). Its ciphertext also travels in the `SealedFile` if it is
    small and fits into `room` bytes."""
    with target.open("xb") as hidden:
        plain, cipher = seal(source, hidden, recipients)
    content = base64.b64encode(target.read_bytes()).decode() if cipher.size <= min(INLINE_BYTES, room) else None
    return (
        PlainFile(name=name, size=plain.size, sha256=plain.sha256),
        SealedFile(name=name, size=cipher.size, sha256=cipher.sha256, content=content),
    )


def seal_manifest(registry: str, task: str, sealed_by: str, files: Iterable[PlainFile], recipients: Sequence[str]) -> str:
    """The sealed manifest of a task's inputs or a result's outputs, base64, for the document's `manifest` field."""
    manifest = SealedManifest(registry=registry, task=task, sealed_by=sealed_by, files=tuple(files))
    return base64.b64encode(seal_bytes(rfc8785.dumps(manifest.model_dump(mode="json")), recipients)).decode()


def open_manifest(
    text: str, identity: pyrage.x25519.Identity, *, registry: str, task: str, sealed_by: str
) -> dict[str, PlainFile]:
    """The plaintext sizes and digests by file name, if the manifest was sealed for this very document. `SealError`
    otherwise."""
    raw = unseal_bytes(base64.b64decode(text), identity, MAX_MANIFEST_BYTES)
    parse_json(raw)
    manifest = load(SealedManifest, raw)
    if (manifest.registry, manifest.task, manifest.sealed_by) != (registry, task, sealed_by):
        raise SealError("was sealed for another task", hint="somebody copied ciphertext from one document into another")
    return {file.name: file for file in manifest.files}


def check_plain(measured: Measure, expected: PlainFile | None, name: str) -> None:
    """`DigestMismatch` unless a decrypted file is the one its manifest lists."""
    if expected is None or (measured.size, measured.sha256) != (expected.size, expected.sha256):
        raise DigestMismatch(f"{name} is not the file that was sealed for this task")


def check_cipher(measured: Measure, size: int, sha256: str, name: str) -> None:
    """`DigestMismatch` unless a ciphertext has the size and digest that were signed."""
    if (measured.size, measured.sha256) != (size, sha256):
        raise DigestMismatch(f"{name} is not what was signed: {measured.size} bytes, SHA-256 {measured.sha256[:16]}…")


def measure(stream: BinaryIO) -> Measure:
    """Size and SHA-256 of what is left in a stream."""
    meter = Meter(stream)
    while meter.read(1024 * 1024):
        pass
    return meter.measure()


def _with_checked_header(source: BinaryIO) -> BinaryIO:
    """The stream, if its header ends. `SealError` for an endless one, before age looks at it: parsing one takes time that grows
    with its length squared. Within one, no line but the last starts with `---`."""
    head = source.read(MAX_HEADER_BYTES)
    if head.startswith(_ARMOR):
        raise SealError("cannot be opened: it is armored, as text", hint="seal it without --armor (age), or decode it first")
    if len(head) == MAX_HEADER_BYTES and b"\n---" not in head:
        raise SealError(f"cannot be opened: its header has more than {MAX_HEADER_BYTES} bytes")
    return cast(BinaryIO, _Again(head, source))


class _Again:
    """A stream whose first bytes were read before: they are read once more, so it need not be seekable."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = io.BytesIO(head), rest

    def read(self, size: int) -> bytes:
        return self._head.read(size) or self._rest.read(size)


def raise_swallowed(*streams: Meter) -> None:
    """Raise what a stream raised and age's buffer swallowed: the last write of a small file is one of those."""
    for stream in streams:
        if stream.error is not None:
            raise stream.error


def cause(plain: Meter, cipher: Meter, error: Exception, text: str) -> BaseException:
    """What really happened: the stream's own error (a full disk, a Ctrl-C in the middle), else what age says."""
    if str(error).startswith("KeyboardInterrupt"):  # where no meter could see it: between the library and the first line of ours
        return KeyboardInterrupt()
    own = plain.error or cipher.error
    if isinstance(own, OSError | SealError) or (own is not None and not isinstance(own, Exception)):
        return own
    return SealError(f"{text} ({error})")
