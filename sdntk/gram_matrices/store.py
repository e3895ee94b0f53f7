"""Gram matrices on disk: a file for every tile (zarr 3 with checksums, by tensorstore), atomic and
resumable.
"""

import collections
import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from jaxtyping import Array, Float
from numpy.lib.mixins import NDArrayOperatorsMixin

from sdntk import _memory
from sdntk._arguments import every, is_traced
from sdntk._progress import track
from sdntk.gram_matrices.block_size import choose_block_size, work_bytes
from sdntk.gram_matrices.tiles import Tile, Tiling, as_values, compute_tiles
from sdntk.kernels import KernelFunction

#: Reads and writes that are under way at once.
_AHEAD = 8
#: How many points of each side, beside neighbours, the kernel is known by.
_PROBES = 3


class GramStore(NDArrayOperatorsMixin):
    """A Gram matrix on disk, which works wherever an array does: it is read when values are asked
    for.

    ``store[a:b, c:d]`` reads a block; ``np.asarray(store)``, ``jnp.asarray(store)`` and operators
    read the whole (JAX's own functions ask for ``jnp.asarray(store)``). Of a symmetric matrix only
    the tiles on and above the diagonal are kept. Made by ``sdntk.gram(..., path=...)``; opened
    again by ``GramStore.open(path)``.

    Attributes:
        path: its folder. shape: (n, K). dtype: NumPy's. block_size: points on the side of a tile.

    Example:
        >>> import tempfile
        >>> from sdntk.gram_matrices.compute import gram
        >>> from sdntk.kernels import rbf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = gram(rbf(1.0), jnp.arange(5.0), path=folder, block_size=2)
        ...     store, store[1:3, 4].shape
        (GramStore((5, 5), float64, block_size=2), (2,))
    """

    ndim = 2

    def __init__(self, path: Path, array: Any, identity: "_Identity") -> None:
        self.path = path
        self.shape: tuple[int, int] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype.numpy_dtype)
        self.tiling = Tiling(
            self.shape, max(array.chunk_layout.read_chunk.shape), identity.symmetric
        )
        self._array, self._identity = array, identity

    @classmethod
    def open(cls, path: str | Path) -> "GramStore":
        """The store in a folder, as far as it has been written.

        Raises:
            FileNotFoundError: there is none. ValueError: the folder holds something else.
        """
        path = Path(path)
        if not (path / "zarr.json").is_file():
            raise FileNotFoundError(
                f"path {path} holds no Gram matrix: sdntk.gram(kernel, x, path=...) makes one."
            )
        try:
            identity = _Identity(
                **json.loads((path / "zarr.json").read_text())["attributes"]["sdntk"]
            )
            array = ts.open(
                {"driver": "zarr3", "kvstore": _file(path), "fill_missing_data_reads": False}
            ).result()
            if array.rank != 2:
                raise ValueError(f"an array of {array.rank} axes")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"path {path} holds something else than a Gram matrix of this library ({error}). "
                "Choose another folder."
            ) from None
        return cls(path, array, identity)

    @property
    def block_size(self) -> int:
        """Points on the side of a tile."""
        return self.tiling.block_size

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.shape[0] * self.shape[1]

    @property
    def T(self) -> np.ndarray:  # noqa: N802
        """The whole matrix, transposed."""
        return np.asarray(self).T

    @property
    def nbytes(self) -> int:
        """Bytes of the whole matrix in memory."""
        return _memory.matrix_bytes(self.shape, self.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"GramStore({self.shape}, {self.dtype}, block_size={self.block_size})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a Gram matrix on disk cannot be had as an array without a copy.")
        _memory.require_memory(
            self.nbytes, f"Gram matrix of {self.path} as an array", _memory.host_memory()
        )
        return self._read(slice(0, self.shape[0]), slice(0, self.shape[1])).astype(
            dtype or self.dtype, copy=False
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(out, GramStore) for out in options.get("out", ())):
            raise TypeError(
                "a Gram matrix on disk cannot be written to; take np.asarray(store) first."
            )
        if is_traced(*inputs) and method == "__call__":
            return getattr(jnp, ufunc.__name__)(
                *(jnp.asarray(value) for value in inputs), **options
            )
        arrays = [
            np.asarray(value) if isinstance(value, GramStore | jax.Array) else value
            for value in inputs
        ]
        return getattr(ufunc, method)(*arrays, **options)

    def __jax_array__(self) -> Array:
        return jnp.asarray(self.__array__())

    def __getitem__(self, key: Any) -> np.ndarray:
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) > 2 or not all(isinstance(k, slice | int | np.integer) for k in keys):
            return self.__array__()[key]
        keys = (*keys, slice(None))[:2]
        reaches = [_reach(k, n) for k, n in zip(keys, self.shape, strict=True)]
        block = self._read(*(slice(min(r), max(r) + 1) if r else slice(0, 0) for r in reaches))
        picks = [np.asarray(r, int) - min(r, default=0) for r in reaches]
        block = block[np.ix_(*picks)]
        return block.reshape(
            [len(r) for r, k in zip(reaches, keys, strict=True) if isinstance(k, slice)]
        )

    def _read(self, rows: slice, columns: slice) -> np.ndarray:
        """A rectangle, every tile read once, be it wanted as it is, as its transpose, or both."""
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        wanted = [
            t
            for t in self.tiling.tiles
            if any(_overlap(p, rows, columns) for p, _ in self._places(t))
        ]
        for tile, values in self.read_tiles(wanted):
            for (r, c), transposed in self._places(tile):
                if overlap := _overlap((r, c), rows, columns):
                    out[_within(overlap, (rows, columns))] = (values.T if transposed else values)[
                        _within(overlap, (r, c))
                    ]
        return out

    def _places(self, tile: Tile) -> list[tuple[tuple[slice, slice], bool]]:
        """Where a tile stands in the matrix, and whether transposed there."""
        rows, columns = self.tiling.slices(tile)
        mirrored = self.tiling.symmetric and not self.tiling.is_diagonal(tile)
        return [((rows, columns), False), *([((columns, rows), True)] if mirrored else [])]

    def read_tiles(self, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, Any]]:
        """Tiles with their values.

        Raises:
            ValueError: one is missing or damaged.
        """
        for tile, values, error in self._try_tiles(tiles):
            if error is not None:
                raise ValueError(
                    f"tile {tile} of {self.path} is {_state(error)} ({error}); "
                    "sdntk.gram(kernel, x, path=...) with the same kernel and points computes it "
                    "again."
                )
            yield tile, values

    def _try_tiles(self, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, Any, ValueError | None]]:
        """Tiles with their values, or with what is wrong with them, the next ones being read
        meanwhile.
        """
        under_way: collections.deque[Any] = collections.deque()

        def finish() -> tuple[Tile, Any, ValueError | None]:
            tile, future = under_way.popleft()
            try:
                return tile, future.result(), None
            except ValueError as error:
                return tile, None, error

        for tile in tiles:
            under_way.append((tile, self._array[self.tiling.slices(tile)].read()))
            if len(under_way) == _AHEAD:
                yield finish()
        while under_way:
            yield finish()

    def _unfinished(self) -> list[Tile]:
        """The tiles that are not there or not whole; the latter with a warning."""
        tiles = self.tiling.tiles
        found = track(self._try_tiles(tiles), f"Checking the tiles of {self.path}", len(tiles))
        bad = {tile: error for tile, _, error in found if error is not None}
        damaged = [tile for tile, error in bad.items() if _state(error) == "damaged"]
        if damaged:
            warnings.warn(
                f"{len(damaged)} damaged tiles of {self.path} are computed again: "
                f"{str(damaged[:5])[1:-1]}"
                f"{', ...' if len(damaged) > 5 else ''}. The first: {bad[damaged[0]]}",
                stacklevel=4,
            )
        return list(bad)

    def _write(self, tiles: Iterable[tuple[Tile, Array]]) -> None:
        """Each tile at once: to a temporary file, to the disk, then renamed to its name
        (tensorstore does so).
        """
        under_way: collections.deque[Any] = collections.deque()
        try:
            for tile, values in tiles:
                under_way.append(self._array[self.tiling.slices(tile)].write(np.asarray(values)))
                if len(under_way) == _AHEAD:
                    under_way.popleft().result()
        except BaseException:  # what is done stays done, whatever stopped the rest
            for future in under_way:
                future.exception()
            raise
        for future in under_way:
            future.result()


