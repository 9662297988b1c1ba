"""A big object sent to an S3 server in parts, several at once, and taken up again after an interruption.

Rules:
- The journal, a small file of the caller's, has the upload's id before the first part goes out, and a line for each part that
  arrived. It is no more than a memory: a part is there if the server lists it (ListParts).
- A listed part counts if its size is right and its ETag is the MD5 of the bytes at hand; or, as servers that encrypt (SSE-KMS)
  have ETags of another kind, the one that the server gave for bytes with the CRC that these have. All others are sent again.
- What is sent the first time is not hashed, which costs as much as the sending: TLS keeps a part whole on its way, and whoever
  fetches the object compares it with a digest that was signed. Only the first parts are, to see what ETags the server has.
- An upload that the server no longer has is either finished (the object's ETag is that of all parts) or begun again.
- A source that is still being written is read to its end, for which its `read` waits; the size in the journal is null then.
- Memory: at most `IN_FLIGHT_BYTES` of parts, for objects up to 640 GB (`MAX_PARTS` parts; beyond, one part at a time).
- Whoever stops it (an error, Ctrl-C) waits for no part: those on their way are cut off.

What it does not do: small objects (`ptm.store.s3` puts those whole), or remember anything after the object is there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from ptm.errors import AccessDenied, NotFound, StoreError
from ptm.files import write_atomic
from ptm.store.base import Progress
from ptm.store.s3_errors import code_of, errors
from ptm.store.streams import one_at_a_time

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 8 * 1024 * 1024
MAX_PARTS = 10_000
BLOCK_BYTES = 256 * 1024
IN_FLIGHT_BYTES = 64 * 1024 * 1024
WORKERS = 4
_MEBIBYTE = 1024 * 1024
_BEGIN_AGAIN = {"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall"}
"""What a server says that has not got the upload any more, or at the end not the parts that it listed."""
log = logging.getLogger("ptm.store.s3")


@dataclass(frozen=True)
class Target:
    """Where the object goes: `full` is the key in the bucket, `key` the one that people know."""

    client: S3Client
    bucket: str
    full: str
    key: str


@dataclass(frozen=True)
class _Upload:
    """An upload that was begun: what it is for, and how it is cut. `size` is None if it was not known yet."""

    id: str
    bucket: str
    full: str
    size: int | None
    part_bytes: int

    def can_be_named(self) -> bool:
        """Whether the server can be asked about it: a journal may hold anything."""
        return all(type(text) is str and text for text in (self.id, self.bucket, self.full))

    def is_for(self, target: Target, size: int | None) -> bool:
        """Whether it may be gone on with, for an object of this size."""
        if size is None or (self.bucket, self.full) != (target.bucket, target.full) or self.size not in (None, size):
            return False
        return type(self.part_bytes) is int and PART_BYTES <= self.part_bytes <= 2 * part_bytes(size)


@dataclass(frozen=True)
class _Part:
    """A part that the server has taken: its ETag (without quotes), and the CRC-32 of its bytes if that is known, and not the ETag
    their MD5."""

    etag: str
    crc: int | None = None

    def is_made_of(self, body: bytes) -> bool:
        return self.etag == _md5(body) if self.crc is None else self.crc == zlib.crc32(body)


class _Stopped(BaseException):
    """Ends a part on its way. No `Exception`: the SDK would take it for a broken connection, and send the part again."""


class _Body:
    """A part's bytes to send, until `stop` is set."""

    def __init__(self, body: bytes, stop: threading.Event) -> None:
        self._body, self._stop, self._at = memoryview(body), stop, 0

    def __len__(self) -> int:
        return len(self._body)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self)}[whence]
        return self._at

    def read(self, size: int = -1) -> memoryview:
        """The next block. urllib3 asks for 16 KiB at a time, for each of which this thread would wait for its turn."""
        if self._stop.is_set():
            raise _Stopped
        start, self._at = self._at, min(self._at + BLOCK_BYTES, len(self))
        return self._body[start : self._at]


