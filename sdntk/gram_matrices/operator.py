"""G times vectors: the one thing that Krylov methods ask of a Gram matrix, from four kinds of them.

A dense array (sharded over devices or not), tiles on disk, tiles kept in memory, and tiles computed
again in every product. Of tiles only those on and above the diagonal are there: each serves twice,
as itself and as its transpose.

Processes started with ``jax.distributed`` share a product: each multiplies its rows of a sharded
array, or its share of the tiles, and all have the whole result. All must call alike; vectors are
each process's own. Within a process the local devices share its tiles.
"""

import abc
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator
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
    as_count,
    as_float_array,
    as_float_dtype,
    as_points,
    format_number,
    is_traced,
)
from sdntk._linalg import matmul
from sdntk._progress import track
from sdntk.gram_matrices.block_size import choose_block_size, work_bytes
from sdntk.gram_matrices.store import GramStore
from sdntk.gram_matrices.tiles import Tile, Tiling, compute_tiles, local_devices
from sdntk.kernels import KernelFunction


class Products(abc.ABC):
    """A symmetric Gram matrix G that is known by its products: ``products(v)`` is G v.

    Attributes:
        num_points: K.
        dtype: of the values of G. Products are computed in float64 when x64 is on, whatever it is.
        what: where the values come from, in words.
        shared: whether it takes several processes, all of them, to multiply.
    """

    num_points: int
    dtype: np.dtype
    what: str
    shared = False

    @abc.abstractmethod
    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        """G v."""


def products(
    source: ArrayLike | GramStore | KernelFunction | Products,
    x: ArrayLike | None = None,
    *,
    keep: bool | None = None,
    block_size: Any = None,
    dtype: Any = None,
) -> Products:
    """A Gram matrix as its products with vectors, for :func:`sdntk.krylov`.

    Args:
        source: a Gram matrix, an array (on one device or sharded over many) or a
            :class:`sdntk.GramStore`; or a kernel, with the points ``x``.
        x: points, shape (K, ...), with a kernel.
        keep: with a kernel, whether the tiles on and above the diagonal are computed once and kept
            in memory, or computed again in every product and never stored; kept, when left out, if
            half of the free memory holds them.
        block_size: points on the side of a tile, with a kernel; chosen when left out.
        dtype: in which tiles are kept, with a kernel; the kernel's own when left out.

    Returns:
        :class:`Products`.

    Raises:
        TypeError, ValueError: a source of another kind or shape, or not symmetric; x missing or
            superfluous.

    Example:
        >>> G = products(lambda x, t: x[:, None] * t[None, :], jnp.array([1.0, 2.0]))
        >>> G(jnp.array([[1.0], [1.0]])).tolist(), G.what
        ([[1.5], [3.0]], 'tiles kept in memory, 32 bytes')
    """
    if callable(source) and not isinstance(source, Products):
        if x is None:
            raise ValueError("x must hold the points that the kernel is to be evaluated at.")
        return _of_kernel(source, as_points("x", x), keep, block_size, dtype)
    if x is not None:
        raise ValueError("x must be left out unless source is a kernel.")
    if isinstance(source, Products):
        return source
    shape = getattr(source, "shape", None) or np.shape(source)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(
            f"source must be a square matrix, shape (K, K) with K >= 1; its shape is {shape}."
        )
    if isinstance(source, GramStore):
        if not source.tiling.symmetric:
            raise ValueError(
                f"source must be a symmetric matrix; {source.path} is of two sets of points: "
                "leave x2 out of gram."
            )
        own = _own(source.tiling)
        return _Tiles(
            source.tiling, source.dtype, f"tiles of {source.path}", lambda: source.read_tiles(own)
        )
    matrix = as_float_array("source", source)
    if is_traced(matrix):
        return _Dense(matrix)
    found = _Dense(matrix) if matrix.is_fully_addressable else _Shared(matrix)
    _require_symmetric(found)
    return found


def _require_symmetric(found: Products) -> None:
    """Whether v . G w = w . G v for two random vectors: a look at every entry would take longer."""
    dtype = jnp.result_type(float)
    vectors = np.random.default_rng(0).normal(size=(found.num_points, 2)).astype(dtype)
    with jax.ensure_compile_time_eval():  # while something else is traced, too
        multiplied = np.asarray(found(jnp.asarray(vectors)))
    (v, w), (of_v, of_w) = vectors.T, multiplied.T
    eps = max(float(jnp.finfo(found.dtype).eps), float(jnp.finfo(dtype).eps))
    difference = abs(float(v @ of_w - w @ of_v))
    allowed = 1000 * eps * found.num_points**0.5 * float(np.linalg.norm(v) * np.linalg.norm(of_w))
    if difference > allowed:
        raise ValueError(
            "source must be a symmetric matrix; v.Gw and w.Gv of two random vectors differ by "
            f"{format_number(difference)}, "
            f"and rounding explains only {format_number(allowed)}. Remedy, where it should be: "
            "(G + G.T)/2."
        )


