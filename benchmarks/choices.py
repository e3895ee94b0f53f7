"""Rules that choose a fit from training data alone: a single fit or a round of self-distillation,
by generalised cross-validation, Stein's estimate, held-out points or ten folds.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

import sdntk
from benchmarks.choice_data import Problem
from sdntk import mixing
from sdntk.tuning import TOLERANCES

ROUNDS, FOLDS, HELD_OUT = 10, 10, 5  # a fifth is held out
#: In the unit of the kernel, whose diagonal is 1.
MULTIPLIERS = np.geomspace(1e-7, 10, 40)
#: A tolerance that nobody chose.
FIXED = 0.01
LEVELS: dict[str, Any] = {
    "multipliers": {"multipliers": MULTIPLIERS},
    "tolerances": {"tolerances": TOLERANCES, "relative": True},
    "fixed": {"tolerances": [FIXED], "relative": True},
}
#: What all else is compared with.
REFERENCE = "one fit, 10 folds"


class Part(NamedTuple):
    """Training points without some, and those."""

    spectrum: sdntk.Spectrum
    kept: np.ndarray
    left: np.ndarray


def parts(problem: Problem, number: int) -> list[Part]:
    """Of ``number`` folds, each left out in turn. The points are in random order already."""
    indices, gram = np.arange(len(problem.y)), np.asarray(problem.kernel.values)
    found = []
    for left in np.array_split(indices, number):
        kept = np.delete(indices, left)
        found.append(Part(sdntk.decompose(gram[np.ix_(kept, kept)] / len(kept)), kept, left))
    return found


def predictions(
    problem: Problem, spectrum: sdntk.Spectrum, folds: list[Part]
) -> Iterator[tuple[str, Any]]:
    """Each rule's name and what its choice predicts at the test points.

    Args:
        problem: the data.
        spectrum: of the training points' Gram matrix.
        folds: of :func:`parts`, as many as are left out in turn.
    """
    fit = functools.partial(
        sdntk.tune, spectrum, problem.y, kernel=problem.kernel, x=problem.numbers
    )
    all_levels = [name for name in LEVELS if name != "fixed" or _fixed_is_feasible(problem, folds)]
    tuned = {name: fit(**LEVELS[name], rounds=ROUNDS) for name in all_levels}
    noise = _noise(problem, tuned["multipliers"].single_fit)
    by_sure = fit(**LEVELS["tolerances"], rounds=ROUNDS, criterion="sure", noise_variance=noise)
    by_folds = {name: _by_folds(problem, spectrum, folds, name) for name in all_levels}

    def at_test(fit: Any) -> Any:
        return fit.predict_from(problem.cross)

    yield "one fit, GCV", at_test(tuned["multipliers"].single_fit)
    yield REFERENCE, at_test(by_folds["multipliers"][0])
    yield "multiplier and round, GCV", at_test(tuned["multipliers"].fit)
    yield "tolerance and round, GCV", at_test(tuned["tolerances"].fit)
    yield "tolerance and round, SURE", at_test(by_sure.fit)
    yield "multiplier and round, 10 folds", at_test(by_folds["multipliers"][1])
    yield "tolerance and round, 10 folds", at_test(by_folds["tolerances"][1])
    if "fixed" in all_levels:
        yield "tolerance of 1%, round 0", at_test(tuned["fixed"].single_fit)
        yield "tolerance of 1%, round by GCV", at_test(tuned["fixed"].fit)
        yield "tolerance of 1%, round by 10 folds", at_test(by_folds["fixed"][1])
    yield "one fit, hindsight", _by_hindsight(problem, spectrum, "multipliers", 1)
    yield "tolerance and round, hindsight", _by_hindsight(problem, spectrum, "tolerances", ROUNDS)

    single = tuned["multipliers"].best_single.level == MULTIPLIERS
    for rounds in (2, 3):
        weights, values = map(np.asarray, _one_shot(spectrum, problem.y, MULTIPLIERS, rounds))
        yield (
            f"one-shot weights, {rounds} rounds",
            at_test(_mixed(problem, spectrum, MULTIPLIERS[single][0], weights[single][0])),
        )
        best = int(np.argmin(values))
        yield (
            f"one-shot weights and multiplier, {rounds} rounds",
            at_test(_mixed(problem, spectrum, MULTIPLIERS[best], weights[best])),
        )
    held_out = parts(problem, HELD_OUT)[:1]
    for name, left in (("held-out", held_out), ("10-fold", folds)):
        rounds_of = _out_of_fold(problem, left)
        labels = problem.y[np.concatenate([part.left for part in left])]
        for rounds in (1, 2, 3) if name == "held-out" else (2, 3):
            weights, errors = map(np.asarray, _weights(rounds_of[:, :rounds], labels))
            best = int(np.argmin(errors))
            title = f"{name} weights, {rounds} rounds" if rounds > 1 else "one fit, held-out"
            yield title, at_test(_mixed(problem, spectrum, MULTIPLIERS[best], weights[best]))


def _fixed_is_feasible(problem: Problem, folds: list[Part]) -> bool:
    """Equal points with other labels, as some tables have them, cannot be fitted to 1%."""
    for part in folds:
        y = problem.y[part.kept]
        if (
            np.asarray(part.spectrum.floor(y)) >= FIXED * np.mean(np.asarray(y) ** 2, axis=0)
        ).any():
            return False
    return True


def _noise(problem: Problem, fit: Any) -> Float[Array, "*Q"]:
    """sigma^2 as the single fit of GCV leaves it, |y - f|^2/(K - df)."""
    squares = jnp.sum((problem.y - fit.fitted) ** 2, axis=0)
    return squares / (len(problem.y) - fit.degrees_of_freedom)


def _by_folds(
    problem: Problem, spectrum: sdntk.Spectrum, folds: list[Part], levels: str
) -> tuple[Any, Any]:
    """The single fit and the round of the least error over all folds, on all training points."""
    total: Any = 0
    for part in folds:
        found = sdntk.tune(
            part.spectrum,
            problem.y[part.kept],
            **LEVELS[levels],
            rounds=ROUNDS,
            criterion="held_out",
            validation=(problem.numbers[part.left], problem.y[part.left]),
            kernel=problem.kernel,
            x=problem.numbers[part.kept],
        )
        total = total + found.table["held_out"].to_numpy().reshape(-1, ROUNDS) * len(part.left)
    name, all_levels = _levels(problem, levels)
    chosen = []
    for table in (total[:, :1], total):
        number, last = np.unravel_index(np.nanargmin(table), table.shape)
        run = sdntk.distill_spectrum(
            spectrum, problem.y, rounds=int(last) + 1, **{name: all_levels[number]}
        )
        chosen.append(run.fits[-1])
    return chosen[0], chosen[1]


def _levels(problem: Problem, levels: str) -> tuple[str, Float[np.ndarray, "L *Q"]]:
    """The name by which :func:`sdntk.distill` takes a level, and all of them."""
    if levels == "multipliers":
        return "multiplier", MULTIPLIERS
    squares = np.mean(np.asarray(problem.y) ** 2, axis=0)
    return "tolerance", np.multiply.outer(np.asarray(LEVELS[levels]["tolerances"]), squares)


def _by_hindsight(
    problem: Problem, spectrum: sdntk.Spectrum, levels: str, rounds: int
) -> Float[np.ndarray, "n *Q"]:
    """The predictions of the least error on the test points."""
    name, all_levels = _levels(problem, levels)
    at_test = np.asarray(
        _rounds_at(spectrum, problem.y, problem.cross, jnp.asarray(all_levels), name, rounds)
    )
    candidates = at_test.reshape(-1, *at_test.shape[2:])
    errors = pd.DataFrame([problem.errors(candidate) for candidate in candidates])
    return candidates[int(errors.iloc[:, -1].fillna(errors.iloc[:, 0]).argmin())]


def _mixed(
    problem: Problem, spectrum: sdntk.Spectrum, multiplier: float, weights: np.ndarray
) -> Any:
    run = sdntk.distill_spectrum(
        spectrum, problem.y, multiplier=float(multiplier), rounds=len(weights)
    )
    return run.mix(weights)


def _out_of_fold(problem: Problem, left: list[Part]) -> Float[Array, "L T n *Q"]:
    """What three rounds at every multiplier predict at the points that were left out."""
    found = [
        _rounds_at(
            part.spectrum,
            problem.y[part.kept],
            problem.kernel.values[part.left][:, part.kept] / len(part.kept),
            MULTIPLIERS,
            "multiplier",
            3,
        )
        for part in left
    ]
    return jnp.concatenate(found, axis=2)


@functools.partial(jax.jit, static_argnames=("name", "rounds"))
def _rounds_at(
    spectrum: sdntk.Spectrum, y: Array, cross: Array, levels: Array, name: str, rounds: int
) -> Float[Array, "L T n *Q"]:
    def at(level: Array) -> Array:
        given: Any = {name: level}
        run = sdntk.distill_spectrum(spectrum, y, rounds=rounds, **given)
        return run.predict_from(cross)

    return jax.lax.map(at, levels)


@jax.jit
def _weights(rounds_of: Float[Array, "L T n *Q"], y: Array) -> tuple[Array, Array]:
    """For every multiplier the best weights, and their error."""

    def at(rounds: Array) -> tuple[Array, Array]:
        weights = mixing.held_out(rounds, y).weights
        return weights, jnp.mean((y - jnp.tensordot(weights, rounds, 1)) ** 2)

    return jax.lax.map(at, rounds_of)


@functools.partial(jax.jit, static_argnames="rounds")
def _one_shot(
    spectrum: sdntk.Spectrum, y: Array, multipliers: Array, rounds: int
) -> tuple[Array, Array]:
    """For every multiplier the one-shot weights, and what they minimise."""

    def at(multiplier: Array) -> tuple[Array, Array]:
        run = sdntk.distill_spectrum(spectrum, y, multiplier=multiplier, rounds=rounds)
        weights, df = mixing.one_shot(run).weights, run.degrees_of_freedom[:, None]
        residuals = (y[None] - run.fitted) / (1 - df / len(y))
        mixed = jnp.sum(weights[:, None] * residuals, axis=0)
        return weights, jnp.mean(mixed**2)

    return jax.lax.map(at, multipliers)
