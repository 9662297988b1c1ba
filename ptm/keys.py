"""A member's two key pairs: Ed25519 to sign, age X25519 to receive. Made on the member's own machine; the private
halves never leave it.

Files, both of mode 0600: `sign.pem` is PKCS#8 PEM (RFC 5958), which `openssl pkey` reads; `age.txt` is an age
identity file, which `age -d -i` reads. `sign.pem` may be protected with a passphrase (`openssl pkcs8 -topk8`); it is
then read from the file that PTM_PASSPHRASE_FILE names."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pyrage
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ptm.errors import KeyFileError
from ptm.files import private_folder, write_atomic

SIGN_FILE = "sign.pem"
AGE_FILE = "age.txt"


@dataclass(frozen=True)
class MemberKeys:
    """Both private keys, loaded. Its repr shows public halves only."""

    signing: Ed25519PrivateKey
    identity: pyrage.x25519.Identity

    @functools.cached_property
    def sign_key(self) -> str:
        """The Ed25519 public key, hex."""
        return self.signing.public_key().public_bytes_raw().hex()

    @functools.cached_property
    def age_key(self) -> str:
        """The age recipient, `age1…`."""
        return str(self.identity.to_public())

    def __repr__(self) -> str:
        return f"MemberKeys({self.sign_key[:16]}…, {self.age_key})"


def fingerprint(sign_key: str, age_key: str) -> str:
    """What two people compare by telephone: SHA-256 over both public keys, the first 20 bytes in groups of four hex
    digits."""
    digest = hashlib.sha256(f"ptm/member@1\n{sign_key}\n{age_key}".encode()).hexdigest()[:40]
    return " ".join(digest[i : i + 4] for i in range(0, 40, 4))


def create_keys(folder: Path) -> MemberKeys:
    """Make both keys in a folder. `KeyFileError` if either is there already: keys are never overwritten."""
    for name in (SIGN_FILE, AGE_FILE):
        if (folder / name).exists():
            raise KeyFileError(f"there is a key already: {folder / name}", hint="use another --home, or move the old keys away")
    private_folder(folder)
    keys = MemberKeys(Ed25519PrivateKey.generate(), pyrage.x25519.Identity.generate())
    write_signing_key(folder / SIGN_FILE, keys.signing)
    age_text = f"# public key: {keys.age_key}\n{keys.identity}\n"
    write_atomic(folder / AGE_FILE, age_text.encode(), mode=0o600, exclusive=True)
    return keys


def load_keys(folder: Path) -> MemberKeys:
    """Both keys from a folder. `KeyFileError` says which file is missing, unreadable, readable by others, or not a key."""
    return MemberKeys(load_signing_key(folder / SIGN_FILE), _load_identity(folder / AGE_FILE))


def write_signing_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Write an unencrypted PKCS#8 PEM of mode 0600; `FileExistsError` if there is one."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomic(path, pem, mode=0o600, exclusive=True)


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 private key from PKCS#8 PEM."""
    pem = _read_private(path)
    try:
        key = serialization.load_pem_private_key(pem, _passphrase() if b"ENCRYPTED" in pem else None)
    except (ValueError, TypeError) as e:
        raise KeyFileError(
            f"{path} is not a readable private key",
            hint="if it has a passphrase, put it in a file and name that in PTM_PASSPHRASE_FILE",
        ) from e
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is not an Ed25519 key", hint="make one with `openssl genpkey -algorithm ed25519`")
    return key


def _load_identity(path: Path) -> pyrage.x25519.Identity:
    lines = [line.strip() for line in _read_private(path).decode("utf-8", "replace").splitlines()]
    secrets = [line for line in lines if line and not line.startswith("#")]
    try:
        (secret,) = secrets
        return pyrage.x25519.Identity.from_str(secret)
    except (ValueError, pyrage.IdentityError) as e:
        raise KeyFileError(f"{path} is not an age identity file with one X25519 key", hint="`age-keygen` makes one") from e


def _passphrase() -> bytes | None:
    path = os.environ.get("PTM_PASSPHRASE_FILE")
    return _read_private(Path(path)).rstrip(b"\r\n") if path else None


def _read_private(path: Path) -> bytes:
    """A file's bytes (at most 16 KiB), refused if another account could read it."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise KeyFileError(f"{path} can be read by other accounts", hint=f"chmod 600 {path}")
            return file.read(16 * 1024)
    except FileNotFoundError as e:
        raise KeyFileError(
            f"there is no key at {path}", hint="`ptm member request` makes a member's keys; is --home right?"
        ) from e
    except OSError as e:
        raise KeyFileError(f"{path} cannot be read: {e.strerror}", hint="keys belong to the account that runs ptm") from e
