"""Every key in a registry: built and taken apart here, and nowhere else (design, section 3; listing in `docs/format.md`).

A key of a shape that no function here makes is nobody's: the parsers return None for it, and their callers ignore it
with a warning."""

from __future__ import annotations

import re
from dataclasses import dataclass

MARKER = "ptm.json"
PENDING = "trust/pending/"
_NAME = r"[a-z0-9][a-z0-9-]{0,62}"
_ULID = r"[0-7][0-9A-HJKMNP-TV-Z]{25}"
_PENDING = re.compile(rf"trust/pending/(?P<member>{_NAME})/(?P<version>[1-9][0-9]{{0,8}})\.(?P<digest>[0-9a-f]{{64}})\.json")
_QUEUE = re.compile(rf"queue/(?P<site>{_NAME})/(?P<user>{_NAME})/(?P<task>{_ULID})(?P<cancel>\.cancel)?\.json")
_TASK = re.compile(rf"users/(?P<user>{_NAME})/tasks/(?P<task>{_ULID})/task\.json")
_HEARTBEAT = re.compile(rf"sites/(?P<site>{_NAME})/workers/(?P<worker>{_NAME})\.json")
_NOTE = re.compile(
    rf"sites/(?P<site>{_NAME})/runs/(?P<task>{_ULID})/(?P<number>[0-9]{{3}})"
    r"\.(?P<what>awaiting-approval|awaiting-release|waiting-data|approved|denied|released|withheld)\.json"
)
_RESULT = re.compile(rf"sites/(?P<site>{_NAME})/runs/(?P<task>{_ULID})/result\.json")
_TRANSFER = re.compile(rf"inbox/(?P<party>{_NAME})/(?P<sender>{_NAME})/(?P<transfer>{_ULID})/manifest\.json")
_TRANSFER_FILE = re.compile(rf"inbox/{_NAME}/{_NAME}/{_ULID}/files/[^/]+\.(age|c4gh)")
_APPROVAL = re.compile(rf"sites/{_NAME}/approvals/(?P<digest>[0-9a-f]{{64}})(\.(?P<withdrawn>[0-9a-f]{{64}})\.withdrawn)?\.json")
_DAY_RUN = re.compile(rf"sites/{_NAME}/days/[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}/{_NAME}/(?P<number>[0-9]{{7}})\.json")
_CLAIM = re.compile(rf"sites/{_NAME}/runs/{_ULID}/claim\.(?P<epoch>[1-9][0-9]{{0,3}})\.json")


@dataclass(frozen=True)
class QueueEntry:
    """A key in a site's queue: a task, or (`cancel`) the wish to cancel it."""

    key: str
    site: str
    user: str
    task: str
    cancel: bool


@dataclass(frozen=True)
class PendingKey:
    """The key of a reviewer's signature that waits for others: whose, of which version of the list, and its digest."""

    key: str
    member: str
    version: int
    digest: str


@dataclass(frozen=True)
class TransferKey:
    """A key in a party's inbox: the manifest of a transfer."""

    key: str
    party: str
    sender: str
    transfer: str


def is_task_id(text: str) -> bool:
    """Whether a text has the shape of a task's id, a ULID."""
    return re.fullmatch(_ULID, text) is not None


def trust_metadata(file: str) -> str:
    return f"trust/metadata/{file}"


def trust_target(file: str) -> str:
    return f"trust/targets/{file}"


def pending(member: str, version: int, digest: str) -> str:
    """A reviewer's signature on the next version of the list of reviewed images."""
    return f"trust/pending/{member}/{version}.{digest}.json"


def tasks_of(user: str) -> str:
    return f"users/{user}/tasks/"


def task(user: str, task_id: str) -> str:
    return f"users/{user}/tasks/{task_id}/task.json"


def task_input(user: str, task_id: str, name: str) -> str:
    return f"users/{user}/tasks/{task_id}/inputs/{name}.age"


def queue_of(site: str) -> str:
    return f"queue/{site}/"


def queue_of_user(site: str, user: str) -> str:
    return f"queue/{site}/{user}/"


def queue(site: str, user: str, task_id: str) -> str:
    return f"queue/{site}/{user}/{task_id}.json"


def cancel(site: str, user: str, task_id: str) -> str:
    return f"queue/{site}/{user}/{task_id}.cancel.json"


def workers_of(site: str) -> str:
    return f"sites/{site}/workers/"


def heartbeat(site: str, worker: str) -> str:
    return f"sites/{site}/workers/{worker}.json"


def scratch(site: str, worker: str) -> str:
    """Where a worker tries out what the store can do; empty again afterwards."""
    return f"sites/{site}/probe/{worker}/"


def probe(kind: str, member: str) -> str:
    """Where a member may try out what the store can do: `ptm registry probe`."""
    return scratch(member, "probe") if kind in ("site", "party") else f"users/{member}/probe/"


def run(site: str, task_id: str) -> str:
    return f"sites/{site}/runs/{task_id}/"


def claim(site: str, task_id: str, epoch: int) -> str:
    return f"sites/{site}/runs/{task_id}/claim.{epoch}.json"


def refusal(site: str, task_id: str, number: int) -> str:
    return f"sites/{site}/runs/{task_id}/{number:03d}.refused.json"


