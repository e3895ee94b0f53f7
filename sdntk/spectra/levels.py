"""Chains at many tolerances or multipliers on one spectrum, in compiled passes over all.

All happens in the spectrum's basis: no fit is mapped back to the points, which would take longer
than the chains themselves.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdntk._linalg import matmul
from sdntk._mapping import map_items
from sdntk.spectra.base import AbstractSpectrum
from sdntk.spectra.degrees_of_freedom import (
    ChainOnSpectrum,
    multiplier_responses,
    traces_of_filters,
)
from sdntk.spectra.replay import replay
from sdntk.theory.recurrence import ChainSpec, num_residuals
from sdntk.theory.units import mean_square, out_of_unit


class Levels(NamedTuple):
    """Chains of T rounds at L levels, as :class:`sdntk.Distillation` has them.

    Attributes:
        multipliers: c_t, infinite where collapsed, nan once infeasible.
        status: a :class:`sdntk.Status` of each round.
        degrees_of_freedom: nan on a spectrum that knows no trace.
        training_error: |y - f_t|^2/K against the labels; with joint outputs, over K Q.
        duals: dual coefficients in the basis, shape (L, T, m) or (L, T, m, Q); None unless asked
            for.
    """

    multipliers: Float[Array, "L T *Q"]
    status: Int[Array, "L T *Q"]
    degrees_of_freedom: Float[Array, "L T *Q"]
    training_error: Float[Array, "L T *Q"]
    duals: Any


def run_levels(
    spectrum: AbstractSpectrum,
    z: Float[Array, "m *P"],
    unit: Float[Array, "*Q"],
    outside: Float[Array, "*P"],
    chains: ChainSpec,
    *,
    relative: bool,
    with_duals: bool,
) -> Levels:
    """Run all chains.

    Args:
        spectrum: of G.
        z: the rotated labels, in their unit.
        unit: of the labels.
        outside: the square of the labels' part outside the basis, in their unit.
        chains: with a level for each along the first axis of its radius or multiplier.
        relative: whether tolerances are fractions of the labels' mean square.
        with_duals: whether dual coefficients are wanted.
    """
    solved = solve_levels(spectrum, z, unit, outside, chains)
    given = spectrum, z, solved.multipliers, chains.ground_truth_weight
    by_tolerance = chains.multiplier is None
    df = traces_of_levels(*given, by_tolerance=by_tolerance, relative=relative)
    duals = duals_of_levels(*given, unit) if with_duals else None
    return Levels(solved.multipliers, solved.status, df, solved.training_error, duals)


# Compiled apart: who runs many problems of one shape needs some of them only, each of them once.


class Solved(NamedTuple):
    """What a chain's multipliers are, and how well it fits: see :class:`Levels`."""

    multipliers: Float[Array, "L T *Q"]
    status: Int[Array, "L T *Q"]
    training_error: Float[Array, "L T *Q"]


@jax.jit
def solve_levels(
    spectrum: AbstractSpectrum,
    z: Float[Array, "m *P"],
    unit: Float[Array, "*Q"],
    outside: Float[Array, "*P"],
    chains: ChainSpec,
) -> Solved:
    """The multipliers of all chains; arguments as :func:`run_levels` has them."""

    def one(chain: ChainSpec) -> Solved:
        path = spectrum.multiplier_path(z, chain.in_unit(unit))
        rounds = replay(spectrum, z, path.multipliers, chain.ground_truth_weight)
        joint = path.multipliers.ndim < z.ndim
        count = num_residuals(z, spectrum.num_points, joint=joint)
        error = mean_square(z[None] - rounds.fitted, count, over=(1, 2) if joint else 1)
        beyond = jnp.broadcast_to((jnp.sum(outside) if joint else outside) / count, error.shape)
        in_own_unit = out_of_unit(out_of_unit(error + beyond, unit), unit)
        return Solved(path.multipliers, path.status, in_own_unit)

    def by_level(level: Float[Array, "*Q"]) -> Solved:
        if chains.multiplier is None:
            return one(dataclasses.replace(chains, radius=level))
        return one(dataclasses.replace(chains, multiplier=level))

    levels = chains.radius if chains.multiplier is None else chains.multiplier
    found: Solved = map_items(by_level, levels)
    return found


@partial(jax.jit, static_argnames=("by_tolerance", "relative"))
def traces_of_levels(
    spectrum: AbstractSpectrum,
    z: Float[Array, "m *P"],
    multipliers: Float[Array, "L T *Q"],
    ground_truth_weight: Float[Array, "*t"],
    *,
    by_tolerance: bool,
    relative: bool,
) -> Float[Array, "L T *Q"]:
    """Degrees of freedom; nan on a spectrum that knows no trace."""
    if not spectrum.has_all_eigenvalues:
        return jnp.full_like(multipliers, jnp.nan)

    def of_level(multipliers: Float[Array, "T *Q"]) -> Float[Array, "T *Q"]:
        known = ChainOnSpectrum(spectrum, z, multipliers, ground_truth_weight)
        df = traces_of_filters(spectrum.eigenvalues, known)
        return df + multiplier_responses(known, relative=relative) if by_tolerance else df

    df: Float[Array, "L T *Q"] = map_items(of_level, multipliers)
    return df


@jax.jit
def duals_of_levels(
    spectrum: AbstractSpectrum,
    z: Float[Array, "m *P"],
    multipliers: Float[Array, "L T *Q"],
    ground_truth_weight: Float[Array, "*t"],
    unit: Float[Array, "*Q"],
) -> Float[Array, "L T m *P"]:
    """Dual coefficients in the basis."""

    def of_level(multipliers: Float[Array, "T *Q"]) -> Float[Array, "T m *P"]:
        return out_of_unit(replay(spectrum, z, multipliers, ground_truth_weight).duals, unit)

    duals: Float[Array, "L T m *P"] = map_items(of_level, multipliers)
    return duals


@jax.jit
def errors_at(
    spectrum: AbstractSpectrum,
    cross: Float[Array, "n k"],
    labels: Float[Array, "n *Q"],
    duals: Float[Array, "L T m *Q"],
) -> Float[Array, "L T"]:
    """The mean squared error of every round at other points, over them and outputs.

    Args:
        spectrum: of G.
        cross: the Gram matrix between those points and those of dual coefficients.
        labels: of those points.
        duals: of :class:`Levels`.
    """

    def of_level(duals: Float[Array, "T m *Q"]) -> Float[Array, " T"]:
        on_points = spectrum.as_duals(jnp.moveaxis(duals, 1, 0))
        predicted = matmul(cross, on_points.reshape(len(on_points), -1))
        predicted = predicted.reshape(len(predicted), *on_points.shape[1:])
        residuals = jnp.moveaxis(predicted, 1, 0) - labels[None]
        return jnp.mean(residuals**2, axis=tuple(range(1, residuals.ndim)))

    return map_items(of_level, duals)
