"""What a Gram matrix on disk says of itself: zarr.json, as this library writes it. Nothing else is
taken for one.

A folder may come from anywhere, so the file is read only if it is small, and believed only if its
bytes are those that this library would write for the same matrix: that leaves no room for another
codec, order, byte order, fill value, grid or name of a chunk.
"""

import dataclasses
import functools
import hashlib
import json
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdntk.gram_matrices.store_identity import Identity
from sdntk.gram_matrices.tiles import Tiling

#: Of the format. Version 1, without this number, did not bind tiles to their places.
VERSION = 2
#: Bytes of the largest description that is read. This library's take about 2,000.
LARGEST = 2**16
#: Tiles of the largest store: more files than that are of no use to anybody.
MOST_TILES = 2**22


@dataclasses.dataclass(frozen=True)
class Description:
    """A store's shape, its tiles, the dtype of its values and what it was made from."""

    tiling: Tiling
    dtype: np.dtype
    identity: Identity

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Of every tile on disk, where those at the edges are padded."""
        rows, columns = (min(self.tiling.block_size, length) for length in self.tiling.shape)
        return rows, columns

    @functools.cached_property
    def checksum(self) -> str:
        """sha256 of all that a description says: tiles are bound to it."""
        return hashlib.sha256(_to_json(self._metadata())).hexdigest()

    def to_json(self) -> bytes:
        """The content of zarr.json."""
        return _to_json(self._metadata(checksum=self.checksum))

    @classmethod
    def from_json(cls, content: bytes) -> "Description":
        """Read the content of a zarr.json.

        Raises:
            ValueError: it is not what this library writes, and why.
        """
        metadata = _parse(content)
        ours = _get(metadata, "attributes", "sdntk")
        version = ours.get("version", 1) if isinstance(ours, dict) else None
        if version != VERSION:
            raise ValueError(
                f"it was written by another version of sdntk, in format {version!r:.40}, whose "
                f"tiles are checked otherwise: this one reads format {VERSION}"
            )
        grid = _get(metadata, "chunk_grid", "configuration", "chunk_shape")
        shape, tile_shape = _as_shape("shape", metadata.get("shape")), _as_shape("chunks", grid)
        identity = Identity.from_json(_get(ours, "identity"))
        if identity.symmetric and shape[0] != shape[1]:
            raise ValueError(f"a symmetric matrix of shape {shape}")
        tiling = Tiling(shape, max(tile_shape), identity.symmetric)
        description = cls(tiling, _as_dtype(metadata.get("data_type")), identity)
        require_few_tiles(tiling)
        description._require_same(metadata, content)
        return description

    def _require_same(self, metadata: dict[str, Any], content: bytes) -> None:
        """Raise unless this description is written as ``content``, and name what differs."""
        expected = self._metadata(checksum=self.checksum)
        differ = {
            name for name in {*metadata, *expected} if metadata.get(name) != expected.get(name)
        }
        # The attributes come last: the checksum among them tells of any difference.
        names = sorted(differ, key=lambda name: (name == "attributes", name))
        if names:
            raise ValueError(f"what it says of {names[0]:.40} is not what this library writes")
        if content != self.to_json():
            raise ValueError("its zarr.json is not written as this library does")

    def _metadata(self, **checksum: str) -> dict[str, Any]:
        """A zarr array with a file a tile, so that other readers of zarr can read it.

        Each tile is the only chunk of a shard, whose index says that the chunk does not begin at
        once: between them is room for the checksum.
        """
        little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
        tile = list(self.tile_shape)
        shard = {
            "chunk_shape": tile,
            "codecs": [little_endian],
            "index_codecs": [little_endian],
            "index_location": "start",
        }
        identity = dataclasses.asdict(self.identity)
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.tiling.shape),
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": tile}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN",
            "codecs": [{"name": "sharding_indexed", "configuration": shard}],
            "attributes": {"sdntk": {"version": VERSION, "identity": identity, **checksum}},
        }


def require_few_tiles(tiling: Tiling) -> None:
    """Refuse more tiles than any store has.

    Raises:
        ValueError: how many there would be.
    """
    if tiling.num_tiles > MOST_TILES:
        raise ValueError(
            f"a matrix of shape {tiling.shape} with block_size {tiling.block_size} has "
            f"{tiling.num_tiles:,} tiles, and a store at most {MOST_TILES:,}: a larger block_size "
            "has fewer"
        )


def _to_json(metadata: dict[str, Any]) -> bytes:
    return json.dumps(metadata).encode()


def _parse(content: bytes) -> dict[str, Any]:
    try:
        metadata = json.loads(content.decode())
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"its zarr.json is no JSON ({error})") from None
    if not isinstance(metadata, dict):
        raise ValueError("its JSON is no object")
    return metadata


def _get(value: Any, *names: str) -> Any:
    """A part of nested objects."""
    for name in names:
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"its zarr.json has no {name}, or not where it belongs")
        value = value[name]
    return value


def _as_shape(what: str, value: Any) -> tuple[int, int]:
    # bool is an int of Python's, and no length.
    if not (
        isinstance(value, list)
        and len(value) == 2
        and all(type(length) is int and 0 < length < 2**53 for length in value)
    ):
        raise ValueError(f"its {what} must be two positive integers, and is {value!s:.40}")
    return value[0], value[1]


def _as_dtype(name: Any) -> np.dtype:
    known = isinstance(name, str) and re.fullmatch(r"b?float\w+", name)
    try:
        dtype = np.dtype(name if known else object)
    except TypeError:
        dtype = np.dtype(object)
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 8:
        raise ValueError(f"its data_type must be a floating-point one, and is {name!s:.40}")
    return dtype
