"""Kernels.

Must hold: each Green's function is tested against its operator, by its eigenfunctions (int g(x,t)
phi(t) dt = phi(x)/lambda), by finite differences of L g = delta, or in Fourier space; jit, vmap and
grad with respect to length scales work, duplicates and near-duplicates included; points outside the
domain are refused.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
from sklearn.gaussian_process.kernels import RBF, Matern

from sdntk import decompose, gram, kernels

PI = np.pi
SPLINES = {
    "cubic_spline": (
        kernels.cubic_spline(),
        lambda k, x: np.sin(k * PI * x),
        lambda k: (k * PI) ** 4,
    ),
    "brownian_bridge": (
        kernels.brownian_bridge(),
        lambda k, x: np.sin(k * PI * x),
        lambda k: (k * PI) ** 2,
    ),
    "brownian_motion": (
        kernels.brownian_motion(),
        lambda k, x: np.sin((k - 0.5) * PI * x),
        lambda k: ((k - 0.5) * PI) ** 2,
    ),
}
for m in range(1, 8):
    for name, trig in (("cos", np.cos), ("sin", np.sin)):
        SPLINES[f"periodic_spline({m}), {name}"] = (
            kernels.periodic_spline(m),
            lambda k, x, trig=trig: trig(2 * PI * k * x),
            lambda k, m=m: (2 * PI * k) ** (2 * m),
        )


def integrate_against(kernel, x, function):
    """int_0^1 g(x, t) function(t) dt by Gauss-Legendre on both sides of the kink at t = x."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    total = 0.0
    for low, high in ((0, x), (x, 1)):
        t = low + (high - low) * (nodes + 1) / 2
        total += (
            (high - low)
            / 2
            * np.sum(weights * np.asarray(kernel(jnp.array([x]), t)[0]) * function(t))
        )
    return total


@pytest.mark.parametrize("case", SPLINES)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_eigenfunctions_of_the_operator(case, k):
    kernel, phi, eigenvalue = SPLINES[case]
    for x in (0.0, 0.13, 0.5, 0.77, 1.0):
        value = integrate_against(kernel, x, lambda t: phi(k, t))
        # Relative to 1/lambda_1: a kernel in float64 knows its k-th coefficient to 1e-16 of its
        # first.
        assert abs(value - phi(k, x) / eigenvalue(k)) < 1e-13 / eigenvalue(1)


@pytest.mark.parametrize("order", range(1, 8))
def test_constants_are_not_in_the_periodic_space(order):
    assert (
        abs(integrate_against(kernels.periodic_spline(order), 0.3, lambda t: np.ones_like(t)))
        < 1e-15
    )


@pytest.mark.parametrize("name", ["cubic_spline", "brownian_bridge", "brownian_motion"])
def test_operator_applied_to_kernel_is_a_delta(name):
    """Between the points L g = 0, and the (2m-1)-th derivative jumps by (-1)^m across t; boundary
    conditions hold.
    """
    kernel, order = getattr(kernels, name)(), 2 if name == "cubic_spline" else 1

    def derivative(n):
        f = kernel.pair
        for _ in range(n):
            f = jax.grad(f)
        return lambda x, t: f(jnp.asarray(x), jnp.asarray(t))

    for x, t in ((0.2, 0.6), (0.7, 0.3)):
        assert abs(derivative(2 * order)(x, t)) < 1e-12
    t, tiny = 0.4, 1e-9
    jump = derivative(2 * order - 1)(t + tiny, t) - derivative(2 * order - 1)(t - tiny, t)
    assert abs(jump - (-1) ** order) < 1e-6
    conditions = {
        "cubic_spline": [(0, 0.0), (0, 1.0), (2, 0.0), (2, 1.0)],
        "brownian_bridge": [(0, 0.0), (0, 1.0)],
        "brownian_motion": [(0, 0.0), (1, 1.0)],
    }[name]
    for n, end in conditions:
        assert abs(derivative(n)(end, t)) < 1e-12


def test_cubic_spline_is_the_papers_formula():
    x, t = jnp.linspace(0, 1, 41), jnp.linspace(0, 1, 37)
    a, b = x[:, None], t[None, :]
    formula = jnp.maximum(a - b, 0) ** 3 / 6 - a * (1 - b) * (a**2 - 2 * b + b**2) / 6
    np.testing.assert_allclose(kernels.cubic_spline()(x, t), formula, rtol=0, atol=1e-16)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6, 9])
