"""Anyone's data set in an .npz file.

Must hold: what was saved comes back; nothing in a file runs; bad files, shapes, classes and names
are refused with the array named; what a file claims is checked before it is read.
"""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from sdntk import datasets

RNG = np.random.default_rng(0)


def arrays(**others):
    x, x_test = RNG.normal(size=(6, 5)), RNG.normal(size=(4, 5))
    given = {
        "x_train": x,
        "y_train": np.arange(6) % 3,
        "x_test": x_test,
        "y_test": np.arange(4) % 3,
    }
    return {**given, **others}


def saved(folder, **others):
    given = {name: a for name, a in arrays(**others).items() if a is not None}
    path = folder / "mine.npz"
    np.savez(path, **given)
    return path


@pytest.mark.parametrize("shape", [(5,), (4, 3), (4, 3, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.float64])
def test_what_was_saved_comes_back(tmp_path, shape, dtype):
    x, x_test = (RNG.integers(0, 100, (n, *shape)).astype(dtype) for n in (6, 4))
    data = datasets.from_npz(saved(tmp_path, x_train=x, x_test=x_test))
    assert data.name == "mine"
    assert data.num_classes == 3
    for read, given in ((data.train_images, x), (data.test_images, x_test)):
        assert read.ndim == 4
        np.testing.assert_array_equal(read.reshape(given.shape), given.astype(read.dtype))
    np.testing.assert_array_equal(data.train_labels, np.arange(6) % 3)


def test_features_are_standardised_each_for_itself(tmp_path):
    x = RNG.normal(size=(50, 3)) * [1, 10, 100] + [0, 5, -50]
    data = datasets.from_npz(saved(tmp_path, x_train=x, y_train=np.arange(50) % 3, x_test=x[:4]))
    (standard,) = datasets.standardise(data.train_images)
    np.testing.assert_allclose(standard.mean(0).ravel(), 0, atol=1e-6)
    np.testing.assert_allclose(standard.std(0).ravel(), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"y_test": None}, "it lacks y_test"),
        ({"x_train": None, "y_test": None}, "it lacks x_train and y_test"),
        ({"x_train": RNG.normal(size=6)}, r"x_train must have shape \(n, p\)"),
        ({"x_train": RNG.normal(size=(6, 2, 2, 2, 2))}, "x_train must have shape"),
        ({"x_train": np.zeros((6, 0))}, "x_train must have shape"),
        ({"x_test": RNG.normal(size=(4, 6))}, "x_train and x_test must hold points of one shape"),
        ({"x_train": np.full((6, 5), np.nan)}, "mine.npz: train_images must"),
        ({"x_train": np.full((6, 5), 1e300)}, "mine.npz: train_images must"),
        ({"x_train": np.array([["a"] * 5] * 6)}, "x_train must hold numbers"),
        ({"x_train": np.array([[None] * 5] * 6)}, "x_train must hold numbers"),
        ({"y_train": np.arange(5)}, "y_train must hold a class for each of the 6 points"),
        ({"y_train": np.full(6, -1)}, "y_train must"),
        ({"y_train": np.full(6, 0.5)}, "y_train must"),
        ({"y_train": np.full(6, 2**40)}, "y_train"),
        ({"y_train": np.full(6, 10**6)}, "y_train and y_test must be from 2 to"),
        ({"y_train": np.eye(6)}, "y_train must"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(4, int)}, "from 2 to"),
    ],
)
def test_another_content_is_refused_by_name(tmp_path, others, message):
    with pytest.raises(ValueError, match=message):
        datasets.from_npz(saved(tmp_path, **others))


def claiming(shape, dtype="<f8"):
    """An .npy file of a header only."""
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


CRAFTED = {
    "more than there is": claiming((10**12, 1000)),
    "a negative shape": claiming((-1, 5)),
    "a shape of a billion axes": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b"(" * 60000,
    "no number": claiming((6, 5), dtype="|O"),
    "code": claiming((6, 5), dtype="__import__('os')"),
    "nothing": b"",
    "junk": bytes(range(256)),
    "an unknown version": b"\x93NUMPY\x09\x00" + claiming((6, 5))[8:],
    "a pickle": npy(np.array([print], dtype=object)),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_files_are_refused_and_nothing_large_is_allocated(tmp_path, what):
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays().items():
            archive.writestr(f"{name}.npy", CRAFTED[what] if name == "x_train" else npy(array))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"dataset must be an \.npz file"):
            datasets.from_npz(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_damaged_archive_is_refused_or_says_the_same(tmp_path):
    """A byte is changed here and there: of what is read, checksums tell."""
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays().items():
            archive.writestr(f"{name}.npy", npy(array))
    whole, content = datasets.from_npz(path), path.read_bytes()
    refused = 0
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        path.write_bytes(bytes(damaged))
        try:
            data = datasets.from_npz(path)
        except ValueError as error:
            refused += "mine.npz" in str(error)
        else:  # a date, or attributes
            refused += (data.train_images == whole.train_images).all()
    assert refused == len(range(0, len(content), 7))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 1000])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"dataset must be an \.npz file with the arrays"):
        datasets.from_npz(path)
    with pytest.raises(FileNotFoundError, match="there is none at"):
        datasets.from_npz(tmp_path / "other.npz")
