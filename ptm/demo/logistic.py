"""The researcher's side of a federated logistic regression: Newton's method on the sites' sums.

Round 1 asks each site for sums and sums of squares of the covariates, which give one scale for all (mean 0, standard
deviation 1 over the patients of all sites together). Each later round sends the coefficients out and adds up what
comes back: log-likelihood, gradient and information matrix. Sums over sites are sums over patients, so the answer is
that of a fit on all rows in one place, not an approximation of it.

Rules:
- Pure functions, and one loop (`fit`) that is handed the way to ask. Nothing here knows of tasks, sites' keys or stores.
- A site's answer is bytes of whoever signed it: shape, sizes and numbers are checked before they are added up.
- It ends: a model that does not converge in MAX_NEWTON_ROUNDS is an error.

`ptm/demo/image/run` is the other half. `ptm.demo.pooled` is what the answer is held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ptm.errors import Malformed, PtmError

MAX_NEWTON_ROUNDS = 15
STEP_TOLERANCE = 1e-8
"""Converged when no coefficient moved by more than this; Newton's error after that step is far below 1e-12."""
NORMAL_975 = 1.959963984540054
"""The standard normal distribution's 97.5 % point, for 95 % confidence intervals."""

Vector = NDArray[np.float64]
Ask = Callable[[int, dict[str, Any]], Mapping[str, bytes]]
"""Round number and input in; each site's summary.json out."""


@dataclass(frozen=True)
class Model:
    """What is fitted: `outcome` on `covariates`, by sites with at least `min_rows` complete rows."""

    outcome: str
    covariates: tuple[str, ...]
    min_rows: int = 10


