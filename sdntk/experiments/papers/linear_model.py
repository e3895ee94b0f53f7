"""A linear model that is retrained on its own output: p features and K points with A = 1 in the p
directions that it can express, and a ridge fit (docs/theory.md, section 10).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sdntk.experiments.papers.findings import (
    Finding,
    Quantity,
    by_formula,
    mean_and_error,
    simulated,
)
from sdntk.gram_matrices.compute import gram
from sdntk.retraining import Retraining, retrain
from sdntk.spectra.dense import Spectrum, decompose

POINTS, FEATURES, NOISE = 40, 10, 0.5
#: A multiplier for which A = 1 - 1e-9, about, where A is not 0; and a ridge.
SMALL, RIDGE = 1e-9, 0.2
ROUNDS, DRAWS = 20, 500
#: Rounds in the table.
TABLED = 0, 4, 19


@dataclasses.dataclass(frozen=True)
class Model:
    """The model and its signal.

    Attributes:
        spectrum: of the points.
        signal: a linear function on them, shape (K,).
    """

    spectrum: Spectrum
    signal: Float[np.ndarray, " K"]

    @property
    def eigenvalues(self) -> Float[np.ndarray, " p"]:
        """Those that are not 0."""
        d = np.asarray(self.spectrum.eigenvalues)
        return d[d > 0]

    @property
    def squares(self) -> Float[np.ndarray, " p"]:
        """z*^2 in their directions."""
        z = np.asarray(self.spectrum.rotate(jnp.asarray(self.signal)))
        return z[np.asarray(self.spectrum.eigenvalues) > 0] ** 2

    def retrain(self, multiplier: float, keep: Any, **changed: Any) -> Retraining:
        """The library's rounds, drawn and in closed form."""
        asked: dict[str, Any] = {
            "rounds": ROUNDS,
            "draws": DRAWS,
            "key": jax.random.key(0),
            "noise": NOISE,
        }
        given = asked | changed
        return retrain(self.spectrum, self.signal, multiplier=multiplier, keep=keep, **given)


@dataclasses.dataclass(frozen=True)
class Courses(Finding):
    """Errors of retraining, round by round.

    Attributes:
        formula: the expected error by name of the course, shape (T,).
        runs: the library's, by the same names.
        levels: what they tend to, by name, where it is known.
    """

    formula: dict[str, Float[np.ndarray, " T"]]
    runs: dict[str, Retraining]
    levels: dict[str, float]


def model() -> Model:
    """A random design."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(POINTS, FEATURES))
    return Model(decompose(gram(lambda a, b: a @ b.T, x)), x @ rng.normal(size=FEATURES) / 6)


def rows_of(
    name: str, formula: Float[np.ndarray, " T"], run: Retraining, *, exact: bool
) -> list[Quantity]:
    """The error of some rounds: by the formula beside the library's closed form, and its draws.

    Args:
        name: of the course.
        formula: the expected error of every round.
        run: the library's.
        exact: whether the library is asked for the same multiplier; else for one near 0.
    """
    mean, error = mean_and_error(np.asarray(run.error))
    expected = np.asarray(run.expected_error)
    rtol = 1e-10 if exact else 1e-6
    rows = []
    for t in TABLED:
        where = f"{name}, round {t}"
        rows.append(by_formula(f"error, {where}", formula[t], expected[t], rtol))
        drawn = f"error, {where}, {DRAWS} draws"
        rows.append(simulated(drawn, formula[t], float(mean[t]), float(error[t])))
    return rows


def per_point(values: Sequence[float] | np.ndarray) -> float:
    """A sum over directions as a mean over points."""
    return float(np.sum(values)) / POINTS