def compute_stored(
    kernel: KernelFunction,
    x: Float[Array, "n ..."],
    x2: Float[Array, "K ..."],
    path: Path,
    *,
    symmetric: bool,
    block_size: int | None,
    dtype: Any,
) -> GramStore:
    """``sdntk.gram(kernel, x, x2, path=path)``: go on with the store if there is one, else begin
    it.
    """
    if is_traced(kernel, x, x2):
        raise ValueError(
            "path must be left out where values are traced (jit, vmap, grad): there is nothing "
            "to store yet."
        )
    points, shape = (x, x2), (len(x), len(x2))
    identity = _Identity.of(kernel, points, symmetric)
    dtype = np.dtype(dtype or identity.computed_in)
    what = f"Gram matrix {shape[0]} x {shape[1]}"
    if (path / "zarr.json").exists():
        store = GramStore.open(path)
        identity.require_same(
            store, shape, dtype, None if block_size is None else min(block_size, max(shape))
        )
        tiles = store._unfinished()
    else:
        size = min(block_size or choose_block_size(kernel, points), max(shape))
        tiles = Tiling(shape, size, symmetric).tiles
        _memory.require_disk(
            len(tiles) * math.prod(_chunk(shape, size)) * dtype.itemsize, path, what
        )
        store = _create(path, shape, dtype, size, identity)
    if tiles:
        _memory.require_memory(
            work_bytes(kernel, points, store.block_size), f"{what}, tile by tile,"
        )
        computed = compute_tiles(kernel, x, x2, store.tiling, tiles, dtype=dtype)
        store._write(track(computed, f"{what}, {_memory.format_bytes(store.nbytes)}", len(tiles)))
    return store


