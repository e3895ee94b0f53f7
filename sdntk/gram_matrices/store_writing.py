"""Writing a Gram matrix to disk, tile by tile; a run that was killed is resumed."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float

from sdntk import _atomic, _memory, _warnings
from sdntk._arguments import is_traced
from sdntk._progress import track
from sdntk.gram_matrices.block_size import choose_block_size, work_bytes
from sdntk.gram_matrices.store import GramStore, has_store
from sdntk.gram_matrices.store_description import Description, require_few_tiles
from sdntk.gram_matrices.store_identity import Identity
from sdntk.gram_matrices.tile_files import TileFiles, call_ahead
from sdntk.gram_matrices.tiles import Tile, Tiling, compute_tiles
from sdntk.kernels.base import KernelFunction
from sdntk.kernels.precision import in_single_if_sufficient


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

    # The store, which another process may begin at the same time, and the tiles that it needs.
    if not has_store(path):
        new_size = size or min(choose_block_size(kernel, points), largest)
        tiling = Tiling(shape, new_size, identity.symmetric)
        _create(path, Description(tiling, kept_as, identity), description)
    store = GramStore.open(path)
    _require_same(store, identity, shape, kept_as, size)
    tiles = _unfinished(store)

    # Their values.
    if tiles:
        if x2 is None:
            kernel = in_single_if_sufficient(kernel, x, x, dtype)
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


def _create(path: Path, description: Description, in_words: str) -> None:
    """Begin a store without tiles, in a folder that is new, empty, or held a store's description
    only; unless another process has just done so.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"path {path} is a file, not a folder.")
    others = path.exists() and any(
        not entry.name.startswith(".zarr.json.") for entry in path.iterdir()
    )
    if others and not has_store(path):
        raise ValueError(f"path {path} holds other files. Choose an empty or a new folder.")
    try:
        require_few_tiles(description.tiling)
    except ValueError as error:
        raise ValueError(f"block_size is too small: {error}.") from None
    needed = description.tiling.num_tiles * TileFiles(path, description).tile_bytes
    _memory.require_disk(needed, path, in_words)
    path.mkdir(parents=True, exist_ok=True)
    _atomic.create(path / "zarr.json", lambda file: file.write(description.to_json()))


def _unfinished(store: GramStore) -> list[Tile]:
    """The tiles that are missing or damaged; the latter are reported in a warning."""
    tiling, unfinished, damaged, first = store.tiling, [], [], ""
    checked = call_ahead(store.files.check, tiling.touching(tiling.whole))
    description = f"Checking the tiles of {store.path}"
    for tile, check in track(checked, description, tiling.num_tiles):
        try:
            check.result()
        except FileNotFoundError:
            unfinished.append(tile)
        except (ValueError, OSError) as error:
            unfinished.append(tile)
            damaged.append(tile)
            first = first or str(error)
    for tile in damaged:
        if store.files.path(tile).is_dir():
            raise ValueError(f"{store.files.path(tile)} is a folder, no tile: delete it.")
    if damaged:
        shown = ", ".join(map(str, damaged[:5]))
        more = ", ..." if len(damaged) > 5 else ""
        _warnings.warn(
            f"{len(damaged)} damaged tiles of {store.path} are computed again: {shown}{more}. "
            f"The first: {first}",
            UserWarning,
        )
    return unfinished


def _write(store: GramStore, tiles: Iterable[tuple[Tile, Array]]) -> None:
    """Write each tile as soon as it comes; what is done stays done, whatever stops the rest."""
    for _, written in call_ahead(lambda computed: store.files.write(*computed), tiles):
        written.result()
    # All tiles are there now, and what killed processes left is of no use.
    for folder in store.path.joinpath("c").iterdir():
        _atomic.sweep(folder)
