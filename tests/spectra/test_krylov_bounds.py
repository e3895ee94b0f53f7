"""Every inequality of docs/krylov_bounds.md by itself, at 50 digits and without any allowance.

Must hold: no bound is below what it bounds. The Gram matrix is G = diag(g), of which every function
is known exactly; the Ritz pairs are of G + Delta, Delta = 0 or of a size at which the rounding
terms dominate, and F is what they leave, computed exactly: the page's equation (1) holds to all
digits. The assumptions on rounding that the page names (A1, A2) are tested on the process and the
recurrence themselves. Tight: bounds of resolvents to a proved factor, the others to those observed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import exact_root, ritz_spectrum

import sdntk
from sdntk.spectra import krylov_bounds as kb
from sdntk.spectra.lanczos import ROUNDING, lanczos_extend, lanczos_init
from sdntk.theory import filters
from sdntk.theory.multiplier import Status
from sdntk.theory.recurrence import ChainSpec, run_chain

POINTS, STEPS, OUTPUTS, ROUNDS = 20, 4, 2, 4
EPS = 2.0**-52
UP = 1 + 1e-12  # of a norm that was rounded to a float


@pytest.fixture(autouse=True)
def _fifty_digits():
    with mpmath.workdps(50):
        yield


def exact(values):
    """An array of 50 digits, equal to the floats given."""
    return np.vectorize(lambda v: mpmath.mpf(float(v)), otypes=[object])(np.asarray(values))


def rounded(values):
    return np.vectorize(float, otypes=[float])(values)


def size(values):
    """The Euclidean or Frobenius norm."""
    return mpmath.sqrt(mpmath.fsum(v**2 for v in np.ravel(values)))


def dot(a, b):
    return mpmath.fsum(np.ravel(a * b))


class Problem(NamedTuple):
    g: np.ndarray  # G = diag(g), exact
    basis: np.ndarray  # W, exact
    beyond: np.ndarray  # V_+, exact
    ritz: kb.RitzPairs  # floats
    z: jax.Array  # floats
    labels: np.ndarray  # W z, exact


def orthonormalised(columns, basis):
    """Gram-Schmidt of the columns, against the basis too."""
    for column in columns.T:
        for _ in range(2):
            column = column - basis @ (basis.T @ column)
        basis = np.concatenate([basis, (column / size(column))[:, None]], axis=1)
    return basis


@functools.cache  # for the tests that share it
def problem(seed, *, delta=0.0, steps=STEPS):
    """Block Lanczos at 50 digits, from OUTPUTS labels; Ritz pairs rounded, F exact."""
    rng = np.random.default_rng(seed)
    g = exact(np.sort(10.0 ** rng.uniform(-4, 0, POINTS)))
    change = rng.normal(size=(POINTS, POINTS))
    change = exact(delta * (change + change.T) / np.linalg.norm(change + change.T, 2))
    operator = np.diag(g) + change
    labels = exact(rng.normal(size=(POINTS, OUTPUTS)) * np.sqrt(rounded(g))[:, None])
    basis = orthonormalised(labels, exact(np.zeros((POINTS, 0))))
    for _ in range(steps):
        basis = orthonormalised(operator @ basis[:, -OUTPUTS:], basis)
    basis, beyond = basis[:, :-OUTPUTS], basis[:, -OUTPUTS:]
    d, vectors = np.linalg.eigh(rounded(basis.T @ operator @ basis))
    vectors = exact(vectors)
    for _ in range(2):  # orthonormal to 50 digits
        vectors = vectors @ (3 * exact(np.eye(len(d))) - vectors.T @ vectors) / 2
    basis = basis @ vectors
    residuals = rounded(beyond.T @ operator @ basis)
    z = rounded(basis.T @ labels)
    left = g[:, None] * basis - basis * exact(d)[None] - beyond @ exact(residuals)  # F
    perturbation = np.linalg.norm(rounded(left), 2) * UP
    ritz = kb.RitzPairs(*(jnp.asarray(v) for v in (d, residuals, perturbation)))
    return Problem(g, basis, beyond, ritz, jnp.asarray(z), basis @ exact(z))


#: Lanczos errors alone, and perturbations by which G is known to few digits only.
DELTAS = [0.0, 1e-3, 1e-7]


def problems(seeds):
    return [problem(seed, delta=delta) for seed in range(seeds) for delta in DELTAS]


def multipliers_of(seed):
    """Of late rounds larger, as they are in a chain."""
    rng = np.random.default_rng(1000 + seed)
    return jnp.asarray(np.sort(10.0 ** rng.uniform(-3, 0, ROUNDS)))


def kept(g, c):
    """The filter A = G (c + G)^{-1} on the diagonal, for several columns."""
    return (g / (c + g))[:, None]


def removed(g, c):
    """Q = c (c + G)^{-1}."""
    return (c / (c + g))[:, None]


def exact_targets(g, y, multipliers, alpha):
    """x_t for multipliers that are given, and the fits A_t x_t."""
    alpha = exact(alpha)[()]
    targets, fits = [y], []
    for c in multipliers:
        fits.append(kept(g, c) * targets[-1])
        targets.append(alpha * y + (1 - alpha) * fits[-1])
    return targets[:-1], fits


_fixed_rounds = jax.jit(kb.fixed_rounds)
_resolvent_errors = jax.jit(kb.resolvent_errors)
_product_errors = jax.jit(kb.product_errors)
_form_errors = jax.jit(kb.form_errors)
_norm_error = jax.jit(kb.residual_norm_error)
_shift = jax.jit(kb.multiplier_shift)
_fit_error = jax.jit(kb.fit_error)


def fixed(known, c, alpha):
    active = jnp.full(len(c), Status.ACTIVE, jnp.int32)
    return _fixed_rounds(known.ritz, known.z, c, active, jnp.asarray(alpha))


def one_round(rounds, t):
    return jax.tree.map(lambda values: values[t], rounds)


@pytest.mark.parametrize("seed", range(6))
def test_1_the_problems_satisfy_the_relation(seed):
    """Of the tests themselves: W and V_+ are orthonormal to 50 digits, F is as large as told."""
    for delta in DELTAS:
        known = problem(seed, delta=delta)
        together = np.concatenate([known.basis, known.beyond], axis=1)
        assert size(together.T @ together - exact(np.eye(together.shape[1]))) < 1e-45
        assert known.ritz.perturbation >= delta / 10
        assert known.ritz.perturbation <= delta * 1.01 + 1e-14


def test_2_one_resolvent():
    """Tight, where rounding is little: to the factor 1 + g_max/c, |c (c + G)^{-1}| at least."""
    for seed, known in enumerate(problems(10)):
        p = np.random.default_rng(seed).normal(size=known.z.shape)
        for c in (1e-3, 1e-1, 10.0):
            found = _resolvent_errors(known.ritz, jnp.asarray(p), jnp.asarray(c))
            d = exact(known.ritz.d)
            p_exact, c_exact = exact(p), mpmath.mpf(c)
            of_fit = kept(known.g, c_exact) * (known.basis @ p_exact) - known.basis @ (
                kept(d, c_exact) * p_exact
            )
            of_rest = removed(known.g, c_exact) * (known.basis @ p_exact) - known.basis @ (
                removed(d, c_exact) * p_exact
            )
            error = size(of_fit)
            assert size(of_fit + of_rest) < 1e-40
            assert error <= float(found.total)
            if known.ritz.perturbation < 1e-12:
                assert float(found.total) <= 1.001 * (1 + known.g[-1] / c_exact) * error


#: (problem, multipliers, alpha) of what is proved for multipliers that are fixed.
def fixed_chains(seeds, *, steps=STEPS):
    for seed in range(seeds):
        for delta in DELTAS:
            for alpha in (0.0, 0.3):
                yield problem(seed, delta=delta, steps=steps), multipliers_of(seed), alpha


def test_3_errors_of_targets_residuals_and_fits():
    ratios = []
    for known, c, alpha in fixed_chains(4):
        rounds = fixed(known, c, alpha)
        targets, fits = exact_targets(known.g, known.labels, exact(c), alpha)
        inherited = 0.0
        for t in range(ROUNDS):
            now, residual = one_round(rounds, t), targets[t] - fits[t]
            bound = float(now.errors.total)
            assert size(targets[t] - known.basis @ exact(now.targets)) <= inherited
            for truth, found in ((residual, now.residual), (fits[t], now.targets - now.residual)):
                error = size(truth - known.basis @ exact(found))
                assert error <= bound
                ratios.append(bound / float(error))
            inherited = (1 - alpha) * bound
    assert np.median(ratios) < 20


def test_4_errors_of_fits_with_the_late_filters_first():
    ratios, sharper = [], []
    for known, c, alpha in fixed_chains(4):
        rounds = fixed(known, c, alpha)
        _, fits = exact_targets(known.g, known.labels, exact(c), alpha)
        for t in range(ROUNDS):
            now = one_round(rounds, t)
            error = size(fits[t] - known.basis @ exact(now.targets - now.residual))
            assert error <= float(now.fit_error)
            ratios.append(float(now.fit_error / float(error)))
            sharper.append(float(now.errors.total / now.fit_error))
    assert np.median(ratios) < 5
    assert np.median(sharper) > 1.2


def test_5_overlap_with_the_directions_that_are_still_unknown():
    for known, c, alpha in fixed_chains(4):
        rounds = fixed(known, c, alpha)
        exact_c = exact(c)
        for t in range(ROUNDS):
            now, largest = one_round(rounds, t), 0
            moved = removed(known.g, exact_c[t]) * (known.basis @ exact(now.residual))
            largest = size(known.beyond.T @ moved)
            for i in reversed(range(t)):
                left = removed(known.g, exact_c[i]) * moved
                largest = max(largest, size(known.beyond.T @ left))
                moved = kept(known.g, exact_c[i]) * moved
            assert largest <= float(now.overlap)
            assert float(now.overlap) <= 100 * largest


@pytest.mark.parametrize("steps", [4, 8])  # with eight, rounding dominates
def test_6_squared_norms_of_residuals(steps):
    ratios = []
    for known, c, alpha in fixed_chains(4, steps=steps):
        rounds = fixed(known, c, alpha)
        targets, fits = exact_targets(known.g, known.labels, exact(c), alpha)
        for t in range(ROUNDS):
            now = one_round(rounds, t)
            s = jnp.linalg.norm(now.residual)
            error = abs(size(targets[t] - fits[t]) ** 2 - mpmath.mpf(float(s)) ** 2) / 2
            bound = float(_norm_error(now, s))
            assert error <= bound
            ratios.append(bound / float(error))
    assert np.median(ratios) < 100


def test_6_is_of_second_order():
    """Once more steps are taken, far below |p_t| times the error of the residual."""
    shares = {4: [], 8: []}
    for steps, found in shares.items():
        for seed in range(6):
            rounds = fixed(problem(seed, steps=steps), multipliers_of(seed), 0.0)
            for t in range(ROUNDS):
                now = one_round(rounds, t)
                s = jnp.linalg.norm(now.residual)
                found.append(float(_norm_error(now, s) / (s * now.errors.total)))
    assert np.median(shares[8]) < 0.02 < np.median(shares[4])


def test_7_quadratic_forms():
    """Of the residuals, and of vectors W p whose coordinates are exact."""
    for known, c, alpha in fixed_chains(4):
        rounds = fixed(known, c, alpha)
        targets, fits = exact_targets(known.g, known.labels, exact(c), alpha)
        d = exact(known.ritz.d)
        for t in range(ROUNDS):
            now = one_round(rounds, t)
            p = exact(now.residual)
            for x, error in (
                (targets[t] - fits[t], now.errors.total),
                (known.basis @ p, jnp.zeros(())),
            ):
                bounds = _form_errors(known.ritz, c, now.residual, error)
                for i, c_i in enumerate(exact(c)):
                    for function in (removed, kept):
                        form = dot(x, function(known.g, c_i) * x)
                        assert abs(form - dot(p, function(d, c_i) * p)) <= float(bounds[i])


def half_squared_residual(g, y, multipliers, alpha):
    """H_t, of the last multiplier's round."""
    targets, fits = exact_targets(g, y, multipliers, alpha)
    return size(targets[-1] - fits[-1]) ** 2 / 2


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_8_derivatives_of_residuals_and_fits_by_earlier_multipliers(alpha):
    """Differences of 1e-15 in 50 digits: right to 1e-15 or so."""
    h = mpmath.mpf(10) ** -15
    for seed in range(4):
        known, c = problem(seed), exact(multipliers_of(seed))
        g, y = known.g, known.labels
        targets, fits = exact_targets(g, y, c, alpha)
        t = ROUNDS - 1
        residual = targets[t] - fits[t]
        for i in range(ROUNDS):
            moved = [exact_moved(c, i, sign * h) for sign in (1, -1)]
            up, down = (half_squared_residual(g, y, m, alpha) for m in moved)
            slope = (up - down) / (2 * h)
            fit_up, fit_down = (exact_targets(g, y, m, alpha)[1][t] for m in moved)
            of_fit = size(fit_up - fit_down) / (2 * h)
            if i < t:
                form = dot(residual, removed(g, c[i]) * residual)
                assert -form * (1 + 1e-12) <= slope <= form * 1e-12
            else:
                form = dot(residual, kept(g, c[i]) * residual)
                assert abs(slope - form) <= form * 1e-12
            assert of_fit <= size(removed(g, c[i]) * fits[t]) * (1 + 1e-12)


