"""The bounds.

Must hold (hypothesis, random spectra with null spaces, labels, tolerances): all bounds hold. Beyond
that, each is shown to be tight where it should be: on a single eigenvalue, in a limit, or against a
closed form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import problems
from hypothesis import given, settings

import sdntk
from sdntk import Status, bounds
from sdntk.theory.recurrence import distill_to_tolerance

SETTINGS = settings(max_examples=80, deadline=None)
ROUNDS = 12
SLACK = 1e-9  # relative: rounding of either side

_chain = jax.jit(distill_to_tolerance, static_argnames="rounds")


def chain(d, z, eps):
    """Every round's c_t, ||z_t||, B_t and whether it is active."""
    path = _chain(jnp.asarray(d), jnp.asarray(z), jnp.sqrt(len(d) * eps), jnp.zeros(()), ROUNDS)
    with np.errstate(invalid="ignore"):
        ratios = np.asarray(d)[None, :] / (
            np.asarray(path.multipliers)[:, None] + np.asarray(d)[None, :]
        )
    filters = np.cumprod(ratios, axis=0)
    targets = np.concatenate([np.ones((1, len(d))), filters])[:ROUNDS]
    active = np.asarray(path.status) == Status.ACTIVE
    return np.asarray(path.multipliers), np.linalg.norm(targets * z, axis=1), filters, active


@pytest.mark.slow
@SETTINGS
@given(problems())
def test_multiplier_bounds_hold_in_every_round(problem):
    d, z, eps = problem
    c, _, filters, active = chain(d, z, eps)
    targets = np.concatenate([np.ones((1, len(d))), filters])
    for t in np.flatnonzero(active):
        lower, upper = bounds.multiplier_bounds(d, targets[t] * z, eps)
        assert lower * (1 - SLACK) <= c[t] <= upper * (1 + SLACK)


@SETTINGS
@given(problems())
@pytest.mark.slow
def test_norm_bounds_hold_in_every_round_and_after_collapse(problem):
    d, z, eps = problem
    _, norms, _, _ = chain(d, z, eps)
    lower, upper = bounds.norm_bounds(d, z, eps, ROUNDS)
    rounding = SLACK * norms[0]
    assert np.all(lower <= norms + rounding)
    assert np.all(norms <= upper + rounding)
    np.testing.assert_allclose([lower[0], upper[0]], norms[0], rtol=1e-12)


@SETTINGS
@given(problems())
@pytest.mark.slow
def test_guaranteed_rounds_hold_and_the_tight_ones_are_tighter(problem):
    d, z, eps = problem
    *_, active = chain(d, z, eps)
    low, tight = (
        float(bounds.guaranteed_rounds(d, z, eps, tight=tight)) for tight in (False, True)
    )
    assert 0 < low <= tight * (1 + SLACK)
    assert min(np.ceil(tight * (1 - SLACK)), ROUNDS) <= active.sum()


@SETTINGS
@given(problems())
def test_filter_ratio_bound_holds_for_all_pairs(problem):
    d, z, eps = problem
    *_, filters, active = chain(d, z, eps)
    for t in range(active.sum() + 1):
        bound = np.asarray(bounds.filter_ratio_bound(d, z, eps, t))
        b = filters[t - 1] if t else np.ones(len(d))
        assert not np.any(np.isnan(bound))
        finite = np.isfinite(bound)
        assert np.all(
            b[:, None] * np.ones_like(bound)
            >= (np.where(finite, bound, 0) * b[None, :]) * (1 - SLACK)
        )
        assert np.all((d[None, :] == 0) >= ~finite)  # infinite only against the null space


@pytest.mark.slow
@SETTINGS
@given(problems())
def test_sparsity_index_holds_and_falls_with_the_tolerance(problem):
    d, z, eps = problem
    *_, filters, active = chain(d, z, eps)
    kept = np.flatnonzero(d > 0)
    distinct = np.flatnonzero(np.diff(d[kept]) > len(d) * 2.3e-16 * d[-1])
    for t in range(1, active.sum() + 1):
        index = float(bounds.sparsity_index(d, z, eps, t))
        if len(distinct) == 0:
            assert np.isinf(index)
            continue
        ratio = filters[t - 1][kept][1:] / filters[t - 1][kept][:-1]
        assert 1 <= index <= np.min(ratio[distinct]) * (1 + SLACK)
    if d[0] > 0:  # Theorem 6
        largest = [
            float(bounds.sparsity_index(d, z, share * eps)) for share in (1.0, 0.5, 0.1, 1e-3)
        ]
        if np.isinf(largest[0]):
            return
        assert np.all(np.diff(largest) >= -SLACK * np.array(largest[1:]))
        assert largest[-1] <= float(bounds.sparsity_limit(d)) * (1 + 1e-6)


