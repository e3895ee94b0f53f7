"""Degrees of freedom, and criteria without held-out data (sdntk/selection.py).

Must hold: degrees of freedom are the trace of the Jacobian by automatic differentiation to 1e-10,
over random spectra with null spaces, tolerances (absolute and relative) and multipliers, weights,
states and outputs of every kind (hypothesis); on Krylov spectra probes are within 4 standard
errors. SURE is unbiased: the mean over 4,000 draws of what it says minus the true risk is within 4
standard errors of 0 in every round of ten set-ups; with tr F in place of the degrees of freedom it
is off by more than 5 in one of them ("small tolerance", round 0). GCV is its formula. Leave-one-out
residuals are those of K fits, without the shortcut, and scikit-learn's. jit, vmap and float32 work;
a second call compiles nothing. Bad input is refused by name.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge

import sdntk
from sdntk import (
    decompose,
    distill,
    distill_spectrum,
    gram,
    kernels,
    krylov,
    selection,
    tridiagonalise,
)

K = 12


def random_gram(rng, rank, points=K):
    vectors = np.linalg.qr(rng.normal(size=(points, points)))[0][:, :rank]
    G = (vectors * rng.lognormal(sigma=1.5, size=rank)) @ vectors.T
    return jnp.asarray((G + G.T) / 2)


def levels(y, fraction, outputs):
    """A fraction of the labels' mean square: of each output, or of all."""
    return fraction * jnp.mean(y**2, axis=0 if y.ndim == 2 and outputs == "separate" else None)


def trace_of_jacobian(fitted, y, outputs):
    jacobian = jax.jacfwd(fitted)(y)
    if y.ndim == 1:
        return jnp.einsum("tkk->t", jacobian)
    by_output = jnp.einsum("tkqkq->tq", jacobian)
    return by_output.sum(1) if outputs == "joint" else by_output


@functools.partial(jax.jit, static_argnames=("outputs", "kind"))
def both_ways(spectrum, y, level, weight, *, outputs, kind):
    """Degrees of freedom as they are told, the trace of the Jacobian, and the states."""

    def run(y):
        chain = {"rounds": 5, "ground_truth_weight": weight, "outputs": outputs}
        if kind == "multiplier":
            return distill_spectrum(spectrum, y, multiplier=level, **chain)
        tolerance = level if kind == "absolute" else levels(y, level, outputs)
        return distill_spectrum(spectrum, y, tolerance=tolerance, **chain)

    found = selection.degrees_of_freedom(run(y), relative=kind == "relative")
    return found, trace_of_jacobian(lambda y: run(y).fitted, y, outputs), run(y).status


@pytest.mark.parametrize("kind", ["absolute", "relative", "multiplier"])
@pytest.mark.parametrize("outputs", ["one", "separate", "joint"])
@pytest.mark.parametrize("make", [decompose, tridiagonalise])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), weight=st.sampled_from([0.0, 0.0, 0.3, 1.0, None]))
@pytest.mark.slow_cases
def test_degrees_of_freedom_are_the_trace_of_the_jacobian(make, outputs, kind, seed, weight):
    rng = np.random.default_rng(seed)
    # A null space, in which labels have a part, can be told by an eigendecomposition only.
    rank = K if make is tridiagonalise else int(rng.integers(3, K + 1))
    spectrum = make(random_gram(rng, rank))
    y = jnp.asarray(rng.normal(size=(K,) if outputs == "one" else (K, 3)))
    outputs = "separate" if outputs == "one" else outputs
    floor = spectrum.floor(y) if make is decompose else jnp.zeros(y.shape[1:])
    share = float(jnp.max(floor / levels(y, 1.0, "separate")))
    level = share + (1 - share) * 10 ** rng.uniform(-1.5, -0.1)
    if kind == "absolute":
        level = levels(y, level, outputs)
    if kind == "multiplier":
        level = 10 ** rng.uniform(-2, 1)

    # Of any size, one for each later round, where no weight is drawn.
    weights = rng.normal(0.5, 0.7, size=4) if weight is None else np.full(4, weight)

    found, expected, status = both_ways(
        spectrum, y, jnp.asarray(level), jnp.asarray(weights), outputs=outputs, kind=kind
    )
    assert found.shape == status.shape
    found, status = np.asarray(found), np.asarray(status)
    feasible = status != sdntk.Status.INFEASIBLE  # weights above 1 may make a later round so
    np.testing.assert_allclose(found[feasible], expected[feasible], rtol=1e-10, atol=1e-10)
    assert np.isnan(found[~feasible]).all()
    assert (found[status == sdntk.Status.COLLAPSED] == 0).all()


