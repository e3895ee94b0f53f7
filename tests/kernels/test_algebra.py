"""Sums, products, multiples and powers of kernels.

Must hold, of random expressions: values are NumPy's arithmetic on the parts' values, to 1e-14; the
text of a kernel, run in the namespace of sdntk.kernels, is the same kernel; derivatives by each
parameter are finite differences, to 1e-6, and so are those of a chain; Gram matrices with
duplicated points have no eigenvalue below -K eps d_max. Single kernels are scikit-learn's; numbers
stand on either side; parameters are read and replaced by name; others are refused with these names.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from random_kernels import made, recipes
from sklearn.gaussian_process import kernels as sklearn_kernels
from sklearn.metrics.pairwise import laplacian_kernel, polynomial_kernel

import sdntk
from sdntk import architectures, kernels

RNG = np.random.default_rng(0)
X1, X2 = RNG.uniform(size=(5, 3)), RNG.uniform(size=(4, 3))
REPEATED = np.repeat(X1, [3, 1, 2, 4, 2], axis=0)


@settings(max_examples=150, deadline=None)
@given(recipes)
@pytest.mark.slow
def test_values_are_numpys_arithmetic(recipe):
    kernel, values = made(recipe)
    for x1, x2 in ((X1, X2), (X1, X1)):
        expected = values(x1, x2)
        scale = 1e-14 * abs(expected).max()
        np.testing.assert_allclose(kernel(x1, x2), expected, rtol=1e-14, atol=scale)
    np.testing.assert_allclose(sdntk.gram(kernel, X1), expected / 5, rtol=1e-14, atol=scale)
    diagonal = kernel.diagonal(jnp.asarray(X1))
    np.testing.assert_allclose(diagonal, np.diag(expected), rtol=1e-14, atol=scale)


@settings(max_examples=300, deadline=None)
@given(recipes)
def test_the_text_of_a_kernel_is_the_kernel(recipe):
    kernel, _ = made(recipe)
    again = eval(repr(kernel), vars(kernels))
    assert repr(again) == repr(kernel)
    assert jax.tree.structure(again) == jax.tree.structure(kernel)
    for mine, its in zip(jax.tree.leaves(again), jax.tree.leaves(kernel), strict=True):
        np.testing.assert_array_equal(mine, its)


@settings(max_examples=100, deadline=None)
@given(recipes)
@pytest.mark.slow
def test_no_eigenvalue_is_negative_with_duplicated_points(recipe):
    d = np.linalg.eigvalsh(np.asarray(sdntk.gram(made(recipe)[0], REPEATED)))
    assert d[0] >= -len(REPEATED) * np.finfo(float).eps * d[-1]


def central_difference(function, at, step):
    """Of the fourth order."""
    f = lambda i: function(at + i * step)  # noqa: E731
    return (8 * (f(1) - f(-1)) - (f(2) - f(-2))) / (12 * step)


def derivatives_by_name(function, kernel):
    """Each derivative by JAX, beside its finite difference."""
    found = jax.grad(function)(kernel).parameters
    assert found.keys() == kernel.parameters.keys()
    for name, value in kernel.parameters.items():
        for i in np.ndindex(np.shape(value)):

            def along(entry, name=name, value=value, i=i):
                moved = np.array(value, float)
                moved[i] = entry
                return float(function(kernel.replace(**{name: moved})))

            at = float(np.asarray(value)[i])
            yield name, float(np.asarray(found[name])[i]), central_difference(along, at, 1e-3 * at)


WEIGHTS = RNG.normal(size=(5, 4))


@settings(max_examples=30, deadline=None)
@given(recipes)
@pytest.mark.slow
def test_derivatives_are_finite_differences(recipe):
    kernel, _ = made(recipe)
    smallest = min(map(np.min, kernel.parameters.values()), default=1.0)
    assume(smallest > 1e-3)  # steps are a part of a parameter: a bias of 1e-300 has none
    total = lambda kernel: jnp.sum(WEIGHTS * kernel(X1, X2))  # noqa: E731
    scale = float(jnp.sum(abs(WEIGHTS) * abs(kernel(X1, X2))))
    for name, exact, difference in derivatives_by_name(total, kernel):
        assert abs(exact - difference) <= 1e-6 * max(abs(exact), scale), name


@pytest.mark.parametrize("quantity", ["training_loss", "multipliers", "norms"])
@pytest.mark.slow_cases
def test_derivatives_of_a_chain(quantity):
    kernel = kernels.matern(1.5, 0.6) + 2.0 * kernels.rbf([0.5, 1.0, 2.0]) * kernels.linear()
    kernel = kernel + kernels.on_columns(kernels.polynomial(2, 0.7), [1]) ** 2
    x = RNG.uniform(size=(20, 3))
    y = np.sin(5 * x[:, 0]) + x[:, 1] * x[:, 2]

    def last(kernel):
        chain = {"tolerance": 0.05} if quantity == "multipliers" else {"multiplier": 0.02}
        return getattr(sdntk.distill(kernel, x, y, rounds=3, **chain), quantity)[-1]

    seen = 0
    for name, exact, difference in derivatives_by_name(last, kernel):
        assert abs(exact - difference) <= 1e-6 * abs(exact), name
        seen += 1
    assert seen == 6


# ---- closed forms ----


def test_kernels_are_scikit_learns():
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13)  # noqa: E731
    close(kernels.linear()(X1, X2), X1 @ X2.T)
    close(
        kernels.polynomial(3, 0.5)(X1, X2),
        polynomial_kernel(X1, X2, degree=3, gamma=1, coef0=0.5),
    )
    close(kernels.laplace(0.7)(X1, X2), kernels.matern(0.5, 0.7)(X1, X2))
    line = (X1[:, :1], X2[:, :1])
    close(kernels.laplace(0.7)(*line), laplacian_kernel(*line, gamma=1 / 0.7))
    close(kernels.constant(2.5)(X1, X2), np.full((5, 4), 2.5))
    theirs = 2.0 * sklearn_kernels.RBF(0.4) + sklearn_kernels.Matern(0.6, nu=1.5) ** 2
    ours = 2.0 * kernels.rbf(0.4) + kernels.matern(1.5, 0.6) ** 2
    np.testing.assert_allclose(ours(X1, X2), theirs(X1, X2), rtol=1e-11)
    # Parameters under the same names.
    theirs = {n: v for n, v in theirs.get_params().items() if n.endswith("length_scale")}
    ours = kernels.constant(2.0) * kernels.rbf(0.4) + kernels.matern(1.5, 0.6) ** 2
    assert {n: v for n, v in ours.parameters.items() if n.endswith("length_scale")} == theirs


def test_texts():
    k = kernels
    texts = [
        "matern(1.5, 0.3) + 2.0 * rbf(1.0)",
        "(rbf(1.0) + rbf(2.0)) * linear()",
        "(rbf(1.0) + 1.0) ** 2",
        "1.0 + rbf(1.0) ** 2",
        "rbf(1.0) + (rbf(2.0) + rbf(3.0))",
        "rbf(1.0) * (2.0 * laplace(0.5))",
        "2.0 * (3.0 * linear())",
        "(linear() ** 2) ** 3",
        "constant(1.0) + constant(2.0)",
        "on_columns(rbf([0.5, 1.0]), [0, 2]) * on_columns(cubic_spline() + 1.0, [1])",
        "polynomial(2, 0.0) + brownian_motion() + brownian_bridge() + periodic_spline(1)",
    ]
    for text in texts:
        assert repr(eval(text, vars(k))) == text
    seen = []
    jax.jit(lambda kernel: seen.append(repr(kernel)))(2.0 * k.rbf(1.0) + k.constant(1.0))
    assert seen == ["traced * rbf(traced) + traced"]
    stacked = jax.vmap(k.rbf)(jnp.array([1.0, 2.0]))
    assert repr(stacked + 1.0) == "rbf([1.0, 2.0]) + 1.0"
    network = k.ntk(architectures.fully_connected(1)) + k.rbf(1.0)
    again = eval(repr(network), vars(k) | vars(architectures))
    assert jax.tree.structure(again) == jax.tree.structure(network)
    repr(jax.tree.map(lambda _: None, network))


def test_numbers_on_either_side():
    k, values = kernels.rbf(0.5), np.asarray(kernels.rbf(0.5)(X1, X2))
    two = [2, 2.0, np.float64(2), np.float32(2), np.array(2.0), jnp.asarray(2.0), jnp.int32(2)]
    for number in two:
        for scaled in (number * k, k * number):
            np.testing.assert_array_equal(scaled(X1, X2), 2 * values)
        for shifted in (number + k, k + number):
            np.testing.assert_array_equal(shifted(X1, X2), 2 + values)
    under_jit = jax.jit(lambda a: (a * k)(X1, X2) + (a + k)(X1, X2))(2.0)
    np.testing.assert_allclose(under_jit, 3 * values + 2, rtol=1e-15)
    assert type((np.float64(2) * k).factor) is float
    assert repr(sum([k, kernels.linear(), k])) == "rbf(0.5) + linear() + rbf(0.5)"
    with jax.enable_x64(False):
        single = 0.1 * k + 0.3
    np.testing.assert_array_equal(single(X1, X2), 0.1 * values + 0.3)


def test_single_precision_stays_and_is_finite():
    kernel = 2.0 * kernels.rbf(0.5) * kernels.linear() ** 2 + kernels.laplace(0.1) + 1.0
    x = X1.astype(np.float32)
    with jax.enable_x64(False):
        values, slopes = jax.value_and_grad(lambda kernel: jnp.sum(kernel(x, x)))(kernel)
        assert kernel(x, x).dtype == jnp.float32
        assert all(np.isfinite(a).all() for a in jax.tree.leaves((values, slopes)))
    # Made of float32 parameters and points with x64 on it is float32, too: a factor is no array.
    lengths = jnp.float32(0.5)
    assert (2.0 * kernels.rbf(lengths) + kernels.linear())(x, x).dtype == jnp.float32


# ---- parameters ----


def test_parameters_by_name():
    kernel = kernels.rbf(0.3) + 2.0 * kernels.rbf(1.0) * kernels.polynomial(2, 0.5) ** 3
    assert kernel.parameters == {
        "k1__length_scale": 0.3,
        "k2__k1__factor": 2.0,
        "k2__k1__kernel__length_scale": 1.0,
        "k2__k2__kernel__bias": 0.5,
    }
    assert kernel.k1.length_scale == 0.3
    other = kernel.replace(k1__length_scale=0.5, k2__k1__factor=np.float64(3.0))
    assert repr(other) == "rbf(0.5) + 3.0 * rbf(1.0) * polynomial(2, 0.5) ** 3"
    assert repr(kernel).startswith("rbf(0.3)")  # the old one is what it was
    assert type(other.k2.k1.factor) is float
    each = kernels.rbf(1.0).replace(length_scale=[1.0, 2.0, 3.0])
    np.testing.assert_array_equal(each(X1, X2), kernels.rbf([1.0, 2.0, 3.0])(X1, X2))
    assert kernels.cubic_spline().parameters == {}
    weights = {"a": jnp.ones((3, 2))}
    network = 2.0 * kernels.empirical_ntk(lambda w, x: x @ w["a"], weights)
    assert network.parameters.keys() == {"factor", "kernel__params__a"}
    twice = network.replace(kernel__params__a=2 * weights["a"])
    np.testing.assert_array_equal(twice(X1, X2), network(X1, X2))  # linear in its weights
    slope = jax.grad(lambda a: jnp.sum(kernel.replace(k2__k1__factor=a)(X1, X2)))(2.0)
    by_kernel = jax.grad(lambda kernel: jnp.sum(kernel(X1, X2)))(kernel)
    np.testing.assert_allclose(by_kernel.parameters["k2__k1__factor"], slope, rtol=1e-14)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length_scale": 1.0}, r"length_scale is no parameter of .*it has k1__length_scale, k2__"),
        ({"k1": kernels.rbf(1.0)}, "k1 is no parameter"),
        ({"k2__exponent": 3}, "k2__exponent is no parameter"),
        ({"k1__length_scale": -1.0}, "k1__length_scale must be positive"),
        ({"k2__kernel__factor": 0.0}, "k2__kernel__factor must be positive"),
        ({"k2__kernel__kernel__bias": -1.0}, "k2__kernel__kernel__bias must be 0 or more"),
        ({"k2__kernel__kernel__bias": [1.0, 2.0]}, "bias must be a scalar"),
        ({"k1__length_scale": float("nan")}, "k1__length_scale must be finite"),
    ],
)
def test_bad_values_of_parameters(values, message):
    kernel = kernels.rbf(0.3) + (2.0 * kernels.polynomial(2, 1.0)) ** 2
    with pytest.raises(ValueError, match=message):
        kernel.replace(**values)


@pytest.mark.usefixtures("as_users_call")
def test_kernels_without_parameters_say_so():
    with pytest.raises(ValueError, match=r"scale is no parameter of linear.*it has none"):
        kernels.linear().replace(scale=1.0)
    network = kernels.empirical_ntk(lambda w, x: x @ w, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"params must have shape \(3, 2\)"):
        network.replace(params=jnp.ones(3))
