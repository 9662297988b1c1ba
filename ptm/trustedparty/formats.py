"""The formats that a transfer's files may have, behind one pair of functions.

A format is encryption only: what makes a file count is the size and SHA-256 of its ciphertext in the signed manifest, and of its
plaintext in the sealed list (`ptm.transfer`). Crypt4GH alone does not even notice a file that was cut off. Constant memory both
ways.

What this does not do: the sealed list itself, which is always age (`ptm.seal.seal_manifest`)."""

from __future__ import annotations

from typing import BinaryIO

from ptm import c4gh, seal
from ptm.keys import MemberKeys
from ptm.seal import Measure
from ptm.transfer import Format

_SEAL = {"age": seal.seal, "crypt4gh": c4gh.seal}
_OPEN = {"age": seal.unseal, "crypt4gh": c4gh.unseal}


def seal_stream(format: Format, source: BinaryIO, sink: BinaryIO, party_age_key: str) -> tuple[Measure, Measure]:
    """Encrypt a stream to the party's X25519 key (`age1…`). Returns the measures of the plaintext and of the ciphertext."""
    return _SEAL[format](source, sink, [party_age_key])


def open_stream(format: Format, source: BinaryIO, sink: BinaryIO, keys: MemberKeys, limit: int) -> Measure:
    """Decrypt a stream with this member's key, at most `limit` bytes of plaintext. Returns the plaintext's measure.

    `SealError` for what is not sealed to this member or changed, and with age for what is cut off; the sink may then hold a
    part."""
    return _OPEN[format](source, sink, keys.identity, limit)
