"""Gram matrices in tiles.

Blocks of any size: hypothesis over sizes and blocks, against one call of the kernel. Only the upper
triangle: calls are counted. All local devices: a process with eight, where the kernel writes down
where its points lie. Progress: the bar on a pretended terminal. Estimate and refusal: the
compiler's own count of a hungry kernel, and a machine made to look small. float32: the bits of
rounded float64 values. Stores: tests/test_gram_store.py.
"""

import functools
import io
import json
import re
import subprocess
import sys
import textwrap

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import with_virtual_devices
from hypothesis import given, settings
from rich.console import Console

import sdntk
from sdntk import _memory, _progress
from sdntk.gram_matrices import block_size as block_size_module
from sdntk.gram_matrices.tiles import Tiling
from sdntk.kernels import rbf


def points(n, d=3, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, d))


def linear(x, t):
    """A kernel in NumPy, called eagerly."""
    return np.asarray(x) @ np.asarray(t).T


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([1, 2, 12, 13, 30]),
    st.sampled_from([1, 7, 13, 29]),
    st.sampled_from([1, 4, 13, 50]),
)
def test_blocks_of_any_size(n, k, block_size):
    x, x2 = points(n), points(k, seed=1)
    square = sdntk.gram(linear, x, block_size=block_size)
    np.testing.assert_allclose(square, linear(x, x) / n, rtol=1e-14, atol=1e-16)
    assert (square == square.T).all()
    np.testing.assert_allclose(
        sdntk.gram(linear, x, x2, block_size=block_size), linear(x, x2) / k, rtol=1e-14, atol=1e-16
    )


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 35), st.booleans())
def test_tiles_cover_the_matrix_once(n, k, block_size, symmetric):
    tiling = Tiling((n, n if symmetric else k), block_size, symmetric)
    covered = np.zeros(tiling.shape, int)
    for tile in tiling.tiles:
        rows, columns = tiling.rectangle(tile)
        covered[rows, columns] += 1
        if symmetric and not tiling.is_diagonal(tile):
            covered[columns, rows] += 1
    assert (covered == 1).all()


def test_large_matrices_are_cut_by_default_and_equal_one_call():
    x = points(1300)
    np.testing.assert_allclose(sdntk.gram(rbf(1.0), x), rbf(1.0)(x, x) / 1300, rtol=1e-14)
    assert 200 <= block_size_module.choose_block_size(rbf(1.0), (x, x)) <= 1300 / 4


def test_only_the_upper_triangle_is_computed():
    calls = []

    def counted(x, t):
        values = linear(x, t)
        calls.append(values.size)
        return values

    sdntk.gram(counted, points(80), block_size=10)
    assert len(calls) == 8 * 9 // 2
    assert sum(calls) == pytest.approx(0.5625 * 80**2)


def test_jitted_kernels_are_compiled_once_whatever_the_edges():
    traces = []

    @jax.jit
    def kernel(x, t):
        traces.append((x.shape, t.shape))
        return x @ t.T

    sdntk.gram(kernel, points(47), block_size=10)
    assert traces.count(((10, 3), (10, 3))) == len(traces) > 0


EIGHT_DEVICES = """
    import jax, json, sys, numpy as np
    jax.config.update("jax_enable_x64", True)
    import sdntk
    used = set()
    def kernel(x, t):
        used.update(x.devices() | t.devices())
        return x @ t.T
    x = jax.random.normal(jax.random.key(0), (90, 3))
    whole = sdntk.gram(kernel, x, block_size=90)
    used.clear()
    tiled = sdntk.gram(kernel, x, block_size=8)
    in_memory = len(used)
    used.clear()
    stored = sdntk.gram(kernel, x, block_size=8, path=sys.argv[1])
    same_bits = bool((np.asarray(stored) == tiled).all())
    print(json.dumps([in_memory, len(used), np.abs(tiled - whole).max(), same_bits]))
    print(sdntk.decompose(tiled).rank)  # the result lies on one device, and is used like any other
    committed = jax.device_put(np.float64(2.0), jax.devices()[3])
    derived = sdntk.gram(sdntk.kernels.rbf(tiled.max()), x, block_size=8)
    held = sdntk.gram(lambda x, t: committed * (x @ t.T), x, block_size=8)
    assert np.abs(np.asarray(held) - 2 * np.asarray(whole)).max() < 1e-15
"""


