"""Composed kernels in the rest of the library.

Must hold: each part checks shapes and domains of its points, whichever side it stands on; bad input
is refused by name; runs with composed kernels come back from files and stores know them; kernels of
networks and plain functions take part, also where one closes over a tracer; precision bounds errors
and is not far from them; other values of parameters compile nothing, and batches of kernels are
computed by vmap.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from random_kernels import made, recipes

import sdntk
from sdntk import architectures, kernels
from sdntk._pytrees import pytree
from sdntk.kernels import algebra, base
from sdntk.kernels.base import LibraryKernel, kernel_precision

RNG = np.random.default_rng(0)
X1, X2 = RNG.uniform(size=(5, 3)), RNG.uniform(size=(4, 3))


# ---- points ----


def test_every_part_checks_shapes_and_domains():
    spline, rbf = kernels.cubic_spline(), kernels.rbf(1.0)
    table = kernels.on_columns(spline, [1]) + rbf
    for kernel in (
        spline + rbf,
        rbf * spline,
        (2.0 * spline) ** 2,
        spline + (lambda a, b: a @ b.T),
    ):
        with pytest.raises(ValueError, match="x1 must hold single numbers"):
            kernel(X1, X1[:, 0])
        with pytest.raises(ValueError, match=r"x2 must lie in \[0, 1\]"):
            kernel(X1[:, 0], [0.5, 1.5])
        with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
            sdntk.gram(kernel, [0.5, -0.5])
        with pytest.raises(ValueError, match="x must be finite"):
            kernel.precision([0.5, np.nan])
    outside = X1 + np.array([[0, 1.0, 0]])
    with pytest.raises(ValueError, match=r"x1\[:, \[1\]\] must lie in \[0, 1\]"):
        table(outside, X1)
    with pytest.raises(ValueError, match=r"x must be a table, shape \(n, p\) with p > 1, .*\[1\]"):
        sdntk.gram(table, X1[:, :1])
    with pytest.raises(ValueError, match="x1 must be a table"):
        kernels.on_columns(rbf, [0])(X1[:, 0], X1)
    with pytest.raises(ValueError, match="points of one shape"):
        kernels.on_columns(rbf, [0])(X1, X1[:, :2])
    with pytest.raises(ValueError, match="points of one shape"):
        (rbf + kernels.linear())(X1, X1[:, :2])
    with pytest.raises(ValueError, match="length_scale must be a scalar or have one entry"):
        (rbf + kernels.rbf([1.0, 2.0]))(X1, X1)
    # Under jit shapes are checked all the same, and known points where something else is traced.
    with pytest.raises(ValueError, match="x must be a table"):
        jax.jit(lambda x: sdntk.gram(table, x))(X1[:, :1])
    with pytest.raises(ValueError, match=r"\[1\]\] must lie in"):
        jax.jit(lambda a: sdntk.gram(a * table, outside))(1.0)


def test_kernels_on_the_line_and_of_vectors_go_together():
    line = X1[:, 0]
    kernel = kernels.cubic_spline() + kernels.rbf(0.5) * kernels.brownian_motion()
    parts = [k(line, line) for k in (kernels.cubic_spline(), kernels.rbf(0.5))]
    expected = parts[0] + parts[1] * np.minimum(line[:, None], line)
    for x1 in (line, line[:, None]):
        for x2 in (line, line[:, None]):
            np.testing.assert_allclose(kernel(x1, x2), expected, rtol=1e-14)
    images = X1.reshape(5, 1, 3)
    both = kernels.rbf(1.0) + kernels.linear()
    np.testing.assert_array_equal(both(images, X2), both(X1, X2))


def test_columns():
    kernel = kernels.on_columns(kernels.rbf([1.0, 2.0]), np.array([2, 0]))
    np.testing.assert_array_equal(
        kernel(X1, X2), kernels.rbf([1.0, 2.0])(X1[:, [2, 0]], X2[:, [2, 0]])
    )
    assert kernel.columns == (2, 0)
    own = kernels.on_columns(lambda a, b: a @ b.T, range(2))
    np.testing.assert_allclose(own(X1, X2), X1[:, :2] @ X2[:, :2].T, rtol=1e-15)
    nested = kernels.on_columns(kernels.on_columns(kernels.linear(), [1]), [2, 0])
    np.testing.assert_array_equal(nested(X1, X2), np.outer(X1[:, 0], X2[:, 0]))


# ---- bad input ----


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda k: -2.0 * k, ValueError, "the factor of a kernel must be positive.*semi-definite"),
        (lambda k: 0 * k, ValueError, "the factor of a kernel must be positive"),
        (lambda k: k * math.inf, ValueError, "the factor of a kernel must be finite"),
        (lambda k: k * np.ones(3), ValueError, "the factor of a kernel must be a scalar"),
        (lambda k: np.ones(3) * k, ValueError, "the factor of a kernel must be a scalar"),
        (lambda k: True * k, TypeError, "the factor of a kernel must be a number, not a bool"),
        (lambda k: k + (-1.0), ValueError, "a number added to a kernel must be positive"),
        (lambda k: k + 0, ValueError, "a number added to a kernel must be positive"),
        (lambda k: 0.0 + k, ValueError, "a number added to a kernel must be positive"),
        (lambda k: k - k, TypeError, "unsupported operand"),
        (lambda k: k / 2, TypeError, "unsupported operand"),
        (lambda k: -k, TypeError, "bad operand type for unary -"),
        (lambda k: k + "linear", TypeError, "unsupported operand"),
        (lambda k: [1.0] * k, TypeError, "multiply|unsupported"),
        (lambda k: k + None, TypeError, "unsupported operand"),
        (lambda k: 2**k, TypeError, "unsupported operand"),
        (lambda k: k**0, ValueError, "exponent must be at least 1"),
        (lambda k: k**0.5, TypeError, "exponent must be an integer"),
        (lambda k: k**True, TypeError, "exponent must be an integer"),
        (lambda k: k + (lambda a, b: a + 0 * b), ValueError, r"kernel must return shape \(5, 5\)"),
        (lambda k: kernels.on_columns(k, []), ValueError, "columns must hold the numbers"),
        (lambda k: kernels.on_columns(k, [0, 0]), ValueError, "columns must hold .*different"),
        (lambda k: kernels.on_columns(k, [-1]), ValueError, "columns must be at least 0"),
        (lambda k: kernels.on_columns(k, 1), TypeError, "columns must be a sequence"),
        (lambda k: kernels.on_columns(k, [0.5]), TypeError, "columns must be an integer"),
        (lambda k: kernels.on_columns(3, [0]), TypeError, "kernel must be a fun"),  # noqa: ARG005
        (lambda k: kernels.constant(0.0), ValueError, "value must be positive"),  # noqa: ARG005
        (lambda k: kernels.polynomial(2, -1), ValueError, "bias must be 0 or more"),  # noqa: ARG005
        (lambda k: kernels.polynomial(0, 1), ValueError, "degree must be at least 1"),  # noqa: ARG005
        (lambda k: kernels.laplace(-1), ValueError, "length_scale must be positive"),  # noqa: ARG005
        (lambda k: k + kernels.white(0.1), NotImplementedError, "multiplier=v / K"),
        (lambda k: kernels.white(noise_level=1), NotImplementedError, "no function of the"),  # noqa: ARG005
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make(kernels.rbf(1.0))(X1, X1)


# ---- the rest of the library ----


def test_functions_take_part():
    function = lambda a, b: (1 + np.asarray(a) @ np.asarray(b).T) ** 2  # noqa: E731
    kernel = kernels.rbf(1.0) + function
    np.testing.assert_allclose(
        kernel(X1, X2), kernels.rbf(1.0)(X1, X2) + function(X1, X2), rtol=1e-14
    )
    np.testing.assert_allclose(
        (function * kernel)(X1, X2), function(X1, X2) * kernel(X1, X2), rtol=1e-14
    )
    assert repr(kernel) == "rbf(1.0) + <lambda>"
    assert not kernel.has_known_leaves
    run = sdntk.distill(kernel, X1, X1[:, 0], tolerance=0.01, rounds=2)
    assert run.predict(X2).shape == (2, 4)
    assert repr(run).startswith("Distillation(5 points, 2 rounds, rbf(1.0) + <lambda>, dense)")
    own = jax.tree_util.Partial(lambda scale, a, b: scale * (a @ b.T), 3.0)  # with a leaf
    total = lambda kernel: jnp.sum(kernel(X1, X2))  # noqa: E731
    slope = jax.grad(total)(kernels.rbf(1.0) + own)
    assert list(slope.parameters) == ["k1__length_scale", "k2__function__0__0"]
    np.testing.assert_allclose(list(slope.parameters.values())[1], np.sum(X1 @ X2.T), rtol=1e-14)


def test_a_function_that_closes_over_a_tracer_is_seen(monkeypatch):
    """By method="auto", which takes the dense method under a transformation."""
    monkeypatch.setattr("sdntk.spectra.choose.DENSE_POINTS", 3)

    def loss(scale):
        kernel = kernels.rbf(1.0) + (lambda a, b: scale * (a @ b.T))
        return sdntk.distill(kernel, X1, X1[:, 0], multiplier=0.1, rounds=2).training_loss[-1]

    difference = (loss(1.0 + 1e-5) - loss(1.0 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(loss)(1.0), difference, rtol=1e-6)


def test_networks_take_part(tmp_path):
    network = kernels.ntk(architectures.fully_connected(2))
    kernel = network + kernels.rbf(1.0)
    expected = np.asarray(network(X1, X1)) + np.asarray(kernels.rbf(1.0)(X1, X1))
    np.testing.assert_allclose(kernel(X1, X1), expected, rtol=1e-14)
    np.testing.assert_allclose(jax.jit(kernel)(X1, X1), expected, rtol=1e-14)
    run = sdntk.distill(kernel, X1, X1[:, 0], tolerance=0.01, rounds=2)
    run.save(tmp_path / "run.npz")
    again = sdntk.load(tmp_path / "run.npz")
    np.testing.assert_array_equal(again.predict(X2), run.predict(X2))
    store = sdntk.gram(kernel, X1, path=tmp_path / "store")
    np.testing.assert_allclose(np.asarray(store), expected / 5, rtol=1e-14)
    finite = kernels.empirical_ntk(lambda w, x: jnp.tanh(x @ w), jnp.ones((3, 2)))
    np.testing.assert_allclose(
        (2.0 * finite * kernel)(X1, X2), 2 * finite(X1, X2) * kernel(X1, X2), rtol=1e-14
    )
    np.testing.assert_allclose(finite.diagonal(jnp.asarray(X1)), np.diag(finite(X1, X1)))


def test_stores_know_composed_kernels(tmp_path):
    kernel = kernels.matern(1.5, 0.3) + 2.0 * kernels.rbf(1.0)
    sdntk.gram(kernel, X1, path=tmp_path / "store")
    written = (tmp_path / "store").stat().st_mtime_ns
    sdntk.gram(2.0 * kernels.rbf(1.0) + kernels.matern(1.5, 0.3), X1, path=tmp_path / "store")
    assert (tmp_path / "store").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="kernel"):
        sdntk.gram(kernel.replace(k2__factor=2.1), X1, path=tmp_path / "store")


@pytest.mark.parametrize("method", ["dense", "krylov"])
@settings(max_examples=8, deadline=None)
@given(recipes)
def test_runs_come_back_from_files(method, tmp_path_factory, recipe):
    kernel, _ = made(recipe)
    y = np.sin(5 * X1[:, 0])
    run = sdntk.distill(kernel, X1, y, multiplier=0.1, rounds=2, method=method)
    path = tmp_path_factory.mktemp("runs") / "run.npz"
    run.save(path)
    again = sdntk.load(path)
    assert repr(again.kernel) == repr(kernel)
    assert repr(again) == repr(run)
    assert jax.tree.structure(again) == jax.tree.structure(run)
    np.testing.assert_array_equal(again.predict(X2), run.predict(X2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda kernel: dataclasses.replace(kernel, k1=2.0),
        lambda kernel: dataclasses.replace(kernel, k2=None),
        lambda kernel: dataclasses.replace(kernel, k1=kernels.rbf(1.0), k2=kernels.rbf([1.0] * 4)),
        lambda kernel: dataclasses.replace(kernel, k2=algebra.Power(kernel.k1, "2")),
        lambda kernel: dataclasses.replace(kernel, k2=algebra.OnColumns(kernel.k1, (7,))),
        lambda kernel: dataclasses.replace(kernel, k2=algebra.Scaled((), kernel.k1)),
    ],
)
def test_damaged_kernels_in_files_are_refused(damage, tmp_path):
    kernel = kernels.rbf(1.0) + kernels.linear()
    run = sdntk.distill(kernel, X1, X1[:, 0], tolerance=0.01, rounds=1)
    dataclasses.replace(run, kernel=damage(kernel)).save(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="does not hold what sdntk has saved"):
        sdntk.load(tmp_path / "run.npz")


def test_a_kernel_with_a_function_is_given_again(tmp_path):
    kernel = kernels.rbf(1.0) + (lambda a, b: a @ b.T)
    run = sdntk.distill(kernel, X1, X1[:, 0], tolerance=0.01, rounds=1)
    run.save(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="knows no kernel"):
        sdntk.load(tmp_path / "run.npz").predict(X2)
    again = sdntk.load(tmp_path / "run.npz", kernel=kernel)
    np.testing.assert_array_equal(again.predict(X2), run.predict(X2))


def test_transformations_and_what_is_compiled():
    make = lambda a, b: kernels.matern(1.5, a) + b * kernels.rbf(a) ** 2 * kernels.linear() + b  # noqa: E731
    traces = []

    @jax.jit
    def total(kernel, x):
        traces.append(1)
        return jnp.sum(kernel(x, x))

    slopes = jax.jit(jax.grad(total))
    x = jnp.asarray(X1)
    parameters = [(0.5, 2.0), (0.7, 1.0), (1, np.float64(3.0))]
    alone = []
    for i, (a, b) in enumerate(parameters):
        alone.append(float(total(make(a, b), x)))
        slopes(make(a, b), x)
        make(a, b)(x, x)
        count = (len(traces), base._all_pairs._cache_size())
        if i == 0:
            first = count
    assert count == first
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *(make(a, b) for a, b in parameters))
    np.testing.assert_allclose(jax.vmap(total, (0, None))(stacked, x), alone, rtol=1e-14)


# ---- precision ----


@pytree
class Rough(LibraryKernel):
    """The kernel <x, x'>, with values that err by up to what it says."""

    error: float
    sign: float

    def block(self, x1, x2):
        return jnp.dot(x1, x2.T) + self.sign * self.error

    def precision(self, x):
        del x
        return self.error


