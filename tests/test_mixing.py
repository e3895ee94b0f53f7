"""The best weights of a chain's rounds (mixtures by given ones: tests/spectra/test_mixed.py).

Must hold:
* oracle's weights are those of the constrained least squares in 50 digits, to 1e-8 of the largest,
  for up to 6 rounds (they come to 1e-12); the risk falls with every round, and stays above that of
  the best filter; at the best multiplier xi = 0, elsewhere xi = -(c/2) R'(c)/|f_0 - f_1|^2.
* one_shot's are those of its formula, in 50 digits, and of Dang et al. for two rounds; on many
  points their risk comes close to the oracle's.
* held_out's are those of NumPy's lstsq with the constraint eliminated; equal rounds do no harm.
* per_round's chain, round by round, ends in the mixture; singular weights are refused, or inf.
* The result is an array. In float32, and of more rounds than can be told apart, no nan, a warning,
  and a fit no worse than that of fewer rounds. Runs that no such weights belong to are refused.
"""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sdntk
from sdntk import kernels, mixing

POINTS = 30
X = jnp.linspace(0.03, 0.97, 25)
KERNEL = kernels.matern(1.5, 0.3)
Y = jnp.sin(6 * X) + 0.3 * jax.random.normal(jax.random.key(0), X.shape)
Y2 = jnp.stack([Y, jnp.cos(4 * X)], axis=1)
G = sdntk.gram(KERNEL, X)


def diagonal_spectrum(d):
    """Eigenvalues to order; the points are the eigenbasis."""
    return sdntk.Spectrum(jnp.asarray(d), jnp.eye(len(d)), float(np.finfo(float).eps))


