"""Claim: once a Gram matrix is decomposed, choosing a tolerance and a round costs next to nothing.

Degrees of freedom of a chain and ``tune`` over a grid, beside the decomposition that they stand on,
beside the same choice level by level, and beside what a user would do without the library: 10-fold
cross-validation of scikit-learn's KernelRidge, which chooses a single fit.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV

import sdntk
from benchmarks import report
from benchmarks.timing import measure, take_turns

SETTINGS: dict[str, Any] = {
    "kernel": "Matern-3/2, length scale 1, points in R^5",
    "labels": "sin of the first coordinate, noise 0.5",
    "grid": "60 tolerances from 0.02 to 0.9 of the labels' mean square, 20 rounds",
    "chain": "tolerance 0.05 of the mean square, 20 rounds",
    "dtype": "float64",
    "repeats": 5,
    "goal": "seconds over those of one eigh, at most 0.05 and 0.3",
}
GOALS = {"degrees of freedom, 20 rounds": 0.05, "tune, 60 x 20": 0.3}
LEVELS, ROUNDS = np.geomspace(0.02, 0.9, 60), 20


def problem(size: int) -> tuple[jax.Array, jax.Array]:
    """The Gram matrix and labels."""
    x = jax.random.normal(jax.random.key(0), (size, 5))
    y = jnp.sin(2 * x[:, 0]) + 0.5 * jax.random.normal(jax.random.key(1), (size,))
    return jnp.asarray(sdntk.gram(sdntk.kernels.matern(1.5, 1.0), x)), y


def level_by_level(spectrum: sdntk.Spectrum, y: jax.Array) -> tuple[float, int, float]:
    """What ``tune`` chooses, by a chain for each level: the level, the round, and its GCV."""
    values = []
    for level in LEVELS:
        tolerance = level * jnp.mean(y**2)
        run = sdntk.distill_spectrum(spectrum, y, tolerance=tolerance, rounds=ROUNDS)
        df = sdntk.selection.degrees_of_freedom(run, relative=True)
        values.append(np.asarray(sdntk.selection.gcv(run, df)))
    level, t = np.unravel_index(np.argmin(values), np.shape(values))
    return float(LEVELS[level]), int(t), float(values[level][t])


def folds(gram: np.ndarray, y: np.ndarray) -> GridSearchCV:
    """scikit-learn's choice among 60 ridges."""
    ridges = {"alpha": len(y) * np.geomspace(1e-6, 1e-1, 60)}
    search = GridSearchCV(KernelRidge(kernel="precomputed"), ridges, cv=10)
    return search.fit(len(y) * gram, y)


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run, print, and keep table and JSON; ``quick`` takes 500 points."""
    size = 500 if quick else 2000
    gram, y = problem(size)
    spectrum = sdntk.decompose(gram)
    run = sdntk.distill_spectrum(spectrum, y, tolerance=0.05 * jnp.mean(y**2), rounds=ROUNDS)

    def tune() -> sdntk.Tuning:
        return sdntk.tune(spectrum, y, tolerances=LEVELS, relative=True, rounds=ROUNDS)

    found, expected = tune().best, level_by_level(spectrum, y)
    if (found.level, found.round) != expected[:2]:
        raise AssertionError(f"tune chose {found}, level by level {expected}")

    eigh = jax.jit(jnp.linalg.eigh)
    timings = take_turns(
        {
            "eigh": lambda: eigh(gram),
            "degrees of freedom, 20 rounds": lambda: run.degrees_of_freedom,
            "tune, 60 x 20": lambda: tune().fit.fitted_coordinates,
            "the same, level by level": lambda: level_by_level(spectrum, y)[0],
        },
        SETTINGS["repeats"],
    )
    by_folds = partial(folds, np.asarray(gram), np.asarray(y))
    timings["KernelRidge, 60 ridges, 10 folds"] = measure(by_folds, repeats=1, warm_up=False)
    rows = [
        {
            "K": size,
            "what": name,
            "seconds (median)": timing.median,
            "fastest .. slowest, s": "{:.3g} .. {:.3g}".format(*timing.spread),
            "seconds over eigh's": timing.median / timings["eigh"].median,
            "goal": GOALS.get(name, ""),
        }
        for name, timing in timings.items()
    ]
    title = "Seconds of a choice on one decomposition"
    report.write(report.record_name("selection", quick=quick), title, SETTINGS, rows)
    return rows
