"""Products with a Gram matrix in tiles: on disk, kept in memory, or computed again each time.
Only the tiles on and above the diagonal exist: each serves twice, as itself and as its transpose.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdntk import _memory
from sdntk._arguments import is_traced
from sdntk._linalg import matmul
from sdntk._processes import over_processes, sum_over_processes
from sdntk._progress import track
from sdntk.gram_matrices.block_size import choose_block_size, work_bytes
from sdntk.gram_matrices.linear_operator import GramOperator
from sdntk.gram_matrices.store import GramStore
from sdntk.gram_matrices.tiles import Tile, Tiling, compute_tiles, local_devices
from sdntk.kernels.base import KernelFunction, kernel_precision
from sdntk.kernels.precision import in_single_if_sufficient

Item = TypeVar("Item")

#: So many bytes of tiles are multiplied in one call: a call for each tile would take half as long
#: again. Fewer of those from the disk, of which several stacks are under way.
STACK_BYTES, DISK_STACK_BYTES = 2**26, 2**24


def store_operator(store: GramStore) -> "Tiled":
    """A store as a linear operator.

    Raises:
        ValueError: it is of two sets of points.
    """
    if not store.tiling.symmetric:
        raise ValueError(
            f"G must be a symmetric matrix; {store.path} is of two sets of points: leave x2 out "
            "of gram."
        )
    tiling, share = store.tiling, (jax.process_index(), None, jax.process_count())
    together = DISK_STACK_BYTES // store.files.tile_bytes

    def read() -> Iterator[Stack]:
        tiles = itertools.islice(tiling.touching(tiling.whole), *share)
        by_shape = grouped(tiles, lambda tile: tiling.rectangle(tile).shape, lambda _: together)
        for group, values in store.read_stacks(by_shape):
            yield _stack(tiling, group, values)

    return Tiled(len(store), store.dtype, f"tiles of {store.path}", store.precision, read)


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
    kept_as = dtype or np.dtype(x.dtype)
    precision = float(kernel_precision(kernel, x))
    kernel = in_single_if_sufficient(kernel, x, x, dtype)
    size = block_size or over_processes(min, choose_block_size(kernel, (x, x)))
    tiling = Tiling((num_points, num_points), min(size, num_points), symmetric=True)
    tiles = _tiles_of_this_process(tiling)
    compute = functools.partial(compute_tiles, kernel, x, x, tiling, tiles, dtype=dtype)

    # Computed again in every product, if they do not fit or are not to be kept.
    upper_half = (num_points, num_points + tiling.block_size)
    needed = _memory.matrix_bytes(upper_half, kept_as) // 2 // jax.process_count()
    if keep is None:
        keep = needed <= _memory.free_memory() // 2
    if not keep:
        again = "tiles computed in every product"
        return Tiled(num_points, kept_as, again, precision, lambda: stacks(tiling, compute()))

    # Computed once and kept.
    description = f"Gram matrix {num_points} x {num_points}, its upper half"
    _memory.require_memory(needed + work_bytes(kernel, (x, x), tiling.block_size), description)
    progress = f"{description}, {_memory.format_bytes(needed)}"
    kept = list(stacks(tiling, track(compute(), progress, len(tiles))))
    held = _memory.format_bytes(sum(stack.values.nbytes for stack in kept))
    if kept:
        kept_as = kept[0].values.dtype
    return Tiled(num_points, kept_as, f"tiles kept in memory, {held}", precision, lambda: kept)


def _tiles_of_this_process(tiling: Tiling) -> list[Tile]:
    """This process's share of the tiles."""
    return tiling.tiles[jax.process_index() :: jax.process_count()]


class Stack(NamedTuple):
    """Tiles of one shape, on one device.

    Attributes:
        values: shape (n, b, b2); NumPy's where they come from the disk.
        rows, columns: where each begins.
        mirrored: whether each serves as its transpose, too: all but those on the diagonal.
    """

    values: Any
    rows: Int[np.ndarray, " n"]
    columns: Int[np.ndarray, " n"]
    mirrored: Bool[np.ndarray, " n"]


