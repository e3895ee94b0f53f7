"""A chain of rounds on a spectrum.

The recurrence gives every round's multiplier, :mod:`sdntk.spectra.replay` every round's fit. Here
both are compiled together, and become the object that users see.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sdntk._arguments import is_traced
from sdntk._linalg import safe_sqrt
from sdntk.spectra.base import AbstractSpectrum, ErrorBounds
from sdntk.spectra.chain import Distillation
from sdntk.spectra.padding import padded, trimmed
from sdntk.spectra.replay import Rounds, replay, unrotate_rounds
from sdntk.theory.multiplier import Status
from sdntk.theory.recurrence import ChainSpec, MultiplierPath, num_residuals
from sdntk.theory.units import in_unit, mean_square, out_of_unit, power_of_two, unit_of


def run_on_spectrum(
    spectrum: AbstractSpectrum, labels: Float[Array, "K *P"], chain: ChainSpec
) -> Distillation:
    """The chain, checked.

    The spectrum of the result is the one given: it goes round the compiled part, not through it, so
    that what is large is not copied.
    """
    # Linear in every output, a chain with a multiplier leaves each a unit of its own.
    scaled, unit = _in_own_unit(labels, chain.joint and chain.multiplier is None)
    z = spectrum.rotate(scaled)
    compiled = chain if is_traced(spectrum, z, chain) else padded(chain)
    outcome = _run_chain(spectrum.with_constant_basis(), z, unit, compiled, chain.rounds)
    # Apart from the rest, whose derivatives do not need those of eigenvalues.
    filters = spectrum.filters(outcome.recurrence_multipliers, compiled)
    per_round = trimmed(outcome.per_round._replace(filters=filters), chain.rounds)
    return Distillation(
        **per_round._asdict(),
        active_rounds=outcome.active_rounds,
        spectrum=spectrum,
        rotated_labels=outcome.rotated_labels,
        ground_truth_weight=chain.ground_truth_weight,
    )


@partial(jax.jit, static_argnums=1)
def _in_own_unit(labels: Float[Array, "K *P"], joint: bool) -> tuple[Array, Array]:
    unit = unit_of(labels, joint=joint)
    return in_unit(labels, unit), unit


class _PerRound(NamedTuple):
    """Attributes of :class:`Distillation` that have an axis of rounds first."""

    multipliers: Float[Array, "T *Q"]
    status: Int[Array, "T *Q"]
    known_fitted: Float[Array, "T K *P"] | None
    training_loss: Float[Array, "T *Q"]
    norms: Float[Array, "T *Q"]
    iterations: Int[Array, "T *Q"]
    error_bounds: ErrorBounds | None
    filters: Any = None


class _Outcome(NamedTuple):
    """What a chain adds to its spectrum and labels."""

    per_round: _PerRound
    active_rounds: Int[Array, "*Q"]
    recurrence_multipliers: Float[Array, "T *Q"]  # infinite where collapsed, nan once infeasible
    rotated_labels: Float[Array, "m *P"]


@jax.jit
def _run_chain(
    spectrum: AbstractSpectrum,
    z: Float[Array, "m *P"],
    unit: Float[Array, "*Q"],
    chain: ChainSpec,
    rounds_asked: int | Array,
) -> _Outcome:
    """The chain; of its rounds, which may be a few more, those asked for count as active.

    The rotated labels are in their unit, and all is computed in it; the chain asked for and the
    outcome are in the labels' own.
    """
    chain = chain.in_unit(unit)
    path = _without_indefinite(spectrum.multiplier_path(z, chain), spectrum)
    s = chain.radius if spectrum.multipliers_are_constant else None
    replayed = replay(spectrum, z, path.multipliers, chain.ground_truth_weight, s)

    # Residuals y_t - f_t = c_t a_t; of a collapsed round the targets themselves. The multipliers
    # are those of the path, but they have their derivatives from the replay.
    c, active = replayed.multipliers, path.status == Status.ACTIVE
    rows = c.reshape(len(c), 1, *c.shape[1:], *(1 for _ in range(z.ndim - c.ndim)))
    collapsed = jnp.isinf(rows)
    of_active = jnp.where(collapsed, 1, rows) * replayed.duals
    residuals = out_of_unit(jnp.where(collapsed, replayed.targets, of_active), unit)

    over = 1 if c.ndim == z.ndim else (1, 2)  # joint outputs are summed over, too
    count = num_residuals(z, spectrum.num_points, joint=chain.joint)
    norms = out_of_unit(_rkhs_norms(replayed, spectrum.num_points), unit)
    shared = out_of_unit(z, unit / jnp.max(unit)) if chain.joint else z  # the largest's unit
    fitted = None
    if spectrum.has_basis_on_points:
        fitted = out_of_unit(unrotate_rounds(spectrum, replayed.fitted), unit)
    per_round = _PerRound(
        multipliers=jnp.where(active, c, jnp.nan),
        status=path.status,
        known_fitted=fitted,
        training_loss=_equal_to_tolerance(mean_square(residuals, count, over=over), active, chain),
        norms=_norms_of_all(norms) if norms.ndim > c.ndim else norms,
        iterations=path.iterations,
        error_bounds=spectrum.error_bounds(shared, path, chain),
    )

    t = jnp.arange(len(c)).reshape(-1, *(1 for _ in active.shape[1:]))
    up_to_here = jnp.cumprod(active & (t < rounds_asked), axis=0, dtype=jnp.int32)
    active_rounds = jnp.sum(up_to_here, axis=0, dtype=jnp.int32)
    return _Outcome(per_round, active_rounds, c, out_of_unit(z, unit))


def _without_indefinite(path: MultiplierPath, spectrum: AbstractSpectrum) -> MultiplierPath:
    """Infeasible rounds in place of active ones where the matrix, which was traced, turned out
    indefinite: its eigenvalues are nan, and it has no space of functions.
    """
    none = jnp.isnan(spectrum.largest) & (path.status == Status.ACTIVE)
    return dataclasses.replace(path, status=jnp.where(none, Status.INFEASIBLE, path.status))


def _equal_to_tolerance(
    loss: Float[Array, "T *Q"], active: Bool[Array, "T *Q"], chain: ChainSpec
) -> Float[Array, "T *Q"]:
    """The loss, with the derivatives that an active round's has: the tolerance's."""
    if chain.radius is None:
        return loss
    grown = (chain.radius / lax.stop_gradient(chain.radius)) ** 2
    return jnp.where(active, lax.stop_gradient(loss) * jnp.broadcast_to(grown, loss.shape), loss)


def _rkhs_norms(rounds: Rounds, num_points: int) -> Float[Array, "T *P"]:
    """sqrt(a . f / K) for every round and output, from duals a and fits f of any size."""
    unit = power_of_two(rounds.fitted, axis=1)
    duals, fitted = (v / jnp.expand_dims(unit, 1) for v in (rounds.duals, rounds.fitted))
    return safe_sqrt(jnp.sum(duals * fitted, axis=1) / num_points) * unit


def _norms_of_all(norms: Float[Array, "T Q"]) -> Float[Array, " T"]:
    """The norm of all outputs together."""
    unit = power_of_two(norms, axis=1)
    return safe_sqrt(jnp.sum((norms / unit[:, None]) ** 2, axis=1)) * unit
