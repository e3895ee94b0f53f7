"""Das and Sanghavi 2023: the best weight xi of the teacher's predictions in linear regression, for
the error of the parameter.

With s^2 the eigenvalues of X^T X, theta the true parameter in their basis, ridge lambda, noise
sigma, a = s^2/(s^2 + lambda) and b = a (1 - a), E |theta(xi) - theta*|^2 is least at

    xi* = sum b (sigma^2 - lambda theta^2)/(s^2 + lambda) / sum b^2 (theta^2 + sigma^2/s^2),

which tends to sum b/(s^2 + lambda) / sum b^2/s^2 > 1 as sigma grows (docs/theory.md, section 8).
In the library's units G = X X^T/n and c = lambda/n, and a fit's parameter is X^T (dual
coefficients)/n.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from sdntk.distillation import distill_spectrum
from sdntk.experiments.papers.findings import (
    Finding,
    Quantity,
    by_formula,
    holds,
    ratio_and_error,
    simulated,
)
from sdntk.gram_matrices.compute import gram
from sdntk.spectra.dense import Spectrum, decompose

POINTS, FEATURES = 60, 20
RIDGE = 6.0
NOISES = 0.2, 0.7, 1.5, 5.0
DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class Weights(Finding):
    """The best weight against the noise, and the error against the weight.

    Attributes:
        noises: sigma of the curve, shape (m,).
        best: xi* of the formula, shape (m,).
        limit: xi* for large noise.
        simulated: xi* and its standard error by sigma, from draws.
        xi: weights, shape (k,).
        errors: E |theta(xi) - theta*|^2 over that of the teacher, shape (k,), by sigma, the
            library's.
    """

    noises: Float[np.ndarray, " m"]
    best: Float[np.ndarray, " m"]
    limit: float
    simulated: dict[float, tuple[float, float]]
    xi: Float[np.ndarray, " k"]
    errors: dict[float, Float[np.ndarray, " k"]]


@dataclasses.dataclass(frozen=True)
class _Regression:
    """A design, its true parameter, and the library's spectrum of it."""

    x: Float[np.ndarray, "n p"]
    theta: Float[np.ndarray, " p"]
    spectrum: Spectrum

    def parameters(self, y: Float[np.ndarray, "n q"]) -> Float[np.ndarray, "2 p q"]:
        """Those of teacher and student for several label sets, by the library's chain."""
        chain = distill_spectrum(self.spectrum, y, multiplier=RIDGE / POINTS, rounds=2)
        return np.einsum("np,tnq->tpq", self.x, np.asarray(chain.compute_duals())) / POINTS

    def best_weight(self, sigma: float) -> tuple[float, float]:
        """xi* of the formula as numerator and denominator."""
        _, s, v = np.linalg.svd(self.x, full_matrices=False)
        theta, s2 = v @ self.theta, s**2
        a = s2 / (s2 + RIDGE)
        b = a * (1 - a)
        above = np.sum(b * (sigma**2 - RIDGE * theta**2) / (s2 + RIDGE))
        return float(above), float(np.sum(b**2 * (theta**2 + sigma**2 / s2)))


def run() -> Weights:
    """The formula beside the library's chain: exactly, and on noise that is drawn."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(POINTS, FEATURES)) * np.geomspace(2, 0.2, FEATURES)
    theta = rng.normal(size=FEATURES) / FEATURES**0.5
    problem = _Regression(x, theta, decompose(gram(lambda a, b: a @ b.T, x)))

    noises = np.geomspace(0.1, 20, 200)
    formula = np.array([problem.best_weight(sigma) for sigma in noises])
    xi = np.linspace(-1.5, 3.5, 101)
    rows: list[Quantity] = []
    draws, errors = {}, {}
    bias, variance = _moments(problem)
    for sigma in NOISES:
        e00, e01, e11 = bias + sigma**2 * variance
        errors[sigma] = (e00 + 2 * xi * e01 + xi**2 * e11) / e00
        noise = sigma * rng.normal(size=(POINTS, DRAWS))
        draws[sigma] = _simulated(problem, noise)
        above, below = problem.best_weight(sigma)
        rows += _rows(sigma, above / below, -e01 / e11, draws[sigma])
    large = problem.best_weight(1e8)
    limit = large[0] / large[1]
    rows += [
        holds(f"xi* above 1 at sigma {NOISES[-1]}", "derived", draws[NOISES[-1]][0] > 1),
        by_formula("xi* for large noise", limit, -variance[1] / variance[2]),
    ]
    return Weights(tuple(rows), noises, formula[:, 0] / formula[:, 1], limit, draws, xi, errors)


def _moments(problem: _Regression) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of e = theta_0 - theta* and the step from teacher to student (e.e, e.step,
    step.step): of their means, and of their noise, exactly, since both are linear in the labels.
    """
    signal = (problem.x @ problem.theta)[:, None]
    teacher, student = problem.parameters(np.hstack([signal, np.eye(POINTS)]))
    error, step = teacher.copy(), student - teacher
    error[:, 0] -= problem.theta
    products = np.array([error * error, error * step, step * step]).sum(axis=1)
    return products[:, 0], products[:, 1:].sum(axis=1)


def _simulated(problem: _Regression, noise: np.ndarray) -> tuple[float, float]:
    """The weight that is best on the mean over draws of the noise, and its standard error."""
    teacher, student = problem.parameters((problem.x @ problem.theta)[:, None] + noise)
    error, step = teacher - problem.theta[:, None], student - teacher
    best, standard_error = ratio_and_error(-(error * step).sum(axis=0), (step**2).sum(axis=0))
    return float(best), float(standard_error)


def _rows(sigma: float, formula: float, exact: float, drawn: tuple[float, float]) -> list[Quantity]:
    return [
        by_formula(f"xi*, sigma {sigma}", formula, exact),
        simulated(f"xi*, sigma {sigma}, {DRAWS:,} draws", formula, *drawn),
    ]
