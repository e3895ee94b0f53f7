"""Gram matrices on disk: a file for every tile (zarr 3, with a checksum in each), atomic and
resumable. What is read may be damaged or made by anybody.
"""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.lib.mixins import NDArrayOperatorsMixin

from sdntk import _memory
from sdntk._arguments import as_path, is_traced
from sdntk.gram_matrices.store_description import LARGEST, Description
from sdntk.gram_matrices.tile_files import TileFiles, call_ahead, read_small
from sdntk.gram_matrices.tiles import Rectangle, Tile


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
        precision: of the kernel's values, beyond rounding: eigenvalues up to it may be 0.

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

    def __init__(self, path: Path, description: Description) -> None:
        self.path = path
        self.identity = description.identity
        self.shape: tuple[int, int] = description.tiling.shape
        self.dtype = description.dtype
        self.tiling = description.tiling
        self.precision = description.identity.precision
        self.files = TileFiles(path.absolute(), description)

    @classmethod
    def open(cls, path: str | Path) -> "GramStore":
        """The store in a folder, as far as it has been written.

        The folder may come from anybody: it is refused unless its description is what this library
        writes, and no tile is taken for another one or another store's.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the folder holds something else, or what has been changed.
        """
        path = as_path("path", path)
        if not has_store(path):
            raise FileNotFoundError(
                f"path {path} holds no Gram matrix: sdntk.gram(kernel, x, path=...) makes one."
            )
        try:
            description = Description.from_json(read_small(path / "zarr.json", LARGEST))
        except (ValueError, RecursionError, OSError) as error:
            raise ValueError(
                f"path {path} holds something else than a Gram matrix of this library ({error}). "
                "Choose another folder."
            ) from None
        return cls(path, description)

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
        return self._read(self.tiling.whole).astype(dtype or self.dtype, copy=False)

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
        # A description may promise what no disk holds: before memory is taken, all files are looked
        # up and one is read.
        for tile in self.tiling.touching(wanted):
            with self._named(tile):
                self.files.require_file(tile)
        tiles = self.read_tiles(self.tiling.touching(wanted))
        first = list(itertools.islice(tiles, 1))
        self._require_memory(_memory.matrix_bytes(wanted.shape, self.dtype), "an array")
        out = np.empty(wanted.shape, self.dtype)
        for tile, values in itertools.chain(first, tiles):
            for place in self.tiling.places(tile):
                block = values.T if place.is_transposed else values
                common = place.rectangle.overlap(wanted)
                if common is not None:
                    out[common.within(wanted)] = block[common.within(place.rectangle)]
        return out

    def read_tiles(self, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, np.ndarray]]:
        """Tiles with their values; the next ones are read meanwhile.

        Raises:
            ValueError: one is missing or damaged. MemoryError: one does not fit into memory.
        """
        self._require_memory(self.files.tile_bytes, "a tile")
        for tile, values in call_ahead(self.files.read, tiles):
            rows, columns = self.tiling.rectangle(tile).shape
            with self._named(tile):
                whole = values.result()
            yield tile, whole[:rows, :columns]

    def read_stacks(self, groups: Iterable[list[Tile]]) -> Iterator[tuple[list[Tile], np.ndarray]]:
        """Tiles of one shape each, with their values, shape (n, rows, columns); the next ones are
        read meanwhile. Raises as :meth:`read_tiles`.
        """
        for group, values in call_ahead(self._read_stack, groups, ahead=2):
            yield group, values.result()

    def _read_stack(self, tiles: list[Tile]) -> np.ndarray:
        self._require_memory(len(tiles) * self.files.tile_bytes, "some tiles")
        stack = _memory.aligned_empty((len(tiles), self.block_size, self.block_size), self.dtype)
        for tile, out in zip(tiles, stack, strict=True):
            with self._named(tile):
                self.files.read(tile, out)
        rows, columns = self.tiling.rectangle(tiles[0]).shape
        return stack[:, :rows, :columns]

    @contextlib.contextmanager
    def _named(self, tile: Tile) -> Iterator[None]:
        """Say of which tile the errors inside are, and what helps."""
        try:
            yield
        except (ValueError, OSError) as error:
            missing = isinstance(error, FileNotFoundError)
            state = "missing" if missing else f"damaged ({error})"
            raise ValueError(
                f"tile {tile} of {self.path} is {state}; sdntk.gram(kernel, x, path=...) with the "
                "same kernel and points computes it again."
            ) from None

    def _require_memory(self, needed: int, part: str) -> None:
        description = f"Gram matrix of {self.path}, {part} of it,"
        _memory.require_memory(needed, description, _memory.host_memory())


def has_store(path: Path) -> bool:
    """Whether a folder has a description of a store, or what pretends to be one."""
    return os.path.lexists(path / "zarr.json")


def _consecutive(key: slice | int | np.integer, length: int) -> tuple[slice, slice | int]:
    """The smallest stretch of an axis that holds what ``key`` picks, and what picks it from there.

    ``8:2:-3`` picks 8 and 5, the stretch is 5:9, and of that ``::-3`` picks the same.
    """
    if isinstance(key, slice):
        picked = range(length)[key]
        if not picked:
            return slice(0, 0), slice(None, None, picked.step)
        first, last = sorted((picked[0], picked[-1]))
        return slice(first, last + 1), slice(None, None, picked.step)
    if not -length <= key < length:
        raise IndexError(f"index {key} is out of bounds for an axis of {length}.")
    index = int(key) % length
    return slice(index, index + 1), 0