def exact_moved(c, i, shift):
    moved = c.copy()
    moved[i] = c[i] * mpmath.exp(shift)
    return moved


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_9_within_the_largest_shift_slopes_are_steady(alpha):
    """And the constants are above what the proof needs: exp(4 shifts) and exp(shifts)."""
    total = kb.LARGEST_SHIFT
    assert mpmath.exp(4 * total) < kb.SLOPE_SLACK < mpmath.exp(4 * total) * 1.03
    assert mpmath.exp(total) < kb.FIT_SLACK < mpmath.exp(total) * 1.01
    t = ROUNDS - 1
    for seed in range(6):
        known, c = problem(seed), exact(multipliers_of(seed))
        rng = np.random.default_rng(seed)
        before = forms_and_sensitivities(known, c, alpha)
        for _ in range(5):
            shifts = rng.dirichlet(np.full(ROUNDS, 0.5)) * rng.choice([-1, 1], ROUNDS) * total
            pairs = zip(c, shifts, strict=True)
            moved = np.array([v * mpmath.exp(mpmath.mpf(e)) for v, e in pairs])
            after = forms_and_sensitivities(known, moved, alpha)
            assert after.slope >= before.slope * mpmath.exp(-2 * total)
            for i in range(t):
                assert after.forms[i] <= before.forms[i] * mpmath.exp(2 * total)
                assert after.sensitivities[i] <= before.sensitivities[i] * mpmath.exp(total)


