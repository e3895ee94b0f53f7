"""Every round's fit, given its multiplier, and what a change of the Gram matrix does to it.

Fit t has dual coefficients a_t = (c_t I + G)^-1 y_t, f_t = G a_t. In a basis that is held constant
while G moves away from the G_0 that it simplifies, this is, exactly,

    a_t = (c_t I + G_0)^-1 (y_t - e_t),      f_t = G_0 a_t + e_t,      e_t = (G - G_0) a_t:

a change of G acts on a round as a change of its targets, and of its fit. So derivatives by G need
no derivatives of eigenvectors, which do not exist where eigenvalues coincide: e_t is zero and has
the tangent dG a_t, all else is the recurrence's own. Eliminating a_t gives the resolvent formulas
for dc and dz (docs/numerics.md, "Derivatives").
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from sdntk._linalg import matmul
from sdntk.spectra.base import AbstractSpectrum
from sdntk.theory.mixing import mix_targets, weights_handed_on
from sdntk.theory.multiplier import implicit_root, radius_as_unit
from sdntk.theory.newton import Residual


class Rounds(NamedTuple):
    """Every round's fit, in the basis of a spectrum.

    Attributes:
        multipliers: c_t, shape (T,) or (T, Q); infinite where collapsed, nan once infeasible.
        targets: V y_t, shape (T, m) or (T, m, Q); nan after an infeasible round.
        duals: V a_t, likewise; 0 where collapsed, nan once infeasible.
        fitted: V f_t, likewise; 0 where collapsed, nan once infeasible.
    """

    multipliers: Float[Array, "T *Q"]
    targets: Float[Array, "T m *P"]
    duals: Float[Array, "T m *P"]
    fitted: Float[Array, "T m *P"]


class _Given(NamedTuple):
    """What a round is given: leaves have a leading axis T."""

    multiplier: Float[Array, "T *Q"]
    weight: Float[Array, " T"]  # in the targets of the next round
    shift: Float[Array, "T m *P"]  # V e_t


class _Chain(NamedTuple):
    """What all rounds share."""

    spectrum: AbstractSpectrum
    z: Float[Array, "m *P"]
    s: Float[Array, "*Q"] | None


def replay(
    spectrum: AbstractSpectrum,
    z: Float[Array, "m *P"],
    multipliers: Float[Array, "T *Q"],
    ground_truth_weight: Float[Array, "*t"],
    s: Float[Array, "*Q"] | None = None,
) -> Rounds:
    """Every round's fit with multipliers that are known.

    Args:
        spectrum: any; one that carries its Gram matrix gives derivatives by it.
        z: the rotated labels.
        multipliers: c_t, infinite where collapsed, nan once infeasible.
        ground_truth_weight: alpha, or one for each later round, shape (T - 1,).
        s: sqrt(K eps), when the multipliers solve for it and are to have the derivatives that this
            gives them; None when they have theirs.
    """
    unmoved = jnp.zeros((len(multipliers), *z.shape), z.dtype)
    weights = weights_handed_on(ground_truth_weight, len(multipliers))
    if spectrum.matrix is None:
        chain = _Chain(spectrum, z, s)
        return _nan_once_infeasible(_all_rounds(chain, _Given(multipliers, weights, unmoved)))

    constant: Any = lax.stop_gradient(spectrum)  # the matrix says all about it
    chain = _Chain(constant, z, s)
    rounds = _all_rounds(chain, _Given(multipliers, weights, unmoved))

    # V e_t for every round: V (G - G_0) V^T times the duals.
    duals = jnp.moveaxis(rounds.duals, 1, 0)
    on_points = constant.unrotate(duals).reshape(constant.num_points, -1)
    change = _change_times(spectrum.matrix, on_points)
    shifts = constant.rotate(change).reshape(duals.shape)
    moved = _Given(multipliers, weights, jnp.moveaxis(shifts, 0, 1))
    return _nan_once_infeasible(_all_rounds(chain, moved))


def _all_rounds(chain: _Chain, given: _Given) -> Rounds:
    """Every round, with fits of 0 wherever there is no multiplier."""
    spectrum, z = chain.spectrum, chain.z

    def one_round(
        targets: Float[Array, "m *P"], now: _Given
    ) -> tuple[Float[Array, "m *P"], Rounds]:
        moved = targets - now.shift
        c = now.multiplier
        if chain.s is not None:
            c = _with_derivatives(spectrum, c, moved, chain.s)

        active = jnp.isfinite(c)
        columns = active[None] if c.ndim else active
        duals = spectrum.resolvent(jnp.where(active, c, 1), moved)
        duals = jnp.where(columns, duals, 0)
        fitted = jnp.where(columns, spectrum.apply(duals) + now.shift, 0)
        following = mix_targets(z, fitted, now.weight)
        return following, Rounds(c, targets, duals, fitted)

    return lax.scan(one_round, z, given)[1]


def _nan_once_infeasible(rounds: Rounds) -> Rounds:
    """The rounds, with nan for what an infeasible round and those after it do not have.

    Last of all, since nan on the way would spoil the derivatives of the rounds before.
    """
    lost = jnp.isnan(rounds.multipliers)  # and all after it
    before = jnp.concatenate([jnp.zeros_like(lost[:1]), lost[:-1]])

    def where(missing: Bool[Array, "T *Q"], values: Float[Array, "T m *P"]) -> Array:
        outputs = (1,) * (values.ndim - 1 - missing.ndim)
        rows = missing.reshape(len(missing), 1, *missing.shape[1:], *outputs)
        return jnp.where(rows, jnp.nan, values)

    return Rounds(
        rounds.multipliers,
        targets=where(before, rounds.targets),
        duals=where(lost, rounds.duals),
        fitted=where(lost, rounds.fitted),
    )


def _with_derivatives(
    spectrum: AbstractSpectrum,
    multiplier: Float[Array, "*Q"],
    targets: Float[Array, "m *P"],
    s: Float[Array, "*Q"],
) -> Float[Array, "*Q"]:
    """The multiplier, with the derivatives that |c (c I + G)^-1 u| = s gives it."""
    active = jnp.isfinite(multiplier)
    over = 0 if targets.ndim == 1 + multiplier.ndim else (0, 1)  # joint outputs share a multiplier

    unit = radius_as_unit(s, active)
    relative = targets / (unit[None] if unit.ndim else unit)

    def squared_residual(c: Float[Array, "*Q"]) -> Residual:
        duals = spectrum.resolvent(c, relative)
        residuals = (c[None] if c.ndim else c) * duals
        again = spectrum.apply(spectrum.resolvent(c, residuals))
        return Residual(jnp.sum(residuals**2, axis=over), 2 * jnp.sum(residuals * again, axis=over))

    constant = lax.stop_gradient(jnp.where(active, multiplier, 1))
    root = implicit_root(constant, squared_residual, (s / unit) ** 2, active)
    return jnp.where(active, root, lax.stop_gradient(multiplier))


def _change_times(matrix: Float[Array, "K K"], vectors: Float[Array, "K n"]) -> Float[Array, "K n"]:
    """(G - G_0) times vectors, with G_0 the constant G: zero, but its derivatives by G are not."""
    matrix = _once_differentiable(matrix)  # the vectors are right to first order in G no more
    return matmul(matrix - lax.stop_gradient(matrix), vectors)


@jax.custom_jvp
def _once_differentiable(matrix: Float[Array, "K K"]) -> Float[Array, "K K"]:
    return matrix


@_once_differentiable.defjvp
def _once_differentiable_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _once_differentiable(*primals), tangents[0] * _one(*primals)


@jax.custom_jvp
def _one(matrix: Float[Array, "K K"]) -> Float[Array, ""]:
    """1, which refuses to be differentiated. A factor, since linearisation drops what is merely
    called.
    """
    return jnp.ones((), matrix.dtype)


@_one.defjvp
def _one_jvp(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "Second derivatives with respect to the Gram matrix (kernel hyperparameters, points) are "
        "not available."
    )


def unrotate_rounds(
    spectrum: AbstractSpectrum, z: Float[Array, "T m *P"]
) -> Float[Array, "T K *P"]:
    """All rounds and outputs back from the basis in one matrix product."""
    return jnp.moveaxis(spectrum.unrotate(jnp.moveaxis(z, 1, 0)), 0, 1)
