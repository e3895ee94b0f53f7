"""Chains at many tolerances or multipliers on one spectrum, in one compiled pass.

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
        degrees_of_freedom: nan on a spectrum that knows no trace, and where not wanted.
        training_error: |y - f_t|^2/K against the labels; with joint outputs, over K Q.
        duals: dual coefficients in the basis, shape (L, T, m) or (L, T, m, Q); None unless asked
            for.
    """

    multipliers: Float[Array, "L T *Q"]
    status: Int[Array, "L T *Q"]
    degrees_of_freedom: Float[Array, "L T *Q"]
    training_error: Float[Array, "L T *Q"]
    duals: Any


@partial(jax.jit, static_argnames=("relative", "with_duals", "with_traces"))
def run_levels(
    spectrum: AbstractSpectrum,
    z: Float[Array, "m *P"],
    unit: Float[Array, "*Q"],
    outside: Float[Array, "*P"],
    chains: ChainSpec,
    *,
    relative: bool,
    with_duals: bool,
    with_traces: bool = True,
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
        with_traces: whether degrees of freedom are, which take longer than the rest.
    """

    def one(chain: ChainSpec) -> Levels:
        path = spectrum.multiplier_path(z, chain.in_unit(unit))
        rounds = replay(spectrum, z, path.multipliers, chain.ground_truth_weight)
        df = jnp.full_like(path.multipliers, jnp.nan)
        if with_traces and spectrum.has_all_eigenvalues:
            known = ChainOnSpectrum(spectrum, z, path.multipliers, chain.ground_truth_weight)
            df = traces_of_filters(spectrum.eigenvalues, known)
            if chain.multiplier is None:
                df = df + multiplier_responses(known, relative=relative)

        joint = path.multipliers.ndim < z.ndim
        count = num_residuals(z, spectrum.num_points, joint=joint)
        error = mean_square(z[None] - rounds.fitted, count, over=(1, 2) if joint else 1)
        beyond = jnp.broadcast_to((jnp.sum(outside) if joint else outside) / count, error.shape)
        return Levels(
            path.multipliers,
            path.status,
            df,
            out_of_unit(out_of_unit(error + beyond, unit), unit),
            out_of_unit(rounds.duals, unit) if with_duals else None,
        )

    def by_level(level: Float[Array, "*Q"]) -> Levels:
        if chains.multiplier is None:
            return one(dataclasses.replace(chains, radius=level))
        return one(dataclasses.replace(chains, multiplier=level))

    levels = chains.radius if chains.multiplier is None else chains.multiplier
    found: Levels = map_items(by_level, levels)
    return found


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
