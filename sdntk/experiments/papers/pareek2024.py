"""Pareek, Du and Oh 2024: a weight of the teacher for each round.

F_t = A ((1 - xi_t) I + xi_t F_{t-1}), F_0 = A = D (c I + D)^-1, reach exactly the mixtures
sum_j w_j A^{j+1}, sum_j w_j = 1 (docs/theory.md, section 8). With T - 1 rounds after the first fit
these are the polynomials p in A of degree T with p(0) = 0 and p(1) = 1: with s distinct
eigenvalues, those of s rounds take any values there, hence those of the filter that is best of all
that treat equal eigenvalues alike,

    F = m/(m + sigma^2),  m the mean of z*^2 over the equal ones.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sdntk import mixing
from sdntk.distillation import distill_spectrum
from sdntk.experiments.papers.findings import (
    Finding,
    Quantity,
    by_formula,
    holds,
    mean_and_error,
    no_difference,
    simulated,
)
from sdntk.spectra.chain import Distillation
from sdntk.spectra.dense import Spectrum, decompose

#: Distinct eigenvalues, each so often, and the mean square of the signal in their directions.
EIGENVALUES = 0.1, 0.5, 2.0
SIGNAL = 0.02, 0.1, 0.1
REPEATED = 20
MULTIPLIER, NOISE = 0.1, 0.8
DRAWS = 1000
S = len(EIGENVALUES)


@dataclasses.dataclass(frozen=True)
class Mixtures(Finding):
    """The least risk by the number of rounds, and the filters that have it.

    Attributes:
        formula: the least risk per point of 0 .. s + 1 rounds after the first fit, shape (s + 2,).
        library: of 0 .. s rounds; more cannot be told apart, shape (s + 1,).
        best: the least risk of any filter.
        d: eigenvalues at which filters are drawn, shape (m,).
        filters: of the best mixture of 0 .. s rounds there, shape (s + 1, m).
        targets: the best filter of all at the distinct eigenvalues, shape (s,).
    """

    formula: Float[np.ndarray, " r"]
    library: Float[np.ndarray, " t"]
    best: float
    d: Float[np.ndarray, " m"]
    filters: Float[np.ndarray, "t m"]
    targets: Float[np.ndarray, " s"]


def run() -> Mixtures:
    """Oracle weights and the chains that they become, on a matrix of s distinct eigenvalues."""
    spectrum, signal = _problem()
    z2 = np.asarray(spectrum.rotate(jnp.asarray(signal))) ** 2
    eigenvalues = np.asarray(spectrum.eigenvalues)
    means = z2.reshape(S, REPEATED).mean(axis=1)  # eigenvalues ascend
    targets = means / (means + NOISE**2)
    best = _risk(np.repeat(targets, REPEATED), z2)

    runs, weights = [], []
    for count in range(1, S + 2):
        runs.append(distill_spectrum(spectrum, signal, multiplier=MULTIPLIER, rounds=count))
        weights.append(mixing.oracle(runs[-1], signal, NOISE**2).weights)
    mixed = [np.asarray(r.mix(w).filter) for r, w in zip(runs, weights, strict=True)]
    library = np.array([_risk(filter_, z2) for filter_ in mixed])
    formula = np.array([_least_risk(eigenvalues, z2, count) for count in range(1, S + 3)])

    rows = [
        *_by_chain(runs[S], weights[S], spectrum, signal),
        *(
            by_formula(f"least risk, rounds: {count}", formula[count], library[count], 1e-9)
            for count in range(S + 1)
        ),
        by_formula(f"risk of {S} rounds is that of the best filter", best, library[S], 1e-9),
        holds(f"{S - 1} rounds are worse", "derived", library[S - 1] > best * (1 + 1e-3)),
        holds(f"risk falls with every round up to {S}", "derived", _falls(library)),
        _by_draws(spectrum, signal, np.asarray(weights[S]), best),
    ]
    d = np.geomspace(0.07, 4, 200)
    powers = (d / (MULTIPLIER + d)) ** np.arange(1, S + 2)[:, None]
    filters = np.array([np.asarray(w) @ powers[: len(w)] for w in weights])
    return Mixtures(tuple(rows), formula, library, best, d, filters, targets)


def _problem() -> tuple[Spectrum, np.ndarray]:
    """A Gram matrix of those eigenvalues, and a signal of those mean squares."""
    rng = np.random.default_rng(0)
    points = S * REPEATED
    basis, _ = np.linalg.qr(rng.normal(size=(points, points)))
    coordinates = rng.normal(size=(S, REPEATED))
    coordinates *= np.sqrt(np.array(SIGNAL)[:, None] / (coordinates**2).mean(axis=1, keepdims=True))
    G = (basis * np.repeat(EIGENVALUES, REPEATED)) @ basis.T  # noqa: N806 (theory's name)
    return decompose((G + G.T) / 2), basis @ coordinates.ravel()


def _risk(filter_: np.ndarray, z2: np.ndarray) -> float:
    """Sum ((1 - F)^2 z*^2 + sigma^2 F^2), per point."""
    return float(np.mean((1 - filter_) ** 2 * z2 + NOISE**2 * filter_**2))


def _least_risk(d: np.ndarray, z2: np.ndarray, count: int) -> float:
    """By least squares over F = A + sum_{j >= 1} w_j (A^{j+1} - A), in which sum_j w_j = 1."""
    a = d / (MULTIPLIER + d)
    steps = a[:, None] ** np.arange(2, count + 1) - a[:, None]
    loss = np.concatenate([-np.sqrt(z2)[:, None] * steps, NOISE * steps])
    left = np.concatenate([np.sqrt(z2) * (1 - a), NOISE * a])
    w = np.linalg.lstsq(loss, -left, rcond=None)[0]
    return _risk(a + steps @ w, z2)


def _falls(risks: np.ndarray) -> bool:
    return bool((np.diff(risks) < 0).all())


def _by_chain(
    run: Distillation, w: jax.Array, spectrum: Spectrum, signal: np.ndarray
) -> list[Quantity]:
    """The chain whose rounds have the weights of per_round ends in the mixture."""
    xi = mixing.per_round(w)
    count = len(w)
    chain = distill_spectrum(
        spectrum, signal, multiplier=MULTIPLIER, rounds=count, ground_truth_weight=1 - xi
    )
    three = jnp.array([0.3, -0.5, 1.2])
    first, second = map(float, mixing.per_round(three))
    return [
        no_difference(
            f"filter of the chain less the mixture, {count - 1} rounds",
            np.asarray(chain.filters)[-1] - np.asarray(run.mix(w).filter),
            1e-9,
        ),
        by_formula("xi_1 = w_2/(w_1 + w_2) of w = 0.3, -0.5, 1.2", 1.2 / 0.7, first),
        by_formula("xi_2 = 1 - w_0", 0.7, second),
    ]


def _by_draws(spectrum: Spectrum, signal: np.ndarray, w: np.ndarray, best: float) -> Quantity:
    """The risk of the mixture on noisy labels that are drawn."""
    noise = np.random.default_rng(1).normal(size=(len(signal), DRAWS))
    labels = signal[:, None] + NOISE * noise
    run = distill_spectrum(spectrum, labels, multiplier=MULTIPLIER, rounds=len(w))
    errors = np.mean((np.asarray(run.mix(w).fitted) - signal[:, None]) ** 2, axis=0)
    mean, error = mean_and_error(errors)
    return simulated(f"risk of {S} rounds, {DRAWS:,} draws", best, float(mean), float(error))
