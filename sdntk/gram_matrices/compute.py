"""Gram matrices: X -> G, with the paper's 1/K in it (Mobahi et al. 2020, eqs. 15, 16), tile by tile
where K is large.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk import _memory
from sdntk._arguments import (
    ArrayLike,
    DTypeLike,
    as_count,
    as_float_dtype,
    as_path,
    is_traced,
    require_one_shape,
)
from sdntk._progress import track
from sdntk.gram_matrices.block_size import choose_block_size, work_bytes
from sdntk.gram_matrices.store import GramStore
from sdntk.gram_matrices.store_writing import compute_stored
from sdntk.gram_matrices.tiles import Tiling, compute_tiles, put
from sdntk.kernels.base import KernelFunction, check_points, kernel_block


def gram(
    kernel: KernelFunction,
    x: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    path: str | Path | None = None,
    block_size: int | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n K"] | GramStore:
    """The Gram matrix of a kernel, divided by the number of (training) points.

    ``gram(kernel, x)`` is G[j, k] = g(x_j, x_k)/K (eq. 15), and ``gram(kernel, x_new, x)`` is the
    cross-Gram matrix whose rows are g_x[k] = g(x_new, x_k)/K (eq. 16), K = len(x).

    Many points are taken in tiles, on all local devices, of ``gram(kernel, x)`` only the tiles on
    and above the diagonal: half of the work, and an exactly symmetric G. Work of more than two
    seconds shows a progress bar with the time left.

    With ``path`` each tile is written to disk as soon as it is computed. The same call resumes a
    run that was killed and ends with the same bits; damaged tiles are detected, reported in a
    warning and recomputed. A store is recognised by its data's checksum, its dtypes, and the
    kernel's values at a few of the points.

    Args:
        kernel: a function of (n1, ...) and (n2, ...) arrays that returns the (n1, n2) array of
            g(x, x').
        x: points, shape (n, ...).
        x2: the training points, shape (K, ...); ``x`` itself when left out.
        path: a folder for G on disk (zarr, one file a tile); in memory when left out.
        block_size: points on the side of a tile; when left out, chosen by the memory that the
            kernel takes for a tile.
        dtype: in which G is kept, e.g. ``jnp.float32`` for half the memory; the kernel's own when
            left out. With it, and x64 on, points are handed to the kernel, and values computed, in
            float64 before they are rounded; those of ``gram(kernel, x, path=...)`` in float32,
            where that is as good (see :func:`sdntk.kernel_operator`).

    Returns:
        G, shape (n, K); with ``path`` a :class:`~sdntk.GramStore`, which works wherever an array
        does.

    Raises:
        TypeError: ``kernel`` is not callable or its values are not real.
        ValueError: bad points; a kernel that returns another shape, nan or inf, or is not
            symmetric; a store of other data, of another kernel or dtype.
        MemoryError, OSError: G does not fit into memory, onto the disk.

    Source: Mobahi et al. 2020, eqs. 15, 16.

    Example:
        >>> gram(lambda x, t: x[:, None] * t[None, :], jnp.array([1.0, 2.0])).tolist()
        [[0.5, 1.0], [1.0, 2.0]]
    """
    kept_as = None if dtype is None else as_float_dtype("dtype", dtype)
    size = None if block_size is None else as_count("block_size", block_size, at_least=1)
    folder = None if path is None else as_path("path", path)
    rows, columns = check_points(kernel, "x", x), None
    if x2 is not None:
        columns = check_points(kernel, "x2", x2)
        require_one_shape("x", rows, "x2", columns)
    if kept_as is not None and jnp.result_type(float) == jnp.float64:
        rows = rows.astype(jnp.float64)
        columns = None if columns is None else columns.astype(jnp.float64)
    if folder is None:
        return compute_gram(kernel, rows, columns, block_size=size, dtype=kept_as)
    return compute_stored(kernel, rows, columns, folder, block_size=size, dtype=kept_as)


def compute_gram(
    kernel: KernelFunction,
    x: Float[Array, "n ..."],
    x2: Float[Array, "K ..."] | None = None,
    *,
    block_size: int | None = None,
    dtype: np.dtype | None = None,
) -> Float[Array, "n K"]:
    """:func:`gram` in memory, of points that :func:`~sdntk.kernels.base.check_points` let pass."""
    columns = x if x2 is None else x2
    if is_traced(kernel, x, columns):
        return _in_one_call(kernel, x, columns, dtype)

    # The tiles, and whether they fit into memory.
    shape, points = (len(x), len(columns)), (x, columns)
    size = block_size or choose_block_size(kernel, points)
    tiling = Tiling(shape, min(size, max(shape)), symmetric=x2 is None)
    tiles = tiling.tiles if tiling.symmetric else tiling.by_columns
    kept = _memory.matrix_bytes(shape, dtype or jnp.result_type(float))
    description = f"Gram matrix {shape[0]} x {shape[1]}, {_memory.format_bytes(kept)}"
    if len(tiles) > 1:
        needed = kept + work_bytes(kernel, points, tiling.block_size)
        _memory.require_memory(needed, description)

    # The matrix from its tiles; the first one tells its dtype.
    matrix = None
    computed = compute_tiles(kernel, x, columns, tiling, tiles, dtype=dtype)
    for tile, values in track(computed, description, len(tiles)):
        if is_traced(values):  # a kernel that closes over a tracer
            return _in_one_call(kernel, x, columns, dtype)
        if len(tiles) == 1:
            return values
        if matrix is None:
            matrix = jnp.zeros(shape, values.dtype)
        place = tiling.rectangle(tile)
        row, column = place.corner
        matrix = put(matrix, values, row, column, mirrored=tiling.symmetric)
    assert matrix is not None
    return matrix


def _in_one_call(
    kernel: KernelFunction, x: Array, x2: Array, dtype: np.dtype | None
) -> Float[Array, "n K"]:
    """For tracers, which cannot be looked at: derivatives, jit and vmap go through the kernel
    itself.
    """
    values = kernel_block(kernel, x, x2) / len(x2)
    return values if dtype is None else values.astype(dtype)
