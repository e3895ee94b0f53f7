"""A Gram matrix in square tiles: which there are, which of them must be computed, and their values
on all local devices.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdntk._arguments import every, is_traced
from sdntk.kernels.base import KernelFunction, kernel_block

#: (row, column) of a tile among tiles.
Tile = tuple[int, int]


class Rectangle(NamedTuple):
    """A rectangle of a matrix: consecutive rows and columns. It indexes arrays as a tuple does."""

    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and columns."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def corner(self) -> tuple[int, int]:
        """The first row and column."""
        return self.rows.start, self.columns.start

    @property
    def transposed(self) -> "Rectangle":
        """The same entries in the transpose of the matrix."""
        return Rectangle(self.columns, self.rows)

    def overlap(self, other: "Rectangle") -> "Rectangle | None":
        """The entries that lie in both, if any."""
        rows, columns = (
            slice(max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(self, other, strict=True)
        )
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return None
        return Rectangle(rows, columns)

    def within(self, outer: "Rectangle") -> "Rectangle":
        """The same entries, counted from the corner of a rectangle around them."""
        rows, columns = (
            slice(inside.start - around.start, inside.stop - around.start)
            for inside, around in zip(self, outer, strict=True)
        )
        return Rectangle(rows, columns)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """An (n, K) matrix cut into tiles of ``block_size`` squared, those at the lower and right edges
    perhaps smaller.

    Of a symmetric matrix only the tiles on and above the diagonal are kept: the others are their
    transposes.
    """

    shape: tuple[int, int]
    block_size: int
    symmetric: bool

    @property
    def tiles(self) -> list[Tile]:
        """The tiles that are computed and kept, row by row."""
        rows, columns = (-(-length // self.block_size) for length in self.shape)
        return [(i, j) for i in range(rows) for j in range(i if self.symmetric else 0, columns)]

    def rectangle(self, tile: Tile) -> Rectangle:
        """The rows and columns of the matrix that a tile covers."""
        rows, columns = (
            slice(index * self.block_size, min((index + 1) * self.block_size, length))
            for index, length in zip(tile, self.shape, strict=True)
        )
        return Rectangle(rows, columns)

    def is_diagonal(self, tile: Tile) -> bool:
        """Whether a tile holds its own transpose."""
        return self.symmetric and tile[0] == tile[1]

    def places(self, tile: Tile) -> list[Rectangle]:
        """Where a tile stands in the matrix and, if it stands there a second time, where as its
        transpose.
        """
        place = self.rectangle(tile)
        if not self.symmetric or self.is_diagonal(tile):
            return [place]
        return [place, place.transposed]


def local_devices() -> list[jax.Device | None]:
    """The devices that share the work: all local ones; None, JAX's own choice, where there is but
    one, or one was chosen.
    """
    devices = jax.local_devices()
    return (
        [None]
        if len(devices) == 1 or getattr(jax.config, "jax_default_device", None) is not None
        else [*devices]
    )


def compute_tiles(
    kernel: KernelFunction,
    x: Float[Any, "n ..."],
    x2: Float[Any, "K ..."],
    tiling: Tiling,
    tiles: Iterable[Tile],
    *,
    dtype: Any = None,
) -> Iterator[tuple[Tile, Float[Array, "rows columns"]]]:
    """The tiles of G = g(x, x2)/K with their values, in order, while the next ones are under way on
    every local device.

    Args:
        kernel: g.
        x: points, a row of G each.
        x2: the K training points, a column each.
        tiling: of the whole matrix.
        tiles: those to compute.
        dtype: to which values are rounded once they are computed; the kernel's own when None.

    Raises:
        ValueError: the kernel returns another shape, nan or inf, or is not symmetric. TypeError: no
            real numbers.
    """
    devices = local_devices()
    blocks = _Blocks((x, x2), tiling)
    under_way: collections.deque[Any] = collections.deque()

    def finish() -> tuple[Tile, Float[Array, "rows columns"]]:
        tile, values, sound = under_way.popleft()
        if not is_traced(sound) and not sound:
            raise ValueError(_complaint(tile, tiling, values))
        return tile, values

    for tile, device in zip(tiles, itertools.cycle(devices)):
        # Not committed to the device: what the kernel itself holds may be committed to another one.
        with contextlib.nullcontext() if device is None else jax.default_device(device):
            values = blocks.evaluate(kernel, tile, device)
            under_way.append(
                (tile, *_finished(values, len(x2), diagonal=tiling.is_diagonal(tile), dtype=dtype))
            )
        if len(under_way) > 2 * len(devices):
            yield finish()
    while under_way:
        yield finish()


class _Blocks:
    """Points in blocks, each brought to a device once; short last blocks repeat their last point.

    So all blocks of one side have one length, and a jitted kernel is compiled once.
    """

    def __init__(self, points: tuple[Any, Any], tiling: Tiling) -> None:
        self.points = tuple(np.asarray(x) for x in points)
        self.tiling = tiling
        self.lengths = tuple(min(tiling.block_size, n) for n in tiling.shape)
        self.on_device: dict[Any, Array] = {}

    def evaluate(self, kernel: KernelFunction, tile: Tile, device: jax.Device | None) -> Array:
        """The kernel's values on a tile, the repeated points' left out."""
        if self.tiling.is_diagonal(tile):
            values = _on_diagonal(kernel, self._block(0, tile[0]))
        else:
            rows, columns = (self._block_on(device, side, index) for side, index in enumerate(tile))
            values = kernel_block(kernel, rows, columns)
        shape = self.tiling.rectangle(tile).shape
        return values if values.shape == shape else values[: shape[0], : shape[1]]

    def _block_on(self, device: jax.Device | None, side: int, index: int) -> Array:
        key = (0 if self.tiling.symmetric else side, index, device)
        if key not in self.on_device:
            self.on_device[key] = jax.device_put(self._block(side, index))
        return self.on_device[key]

    def _block(self, side: int, index: int) -> np.ndarray:
        length = self.lengths[side]
        block = self.points[side][index * length : (index + 1) * length]
        missing = length - len(block)
        return np.concatenate([block, np.repeat(block[-1:], missing, axis=0)]) if missing else block


#: Tiles on the diagonal are halved, and halved again, down to so many points: of each only half is
#: computed.
LEAST_HALF = 200


def _on_diagonal(kernel: KernelFunction, x: np.ndarray) -> Float[Array, "b b"]:
    """The kernel between all points of one block, given on the host: parts of it are no copies, nor
    are they on a CPU.
    """

    def square(rows: slice, columns: slice) -> Float[Array, "rows columns"]:
        return kernel_block(kernel, jax.device_put(x[rows]), jax.device_put(x[columns]))

    squares = _halves(0, len(x))
    rows, columns = next(squares)
    values = square(rows, columns)
    if len(values) == len(x):
        return values
    if is_traced(values):  # a kernel that closes over a tracer
        return square(slice(None), slice(None))
    matrix = jnp.zeros((len(x), len(x)), values.dtype)
    matrix = put(matrix, values, rows.start, columns.start, mirrored=True)
    for rows, columns in squares:
        matrix = put(matrix, square(rows, columns), rows.start, columns.start, mirrored=True)
    return matrix


def _halves(start: int, stop: int) -> Iterator[tuple[slice, slice]]:
    """Squares that cover the upper triangle: one half of the points by the other, then each half by
    itself.

    Halves of an odd number share a point, so that all squares of one level have one size.
    """
    half = -(-(stop - start) // 2)
    if stop - start <= LEAST_HALF:
        yield slice(start, stop), slice(start, stop)
        return
    yield slice(start, start + half), slice(stop - half, stop)
    yield from _halves(start, start + half)
    yield from _halves(stop - half, stop)


@functools.partial(jax.jit, donate_argnames="matrix", static_argnames="mirrored")
def put(
    matrix: Float[Array, "n K"],
    values: Float[Array, "rows columns"],
    row: int | Array,
    column: int | Array,
    *,
    mirrored: bool,
) -> Float[Array, "n K"]:
    """Write a tile, and its transpose, in place."""
    matrix = jax.lax.dynamic_update_slice(matrix, values, (row, column))
    return jax.lax.dynamic_update_slice(matrix, values.T, (column, row)) if mirrored else matrix


#: How far a tile on the diagonal may differ from its transpose, in parts of its largest value.
#: Rounding makes 1e-16 to 1e-4 of it (float32 ReLU kernels of nearly equal points); a function that
#: is no kernel, much more.
_ASYMMETRY = 1e-3


@functools.partial(jax.jit, static_argnames=("diagonal", "dtype"))
def _finished(
    values: Float[Array, "rows columns"], num_points: int | Array, *, diagonal: bool, dtype: Any
) -> tuple[Float[Array, "rows columns"], Bool[Array, ""]]:
    """Values divided by K, exactly symmetric on the diagonal, rounded to ``dtype``; and whether
    they may be used.
    """
    sound = jnp.array(True)
    if diagonal:
        sound = jnp.max(jnp.abs(values - values.T)) <= _ASYMMETRY * jnp.max(jnp.abs(values))
        values = jnp.triu(values) + jnp.triu(values, 1).T
    values = values / num_points
    values = values if dtype is None else values.astype(dtype)
    return values, sound & jnp.isfinite(values).all()


def _complaint(tile: Tile, tiling: Tiling, values: Array) -> str:
    rows, columns = tiling.rectangle(tile)
    where = f"points {rows.start} to {rows.stop - 1} and {columns.start} to {columns.stop - 1}"
    if every(np.isfinite, values):
        return f"kernel must be symmetric, g(x, t) = g(t, x); for {where} it is not."
    return (
        f"the kernel's values must be finite; it returned nan or inf (in {values.dtype}) for "
        f"{where}."
    )