class Steady(NamedTuple):
    slope: mpmath.mpf
    forms: list
    sensitivities: list


def forms_and_sensitivities(known, c, alpha):
    """What bounds the derivatives of the last round; (8)."""
    targets, fits = exact_targets(known.g, known.labels, c, alpha)
    residual = targets[-1] - fits[-1]
    return Steady(
        dot(residual, kept(known.g, c[-1]) * residual),
        [dot(residual, removed(known.g, c_i) * residual) for c_i in c],
        [size(removed(known.g, c_i) * fits[-1]) for c_i in c],
    )


class Truth(NamedTuple):
    """Round t of the exact chain."""

    c: mpmath.mpf
    targets: np.ndarray
    fit: np.ndarray


def exact_chain(g, y, s, alpha, count):
    """The active rounds among so many, and the targets after them; outputs share multipliers."""
    s2, alpha = mpmath.mpf(float(s)) ** 2, mpmath.mpf(alpha)
    rounds, targets = [], y
    while len(rounds) < count and size(targets) ** 2 > s2:
        together = [size(row) for row in targets]
        c = exact_root(list(g), together, s2)
        fit = kept(g, c) * targets
        rounds.append(Truth(c, targets, fit))
        targets = alpha * y + (1 - alpha) * fit
    return rounds, targets


