"""Crypt4GH (GA4GH file encryption standard 1.0), the format of genomics archives, by PyPI's `crypt4gh`, for a member's own X25519
key: the one in the roster as an age recipient. Both formats derive their keys from it in ways of their own (age: HKDF with a
label; Crypt4GH: BLAKE2b over the exchanged key and both public keys), so one key serves both
(docs/adr/0009-crypt4gh-with-the-age-key.md).

Crypt4GH detects neither a file that was cut off at a segment nor segments in another order. So what comes out of `unseal` counts
only if the ciphertext had the signed size and digest, and the plaintext is the one on the sealed list: the caller's duty.

The library is kept on a short lead: it logs secret keys at level DEBUG, so its loggers are silenced; it takes a full disk for a
closed pipe and goes on, so the streams' own errors are raised; and it believes lengths in a header, so headers are bounded.

What this does not do: edit lists, which the standard knows, are refused, not followed; no passphrases. A header's packets are
not tied to each other, so anybody may add an edit list to somebody else's file, and would learn from what became of it whether a
byte of it was guessed right."""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import bech32
import pyrage
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ptm.errors import AlreadyExists, SealError
from ptm.files import write_atomic
from ptm.seal import Measure, Meter, buffered, cause, raise_swallowed

MAX_HEADER_BYTES = 128 * 1024
MAX_PACKETS = 1024
MAX_KEYS = 8
"""Packets of a header that one member can open. Each segment is tried with every key that they hold."""
SEGMENT = 65_536 + 28
"""A ciphertext segment: 64 KiB with a 12-byte nonce and a 16-byte tag."""
_METHOD = 0
"""X25519 with ChaCha20-Poly1305, the standard's only one."""
PREFIX_PUBLIC, PREFIX_SECRET = "age", "age-secret-key-"


def seal(source: BinaryIO, sink: BinaryIO, recipients: Sequence[str]) -> tuple[Measure, Measure]:
    """Encrypt a stream to age recipients (`age1…`), from a key made for this file alone. Returns the measures of the plaintext
    and of the ciphertext."""
    from crypt4gh import lib

    _silence()
    plain, cipher = Meter(source), Meter(sink)
    keys = [(_METHOD, os.urandom(32), _raw_key(key, PREFIX_PUBLIC)) for key in recipients]
    try:
        with buffered(plain, cipher) as (whole, sealed):
            lib.encrypt(keys, whole, sealed)
    except Exception as e:
        raise cause(plain, cipher, e, "cannot be sealed") from e
    raise_swallowed(plain, cipher)
    return plain.measure(), cipher.measure()


def unseal(source: BinaryIO, sink: BinaryIO, identity: pyrage.x25519.Identity, limit: int | None = None) -> Measure:
    """Decrypt a stream, at most `limit` bytes of plaintext. Returns the plaintext's measure.

    `SealError` for a wrong recipient or a flipped bit; the sink may then hold a part, which the caller throws away. A file cut
    off between segments, or with segments in another order, is NOT noticed here."""
    from crypt4gh import lib

    _silence()
    cipher, plain = Meter(source, hashes=False), Meter(sink, limit)
    try:
        with buffered(cipher, plain) as (whole, clear):
            keys = [(_METHOD, _raw_key(str(identity), PREFIX_SECRET), None)]
            head = whole.peek(MAX_HEADER_BYTES)[:MAX_HEADER_BYTES]
            _check_header(head)
            _check_packets(head, keys)
            lib.decrypt(keys, whole, clear)
    except Exception as e:
        raise cause(plain, cipher, e, "cannot be opened: sealed to somebody else, cut off or changed") from e
    raise_swallowed(plain, cipher)
    return plain.measure()


def write_key_files(identity: pyrage.x25519.Identity, secret: Path, public: Path) -> None:
    """The same key as `crypt4gh` reads it (`--sk`, `--recipient_pk`): the secret one not protected by a passphrase, mode 0600.
    `AlreadyExists` if there is a file of that name."""
    raw = _raw_key(str(identity), PREFIX_SECRET)
    public_raw = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
    unprotected = b"c4gh-v1" + b"\x00\x04none" * 2 + len(raw).to_bytes(2, "big") + raw
    for path, kind, content, mode in ((secret, "PRIVATE", unprotected, 0o600), (public, "PUBLIC", public_raw, 0o644)):
        armored = (
            f"-----BEGIN CRYPT4GH {kind} KEY-----\n{base64.b64encode(content).decode()}\n-----END CRYPT4GH {kind} KEY-----\n"
        )
        try:
            write_atomic(path, armored.encode(), mode=mode, exclusive=True)
        except FileExistsError as e:
            raise AlreadyExists(f"there is a file already: {path}", hint="name another one") from e


def _silence() -> None:
    logging.getLogger("crypt4gh").setLevel(logging.CRITICAL + 1)


def _raw_key(text: str, prefix: str) -> bytes:
    """The 32 bytes of an age key, written as Bech32 (BIP 173)."""
    found, data = bech32.bech32_decode(text)
    raw = bech32.convertbits(data, 5, 8, False) if found == prefix and data is not None else None
    if raw is None or len(raw) != 32:
        raise SealError("is not an age X25519 key")
    return bytes(raw)


def _check_header(head: bytes) -> None:
    """`SealError` unless all of the header's packets lie within `MAX_HEADER_BYTES`: the library reads as many, and as long
    ones, as it is told."""
    if head[:12] != b"crypt4gh\x01\x00\x00\x00":
        raise SealError("is not a Crypt4GH file of version 1")
    count, at = int.from_bytes(head[12:16], "little"), 16
    if count > MAX_PACKETS:
        raise SealError(f"cannot be opened: its header has more than {MAX_PACKETS} packets")
    for _ in range(count):
        at += max(4, int.from_bytes(head[at : at + 4], "little"))
        if at > len(head):
            raise SealError(f"cannot be opened: its header is cut off, or has more than {MAX_HEADER_BYTES} bytes")


def _check_packets(head: bytes, keys: Sequence[tuple[int, bytes, None]]) -> None:
    """`SealError` for an edit list, or for more keys than a file needs, among the packets that these keys open."""
    from crypt4gh import header

    packets, _ = header.decrypt(header.parse(io.BytesIO(head)), keys)
    if any(packet[:4] == header.PACKET_TYPE_EDIT_LIST for packet in packets):
        raise SealError("cannot be opened: it has an edit list", hint="send the file that the edit list makes of it")
    if len(packets) > MAX_KEYS:
        raise SealError(f"cannot be opened: it has more than {MAX_KEYS} keys for one member", hint="encrypt the file anew")