class _Summary(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    n: Annotated[int, Field(ge=1)]


class Moments(_Summary):
    """A site's answer to the first round."""

    kind: Literal["moments"]
    events: Annotated[int, Field(ge=0)]
    sum: list[float]
    sum_of_squares: list[float]


class Derivatives(_Summary):
    """A site's answer to a Newton round; the intercept comes first."""

    kind: Literal["derivatives"]
    log_likelihood: Annotated[float, Field(le=0)]
    gradient: list[float]
    information: list[list[float]]


SummaryT = TypeVar("SummaryT", bound=_Summary)


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each covariate over all sites' patients."""

    center: Vector
    scale: Vector


@dataclass(frozen=True)
class Fit:
    """A fitted model. Arrays are in the order (intercept, covariates…); a coefficient is per standard deviation."""

    model: Model
    n: dict[str, int]
    """Patients of each site."""
    events: int
    beta: Vector
    standard_error: Vector
    log_likelihood: float
    rounds: int
    """Newton rounds; the round for the scale comes on top."""

    @property
    def odds_ratio(self) -> Vector:
        """Odds ratio per standard deviation, for each covariate (no intercept)."""
        return np.exp(self.beta[1:])

    @property
    def interval(self) -> tuple[Vector, Vector]:
        """Lower and upper end of the odds ratios' 95 % confidence intervals (Wald)."""
        half = NORMAL_975 * self.standard_error[1:]
        return np.exp(self.beta[1:] - half), np.exp(self.beta[1:] + half)


def moments_input(model: Model) -> dict[str, Any]:
    """The first round's input.json."""
    return {
        "model": "logistic",
        "outcome": model.outcome,
        "covariates": list(model.covariates),
        "beta": None,
        "min_rows": model.min_rows,
    }


def newton_input(model: Model, scale: Scale, beta: Vector) -> dict[str, Any]:
    """The input.json of a Newton round at `beta`."""
    return moments_input(model) | {"beta": beta.tolist(), "center": scale.center.tolist(), "scale": scale.scale.tolist()}


def parse_moments(body: bytes, model: Model) -> Moments:
    """A site's answer to the first round. `Malformed` if it does not belong to this model."""
    moments = _parse(body, Moments)
    p = len(model.covariates)
    if len(moments.sum) != p or len(moments.sum_of_squares) != p or moments.events > moments.n:
        raise Malformed(f"a summary that does not fit {p} covariates")
    return moments


def parse_derivatives(body: bytes, model: Model) -> Derivatives:
    """A site's answer to a Newton round. `Malformed` if it does not belong to this model."""
    derivatives = _parse(body, Derivatives)
    size = len(model.covariates) + 1
    lengths = {len(derivatives.gradient), len(derivatives.information), *map(len, derivatives.information)}
    if lengths != {size}:
        raise Malformed(f"a summary that does not fit {size} coefficients")
    return derivatives


def _parse(body: bytes, kind: type[SummaryT]) -> SummaryT:
    try:
        return kind.model_validate_json(body)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "summary.json"
        raise Malformed(f"a summary that is not of kind {kind.__name__}: {where}: {first['msg']}") from e


def common_scale(model: Model, moments: Mapping[str, Moments]) -> Scale:
    """Mean and standard deviation (n − 1) over all sites together. `PtmError` if a covariate does not vary."""
    n = sum(m.n for m in moments.values())
    total = np.sum([m.sum for m in moments.values()], axis=0)
    squares = np.sum([m.sum_of_squares for m in moments.values()], axis=0)
    center = total / n
    variance = (squares - n * center**2) / max(n - 1, 1)
    for name, value in zip(model.covariates, variance, strict=True):
        if not value > 0:
            raise PtmError(f"covariate {name} is the same for every patient", hint="leave it out of the model")
    return Scale(center=center, scale=np.sqrt(variance))


def newton_step(derivatives: Mapping[str, Derivatives]) -> tuple[Vector, Vector]:
    """What to add to beta, and the covariance matrix at the old beta. `PtmError` if the information is singular."""
    gradient = np.sum([d.gradient for d in derivatives.values()], axis=0)
    information = np.sum([d.information for d in derivatives.values()], axis=0)
    try:
        covariance: Vector = np.linalg.inv(information)
    except np.linalg.LinAlgError as e:
        raise _not_estimable("the information matrix is singular") from e
    if not np.all(np.isfinite(covariance)) or not np.all(np.diag(covariance) > 0):
        raise _not_estimable("the information matrix is not positive")
    return covariance @ gradient, covariance


def fit(model: Model, ask: Ask) -> Fit:
    """Fit `model` by asking round after round.

    Raises `Malformed` if a site's answer is no summary of this model, or its sites or patients change between rounds;
    `PtmError` if there is nothing to estimate (no event, a constant covariate, separation, collinearity).
    """
    moments = {site: parse_moments(body, model) for site, body in ask(1, moments_input(model)).items()}
    n = {site: m.n for site, m in moments.items()}
    events = sum(m.events for m in moments.values())
    if not 0 < events < sum(n.values()):
        raise _not_estimable(f"all patients have the same {model.outcome}")
    scale = common_scale(model, moments)
    beta: Vector = np.zeros(len(model.covariates) + 1)
    for rounds in range(1, MAX_NEWTON_ROUNDS + 1):
        answers = ask(rounds + 1, newton_input(model, scale, beta))
        derivatives = {site: parse_derivatives(body, model) for site, body in answers.items()}
        if {site: d.n for site, d in derivatives.items()} != n:
            raise Malformed("the sites or their numbers of patients changed between two rounds")
        step, covariance = newton_step(derivatives)
        beta = beta + step
        if np.max(np.abs(step)) < STEP_TOLERANCE:
            log_likelihood = math.fsum(d.log_likelihood for d in derivatives.values())
            return Fit(model, n, events, beta, np.sqrt(np.diag(covariance)), log_likelihood, rounds)
    raise _not_estimable(f"no convergence in {MAX_NEWTON_ROUNDS} rounds")


def _not_estimable(reason: str) -> PtmError:
    return PtmError(
        f"the model cannot be estimated: {reason}",
        hint="covariates that say the same, or that tell the outcome apart completely, have to be left out",
    )
