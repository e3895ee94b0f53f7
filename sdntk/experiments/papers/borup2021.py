"""Borup and Andersen 2021: rounds of ridge fits with the share alpha of the true labels.

F_t = A (alpha I + (1 - alpha) F_{t-1}), F_0 = A = D (c I + D)^-1. Summed, with R = (1 - alpha) A,

    F_t = alpha A (I - R^t) (I - R)^-1 + R^t A,

which tends to alpha D (alpha D + c I)^-1, the ridge fit with multiplier c/alpha, at the rate R
(docs/theory.md, section 5).
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from sdntk import datasets, kernels
from sdntk.distillation import distill_spectrum
from sdntk.experiments.papers.findings import Finding, Quantity, by_formula, no_difference
from sdntk.gram_matrices.compute import gram
from sdntk.spectra.dense import decompose

MULTIPLIER = 1e-4
SHARES = 0.1, 0.3, 0.7
ROUNDS = 400


@dataclasses.dataclass(frozen=True)
class Limits(Finding):
    """Chains that tend to a ridge fit.

    Attributes:
        eigenvalues: d, shape (m,), those that are not 0.
        filters: of every round, shape (T, m), by alpha, the library's.
        limits: their limits, shape (m,), by alpha.
    """

    eigenvalues: Float[np.ndarray, " m"]
    filters: dict[float, Float[np.ndarray, "T m"]]
    limits: dict[float, Float[np.ndarray, " m"]]


def run() -> Limits:
    """Chains on the example of Mobahi et al., whose labels Borup and Andersen published."""
    x, y = datasets.mobahi_example()
    spectrum = decompose(gram(kernels.cubic_spline(), x))
    kept = np.asarray(spectrum.eigenvalues) > 0
    d = np.asarray(spectrum.eigenvalues)[kept]
    rows: list[Quantity] = []
    filters, limits = {}, {}
    for alpha in SHARES:
        chain = distill_spectrum(
            spectrum, y, multiplier=MULTIPLIER, rounds=ROUNDS, ground_truth_weight=alpha
        )
        ridge = distill_spectrum(spectrum, y, multiplier=MULTIPLIER / alpha, rounds=1)
        found = np.asarray(chain.filters)[:, kept]
        filters[alpha], limits[alpha] = found, alpha * d / (alpha * d + MULTIPLIER)
        fits = np.asarray(chain.fitted[-1] - ridge.fitted[0])
        rows += _rows(alpha, d, found, limits[alpha], fits)
    return Limits(tuple(rows), d, filters, limits)


def filter_of_round(d: Float[np.ndarray, " m"], alpha: float, t: int) -> Float[np.ndarray, " m"]:
    """F_t in closed form."""
    a = d / (MULTIPLIER + d)
    rate = (1 - alpha) * a
    return alpha * a * (1 - rate**t) / (1 - rate) + rate**t * a


def _rows(
    alpha: float,
    d: Float[np.ndarray, " m"],
    found: Float[np.ndarray, "T m"],
    limit: Float[np.ndarray, " m"],
    fits: Float[np.ndarray, " K"],
) -> list[Quantity]:
    every_round = [filter_of_round(d, alpha, t) for t in range(ROUNDS)]
    middle = len(d) // 2
    which = f"middle eigenvalue, alpha {alpha}"
    share = found[-1, middle]
    rate = (found[2] - limit) / (found[1] - limit)
    of_formula = (1 - alpha) * d[middle] / (MULTIPLIER + d[middle])
    away = found - every_round
    return [
        by_formula(f"F_5 of the {which}", every_round[5][middle], found[5, middle]),
        no_difference(f"F_t, all rounds and eigenvalues, alpha {alpha}", away, 1e-12),
        by_formula(
            f"multiplier of the limit, c/alpha, alpha {alpha}",
            MULTIPLIER / alpha,
            d[middle] * (1 - share) / share,
        ),
        by_formula(f"rate of approach, {which}", of_formula, rate[middle]),
        no_difference(f"last fit less the ridge fit with c/alpha, alpha {alpha}", fits, 1e-12),
    ]
