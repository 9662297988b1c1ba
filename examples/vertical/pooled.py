"""What the answer is held against: the same models by statsmodels, on the table that a faultless linkage would make.

A real consortium cannot do this. It shares no code with the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from statsmodels.discrete.discrete_model import Logit  # type: ignore[import-untyped]
from statsmodels.regression.linear_model import OLS  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Pooled:
    """Intercept first, then the covariates in their order."""

    coefficients: tuple[float, ...]
    standard_errors: tuple[float, ...]


def pooled_fit(kind: str, outcome: str, covariates: Sequence[str], rows: Sequence[dict[str, float]]) -> Pooled:
    y = np.array([row[outcome] for row in rows])
    design = np.array([[1.0, *(row[name] for name in covariates)] for row in rows])
    if kind == "linear":
        found = OLS(y, design).fit()
    else:
        found = Logit(y, design).fit(method="newton", maxiter=100, tol=1e-14, disp=False)
    return Pooled(tuple(map(float, found.params)), tuple(map(float, found.bse)))
