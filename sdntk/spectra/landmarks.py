"""Landmarks: the few points whose kernel functions span the space of a Nystrom spectrum.

With g(L, L) = R R^T and phi(x) = R^{-1} g(L, x) the kernel is phi(x) . phi(x') as far as that space
reaches (docs/theory.md, section 11). R is a Cholesky factor with pivots, which ends where what is
left is rounding: landmarks that add nothing are left out.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import format_number
from sdntk.gram_matrices.tiles import ASYMMETRY
from sdntk.kernels.base import (
    KernelFunction,
    check_points,
    kernel_block,
    kernel_diagonal,
    kernel_precision,
)

#: How landmarks are taken from the points, where they are not given.
Selection = Literal["uniform", "pivoted"]
#: Pivots are looked for among so many times as many points as landmarks are wanted.
CANDIDATES = 10


class Landmarks(NamedTuple):
    """Landmarks in the order of their pivots.

    Attributes:
        points: shape (r, ...).
        factor: R, lower triangular, shape (r, r), in float64.
        num_asked: how many there were; r of them are linearly independent in the kernel's space.
        epsilon: relative rounding of the kernel's values.
    """

    points: Float[np.ndarray, "r ..."]
    factor: Float[np.ndarray, "r r"]
    num_asked: int
    epsilon: float


def landmarks_at(
    kernel: KernelFunction, points: Float[np.ndarray, "m ..."], dtype: np.dtype | None = None
) -> Landmarks:
    """These points, but for those that add nothing, as far as the kernel's values in a dtype tell.

    Raises:
        ValueError: the kernel is not positive semi-definite on them, or 0 at all of them.
    """
    x = check_points(kernel, "landmarks", points)
    values = kernel_block(kernel, x, x)
    values = values if dtype is None else values.astype(dtype)
    eps = float(jnp.finfo(values.dtype).eps)
    matrix = np.asarray(values, np.float64)
    diagonal = matrix.diagonal()
    largest = float(diagonal.max())
    if not np.isfinite(matrix).all() or largest <= 0:
        raise ValueError(
            "landmarks must be points at which the kernel has finite values that are not all 0; "
            f"the largest g(x, x) is {format_number(largest)}."
        )
    if np.abs(matrix - matrix.T).max() > ASYMMETRY * np.abs(matrix).max():
        raise ValueError(
            "kernel must be symmetric, g(x, t) = g(t, x); between the landmarks it is not."
        )
    precision = float(kernel_precision(kernel, x))
    rounding = max(len(x) * eps * largest, precision)
    import scipy.linalg  # not with sdntk: most users need none of it

    found, order, rank, _ = scipy.linalg.lapack.dpstrf((matrix + matrix.T) / 2, rounding, lower=1)
    factor, order = np.tril(found[:rank, :rank]), order - 1
    beyond = _left_over(matrix, found, order, rank)
    if beyond < -10 * rounding:
        raise ValueError(
            "kernel must be positive semi-definite; on the landmarks a pivot is "
            f"{format_number(beyond)}, and rounding explains only {format_number(rounding)}."
        )
    return Landmarks(points[order[:rank]], factor, len(x), max(eps, precision / largest))


def _left_over(
    matrix: Float[np.ndarray, "m m"], found: np.ndarray, order: np.ndarray, rank: int
) -> float:
    """The least pivot among what was left out."""
    if rank == len(matrix):
        return 0.0
    explained = np.sum(np.tril(found)[rank:, :rank] ** 2, axis=1)
    return float(np.min(matrix.diagonal()[order[rank:]] - explained))


def pivots(
    kernel: KernelFunction, points: Float[np.ndarray, "n ..."], number: int, key: Array
) -> np.ndarray:
    """The indices of random pivots of a Cholesky factor of g(X, X), no column of which is computed
    but theirs: each is drawn with a probability in proportion to what those before leave of
    g(x, x). The largest in place of a random one would take outliers first.

    Source: Chen, Epperly, Tropp and Webber 2025, *Randomly pivoted Cholesky*.
    """
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (2,), np.uint32)))
    x = check_points(kernel, "x", points)
    left = np.array(kernel_diagonal(kernel, x), np.float64)
    rounding = len(x) * float(jnp.finfo(x.dtype).eps) * left.max(initial=0)
    columns = np.zeros((len(x), number))
    taken: list[int] = []
    for j in range(number):
        if left.max() <= rounding:
            break
        pivot = int(np.searchsorted(np.cumsum(left), rng.random() * left.sum(), side="right"))
        column = np.asarray(kernel_block(kernel, x, x[pivot][None])[:, 0], np.float64)
        column = (column - columns[:, :j] @ columns[pivot, :j]) / np.sqrt(left[pivot])
        columns[:, j] = column
        left = np.maximum(left - column**2, 0)
        left[pivot] = 0
        taken.append(pivot)
    return np.array(taken)