def random_problem(seed):
    """d with a kernel's decay, a multiplier inside the spectrum, a signal and a noise variance."""
    rng = np.random.default_rng(seed)
    d = np.arange(1, POINTS + 1.0)[::-1] ** -rng.uniform(2, 4)
    c = float(d[rng.integers(POINTS // 2, POINTS)] * rng.uniform(0.5, 2))
    signal = rng.normal(size=POINTS) * d ** rng.uniform(0, 1)
    return d, c, signal, float(10 ** rng.uniform(-5, 0))


def run_of(d, c, y, rounds, **more):
    return sdntk.distill_spectrum(diagonal_spectrum(d), y, multiplier=c, rounds=rounds, **more)


def exact_weights(columns):
    """Q^-1 1/(1 . Q^-1 1): minimises |sum_j w_j columns_j| where sum w = 1."""
    rounds = len(columns)
    gram = mpmath.matrix(rounds, rounds)
    for i in range(rounds):
        for j in range(rounds):
            gram[i, j] = mpmath.fdot(columns[i], columns[j])
    w = mpmath.lu_solve(gram, mpmath.ones(rounds, 1))
    return np.array([float(v / mpmath.fsum(w)) for v in w])


def exact_filter(d, c):
    return [mpmath.mpf(float(e)) / (mpmath.mpf(c) + mpmath.mpf(float(e))) for e in d]


def exact_oracle(d, c, signal, noise_variance, rounds):
    with mpmath.workdps(60):
        a, sigma = exact_filter(d, c), mpmath.sqrt(mpmath.mpf(noise_variance))
        z = [mpmath.mpf(float(v)) for v in signal]
        errors = [
            [(1 - f ** (j + 1)) * v for f, v in zip(a, z, strict=True)]
            + [sigma * f ** (j + 1) for f in a]
            for j in range(rounds)
        ]
        return exact_weights(errors)


def exact_one_shot(d, c, y, rounds):
    with mpmath.workdps(60):
        a, z = exact_filter(d, c), [mpmath.mpf(float(v)) for v in y]
        residuals = []
        for j in range(rounds):
            left = 1 - mpmath.fsum(f ** (j + 1) for f in a) / len(a)
            residuals.append([(1 - f ** (j + 1)) * v / left for f, v in zip(a, z, strict=True)])
        return exact_weights(residuals)


def risk(filter_, signal, noise_variance):
    return np.sum(((1 - filter_) * signal) ** 2 + noise_variance * filter_**2)


def assert_weights(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# ---- a known signal ----


@pytest.mark.parametrize("rounds", range(1, 7))
@pytest.mark.slow_cases
def test_the_oracle_solves_its_problem(rounds):
    for seed in range(40):
        d, c, signal, noise_variance = random_problem(seed)
        w = mixing.oracle(run_of(d, c, signal, rounds), signal, noise_variance)
        assert_weights(w, exact_oracle(d, c, signal, noise_variance, rounds), 1e-12)
        assert abs(float(jnp.sum(w)) - 1) < 1e-14 * (1 + np.abs(w).sum())


def test_no_normal_equations():
    """What the orthogonal basis is for: with six rounds they lose the weights."""
    worst = {"here": 0.0, "normal equations": 0.0}
    for seed in range(40):
        d, c, signal, noise_variance = random_problem(seed)
        a, sigma = d / (c + d), noise_variance**0.5
        errors = np.stack(
            [np.concatenate([(1 - a**j) * signal, sigma * a**j]) for j in range(1, 7)]
        )
        w = np.linalg.solve(errors @ errors.T, np.ones(6))
        exact = exact_oracle(d, c, signal, noise_variance, 6)
        here = mixing.oracle(run_of(d, c, signal, 6), signal, noise_variance)
        for name, found in (("here", here), ("normal equations", w / w.sum())):
            off = np.abs(np.asarray(found) - exact).max() / np.abs(exact).max()
            worst[name] = max(worst[name], off)
    assert worst["here"] < 1e-12
    assert worst["normal equations"] > 1e-7


def test_the_risk_falls_with_the_rounds_and_stays_above_the_best_filter():
    for seed in range(20):
        d, c, signal, noise_variance = random_problem(seed)
        risks = []
        for rounds in range(1, 7):
            run = run_of(d, c, signal, rounds)
            w = mixing.oracle(run, signal, noise_variance)
            risks.append(risk(np.asarray(run.mix(w).filter), signal, noise_variance))
        assert (np.diff(risks) <= 1e-12 * risks[0]).all()
        assert risks[-1] < risks[0]
        floor = np.sum(signal**2 * noise_variance / (signal**2 + noise_variance))
        assert risks[-1] > floor * (1 - 1e-12)


def slope_of_the_risk(d, c, signal, noise_variance):
    """R'(c) of one fit, R(c) = sum (c z/(c + d))^2 + sigma^2 (d/(c + d))^2."""
    return 2 * np.sum((c * signal**2 - noise_variance * d) * d / (c + d) ** 3)


def test_for_two_rounds_the_slope_of_the_risk_decides():
    for seed in range(20):
        d, c, signal, noise_variance = random_problem(seed)
        a = d / (c + d)
        apart = np.sum((a * (1 - a)) ** 2 * (signal**2 + noise_variance))
        expected = -c / 2 * slope_of_the_risk(d, c, signal, noise_variance) / apart
        xi = mixing.oracle(run_of(d, c, signal, 2), signal, noise_variance)[1]
        np.testing.assert_allclose(xi, expected, rtol=1e-9, atol=1e-9)


def test_at_the_best_multiplier_two_rounds_do_not_help():
    found = 0
    for seed in range(40):
        d, _, signal, noise_variance = random_problem(seed)
        low, high = np.log(1e-9), np.log(1e3)
        slope = lambda t: slope_of_the_risk(d, np.exp(t), signal, noise_variance)  # noqa: B023, E731
        if not slope(low) < 0 < slope(high):
            continue
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        c = float(np.exp(low))
        w = mixing.oracle(run_of(d, c, signal, 2), signal, noise_variance)
        np.testing.assert_allclose(w, [1, 0], atol=1e-9)
        found += 1
    assert found > 10


def test_the_oracle_of_several_outputs():
    d, c, signal, noise = random_problem(3)
    other = random_problem(4)[2]
    both, multipliers = jnp.stack([signal, other], axis=1), jnp.array([c, 3 * c])
    w = mixing.oracle(run_of(d, multipliers, both, 4), both, jnp.array([noise, 0.1]))
    assert w.shape == (4, 2)
    assert w.condition.shape == (2,)
    assert_weights(w[:, 0], exact_oracle(d, c, signal, noise, 4), 1e-12)
    assert_weights(w[:, 1], exact_oracle(d, 3 * c, other, 0.1, 4), 1e-12)
    joint = mixing.oracle(run_of(d, c, both, 4, outputs="joint"), both, noise)
    assert joint.shape == (4,)
    twice = exact_oracle([*d, *d], c, [*signal, *other], noise, 4)
    assert_weights(joint, twice, 1e-12)


def test_spectra_of_all_kinds_agree():
    signal = jnp.sin(6 * X)
    runs = [
        sdntk.distill_spectrum(spectrum, Y, multiplier=0.01, rounds=4)
        for spectrum in (sdntk.decompose(G), sdntk.tridiagonalise(G))
    ]
    assert_weights(*(mixing.oracle(run, signal, 0.09) for run in runs), 1e-10)
    assert_weights(*(mixing.one_shot(run) for run in runs), 1e-9)


# ---- without held-out data ----


@pytest.mark.parametrize("rounds", range(1, 7))
@pytest.mark.slow_cases
def test_one_shot_is_its_formula(rounds):
    for seed in range(40):
        d, c, signal, noise = random_problem(seed)
        y = signal + noise**0.5 * np.random.default_rng(seed).normal(size=POINTS)
        w = mixing.one_shot(run_of(d, c, y, rounds))
        assert_weights(w, exact_one_shot(d, c, y, rounds), 1e-12)
        assert abs(float(jnp.sum(w)) - 1) < 1e-14 * (1 + np.abs(w).sum())


def test_one_shot_of_two_rounds_is_that_of_dang_et_al():
    run = sdntk.distill(KERNEL, X, Y, multiplier=0.01, rounds=2)
    df = np.sum(np.asarray(run.filters), axis=1)
    r = (np.asarray(Y) - np.asarray(run.fitted)) / (1 - df / 25)[:, None]
    R, R_pd, C = (float(np.mean(r[i] * r[j])) for i, j in ((0, 0), (1, 1), (0, 1)))
    xi = (R - C) / (R + R_pd - 2 * C)
    np.testing.assert_allclose(mixing.one_shot(run), [1 - xi, xi], rtol=1e-9)


def test_one_shot_of_several_outputs():
    d, c, y, _ = random_problem(3)
    other = random_problem(4)[2]
    both = jnp.stack([y, other], axis=1)
    w = mixing.one_shot(run_of(d, jnp.array([c, 3 * c]), both, 3))
    assert_weights(w[:, 0], exact_one_shot(d, c, y, 3), 1e-11)
    assert_weights(w[:, 1], exact_one_shot(d, 3 * c, other, 3), 1e-11)
    joint = mixing.one_shot(run_of(d, c, both, 3, outputs="joint"))
    assert_weights(joint, exact_one_shot([*d, *d], c, [*y, *other], 3), 1e-11)


def test_on_many_points_one_shot_comes_close_to_the_oracle():
    """60 draws of noise on 800 points, c below the best: of what the oracle's two rounds win,
    one_shot wins two thirds at least.
    """
    points, draws = 800, 60
    d = np.arange(1, points + 1.0)[::-1] ** -2
    signal = np.sqrt(points) * 3 * np.sqrt(d) * np.where(np.arange(points) % 2, 1, -1)
    noise = 1.0
    c = 1e-5
    weights = jax.jit(lambda y: mixing.one_shot(run_of(d, c, y, 2)).weights)
    oracle = mixing.oracle(run_of(d, c, signal, 2), signal, noise)
    a = d / (c + d)
    best, one = (
        risk(w[0] * a + w[1] * a**2, signal, noise) for w in (np.asarray(oracle), (1.0, 0.0))
    )
    labels = signal + np.random.default_rng(0).normal(size=(draws, points))
    found = [np.asarray(weights(y)) for y in labels]
    risks = np.array([risk(w[0] * a + w[1] * a**2, signal, noise) for w in found])
    mean, error = risks.mean(), risks.std() / draws**0.5
    assert mean + 4 * error < one - 2 / 3 * (one - best)


# ---- held-out data ----


@pytest.mark.parametrize("shape", [(1, 9), (2, 9), (4, 20), (4, 8, 3)])
def test_held_out_is_least_squares_with_the_constraint_eliminated(shape):
    rng = np.random.default_rng(len(shape))
    for _ in range(10):
        p, y = rng.normal(size=shape), rng.normal(size=shape[1:])
        flat, target = p.reshape(len(p), -1), y.ravel()
        changes = (flat[1:] - flat[0]).T
        v = np.linalg.lstsq(changes, target - flat[0], rcond=None)[0]
        w = mixing.held_out(p, y)
        assert w.shape == shape[:1]
        np.testing.assert_allclose(w, [1 - v.sum(), *v], atol=1e-12)


def test_held_out_weights_of_a_chain_are_those_in_50_digits():
    predictions = sdntk.distill(KERNEL, X, Y, multiplier=0.05, rounds=5).predict(NEW_POINTS)
    truth = np.sin(6 * np.asarray(NEW_POINTS))
    with mpmath.workdps(60):
        columns = [
            [mpmath.mpf(float(p)) - mpmath.mpf(float(t)) for p, t in zip(row, truth, strict=True)]
            for row in np.asarray(predictions)
        ]
        exact = exact_weights(columns)
    w = mixing.held_out(predictions, truth)
    assert_weights(w, exact, 1e-8)
    assert float(w.rounding) < 1e-3


NEW_POINTS = jnp.linspace(0.05, 0.95, 40)


def test_rounding_of_predictions_is_estimated():
    """Predictions in float32 move the weights by about what ``rounding`` says, at most."""
    for rounds in (2, 3):
        run = sdntk.distill(KERNEL, X, Y, multiplier=0.05, rounds=rounds)
        predictions = run.predict(NEW_POINTS)
        truth = np.sin(6 * np.asarray(NEW_POINTS))
        exact = np.asarray(mixing.held_out(predictions, truth))
        rounded = mixing.held_out(np.asarray(predictions, np.float32), truth)
        off = np.abs(np.asarray(rounded) - exact).max() / np.abs(exact).max()
        assert 1e-3 < off / float(rounded.rounding) < 1


def test_equal_rounds_get_no_weight():
    """As all collapsed rounds but the first."""
    rng = np.random.default_rng(0)
    p, y = rng.normal(size=(2, 12)), rng.normal(size=12)
    two = mixing.held_out(p, y)
    again = mixing.held_out(np.stack([p[0], p[1], p[1], p[1]]), y)
    np.testing.assert_allclose(again, [*two, 0, 0], atol=1e-13)
    assert float(again.condition) == 1
    np.testing.assert_array_equal(mixing.held_out(np.stack([p[0], p[0]]), y), [1, 0])
    np.testing.assert_array_equal(mixing.held_out(np.zeros((3, 4)), np.zeros(4)), [1, 0, 0])


def test_fewer_labels_than_rounds_are_told():
    rng = np.random.default_rng(0)
    with pytest.warns(sdntk.PrecisionWarning, match="cannot be told apart"):
        w = mixing.held_out(rng.normal(size=(5, 2)), rng.normal(size=2))
    assert np.isfinite(w).all()
    np.testing.assert_allclose(jnp.sum(w), 1, rtol=1e-12)


# ---- weights of teachers ----


def last_filter(a, xi):
    fitted = a
    for one in xi:
        fitted = a * ((1 - one) + one * fitted)
    return fitted


@given(st.integers(1, 6), st.integers(0, 2**31))
@settings(deadline=None, max_examples=100)
def test_the_chain_of_per_round_weights_ends_in_the_mixture(rounds, seed):
    w = np.random.default_rng(seed).normal(size=rounds)
    w[0] = 1 - w[1:].sum()
    xi = np.asarray(mixing.per_round(w))
    assert xi.shape == (rounds - 1,)
    a = np.linspace(0, 1, 11)
    expected = sum(weight * a ** (j + 1) for j, weight in enumerate(w))
    np.testing.assert_allclose(last_filter(a, xi), expected, atol=1e-12 * np.abs(w).sum())


@pytest.mark.parametrize("rounds", [2, 4])
@pytest.mark.slow_cases
def test_a_chain_with_these_ground_truth_weights_ends_in_the_mixture(rounds):
    w = np.random.default_rng(rounds).normal(size=rounds)
    w[0] = 1 - w[1:].sum()
    chain = {"multiplier": 0.01, "rounds": rounds}
    mixed = sdntk.distill(KERNEL, X, Y2, **chain).mix(w)
    weight = 1 - mixing.per_round(w)
    last = sdntk.distill(KERNEL, X, Y2, ground_truth_weight=weight, **chain)
    np.testing.assert_allclose(last.fitted[-1], mixed.fitted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(last.predict(X[:3])[-1], mixed.predict(X[:3]), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        last.degrees_of_freedom[-1], mixed.degrees_of_freedom, rtol=1e-9, atol=1e-9
    )


def test_per_round_of_three_rounds():
    w = np.array([0.2, 0.5, 0.3])
    np.testing.assert_allclose(mixing.per_round(w), [w[2] / (w[1] + w[2]), 1 - w[0]], rtol=1e-15)


def test_rounds_that_do_not_count_have_no_teacher():
    assert mixing.per_round([1.0]).shape == (0,)
    assert mixing.per_round([1.0, 0.0, 0.0]).tolist() == [0, 0]
    assert mixing.per_round([0.5, 0.5, 0.0]).tolist() == [0, 0.5]
    assert mixing.per_round([0.0, 0.0, 1.0]).tolist() == [1, 1]


def test_singular_weights_are_inf_where_traced():
    w = jnp.array([1.0, 0.1, 0.2, -0.3])  # 0.1 + 0.2 - 0.3 is not 0 in floating point
    assert jax.jit(mixing.per_round)(w).tolist()[2] == 0
    assert np.isinf(jax.jit(mixing.per_round)(w)[1])


@pytest.mark.parametrize("alpha", [0.25, 0.0, 1.0])
def test_a_chain_with_ground_truth_is_such_a_mixture(alpha):
    """The other way round, through the library's own chains: equal weights in every round."""
    xi, rounds = 1 - alpha, 4
    w = [xi**j * alpha for j in range(rounds - 1)] + [xi ** (rounds - 1)]
    plain = sdntk.distill(KERNEL, X, Y, multiplier=0.02, rounds=rounds)
    mixed = sdntk.distill(KERNEL, X, Y, multiplier=0.02, rounds=rounds, ground_truth_weight=alpha)
    np.testing.assert_allclose(plain.mix(w).fitted, mixed.fitted[-1], atol=1e-13)
    if alpha < 1:
        np.testing.assert_allclose(mixing.per_round(w), np.full(rounds - 1, xi), rtol=1e-13)


# ---- what a result is ----


def test_weights_act_as_an_array():
    run = sdntk.distill(KERNEL, X, Y, multiplier=0.02, rounds=3)
    w = mixing.oracle(run, jnp.sin(6 * X), 0.09)
    values = np.asarray(w)
    assert (w.shape, w.ndim, w.size, len(w), w.dtype) == ((3,), 1, 3, 3, values.dtype)
    assert values.tolist() == w.tolist() == [float(one) for one in w]
    assert w[1] == values[1]
    assert w[1:].tolist() == values[1:].tolist()
    for found, expected in (
        (1 - w, 1 - values),
        (-(abs(w) ** 2) / 2 + 3 * w, -(np.abs(values) ** 2) / 2 + 3 * values),
        (jnp.ones(3) * w, values),
        (np.ones(3) - w, 1 - values),
        (w - w, np.zeros(3)),
        (w == w, np.ones(3)),
        (w > 0, values > 0),
        (jnp.cumsum(w), np.cumsum(values)),
        (w @ run.fitted, values @ np.asarray(run.fitted)),
        (jnp.einsum("t,tk->k", w, run.fitted), values @ np.asarray(run.fitted)),
        (jnp.stack([w, w])[0], values),
        (jax.jit(lambda w: 2 * w)(w), 2 * values),
        (jax.tree.map(lambda leaf: 2 * leaf, w), 2 * values),
        (np.add(w, 1), values + 1),
        (w.sum(), values.sum()),
    ):
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-14)
    np.testing.assert_array_equal(run.mix(w).fitted, run.mix(values).fitted)
    np.testing.assert_array_equal(mixing.per_round(w), mixing.per_round(values))
    assert "condition" in repr(w)
    assert np.array(w, np.float32).dtype == np.float32
    with pytest.raises(AttributeError):
        w._nothing  # noqa: B018


@pytest.mark.slow
def test_jit_and_vmap_give_the_same_weights():
    spectrum, signal = sdntk.decompose(G), jnp.sin(6 * X)

    def weights(y, signal, c):
        run = sdntk.distill_spectrum(spectrum, y, multiplier=c, rounds=3)
        one, two = mixing.one_shot(run), mixing.oracle(run, signal, 0.09)
        three = mixing.held_out(run.fitted, y)
        return one.weights, two.weights, three.weights

    expected = weights(Y, signal, 0.01)
    for found, value in zip(jax.jit(weights)(Y, signal, 0.01), expected, strict=True):
        assert_weights(found, value, 1e-9)
    stacked = jax.vmap(weights, in_axes=(None, None, 0))(Y, signal, jnp.array([0.01, 0.1]))
    for found, value in zip(stacked, expected, strict=True):
        assert_weights(found[0], value, 1e-9)


def test_traced_runs_of_other_kinds_give_nan():
    spectrum = sdntk.decompose(G)

    def weights(tolerance, alpha):
        level = {"tolerance": tolerance} if tolerance is not None else {"multiplier": 0.01}
        run = sdntk.distill_spectrum(spectrum, Y, rounds=2, ground_truth_weight=alpha, **level)
        return mixing.one_shot(run).weights, mixing.oracle(run, Y, 0.1).weights

    assert np.isnan(jax.jit(lambda eps: weights(eps, 0.0))(0.1)).all()
    assert np.isnan(jax.jit(lambda alpha: weights(None, alpha))(0.5)).all()
    assert np.isfinite(jax.jit(lambda alpha: weights(None, alpha))(0.0)).all()


def test_derivatives_by_the_kernel_are_refused():
    def weight(length_scale):
        run = sdntk.distill(kernels.rbf(length_scale), X, Y, multiplier=0.01, rounds=2)
        return mixing.one_shot(run)[0]

    assert np.isfinite(jax.jit(weight)(0.3))
    with pytest.raises(NotImplementedError, match="mixing weights with respect to the Gram"):
        jax.grad(weight)(0.3)


def test_a_second_call_compiles_nothing():
    x = jnp.linspace(0, 1, 17)
    spectrum = sdntk.decompose(sdntk.gram(KERNEL, x))
    compiled = []

    def listen(event, *_, **__):
        compiled.append(event == "/jax/core/compile/backend_compile_duration")

    def compilations(y, c):
        compiled.clear()
        run = sdntk.distill_spectrum(spectrum, y, multiplier=c, rounds=3)
        w = mixing.one_shot(run)
        run.mix(w).fitted.block_until_ready()
        mixing.oracle(run, y, 0.1)
        mixing.held_out(run.fitted, y)
        mixing.per_round(w)
        return sum(compiled)

    first, second = jnp.sin(6 * x), jnp.cos(5 * x)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert compilations(first, 0.01) > 3
        assert compilations(second, 0.02) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("size", [1e-150, 1e150])
@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")  # of the run's own norms
def test_labels_of_any_size(size):
    spectrum, w = sdntk.decompose(G), jnp.array([3.0, -3.0, 1.0])
    run = lambda y: sdntk.distill_spectrum(spectrum, y, multiplier=0.01, rounds=3)  # noqa: E731
    large, usual = run(Y * size), run(Y)
    np.testing.assert_allclose(large.mix(w).fitted / size, usual.mix(w).fitted, atol=1e-13)
    assert_weights(mixing.one_shot(large), mixing.one_shot(usual), 1e-12)
    scaled = mixing.oracle(large, jnp.sin(6 * X) * size, 0.09 * size * size)
    assert_weights(scaled, mixing.oracle(usual, jnp.sin(6 * X), 0.09), 1e-12)
    held_out = mixing.held_out(usual.fitted * size, Y * size)
    assert_weights(held_out, mixing.held_out(usual.fitted, Y), 1e-9)


# ---- where rounding decides ----


@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")
@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("rounds", [1, 2, 4, 8, 12])
@pytest.mark.slow_cases
def test_float32_has_no_nan(rounds):
    x = jnp.linspace(0, 1, 25)
    y = jnp.sin(6 * x) + 0.3 * jax.random.normal(jax.random.key(1), x.shape)
    run = sdntk.distill(kernels.matern(1.5, 0.3), x, y, multiplier=0.01, rounds=rounds)
    signal = np.sin(6 * np.asarray(x))
    oracle = mixing.oracle(run, signal, 0.09)
    for w in (oracle, mixing.one_shot(run), mixing.held_out(run.fitted, y)):
        assert w.dtype == jnp.float32
        assert np.isfinite(w).all()
        np.testing.assert_allclose(jnp.sum(w), 1, atol=1e-5 * (1 + np.abs(w).sum()))
        assert np.isfinite(run.mix(w).fitted).all()
    if rounds > 1:
        z = run.spectrum.rotate(jnp.asarray(signal))
        mixed, single = (
            risk(np.asarray(f), np.asarray(z), 0.09)
            for f in (run.mix(oracle).filter, run.filters[0])
        )
        assert mixed < single * (1 + 1e-4)


@pytest.mark.usefixtures("single_precision")
def test_float32_warns_where_rounding_decides():
    x = jnp.linspace(0, 1, 25)
    with pytest.warns(sdntk.PrecisionWarning):
        run = sdntk.distill(kernels.matern(1.5, 0.3), x, jnp.sin(6 * x), multiplier=0.01, rounds=8)
    with pytest.warns(sdntk.PrecisionWarning, match="weights are not to be trusted.*8 rounds"):
        mixing.oracle(run, jnp.sin(6 * x), 0.09)


def test_rounds_that_cannot_be_told_apart_do_no_harm():
    """30 rounds in float64: their weights are those of fewer, and the risk no larger."""
    for seed in range(5):
        d, c, signal, noise = random_problem(seed)
        few = run_of(d, c, signal, 6)
        best = risk(np.asarray(few.mix(mixing.oracle(few, signal, noise)).filter), signal, noise)
        many = run_of(d, c, signal, 30)
        with pytest.warns(sdntk.PrecisionWarning, match="30 rounds cannot be told apart"):
            w = mixing.oracle(many, signal, noise)
        assert np.isfinite(w).all()
        assert np.isinf(w.condition)
        mixed = risk(np.asarray(many.mix(w).filter), signal, noise)
        assert mixed < best * (1 + 1e-3)
        with pytest.warns(sdntk.PrecisionWarning):
            assert np.isfinite(mixing.one_shot(many)).all()


@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")
@pytest.mark.slow
def test_any_number_of_rounds_has_finite_weights():
    """Whose coefficients overflow long before."""
    for d in (np.array([0.1, 0.5, 1.0]), random_problem(0)[0]):
        run = run_of(d, 1e-3, jnp.ones(len(d)), 64)
        for w in (mixing.oracle(run, jnp.ones(len(d)), 0.1), mixing.one_shot(run)):
            assert np.isfinite(w).all()
            assert abs(float(jnp.sum(w)) - 1) < 1e-14 * (1 + np.abs(w).sum())


def test_two_points_cannot_tell_many_rounds_apart():
    run = run_of(np.array([0.5, 1.0]), 0.1, jnp.array([1.0, 2.0]), 5)
    with pytest.warns(sdntk.PrecisionWarning, match="on so few points"):
        w = mixing.oracle(run, [1.0, 2.0], 0.5)
    exact = exact_oracle([0.5, 1.0], 0.1, [1.0, 2.0], 0.5, 3)
    np.testing.assert_allclose(w, [*exact, 0, 0], atol=1e-12 * np.abs(exact).max())


@pytest.mark.parametrize("y", [jnp.zeros(3), jnp.array([0.0, 0.0, 1.0])])
def test_nothing_to_tell(y):
    """No labels, no signal and no noise: the first round."""
    run = run_of(np.array([0.0, 0.5, 1.0]), 0.1, y, 3)
    with pytest.warns(sdntk.PrecisionWarning):
        w = mixing.oracle(run, jnp.zeros(3), 0.0)
    assert w.tolist() == [1, 0, 0]
    with pytest.warns(sdntk.PrecisionWarning):
        assert np.isfinite(mixing.one_shot(run)).all()


# ---- bad input ----

RUN = sdntk.distill(KERNEL, X, Y2, multiplier=0.02, rounds=2)
OF_A_TOLERANCE = sdntk.distill(KERNEL, X, Y, tolerance=0.1, rounds=2)
WITH_GROUND_TRUTH = sdntk.distill(KERNEL, X, Y, multiplier=0.02, rounds=2, ground_truth_weight=0.5)
KRYLOV = sdntk.distill(KERNEL, X, Y, multiplier=0.02, rounds=2, method="krylov")
STACKED = jax.vmap(lambda c: sdntk.distill_spectrum(RUN.spectrum, Y, multiplier=c, rounds=2))(
    jnp.array([0.1, 0.2])
)

BAD = {
    "stacked, one_shot": (lambda: mixing.one_shot(STACKED), ValueError, "stacked by jax.vmap"),
    "no run": (lambda: mixing.one_shot(G), TypeError, "run must be what distill"),
    "tolerance": (lambda: mixing.one_shot(OF_A_TOLERANCE), ValueError, "run.*fixed multiplier"),
    "tolerance, oracle": (
        lambda: mixing.oracle(OF_A_TOLERANCE, Y, 0.1),
        ValueError,
        "run.*fixed multiplier",
    ),
    "ground truth": (
        lambda: mixing.one_shot(WITH_GROUND_TRUTH),
        ValueError,
        "run.*ground_truth_weight 0",
    ),
    "krylov": (lambda: mixing.one_shot(KRYLOV), ValueError, "KrylovSpectrum knows no trace"),
    "krylov, oracle": (lambda: mixing.oracle(KRYLOV, Y, 0.1), ValueError, "KrylovSpectrum"),
    "signal": (lambda: mixing.oracle(RUN, Y, 0.1), ValueError, r"signal.*\(25, 2\).*\(25,\)"),
    "variance": (
        lambda: mixing.oracle(RUN, Y2, -0.1),
        ValueError,
        "noise_variance must be zero or positive",
    ),
    "variances": (
        lambda: mixing.oracle(RUN, Y2, [0.1, 0.2, 0.3]),
        ValueError,
        r"noise_variance.*\(2,\).*\(3,\)",
    ),
    "predictions": (lambda: mixing.held_out(Y, Y), ValueError, "predictions must have shape"),
    "labels": (lambda: mixing.held_out(RUN.fitted, Y), ValueError, r"y must have shape \(25, 2\)"),
    "sum": (lambda: mixing.per_round([1.0, 0.5]), ValueError, "weights must have the sum 1.*1.5"),
    "axes": (lambda: mixing.per_round(np.eye(2)), ValueError, r"weights must have shape \(T,\)"),
    "singular": (
        lambda: mixing.per_round([1.0, 0.5, -0.5]),
        ValueError,
        "weights from round 1 on have the sum 0.*from round 2.*run.mix",
    ),
}


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")  # fewer labels than rounds
def test_fewer_held_out_labels_than_rounds_leave_no_nan():
    w = mixing.held_out([[1.0], [2.0], [3.0]], [1.0])
    assert not np.isnan(w.rounding)
    assert (w // 1).shape == (w % 1).shape == round(w, 2).shape == (3,)
