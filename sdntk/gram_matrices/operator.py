"""G times vectors: the one thing that Krylov methods ask of a Gram matrix, from four kinds of them.

A dense array (sharded over devices or not), tiles on disk, tiles kept in memory, and tiles computed
again in every product. Only the tiles on and above the diagonal exist: each serves twice, as itself
and as its transpose.

Processes started with ``jax.distributed`` share a product: each multiplies its rows of a sharded
array, or its share of the tiles, and all have the whole result. All must call alike; vectors are
each process's own. Within a process the local devices share its tiles.
"""

import abc
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from sdntk import _memory
from sdntk._arguments import (
    ArrayLike,
    DTypeLike,
    as_columns,
    as_count,
    as_flag,
    as_float_array,
    as_float_dtype,
    as_real_array,
    format_number,
    is_traced,
)
from sdntk._linalg import matmul
from sdntk._progress import track
from sdntk._warnings import warn_renamed
from sdntk.gram_matrices.block_size import choose_block_size, work_bytes
from sdntk.gram_matrices.store import GramStore
from sdntk.gram_matrices.tiles import Tile, Tiling, compute_tiles, local_devices
from sdntk.kernels.base import KernelFunction, check_points, kernel_precision


class GramOperator(abc.ABC):
    """A symmetric Gram matrix G as a linear operator: ``operator(v)`` is G v.

    Attributes:
        num_points: K.
        dtype: of the values of G. Products are computed in float64 when x64 is on, whatever it is.
        description: where the values come from, in words.
        shared: whether several processes compute each product together, so that all must call.
        precision: the error of the kernel's values beyond the rounding of their dtype, times K that
            of G's; see :meth:`sdntk.kernels.Kernel.precision`.
    """

    num_points: int
    dtype: np.dtype
    description: str
    shared: bool = False
    precision: float = 0.0

    @abc.abstractmethod
    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        """G v."""

    def _vectors(self, v: ArrayLike) -> Float[Array, "K Q"]:
        vectors = as_columns("v", v, self.num_points, jnp.float32, most_axes=2)
        if vectors.ndim != 2:
            raise ValueError(
                f"v must have shape ({self.num_points}, Q), a column for each vector; its shape is "
                f"{vectors.shape}."
            )
        return vectors


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
        return _of_store(matrix)
    matrix = as_float_array("G", matrix)
    if is_traced(matrix):
        return _Dense(matrix)
    operator = _Dense(matrix) if matrix.is_fully_addressable else _Shared(matrix)
    _require_symmetric(operator)
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
        dtype: in which tiles are kept; the kernel's own when left out.

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


def _require_symmetric(operator: GramOperator) -> None:
    """Whether v . G w = w . G v for two random vectors: a look at every entry would take longer."""
    dtype = jnp.result_type(float)
    vectors = np.random.default_rng(0).normal(size=(operator.num_points, 2)).astype(dtype)
    with jax.ensure_compile_time_eval():  # while something else is traced, too
        multiplied = np.asarray(operator(jnp.asarray(vectors)))
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


def _of_store(store: GramStore) -> "_Tiled":
    if not store.tiling.symmetric:
        raise ValueError(
            f"G must be a symmetric matrix; {store.path} is of two sets of points: leave x2 out "
            "of gram."
        )
    tiling, share = store.tiling, (jax.process_index(), None, jax.process_count())

    def tiles() -> Iterator[tuple[Tile, Any]]:
        return store.read_tiles(itertools.islice(tiling.touching(tiling.whole), *share))

    return _Tiled(tiling, store.dtype, f"tiles of {store.path}", store.precision, tiles)


def tiled_operator(
    kernel: KernelFunction,
    x: Float[Array, "K ..."],
    *,
    keep: bool | None = None,
    block_size: int | None = None,
    dtype: np.dtype | None = None,
) -> GramOperator:
    """:func:`kernel_operator` of points that :func:`~sdntk.kernels.base.check_points` let pass."""
    num_points = len(x)
    size = block_size or _memory.over_processes(min, choose_block_size(kernel, (x, x)))
    tiling = Tiling((num_points, num_points), min(size, num_points), symmetric=True)
    tiles = _tiles_of_this_process(tiling)
    compute = functools.partial(compute_tiles, kernel, x, x, tiling, tiles, dtype=dtype)
    kept_as = dtype or np.dtype(x.dtype)
    precision = float(kernel_precision(kernel, x))

    # Computed again in every product, if they do not fit or are not to be kept.
    upper_half = (num_points, num_points + tiling.block_size)
    needed = _memory.matrix_bytes(upper_half, kept_as) // 2 // jax.process_count()
    if keep is None:
        keep = needed <= _memory.free_memory() // 2
    if not keep:
        return _Tiled(tiling, kept_as, "tiles computed in every product", precision, compute)

    # Computed once and kept.
    description = f"Gram matrix {num_points} x {num_points}, its upper half"
    _memory.require_memory(needed + work_bytes(kernel, (x, x), tiling.block_size), description)
    progress = f"{description}, {_memory.format_bytes(needed)}"
    kept = list(track(compute(), progress, len(tiles)))
    held = _memory.format_bytes(sum(values.nbytes for _, values in kept))
    if kept:
        kept_as = kept[0][1].dtype
    return _Tiled(tiling, kept_as, f"tiles kept in memory, {held}", precision, lambda: kept)


def _tiles_of_this_process(tiling: Tiling) -> list[Tile]:
    """This process's share of the tiles."""
    return tiling.tiles[jax.process_index() :: jax.process_count()]


