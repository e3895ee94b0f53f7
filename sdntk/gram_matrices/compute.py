"""Gram matrices: X -> G, with the paper's 1/K in it (Mobahi et al. 2020, eqs. 15, 16), tile by tile
where K is large.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk import _memory
from sdntk._arguments import ArrayLike, as_count, as_float_dtype, as_points, is_traced
from sdntk._progress import track
from sdntk.gram_matrices.block_size import choose_block_size, work_bytes
from sdntk.gram_matrices.store import GramStore
from sdntk.gram_matrices.store_writing import compute_stored
from sdntk.gram_matrices.tiles import Tiling, as_values, compute_tiles, put
from sdntk.kernels import KernelFunction


def gram(
    kernel: KernelFunction,
    x: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    path: str | Path | None = None,
    block_size: Any = None,
    dtype: Any = None,
) -> Float[Array, "n K"] | GramStore:
    """The Gram matrix of a kernel, divided by the number of (training) points.

    ``gram(kernel, x)`` is G[j, k] = g(x_j, x_k)/K (eq. 15), and ``gram(kernel, x_new, x)`` is the
    cross-Gram matrix whose rows are g_x[k] = g(x_new, x_k)/K (eq. 16), K = len(x).

    Many points are taken in tiles, on all local devices, of ``gram(kernel, x)`` only the tiles on
    and above the diagonal: half of the work, and an exactly symmetric G. Work of more than two
    seconds shows a progress bar with the time left.

    With ``path`` every tile goes to disk as it is done. A run that was killed goes on where it was
    when called again and ends with the same bits; tiles that are damaged are found, told with a
    warning, and computed again. A store is known by its data's checksum, its dtypes, and the
    kernel's values at a few of the points.

    Args:
        kernel: a function of (n1, ...) and (n2, ...) arrays that returns the (n1, n2) array of g(x,
            x').
        x: points, shape (n, ...).
        x2: the training points, shape (K, ...); ``x`` itself when left out.
        path: a folder for G on disk (zarr, one file a tile); in memory when left out.
        block_size: points on the side of a tile; chosen when left out, from the memory that the
            kernel takes for one.
        dtype: in which G is kept, e.g. ``jnp.float32`` for half the room; the kernel's own when
            left out. With it, and x64 on, points are handed to the kernel, and values computed, in
            float64 before they are rounded.

    Returns:
        G, shape (n, K); with ``path`` a :class:`~sdntk.GramStore`, which works wherever an array
        does.

    Raises:
        TypeError: ``kernel`` is not callable or not real. ValueError: bad points; a kernel that
            returns another shape, nan
        or inf, or is not symmetric; a store of other data, of another kernel or dtype. MemoryError,
        OSError: G does not fit into memory, onto the disk.

    Source: Mobahi et al. 2020, eqs. 15, 16.

    Example:
        >>> gram(lambda x, t: x[:, None] * t[None, :], jnp.array([1.0, 2.0])).tolist()
        [[0.5, 1.0], [1.0, 2.0]]
    """
    if not callable(kernel):
        raise TypeError(
            f"kernel must be a function of two arrays of points; got {type(kernel).__name__}."
        )
    dtype = None if dtype is None else as_float_dtype("dtype", dtype)
    block_size = None if block_size is None else as_count("block_size", block_size, at_least=1)
    x, symmetric = as_points("x", x), x2 is None
    x2 = x if x2 is None else as_points("x2", x2)
    if x.shape[1:] != x2.shape[1:] and (x.size, x2.size) != (len(x), len(x2)):
        raise ValueError(
            f"x and x2 must hold points of one shape; theirs are {x.shape[1:]} and {x2.shape[1:]}."
        )
    if dtype is not None and jnp.result_type(float) == jnp.float64:
        x, x2 = x.astype(jnp.float64), x2.astype(jnp.float64)
    if path is not None:
        return compute_stored(
            kernel, x, x2, Path(path), symmetric=symmetric, block_size=block_size, dtype=dtype
        )
    if is_traced(kernel, x, x2):
        return _in_one_call(kernel, x, x2, dtype)
    return _in_memory(kernel, x, x2, symmetric, block_size, dtype)


def _in_one_call(kernel: KernelFunction, x: Array, x2: Array, dtype: Any) -> Float[Array, "n K"]:
    """For tracers, which cannot be looked at: derivatives, jit and vmap go through the kernel
    itself.
    """
    values = as_values(kernel(x, x2), (len(x), len(x2))) / len(x2)
    return values if dtype is None else values.astype(dtype)


def _in_memory(
    kernel: KernelFunction, x: Array, x2: Array, symmetric: bool, block_size: int | None, dtype: Any
) -> Float[Array, "n K"]:
    shape, points = (len(x), len(x2)), (x, x2)
    size = block_size or choose_block_size(kernel, points)
    tiling = Tiling(shape, min(size, max(shape)), symmetric)
    kept = _memory.matrix_bytes(shape, dtype or jnp.result_type(float))
    what = f"Gram matrix {shape[0]} x {shape[1]}, {_memory.format_bytes(kept)}"
    tiles = tiling.tiles
    if len(tiles) > 1:
        _memory.require_memory(kept + work_bytes(kernel, points, tiling.block_size), what)
    matrix = None
    for tile, values in track(
        compute_tiles(kernel, x, x2, tiling, tiles, dtype=dtype), what, len(tiles)
    ):
        if is_traced(values):  # a kernel that closes over a tracer
            return _in_one_call(kernel, x, x2, dtype)
        if len(tiles) == 1:
            return values
        if matrix is None:
            matrix = jnp.zeros(shape, values.dtype)
        rows, columns = tiling.slices(tile)
        matrix = put(matrix, values, rows.start, columns.start, mirrored=symmetric)
    assert matrix is not None
    return matrix
