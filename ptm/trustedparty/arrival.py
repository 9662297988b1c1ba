"""Downloads a ciphertext and decrypts it while it arrives: the download in a thread of its own, through a pipe. Constant memory,
and the disk never holds both.

What comes out is believed by nobody before the measures of both sides are compared with what was signed: the caller's duty.
Both sides are bounded, so a file that is longer than announced stops early."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import BinaryIO, cast

from ptm.errors import PtmError, VerificationError
from ptm.keys import MemberKeys
from ptm.seal import Measure, Meter
from ptm.store.base import Store
from ptm.transfer import Format
from ptm.trustedparty.formats import open_stream
from ptm.trustedparty.streams import Pipe


class Stopped(PtmError):
    """Told to stop in the middle of a file: the next start fetches it again."""


@dataclass(frozen=True)
class Fetched:
    """The measures of both sides; `refused` is what the decryption says, if it failed."""

    cipher: Measure
    plain: Measure
    refused: VerificationError | None


def fetch(
    store: Store,
    key: str,
    format: Format,
    keys: MemberKeys,
    *,
    limit: int,
    plain_limit: int,
    sink: BinaryIO,
    sealed: bool,
    stop: threading.Event,
) -> Fetched:
    """Write an object's plaintext to `sink`, or with `sealed` its ciphertext, after the plaintext went nowhere. `limit` and
    `plain_limit` are in bytes. `StoreError` for what the download met, `OSError` for a full disk, `Stopped`."""
    pipe = Pipe()
    download = _Download(store, key, limit, pipe, sink if sealed else None, stop)
    download.start()
    refused: VerificationError | None = None
    plain = Measure(0, "")
    with contextlib.ExitStack() as stack:
        stack.callback(download.join)  # the last thing: when the pipe is closed, a download that still writes ends
        stack.callback(pipe.close)
        source = cast(BinaryIO, pipe)
        target = stack.enter_context(open(os.devnull, "wb")) if sealed else sink
        try:
            plain = open_stream(format, source, target, keys, plain_limit)
        except VerificationError as e:
            refused = e
        while source.read():  # what the format leaves unread counts for the digest as well
            pass
    return Fetched(download.measure(), plain, refused)


class _Download:
    """An object into a pipe, counted and hashed, and if wanted kept in a file as well."""

    def __init__(self, store: Store, key: str, limit: int, pipe: Pipe, keep: BinaryIO | None, stop: threading.Event) -> None:
        self._store, self._key, self._limit, self._pipe, self._keep, self._stop = store, key, limit, pipe, keep, stop
        self._error: BaseException | None = None
        self._measure = Measure(0, "")
        self._thread = threading.Thread(target=self._run, name="download", daemon=True)
        self.start, self.join = self._thread.start, self._thread.join

    def measure(self) -> Measure:
        """Of the ciphertext. Raises what the download raised."""
        if self._error is not None:
            raise self._error
        return self._measure

    def _run(self) -> None:
        try:
            meter = Meter(cast(BinaryIO, _Sink(self._pipe, self._keep, self._stop)))
            self._store.download(self._key, cast(BinaryIO, meter), self._limit)
            self._measure = meter.measure()
        except BaseException as e:
            self._error = e
        finally:
            self._pipe.end()


class _Sink:
    """Writes a chunk to the pipe, and to a file if there is one."""

    def __init__(self, pipe: Pipe, keep: BinaryIO | None, stop: threading.Event) -> None:
        self._pipe, self._keep, self._stop = pipe, keep, stop

    def write(self, chunk: bytes) -> int:
        if self._stop.is_set():
            raise Stopped("told to stop")
        if self._keep is not None:
            self._keep.write(chunk)
        return self._pipe.write(chunk)