@pytest.mark.slow
@SETTINGS
@given(problems())
def test_equivalent_eigenvalues_and_complexities_fall_with_the_rounds(problem):
    d, z, eps = problem
    c, _, filters, active = chain(d, z, eps)
    equivalent = np.asarray(bounds.equivalent_eigenvalues(d, np.where(active, c, np.nan)))
    np.testing.assert_allclose(equivalent[0], d, rtol=1e-9)
    np.testing.assert_allclose(
        equivalent / (c[0] + equivalent),
        np.where(active[:, None], filters, 0),
        rtol=1e-7,
        atol=1e-300,
    )
    assert np.all(np.diff(equivalent, axis=0) <= 0)
    assert np.all(np.diff(bounds.rademacher_bound(equivalent, 1.0)) <= 0)
    assert np.all(np.diff(bounds.local_rademacher_bound(equivalent)) <= 1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("r0", [1.5, 3.5, 9.5])
def test_all_are_exact_when_eigenvalues_are_equal(r0):
    """kappa = 1: c = d/(r - 1), r falls by one a round, so ceil(r0 - 1) rounds are active."""
    d, z = np.full(4, 0.3), np.full(4, r0)  # s = 2 for eps = 1
    c, norms, _, active = chain(d, z, 1.0)
    for bound in bounds.multiplier_bounds(d, z, 1.0):
        np.testing.assert_allclose(bound, c[0], rtol=1e-12)
    for bound in bounds.norm_bounds(d, z, 1.0, ROUNDS):
        np.testing.assert_allclose(
            bound, np.where(np.arange(ROUNDS) <= active.sum(), norms, 0), atol=1e-9
        )
    for tight in (False, True):
        np.testing.assert_allclose(
            bounds.guaranteed_rounds(d, z, 1.0, tight=tight), r0 - 1, rtol=1e-9
        )
    assert active.sum() == np.ceil(r0 - 1)
    np.testing.assert_array_equal(bounds.filter_ratio_bound(d, z, 1.0, 1), np.ones((4, 4)))
    assert np.isinf(bounds.sparsity_index(d, z, 1.0, 1))
    assert np.isinf(bounds.sparsity_limit(d))


def test_limits_near_interpolation():
    d, z = np.array([0.2, 0.5, 1.0]), np.array([1.0, -2.0, 0.5])
    for eps in (1e-8, 1e-12):
        s = np.sqrt(3 * eps)
        expected = np.linalg.norm(z) / (5 * s)
        np.testing.assert_allclose(bounds.guaranteed_rounds(d, z, eps), expected, rtol=3 * s)
        np.testing.assert_allclose(
            bounds.sparsity_index(d, z, eps), bounds.sparsity_limit(d), rtol=10 * s
        )
    np.testing.assert_allclose(
        bounds.sparsity_limit(d), np.exp(0.2 / 5 * min(1 / 0.2 - 1 / 0.5, 1 / 0.5 - 1))
    )


def test_the_propositions_closed_form():
    """Prop. 3 as theory.md prints it, powers and all, and eq. 144."""
    d, z, eps = np.array([0.2, 0.5, 1.0]), np.array([10.0, -20.0, 5.0]), 0.7
    s, kappa = np.sqrt(3 * eps), 5.0
    r0 = np.linalg.norm(z) / s
    t = np.arange(4)
    for bound, x in zip(bounds.norm_bounds(d, z, eps, 4), (kappa, 1 / kappa), strict=True):
        a = ((r0 - 1) ** 2 + x * (2 * r0 - 1)) / (r0 - 1 + x) ** 2
        b = r0**2 * x / (r0 - 1 + x) ** 2
        np.testing.assert_allclose(
            bound, s * np.maximum(a**t * r0 - b * (a**t - 1) / (a - 1), 0), rtol=1e-12, atol=1e-12
        )
    a = ((r0 - 1) ** 2 + kappa * (2 * r0 - 1)) / (r0 - 1 + kappa) ** 2
    tight = np.log((r0**2 + kappa - 1) / (r0 * (r0 + kappa - 1))) / np.log(a)
    np.testing.assert_allclose(bounds.guaranteed_rounds(d, z, eps, tight=True), tight, rtol=1e-12)


def test_merged_eigenvalues():
    """A pair that differs by rounding alone does not make the index 1."""
    z, eps = np.ones(3), 0.1
    near = bounds.sparsity_index([0.5, 1.0, 1.0 + 2e-16], z, eps, 2)
    np.testing.assert_allclose(near, bounds.sparsity_index([0.5, 1.0, 1.0], z, eps, 2), rtol=1e-12)
    assert near > 1.05
    assert bounds.sparsity_index([0.5, 1.0, 1.0 + 1e-9], z, eps, 2) < 1 + 1e-8


def test_early_stopping_cannot_sparsify_beyond_d():
    """Section 3.4: for one ridge filter the ratio of two diagonals is at most d_k/d_j; distillation
    exceeds it.
    """
    d, z = np.array([0.2, 0.5, 1.0]), np.array([3.0, 3.0, 3.0])
    for c in (1e-6, 1e-2, 1.0, 1e6):
        a = np.asarray(sdntk.filters.ridge(d, c))
        assert a[2] / a[0] <= 5 * (1 + 1e-12)
    *_, filters, active = chain(d, z, 0.5)
    assert filters[active.sum() - 1][2] / filters[active.sum() - 1][0] > 5


def test_local_rademacher_by_brute_force():
    d = np.abs(np.random.default_rng(0).normal(size=(3, 7))) * 0.1
    for row, value in zip(d, bounds.local_rademacher_bound(d), strict=True):
        tail = np.sort(row)[::-1]
        expected = min(k / 7 + np.sqrt(np.sum(tail[k:]) / 7) for k in range(8))
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_rademacher_bound_bounds_the_complexity():
    """Monte Carlo: E sup over the ball of norm M of (2/K) |sum sigma_k f(x_k)| = (2 M/K) E
    sqrt(sigma^T (K G) sigma).
    """
    x = np.random.default_rng(0).normal(size=(15, 2))
    G = np.asarray(sdntk.gram(sdntk.kernels.rbf(1.0), x))
    sigma = np.random.default_rng(1).choice([-1.0, 1.0], size=(4000, 15))
    complexity = 2 * 1.7 / 15 * np.mean(np.sqrt(15 * np.sum((sigma @ G) * sigma, axis=1)))
    bound = float(bounds.rademacher_bound(np.linalg.eigvalsh(G).clip(0), 1.7))
    assert 0.8 * bound < complexity <= bound


def test_states():
    d, z = np.array([0.0, 1.0]), np.array([3.0, 4.0])
    for function in (
        bounds.multiplier_bounds,
        lambda *a: bounds.norm_bounds(*a, 3),
        bounds.guaranteed_rounds,
    ):
        assert np.isnan(np.asarray(function(d, z, 4.0))).any()  # infeasible
    assert float(bounds.guaranteed_rounds(d, z, 13.0)) == 0  # collapsed
    np.testing.assert_array_equal(bounds.norm_bounds(d, z, 13.0, 3), [[5, 0, 0], [5, 0, 0]])
    assert np.all(np.isnan(bounds.multiplier_bounds(d, z, 13.0)))
    assert np.isnan(bounds.sparsity_index(d, z, 13.0))


@pytest.mark.slow
def test_jit_and_vmap():
    d, labels = jnp.array([0.2, 0.5, 1.0]), jax.random.normal(jax.random.key(0), (4, 3))
    together = jax.jit(jax.vmap(lambda z: bounds.norm_bounds(d, z, 0.1, 3)))(labels)
    for i in range(4):
        np.testing.assert_allclose(
            [b[i] for b in together], bounds.norm_bounds(d, labels[i], 0.1, 3), rtol=1e-12
        )
    index = jax.vmap(lambda eps: bounds.sparsity_index(d, labels[0], eps))(jnp.array([1e-3, 1e-2]))
    np.testing.assert_allclose(index[1], bounds.sparsity_index(d, labels[0], 1e-2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bounds.multiplier_bounds([-1.0, 1.0], [1.0, 1.0], 0.1),
            "eigenvalues must be zero or positive",
        ),
        (lambda: bounds.multiplier_bounds([0.0, 0.0], [1.0, 1.0], 0.1), "one of them positive"),
        (
            lambda: bounds.multiplier_bounds([1.0, 1.0], [1.0], 0.1),
            "z must have the shape of eigenvalues",
        ),
        (lambda: bounds.multiplier_bounds([1.0], [1.0], 0.0), "tolerance must be positive"),
        (lambda: bounds.norm_bounds([1.0], [1.0], 0.1, 0), "rounds must be at least 1"),
        (
            lambda: bounds.filter_ratio_bound([1.0], [1.0], 0.1, -1),
            "t must be a scalar, zero or positive",
        ),
        (
            lambda: bounds.equivalent_eigenvalues([1.0], [[1.0]]),
            r"multipliers must have shape \(T,\)",
        ),
        (lambda: bounds.equivalent_eigenvalues([1.0], [-1.0]), "multipliers must be positive"),
        (lambda: bounds.local_rademacher_bound(1.0), "equivalent must have shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
