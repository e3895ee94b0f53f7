"""A Gram matrix as decompositions take it: checked, exactly symmetric, in float64 with x64 on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_float_array, format_number, is_traced
from sdntk._warnings import warn
from sdntk.spectra.base import PrecisionWarning


class GramMatrix(NamedTuple):
    """A symmetric matrix, its relative rounding, and the error of its kernel's values beyond that,
    which bounds its own in the spectral norm.
    """

    values: Float[Array, "K K"]
    machine_epsilon: float
    precision: float | Float[Array, ""] = 0.0

    def rounding(self, largest: Float[Array, ""]) -> Float[Array, ""]:
        """The largest |d| that rounding explains, given the largest eigenvalue."""
        return jnp.maximum(len(self.values) * self.machine_epsilon * largest, self.precision)

    def effective_epsilon(self, largest: Float[Array, ""]) -> float:
        """Relative rounding of each value that would explain as much."""
        if is_traced(largest) or self.precision == 0:
            return self.machine_epsilon
        return float(self.rounding(largest) / (len(self.values) * largest))

    @property
    def traced(self) -> Float[Array, "K K"] | None:
        """The matrix where it is traced, to take derivatives; else None, so that it can go."""
        return self.values if is_traced(self.values) else None


def as_gram_matrix(G: ArrayLike) -> GramMatrix:  # noqa: N803 (theory's name)
    """A Gram matrix of a user, checked.

    Raises:
        ValueError, TypeError: not a square matrix of finite numbers, or not symmetric.

    Warns:
        PrecisionWarning: it is in float32.
    """
    matrix = as_float_array("G", G)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(
            f"G must be a square matrix, shape (K, K) with K >= 1; its shape is {matrix.shape}."
        )
    _check_symmetric(matrix)
    return in_full_precision(matrix, getattr(G, "precision", 0.0))  # a store knows it


def in_full_precision(
    matrix: Float[Array, "K K"], precision: float | Float[Array, ""] = 0.0
) -> GramMatrix:
    """A Gram matrix of this library's making, whose values have been looked at.

    Args:
        matrix: G.
        precision: of the kernel's values; see :meth:`sdntk.kernels.base.LibraryKernel.precision`.

    Warns:
        PrecisionWarning: it is in float32.
    """
    values = _symmetric(matrix.astype(jnp.result_type(float)))
    machine_eps = _rounding(matrix.dtype)
    if machine_eps > jnp.finfo(jnp.float64).eps:
        _warn_of_single_precision(machine_eps, values.dtype)
    return GramMatrix(values, machine_eps, precision)


@jax.jit
def _symmetric(matrix: Float[Array, "K K"]) -> Float[Array, "K K"]:
    return (matrix + matrix.T) / 2


def _warn_of_single_precision(machine_eps: float, dtype: Any) -> None:
    remedy = "form the Gram matrix in float64"
    if dtype == jnp.float32:
        remedy = f'switch x64 on (jax.config.update("jax_enable_x64", True)) and {remedy}'
    warn(
        "The theory of self-distillation needs float64, but this Gram matrix is known to "
        f"{machine_eps:.1e} only: eigenvalues and multipliers below that fraction of the largest "
        f"eigenvalue are noise. Remedy: {remedy}.",
        PrecisionWarning,
    )


def _rounding(dtype: Any) -> float:
    """Relative rounding of values of a dtype that are now computed with."""
    return max(float(jnp.finfo(some).eps) for some in (dtype, jnp.result_type(float)))


def _check_symmetric(matrix: Float[Array, "K K"]) -> None:
    if is_traced(matrix):
        return
    values = np.asarray(matrix)
    asymmetry, size = float(np.abs(values - values.T).max()), float(np.abs(values).max())
    if asymmetry > _rounding(matrix.dtype) ** 0.5 * size:
        raise ValueError(
            f"G must be symmetric; |G - G^T| reaches {format_number(asymmetry)} where |G| "
            f"reaches {format_number(size)}."
        )
