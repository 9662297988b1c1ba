"""What every step of a run needs of its node, in one place, and how a run ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from ptm.algorithms import reviewed_digests
from ptm.audit import Audit
from ptm.config import NodeConfig
from ptm.model import DataUse, Decision, FinalState
from ptm.node.claims import Claims
from ptm.node.dayruns import DayRuns
from ptm.node.policy import LoadedPolicy
from ptm.node.rules import Policy
from ptm.node.runner import Interrupt, Runner
from ptm.node.state import State
from ptm.registry import Registry
from ptm.trustedparty.collection import Collections

Ask = Callable[[], Interrupt | None]


class PolicySource(Protocol):
    """Where the policy comes from: `ptm.node.policyfile.PolicyFile`."""

    def current(self) -> LoadedPolicy: ...


class ReviewedImages:
    """The digests of the registry's reviewed algorithms, looked up where a rule wants them, and again after `max_age_s`."""

    def __init__(self, registry: Registry, max_age_s: float = 60.0) -> None:
        self._registry, self._max_age_s = registry, max_age_s
        self._lock = threading.Lock()
        self._found: frozenset[str] = frozenset()
        self._at: float | None = None

    def digests(self, policy: Policy) -> frozenset[str]:
        """None if no rule of this policy asks for them. `TrustError`, `StoreError`."""
        if not any(rule.reviewed for rule in policy.allow):
            return frozenset()
        with self._lock:
            if self._at is None or time.monotonic() - self._at > self._max_age_s:
                self._found = reviewed_digests(self._registry.store, self._registry.home.trust)
                self._at = time.monotonic()
            return self._found


@dataclass(frozen=True)
class Worker:
    """`slots` bounds how many run at once; pulling an image takes none. `accepting` is held while a run is counted against its
    researcher's budget and taken on. `collections`: a trusted party's, which are data sources of `config`, too."""

    registry: Registry
    config: NodeConfig
    policy: PolicySource
    runner: Runner
    state: State
    claims: Claims
    slots: threading.Semaphore
    audit: Audit
    reviewed: ReviewedImages
    day_runs: DayRuns
    collections: Collections | None = None
    accepting: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Ending:
    """How a run ended, before it is sealed and signed."""

    state: FinalState
    reason: str | None = None
    hint: str | None = None
    exit_code: int | None = None
    image_digest: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    policy_sha256: str | None = None
    decided_by: tuple[Decision, ...] = ()
    data_use: tuple[DataUse, ...] = ()
