"""Sealing against whoever holds the bucket, and against members who copy each other's ciphertext."""

from __future__ import annotations

import base64
import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pyrage
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptm.errors import DigestMismatch, Malformed, SealError
from ptm.model import INLINE_BYTES, PlainFile
from ptm.seal import (
    Measure,
    check_cipher,
    check_plain,
    measure,
    open_manifest,
    seal,
    seal_bytes,
    seal_file,
    seal_manifest,
    unseal,
    unseal_bytes,
)

REGISTRY = "a1111111-1111-4111-8111-111111111111"
OTHER_REGISTRY = "b2222222-2222-4222-8222-222222222222"
TASK = "01KAMV3ZR5F2J7Q8XG4M1W9ABC"
OTHER_TASK = "01KAMV3ZR5F2J7Q8XG4M1W9ABD"
SITE = pyrage.x25519.Identity.generate()
ALICE = pyrage.x25519.Identity.generate()
MALLORY = pyrage.x25519.Identity.generate()
TO_SITE = [str(SITE.to_public())]
TEXT = b"patients over 60\n" * 10_000
SEALED = seal_bytes(TEXT, TO_SITE)
FILES = [PlainFile(name="params.json", size=2, sha256="1" * 64), PlainFile(name="model.bin", size=0, sha256="2" * 64)]


def manifest(registry: str = REGISTRY, task: str = TASK, sealed_by: str = "alice") -> str:
    return seal_manifest(registry, task, sealed_by, FILES, TO_SITE)


# what must work


@pytest.mark.parametrize("size", [0, 1, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 300_000])
def test_a_sealed_stream_opens_and_both_sides_are_measured(size: int) -> None:
    plain, cipher, opened = io.BytesIO(bytes(size)), io.BytesIO(), io.BytesIO()
    inner, outer = seal(plain, cipher, TO_SITE)
    cipher.seek(0)
    assert unseal(cipher, opened, SITE) == inner == measure(io.BytesIO(bytes(size)))
    assert outer == measure(io.BytesIO(cipher.getvalue()))
    assert opened.getvalue() == bytes(size)


@given(data=st.binary(max_size=2000))
def test_property_what_is_sealed_comes_back(data: bytes) -> None:
    assert unseal_bytes(seal_bytes(data, TO_SITE), SITE, 2000) == data


def test_every_recipient_can_open_it() -> None:
    both = seal_bytes(TEXT, [*TO_SITE, str(ALICE.to_public())])
    assert unseal_bytes(both, SITE, len(TEXT)) == unseal_bytes(both, ALICE, len(TEXT)) == TEXT


def test_sealing_the_same_twice_gives_different_ciphertexts() -> None:
    assert seal_bytes(TEXT, TO_SITE) != SEALED


def test_a_small_file_travels_inside_and_a_large_one_does_not(tmp_path: Path) -> None:
    _, small = seal_file(io.BytesIO(b"x" * 1000), tmp_path / "small", "small", TO_SITE, INLINE_BYTES)
    _, large = seal_file(io.BytesIO(b"x" * INLINE_BYTES), tmp_path / "large", "large", TO_SITE, 10 * INLINE_BYTES)
    _, late = seal_file(io.BytesIO(b"x" * 1000), tmp_path / "late", "late", TO_SITE, 1000)
    assert small.inline == (tmp_path / "small").read_bytes()
    assert large.content is None and late.content is None
    assert large.size == (tmp_path / "large").stat().st_size > INLINE_BYTES


# what must be refused


def test_somebody_who_is_no_recipient_cannot_open_it() -> None:
    with pytest.raises(SealError, match="cannot be opened"):
        unseal_bytes(SEALED, MALLORY, len(TEXT))


@pytest.mark.parametrize("kept", [0, 10, 100, 199, 64 * 1024, -1])
def test_a_truncated_ciphertext_is_refused(kept: int) -> None:
    with pytest.raises(SealError, match="cannot be opened"):
        unseal_bytes(SEALED[:kept], SITE, len(TEXT))


def test_a_ciphertext_cut_off_at_a_chunks_end_is_refused() -> None:
    header = SEALED.index(b"\n--- ") + len(b"\n--- ") + 43 + 1
    nonce, chunk = 16, 64 * 1024 + 16
    assert len(SEALED) > header + nonce + 2 * chunk
    with pytest.raises(SealError):
        unseal_bytes(SEALED[: header + nonce + chunk], SITE, len(TEXT))


