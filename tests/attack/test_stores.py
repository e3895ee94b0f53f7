"""Gram stores made by somebody else, or damaged.

Must hold of each crafted store, and of random damage to any file of an honest one: it is refused by
name, or its damaged tiles are; ``gram(path=...)`` with the right kernel and points refuses it as
well, or reports the tiles and computes them again, to the same bits. Never a wrong value, another
library's error, more than 100 MB, a hang (after a minute the process ends with a traceback) or a
file outside the store that is changed.
"""

import contextlib
import faulthandler
import re
import shutil
import tracemalloc
import warnings

import jax
import numpy as np
import pytest
from attack.crafted_stores import DESCRIPTION_FILES, DESCRIPTIONS, EMPTY, FORGED, IN_THE_WAY, TILES

import sdntk
from sdntk.kernels import rbf

pytestmark = pytest.mark.slow

X = jax.random.normal(jax.random.key(0), (23, 3))
KERNEL = rbf(1.0)
BYTES, SECONDS = 10**8, 60


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return sdntk.gram(KERNEL, X, path=tmp_path_factory.mktemp("honest") / "G", block_size=5)


@pytest.fixture
def attempt(honest, tmp_path):
    """``attempt(damage, outcome)``: what is wrong about a store so damaged, in words. Memory is
    looked at unless it is left out, which is quicker.
    """
    bystander = tmp_path / "bystander"

    def attempt(damage, outcome, *, memory=True):
        path = tmp_path / "G"
        shutil.copytree(honest.path, path)
        bystander.write_bytes(b"mine")
        damage(path)
        with bounded(memory) as peak:
            wrong = outcome(path)
        if bystander.read_bytes() != b"mine":
            wrong += " a file outside was changed"
        if peak() > BYTES:
            wrong += f" {peak():,} bytes were taken"
        shutil.rmtree(path)
        return wrong

    return attempt


@contextlib.contextmanager
def bounded(memory):
    """Tells the largest number of bytes held at once, NumPy's arrays included even if untouched;
    ends the process if it hangs.
    """
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    if memory:
        tracemalloc.start()
    held = []
    try:
        yield lambda: held[0]
    finally:
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        faulthandler.cancel_dump_traceback_later()


def read(path):
    return np.asarray(sdntk.GramStore.open(path))


def resume(path):
    """The call that made the store. Damaged tiles are reported in a warning."""
    with warnings.catch_warnings(record=True) as reports:
        warnings.simplefilter("always")
        return np.asarray(sdntk.gram(KERNEL, X, path=path)), len(reports)


def refusal(call, path, words="", kinds=(ValueError,)):
    """What is wrong about how a call refuses a store."""
    try:
        call(path)
    except kinds as error:
        named = str(path) in str(error) and re.search(words, str(error))
        return "" if named else f" {error!r}"
    except BaseException as error:
        return f" raised {error!r}"
    return f" was taken by {call.__name__}"


def refused(words, *calls):
    """An outcome: each of the calls refuses the store in these words."""
    return lambda path: "".join(refusal(call, path, words) for call in calls)


def mended(truth):
    """An outcome: not read, but reported and computed again by the call that made it."""

    def outcome(path):
        wrong = refusal(read, path, "tile .* is damaged")
        values, reports = resume(path)
        if reports != 1:
            wrong += f" {reports} reports"
        if not np.array_equal(values, truth):
            wrong += " mended wrongly"
        return wrong

    return outcome


def empty(path):
    """An outcome: whatever is asked of the store, nothing comes."""
    small = lambda path: sdntk.GramStore.open(path)[0:2, 0:2]  # noqa: E731
    row = lambda path: sdntk.GramStore.open(path)[1]  # noqa: E731
    calls = (small, row, read)
    wrong = "".join(refusal(call, path, kinds=(ValueError, MemoryError)) for call in calls)
    return wrong + refusal(resume, path, "other data|tiles|codecs")


def complaints(attempts):
    return [f"{name}:{wrong}" for name, wrong in attempts if wrong]


def test_crafted_stores_are_refused_or_mended(attempt, honest, score):
    truth = np.asarray(honest)
    outcomes = {
        **{
            name: (damage, refused(words, sdntk.GramStore.open, resume))
            for name, (damage, words) in (DESCRIPTIONS | DESCRIPTION_FILES | FORGED).items()
        },
        **{name: (damage, refused(words, resume)) for name, (damage, words) in IN_THE_WAY.items()},
        **{name: (damage, mended(truth)) for name, damage in TILES.items()},
        **{name: (damage, empty) for name, damage in EMPTY.items()},
    }
    wrong = complaints((name, attempt(*case)) for name, case in outcomes.items())
    score("crafted Gram stores", len(outcomes), len(wrong))
    assert len(outcomes) >= 70
    assert not wrong, "\n".join(wrong)


def flip(content, rng):
    place = rng.integers(len(content))
    return (
        content[:place] + bytes([content[place] ^ 1 << int(rng.integers(8))]) + content[place + 1 :]
    )


def cut(content, rng):
    return content[: rng.integers(len(content))]


def invert(content, rng):
    start = rng.integers(len(content))
    stop = start + rng.integers(1, 20)
    inverse = bytes(255 - byte for byte in content[start:stop])
    return content[:start] + inverse + content[stop:]


def test_random_damage_is_found(attempt, honest, size, score):
    """In a tile, it is mended; in zarr.json, the store is refused."""
    rng, tried, truth = np.random.default_rng(2026), size(300, 5000), np.asarray(honest)
    files = [path.relative_to(honest.path) for path in honest.path.rglob("*") if path.is_file()]
    assert len(files) == 16
    open_or_resume = refused("", sdntk.GramStore.open, resume)

    def try_once(number):
        name = files[number % len(files)]
        change = (flip, cut, invert)[number % 3]

        def damage(path):
            content = (path / name).read_bytes()
            (path / name).write_bytes(change(content, rng))

        outcome = open_or_resume if name.name == "zarr.json" else mended(truth)
        return f"{name} {change.__name__}", attempt(damage, outcome, memory=False)

    wrong = complaints(map(try_once, range(tried)))
    score("random damage to files of a Gram store", tried, len(wrong))
    assert not wrong, "\n".join(wrong)
