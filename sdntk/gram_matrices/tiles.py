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
from sdntk.kernels.precision import InSingle

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


class Place(NamedTuple):
    """Where a tile stands in the matrix, and whether its transpose does there."""

    rectangle: Rectangle
    is_transposed: bool


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
        rows, columns = self.grid
        return [(i, j) for i in range(rows) for j in range(i if self.symmetric else 0, columns)]

    @property
    def by_columns(self) -> list[Tile]:
        """:attr:`tiles`, column by column."""
        return sorted(self.tiles, key=lambda tile: (tile[1], tile[0]))

    @property
    def grid(self) -> tuple[int, int]:
        """The number of rows and of columns of tiles, those that are not kept included."""
        rows, columns = (-(-length // self.block_size) for length in self.shape)
        return rows, columns

    @property
    def num_tiles(self) -> int:
        """The number of tiles that are kept."""
        rows, columns = self.grid
        return rows * (rows + 1) // 2 if self.symmetric else rows * columns

    @property
    def whole(self) -> Rectangle:
        """All of the matrix."""
        rows, columns = self.shape
        return Rectangle(slice(0, rows), slice(0, columns))

    def touching(self, wanted: Rectangle) -> Iterator[Tile]:
        """The tiles that hold a rectangle's entries, each once.

        One after the other, since there may be millions; no other one is looked at.
        """
        rows, columns = (
            range(part.start // self.block_size, -(-part.stop // self.block_size))
            for part in wanted
        )
        for i in rows:
            for j in columns:
                if i <= j or not self.symmetric:
                    yield i, j
                elif j not in rows or i not in columns:  # else it comes as itself
                    yield j, i

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

    def places(self, tile: Tile) -> list[Place]:
        """Where a tile stands in the matrix: once, or a second time as its transpose."""
        rectangle = self.rectangle(tile)
        once = [Place(rectangle, is_transposed=False)]
        if not self.symmetric or self.is_diagonal(tile):
            return once
        return [*once, Place(rectangle.transposed, is_transposed=True)]


def local_devices() -> list[jax.Device | None]:
    """The devices that share the work: all local ones; None, JAX's own choice, if there is only
    one, or the user chose one.
    """
    devices = jax.local_devices()
    if len(devices) == 1 or getattr(jax.config, "jax_default_device", None) is not None:
        return [None]
    return [*devices]


def compute_tiles(
    kernel: KernelFunction,
    x: Float[Any, "n ..."],
    x2: Float[Any, "K ..."],
    tiling: Tiling,
    tiles: Iterable[Tile],
    *,
    dtype: np.dtype | None = None,
) -> Iterator[tuple[Tile, Float[Array, "rows columns"]]]:
    """The tiles of G = g(x, x2)/K with their values, in order, while the next ones are computed on
    every local device.

    Args:
        kernel: g.
        x: points, a row of G each, that :func:`~sdntk.kernels.base.check_points` let pass.
        x2: the K training points, a column each, likewise.
        tiling: of the whole matrix.
        tiles: those to compute.
        dtype: to which values are rounded once they are computed; the kernel's own when None.

    Raises:
        ValueError: the kernel returns another shape, nan or inf, or is not symmetric.
        TypeError: it returns no real numbers.
    """
    devices = local_devices()
    blocks = _Blocks(kernel, (x, x2), tiling)
    under_way: collections.deque[tuple[Tile, _Checked]] = collections.deque()

    def finish() -> tuple[Tile, Float[Array, "rows columns"]]:
        tile, computed = under_way.popleft()
        if not is_traced(computed.sound) and not computed.sound:
            raise ValueError(_complaint(tile, tiling, computed.values))
        return tile, computed.values

    for tile, device in zip(tiles, itertools.cycle(devices)):
        diagonal = tiling.is_diagonal(tile)
        # Not committed to the device: what the kernel itself holds may be committed to another one.
        with contextlib.nullcontext() if device is None else jax.default_device(device):
            values = blocks.evaluate(tile, device)
            checked = _finished(values, len(x2), diagonal=diagonal, dtype=dtype)
        under_way.append((tile, checked))
        if len(under_way) > 2 * len(devices):
            yield finish()
    while under_way:
        yield finish()


class _Blocks:
    """Points in blocks, each brought to a device once; the columns of a matrix that is not
    symmetric once for each stretch of tiles in them, so that few of the points are there twice.

    A short last block repeats its last point, so that all blocks of one side have one length and a
    jitted kernel is compiled once.
    """

    def __init__(self, kernel: KernelFunction, points: tuple[Any, Any], tiling: Tiling) -> None:
        self.kernel = kernel
        self.points = tuple(np.asarray(x) for x in points)
        self.tiling = tiling
        self.lengths = tuple(min(tiling.block_size, n) for n in tiling.shape)
        self.on_device: dict[Any, Array] = {}

    def evaluate(self, tile: Tile, device: jax.Device | None) -> Array:
        """The kernel's values on a tile, without those of repeated points."""
        row, column = tile
        if self.tiling.is_diagonal(tile):
            values = _on_diagonal(self.kernel, self._block(0, row))
        else:
            x, x2 = self._block_on(device, 0, row), self._block_on(device, 1, column)
            values = kernel_block(self.kernel, x, x2)
        shape = self.tiling.rectangle(tile).shape
        return values if values.shape == shape else values[: shape[0], : shape[1]]

    def _block_on(self, device: jax.Device | None, side: int, index: int) -> Array:
        key = (0 if self.tiling.symmetric else side, index, device)
        if key not in self.on_device:
            if key[0] == 1:
                for other in [o for o in self.on_device if o[0] == 1 and o[1] != index]:
                    del self.on_device[other]
            self.on_device[key] = jax.device_put(self._block(side, index))
        return self.on_device[key]

    def _block(self, side: int, index: int) -> np.ndarray:
        length = self.lengths[side]
        block = self.points[side][index * length : (index + 1) * length]
        if isinstance(self.kernel, InSingle):  # here, not all of the points before
            block = block.astype(np.float32)
        missing = length - len(block)
        if missing == 0:
            return block
        return np.concatenate([block, np.repeat(block[-1:], missing, axis=0)])


#: Tiles on the diagonal are halved, and halved again, down to so many points: only about half of
#: each is computed.
LEAST_HALF = 200


def _on_diagonal(kernel: KernelFunction, x: np.ndarray) -> Float[Array, "b b"]:
    """The kernel between all points of one block, given on the host, where its parts are views."""

    def values_on(square: Rectangle) -> Float[Array, "rows columns"]:
        return kernel_block(
            kernel, jax.device_put(x[square.rows]), jax.device_put(x[square.columns])
        )

    squares = list(_halves(0, len(x)))
    first = values_on(squares[0])
    if len(squares) == 1:
        return first
    if is_traced(first):  # a kernel that closes over a tracer
        everything = slice(0, len(x))
        return values_on(Rectangle(everything, everything))
    matrix = jnp.zeros((len(x), len(x)), first.dtype)
    matrix = put(matrix, first, *squares[0].corner, mirrored=True)
    for square in squares[1:]:
        matrix = put(matrix, values_on(square), *square.corner, mirrored=True)
    return matrix


def _halves(start: int, stop: int) -> Iterator[Rectangle]:
    """Squares that cover the upper triangle: one half of the points by the other, then each half by
    itself.

    Halves of an odd number share a point, so that all squares of one level have one size.
    """
    if stop - start <= LEAST_HALF:
        yield Rectangle(slice(start, stop), slice(start, stop))
        return
    half = -(-(stop - start) // 2)
    yield Rectangle(slice(start, start + half), slice(stop - half, stop))
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
    """Write a tile and, if mirrored, its transpose, in place."""
    matrix = jax.lax.dynamic_update_slice(matrix, values, (row, column))
    if not mirrored:
        return matrix
    return jax.lax.dynamic_update_slice(matrix, values.T, (column, row))


#: How far a tile on the diagonal may differ from its transpose, in parts of its largest value.
#: Rounding makes 1e-16 to 1e-4 of it (float32 ReLU kernels of nearly equal points); a function that
#: is no kernel, much more.
ASYMMETRY = 1e-3


class _Checked(NamedTuple):
    """A tile's values, and whether they may be used."""

    values: Float[Array, "rows columns"]
    sound: Bool[Array, ""]


@functools.partial(jax.jit, static_argnames=("diagonal", "dtype"))
def _finished(
    values: Float[Array, "rows columns"],
    num_points: int | Array,
    *,
    diagonal: bool,
    dtype: np.dtype | None,
) -> _Checked:
    """Values divided by K, exactly symmetric on the diagonal, rounded to ``dtype``."""
    sound = jnp.array(True)
    if diagonal:
        sound = jnp.max(jnp.abs(values - values.T)) <= ASYMMETRY * jnp.max(jnp.abs(values))
        values = jnp.triu(values) + jnp.triu(values, 1).T
    values = values / num_points
    if dtype is not None:
        values = values.astype(dtype)
    return _Checked(values, sound & jnp.isfinite(values).all())


def _complaint(tile: Tile, tiling: Tiling, values: Array) -> str:
    """What is wrong with a tile that may not be used."""
    rows, columns = tiling.rectangle(tile)
    where = f"points {rows.start} to {rows.stop - 1} and {columns.start} to {columns.stop - 1}"
    if every(np.isfinite, values):
        return f"kernel must be symmetric, g(x, t) = g(t, x); for {where} it is not."
    return (
        f"the kernel's values must be finite; it returned nan or inf (in {values.dtype}) for "
        f"{where}."
    )
