"""Sums, products, multiples and powers of kernels.

Must hold, of random expressions: values are NumPy's arithmetic on the parts' values, to 1e-14; the
text of a kernel, run in the namespace of sdntk.kernels, is the same kernel; derivatives by each
parameter are finite differences, to 1e-6; Gram matrices with duplicated points have no eigenvalue
below -K eps d_max. Each part checks shapes and domains of its points; runs with composed kernels
come back from files and stores know them; kernels of networks and plain functions take part;
precision bounds errors; other values of parameters compile nothing; bad input is refused by name.
"""

import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import kernels as sklearn_kernels
from sklearn.metrics.pairwise import laplacian_kernel, polynomial_kernel

import sdntk
from sdntk import architectures, kernels
from sdntk._pytrees import pytree
from sdntk.kernels import algebra, base
from sdntk.kernels.base import LibraryKernel, kernel_precision

RNG = np.random.default_rng(0)
X1, X2 = RNG.uniform(size=(5, 3)), RNG.uniform(size=(4, 3))
REPEATED = np.repeat(X1, [3, 1, 2, 4, 2], axis=0)


# ---- random expressions ----

# What is drawn is how a kernel is made: hypothesis does not let kernels be made while it draws.
lengths, factors = st.floats(0.2, 3.0), st.floats(0.01, 5.0)
atoms = st.one_of(
    st.tuples(st.just("rbf"), lengths),
    st.tuples(st.just("rbf"), st.lists(lengths, min_size=3, max_size=3)),
    st.tuples(st.just("matern"), st.sampled_from([0.5, 2.5]), lengths),
    st.tuples(st.just("laplace"), lengths),
    st.tuples(st.just("linear")),
    st.tuples(st.just("polynomial"), st.sampled_from([2, 3]), st.floats(0, 2)),
    st.tuples(st.just("constant"), factors),
    st.tuples(st.just("on"), st.integers(0, 2), st.just(("cubic_spline",))),
    st.tuples(st.just("on"), st.integers(0, 2), st.just(("periodic_spline", 2))),
    st.tuples(st.just("on"), st.integers(0, 2), st.tuples(st.just("rbf"), lengths)),
)
recipes = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from("+*"), inner, inner),
        st.tuples(st.sampled_from("+*"), inner, factors),
        st.tuples(st.sampled_from("+*"), factors, inner),
        st.tuples(st.just("^"), inner, st.integers(1, 3)),
    ),
    max_leaves=5,
)
OPERATORS = {"+": operator.add, "*": operator.mul, "^": operator.pow}


def made(recipe):
    """The kernel, and NumPy's way from the values of its atoms to its own."""
    if not isinstance(recipe, tuple):
        return recipe, lambda *_points: recipe
    name, *arguments = recipe
    if name in OPERATORS:
        (left, f), (right, g) = map(made, arguments)
        apply = OPERATORS[name]
        return apply(left, right), lambda x1, x2: apply(f(x1, x2), g(x1, x2))
    if name == "on":
        column, inner = arguments
        kernel = kernels.on_columns(made(inner)[0], [column])
    else:
        kernel = getattr(kernels, name)(*arguments)
    return kernel, lambda x1, x2: np.asarray(kernel(x1, x2))


@settings(max_examples=150, deadline=None)
@given(recipes)
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
def test_derivatives_are_finite_differences(recipe):
    kernel, _ = made(recipe)
    smallest = min(map(np.min, kernel.parameters.values()), default=1.0)
    assume(smallest > 1e-3)  # steps are a part of a parameter: a bias of 1e-300 has none
    total = lambda kernel: jnp.sum(WEIGHTS * kernel(X1, X2))  # noqa: E731
    scale = float(jnp.sum(abs(WEIGHTS) * abs(kernel(X1, X2))))
    for name, exact, difference in derivatives_by_name(total, kernel):
        assert abs(exact - difference) <= 1e-6 * max(abs(exact), scale), name


@pytest.mark.parametrize("quantity", ["training_loss", "multipliers", "norms"])
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
    assert jax.tree.structure(again) == jax.tree.structure(run)
    np.testing.assert_array_equal(again.predict(X2), run.predict(X2))


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