class Chained(NamedTuple):
    known: Problem
    s: jax.Array
    alpha: float
    multipliers: jax.Array
    status: jax.Array
    rounds: kb.FixedRound
    truth: list
    last_targets: np.ndarray


@jax.jit
def _run_chain(d, z, level, alpha):
    radius = jnp.sqrt(z.size * level)
    return run_chain(d, z, ChainSpec(radius, None, alpha, ROUNDS, True))


@functools.cache
def chained(seed, *, delta, alpha, fraction=0.1, steps=STEPS):
    """A chain to a tolerance, on the Ritz values and exactly."""
    known = problem(seed, delta=delta, steps=steps)
    level = fraction * jnp.mean(known.z**2)
    s = jnp.sqrt(known.z.size * level)
    path = _run_chain(known.ritz.d, known.z, level, jnp.asarray(alpha))
    rounds = _fixed_rounds(known.ritz, known.z, path.multipliers, path.status, jnp.asarray(alpha))
    truth, last = exact_chain(known.g, known.labels, s, alpha, ROUNDS)
    return Chained(known, s, alpha, path.multipliers, path.status, rounds, truth, last)


def chains_to_tolerance(seeds):
    for seed in range(seeds):
        for delta in (0.0, 1e-5, 1e-8):
            for alpha in (0.0, 0.3):
                yield chained(seed, delta=delta, alpha=alpha, steps=6, fraction=0.1)


