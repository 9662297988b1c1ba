"""A ciphertext of this home's own to be read in clear, as a stream: decrypted in a thread, through a pipe, so that nothing of it
touches a disk. Constant memory.

What is read counts only once the block has ended without an error, and its measure is the expected one: the caller's duty."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import BinaryIO, cast

from ptm.keys import MemberKeys
from ptm.transfer import Format
from ptm.trustedparty.formats import open_stream
from ptm.trustedparty.streams import Pipe


@contextlib.contextmanager
def opened(cipher: BinaryIO, format: Format, keys: MemberKeys, limit: int) -> Iterator[BinaryIO]:
    """At most `limit` bytes of plaintext. `SealError` at the end of the block for what cannot be opened; until then, it looks as
    if the stream ended there."""
    pipe = Pipe()
    failed: list[BaseException] = []

    def decrypt() -> None:
        try:
            open_stream(format, cipher, cast(BinaryIO, pipe), keys, limit)
        except BaseException as e:
            failed.append(e)
        finally:
            pipe.end()

    thread = threading.Thread(target=decrypt, name="unseal", daemon=True)
    thread.start()
    try:
        yield cast(BinaryIO, pipe)
    finally:
        pipe.close()
        thread.join()
    if failed:
        raise failed[0]
