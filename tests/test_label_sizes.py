"""Labels of any size.

Must hold: labels times a power of two, with the tolerance times its square, give the same
multipliers, states, filters and relative bounds to the bit, on every path, and the rest times that
power; derivatives likewise; other factors, the same up to rounding. What no number can hold is
said.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_matrix

import sdntk
from sdntk import Status, bounds

K, ROUNDS = 24, 6
D = np.concatenate([np.zeros(3), 10.0 ** np.linspace(-5, 0, K - 3)])
G = random_matrix(0, D)
LABELS = np.random.default_rng(1).normal(size=(K, 3)) * [1.0, 3.0, 0.7]
LABELS -= random_matrix(0, (D == 0) * 0.8) @ LABELS  # little in the null space


def spectrum(method, y, dtype=np.float64, **chain):
    if method == "krylov":
        return sdntk.krylov(
            sdntk.as_operator(jnp.asarray(G, dtype)), y, rounds=ROUNDS, rtol=1e-3, **chain
        )
    return {"dense": sdntk.decompose, "tridiagonal": sdntk.tridiagonalise}[method](G)


def chain(method, factor, *, outputs="separate", weight=0.0, multiplier=None):
    """A run on labels times a factor, exactly."""
    y = LABELS * factor
    level = {"tolerance": 0.1 * factor * factor}
    if multiplier is not None:
        level = {"multiplier": multiplier}
    known = spectrum(method, y, outputs=outputs, ground_truth_weight=weight, **level)
    return sdntk.distill_spectrum(
        known, y, rounds=ROUNDS, outputs=outputs, ground_truth_weight=weight, **level
    )


def assert_scaled(run, plain, factor):
    """Equal to the bit, or by a power of two."""
    for name in ("status", "multipliers", "active_rounds", "iterations", "filters"):
        np.testing.assert_array_equal(getattr(run, name), getattr(plain, name), err_msg=name)
    for name in ("fitted", "norms", "rotated_labels", "targets", "dual_coefficients"):
        expected = np.asarray(getattr(plain, name)) * factor
        np.testing.assert_array_equal(getattr(run, name), expected, err_msg=name)
    if np.isfinite(np.asarray(run.training_loss)).all():
        expected = np.asarray(plain.training_loss) * factor * factor
        np.testing.assert_array_equal(run.training_loss, expected)
    if run.error_bounds is not None:
        for bound, other in zip(run.error_bounds, plain.error_bounds, strict=True):
            np.testing.assert_array_equal(bound, other)
    for fit, other in zip(run.fits, plain.fits, strict=True):
        np.testing.assert_array_equal(fit.fitted, np.asarray(other.fitted) * factor)


SLOW = pytest.mark.slow
OTHERS = ("tridiagonal", "krylov")
CASES = [
    ("dense", "separate", 0.3),
    ("tridiagonal", "joint", 0.3),
    *(
        pytest.param(method, outputs, weight, marks=SLOW)
        for method in ("dense", "tridiagonal", "krylov")
        for outputs in ("separate", "joint")
        for weight in (0.0, 0.3)
    ),
]


@pytest.mark.parametrize(("method", "outputs", "weight"), CASES)
@pytest.mark.slow_cases
def test_chains_to_a_tolerance_know_no_unit(method, outputs, weight):
    plain = chain(method, 1.0, outputs=outputs, weight=weight)
    assert (np.asarray(plain.status[0]) == Status.ACTIVE).all()
    for exponent in (-505, 509):
        factor = 2.0**exponent
        assert_scaled(chain(method, factor, outputs=outputs, weight=weight), plain, factor)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "tridiagonal", "krylov"])
def test_chains_with_a_multiplier_know_no_unit(method):
    plain = chain(method, 1.0, multiplier=0.01)
    for exponent in (-500, 500):
        assert_scaled(chain(method, 2.0**exponent, multiplier=0.01), plain, 2.0**exponent)
    for exponent in (-1000, 1018):
        with pytest.warns(
            sdntk.PrecisionWarning, match="training_loss.* cannot be told in float64"
        ):
            run = chain(method, 2.0**exponent, multiplier=0.01)
        np.testing.assert_array_equal(run.status, plain.status)
        np.testing.assert_array_equal(run.fitted, np.asarray(plain.fitted) * 2.0**exponent)
        lost = np.asarray(run.training_loss)
        assert np.isinf(lost).all() if exponent > 0 else not lost.any()


def test_labels_next_to_the_largest_number():
    """Sums on the way to the basis and back would overflow."""
    y = np.full(K, 1.7e308)
    known = sdntk.decompose(G)
    with pytest.warns(sdntk.PrecisionWarning, match="rotated labels reach"):
        run = sdntk.distill_spectrum(known, y, multiplier=1.0, rounds=1)
    plain = sdntk.distill_spectrum(known, y / 2.0**1000, multiplier=1.0, rounds=1)
    np.testing.assert_array_equal(run.fitted, np.asarray(plain.fitted) * 2.0**1000)
    with pytest.raises(ValueError, match="y must be smaller: rotated labels overflow"):
        sdntk.fit_filter(known, y, lambda d: sdntk.filters.ridge(d, 1.0))
    fit = sdntk.fit_filter(known, y / 16, lambda d: sdntk.filters.ridge(d, 1.0))
    np.testing.assert_allclose(fit.fitted * 16 / y, run.fitted[0] / y, rtol=1e-12)


def test_what_is_zero_is_no_loss_of_range():
    """Labels in the null space: every fit is zero, and so are later rounds' losses."""
    known = sdntk.Spectrum(jnp.array([0.0, 1.0]), jnp.eye(2), 2.2e-16)
    run = sdntk.distill_spectrum(known, [1.0, 0.0], multiplier=0.1, rounds=2)
    assert run.training_loss.tolist() == [0.5, 0.0]
    assert not run.norms.any()