class _Dense(GramOperator):
    """A matrix that fits on its devices."""

    description = "a dense matrix"

    def __init__(self, matrix: Float[Array, "K K"]) -> None:
        self.matrix = matrix
        self.num_points = len(matrix)
        self.dtype = matrix.dtype

    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        v = self._vectors(v)
        same_dtype = self.matrix.dtype == v.dtype
        if same_dtype or is_traced(self.matrix) or len(self.matrix.sharding.device_set) > 1:
            return _dense_product(self.matrix, v)
        return _converted_product(self.matrix, v)


@jax.jit
def _dense_product(matrix: Float[Array, "K K"], v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
    return matmul(matrix.astype(v.dtype), v)


#: Rows that are converted to the vectors' dtype at a time: all at once would take several times as
#: long, and more memory.
CONVERTED_ROWS = 250


@jax.jit
def _converted_product(matrix: Float[Array, "K K"], v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
    count = min(CONVERTED_ROWS, len(matrix))

    def multiply(i: Array, product: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        # The last block may hold rows of the last but one.
        start = jnp.minimum(i * count, len(matrix) - count)
        rows = jax.lax.dynamic_slice_in_dim(matrix, start, count)
        part = matmul(jax.lax.optimization_barrier(rows.astype(v.dtype)), v)
        return jax.lax.dynamic_update_slice_in_dim(product, part, start, 0)

    return jax.lax.fori_loop(0, -(-len(matrix) // count), multiply, jnp.zeros_like(v))


class _Shared(GramOperator):
    """A matrix that is sharded over the devices of several processes."""

    description = "a matrix of many processes"
    shared = True

    def __init__(self, matrix: Float[Array, "K K"]) -> None:
        if not isinstance(matrix.sharding, NamedSharding):
            raise TypeError(
                "G, if several processes hold it, must have a NamedSharding; its sharding is "
                f"{matrix.sharding}."
            )
        self.matrix = matrix
        self.num_points = len(matrix)
        self.dtype = matrix.dtype
        everywhere = NamedSharding(matrix.sharding.mesh, PartitionSpec())
        self.product = jax.jit(_dense_product, out_shardings=everywhere)

    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        # Through the host: an array of this process alone does not go with one of them all, but a
        # NumPy array does.
        vectors = np.asarray(self._vectors(v))
        return jnp.asarray(np.asarray(self.product(self.matrix, vectors)))


class _Tiled(GramOperator):
    """Tiles on and above the diagonal, read or computed for each product by ``tiles()``."""

    def __init__(
        self,
        tiling: Tiling,
        dtype: np.dtype,
        description: str,
        precision: float,
        tiles: Callable[[], Iterable[tuple[Tile, Any]]],
    ) -> None:
        self.tiling = tiling
        self.num_points = tiling.shape[0]
        self.dtype = dtype
        self.description = description
        self.shared = jax.process_count() > 1
        self.precision = precision
        self.tiles = tiles

    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        v = self._vectors(v)
        # By device: the vectors, and the sum of what its tiles contribute.
        vectors: dict[Any, Array] = {}
        totals: dict[Any, Array] = {}
        turns = itertools.cycle(local_devices())
        for tile, values in self.tiles():
            device = None if is_traced(v, values) else _device_for(values, turns)
            # Nothing is committed to a device: the result goes with arrays on any.
            with contextlib.nullcontext() if device is None else jax.default_device(device):
                if device not in totals:
                    vectors[device] = jnp.array(v.T)
                    # Not zeros: under vmap it needs a row for each vector, to be donated.
                    totals[device] = 0 * vectors[device]
                row, column = self.tiling.rectangle(tile).corner
                diagonal = self.tiling.is_diagonal(tile)
                totals[device] = _add(
                    totals[device], values, vectors[device], row, column, diagonal=diagonal
                )

        # The sum over devices, then over processes.
        total = jnp.zeros_like(v)
        for part in totals.values():
            total += part.T
        if self.shared:
            total = jnp.sum(multihost_utils.process_allgather(total), axis=0)
        return total


def _device_for(values: Any, turns: Iterator[Any]) -> Any:
    """Where a tile is multiplied: where it was computed; from the disk, the devices take turns."""
    return next(turns) if isinstance(values, np.ndarray) else next(iter(values.devices()))


@functools.partial(jax.jit, donate_argnames="total", static_argnames="diagonal")
def _add(
    total: Float[Array, "Q K"],
    tile: Float[Any, "b b2"],
    v: Float[Array, "Q K"],
    row: int | Array,
    column: int | Array,
    *,
    diagonal: bool,
) -> Float[Array, "Q K"]:
    """``total`` and what a tile, and its transpose, contribute to G v.

    Vectors are rows here, which multiplies faster on a CPU.
    """
    # Converted before the product, not within it: XLA's fused loops are many times slower on a CPU.
    tile = jax.lax.optimization_barrier(tile.astype(v.dtype))
    total = _add_block(total, tile.T, v, row, column)
    if not diagonal:
        total = _add_block(total, tile, v, column, row)
    return total


def _add_block(
    total: Float[Array, "Q K"],
    block: Float[Array, "b2 b"],
    v: Float[Array, "Q K"],
    row: int | Array,
    column: int | Array,
) -> Float[Array, "Q K"]:
    """The part of v that starts at ``column``, times a block, added to what starts at ``row``."""
    part = matmul(jax.lax.dynamic_slice_in_dim(v, column, block.shape[0], 1), block)
    sums = jax.lax.dynamic_slice_in_dim(total, row, block.shape[1], 1) + part
    return jax.lax.dynamic_update_slice_in_dim(total, sums, row, 1)
