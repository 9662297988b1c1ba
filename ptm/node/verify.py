"""Is this a task that may be considered at all? Pure: bytes, roster and a time in; an `AuthenticTask`, then a
`VerifiedTask` out, or an error.

Two steps, because they end differently. What is not *authentic* (`authenticate` fails) says nothing about the user
whose name it bears: the site leaves a signed note and the run is not used up. What is authentic but may not run here
and now (`verify` fails) is the user's own doing: the run ends with a signed result. Only a `VerifiedTask` reaches the
runner."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ptm import envelope
from ptm.config import FUTURE_TOLERANCE_S, MAX_LIFETIME_S
from ptm.errors import NotAllowed, NotForUs, Outdated
from ptm.layout import QueueEntry
from ptm.model import Cancel, Task
from ptm.trust import TrustedRoster


@dataclass(frozen=True)
class AuthenticTask:
    """Signed by the member whose queue path it lies under, for this registry, under an id of that member's own
    making. `sha256`: of the canonical form."""

    task: Task
    sha256: str


@dataclass(frozen=True)
class VerifiedTask:
    """Authentic, by a researcher in good standing, for this site, in its time, with recipients who are members.
    `organisation`: the researcher's, as the roster has it."""

    task: Task
    sha256: str
    organisation: str = ""


def authenticate(raw: bytes, entry: QueueEntry, roster: TrustedRoster) -> AuthenticTask:
    """Rule: the signer is the roster's member of the path's user name (revoked ones included: `verify` judges that),
    and the document repeats the path's user and id.

    Raises `Malformed`, `NotForUs` (another registry), `BadSignature`, `NotAllowed` (no such member, or an id that is
    not the user's)."""
    member = roster.member(entry.user)
    if member is None:
        raise NotAllowed(f"{entry.user} is not in the roster")
    parsed = envelope.parse(raw)
    task = envelope.verify(parsed, Task, roster.registry, member.sign_key)
    if (task.user, task.id) != (entry.user, entry.task):
        raise NotForUs(f"task {task.id} of {task.user} lies under the name of {entry.task} of {entry.user}")
    if task.id != envelope.task_id(task.created, task.registry, task.user, task.nonce):
        raise NotAllowed(f"the id {task.id} was not made by {task.user}")
    return AuthenticTask(task, parsed.sha256)


def verify(found: AuthenticTask, roster: TrustedRoster, site: str, now: datetime) -> VerifiedTask:
    """Rules of design section 5. Raises `NotAllowed`, `NotForUs` or `Outdated`, each with a reason for the researcher."""
    task = found.task
    member = roster.active(task.user)
    if member.kind != "researcher":
        raise NotAllowed(f"{task.user} is a {member.kind}, and only a researcher may put tasks")
    if site not in task.sites:
        raise NotForUs(f"the task is for {', '.join(task.sites)}, not for {site}")
    if task.created > now + timedelta(seconds=FUTURE_TOLERANCE_S):
        raise NotAllowed(
            f"the task was made in the future ({task.created:%Y-%m-%d %H:%M} UTC)", hint="check the clocks of both machines"
        )
    if task.expires - task.created > timedelta(seconds=MAX_LIFETIME_S):
        raise NotAllowed("the task lives longer than a year", hint="give it an earlier --expires")
    if task.expires <= now:
        raise Outdated(f"the task expired at {task.expires:%Y-%m-%d %H:%M} UTC")
    for name in task.recipients:
        roster.active(name)
    if task.deliver is not None and (kind := roster.active(task.deliver.to).kind) != "party":
        raise NotAllowed(f"{task.deliver.to} is a {kind}, and only to a party outputs are delivered")
    return VerifiedTask(task, found.sha256, member.organisation)


def verify_cancel(raw: bytes, entry: QueueEntry, roster: TrustedRoster) -> Cancel:
    """A wish to cancel counts only from the very user whose task it is."""
    member = roster.member(entry.user)
    if member is None:
        raise NotAllowed(f"{entry.user} is not in the roster")
    cancel = envelope.verify(raw, Cancel, roster.registry, member.sign_key)
    if (cancel.user, cancel.task) != (entry.user, entry.task):
        raise NotForUs(f"a cancel of task {cancel.task} lies under the name of {entry.task}")
    return cancel
