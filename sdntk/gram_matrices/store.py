"""Gram matrices on disk: a file for every tile (zarr 3 with checksums, by tensorstore), atomic and
resumable.
"""

import collections
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from jaxtyping import Array
from numpy.lib.mixins import NDArrayOperatorsMixin

from sdntk import _memory
from sdntk._arguments import as_path, is_traced
from sdntk.gram_matrices.store_identity import Identity
from sdntk.gram_matrices.tiles import Rectangle, Tile, Tiling

#: Reads and writes that are under way at once.
AHEAD = 8


class GramStore(NDArrayOperatorsMixin):
    """A Gram matrix on disk that works wherever an array does: values are read when they are used.

    ``store[a:b, c:d]`` reads a block; ``np.asarray(store)``, ``jnp.asarray(store)`` and operators
    read the whole (JAX's own functions ask for ``jnp.asarray(store)``). Of a symmetric matrix only
    the tiles on and above the diagonal are kept. Made by ``sdntk.gram(..., path=...)``; opened
    again by ``GramStore.open(path)``.

    Attributes:
        path: its folder.
        shape: (n, K).
        dtype: NumPy's, of the values as they are kept.
        block_size: points on the side of a tile.

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

    def __init__(self, path: Path, array: Any, identity: Identity) -> None:
        self.path = path
        self.array = array  # tensorstore's
        self.identity = identity
        self.shape: tuple[int, int] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype.numpy_dtype)
        block_size = max(array.chunk_layout.read_chunk.shape)
        self.tiling = Tiling(self.shape, block_size, identity.symmetric)

    @classmethod
    def open(cls, path: str | Path) -> "GramStore":
        """The store in a folder, as far as it has been written.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the folder holds something else.
        """
        path = as_path("path", path)
        if not (path / "zarr.json").is_file():
            raise FileNotFoundError(
                f"path {path} holds no Gram matrix: sdntk.gram(kernel, x, path=...) makes one."
            )
        try:
            metadata = json.loads((path / "zarr.json").read_text())
            identity = Identity(**metadata["attributes"]["sdntk"])
            spec = {"driver": "zarr3", "kvstore": kvstore(path), "fill_missing_data_reads": False}
            array = ts.open(spec).result()
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
            raise ValueError("a Gram matrix on disk can be read into memory only as a copy.")
        description = f"Gram matrix of {self.path} as an array"
        _memory.require_memory(self.nbytes, description, _memory.host_memory())
        whole = self._read(Rectangle(slice(0, self.shape[0]), slice(0, self.shape[1])))
        return whole.astype(dtype or self.dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(out, GramStore) for out in options.get("out", ())):
            raise TypeError(
                "a Gram matrix on disk cannot be written to; take np.asarray(store) first."
            )
        if is_traced(*inputs) and method == "__call__":
            of_jax = getattr(jnp, ufunc.__name__)
            return of_jax(*(jnp.asarray(value) for value in inputs), **options)
        arrays = [
            np.asarray(value) if isinstance(value, GramStore | jax.Array) else value
            for value in inputs
        ]
        return getattr(ufunc, method)(*arrays, **options)

    def __jax_array__(self) -> Array:
        return jnp.asarray(self.__array__())

    def __getitem__(self, key: Any) -> np.ndarray | np.generic:
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) > 2 or not all(isinstance(k, slice | int | np.integer) for k in keys):
            return np.asarray(self)[key]
        row_key, column_key = (*keys, slice(None), slice(None))[:2]
        rows, row_step = _consecutive(row_key, self.shape[0])
        columns, column_step = _consecutive(column_key, self.shape[1])
        return self._read(Rectangle(rows, columns))[row_step, column_step]

    def _read(self, wanted: Rectangle) -> np.ndarray:
        """A rectangle of the matrix; each tile that it touches is read once."""
        out = np.empty(wanted.shape, self.dtype)
        touched = [
            tile
            for tile in self.tiling.tiles
            if any(place.rectangle.overlap(wanted) for place in self.tiling.places(tile))
        ]
        for tile, values in self.read_tiles(touched):
            for place in self.tiling.places(tile):
                block = values.T if place.is_transposed else values
                common = place.rectangle.overlap(wanted)
                if common is not None:
                    out[common.within(wanted)] = block[common.within(place.rectangle)]
        return out

    def has_file(self, tile: Tile) -> bool:
        """Whether a tile has been written; what cannot be read although it has is damaged."""
        return self.path.joinpath("c", *map(str, tile)).exists()

    def read_tiles(self, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, Any]]:
        """Tiles with their values.

        Raises:
            ValueError: one is missing or damaged.
        """
        for tile, values, error in self.try_tiles(tiles):
            if error is not None:
                state = "damaged" if self.has_file(tile) else "missing"
                raise ValueError(
                    f"tile {tile} of {self.path} is {state} ({error}); "
                    "sdntk.gram(kernel, x, path=...) with the same kernel and points computes it "
                    "again."
                )
            yield tile, values

    def try_tiles(self, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, Any, ValueError | None]]:
        """Tiles with their values, or with the error of reading them; the next ones are read
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
            under_way.append((tile, self.array[self.tiling.rectangle(tile)].read()))
            if len(under_way) == AHEAD:
                yield finish()
        while under_way:
            yield finish()


def kvstore(path: Path) -> dict[str, str]:
    """A folder, as tensorstore is told of it."""
    return {"driver": "file", "path": str(path.absolute())}


def _consecutive(key: slice | int | np.integer, length: int) -> tuple[slice, slice | int]:
    """The smallest stretch of an axis that holds what ``key`` picks, and what picks it from there.

    ``8:2:-3`` picks 8 and 5, the stretch is 5:9, and of that ``::-3`` picks the same.
    """
    if isinstance(key, slice):
        picked = range(length)[key]
        stretch = slice(min(picked), max(picked) + 1) if picked else slice(0, 0)
        return stretch, slice(None, None, picked.step)
    if not -length <= key < length:
        raise IndexError(f"index {key} is out of bounds for an axis of {length}.")
    index = int(key) % length
    return slice(index, index + 1), 0
