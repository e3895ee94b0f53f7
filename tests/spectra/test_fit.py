"""Filters that fit.

Must hold: a fit by a filter equals the iteration or closed form that the filter stands for, on the
training points and anywhere else: ridge a linear solve, iterated Tikhonov the refits to residuals,
truncation a projection on principal components, gradient descent its steps, gradient flow their
limit, a round of a chain the chain. With a null space (the paper's example) predictions at the
training points are the fitted values, all finite. Bad filters are refused by name.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sdntk
from sdntk import filters, kernels

X = jnp.linspace(0.03, 0.97, 25)
Y = jnp.sin(6 * X) + 0.3 * jax.random.normal(jax.random.key(0), X.shape)
NEW = jnp.array([0.1, 0.42, 0.77])
KERNEL = kernels.matern(1.5, 0.3)
G = np.asarray(sdntk.gram(KERNEL, X))
CROSS = np.asarray(sdntk.gram(KERNEL, NEW, X))
SPECTRUM = sdntk.decompose(G)
C, STEP, COUNT = 0.02, 1.5, 7


def fit(filter_, y=Y):
    return sdntk.fit_filter(SPECTRUM, y, filter_, kernel=KERNEL, x=X)


def by_ridge():
    duals = np.linalg.solve(C * np.eye(25) + G, Y)
    return G @ duals, CROSS @ duals


def by_refitting_residuals():
    duals = np.zeros(25)
    for _ in range(COUNT):
        duals += np.linalg.solve(C * np.eye(25) + G, np.asarray(Y) - G @ duals)
    return G @ duals, CROSS @ duals


def by_principal_components():
    d, vectors = np.linalg.eigh(G)
    duals = vectors[:, -COUNT:] @ ((vectors[:, -COUNT:].T @ np.asarray(Y)) / d[-COUNT:])
    return G @ duals, CROSS @ duals


def by_gradient_descent():
    duals = np.zeros(25)
    for _ in range(COUNT):
        duals += STEP * (np.asarray(Y) - G @ duals)
    return G @ duals, CROSS @ duals


def by_many_small_steps():
    duals, steps = np.zeros(25), 200_000
    for _ in range(steps):
        duals += STEP / steps * (np.asarray(Y) - G @ duals)
    return G @ duals, CROSS @ duals


CASES = {
    "ridge": (lambda d: filters.ridge(d, C), by_ridge, 1e-11),
    "iterated Tikhonov": (
        lambda d: filters.iterated_tikhonov(d, C, COUNT),
        by_refitting_residuals,
        1e-11,
    ),
    "truncated": (lambda d: filters.truncated(d, COUNT), by_principal_components, 1e-11),
    "gradient descent": (
        lambda d: filters.gradient_descent(d, STEP, COUNT),
        by_gradient_descent,
        1e-12,
    ),
    "gradient flow": (lambda d: filters.gradient_flow(d, STEP), by_many_small_steps, 1e-5),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fit_is_what_its_filter_stands_for(name):
    filter_, reference, rtol = CASES[name]
    fitted, predicted = reference()
    done = fit(filter_)
    scale = np.abs(Y).max()
    np.testing.assert_allclose(done.fitted, fitted, atol=rtol * scale)
    np.testing.assert_allclose(done.predict(NEW), predicted, atol=rtol * scale)
    np.testing.assert_allclose(done.predict_from(CROSS), predicted, atol=rtol * scale)
    np.testing.assert_allclose(CROSS @ done.dual_coefficients, predicted, atol=rtol * scale)
    by_array = fit(filter_(SPECTRUM.eigenvalues))
    np.testing.assert_array_equal(by_array.fitted, done.fitted)


@given(
    st.floats(1e-6, 1e3), st.integers(0, 30), st.lists(st.floats(0, 1e3), min_size=1, max_size=5)
)
@settings(deadline=None, max_examples=200)
def test_filters_are_their_powers(c, count, d):
    d = np.asarray(d)
    expected = 1 - (c / (c + d)) ** count
    np.testing.assert_allclose(
        filters.iterated_tikhonov(d, c, count), expected, rtol=1e-9, atol=1e-13
    )
    step = min(c, 1.9 / max(d.max(), 1e-3))
    np.testing.assert_allclose(
        filters.gradient_descent(d, step, count),
        1 - (1 - step * d) ** count,
        rtol=1e-9,
        atol=1e-13,
    )


def test_small_filters_keep_their_digits():
    """1 - (1 - x)^m cancels where x is small; F/d is then its limit, m times the slope."""
    d = np.array([1e-14, 1e-200])
    np.testing.assert_allclose(filters.iterated_tikhonov(d, 1.0, 3) / d, 3, rtol=1e-13)
    np.testing.assert_allclose(filters.gradient_descent(d, 0.5, 4) / d, 2, rtol=1e-13)


def test_truncation_keeps_the_largest_wherever_they_stand_and_never_a_zero():
    assert filters.truncated([3.0, 0.0, 1.0, 2.0], 2).tolist() == [1, 0, 0, 1]
    assert filters.truncated([3.0, 0.0, 0.0], 2).tolist() == [1, 0, 0]
    assert filters.truncated([1.0, 1.0, 1.0], 2).tolist() == [0, 1, 1]
    assert filters.truncated([1.0, 2.0], 5).tolist() == [1, 1]
    several = jnp.array([[1.0, 3.0], [2.0, 1.0]])
    assert filters.truncated(several, 1).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("method", ["dense", "tridiagonal", "krylov"])
@pytest.mark.parametrize("outputs", [None, "separate", "joint"])
@pytest.mark.slow_cases
def test_the_rounds_of_a_run_are_fits(method, outputs):
    y = Y if outputs is None else jnp.stack([Y, jnp.cos(4 * X)], axis=1)
    run = sdntk.distill(
        KERNEL, X, y, tolerance=0.05, rounds=3, outputs=outputs or "separate", method=method
    )
    predicted = run.predict(NEW)
    assert len(run.fits) == 3
    for t, one in enumerate(run.fits):
        np.testing.assert_allclose(one.fitted, run.fitted[t], atol=1e-13)
        np.testing.assert_allclose(
            one.dual_coefficients, run.dual_coefficients[t], rtol=1e-12, atol=1e-12
        )
        np.testing.assert_allclose(one.predict(NEW), predicted[t], atol=1e-12)
    if method == "dense":
        by_filter = fit(run.filters[1], y)
        np.testing.assert_allclose(by_filter.fitted, run.fitted[1], atol=1e-12)
        np.testing.assert_allclose(by_filter.predict(NEW), predicted[1], atol=1e-12)


def test_null_spaces_are_safe():
    """At both ends of the paper's example every function is 0, and two eigenvalues are."""
    x, y = sdntk.datasets.mobahi_example()
    kernel = kernels.cubic_spline()
    spectrum = sdntk.decompose(sdntk.gram(kernel, x))
    assert int(spectrum.rank) == len(x) - 2
    for filter_, *_ in CASES.values():
        done = sdntk.fit_filter(spectrum, y, filter_, kernel=kernel, x=x)
        assert np.isfinite(done.dual_coefficients).all()
        np.testing.assert_allclose(done.predict(x), done.fitted, atol=1e-12)
        np.testing.assert_array_equal(np.asarray(done.predict(x))[[0, -1]], 0)