def stacks(tiling: Tiling, tiles: Iterable[tuple[Tile, Any]]) -> Iterator[Stack]:
    """Tiles of one shape, on one device, in stacks."""

    def kind(pair: tuple[Tile, Any]) -> Any:
        return pair[1].shape, None if is_traced(pair[1]) else _device_of(pair[1])

    for group in grouped(tiles, kind, lambda pair: STACK_BYTES // pair[1].nbytes):
        found = [values for _, values in group]
        device = None if is_traced(*found) else _device_of(found[0])
        # Where they are: nothing else holds tiles on their device.
        with contextlib.nullcontext() if device is None else jax.default_device(device):
            yield _stack(tiling, [tile for tile, _ in group], jnp.stack(found))


def grouped(
    items: Iterable[Item], kind: Callable[[Item], Any], together: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Items of one kind, so many together; the last ones are fewer."""
    waiting: dict[Any, list[Item]] = {}
    for item in items:
        group = waiting.setdefault(kind(item), [])
        group.append(item)
        if len(group) >= together(item):
            yield waiting.pop(kind(item))
    yield from waiting.values()


def _stack(tiling: Tiling, tiles: list[Tile], values: Any) -> Stack:
    rows, columns = zip(*(tiling.rectangle(tile).corner for tile in tiles), strict=True)
    mirrored = [not tiling.is_diagonal(tile) for tile in tiles]
    return Stack(values, *map(np.asarray, (rows, columns, mirrored)))


class Tiled(GramOperator):
    """Tiles in stacks, read or computed for each product by ``stacks()``."""

    def __init__(
        self,
        num_points: int,
        dtype: np.dtype,
        description: str,
        precision: float,
        stacks: Callable[[], Iterable[Stack]],
    ) -> None:
        self.num_points = num_points
        self.dtype = dtype
        self.description = description
        self.shared = jax.process_count() > 1
        self.precision = precision
        self.stacks = stacks

    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        v = self._vectors(v)
        # By device: the vectors, and the sum of what its tiles contribute.
        vectors: dict[Any, Array] = {}
        totals: dict[Any, Array] = {}
        turns = itertools.cycle(local_devices())
        for stack in self.stacks():
            device = None if is_traced(v, stack.values) else _device_for(stack.values, turns)
            # Nothing is committed to a device: the result goes with arrays on any.
            with contextlib.nullcontext() if device is None else jax.default_device(device):
                if device not in totals:
                    vectors[device] = jnp.array(v.T)
                    # Not zeros: under vmap it needs a row for each vector, to be donated.
                    totals[device] = 0 * vectors[device]
                totals[device] = _add(totals[device], stack, vectors[device])

        # The sum over devices, then over processes.
        total = jnp.zeros_like(v)
        for part in totals.values():
            total += part.T
        if self.shared:
            total = jnp.asarray(sum_over_processes(total))
        return total


def _device_of(values: Any) -> Any:
    return None if isinstance(values, np.ndarray) else next(iter(values.devices()))


def _device_for(values: Any, turns: Iterator[Any]) -> Any:
    """Where tiles are multiplied: where they were computed; from the disk, devices take turns."""
    return next(turns) if isinstance(values, np.ndarray) else _device_of(values)


@functools.partial(jax.jit, donate_argnames="total")
def _add(total: Float[Array, "Q K"], stack: Stack, v: Float[Array, "Q K"]) -> Float[Array, "Q K"]:
    """``total`` and what tiles, and their transposes, contribute to G v.

    Vectors are rows here, which multiplies faster on a CPU.
    """

    def add_tile(i: Array, total: Float[Array, "Q K"]) -> Float[Array, "Q K"]:
        row, column = stack.rows[i], stack.columns[i]
        tile = jax.lax.dynamic_index_in_dim(stack.values, i, keepdims=False)
        # Converted before the product, not in it: XLA's fused loops are many times slower on a CPU.
        tile = jax.lax.optimization_barrier(tile.astype(v.dtype))
        total = _add_block(total, tile.T, v, row, column, jnp.ones((), v.dtype))
        return _add_block(total, tile, v, column, row, stack.mirrored[i].astype(v.dtype))

    added: Array = jax.lax.fori_loop(0, len(stack.rows), add_tile, total)
    return added


def _add_block(
    total: Float[Array, "Q K"],
    block: Float[Array, "b2 b"],
    v: Float[Array, "Q K"],
    row: Int[Array, ""],
    column: Int[Array, ""],
    factor: Float[Array, ""],
) -> Float[Array, "Q K"]:
    """The part of v that starts at ``column``, times a block and a factor, added to what starts at
    ``row``.
    """
    part = factor * jax.lax.dynamic_slice_in_dim(v, column, block.shape[0], 1)
    sums = jax.lax.dynamic_slice_in_dim(total, row, block.shape[1], 1) + matmul(part, block)
    return jax.lax.dynamic_update_slice_in_dim(total, sums, row, 1)