@pytest.mark.parametrize(
    ("make", "far"),
    [
        (lambda a, b: a + b, 1.0),
        (lambda a, b: a * b, 1.0),
        (lambda a, b: 3.0 * a + b * 2.0, 1.0),
        (lambda a, b: a**3 + b, 1.01),
        (lambda a, b: (2.0 * a + 1.0) * (b + kernels.rbf(1.0)) ** 2, 1.01),
        # Largest where the columns are, which is at different points.
        (lambda a, b: kernels.on_columns(a, [0, 2]) * kernels.on_columns(b, [1]), 1.5),
    ],
)
def test_precision_bounds_errors_and_is_not_far_from_them(make, far):
    exact = make(Rough(0.0, 1.0), Rough(0.0, 1.0))
    assert exact.precision(X1) == 0.0
    errors = [
        float(abs(make(Rough(1e-3, a), Rough(2e-3, b))(X1, X1) - exact(X1, X1)).max())
        for a in (-1.0, 1.0)
        for b in (-1.0, 1.0)
    ]
    kernel = make(Rough(1e-3, 0.0), Rough(2e-3, 0.0))
    precision = kernel.precision(X1)
    assert isinstance(precision, float)
    assert max(errors) <= precision * (1 + 1e-9) <= far * max(errors) * (1 + 2e-9)
    traced = jax.jit(lambda kernel, x: kernel_precision(kernel, x))(kernel, X1)
    np.testing.assert_allclose(traced, precision, rtol=1e-12)


