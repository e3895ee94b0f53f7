"""Writing a Gram matrix to disk, tile by tile; a run that was killed is resumed."""

import collections
import dataclasses
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Array, Float

from sdntk import _memory
from sdntk._arguments import is_traced
from sdntk._progress import track
from sdntk.gram_matrices.block_size import choose_block_size, work_bytes
from sdntk.gram_matrices.store import AHEAD, GramStore, file_store, tile_state
from sdntk.gram_matrices.store_identity import Identity
from sdntk.gram_matrices.tiles import Tile, Tiling, compute_tiles
from sdntk.kernels import KernelFunction


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
    identity = Identity.of(kernel, points, symmetric)
    dtype = np.dtype(dtype or identity.computed_in)
    what = f"Gram matrix {shape[0]} x {shape[1]}"
    if (path / "zarr.json").exists():
        store = GramStore.open(path)
        require_same(
            identity,
            store,
            shape,
            dtype,
            None if block_size is None else min(block_size, max(shape)),
        )
        tiles = unfinished(store)
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
        write(store, track(computed, f"{what}, {_memory.format_bytes(store.nbytes)}", len(tiles)))
    return store


def require_same(
    identity: Identity,
    store: GramStore,
    shape: tuple[int, int],
    dtype: np.dtype,
    block_size: int | None,
) -> None:
    """Refuse a store that was made from something else, and name what.

    Raises:
        ValueError: which of data, kernel, dtype or block_size differs.
    """
    theirs = store.identity
    if (theirs.symmetric, theirs.points, theirs.points2, store.shape) != (
        identity.symmetric,
        identity.points,
        identity.points2,
        shape,
    ):
        differs = f"other data (shape {store.shape} and another checksum of the points)"
    elif (store.dtype, theirs.computed_in) != (dtype, identity.computed_in):
        differs = (
            f"another dtype ({store.dtype}, computed in {theirs.computed_in}; now {dtype}, in "
            f"{identity.computed_in})"
        )
    elif not identity.same_values(theirs):
        differs = "another kernel (its values at a few of the points differ)"
    elif block_size not in (None, store.block_size):
        differs = f"another block_size ({store.block_size}; leave it out to go on with that)"
    else:
        return
    raise ValueError(
        f"path {store.path} holds a Gram matrix of {differs}. Choose another folder, or "
        "delete this one."
    )


def _create(
    path: Path, shape: tuple[int, int], dtype: np.dtype, size: int, identity: Identity
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
    ts.open(
        {"driver": "zarr3", "kvstore": file_store(path), "metadata": metadata}, create=True
    ).result()
    return GramStore.open(path)


def _chunk(shape: tuple[int, int], size: int) -> list[int]:
    """The shape of a tile on disk, where those at the edges are filled up."""
    return [min(size, length) for length in shape]


def unfinished(store: GramStore) -> list[Tile]:
    """The tiles that are not there or not whole; the latter with a warning."""
    tiles = store.tiling.tiles
    found = track(store.try_tiles(tiles), f"Checking the tiles of {store.path}", len(tiles))
    bad = {tile: error for tile, _, error in found if error is not None}
    damaged = [tile for tile, error in bad.items() if tile_state(error) == "damaged"]
    if damaged:
        warnings.warn(
            f"{len(damaged)} damaged tiles of {store.path} are computed again: "
            f"{str(damaged[:5])[1:-1]}"
            f"{', ...' if len(damaged) > 5 else ''}. The first: {bad[damaged[0]]}",
            stacklevel=4,
        )
    return list(bad)


def write(store: GramStore, tiles: Iterable[tuple[Tile, Array]]) -> None:
    """Each tile at once: to a temporary file, to the disk, then renamed to its name
    (tensorstore does so).
    """
    under_way: collections.deque[Any] = collections.deque()
    try:
        for tile, values in tiles:
            under_way.append(store.array[store.tiling.slices(tile)].write(np.asarray(values)))
            if len(under_way) == AHEAD:
                under_way.popleft().result()
    except BaseException:  # what is done stays done, whatever stopped the rest
        for future in under_way:
            future.exception()
        raise
    for future in under_way:
        future.result()
