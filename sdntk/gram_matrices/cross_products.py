"""Products with a cross-Gram matrix, which is never held: predictions at any number of points."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk._arguments import is_traced
from sdntk._linalg import matmul
from sdntk._progress import track
from sdntk.gram_matrices.block_size import choose_block_size
from sdntk.gram_matrices.tiles import Tiling, compute_tiles
from sdntk.kernels.base import KernelFunction, kernel_block

#: Of traced points so many bytes of the matrix are computed at a time.
ROWS_BYTES = 2**28


def cross_product(
    kernel: KernelFunction,
    x_new: Float[Any, "n ..."],
    x: Float[Any, "K ..."],
    v: Float[Array, "K P"],
) -> Float[Array, "n P"]:
    """sum_k g(x_new_j, x_k)/K v_k, tile by tile on all local devices, in the dtype of v.

    Args:
        kernel: g.
        x_new: points that :func:`~sdntk.kernels.base.check_points` let pass.
        x: the K training points, likewise.
        v: vectors.
    """
    if is_traced(kernel, x_new, x):
        return _row_by_row(kernel, x_new, x, v)
    size = choose_block_size(kernel, (x_new, x))
    shape = len(x_new), len(x)
    tiling = Tiling(shape, min(size, max(shape)), symmetric=False)
    total = jnp.zeros((len(x_new), v.shape[1]), v.dtype)
    computed = compute_tiles(kernel, x_new, x, tiling, tiling.by_columns)
    for tile, values in track(computed, f"Predictions at {shape[0]} points", tiling.num_tiles):
        if is_traced(values):  # a kernel that closes over a tracer
            return _row_by_row(kernel, x_new, x, v)
        if tiling.num_tiles == 1:
            return matmul(values.astype(v.dtype), v)
        total = _add(total, values, v, *tiling.rectangle(tile).corner)
    return total


@functools.partial(jax.jit, donate_argnames="total")
def _add(
    total: Float[Array, "n P"],
    tile: Float[Array, "rows columns"],
    v: Float[Array, "K P"],
    row: int | Array,
    column: int | Array,
) -> Float[Array, "n P"]:
    """``total`` and what a tile with its corner at (row, column) contributes."""
    part = jax.lax.dynamic_slice_in_dim(v, column, tile.shape[1])
    # Converted before the product, not in it: XLA's fused loops are many times slower on a CPU.
    tile = jax.lax.optimization_barrier(tile.astype(v.dtype))
    sums = jax.lax.dynamic_slice_in_dim(total, row, len(tile)) + matmul(tile, part)
    return jax.lax.dynamic_update_slice_in_dim(total, sums, row, 0)


def _row_by_row(
    kernel: KernelFunction,
    x_new: Float[Array, "n ..."],
    x: Float[Array, "K ..."],
    v: Float[Array, "K P"],
) -> Float[Array, "n P"]:
    """For tracers, which cannot be looked at: derivatives, jit and vmap go through the kernel
    itself.
    """
    rows = max(1, ROWS_BYTES // (len(x) * jnp.result_type(float).itemsize))
    products = [
        matmul((kernel_block(kernel, x_new[i : i + rows], x) / len(x)).astype(v.dtype), v)
        for i in range(0, len(x_new), rows)
    ]
    return jnp.concatenate(products) if len(products) > 1 else products[0]
