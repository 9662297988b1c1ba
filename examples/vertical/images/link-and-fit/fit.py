"""Linear and logistic regression on rows that lie in one place: coefficients and standard errors, in plain Python.

Everything is fitted on covariates brought to mean 0 and standard deviation 1, and told on the scale they came in. The logistic
model's likelihood, gradient and information are those of the federated demo's image (`logistic.py` here is
`ptm/demo/image/run`), so there is one implementation of them.

Rules: it ends, and says why there is no answer (`NotEstimable`): collinear or constant covariates, separation, no convergence.
What it does not do: penalise, weight, choose a model, or judge whether so few rows may be told about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import logistic  # type: ignore[import-not-found]

MAX_ITERATIONS = 25
MAX_HALVINGS = 20
STEP_TOLERANCE = 1e-9
"""Converged when no coefficient moves by more than this many standard deviations; the error left is far smaller."""
PIVOT_TOLERANCE = 1e-10
"""A column that the others explain but for this share of its variance says nothing of its own."""

Vector = list[float]
Matrix = list[list[float]]


class NotEstimable(Exception):
    """There is no such estimate; the text says why and names no value."""


@dataclass(frozen=True)
class Estimate:
    """Intercept first, then the covariates in their order; on the covariates' own scale."""

    coefficients: Vector
    standard_errors: Vector
    iterations: int


@dataclass(frozen=True)
class Scale:
    center: Vector
    scale: Vector


def scale_of(x: Sequence[Sequence[float]]) -> Scale:
    """Mean and standard deviation (n - 1) of each covariate."""
    center, scale = [], []
    for column in zip(*x, strict=True):
        mean = math.fsum(column) / len(column)
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in column) / max(len(column) - 1, 1))
        if not spread > 1e-12 * max(abs(mean), 1e-300):
            raise NotEstimable("a covariate is the same in every row")
        center.append(mean)
        scale.append(spread)
    return Scale(center, scale)


def fit_linear(y: Sequence[float], x: Sequence[Sequence[float]]) -> Estimate:
    """Ordinary least squares; the residual variance has n - p degrees of freedom."""
    scaling = scale_of(x)
    design = [[1.0, *((v - c) / s for v, c, s in zip(row, scaling.center, scaling.scale, strict=True))] for row in x]
    if len(design) <= len(design[0]):
        raise NotEstimable("there are not more rows than coefficients")
    inverse = invert([[math.fsum(z[j] * z[k] for z in design) for k in range(len(design[0]))] for j in range(len(design[0]))])
    beta = [0.0] * len(inverse)
    residual = list(y)
    for _ in range(2):  # the second time takes away what rounding left
        step = times(inverse, [math.fsum(r * z[j] for r, z in zip(residual, design, strict=True)) for j in range(len(beta))])
        beta = [b + d for b, d in zip(beta, step, strict=True)]
        residual = [value - dot(beta, z) for value, z in zip(y, design, strict=True)]
    variance = math.fsum(r * r for r in residual) / (len(y) - len(beta))
    if not variance > 1e-24 * max(math.fsum(v * v for v in y) / len(y), 1e-300):
        raise NotEstimable("the covariates foretell the outcome exactly")
    return _unscaled(beta, [[variance * v for v in row] for row in inverse], scaling, 1)


def fit_logistic(y: Sequence[int], x: Sequence[Sequence[float]]) -> Estimate:
    """Maximum likelihood by Newton's method (iteratively reweighted least squares), with halved steps where it overshoots."""
    if not 0 < sum(y) < len(y):
        raise NotEstimable("the outcome is the same in every row")
    scaling = scale_of(x)
    question = logistic.Question("", [], None, scaling.center, scaling.scale, 0, "")
    rows = logistic.Rows(list(y), [list(row) for row in x], 0)

    def derivatives(at: Vector) -> tuple[float, Vector, Matrix]:
        found = logistic.derivatives(rows, question, at)
        return found["log_likelihood"], found["gradient"], found["information"]

    beta = [0.0] * (len(scaling.center) + 1)
    likelihood, gradient, information = derivatives(beta)
    covariance = invert(information)
    for iteration in range(1, MAX_ITERATIONS + 1):
        step = times(covariance, gradient)
        for _ in range(MAX_HALVINGS):
            following = [b + d for b, d in zip(beta, step, strict=True)]
            after = derivatives(following)
            if after[0] >= likelihood - 1e-9 * abs(likelihood):
                break
            step = [d / 2 for d in step]
        beta, (likelihood, gradient, information) = following, after
        try:
            covariance = invert(information)
        except NotEstimable as e:
            raise NotEstimable("covariates tell the outcomes, or a part of them, apart completely (separation)") from e
        if max(map(abs, step)) < STEP_TOLERANCE:
            return _unscaled(beta, covariance, scaling, iteration)
    raise NotEstimable(f"no convergence in {MAX_ITERATIONS} steps, as where covariates tell outcomes apart (separation)")


def invert(matrix: Matrix) -> Matrix:
    """The inverse of a symmetric positive definite matrix, by Cholesky's decomposition. `NotEstimable` if it is not (nearly)."""
    size = len(matrix)
    lower = [[0.0] * size for _ in range(size)]
    for j in range(size):
        pivot = matrix[j][j] - math.fsum(lower[j][k] ** 2 for k in range(j))
        if not pivot > PIVOT_TOLERANCE * matrix[j][j]:
            raise NotEstimable("covariates say the same (collinear)")
        lower[j][j] = math.sqrt(pivot)
        for i in range(j + 1, size):
            lower[i][j] = (matrix[i][j] - math.fsum(lower[i][k] * lower[j][k] for k in range(j))) / lower[j][j]
    columns = [_solve(lower, [1.0 if i == j else 0.0 for i in range(size)]) for j in range(size)]
    return [[columns[j][i] for j in range(size)] for i in range(size)]


def _solve(lower: Matrix, right: Vector) -> Vector:
    size = len(right)
    half = [0.0] * size
    for i in range(size):
        half[i] = (right[i] - math.fsum(lower[i][k] * half[k] for k in range(i))) / lower[i][i]
    solved = [0.0] * size
    for i in reversed(range(size)):
        solved[i] = (half[i] - math.fsum(lower[k][i] * solved[k] for k in range(i + 1, size))) / lower[i][i]
    return solved


def times(matrix: Matrix, vector: Sequence[float]) -> Vector:
    return [dot(row, vector) for row in matrix]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(v * w for v, w in zip(a, b, strict=True))


def _unscaled(beta: Vector, covariance: Matrix, scaling: Scale, iterations: int) -> Estimate:
    """From standardised covariates to their own scale: a linear map, of the coefficients and of their covariance."""
    size = len(beta)
    back = [[0.0] * size for _ in range(size)]
    back[0][0] = 1.0
    for j, (center, scale) in enumerate(zip(scaling.center, scaling.scale, strict=True), start=1):
        back[0][j], back[j][j] = -center / scale, 1.0 / scale
    errors = [math.sqrt(dot(row, times(covariance, row))) for row in back]
    return Estimate(times(back, beta), errors, iterations)
