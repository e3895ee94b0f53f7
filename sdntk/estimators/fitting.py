"""From checked data to a fit: the kernels, levels and rounds that are open are tried, the best
one's chain is run.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sdntk._arguments import format_number
from sdntk._warnings import warn
from sdntk.distillation import warn_of_rounding
from sdntk.estimators import chains, choosing, landmarks
from sdntk.estimators.chains import Asked, Folds, Points, Problem, padded, size_class
from sdntk.estimators.choosing import Searched
from sdntk.estimators.gram_values import GramValues
from sdntk.estimators.plan import Plan
from sdntk.spectra.base import PrecisionWarning
from sdntk.tuning import warn_if_undecided


class Data(NamedTuple):
    """Training data.

    Attributes:
        x: points, shape (K, ...), or a precomputed matrix.
        labels: shape (K, Q).
        weights: of the points, not negative, not all 0.
        folds: by which is chosen, if it is by folds.
    """

    x: Float[np.ndarray, "K ..."]
    labels: Float[np.ndarray, "K Q"]
    weights: Float[np.ndarray, " K"]
    folds: Folds | None

    @property
    def padded_folds(self) -> Folds | None:
        """Of points padded to a class of sizes."""
        if self.folds is None:
            return None
        size = size_class(len(self.weights))
        return Folds(*(padded(side, len(side), size) for side in self.folds))


class Fitted(NamedTuple):
    """What was chosen, and its chain.

    Attributes:
        gram_values: of the kernel.
        length_scale: of the kernel, if it has one.
        by: what levels are, "tolerance" or "multiplier".
        level: a number.
        weights: of the rounds, or None.
        offset: what is added to predictions.
        duals: dual coefficients b of every round, f(x) = sum_i k(x, x_i) b_i, shape (T, K, Q).
        multipliers: of every round, shape (T,) or (T, Q); nan where collapsed.
        degrees_of_freedom: of every round, likewise.
    """

    gram_values: GramValues
    length_scale: float | None
    by: str
    level: float
    weights: Float[np.ndarray, " T"] | None
    offset: Float[np.ndarray, " Q"]
    duals: Float[np.ndarray, "T K Q"]
    multipliers: Float[np.ndarray, "T *Q"]
    degrees_of_freedom: Float[np.ndarray, "T *Q"]

    def of_fit(self, by_round: Float[np.ndarray, "T *n"]) -> Float[np.ndarray, "*n"]:
        """What is linear in the rounds: that of the last one, or of the mixture."""
        last = by_round[-1] if self.weights is None else np.tensordot(self.weights, by_round, 1)
        return np.asarray(last)

    @property
    def first_round(self) -> "Fitted":
        """As a chain of its own."""
        return self._replace(
            weights=None,
            duals=self.duals[:1],
            multipliers=self.multipliers[:1],
            degrees_of_freedom=self.degrees_of_freedom[:1],
        )


class Chosen(NamedTuple):
    """What an estimator found.

    Attributes:
        fit: the best.
        single: the best of one round.
        table: columns of a tidy table of all that was tried.
    """

    fit: Fitted
    single: Fitted
    table: dict[str, np.ndarray]


class _Tried(NamedTuple):
    """One kernel, with all of its levels and rounds."""

    length_scale: float | None
    gram_values: GramValues  # with landmarks as points where there are some
    points: Points | None
    problem: Problem
    asked: Asked
    searched: Searched


def fit(plan: Plan, kernels: dict[float | None, GramValues], data: Data, criterion: str) -> Chosen:
    """Choose what the plan leaves open by a criterion, and run the chain.

    Args:
        plan: of the estimator.
        kernels: by their length scales.
        data: checked.
        criterion: "gcv" or "sure", by which is chosen where there are no folds.

    Raises:
        ValueError: an indefinite matrix, or no feasible tolerance.
    """
    is_open = plan.is_open or len(kernels) > 1
    if is_open and data.folds is not None:
        criterion = "held_out"
    tried, table = _try_all(plan, plan.by, kernels, data, criterion)
    if plan.by == "tolerance" and plan.level is None and _most_are_infeasible(table[criterion]):
        # Spaces of few functions, which no small tolerance suits.
        tried, table = _try_all(plan, "multiplier", kernels, data, criterion)
    if not tried[0].searched.is_feasible:
        raise _infeasible(tried[0])
    best, best_single = tried[0], tried[-1]
    if is_open:
        _warn_if_undecided(best, criterion, int(np.sum(data.weights > 0)))

    (place, t), of_single = best.searched.place, best_single.searched.place_of_single
    weights = plan.weights
    if isinstance(weights, str):
        level = float(best.searched.levels[place])
        weights = _weights_of_rounds(best, data, level, plan.rounds)
    chain = _chain(best, place, t if weights is None else plan.rounds - 1, data)
    _warn_if_imprecise(best.problem, chain.multipliers)
    single = chain.first_round
    if best is not best_single or place != of_single:
        single = _chain(best_single, of_single, 0, data)
    return Chosen(chain._replace(weights=weights), single, table)


def _try_all(
    plan: Plan, by: str, kernels: dict[float | None, GramValues], data: Data, criterion: str
) -> tuple[list[_Tried], dict[str, np.ndarray]]:
    """The best kernel, or the best and that of the best single fit; and the table of all."""
    tried, tables = [], []
    for scale, gram_values in kernels.items():
        tried.append(_try(plan, by, scale, gram_values, data, criterion))
        tables.append(tried[-1].searched.rows(criterion))
        if len(kernels) > 1:
            tables[-1]["length_scale"] = np.full(len(tables[-1]["round"]), scale)
        tried = _best_ones(tried)  # no others: each holds a decomposition
    return tried, {name: np.concatenate([part[name] for part in tables]) for name in tables[0]}


def _most_are_infeasible(values: Float[np.ndarray, " n"]) -> bool:
    return bool(np.isnan(values).mean() > 0.5)


def _best_ones(tried: list[_Tried]) -> list[_Tried]:
    """That of the best value, and that of the best single fit, which may be the same one."""
    best = min(tried, key=lambda one: one.searched.least)
    single = min(tried, key=lambda one: one.searched.least_single)
    return [best] if best is single else [best, single]


def _try(
    plan: Plan,
    by: str,
    scale: float | None,
    gram_values: GramValues,
    data: Data,
    criterion: str,
) -> _Tried:
    asked = plan.asked(by, len(data.x))
    points: Points | None = None
    if asked.method == "nystrom":
        shared = gram_values, data.x, data.labels, data.weights, asked
        problem, gram_values = landmarks.decompose(*shared, plan.landmarks, plan.key)
        size = float(jnp.sum(problem.spectrum.eigenvalues))  # the mean of phi(x) . phi(x)
    else:
        points = _points(gram_values, data)
        problem = chains.decompose(points, asked)
        diagonal = np.asarray(jnp.diagonal(jnp.asarray(points.values)))
        size = float(np.average(diagonal, weights=np.asarray(points.weights)))
    _warn_if_indefinite(problem, asked.method)
    searched = choosing.search(
        points,
        problem,
        choosing.levels_of(plan.level, by, size),
        asked,
        criterion=criterion,
        folds=data.padded_folds,
        candidates=plan.candidates,
    )
    return _Tried(scale, gram_values, points, problem, asked, searched)


def _points(gram_values: GramValues, data: Data) -> Points:
    size = size_class(len(data.x))
    points = Points(
        jnp.asarray(gram_values.of_training_points(data.x)),  # once: folds use it anew
        padded(data.labels, size, data.labels.shape[1]),
        padded(data.weights, size),
        np.asarray(gram_values.precision),
    )
    if not jnp.isfinite(points.values).all():
        raise ValueError("kernel must have finite values at the points; some are nan or infinite.")
    return points


def _warn_if_indefinite(problem: Problem, method: str) -> None:
    if not problem.indefinite:
        return
    told = "the Gram matrix has negative eigenvalues beyond rounding"
    if method != "dense":
        raise ValueError(
            f'{told}. Remedy: another kernel, or method="dense", which takes them as 0.'
        )
    warn(
        f"{told}, which are taken as 0. Remedy: a positive semi-definite kernel.", PrecisionWarning
    )


def _infeasible(tried: _Tried) -> ValueError:
    if tried.asked.by == "multiplier":
        return ValueError("X, y and sample_weight must be smaller, or larger: no fit is finite.")
    floor = np.asarray(chains.floor(tried.problem, tried.asked)).max()
    fraction = " of the labels' mean square" if tried.asked.relative else ""
    level = format_number(float(tried.searched.levels[0]))
    return ValueError(
        f"tolerance {level}{fraction} is infeasible: no function of this kernel's space comes as "
        f"close to the labels. The smallest feasible one lies just above "
        f"{format_number(float(floor))}."
    )


def _warn_if_undecided(tried: _Tried, criterion: Any, num_points: int) -> None:
    df = float(np.max(np.asarray(tried.searched.chains.degrees_of_freedom)[tried.searched.place]))
    count = float(chains.count_of(tried.problem, tried.asked))
    warn_if_undecided(criterion, num_points, df, count)


def _chain(tried: _Tried, place: int, last: int, data: Data) -> Fitted:
    """Rounds 0 to ``last`` at one of the levels that were tried."""
    searched, rounds = tried.searched, slice(last + 1)
    all_multipliers = np.asarray(searched.chains.multipliers)[place]
    duals = np.moveaxis(np.asarray(chains.duals(tried.problem, all_multipliers)), 1, 0)
    multipliers = all_multipliers[rounds]
    return Fitted(
        gram_values=tried.gram_values,
        length_scale=tried.length_scale,
        by=searched.by,
        level=float(searched.levels[place]),
        weights=None,
        offset=np.asarray(tried.problem.offset),
        duals=duals[rounds, : tried.gram_values.num_points or len(data.x)],
        multipliers=np.where(np.isinf(multipliers), np.nan, multipliers),
        degrees_of_freedom=np.asarray(searched.chains.degrees_of_freedom)[place, rounds],
    )


def _weights_of_rounds(
    best: _Tried, data: Data, multiplier: float, rounds: int
) -> Float[np.ndarray, " T"]:
    if data.padded_folds is not None and best.points is not None:
        return choosing.weights_of_folds(best.points, data.padded_folds, multiplier, best.asked)
    if (data.weights != 1).any():
        raise ValueError(
            'sample_weight must be left out with weights="auto" unless criterion is folds: '
            "one-shot weights are known for points of weight 1."
        )
    assert best.points is not None  # a plan with landmarks has no such weights
    return choosing.one_shot_weights(
        best.points, best.problem, multiplier, rounds, len(data.weights)
    )


def _warn_if_imprecise(problem: Problem, multipliers: Float[np.ndarray, "T *Q"]) -> None:
    active = multipliers[np.isfinite(multipliers)]
    if active.size > 0:
        warn_of_rounding(float(active.min()), problem.spectrum)
