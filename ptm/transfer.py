"""The documents of an inbox: a sender's `Transfer`, the party's `Receipt`, and its record of a `Purge`.

A transfer's signed part lists each file as ciphertext (name, size, SHA-256), for whoever looks at the bucket. Sizes and digests
of the plaintexts are in its sealed manifest only (`ptm.seal.open_manifest`): a digest in clear would let whoever runs the bucket
try out what a small file says, and the sealed list ties each plaintext to this transfer (docs/adr/0006-sealed-manifest.md).

No I/O. Keys are in `ptm.layout`; who may send what is for `ptm.trustedparty`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ptm.model import MAX_FILES, Base64, Document, FileName, Frozen, Name, Nonce, Person, SentFile, Sha256, Text, Time, Ulid

Format = Literal["age", "crypt4gh"]
SUFFIX: dict[Format, str] = {"age": "age", "crypt4gh": "c4gh"}
"""What a file's object is called in the inbox, after its name."""


class FromRun(Frozen):
    """The run whose outputs these are, where a node sent them: the site is the sender."""

    task: Ulid
    task_sha256: Sha256


class Transfer(Document):
    """One or more encrypted files for a trusted party's collection, written last, when all of them are there.

    `id` is bound to its sender (`ptm.envelope.transfer_id`). `files` are ciphertexts; `manifest` is the sealed list of the
    plaintexts, age ciphertext to the party, whatever the format of the files."""

    TYPE: ClassVar[str] = "ptm/transfer@1"

    type: Literal["ptm/transfer@1"] = "ptm/transfer@1"
    id: Ulid
    nonce: Nonce
    sender: Name
    party: Name
    collection: Name
    format: Format = "age"
    purpose: Text = ""
    run: FromRun | None = None
    files: Annotated[tuple[SentFile, ...], Field(min_length=1, max_length=MAX_FILES)]
    manifest: Base64
    created: Time

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len({file.name.casefold() for file in self.files}) != len(self.files):
            raise ValueError("a file is named twice")
        return self


class Receipt(Document):
    """The party's signed answer to a transfer: accepted whole, or refused with the reason.

    `seen_sha256` is the digest of the manifest's bytes as they lay in the inbox, so that an answer to something else that
    somebody put under a transfer's name is not taken for the answer to it. `files` are those accepted, as ciphertext."""

    TYPE: ClassVar[str] = "ptm/receipt@1"

    type: Literal["ptm/receipt@1"] = "ptm/receipt@1"
    transfer: Ulid
    sender: Name
    party: Name
    collection: Name | None = None
    seen_sha256: Sha256
    state: Literal["accepted", "refused"]
    reason: Text | None = None
    hint: Text | None = None
    files: Annotated[tuple[SentFile, ...], Field(max_length=MAX_FILES)] = ()
    created: Time

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.state == "refused") != bool(self.reason):
            raise ValueError("a refusal, and only that, says why")
        if (self.state == "accepted") != bool(self.files):
            raise ValueError("an acceptance, and only that, lists the files")
        return self


class PurgedFile(Frozen):
    """A file that was removed: whose, of which transfer, and the SHA-256 of its ciphertext as the manifest gave it."""

    sender: Name
    transfer: Ulid
    name: FileName
    sha256: Sha256


class Purge(Document):
    """A party's signed record that it removed files of a collection: after a run had used it, when they were too old, or because
    a person asked (`by`)."""

    TYPE: ClassVar[str] = "ptm/purge@1"

    type: Literal["ptm/purge@1"] = "ptm/purge@1"
    party: Name
    collection: Name
    why: Literal["used", "age", "asked"]
    task: Ulid | None = None
    by: Person | None = None
    reason: Text = ""
    files: Annotated[tuple[PurgedFile, ...], Field(max_length=1000)]
    created: Time
