"""Gram matrices on disk that somebody else may have changed; tests/attack/test_stores.py tries many
more.

Must hold: a tile stands for no other, of the same store or another one; a description other than
what this library writes is refused by name; what lies elsewhere is not written to through links; a
slice costs what its own tiles cost; two processes that begin one store use one description; other
readers of zarr see the same values.
"""

import itertools
import json
import os
import shutil
import stat
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore

import sdntk
from sdntk.gram_matrices import store_writing
from sdntk.gram_matrices.tiles import Rectangle, Tiling
from sdntk.kernels import matern, rbf

X = jax.random.normal(jax.random.key(0), (23, 3))


def stored(path, kernel=rbf(1.0), x2=None, **options):  # noqa: B008 (a function)
    return sdntk.gram(kernel, X, x2, path=path, **({"block_size": 5} | options))


def swap(one, other):
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def test_swapped_tiles_are_found_and_computed_again(tmp_path):
    store = stored(tmp_path / "G")
    truth = np.asarray(store)
    swap(store.path / "c/0/1", store.path / "c/1/2")
    with pytest.raises(ValueError, match=r"tile \(0, 1\) of .* is damaged"):
        np.asarray(store)
    with pytest.warns(UserWarning, match=r"2 damaged tiles .*\(0, 1\), \(1, 2\)"):
        np.testing.assert_array_equal(stored(store.path), truth)


def test_a_tile_of_another_store_is_found(tmp_path):
    store, other = stored(tmp_path / "G"), stored(tmp_path / "H", matern(0.5, 1.0))
    shutil.copyfile(other.path / "c/0/1", store.path / "c/0/1")
    with pytest.raises(ValueError, match=r"tile \(0, 1\) of .* is damaged"):
        np.asarray(store)
    np.testing.assert_array_equal(store[5:, 5:], np.asarray(sdntk.gram(rbf(1.0), X))[5:, 5:])


def add_a_transpose(metadata):
    metadata["codecs"].insert(0, {"name": "transpose", "configuration": {"order": [1, 0]}})


CHANGES = {
    "a transpose": (add_a_transpose, "codecs"),
    "int64": (lambda metadata: metadata.update(data_type="int64"), "data_type"),
    "complex64": (lambda metadata: metadata.update(data_type="complex64"), "data_type"),
    "a huge matrix": (lambda metadata: metadata.update(shape=[10**9, 10**9]), "tiles"),
    "an older format": (lambda m: m["attributes"]["sdntk"].pop("version"), "another version"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_description_is_refused_by_name(tmp_path, case):
    change, words = CHANGES[case]
    file = stored(tmp_path / "G").path / "zarr.json"
    metadata = json.loads(file.read_bytes())
    change(metadata)
    file.write_text(json.dumps(metadata))
    for call in (sdntk.GramStore.open, stored):
        with pytest.raises(ValueError, match=rf"holds something else .*{words}"):
            call(tmp_path / "G")


def test_deep_json_is_refused_by_name(tmp_path):
    file = stored(tmp_path / "G").path / "zarr.json"
    for depth in (30_000, 100_000):
        file.write_text("[" * depth + "]" * depth)
        with pytest.raises(ValueError, match="holds something else"):
            sdntk.GramStore.open(tmp_path / "G")


def test_a_slice_looks_up_only_its_tiles(tmp_path, monkeypatch):
    store = stored(tmp_path / "G", block_size=1)
    looked_up = []
    rectangle = Tiling.rectangle
    monkeypatch.setattr(
        Tiling, "rectangle", lambda self, tile: looked_up.append(tile) or rectangle(self, tile)
    )
    truth = np.asarray(sdntk.gram(rbf(1.0), X, block_size=1))
    looked_up.clear()
    np.testing.assert_array_equal(store[20:22, 3:5], truth[20:22, 3:5])
    assert set(looked_up) == {(3, 20), (3, 21), (4, 20), (4, 21)}


@pytest.mark.parametrize("symmetric", [True, False])
def test_tiles_that_a_rectangle_touches(symmetric):
    tiling = Tiling((23, 23), 5, symmetric)
    edges = [(0, 1), (3, 12), (4, 6), (5, 10), (11, 23), (0, 23)]
    for rows in edges:
        for columns in edges:
            wanted = Rectangle(slice(*rows), slice(*columns))
            touched = list(tiling.touching(wanted))
            assert sorted(touched) == [
                tile
                for tile in tiling.tiles
                if any(place.rectangle.overlap(wanted) for place in tiling.places(tile))
            ]
    assert list(tiling.touching(tiling.whole)) == tiling.tiles
    assert tiling.num_tiles == len(tiling.tiles)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_other_readers_of_zarr_see_the_same_values(tmp_path, dtype):
    store = stored(tmp_path / "G", x2=X[:7], dtype=dtype)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store.path)}}
    theirs = tensorstore.open(spec, open=True).result().read().result()
    np.testing.assert_array_equal(theirs.astype(float), np.asarray(store).astype(float))
    assert theirs.dtype == store.dtype