def test_periodic_spline_is_its_fourier_series_and_its_bernoulli_polynomial(order):
    x = np.array([0.0, 0.1, 0.25, 0.5, 0.9, 1.7, -2.3])
    values = kernels.periodic_spline(order)(jnp.asarray(x), jnp.zeros(1))[:, 0]
    coefficients = np.array([float(scipy.special.comb(2 * order, j)) for j in range(2 * order + 1)])
    polynomial = np.polynomial.Polynomial(coefficients * scipy.special.bernoulli(2 * order)[::-1])
    # scipy's B_1 is -1/2, as Bernoulli polynomials want it
    exact = (
        (-1) ** (order - 1)
        * polynomial(x - np.floor(x))
        / float(scipy.special.factorial(2 * order))
    )
    np.testing.assert_allclose(
        values, exact, atol=1e-13 * abs(exact).max() * (1 if order < 7 else 1e3)
    )


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, 3.5, 7.5])
@pytest.mark.parametrize("length_scale", [0.7, [0.3, 1.0, 2.0]])
def test_matern_is_scikit_learns(nu, length_scale):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    np.testing.assert_allclose(
        kernels.matern(nu, length_scale)(x, t),
        Matern(length_scale, nu=nu)(x, t),
        rtol=1e-10,
        atol=1e-14,
    )


def test_rbf_is_scikit_learns():
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    np.testing.assert_allclose(kernels.rbf(0.7)(x, t), RBF(0.7)(x, t), rtol=1e-12)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, 3.5])
@pytest.mark.slow_cases
def test_matern_in_fourier_space(nu):
    """On the line g^(omega) is proportional to (2 nu/l^2 + omega^2)^-(nu + 1/2): L g = delta up to
    that factor.
    """
    length_scale = 0.8
    kernel = kernels.matern(nu, length_scale)

    def transform(omega):
        g = lambda r: float(kernel.pair(jnp.array([r]), jnp.zeros(1))) * np.cos(omega * r)  # noqa: E731
        return 2 * scipy.integrate.quad(g, 0, 40, limit=400)[0]

    symbol = lambda omega: (2 * nu / length_scale**2 + omega**2) ** (nu + 0.5)  # noqa: E731
    products = [transform(omega) * symbol(omega) for omega in (0.0, 0.5, 2.0, 5.0)]
    np.testing.assert_allclose(products, products[0], rtol=1e-6)


def test_rbf_in_fourier_space():
    """g^(omega) exp(l^2 omega^2/2) is constant: L = exp(-l^2 Laplacian/2) applied to g is a
    multiple of delta.
    """
    r, length_scale = np.linspace(-12, 12, 4001), 0.8
    g = np.asarray(kernels.rbf(length_scale)(jnp.asarray(r)[:, None], jnp.zeros((1, 1))))[:, 0]
    products = [
        np.trapezoid(g * np.cos(w * r), r) * np.exp(length_scale**2 * w**2 / 2)
        for w in (0.0, 0.5, 2.0, 5.0)
    ]
    np.testing.assert_allclose(products, products[0], rtol=1e-9)


STATIONARY = {
    "rbf": lambda length_scale: kernels.rbf(length_scale),
    **{
        f"matern({nu})": lambda length_scale, nu=nu: kernels.matern(nu, length_scale)
        for nu in (0.5, 1.5, 2.5, 4.5)
    },
}
POINTS = {
    "duplicates": jnp.array([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [0.3, 0.3]]),
    "near-duplicates": jnp.array(
        [[1e3, 1e3], [1e3, 1e3 + 1e-9], [1e3 + 1e-9, 1e3], [1e3, 1e3 + 1e-12], [1e3 + 1, 1e3]]
    ),
}


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("name", STATIONARY)
def test_derivatives_by_the_length_scale_and_positivity_with_duplicates(name, points):
    x, make = POINTS[points], STATIONARY[name]
    values = lambda length_scale: make(length_scale)(x, x)  # noqa: E731
    derivative = jax.jit(jax.jacfwd(values))(0.7)
    step = 1e-5
    np.testing.assert_allclose(
        derivative, (values(0.7 + step) - values(0.7 - step)) / (2 * step), atol=1e-8
    )
    np.testing.assert_allclose(
        jax.grad(lambda s: jnp.sum(values(s) ** 2))(0.7), jnp.sum(2 * values(0.7) * derivative)
    )
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(make(0.7)(x, x) ** 2))(x)))
    np.testing.assert_allclose(
        jax.vmap(values)(jnp.array([0.5, 0.7]))[1], values(0.7), rtol=1e-14
    )  # rounding
    assert np.all(np.diag(values(0.7)) == 1)
    assert (
        int(decompose(gram(make(0.7), x)).rank) >= {"duplicates": 3, "near-duplicates": 2}[points]
    )


