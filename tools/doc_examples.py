"""One example of every document, made with fixed keys and times; all of one task of alice's at maastro.

Rule: everything but age ciphertext comes out the same every time (Ed25519 is deterministic). Identities and ciphertexts come from
outside (`make_once`). The keys are public: nothing real is ever signed with them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

import pyrage
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

from ptm import envelope, layout
from ptm.model import (
    Cancel,
    Decision,
    Deliver,
    Delivered,
    Document,
    Kind,
    Member,
    MemberRequest,
    PlainFile,
    Refusal,
    Resources,
    Result,
    Roster,
    SealedFile,
    SealedManifest,
    SentFile,
    Task,
)
from ptm.notes import ImageApproval, ImageWithdrawal, Note
from ptm.tasks import TaskRequest
from ptm.transfer import FromRun, Purge, PurgedFile, Receipt, Transfer
from ptm.workers import Claim, DayRun, Heartbeat

REGISTRY = "6f1c1a52-5d5e-4c1e-9b6b-2f0d3a7c9e10"
NOW = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)
IMAGE = "myConsortium/count:1"
IMAGE_DIGEST = "sha256:" + hashlib.sha256(b"an image").hexdigest()
ATTEMPT = "01KANB93A0J3V2N0C9Q4RT5XYZ"
PLAIN = {
    "params.json": b'{"min_age": 60}\n',
    "count.json": b'{"patients": 214}\n',
    "log.txt": b"counting\n",
    "diagnoses.csv": b"pseudonym,diagnosis\n5f1c,E11\n",
}


def nonce(label: str) -> str:
    """16 bytes that look random and are not."""
    return hashlib.sha256(f"ptm example nonce: {label}".encode()).hexdigest()[:32]


def signing_key(member: str) -> Ed25519PrivateKey:
    """An example member's key: its seed is the SHA-256 of `ptm example key: NAME`."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"ptm example key: {member}".encode()).digest())


TASK_ID = envelope.task_id(NOW, REGISTRY, "alice", nonce("task"))
DELIVERING_ID = envelope.task_id(NOW, REGISTRY, "alice", nonce("delivering"))
LINKING_ID = envelope.task_id(NOW, REGISTRY, "alice", nonce("linking"))
TRANSFER_ID = envelope.transfer_id(NOW, REGISTRY, "maastro", nonce("transfer"))
COLLECTION = "link-2026"