def test_each_output_has_a_unit_of_its_own():
    """The smallest tells as much as the largest."""
    known, sizes = sdntk.decompose(G), np.array([2.0**-500, 1.0, 2.0**500])
    run, plain = (
        sdntk.distill_spectrum(known, LABELS * by, tolerance=0.1 * by * by, rounds=ROUNDS)
        for by in (sizes, np.ones(3))
    )
    assert_scaled(run, plain, sizes)


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=SLOW)])
def test_solve_multiplier_and_bounds_know_no_unit(dtype):
    d, z = D[::4].astype(dtype), LABELS[::4, 0].astype(dtype)
    eps = dtype(0.02)
    limit = 500 if dtype is np.float64 else 60
    calls = [
        lambda z, eps: sdntk.solve_multiplier(d, z, eps),
        lambda z, eps: bounds.multiplier_bounds(d, z, eps),
        lambda z, eps: bounds.guaranteed_rounds(d, z, eps),
        lambda z, eps: bounds.guaranteed_rounds(d, z, eps, tight=True),
        lambda z, eps: bounds.filter_ratio_bound(d, z, eps, 2),
        lambda z, eps: bounds.sparsity_index(d, z, eps),
    ]
    for factor in (dtype(2.0) ** -limit, dtype(2.0) ** limit):
        for call in calls:
            plain, scaled = call(z, eps), call(z * factor, eps * factor * factor)
            for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(scaled), strict=True):
                np.testing.assert_array_equal(one, other)
                assert not np.isnan(one).any()
        norms = zip(
            bounds.norm_bounds(d, z, eps, 4),
            bounds.norm_bounds(d, z * factor, eps * factor * factor, 4),
            strict=True,
        )
        for plain, scaled in norms:
            np.testing.assert_array_equal(np.asarray(plain) * factor, scaled)


def test_tolerances_far_below_the_labels():
    """In a single eigenvalue, c = d s/(|z| - s); squares of s/|z| are no numbers."""
    for dtype, z, s in [(np.float64, 1e150, 1e-100), (np.float32, 1e10, 1e-17)]:
        d = dtype(2.0) if dtype is np.float64 else dtype(2e9)
        found = sdntk.solve_multiplier([d], np.array([z], dtype), dtype(s) ** 2)
        np.testing.assert_allclose(found.value, d * (s / z), rtol=10 * np.finfo(dtype).eps)
        assert float(bounds.guaranteed_rounds(np.array([d]), np.array([z], dtype), s * s)) > 1


@pytest.mark.parametrize("method", ["dense", pytest.param("tridiagonal", marks=SLOW)])
def test_derivatives_know_no_unit(method):
    """By labels, tolerance and Gram matrix, under jit."""
    decompose = {"dense": sdntk.decompose, "tridiagonal": sdntk.tridiagonalise}[method]

    def summary(matrix, y, eps, unit):
        run = sdntk.distill_spectrum(decompose(matrix), y, tolerance=eps, rounds=3)
        return jnp.sum(run.multipliers) + jnp.sum(jnp.sin(run.fitted / unit))

    gradient = jax.jit(jax.grad(summary, argnums=(0, 1, 2)))
    definite = jnp.asarray(G + 1e-3 * np.eye(K))
    y, eps = jnp.asarray(LABELS[:, 0]), jnp.asarray(0.1)
    plain = gradient(definite, y, eps, 1.0)
    assert all(np.isfinite(g).all() and np.asarray(g).any() for g in plain)
    for factor in (2.0**-500, 2.0**500):
        scaled = gradient(definite, y * factor, eps * factor * factor, factor)
        np.testing.assert_array_equal(scaled[0], plain[0])
        np.testing.assert_array_equal(scaled[1] * factor, plain[1])
        np.testing.assert_array_equal(scaled[2] * factor * factor, plain[2])