@given(at=st.integers(0, len(SEALED) - 1), mask=st.integers(1, 255))
def test_property_a_flipped_bit_is_never_overlooked(at: int, mask: int) -> None:
    changed = bytearray(SEALED)
    changed[at] ^= mask
    with pytest.raises(SealError):
        unseal_bytes(bytes(changed), SITE, len(TEXT))


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(SealError):
        unseal_bytes(SEALED + b"more", SITE, len(TEXT))


def test_more_plaintext_than_the_limit_is_refused_while_it_is_opened() -> None:
    sink = io.BytesIO()
    with pytest.raises(SealError, match="more than 1000 bytes"):
        unseal(io.BytesIO(SEALED), sink, SITE, limit=1000)
    assert len(sink.getvalue()) <= 1000


@pytest.mark.parametrize("recipient", ["", "age1qqqq", "alice", str(ALICE)], ids=["empty", "cut", "name", "secret"])
def test_what_is_no_recipient_is_an_error_of_ours(recipient: str) -> None:
    with pytest.raises(SealError, match="cannot be sealed"):
        seal_bytes(b"", [recipient])


def test_a_passphrase_file_is_refused_and_costs_no_time() -> None:
    with pytest.raises(SealError):
        unseal_bytes(pyrage.passphrase.encrypt(b"x", "weak"), SITE, 10)


class FullDisk(io.BytesIO):
    def write(self, chunk: object, /) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_stays_a_full_disk_and_is_not_called_tampering() -> None:
    with pytest.raises(OSError, match="No space left"):
        unseal(io.BytesIO(SEALED), FullDisk(), SITE)
    with pytest.raises(OSError, match="No space left"):
        seal(io.BytesIO(TEXT), FullDisk(), TO_SITE)


# the sealed manifest


def test_a_manifest_opens_for_its_own_task() -> None:
    listed = open_manifest(manifest(), SITE, registry=REGISTRY, task=TASK, sealed_by="alice")
    assert list(listed.values()) == FILES
    assert list(listed) == ["params.json", "model.bin"]


@pytest.mark.parametrize(
    "registry, task, sealed_by",
    [(OTHER_REGISTRY, TASK, "alice"), (REGISTRY, OTHER_TASK, "alice"), (REGISTRY, TASK, "mallory")],
    ids=["another registry", "another task", "another member"],
)
def test_a_manifest_replayed_from_another_document_is_refused(registry: str, task: str, sealed_by: str) -> None:
    with pytest.raises(SealError, match="sealed for another task"):
        open_manifest(manifest(), SITE, registry=registry, task=task, sealed_by=sealed_by)


def test_a_manifest_for_somebody_else_is_refused() -> None:
    with pytest.raises(SealError, match="cannot be opened"):
        open_manifest(manifest(), MALLORY, registry=REGISTRY, task=TASK, sealed_by="alice")


@pytest.mark.parametrize(
    "clear", [b"", b"{}", b"null", b"[" * 100, b'{"type": "ptm/sealed@1", "type": "ptm/sealed@1"}', b'{"type": "ptm/roster@1"}']
)
def test_something_else_in_a_manifests_place_is_malformed(clear: bytes) -> None:
    with pytest.raises(Malformed):
        open_manifest(
            base64.b64encode(seal_bytes(clear, TO_SITE)).decode(), SITE, registry=REGISTRY, task=TASK, sealed_by="alice"
        )


def test_a_manifest_that_grows_without_end_is_cut_off() -> None:
    bomb = base64.b64encode(seal_bytes(bytes(10 * 1024 * 1024), TO_SITE)).decode()
    with pytest.raises(SealError, match="more than"):
        open_manifest(bomb, SITE, registry=REGISTRY, task=TASK, sealed_by="alice")


def test_the_largest_manifest_that_can_be_written_can_be_read() -> None:
    files = [PlainFile(name=f"{n:03d}" + '"' * 197, size=2**50, sha256="f" * 64) for n in range(257)]
    text = seal_manifest(REGISTRY, TASK, "s" * 63, files, TO_SITE)
    assert len(open_manifest(text, SITE, registry=REGISTRY, task=TASK, sealed_by="s" * 63)) == 257


