"""Error bounds of Krylov runs against the truth: clustered, decaying and nearly collapsing chains
on dense Gram matrices, labels and kernels of all sizes.

A bound is one finite entry of ``run.error_bounds``: of one round and output, on its multiplier or
on its fit. The truth is the chain on the same floats in numbers of 80 bits: a Householder
reduction to tridiagonal form, and Newton's iteration from the dense path's multipliers. Wrong is a
bound below the true error, or a finite bound where the exact round is not active.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ritz_spectrum

import sdntk
from sdntk import Status
from sdntk.spectra.lanczos import lanczos_extend, lanczos_init

pytestmark = pytest.mark.slow

EXTENDED = np.longdouble
ROUNDS, OUTPUTS = 5, 3
#: Where between 0 and collapse the tolerances lie, and the ground truth's weights.
SHARES = [1e-3, 0.05, 0.3, 0.7, 0.95, 1 - 1e-4, 1 - 1e-7]
WEIGHTS = [0.0, 0.4]
#: K, and after how many Lanczos steps (of four vectors each) bounds are looked at.
SIZES = {24: (1, 3, 5, 6), 80: (4, 8, 14, 20), 200: (6, 12, 25, 40, 50), 400: (30, 60, 100)}


def eigenvalues(rng, size, kind):
    """Spectra, d_max = 1."""
    order = np.arange(size)
    if kind == "clustered":
        centres = 10.0 ** -np.sort(rng.uniform(0, 5, rng.integers(2, 9)))
        width = 10.0 ** rng.uniform(-12, -2)
        d = rng.choice(centres, size) * (1 + width * rng.normal(size=size))
    elif kind == "geometric":
        d = 10.0 ** (-rng.uniform(2, 12) * order / size)
    elif kind == "power":
        d = (1.0 + order) ** -rng.uniform(0.5, 4)
    else:  # low rank, and a tail
        d = np.where(order < 6, rng.uniform(0.1, 1, size), 10.0 ** -rng.uniform(2, 9, size))
    return np.abs(d) / np.abs(d).max()


def problem(rng, size, kind, joint):
    """G in a random basis, and labels of outputs with much or little weight in its tail, both of
    any size.
    """
    q = np.linalg.qr(rng.normal(size=(size, size)))[0]
    d = np.sort(eigenvalues(rng, size, kind))[::-1]
    G = (q * d) @ q.T
    coordinates = rng.normal(size=(size, OUTPUTS)) * d[:, None] ** rng.choice([0, 0.3, 1], OUTPUTS)
    sizes = 10.0 ** rng.uniform(-140, 140, 1 if joint else OUTPUTS)
    return (G + G.T) / 2 * 10.0 ** rng.uniform(-60, 60), q @ coordinates * sizes


@functools.cache
def program(joint):
    """The chains of all tolerances and weights on a spectrum, compiled."""

    def run(spectrum, y, tolerance, weight):
        run = sdntk.distill_spectrum(
            spectrum,
            y,
            tolerance=tolerance,
            rounds=ROUNDS,
            ground_truth_weight=weight,
            outputs="joint" if joint else "separate",
        )
        return run.status, run.multipliers, run.fitted, run.error_bounds

    return jax.jit(jax.vmap(run, in_axes=(None, None, 0, 0)))


def tridiagonal(G, y):
    """T = Q^T G Q: its diagonal and off-diagonal; Q^T y; and Q, as reflections."""
    T, z, reflections = G.astype(EXTENDED), y.astype(EXTENDED), []
    for k in range(len(T) - 2):
        v = T[k + 1 :, k].copy()
        v[0] += np.copysign(np.sqrt(v @ v), v[0])
        beta = 2 / (v @ v)
        w = beta * (T[k + 1 :, k + 1 :] @ v)
        w -= (beta / 2 * (w @ v)) * v
        T[k + 1 :, k + 1 :] -= np.outer(v, w) + np.outer(w, v)
        T[k + 1, k] = T[k, k + 1] = T[k + 1, k] - beta * v[0] * (v @ T[k + 1 :, k])
        z[k + 1 :] -= np.outer(beta * v, v @ z[k + 1 :])
        reflections.append((beta, v))
    return (np.diag(T).copy(), np.diag(T, 1).copy()), z, reflections


def unrotated(z, reflections):
    """Q z, all axes behind the first carried along."""
    columns = z.reshape(len(z), -1).copy()
    for beta, v in reversed(reflections):
        columns[-len(v) :] -= np.outer(beta * v, v @ columns[-len(v) :])
    return columns.reshape(z.shape)


def resolvent(diagonal, off, c, u):
    """(c I + T)^-1 u for chains c, shape (B,), and u, shape (K, B, P)."""
    pivots, x = np.empty((len(diagonal), len(c)), EXTENDED), u.copy()
    pivots[0] = diagonal[0] + c
    for k in range(1, len(diagonal)):
        factor = off[k - 1] / pivots[k - 1]
        pivots[k] = diagonal[k] + c - factor * off[k - 1]
        x[k] -= factor[:, None] * x[k - 1]
    x[-1] /= pivots[-1][:, None]
    for k in range(len(diagonal) - 2, -1, -1):
        x[k] = (x[k] - off[k] * x[k + 1]) / pivots[k][:, None]
    return x


def exact_chains(T, z, s2, weight, start):
    """Of B chains of P outputs together: how well each round is known (its last step of log c, or
    infinity), whether it is active, its multiplier, its fit.

    Args:
        T: diagonal and off-diagonal.
        z: shape (K, B, P).
        s2: the squared radius, shape (B,).
        weight: of the ground truth, shape (B,).
        start: multipliers close to the truth, shape (B, T), nan where there is no active round.
    """
    targets, known, ended, found = z, np.ones(len(s2), bool), np.zeros(len(s2), bool), []
    for t in range(ROUNDS):
        excess = _squares(targets) / s2 - 1
        known &= np.abs(excess) > 1e-13
        ended |= known & (excess < 0)
        active = known & ~ended & np.isfinite(start[:, t])
        c, step = np.where(active, start[:, t], 1).astype(EXTENDED), 0
        for _ in range(6):
            r = c[:, None] * resolvent(*T, c, targets)
            slope = np.sum(r * (r - c[:, None] * resolvent(*T, c, r)), axis=(0, 2))
            h2, slope = (np.where(active, v, s2) for v in (_squares(r), slope))
            step = np.log(h2 / s2) * h2 / (2 * slope)
            c = c * np.exp(-step)
        known &= active | ended
        fit = targets - c[:, None] * resolvent(*T, c, targets)
        found.append((np.where(known, np.abs(step), np.inf), active, c, fit))
        targets = weight[:, None] * z + (1 - weight[:, None]) * fit
    *rounds, fits = zip(*found, strict=True)
    return *(np.stack(values, axis=1) for values in rounds), np.stack(fits, axis=2)


def _squares(values):
    return np.sum(values**2, axis=(0, 2))


def by_chain(values, joint):
    """(n, T, ...) or (n, T, ..., Q) to chains one after another."""
    values = np.asarray(values)
    return values if joint else np.concatenate(np.moveaxis(values, -1, 0))


def look(results, truth, joint):
    """(bounds, wrong, unknown to the reference) of all chains on one Krylov spectrum."""
    status, c, fitted, bounds = results
    doubt, active, exact_c, exact_fits = truth
    fitted = np.asarray(fitted) if joint else by_chain(fitted, joint)[..., None]
    status, c = by_chain(status, joint), by_chain(c, joint)
    fits = fitted - exact_fits
    size = np.sqrt(np.sum(exact_fits**2, axis=(-2, -1)))
    with np.errstate(invalid="ignore"):
        errors = np.abs(c - exact_c) / exact_c, np.sqrt(np.sum(fits**2, axis=(-2, -1))) / size
    tried = wrong = unknown = 0
    for bound, error in zip((by_chain(bound, joint) for bound in bounds), errors, strict=True):
        claimed = np.isfinite(bound) & (status == Status.ACTIVE)
        known, off = doubt <= bound / 100, ~active | ~(error <= bound)
        tried += int(claimed.sum())
        unknown += int((claimed & ~known).sum())
        wrong += int((claimed & known & off).sum())
    return np.array([tried, wrong, unknown])


def attack(size, kind, seed, joint):
    """(bounds, wrong, unknown to the reference) on one Gram matrix, after several steps."""
    rng = np.random.default_rng([seed, size, len(kind)])
    G, y = problem(rng, size, kind, joint)
    shares, weights = (v.ravel() for v in np.meshgrid(SHARES, WEIGHTS))
    means = np.mean(y**2, axis=None if joint else 0, keepdims=not joint)
    levels = shares * means if joint else shares[:, None] * means
    count = size * (OUTPUTS if joint else 1)

    chains = program(joint)
    dense = chains(sdntk.decompose(G), y, levels, weights)
    operator, process, results = sdntk.as_operator(G), lanczos_init(jnp.asarray(y)), []
    for steps in SIZES[size]:
        process = lanczos_extend(process, operator, min(steps, size // process.width))
        spectrum = ritz_spectrum(process)
        results.append(jax.block_until_ready(chains(spectrum, y, levels, weights)))

    T, z, reflections = tridiagonal(G, y)
    of_outputs = [z[:, None, :]] if joint else [z[:, None, [q]] for q in range(OUTPUTS)]
    starts = np.concatenate([np.repeat(v, len(shares), axis=1) for v in of_outputs], axis=1)
    s2 = count * by_chain(levels, joint).astype(EXTENDED)
    each_weight = np.tile(weights, len(of_outputs)).astype(EXTENDED)
    close, closest = (by_chain(run[1], joint) for run in (dense, results[-1]))
    close = np.where(np.isfinite(close), close, closest)  # what has no null space but for rounding
    *truth, fits = exact_chains(T, starts, s2, each_weight, close)
    truth += [np.moveaxis(unrotated(fits, reflections), 0, 2)]
    return np.sum([look(run, truth, joint) for run in results], axis=0)


KINDS = ["clustered", "geometric", "power", "low rank"]


@pytest.mark.parametrize("joint", [False, True], ids=["separate", "joint"])
@pytest.mark.parametrize("points", SIZES)
def test_bounds_of_krylov_runs(points, joint, size, score):
    matrices = size(1, 5) if points < 400 else size(0, 1)
    if not matrices:
        pytest.skip("400 points are for the long tier")
    results = [attack(points, kind, seed, joint) for kind in KINDS for seed in range(matrices)]
    bounds, wrong, unknown = map(int, np.sum(results, axis=0))
    outputs = "joint" if joint else "separate"
    score(f"Krylov bounds, {points} points, {outputs} outputs", bounds, wrong, unknown)
    assert bounds > 0
    assert wrong == 0
    assert unknown < 0.01 * bounds
