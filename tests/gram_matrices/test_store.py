"""Gram matrices on disk.

Killed at any moment: a process is killed ten times at random moments, and the next one must end
with the bits of an undisturbed run. Refusals: every way in which a store can be another's, by its
name. Damage: bits flipped, files cut, emptied or gone. Works wherever an array does: hypothesis
over slices against NumPy, and every function that takes a Gram matrix.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import sdntk
import sdntk.architectures
from sdntk.gram_matrices.tile_files import TileFiles
from sdntk.kernels import matern, rbf


def points(n, d=3, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, d))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return sdntk.gram(
        rbf(1.0), points(23), path=tmp_path_factory.mktemp("store") / "G", block_size=5
    )


@pytest.fixture(scope="module")
def cross(tmp_path_factory):
    return sdntk.gram(
        rbf(1.0),
        points(9, seed=1),
        points(23),
        path=tmp_path_factory.mktemp("store") / "C",
        block_size=5,
    )


def tile_files(path):
    return sorted(file for file in path.glob("c/*/*") if file.name.isdigit())


RUN = """
    import os, pathlib, signal, sys, threading, time
    import jax
    jax.config.update("jax_enable_x64", True)
    import sdntk
    x = jax.random.normal(jax.random.key(0), (403, 3))

    def kill_after(tiles, seconds):  # from inside: a slow tester cannot come too late
        while sum(1 for f in path.glob("c/*/*") if f.name.isdigit()) <= tiles:
            time.sleep(0.0005)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    path, moment = pathlib.Path(sys.argv[1]), [float(number) for number in sys.argv[2:]]
    if moment:
        threading.Thread(target=kill_after, args=moment, daemon=True).start()
    sdntk.gram(sdntk.kernels.rbf(1.0), x, path=path, block_size=10, dtype="float32")
    print("done")