def true_shifts(chain):
    """|log c*_t - log c_t| of the active rounds, rounded up; 0 of the others."""
    active = np.flatnonzero(np.asarray(chain.status) == Status.ACTIVE)
    shifts = np.zeros(ROUNDS)
    for t, truth in zip(active, chain.truth, strict=False):
        c = mpmath.mpf(float(chain.multipliers[t]))
        shifts[t] = float(abs(mpmath.log(truth.c / c))) * UP
    return shifts


def active_rounds(chain):
    """(t, FixedRound, Truth) of rounds that are active for both."""
    count = int(np.sum(np.asarray(chain.status) == Status.ACTIVE))
    for t, truth in enumerate(chain.truth[:count]):
        yield t, one_round(chain.rounds, t), truth


def test_10_11_shifts_of_multipliers():
    """Given the true shifts of the rounds before."""
    ratios = []
    for chain in chains_to_tolerance(6):
        shifts = true_shifts(chain)
        for t, now, truth in active_rounds(chain):
            earlier = jnp.asarray(np.where(np.arange(ROUNDS) < t, shifts, 0))
            bound = float(_shift(chain.known.ritz, chain.rounds.c, now, chain.s, earlier))
            if not np.isfinite(bound):
                continue
            assert shifts[t] <= bound <= kb.LARGEST_SHIFT
            c = mpmath.mpf(float(chain.multipliers[t]))
            assert abs(c / truth.c - 1) <= float(kb.multiplier_error(jnp.asarray(bound)))
            ratios.append(bound / shifts[t])
    assert len(ratios) > 60
    assert np.median(ratios) < 100


def test_10_a_finite_bound_means_that_the_exact_round_is_active():
    finite = 0
    for chain in chains_to_tolerance(6):
        bounds = whole(chain)
        active = np.asarray(chain.status) == Status.ACTIVE
        for t in np.flatnonzero(active & np.isfinite(bounds.multipliers)):
            finite += 1
            assert t < len(chain.truth)
    assert finite > 60


def test_12_13_errors_of_fits():
    """Given the true shifts."""
    ratios = []
    for chain in chains_to_tolerance(6):
        shifts = true_shifts(chain)
        if shifts.sum() > kb.LARGEST_SHIFT:
            continue
        for t, now, truth in active_rounds(chain):
            known = jnp.asarray(np.where(np.arange(ROUNDS) <= t, shifts, 0))
            bound = _fit_error(chain.known.ritz, chain.rounds.c, now, known)
            fit = now.targets - now.residual
            error = size(truth.fit - chain.known.basis @ exact(fit))
            relative = float(kb.relative_fit_error(bound, jnp.linalg.norm(fit)))
            assert error <= float(bound)
            assert error / size(truth.fit) <= relative
            ratios.append(float(bound / float(error)))
    assert len(ratios) > 60
    assert np.median(ratios) < 10


