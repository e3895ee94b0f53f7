"""Chains on weighted points, compiled once for a class of sizes.

Weights w_i turn the training loss into sum_i w_i (f(x_i) - y_i)^2/W, W = sum_i w_i. With S = diag(
sqrt(w)) that is the library's problem for the matrix S k S/W and the labels S y, and

    f(x) = sum_i k(x, x_i) b_i,      b = S a/W,      a the dual coefficients of that problem.

A point of weight 0 is not there: its row and column are 0. So one shape serves training sets of
every size up to it, and those of all folds.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdntk._linalg import matmul
from sdntk._mapping import map_items
from sdntk.spectra.base import AbstractSpectrum
from sdntk.spectra.dense import decompose_checked
from sdntk.spectra.levels import Solved, duals_of_levels, solve_levels, traces_of_levels
from sdntk.spectra.matrix import GramMatrix
from sdntk.spectra.tridiagonal import tridiagonalise_checked
from sdntk.theory.criteria import generalised_cross_validation, unbiased_risk
from sdntk.theory.multiplier import Status
from sdntk.theory.recurrence import ChainSpec
from sdntk.theory.units import in_unit, out_of_unit, unit_of

#: A weight so near to a whole number is one.
WHOLE = 1e-9


def size_class(num: int) -> int:
    """The number of points for which code is compiled: the next multiple of 16, or of a power of
    two that is at most a sixteenth of ``num``.
    """
    step = 1 << max(4, num.bit_length() - 5)
    return -(-num // step) * step


def padded(values: Any, *shape: int) -> Float[np.ndarray, "..."]:
    """``values`` in the corner of an array of zeros."""
    larger = np.zeros(shape)
    larger[tuple(slice(size) for size in np.shape(values))] = values
    return larger


class Points(NamedTuple):
    """Training points, padded to a class of sizes by points of weight 0.

    Attributes:
        values: k(x_i, x_j); any numbers where a point is not there.
        labels: shape (m, Q).
        weights: w_i >= 0.
        precision: of the kernel's values (:meth:`sdntk.kernels.Kernel.precision`).
    """

    values: Float[Any, "m m"]
    labels: Float[Any, "m Q"]
    weights: Float[Any, " m"]
    precision: Float[Any, ""]


class Asked(NamedTuple):
    """What all chains have in common; static under jit.

    Attributes:
        by: what levels are.
        relative: whether tolerances are fractions of the labels' mean square, about their mean
            where they are centred.
        rounds: T.
        joint: whether outputs share a level.
        center: whether the labels' weighted mean is taken off.
        method: of the decomposition.
    """

    by: str  # "tolerance" or "multiplier"
    relative: bool
    rounds: int
    joint: bool
    center: bool
    method: str  # "dense", "tridiagonal" or "nystrom"


class Problem(NamedTuple):
    """Weighted points, decomposed.

    Attributes:
        spectrum: of S k S/W.
        root: sqrt(w_i).
        total: W.
        offset: what was taken off the labels.
        labels: S (y - offset).
        unit: of the labels.
        z: the rotated labels, in their unit.
        scale: dual coefficients b over those of the spectrum, for each point (or landmark).
        indefinite: whether the matrix has negative eigenvalues beyond rounding. A dense spectrum
            has 0 in their place, another one nan.
    """

    spectrum: AbstractSpectrum
    root: Float[Array, " m"]
    total: Float[Array, ""]
    offset: Float[Array, " Q"]
    labels: Float[Array, "m Q"]
    unit: Float[Array, "*q"]
    z: Float[Array, "m Q"]
    scale: Float[Array, " n"]
    indefinite: Bool[Array, ""]

    def on_points(self, duals: Float[Array, "T m Q"]) -> Float[Array, "n T Q"]:
        """B of every round, S a/W or those of landmarks, from dual coefficients in the basis."""
        on_points = self.spectrum.as_duals(jnp.moveaxis(duals, 1, 0))
        return on_points * self.scale[:, None, None]


class Chains(NamedTuple):
    """Chains at L levels: what :class:`sdntk.spectra.levels.Levels` has, for weighted points."""

    multipliers: Float[Array, "L T *Q"]
    status: Int[Array, "L T *Q"]
    training_error: Float[Array, "L T *Q"]
    degrees_of_freedom: Float[Array, "L T *Q"]


def any_infeasible(status: Int[Any, "L T *Q"]) -> Bool[np.ndarray, "L T"]:
    """Of each level and round, whether it is for any output."""
    infeasible = np.asarray(status) == Status.INFEASIBLE
    return infeasible.reshape(*infeasible.shape[:2], -1).any(axis=2)


@partial(jax.jit, static_argnames="asked")
def decompose(points: Points, asked: Asked) -> Problem:
    """Weighted points, decomposed; an indefinite matrix gives a spectrum of nan."""
    values, labels, weights, precision = points
    there, total, root = weights > 0, jnp.sum(weights), jnp.sqrt(weights)
    offset = jnp.zeros(labels.shape[1:], labels.dtype)
    if asked.center:
        unit = unit_of(labels, joint=False)
        offset = out_of_unit(matmul(weights[None], in_unit(labels, unit))[0] / total, unit)
    labels = root[:, None] * jnp.where(there[:, None], labels - offset[None], 0)

    values = jnp.where(there[:, None] & there[None, :], values, 0)
    matrix = root[:, None] * values * root[None, :] / total
    # An error of p in every value moves the matrix by at most p sum_i w_i/W = p.
    gram = GramMatrix((matrix + matrix.T) / 2, float(jnp.finfo(matrix.dtype).eps), precision)
    spectrum, indefinite = _spectrum(gram, asked.method)
    unit = unit_of(labels, joint=asked.joint)
    z = spectrum.rotate(in_unit(labels, unit))
    return Problem(spectrum, root, total, offset, labels, unit, z, root / total, indefinite)


def _spectrum(gram: GramMatrix, method: str) -> tuple[AbstractSpectrum, Bool[Array, ""]]:
    """Without the matrix, since no derivatives are asked for; and whether it is indefinite."""
    if method == "tridiagonal":
        reduced = dataclasses.replace(tridiagonalise_checked(gram), matrix=None)
        return reduced, jnp.isnan(reduced.largest)
    found = decompose_checked(gram)
    d = found.eigenvalues
    clipped = dataclasses.replace(found, eigenvalues=jnp.nan_to_num(d), matrix=None)
    return clipped, jnp.isnan(d).any()


def run(problem: Problem, levels: Float[Any, " L"], asked: Asked) -> Chains:
    """Chains at every level."""
    solved = solve(problem, levels, asked)
    df = traces_of_levels(
        problem.spectrum,
        problem.z,
        solved.multipliers,
        jnp.zeros((), problem.z.dtype),
        by_tolerance=asked.by == "tolerance",
        relative=asked.relative,
    )
    return Chains(solved.multipliers, solved.status, solved.training_error, df)


@partial(jax.jit, static_argnames="asked")
def solve(problem: Problem, levels: Float[Array, " L"], asked: Asked) -> Solved:
    """The multipliers of chains at every level, and how well they fit."""
    z = problem.z
    num_outputs = 1 if not asked.joint else z.shape[1]
    by_output = jnp.broadcast_to(levels[:, None], (len(levels), z.shape[1]))
    by_output = levels if asked.joint else by_output
    alpha = jnp.zeros((), z.dtype)
    if asked.by == "multiplier":
        chains = ChainSpec(None, by_output, alpha, asked.rounds, asked.joint)
    else:
        norm = _norm_of_one(problem, asked, num_outputs)
        radius = jnp.sqrt(by_output) * (norm[None] if norm.ndim else norm)
        chains = ChainSpec(radius, None, alpha, asked.rounds, asked.joint)
    outside = jnp.zeros(z.shape[1:], z.dtype)
    solved: Solved = solve_levels(problem.spectrum, z, problem.unit, outside, chains)
    # The mean was over all rows, of which some are padding.
    error = solved.training_error * (problem.spectrum.num_points / problem.total)
    return solved._replace(training_error=error)


@jax.jit
def duals(problem: Problem, multipliers: Float[Array, "T *Q"]) -> Float[Array, "n T Q"]:
    """Dual coefficients b of every round of a chain."""
    found = duals_of_levels(
        problem.spectrum, problem.z, multipliers[None], jnp.zeros((), problem.z.dtype), problem.unit
    )
    return problem.on_points(found[0])


def _norm_of_one(problem: Problem, asked: Asked, num_outputs: int) -> Float[Array, "*Q"]:
    """The norm of residuals that a tolerance of 1 allows; of labels that are 0 any will do."""
    if not asked.relative:
        return jnp.sqrt(problem.total * num_outputs)
    scaled = in_unit(problem.labels, problem.unit)
    norm = jnp.sqrt(jnp.sum(scaled**2, axis=None if asked.joint else 0)) * problem.unit
    return jnp.where(norm > 0, norm, 1)


@partial(jax.jit, static_argnames="asked")
def floor(problem: Problem, asked: Asked) -> Float[Array, "*Q"]:
    """The tolerance that no function goes below, of each output or of joint ones; a fraction where
    tolerances are.
    """
    spectrum, unit = problem.spectrum, problem.unit
    scaled = in_unit(problem.labels, unit)
    lowest = spectrum.floor(scaled) * (spectrum.num_points / problem.total)
    squares = jnp.sum(scaled**2, axis=0) / problem.total
    if asked.joint:
        lowest, squares = jnp.mean(lowest), jnp.mean(squares)
    return lowest / jnp.where(squares > 0, squares, 1) if asked.relative else lowest * unit * unit


# ---- what tells levels and rounds apart ----


def count_of(problem: Problem, asked: Asked) -> Float[Array, ""]:
    """How many residuals an error averages over. Weights that are whole numbers count points;
    others say nothing of how many there are.
    """
    weights = problem.root**2
    whole = jnp.all(jnp.abs(weights - jnp.round(weights)) < WHOLE)
    num_points = jnp.where(whole, problem.total, jnp.sum(problem.root > 0))
    return num_points * (problem.z.shape[1] if asked.joint else 1)


@partial(jax.jit, static_argnames="asked")
def by_gcv(problem: Problem, chains: Chains, asked: Asked) -> Float[Array, "L T"]:
    """Generalised cross-validation, the mean over outputs."""
    count = count_of(problem, asked)
    values = generalised_cross_validation(chains.training_error, chains.degrees_of_freedom, count)
    return _mean(values)


@partial(jax.jit, static_argnames="asked")
def by_sure(
    problem: Problem, chains: Chains, asked: Asked, noise: Float[Array, "*Q"]
) -> Float[Array, "L T"]:
    """Stein's unbiased risk estimate, the mean over outputs."""
    count, error = count_of(problem, asked), chains.training_error
    variance = jnp.broadcast_to(noise, error.shape)
    return _mean(unbiased_risk(error, chains.degrees_of_freedom, count, variance))


