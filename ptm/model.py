"""The documents that travel, as frozen, strict types. `docs/format.md` shows each with an example and its JSON Schema.

Rules: unknown fields are refused; every string, list and number is bounded; times are UTC to the second
(`2026-11-22T10:30:00Z`); binary values are base64 (RFC 4648, padded); digests are lower-case hex SHA-256. Fields of a
task's execution carry GA4GH TES v1.1's names where TES has one (`image`, `command`, `env`, `workdir`, `resources.*`,
`start_time`, `end_time`, `exit_code`).

A document of these types is well-formed, not believed: `ptm.envelope` says who signed it."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from ptm.complaint import NAME_PATTERN
from ptm.image import IMAGE_PATTERN

MAX_SITES = 1000
MAX_FILES = 256
MAX_DECISIONS = 64
MAX_GPUS = 64
INLINE_BYTES = 64 * 1024
"""Ciphertexts up to this many bytes travel inside the signed document."""
INLINE_TOTAL_BYTES = 384 * 1024
"""… as long as all of them together take no more than this, so that the document stays under 1 MiB."""
MAX_SEALED_BYTES = 2**50
MAX_TEXT = 2000
LOG_NAME = "log.txt"
RESULT_NAME = "result.json"
TASK_NAME = "task.json"
_RESERVED = {LOG_NAME, RESULT_NAME, TASK_NAME}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def parse_time(value: object) -> datetime:
    """`2026-11-22T10:30:00Z` to an aware datetime; whole seconds, UTC only (RFC 3339, one spelling), not before 1970."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise ValueError("a time is written like 2026-11-22T10:30:00Z")
    if value < "1970":
        raise ValueError("a time is not before 1970")
    return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def format_time(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _one_segment(name: str) -> str:
    if name in ("", ".", "..") or len(name.encode("utf-8", "surrogatepass")) > 200 or name.startswith(".ptm-"):
        raise ValueError("a file name has 1 to 200 bytes, is not . or .. and does not start with .ptm-")
    if any(c in "/\\" or not c.isprintable() for c in name):
        raise ValueError("a file name is one path segment of printable characters")
    return name


def _not_reserved(name: str) -> str:
    if name.casefold() in _RESERVED:
        raise ValueError(f"{name} is a name that ptm keeps for itself")
    return name


def _plain_text(text: str) -> str:
    if not all(c.isprintable() or c in "\n\t" for c in text):
        raise ValueError("has control characters")
    return text


def as_text(text: str) -> str:
    """Words of any origin and length as a `Text`: one line, what is not printable as `?`, cut at the end."""
    plain = "".join(c if c.isprintable() else " " if c in "\n\t" else "?" for c in text)
    return plain if len(plain) <= MAX_TEXT else plain[: MAX_TEXT - 1] + "…"


def _base64(text: str) -> str:
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None
    if base64.b64encode(decoded).decode() != text:
        raise ValueError("not canonical base64")
    return text


Name = Annotated[str, Field(pattern=NAME_PATTERN, examples=["maastro"])]
Ulid = Annotated[str, Field(pattern=r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$", examples=["01KAMV3ZR5F2J7Q8XG4M1W9ABC"])]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ImageDigest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
RegistryId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", description="the registry's UUID")]
Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="16 random bytes, hex")]
SignKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Ed25519 public key, hex (RFC 8032)")]
AgeKey = Annotated[str, Field(pattern=r"^age1[02-9ac-hj-np-z]{58}$", description="age X25519 recipient")]
FileName = Annotated[str, AfterValidator(_one_segment), Field(min_length=1, max_length=200)]
OutputName = Annotated[str, AfterValidator(_one_segment), AfterValidator(_not_reserved), Field(min_length=1, max_length=200)]
Text = Annotated[str, AfterValidator(_plain_text), Field(max_length=MAX_TEXT)]
Line = Annotated[str, AfterValidator(_plain_text), Field(min_length=1, max_length=4096)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Base64 = Annotated[str, AfterValidator(_base64), Field(max_length=4 * ((192 * 1024 + 2) // 3))]
Time = Annotated[
    datetime,
    BeforeValidator(parse_time),
    PlainSerializer(format_time),
    WithJsonSchema({"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", "examples": ["2026-11-22T10:30:00Z"]}),
]
Image = Annotated[str, Field(pattern=f"^{IMAGE_PATTERN}$", max_length=400, examples=["myConsortium/count:1"])]

Kind = Literal["researcher", "site", "party", "coordinator"]
FinalState = Literal["completed", "failed", "rejected", "canceled", "expired"]
Asked = Literal["awaiting-approval", "awaiting-release"]
Decided = Literal["approved", "denied", "released", "withheld"]
Person = Annotated[str, AfterValidator(_plain_text), Field(min_length=1, max_length=200)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Document(Frozen):
    """What can be signed. `type` is checked first, `registry` second (`ptm.envelope.verify`)."""

    TYPE: ClassVar[str]

    type: str
    registry: RegistryId


class Resources(Frozen):
    """TES `resources`. Absent: the site's own default; more than the site allows: the task is rejected.

    `gpus` is not of TES, which has no field for them. A task without it has none, so that its canonical form, and with it
    its digest, is what it was before there was such a field."""

    cpu_cores: Annotated[int, Field(ge=1, le=1024)] | None = None
    ram_gb: Annotated[float, Field(gt=0, le=65536)] | None = None
    disk_gb: Annotated[float, Field(gt=0, le=1048576)] | None = None
    gpus: Annotated[int, Field(ge=1, le=MAX_GPUS)] | None = None


class SealedFile(Frozen):
    """A file as age ciphertext: `size` and `sha256` are the ciphertext's. With `content` it travels here, without it
    as an object of its own."""

    name: FileName
    size: Annotated[int, Field(ge=1, le=MAX_SEALED_BYTES)]
    sha256: Sha256
    content: Annotated[str, AfterValidator(_base64), Field(max_length=4 * ((INLINE_BYTES + 2) // 3))] | None = None

    @property
    def inline(self) -> bytes | None:
        return None if self.content is None else base64.b64decode(self.content)


class PlainFile(Frozen):
    """One line of a sealed manifest: a file's plaintext size and SHA-256."""

    name: FileName
    size: Annotated[int, Field(ge=0, le=MAX_SEALED_BYTES)]
    sha256: Sha256


class SealedManifest(Frozen):
    """Travels only encrypted, to the same recipients as the files it lists. It ties their plaintexts to one document, so that a
    ciphertext copied from somebody else's task cannot be had decrypted (docs/adr/0006-sealed-manifest.md)."""

    type: Literal["ptm/sealed@1"] = "ptm/sealed@1"
    registry: RegistryId
    task: Ulid
    sealed_by: Name
    files: Annotated[tuple[PlainFile, ...], Field(max_length=MAX_FILES + 1)]


class Deliver(Frozen):
    """Where a run's outputs go instead of to the researcher: a trusted party's collection."""

    to: Name
    collection: Name


class SentFile(Frozen):
    """A file of a transfer, as ciphertext: what lies in the inbox."""

    name: FileName
    size: Annotated[int, Field(ge=1, le=MAX_SEALED_BYTES)]
    sha256: Sha256


class Delivered(Frozen):
    """All that a researcher gets of outputs that went to a trusted party: name, size and SHA-256 of each as ciphertext.
    `manifest_sha256` is of the transfer's manifest as it goes into the inbox: the party's receipt is found by it."""

    to: Name
    collection: Name
    transfer: Ulid
    manifest_sha256: Sha256
    files: Annotated[tuple[SentFile, ...], Field(min_length=1, max_length=MAX_FILES)]


class Task(Document):
    """One signed request. `id` is bound to its author (`ptm.envelope.task_id`), so nobody can occupy another's id."""

    TYPE: ClassVar[str] = "ptm/task@1"

    type: Literal["ptm/task@1"] = "ptm/task@1"
    id: Ulid
    user: Name
    nonce: Nonce
    created: Time
    expires: Time
    purpose: Text = ""
    study: Name | None = None
    contract: Literal["ptm"] = "ptm"
    image: Image
    command: Annotated[tuple[Line, ...], Field(max_length=64)] = ()
    env: Annotated[dict[EnvName, Annotated[str, AfterValidator(_plain_text), Field(max_length=4096)]], Field(max_length=64)] = {}
    workdir: Annotated[str, Field(pattern=r"^/[^\x00-\x1f]{0,1000}$"), AfterValidator(_plain_text)] | None = None
    resources: Resources = Resources()
    time_limit_s: Annotated[int, Field(ge=1, le=366 * 86400)] | None = None
    data: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    deliver: Deliver | None = None
    sites: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_SITES)]
    recipients: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
    inputs: Annotated[tuple[SealedFile, ...], Field(max_length=MAX_FILES)] = ()
    manifest: Base64 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field in (self.sites, self.data, self.recipients, tuple(f.name.casefold() for f in self.inputs)):
            if len(set(field)) != len(field):
                raise ValueError("a site, data source, recipient or input is named twice")
        if any(name.startswith("PTM_") for name in self.env):
            raise ValueError("env names that start with PTM_ are the node's")
        if self.expires <= self.created:
            raise ValueError("expires before it was made")
        if (self.manifest is None) != (not self.inputs):
            raise ValueError("inputs and their sealed manifest go together")
        return self


class Decision(Frozen):
    """What a person at the site decided about a run. `files`: how many single files were withheld, if it was not all."""

    what: Decided
    by: Person
    reason: Text = ""
    time: Time
    files: Annotated[int, Field(ge=1, le=MAX_FILES + 1)] | None = None


class DataUse(Frozen):
    """What went through the gateway between a run and one data source: `bytes_in` to the source, `bytes_out` to the run."""

    name: Name
    requests: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    bytes_in: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    bytes_out: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0


class Result(Document):
    """The outcome of one run at one site; at most one per run is ever committed.

    `task_sha256` is the digest of the task's canonical signed part. `exit_code` is the container's, where one ran.
    `reason` is one line for people, and is always there unless the run completed. `policy_sha256` is the digest of the
    policy file that decided, `decided_by` what people decided, `audit_head` the newest entry of the worker's audit log."""

    TYPE: ClassVar[str] = "ptm/result@1"

    type: Literal["ptm/result@1"] = "ptm/result@1"
    task: Ulid
    task_sha256: Sha256
    user: Name
    site: Name
    worker: Name
    attempt: Ulid
    state: FinalState
    exit_code: Annotated[int, Field(ge=-255, le=255)] | None = None
    reason: Text | None = None
    hint: Text | None = None
    image: Image
    image_digest: ImageDigest | None = None
    start_time: Time | None = None
    end_time: Time
    roster_version: Annotated[int, Field(ge=0)]
    recipients: Annotated[tuple[Name, ...], Field(max_length=64)]
    outputs: Annotated[tuple[SealedFile, ...], Field(max_length=MAX_FILES)] = ()
    log: SealedFile | None = None
    manifest: Base64 | None = None
    delivered: Delivered | None = None
    policy_sha256: Sha256 | None = None
    decided_by: Annotated[tuple[Decision, ...], Field(max_length=MAX_DECISIONS)] = ()
    data_use: Annotated[tuple[DataUse, ...], Field(max_length=64)] = ()
    audit_head: Sha256 | None = None

    @property
    def files(self) -> tuple[SealedFile, ...]:
        """The outputs, and the log last if there is one: all that the sealed manifest lists."""
        return self.outputs + ((self.log,) if self.log else ())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [f.name.casefold() for f in self.outputs]
        if len(set(names)) != len(names) or any(name in _RESERVED for name in names):
            raise ValueError("an output is named twice, or as ptm's own files are")
        if self.log is not None and self.log.name != LOG_NAME:
            raise ValueError(f"the log is named {LOG_NAME}")
        if (self.state == "completed") != (self.exit_code == 0 and self.reason is None):
            raise ValueError("completed means exit code 0 and no reason, and the other way round")
        if self.delivered is not None and self.outputs:
            raise ValueError("outputs are delivered to a party, or come to the researcher, not both")
        if self.state != "completed" and not self.reason:
            raise ValueError("a run that did not complete says why")
        if (self.manifest is None) != (not self.files):
            raise ValueError("files and their sealed manifest go together")
        return self


class Refusal(Document):
    """A site's note that what lay in its queue under this task's name is not what the user signed. The run is not
    used up by it.

    `seen_sha256` is the digest of the bytes as they lay there."""

    TYPE: ClassVar[str] = "ptm/refusal@1"

    type: Literal["ptm/refusal@1"] = "ptm/refusal@1"
    task: Ulid
    user: Name
    site: Name
    seen_sha256: Sha256
    reason: Text
    hint: Text | None = None
    created: Time


class Cancel(Document):
    TYPE: ClassVar[str] = "ptm/cancel@1"

    type: Literal["ptm/cancel@1"] = "ptm/cancel@1"
    task: Ulid
    user: Name
    created: Time
    reason: Text = ""


class Member(Frozen):
    """A line of the roster. A revoked member stays in it, so that its name and keys are never given out again."""

    name: Name
    kind: Kind
    organisation: Text = ""
    sign_key: SignKey
    age_key: AgeKey
    admitted: Time
    revoked: Time | None = None


class Roster(Frozen):
    """The TUF target `roster.json`. Not signed as an envelope: TUF's targets role vouches for it."""

    type: Literal["ptm/roster@1"] = "ptm/roster@1"
    registry: RegistryId
    name: Text = ""
    members: Annotated[tuple[Member, ...], Field(max_length=10_000)] = ()

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for field in ("name", "sign_key", "age_key"):
            values = [getattr(member, field) for member in self.members]
            if len(set(values)) != len(values):
                raise ValueError(f"two members share a {field}")
        return self


class MemberRequest(Frozen):
    """What a new member hands to the coordinator: public keys only, signed with the key it asks for (proof that it
    has it)."""

    TYPE: ClassVar[str] = "ptm/request@1"

    type: Literal["ptm/request@1"] = "ptm/request@1"
    name: Name
    kind: Kind
    organisation: Text = ""
    sign_key: SignKey
    age_key: AgeKey
    created: Time
