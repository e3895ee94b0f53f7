"""The pass of a Nystrom spectrum on many devices, in two processes, and killed.

Must hold: Phi Phi^T and Phi y to 1e-13 of their largest entry, and predictions to 1e-8, on 1
device, on 8, and in 2 processes; a pass that is killed five times ends with the same bits; files
of other points, landmarks or blocks, and damaged ones, are refused and left alone.
"""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import with_virtual_devices

import sdntk
from sdntk import distill_spectrum, kernels, nystrom
from sdntk.spectra import nystrom_sums

KERNEL = kernels.rbf(2.0)
BLOCK, NUM_BLOCKS = 64, 30

POINTS = f"""
    import sys
    import jax
    jax.config.update("jax_enable_x64", True)
    import numpy as np

    def blocks():
        rng = np.random.default_rng(0)
        for _ in range({NUM_BLOCKS}):
            x = rng.normal(size=({BLOCK}, 4))
            yield x, np.stack([np.sin(x[:, 0]), x[:, 1]], axis=1) + rng.normal(size=({BLOCK}, 2))
"""

PASS = """
    folder, index, address = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if address:
        jax.distributed.initialize(address, num_processes=2, process_id=index)
    import sdntk
    from sdntk.gram_matrices.point_blocks import PointBlocks
    from sdntk.spectra.landmarks import landmarks_at
    from sdntk.spectra.nystrom_sums import sum_over_points

    kernel = sdntk.kernels.rbf(2.0)
    first = next(blocks())[0]
    chosen = landmarks_at(kernel, first[:50])
    used = set()
    def counted(x, t):
        values = kernel(x, t)
        used.update(values.devices())
        return values
    source = PointBlocks(counted, blocks, None)
    options = {'block_size': 64, 'dtype': None, 'path': None}
    sums, labels = sum_over_points(source, chosen, chosen.points, **options)
    spectrum = sdntk.nystrom(kernel, blocks, landmarks=first[:50], block_size=64)
    run = sdntk.distill_spectrum(spectrum, spectrum.labels, multiplier=1e-4, rounds=5)
    cross = sdntk.gram(kernel, first, spectrum.landmarks)
    np.savez(
        f"{folder}/{index}.npz", gram=sums.gram, labels=sums.labels, devices=len(used),
        predictions=run.predict_from(cross), fitted=run.fitted,
    )
"""


def start(program, *arguments, devices=1, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(POINTS) + textwrap.dedent(program), *arguments],
        env=with_virtual_devices(devices) | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes):
    try:
        told = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), told


@pytest.mark.slow
def test_many_devices_and_processes_give_the_sums_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    gloo = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    finish([start(PASS, str(tmp_path), "0", "")])
    one = dict(np.load(tmp_path / "0.npz"))
    finish([start(PASS, str(tmp_path), "8", "", devices=8)])
    finish([start(PASS, str(tmp_path), str(index), address, **gloo) for index in range(2)])
    found = [dict(np.load(tmp_path / f"{index}.npz")) for index in (8, 0, 1)]
    assert [int(each["devices"]) for each in found] == [8, 1, 1]
    for other in found:
        for name in ("gram", "labels"):
            np.testing.assert_allclose(
                other[name], one[name], rtol=0, atol=1e-13 * np.abs(one[name]).max()
            )
        for name in ("predictions", "fitted"):
            np.testing.assert_allclose(other[name], one[name], rtol=0, atol=1e-8)


RESUMED = """
    import time
    import sdntk
    from sdntk.spectra import nystrom_sums

    nystrom_sums.SECONDS_BETWEEN_WRITES = 0
    path, pause = sys.argv[1], float(sys.argv[2])
    kernel = sdntk.kernels.rbf(2.0)
    def slow(x, t):
        time.sleep(pause)
        return kernel(x, t)
    landmarks = next(blocks())[0][:50]
    spectrum = sdntk.nystrom(slow, blocks, landmarks=landmarks, block_size=64, path=path)
    np.savez(path + ".end.npz", z=spectrum.rotated_labels, d=spectrum.eigenvalues)
"""


@pytest.mark.slow
def test_a_pass_that_is_killed_five_times_ends_with_the_same_bits(tmp_path):
    finish([start(RESUMED, str(tmp_path / "whole.npz"), "0")])
    path, written = tmp_path / "killed.npz", []
    for _ in range(5):
        process = start(RESUMED, str(path), "0.1")
        before, deadline = _state(path), time.monotonic() + 120
        while _state(path) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.15)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        written.append(_state(path))
    assert len(set(written)) == 5, "each process went further than the one before"
    finish([start(RESUMED, str(path), "0")])
    whole, killed = (np.load(f"{tmp_path}/{name}.npz.end.npz") for name in ("whole", "killed"))
    for name in ("z", "d"):
        np.testing.assert_array_equal(killed[name], whole[name])


