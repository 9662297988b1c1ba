"""The coefficient table: the federated fit beside the pooled one.

It makes a table and computes one number, the largest difference; where it is printed is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.table import Table

from ptm.demo.logistic import Fit

DECIMALS = 6


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
    table = Table(title="Coefficients, per standard deviation of the covariate", title_justify="left")
    for heading in ("", "federated", "pooled", "s.e. federated", "s.e. pooled", "odds ratio (95 % CI)"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    ratios = ["", *(ratio_text(federated, i) for i in range(len(federated.model.covariates)))]
    names = ["(intercept)", *(labels.get(name, name) for name in federated.model.covariates)]
    columns = (federated.beta, pooled.beta, federated.standard_error, pooled.standard_error)
    for i, (name, ratio) in enumerate(zip(names, ratios, strict=True)):
        table.add_row(name, *(f"{column[i]:.{DECIMALS}f}" for column in columns), ratio)
    return table


def ratio_text(fit: Fit, covariate: int) -> str:
    """Odds ratio and interval of the covariate with this index, as a paper would print it."""
    low, high = fit.interval
    return f"{fit.odds_ratio[covariate]:.2f} ({low[covariate]:.2f}–{high[covariate]:.2f})"
