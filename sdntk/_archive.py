"""One object in one file: arrays and plain data in NumPy's .npz format, nothing that runs.

Frozen dataclasses and NamedTuples of this library are written field by field under their class's
name, and read back by a caller who says which classes he accepts. No pickle on either side.
"""

import dataclasses
import enum
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdntk import _atomic
from sdntk._arguments import as_path

#: Of the format. A file of another one is refused.
VERSION = 1
#: Fields with defaults, by class, that older files of this format lack.
_FIELDS_SINCE = {"SpectralFit": {"degrees_of_freedom"}}
#: Fields that older files have under another name, by class.
_RENAMED = {"Distillation": {"fitted": "known_fitted"}}
_HEADER = "header"


class NotSavedError(TypeError):
    """An object that cannot be written: a function, an object of another library."""


def save(path: str | Path, value: Any) -> None:
    """Write an object, all of it or nothing.

    Raises:
        NotSavedError: a part of it is neither plain data, nor an array, nor a class of this
            library.
    """
    path = as_path("path", path)
    arrays: dict[str, np.ndarray] = {}
    header = {"format": "sdntk", "version": VERSION, "value": _encode(value, arrays)}
    arrays[_HEADER] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    _atomic.replace(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def load(path: str | Path, classes: Mapping[str, type]) -> Any:
    """The object in a file.

    Args:
        path: the file.
        classes: those that may be in it, by name.

    Raises:
        FileNotFoundError: there is none. ValueError: it holds something else, or is damaged; or its
            numbers are in float64, and x64 is off.
    """
    path = as_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"path {path} holds no file.")
    try:
        _require_sizes(path)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            header = json.loads(bytes(file[_HEADER]))
            if header.get("format") != "sdntk" or header.get("version") != VERSION:
                raise ValueError(f"its format is {header.get('format')} {header.get('version')}")
            return _decode(header["value"], file, classes)
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"path {path} does not hold what sdntk has saved, or is damaged: {error}."
        ) from None


def _require_sizes(path: Path) -> None:
    """Refuse what is larger than its file: compressed data, and arrays that only claim a size."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its part {member.filename} is compressed")
            with archive.open(member) as stream:
                np.lib.format.read_magic(stream)
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                size = math.prod(shape) * dtype.itemsize
                if stream.tell() + size != member.file_size:
                    raise ValueError(f"its part {member.filename} has another size than it says")


def _encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, enum.Enum):
        return {"enum": type(value).__name__, "value": value.value}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        encoded = _encode_array(np.asarray(value), arrays)
        # A kernel's numbers, which the flag jax_enable_x64 has not touched, come back untouched.
        return encoded | {"untouched": True} if isinstance(value, np.ndarray) else encoded
    if type(value) is tuple:
        return {"tuple": [_encode(item, arrays) for item in value]}
    names = field_names(type(value))
    if names is None or not type(value).__module__.startswith("sdntk."):
        raise NotSavedError(f"{value!r}, a {type(value).__name__}, cannot be saved.")
    fields = {name: _encode(getattr(value, name), arrays) for name in names}
    return {"class": type(value).__name__, "fields": fields}


_PLAIN = (bool, int, float, str)


def _encode_array(array: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    name = f"array{len(arrays)}"
    if array.dtype.kind in "fiub":
        arrays[name] = array
        return {"array": name}
    # NumPy's format does not know bfloat16 and its like: their bytes, and their name.
    arrays[name] = array.view(f"u{array.dtype.itemsize}")
    return {"array": name, "dtype": array.dtype.name}


def _decode(value: Any, arrays: Mapping[str, np.ndarray], classes: Mapping[str, type]) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        array = arrays[value["array"]]
        array = array.view(jnp.dtype(value["dtype"])) if "dtype" in value else array
        return array if value.get("untouched") is True else _as_jax(array)
    if "tuple" in value:
        return tuple(_decode(item, arrays, classes) for item in value["tuple"])
    kind = classes[value["enum"] if "enum" in value else value["class"]]
    if "enum" in value:
        return kind(value["value"])
    names = _RENAMED.get(kind.__name__, {})
    fields = {names.get(name, name): field for name, field in value["fields"].items()}
    missing = set(field_names(kind) or ()) ^ set(fields)
    if not missing <= _FIELDS_SINCE.get(kind.__name__, set()):
        raise ValueError(f"the fields of {kind.__name__} are others")
    return kind(**{name: _decode(field, arrays, classes) for name, field in fields.items()})


def _as_jax(array: np.ndarray) -> Any:
    if array.dtype != jax.dtypes.canonicalize_dtype(array.dtype) and array.dtype.kind == "f":
        raise ValueError(
            f"its numbers are {array.dtype}, which needs x64: jax.config.update("
            "'jax_enable_x64', True) before anything else"
        )
    return jnp.asarray(array)


def field_names(kind: type) -> list[str] | None:
    """The names of the fields of a dataclass or NamedTuple that files hold; None for any other
    class.
    """
    if dataclasses.is_dataclass(kind):
        return [
            field.name
            for field in dataclasses.fields(kind)
            if field.init and not field.metadata.get("not_saved")
        ]
    return list(getattr(kind, "_fields", ())) or None