def test_a_filter_on_ritz_values():
    operator = sdntk.as_operator(jnp.asarray(G))
    spectrum = sdntk.krylov(operator, Y, multiplier=C, rounds=1, rtol=1e-9)
    done = sdntk.fit_filter(spectrum, Y, lambda d: filters.ridge(d, C))
    np.testing.assert_allclose(done.fitted, by_ridge()[0], atol=1e-8)


def test_jit_vmap_and_derivatives():
    def loss(y, c):
        done = sdntk.fit_filter(SPECTRUM, y, lambda d: filters.ridge(d, c), kernel=KERNEL, x=X)
        return jnp.sum(done.predict(NEW) ** 2)

    value, slope = jax.jit(jax.value_and_grad(loss, argnums=1))(Y, C)
    step = 1e-6
    difference = (loss(Y, C + step) - loss(Y, C - step)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    several = jax.vmap(loss, in_axes=(None, 0))(Y, jnp.array([C, 2 * C]))
    np.testing.assert_allclose(several[0], value, rtol=1e-12)


def test_derivatives_by_the_kernel_are_refused():
    """They would need those of eigenvectors; a chain's do not."""

    def predicted(length_scale):
        kernel = kernels.rbf(length_scale)
        spectrum = sdntk.decompose(sdntk.gram(kernel, X))
        flow = lambda d: filters.gradient_flow(d, 30.0)  # noqa: E731
        return sdntk.fit_filter(spectrum, Y, flow, kernel=kernel, x=X).predict(NEW)[0]

    assert np.isfinite(jax.jit(predicted)(0.3))
    for derivative in (jax.grad(predicted), jax.jacfwd(predicted)):
        with pytest.raises(NotImplementedError, match="filter's fit with respect to the Gram"):
            derivative(0.3)


def test_dual_coefficients_are_computed_once_and_leak_into_no_trace(monkeypatch):
    run = sdntk.distill(KERNEL, X, Y, tolerance=0.05, rounds=3)
    counted = []
    compute = type(run).compute_duals
    monkeypatch.setattr(type(run), "compute_duals", lambda self: counted.append(1) or compute(self))
    traced = jax.jit(run.predict)(NEW)  # first asked for inside a trace
    np.testing.assert_allclose(run.predict(NEW), traced, rtol=1e-12)
    run.predict(NEW[:1])
    assert counted == [1]


BAD = {
    "no spectrum": (lambda: sdntk.fit_filter(G, Y, jnp.ones(25)), TypeError, "spectrum must be"),
    "no eigenvectors": (
        lambda: sdntk.fit_filter(sdntk.tridiagonalise(G), Y, jnp.ones(25)),
        ValueError,
        "spectrum must have eigenvectors.*TridiagonalSpectrum",
    ),
    "shape": (lambda: fit(jnp.ones(24)), ValueError, r"filter must have shape \(25,\).*\(24,\)"),
    "shape of outputs": (
        lambda: fit(jnp.ones((25, 3)), jnp.stack([Y, Y], axis=1)),
        ValueError,
        r"filter must have shape \(25,\).*or \(25, 2\).*\(25, 3\)",
    ),
    "nan": (lambda: fit(jnp.full(25, jnp.nan)), ValueError, "filter must be finite"),
    "text": (lambda: fit("ridge"), TypeError, "filter must hold real numbers"),
    "kernel without points": (
        lambda: sdntk.fit_filter(SPECTRUM, Y, jnp.ones(25), kernel=KERNEL),
        ValueError,
        "kernel and x must be given together",
    ),
    "other points": (
        lambda: sdntk.fit_filter(SPECTRUM, Y, jnp.ones(25), kernel=KERNEL, x=X[:5]),
        ValueError,
        "x must hold the 25 training points",
    ),
    "not 0 at 0": (
        lambda: sdntk.fit_filter(sdntk.decompose(np.diag([0.0, 1.0])), [1.0, 1.0], jnp.ones(2)),
        ValueError,
        "filter must be 0 where an eigenvalue is 0",
    ),
    "no kernel": (
        lambda: sdntk.fit_filter(SPECTRUM, Y, jnp.ones(25)).predict(NEW),
        ValueError,
        "predict_from",
    ),
    "diverging steps": (
        lambda: filters.gradient_descent([1.0, 3.0], 0.7, 5),
        ValueError,
        "step must be below 2/d_max",
    ),
    "negative count": (lambda: filters.gradient_descent([1.0], 0.1, -1), ValueError, "count"),
    "negative multiplier": (
        lambda: filters.iterated_tikhonov([1.0], -1.0, 2),
        ValueError,
        "multiplier must be positive",
    ),
    "negative eigenvalue": (lambda: filters.truncated([-1.0], 1), ValueError, "eigenvalues"),
    "negative rank": (lambda: filters.truncated([1.0], -1), ValueError, "rank"),
}


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_repr():
    assert repr(fit(jnp.ones(25))) == "SpectralFit(25 points, matern(1.5, 0.3))"
