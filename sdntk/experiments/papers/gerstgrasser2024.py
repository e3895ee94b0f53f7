"""Gerstgrasser et al. 2024: each model is trained on all labels so far, real and generated.

On the same points that is a fit to the mean of the labels. At A = 1 the variance of round t is
sigma^2 (1 + 1/4 + .. + 1/(t + 1)^2), below sigma^2 pi^2/6 for ever. With a ridge the labels' mean m
and variance V follow m' = m (t + 1 + A)/(t + 2), V' = V ((t + 1 + A)/(t + 2))^2 +
sigma^2/(t + 2)^2 (docs/theory.md, section 10).
"""

import numpy as np
from jaxtyping import Float

from sdntk.experiments.papers import linear_model
from sdntk.experiments.papers.findings import Quantity, by_formula, holds
from sdntk.experiments.papers.linear_model import (
    FEATURES,
    NOISE,
    RIDGE,
    ROUNDS,
    SMALL,
    Courses,
    Model,
    per_point,
    rows_of,
)

#: Rounds after which the variance is within 1/T of its limit.
MANY = 1000


def run() -> Courses:
    """Without and with a ridge, beside labels that replace each other."""
    model = linear_model.model()
    first = NOISE**2 * per_point(np.ones(FEATURES))
    sums = np.cumsum(1 / np.arange(1, MANY + 1.0) ** 2)
    plain, ridge, replaced = "all labels", f"all labels, ridge {RIDGE}", "the last labels only"
    formula = {
        plain: first * sums[:ROUNDS],
        ridge: errors_with_ridge(model),
        replaced: first * np.arange(1, ROUNDS + 1),
    }
    runs = {
        plain: model.retrain(SMALL, "accumulate"),
        ridge: model.retrain(RIDGE, "accumulate"),
        replaced: model.retrain(SMALL, "replace"),
    }
    variance = np.asarray(model.retrain(SMALL, "accumulate", rounds=MANY, draws=1).variance)
    ratios = variance / variance[0]
    rows = [
        by_formula(f"variance of round {MANY - 1} over round 0", sums[-1], ratios[-1], 1e-6),
        Quantity("its limit, pi^2/6", np.pi**2 / 6, "derived", ratios[-1], 1 / MANY, "tail, 1/T"),
        holds("variance below pi^2/6 times round 0's", "derived", bool(max(ratios) < np.pi**2 / 6)),
        *rows_of(plain, formula[plain], runs[plain], exact=False),
        *rows_of(ridge, formula[ridge], runs[ridge], exact=True),
    ]
    return Courses(tuple(rows), formula, runs, {plain: first * np.pi**2 / 6})


def errors_with_ridge(model: Model) -> Float[np.ndarray, " T"]:
    """Sum (A m - z*)^2 + A^2 V of every round; m in units of z*."""
    a = model.eigenvalues / (RIDGE + model.eigenvalues)
    m, variance, errors = np.ones_like(a), np.full_like(a, NOISE**2), []
    for t in range(ROUNDS):
        errors.append(per_point((a * m - 1) ** 2 * model.squares + a**2 * variance))
        kept = (t + 1 + a) / (t + 2)
        m, variance = m * kept, variance * kept**2 + NOISE**2 / (t + 2) ** 2
    return np.array(errors)
