"""What the federated fit is held against: the same model by statsmodels, on all rows in one place.

A real consortium cannot do this, which is the point of the demo. It shares no code with `ptm.demo.logistic` but the
result's type: scale, likelihood and optimiser are numpy's and statsmodels' own. statsmodels takes a second to import, so
nothing else imports this module before it is needed.
"""

from __future__ import annotations

import numpy as np
from statsmodels.discrete.discrete_model import Logit  # type: ignore[import-untyped]

from ptm.demo.logistic import Fit, Model


def pooled_fit(model: Model, hospitals: dict[str, list[dict[str, str]]]) -> Fit:
    """Fit `model` on the patients of all hospitals, covariates brought to mean 0 and standard deviation 1."""
    rows = [row for patients in hospitals.values() for row in patients]
    outcome = np.array([int(row[model.outcome]) for row in rows])
    values = np.array([[float(row[name]) for name in model.covariates] for row in rows])
    scaled = (values - values.mean(axis=0)) / values.std(axis=0, ddof=1)
    design = np.column_stack([np.ones(len(rows)), scaled])
    found = Logit(outcome, design).fit(method="newton", maxiter=100, tol=1e-12, disp=False)
    return Fit(
        model=model,
        n={name: len(patients) for name, patients in hospitals.items()},
        events=int(outcome.sum()),
        beta=np.asarray(found.params),
        standard_error=np.asarray(found.bse),
        log_likelihood=float(found.llf),
        rounds=int(found.mle_retvals["iterations"]),
    )
