"""One table of an experiment in a file, in Parquet: written with a mark of whose it is, and read
without trust in what the file claims.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as kinds

#: Columns by name, and what they hold: int, float, bool or str. None stands for nan in floats.
Columns = Mapping[str, type]

#: A table that takes more memory, and more than so many times its file, is none of ours.
_MOST_BYTES, _MOST_EXPANSION = 50_000_000, 100
#: The longest text in a table: the names of states and of tolerances.
_MOST_CHARACTERS = 1000

_IS_KIND: dict[type, Callable[[pa.DataType], bool]] = {
    int: kinds.is_integer,
    float: lambda kind: kinds.is_floating(kind) or kinds.is_integer(kind) or kinds.is_null(kind),
    bool: kinds.is_boolean,
    str: lambda kind: kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_null(kind),
}


@dataclasses.dataclass(frozen=True)
class Mark:
    """Whose rows a file holds, so that swapped or foreign files are found out.

    Attributes:
        table: its name.
        configuration: a checksum of all settings.
    """

    table: str
    configuration: str


def empty(columns: Columns) -> pd.DataFrame:
    """The table before its first row."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})


def write(file: BinaryIO, frame: pd.DataFrame, mark: Mark) -> None:
    """The table into an opened file, with its mark and with checksums."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    marked = json.dumps(dataclasses.asdict(mark) | {"checksum": _checksum(frame)})
    # Without pandas' own metadata, on which pandas fails where a bit of it is damaged.
    table = table.replace_schema_metadata({b"sdntk": marked.encode()})
    pq.write_table(table, file, write_page_checksum=True)


def read(path: Path, mark: Mark, columns: Columns | None, *, unmarked: bool) -> pd.DataFrame:
    """The table in a file.

    Args:
        path: the file.
        mark: what its mark must be.
        columns: which it must have; any of numbers, truth values and text when None.
        unmarked: whether a table without a mark will do, as versions up to 0.2 wrote them.

    Raises:
        ValueError: the file holds something else, or is damaged.
    """
    try:
        if not path.is_file():
            raise ValueError("it is not a file")
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            checksum = _check_mark(file, mark, unmarked)
            _check_columns(file.schema_arrow, columns)
            _check_size(file, path)
        table = _read_checked(path, file.schema_arrow)
        # Without pandas' own metadata, which could ask for any type.
        frame = table.to_pandas(ignore_metadata=True)
        _require(checksum in (None, _checksum(frame)), "its checksum differs")
        for name, kind in (columns or {}).items():
            has_gaps = kind in (int, bool) and bool(frame[name].isna().any())
            _require(not has_gaps, f"its column {name!r} has gaps")
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"{path} does not hold the table {mark.table!r} of these records, or is damaged: "
            f"{str(error).rstrip('.')}. Delete it, and the same command computes it again."
        ) from None
    return frame


def _check_mark(file: pq.ParquetFile, mark: Mark, unmarked: bool) -> str | None:
    """The checksum that goes with the mark; None of a table without one."""
    found = (file.schema_arrow.metadata or {}).get(b"sdntk")
    if found is None:
        _require(unmarked, "it does not say whose rows it holds")
        return None
    theirs = json.loads(found)
    differs = [name for name, ours in dataclasses.asdict(mark).items() if theirs.get(name) != ours]
    _require(not differs, f"it is of another {' and '.join(differs)}")
    return str(theirs.get("checksum"))


def _checksum(frame: pd.DataFrame) -> str:
    """sha256 of names and values, whatever stands for what is missing."""
    digest = hashlib.sha256()
    for name, column in frame.items():
        if pd.api.types.is_numeric_dtype(column):
            numbers = column.to_numpy(float)
            values = np.where(np.isnan(numbers), np.nan, numbers).tobytes()
        else:
            values = "\0".join(column.fillna("").astype(str)).encode()
        digest.update(f"{name} {len(values)} ".encode() + values)
    return digest.hexdigest()


def _check_columns(schema: pa.Schema, columns: Columns | None) -> None:
    if columns is None:
        columns = dict.fromkeys(schema.names, object)
    _require(sorted(schema.names) == sorted(columns), f"its columns are {schema.names}")
    for field in schema:
        kind = columns[field.name]
        allowed = [_IS_KIND[kind]] if kind in _IS_KIND else [*_IS_KIND.values()]
        fits = any(is_kind(field.type) for is_kind in allowed)
        _require(fits, f"its column {field.name!r} is of type {field.type}")


def _check_size(file: pq.ParquetFile, path: Path) -> None:
    """A column that repeats one value takes no place in the file, and much in memory."""
    needed = 8 * file.metadata.num_rows * file.metadata.num_columns
    allowed = max(_MOST_BYTES, _MOST_EXPANSION * path.stat().st_size)
    _require(needed <= allowed, f"its {file.metadata.num_rows:,} rows do not fit into the file")


def _read_checked(path: Path, schema: pa.Schema) -> pa.Table:
    """All rows; text, which may be long and repeated, is looked at once before it is spread."""
    texts = [field.name for field in schema if _IS_KIND[str](field.type)]
    with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=texts) as file:
        table = file.read()
    for name in texts:
        for chunk in table.column(name).chunks:
            if kinds.is_dictionary(chunk.type):
                longest = pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0
                _require(longest <= _MOST_CHARACTERS, f"its column {name!r} holds long text")
    return table.cast(schema)


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