def plain(name: str) -> PlainFile:
    data = PLAIN[name]
    return PlainFile(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def manifest(sealed_by: str, *names: str, of: str = TASK_ID) -> SealedManifest:
    return SealedManifest(registry=REGISTRY, task=of, sealed_by=sealed_by, files=tuple(plain(name) for name in names))


INPUTS, OUTPUTS = manifest("alice", "params.json"), manifest("maastro", "count.json", "log.txt")
SENT = manifest("maastro", "diagnoses.csv", of=TRANSFER_ID)


def make_once() -> dict[str, dict[str, str]]:
    """New age identities, and everything sealed to them: what cannot be made the same twice."""
    identities = {name: pyrage.x25519.Identity.generate() for name in ("alice", "maastro", "coordinator", "ttp")}

    def seal(data: bytes, *names: str) -> str:
        return base64.b64encode(pyrage.encrypt(data, [identities[name].to_public() for name in names])).decode()

    return {
        "identities": {name: str(identity) for name, identity in identities.items()},
        "sealed": {
            "params.json": seal(PLAIN["params.json"], "maastro", "alice"),
            "inputs": seal(rfc8785.dumps(INPUTS.model_dump(mode="json")), "maastro", "alice"),
            "count.json": seal(PLAIN["count.json"], "alice"),
            "log.txt": seal(PLAIN["log.txt"], "alice"),
            "outputs": seal(rfc8785.dumps(OUTPUTS.model_dump(mode="json")), "alice"),
            "diagnoses.csv": seal(PLAIN["diagnoses.csv"], "ttp"),
            "sent": seal(rfc8785.dumps(SENT.model_dump(mode="json")), "ttp"),
        },
    }


@dataclass(frozen=True)
class Example:
    """One document: its type, what it looks like as it is stored, where it lies and who vouches for it."""

    file: str
    kind: type[BaseModel]
    body: bytes
    where: str
    by: str
    purpose: str = ""
    variant: str = ""
    """Where it is one more example of a type: of what."""

    @property
    def title(self) -> str:
        if self.variant:
            return f"{self.kind.__name__} {self.variant}"
        wire = self.kind.model_fields.get("type")
        return f"{self.kind.__name__}: `{wire.default}`" if wire else self.kind.__name__


class Examples:
    """Every document, of one task `TASK_ID` of alice's at maastro."""

    def __init__(self, made: dict[str, dict[str, str]]) -> None:
        self._made = made

    def all(self) -> list[Example]:
        task, site, worker = TASK_ID, "maastro", "maastro-1"
        return [
            self._signed(
                self.task,
                "alice",
                f"`{layout.task('alice', task)}`, and the same bytes as `{layout.queue(site, 'alice', task)}`",
            ),
            self._signed(self.result, site, f"`{layout.result(site, task)}`"),
            self._signed(self._refusal(), site, f"`{layout.refusal(site, task, 0)}`"),
            self._signed(self._note(), site, f"`{layout.note(site, task, 1, 'approved')}`"),
            self._signed(self._image_approval(), site, f"`{layout.approval(site, IMAGE_DIGEST)}`"),
            self._signed(self._withdrawal(), site, f"`{layout.withdrawal(site, IMAGE_DIGEST, self._approval_sha256)}`"),
            self._signed(
                self._cancel(),
                "alice",
                f"`{layout.cancel(site, 'alice', task)}`",
                "A wish to cancel a task. It counts only from the very user whose task it is.",
            ),
            self._signed(self._claim(), site, f"`{layout.claim(site, task, 1)}`"),
            self._signed(self._day_run(), site, f"`{layout.day_run(site, f'{NOW:%Y-%m-%d}', 'alice', 1)}`"),
            self._signed(self._heartbeat(), site, f"`{layout.heartbeat(site, worker)}`; the only object a node overwrites"),
            self._request(),
            Example(
                "roster.json",
                Roster,
                pretty(self._roster()),
                "`trust/targets/<sha256>.roster.json`",
                "TUF's targets role, not an envelope",
            ),
            Example(
                "sealed-manifest.json",
                SealedManifest,
                pretty(INPUTS),
                "the field `manifest` of a task or a result, as age ciphertext in base64",
                "whoever signed the document that it travels in",
            ),
            Example(
                "task-file.json",
                TaskRequest,
                pretty(self._task_file()),
                "a researcher's own disk",
                "nobody: `ptm task put FILE` makes a signed task of it",
            ),
            *self._of_the_party(),
        ]

    def _of_the_party(self) -> list[Example]:
        """Another task of alice's: maastro's outputs go to the trusted party ttp, and one at ttp waits for more than that."""
        site, party, seen = "maastro", "ttp", self._manifest_sha256
        return [
            self._variant(
                "task-deliver.json",
                "that delivers",
                self.delivering,
                "alice",
                f"`{layout.task('alice', DELIVERING_ID)}`",
                "The same, where the outputs go to a trusted party's collection instead of to the researcher.",
            ),
            self._variant(
                "result-delivered.json",
                "that was delivered",
                self._delivered(),
                site,
                f"`{layout.result(site, DELIVERING_ID)}`",
                "`delivered` takes the place of `outputs`: sizes and digests are the ciphertexts'.",
            ),
            self._signed(self.transfer, site, f"`{layout.transfer_manifest(party, site, TRANSFER_ID)}`"),
            self._signed(self._receipt(seen), party, f"`{layout.receipt(party, site, TRANSFER_ID, seen)}`"),
            self._signed(self._purge(), party, f"`{layout.purge(party, COLLECTION, ATTEMPT)}`"),
            self._variant(
                "note-waiting-data.json",
                "that data is waited for",
                self._waiting(),
                party,
                f"`{layout.note(party, LINKING_ID, 0, 'waiting-data')}`",
                "Not for people: the run goes on by itself when the collection is complete. `reason` says what is missing.",
            ),
        ]

    def _variant(self, file: str, variant: str, document: Document, by: str, where: str, purpose: str) -> Example:
        return Example(file, type(document), envelope.sign(document, signing_key(by)), where, by, purpose, variant)

    @cached_property
    def delivering(self) -> Task:
        return Task(
            registry=REGISTRY,
            id=DELIVERING_ID,
            user="alice",
            nonce=nonce("delivering"),
            created=NOW,
            expires=NOW + timedelta(days=7),
            purpose="Link diagnoses and incomes",
            image="myConsortium/pseudonymise:1",
            data=("cohort",),
            deliver=Deliver(to="ttp", collection=COLLECTION),
            sites=("maastro",),
            recipients=("alice",),
        )

    @cached_property
    def transfer(self) -> Transfer:
        return Transfer(
            registry=REGISTRY,
            id=TRANSFER_ID,
            nonce=nonce("transfer"),
            sender="maastro",
            party="ttp",
            collection=COLLECTION,
            purpose=self.delivering.purpose,
            run=FromRun(task=DELIVERING_ID, task_sha256=digest_of(self.delivering)),
            files=(self._sent("diagnoses.csv"),),
            manifest=self._made["sealed"]["sent"],
            created=NOW,
        )

    @property
    def _manifest_sha256(self) -> str:
        return hashlib.sha256(envelope.sign(self.transfer, signing_key("maastro"))).hexdigest()

    def _delivered(self) -> Result:
        changed = {
            "task": DELIVERING_ID,
            "task_sha256": digest_of(self.delivering),
            "image": self.delivering.image,
            "outputs": (),
            "log": None,
            "manifest": None,
            "decided_by": (),
            "delivered": Delivered(
                to="ttp",
                collection=COLLECTION,
                transfer=TRANSFER_ID,
                manifest_sha256=self._manifest_sha256,
                files=self.transfer.files,
            ),
        }
        return self.result.model_copy(update=changed)

    def _receipt(self, seen: str) -> Receipt:
        return Receipt(
            registry=REGISTRY,
            transfer=TRANSFER_ID,
            sender="maastro",
            party="ttp",
            collection=COLLECTION,
            seen_sha256=seen,
            state="accepted",
            files=self.transfer.files,
            created=NOW + timedelta(seconds=20),
        )

    def _purge(self) -> Purge:
        (file,) = self.transfer.files
        gone = PurgedFile(sender="maastro", transfer=TRANSFER_ID, name=file.name, sha256=file.sha256)
        created = NOW + timedelta(days=1)
        return Purge(
            registry=REGISTRY, party="ttp", collection=COLLECTION, why="used", task=LINKING_ID, files=(gone,), created=created
        )

    def _waiting(self) -> Note:
        linking = self.delivering.model_copy(
            update={
                "id": LINKING_ID,
                "nonce": nonce("linking"),
                "image": "myConsortium/link:1",
                "data": (COLLECTION,),
                "deliver": None,
                "sites": ("ttp",),
            }
        )
        return Note(
            registry=REGISTRY,
            task=LINKING_ID,
            task_sha256=digest_of(linking),
            user="alice",
            site="ttp",
            what="waiting-data",
            worker="ttp-1",
            reason=f"the collection {COLLECTION} is not complete: statistics has not sent incomes\\.csv",
            created=NOW + timedelta(seconds=30),
        )

    def _sent(self, name: str) -> SentFile:
        sealed = self._sealed(name)
        return SentFile(name=name, size=sealed.size, sha256=sealed.sha256)

    @cached_property
    def task(self) -> Task:
        return Task(
            registry=REGISTRY,
            id=TASK_ID,
            user="alice",
            nonce=nonce("task"),
            created=NOW,
            expires=NOW + timedelta(days=7),
            purpose="Count patients over 60",
            image=IMAGE,
            command=("--verbose",),
            env={"LANG": "C.UTF-8"},
            resources=Resources(cpu_cores=1, ram_gb=0.5),
            time_limit_s=900,
            data=("cohort",),
            sites=("maastro",),
            recipients=("alice",),
            inputs=(self._sealed("params.json"),),
            manifest=self._made["sealed"]["inputs"],
        )

    @cached_property
    def result(self) -> Result:
        return Result(
            registry=REGISTRY,
            task=TASK_ID,
            task_sha256=self._task_sha256,
            user="alice",
            site="maastro",
            worker="maastro-1",
            attempt=ATTEMPT,
            state="completed",
            exit_code=0,
            image=IMAGE,
            image_digest=IMAGE_DIGEST,
            start_time=NOW + timedelta(seconds=8),
            end_time=NOW + timedelta(seconds=12),
            roster_version=2,
            recipients=("alice",),
            outputs=(self._sealed("count.json"),),
            log=self._sealed("log.txt"),
            manifest=self._made["sealed"]["outputs"],
            policy_sha256=hashlib.sha256(b"a policy").hexdigest(),
            decided_by=(Decision(what="approved", by="J. Jansen", reason="study 12", time=NOW + timedelta(seconds=6)),),
            audit_head=hashlib.sha256(b"an audit log").hexdigest(),
        )

    @property
    def _task_sha256(self) -> str:
        return digest_of(self.task)

    def _refusal(self) -> Refusal:
        return Refusal(
            registry=REGISTRY,
            task=TASK_ID,
            user="alice",
            site="maastro",
            seen_sha256=hashlib.sha256(b"something else").hexdigest(),
            reason="the signature does not match: changed after it was signed, or never signed",
            hint=f"somebody changed the queue entry; `ptm task put --task {TASK_ID}` puts the signed task back",
            created=NOW + timedelta(seconds=5),
        )

    def _note(self) -> Note:
        return Note(
            registry=REGISTRY,
            task=TASK_ID,
            task_sha256=self._task_sha256,
            user="alice",
            site="maastro",
            what="approved",
            image_digest=IMAGE_DIGEST,
            by="J. Jansen",
            reason="study 12",
            created=NOW + timedelta(seconds=6),
        )

    def _image_approval(self) -> ImageApproval:
        return ImageApproval(
            registry=REGISTRY,
            site="maastro",
            image=IMAGE,
            image_digest=IMAGE_DIGEST,
            by="J. Jansen",
            reason="reviewed with the consortium",
            created=NOW,
        )

    @property
    def _approval_sha256(self) -> str:
        return envelope.parse(envelope.sign(self._image_approval(), signing_key("maastro"))).sha256

    def _withdrawal(self) -> ImageWithdrawal:
        approval = self._image_approval()
        return ImageWithdrawal(
            registry=REGISTRY,
            site="maastro",
            image=IMAGE,
            image_digest=IMAGE_DIGEST,
            approval_sha256=self._approval_sha256,
            approved_by=approval.by,
            approved=approval.created,
            by="M. de Vries",
            reason="a flaw was found",
            created=NOW + timedelta(days=1),
        )

    def _cancel(self) -> Cancel:
        return Cancel(registry=REGISTRY, task=TASK_ID, user="alice", created=NOW + timedelta(minutes=1), reason="wrong cohort")

    def _claim(self) -> Claim:
        return Claim(
            registry=REGISTRY,
            task=TASK_ID,
            task_sha256=self._task_sha256,
            site="maastro",
            worker="maastro-1",
            epoch=1,
            nonce=nonce("claim"),
            created=NOW + timedelta(seconds=5),
        )

    def _day_run(self) -> DayRun:
        return DayRun(
            registry=REGISTRY,
            site="maastro",
            user="alice",
            day=f"{NOW:%Y-%m-%d}",
            number=1,
            task=TASK_ID,
            worker="maastro-1",
            nonce=nonce("day run"),
            created=NOW + timedelta(seconds=5),
        )

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            registry=REGISTRY,
            site="maastro",
            worker="maastro-1",
            session=nonce("session"),
            beat=42,
            running=(TASK_ID,),
            version="0.1.0",
            created=NOW + timedelta(seconds=10),
        )

    def _roster(self) -> Roster:
        kinds: dict[str, Kind] = {"coordinator": "coordinator", "maastro": "site", "alice": "researcher"}
        members = tuple(
            Member(name=name, kind=kind, sign_key=public(name), age_key=self._recipient(name), admitted=NOW)
            for name, kind in kinds.items()
        )
        return Roster(registry=REGISTRY, name="A study", members=members)

    def _request(self) -> Example:
        request = MemberRequest(
            name="maastro",
            kind="site",
            organisation="Maastro",
            sign_key=public("maastro"),
            age_key=self._recipient("maastro"),
            created=NOW,
        )
        body = envelope.sign(request, signing_key("maastro"))
        return Example("request.json", MemberRequest, body, "a file handed to the coordinator", "the key it asks to be admitted")

    def _task_file(self) -> TaskRequest:
        return TaskRequest(
            image=IMAGE,
            sites=("maastro",),
            expires="7d",
            purpose="Count patients over 60",
            inputs={"params.json": Path("params.json")},
            data=("cohort",),
            resources=Resources(ram_gb=0.5),
        )

    def _signed(self, document: Document, by: str, where: str, purpose: str = "") -> Example:
        name = f"{document.TYPE.removeprefix('ptm/').removesuffix('@1')}.json"
        return Example(name, type(document), envelope.sign(document, signing_key(by)), where, by, purpose)

    def _sealed(self, name: str) -> SealedFile:
        content = self._made["sealed"][name]
        cipher = base64.b64decode(content)
        return SealedFile(name=name, size=len(cipher), sha256=hashlib.sha256(cipher).hexdigest(), content=content)

    def _recipient(self, name: str) -> str:
        return str(pyrage.x25519.Identity.from_str(self._made["identities"][name]).to_public())


def digest_of(task: Task) -> str:
    """A task of alice's, as other documents name it."""
    return envelope.parse(envelope.sign(task, signing_key("alice"))).sha256


def public(member: str) -> str:
    return signing_key(member).public_key().public_bytes_raw().hex()


def pretty(model: BaseModel) -> bytes:
    return json.dumps(model.model_dump(mode="json", exclude_none=True, exclude_unset=True), indent=2).encode() + b"\n"