def test_precision_of_kernels_that_lose_digits():
    images = jnp.asarray(RNG.normal(size=(4, 4, 4, 1)))
    network = kernels.ntk(architectures.convolutional(1))
    alone = network.precision(images)
    assert alone > 1e-10
    largest = float(abs(network(images, images)).max())
    assert (network + kernels.rbf(1.0)).precision(images) == alone
    assert (3.0 * network).precision(images) == pytest.approx(3 * alone)
    assert (network**2).precision(images) == pytest.approx(2 * largest * alone, rel=1e-6)
    assert (network * kernels.constant(2.0)).precision(images) == pytest.approx(2 * alone)
    own = network * (lambda a, b: jnp.ones((len(a), len(b))))
    assert own.precision(images) == pytest.approx(alone)
    assert (
        kernels.rbf(1.0).precision(images) == (2.0 * kernels.linear() ** 2).precision(images) == 0
    )
    slope = jax.grad(lambda a: jnp.sum((a * network).precision(images)))(2.0)
    assert slope == 0  # an estimate has no derivatives


def test_no_composed_kernel_has_the_structure_of_another():
    a, b = kernels.rbf(1.0), kernels.linear()
    several = [a + b, a * b, b + a, 2.0 * a, a**2, a**3, kernels.on_columns(a, [0])]
    structures = {jax.tree.structure(kernel) for kernel in several}
    assert len(structures) == len(several)
    assert isinstance(several[0], algebra.Sum)
