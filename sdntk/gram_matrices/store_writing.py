"""Writing a Gram matrix to disk, tile by tile; a run that was killed is resumed."""

import collections
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Array, Float

from sdntk import _memory, _warnings
from sdntk._arguments import is_traced
from sdntk._progress import track
from sdntk.gram_matrices.block_size import choose_block_size, work_bytes
from sdntk.gram_matrices.store import AHEAD, GramStore, kvstore
from sdntk.gram_matrices.store_identity import Identity
from sdntk.gram_matrices.tiles import Tile, Tiling, compute_tiles
from sdntk.kernels.base import KernelFunction


def compute_stored(
    kernel: KernelFunction,
    x: Float[Array, "n ..."],
    x2: Float[Array, "K ..."] | None,
    path: Path,
    *,
    block_size: int | None,
    dtype: np.dtype | None,
) -> GramStore:
    """:func:`sdntk.gram` on disk, of points that have been checked: resumes the store if there is
    one, else begins it.
    """
    if is_traced(kernel, x, x2):
        raise ValueError(
            "path must be left out where values are traced (jit, vmap, grad): there is nothing "
            "to store yet."
        )
    columns = x if x2 is None else x2
    shape, points = (len(x), len(columns)), (x, columns)
    largest = max(shape)
    size = None if block_size is None else min(block_size, largest)
    identity = Identity.of(kernel, x, x2)
    kept_as = np.dtype(dtype or identity.computed_in)
    description = f"Gram matrix {shape[0]} x {shape[1]}"

    # The store, and the tiles that it still needs.
    if (path / "zarr.json").exists():
        store = GramStore.open(path)
        _require_same(store, identity, shape, kept_as, size)
        tiles = _unfinished(store)
    else:
        size = size or min(choose_block_size(kernel, points), largest)
        tiling = Tiling(shape, size, identity.symmetric)
        tiles = tiling.tiles
        needed = len(tiles) * math.prod(_chunk(tiling)) * kept_as.itemsize
        _memory.require_disk(needed, path, description)
        store = _create(path, tiling, kept_as, identity)

    # Their values.
    if tiles:
        needed = work_bytes(kernel, points, store.block_size)
        _memory.require_memory(needed, f"{description}, tile by tile,")
        computed = compute_tiles(kernel, x, columns, store.tiling, tiles, dtype=kept_as)
        description = f"{description}, {_memory.format_bytes(store.nbytes)}"
        _write(store, track(computed, description, len(tiles)))
    return store


def _require_same(
    store: GramStore,
    identity: Identity,
    shape: tuple[int, int],
    dtype: np.dtype,
    block_size: int | None,
) -> None:
    """Refuse a store that was made from something else, and name what.

    Raises:
        ValueError: which of data, kernel, dtype or block_size differs.
    """
    theirs = store.identity
    if store.shape != shape or not identity.same_points(theirs):
        differs = f"other data (shape {store.shape} and another checksum of the points)"
    elif (store.dtype, theirs.computed_in) != (dtype, identity.computed_in):
        differs = (
            f"another dtype ({store.dtype}, computed in {theirs.computed_in}; now {dtype}, in "
            f"{identity.computed_in})"
        )
    elif not identity.same_values(theirs):
        differs = "another kernel (its values at a few of the points differ)"
    elif block_size not in (None, store.block_size):
        differs = f"another block_size ({store.block_size}; leave it out to resume with that)"
    else:
        return
    raise ValueError(
        f"path {store.path} holds a Gram matrix of {differs}. Choose another folder, or "
        "delete this one."
    )


def _create(path: Path, tiling: Tiling, dtype: np.dtype, identity: Identity) -> GramStore:
    """A store without tiles, in a folder that is new, empty, or held a store's description only."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"path {path} is a file, not a folder.")
    if path.exists() and any(not entry.name.startswith("zarr.json") for entry in path.iterdir()):
        raise ValueError(f"path {path} holds other files. Choose an empty or a new folder.")
    metadata = {
        "shape": tiling.shape,
        "data_type": dtype.name,
        "fill_value": "NaN",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": _chunk(tiling)}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "attributes": {"sdntk": dataclasses.asdict(identity)},
    }
    spec = {"driver": "zarr3", "kvstore": kvstore(path), "metadata": metadata}
    ts.open(spec, create=True).result()
    return GramStore.open(path)


def _chunk(tiling: Tiling) -> list[int]:
    """The shape of every tile on disk, where those at the edges are padded."""
    return [min(tiling.block_size, length) for length in tiling.shape]


def _unfinished(store: GramStore) -> list[Tile]:
    """The tiles that are missing or damaged; the latter are reported in a warning."""
    tiles = store.tiling.tiles
    read = track(store.try_tiles(tiles), f"Checking the tiles of {store.path}", len(tiles))
    errors = {tile: error for tile, _, error in read if error is not None}
    damaged = [tile for tile in errors if store.has_file(tile)]
    if damaged:
        shown = ", ".join(map(str, damaged[:5]))
        more = ", ..." if len(damaged) > 5 else ""
        _warnings.warn(
            f"{len(damaged)} damaged tiles of {store.path} are computed again: {shown}{more}. "
            f"The first: {errors[damaged[0]]}",
            UserWarning,
        )
    return list(errors)


def _write(store: GramStore, tiles: Iterable[tuple[Tile, Array]]) -> None:
    """Write each tile as soon as it comes: tensorstore writes a temporary file, flushes it to the
    disk, and renames it.
    """
    under_way: collections.deque[Any] = collections.deque()
    try:
        for tile, values in tiles:
            place = store.tiling.rectangle(tile)
            under_way.append(store.array[place].write(np.asarray(values)))
            if len(under_way) == AHEAD:
                under_way.popleft().result()
    except BaseException:  # what is done stays done, whatever stopped the rest
        for future in under_way:
            future.exception()
        raise
    for future in under_way:
        future.result()
