"""What an estimator leaves open, tried: levels and rounds of one kernel, by a criterion."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from sklearn.model_selection import check_cv

from sdntk import mixing
from sdntk._arguments import as_count
from sdntk.distillation import PRECISION_TOLERANCE, distill_spectrum
from sdntk.estimators import chains
from sdntk.estimators.chains import Asked, Chains, Folds, Points, Problem
from sdntk.spectra.choose import DENSE_POINTS
from sdntk.spectra.dense import decompose
from sdntk.theory.multiplier import Status
from sdntk.tuning import TOLERANCES

#: What multiplier="auto" tries, times the mean of k(x, x) (docs/does_it_pay.md).
MULTIPLIERS = np.geomspace(1e-7, 10, 40)
#: criterion="auto" leaves one of so many parts out, up to DENSE_POINTS points.
FOLDS = 10


class Searched(NamedTuple):
    """All levels and rounds of one kernel.

    Attributes:
        by: what levels are, "tolerance" or "multiplier".
        levels: shape (L,).
        values: of the criterion, nan where infeasible, or where rounding decides a multiplier.
        candidates: which rounds may be chosen.
        chains: their states, degrees of freedom and training errors.
    """

    by: str
    levels: Float[np.ndarray, " L"]
    values: Float[np.ndarray, "L T"]
    candidates: slice
    chains: Chains

    @property
    def is_feasible(self) -> bool:
        """Whether anything is that may be chosen."""
        return not np.isnan(self.values[:, self.candidates]).all()

    @property
    def least(self) -> float:
        """The least value; infinite where none is feasible."""
        return float(np.nanmin(self.values[:, self.candidates], initial=np.inf))

    @property
    def least_single(self) -> float:
        """The least value of round 0; infinite where none is feasible."""
        return float(np.nanmin(self.values[:, 0], initial=np.inf))

    @property
    def place(self) -> tuple[int, int]:
        """The index of the level, and the round, of the least value."""
        values = self.values[:, self.candidates]
        level, t = np.unravel_index(np.nanargmin(values), values.shape)
        return int(level), int(range(self.values.shape[1])[self.candidates][t])

    @property
    def place_of_single(self) -> int:
        """The index of the level of the least value of round 0."""
        return int(np.nanargmin(self.values[:, 0]))

    def rows(self, name: str) -> dict[str, Any]:
        """Columns of a tidy table; ``name`` is the criterion's."""
        num_levels, rounds = self.values.shape

        def by_row(values: Any) -> np.ndarray:
            return np.asarray(values).reshape(num_levels * rounds, -1)

        return {
            self.by: np.repeat(self.levels, rounds),
            "round": np.tile(np.arange(rounds), num_levels),
            "active": np.mean(by_row(self.chains.status) == Status.ACTIVE, axis=1),
            "degrees_of_freedom": by_row(self.chains.degrees_of_freedom).sum(axis=1),
            "training_error": by_row(self.chains.training_error).mean(axis=1),
            name: self.values.ravel(),
        }


def search(
    points: Points | None,
    problem: Problem,
    levels: Float[np.ndarray, " L"],
    asked: Asked,
    *,
    criterion: str,
    folds: Folds | None,
    candidates: slice,
) -> Searched:
    """All levels and rounds.

    Args:
        points: with one kernel; needed by folds only.
        problem: those points, decomposed.
        levels: tolerances or multipliers.
        asked: of the chains.
        criterion: "gcv", "sure" or "held_out".
        folds: of "held_out".
        candidates: which rounds may be chosen.
    """
    found = chains.run(problem, levels, asked)
    if folds is not None and points is not None and criterion == "held_out":
        values = chains.by_folds(points, folds, levels, asked)
    else:
        values = chains.by_gcv(problem, found, asked)
        if criterion == "sure":
            single = jnp.nanargmin(values[:, 0])
            values = chains.by_sure(problem, found, asked, _noise(problem, found, asked, single))
    feasible = np.where(chains.any_infeasible(found.status), np.nan, np.asarray(values))
    if len(levels) > 1:
        feasible[_decided_by_rounding(problem, found)] = np.nan
    return Searched(asked.by, np.asarray(levels), feasible, candidates, found)