def test_without_the_multipliers_they_would_be_less():
    """tr F leaves out what is between 0 and 1 in round 0 (theory, section 9)."""
    rng = np.random.default_rng(0)
    spectrum, y = decompose(random_gram(rng, K)), rng.normal(size=K)
    run = distill_spectrum(spectrum, y, tolerance=0.3 * np.mean(y**2), rounds=3)
    beyond = run.degrees_of_freedom - run.filters.sum(axis=1)
    assert 0.05 < beyond[0] < 1
    c, d, z = run.multipliers[0], spectrum.eigenvalues, run.rotated_labels
    by_hand = c * jnp.sum(z**2 * d / (c + d) ** 4) / jnp.sum(z**2 * d / (c + d) ** 3)
    np.testing.assert_allclose(beyond[0], by_hand, rtol=1e-12)


# ---- SURE ----

SETUPS = {
    "tolerance": {"fraction": 0.15},
    "small tolerance": {"fraction": 0.05, "sigma": 0.3},
    "large tolerance": {"fraction": 0.5},
    "ground truth mixed in": {"fraction": 0.15, "weight": 0.3},
    "half the ground truth": {"fraction": 0.3, "weight": 0.5},
    "relative tolerance": {"fraction": 0.15, "kind": "relative"},
    "relative, ground truth": {"fraction": 0.2, "kind": "relative", "weight": 0.2},
    "multiplier": {"fraction": 0.01, "kind": "multiplier"},
    "two outputs": {"fraction": 0.15, "num_outputs": 2},
    "joint outputs": {"fraction": 0.15, "num_outputs": 2, "outputs": "joint"},
}


def surely_minus_risk(
    fraction, kind="absolute", sigma=0.5, weight=0.0, num_outputs=None, outputs="separate"
):
    """What SURE says minus the true risk, for 4,000 draws and every round; and the same with tr F
    in place of the degrees of freedom.
    """
    points, rounds = 40, 5
    x = jax.random.uniform(jax.random.key(1), (points, 2))
    spectrum = decompose(gram(kernels.matern(1.5, 0.5), x))
    signal = jnp.sin(4 * x[:, 0]) + x[:, 1]
    if num_outputs:
        signal = jnp.outer(signal, jnp.arange(1.0, num_outputs + 1))
    expected_square = levels(signal, 1.0, outputs) + sigma**2

    def one_draw(key):
        y = signal + sigma * jax.random.normal(key, signal.shape)
        chain = {"rounds": rounds, "ground_truth_weight": weight, "outputs": outputs}
        if kind == "multiplier":
            run = distill_spectrum(spectrum, y, multiplier=fraction, **chain)
        else:
            square = expected_square if kind == "absolute" else levels(y, 1.0, outputs)
            run = distill_spectrum(spectrum, y, tolerance=fraction * square, **chain)
        axes = (1,) if outputs == "separate" else (1, 2)
        risk = jnp.mean((run.fitted - signal[None]) ** 2, axis=axes)
        df = selection.degrees_of_freedom(run, relative=kind == "relative")
        copies = num_outputs if outputs == "joint" else 1
        of_filters = copies * run.filters.sum(axis=1)
        by_df = selection.sure(run, sigma**2, df) - risk
        return by_df, selection.sure(run, sigma**2, of_filters) - risk

    keys = jax.random.split(jax.random.key(0), 4000)
    return jax.jit(lambda keys: jax.lax.map(one_draw, keys))(keys)


def standard_errors_from_zero(values):
    mean, scatter = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
    return np.abs(mean) / np.maximum(scatter / len(values) ** 0.5, 1e-300)


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.slow_cases
def test_sure_is_unbiased(name):
    by_df, by_trace = surely_minus_risk(**SETUPS[name])
    assert np.isfinite(by_df).all()
    assert (standard_errors_from_zero(by_df) < 4).all()
    if name == "small tolerance":  # the trace of the filter is not enough
        assert standard_errors_from_zero(by_trace).max() > 5


# ---- Krylov spectra ----


def problem(points=400):
    x = jax.random.normal(jax.random.key(0), (points, 3))
    y = jnp.sign(x[:, 0]) + 0.5 * jax.random.normal(jax.random.key(1), (points,))
    return kernels.matern(1.5, 1.0), x, y


@pytest.mark.parametrize("chain", [{"tolerance": 0.1}, {"multiplier": 1e-2}])
@pytest.mark.slow_cases
def test_probes_of_their_own(chain):
    kernel, x, y = problem()
    chain = chain | {"rounds": 4, "ground_truth_weight": 0.2}
    exact = distill(kernel, x, y, **chain).degrees_of_freedom
    run = distill(kernel, x, y, method="krylov", **chain)
    found = selection.degrees_of_freedom(run, key=jax.random.key(2), probes=40)
    error = np.asarray(found.standard_error)
    assert (error > 0).all()
    assert (error < 0.1 * exact).all()
    assert (np.abs(found.value - exact) < 4 * error).all()
    np.testing.assert_array_equal(np.asarray(found), found.value)
    # The criteria take it.
    np.testing.assert_allclose(
        selection.sure(run, 0.25, found),
        selection.sure(distill(kernel, x, y, **chain), 0.25),
        atol=2 * 0.25 * 4 * error.max() / len(y),
    )
    assert selection.gcv(run, found).shape == (4,)


