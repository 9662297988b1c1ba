"""A member's key files: private, ordinary files that `openssl` and `age` can use too."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ptm.errors import KeyFileError
from ptm.keys import AGE_FILE, SIGN_FILE, MemberKeys, create_keys, fingerprint, load_keys, load_signing_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keys"


@pytest.fixture
def keys(folder: Path) -> MemberKeys:
    return create_keys(folder)


def write(path: Path, text: str | bytes, mode: int = 0o600) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)


def test_keys_come_back_as_they_were_made(folder: Path, keys: MemberKeys) -> None:
    again = load_keys(folder)
    assert (again.sign_key, again.age_key) == (keys.sign_key, keys.age_key)


def test_nobody_else_can_read_the_keys_whatever_the_umask(folder: Path) -> None:
    old = os.umask(0)
    try:
        create_keys(folder)
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("survivor", [SIGN_FILE, AGE_FILE])
def test_keys_are_never_overwritten_not_even_one_of_the_two(folder: Path, keys: MemberKeys, survivor: str) -> None:
    for name in {SIGN_FILE, AGE_FILE} - {survivor}:
        (folder / name).unlink()
    before = (folder / survivor).read_bytes()
    with pytest.raises(KeyFileError, match="there is a key already"):
        create_keys(folder)
    assert [path.name for path in folder.iterdir()] == [survivor]
    assert (folder / survivor).read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620])
@pytest.mark.parametrize("name", [SIGN_FILE, AGE_FILE])
def test_a_key_that_other_accounts_could_read_is_refused(folder: Path, keys: MemberKeys, name: str, mode: int) -> None:
    (folder / name).chmod(mode)
    with pytest.raises(KeyFileError, match="other accounts") as refusal:
        load_keys(folder)
    assert refusal.value.hint == f"chmod 600 {folder / name}"


def test_a_missing_key_says_what_makes_one(folder: Path) -> None:
    with pytest.raises(KeyFileError, match="there is no key") as refusal:
        load_keys(folder)
    assert "ptm member request" in (refusal.value.hint or "")


@pytest.mark.parametrize(
    "text", [b"", b"\x00\xff\xfe", b"not a key", b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", b"A" * 100_000]
)
def test_what_is_no_signing_key_is_one_plain_error(folder: Path, keys: MemberKeys, text: bytes) -> None:
    write(folder / SIGN_FILE, text)
    with pytest.raises(KeyFileError, match=r"sign\.pem is not a readable private key"):
        load_keys(folder)


def test_a_key_of_another_algorithm_is_refused(folder: Path, keys: MemberKeys) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write(folder / SIGN_FILE, pem)
    with pytest.raises(KeyFileError, match="not an Ed25519 key"):
        load_keys(folder)


@pytest.mark.parametrize(
    "text",
    ["", "# only a comment\n", "AGE-SECRET-KEY-1QQQ\n", "{both}\n{both}\n", "age1qqq\n", "-----BEGIN AGE ENCRYPTED FILE-----\n"],
)
def test_what_is_no_age_identity_is_one_plain_error(folder: Path, keys: MemberKeys, text: str) -> None:
    write(folder / AGE_FILE, text.replace("{both}", str(keys.identity)))
    with pytest.raises(KeyFileError, match="not an age identity file with one"):
        load_keys(folder)


def test_no_error_and_no_repr_shows_a_secret(folder: Path, keys: MemberKeys) -> None:
    secret = str(keys.identity)
    write(folder / AGE_FILE, f"{secret}\n{secret}\n")
    with pytest.raises(KeyFileError) as refusal:
        load_keys(folder)
    raw = keys.signing.private_bytes_raw().hex()
    for text in (repr(keys), str(refusal.value), str(refusal.value.hint)):
        assert secret not in text and "AGE-SECRET" not in text and raw not in text


# with a passphrase


@pytest.fixture
def protected(folder: Path, keys: MemberKeys) -> Path:
    pem = keys.signing.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"correct horse")
    )
    write(folder / SIGN_FILE, pem)
    return folder / SIGN_FILE


def test_a_protected_key_opens_with_the_passphrase_file(
    protected: Path, keys: MemberKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "passphrase", "correct horse\n")
    monkeypatch.setenv("PTM_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    assert load_signing_key(protected).private_bytes_raw() == keys.signing.private_bytes_raw()


def test_a_protected_key_without_or_with_a_wrong_passphrase_stays_shut(
    protected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PTM_PASSPHRASE_FILE", raising=False)
    with pytest.raises(KeyFileError) as refusal:
        load_signing_key(protected)
    assert "PTM_PASSPHRASE_FILE" in (refusal.value.hint or "")
    write(tmp_path / "passphrase", "wrong horse\n")
    monkeypatch.setenv("PTM_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    with pytest.raises(KeyFileError, match="not a readable private key"):
        load_signing_key(protected)


def test_a_passphrase_file_that_others_could_read_is_refused(
    protected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "passphrase", "correct horse\n", mode=0o644)
    monkeypatch.setenv("PTM_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    with pytest.raises(KeyFileError, match="other accounts"):
        load_signing_key(protected)


# the tools of others


def test_openssl_reads_the_signing_key(folder: Path, keys: MemberKeys) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    shown = subprocess.run(
        ["openssl", "pkey", "-in", str(folder / SIGN_FILE), "-pubout", "-outform", "DER"], capture_output=True, check=True
    )
    assert shown.stdout[-32:].hex() == keys.sign_key


def test_age_opens_what_was_sealed_to_the_key(folder: Path, keys: MemberKeys, tmp_path: Path) -> None:
    if shutil.which("age") is None:
        pytest.skip("age is not installed")
    sealed = pyrage.encrypt(b"for you", [pyrage.x25519.Recipient.from_str(keys.age_key)])
    opened = subprocess.run(["age", "-d", "-i", str(folder / AGE_FILE)], input=sealed, capture_output=True, check=True)
    assert opened.stdout == b"for you"


# fingerprints


def test_a_fingerprint_is_forty_hex_digits_in_groups_that_can_be_read_aloud(keys: MemberKeys) -> None:
    groups = fingerprint(keys.sign_key, keys.age_key).split(" ")
    assert [len(group) for group in groups] == [4] * 10


def test_a_fingerprint_covers_both_keys() -> None:
    assert len({fingerprint("1" * 64, "age1q"), fingerprint("2" * 64, "age1q"), fingerprint("1" * 64, "age1p")}) == 3
