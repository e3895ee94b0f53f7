"""The tiles of a store, each in a file of its own, with a checksum that binds it to its place."""

import collections
import dataclasses
import hashlib
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from sdntk import _atomic
from sdntk.gram_matrices.store_description import Description
from sdntk.gram_matrices.tiles import Tile

#: Before each tile in its file: where the tile starts in it and how long it is, as zarr's shards
#: have it, and the tile's checksum.
INDEX_BYTES, CHECKSUM_BYTES = 16, 32
#: Reads and writes that are under way at once.
AHEAD = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class TileFiles:
    """The tiles of the store in a folder: ``folder/c/row/column``.

    A file holds the tile's place in it (zarr's index of a shard), a checksum and the values, row by
    row. The checksum is of the store's own one, which covers its shape, dtype, tiling, points and
    kernel, of the tile's row and column, and of the values: no tile can stand for another.
    """

    folder: Path
    description: Description
    #: Tiles whose checksum was right, with the state that their file had.
    whole: dict[Tile, tuple[int, ...]] = dataclasses.field(default_factory=dict, compare=False)

    def path(self, tile: Tile) -> Path:
        """Where a tile lies."""
        return self.folder.joinpath("c", *map(str, tile))

    @property
    def tile_bytes(self) -> int:
        """Bytes of the values of a tile."""
        return math.prod(self.description.tile_shape) * self.description.dtype.itemsize

    def check(self, tile: Tile) -> None:
        """Raise unless a tile has been written and is whole. Its values need no memory.

        Raises:
            FileNotFoundError: it has not been written. ValueError, OSError: it is damaged.
        """
        with self._open(tile) as file:
            self._check(file, tile)

    def require_file(self, tile: Tile) -> None:
        """:meth:`check` without a look into the file."""
        _require_regular(self.path(tile), self._file_bytes)

    def read(self, tile: Tile, out: np.ndarray | None = None) -> np.ndarray:
        """The values of a tile, padded where it lies at an edge; into ``out``, if it is given.
        Raises as :meth:`check`.

        The checksum, which takes longer than a product with the tile, is computed again only if the
        file has changed since.
        """
        with self._open(tile) as file:
            status = os.fstat(file.fileno())
            state = (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
            if self.whole.get(tile) != state:
                self._check(file, tile)
                self.whole[tile] = state
            file.seek(INDEX_BYTES + CHECKSUM_BYTES)
            if out is None:
                out = np.empty(self.description.tile_shape, self.description.dtype)
            read = file.readinto(out.reshape(-1).view(np.uint8).data)
        if read != self.tile_bytes:
            raise ValueError("it ends too early")
        return out

    def write(self, tile: Tile, values: Any) -> None:
        """Write a tile, all of it or nothing.

        Raises:
            ValueError: something that this library has not made is in the way.
        """
        padded = np.full(self.description.tile_shape, np.nan, self.description.dtype)
        padded[: values.shape[0], : values.shape[1]] = np.asarray(values)
        content = padded.reshape(-1).view(np.uint8)
        checksum = self._hash(tile)
        checksum.update(content)

        def fill(file: BinaryIO) -> None:
            file.write(self._index + checksum.digest())
            file.write(content.data)

        path = self.path(tile)
        for folder in (path.parent.parent, path.parent):
            _make_folder(folder)
        try:
            _atomic.replace(path, fill)
        except FileNotFoundError:  # swept up by a process that has finished the store
            self.check(tile)

    @property
    def _index(self) -> bytes:
        start = INDEX_BYTES + CHECKSUM_BYTES
        return np.array([start, self.tile_bytes], "<u8").tobytes()

    @property
    def _file_bytes(self) -> int:
        return INDEX_BYTES + CHECKSUM_BYTES + self.tile_bytes

    def _open(self, tile: Tile) -> BufferedReader:
        self.require_file(tile)
        return self.path(tile).open("rb")

    def _check(self, file: BufferedReader, tile: Tile) -> None:
        index, checksum = file.read(INDEX_BYTES), file.read(CHECKSUM_BYTES)
        if index != self._index:
            raise ValueError("its index is another one")
        if checksum != hashlib.file_digest(file, lambda: self._hash(tile)).digest():
            raise ValueError("its checksum is another one")

    def _hash(self, tile: Tile) -> Any:
        """sha256 of a tile's place, to which its values are to be added."""
        return hashlib.sha256(f"{self.description.checksum} {tile[0]} {tile[1]} ".encode())


def read_small(path: Path, largest: int) -> bytes:
    """The content of a regular file of a bounded size.

    Raises:
        FileNotFoundError: there is none. ValueError, OSError: it is something else, or larger.
    """
    size = path.lstat().st_size
    if size > largest:
        raise ValueError(f"its {path.name} has {size:,} bytes; this library's have fewer")
    _require_regular(path, size)
    with path.open("rb") as file:
        return file.read(largest)


def call_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = AHEAD
) -> Iterator[tuple[Item, Future[Result]]]:
    """Each item with the call of a function on it, while threads are at the next ones."""
    under_way: collections.deque[tuple[Item, Future[Result]]] = collections.deque()
    with ThreadPoolExecutor(ahead) as threads:
        for item in items:
            under_way.append((item, threads.submit(function, item)))
            if len(under_way) == ahead:
                yield under_way.popleft()
        while under_way:
            yield under_way.popleft()


def _require_regular(path: Path, size: int) -> None:
    """Refuse links, which may lead anywhere, pipes, which may block, devices, which may never
    end, and another size.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} is no regular file")
    if status.st_size != size:
        raise ValueError(f"it has {status.st_size:,} bytes instead of {size:,}")


def _make_folder(path: Path) -> None:
    """A folder of tiles, if it is not there. Not through a link: that may lead anywhere."""
    try:
        path.mkdir(exist_ok=True)
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise FileExistsError
    except FileExistsError:
        raise ValueError(f"{path} is in the way of the tiles' folder: delete it.") from None
