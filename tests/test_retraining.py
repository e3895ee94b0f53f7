"""retrain: rounds on one's own output, with noise in every round.

Must hold, and how it is shown:

* The closed form is right: against every noise's coefficient in every fit, carried along in
  arithmetic of 50 digits, for both ways to keep labels and any real share.
* Rounds that are drawn have it: mean errors within 4 standard errors of it in every round, for
  both ways, real shares, one output and several, one multiplier and several, the same points and
  new ones, a basis of few vectors.
* At A = 1 the variance of "replace" is (t + 1) sigma^2, of "accumulate" sigma^2 times the partial
  sums of 1/j^2, which tend to pi^2/6; with a ridge "replace" tends to sigma^2 A^2/(1 - A^2) and the
  signal is lost; of real shares at A = 1 the best tends to 1/golden ratio.
* Without noise it is distill_spectrum with a multiplier, on every spectrum, a real share being the
  weight of the ground truth; "accumulate" is one fit to all labels, by scikit-learn.
* New points that are the old ones change nothing, and other ones are what scikit-learn makes of
  them.
* The same key gives the same bits, whatever the numbers of draws and rounds; sizes of labels,
  float32, jit, vmap and derivatives; wrong arguments are named.
"""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import random_matrix, spectrum_and_labels
from sklearn.kernel_ridge import KernelRidge

import sdntk
from sdntk import kernels
from sdntk._pytrees import pytree
from sdntk.spectra.base import Eigenbasis

KEY = jax.random.key(3)
K = 16
D = np.concatenate([np.zeros(2), 10.0 ** np.linspace(-4, 0, K - 2)])
G = random_matrix(0, D)
DENSE = sdntk.decompose(G)
SIGNAL = np.random.default_rng(1).normal(size=K)
SIGNALS = np.stack([SIGNAL, np.cos(np.arange(K))], axis=1)
KERNEL = kernels.rbf(0.4)
X = np.linspace(-1, 1, K)
ON_X = sdntk.decompose(sdntk.gram(KERNEL, X))
KEEPS = ("replace", "accumulate")


def diagonal_spectrum(d):
    """Of diag(d), so that labels are rotated labels."""
    return sdntk.Spectrum(jnp.asarray(d), jnp.eye(len(d)), float(jnp.finfo(float).eps))


def assert_within_four_standard_errors(run):
    mean, expected = np.mean(run.error, axis=0), np.asarray(run.expected_error)
    standard_error = np.std(run.error, axis=0, ddof=1) / np.sqrt(len(run.error))
    assert np.all(standard_error > 0)
    assert np.all(standard_error < 0.1 * expected)  # so that something is said
    assert np.all(np.abs(mean - expected) < 4 * standard_error)


# ---- the closed form ----


def moments_by_coefficients(d, z, c, sigma, a, rounds, keep):
    """Squared bias and variance of every round, from what each noise adds to each fit."""
    with mpmath.workdps(50):
        c, sigma, a = map(mpmath.mpf, (c, sigma, a))
        bias, variance = [mpmath.mpf(0)] * rounds, [mpmath.mpf(0)] * rounds
        for d_k, z_k in zip(d, z, strict=True):
            ridge = mpmath.mpf(float(d_k)) / (c + mpmath.mpf(float(d_k)))
            # A label is a combination of the signal, e_0..e_{T-1} and e'_0..e'_{T-1}.
            labels, fitted = [], []
            for t in range(rounds):
                label = [mpmath.mpf(0)] * (1 + 2 * rounds)
                if t == 0:
                    label[0], label[1] = mpmath.mpf(1), sigma
                else:
                    label = [(1 - a) * part for part in fitted]  # of the round before
                    label[0] += a
                    label[1 + t] += (1 - a) * sigma
                    label[1 + rounds + t] += a * sigma
                labels.append(label)
                seen = labels if keep == "accumulate" else labels[-1:]
                fitted = [ridge * mpmath.fsum(p) / len(seen) for p in zip(*seen, strict=True)]
                bias[t] += ((fitted[0] - 1) * mpmath.mpf(float(z_k))) ** 2
                variance[t] += mpmath.fsum(part**2 for part in fitted[1:])
        return [[float(v / len(d)) for v in values] for values in (bias, variance)]


