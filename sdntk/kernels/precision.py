"""How precise a kernel's values are, by measurement: those of one that loses digits near angle 0,
and those computed in float32.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from sdntk._arguments import is_traced
from sdntk.kernels.base import KernelFunction, LibraryKernel, kernel_block

#: So many of the points are tried.
TRIED = 8

#: Values are taken to err by at most so many times as much as they were seen to move.
SAFETY = 4


def measured_precision(kernel: LibraryKernel, x: Float[Array, "K ..."]) -> float | Float[Array, ""]:
    """An estimate, from above, of the error of a kernel's values: how far g(x, x') moves when x'
    moves from x by machine_eps, and no less than the root of machine_eps times g(x, x).

    Where a formula takes the angle from an inner product, rounding decides angles below that root:
    values of a point with itself and with its near-duplicates show how much that is. Luck may hide
    it, since a cosine that happens to be rounded to 1 does no harm.

    Args:
        kernel: g.
        x: points that it takes. Of traced ones the estimate is traced, without derivatives.
    """
    root = float(jnp.finfo(float).eps) ** 0.5
    with jax.ensure_compile_time_eval():  # of points that are known, while others are traced
        tried = lax.stop_gradient(x)[:: -(-len(x) // TRIED)]
        movement, largest = _movement(kernel, tried)
        estimate = lax.stop_gradient(jnp.maximum(SAFETY * movement, root * largest))
    return estimate if is_traced(estimate) else float(estimate)


@jax.jit
def _movement(
    kernel: LibraryKernel, x: Float[Array, "n ..."]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How far values move, and the largest of them."""
    x = x.astype(jnp.result_type(float))
    steps = 1 + jnp.arange(-2, 3) * jnp.finfo(x.dtype).eps

    def of(point: Float[Array, "..."]) -> Float[Array, " 5"]:
        return lax.map(lambda step: kernel.block(point[None], step * point[None])[0, 0], steps)

    values = lax.map(of, x)
    return jnp.max(jnp.ptp(values, axis=1)), jnp.max(jnp.abs(values))


#: Single precision is tried at so many of the rows, against so many columns.
ROWS_IN_SINGLE, COLUMNS_IN_SINGLE = 64, 2**14
#: Of fewer rows or columns float64 costs little.
LEAST_IN_SINGLE = 256
#: So many columns at a time.
COLUMNS_AT_ONCE = 2**12
#: In units of machine_eps, rows of random points may move by so much: twice what the whole matrix
#: may, since of a few rows rounding shows more; and those of the largest and smallest by so much.
SOME, EXTREMES = 2, 8


@dataclasses.dataclass(frozen=True)
class InSingle:
    """A kernel whose points are rounded to float32, and whose values are computed in it, with x64
    on, too.
    """

    kernel: KernelFunction

    def __call__(self, x1: Float[Any, "n1 ..."], x2: Float[Any, "n2 ..."]) -> Float[Array, "n1 n2"]:
        x1, x2 = (x.astype(np.float32) for x in (x1, x2))
        with jax.enable_x64(False):
            return kernel_block(self.kernel, x1, x2)


def in_single_if_sufficient(
    kernel: KernelFunction,
    x1: Float[Any, "n1 ..."],
    x2: Float[Any, "n2 ..."],
    dtype: np.dtype | None,
) -> KernelFunction:
    """The kernel that computes values to be kept in ``dtype``: in float32, or as it is."""
    if dtype is None or not single_suffices(kernel, x1, x2, dtype):
        return kernel
    return InSingle(kernel)


def single_suffices(
    kernel: KernelFunction,
    x1: Float[Any, "n1 ..."],
    x2: Float[Any, "n2 ..."],
    dtype: np.dtype,
) -> bool:
    """Whether values that are to be kept in float32 may be computed in it: random rows of the
    matrix g(x1, x2) move by about machine_eps of their spectral norm, as much as keeping them so is
    taken to cost, and those of the largest and smallest points by a few times as much.

    Against all columns (of more, random ones), so that each row meets near neighbours, whose
    distance is rounded most.

    Args:
        kernel: g; of a function that is none of this library's nothing is tried.
        x1: points that it takes, a row each.
        x2: points that it takes, a column each.
        dtype: in which values are to be kept.
    """
    if dtype != np.float32 or jnp.result_type(float) == np.float32:
        return False
    if min(len(x1), len(x2)) < LEAST_IN_SINGLE or not isinstance(kernel, LibraryKernel):
        return False
    if is_traced(kernel, x1, x2):
        return False
    points, others = np.asarray(x1), np.asarray(x2)
    tried = _rows_to_try(points)
    rows = jnp.asarray(points[tried])
    unit = 0.0  # so that no square leaves the range of float64
    exact = moved = np.zeros((len(rows), len(rows)))
    for columns in _column_blocks(others, tried if x1 is x2 else tried[:0]):
        values = np.asarray(kernel_block(kernel, rows, columns), np.float64)
        difference = np.asarray(InSingle(kernel)(rows, columns), np.float64) - values
        if not (np.isfinite(values).all() and np.isfinite(difference).all()):
            return False
        unit = unit or float(np.abs(values).max()) or 1.0
        exact = exact + (values / unit) @ (values / unit).T
        moved = moved + (difference / unit) @ (difference / unit).T
    some = slice(0, ROWS_IN_SINGLE // 2)
    eps = float(np.finfo(np.float32).eps)
    return bool(
        _norm(moved[some, some]) <= SOME * eps * _norm(exact[some, some])
        and _norm(moved) <= EXTREMES * eps * _norm(exact)
    )


def _norm(squared: Float[np.ndarray, "n n"]) -> float:
    """The spectral norm of A, given A A^T."""
    return float(np.linalg.norm(squared, 2)) ** 0.5


def _rows_to_try(x: Float[np.ndarray, "n ..."]) -> Int[np.ndarray, " r"]:
    """Random ones, always the same, then a quarter each of the smallest and largest points."""
    flat = x.reshape(len(x), -1)
    with np.errstate(over="ignore"):
        order = np.argsort(np.einsum("nd,nd->n", flat, flat), kind="stable")
    quarter = ROWS_IN_SINGLE // 4
    between = np.random.default_rng(0).permutation(order[quarter:-quarter])[: 2 * quarter]
    return np.concatenate([between, order[:quarter], order[-quarter:]])


def _column_blocks(
    x: Float[np.ndarray, "n ..."], without: Int[np.ndarray, " r"]
) -> Iterator[Float[Array, "b ..."]]:
    """The columns, without some, in blocks of one length, so that a kernel is compiled once; the
    last block repeats points of the one before. Of a point with itself nothing is to be learnt, and
    a kernel may take long.
    """
    indices = np.setdiff1d(np.arange(len(x)), without)
    if len(indices) > COLUMNS_IN_SINGLE:
        indices = np.sort(np.random.default_rng(1).permutation(indices)[:COLUMNS_IN_SINGLE])
    number = -(-len(indices) // COLUMNS_AT_ONCE)
    length = -(-len(indices) // number)
    for i in range(number):
        start = min(i * length, len(indices) - length)
        yield jnp.asarray(x[indices[start : start + length]])
