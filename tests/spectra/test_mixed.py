"""Mixtures of a chain's rounds.

Must hold: run.mix(w) is sum_j w_j f_j, on training points and new ones, for every spectrum,
tolerances and multipliers, weights of all outputs or of each, traced or not, with the derivatives
of the rounds; a round of weight 0 does not count; twicing and its like are members; a mixture can
be saved. Shown against the run's own rounds, and against filters. Bad weights are refused by name.
"""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import sdntk
from sdntk import filters, kernels

X = jnp.linspace(0.03, 0.97, 25)
NEW = jnp.array([0.1, 0.42, 0.77])
KERNEL = kernels.matern(1.5, 0.3)
Y = jnp.sin(6 * X) + 0.3 * jax.random.normal(jax.random.key(0), X.shape)
Y2 = jnp.stack([Y, jnp.cos(4 * X)], axis=1)
TOLERANCE, MULTIPLIER = {"tolerance": 0.05}, {"multiplier": 0.01}
QUICK = [
    ("dense", TOLERANCE, "separate"),
    ("dense", MULTIPLIER, "joint"),
    ("tridiagonal", TOLERANCE, None),
    ("krylov", MULTIPLIER, "separate"),
]
OTHERS = [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in itertools.product(
        ("dense", "tridiagonal", "krylov"), (TOLERANCE, MULTIPLIER), (None, "separate", "joint")
    )
    if case not in QUICK
]


@pytest.mark.parametrize(("method", "level", "outputs"), [*QUICK, *OTHERS])
@pytest.mark.slow_cases
def test_a_mixture_is_the_weighted_sum_of_the_rounds(method, level, outputs):
    y = Y if outputs is None else Y2
    run = sdntk.distill(
        KERNEL, X, y, **level, rounds=3, outputs=outputs or "separate", method=method
    )
    shapes = [(3,)] if outputs is None else [(3,), (3, 2)]
    for shape in shapes:
        w = np.random.default_rng(1).normal(size=shape)
        by_output = w.reshape(3, 1, *w.shape[1:], *(1,) * (y.ndim - w.ndim))
        fit = run.mix(w)
        assert isinstance(fit, sdntk.SpectralFit)
        for name, of_rounds in (
            ("fitted", run.fitted),
            ("dual_coefficients", run.dual_coefficients),
        ):
            expected = np.sum(by_output * np.asarray(of_rounds), axis=0)
            atol = 1e-11 * np.abs(np.asarray(of_rounds)).max()
            np.testing.assert_allclose(getattr(fit, name), expected, atol=atol)
        predicted = np.sum(by_output * np.asarray(run.predict(NEW)), axis=0)
        np.testing.assert_allclose(fit.predict(NEW), predicted, atol=1e-11)
        cross = sdntk.gram(KERNEL, NEW, X)
        np.testing.assert_allclose(fit.predict_from(cross), predicted, atol=1e-11)
        if method == "dense":
            by_filter = sdntk.fit_filter(run.spectrum, y, fit.filter)
            np.testing.assert_allclose(by_filter.fitted, fit.fitted, atol=1e-12)
        elif method == "tridiagonal":
            assert fit.filter is None


@pytest.mark.slow
def test_traced_mixtures_and_derivatives_by_weights():
    run = sdntk.distill(KERNEL, X, Y2, tolerance=[0.05, 0.1], rounds=3)
    w = jnp.array([1.5, 0.0, -0.5])
    fitted = lambda w: run.mix(w).fitted  # noqa: E731
    np.testing.assert_allclose(jax.jit(fitted)(w), run.mix(w).fitted, atol=1e-13)
    several = jax.vmap(fitted)(jnp.stack([w, 2 * w]))
    np.testing.assert_allclose(several[1], 2 * run.mix(w).fitted, atol=1e-13)
    derivative = jnp.moveaxis(jax.jacobian(fitted)(w), -1, 0)  # also where a weight is 0
    np.testing.assert_allclose(derivative, run.fitted, atol=1e-13)
    of_labels = jax.vmap(
        lambda y: sdntk.distill_spectrum(run.spectrum, y, tolerance=0.05, rounds=3).mix(w).fitted
    )
    single = sdntk.distill(KERNEL, X, Y, tolerance=0.05, rounds=3)
    np.testing.assert_allclose(of_labels(Y[None])[0], single.mix(w).fitted, atol=1e-12)


def test_derivatives_by_the_kernel_are_those_of_the_rounds():
    def value(length_scale, mixed):
        kernel = kernels.matern(1.5, length_scale)
        run = sdntk.distill(kernel, X, Y, tolerance=0.05, rounds=2)
        return run.mix([2.0, -1.0]).predict(NEW)[0] if mixed else run.predict(NEW)[:, 0] @ weights

    weights = jnp.array([2.0, -1.0])
    slopes = [jax.grad(value)(0.3, mixed) for mixed in (True, False)]
    np.testing.assert_allclose(*slopes, rtol=1e-9)