def part_bytes(size: int) -> int:
    """How big the parts of an object of this size are: there may be no more than `MAX_PARTS`."""
    return max(PART_BYTES, -(-size // (MAX_PARTS * _MEBIBYTE)) * _MEBIBYTE)


def send_parts(target: Target, source: BinaryIO, journal: Path, progress: Progress | None, size: int | None, most: int) -> None:
    """Send what is missing of an object and finish it; see `Store.upload_resumable`. `size` is None, and `most` what it may
    become, if the source is still being written."""
    start = source.tell()
    moved = one_at_a_time(progress) or (lambda moved: None)
    book = _Journal(journal)
    for last in (False, False, True):
        upload, parts = _take_up(target, book, size, most)
        source.seek(start)
        if upload is None:
            moved(size or 0)
            break
        sender = _Sender(target, upload, book, parts, moved, size)
        try:
            sender.send(source)
            _finish(target, upload, sender.done)
            break
        except StoreError as e:
            if not isinstance(e, NotFound) and code_of(e.__cause__) not in _BEGIN_AGAIN:
                raise
            if _is_finished(target, upload, sender.done, sender.size):
                break
            if last:
                raise
            log.warning("%s: begun again, as the server has lost what was sent (%s)", target.key, e)
            moved(-sender.moved)
            abandon_parts(target, journal)
    book.remove()


def abandon_parts(target: Target, journal: Path) -> None:
    """Remove what an unfinished upload left at the server, and its journal."""
    book = _Journal(journal)
    upload, _ = book.read()
    if upload is not None:
        with contextlib.suppress(NotFound), errors(target.key):
            target.client.abort_multipart_upload(Bucket=upload.bucket, Key=upload.full, UploadId=upload.id)
    book.remove()


def _take_up(
    target: Target, book: _Journal, size: int | None, most: int
) -> tuple[_Upload | None, Mapping[int, tuple[int, _Part]]]:
    """The upload to go on with, and the parts that are there, with their sizes. No upload: the object was finished before."""
    upload, noted = book.read()
    if upload is not None and upload.is_for(target, size):
        try:
            return upload, _listed(target, upload, noted)
        except NotFound:
            if _is_finished(target, upload, noted, size):
                return None, {}
        except AccessDenied as e:
            log.warning("%s: begun again, as what was sent cannot be listed: %s", target.key, e)
    if upload is not None:
        with contextlib.suppress(AccessDenied):  # it may belong to another registry, of which this member is no more
            abandon_parts(target, book.path)
    with errors(target.key):
        begun = target.client.create_multipart_upload(Bucket=target.bucket, Key=target.full)["UploadId"]
    upload = _Upload(begun, target.bucket, target.full, size, part_bytes(most))
    book.begin(upload)
    return upload, {}


def _listed(target: Target, upload: _Upload, noted: Mapping[int, _Part]) -> dict[int, tuple[int, _Part]]:
    """The parts that the server has: the size of each, its ETag, and the CRC that was noted for that ETag."""
    found: dict[int, tuple[int, _Part]] = {}
    with errors(target.key):
        pages = target.client.get_paginator("list_parts").paginate(Bucket=upload.bucket, Key=upload.full, UploadId=upload.id)
        for page in pages:
            for part in page.get("Parts", []):
                number, etag = part["PartNumber"], part["ETag"].strip('"')
                known = noted.get(number)
                found[number] = (part["Size"], known if known and known.etag == etag else _Part(etag))
    return found


def _finish(target: Target, upload: _Upload, parts: Mapping[int, _Part]) -> None:
    numbered: list[CompletedPartTypeDef] = [{"PartNumber": n, "ETag": parts[n].etag} for n in sorted(parts)]
    with errors(target.key):
        target.client.complete_multipart_upload(
            Bucket=upload.bucket, Key=upload.full, UploadId=upload.id, MultipartUpload={"Parts": numbered}
        )


def _is_finished(target: Target, upload: _Upload, parts: Mapping[int, _Part], size: int | None) -> bool:
    """Whether the object made of exactly these parts is there: the answer to finishing it may have been lost. An ETag of parts is
    the MD5 of their MD5s; a server with other ETags is not believed, and gets it all again."""
    try:
        digest = _md5(b"".join(bytes.fromhex(parts[n].etag) for n in sorted(parts)))
    except ValueError:
        return False
    try:
        with errors(target.key):
            found = target.client.head_object(Bucket=upload.bucket, Key=upload.full)
    except (NotFound, AccessDenied):
        return False
    return (found["ContentLength"], found["ETag"].strip('"')) == (size, f"{digest}-{len(parts)}")


class _Sender:
    """One pass over the parts. `done` are those that the server has, `moved` is how many bytes were reported, and `size` how many
    there are: None until they were read, if that is not known before."""

    def __init__(
        self,
        target: Target,
        upload: _Upload,
        book: _Journal,
        listed: Mapping[int, tuple[int, _Part]],
        report: Callable[[int], None],
        size: int | None,
    ) -> None:
        self._target, self._upload, self._book, self._listed, self._report = target, upload, book, listed, report
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.done: dict[int, _Part] = {}
        self.moved = 0
        self.size = size
        self._md5_etags: bool | None = None

    def send(self, source: BinaryIO) -> None:
        workers = max(1, min(WORKERS, IN_FLIGHT_BYTES // self._upload.part_bytes - 1))
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(workers, thread_name_prefix="part") as pool:
            try:
                read, number = 0, 0
                while body := self._read(source, None if self.size is None else self.size - read):
                    read, number = read + len(body), number + 1
                    running = _wait_for_room(running, workers)
                    running.add(pool.submit(self._one, number, body))
                if self.size not in (None, read):
                    raise StoreError(
                        f"{self._target.key}: what is sent became shorter meanwhile", hint="give the same command again"
                    )
                self.size = read
                _wait_for_room(running, 1)
            finally:
                self._stop.set()  # all is done, or the rest is not to be

    def _read(self, source: BinaryIO, left: int | None) -> bytes:
        """A part, or what there is at the end."""
        wanted = self._upload.part_bytes if left is None else min(self._upload.part_bytes, left)
        body = source.read(wanted)
        while len(body) < wanted and (more := source.read(wanted - len(body))):
            body += more
        return body

    def _one(self, number: int, body: bytes) -> None:
        size, part = self._listed.get(number, (0, None))
        if part is None or size != len(body) or not part.is_made_of(body):
            with errors(self._target.key):
                answer = self._target.client.upload_part(
                    Bucket=self._upload.bucket,
                    Key=self._upload.full,
                    UploadId=self._upload.id,
                    PartNumber=number,
                    Body=cast(BinaryIO, _Body(body, self._stop)),
                )
                etag = answer["ETag"].strip('"')
            if self._md5_etags is None:
                self._md5_etags = etag == _md5(body)
            part = _Part(etag, None if self._md5_etags else zlib.crc32(body))
            self._book.note(number, part)
        with self._lock:
            self.done[number] = part
            self.moved += len(body)
        self._report(len(body))


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _wait_for_room(running: set[Future[None]], most: int) -> set[Future[None]]:
    """Wait until fewer than `most` run, and raise what those that ended have raised."""
    while len(running) >= most:
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            future.result()
    return running


class _Journal:
    """What is remembered of an upload: a line of JSON for it, and one for each part that arrived. A line that a crash cut short
    is as if it were not there; so is a journal that is no such thing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def read(self) -> tuple[_Upload | None, dict[int, _Part]]:
        try:
            first, *lines = self.path.read_bytes().splitlines()
            upload = _Upload(**json.loads(first))
        except (FileNotFoundError, ValueError, TypeError):
            return None, {}
        if not upload.can_be_named():
            return None, {}
        parts: dict[int, _Part] = {}
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):
                number, etag, crc = json.loads(line)
                if type(number) is int and type(etag) is str and type(crc) in (int, type(None)):
                    parts[number] = _Part(etag, crc)
        return upload, parts

    def begin(self, upload: _Upload) -> None:
        write_atomic(self.path, json.dumps(vars(upload)).encode() + b"\n", mode=0o600)

    def note(self, number: int, part: _Part) -> None:
        with self._lock, self.path.open("ab") as file:
            file.write(json.dumps([number, part.etag, part.crc]).encode() + b"\n")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
