"""The dense spectrum: an eigendecomposition (Mobahi et al. 2020, eqs. 18, 19)."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sdntk._arguments import ArrayLike, as_columns, as_scalar, format_number, is_traced
from sdntk._linalg import matmul
from sdntk._pytrees import pytree
from sdntk.spectra.base import Eigenbasis
from sdntk.spectra.matrix import GramMatrix, as_gram_matrix


@pytree
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
        """Rotated labels z = V y, in the eigenbasis (eq. 19)."""
        return matmul(
            self.eigenvectors.T, as_columns("y", y, self.num_points, self.dtype, most_axes=2)
        )

    def unrotate(self, z: Float[Array, "K *Q"]) -> Float[Array, "K *Q"]:
        """Labels y = V^T z, back from the eigenbasis, all axes behind the first carried along."""
        z = as_columns("z", z, self.num_points, self.dtype)
        return matmul(self.eigenvectors, z.reshape(len(z), -1)).reshape(z.shape)


def decompose(G: ArrayLike, rank_tolerance: ArrayLike | None = None) -> Spectrum:  # noqa: N803 (theory's name)
    """Eigendecomposition of a Gram matrix, G = V^T D V, with rounding told apart from rank.

    An eigenvalue is zero when d_k <= rank_tolerance, by default K * machine_eps * d_max
    (machine_eps that of G's dtype), or the precision of the kernel's values if a store of a Gram
    matrix knows that to be worse. Computed in float64 when x64 is on, else in float32, with a
    warning.

    Args:
        G: the symmetric positive semi-definite Gram matrix, shape (K, K).
        rank_tolerance: the largest eigenvalue that counts as zero, in the units of G; not negative.
            Of a neural kernel on images: ``kernel.precision(x)``.

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
    matrix = as_gram_matrix(G)
    if rank_tolerance is not None:
        rank_tolerance = as_rank_tolerance(rank_tolerance, matrix.values.dtype)
    return decompose_checked(matrix, rank_tolerance)


def decompose_checked(
    matrix: GramMatrix, rank_tolerance: Float[Array, ""] | None = None
) -> Spectrum:
    """:func:`decompose` for a matrix that has been checked.

    Raises:
        ValueError: indefinite beyond rounding.
    """
    found = _decompose(matrix.values, rank_tolerance, matrix.machine_epsilon, matrix.precision)
    if not is_traced(found.indefinite) and found.indefinite:
        smallest, largest, rounding = map(float, (found.smallest, found.largest, found.rounding))
        raise ValueError(
            "G must be positive semi-definite; its smallest eigenvalue is "
            f"{format_number(smallest)}, its largest {format_number(largest)}, and rounding "
            f"explains only {format_number(rounding)}. The kernel is not positive definite, or its "
            "values are less precise than their dtype (then raise rank_tolerance; of a neural "
            "kernel: rank_tolerance=kernel.precision(x))."
        )
    epsilon = matrix.effective_epsilon(found.largest)
    return Spectrum(found.eigenvalues, found.eigenvectors, epsilon, matrix.traced)


class _Decomposed(NamedTuple):
    eigenvalues: Float[Array, " K"]  # zeros set; nan where rounding does not explain d < 0
    eigenvectors: Float[Array, "K K"]
    smallest: Float[Array, ""]
    largest: Float[Array, ""]
    rounding: Float[Array, ""]  # the largest |d| that rounding explains
    indefinite: Bool[Array, ""]


@partial(jax.jit, static_argnums=2)
def _decompose(
    values: Float[Array, "K K"],
    rank_tolerance: Float[Array, ""] | None,
    machine_eps: float,
    precision: Float[Array, ""] | float,
) -> _Decomposed:
    raw, vectors = _eigh(values)
    matrix = GramMatrix(values, machine_eps, precision)
    rounding = matrix.rounding(jnp.maximum(raw[-1], -raw[0]))
    zero = rounding
    if rank_tolerance is not None:
        zero = rank_tolerance
        rounding = jnp.maximum(rounding, rank_tolerance)
    d = jnp.where(raw <= zero, 0, raw)
    d = jnp.where(raw < -rounding, jnp.nan, d)
    return _Decomposed(d, vectors, raw[0], raw[-1], rounding, jnp.isnan(d).any())


def as_rank_tolerance(value: ArrayLike, dtype: Any) -> Float[Array, ""]:
    """The largest eigenvalue that counts as zero, checked."""
    expected = "must be a scalar, zero or positive, in the units of G"
    return as_scalar("rank_tolerance", value, lambda zero: zero >= 0, expected, dtype=dtype)


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
