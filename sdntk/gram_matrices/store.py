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
from sdntk._arguments import is_traced
from sdntk.gram_matrices.store_identity import Identity
from sdntk.gram_matrices.tiles import Tile, Tiling, overlap, reach, within

#: Reads and writes that are under way at once.
AHEAD = 8


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

    def __init__(self, path: Path, array: Any, identity: Identity) -> None:
        self.path = path
        self.shape: tuple[int, int] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype.numpy_dtype)
        self.tiling = Tiling(
            self.shape, max(array.chunk_layout.read_chunk.shape), identity.symmetric
        )
        self.array, self.identity = array, identity

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
            identity = Identity(
                **json.loads((path / "zarr.json").read_text())["attributes"]["sdntk"]
            )
            array = ts.open(
                {"driver": "zarr3", "kvstore": file_store(path), "fill_missing_data_reads": False}
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
        reaches = [reach(k, n) for k, n in zip(keys, self.shape, strict=True)]
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
            if any(overlap(p, rows, columns) for p, _ in self.tiling.places(t))
        ]
        for tile, values in self.read_tiles(wanted):
            for (r, c), transposed in self.tiling.places(tile):
                if common := overlap((r, c), rows, columns):
                    out[within(common, (rows, columns))] = (values.T if transposed else values)[
                        within(common, (r, c))
                    ]
        return out

    def read_tiles(self, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, Any]]:
        """Tiles with their values.

        Raises:
            ValueError: one is missing or damaged.
        """
        for tile, values, error in self.try_tiles(tiles):
            if error is not None:
                raise ValueError(
                    f"tile {tile} of {self.path} is {tile_state(error)} ({error}); "
                    "sdntk.gram(kernel, x, path=...) with the same kernel and points computes it "
                    "again."
                )
            yield tile, values

    def try_tiles(self, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, Any, ValueError | None]]:
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
            under_way.append((tile, self.array[self.tiling.slices(tile)].read()))
            if len(under_way) == AHEAD:
                yield finish()
        while under_way:
            yield finish()


def file_store(path: Path) -> dict[str, str]:
    """A folder, as tensorstore is told of it."""
    return {"driver": "file", "path": str(path.absolute())}


def tile_state(error: ValueError) -> str:
    """Whether a tile that could not be read is missing or damaged."""
    return "missing" if "NOT_FOUND" in str(error) else "damaged"
