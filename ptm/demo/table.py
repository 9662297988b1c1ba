"""The demo's tables: the federated fit beside the pooled one, and what left each hospital.

They are made here; where they are printed is the caller's affair. Each fits into 80 columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table

from ptm.demo.logistic import Fit

DECIMALS = 6


@dataclass(frozen=True)
class Traffic:
    """What left a hospital, in bytes, over all rounds; and what did not."""

    hospital: str
    patients: int
    data_file: int
    """The patients' file, which stays."""
    clear: int
    """Summaries and logs, as the researcher reads them."""
    sealed: int
    """The same as age ciphertext."""
    objects: int
    """All that the hospital's runs left in the registry: results with their signatures, and claims."""


def largest_difference(federated: Fit, pooled: Fit) -> float:
    """The largest absolute difference between any two coefficients or any two standard errors."""
    return float(
        max(
            np.max(np.abs(federated.beta - pooled.beta)),
            np.max(np.abs(federated.standard_error - pooled.standard_error)),
        )
    )


def coefficient_table(federated: Fit, pooled: Fit, labels: Mapping[str, str]) -> Table:
    """One line for each coefficient: both estimates, both standard errors, odds ratio with 95 % interval.

    `labels` tells what to call a covariate; one without a label goes by its column's name.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("", "federated", "pooled", "s.e.\nfederated", "s.e.\npooled", "odds ratio\n(95 % CI)"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    ratios = ["", *(ratio_text(federated, i) for i in range(len(federated.model.covariates)))]
    names = ["(intercept)", *(labels.get(name, name) for name in federated.model.covariates)]
    columns = (federated.beta, pooled.beta, federated.standard_error, pooled.standard_error)
    for i, (name, ratio) in enumerate(zip(names, ratios, strict=True)):
        table.add_row(name, *(f"{column[i]:.{DECIMALS}f}" for column in columns), ratio)
    return table


def traffic_table(traffic: Sequence[Traffic]) -> Table:
    """One line for each hospital, in bytes."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    headings = (
        "",
        "\npatients",
        "their file,\nwhich stays",
        "summaries\nand logs",
        "the same,\nsealed",
        "all objects in\nthe registry",
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for line in traffic:
        numbers = (line.patients, line.data_file, line.clear, line.sealed, line.objects)
        table.add_row(line.hospital, *(f"{number:,}" for number in numbers))
    return table


def ratio_text(fit: Fit, covariate: int) -> str:
    """Odds ratio and interval of the covariate with this index, as a paper would print it."""
    low, high = fit.interval
    return f"{fit.odds_ratio[covariate]:.2f} ({low[covariate]:.2f}–{high[covariate]:.2f})"
