"""Every round's fit, given its multiplier, and what a change of the Gram matrix does to it.

Fit t has dual coefficients a_t = (c_t I + G)^-1 y_t, f_t = G a_t. In a basis that is held constant
while G moves away from the G_0 that it simplifies, this is, exactly,

    a_t = (c_t I + G_0)^-1 (y_t - e_t),      f_t = G_0 a_t + e_t,      e_t = (G - G_0) a_t:

a change of G acts on a round as a change of its targets, and of its fit. So derivatives by G need
no derivatives of eigenvectors, which do not exist where eigenvalues coincide: e_t is zero and has
the tangent dG a_t, all else is the recurrence's own. Eliminating a_t gives the resolvent formulas
for dc and dz.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdntk._linalg import matmul


class Fits(NamedTuple):
    """Every round's, in the eigenbasis.

    Attributes:
        multipliers: c_t, shape (T,) or (T, Q); infinite once collapsed.
        targets: V y_t, shape (T, m) or (T, m, Q).
        duals: V a_t, likewise; 0 once collapsed.
        fitted: V f_t, likewise; 0 once collapsed.
    """

    multipliers: Float[Array, "T *Q"]
    targets: Float[Array, "T m *P"]
    duals: Float[Array, "T m *P"]
    fitted: Float[Array, "T m *P"]


def fits(
    spectrum: Any,
    z: Float[Array, "m *P"],
    multipliers: Float[Array, "T *Q"],
    ground_truth_weight: Float[Array, ""],
    s2: Float[Array, "*Q"] | None = None,
) -> Fits:
    """Every round's fit with multipliers that are known.

    Args:
        spectrum: dense, tridiagonal or Krylov; one that carries its Gram matrix gives derivatives
            by it.
        z: the rotated labels.
        multipliers: c_t, infinite once collapsed.
        ground_truth_weight: alpha.
        s2: s^2 = K eps, when the multipliers solve for it and are to have the derivatives that this
            gives them; None when they have theirs.
    """
    known = multipliers, ground_truth_weight, s2
    unmoved = jnp.zeros((len(multipliers), *z.shape), z.dtype)
    if spectrum.matrix is None:
        return _rounds(spectrum, z, *known, unmoved)
    constant = lax.stop_gradient(spectrum)  # the matrix says all about it
    duals = jnp.moveaxis(_rounds(constant, z, *known, unmoved).duals, 1, 0)
    moved = _change(spectrum.matrix, constant.unrotate(duals).reshape(len(duals), -1))
    shifts = constant.rotate(moved).reshape(duals.shape)
    return _rounds(constant, z, *known, jnp.moveaxis(shifts, 0, 1))


def _rounds(
    spectrum: Any,
    z: Float[Array, "m *P"],
    multipliers: Float[Array, "T *Q"],
    alpha: Float[Array, ""],
    s2: Float[Array, "*Q"] | None,
    shifts: Float[Array, "T m *P"],
) -> Fits:
    def round_(
        targets: Float[Array, "m *P"], now: tuple[Array, Array]
    ) -> tuple[Float[Array, "m *P"], Fits]:
        c, shift = now
        seen = targets - shift
        c = c if s2 is None else _derived(spectrum, c, seen, s2)
        going = ~jnp.isinf(c)  # not collapsed
        rows = going[None] if c.ndim else going
        duals = jnp.where(rows, spectrum.resolvent(jnp.where(going, c, 1), seen), 0)
        fitted = jnp.where(rows, spectrum.apply(duals) + shift, 0)
        return alpha * z + (1 - alpha) * fitted, Fits(c, targets, duals, fitted)

    return lax.scan(round_, z, (multipliers, shifts))[1]


def _derived(
    spectrum: Any,
    multiplier: Float[Array, "*Q"],
    seen: Float[Array, "m *P"],
    s2: Float[Array, "*Q"],
) -> Float[Array, "*Q"]:
    """The multiplier, with the derivatives that |c (c I + G)^-1 u| = s gives it, as
    ``multiplier.implicit_root``.
    """
    active = jnp.isfinite(multiplier)
    c = lax.stop_gradient(jnp.where(active, multiplier, 1))
    over = 0 if seen.ndim == 1 + c.ndim else (0, 1)  # joint outputs share a multiplier
    x = jnp.zeros_like(c)
    for _ in range(2):
        moved = c * jnp.exp(x)
        duals = spectrum.resolvent(moved, seen)
        h2 = moved**2 * jnp.sum(duals**2, axis=over)
        slope = (
            2
            * moved**2
            * jnp.sum(duals * spectrum.apply(spectrum.resolvent(moved, duals)), axis=over)
        )
        x = x - jnp.where(active, h2 - s2, 0) / jnp.where(active & (slope > 0), slope, 1)
    return jnp.where(active, c * jnp.exp(x - lax.stop_gradient(x)), lax.stop_gradient(multiplier))


def _change(matrix: Float[Array, "K K"], vectors: Float[Array, "K n"]) -> Float[Array, "K n"]:
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