# sizes and digests


def test_a_plaintext_that_its_manifest_does_not_list_is_refused() -> None:
    with pytest.raises(DigestMismatch, match="not the file that was sealed"):
        check_plain(Measure(2, "1" * 64), None, "extra.txt")


@pytest.mark.parametrize("measured", [Measure(3, "1" * 64), Measure(2, "0" * 64)])
def test_a_plaintext_of_another_size_or_digest_is_refused(measured: Measure) -> None:
    with pytest.raises(DigestMismatch):
        check_plain(measured, FILES[0], "params.json")
    with pytest.raises(DigestMismatch, match="not what was signed"):
        check_cipher(measured, 2, "1" * 64, "params.json")


# memory


class Zeros(io.RawIOBase):
    """An endless supply of zeros, up to a length."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        given = min(self.left, 1024 * 1024 if size < 0 else size)
        self.left -= given
        return bytes(given)


SIZE = 50 * 1024 * 1024


def seal_and_open_much(folder: Path) -> None:
    """Run in a process of its own: prints by how many KiB its peak memory grew."""
    import resource

    unseal_bytes(seal_bytes(b"warm", TO_SITE), SITE, 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source: BinaryIO = Zeros(SIZE)  # type: ignore[assignment]
    with (folder / "sealed").open("w+b") as cipher, (folder / "clear").open("w+b") as clear:
        seal(source, cipher, TO_SITE)
        cipher.seek(0)
        assert unseal(cipher, clear, SITE).size == SIZE
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.mark.slow
def test_50_mib_are_sealed_and_opened_in_constant_memory(tmp_path: Path) -> None:
    code = f"import pathlib; from tests import test_seal; test_seal.seal_and_open_much(pathlib.Path({str(tmp_path)!r}))"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12 * 1024
    assert (tmp_path / "clear").stat().st_size == SIZE


class Interrupted(io.BytesIO):
    """A stream in whose reading or writing the user presses Ctrl-C."""

    def read(self, size: int | None = -1) -> bytes:
        raise KeyboardInterrupt

    def write(self, data: object) -> int:
        raise KeyboardInterrupt


def test_ctrl_c_in_the_middle_is_no_broken_seal() -> None:
    identity = pyrage.x25519.Identity.generate()
    recipients = [str(identity.to_public())]
    sealed = seal_bytes(b"x" * 100_000, recipients)
    with pytest.raises(KeyboardInterrupt):
        seal(Interrupted(), io.BytesIO(), recipients)
    with pytest.raises(KeyboardInterrupt):
        seal(io.BytesIO(b"x"), Interrupted(), recipients)
    with pytest.raises(KeyboardInterrupt):
        unseal(Interrupted(), io.BytesIO(), identity)
    with pytest.raises(KeyboardInterrupt):
        unseal(io.BytesIO(sealed), Interrupted(), identity)


def test_ctrl_c_at_any_moment_is_no_broken_seal() -> None:
    """Most often Python notices a signal between the library and the first line of our own code, where no meter looks."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    text = bytes(16 * 1024 * 1024)
    sealed = seal_bytes(text, TO_SITE)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for n in range(60):
            for work in (
                lambda: seal(io.BytesIO(text), io.BytesIO(), TO_SITE),
                lambda: unseal(io.BytesIO(sealed), io.BytesIO(), SITE),
            ):
                signal.setitimer(signal.ITIMER_REAL, 0.001 + n * 0.0001, 1.0)
                with pytest.raises(KeyboardInterrupt):
                    work()
                    signal.pause()  # it was faster than the signal
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("size", [1, 1_000, 100_000])
def test_a_full_disk_under_a_seal_is_noticed_whatever_the_size(size: int) -> None:
    """pyrage drops the error of the last write of its buffer."""
    identity = pyrage.x25519.Identity.generate()
    sealed = seal_bytes(b"x" * size, [str(identity.to_public())])
    with pytest.raises(OSError, match="No space"):
        seal(io.BytesIO(b"x" * size), FullDisk(), [str(identity.to_public())])
    with pytest.raises(OSError, match="No space"):
        unseal(io.BytesIO(sealed), FullDisk(), identity)
