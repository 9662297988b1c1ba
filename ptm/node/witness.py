"""Holds an audit log against what left the site: every result of this worker, and its heartbeat, names the newest entry of its
time. An entry that they name and the log does not hold was changed, or cut off."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ptm import layout
from ptm.audit import Report, verify
from ptm.errors import NotFound, TooLarge, VerificationError
from ptm.model import Result
from ptm.registry import Registry
from ptm.tasks import PARALLEL
from ptm.workers import Heartbeat

log = logging.getLogger("ptm.node")


def verify_against_registry(registry: Registry, path: Path, worker: str) -> tuple[Report, int, int]:
    """The report on the whole log, and how many results of its workers and of others the registry holds. One read per result
    that this site ever gave: this is for people, not for a loop."""
    own = verify(path).workers | {worker}
    wanted: dict[str, str] = {}
    others = seen = 0
    for result in _results(registry):
        if result.worker not in own:
            others += 1
            continue
        seen += 1
        if result.audit_head is not None:
            wanted[result.audit_head] = f"the result of task {result.task}"
    for name in sorted(own):
        head = _heartbeat_head(registry, name)
        if head is not None:
            wanted[head] = f"the heartbeat of {name}"
    return verify(path, wanted), seen, others


def _results(registry: Registry) -> list[Result]:
    keys = [info.key for info in registry.store.list(layout.runs_of(registry.me)) if layout.parse_result(info.key)]

    def read(key: str) -> Result | None:
        try:
            return registry.read_own(key, Result)
        except (VerificationError, NotFound, TooLarge) as e:
            log.warning("%s: not this site's own: %s", key, e)
            return None

    with ThreadPoolExecutor(PARALLEL) as pool:
        return [result for result in pool.map(read, keys) if result is not None]


def _heartbeat_head(registry: Registry, worker: str) -> str | None:
    try:
        return registry.read_own(layout.heartbeat(registry.me, worker), Heartbeat).audit_head
    except (VerificationError, NotFound, TooLarge):
        return None
