"""Random chains against extended precision: labels and kernels of all sizes, null spaces, ties,
many outputs, condition numbers to 1e12, ground truth mixed in by weights of any size that change
from round to round, tolerances and multipliers, in float64 and in float32.

Wrong is another state where the margin exceeds rounding, or a multiplier, fit, loss or norm off by
more than 100 machine_eps times its condition number (tests/extended.py), where a hundred times the
smallest normal number, of 1 or of the largest label, counts as nothing. A chain one of whose states
is within rounding of another is undecidable from there on.
"""

import functools
from typing import NamedTuple

import extended
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdntk
from sdntk import Status

pytestmark = pytest.mark.slow

ALLOWED = 100  # machine_eps times condition numbers
BATCH = 2000


class Shape(NamedTuple):
    """One compiled program: K points, T rounds, Q outputs (0: labels have no axis of outputs)."""

    points: int
    rounds: int
    outputs: int = 0
    joint: bool = False
    by_tolerance: bool = True
    weights: bool = False  # one for each later round, in place of one for all


SHAPES = [
    Shape(1, 4),
    Shape(4, 12),
    Shape(9, 6),
    Shape(24, 5),
    Shape(6, 60),
    Shape(6, 5, outputs=3),
    Shape(8, 5, outputs=3, joint=True),
    Shape(10, 8, by_tolerance=False),
    Shape(6, 4, outputs=3, by_tolerance=False),
    Shape(5, 7, weights=True),
    Shape(7, 5, outputs=2, joint=True, weights=True),
    Shape(8, 6, outputs=2, by_tolerance=False, weights=True),
]


class Limits(NamedTuple):
    """Exponents of ten between which a dtype's labels and kernels are drawn."""

    labels: tuple[float, float]  # to a tolerance
    any_labels: tuple[float, float]  # with a multiplier
    kernels: tuple[float, float]
    digits: float  # by which a tolerance comes close to floor and collapse
    spread: float  # of labels: dual coefficients are to be normal numbers


LIMITS = {
    "float64": Limits((-153, 153), (-300, 300), (-250, 250), 12, 20),
    "float32": Limits((-18, 18), (-30, 30), (-18, 18), 4, 7),
}


class Problems(NamedTuple):
    """A batch of chains, floats as the library gets them."""

    d: np.ndarray  # (B, K)
    z: np.ndarray  # (B, K) or (B, K, Q)
    level: np.ndarray  # tolerance or multiplier, (B,) or (B, Q)
    alpha: np.ndarray  # (B,) or (B, T - 1)


def eigenvalues(rng, size, count, limits):
    """Spectra with zeros and ties."""
    exponents = rng.uniform(size=(count, size)) * rng.uniform(0, 12, (count, 1))
    tie = rng.uniform(size=(count, size)) < rng.choice([0, 0.5], (count, 1))
    exponents = np.where(tie, exponents[:, :1], exponents)
    scale = np.where(rng.uniform(size=count) < 0.5, 0, rng.uniform(*limits.kernels, count))
    d = 10.0 ** (scale[:, None] - exponents)
    null = rng.uniform(size=d.shape) < rng.choice([0, 0, 0.3], (count, 1))
    return np.where(null, 0, d)


def labels(rng, shape, spread):
    """Rotated labels, the largest of each output 1, with small entries and zeros among them."""
    z = rng.normal(size=shape)
    columns = (len(z), 1, *shape[2:])
    small = rng.uniform(size=shape) < rng.choice([0, 0.5], columns)
    z = np.where(
        small, z * 10.0 ** -(rng.uniform(size=shape) * rng.choice([3, spread], columns)), z
    )
    z = np.where(rng.uniform(size=shape) < rng.choice([0, 0, 0.2], columns), 0, z)
    largest = np.abs(z).max(axis=1, keepdims=True)
    return z / np.where(largest > 0, largest, 1)


def shares(rng, shape, digits):
    """Where between floor (0) and collapse (1) tolerances lie; some are outside."""
    kind = rng.uniform(size=shape)
    share = 10.0 ** -rng.uniform(0, digits / 1.5, shape)
    share = np.where(kind < 0.5, rng.uniform(0.001, 1, shape), share)
    share = np.where(kind < 0.2, 1 - 10.0 ** -rng.uniform(0, digits, shape), share)
    share = np.where(kind < 0.05, 1 + 10.0 ** -rng.uniform(-3, digits, shape), share)
    return np.where(kind < 0.03, -(10.0 ** -rng.uniform(0, digits / 2, shape)), share)