@pytest.mark.parametrize("direction", [jax.jacrev, jax.jacfwd])
@pytest.mark.parametrize("method", ["dense", pytest.param("tridiagonal", marks=SLOW)])
def test_every_derivative_is_a_number_where_it_is_in_range(method, direction):
    """Of all that a run holds, in both modes; sums of the smallest vanish beyond 2^490."""
    decompose = {"dense": sdntk.decompose, "tridiagonal": sdntk.tridiagonalise}[method]

    def numbers(matrix, y, eps, unit):
        run = sdntk.distill_spectrum(decompose(matrix), y, tolerance=eps, rounds=3)
        each = (run.multipliers, run.fitted.sum(1) / unit, run.norms / unit, run.training_loss)
        return jnp.stack(each)

    derivatives = jax.jit(direction(numbers, argnums=(0, 1, 2)))
    definite = jnp.asarray(G + 1e-3 * np.eye(K))
    y, eps = jnp.asarray(LABELS[:, 0]), jnp.asarray(0.1)
    plain = derivatives(definite, y, eps, 1.0)
    assert all(np.isfinite(g).all() and np.asarray(g).any() for g in plain)
    for factor in (2.0**-500, 2.0**490):
        scaled = derivatives(definite, y * factor, eps * factor * factor, factor)
        for power, one, other in zip((0, 1, 2), scaled, plain, strict=True):
            one, other = (np.asarray(array).reshape(4, -1) for array in (one, other))
            size = np.abs(other[:3]).max(axis=1, keepdims=True)
            back = one[:3] * factor ** min(power, 1) * factor ** max(power - 1, 0)
            np.testing.assert_allclose(back / size, other[:3] / size, rtol=0, atol=1e-12)
            np.testing.assert_allclose(one[3], float(power == 2), rtol=1e-13)  # loss = tolerance


@pytest.mark.parametrize("method", ["dense", *(pytest.param(m, marks=SLOW) for m in OTHERS)])
def test_joint_outputs_with_a_multiplier_have_units_of_their_own(method):
    """The chain is linear in each: the smallest is not lost beside the largest."""
    sizes = np.array([2.0**-900, 1.0, 2.0**300])
    given = {"multiplier": 0.01, "rounds": ROUNDS, "outputs": "joint"}
    plain, run = (
        sdntk.distill_spectrum(spectrum(method, y, multiplier=0.01, outputs="joint"), y, **given)
        for y in (LABELS, LABELS * sizes)
    )
    np.testing.assert_array_equal(run.fitted, np.asarray(plain.fitted) * sizes)
    np.testing.assert_array_equal(run.compute_duals(), np.asarray(plain.compute_duals()) * sizes)
    alone = sdntk.distill_spectrum(
        spectrum(method, LABELS[:, 2], multiplier=0.01),
        LABELS[:, 2],
        multiplier=0.01,
        rounds=ROUNDS,
    )
    size = float(sizes[2])
    np.testing.assert_allclose(run.norms / size, alone.norms, rtol=1e-12)
    np.testing.assert_allclose(run.training_loss / size / size, alone.training_loss / 3, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "tridiagonal"])
def test_floors_and_messages_know_no_unit(method):
    known = spectrum(method, LABELS)
    for factor in (2.0**-500, 2.0**500):
        np.testing.assert_array_equal(
            known.floor(LABELS * factor), np.asarray(known.floor(LABELS)) * factor * factor
        )
        asked = np.asarray(known.floor(LABELS)).max() / 100 * factor * factor
        with pytest.raises(ValueError, match=r"tolerance \S+ is infeasible for output 0"):
            sdntk.distill_spectrum(known, LABELS * factor, tolerance=asked, rounds=1)


@pytest.mark.slow
def test_kernels_of_any_size_on_every_path():
    """Multipliers are in G's unit, and all else is in the labels'."""
    y = LABELS[:, 0]
    decompositions = {
        "dense": sdntk.decompose,
        "tridiagonal": sdntk.tridiagonalise,
        "krylov": lambda G: sdntk.krylov(
            sdntk.as_operator(G), y, tolerance=0.1, rounds=ROUNDS, rtol=1e-3
        ),
    }
    for method, decompose in decompositions.items():
        plain = sdntk.distill_spectrum(decompose(G), y, tolerance=0.1, rounds=ROUNDS)
        for factor in (2.0**-400, 2.0**400) if method == "krylov" else (2.0**-800, 2.0**800):
            known = decompose(G * factor)
            run = sdntk.distill_spectrum(known, y, tolerance=0.1, rounds=ROUNDS)
            np.testing.assert_array_equal(run.status, plain.status, err_msg=method)
            np.testing.assert_allclose(run.multipliers / factor, plain.multipliers, rtol=1e-6)
            np.testing.assert_allclose(run.fitted, plain.fitted, rtol=1e-6, atol=1e-8)
            d = np.asarray(known.eigenvalues) / factor
            np.testing.assert_allclose(d, plain.spectrum.eigenvalues, rtol=1e-6, atol=1e-14)
    with pytest.raises(ValueError, match="positive semi-definite"):
        sdntk.tridiagonalise((G - 0.1 * np.eye(K)) * 2.0**-800)
