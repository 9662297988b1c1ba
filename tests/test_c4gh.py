"""Crypt4GH with a member's own key, against the standard's own tool, and against what it does not notice itself."""

from __future__ import annotations

import errno
import io
import logging
import subprocess
import sys
from pathlib import Path

import pyrage
import pytest

from ptm import c4gh
from ptm.errors import AlreadyExists, SealError
from ptm.seal import measure

SEGMENT = c4gh.SEGMENT
TEXT = bytes(range(256)) * 1000
"""A little under four segments."""


@pytest.fixture
def identity() -> pyrage.x25519.Identity:
    return pyrage.x25519.Identity.generate()


def sealed(identity: pyrage.x25519.Identity, clear: bytes = TEXT) -> bytes:
    sink = io.BytesIO()
    c4gh.seal(io.BytesIO(clear), sink, [str(identity.to_public())])
    return sink.getvalue()


def opened(identity: pyrage.x25519.Identity, cipher: bytes, limit: int | None = None) -> bytes:
    sink = io.BytesIO()
    c4gh.unseal(io.BytesIO(cipher), sink, identity, limit)
    return sink.getvalue()


def tool(*arguments: str | Path, given: bytes) -> bytes:
    """The standard's command-line tool."""
    command = [sys.executable, "-m", "crypt4gh", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("clear", [b"", b"x", TEXT[:65536], TEXT[:65537], TEXT], ids=["empty", "1", "64K", "64K+1", "250K"])
def test_what_is_sealed_comes_back_with_true_measures(identity: pyrage.x25519.Identity, clear: bytes) -> None:
    sink, out = io.BytesIO(), io.BytesIO()

    plain, cipher = c4gh.seal(io.BytesIO(clear), sink, [str(identity.to_public())])
    sink.seek(0)

    assert c4gh.unseal(sink, out, identity, len(clear)) == plain == measure(io.BytesIO(clear))
    assert cipher == measure(io.BytesIO(sink.getvalue()))
    assert out.getvalue() == clear


def test_the_standards_own_tool_opens_what_ptm_seals_and_the_other_way_round(
    identity: pyrage.x25519.Identity, tmp_path: Path
) -> None:
    c4gh.write_key_files(identity, tmp_path / "key.sec", tmp_path / "key.pub")

    assert tool("decrypt", "--sk", tmp_path / "key.sec", given=sealed(identity)) == TEXT
    other = tool("encrypt", "--sk", tmp_path / "key.sec", "--recipient_pk", tmp_path / "key.pub", given=TEXT)
    assert opened(identity, other) == TEXT


def test_an_edit_list_of_another_tool_is_refused(identity: pyrage.x25519.Identity, tmp_path: Path) -> None:
    c4gh.write_key_files(identity, tmp_path / "key.sec", tmp_path / "key.pub")
    whole = tool("encrypt", "--sk", tmp_path / "key.sec", "--recipient_pk", tmp_path / "key.pub", given=TEXT)
    part = tool("rearrange", "--sk", tmp_path / "key.sec", "--range", "10-20", given=whole)

    assert tool("decrypt", "--sk", tmp_path / "key.sec", given=part) != TEXT
    with pytest.raises(SealError, match="edit list"):
        opened(identity, part)


def test_the_exported_secret_key_is_for_its_owner_alone_and_never_overwrites(
    identity: pyrage.x25519.Identity, tmp_path: Path
) -> None:
    c4gh.write_key_files(identity, tmp_path / "key.sec", tmp_path / "key.pub")

    assert (tmp_path / "key.sec").stat().st_mode & 0o777 == 0o600
    with pytest.raises(AlreadyExists):
        c4gh.write_key_files(identity, tmp_path / "key.sec", tmp_path / "other.pub")


def test_somebody_elses_key_opens_nothing(identity: pyrage.x25519.Identity) -> None:
    with pytest.raises(SealError, match="sealed to somebody else"):
        opened(pyrage.x25519.Identity.generate(), sealed(identity))


def test_a_flipped_bit_is_found(identity: pyrage.x25519.Identity) -> None:
    cipher = bytearray(sealed(identity))
    cipher[-SEGMENT] ^= 1
    with pytest.raises(SealError):
        opened(identity, bytes(cipher))


def test_cut_and_reordered_segments_are_not_noticed_here_which_is_why_nothing_counts_before_its_digest(
    identity: pyrage.x25519.Identity,
) -> None:
    cipher = sealed(identity)
    header = len(cipher) - (len(TEXT) + 28 * 4)
    head, first, second = cipher[:header], cipher[header : header + SEGMENT], cipher[header + SEGMENT : header + 2 * SEGMENT]

    assert opened(identity, head + first) == TEXT[:65536]
    assert opened(identity, head + second + first) == TEXT[65536:131072] + TEXT[:65536]


def test_more_plaintext_than_was_signed_is_stopped(identity: pyrage.x25519.Identity) -> None:
    with pytest.raises(SealError, match="more than 100 bytes"):
        opened(identity, sealed(identity), limit=100)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"age-encryption.org/v1\n",
        b"crypt4gh\x02\x00\x00\x00\x01\x00\x00\x00",
        b"crypt4gh\x01\x00\x00\x00\xff\xff\xff\xff",
        b"crypt4gh\x01\x00\x00\x00\x01\x00\x00\x00\xff\xff\xff\xff" + bytes(200_000),
        b"crypt4gh\x01\x00\x00\x00\x00\x04\x00\x00" + b"\x04\x00\x00\x00" * 10,
        b"crypt4gh\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00",
    ],
    ids=["empty", "age", "version", "packets", "long-packet", "cut", "no-length"],
)
def test_a_hostile_header_is_refused(identity: pyrage.x25519.Identity, head: bytes) -> None:
    with pytest.raises(SealError):
        opened(identity, head)


class _FullDisk(io.BytesIO):
    def write(self, chunk: object, /) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_success(identity: pyrage.x25519.Identity) -> None:
    """The library takes any trouble of the sink for a closed pipe, and returns."""
    with pytest.raises(OSError, match="No space left"):
        c4gh.unseal(io.BytesIO(sealed(identity)), _FullDisk(), identity)
    with pytest.raises(OSError, match="No space left"):
        c4gh.seal(io.BytesIO(TEXT), _FullDisk(), [str(identity.to_public())])


def test_no_key_reaches_a_log(identity: pyrage.x25519.Identity, caplog: pytest.LogCaptureFixture) -> None:
    """The library writes session keys and secret keys at level DEBUG."""
    with caplog.at_level(logging.DEBUG):
        opened(identity, sealed(identity))
    assert caplog.text == ""
