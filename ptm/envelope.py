"""Signed documents: `{"signed": {…}, "signatures": [{"keyid": …, "sig": …}]}`, TUF metadata's shape, stored indented
for people to read.

The signature is Ed25519 (RFC 8032) over the RFC 8785 canonical form of `signed`; `sig` is hex, `keyid` is the SHA-256
of the public key's 32 bytes, hex. Rule: nothing in a document is looked at before its signature has verified, except
`type` and `registry`, which say that it is ours to judge. The public key always comes from the caller (who has it
from the roster), never from the document.

No I/O, no clock. Who the signer has to be, and what it may say, is for `ptm.node.verify` and `ptm.results` to know.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ValidationError
from ulid import ULID

from ptm.errors import BadSignature, Malformed, NotForUs
from ptm.model import Document, MemberRequest, as_text

MAX_DOCUMENT_BYTES = 1024 * 1024
MAX_DEPTH = 16
_SIG = re.compile(r"[0-9a-f]{128}", re.ASCII)

AnyDocument = TypeVar("AnyDocument", bound=Document)
AnyModel = TypeVar("AnyModel", bound=BaseModel)


@dataclass(frozen=True)
class Envelope:
    """Parsed, not believed. `sha256` is the digest of the canonical signed part: a document's identity."""

    signed: dict[str, Any]
    canonical: bytes
    keyid: str
    sig: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.canonical).hexdigest()


def key_id(public_key: str) -> str:
    """The keyid of an Ed25519 public key given in hex."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()


def task_id(created: datetime, registry: str, user: str, nonce: str) -> str:
    """A ULID whose 80 random bits are SHA-256 over registry, author and nonce: only its author can have made it.

    So a member who puts a task of their own under somebody else's id is found out, and cannot use up that run's one result.
    """
    return _bound_ulid("ptm/task-id@1", created, registry, user, nonce)


def transfer_id(created: datetime, registry: str, sender: str, nonce: str) -> str:
    """As `task_id`, for a transfer."""
    return _bound_ulid("ptm/transfer-id@1", created, registry, sender, nonce)


def _bound_ulid(use: str, created: datetime, registry: str, author: str, nonce: str) -> str:
    bound = hashlib.sha256(f"{use}\n{registry}\n{author}\n{nonce}".encode()).digest()[:10]
    return str(ULID(int(created.timestamp() * 1000).to_bytes(6, "big") + bound))


def sign(document: Document | MemberRequest, key: Ed25519PrivateKey) -> bytes:
    """The document as it is stored: indented JSON of the envelope."""
    signed = document.model_dump(mode="json", exclude_none=True)
    canonical = rfc8785.dumps(signed)
    public = key.public_key().public_bytes_raw().hex()
    envelope = {"signed": signed, "signatures": [{"keyid": key_id(public), "sig": key.sign(canonical).hex()}]}
    body = json.dumps(envelope, indent=2, ensure_ascii=False).encode() + b"\n"
    if len(body) > MAX_DOCUMENT_BYTES:
        raise Malformed(
            f"the document has {len(body)} bytes, more than {MAX_DOCUMENT_BYTES}", hint="fewer sites or files in one task"
        )
    return body


def parse(raw: bytes) -> Envelope:
    """Read an envelope without believing it. `Malformed` says what is wrong with its shape."""
    outer = parse_json(raw)
    if not isinstance(outer, dict) or set(outer) != {"signed", "signatures"} or not isinstance(outer["signed"], dict):
        raise Malformed("not a signed document: it must have exactly `signed` and `signatures`")
    signatures = outer["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise Malformed("a document carries exactly one signature")
    if set(signatures[0]) != {"keyid", "sig"} or not all(isinstance(value, str) for value in signatures[0].values()):
        raise Malformed("a signature has exactly `keyid` and `sig`")
    if not _SIG.fullmatch(signatures[0]["sig"]):
        raise Malformed("`sig` is not 64 bytes in lower-case hex")
    try:
        canonical = rfc8785.dumps(outer["signed"])
    except (rfc8785.CanonicalizationError, ValueError, RecursionError) as e:
        raise Malformed(f"has no canonical form (RFC 8785): {e}") from None
    return Envelope(outer["signed"], canonical, signatures[0]["keyid"], bytes.fromhex(signatures[0]["sig"]))


def verify(raw: bytes | Envelope, kind: type[AnyDocument], registry: str, public_key: str) -> AnyDocument:
    """The document, if it is of this kind, of this registry, and signed with this Ed25519 public key (hex).

    Raises, in this order: `Malformed` (no envelope, or of another type), `NotForUs` (another registry),
    `BadSignature`, and `Malformed` again for a signed document that breaks its type's rules."""
    envelope = raw if isinstance(raw, Envelope) else parse(raw)
    if envelope.signed.get("type") != kind.TYPE:
        raise Malformed(f"is of type {envelope.signed.get('type')!r:.60}, expected {kind.TYPE!r}")
    if envelope.signed.get("registry") != registry:
        raise NotForUs(f"was signed for another registry ({envelope.signed.get('registry')!r:.60})")
    check_signature(envelope, public_key)
    return load(kind, envelope.canonical)


def verify_request(raw: bytes) -> MemberRequest:
    """A membership request: signed with the very key it asks to be admitted (a proof of possession, not of identity)."""
    envelope = parse(raw)
    if envelope.signed.get("type") != MemberRequest.TYPE:
        raise Malformed(f"is of type {envelope.signed.get('type')!r:.60}, expected {MemberRequest.TYPE!r}")
    request = load(MemberRequest, envelope.canonical)
    check_signature(envelope, request.sign_key)
    return request


def check_signature(envelope: Envelope, public_key: str) -> None:
    """`BadSignature` unless this key signed the canonical form."""
    if envelope.keyid != key_id(public_key):
        raise BadSignature("is signed with another key than the roster names")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(envelope.sig, envelope.canonical)
    except (InvalidSignature, ValueError):
        raise BadSignature("the signature does not match: changed after it was signed, or never signed") from None


def load(kind: type[AnyModel], canonical: bytes) -> AnyModel:
    """Bytes that are already trusted (or about to be checked otherwise) into a typed document, strictly."""
    try:
        return kind.model_validate_json(canonical)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"]) or "document"
        raise Malformed(as_text(f"{kind.__name__.lower()}: {where}: {first['msg']}")) from None


def parse_json(raw: bytes) -> object:
    """JSON, strictly: UTF-8, at most 1 MiB, no duplicate keys, no NaN or Infinity, at most 16 deep."""
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise Malformed(f"has {len(raw)} bytes, more than {MAX_DOCUMENT_BYTES}")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise Malformed(f"is not JSON as ptm takes it: {str(e)[:100]}") from None
    if _deeper_than(value, MAX_DEPTH):
        raise Malformed(f"is nested more than {MAX_DEPTH} deep")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _deeper_than(value: object, depth: int) -> bool:
    children: list[object]
    if isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, list):
        children = value
    else:
        return False
    return depth == 0 or any(_deeper_than(child, depth - 1) for child in children)