def test_nothing_is_written_through_links(tmp_path):
    store, outside = stored(tmp_path / "G"), tmp_path / "outside"
    shutil.move(store.path / "c/1", outside)
    (store.path / "c/1").symlink_to(outside)
    (outside / "3").unlink()
    with pytest.raises(ValueError, match="c/1 is in the way"):
        stored(store.path)
    assert not (outside / "3").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("zarr.json", "holds something else .*Permission denied"), ("3", "is damaged .*Permission")],
)
def test_files_that_may_not_be_read(tmp_path, monkeypatch, name, words):
    store, opened = stored(tmp_path / "G"), Path.open

    def refuse(path, *arguments, **options):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=words):
        np.asarray(sdntk.GramStore.open(store.path))


def test_a_full_disk_is_named_and_what_was_done_stays(tmp_path, monkeypatch):
    synchronise, calls = os.fsync, itertools.count()

    def disk_is_full(handle):
        if stat.S_ISREG(os.fstat(handle).st_mode) and next(calls) > 5:
            raise OSError(28, "No space left on device")
        synchronise(handle)

    monkeypatch.setattr(os, "fsync", disk_is_full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/G/c/\d/\d'"):
        stored(tmp_path / "G")
    monkeypatch.undo()
    assert len(list((tmp_path / "G").glob("c/*/*"))) == 5
    np.testing.assert_array_equal(stored(tmp_path / "G"), sdntk.gram(rbf(1.0), X, block_size=5))


def test_a_path_with_dots(tmp_path):
    truth = np.asarray(stored(tmp_path / "other" / ".." / "G"))
    np.testing.assert_array_equal(stored(tmp_path / "G"), truth)


def test_a_handle_outlives_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = stored("G")
    truth = np.asarray(store)
    monkeypatch.chdir(tmp_path.parent)
    np.testing.assert_array_equal(store, truth)


def test_of_two_that_begin_a_store_one_describes_it(tmp_path, monkeypatch):
    """The second sees no store when it looks, and a whole one when it writes."""
    store = stored(tmp_path / "G")
    truth = np.asarray(store)

    def seen_too_late():
        answers = iter([False])
        monkeypatch.setattr(store_writing, "has_store", lambda _: next(answers, True))

    seen_too_late()
    with pytest.raises(ValueError, match=r"another block_size \(5"):
        stored(store.path, block_size=6)
    seen_too_late()
    np.testing.assert_array_equal(stored(store.path, block_size=None), truth)


def test_what_killed_processes_left_is_swept_up(tmp_path):
    store = stored(tmp_path / "G")
    left, mine = (store.path / "c/1" / name for name in (f".3.{'0a' * 16}", ".3.mine"))
    for file in (left, mine):
        file.write_bytes(b"half of it")
    stored(store.path)
    assert left.exists()  # nothing was to be done: it may be another process's
    (store.path / "c/1/3").unlink()
    stored(store.path)
    assert not left.exists()
    assert mine.exists()


def test_more_files_than_a_disk_should_hold(tmp_path):
    x = np.zeros((3000, 1))
    with pytest.raises(ValueError, match=r"block_size is too small: .* 4,501,500 tiles"):
        sdntk.gram(rbf(1.0), x, path=tmp_path / "G", block_size=1)
    assert not (tmp_path / "G").exists()
