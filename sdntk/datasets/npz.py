"""Anyone's data set in one file of NumPy's .npz format. The file is not trusted: nothing in it
runs, and what it claims is checked before it is read.
"""

import math
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from sdntk._arguments import MOST_CLASSES, as_path
from sdntk.datasets._checks import as_class_labels
from sdntk.datasets.images import Dataset

#: More than any data set that fits into the memory of the machines that this is for, in bytes.
MOST_BYTES = 20 * 2**30
_NAMES = ("x_train", "y_train", "x_test", "y_test")


def from_npz(path: str | Path) -> Dataset:
    """The data set in a file with the arrays x_train, y_train, x_test and y_test.

    Args:
        path: the file. Points are real numbers: images of shape (n, H, W, C) or (n, H, W), or rows
            of features, (n, p). Labels are integers, shape (n,): classes 0 .. Q - 1.

    Returns:
        A :class:`Dataset`, named after the file. Features become images of one pixel with a channel
        for each, so that each is standardised for itself.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is damaged, or holds something
            else; the message names the array and what would be right.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "mine.npz"
        ...     x, y = np.eye(4), np.arange(4) % 2
        ...     np.savez(file, x_train=x, y_train=y, x_test=x, y_test=y)
        ...     from_npz(file).train_images.shape
        (4, 1, 1, 4)
    """
    path = as_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"dataset must be a file; there is none at {path}.")
    arrays = _arrays(path)
    classes = int(max(_labels(path, arrays, part).max() for part in ("train", "test"))) + 1
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(
            f"{path}: y_train and y_test must be from 2 to {MOST_CLASSES:,} classes 0, 1, ..; "
            f"their largest is {classes - 1:,}."
        )
    parts = {}
    for part in ("train", "test"):
        parts[f"{part}_labels"] = _labels(path, arrays, part, classes)
        parts[f"{part}_images"] = _images(path, f"x_{part}", arrays[f"x_{part}"])
    shapes = {images.shape[1:] for name, images in parts.items() if name.endswith("images")}
    if len(shapes) > 1:
        raise ValueError(f"{path}: x_train and x_test must hold points of one shape.")
    try:
        return Dataset(path.stem, class_names=tuple(map(str, range(classes))), **parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            missing = [name for name in _NAMES if name not in sizes]
            if missing:
                raise ValueError(f"it lacks {' and '.join(missing)}")
            for name in _NAMES:
                _check_header(name, archive, sizes[name])
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in _NAMES}
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"dataset must be an .npz file with the arrays {', '.join(_NAMES)}; {path} is not: "
            f"{str(error).rstrip('.')}."
        ) from None


def _check_header(name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuse what claims more than it has, or is no array of numbers, before it is read."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = read[version](stream)
    if dtype.kind not in "fiu":
        raise ValueError(f"{name} must hold numbers; its dtype is {dtype}")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > member.file_size or claimed > MOST_BYTES:
        raise ValueError(f"{name} claims {claimed:,} bytes")


def _labels(
    path: Path, arrays: dict[str, np.ndarray], part: str, classes: int | None = None
) -> Int32[np.ndarray, " n"]:
    name = f"y_{part}"
    try:
        labels = as_class_labels(name, arrays[name], classes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if len(labels) != len(arrays[f"x_{part}"]):
        raise ValueError(
            f"{path}: {name} must hold a class for each of the {len(arrays[f'x_{part}'])} points "
            f"of x_{part}; it holds {len(labels)}."
        )
    return labels.astype(np.int32)


def _images(path: Path, name: str, points: np.ndarray) -> np.ndarray:
    """Points as images: (n, H, W, C)."""
    if points.ndim == 2:
        points = points[:, None, None]
    elif points.ndim == 3:
        points = points[..., None]
    if points.ndim != 4 or points.size == 0:
        raise ValueError(
            f"{path}: {name} must have shape (n, p), (n, H, W) or (n, H, W, C); its shape is "
            f"{points.shape}."
        )
    with np.errstate(over="ignore"):  # inf is refused with the rest
        return points if points.dtype == np.uint8 else points.astype(np.float32)
