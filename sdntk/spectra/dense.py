"""The spectrum: eigenvalues d, and the map between labels y and rotated labels z = V y (Mobahi et
al. 2020, eqs. 18, 19).
"""

import dataclasses
from functools import partial
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_float_array, as_labels, format_number, is_traced
from sdntk._linalg import matmul
from sdntk.spectra.base import Eigenbasis, as_gram, null_space_loss


@no_type_check  # in the tests: transformations rebuild pytrees with leaves of other shapes
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spectrum(Eigenbasis):
    """A decomposed Gram matrix, G = V^T D V.

    Derivatives by G hold the eigenvectors constant, since where eigenvalues coincide they have
    none. Eigenvalues have the diagonal of V dG V^T, exact for whatever treats them all alike;
    rotated labels have none. Chains on the spectrum (:func:`sdntk.distill_spectrum`) take theirs
    from the matrix, which a spectrum of a traced matrix carries.

    Attributes:
        eigenvalues: d, shape (K,), ascending, never negative; those that are rounding are exactly
            zero.
        eigenvectors: V^T, shape (K, K); column k belongs to d_k.
        machine_epsilon: relative rounding of the Gram matrix, hence of d / d_max.
        matrix: G, for derivatives only; None unless G was traced.
    """

    eigenvalues: Float[Array, " K"]
    eigenvectors: Float[Array, "K K"]
    machine_epsilon: float = dataclasses.field(metadata={"static": True})
    matrix: Float[Array, "K K"] | None = None

    @property
    def num_points(self) -> int:
        """K."""
        return self.eigenvalues.shape[0]

    def rotate(self, y: Float[Array, "K *Q"]) -> Float[Array, "K *Q"]:
        """Z = V y: labels in the eigenbasis (eq. 19)."""
        return matmul(self.eigenvectors.T, y)

    def unrotate(self, z: Float[Array, "K *Q"]) -> Float[Array, "K *Q"]:
        """Y = V^T z: back from the eigenbasis, all axes behind the first carried along."""
        return matmul(self.eigenvectors, z.reshape(len(z), -1)).reshape(z.shape)

    def floor(self, y: ArrayLike) -> Float[Array, "*Q"]:
        """F = (1/K) sum over {d_k = 0} of z_k^2: the training loss that no function of this space
        can go below.

        A tolerance is feasible when it exceeds the floor. Shape () or (Q,), in the labels' units
        squared.
        """
        labels = as_labels("y", y, self.num_points, dtype=self.eigenvalues.dtype)
        return null_space_loss(self.eigenvalues, self.rotate(labels), self.num_points)


def decompose(G: ArrayLike, rank_tolerance: ArrayLike | None = None) -> Spectrum:  # noqa: N803 (theory's name)
    """Eigendecomposition of a Gram matrix, G = V^T D V, with rounding told apart from rank.

    An eigenvalue is zero when d_k <= rank_tolerance, by default K * machine_eps * d_max
    (machine_eps that of G's dtype). Computed in float64 when x64 is on, else in float32, with a
    warning.

    Args:
        G: the symmetric positive semi-definite Gram matrix, shape (K, K).
        rank_tolerance: the largest eigenvalue that counts as zero, in the units of G; not negative.

    Returns:
        A :class:`Spectrum`. One decomposition serves any number of label sets and tolerances.

    Raises:
        ValueError, TypeError: not a square matrix of finite numbers, not symmetric, or (unless
            traced) indefinite beyond rounding. A traced indefinite matrix gives nan eigenvalues.

    Warns:
        PrecisionWarning: G or the decomposition is in float32.

    Source: Mobahi et al. 2020, eq. 18, without its assumption that d_min > 0.

    Example:
        >>> spectrum = decompose(jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]))
        >>> [round(float(d), 6) for d in spectrum.eigenvalues], int(spectrum.rank)
        ([0.0, 2.0, 2.0], 2)
    """
    matrix, machine_eps = as_gram(G)
    zero = jnp.nan if rank_tolerance is None else _as_rank_tolerance(rank_tolerance, matrix.dtype)
    raw, rounding, d, vectors = _decompose(matrix, jnp.asarray(zero, matrix.dtype), machine_eps)
    if not is_traced(d) and np.isnan(np.asarray(d)).any():
        raise ValueError(
            "G must be positive semi-definite; its smallest eigenvalue is "
            f"{format_number(float(raw[0]))}, its largest "
            f"{format_number(float(raw[-1]))}, and rounding explains only "
            f"{format_number(float(rounding))}. The kernel is "
            "not positive definite, or its values are less precise than their dtype (then raise "
            "rank_tolerance)."
        )
    return Spectrum(d, vectors, machine_eps, matrix if is_traced(matrix) else None)


@partial(jax.jit, static_argnums=2)
def _decompose(
    matrix: Float[Array, "K K"], zero: Float[Array, ""], machine_eps: float
) -> tuple[Float[Array, " K"], Float[Array, ""], Float[Array, " K"], Float[Array, "K K"]]:
    """Raw eigenvalues, the largest that is rounding, and the spectrum: zeros set, nan where
    rounding does not explain d < 0.

    ``zero`` is the rank tolerance, nan for the default.
    """
    raw, vectors = _eigh(matrix)
    rounding = matrix.shape[0] * machine_eps * jnp.maximum(raw[-1], -raw[0])
    zero = jnp.where(jnp.isnan(zero), rounding, zero)
    rounding = jnp.maximum(rounding, zero)
    return (
        raw,
        rounding,
        jnp.where(raw < -rounding, jnp.nan, jnp.where(raw <= zero, 0, raw)),
        vectors,
    )


def _as_rank_tolerance(value: ArrayLike, dtype: Any) -> Float[Array, ""]:
    zero = as_float_array("rank_tolerance", value, dtype=dtype)
    if zero.shape != () or (not is_traced(zero) and float(zero) < 0):
        raise ValueError(
            f"rank_tolerance must be a scalar, zero or positive, in the units of G; got {value}."
        )
    return zero


@jax.custom_jvp
def _eigh(matrix: Float[Array, "K K"]) -> tuple[Float[Array, " K"], Float[Array, "K K"]]:
    d, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    return d, vectors


@_eigh.defjvp
def _eigh_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    d, vectors = _eigh(*primals)
    return (d, vectors), (
        jnp.sum(vectors * matmul(tangents[0], vectors), axis=0),
        jnp.zeros_like(vectors),
    )