def weights(rng, shape):
    """Weights inside and outside [0, 1], exact zeros and ones among them; in some chains sorted."""
    alpha = rng.normal(0.5, rng.choice([0.3, 1.5], (shape[0], 1)), shape)
    alpha = np.where(rng.uniform(size=shape) < 0.3, rng.integers(0, 2, shape), alpha)
    falling = -np.sort(-np.clip(alpha, 0, 1), axis=1)
    return np.where(rng.uniform(size=(shape[0], 1)) < 0.2, falling, alpha)


def draw(rng, shape, count, dtype):
    """A batch of problems."""
    limits, tiny = LIMITS[dtype], float(np.finfo(dtype).tiny)
    d = eigenvalues(rng, shape.points, count, limits)
    outputs = (shape.outputs,) if shape.outputs else ()
    own = (count,) if shape.joint else (count, *outputs)  # what has a level of its own
    low, high = limits.labels if shape.by_tolerance else limits.any_labels
    scale = np.where(rng.uniform(size=own) < 0.3, 0, rng.uniform(low, high, own))
    z = labels(rng, (count, shape.points, *outputs), limits.spread)
    if shape.by_tolerance:
        axes = (1, 2) if shape.joint else 1
        null = np.where((d > 0).reshape(d.shape + (1,) * len(outputs)), 0, z)
        residuals = shape.points * (shape.outputs if shape.joint else 1)
        floor, total = (np.sum(v**2, axis=axes) / residuals for v in (null, z))
        least = 10.0**-limits.digits
        relative = floor + shares(rng, own, limits.digits) * (total - floor)
        relative = np.maximum(relative, least * total)
        relative = np.where(floor < total, relative, rng.choice([0.5, 2.0], own) * total)
        relative = np.where(relative > 0, relative, 1)
        # Tolerances are to be normal numbers.
        scale = np.maximum(scale, (np.log10(tiny) - np.log10(relative)) / 2 + 0.01)
        level = relative * 10.0**scale * 10.0**scale
    else:
        largest = d.max(axis=1).reshape(count, *(1 for _ in own[1:]))
        largest = np.where(largest > 0, largest, 1)
        level = np.maximum(largest * 10.0 ** rng.uniform(-12, 1, own), 2 * tiny)
    each = scale.reshape(count, 1, *scale.shape[1:], *(1 for _ in z.shape[1 + scale.ndim :]))
    z = z * 10.0**each
    alpha = np.where(rng.uniform(size=count) < 0.7, 0, rng.choice([1e-6, 0.3, 0.9, 1.0], count))
    if shape.weights:
        alpha = weights(rng, (count, shape.rounds - 1))
    z = np.where(np.abs(z) < tiny, 0, z)  # as XLA takes them
    return Problems(*(np.asarray(v, dtype) for v in (d, z, level, alpha)))


@functools.cache
def program(shape, dtype):
    """The library's chains, compiled."""
    basis = jnp.eye(shape.points, dtype=dtype)
    level_name = "tolerance" if shape.by_tolerance else "multiplier"

    def run(d, z, level, alpha):
        spectrum = sdntk.Spectrum(d, basis, float(jnp.finfo(dtype).eps))
        run = sdntk.distill_spectrum(
            spectrum,
            z,
            rounds=shape.rounds,
            ground_truth_weight=alpha,
            outputs="joint" if shape.joint else "separate",
            **{level_name: level},
        )
        return run.status, run.multipliers, run.fitted, run.training_loss, run.norms

    return jax.jit(jax.vmap(run))


def one_by_one(found, problems, shape):
    """Chains with multipliers of their own, each with the labels that share them, (B, K, P)."""
    d, z, level, alpha = problems
    status, c, f, loss, norms = found
    if shape.joint or not shape.outputs:
        z = z.reshape(len(z), shape.points, -1)
        f = f.reshape(*f.shape[:2], shape.points, -1)
        return Problems(d, z, level, alpha), (status, c, f, loss, norms)
    d, alpha = (np.repeat(v, shape.outputs, axis=0) for v in (d, alpha))
    z = np.moveaxis(z, 2, 1).reshape(-1, shape.points, 1)
    f = np.moveaxis(f, 3, 1).reshape(-1, shape.rounds, shape.points, 1)
    status, c, loss, norms = (
        np.moveaxis(v, 2, 1).reshape(-1, shape.rounds) for v in (status, c, loss, norms)
    )
    return Problems(d, z, level.reshape(-1), alpha), (status, c, f, loss, norms)


