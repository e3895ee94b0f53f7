"""Weights of the ground truth on the Krylov path (docs/krylov_bounds.md).

Must hold: of chains to a tolerance with weights in [0, 1] in any order, and of chains with a
multiplier and weights of any size, no error bound is below the true error, by 50 digits, at any
number of steps, in rounds that wake up after a collapse too; the accuracy asked for is reached, and
bounds are not far above errors. Weights outside [0, 1] with a tolerance are refused by name, have
infinite bounds where they are traced, and make ``method="auto"`` dense.
"""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import exact_chain, ritz_spectrum

import sdntk
from sdntk import Status
from sdntk.spectra import choose
from sdntk.spectra.lanczos import lanczos_extend, lanczos_init

K, ROUNDS = 40, 7


def instance(seed):
    """G = diag(d) and labels, so that chains are known exactly."""
    rng = np.random.default_rng(seed)
    d = np.sort(10.0 ** rng.uniform(-rng.uniform(1, 5), 0, K))
    return rng, d, rng.normal(size=K) * d ** rng.uniform(0, 1)


def known_after(d, y, steps):
    operator = sdntk.as_operator(jnp.diag(jnp.asarray(d)))
    process = lanczos_extend(lanczos_init(jnp.asarray(y)), operator, steps)
    return ritz_spectrum(process)


@functools.partial(jax.jit, static_argnames="by")
def run_traced(spectrum, y, level, weights, by):
    return sdntk.distill_spectrum(
        spectrum, y, **{by: level}, rounds=ROUNDS, ground_truth_weight=weights
    )


def relative(found, exact):
    """|found - exact| / |exact|."""
    found = [mpmath.mpf(float(v)) for v in found]
    off = mpmath.fsum((a - b) ** 2 for a, b in zip(found, exact, strict=True))
    return float(mpmath.sqrt(off / mpmath.fsum(v**2 for v in exact)))


@pytest.mark.parametrize("steps", [2, 4, 7])
def test_bounds_to_a_tolerance_hold_for_weights_in_any_order(steps):
    known = awake = collapsed = 0
    ratios = []
    for seed in range(16):
        rng, d, y = instance(seed)
        weights = rng.uniform(0, 1, ROUNDS - 1) ** 2
        weights = np.where(
            rng.uniform(size=ROUNDS - 1) < 0.4, rng.integers(0, 2, ROUNDS - 1), weights
        )
        level = rng.choice([0.1, 0.3, 0.6]) * np.mean(y**2)
        run = run_traced(known_after(d, y, steps), y, level, weights, "tolerance")
        for t, (status, c, fit) in enumerate(exact_chain(d, y, level, weights)):
            of_c, of_fit = (float(bound[t]) for bound in run.error_bounds)
            if not np.isfinite(of_fit):
                continue
            assert run.status[t] == status
            if status == Status.COLLAPSED:
                assert of_c == of_fit == 0
                collapsed += 1
                continue
            error = relative(run.fitted[t], fit)
            assert error <= of_fit
            assert abs(float(c / mpmath.mpf(float(run.multipliers[t]))) - 1) <= 1.05 * of_c
            ratios.append(of_fit / error)
            known += 1
            awake += t > 0 and run.status[t - 1] == Status.COLLAPSED
    assert known > 10
    if steps > 2:
        assert awake > 5
        assert collapsed > 8
        assert np.median(ratios) < 30


@pytest.mark.parametrize("steps", [2, 4, 7])
def test_bounds_with_a_multiplier_hold_for_weights_of_any_size(steps):
    ratios = []
    for seed in range(16):
        rng, d, y = instance(seed)
        weights = rng.normal(0.5, 1.5, ROUNDS - 1)
        level = 10.0 ** rng.uniform(-2, 0)
        run = run_traced(known_after(d, y, steps), y, level, weights, "multiplier")
        assert not np.asarray(run.error_bounds.multipliers).any()
        exact = exact_chain(d, y, None, weights, multiplier=level)
        for t, (_, _, fit) in enumerate(exact):
            bound = float(run.error_bounds.fitted[t])
            error = relative(run.fitted[t], fit)
            assert error <= bound
            ratios.append(bound / error)
    assert np.isfinite(ratios).sum() > 60
    assert np.median(ratios) < 30 or steps == 2


X = jax.random.normal(jax.random.key(0), (300, 3))
Y = jnp.stack([jnp.sin(X[:, 0]), X[:, 1] * X[:, 2]], axis=1)
KERNEL = sdntk.kernels.matern(1.5, 2.0)
OUTSIDE = [0.2, -0.5, 1.5]


@pytest.mark.slow
def test_the_accuracy_asked_for_is_reached():
    chains = [
        {"tolerance": 0.3, "outputs": "joint", "ground_truth_weight": [0.0, 1.0, 0.3]},
        {"multiplier": 0.01, "ground_truth_weight": OUTSIDE},
    ]
    for options in chains:
        run, exact = (
            sdntk.distill(KERNEL, X, Y, rounds=4, method=method, **options)
            for method in ("krylov", "dense")
        )
        np.testing.assert_array_equal(run.status, exact.status)
        assert float(max(bound.max() for bound in run.error_bounds)) <= 1e-6
        scale = float(jnp.abs(exact.fitted).max())
        np.testing.assert_allclose(run.fitted, exact.fitted, atol=2e-6 * scale)
        assert int(run.spectrum.steps) < 100


def test_weights_outside_the_unit_interval_are_refused_with_a_tolerance():
    chain = {"tolerance": 0.2, "rounds": 4}
    operator = sdntk.kernel_operator(KERNEL, X)
    spectrum = sdntk.krylov(operator, Y, **chain)
    calls = [
        lambda weight: sdntk.distill(
            KERNEL, X, Y, method="krylov", ground_truth_weight=weight, **chain
        ),
        lambda weight: sdntk.krylov(operator, Y, ground_truth_weight=weight, **chain),
        lambda weight: sdntk.distill_spectrum(spectrum, Y, ground_truth_weight=weight, **chain),
    ]
    for call in calls:
        for weight in (OUTSIDE, -0.1, 1.5):
            with pytest.raises(
                ValueError, match="ground_truth_weight must lie between 0 and 1 where"
            ):
                call(weight)
    traced = jax.jit(
        lambda weight: sdntk.distill_spectrum(spectrum, Y, ground_truth_weight=weight, **chain)
    )
    assert np.isfinite(np.stack(traced(jnp.array([0.5, 1.0, 0.0])).error_bounds)).all()
    run = traced(jnp.array(OUTSIDE))
    assert (run.status[0] == Status.ACTIVE).all()
    assert np.isposinf(np.stack(run.error_bounds)).all()


@pytest.mark.slow
def test_auto_takes_the_dense_method_for_them(monkeypatch):
    monkeypatch.setattr(choose, "DENSE_POINTS", 100)
    auto = functools.partial(sdntk.distill, KERNEL, X, Y, rounds=4, method="auto")
    run = auto(tolerance=0.2, ground_truth_weight=OUTSIDE)
    assert run.method == sdntk.Method.DENSE
    assert run.method_reason == "300 points are many, but ground_truth_weight leaves [0, 1]"
    assert auto(multiplier=0.05, ground_truth_weight=OUTSIDE).method == sdntk.Method.KRYLOV
    assert auto(tolerance=0.2, ground_truth_weight=[0, 1, 0.5]).method == sdntk.Method.KRYLOV
    with pytest.raises(TypeError, match="ground_truth_weight must hold real numbers"):
        auto(tolerance=0.2, ground_truth_weight="much")