def _of_kernel(
    kernel: KernelFunction, x: Float[Array, "K ..."], keep: bool | None, block_size: Any, dtype: Any
) -> Products:
    if block_size is None:
        size = _memory.over_processes(min, choose_block_size(kernel, (x, x)))
    else:
        size = as_count("block_size", block_size, at_least=1)
    tiling = Tiling((len(x), len(x)), min(size, len(x)), symmetric=True)
    kept_as = (
        np.dtype(jnp.result_type(x.dtype)) if dtype is None else as_float_dtype("dtype", dtype)
    )
    needed = (
        _memory.matrix_bytes((len(x), len(x) + tiling.block_size), kept_as)
        // 2
        // jax.process_count()
    )
    own = _own(tiling)
    compute = functools.partial(compute_tiles, kernel, x, x, tiling, own, dtype=dtype)
    if keep is None:
        keep = needed <= _memory.free_memory() // 2
    if not keep:
        return _Tiles(tiling, kept_as, "tiles computed in every product", compute)
    what = f"Gram matrix {len(x)} x {len(x)}, its upper half"
    _memory.require_memory(needed + work_bytes(kernel, (x, x), tiling.block_size), what)
    kept = list(track(compute(), f"{what}, {_memory.format_bytes(needed)}", len(own)))
    held = sum(values.nbytes for _, values in kept)
    kept_as = kept[0][1].dtype if kept else kept_as
    return _Tiles(
        tiling, kept_as, f"tiles kept in memory, {_memory.format_bytes(held)}", lambda: kept
    )


def _own(tiling: Tiling) -> list[Tile]:
    """This process's share of the tiles."""
    return tiling.tiles[jax.process_index() :: jax.process_count()]


class _Dense(Products):
    """A matrix that fits on its devices."""

    def __init__(self, matrix: Float[Array, "K K"]) -> None:
        self.matrix, self.num_points, self.dtype, self.what = (
            matrix,
            len(matrix),
            matrix.dtype,
            "a dense matrix",
        )

    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        if (
            self.matrix.dtype == v.dtype
            or is_traced(self.matrix)
            or len(self.matrix.sharding.device_set) > 1
        ):
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
        start = jnp.minimum(
            i * count, len(matrix) - count
        )  # the last block may hold rows of the last but one
        rows = jax.lax.dynamic_slice_in_dim(matrix, start, count)
        part = matmul(jax.lax.optimization_barrier(rows.astype(v.dtype)), v)
        return jax.lax.dynamic_update_slice_in_dim(product, part, start, 0)

    return jax.lax.fori_loop(0, -(-len(matrix) // count), multiply, jnp.zeros_like(v))


class _Shared(Products):
    """A matrix that is sharded over the devices of several processes."""

    shared = True

    def __init__(self, matrix: Float[Array, "K K"]) -> None:
        if not isinstance(matrix.sharding, NamedSharding):
            raise TypeError(
                "a source of several processes must have a NamedSharding; its sharding is "
                f"{matrix.sharding}."
            )
        everywhere = NamedSharding(matrix.sharding.mesh, PartitionSpec())
        self.matrix, self.num_points, self.dtype, self.what = (
            matrix,
            len(matrix),
            matrix.dtype,
            "a matrix of many processes",
        )
        self.product = jax.jit(_dense_product, out_shardings=everywhere)

    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        # Through the host: an array of this process alone does not go with one of them all, but a
        # NumPy array does.
        return jnp.asarray(np.asarray(self.product(self.matrix, np.asarray(v))))


@dataclasses.dataclass(frozen=True)
class _Tiles(Products):
    """Tiles on and above the diagonal, which ``source`` hands out, wherever it has them from."""

    tiling: Tiling
    dtype: Any
    what: str
    source: Any  # () -> tiles with their values

    @property
    def num_points(self) -> int:  # type: ignore[override]
        return self.tiling.shape[0]

    @property
    def shared(self) -> bool:  # type: ignore[override]
        return jax.process_count() > 1

    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        vectors: dict[Any, Array] = {}  # by device
        totals: dict[Any, Array] = {}
        turns = itertools.cycle(local_devices())
        for tile, values in self.source():
            device = None if is_traced(v, values) else _place(values, turns)
            # Nothing is committed to a device: the result goes with arrays on any.
            with contextlib.nullcontext() if device is None else jax.default_device(device):
                if device not in totals:
                    vectors[device] = jnp.array(v.T)
                    totals[device] = (
                        0 * vectors[device]
                    )  # under vmap as many as there are vectors, to be donated
                start, diagonal = (
                    (part.start for part in self.tiling.slices(tile)),
                    self.tiling.is_diagonal(tile),
                )
                totals[device] = _add(
                    totals[device], values, vectors[device], *start, diagonal=diagonal
                )
        total = jnp.zeros_like(v)
        for part in totals.values():
            total += part.T
        if jax.process_count() > 1:
            total = jnp.sum(multihost_utils.process_allgather(total), axis=0)
        return total


def _place(values: Any, turns: Iterator[Any]) -> Any:
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
    """What a tile, and its transpose, contribute to G v; vectors are rows here, which multiplies
    faster on a CPU.
    """
    # Converted before the product, not within it: XLA's fused loops are many times slower on a CPU.
    tile = jax.lax.optimization_barrier(tile.astype(v.dtype))
    for values, here, there in ((tile.T, row, column), (tile, column, row))[: 1 if diagonal else 2]:
        part = matmul(jax.lax.dynamic_slice_in_dim(v, there, values.shape[0], 1), values)
        sums = jax.lax.dynamic_slice_in_dim(total, here, values.shape[1], 1) + part
        total = jax.lax.dynamic_update_slice_in_dim(total, sums, here, 1)
    return total