def test_a_round_without_weight_does_not_count():
    """Not even where it is infeasible (traced): nan."""
    spectrum = sdntk.decompose(np.diag([0.0, 1.0, 2.0]))
    y = jnp.array([1.0, 2.0, 3.0])

    def fitted(tolerance, w):
        return sdntk.distill_spectrum(spectrum, y, tolerance=tolerance, rounds=2).mix(w).fitted

    feasible = jax.jit(fitted)(1.0, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(feasible, jax.jit(fitted)(1.0, jnp.array([1, 0])), atol=0)
    assert np.isnan(jax.jit(fitted)(0.01, jnp.array([1.0, 1.0]))).all()
    assert (np.asarray(jax.jit(fitted)(0.01, jnp.zeros(2))) == 0).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_twicing_and_its_like_are_members(count):
    """1 - (1 - A)^m = sum_j -(-1)^{j+1} binom(m, j + 1) A^{j+1}."""
    run = sdntk.distill(KERNEL, X, Y, multiplier=0.02, rounds=count)
    w = [-((-1) ** (j + 1)) * float(mpmath.binomial(count, j + 1)) for j in range(count)]
    assert sum(w) == 1
    expected = filters.iterated_tikhonov(run.eigenvalues, 0.02, count)
    np.testing.assert_allclose(run.mix(w).filter, expected, atol=1e-14 * 2**count)
    fit = sdntk.fit_filter(run.spectrum, Y, expected, kernel=KERNEL, x=X)
    np.testing.assert_allclose(run.mix(w).predict(NEW), fit.predict(NEW), atol=1e-12 * 2**count)


def test_a_mixture_in_a_file(tmp_path):
    run = sdntk.distill(KERNEL, X, Y, multiplier=0.02, rounds=2)
    run.mix([2.0, -1.0]).save(tmp_path / "fit.npz")
    again = sdntk.load(tmp_path / "fit.npz")
    np.testing.assert_array_equal(again.predict(NEW), run.mix([2.0, -1.0]).predict(NEW))


RUN = sdntk.distill(KERNEL, X, Y2, multiplier=0.02, rounds=2)
OF_A_TOLERANCE = sdntk.distill(KERNEL, X, Y, tolerance=0.1, rounds=2)
STACKED = jax.vmap(lambda c: sdntk.distill_spectrum(RUN.spectrum, Y, multiplier=c, rounds=2))(
    jnp.array([0.1, 0.2])
)

BAD = {
    "shape": (lambda: RUN.mix([1.0]), ValueError, r"weights must have shape \(2,\).*\(2, 2\).*\(1"),
    "outputs": (lambda: RUN.mix(np.ones((2, 3))), ValueError, r"weights.*\(2, 3\)"),
    "no outputs": (
        lambda: OF_A_TOLERANCE.mix(np.ones((2, 1))),
        ValueError,
        r"weights must have shape \(2,\), a number for each round; their shape is \(2, 1\)",
    ),
    "nan": (lambda: RUN.mix([1.0, np.nan]), ValueError, "weights must be finite"),
    "booleans": (lambda: RUN.mix([True, False]), TypeError, "weights must be a number"),
    "stacked": (lambda: STACKED.mix([1.0, 0.0]), ValueError, "stacked by jax.vmap"),
}


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("case", BAD)
def test_bad_weights(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("chain", [{"tolerance": 0.05}, {"multiplier": 0.02}])
@pytest.mark.parametrize("outputs", ["separate", "joint"])
@pytest.mark.slow_cases
def test_degrees_of_freedom_of_mixtures(chain, outputs):
    """Those of the Jacobian, and the weighted sum of the rounds'."""
    w = jnp.array([0.5, -1.0, 1.2])
    spectrum = sdntk.decompose(sdntk.gram(kernels.matern(1.5, 0.3), X))

    def run(y):
        return sdntk.distill_spectrum(spectrum, y, rounds=3, outputs=outputs, **chain)

    by_output = jnp.einsum("kqkq->q", jax.jacfwd(lambda y: run(y).mix(w).fitted)(Y2))
    expected = by_output.sum() if outputs == "joint" else by_output
    found = run(Y2).mix(w).degrees_of_freedom
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(run(Y2).fits[1].degrees_of_freedom, run(Y2).degrees_of_freedom[1])
    if outputs == "joint":
        assert run(Y2).mix(jnp.stack([w, w], axis=1)).degrees_of_freedom is None
