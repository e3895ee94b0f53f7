"""Processes that are killed while they write a Gram store, and several that write one at once.

Must hold: the others, or the next one, end well and find no damage, and the files are those of one
undisturbed process, bit by bit.
"""

import random
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import jax
import pytest

import sdntk
from sdntk.kernels import rbf

pytestmark = pytest.mark.slow

WRITE = """
    import os, pathlib, sys, time, jax
    jax.config.update("jax_enable_x64", True)
    import sdntk
    path, gate = map(pathlib.Path, sys.argv[1:])
    x = jax.random.normal(jax.random.key(0), (203, 3))
    gate.with_name(gate.name + f".{os.getpid()}").touch()
    while not gate.exists():
        time.sleep(0.001)
    sdntk.gram(sdntk.kernels.rbf(1.0), x, path=path, block_size=10, dtype="float32")
    print("done")
"""
TILES = 21 * 22 // 2


def start(path, gate):
    """A process that writes the store as soon as there is a gate."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(WRITE), path, gate],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def content(path):
    files = [*path.glob("c/*/[0-9]*"), path / "zarr.json"]
    return {file.relative_to(path): file.read_bytes() for file in files}


def written(path):
    return sum(1 for _ in path.glob("c/*/[0-9]*"))


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    (folder / "gate").touch()
    assert start(folder / "G", folder / "gate").communicate(timeout=300)[0] == "done\n"
    return content(folder / "G")


def begin(folder, number):
    """So many processes that begin to write one store at once."""
    processes = [start(folder / "G", folder / "gate") for _ in range(number)]
    while sum(1 for _ in folder.glob("gate.*")) < number:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    (folder / "gate").touch()
    return processes


def kill(process, path, kill_at):
    """Once there are so many tiles."""
    while written(path) < kill_at and process.poll() is None:
        time.sleep(0.0002)
    process.send_signal(signal.SIGKILL)


def race(folder, number, kill_at):
    """What survivors said, and the store, after several processes have written it, of which the
    first is killed once there are so many tiles (or not at all).
    """
    processes = begin(folder, number)
    if kill_at is not None:
        kill(processes[0], folder / "G", kill_at)
    outcomes = [process.communicate(timeout=300) for process in processes]
    survivors = outcomes[kill_at is not None :]
    return [outcome for outcome in survivors if outcome != ("done\n", "")], content(folder / "G")


@pytest.mark.parametrize("number", [2, 4])
def test_processes_write_one_store(number, tmp_path, clean, size, score):
    assert len(clean) == TILES + 1
    moments, tried, wrong = random.Random(number), size(2, 20), []
    for trial in range(tried):
        folder = tmp_path / str(trial)
        folder.mkdir()
        kill_at = moments.randrange(TILES) if trial % 2 else None
        complaints, files = race(folder, number, kill_at)
        if complaints or files != clean:
            names = sorted(name for name in {*files, *clean} if files.get(name) != clean.get(name))
            wrong.append((trial, kill_at, complaints, names))
    score(f"{number} processes that write one Gram store", tried, len(wrong))
    assert not wrong, wrong


def test_a_killed_process_leaves_whole_tiles(tmp_path, clean, size, score):
    """At any moment, the first few milliseconds included: what is there is whole, and the next
    process ends with the same bits.
    """
    moments, tried, wrong = random.Random(2026), size(2, 20), []
    x = jax.random.normal(jax.random.key(0), (203, 3))
    for trial in range(tried):
        folder = tmp_path / str(trial)
        folder.mkdir()
        kill_at = moments.randrange(TILES)
        (process,) = begin(folder, 1)
        kill(process, folder / "G", kill_at)
        process.communicate(timeout=300)
        before = written(folder / "G")
        with warnings.catch_warnings(record=True) as reports:
            warnings.simplefilter("always")
            sdntk.gram(rbf(1.0), x, path=folder / "G", block_size=10, dtype="float32")
        if reports or content(folder / "G") != clean:
            wrong.append((trial, before, [str(report.message) for report in reports]))
    score("kills of a process that writes a Gram store", tried, len(wrong))
    assert not wrong, wrong