@dataclasses.dataclass(frozen=True)
class _Identity:
    """What a store was made from. A kernel, which may be any function, is known by its values at a
    few of the points.
    """

    symmetric: bool
    points: str
    points2: str
    computed_in: str
    kernel_values: list[list[float]]

    @classmethod
    def of(cls, kernel: KernelFunction, points: tuple[Any, Any], symmetric: bool) -> "_Identity":
        rows, columns = _probes(*map(np.asarray, points))
        values = as_values(
            kernel(jnp.asarray(rows), jnp.asarray(columns)), (len(rows), len(columns))
        )
        if is_traced(values) or not every(np.isfinite, values):
            raise ValueError(
                "the kernel's values must be finite, and known (not traced), for a Gram matrix "
                "with path."
            )
        points1, points2 = (_checksum(x) for x in (points[:1] * 2 if symmetric else points))
        return cls(
            symmetric, points1, points2, str(values.dtype), np.asarray(values, np.float64).tolist()
        )

    def require_same(
        self, store: GramStore, shape: tuple[int, int], dtype: np.dtype, block_size: int | None
    ) -> None:
        """Refuse a store that was made from something else, and name what.

        Raises:
            ValueError: which of data, kernel, dtype or block_size differs.
        """
        theirs = store._identity
        if (theirs.symmetric, theirs.points, theirs.points2, store.shape) != (
            self.symmetric,
            self.points,
            self.points2,
            shape,
        ):
            differs = f"other data (shape {store.shape} and another checksum of the points)"
        elif (store.dtype, theirs.computed_in) != (dtype, self.computed_in):
            differs = (
                f"another dtype ({store.dtype}, computed in {theirs.computed_in}; now {dtype}, in "
                f"{self.computed_in})"
            )
        elif not self._same_values(theirs):
            differs = "another kernel (its values at a few of the points differ)"
        elif block_size not in (None, store.block_size):
            differs = f"another block_size ({store.block_size}; leave it out to go on with that)"
        else:
            return
        raise ValueError(
            f"path {store.path} holds a Gram matrix of {differs}. Choose another folder, or "
            "delete this one."
        )

    def _same_values(self, theirs: "_Identity") -> bool:
        mine, other = np.asarray(self.kernel_values), np.asarray(theirs.kernel_values)
        eps = jnp.finfo(self.computed_in).eps
        return mine.shape == other.shape and np.allclose(
            mine, other, rtol=eps**0.5, atol=8 * eps * abs(mine).max()
        )


