"""G times vectors: the one thing that Krylov methods ask of a Gram matrix, from four kinds of them.

A dense array (sharded over devices or not), tiles on disk, tiles kept in memory, and tiles computed
again in every product.

Processes started with ``jax.distributed`` share a product: each multiplies its rows of a sharded
array, or its share of the tiles, and all have the whole result. All must call alike; vectors are
each process's own. Within a process the local devices share its tiles.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sdntk._arguments import (
    ArrayLike,
    DTypeLike,
    as_count,
    as_flag,
    as_float_array,
    as_float_dtype,
    as_real_array,
    format_number,
    is_traced,
)
from sdntk._warnings import warn_renamed
from sdntk.gram_matrices.dense_operator import Dense, Shared
from sdntk.gram_matrices.linear_operator import GramOperator
from sdntk.gram_matrices.store import GramStore
from sdntk.gram_matrices.tiled_operator import store_operator, tiled_operator
from sdntk.kernels.base import KernelFunction, check_points


def as_operator(G: ArrayLike | GramStore | GramOperator) -> GramOperator:  # noqa: N803
    """A Gram matrix as a linear operator, for :func:`sdntk.krylov`.

    Args:
        G: a symmetric matrix, shape (K, K): an array, on one device or sharded over many, or a
            :class:`sdntk.GramStore`. An operator is returned as it is. An array does not know the
            precision of its kernel's values (:meth:`sdntk.kernels.Kernel.precision`), as a store
            and :func:`kernel_operator` do.

    Returns:
        :class:`GramOperator`, a function from (K, Q) to (K, Q).

    Raises:
        ValueError: G is not square, not finite or, as two random vectors tell, not symmetric.
        TypeError: G does not hold real numbers, or is sharded over processes in an unknown way.

    Example:
        >>> operator = as_operator(jnp.array([[0.5, 1.0], [1.0, 2.0]]))
        >>> operator(jnp.array([[1.0], [1.0]])).tolist(), operator.description
        ([[1.5], [3.0]], 'a dense matrix')
    """
    if isinstance(G, GramOperator):
        return G
    matrix = G if isinstance(G, GramStore) else as_real_array("G", G)
    shape = matrix.shape
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(
            f"G must be a square matrix, shape (K, K) with K >= 1; its shape is {shape}."
        )
    if isinstance(matrix, GramStore):
        return store_operator(matrix)
    matrix = as_float_array("G", matrix, finite=None)
    if is_traced(matrix):
        return Dense(matrix)
    operator = Dense(matrix) if matrix.is_fully_addressable else Shared(matrix)
    _require_finite_and_symmetric(operator)
    return operator


def kernel_operator(
    kernel: KernelFunction,
    x: ArrayLike,
    *,
    keep: bool | None = None,
    block_size: int | None = None,
    dtype: DTypeLike | None = None,
) -> GramOperator:
    """The Gram matrix of a kernel, g(x_j, x_k)/K, as a linear operator, for :func:`sdntk.krylov`.

    Args:
        kernel: a function of (n1, ...) and (n2, ...) arrays that returns the (n1, n2) array of
            g(x, x').
        x: points, shape (K, ...).
        keep: whether the tiles on and above the diagonal are computed once and kept in memory, or
            computed again in every product and never stored; when left out, kept if half of the
            free memory holds them.
        block_size: points on the side of a tile; chosen when left out.
        dtype: in which tiles are kept; the kernel's own when left out. With it, and x64 on, values
            are computed in float64 before they are rounded; those to be kept in float32 in it,
            where some rows of the matrix show that this moves them by about machine_eps of their
            norm (as a run's PrecisionWarning assumes).

    Returns:
        :class:`GramOperator`, a function from (K, Q) to (K, Q).

    Raises:
        TypeError, ValueError: as :func:`sdntk.gram`.
        MemoryError: tiles are to be kept and do not fit.

    Example:
        >>> operator = kernel_operator(lambda x, t: jnp.outer(x, t), jnp.array([1.0, 2.0]))
        >>> operator(jnp.array([[1.0], [1.0]])).tolist(), operator.description
        ([[1.5], [3.0]], 'tiles kept in memory, 32 bytes')
    """
    points = check_points(kernel, "x", x)
    if is_traced(points):
        raise TypeError(
            "x must have values (no jit, vmap or derivatives): an operator hands its tiles to the "
            "kernel one by one. Of traced points, gram(kernel, x)."
        )
    keep = None if keep is None else as_flag("keep", keep)
    size = None if block_size is None else as_count("block_size", block_size, at_least=1)
    kept_as = None if dtype is None else as_float_dtype("dtype", dtype)
    if kept_as is not None and jnp.result_type(float) == jnp.float64:
        points = points.astype(jnp.float64)
    return tiled_operator(kernel, points, keep=keep, block_size=size, dtype=kept_as)


def products(
    source: ArrayLike | GramStore | KernelFunction | GramOperator,
    x: ArrayLike | None = None,
    *,
    keep: bool | None = None,
    block_size: int | None = None,
    dtype: DTypeLike | None = None,
) -> GramOperator:
    """The old name of :func:`as_operator` and, with points, of :func:`kernel_operator`."""
    if callable(source) and not isinstance(source, GramOperator):
        warn_renamed("sdntk.products(kernel, x)", "sdntk.kernel_operator(kernel, x)")
        if x is None:
            raise ValueError("x must hold the points that the kernel is to be evaluated at.")
        return kernel_operator(source, x, keep=keep, block_size=block_size, dtype=dtype)
    warn_renamed("sdntk.products(G)", "sdntk.as_operator(G)")
    if x is not None:
        raise ValueError("x must be left out unless source is a kernel.")
    return as_operator(source)


def _require_finite_and_symmetric(operator: Dense | Shared) -> None:
    """Whether G v and G w are finite, and v . G w = w . G v, for two random vectors: a look at
    every entry would take longer.
    """
    dtype = jnp.result_type(float)
    vectors = np.random.default_rng(0).normal(size=(operator.num_points, 2)).astype(dtype)
    with jax.ensure_compile_time_eval():  # while something else is traced, too
        multiplied = np.asarray(operator(jnp.asarray(vectors)))
    if not np.isfinite(multiplied).all():
        as_float_array("G", operator.matrix)  # raises, unless finite entries overflowed
    v, w = vectors.T
    Gv, Gw = multiplied.T  # noqa: N806 (theory's names)
    eps = max(float(jnp.finfo(operator.dtype).eps), float(jnp.finfo(dtype).eps))
    difference = abs(float(v @ Gw - w @ Gv))
    size = float(np.linalg.norm(v) * np.linalg.norm(Gw))
    allowed = 1000 * eps * operator.num_points**0.5 * size
    if difference > allowed:
        raise ValueError(
            "G must be a symmetric matrix; v.Gw and w.Gv of two random vectors differ by "
            f"{format_number(difference)}, and rounding explains only {format_number(allowed)}. "
            "Remedy, where it should be: (G + G.T)/2."
        )
