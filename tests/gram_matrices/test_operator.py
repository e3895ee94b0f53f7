"""Products with a Gram matrix: from an array, from the disk, from tiles kept or computed again, all
are G v.

On eight devices, sharded by rows: tests/test_krylov.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdntk
from sdntk import _memory, kernels
from sdntk.architectures import fully_connected
from sdntk.gram_matrices import tiled_operator
from sdntk.gram_matrices.operator import as_operator, kernel_operator
from sdntk.kernels import precision
from sdntk.kernels.precision import single_suffices

X = jax.random.normal(jax.random.key(0), (57, 4))
KERNEL = sdntk.kernels.matern(1.5, 2.0)
G = sdntk.gram(KERNEL, X)
V = jax.random.normal(jax.random.key(1), (57, 3))


def sources(folder):
    return {
        "dense": as_operator(G),
        "numpy": as_operator(np.asarray(G)),
        "disk": as_operator(sdntk.gram(KERNEL, X, path=folder, block_size=10)),
        "kept": kernel_operator(KERNEL, X, keep=True, block_size=10),
        "recomputed": kernel_operator(KERNEL, X, keep=False, block_size=25),
        "one tile": kernel_operator(KERNEL, X, keep=False, block_size=100),
        "itself": as_operator(as_operator(G)),
    }


def test_every_source_gives_the_same_products(tmp_path):
    for name, product in sources(tmp_path / "G").items():
        assert product.num_points == 57, name
        assert product.dtype == np.float64, name
        np.testing.assert_allclose(product(V), G @ V, rtol=0, atol=1e-15, err_msg=name)
        np.testing.assert_allclose(
            product(V[:, :1]), G @ V[:, :1], rtol=0, atol=1e-15, err_msg=name
        )


def test_values_kept_in_single_precision_are_multiplied_in_double(tmp_path):
    rounded = np.asarray(G, np.float32).astype(float)
    stored = sdntk.gram(KERNEL, X, path=tmp_path / "G", block_size=10, dtype=jnp.float32)
    for product in (
        as_operator(G.astype(jnp.float32)),
        kernel_operator(KERNEL, X, keep=True, block_size=9, dtype="float32"),
        as_operator(stored),
    ):
        assert product.dtype == np.float32
        assert product(V).dtype == jnp.float64
        np.testing.assert_allclose(product(V), rounded @ np.asarray(V), rtol=0, atol=1e-15)


def test_of_many_rows_some_are_converted_at_a_time():
    """600 of 250 at a time: the last ones overlap with those before."""
    x, v = (
        jax.random.normal(jax.random.key(2), (600, 4)),
        jax.random.normal(jax.random.key(3), (600, 3)),
    )
    rounded = sdntk.gram(KERNEL, x).astype(jnp.float32)
    np.testing.assert_allclose(
        as_operator(rounded)(v), np.asarray(rounded, float) @ v, rtol=0, atol=1e-14
    )


def test_products_under_transformations():
    for source in (as_operator(G), kernel_operator(KERNEL, X, keep=True, block_size=10)):
        np.testing.assert_allclose(jax.jit(source)(V), G @ V, rtol=0, atol=1e-15)
        np.testing.assert_allclose(
            jax.vmap(source)(jnp.stack([V, 2 * V]))[1], 2 * G @ V, rtol=0, atol=1e-15
        )
    np.testing.assert_allclose(jax.jit(lambda v: as_operator(G)(v))(V), G @ V, rtol=0, atol=1e-15)


def test_tiles_are_kept_or_computed_again_as_memory_allows(monkeypatch):
    calls = []

    def kernel(x, t):
        calls.append(len(x))
        return KERNEL(x, t)

    kept = kernel_operator(kernel, X, block_size=20)
    once = len(calls)
    kept(V)
    assert (len(calls), "kept in memory" in kept.description) == (once, True)
    monkeypatch.setattr(_memory, "free_memory", lambda: 20_000)
    again = kernel_operator(kernel, X, block_size=20)
    assert "computed in every product" in again.description
    before = len(calls)
    np.testing.assert_allclose(again(V), kept(V), rtol=1e-14)
    assert len(calls) - before >= 6
    with pytest.raises(MemoryError, match="its upper half"):
        kernel_operator(kernel, X, keep=True, block_size=20)


def test_a_matrix_that_is_not_symmetric_is_refused(tmp_path):
    """Of a store of two sets of points, every tile but those on the diagonal would count twice."""
    store = sdntk.gram(KERNEL, X, X, path=tmp_path / "G", block_size=20)
    with pytest.raises(ValueError, match="of two sets of points: leave x2 out"):
        as_operator(store)
    for matrix in (jnp.array([[1.0, 2.0], [0.0, 1.0]]), G.at[3, 40].add(1e-6)):
        with pytest.raises(ValueError, match=r"G must be a symmetric matrix; v\.Gw and w\.Gv"):
            as_operator(matrix)
    as_operator(G.at[3, 40].add(1e-15))


def test_a_damaged_tile_is_told(tmp_path):
    store = sdntk.gram(KERNEL, X, path=tmp_path / "G", block_size=20)
    tile = next(
        path for path in (tmp_path / "G").rglob("*") if path.is_file() and path.name != "zarr.json"
    )
    tile.write_bytes(b"x" + tile.read_bytes()[1:])
    with pytest.raises(ValueError, match="is damaged"):
        as_operator(store)(V)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((as_operator, G[:3]), r"G must be a square matrix, shape \(K, K\)"),
        ((as_operator, G.at[0, 0].set(jnp.nan)), "G must be finite"),
        ((kernel_operator, KERNEL, X[:0]), "x must hold at least one point"),
        ((kernel_operator, KERNEL, X.at[3, 1].set(jnp.inf)), "x must be finite"),
        ((kernel_operator, sdntk.kernels.brownian_bridge(), X[:, 0]), r"x must lie in \[0, 1\]"),
    ],
)
def test_bad_input(arguments, message):
    make, *others = arguments
    with pytest.raises(ValueError, match=message):
        make(*others)


@pytest.mark.usefixtures("as_users_call")
def test_a_kernel_that_is_none():
    with pytest.raises(TypeError, match="kernel must be a function of two arrays of points"):
        kernel_operator(G, X)


def test_the_old_names_still_work_and_say_what_the_new_ones_are():
    with pytest.warns(DeprecationWarning, match="renamed to sdntk.as_operator"):
        old = sdntk.products(G)
    np.testing.assert_array_equal(old(V), as_operator(G)(V))
    with pytest.warns(DeprecationWarning, match="renamed to sdntk.kernel_operator") as caught:
        old = sdntk.products(KERNEL, X, keep=True, block_size=10)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(old(V), kernel_operator(KERNEL, X, keep=True, block_size=10)(V))
    with pytest.warns(DeprecationWarning, match="renamed to sdntk.GramOperator"):
        assert isinstance(old, sdntk.Products)
    for arguments, message in (
        ((KERNEL,), "x must hold the points"),
        ((G, X), "x must be left out unless source is a kernel"),
    ):
        with (
            pytest.warns(DeprecationWarning, match="renamed"),
            pytest.raises(ValueError, match=message),
        ):
            sdntk.products(*arguments)


# ---- float32 ----


@pytest.mark.slow
def test_tiles_in_float32_are_computed_in_it_only_where_that_is_as_good():
    """In the spectral norm such a matrix is within machine_eps d_max of the exact one; kernels that
    lose digits, and functions, are computed in float64.
    """
    x = np.random.default_rng(0).normal(size=(400, 40))
    eps = float(np.finfo(np.float32).eps)
    single = np.dtype(np.float32)
    for kernel in (kernels.ntk(fully_connected(3)), kernels.rbf(5.0), kernels.matern(0.5, 5.0)):
        assert single_suffices(kernel, x, x, single)
        exact = np.asarray(sdntk.gram(kernel, x))
        operator = kernel_operator(kernel, x, keep=True, block_size=70, dtype=np.float32)
        assert operator.dtype == single
        found = np.asarray(operator(jnp.eye(400)))
        assert found.dtype == np.float64
        moved = np.linalg.norm(found - exact, 2)
        assert 0 < moved < eps * np.linalg.norm(exact, 2)
    assert not single_suffices(kernels.rbf(5.0), x, x, np.dtype(np.float64))
    of_single_points = kernel_operator(kernels.ntk(fully_connected(1)), x.astype(np.float32))
    assert of_single_points.dtype == np.float64  # none asked for float32
    assert not single_suffices(lambda a, b: a @ b.T, x, x, single)


def far_rows():
    """Every second point in a cluster as far away as float32 cannot resolve it."""
    x = np.random.default_rng(0).normal(size=(600, 1))
    x[1::2] = 1e5 + 1e-3 * x[1::2]
    return x


#: Points whose differences float32 loses, in an order that hides near pairs from any stride.
UNRESOLVED = {
    "minutes since 1970": (kernels.rbf(90.0), 1.6e9 + 60.0 * np.arange(3000)[:, None]),
    "hours, roughly": (kernels.matern(1.5, 0.5 / 60), 5e5 + np.arange(3000)[:, None] / 60),
    "many length scales": (kernels.rbf(0.02), np.arange(3000.0)[:, None] / 60),
    "a cluster far away": (kernels.rbf(1e-3) + kernels.rbf(1.0), far_rows()),
}


@pytest.mark.parametrize("name", UNRESOLVED)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.slow_cases
def test_points_that_float32_does_not_resolve_are_handed_over_in_float64(name, reverse, tmp_path):
    kernel, x = UNRESOLVED[name]
    x = x[::-1] if reverse else x
    exact = np.asarray(sdntk.gram(kernel, x)).astype(np.float32)
    single = np.dtype(np.float32)
    assert not single_suffices(kernel, x, x, single)
    kept = kernel_operator(kernel, x, keep=True, dtype=single)
    stored = sdntk.gram(kernel, x, path=tmp_path / "G", dtype=single)
    scale = float(np.abs(exact).max())
    columns = np.linspace(0, len(x) - 1, 20).astype(int)
    for found in (kept(jnp.eye(len(x))[:, columns]), np.asarray(stored)[:, columns]):
        np.testing.assert_allclose(found, exact[:, columns], rtol=0, atol=2e-7 * scale)


def test_points_of_float32_are_computed_in_the_dtype_that_was_asked_for():
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    operator = kernel_operator(kernels.linear(), x, keep=True, dtype=np.float64)
    exact = np.asarray(x, np.float64) @ np.asarray(x, np.float64).T / 60
    np.testing.assert_allclose(operator(jnp.eye(60)), exact, rtol=1e-14, atol=1e-17)


def test_a_kernel_that_loses_more_is_computed_in_float64(monkeypatch):
    x = np.random.default_rng(0).normal(size=(300, 4))
    in_single = precision.InSingle.__call__
    for factor, suffices in ((1 + 1e-8, True), (1 + 1e-6, False)):
        monkeypatch.setattr(
            precision.InSingle,
            "__call__",
            lambda *args, factor=factor: factor * np.asarray(in_single(*args), np.float64),
        )
        found = single_suffices(kernels.rbf(1.0), x, x, np.dtype(np.float32))
        assert found == suffices


def test_stacks_of_any_size_give_the_same_product(monkeypatch):
    x, v = (
        np.random.default_rng(0).normal(size=(97, 3)),
        np.random.default_rng(1).normal(size=(97, 2)),
    )
    exact = np.asarray(sdntk.gram(kernels.rbf(1.0), x)) @ v
    for size in (1, 2000, 2**26):
        monkeypatch.setattr(tiled_operator, "STACK_BYTES", size)
        operator = kernel_operator(kernels.rbf(1.0), x, keep=True, block_size=10)
        np.testing.assert_allclose(operator(jnp.asarray(v)), exact, rtol=1e-13, atol=1e-15)
