"""How much one run may have of one data source in all (`run_mb` in node.toml), however many answers it asks for.

The gateway breaks off what would go beyond it, and refuses what comes after; the runner ends the run, so that nobody takes what
is left of its data for the whole. Both go by the meter, which counts the byte that was too many, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ptm.config import GatewaySource
from ptm.model import DataUse
from ptm.node.meter import Meter

MIB = 1024 * 1024


class OverBudget(Exception):
    """In one line, for the researcher."""


def check_budget(meter: Meter, name: str, source: GatewaySource) -> None:
    """`OverBudget` if the run has had more of this source than it may."""
    if meter.bytes_out(name) > source.run_mb * MIB:
        raise OverBudget(_reason(name, source))


def over_budget(used: Iterable[DataUse], sources: Mapping[str, GatewaySource]) -> str | None:
    """Which budget a run is over, in one line for the researcher."""
    found = (use for use in used if use.name in sources and use.bytes_out > sources[use.name].run_mb * MIB)
    return next((_reason(use.name, sources[use.name]) for use in found), None)


def _reason(name: str, source: GatewaySource) -> str:
    return f"more than {source.run_mb} MB of the data source {name}, the site's limit for one run"