def _state(path):
    return path.stat().st_mtime_ns if path.exists() else None


# ---- files of the sums ----


def points_and_labels(num=300):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(num, 3))
    return x, x[:, 0] + rng.normal(size=num)


def test_a_finished_pass_is_not_repeated(tmp_path):
    x, y = points_and_labels()
    path = tmp_path / "sums.npz"
    calls = []

    def counted(a, b):
        calls.append(len(a))
        return KERNEL(a, b)

    first = nystrom(counted, x, y, landmarks=x[:20], block_size=50, path=path)
    before = len(calls)
    again = nystrom(counted, x, y, landmarks=x[:20], block_size=50, path=path)
    assert len(calls) - before < before - 5, "only landmarks and the sample"
    np.testing.assert_array_equal(again.rotated_labels, first.rotated_labels)
    new = np.concatenate([x, x[:7] + 1])
    longer = nystrom(
        counted, new, np.concatenate([y, y[:7]]), landmarks=x[:20], block_size=50, path=path
    )
    other = nystrom(KERNEL, new, np.concatenate([y, y[:7]]), landmarks=x[:20], block_size=50)
    np.testing.assert_array_equal(longer.rotated_labels, other.rotated_labels)


@pytest.mark.parametrize("changed", ["x", "y", "landmarks", "block_size", "kernel", "fewer"])
def test_files_of_another_pass_are_refused(tmp_path, changed):
    x, y = points_and_labels()
    given = {"kernel": KERNEL, "x": x, "y": y, "landmarks": x[:20], "block_size": 50}
    path = tmp_path / "sums.npz"

    def run(given):
        given = dict(given)
        return nystrom(given.pop("kernel"), given.pop("x"), given.pop("y"), path=path, **given)

    run(given)
    kept = path.read_bytes()
    others = {
        "x": {"x": x + 1e-9 * (np.arange(300)[:, None] == 7)},
        "y": {"y": np.where(np.arange(300) == 299, 0, y)},
        "landmarks": {"landmarks": x[:21]},
        "block_size": {"block_size": 60},
        "kernel": {"kernel": kernels.rbf(2.1)},
        "fewer": {"x": x[:200], "y": y[:200]},
    }
    with pytest.raises(ValueError, match=r"path .*sums\.npz holds"):
        run(given | others[changed])
    assert path.read_bytes() == kept


def test_damaged_files_are_refused(tmp_path):
    x, y = points_and_labels()
    path = tmp_path / "sums.npz"
    nystrom(KERNEL, x, y, landmarks=x[:20], block_size=50, path=path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(50):
        where = int(rng.integers(len(whole)))
        path.write_bytes(whole[:where] + bytes([whole[where] ^ 255]) + whole[where + 1 :])
        try:
            found = nystrom(KERNEL, x, y, landmarks=x[:20], block_size=50, path=path)
        except ValueError as error:
            assert "path" in str(error)  # noqa: PT017 (or it passes with the right bits)
        else:
            expected = nystrom(KERNEL, x, y, landmarks=x[:20], block_size=50)
            np.testing.assert_array_equal(found.rotated_labels, expected.rotated_labels)
    for content in (b"", whole[:100], b"not a file"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="path"):
            nystrom(KERNEL, x, y, landmarks=x[:20], block_size=50, path=path)


def test_a_crafted_file_of_other_shapes_is_refused(tmp_path):
    x, y = points_and_labels()
    path = tmp_path / "sums.npz"
    options = {"landmarks": x[:20], "block_size": 50, "path": path}
    nystrom(KERNEL, x, y, **options)
    progress = nystrom_sums.read_progress(path)
    [sums] = progress.sums
    crafted = [
        progress._replace(sums=(sums._replace(gram=sums.gram[:3]),)),
        progress._replace(sums=(sums._replace(labels=sums.labels[:, [0, 0]]),)),
        progress._replace(sums=(sums, sums, sums)),
        progress._replace(sums=("gram",)),
        progress._replace(num_blocks="six"),
        progress._replace(num_blocks=2**70),
        progress._replace(checksum=None),
        progress._replace(sums=(sums._replace(gram=sums.gram.astype(np.float32)),)),
    ]
    for each in crafted:
        sdntk._archive.save(path, each)
        with pytest.raises(ValueError, match="path"):
            nystrom(KERNEL, x, y, **options)


def test_runs_of_resumed_sums_are_those_of_whole_ones(tmp_path):
    x, y = points_and_labels()
    path = tmp_path / "sums.npz"
    spectra = [
        nystrom(KERNEL, x, y, landmarks=x[:20], block_size=50, path=where) for where in (path, path)
    ]
    runs = [distill_spectrum(s, y, multiplier=jnp.asarray(1e-3), rounds=2) for s in spectra]
    np.testing.assert_array_equal(runs[0].fitted, runs[1].fitted)