"""


def run(path, *moment):
    command = [sys.executable, "-c", textwrap.dedent(RUN), path, *map(str, moment)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_bits(tmp_path):
    clean, path = tmp_path / "clean", tmp_path / "G"
    assert run(clean).stdout == "done\n"
    total, moments = len(tile_files(clean)), random.Random(2026)
    assert total == 41 * 42 // 2
    for kill in range(10):
        tiles = (kill + moments.random()) * total / 14
        killed = run(path, tiles, moments.uniform(0, 0.003))  # somewhere between two of them
        assert killed.stdout == ""  # it was not done
        assert killed.returncode == -signal.SIGKILL
        assert tiles < len(tile_files(path)) < total
    times = {file: file.stat().st_mtime_ns for file in tile_files(path)}
    assert run(path).stdout == "done\n"
    assert all(
        file.stat().st_mtime_ns == then for file, then in times.items()
    )  # what was done is not done again
    assert not list(path.rglob(".*"))  # nor is anything left of the killed
    names = [file.relative_to(clean) for file in tile_files(clean)]
    assert [file.relative_to(path) for file in tile_files(path)] == names
    for name in [*names, "zarr.json"]:
        assert (path / name).read_bytes() == (clean / name).read_bytes()


def test_on_disk_and_in_memory_are_the_same_bits(store, cross):
    np.testing.assert_array_equal(store, sdntk.gram(rbf(1.0), points(23), block_size=5))
    np.testing.assert_array_equal(
        cross, sdntk.gram(rbf(1.0), points(9, seed=1), points(23), block_size=5)
    )


def test_only_the_upper_triangle_lies_on_disk(store, cross):
    assert len(tile_files(store.path)) == 5 * 6 // 2
    assert len(tile_files(cross.path)) == 2 * 5


indices = st.slices(23) | st.integers(-23, 22)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(rows=indices, columns=indices, kind=st.sampled_from(["both", "row", "ellipsis"]))
def test_slices_are_numpys(store, rows, columns, kind):
    key = {"both": (rows, columns), "row": rows, "ellipsis": (..., columns)}[kind]
    np.testing.assert_array_equal(store[key], np.asarray(store)[key])
    assert np.shape(store[key]) == np.asarray(store)[key].shape


def test_the_handle_looks_like_an_array(store, cross):
    assert (store.shape, store.ndim, store.dtype, len(store), store.nbytes) == (
        (23, 23),
        2,
        np.float64,
        23,
        23 * 23 * 8,
    )
    assert cross.shape == (9, 23)
    assert store[np.array([3, 1])].shape == (2, 23)
    assert isinstance(jnp.asarray(store), jax.Array)
    assert np.asarray(store, np.float32).dtype == np.float32
    ones, dense = jnp.ones(23), np.asarray(store)
    for product in (store @ ones, ones @ store, (2 * store - store) @ np.ones(23)):
        np.testing.assert_allclose(product, dense @ np.ones(23), rtol=1e-13)
    np.testing.assert_array_equal(np.sqrt(store), np.sqrt(dense))
    with pytest.raises(IndexError, match="index 23 is out of bounds"):
        store[23]
    with pytest.raises(ValueError, match="copy"):
        np.asarray(store, copy=False)


def test_the_handle_works_wherever_a_gram_matrix_does(store, cross):
    y = jnp.sin(points(23)[:, 0])
    dense, dense_cross = jnp.asarray(store), jnp.asarray(cross)
    on_disk = sdntk.distill_spectrum(sdntk.decompose(store), y, tolerance=0.05, rounds=4)
    in_memory = sdntk.distill_spectrum(sdntk.decompose(dense), y, tolerance=0.05, rounds=4)
    np.testing.assert_array_equal(on_disk.fitted, in_memory.fitted)
    np.testing.assert_array_equal(on_disk.predict_from(cross), in_memory.predict_from(dense_cross))


def test_a_finished_store_is_not_computed_again(store):
    calls = []

    def counted(x, t):
        calls.append(x.shape)
        return rbf(1.0)(x, t)

    again = sdntk.gram(counted, points(23), path=store.path)
    assert calls == [(3, 3)]  # the few points by which it knows its kernel
    np.testing.assert_array_equal(again, store)
    np.testing.assert_array_equal(sdntk.GramStore.open(str(store.path)), store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": points(23, seed=5)}, "other data"),
        ({"x": points(22)}, "other data"),
        ({"x2": points(23)}, "other data"),
        ({"kernel": rbf(1.001)}, "another kernel"),
        ({"kernel": matern(0.5, 1.0)}, "another kernel"),
        ({"dtype": jnp.float32}, "another dtype"),
        ({"x": points(23).astype(jnp.float32)}, "other data"),
        ({"kernel": lambda x, t: rbf(1.0)(x, t).astype(jnp.float32)}, "another dtype"),
        ({"block_size": 6}, "another block_size"),
    ],
)
def test_a_store_of_something_else_is_refused_by_name(store, change, message):
    arguments = {"kernel": rbf(1.0), "x": points(23), "path": store.path} | change
    before = [(file, file.stat().st_mtime_ns) for file in tile_files(store.path)]
    with pytest.raises(ValueError, match=rf"holds a Gram matrix of {message}"):
        sdntk.gram(**arguments)
    assert [(file, file.stat().st_mtime_ns) for file in tile_files(store.path)] == before


def test_a_dtype_is_part_of_the_store(tmp_path):
    sdntk.gram(rbf(1.0), points(23), path=tmp_path / "G", dtype=jnp.float32)
    with pytest.raises(
        ValueError, match=r"another dtype \(float32, computed in float64; now float64"
    ):
        sdntk.gram(rbf(1.0), points(23), path=tmp_path / "G")
    assert sdntk.GramStore.open(tmp_path / "G").dtype == np.float32


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[17] ^= 4
    file.write_bytes(content)


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:40]),
    "empty": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tile_is_found_and_computed_again(store, tmp_path, damage):
    path = tmp_path / "G"
    shutil.copytree(store.path, path)
    DAMAGES[damage](path / "c" / "1" / "3")
    broken = sdntk.GramStore.open(path)
    with pytest.raises(ValueError, match=r"tile \(1, 3\) of .* is damaged .*computes it again"):
        np.asarray(broken)
    np.testing.assert_array_equal(broken[:5, :], store[:5, :])  # what is whole can be read
    with pytest.warns(UserWarning, match=r"1 damaged tiles .*\(1, 3\)"):
        mended = sdntk.gram(rbf(1.0), points(23), path=path)
    np.testing.assert_array_equal(mended, store)


def test_a_checksum_is_computed_again_only_of_a_file_that_has_changed(store, tmp_path, monkeypatch):
    path = tmp_path / "G"
    shutil.copytree(store.path, path)
    opened, checked = sdntk.GramStore.open(path), []
    check = TileFiles._check
    monkeypatch.setattr(
        TileFiles, "_check", lambda *arguments: checked.append(arguments[2]) or check(*arguments)
    )
    first = np.asarray(opened)
    assert sorted(checked) == opened.tiling.tiles
    checked.clear()
    np.testing.assert_array_equal(np.asarray(opened), first)
    assert checked == []
    # Changed in place, with its old times.
    file = path / "c" / "1" / "3"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    with file.open("r+b") as opened_file:
        opened_file.seek(-1, 2)
        last = opened_file.read(1)
        opened_file.seek(-1, 2)
        opened_file.write(bytes([last[0] ^ 1]))
    os.utime(file, ns=times)
    with pytest.raises(ValueError, match=r"tile \(1, 3\) of .* is damaged"):
        np.asarray(opened)


def test_on_disk_and_in_memory_tiles_kept_in_float32_have_the_same_bits(tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 4))
    kernel = sdntk.kernels.ntk(sdntk.architectures.fully_connected(2))
    store = sdntk.gram(kernel, x, path=tmp_path / "G", block_size=70, dtype="float32")
    columns = jnp.eye(300)[:, ::50]
    kept = sdntk.kernel_operator(kernel, x, keep=True, block_size=70, dtype="float32")
    np.testing.assert_array_equal(np.asarray(store)[:, ::50], kept(columns))
    in_double = sdntk.gram(kernel, x)
    eps = np.finfo(np.float32).eps * np.linalg.norm(in_double, 2)
    assert 0 < np.linalg.norm(np.asarray(store) - in_double, 2) <= eps
    assert not np.array_equal(store, in_double.astype(np.float32))  # computed in float32, too


def test_a_missing_tile_is_computed(store, tmp_path):
    path = tmp_path / "G"
    shutil.copytree(store.path, path)
    (path / "c" / "0" / "2").unlink()
    with pytest.raises(ValueError, match=r"tile \(0, 2\) of .* is missing"):
        sdntk.GramStore.open(path)[10:12, 0]  # asked for as its transpose
    np.testing.assert_array_equal(sdntk.gram(rbf(1.0), points(23), path=path), store)


def test_folders_that_hold_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        sdntk.gram(rbf(1.0), points(5), path=tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no Gram matrix"):
        sdntk.GramStore.open(tmp_path)
    for content in ("{", "[]", "{}", json.dumps({"attributes": {"sdntk": {"symmetric": True}}})):
        (tmp_path / "zarr.json").write_text(content)
        with pytest.raises(ValueError, match="holds something else"):
            sdntk.GramStore.open(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        sdntk.gram(rbf(1.0), points(5), path=tmp_path / "notes.txt")


def test_a_run_that_fails_keeps_what_it_has_done(tmp_path):
    class Stop(Exception):
        pass

    calls = []

    def stops(x, t):
        calls.append(None)
        if len(calls) > 12:
            raise Stop
        return rbf(1.0)(x, t)

    with pytest.raises(Stop):
        sdntk.gram(stops, points(40), path=tmp_path / "G", block_size=5)
    assert len(tile_files(tmp_path / "G")) >= 5
    np.testing.assert_array_equal(
        sdntk.gram(rbf(1.0), points(40), path=tmp_path / "G"),
        sdntk.gram(rbf(1.0), points(40), block_size=5),
    )


def test_kernels_that_agree_on_distant_points_are_told_apart(tmp_path):
    line = jnp.linspace(0, 1, 300)
    sdntk.gram(rbf(0.01), line, path=tmp_path / "G")
    with pytest.raises(ValueError, match="another kernel"):
        sdntk.gram(rbf(0.02), line, path=tmp_path / "G")


def test_the_same_call_with_a_block_size_above_the_size_goes_on(tmp_path):
    for _ in range(2):
        stored = sdntk.gram(rbf(1.0), points(23), path=tmp_path / "G", block_size=50)
    assert stored.block_size == 23
    wide = sdntk.gram(rbf(1.0), points(3, seed=1), points(23), path=tmp_path / "C", block_size=10)
    assert [file.stat().st_size for file in tile_files(wide.path)] == [
        48 + 3 * 10 * 8
    ] * 3  # and no more room than that


def test_bad_kernels_leave_no_store_behind(tmp_path):
    with pytest.raises(ValueError, match="kernel's values must be finite"):
        sdntk.gram(lambda x, t: rbf(1.0)(x, t) * jnp.nan, points(23), path=tmp_path / "G")
    with pytest.raises(ValueError, match="path must be left out where values are traced"):
        jax.jit(lambda x: sdntk.gram(rbf(1.0), x, path=tmp_path / "G").shape)(points(23))
    with pytest.raises(ValueError, match="traced"):
        jax.jit(
            lambda s: (
                sdntk.gram(lambda x, t: s * rbf(1.0)(x, t), points(23), path=tmp_path / "G").shape
            )
        )(1.0)
    assert not (tmp_path / "G").exists()


def test_operators_under_jit_and_in_place(store):
    v = jnp.arange(23.0)
    for product in (lambda v: store @ v, lambda v: v @ store):
        np.testing.assert_allclose(
            jax.jit(product)(v), np.asarray(store) @ np.arange(23.0), rtol=1e-13
        )
    with pytest.raises(TypeError, match="cannot be written to"):
        store += 1
    np.testing.assert_array_equal(store.T, np.asarray(store).T)
    assert store.size == 23 * 23