def compare(found, problems, shape, dtype):
    """Which chains are wrong, and which undecidable."""
    eps = float(np.finfo(dtype).eps)
    wide = [np.asarray(v, extended.EXTENDED) for v in problems]
    d, z, level, alpha = wide
    residuals = shape.points * z.shape[2]
    s2 = residuals * level if shape.by_tolerance else np.full(len(d), np.nan)
    exact = extended.chains(
        d,
        np.sum(z**2, axis=2),
        s2,
        alpha,
        shape.rounds,
        eps=eps,
        multiplier=None if shape.by_tolerance else level,
    )
    status, c, f, loss, norms = found

    # What follows a round that cannot be decided, or is infeasible, says nothing.
    decided = np.cumprod(exact.margin > 1, axis=1).astype(bool)
    wrong = decided & (status != exact.status)
    told = decided & (exact.status != Status.INFEASIBLE)
    active = told & (exact.status == Status.ACTIVE)

    # In 1, and in the labels' unit; what many rounds of one multiplier shrink to vanishes there in
    # the dual coefficients first, f/d or (y - f)/c.
    nothing = 100 * float(np.finfo(dtype).tiny)
    in_unit = nothing * np.abs(z).max(axis=(1, 2))[:, None]
    if not shape.by_tolerance:
        in_unit = in_unit * np.maximum(1, level + d.max(axis=1))[:, None]
    smallest = np.where(d > 0, d, np.inf).min(axis=1)[:, None]

    wrong |= active & _off(c, exact.multipliers, exact.c_condition, nothing, dtype)
    fits = exact.filters[..., None] * z[:, None]
    errors = np.sqrt(np.sum((f - fits) ** 2, axis=(2, 3)))
    sizes = np.sqrt(np.sum(fits**2, axis=(2, 3)))
    allowed = ALLOWED * eps * exact.fit_condition * sizes + nothing + in_unit
    wrong |= told & ~(errors <= allowed)
    exact_loss, least = exact.loss / residuals, nothing + in_unit**2
    wrong |= told & _off(loss, exact_loss, exact.loss_condition, least, dtype)
    exact_norms = np.sqrt(exact.squared_norm / shape.points)
    least = nothing + in_unit / np.sqrt(smallest)
    wrong |= told & _off(norms, exact_norms, exact.norm_condition, least, dtype)
    return wrong.any(axis=1), ~decided.all(axis=1)


def _off(found, exact, condition, nothing, dtype):
    """Further from the truth than rounding explains; beyond the dtype's range, inf and 0 are."""
    limits = np.finfo(dtype)
    error = np.abs(found - exact)
    near = error <= ALLOWED * float(limits.eps) * condition * exact + nothing
    beyond = np.isposinf(found) & (exact > 0.99 * np.asarray(limits.max, extended.EXTENDED))
    return ~(near | beyond)


def attack(shape, dtype, count, seed):
    """(tried, wrong, undecidable), and the first problems that were wrong."""
    rng = np.random.default_rng([seed, shape.points, shape.rounds, shape.outputs, len(dtype)])
    tried = wrong = undecidable = 0
    failures = []
    while tried < count:
        problems = draw(rng, shape, BATCH, dtype)
        found = [np.asarray(v) for v in program(shape, dtype)(*problems)]
        chains, results = one_by_one(found, problems, shape)
        off, doubtful = compare(results, chains, shape, dtype)
        tried += len(off)
        wrong += int(off.sum())
        undecidable += int((doubtful & ~off).sum())
        failures += [Problems(*(v[i] for v in chains)) for i in np.flatnonzero(off)[:3]]
    return tried, wrong, undecidable, failures


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_random_chains(shape, dtype, size, score):
    count = size(10_000, 1_000_000) // (2 * len(SHAPES))
    tried, wrong, undecidable, failures = attack(shape, dtype, count, seed=0)
    outputs = f"{shape.outputs or 1} {'joint ' * shape.joint}outputs"
    level = "tolerance" if shape.by_tolerance else "multiplier"
    what = f"chains by {level}, {dtype}, {shape.points} points, {outputs}, {shape.rounds} rounds"
    score(what, tried, wrong, undecidable)
    assert wrong == 0, failures[:1]
    assert undecidable < 0.01 * tried
