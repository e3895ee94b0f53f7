"""The multiplier of one fit.

Must hold: at most 6 iterations on average and never more than 25, cold, on adversarial spectra;
relative error of c at most 1e-12 times max(1, its condition number) in float64; three states,
collapse tested first; no nan.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import exact_recurrence, spectrum_and_labels
from hypothesis import given, settings
from hypothesis import strategies as st

import sdntk
from sdntk.theory.multiplier import MAX_ITERATIONS, solve, support_of


@jax.jit
def solve_all(d, z, s2):
    def one(item):
        d, z, s2 = item
        support = support_of(d)
        return solve(support, support.split(z), jnp.sqrt(s2), jnp.zeros_like(s2))

    return jax.lax.map(one, (d, z, s2))


def adversarial(seed, count, size, dtype):
    """Spectra spread or in two clusters; labels spread over decades or with a plateau; radii at the
    plateaus' edges, near interpolation and near collapse."""
    rng = np.random.default_rng(seed)
    digits = -np.log10(np.finfo(dtype).eps)
    condition = 10 ** rng.uniform(0, digits - 1, (count, 1))
    kind = rng.integers(0, 4, (count, 1))
    spread = rng.uniform(size=(count, size))
    clusters = np.clip((rng.uniform(size=(count, size)) > 0.5) + 1e-3 * spread, 0, 1)
    d = condition ** -np.where(kind < 2, spread, clusters)
    small = d < np.sqrt(d.min(1, keepdims=True) * d.max(1, keepdims=True))
    decades = rng.uniform(0, digits / 2, (count, size))
    z = rng.normal(size=(count, size)) * 10 ** -np.where(
        kind % 2, decades, np.where(small, 0, decades[:, :1])
    )
    n = np.linalg.norm(z, axis=1)
    near_end = 10 ** -rng.uniform(0, digits / 2, count)
    ratio = np.where(rng.uniform(size=count) < 0.5, 0.999 * near_end, 1 - near_end)
    plateau = np.linalg.norm(np.where(small, z, 0), axis=1) / n
    at_edge = (rng.uniform(size=count) < 0.3) & (plateau > 0) & (plateau < 0.99)
    edge = plateau * (1 + rng.choice([-1, 1], count) * 10 ** -rng.uniform(1, digits - 4, count))
    ratio = np.minimum(np.where(at_edge, edge, ratio), 1 - 10 ** (-digits / 1.6))
    return d.astype(dtype), z.astype(dtype), ((ratio * n) ** 2).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [2, 3, 5, 20, 100])
def test_iterations_on_adversarial_spectra(size, dtype):
    d, z, s2 = adversarial(size, 10_000, size, dtype)
    found = solve_all(d, z, s2)
    active = np.asarray(found.status) == sdntk.Status.ACTIVE
    iterations = np.asarray(found.iterations)[active]
    assert active.mean() > 0.99
    assert iterations.mean() <= 6
    assert iterations.max() < MAX_ITERATIONS == 25  # never stopped by the limit
    assert np.all(np.isfinite(found.value[active]))
    assert np.all(found.value[active] > 0)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([1, 2, 3, 8, 30]), index=st.integers(0, 99))
def test_error_against_50_digits(seed, size, index):
    d, z, s2 = (values[index] for values in adversarial(seed, 100, size, np.float64))
    found = sdntk.solve_multiplier(d, z, s2 / size)
    if found.status != sdntk.Status.ACTIVE:
        return
    [(c, _, condition)], _ = exact_recurrence(d, z, s2 / size, rounds=1)
    n, s = np.linalg.norm(z), np.sqrt(s2)
    condition = max(1, float(condition), n / (n - s))
    assert abs(float(found.value) / float(c) - 1) <= 1e-12 * condition


@pytest.mark.parametrize("ratio", [1e-6, 0.1, 0.5, 0.999])
def test_closed_form_of_a_single_eigenvalue(ratio):
    d, z = jnp.full(4, 0.3), jnp.array([1.0, -2.0, 0.5, 3.0])
    n = jnp.linalg.norm(z)
    found = sdntk.solve_multiplier(d, z, (ratio * n) ** 2 / 4)
    np.testing.assert_allclose(found.value, 0.3 * ratio / (1 - ratio), rtol=1e-12)
    assert int(found.iterations) <= 2


def test_null_space_is_deflated_exactly():
    d, z = spectrum_and_labels(0, 9, condition=1e5, nulls=3)
    eps = np.sum(z[:3] ** 2) / 9 + 0.01
    whole = sdntk.solve_multiplier(d, z, eps)
    range_only = sdntk.solve_multiplier(d[3:], z[3:], 0.01, num_points=9)
    np.testing.assert_allclose(whole.value, range_only.value, rtol=1e-12)


def test_three_states_and_collapse_tested_first():
    d, z = np.array([0.0, 1.0]), np.array([3.0, 4.0])
    states = [int(sdntk.solve_multiplier(d, z, eps).status) for eps in (4.5, 4.6, 12.4, 12.5, 13.0)]
    assert states == [2, 0, 0, 1, 1]  # floor 9/2, ||y||^2/K = 25/2: both belong to the outer states
    assert (
        int(sdntk.solve_multiplier([0.0], [1.0], 1.0).status) == sdntk.Status.COLLAPSED
    )  # eps = floor = ||y||^2/K
    assert np.isnan(sdntk.solve_multiplier(d, z, 4.5).value)
    assert np.isinf(sdntk.solve_multiplier(d, z, 12.5).value)
    assert (
        int(sdntk.solve_multiplier([0.0, 0.0], [1.0, 1.0], 0.5).status) == sdntk.Status.INFEASIBLE
    )  # rank 0
    assert int(sdntk.solve_multiplier([1.0], [0.0], 0.5).status) == sdntk.Status.COLLAPSED


def test_labels_of_norm_s_have_collapsed_however_they_are_rounded():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 100):
        q, _ = np.linalg.qr(rng.normal(size=(size, size)))
        y = rng.normal(size=size)
        found = sdntk.solve_multiplier(np.ones(size), q @ y, np.mean(y**2))
        assert int(found.status) == sdntk.Status.COLLAPSED


def _value(d, z, eps):
    return sdntk.solve_multiplier(d, z, eps).value


@pytest.mark.parametrize(
    "d", [[0.1, 0.5, 1.0], [0.5, 0.5, 0.5], [0.0, 0.5, 1.0]], ids=["distinct", "equal", "null"]
)
def test_derivatives_against_finite_differences(d):
    d, z, eps = jnp.array(d), jnp.array([0.1, 1.0, 2.0]), jnp.asarray(0.3)
    directions = (
        jnp.where(d > 0, jnp.array([0.3, -0.2, 0.5]), 0),
        jnp.array([1.0, -0.5, 0.2]),
        jnp.asarray(0.7),
    )
    step = 1e-5
    plus, minus = (
        _value(*(a + sign * step * v for a, v in zip((d, z, eps), directions, strict=True)))
        for sign in (1, -1)
    )
    _, forward = jax.jvp(_value, (d, z, eps), directions)
    gradient = jax.grad(_value, argnums=(0, 1, 2))(d, z, eps)
    reverse = sum(jnp.sum(g * v) for g, v in zip(gradient, directions, strict=True))
    np.testing.assert_allclose(forward, (plus - minus) / (2 * step), rtol=1e-7)
    np.testing.assert_allclose(reverse, forward, rtol=1e-12)