def _decided_by_rounding(problem: Problem, found: Chains) -> Bool[np.ndarray, "L T"]:
    """Where a multiplier is so small that rounding decides it, and with it a tolerance's fit."""
    spectrum = problem.spectrum
    limit = spectrum.machine_epsilon * float(spectrum.largest) / PRECISION_TOLERANCE
    too_small = np.asarray(found.multipliers) < limit
    return np.asarray(too_small.reshape(*too_small.shape[:2], -1).any(axis=2))


def _noise(problem: Problem, found: Chains, asked: Asked, level: Any) -> Float[Any, "*Q"]:
    """sigma^2 as a single fit leaves it, |y - f|^2/(K - df)."""
    count = chains.count_of(problem, asked)
    error, df = found.training_error[level, 0], found.degrees_of_freedom[level, 0]
    return error * count / (count - df)


def levels_of(level: float | None, by: str, size: float) -> Float[np.ndarray, " L"]:
    """The level that is given, or a grid: relative tolerances, those of :func:`sdntk.tune`, or
    multipliers in the unit of the kernel, the mean of k(x, x), its size.
    """
    if level is not None:
        return np.asarray([level])
    if by == "tolerance":
        return TOLERANCES
    return MULTIPLIERS * (size if size > 0 else 1.0)


def folds_of_points(
    keys: Float[np.ndarray, "K n"], weights: Float[np.ndarray, " K"]
) -> Folds | None:
    """Ten folds of points, drawn at random, equal points in one fold. Of fewer than ten different
    points each is left out in turn. None of one point, and of so many that ten decompositions take
    long.

    Equal points stay together so that none tells of its copy, and so that a point of weight 2 is
    two points. Nor do folds depend on the order of points.

    Args:
        keys: rows that are the same for equal points.
        weights: those of weight 0 are not there.
    """
    there = weights > 0
    groups = np.unique(keys[there], axis=0, return_inverse=True)[1].ravel()
    num = int(groups.max()) + 1
    if not 2 <= num <= DENSE_POINTS:
        return None
    fold_of = np.full(len(weights), -1)
    fold_of[there] = (np.random.default_rng(0).permutation(num) % FOLDS)[groups]
    left_out = (fold_of[None] == np.arange(min(FOLDS, num))[:, None]).astype(float)
    return Folds(1 - left_out, left_out)


def folds_of(
    criterion: Any, x: Any, y: Any, weights: Float[np.ndarray, " K"], *, classifier: bool
) -> Folds:
    """Those of a number of folds, or of a splitter.

    Raises:
        ValueError, TypeError: it is neither; a fold without weight on either side.
    """
    if isinstance(criterion, type) or not hasattr(criterion, "split"):
        try:
            criterion = as_count("criterion", criterion, at_least=2, at_most=len(x))
        except (TypeError, ValueError) as error:
            others = 'Beside a number of folds it may be "auto", "gcv", "sure", or a splitter.'
            raise type(error)(f"{error} {others}") from None
    both: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for split in check_cv(criterion, y, classifier=classifier).split(x, y):
        for side, indices in zip(both, split, strict=True):
            side.append(np.zeros(len(x)))
            side[-1][indices] = 1
    folds = Folds(np.stack(both[0]), np.stack(both[1]))
    if not all((side @ weights > 0).all() for side in folds):
        raise ValueError(
            "criterion must leave points of positive weight out of every fold, and others in it."
        )
    return folds


# ---- weights of rounds ----


def one_shot_weights(
    points: Points, problem: Problem, multiplier: float, rounds: int, num_points: int
) -> Float[np.ndarray, " T"]:
    """:func:`sdntk.mixing.one_shot`, one vector for all outputs."""
    there = slice(num_points)
    matrix = np.asarray(points.values)[there, there] / num_points
    labels = np.asarray(problem.labels)[there]
    run = distill_spectrum(
        decompose(matrix), labels, multiplier=multiplier, rounds=rounds, outputs="joint"
    )
    return np.asarray(mixing.one_shot(run).weights)


def weights_of_folds(
    points: Points, folds: Folds, multiplier: float, asked: Asked
) -> Float[np.ndarray, " T"]:
    """:func:`sdntk.mixing.held_out` of what folds predict at the points that they leave out."""
    predicted = chains.left_out_predictions(points, folds, multiplier, asked)
    weights = np.sqrt(np.asarray(points.weights) * (folds.left_out.sum(axis=0) > 0))
    scaled = np.moveaxis(predicted, 1, 0) * weights[None, :, None]
    return np.asarray(mixing.held_out(scaled, points.labels * weights[:, None]).weights)