@pytest.mark.parametrize("name", STATIONARY)
def test_gram_matrices_of_clustered_points_are_not_indefinite(name):
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(20, 5)), 10, axis=0) + 1e-10 * rng.normal(size=(200, 5)) + 100
    smallest = np.linalg.eigvalsh(np.asarray(gram(STATIONARY[name](1.0), x)))[0]
    assert smallest > -1e-15


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
@pytest.mark.parametrize("name", STATIONARY)
@pytest.mark.usefixtures("single_precision")
def test_float32_has_no_nan_at_any_scale(name, scale):
    x = scale * jnp.array([[0.0], [1.0], [2.0]])
    values, slope = jax.jvp(
        lambda s: STATIONARY[name](s)(x, x), (jnp.float32(1),), (jnp.float32(1),)
    )
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize(
    "make", [kernels.cubic_spline, kernels.brownian_bridge, kernels.brownian_motion]
)
@pytest.mark.parametrize("outside", [-1e-9, 1 + 1e-9, 3.0])
def test_points_outside_the_domain(make, outside):
    with pytest.raises(ValueError, match=r"x2 must lie in \[0, 1\]"):
        make()(jnp.array([0.5]), jnp.array([0.5, outside]))
    assert jax.jit(make())(jnp.array([0.5]), jnp.array([0.5])).shape == (1, 1)


def test_shapes():
    x = jnp.linspace(0, 1, 4)
    np.testing.assert_array_equal(
        kernels.cubic_spline()(x, x), kernels.cubic_spline()(x[:, None], x[:, None])
    )
    with pytest.raises(ValueError, match="a kernel on the line"):
        kernels.cubic_spline()(jnp.ones((3, 2)), x)
    images = jnp.linspace(0, 1, 24).reshape(3, 2, 4)
    np.testing.assert_array_equal(
        kernels.rbf(1.0)(images, images), kernels.rbf(1.0)(images.reshape(3, -1), images)
    )
    np.testing.assert_array_equal(kernels.rbf(1.0)(x, x), kernels.rbf(1.0)(x[:, None], x))
    with pytest.raises(ValueError, match="points of one shape"):
        kernels.rbf(1.0)(jnp.ones((3, 2)), jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="length_scale must be a scalar or have one entry"):
        kernels.rbf([1.0, 2.0])(jnp.ones((3, 3)), jnp.ones((3, 3)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kernels.rbf(0.0), ValueError, "length_scale must be positive"),
        (lambda: kernels.rbf(-1.0), ValueError, "length_scale must be positive"),
        (lambda: kernels.rbf(float("nan")), ValueError, "length_scale must be finite"),
        (lambda: kernels.rbf([[1.0]]), ValueError, "length_scale must be a scalar or one-dim"),
        (lambda: kernels.matern(1.0), ValueError, "nu must be a half-integer"),
        (lambda: kernels.matern(float("inf")), ValueError, "nu must be a half-integer"),
        (lambda: kernels.matern(-0.5), ValueError, "nu must be a half-integer"),
        (lambda: kernels.periodic_spline(0), ValueError, "order must be at least 1"),
        (lambda: kernels.periodic_spline(1.5), TypeError, "order"),
        (lambda: kernels.periodic_spline(True), TypeError, "order"),
    ],
)
def test_bad_hyperparameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_no_kernel_has_the_structure_of_another():
    """By which jit tells programs apart: once it ran the bridge's for the motion."""
    several = [
        kernels.brownian_bridge(),
        kernels.brownian_motion(),
        kernels.cubic_spline(),
        kernels.rbf(1.0),
        kernels.matern(1.5, 1.0),
    ]
    structures = [jax.tree.structure(kernel) for kernel in several]
    assert all(a != b for a, b in itertools.combinations(structures, 2))