@pytest.mark.slow
def test_all_local_devices_are_used(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EIGHT_DEVICES), tmp_path / "G"],
        env=with_virtual_devices(8),
        capture_output=True,
        text=True,
        check=True,
    )
    in_memory, stored, difference, same_bits = json.loads(ran.stdout.splitlines()[0])
    assert in_memory == stored == 8
    assert difference < 1e-15
    assert same_bits


@pytest.mark.slow
def test_float32_holds_the_rounded_float64_values():
    x = points(60).astype(jnp.float32)
    G = sdntk.gram(rbf(0.3), x, dtype=jnp.float32, block_size=16)
    assert G.dtype == jnp.float32
    np.testing.assert_array_equal(
        G, sdntk.gram(rbf(0.3), x.astype(jnp.float64), block_size=16).astype(jnp.float32)
    )
    assert sdntk.gram(linear, x, block_size=16).dtype == jnp.float32  # the kernel's own


@pytest.mark.usefixtures("single_precision")
def test_float32_without_x64():
    G = sdntk.gram(rbf(0.3), points(60), block_size=16, dtype=jnp.float32)
    assert G.dtype == jnp.float32
    with pytest.raises(ValueError, match="dtype float64 needs x64"):
        sdntk.gram(rbf(0.3), points(60), dtype=jnp.float64)


@pytest.mark.slow
@pytest.mark.parametrize("size", [40, 700])
def test_derivatives_and_jit_pass_through_gram_at_every_size(size):
    x = points(size)
    scale, step = 1.3, 1e-6

    def total(length_scale):
        return sdntk.gram(rbf(length_scale), x).sum()

    difference = (total(scale + step) - total(scale - step)) / (2 * step)
    assert jax.grad(total)(scale) == pytest.approx(float(difference), rel=1e-6)
    closed = jax.grad(lambda s: sdntk.gram(lambda a, b: rbf(1.0)(a / s, b / s), x).sum())(
        scale
    )  # closes over a tracer
    assert closed == pytest.approx(float(difference), rel=1e-6)
    closing = lambda s: sdntk.gram(lambda a, b: rbf(1.0)(a / s, b / s), x).sum()  # noqa: E731
    assert jax.jit(jax.grad(closing))(scale) == pytest.approx(float(difference), rel=1e-6)
    np.testing.assert_allclose(
        jax.vmap(closing)(jnp.array([scale, 2.0])), [total(scale), total(2.0)], rtol=1e-12
    )
    np.testing.assert_allclose(
        jax.jit(lambda x: sdntk.gram(rbf(scale), x))(x), sdntk.gram(rbf(scale), x), rtol=1e-13
    )


def hungry(x, t):
    """A kernel with 4 kB of intermediate results for an entry, which no fusion does away with."""
    return jnp.sort(x[:, None, :1] * t[None, :, :1] + jnp.arange(512.0)[None, None, :], axis=-1)[
        :, :, 7
    ]


def test_work_space_is_estimated_from_above_and_not_by_much():
    x = points(2000)
    for kernel in (hungry, rbf(1.0)):
        shapes = [jax.ShapeDtypeStruct((100, 3), x.dtype)] * 2
        analysis = jax.jit(kernel).lower(*shapes).compile().memory_analysis()
        truth = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        estimate = block_size_module.workspace(kernel, (x, x), 100, 2**20)
        assert truth <= 1.01 * estimate
        assert estimate <= max(2 * truth, 2**20)
    for budget in (2**10, 2**30):
        assert (
            block_size_module.workspace(linear, (x, x), 100, budget) == 16 * 100 * 100 * 8
        )  # NumPy: nobody can tell


def test_tiles_shrink_until_they_fit(monkeypatch):
    x = points(2000)
    monkeypatch.setattr(
        _memory, "free_memory", lambda: 8 * 4096 * 30**2
    )  # an eighth of it: 30 squared entries
    size = block_size_module.choose_block_size(hungry, (x, x))
    assert 15 <= size <= 30