def note(site: str, task_id: str, number: int, what: str) -> str:
    return f"sites/{site}/runs/{task_id}/{number:03d}.{what}.json"


def approval(site: str, image_digest: str) -> str:
    """A first-use approval of an image, by its digest (`sha256:…`)."""
    return f"sites/{site}/approvals/{image_digest.removeprefix('sha256:')}.json"


def days_of(site: str) -> str:
    return f"sites/{site}/days/"


def day_runs_of(site: str, day: str, user: str) -> str:
    return f"sites/{site}/days/{day}/{user}/"


def day_run(site: str, day: str, user: str, number: int) -> str:
    """One accepted run of a researcher on a day (`2026-11-22`), numbered from 1."""
    return f"sites/{site}/days/{day}/{user}/{number:07d}.json"


def approvals_of(site: str) -> str:
    return f"sites/{site}/approvals/"


def withdrawals_of(site: str, image_digest: str) -> str:
    return f"sites/{site}/approvals/{image_digest.removeprefix('sha256:')}."


def withdrawal(site: str, image_digest: str, approval_sha256: str) -> str:
    """A first-use approval taken back: of which image, and which approval of it."""
    return f"{withdrawals_of(site, image_digest)}{approval_sha256}.withdrawn.json"


def runs_of(site: str) -> str:
    return f"sites/{site}/runs/"


def result(site: str, task_id: str) -> str:
    return f"sites/{site}/runs/{task_id}/result.json"


def output(site: str, task_id: str, attempt: str, name: str) -> str:
    return f"sites/{site}/runs/{task_id}/outputs/{attempt}/{name}.age"


def inbox_of(party: str) -> str:
    return f"inbox/{party}/"


def inbox_of_sender(party: str, sender: str) -> str:
    return f"inbox/{party}/{sender}/"


def transfer(party: str, sender: str, transfer_id: str) -> str:
    """All that belongs to one transfer, until its party has it."""
    return f"inbox/{party}/{sender}/{transfer_id}/"


def transfer_manifest(party: str, sender: str, transfer_id: str) -> str:
    return f"inbox/{party}/{sender}/{transfer_id}/manifest.json"


def transfer_file(party: str, sender: str, transfer_id: str, name: str, suffix: str) -> str:
    """`suffix`: `age` or `c4gh`."""
    return f"inbox/{party}/{sender}/{transfer_id}/files/{name}.{suffix}"


def receipt(party: str, sender: str, transfer_id: str, seen_sha256: str) -> str:
    """The party's answer to a manifest with these bytes (SHA-256 of the object as it lay in the inbox)."""
    return f"sites/{party}/receipts/{sender}/{transfer_id}/{seen_sha256}.json"


def purges_of(party: str, collection: str) -> str:
    return f"sites/{party}/purges/{collection}/"


def purge(party: str, collection: str, number: str) -> str:
    """A party's record that it removed a collection's files; `number` is a ULID."""
    return f"sites/{party}/purges/{collection}/{number}.json"


def parse_pending(key: str) -> PendingKey | None:
    match = _PENDING.fullmatch(key)
    return match and PendingKey(key, match["member"], int(match["version"]), match["digest"])


def parse_queue(key: str) -> QueueEntry | None:
    match = _QUEUE.fullmatch(key)
    return match and QueueEntry(key, match["site"], match["user"], match["task"], match["cancel"] is not None)


def parse_task(key: str) -> tuple[str, str] | None:
    """(user, task id) of a researcher's record of a task."""
    match = _TASK.fullmatch(key)
    return match and (match["user"], match["task"])


def parse_heartbeat(key: str) -> tuple[str, str] | None:
    """(site, worker)."""
    match = _HEARTBEAT.fullmatch(key)
    return match and (match["site"], match["worker"])


def parse_claim(key: str) -> int | None:
    """The epoch of a claim."""
    match = _CLAIM.fullmatch(key)
    return match and int(match["epoch"])


def parse_approval(key: str) -> tuple[str, str | None] | None:
    """The digest of an approved image (`sha256:…`), and, for an approval taken back, that approval's own SHA-256."""
    match = _APPROVAL.fullmatch(key)
    return match and (f"sha256:{match['digest']}", match["withdrawn"])


def parse_day_run(key: str) -> int | None:
    """The number of a day's run."""
    match = _DAY_RUN.fullmatch(key)
    return match and int(match["number"])


def parse_note(key: str) -> tuple[int, str] | None:
    """(number, what) of a note that a person is waited for, or of a decision."""
    match = _NOTE.fullmatch(key)
    return match and (int(match["number"]), match["what"])


def parse_result(key: str) -> tuple[str, str] | None:
    """(site, task id)."""
    match = _RESULT.fullmatch(key)
    return match and (match["site"], match["task"])


def parse_transfer(key: str) -> TransferKey | None:
    match = _TRANSFER.fullmatch(key)
    return match and TransferKey(key, match["party"], match["sender"], match["transfer"])


def is_transfer_file(key: str) -> bool:
    """Whether a key is that of a file of a transfer."""
    return _TRANSFER_FILE.fullmatch(key) is not None
