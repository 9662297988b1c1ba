"""A ciphertext of this home's own to be read in clear, as a stream: decrypted in a thread, through a pipe, so that nothing of it
touches a disk. Constant memory.

What is read counts only once the block has ended without an error, and its measure is the expected one: the caller's duty."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import BinaryIO

from ptm.keys import MemberKeys
from ptm.transfer import Format
from ptm.trustedparty.formats import open_stream

PIPE_BYTES = 1024 * 1024


@contextlib.contextmanager
def opened(cipher: BinaryIO, format: Format, keys: MemberKeys, limit: int) -> Iterator[BinaryIO]:
    """At most `limit` bytes of plaintext. `SealError` at the end of the block for what cannot be opened; until then, it looks as
    if the stream ended there."""
    reading, writing = os.pipe()
    failed: list[BaseException] = []

    def decrypt() -> None:
        try:
            with open(writing, "wb", buffering=PIPE_BYTES) as sink:
                open_stream(format, cipher, sink, keys, limit)
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=decrypt, name="unseal", daemon=True)
    thread.start()
    try:
        with open(reading, "rb", buffering=PIPE_BYTES) as clear:
            yield clear
    finally:
        thread.join()  # its end of the pipe is broken by now, if it has not ended
    if failed:
        raise failed[0]
