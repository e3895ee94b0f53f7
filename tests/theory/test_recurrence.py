"""The recurrence.

Must hold: against arithmetic of 50 digits, on spectra with condition numbers up to 1e10, c_t and
z_t to 1e-8 relative over 10 rounds (times the condition number of c where a round is within 1e-4 of
collapse); it stops working after collapse; jit, vmap and derivatives work.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_float, exact_recurrence, spectrum_and_labels

from sdntk import Status, filters
from sdntk.theory.recurrence import distill_to_tolerance

_jitted = jax.jit(distill_to_tolerance, static_argnames="rounds")


def chain(d, z, eps, rounds, alpha=0.0):
    d, z = jnp.asarray(d), jnp.asarray(z)
    return _jitted(d, z, jnp.sqrt(eps * len(z)), jnp.asarray(alpha), rounds)


@pytest.mark.parametrize("nulls", [0, 3])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5, 1e8, 1e10])
@pytest.mark.parametrize("share", [1e-6, 1e-3, 1.1e-2, 0.1, 0.5])
def test_ten_rounds_against_50_digits(condition, share, nulls):
    active_rounds = 0
    for seed in range(2):
        d, z = spectrum_and_labels(seed, 24, condition=condition, nulls=nulls)
        floor = np.sum(z[d == 0] ** 2) / 24
        eps = floor + share * (np.sum(z**2) / 24 - floor)
        exact, _ = exact_recurrence(d, z, eps, rounds=10)
        path = chain(d, z, eps, 10)
        _, targets = filters.distillation(jnp.asarray(d), path.multipliers)
        targets = np.asarray(targets)
        allowed = 1e-8
        for t, (c, z_t, condition_of_c) in enumerate(exact):
            z_t = as_float(z_t)
            n, s = np.linalg.norm(z_t), np.sqrt(24 * eps)
            assert path.status[t] == Status.ACTIVE
            scale = np.maximum(np.abs(z_t), 1e-30 * n)
            assert np.max(np.abs(targets[t] * z - z_t) / scale) <= allowed
            if (n - s) / n < 1e-4:
                allowed *= max(float(condition_of_c), n / (n - s))
            assert abs(float(path.multipliers[t]) / float(c) - 1) <= allowed
            active_rounds += 1
        assert len(exact) == 10 or path.status[len(exact)] == Status.COLLAPSED
    assert active_rounds >= 2


def test_collapse_is_final_and_costs_nothing():
    d, z = spectrum_and_labels(1, 10, condition=1e3)
    path = chain(d, z, 0.3 * np.mean(z**2), 20)
    ended = np.asarray(path.status) == Status.COLLAPSED
    first = int(np.argmax(ended))
    assert 0 < first < 19
    assert ended[first:].all()
    assert np.all(path.iterations[first:] == 0)
    assert np.all(np.isinf(path.multipliers[first:]))


@pytest.mark.slow
@pytest.mark.parametrize("nulls", [0, 3])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_collapse_is_final_with_ground_truth_mixed_in(alpha, nulls):
    """alpha |z_0| never exceeds the targets that had collapsed, so stopping there is right."""
    for seed in range(20):
        d, z = spectrum_and_labels(seed, 10, condition=1e3, nulls=nulls)
        null2 = np.sum(z[d == 0] ** 2)
        s2 = null2 + 0.4 * (np.sum(z**2) - null2)
        path = chain(d, z, s2 / 10, 12, alpha)
        _, targets = map(np.asarray, filters.distillation(jnp.asarray(d), path.multipliers, alpha))
        norms = np.sum((targets * z) ** 2, axis=1)
        np.testing.assert_array_equal(np.asarray(path.status) == Status.COLLAPSED, norms <= s2)


def test_infeasible_from_round_0_on():
    path = chain([0.0, 1.0], [3.0, 4.0], 4.0, 3)
    assert np.all(path.status == Status.INFEASIBLE)
    assert np.all(np.isnan(path.multipliers))


@pytest.mark.slow
def test_vmap_over_labels_and_tolerances_equals_one_by_one():
    d, _ = spectrum_and_labels(0, 12, condition=1e4)
    labels = jax.random.normal(jax.random.key(0), (5, 12))
    tolerances = jnp.array([0.01, 0.1, 0.3, 0.9, 5.0])
    together = jax.vmap(lambda z, eps: chain(d, z, eps, 6))(labels, tolerances)
    for i in range(5):
        alone = chain(d, labels[i], tolerances[i], 6)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-10), together, alone
        )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_derivatives_of_a_chain_that_collapses(seed):
    d, z = spectrum_and_labels(seed, 8, condition=1e3)
    d, z, eps = jnp.asarray(d), jnp.asarray(z), jnp.asarray(0.15 * np.mean(z**2))

    def fitted(d, z, eps):
        path = chain(d, z, eps, 9)
        return filters.distillation(d, path.multipliers)[0] * z[None]

    assert chain(d, z, eps, 9).status[-1] == Status.COLLAPSED
    rng = np.random.default_rng(seed)
    v = (d * rng.normal(size=8), rng.normal(size=8), eps * rng.normal())
    step = 1e-6
    plus, minus = (
        fitted(*(a + sign * step * b for a, b in zip((d, z, eps), v, strict=True)))
        for sign in (1, -1)
    )
    _, forward = jax.jvp(fitted, (d, z, eps), v)
    np.testing.assert_allclose(forward, (plus - minus) / (2 * step), rtol=1e-5, atol=1e-8)
    weights = rng.normal(size=forward.shape)
    gradient = jax.grad(lambda *a: jnp.sum(weights * fitted(*a)), argnums=(0, 1, 2))(d, z, eps)
    reverse = sum(jnp.sum(g * b) for g, b in zip(gradient, v, strict=True))
    np.testing.assert_allclose(reverse, jnp.sum(weights * forward), rtol=1e-9)
    under_vmap = jax.vmap(jax.grad(lambda e: jnp.sum(weights * fitted(d, z, e))))(
        eps * jnp.array([1.0, 1.1])
    )
    np.testing.assert_allclose(under_vmap[0], gradient[2], rtol=1e-9)