@pytest.mark.slow
def test_probes_in_the_block_of_the_labels():
    kernel, x, y = problem()
    signs = jax.random.rademacher(jax.random.key(3), (len(y), 30), float)
    labels = jnp.concatenate([y[:, None], signs], axis=1)
    chain = {"tolerance": 0.3, "rounds": 2}
    spectrum = krylov(sdntk.kernel_operator(kernel, x), labels, rtol=1e-4, **chain)
    run = distill_spectrum(spectrum, labels, **chain)
    found = selection.degrees_of_freedom(run, probes=signs)
    exact = distill(kernel, x, labels, **chain)
    difference = np.abs(found.value - exact.degrees_of_freedom)[:, 0]
    assert (difference < 4 * found.standard_error[:, 0]).all()
    # Each probe is worth e^T F e, exactly.
    V_e = exact.spectrum.rotate(signs)
    by_hand = jnp.mean(jnp.einsum("tk,kn->tn", exact.filters[..., 0], V_e**2), axis=1)
    response = run.multiplier_responses(relative=False)[:, 0]
    np.testing.assert_allclose(found.value[:, 0] - response, by_hand, rtol=1e-5)


@pytest.mark.slow
def test_the_same_key_gives_the_same_bits():
    kernel, x, y = problem(100)
    run = distill(kernel, x, y, tolerance=0.3, rounds=2, method="krylov")
    one, again = (selection.degrees_of_freedom(run, key=jax.random.key(0)) for _ in range(2))
    np.testing.assert_array_equal(one.value, again.value)
    other = selection.degrees_of_freedom(run, key=jax.random.key(1))
    assert (np.asarray(other) != np.asarray(one)).all()


# ---- GCV, leave-one-out ----


def test_gcv_and_sure_are_their_formulas():
    rng = np.random.default_rng(3)
    spectrum, y = decompose(random_gram(rng, K)), rng.normal(size=(K, 2))
    for outputs, over in (("separate", 1), ("joint", (1, 2))):
        run = distill_spectrum(spectrum, y, tolerance=0.4, rounds=3, outputs=outputs)
        count = K * (2 if outputs == "joint" else 1)
        error = np.sum((y - np.asarray(run.fitted)) ** 2, axis=over) / count
        df = np.asarray(run.degrees_of_freedom)
        np.testing.assert_allclose(selection.gcv(run), error / (1 - df / count) ** 2, rtol=1e-12)
        np.testing.assert_allclose(
            selection.sure(run, 0.7), error - 0.7 + 1.4 * df / count, rtol=1e-12
        )


def test_gcv_is_infinite_where_nothing_is_left():
    run = distill_spectrum(decompose(jnp.eye(3)), [1.0, 2.0, 3.0], multiplier=1.0, rounds=1)
    assert np.isinf(selection.gcv(run, [3.0]))


@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_criteria_depend_on_no_unit(size):
    rng = np.random.default_rng(4)
    spectrum, y = decompose(random_gram(rng, K)), rng.normal(size=K)

    def of(size):
        return distill_spectrum(spectrum, size * y, tolerance=size * (size * 0.3), rounds=3)

    one, scaled = of(1.0), of(size)
    np.testing.assert_allclose(scaled.degrees_of_freedom, one.degrees_of_freedom, rtol=1e-9)
    relative = [selection.degrees_of_freedom(run, relative=True) for run in (one, scaled)]
    np.testing.assert_allclose(*relative, rtol=1e-9)
    if size < 1:
        return
    residuals = [selection.leave_one_out(spectrum, s * y, 0.2) / s for s in (1.0, size)]
    np.testing.assert_allclose(*residuals, rtol=1e-12)


@pytest.mark.parametrize("make", [decompose, tridiagonalise])
def test_leave_one_out_is_that_of_all_fits(make):
    x = jax.random.uniform(jax.random.key(0), (15, 2))
    kernel, c = kernels.matern(0.5, 1.0), 0.02
    y = np.stack([np.sin(5 * x[:, 0]), np.cos(3 * x[:, 1])], axis=1)
    found = selection.leave_one_out(make(gram(kernel, x)), y, [c, 2 * c])
    full = 15 * np.asarray(gram(kernel, x))
    for output, one in enumerate([c, 2 * c]):
        for k in range(15):
            others = np.delete(np.arange(15), k)
            ridge = KernelRidge(alpha=15 * one, kernel="precomputed")
            ridge.fit(full[np.ix_(others, others)], y[others, output])
            expected = y[k, output] - ridge.predict(full[[k]][:, others])[0]
            np.testing.assert_allclose(found[k, output], expected, rtol=1e-9)
    single = selection.leave_one_out(make(gram(kernel, x)), y[:, 0], c)
    np.testing.assert_allclose(single, found[:, 0], rtol=1e-12)


