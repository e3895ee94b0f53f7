"""Dohmatob et al. 2024: each model is trained on the output, with noise, of the one before it.

Where a fit keeps its targets, A = 1, the variance of round t is t + 1 times that of round 0. With a
ridge, sum ((A^{t+1} - 1) z*)^2 + sigma^2 sum_{i=1..t+1} A^{2 i}: the variance tends to
sigma^2 A^2/(1 - A^2), and the signal to 0 (docs/theory.md, section 10).
"""

import numpy as np
from jaxtyping import Float

from sdntk.experiments.papers import linear_model
from sdntk.experiments.papers.findings import by_formula
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

#: Rounds after which nothing changes.
MANY = 3000


def run() -> Courses:
    """Without and with a ridge, the closed form beside the library's, and its draws."""
    model = linear_model.model()
    rounds = np.arange(1, ROUNDS + 1)
    plain, ridge = "no ridge", f"ridge {RIDGE}"
    formula = {
        plain: NOISE**2 * per_point(np.ones(FEATURES)) * rounds,
        ridge: np.array([error_with_ridge(model, t) for t in range(ROUNDS)]),
    }
    runs = {plain: model.retrain(SMALL, "replace"), ridge: model.retrain(RIDGE, "replace")}
    a2 = (model.eigenvalues / (RIDGE + model.eigenvalues)) ** 2
    noise, signal = NOISE**2 * per_point(a2 / (1 - a2)), per_point(model.squares)
    last = model.retrain(RIDGE, "replace", rounds=MANY, draws=1)
    variance = np.asarray(runs[plain].variance)
    rows = [
        *(
            by_formula(f"variance of round {t} over round 0, no ridge", t + 1, ratio, 1e-6)
            for t, ratio in enumerate(variance / variance[0])
            if t in (1, 9)
        ),
        *rows_of(plain, formula[plain], runs[plain], exact=False),
        *rows_of(ridge, formula[ridge], runs[ridge], exact=True),
        by_formula(f"variance after {MANY:,} rounds, {ridge}", noise, last.variance[-1]),
        by_formula(f"signal lost after {MANY:,} rounds, {ridge}", signal, last.squared_bias[-1]),
    ]
    return Courses(tuple(rows), formula, runs, {ridge: noise + signal})


def error_with_ridge(model: Model, t: int) -> float:
    """The expected error of round t."""
    a: Float[np.ndarray, " p"] = model.eigenvalues / (RIDGE + model.eigenvalues)
    variance = sum(a ** (2 * i) for i in range(1, t + 2))
    return per_point((1 - a ** (t + 1)) ** 2 * model.squares + NOISE**2 * variance)
