"""distill and distill_spectrum.

Must hold (hypothesis, random spectra with null spaces, labels, tolerances): ||z_t|| falls;
loss(c_t) = eps to 1e-10; permuting points permutes the answer; scaling g by a, y by b and the
tolerance by b^2 scales c by a and f by b; one ordinary ridge fit with the equivalent kernel
reproduces every round. Further: scikit-learn's KernelRidge reproduces every round; the contract's
shapes; nothing recompiles when only values change.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import problems, random_matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge

import sdntk
from sdntk import Status, bounds, kernels

SETTINGS = settings(max_examples=60, deadline=None)
ROUNDS = 6


def diagonal_spectrum(d):
    """The spectrum of diag(d): labels are rotated labels."""
    return sdntk.Spectrum(jnp.asarray(d), jnp.eye(len(d)), float(jnp.finfo(float).eps))


def regression(size=30, outputs=None, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 3))
    shape = (size,) if outputs is None else (size, outputs)
    return x, np.sin(x.sum(axis=1)).reshape((-1,) + (1,) * (len(shape) - 1)) + 0.3 * rng.normal(
        size=shape
    )


@SETTINGS
@given(problems())
@pytest.mark.slow
def test_norm_falls_loss_is_the_tolerance_and_collapse_is_final(problem):
    d, z, eps = problem
    run = sdntk.distill_spectrum(diagonal_spectrum(d), z, tolerance=eps, rounds=ROUNDS)
    active = np.asarray(run.status) == Status.ACTIVE
    assert active[0]
    norms = np.linalg.norm(run.targets, axis=1)
    assert np.all(np.diff(norms)[active[: ROUNDS - 1]] < 0)
    np.testing.assert_allclose(run.training_loss[active], eps, rtol=1e-10)
    np.testing.assert_allclose(
        np.mean((run.targets - run.fitted) ** 2, axis=1)[active], eps, rtol=1e-10
    )  # not by the solver's own sums
    assert int(run.active_rounds) == active.sum()
    assert np.all(active[: active.sum()])
    ended = ~active
    assert np.all(np.isnan(run.multipliers[ended]))
    assert np.all(run.fitted[ended] == 0)
    assert np.all(run.filters[ended] == 0)
    assert np.all(run.norms[ended] == 0)
    c = np.asarray(run.multipliers)[active]
    assert np.all(c > 0)


@SETTINGS
@given(problems(), st.integers(0, 2**31))
@pytest.mark.slow
def test_permuting_points_permutes_the_answer(problem, seed):
    d, z, eps = problem
    G = random_matrix(seed, d)
    order = np.random.default_rng(seed).permutation(len(d))
    rank_tolerance = 0.0 if d[0] > 0 else np.min(d[d > 0]) / 2
    spectra = [sdntk.decompose(m, rank_tolerance=rank_tolerance) for m in (G, G[order][:, order])]
    if min(int(s.rank) for s in spectra) < np.sum(d > 0):
        return  # rounding of the construction has eaten the smallest eigenvalue
    eps = max(eps, 1.001 * max(float(spectra[0].floor(z)), 1e-6 * np.mean(z**2)))
    if eps >= 0.98 * np.mean(z**2):
        return
    one = sdntk.distill_spectrum(spectra[0], z, tolerance=eps, rounds=3)
    two = sdntk.distill_spectrum(spectra[1], z[order], tolerance=eps, rounds=3)
    np.testing.assert_array_equal(one.status, two.status)
    np.testing.assert_allclose(one.fitted[:, order], two.fitted, atol=1e-6 * np.linalg.norm(z))


@SETTINGS
@given(problems(), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_scaling(problem, a, b):
    d, z, eps = problem
    one = sdntk.distill_spectrum(diagonal_spectrum(d), z, tolerance=eps, rounds=ROUNDS)
    two = sdntk.distill_spectrum(
        diagonal_spectrum(a * d), b * z, tolerance=b**2 * eps, rounds=ROUNDS
    )
    norms = np.linalg.norm(one.targets, axis=1)
    s = np.sqrt(len(d) * eps)
    if np.any(np.abs(norms / s - 1) < 1e-4):
        return  # within 1e-4 of collapse c is ill-conditioned
    np.testing.assert_array_equal(one.status, two.status)
    np.testing.assert_allclose(two.multipliers, a * one.multipliers, rtol=1e-6)
    np.testing.assert_allclose(
        two.fitted, b * one.fitted, rtol=1e-6, atol=1e-9 * b * np.linalg.norm(z)
    )
    np.testing.assert_allclose(two.norms, b / np.sqrt(a) * one.norms, rtol=1e-6)


@SETTINGS
@given(problems(), st.integers(0, 2**31))
def test_one_ridge_fit_with_the_equivalent_kernel_reproduces_every_round(problem, seed):
    d, z, eps = problem
    run = sdntk.distill_spectrum(diagonal_spectrum(d), z, tolerance=eps, rounds=ROUNDS)
    c0 = float(run.multipliers[0])
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(d), len(d))))[0]
    y = vectors @ z
    for t, equivalent in enumerate(np.asarray(bounds.equivalent_eigenvalues(d, run.multipliers))):
        gram = (vectors * equivalent) @ vectors.T
        fit = gram @ np.linalg.solve(c0 * np.eye(len(d)) + gram, y)
        rounding = 1e-10 + 4 * np.finfo(float).eps * (
            1 + equivalent.max() / c0
        )  # of this test's dense matrix and solve
        np.testing.assert_allclose(
            fit, vectors @ np.asarray(run.fitted[t]), rtol=0, atol=rounding * np.linalg.norm(y)
        )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("outputs", [None, 3])
def test_scikit_learn_refitted_round_by_round(alpha, outputs):
    x, y = regression(outputs=outputs)
    x_new = np.random.default_rng(1).normal(size=(7, 3))
    run = sdntk.distill(kernels.rbf(1.5), x, y, tolerance=0.02, rounds=5, ground_truth_weight=alpha)
    assert np.all(run.status == Status.ACTIVE)
    multipliers = np.asarray(run.multipliers).reshape(5, -1)
    for q in range(multipliers.shape[1]):
        labels = y.reshape(len(x), -1)[:, q]
        targets = labels
        for t in range(5):
            fit = KernelRidge(
                alpha=len(x) * multipliers[t, q], kernel="rbf", gamma=1 / (2 * 1.5**2)
            ).fit(x, targets)
            pick = (lambda a: a) if outputs is None else (lambda a, q=q: a[..., q])
            np.testing.assert_allclose(pick(run.targets)[t], targets, atol=1e-9)
            np.testing.assert_allclose(pick(run.fitted)[t], fit.predict(x), atol=1e-9)
            np.testing.assert_allclose(pick(run.predict(x_new))[t], fit.predict(x_new), atol=1e-9)
            np.testing.assert_allclose(
                pick(run.training_loss)[t], np.mean((fit.predict(x) - targets) ** 2), rtol=1e-9
            )
            dual = fit.dual_coef_ * len(x)
            np.testing.assert_allclose(pick(run.dual_coefficients)[t], dual, rtol=1e-7, atol=1e-9)
            gram = np.asarray(sdntk.gram(kernels.rbf(1.5), x))
            np.testing.assert_allclose(
                pick(run.norms)[t], np.sqrt(dual @ gram @ dual / len(x)), rtol=1e-9
            )
            targets = alpha * labels + (1 - alpha) * fit.predict(x)


def test_fixed_multiplier_is_the_power_of_the_ridge_filter_and_never_collapses():
    x, y = regression()
    run = sdntk.distill(kernels.rbf(1.0), x, y, multiplier=0.7, rounds=40)
    d = np.asarray(run.eigenvalues)
    expected = (d / (0.7 + d))[None, :] ** np.arange(1, 41)[:, None]
    np.testing.assert_allclose(run.filters, expected, rtol=1e-11)
    assert np.all(run.status == Status.ACTIVE)
    assert int(run.active_rounds) == 40
    np.testing.assert_array_equal(run.multipliers, np.full(40, 0.7))


def test_ground_truth_mixed_in_has_borup_and_andersens_limit():
    """Filters tend to alpha D/(alpha D + c), the ridge filter of c/alpha (arXiv 2102.13088)."""
    x, y = regression()
    run = sdntk.distill(kernels.rbf(1.0), x, y, multiplier=0.2, rounds=200, ground_truth_weight=0.3)
    np.testing.assert_allclose(
        run.filters[-1], sdntk.filters.ridge(run.eigenvalues, 0.2 / 0.3), rtol=1e-9, atol=1e-12
    )


def test_outputs_separate_are_single_runs():
    x, y = regression(outputs=3)
    together = sdntk.distill(kernels.rbf(1.0), x, y, tolerance=[0.05, 0.1, 0.4], rounds=6)
    for q, eps in enumerate([0.05, 0.1, 0.4]):
        alone = sdntk.distill(kernels.rbf(1.0), x, y[:, q], tolerance=eps, rounds=6)
        for name in ("multipliers", "status", "filters", "fitted", "training_loss", "norms"):
            np.testing.assert_allclose(
                getattr(together, name)[..., q], getattr(alone, name), rtol=1e-10, atol=1e-14
            )
        assert int(together.active_rounds[q]) == int(alone.active_rounds)


def test_outputs_joint_share_one_multiplier():
    x, y = regression(outputs=3)
    run = sdntk.distill(kernels.rbf(1.0), x, y, tolerance=0.1, rounds=6, outputs="joint")
    loss = np.mean((run.targets - run.fitted) ** 2, axis=(1, 2))
    np.testing.assert_allclose(loss, run.training_loss, rtol=1e-10, atol=1e-15)
    active = np.asarray(run.status) == Status.ACTIVE
    np.testing.assert_allclose(loss[active], 0.1, rtol=1e-10)
    d = np.asarray(run.eigenvalues)
    c = np.asarray(run.multipliers)[active][:, None]
    np.testing.assert_allclose(run.filters[active], np.cumprod(d / (c + d), axis=0), rtol=1e-10)
    np.testing.assert_allclose(
        run.norms**2, np.sum(np.asarray(run.dual_coefficients * run.fitted), axis=(1, 2)) / 30
    )
    single = sdntk.distill(kernels.rbf(1.0), x, y[:, 0], tolerance=0.1, rounds=6)
    joint = sdntk.distill(kernels.rbf(1.0), x, y[:, :1], tolerance=0.1, rounds=6, outputs="joint")
    np.testing.assert_allclose(joint.fitted[..., 0], single.fitted, rtol=1e-10)


@pytest.mark.parametrize(("outputs", "shared"), [("separate", False), ("joint", True)])
@pytest.mark.parametrize("labels", [(30,), (30, 1), (30, 4)])
def test_shapes_of_the_contract(labels, outputs, shared):
    x, _ = regression()
    y = np.random.default_rng(0).normal(size=labels)
    run = sdntk.distill(kernels.rbf(1.0), x, y, tolerance=0.2, rounds=3, outputs=outputs)
    q, per_round = labels[1:], () if shared else labels[1:]
    for name in ("multipliers", "status", "training_loss", "norms", "iterations"):
        chex.assert_shape(getattr(run, name), (3, *per_round))
    chex.assert_shape(run.active_rounds, per_round)
    chex.assert_shape(run.eigenvalues, (30,))
    chex.assert_shape(run.filters, (3, 30, *per_round))
    for values in (run.fitted, run.targets, run.dual_coefficients):
        chex.assert_shape(values, (3, 30, *q))
    chex.assert_shape(run.predict(x[:5]), (3, 5, *q))
    np.testing.assert_allclose(run.predict(x), run.fitted, atol=1e-10)
    assert run.status.dtype == jnp.int32
    assert run.multipliers.dtype == jnp.float64


def test_one_point():
    run = sdntk.distill(
        lambda x, t: np.full((len(x), len(t)), 2.0), [[0.0]], [3.0], tolerance=1.0, rounds=4
    )
    np.testing.assert_allclose(
        run.multipliers, [1.0, 2.0, np.nan, np.nan]
    )  # c = d s/(|z| - s), z = 3, 2, 1
    np.testing.assert_allclose(run.fitted[:, 0], [2.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "labels", [np.arange(6) % 2 == 0, np.arange(6) % 3, [0, 1, 2, 0, 1, 2], jnp.arange(6)]
)
def test_integer_and_boolean_labels_are_converted(labels):
    x = np.linspace(0.1, 0.9, 6)
    run = sdntk.distill(kernels.cubic_spline(), x, labels, tolerance=0.01, rounds=2)
    same = sdntk.distill(
        kernels.cubic_spline(), x, np.asarray(labels, float), tolerance=0.01, rounds=2
    )
    np.testing.assert_array_equal(run.fitted, same.fitted)


def test_a_lambda_is_a_kernel():
    x, y = regression()
    run = sdntk.distill(
        lambda a, b: np.asarray(a) @ np.asarray(b).T + np.eye(len(a), len(b)),
        x,
        y,
        tolerance=0.1,
        rounds=2,
    )
    assert run.predict(x[:30]).shape == (2, 30)
    assert jax.tree.map(lambda leaf: leaf, run).kernel is not None


def test_jit_of_everything_and_of_an_infeasible_chain():
    x, y = sdntk.datasets.mobahi_example()
    whole = jax.jit(
        lambda x, y, eps: sdntk.distill(kernels.cubic_spline(), x, y, tolerance=eps, rounds=5)
    )
    np.testing.assert_allclose(
        whole(x, y, 0.045).fitted,
        sdntk.distill(kernels.cubic_spline(), x, y, tolerance=0.045, rounds=5).fitted,
        rtol=1e-9,
        atol=1e-15,
    )
    infeasible = whole(x, y, 0.0418)
    assert np.all(infeasible.status == Status.INFEASIBLE)
    assert np.all(np.isnan(infeasible.multipliers))
    assert np.all(np.isnan(infeasible.fitted))
    assert int(infeasible.active_rounds) == 0


@pytest.mark.slow
def test_vmap_over_label_sets_and_tolerances():
    x, y = regression(outputs=4)
    spectrum = sdntk.decompose(sdntk.gram(kernels.rbf(1.0), x))
    run = lambda y, eps: sdntk.distill_spectrum(spectrum, y, tolerance=eps, rounds=5)  # noqa: E731
    tolerances = jnp.array([0.05, 0.1, 0.2])
    together = jax.vmap(jax.vmap(run, in_axes=(1, None)), in_axes=(None, 0))(
        jnp.asarray(y), tolerances
    )
    for i, eps in enumerate(tolerances):
        separate = run(y, eps)
        np.testing.assert_allclose(
            np.moveaxis(together.fitted[i], 0, -1), separate.fitted, rtol=1e-9, atol=1e-13
        )
        np.testing.assert_array_equal(together.status[i].T, separate.status)


@pytest.mark.slow
@pytest.mark.parametrize("outputs", ["separate", "joint"])
def test_nothing_recompiles_when_only_values_change(outputs):
    from sdntk.spectra import chain, run_chain

    x, y = regression(outputs=2)

    def run(x, y, eps, alpha, length_scale):
        return sdntk.distill(
            kernels.matern(1.5, length_scale),
            x,
            y,
            tolerance=eps,
            rounds=3,
            ground_truth_weight=alpha,
            outputs=outputs,
        ).predict(x[:4])

    run(x, y, 0.1, 0.0, 1.0)
    jitted = [run_chain._run_chain, chain._replayed_duals, sdntk.kernels.base._all_pairs]
    before = [f._cache_size() for f in jitted]
    run(x + 0.1, y * 2, 0.05, 0.5, 2.0)
    run(x * 2, y + 1, np.float32(3.0), 1, 3)
    assert [f._cache_size() for f in jitted] == before

    traced = chex.assert_max_traces(
        lambda y, eps: (
            sdntk.distill_spectrum(spectrum, y, tolerance=eps, rounds=3, outputs=outputs).fitted
        ),
        n=1,
    )
    spectrum = sdntk.decompose(sdntk.gram(kernels.rbf(1.0), x))
    for scale in (1.0, 2.0, 3.0):
        jax.jit(traced)(scale * y, 0.1 * scale)
    chex.clear_trace_counter()


def test_same_seed_same_bits():
    x, y = sdntk.datasets.mobahi_example(jax.random.key(7))
    runs = [sdntk.distill(kernels.cubic_spline(), x, y, tolerance=0.2, rounds=5) for _ in range(2)]
    chex.assert_trees_all_equal(*[(run.fitted, run.multipliers) for run in runs])


@pytest.mark.slow
def test_derivatives_of_norms_and_joint_chains_are_finite_at_collapse_and_at_zero_labels():
    spectrum = diagonal_spectrum([0.1, 0.5, 1.0])
    y = jnp.array([[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]])

    def total(y, outputs):
        run = sdntk.distill_spectrum(spectrum, y, tolerance=1.0, rounds=6, outputs=outputs)
        return jnp.sum(run.norms) + jnp.sum(run.fitted)

    for outputs in ("separate", "joint"):
        assert np.all(np.isfinite(jax.grad(total)(y, outputs)))


# ---- Matrices that turn out indefinite, where they are traced ----


@pytest.mark.parametrize(
    ("decompose", "level", "outputs"),
    [
        (sdntk.decompose, {"tolerance": 0.1}, "joint"),
        (sdntk.tridiagonalise, {"multiplier": 0.1}, "joint"),
        pytest.param(sdntk.decompose, {"tolerance": 0.1}, "separate", marks=pytest.mark.slow),
        pytest.param(sdntk.decompose, {"multiplier": 0.1}, "separate", marks=pytest.mark.slow),
        pytest.param(sdntk.tridiagonalise, {"tolerance": 0.1}, "separate", marks=pytest.mark.slow),
    ],
)
def test_a_chain_of_a_traced_indefinite_matrix_is_not_active(decompose, level, outputs):
    y = np.array([[1.0, 0.3], [2.0, 0.1], [-1.0, 0.5]])

    @jax.jit
    def run(G, y):
        return sdntk.distill_spectrum(decompose(G), y, rounds=2, outputs=outputs, **level)

    of_indefinite = run(np.diag([1.0, -0.5, 2.0]), y)
    assert np.all(of_indefinite.status == Status.INFEASIBLE)
    assert np.isnan(of_indefinite.multipliers).all()
    assert np.isnan(of_indefinite.fitted).all()
    assert not np.any(of_indefinite.active_rounds)
    assert np.all(run(np.diag([1.0, 0.5, 2.0]), y).status[0] == Status.ACTIVE)

    spectrum = jax.jit(decompose)(np.diag([1.0, -0.5, 2.0]))
    with pytest.raises(
        ValueError, match="spectrum must be that of a positive semi-definite matrix"
    ):
        sdntk.distill_spectrum(spectrum, y, rounds=2, outputs=outputs, **level)


def test_what_has_values_is_looked_at_while_something_is_traced():
    """NumPy arrays, which JAX would trace under jit, as its own."""
    x, y = regression(5)
    for array in (np.asarray, jnp.asarray):
        for name in ("x", "y"):
            given = {"x": array(x), "y": array(y)}
            given[name] = given[name] * np.nan
            run = functools.partial(sdntk.distill, kernels.rbf(1.0), **given, rounds=1)
            with pytest.raises(ValueError, match=f"{name} must be finite"):
                jax.jit(lambda eps, run=run: run(tolerance=eps))(0.1)


def test_an_operator_of_traced_points_is_refused():
    with pytest.raises(TypeError, match="x must have values"):
        jax.jit(lambda x: sdntk.kernel_operator(kernels.rbf(1.0), x)(x))(np.ones((3, 1)))