def _probes(x: np.ndarray, x2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A few points of x, and of x2 as many and the nearest neighbour of each: between distant
    points many kernels agree.
    """
    some = [
        np.linspace(0, len(points) - 1, min(_PROBES, len(points))).astype(int) for points in (x, x2)
    ]
    rows, flat = x[some[0]].reshape(len(some[0]), -1), x2.reshape(len(x2), -1)
    squares = np.einsum("kd,kd->k", flat, flat)
    distances = squares - 2 * rows @ flat.T + np.sum(rows**2, axis=1, keepdims=True)
    distances[distances <= 1e-6 * squares.max()] = np.inf  # the point itself, and its duplicates
    return x[some[0]], x2[np.unique([*some[1], *distances.argmin(axis=1)])]


def _checksum(x: Any) -> str:
    """sha256 of an array's dtype, shape and bytes."""
    array = np.ascontiguousarray(x)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _create(
    path: Path, shape: tuple[int, int], dtype: np.dtype, size: int, identity: _Identity
) -> GramStore:
    if path.exists() and not path.is_dir():
        raise ValueError(f"path {path} is a file, not a folder.")
    if path.exists() and any(not entry.name.startswith("zarr.json") for entry in path.iterdir()):
        raise ValueError(f"path {path} holds other files. Choose an empty or a new folder.")
    metadata = {
        "shape": shape,
        "data_type": dtype.name,
        "fill_value": "NaN",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": _chunk(shape, size)}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "attributes": {"sdntk": dataclasses.asdict(identity)},
    }
    ts.open({"driver": "zarr3", "kvstore": _file(path), "metadata": metadata}, create=True).result()
    return GramStore.open(path)


def _chunk(shape: tuple[int, int], size: int) -> list[int]:
    """The shape of a tile on disk, where those at the edges are filled up."""
    return [min(size, length) for length in shape]


def _file(path: Path) -> dict[str, str]:
    return {"driver": "file", "path": str(path.absolute())}


def _state(error: ValueError) -> str:
    return "missing" if "NOT_FOUND" in str(error) else "damaged"


def _reach(key: Any, length: int) -> range:
    """The indices that a slice or an integer picks from an axis."""
    if isinstance(key, slice):
        return range(*key.indices(length))
    if not -length <= key < length:
        raise IndexError(f"index {key} is out of bounds for an axis of {length}.")
    return range(key % length, key % length + 1)


def _within(overlap: tuple[slice, slice], place: tuple[slice, slice]) -> tuple[slice, ...]:
    """An overlap, counted from where a place begins."""
    return tuple(
        slice(o.start - s.start, o.stop - s.start) for o, s in zip(overlap, place, strict=True)
    )


def _overlap(place: tuple[slice, slice], rows: slice, columns: slice) -> tuple[slice, slice] | None:
    r, c = (
        slice(max(a.start, b.start), min(a.stop, b.stop))
        for a, b in zip(place, (rows, columns), strict=True)
    )
    return (r, c) if r.start < r.stop and c.start < c.stop else None
