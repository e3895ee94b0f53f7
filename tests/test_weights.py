"""Weights of the ground truth of any size, one for each later round (docs/theory.md, section 8).

Must hold:

* over 10 rounds with random weights outside [0, 1], by tolerance and by multiplier, with null
  spaces: states, multipliers and fits of 50-digit arithmetic that decides every round afresh, dense
  and tridiagonal; rounds that wake up after a collapse and rounds that weights make infeasible are
  among them;
* by the definition, on random instances (hypothesis): targets, losses, states, counts;
* the literature's closed forms: the family of weighted rounds, iterated Tikhonov;
* collapse is final for weights in [0, 1] that do not increase, and then costs nothing;
* jit, vmap, derivatives by the weights (finite differences), files, tables, float32, labels of any
  size; a number is what an array of equal numbers is; bad weights and infeasible later rounds are
  named.

The Krylov path's are in tests/spectra/test_krylov_weights.py.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extended import chains
from helpers import as_float, exact_chain, spectrum_and_labels
from hypothesis import given, settings
from hypothesis import strategies as st

import sdntk
from sdntk import Status, filters, kernels
from sdntk.theory.mixing import collapse_is_final
from sdntk.theory.recurrence import distill_to_tolerance

ROUNDS, K = 10, 16
EPS = float(np.finfo(float).eps)
AWAKE = jnp.array([0.0, 0.0, 0.0, 1.0, 0.0])  # theory.md: active, collapsed x 3, active, collapsed
X = jax.random.normal(jax.random.key(0), (30, 2))
Y = jnp.stack([jnp.sin(3 * X[:, 0]), X[:, 0] + jnp.cos(2 * X[:, 1])], axis=1)
KERNEL = kernels.rbf(1.0)

_to_tolerance = jax.jit(distill_to_tolerance, static_argnames="rounds")
_filters = jax.jit(filters.distillation)


def instance(seed):
    """d, z, eps and weights: of every second one a null space; tolerances near the labels' size
    where rounds are to collapse and to wake up, small ones where they are not.
    """
    rng = np.random.default_rng(seed)
    nulls = 3 if seed % 2 else 0
    d, z = spectrum_and_labels(seed, K, condition=10.0 ** rng.uniform(0, 4), nulls=nulls)
    z[d == 0] /= 3
    floor, total = np.mean(np.where(d == 0, z, 0) ** 2), np.mean(z**2)
    share = rng.uniform(0.4, 0.9) if seed % 3 else 10.0 ** rng.uniform(-4, -1)
    return d, z, floor + share * (total - floor), rng.normal(0.5, 1.2, ROUNDS - 1)


def conditions(d, z, eps, weights, multiplier=None):
    """What rounding does to each number, and to the states (tests/extended.py)."""
    s2 = np.array([len(z) * eps])
    c = None if multiplier is None else np.array([multiplier])
    return chains(d[None], z[None] ** 2, s2, weights[None], ROUNDS, eps=EPS, multiplier=c)


def size(values):
    return np.linalg.norm(values)


def test_ten_rounds_to_a_tolerance_against_50_digits():
    seen = {"awake": 0, "infeasible": 0, "active": 0}
    for seed in range(40):
        d, z, eps, weights = instance(seed)
        exact = exact_chain(d, z, eps, weights)
        known = conditions(d, z, eps, weights)
        path = _to_tolerance(
            jnp.asarray(d), jnp.asarray(z), jnp.sqrt(K * eps), jnp.asarray(weights), ROUNDS
        )
        assert known.margin.min() > 1  # of all states
        states = [status for status, _, _ in exact]
        infeasible = states[-1] == Status.INFEASIBLE
        states += [Status.INFEASIBLE] * (ROUNDS - len(states))
        np.testing.assert_array_equal(path.status, states)
        found = _filters(
            d, jnp.where(jnp.isnan(path.multipliers), jnp.inf, path.multipliers), weights
        )
        for t, (status, c, fit) in enumerate(exact):
            if status == Status.ACTIVE:
                allowed = 100 * EPS * float(known.c_condition[0, t])
                assert abs(float(path.multipliers[t] / float(c) - 1)) <= allowed
                allowed = 100 * EPS * float(known.fit_condition[0, t]) * size(as_float(fit))
                assert size(np.asarray(found[0][t] * z) - as_float(fit)) <= allowed
            else:
                expected = np.isnan if infeasible and t == len(exact) - 1 else np.isposinf
                assert expected(float(path.multipliers[t]))
        kinds = list(pairwise(states))
        seen["awake"] += kinds.count((Status.COLLAPSED, Status.ACTIVE))
        seen["infeasible"] += infeasible
        seen["active"] += states.count(Status.ACTIVE)
    assert seen["awake"] > 20
    assert seen["infeasible"] >= 5
    assert seen["active"] > 100


@jax.jit
def run_traced(spectrum, y, level, weights):
    """Jitted: an infeasible round is a status, not an error."""
    return sdntk.distill_spectrum(
        spectrum, y, tolerance=level, rounds=ROUNDS, ground_truth_weight=weights
    )


@pytest.mark.parametrize("method", ["dense", "tridiagonal"])
def test_runs_on_a_gram_matrix_against_50_digits(method):
    """In a random basis G is known to machine_eps d_max, c to that over c, times its condition."""
    active = awake = infeasible = 0
    for seed in range(24):
        d, z, eps, weights = instance(seed)
        Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(K, K)))[0]
        if method == "tridiagonal" and (d == 0).any():  # it tells exact zeros only
            Q = np.eye(K)
        G = (Q * d) @ Q.T
        spectrum = sdntk.decompose if method == "dense" else sdntk.tridiagonalise
        run = run_traced(spectrum((G + G.T) / 2), Q @ z, eps, weights)
        exact, known = exact_chain(d, z, eps, weights), conditions(d, z, eps, weights)
        amplified = 1.0
        for t, (status, c, fit) in enumerate(exact):
            assert run.status[t] == status
            amplified = max(
                amplified, float(known.c_condition[0, t]), float(known.fit_condition[0, t])
            )
            if status == Status.ACTIVE:
                smallest = min(float(c) for _, c, _ in exact[: t + 1] if c is not None)
                allowed = 100 * EPS * amplified * (1 + d.max() / smallest)
                assert abs(float(run.multipliers[t]) / float(c) - 1) <= allowed
                off = size(Q.T @ run.fitted[t] - as_float(fit))
                assert off <= allowed * max(size(as_float(f)) for _, _, f in exact[: t + 1])
                active += 1
                awake += t > 0 and exact[t - 1][0] == Status.COLLAPSED
            elif status == Status.COLLAPSED:
                assert not np.asarray(run.fitted[t]).any()
            else:
                infeasible += 1
                assert np.isnan(run.fitted[t:]).all()
                assert (run.status[t:] == Status.INFEASIBLE).all()
    assert active > 60
    assert awake > 10
    assert infeasible >= 3


def test_ten_rounds_with_a_multiplier_against_50_digits():
    run = jax.jit(
        lambda spectrum, z, c, weights: sdntk.distill_spectrum(
            spectrum, z, multiplier=c, rounds=ROUNDS, ground_truth_weight=weights
        )
    )
    for seed in range(12):
        d, z, _, weights = instance(seed)
        c = 10.0 ** np.random.default_rng(seed).uniform(-3, 0)
        found = run(sdntk.Spectrum(jnp.asarray(d), jnp.eye(K), EPS), z, c, weights)
        known = conditions(d, z, 1.0, weights, multiplier=c)
        for t, (_, _, fit) in enumerate(exact_chain(d, z, None, weights, multiplier=c)):
            fit = as_float(fit)
            allowed = 100 * EPS * float(known.fit_condition[0, t]) * size(fit)
            assert size(found.fitted[t] - fit) <= allowed
            assert size(found.filters[t] * z - fit) <= allowed
        assert int(found.active_rounds) == ROUNDS


def slow(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("method", "outputs"),
    [
        ("dense", "separate"),
        ("tridiagonal", None),
        ("krylov", "joint"),
        *slow(("dense", "joint"), ("dense", None), ("tridiagonal", "separate")),
        *slow(("tridiagonal", "joint"), ("krylov", "separate"), ("krylov", None)),
    ],
)
@pytest.mark.slow_cases
def test_a_round_wakes_up_after_a_collapse(method, outputs):
    y = Y[:, 0] if outputs is None else Y
    level = 0.7 * float(jnp.mean(y**2)) if outputs != "separate" else 0.7 * jnp.mean(y**2, axis=0)
    options = {"tolerance": level, "rounds": 6, "outputs": outputs or "separate", "method": method}
    run = sdntk.distill(KERNEL, X, y, ground_truth_weight=AWAKE, **options)
    status = np.asarray(run.status).reshape(6, -1)
    np.testing.assert_array_equal(status, np.tile([[0], [1], [1], [1], [0], [1]], status.shape[1]))
    assert (run.active_rounds == 1).all()
    np.testing.assert_allclose(run.fitted[4], run.fitted[0], rtol=1e-12)  # its targets are labels
    np.testing.assert_allclose(run.targets[4], y, rtol=1e-9, atol=1e-12)
    assert not np.asarray(run.fitted)[[1, 2, 3, 5]].any()
    np.testing.assert_array_equal(run.iterations[2:4], 0 * run.iterations[2:4])
    np.testing.assert_allclose(run.predict(X)[4], run.fitted[4], atol=1e-9)
    np.testing.assert_allclose(run.fits[4].predict(X), run.fitted[4], atol=1e-9)
    np.testing.assert_array_equal(run.ground_truth_weight, AWAKE)
    assert len(run.to_frame()) == status.size
    assert repr(run).splitlines()[6].split()[:2] == ["4", "active"]
    plain = sdntk.distill(KERNEL, X, y, **options)
    assert (np.asarray(plain.status)[1:] == Status.COLLAPSED).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.01, 1.2),
    st.sampled_from([0.3, 1.0, 3.0]),
    st.sampled_from([0, 2]),
)
def test_every_round_is_what_its_definition_says(seed, share, spread, nulls):
    d, z = spectrum_and_labels(seed, K, condition=1e4, nulls=nulls)
    null = np.where(d == 0, z, 0)
    weights = np.random.default_rng(seed).normal(0.5, spread, ROUNDS - 1)
    floor = np.sum(null**2) / K
    eps = floor + share * (np.sum(z**2) / K - floor)
    run = run_traced(sdntk.Spectrum(jnp.asarray(d), jnp.eye(K), EPS), z, eps, weights)
    status, targets, fitted = (np.asarray(v) for v in (run.status, run.targets, run.fitted))
    alpha = np.concatenate([[1.0], weights])
    s = np.sqrt(K * eps)
    for t in range(ROUNDS):
        last = fitted[t - 1] if t else 0 * z
        np.testing.assert_allclose(
            targets[t],
            alpha[t] * z + (1 - alpha[t]) * last,
            rtol=1e-9,
            atol=1e-9 * size(targets[t]),
        )
        norm, unreachable = size(targets[t]), size(alpha[t] * null)
        if status[t] == Status.COLLAPSED:
            assert norm <= s * (1 + 1e-12)
            assert not fitted[t].any()
        elif status[t] == Status.ACTIVE:
            assert unreachable * (1 - 1e-12) <= s <= norm * (1 + 1e-12)
            np.testing.assert_allclose(run.training_loss[t], eps, rtol=1e-9)
            assert abs(size(targets[t] - fitted[t]) - s) <= 1e-9 * norm
        else:
            assert s <= unreachable * (1 + 1e-12)
            assert (status[t:] == Status.INFEASIBLE).all()
            assert np.isnan(fitted[t:]).all()
            assert np.isnan(run.filters[t:]).all()
            assert np.isnan(run.multipliers[t:]).all()
            assert np.isnan(targets[t + 1 :]).all()
            break
    np.testing.assert_array_equal(run.multipliers > 0, status == Status.ACTIVE)
    first = int(np.argmax(status != Status.ACTIVE)) if (status != Status.ACTIVE).any() else ROUNDS
    assert int(run.active_rounds) == first


def test_weights_of_rounds_reach_the_family_of_weighted_rounds():
    """T = 3: xi_2 = 1 - w_0, xi_1 = w_2/(w_1 + w_2) gives sum_j w_j f_j (Pareek, Du and Oh)."""
    spectrum = sdntk.decompose(sdntk.gram(KERNEL, X))
    plain = sdntk.distill_spectrum(spectrum, Y, multiplier=0.05, rounds=3)
    for w in ([0.5, 0.3, 0.2], [-1.0, 3.0, -1.0], [4.0, -2.0, -1.0]):
        xi = np.array([w[2] / (w[1] + w[2]), 1 - w[0]])
        run = sdntk.distill_spectrum(
            spectrum, Y, multiplier=0.05, rounds=3, ground_truth_weight=1 - xi
        )
        expected = np.tensordot(w, plain.fitted, 1)
        np.testing.assert_allclose(run.fitted[2], expected, rtol=1e-10, atol=1e-12)
        expected = np.tensordot(w, plain.dual_coefficients, 1)
        np.testing.assert_allclose(run.dual_coefficients[2], expected, rtol=1e-8, atol=1e-9)


def test_a_weight_of_2_is_twicing():
    """xi = -1 undoes shrinkage: 1 - (1 - A)^2."""
    run = sdntk.distill(KERNEL, X, Y[:, 0], multiplier=0.05, rounds=2, ground_truth_weight=2)
    expected = filters.iterated_tikhonov(run.eigenvalues, 0.05, 2)
    np.testing.assert_allclose(run.filters[1], expected, rtol=1e-12)


def test_a_number_is_an_array_of_equal_numbers():
    for options in ({"tolerance": 0.1}, {"multiplier": 0.1}):
        for alpha in (-0.7, 0.0, 0.4, 1.6):
            runs = [
                sdntk.distill(KERNEL, X, Y, rounds=7, ground_truth_weight=weight, **options)
                for weight in (alpha, np.full(6, alpha))
            ]
            assert [run.ground_truth_weight.shape for run in runs] == [(), (6,)]
            for name in ("status", "multipliers", "fitted", "filters", "norms", "targets"):
                one, other = (getattr(run, name) for run in runs)
                np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.slow
def test_padded_rounds_are_those_of_the_unpadded_chain():
    spectrum = sdntk.decompose(sdntk.gram(KERNEL, X))
    weights = np.array([0.3, -1.0, 2.5, 0.0, 1.0, 0.2, -0.4, 1.5])
    for rounds in (1, 3, 6):
        run = partial(
            sdntk.distill_spectrum,
            spectrum,
            tolerance=0.1,
            rounds=rounds,
            ground_truth_weight=weights[: rounds - 1],
        )
        padded, exact = run(Y), jax.jit(run)(Y)
        assert padded.ground_truth_weight.shape == (rounds - 1,)
        for name in ("fitted", "multipliers", "active_rounds", "targets", "dual_coefficients"):
            one, other = (np.asarray(getattr(run, name)) for run in (padded, exact))
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11, err_msg=name)


def test_collapse_is_final_for_weights_in_the_unit_interval_that_do_not_increase():
    """In 80 bits, without any early exit; and one that increases or leaves it is not."""
    rng = np.random.default_rng(0)
    d, z = (np.stack(v) for v in zip(*(instance(2 * seed)[:2] for seed in range(60)), strict=True))
    s2 = rng.uniform(0.2, 0.95, 60) * np.sum(z**2, axis=1)
    falling = -np.sort(-rng.uniform(0, 1, (60, ROUNDS - 1)), axis=1)
    nearly = np.concatenate([falling, np.full((60, 1), -1e-9)], axis=1)  # decided afresh
    found = chains(d, z**2, s2, nearly, ROUNDS + 1, eps=EPS).status[:, :ROUNDS]
    assert (found == Status.COLLAPSED).any(axis=1).sum() > 20
    assert (np.diff((found != Status.ACTIVE).astype(int), axis=1) >= 0).all()
    assert all(bool(collapse_is_final(jnp.asarray(weights))) for weights in falling)
    for weights in ([0.2, 0.3], [1.1, 1.0], [0.0, -0.1]):
        assert not bool(collapse_is_final(jnp.array(weights)))
    run = sdntk.distill(
        KERNEL, X, Y[:, 0], tolerance=0.3, rounds=10, ground_truth_weight=np.linspace(0.4, 0, 9)
    )
    ended = np.asarray(run.status) == Status.COLLAPSED
    assert 0 < ended.sum() < 10
    assert not np.asarray(run.iterations)[ended].any()


@pytest.mark.slow
def test_vmap_over_weights_equals_one_by_one():
    spectrum = sdntk.decompose(sdntk.gram(KERNEL, X))
    run = lambda weight: sdntk.distill_spectrum(  # noqa: E731
        spectrum, Y, tolerance=0.4 * jnp.mean(Y**2, axis=0), rounds=6, ground_truth_weight=weight
    )
    several = jnp.stack([AWAKE, jnp.full(5, 0.2), jnp.array([-1.0, 2.0, 0.5, 1.0, 0.0])])
    for weights in (several, jnp.array([-0.5, 0.3, 1.4])):
        together = jax.vmap(run)(weights)
        assert repr(together) == "Distillation(3 runs, stacked)"
        with pytest.raises(ValueError, match="stacked by"):
            together.to_frame()
        with pytest.raises(ValueError, match="stacked by"):
            together.save("nowhere.npz")
        for i, weight in enumerate(weights):
            one, alone = jax.tree.map(lambda leaf, i=i: leaf[i], together), run(weight)
            assert repr(one).splitlines()[1:] == repr(alone).splitlines()[1:]
            for name in ("status", "multipliers", "fitted", "norms", "active_rounds", "targets"):
                a, b = getattr(one, name), getattr(alone, name)
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11, err_msg=name)
    with_one_round = jax.vmap(
        lambda y: sdntk.distill_spectrum(spectrum, y, multiplier=1.0, rounds=1)
    )
    assert repr(with_one_round(Y.T)) == "Distillation(2 runs, stacked)"


@pytest.mark.parametrize(
    ("method", "by"),
    [
        ("dense", "tolerance"),
        *slow(("dense", "multiplier"), ("tridiagonal", "tolerance"), ("tridiagonal", "multiplier")),
    ],
)
def test_derivatives_by_the_weights_are_those_of_finite_differences(method, by):
    level = jnp.asarray(0.5 * float(jnp.mean(Y**2)) if by == "tolerance" else 0.05)

    def run(parameters):
        done = sdntk.distill(
            kernels.matern(1.5, parameters["length_scale"]),
            X,
            parameters["y"],
            **{by: parameters["level"]},
            rounds=6,
            outputs="joint",
            ground_truth_weight=parameters["weights"],
            method=method,
        )
        c = jnp.where(done.status == Status.ACTIVE, done.multipliers, 0)
        names = ("fitted", "norms", "targets", "training_loss")
        return {"multipliers": c} | {name: getattr(done, name) for name in names}, done.status

    weights = jnp.array([0.1, -0.4, 1.3, 1.8, 0.6])
    at = {"weights": weights, "level": level, "y": Y, "length_scale": jnp.asarray(0.9)}
    rng = np.random.default_rng(0)
    along = {name: jnp.asarray(rng.normal(size=value.shape)) for name, value in at.items()}
    along["level"] = along["level"] * level / 5
    values, forward = jax.jit(lambda p, v: jax.jvp(lambda p: run(p)[0], (p,), (v,)))(at, along)
    moved = jax.jit(lambda step: run(jax.tree.map(lambda p, v: p + step * v, at, along)))
    ends = [moved(step)[0] for step in (-2e-4, -1e-4, 1e-4, 2e-4)]
    difference = jax.tree.map(lambda a, b, c, d: (a - 8 * b + 8 * c - d) / 12e-4, *ends)
    status = np.asarray(moved(0.0)[1])
    if by == "tolerance":  # it collapses, and wakes up
        kinds = list(pairwise(status))
        assert (Status.COLLAPSED, Status.ACTIVE) in kinds
    for name, found in forward.items():
        scale = float(jnp.max(jnp.abs(found)))
        np.testing.assert_allclose(found, difference[name], atol=1e-6 * scale, err_msg=name)
    mixture = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape)), values)
    total = lambda p: sum(jnp.sum(mixture[name] * v) for name, v in run(p)[0].items())  # noqa: E731
    gradient = jax.jit(jax.grad(total))(at)
    reverse = sum(float(jnp.sum(gradient[name] * along[name])) for name in at)
    exact = sum(float(jnp.sum(mixture[name] * v)) for name, v in forward.items())
    np.testing.assert_allclose(reverse, exact, rtol=1e-9)


@pytest.mark.parametrize("method", ["dense", *slow(("tridiagonal",))])
def test_an_infeasible_round_spoils_no_derivative_of_those_before(method):
    """Of a kernel of finite rank: round 2 is infeasible by its weight."""

    def before(parameters, rounds):
        kernel = lambda x, t: (1 + x @ t.T / parameters["length"] ** 2) ** 2  # noqa: E731
        weights = jnp.concatenate([parameters["weight"], jnp.array([40.0, 0.1])])
        run = sdntk.distill(
            kernel,
            X,
            parameters["y"],
            tolerance=parameters["eps"],
            rounds=rounds,
            ground_truth_weight=weights[: rounds - 1],
            method=method,
        )
        sums = jnp.sum(run.fitted[:2] ** 2) + jnp.sum(run.multipliers[:2]) + jnp.sum(run.norms[:2])
        return sums + jnp.sum(run.targets[:2]), run.status

    y = Y[:, 0] + 0.1 * jax.random.normal(jax.random.key(1), (30,))
    at = {"length": jnp.asarray(1.0), "weight": jnp.array([0.3]), "y": y}
    at["eps"] = jnp.asarray(0.9 * float(jnp.mean(y**2)))
    gradient = jax.jit(jax.grad(before, has_aux=True), static_argnums=1)
    (short, _), (long, status) = gradient(at, 2), gradient(at, 4)
    np.testing.assert_array_equal(status[2:], Status.INFEASIBLE)
    for name, value in short.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_allclose(long[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("method", ["dense", "tridiagonal"])
def test_labels_have_no_unit(method):
    weights = [0.1, -0.4, 1.3, 1.8, 0.6]
    runs = [
        sdntk.distill(
            KERNEL,
            X,
            Y * factor,
            tolerance=0.5 * factor * factor,
            rounds=6,
            ground_truth_weight=weights,
            method=method,
        )
        for factor in (1.0, 2.0**-480, 2.0**480)
    ]
    for run in runs[1:]:
        for name in ("status", "multipliers", "active_rounds", "iterations"):
            np.testing.assert_array_equal(getattr(run, name), getattr(runs[0], name))
    np.testing.assert_array_equal(runs[1].fitted * 2.0**480, runs[0].fitted)


@pytest.mark.parametrize("weight", [1.7, AWAKE])
def test_files(tmp_path, weight):
    run = sdntk.distill(KERNEL, X, Y, tolerance=0.4, rounds=6, ground_truth_weight=weight)
    run.save(tmp_path / "run.npz")
    again = sdntk.load(tmp_path / "run.npz")
    np.testing.assert_array_equal(again.ground_truth_weight, weight)
    assert again.ground_truth_weight.shape == np.shape(weight)
    for name in ("status", "fitted", "targets", "dual_coefficients"):
        np.testing.assert_array_equal(getattr(again, name), getattr(run, name))
    assert repr(again) == repr(run)


def test_float32_and_no_rounds_to_weigh():
    with jax.enable_x64(False):
        x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
        spectrum = sdntk.Spectrum(
            *(jnp.asarray(v, jnp.float32) for v in (np.geomspace(1e-3, 1, 30), np.eye(30))), 1.2e-7
        )
        weights = [-0.5, 1.5, 2.0, -1.0, 0.3]
        run = sdntk.distill_spectrum(
            spectrum, y, tolerance=0.3, rounds=6, ground_truth_weight=weights
        )
        assert run.ground_truth_weight.dtype == run.fitted.dtype == jnp.float32
        assert not np.isnan(run.fitted).any()
        exact = chains(
            np.asarray(spectrum.eigenvalues, float)[None].repeat(2, 0),
            np.asarray(y.T, float) ** 2,
            np.full(2, 30 * 0.3),
            np.tile(np.asarray(weights, np.float32), (2, 1)),
            6,
            eps=1.2e-7,
        )
        assert exact.margin.min() > 1
        np.testing.assert_array_equal(run.status, exact.status.T)
        del x
    run = sdntk.distill(KERNEL, X, Y, tolerance=0.1, rounds=1, ground_truth_weight=np.zeros(0))
    assert run.ground_truth_weight.shape == (0,)
    assert (run.status == Status.ACTIVE).all()
    assert repr(run).startswith("Distillation(30 points, 2 outputs, 1 rounds")


def test_weights_that_are_none_are_named():
    run = lambda weight, rounds=4: sdntk.distill(  # noqa: E731
        KERNEL, X, Y, tolerance=0.1, rounds=rounds, ground_truth_weight=weight
    )
    for shape in ((4,), (2,), (0,), (1, 3), (3, 1)):
        with pytest.raises(
            ValueError, match=r"ground_truth_weight must be a scalar or have shape \(3,\)"
        ):
            run(np.zeros(shape))
    with pytest.raises(ValueError, match=r"ground_truth_weight must .* shape \(0,\)"):
        run([0.5], rounds=1)
    for bad in (np.nan, np.inf, [0.1, np.nan, 0.2], [0.1, -np.inf, 0.2]):
        with pytest.raises(ValueError, match="ground_truth_weight must be finite"):
            run(bad)
    with pytest.raises(TypeError, match="ground_truth_weight must be a number, not a boolean"):
        run([True, False, True])
    with pytest.raises(ValueError, match="ground_truth_weight must be a scalar or have shape"):
        filters.distillation(jnp.ones(3), jnp.ones(2), jnp.full(3, 0.5))


def test_a_round_that_weights_make_infeasible_is_named():
    x, y = sdntk.datasets.mobahi_example()
    kernel = kernels.cubic_spline()
    both = np.stack([np.ravel(y), np.sin(3 * np.ravel(x))], axis=1)
    options = {"tolerance": 0.045, "rounds": 5}
    with pytest.raises(ValueError, match="ground_truth_weight 3 makes round 2 infeasible: "):
        sdntk.distill(kernel, x, y, ground_truth_weight=[0.5, 3.0, 0.2, 3.0], **options)
    with pytest.raises(
        ValueError, match=r"ground_truth_weight -1\.5 makes round 1 infeasible for output 0"
    ):
        sdntk.distill(kernel, x, both, ground_truth_weight=-1.5, **options)
    with pytest.raises(ValueError, match=r"tolerance 0\.04 is infeasible"):  # at once
        sdntk.distill(kernel, x, y, ground_truth_weight=3.0, rounds=5, tolerance=0.04)
    # Its null part is alpha times the labels': feasible below sqrt(tolerance/floor).
    spectrum = sdntk.decompose(sdntk.gram(kernel, x))
    limit = float(np.sqrt(0.045 / spectrum.floor(np.ravel(y))))
    for factor, state in ((0.999, Status.ACTIVE), (1.001, Status.INFEASIBLE)):
        run = jax.jit(lambda weight: sdntk.distill_spectrum(
            spectrum, np.ravel(y), tolerance=0.045, rounds=2, ground_truth_weight=weight
        ))(limit * factor)  # fmt: skip
        assert run.status[1] == state


@pytest.mark.parametrize("make", [sdntk.decompose, sdntk.tridiagonalise])
def test_targets_beyond_every_number_are_infeasible(make):
    spectrum = make(np.diag(np.linspace(0.5, 1, 6)))
    with pytest.raises(ValueError, match=r"ground_truth_weight -1e\+60 makes round [13]"):
        sdntk.distill_spectrum(
            spectrum, np.arange(6.0), tolerance=0.1, rounds=5, ground_truth_weight=-1e60
        )