def test_12_fits_of_multipliers_that_move():
    """By as much as is allowed, in each direction."""
    ratios = []
    for seed, (known, c, alpha) in enumerate(fixed_chains(4, steps=8)):
        rng = np.random.default_rng(seed)
        rounds = fixed(known, c, alpha)
        shifts = rng.dirichlet(np.full(ROUNDS, 0.5)) * kb.LARGEST_SHIFT
        moved = [v * mpmath.exp(mpmath.mpf(e)) for v, e in zip(exact(c), shifts, strict=True)]
        _, fits = exact_targets(known.g, known.labels, moved, alpha)
        for t in range(ROUNDS):
            now = one_round(rounds, t)
            so_far = jnp.asarray(np.where(np.arange(ROUNDS) <= t, shifts, 0))
            bound = float(_fit_error(known.ritz, c, now, so_far))
            error = size(fits[t] - known.basis @ exact(now.targets - now.residual))
            assert error <= bound
            ratios.append(bound / float(error))
    assert np.median(ratios) < 10


def test_14_collapse():
    """Certain only where it is true; and certain, once the radius is above what is known."""
    certain = 0
    for chain in chains_to_tolerance(6):
        for t, now, truth in active_rounds(chain):
            if t == 0:
                error = 0.0
            else:
                last = one_round(chain.rounds, t - 1)
                fit = chain.known.basis @ exact(last.targets - last.residual)
                error = float(size(chain.truth[t - 1].fit - fit)) * UP
            u, x = float(jnp.linalg.norm(now.targets)), size(truth.targets)
            above = u + (1 - chain.alpha * (t > 0)) * error
            for s in (u * (1 - 1e-15), u, u * (1 + 1e-15), float(x), above, above * (1 + 1e-14)):
                if kb.collapse_is_certain(now, jnp.asarray(error), jnp.asarray(s)):
                    assert x <= s
                    certain += 1
    assert certain > 60


@jax.jit
def _bounds(known, multipliers, status, s, alpha):
    return kb.error_bounds(
        *known, multipliers=multipliers, status=status, s=s, alpha=alpha, by_tolerance=True
    )


def whole(chain):
    ritz = chain.known.ritz
    known = (ritz.d, chain.known.z, ritz.residuals, ritz.perturbation)
    alpha = jnp.asarray(chain.alpha)
    bounds = _bounds(known, chain.multipliers, chain.status, chain.s, alpha)
    return type(bounds)(*(np.asarray(bound) for bound in bounds))


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.4])
def test_all_together(fraction):
    """Of the chain's bounds: none below the truth, in rounds that are active or have ended."""
    checked = ended = 0
    for seed in range(6):
        for delta in (0.0, 1e-5, 1e-8):
            for alpha in (0.0, 0.3):
                chain = chained(seed, delta=delta, alpha=alpha, fraction=fraction, steps=6)
                bounds = whole(chain)
                for t in range(ROUNDS):
                    if not np.isfinite(bounds.fitted[t]):
                        continue
                    if chain.status[t] == Status.COLLAPSED:
                        assert len(chain.truth) <= t
                        ended += 1
                        continue
                    truth, now = chain.truth[t], one_round(chain.rounds, t)
                    fit = chain.known.basis @ exact(now.targets - now.residual)
                    assert size(fit - truth.fit) / size(truth.fit) <= bounds.fitted[t]
                    c = mpmath.mpf(float(chain.multipliers[t]))
                    assert abs(c / truth.c - 1) <= bounds.multipliers[t]
                    checked += 1
    assert checked > 20
    assert ended > 0 or fraction < 0.4


def with_a_weak_coupling(seed):
    """Labels in four dimensions, which G leaves by couplings that the process takes for zero."""
    rng = np.random.default_rng(seed)
    G = np.diag(np.concatenate([np.ones(4), rng.uniform(0.1, 1, 26)]))
    G[:4, 4:8] = G[4:8, :4] = 30 * EPS * np.eye(4)
    return G, np.concatenate([rng.normal(size=(4, 4)), np.zeros((26, 4))])