def test_what_cannot_fit_is_refused_before_it_starts(monkeypatch, tmp_path):
    def never(*_):
        raise AssertionError("begun")

    x = points(2000)
    monkeypatch.setattr(_memory, "free_memory", lambda: 10_000_000)
    with pytest.raises(
        MemoryError,
        match=r"2000 x 2000.* needs about 3.* MB .*10 MB are free.*path=.*dtype=jnp.float32",
    ):
        sdntk.gram(never, x, block_size=100)
    with pytest.raises(MemoryError, match="smaller block_size"):
        sdntk.gram(hungry, x[:500], block_size=400, path=tmp_path / "G")
    monkeypatch.undo()
    monkeypatch.setattr(
        _memory.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000_000})
    )
    with pytest.raises(
        OSError, match=r"2000 x 2000 needs 16\..* MB of disk .*1 MB are free.*another disk"
    ):
        sdntk.gram(rbf(1.0), x, block_size=100, path=tmp_path / "H")
    assert not (tmp_path / "H").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_found_in_whatever_tile(bad):
    x = np.arange(1.0, 31.0)

    def kernel(x, t):
        return np.where((x[:, None] == 4) & (t[None, :] == 25), bad, 1.0)

    with pytest.raises(
        ValueError, match=r"kernel's values must be finite.*points 0 to 9 and 20 to 29"
    ):
        sdntk.gram(kernel, x, block_size=10)


def test_float32_that_overflows_is_an_error():
    with pytest.raises(ValueError, match=r"nan or inf \(in float32\)"):
        sdntk.gram(lambda x, t: 1e300 * linear(x, t), points(5), dtype=jnp.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"block_size": 0}, ValueError, "block_size must be at least 1"),
        ({"block_size": 2.5}, TypeError, "block_size must be an integer"),
        ({"dtype": jnp.int32}, TypeError, "dtype must be a floating-point dtype; got int32"),
        ({"dtype": "nonsense"}, TypeError, "dtype must be a floating-point dtype"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        sdntk.gram(linear, points(5), **arguments)


def test_kernels_that_are_none():
    with pytest.raises(ValueError, match=r"return shape \(10, 10\)"):
        sdntk.gram(lambda *_: np.zeros(3), points(30), block_size=10)
    with pytest.raises(TypeError, match="real numbers"):
        sdntk.gram(lambda x, t: 1j * linear(x, t), points(30), block_size=10)
    assert sdntk.gram(lambda x, t: np.ones((len(x), len(t)), int), points(4)).dtype == jnp.float64


def test_progress_shows_the_time_left_on_a_terminal_and_nothing_elsewhere(monkeypatch):
    monkeypatch.setattr(_progress, "SECONDS_BEFORE_SHOWING", -1.0)
    for terminal in (True, False):
        screen = io.StringIO()
        monkeypatch.setattr(
            _progress,
            "Console",
            lambda s=screen, t=terminal, **_: Console(file=s, force_terminal=t, width=100),
        )
        assert list(_progress.track(iter("abc"), "Gram matrix", 3)) == ["a", "b", "c"]
        assert (("Gram matrix" in screen.getvalue()) and ("left:" in screen.getvalue())) == terminal


def test_steps_that_are_minutes_apart_still_give_a_time_left(monkeypatch):
    now, screen = [0.0], io.StringIO()
    progress = functools.partial(_progress.Progress, get_time=lambda: now[0], auto_refresh=False)
    monkeypatch.setattr(_progress, "Progress", progress)
    monkeypatch.setattr(_progress, "SECONDS_BEFORE_SHOWING", -1.0)
    monkeypatch.setattr(
        _progress,
        "Console",
        lambda **_: Console(file=screen, force_terminal=True, force_interactive=True, width=100),
    )
    for step in _progress.track(range(12), "blocks", 12):
        if step == 11:
            break  # the bar is drawn a last time
        now[0] += 900.0
    assert "left: 0:15:00" in re.sub(
        r"\x1b\[[0-9;]*m", "", screen.getvalue()
    )  # after eleven steps of a quarter of an hour


def test_a_bar_inside_a_bar_is_silent(monkeypatch):
    monkeypatch.setattr(_progress, "SECONDS_BEFORE_SHOWING", -1.0)
    screen = io.StringIO()
    monkeypatch.setattr(
        _progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=100)
    )
    for _ in _progress.track(range(3), "outer", 3):
        list(_progress.track(range(3), "inner", 3)) if "outer" in screen.getvalue() else None
    assert "outer" in screen.getvalue()
    assert "inner" not in screen.getvalue()


def test_a_container_limit_counts_but_not_its_page_cache(tmp_path):
    for name, text in (
        ("memory.max", "1000\n"),
        ("memory.current", "900\n"),
        ("memory.stat", "anon 200\nfile 700\n"),
    ):
        (tmp_path / name).write_text(text)
    assert _memory._cgroup_rest(tmp_path) == [800]
    (tmp_path / "memory.max").write_text("max\n")
    assert _memory._cgroup_rest(tmp_path) == []