def _mean(values: Float[Array, "L T *Q"]) -> Float[Array, "L T"]:
    return values.reshape(*values.shape[:2], -1).mean(axis=2)


@jax.jit
def predict(values: Float[Array, "n m"], duals: Float[Array, "m *P"]) -> Float[Array, "n *P"]:
    """Predictions less the offset, sum_i k(x, x_i) b_i."""
    predicted = matmul(values, duals.reshape(len(duals), -1))
    return predicted.reshape(len(values), *duals.shape[1:])


class Folds(NamedTuple):
    """Points that are kept, and those that tell what the rest is worth, of each fold.

    Attributes:
        kept: 1 where a point is, 0 elsewhere.
        left_out: likewise.
    """

    kept: Float[Any, "F m"]
    left_out: Float[Any, "F m"]

    @property
    def most_left_out(self) -> int:
        """A class of sizes that holds what any fold leaves out, the same for all equal folds of a
        class.
        """
        num_folds, num_points = self.left_out.shape
        of_equal_folds, most = -(-num_points // num_folds), self.left_out.sum(axis=1).max()
        return size_class(max(of_equal_folds, int(most)))


def by_folds(
    points: Points, folds: Folds, levels: Float[Any, " L"], asked: Asked
) -> Float[np.ndarray, "L T"]:
    """The weighted mean squared error, over points and outputs, at points that were left out; nan
    where infeasible without those of a fold.
    """
    most, squares = folds.most_left_out, []
    for fold in map(Folds, *folds):
        problem = decompose(points._replace(weights=points.weights * fold.kept), asked)
        solved = solve(problem, levels, asked)
        at = _at_left_out(points, problem, fold, most)
        of_fold = np.array(_squares(problem, at, solved.multipliers))
        of_fold[any_infeasible(solved.status)] = np.nan
        squares.append(of_fold)
    count = np.sum(folds.left_out * points.weights) * points.labels.shape[1]
    return np.sum(squares, axis=0) / count


def left_out_predictions(
    points: Points, folds: Folds, level: float, asked: Asked
) -> Float[np.ndarray, "m T Q"]:
    """What each round of a chain predicts at every point, the mean over folds that leave it out; 0
    at points that none does.
    """
    predicted = np.zeros((len(points.weights), asked.rounds, points.labels.shape[1]))
    for fold in map(Folds, *folds):
        problem = decompose(points._replace(weights=points.weights * fold.kept), asked)
        solved = solve(problem, np.asarray([level]), asked)
        at = _at_left_out(points, problem, fold, folds.most_left_out)
        of_fold = np.asarray(_predictions(problem, at, solved.multipliers[0]))
        left = np.flatnonzero(fold.left_out)
        predicted[left] += of_fold[: len(left)]
    return predicted / np.maximum(folds.left_out.sum(axis=0), 1)[:, None, None]


class _LeftOut(NamedTuple):
    """The points that a fold leaves out, filled up to a class of sizes by points of weight 0."""

    cross: Float[Array, "n m"]  # a level costs a product with it, and no way back to all points
    labels: Float[Array, "n Q"]
    weights: Float[Array, " n"]


@partial(jax.jit, static_argnames="most")
def _at_left_out(points: Points, problem: Problem, fold: Folds, most: int) -> _LeftOut:
    rows = jnp.nonzero(fold.left_out, size=most, fill_value=0)[0]
    there = jnp.arange(most) < jnp.sum(fold.left_out > 0)
    on_points = (problem.root / problem.total)[:, None] * points.values[rows].T
    cross = problem.spectrum.rotate(on_points).T
    return _LeftOut(cross, points.labels[rows], jnp.where(there, points.weights[rows], 0))


@jax.jit
def _predictions(
    problem: Problem, at: _LeftOut, multipliers: Float[Array, "T *Q"]
) -> Float[Array, "n T Q"]:
    found = duals_of_levels(
        problem.spectrum, problem.z, multipliers[None], jnp.zeros((), problem.z.dtype), problem.unit
    )
    return predict(at.cross, jnp.moveaxis(found[0], 1, 0)) + problem.offset[None, None]


@jax.jit
def _squares(
    problem: Problem, at: _LeftOut, multipliers: Float[Array, "L T *Q"]
) -> Float[Array, "L T"]:
    """Weighted sums of squared errors."""

    def of_level(multipliers: Float[Array, "T *Q"]) -> Float[Array, " T"]:
        residuals = at.labels[:, None] - _predictions(problem, at, multipliers)
        return jnp.sum(at.weights[:, None, None] * residuals**2, axis=(0, 2))

    squares: Float[Array, "L T"] = map_items(of_level, multipliers)
    return squares