def of_any_condition(seed):
    rng = np.random.default_rng(seed)
    g = np.sort(10.0 ** rng.uniform(-8, 0, 30))
    return np.diag(g), rng.normal(size=(30, 3)) * g[:, None] ** rng.uniform(0, 1)


@pytest.mark.parametrize("made", [of_any_condition, with_a_weak_coupling])
@pytest.mark.parametrize("steps", [1, 6, 12])
def test_a1_rounding_of_the_lanczos_process(made, steps):
    """Assumption A1: there are orthonormal vectors near those computed, for which F, and what of
    the labels they miss, are below the perturbation; exhausted spaces included.
    """
    G, y = made(steps)
    operator = sdntk.as_operator(jnp.asarray(G))
    process = lanczos_extend(lanczos_init(jnp.asarray(y)), operator, steps)
    count = steps * process.width
    together = np.concatenate([*process.basis[0][:count], *process.block.T])
    together = exact(together.reshape(-1, len(y)).T)
    for _ in range(2):  # the nearest with orthonormal columns, those of zeros apart
        together = together @ (3 * exact(np.eye(together.shape[1])) - together.T @ together) / 2
    basis, beyond = together[:, :count], together[:, count:]
    left = exact(G) @ basis - basis @ exact(process.projected)
    left[:, -process.width :] -= beyond @ exact(process.couplings[-1])
    missed = exact(y) - basis[:, : process.width] @ exact(process.start)
    of_labels = max(float(size(m) / size(v)) for m, v in zip(missed.T, y.T, strict=True))
    perturbation = float(ritz_spectrum(process).perturbation)
    assert np.linalg.norm(rounded(left), 2) + 2 * of_labels * np.linalg.norm(G, 2) < perturbation
    assert perturbation < 5 * ROUNDING * EPS


@pytest.mark.parametrize("closeness", [1e-1, 1e-4, 1e-8, 1e-11])
def test_a2_rounding_of_multipliers(closeness):
    """Assumption A2: multipliers solve |p_t| = s up to ROUNDING units of |u_t|^2 + s^2, near
    collapse too.
    """
    worst = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        d = jnp.asarray(np.sort(10.0 ** rng.uniform(-rng.uniform(1, 12), 0, 12)))
        z = jnp.asarray(rng.normal(size=(12, OUTPUTS)))
        fraction = 1 - closeness if closeness < 0.1 else rng.uniform(0.01, 0.9)
        level = fraction * jnp.mean(z**2)
        alpha = rng.choice([0.0, 0.3])
        path = _run_chain(d, z, level, jnp.asarray(alpha))
        count = int(np.sum(np.asarray(path.status) == Status.ACTIVE))
        s2 = z.size * mpmath.mpf(float(level))
        targets, fits = exact_targets(exact(d), exact(z), exact(path.multipliers[:count]), alpha)
        for x, fit in zip(targets, fits, strict=True):
            off = abs(size(x - fit) ** 2 - s2) / (size(x) ** 2 + s2)
            worst = max(worst, float(off))
    assert 0 < worst < ROUNDING * EPS


def test_rounds_without_labels_and_with_given_multipliers_are_known():
    known = problem(0)
    arguments = {
        "multipliers": jnp.full(ROUNDS, 0.1),
        "status": jnp.full(ROUNDS, Status.ACTIVE, jnp.int32),
        "s": jnp.asarray(1.0),
        "alpha": jnp.asarray(0.0),
        "by_tolerance": False,
    }
    ritz = known.ritz
    of = lambda z: kb.error_bounds(ritz.d, z, ritz.residuals, ritz.perturbation, **arguments)  # noqa: E731
    bounds = of(known.z)
    assert not np.asarray(bounds.multipliers).any()
    _, fits = exact_targets(known.g, known.labels, exact(arguments["multipliers"]), 0.0)
    found = filters.distillation(ritz.d, arguments["multipliers"])[0][:, :, None] * known.z[None]
    for fit, coordinates, bound in zip(fits, found, bounds.fitted, strict=True):
        assert size(known.basis @ exact(coordinates) - fit) <= float(bound) * size(fit)
    assert not np.asarray(of(0 * known.z).fitted).any()
