"""Parameters of kernels stay as they were given.

Must hold: a kernel made with x64 off has the float64 values of one made with it on, bit by bit,
once x64 is on; its parameters are Python floats, NumPy arrays that nobody can change, or what JAX
gave;
dtypes of values are those of kernels whose parameters are arrays in the default type; derivatives,
vmap and jit work on such leaves, and other values compile nothing; runs made in float32 are saved
and loaded with x64 off.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdntk
from sdntk import kernels
from sdntk.kernels import base

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 2))
MAKE = {
    "rbf": kernels.rbf,
    "matern": lambda length_scale: kernels.matern(1.5, length_scale),
    "laplace": lambda length_scale: kernels.laplace(length_scale),
    "polynomial": lambda bias: kernels.polynomial(3, bias),
    "constant": lambda value: kernels.constant(value),
}
SCALARS_ONLY = {"polynomial", "constant"}


GIVEN = {
    "a number": 0.3,
    "NumPy's": np.float64(0.3),
    "a list": [0.3, 0.7],
    "an array": np.array([0.3, 0.7]),
}


@pytest.mark.parametrize(
    ("name", "given"),
    [(n, g) for n in MAKE for g in GIVEN if n not in SCALARS_ONLY or np.ndim(GIVEN[g]) == 0],
)
def test_a_kernel_made_with_x64_off_is_exact_with_x64_on(name, given):
    given = GIVEN[given]
    with jax.enable_x64(False):
        made = MAKE[name](given)
        composed = made + 0.1 * made
        values = made(X, X)
        assert values.dtype == jnp.float32
        assert np.all(np.isfinite(values))
    np.testing.assert_array_equal(made(X, X), MAKE[name](given)(X, X))
    np.testing.assert_allclose(composed(X, X), 1.1 * made(X, X), rtol=1e-15)
    with jax.enable_x64(False):  # and back again
        np.testing.assert_array_equal(made(X, X), values)


@pytest.mark.parametrize("given", [2, 2.0, np.float64(2), np.int32(2), np.array(2.0)])
def test_numbers_are_python_floats(given):
    assert type(kernels.rbf(given).length_scale) is float
    assert type(kernels.matern(0.5, given).length_scale) is float
    assert repr(kernels.rbf(given)) == "rbf(2.0)"


def test_arrays_stay_what_they_are_and_nobody_can_change_them():
    given = np.array([1.0, 2.0])
    kernel = kernels.rbf(given)
    before = kernel(X, X)
    given[0] = 5.0
    np.testing.assert_array_equal(kernel(X, X), before)
    assert isinstance(kernel.length_scale, np.ndarray)
    with pytest.raises(ValueError, match="read-only"):
        kernel.length_scale[0] = 5.0
    assert kernels.rbf([1, 2]).length_scale.dtype == np.float64
    assert isinstance(kernels.rbf(jnp.float32(0.3)).length_scale, jax.Array)


#: The dtype of values for points in float64, float32 and bfloat16, with x64 on, as of version 0.3.
DTYPES = {
    "a number": (0.3, "float64 float64 float64"),
    "an integer": (2, "float64 float64 float64"),
    "NumPy": (np.array([0.3, 0.4]), "float64 float64 float64"),
    "NumPy in float32": (np.array([0.3, 0.4], np.float32), "float64 float32 float32"),
    "JAX": (jnp.asarray(0.3), "float64 float64 float64"),
    "JAX in float32": (jnp.float32(0.3), "float64 float32 float32"),
}


@pytest.mark.parametrize("case", DTYPES)
def test_dtypes_of_values(case):
    given, dtypes = DTYPES[case]
    kernel = kernels.rbf(given)
    for x, dtype in zip(map(X.astype, (float, np.float32, jnp.bfloat16)), dtypes.split()):  # noqa: B905
        assert kernel(x, x).dtype == dtype
        assert jax.jit(lambda kernel, x: kernel(x, x))(kernel, x).dtype == dtype
    x = X.astype(np.float32)
    if np.ndim(given) == 0:  # traced, it is what JAX makes of a Python number: float64
        assert jax.jit(lambda s: kernels.rbf(s)(x, x))(0.3).dtype == jnp.float64
        assert jax.grad(lambda s: kernels.rbf(s)(x, x).sum())(0.3).dtype == jnp.float64


def test_a_kernel_is_an_argument_of_transformations():
    total = lambda kernel: jnp.sum(kernel(X, X) ** 3)  # noqa: E731
    by_kernel = jax.grad(total)(kernels.rbf(0.7))
    by_number = jax.grad(lambda s: total(kernels.rbf(s)))(0.7)
    np.testing.assert_allclose(by_kernel.length_scale, by_number, rtol=1e-14)
    scales = [0.5, 0.7]
    stacked = jax.tree.map(lambda *s: jnp.stack(s), *map(kernels.rbf, scales))
    together = jax.vmap(lambda kernel: kernel(X, X))(stacked)
    for values, scale in zip(together, scales, strict=True):
        np.testing.assert_allclose(values, kernels.rbf(scale)(X, X), rtol=1e-14)


def test_other_values_compile_nothing():
    kernels.matern(2.5, 0.3)(X, X)
    before = base._all_pairs._cache_size()
    for scale in (0.4, 1, np.float64(2.0), np.array(3.0)):
        kernels.matern(2.5, scale)(X, X)
    assert base._all_pairs._cache_size() == before


@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")
@pytest.mark.usefixtures("single_precision")
def test_float32_runs_are_saved_and_loaded(tmp_path):
    x = X.astype(np.float32)
    for given in (0.7, [0.7, 1.3]):
        run = sdntk.distill(kernels.rbf(given), x, x[:, 0], tolerance=0.3, rounds=2)
        run.save(tmp_path / "run.npz")
        again = sdntk.load(tmp_path / "run.npz")
        np.testing.assert_array_equal(again.kernel.length_scale, given)
        np.testing.assert_array_equal(again.predict(x), run.predict(x))
        assert repr(again.kernel) == repr(run.kernel) == f"rbf({given})"


@pytest.mark.usefixtures("as_users_call", "single_precision")
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_a_length_that_float32_cannot_hold_is_refused_with_x64_off(scale):
    with pytest.raises(ValueError, match="length_scale must be"):
        kernels.rbf(scale)