# ---- transformations, precision, errors ----


def test_transformations():
    rng = np.random.default_rng(5)
    spectrum, draws = decompose(random_gram(rng, K)), rng.normal(size=(3, K))

    def criteria(y):
        run = distill_spectrum(spectrum, y, tolerance=0.2, rounds=3)
        return run.degrees_of_freedom, selection.gcv(run), selection.sure(run, 0.5)

    stacked = jax.jit(jax.vmap(criteria))(draws)
    for number, y in enumerate(draws):
        for one, all_ in zip(criteria(y), stacked, strict=True):
            np.testing.assert_allclose(all_[number], one, rtol=1e-9)


def test_a_second_call_compiles_nothing(caplog):
    rng = np.random.default_rng(6)
    spectrum = decompose(random_gram(rng, K))

    def one():
        y = rng.normal(size=K)
        run = distill_spectrum(spectrum, y, tolerance=0.3 * float(np.mean(y**2)), rounds=5)
        return selection.gcv(run), selection.sure(run, 1.0)

    def compiled():
        caplog.clear()
        with jax.log_compiles():
            jax.block_until_ready(one())
        return [line for line in caplog.messages if line.startswith("Finished XLA compilation")]

    jax.clear_caches()
    assert compiled()
    assert not compiled()


@pytest.mark.usefixtures("single_precision")
def test_float32_has_no_nan():
    rng = np.random.default_rng(7)
    G = np.asarray(random_gram(rng, K), np.float32)
    y = rng.normal(size=(K, 2)).astype(np.float32)
    with pytest.warns(sdntk.PrecisionWarning, match="float64"):
        spectrum = decompose(G)
    for chain in ({"tolerance": 0.3}, {"multiplier": 0.1}):
        run = distill_spectrum(spectrum, y, rounds=6, **chain)
        for values in (run.degrees_of_freedom, selection.gcv(run), selection.sure(run, 0.5)):
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
    assert np.isfinite(selection.leave_one_out(spectrum, y, 0.1)).all()


@pytest.mark.usefixtures("as_users_call")
def test_bad_input_is_named():
    kernel, x, y = problem(30)
    run = distill(kernel, x, y, tolerance=0.3, rounds=2)
    of_krylov = distill(kernel, x, y, tolerance=0.3, rounds=2, method="krylov")
    key = jax.random.key(0)
    for call, error, message in [
        (lambda: selection.gcv(3), TypeError, "run must be what distill"),
        (lambda: selection.gcv(run, [1.0]), ValueError, "degrees_of_freedom must have shape"),
        (lambda: selection.sure(run, -1.0), ValueError, "noise_variance must be positive"),
        (lambda: of_krylov.degrees_of_freedom, ValueError, "knows no trace"),
        (lambda: selection.gcv(of_krylov), ValueError, "knows no trace"),
        (lambda: selection.degrees_of_freedom(of_krylov), ValueError, "key must be given"),
        (lambda: selection.degrees_of_freedom(run, key=key), ValueError, "for Krylov runs"),
        (
            lambda: selection.degrees_of_freedom(of_krylov, key=key, probes=1),
            ValueError,
            "probes must be at least 2",
        ),
        (
            lambda: selection.degrees_of_freedom(of_krylov, probes=np.ones((30, 2))),
            ValueError,
            "probes must be among the labels",
        ),
        (
            lambda: selection.leave_one_out(of_krylov.spectrum, y, 0.1),
            ValueError,
            "spectrum must be of all vectors",
        ),
        (
            lambda: jax.jit(lambda k: selection.degrees_of_freedom(of_krylov, key=k).value)(key),
            NotImplementedError,
            "cannot be traced",
        ),
        (lambda: selection.leave_one_out(run.spectrum, y, 0.0), ValueError, "multiplier must be"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_criteria_take_what_an_infeasible_round_has():
    spectrum = decompose(jnp.diag(jnp.array([1.0, 0.5, 0.2, 0.0])))
    y, weight = jnp.array([1.0, 1.0, 1.0, 0.3]), jnp.array([3.0, 0.0])

    def of(tolerance):
        return distill_spectrum(
            spectrum, y, tolerance=tolerance, rounds=3, ground_truth_weight=weight
        )

    stacked = jax.vmap(of)(jnp.array([0.05, 0.5]))
    run = jax.tree.map(lambda leaf: leaf[0], stacked)
    values = selection.gcv(run, selection.degrees_of_freedom(run, relative=True))
    assert np.isfinite(values).tolist() == [True, False, False]
