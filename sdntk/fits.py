"""Every round's fit, given its multiplier, and what a change of the Gram matrix does to it.

Fit t has dual coefficients a_t = (c_t I + G)^-1 y_t, f_t = G a_t. In a basis that is held constant while G moves away from
the G_0 that it diagonalises, this is, exactly,

    a_t = (c_t I + G_0)^-1 (y_t - e_t),      f_t = G_0 a_t + e_t,      e_t = (G - G_0) a_t:

a change of G acts on a round as a change of its targets, and of its fit. So derivatives by G need no derivatives of
eigenvectors, which do not exist where eigenvalues coincide: e_t is zero and has the tangent dG a_t, all else is the
recurrence's own. Eliminating a_t gives the resolvent formulas for dc and dz.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdntk._linalg import matmul
from sdntk.multiplier import implicit_root, range_part
from sdntk.spectrum import Spectrum


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
        spectrum: dense or Krylov; a dense one that carries its Gram matrix gives derivatives by it.
        z: the rotated labels.
        multipliers: c_t, infinite once collapsed.
        ground_truth_weight: alpha.
        s2: s^2 = K eps, when the multipliers solve for it and are to have the derivatives that this gives them by G; None
            when their derivatives are known.
    """
    d, alpha = spectrum.eigenvalues, ground_truth_weight
    matrix = spectrum.matrix if isinstance(spectrum, Spectrum) else None
    if matrix is None:
        return _rounds(d, z, multipliers, alpha, None, jnp.zeros((len(multipliers), *z.shape), z.dtype))
    d = lax.stop_gradient(d)  # the matrix says all about it
    duals = _rounds(d, z, multipliers, alpha, None, jnp.zeros((len(multipliers), *z.shape), z.dtype)).duals
    coefficients = spectrum.unrotate(jnp.moveaxis(duals, 1, 0))
    moved = _change(matrix, coefficients.reshape(len(coefficients), -1)).reshape(coefficients.shape)
    shifts = spectrum.rotate(moved.reshape(len(moved), -1)).reshape(moved.shape)
    return _rounds(d, z, multipliers, alpha, s2, jnp.moveaxis(shifts, 0, 1))


def _rounds(
    d: Float[Array, " m"],
    z: Float[Array, "m *P"],
    multipliers: Float[Array, "T *Q"],
    alpha: Float[Array, ""],
    s2: Float[Array, "*Q"] | None,
    shifts: Float[Array, "T m *P"],
) -> Fits:
    of_range, column = range_part(d), d.reshape(-1, *(1 for _ in z.shape[1:]))

    def derived(c: Float[Array, "*Q"], seen: Float[Array, "m *P"]) -> Float[Array, "*Q"]:
        """The multiplier, with the derivatives that its equation gives it."""
        squared = seen**2 if seen.ndim == 1 + c.ndim else jnp.sum(seen**2, axis=1)  # joint outputs share it
        kept = of_range.kept.reshape(-1, *(1 for _ in c.shape))
        null2 = jnp.sum(jnp.where(kept, 0, squared), axis=0)
        active = jnp.isfinite(c)
        root = implicit_root(
            lax.stop_gradient(jnp.where(active, c, 1)), of_range.d.reshape(kept.shape), jnp.where(kept, squared, 0), s2 - null2
        )
        return jnp.where(active, root, lax.stop_gradient(c))

    def round_(targets: Float[Array, "m *P"], now: tuple[Array, Array]) -> tuple[Float[Array, "m *P"], Fits]:
        c, shift = now
        seen = targets - shift
        c = c if s2 is None else derived(c, seen)
        row = c[None] if c.ndim else c
        active = ~jnp.isinf(row)
        duals = jnp.where(active, seen / (jnp.where(active, row, 1) + column), 0)
        fitted = jnp.where(active, column * duals + shift, 0)
        return alpha * z + (1 - alpha) * fitted, Fits(c, targets, duals, fitted)

    return lax.scan(round_, z, (multipliers, shifts))[1]


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
    """1, which refuses to be differentiated; as a factor, for linearisation keeps factors and drops what is merely called."""
    return jnp.ones((), matrix.dtype)


@_one.defjvp
def _one_jvp(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "Second derivatives with respect to the Gram matrix (kernel hyperparameters, points) are not available."
    )
