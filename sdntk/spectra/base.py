"""What all spectra share: the eigenbasis, the checked Gram matrix, warnings about precision, error
bounds.
"""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_float_array, format_number, is_traced


class PrecisionWarning(UserWarning):
    """Rounding may reach the digits that matter; the message names the cause."""


class Eigenbasis:
    """What eigenvalues, or Ritz values, say alone."""

    eigenvalues: Float[Array, " m"]

    @property
    def dtype(self) -> Any:
        """Of what is computed with it."""
        return self.eigenvalues.dtype

    @property
    def rank(self) -> Array:
        """The number of nonzero eigenvalues."""
        return jnp.sum(self.eigenvalues > 0)

    @property
    def largest(self) -> Float[Array, ""]:
        """d_max."""
        return jnp.max(self.eigenvalues)

    def apply(self, v: Float[Array, "m *P"]) -> Float[Array, "m *P"]:
        """G in its eigenbasis, D v."""
        return _column(self.eigenvalues, v) * v

    def resolvent(self, c: Float[Array, "*Q"], u: Float[Array, "m *P"]) -> Float[Array, "m *P"]:
        """(c I + D)^-1 u; c is a scalar, or one for each column."""
        return u / (
            c + _column(self.eigenvalues, u)
            if c.ndim == 0
            else c[None] + _column(self.eigenvalues, u)
        )


def _column(d: Float[Array, " m"], like: Float[Array, "m *P"]) -> Float[Array, "m *p"]:
    return d.reshape(-1, *(1 for _ in like.shape[1:]))


def null_space_loss(
    eigenvalues: Float[Array, " m"], z: Float[Array, "m *Q"], num_points: int
) -> Float[Array, "*Q"]:
    """(1/K) sum over {d_k = 0} of z_k^2, for each output."""
    null = _column(eigenvalues, z) <= 0
    return jnp.sum(jnp.where(null, z, 0) ** 2, axis=0) / num_points


def as_gram(G: ArrayLike) -> tuple[Float[Array, "K K"], float]:  # noqa: N803 (theory's name)
    """A Gram matrix, checked, exactly symmetric, in float64 where x64 is on; and its relative
    rounding.
    """
    matrix = as_float_array("G", G)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(
            f"G must be a square matrix, shape (K, K) with K >= 1; its shape is {matrix.shape}."
        )
    machine_eps = float(jnp.finfo(matrix.dtype).eps)
    matrix = matrix.astype(jnp.result_type(float))
    machine_eps = max(machine_eps, float(jnp.finfo(matrix.dtype).eps))
    _warn_if_single(machine_eps, matrix.dtype)
    _check_symmetric(matrix, machine_eps)
    return _symmetric(matrix), machine_eps


@jax.jit
def _symmetric(matrix: Float[Array, "K K"]) -> Float[Array, "K K"]:
    return (matrix + matrix.T) / 2


def _warn_if_single(machine_eps: float, dtype: Any) -> None:
    if machine_eps > jnp.finfo(jnp.float64).eps:
        remedy = (
            'switch x64 on (jax.config.update("jax_enable_x64", True)) and form the Gram matrix '
            "in float64"
            if dtype == jnp.float32
            else "form the Gram matrix in float64"
        )
        warnings.warn(
            "The theory of self-distillation needs float64, but this Gram matrix is known to "
            f"{machine_eps:.1e} only: "
            "eigenvalues and multipliers below that fraction of the largest eigenvalue are "
            f"noise. Remedy: {remedy}.",
            PrecisionWarning,
            stacklevel=3,
        )


def _check_symmetric(matrix: Float[Array, "K K"], machine_eps: float) -> None:
    if is_traced(matrix):
        return
    values = np.asarray(matrix)
    asymmetry, size = float(np.abs(values - values.T).max()), float(np.abs(values).max())
    if asymmetry > machine_eps**0.5 * size:
        raise ValueError(
            f"G must be symmetric; |G - G^T| reaches {format_number(asymmetry)} where |G| "
            f"reaches {format_number(size)}."
        )


class ErrorBounds(NamedTuple):
    """Bounds on relative errors, each of shape (T,) or (T, Q); infinite where nothing is known.

    Attributes:
        multipliers: |c_t - c| / c, c the multiplier of the exact chain.
        fitted: |f_t - f| / |f| on the training points; with joint outputs, of all together. 0 once
            collapsed.
    """

    multipliers: Float[Array, "T *Q"]
    fitted: Float[Array, "T *Q"]