@pytest.mark.parametrize("real_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("keep", KEEPS)
def test_the_closed_form_in_50_digits(keep, real_share):
    d, z = spectrum_and_labels(0, 9, condition=1e6, nulls=2)
    c, sigma, rounds = 3e-3, 0.7, 6
    run = sdntk.retrain(
        diagonal_spectrum(d), z, multiplier=c, rounds=rounds, noise=sigma, keep=keep,
        real_share=real_share, key=KEY,
    )  # fmt: skip
    bias, variance = moments_by_coefficients(d, z, c, sigma, real_share, rounds, keep)
    np.testing.assert_allclose(run.squared_bias, bias, rtol=1e-13)
    np.testing.assert_allclose(run.variance, variance, rtol=1e-13)
    np.testing.assert_allclose(run.expected_error, np.add(bias, variance), rtol=1e-13)


def test_the_formulas_of_the_theory():
    """As section 10 writes them."""
    d, z = spectrum_and_labels(1, 9, condition=1e3)
    c, sigma, rounds = 0.02, 0.5, 7
    ridge = d / (c + d)
    t = np.arange(1, rounds + 1)[:, None]
    replace = np.sum(((ridge**t - 1) * z) ** 2, axis=1)
    replace += sigma**2 * np.cumsum(np.sum(ridge ** (2 * t), axis=1))
    mean, variance, accumulate = z, np.full(9, sigma**2), []
    for t in range(rounds):
        accumulate.append(np.sum((ridge * mean - z) ** 2 + ridge**2 * variance))
        factor = (t + 1 + ridge) / (t + 2)
        mean, variance = mean * factor, variance * factor**2 + sigma**2 / (t + 2) ** 2
    for keep, expected in (("replace", replace), ("accumulate", accumulate)):
        run = sdntk.retrain(
            diagonal_spectrum(d), z, multiplier=c, rounds=rounds, noise=sigma, keep=keep, key=KEY
        )
        np.testing.assert_allclose(run.expected_error, np.divide(expected, 9), rtol=1e-12)


def test_small_losses_have_all_their_digits():
    """1 - A = 1e-9: nothing is lost to cancellation."""
    run = sdntk.retrain(diagonal_spectrum([1.0]), [1.0], multiplier=1e-9, rounds=3, noise=0)
    with mpmath.workdps(50):
        ridge = 1 / (1 + mpmath.mpf(1e-9))
        expected = [float((1 - ridge ** (t + 1)) ** 2) for t in range(3)]
    np.testing.assert_allclose(run.expected_error, expected, rtol=1e-14)


# ---- limits ----

AT_ONE = {"multiplier": 1e-12, "noise": 0.5, "key": KEY}


def test_at_one_the_variance_of_replace_grows_as_the_rounds():
    run = sdntk.retrain(diagonal_spectrum(np.ones(3)), np.ones(3), rounds=30, **AT_ONE)
    np.testing.assert_allclose(run.variance, 0.25 * np.arange(1, 31), rtol=1e-9)
    assert np.all(np.asarray(run.squared_bias) < 1e-20)


def test_at_one_the_variance_of_accumulate_tends_to_pi_squared_over_six():
    rounds = 3000
    run = sdntk.retrain(diagonal_spectrum([1.0]), [1.0], rounds=rounds, keep="accumulate", **AT_ONE)
    sums = np.cumsum(1.0 / np.arange(1, rounds + 1) ** 2)
    np.testing.assert_allclose(run.variance, 0.25 * sums, rtol=1e-8)
    rest = np.pi**2 / 6 - float(run.variance[-1]) / 0.25
    assert 1 / (rounds + 1) < rest < 1 / rounds  # as the rest of the sum must be


def test_with_a_ridge_replace_tends_to_its_limit_and_the_signal_is_lost():
    d, c, sigma = np.array([0.0, 0.1, 1.0, 4.0]), 0.5, 0.3
    z = np.array([1.0, -2.0, 0.5, 3.0])
    spectrum = diagonal_spectrum(d)
    run = sdntk.retrain(spectrum, z, multiplier=c, rounds=400, noise=sigma, key=KEY)
    ridge = d / (c + d)
    limit = np.mean(sigma**2 * ridge**2 / (1 - ridge**2))
    assert float(run.variance[-1]) == pytest.approx(limit, rel=1e-12)
    assert float(run.squared_bias[-1]) == pytest.approx(np.mean(z**2), rel=1e-12)
    without = sdntk.retrain(spectrum, z, multiplier=c, rounds=400, noise=0)
    assert np.abs(without.fitted[0, -1]).max() < 1e-15


def test_at_one_the_best_real_share_is_that_of_the_golden_ratio():
    """Its variance is sigma^2 (a^2 + (1 - a)^2)/(1 - (1 - a)^2) in the limit."""
    shares = jnp.linspace(0.01, 1, 991)  # in steps of 1/1000

    def last(a):
        spectrum = diagonal_spectrum([1.0])
        run = sdntk.retrain(spectrum, [1.0], rounds=4000, real_share=a, **AT_ONE)
        return run.variance[-1]

    variances = jax.vmap(last)(shares)
    limit = 0.25 * (shares**2 + (1 - shares) ** 2) / (1 - (1 - shares) ** 2)
    np.testing.assert_allclose(variances, limit, rtol=1e-8)
    best = float(shares[jnp.argmin(variances)])
    assert best == pytest.approx(2 / (1 + np.sqrt(5)), abs=1e-3)


# ---- rounds that are drawn ----

SLOW = pytest.mark.slow
SAME_POINTS = [
    pytest.param(keep, real_share, signal, multiplier, marks=[SLOW] if slow else [])
    for keep in KEEPS
    for real_share in (0.0, 0.4)
    for signal, multiplier, slow in (
        (SIGNAL, 0.02, False),
        (SIGNALS, 0.02, True),
        (SIGNALS, [0.001, 0.1], False),
    )
]


@pytest.mark.parametrize(("keep", "real_share", "signal", "multiplier"), SAME_POINTS)
def test_draws_have_the_expected_error(keep, real_share, signal, multiplier):
    run = sdntk.retrain(
        DENSE, signal, multiplier=multiplier, rounds=6, noise=0.8, keep=keep,
        real_share=real_share, key=KEY, draws=800,
    )  # fmt: skip
    assert run.fitted.shape == (800, 6, *signal.shape)
    assert run.error.shape == (800, 6)
    assert run.expected_error.shape == (6,)
    distances = (np.asarray(run.fitted) - signal).reshape(800, 6, -1)
    np.testing.assert_allclose(run.error, np.mean(distances**2, axis=-1), rtol=1e-12)
    assert_within_four_standard_errors(run)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("signal", [SIGNAL, SIGNALS], ids=["one", "two"])
@pytest.mark.slow_cases
def test_draws_on_new_points_have_the_expected_error(keep, signal):
    rng = np.random.default_rng(5)
    designs = [X, rng.uniform(-1, 1, 12), rng.uniform(-1, 1, 20), rng.uniform(-1, 1, 12)]
    run = sdntk.retrain(
        ON_X, signal, multiplier=1e-3, rounds=4, noise=0.5, keep=keep, key=KEY, draws=800,
        points=designs, kernel=KERNEL,
    )  # fmt: skip
    assert run.fitted.shape == (800, 4, *signal.shape)
    assert_within_four_standard_errors(run)


@pytree
class FewVectors(Eigenbasis):
    """A basis of m < K vectors: what is orthogonal to them is outside the space."""

    eigenvalues: jax.Array
    vectors: jax.Array
    machine_epsilon: float = dataclasses.field(default=2.2e-16, metadata={"static": True})
    matrix = None

    @property
    def num_points(self):
        return len(self.vectors)

    def rotate(self, y):
        return self.vectors.T @ y

    def unrotate(self, z):
        return (self.vectors @ z.reshape(len(z), -1)).reshape(-1, *z.shape[1:])


@pytest.mark.parametrize("keep", KEEPS)
def test_the_part_outside_a_basis_of_few_vectors_is_lost(keep):
    vectors = jnp.asarray(np.linalg.qr(np.random.default_rng(2).normal(size=(K, 3)))[0])
    few = FewVectors(jnp.array([0.1, 0.5, 1.0]), vectors)
    whole = sdntk.decompose((vectors * few.eigenvalues[None]) @ vectors.T)
    runs = [
        sdntk.retrain(
            spectrum, SIGNALS, multiplier=0.1, rounds=4, noise=0.5, keep=keep, key=KEY, draws=400
        )
        for spectrum in (few, whole)
    ]
    for name in ("fitted", "error", "squared_bias", "variance"):
        of_few, of_whole = (getattr(run, name) for run in runs)
        np.testing.assert_allclose(of_few, of_whole, rtol=1e-12, atol=1e-13, err_msg=name)
    assert_within_four_standard_errors(runs[0])


@pytest.mark.slow
def test_a_tridiagonal_spectrum_has_the_same_rounds():
    for keep in KEEPS:
        asked = {"multiplier": [0.01, 0.1], "rounds": 5, "noise": 0.3, "real_share": 0.2}
        runs = [
            sdntk.retrain(spectrum, SIGNALS, keep=keep, key=KEY, draws=3, **asked)
            for spectrum in (DENSE, sdntk.tridiagonalise(G))
        ]
        for name in ("fitted", "error", "squared_bias", "variance"):
            dense, other = (getattr(run, name) for run in runs)
            np.testing.assert_allclose(other, dense, rtol=1e-11, atol=1e-12, err_msg=name)


# ---- without noise ----


@pytest.mark.parametrize("method", ["dense", "tridiagonal", "krylov"])
@pytest.mark.parametrize("real_share", [0.0, 0.25])
@pytest.mark.slow_cases
def test_without_noise_it_is_a_chain_of_distillation(method, real_share):
    chain = {"multiplier": 0.02, "rounds": 5, "ground_truth_weight": real_share}
    spectrum = {
        "dense": lambda: DENSE,
        "tridiagonal": lambda: sdntk.tridiagonalise(G),
        "krylov": lambda: sdntk.krylov(sdntk.as_operator(G), SIGNALS, **chain),
    }[method]()
    distilled = sdntk.distill_spectrum(spectrum, SIGNALS, **chain)
    run = sdntk.retrain(
        spectrum, SIGNALS, multiplier=0.02, rounds=5, noise=0, real_share=real_share, draws=2
    )
    for draw in run.fitted:
        np.testing.assert_allclose(draw, distilled.fitted, rtol=1e-12, atol=1e-14)
    error = np.mean((np.asarray(distilled.fitted) - SIGNALS) ** 2, axis=(1, 2))
    np.testing.assert_allclose(run.error, [error] * 2, rtol=1e-12)
    np.testing.assert_allclose(run.expected_error, error, rtol=1e-10)


def by_scikit_learn(designs, signal, c, keep):
    """f_t on the first design, every round a fit of all labels that it sees."""
    seen, labels = [designs[0]], [signal]
    fitted = []
    for t in range(len(designs)):
        points, targets = np.concatenate(seen), np.concatenate(labels)
        model = KernelRidge(alpha=c * len(points), kernel=lambda a, b: float(KERNEL(a, b)[0, 0]))
        model.fit(points[:, None], targets)
        fitted.append(model.predict(designs[0][:, None]))
        if t + 1 < len(designs):
            new = designs[t + 1]
            predicted = model.predict(new[:, None])
            if keep == "replace":
                seen, labels = [], []
            seen.append(new)
            labels.append(predicted)
    return np.array(fitted)


@pytest.mark.parametrize("keep", KEEPS)
def test_without_noise_new_points_are_what_scikit_learn_makes_of_them(keep):
    rng = np.random.default_rng(6)
    designs = [X[::3], rng.uniform(-1, 1, 4), rng.uniform(-1, 1, 7)]
    signal = np.stack([np.sin(3 * X[::3]), X[::3]], axis=1)
    spectrum = sdntk.decompose(sdntk.gram(KERNEL, designs[0]))
    run = sdntk.retrain(
        spectrum, signal, multiplier=0.01, rounds=3, noise=0, keep=keep, points=designs,
        kernel=KERNEL,
    )  # fmt: skip
    expected = by_scikit_learn(designs, signal, 0.01, keep)
    np.testing.assert_allclose(run.fitted[0], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        run.expected_error, np.mean((expected - signal) ** 2, axis=(1, 2)), rtol=1e-9
    )


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.slow_cases
def test_new_points_that_are_the_old_ones_change_nothing(keep):
    """With "accumulate" the union has every point several times: a fit to the mean of labels."""
    asked = {"multiplier": 0.003, "rounds": 4, "noise": 0.5, "keep": keep, "key": KEY, "draws": 5}
    same = sdntk.retrain(ON_X, SIGNALS, **asked)
    for points in ([X] * 4, np.stack([X] * 4), [X[:, None]] * 4):
        new = sdntk.retrain(ON_X, SIGNALS, points=points, kernel=KERNEL, **asked)
        for name in ("fitted", "error", "squared_bias", "variance"):
            np.testing.assert_allclose(
                getattr(new, name), getattr(same, name), rtol=1e-9, atol=1e-11, err_msg=name
            )


# ---- keys, units, precision, transformations ----


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("real_share", [0.0, 0.5])
@pytest.mark.slow_cases
def test_the_same_key_gives_the_same_bits_whatever_the_numbers(keep, real_share):
    def fitted(key, rounds, draws):
        return np.asarray(
            sdntk.retrain(
                DENSE, SIGNAL, multiplier=0.02, rounds=rounds, noise=0.5, keep=keep,
                real_share=real_share, key=key, draws=draws,
            ).fitted
        )  # fmt: skip

    one = fitted(KEY, 4, 3)
    np.testing.assert_array_equal(one, fitted(KEY, 4, 3))
    np.testing.assert_allclose(one[:2, :3], fitted(KEY, 3, 2), rtol=1e-13, atol=1e-14)
    other = fitted(jax.random.key(4), 4, 3)
    assert np.all(one != other)
    assert np.all(one[0] != one[1])


@pytest.mark.slow
def test_draws_side_by_side_are_those_one_after_another(monkeypatch):
    """As accelerators make them."""
    from sdntk import _mapping
    from sdntk.spectra import retraining

    def fitted():
        retraining._course.clear_cache()
        return sdntk.retrain(
            DENSE, SIGNALS, multiplier=0.02, rounds=3, noise=0.5, real_share=0.3, key=KEY, draws=4
        ).fitted

    one_after_another = fitted()
    with monkeypatch.context() as patch:
        patch.setattr(
            _mapping.lax, "platform_dependent", lambda *args, default, **_: default(*args)
        )
        side_by_side = fitted()
    retraining._course.clear_cache()
    np.testing.assert_allclose(side_by_side, one_after_another, rtol=1e-12, atol=1e-14)


def test_a_round_of_noise_is_new_in_every_round():
    """At A = 1 increments of the fits are the noise: independent, of the right size."""
    run = sdntk.retrain(diagonal_spectrum([1.0]), [0.0], rounds=4, draws=4000, **AT_ONE)
    noise = np.diff(np.asarray(run.fitted)[:, :, 0], axis=1, prepend=0.0)
    covariance = np.cov(noise.T)
    np.testing.assert_allclose(covariance, 0.25 * np.eye(4), atol=4 * 0.25 * np.sqrt(2 / 4000))


POWERS = (-480, 480)


@pytest.mark.parametrize("new_points", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.slow_cases
def test_labels_know_no_unit(keep, new_points):
    more = {"points": [X] * 3, "kernel": KERNEL} if new_points else {"real_share": 0.3}

    def run(factor):
        return sdntk.retrain(
            ON_X, SIGNALS * factor, multiplier=0.01, rounds=3, noise=0.4 * factor, keep=keep,
            key=KEY, draws=2, **more,
        )  # fmt: skip

    plain = run(1.0)
    for power in POWERS:
        factor = 2.0**power
        scaled = run(factor)
        np.testing.assert_array_equal(scaled.fitted, np.asarray(plain.fitted) * factor)
        for name in ("error", "squared_bias", "variance", "expected_error"):
            expected = np.asarray(getattr(plain, name)) * factor * factor
            np.testing.assert_array_equal(getattr(scaled, name), expected, err_msg=name)
    for factor in (1e-150, 1e150):
        scaled = run(factor)
        np.testing.assert_allclose(scaled.fitted / factor, plain.fitted, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(scaled.error / factor / factor, plain.error, rtol=1e-11)
        assert np.all(np.isfinite(scaled.to_frame().to_numpy()))
    huge = run(1e300)  # whose squares are no numbers: inf, not nan
    assert np.all(np.isposinf(huge.error))
    assert np.all(np.isposinf(huge.expected_error))
    assert np.all(np.isfinite(huge.fitted))


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("keep", ["replace", pytest.param("accumulate", marks=SLOW)])
def test_float32(keep):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sdntk.PrecisionWarning)
        kernel = kernels.rbf(0.4)  # in float32
        spectrum = sdntk.decompose(sdntk.gram(kernel, X))
        asked = {"multiplier": 0.01, "rounds": 5, "noise": 0.5, "keep": keep, "key": KEY}
        runs = [
            sdntk.retrain(spectrum, SIGNALS, draws=500, **asked),
            sdntk.retrain(spectrum, SIGNALS, draws=500, points=[X] * 5, kernel=kernel, **asked),
            sdntk.retrain(spectrum, SIGNALS, draws=500, real_share=0.5, **asked),
        ]
    for run in runs:
        assert run.fitted.dtype == run.error.dtype == run.expected_error.dtype == jnp.float32
        assert np.all(np.isfinite(run.fitted))
        assert_within_four_standard_errors(run)


@pytest.mark.parametrize("new_points", [False, True])
@pytest.mark.slow_cases
def test_jit_and_vmap(new_points):
    more = {"points": [X] * 3, "kernel": KERNEL} if new_points else {}

    def errors(signal, c, sigma, key):
        run = sdntk.retrain(
            ON_X, signal, multiplier=c, rounds=3, noise=sigma, key=key, draws=2, **more
        )
        return run.error, run.expected_error, run.fitted

    arguments = (jnp.asarray(SIGNAL), 0.01, 0.3, KEY)
    plain = errors(*arguments)
    for compiled, expected in zip(jax.jit(errors)(*arguments), plain, strict=True):
        np.testing.assert_allclose(compiled, expected, rtol=1e-11, atol=1e-13)
    several = jax.vmap(lambda signal: errors(signal, 0.01, 0.3, KEY))(jnp.asarray(SIGNALS.T))
    for stacked, expected in zip(several, plain, strict=True):
        np.testing.assert_allclose(stacked[0], expected, rtol=1e-11, atol=1e-13)


def test_derivatives_but_not_by_the_gram_matrix():
    def expected(c, a):
        run = sdntk.retrain(DENSE, SIGNAL, multiplier=c, rounds=4, noise=0.5, real_share=a, key=KEY)
        return run.expected_error[-1]

    by_c, by_a = jax.grad(expected, (0, 1))(0.02, 0.3)
    step = 1e-6
    slope_c = (expected(0.02 + step, 0.3) - expected(0.02 - step, 0.3)) / (2 * step)
    slope_a = (expected(0.02, 0.3 + step) - expected(0.02, 0.3 - step)) / (2 * step)
    np.testing.assert_allclose([by_c, by_a], [slope_c, slope_a], rtol=1e-6)

    def by_matrix(matrix):
        spectrum = sdntk.decompose(matrix)
        return sdntk.retrain(spectrum, SIGNAL, multiplier=0.1, rounds=2, noise=0.0).error[0, 0]

    with pytest.raises(
        NotImplementedError, match="of retraining and of a filter's fit with respect"
    ):
        jax.grad(by_matrix)(jnp.asarray(G))


def test_nothing_recompiles_when_only_values_change():
    from sdntk.spectra import retraining

    def run(signal, c, sigma, a, seed):
        return sdntk.retrain(
            DENSE, signal, multiplier=c, rounds=3, noise=sigma, real_share=a,
            key=jax.random.key(seed), draws=2,
        )  # fmt: skip

    run(SIGNAL, 0.1, 0.5, 0.3, 0)
    jitted = [retraining._course, retraining.in_own_unit, retraining.out_of_unit]
    before = [function._cache_size() for function in jitted]
    run(SIGNAL + 1, 0.2, 2, 1, 1)
    run(np.arange(K), np.float32(0.3), 1e-3, 0.7, 2)
    assert [function._cache_size() for function in jitted] == before


# ---- what users see ----


def test_table_and_text():
    asked = {"multiplier": 0.01, "rounds": 3, "noise": 0.5, "key": KEY}
    run = sdntk.retrain(DENSE, SIGNALS, draws=7, keep="accumulate", **asked)
    table = run.to_frame()
    columns = ["expected_error", "mean_error", "standard_error", "squared_bias", "variance"]
    assert [*table.columns] == ["round", *columns]
    assert table["round"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(table["mean_error"], np.mean(run.error, axis=0), rtol=1e-14)
    standard_error = np.std(run.error, axis=0, ddof=1) / np.sqrt(7)
    np.testing.assert_allclose(table["standard_error"], standard_error, rtol=1e-12)
    title, header, *rows = repr(run).splitlines()
    assert title == "Retraining(16 points, 2 outputs, 3 rounds, accumulate, 7 draws)"
    assert header.replace("  ", " ").strip() == "round expected error mean error standard error"
    assert len(rows) == 3
    one = sdntk.retrain(DENSE, SIGNAL, **asked)
    assert one.to_frame()["standard_error"].isna().all()
    assert "draws" in repr(one)
    assert "no arrays" in repr(jax.tree.map(lambda _: None, run, is_leaf=lambda x: x is not run))
    stacked = jax.vmap(lambda s: sdntk.retrain(DENSE, s, **asked))(jnp.asarray(SIGNALS.T))
    assert repr(stacked) == "Retraining(2 courses, stacked)"
    with pytest.raises(ValueError, match=r"stacked by jax\.vmap"):
        stacked.to_frame()


def retrain(spectrum=DENSE, signal=SIGNAL, **changed):
    asked = {"multiplier": 0.1, "rounds": 2, "noise": 0.1, "key": KEY}
    return sdntk.retrain(spectrum, signal, **asked | changed)


def on_points(points, spectrum=ON_X, **changed):
    return retrain(spectrum, points=points, **{"kernel": KERNEL} | changed)


def krylov():
    return sdntk.krylov(sdntk.as_operator(G), SIGNAL, multiplier=0.1, rounds=2)


BAD = {
    "no spectrum": (lambda: retrain(G), TypeError, "spectrum must be"),
    "few labels": (lambda: retrain(signal=SIGNAL[:3]), ValueError, "signal must have shape"),
    "nan": (lambda: retrain(signal=SIGNAL * np.nan), ValueError, "signal must be finite"),
    "multiplier": (lambda: retrain(multiplier=0.0), ValueError, "multiplier must be positive"),
    "rounds": (lambda: retrain(rounds=0), ValueError, "rounds must be at least 1"),
    "draws": (lambda: retrain(draws=0), ValueError, "draws must be at least 1"),
    "draws that do not fit": (lambda: retrain(draws=2**31 - 1), MemoryError, "fewer draws"),
    "noise": (lambda: retrain(noise=-1.0), ValueError, "noise must be zero or positive"),
    "noises": (lambda: retrain(noise=[0.1, 0.2]), ValueError, "noise must be a scalar"),
    "keep": (lambda: retrain(keep="append"), ValueError, "keep must be 'replace' or 'accumulate'"),
    "share": (lambda: retrain(real_share=1.5), ValueError, "real_share must lie between 0 and 1"),
    "no key": (lambda: retrain(key=None), ValueError, "key must be given"),
    "wrong key": (lambda: retrain(key=3), TypeError, "key must be one JAX key"),
    "key unused": (lambda: retrain(key=3, noise=0), TypeError, "key must be one JAX key"),
    "krylov": (lambda: retrain(krylov()), ValueError, "spectrum must know what any labels become"),
    "krylov, points": (
        lambda: on_points([X, X], krylov(), noise=0),
        ValueError,
        "spectrum must know what any labels become",
    ),
    "krylov, other labels": (
        lambda: retrain(krylov(), 1 + SIGNAL, noise=0),
        ValueError,
        "must be the labels that this Krylov spectrum was made from",
    ),
    "no kernel": (lambda: on_points([X, X], kernel=None), ValueError, "points and kernel must"),
    "no points": (lambda: retrain(kernel=KERNEL), ValueError, "points and kernel must be given"),
    "no function": (lambda: on_points([X, X], kernel="rbf"), TypeError, "kernel must be"),
    "share, points": (
        lambda: on_points([X, X], real_share=0.5),
        ValueError,
        "real_share must be 0 with points",
    ),
    "too few designs": (lambda: on_points([X]), ValueError, "points must hold 2 designs.*holds 1"),
    "one axis": (lambda: on_points(X), ValueError, "points must have shape"),
    "text": (lambda: on_points("ab"), TypeError, "points must hold a design for each round"),
    "words": (lambda: on_points(["a", "b"]), TypeError, r"points\[0\] must hold real numbers"),
    "another first design": (
        lambda: on_points([X**3, X]),
        ValueError,
        r"points\[0\] must be the points of the spectrum, in their order",
    ),
    "small first design": (
        lambda: on_points([X[:3], X]),
        ValueError,
        r"points\[0\] must be the 16 points of the spectrum; it holds 3",
    ),
    "other shapes": (
        lambda: on_points([X, np.ones((16, 2))]),
        ValueError,
        r"points\[0\] and points\[1\] must hold points of one shape",
    ),
    "a multiplier for each output": (
        lambda: on_points([X, X], signal=SIGNALS, multiplier=[0.1, 0.2]),
        ValueError,
        "multiplier must be a scalar",
    ),
}


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_a_multiplier_that_rounding_decides_is_named():
    with pytest.warns(sdntk.PrecisionWarning, match="multipliers are not to be trusted"):
        retrain(multiplier=1e-16)


@pytest.mark.slow
def test_jit_with_a_multiplier_that_is_not_traced():
    spectrum = sdntk.decompose(jnp.diag(jnp.array([1.0, 0.5, 0.2])))
    key, signal = jax.random.key(0), jnp.array([1.0, -1.0, 0.5])

    def error(signal):
        return sdntk.retrain(spectrum, signal, multiplier=0.02, rounds=2, noise=0.1, key=key).error

    np.testing.assert_allclose(jax.jit(error)(signal), error(signal), rtol=1e-12)
