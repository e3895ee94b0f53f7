"""Rules that choose a fit from training data alone: a single fit or a round of self-distillation,
by generalised cross-validation, Stein's estimate, held-out points or ten folds.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
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
#: For Gram matrices of trace 1; scikit-learn's alpha is K times as much.
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
    """Of ``number`` folds, each left out in turn. The points are in random order already; their
    scale, and the labels' mean, are those of all of them.
    """
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
    tune = functools.partial(
        sdntk.tune, spectrum, problem.y, rounds=ROUNDS, kernel=problem.kernel, x=problem.numbers
    )
    by_gcv = tune(**LEVELS["multipliers"])
    fits = itertools.chain(
        _levels_and_rounds(problem, spectrum, folds, by_gcv, tune),
        _fixed_levels(problem, spectrum, folds, tune),
        _one_shot_weights(problem, spectrum, by_gcv.best_single.level),
        _weights_of_points_left_out(problem, spectrum, folds),
    )
    for rule, fit in fits:
        yield rule, fit.predict_from(problem.cross)
    yield "one fit, hindsight", _by_hindsight(problem, spectrum, "multipliers", 1)
    yield "tolerance and round, hindsight", _by_hindsight(problem, spectrum, "tolerances", ROUNDS)


def _levels_and_rounds(
    problem: Problem,
    spectrum: sdntk.Spectrum,
    folds: list[Part],
    by_gcv: sdntk.Tuning,
    tune: Callable[..., sdntk.Tuning],
) -> Iterator[tuple[str, Any]]:
    multipliers = _by_folds(problem, spectrum, folds, "multipliers")
    _, tolerance_and_round = _by_folds(problem, spectrum, folds, "tolerances")
    noise = _noise(problem, by_gcv.single_fit)
    by_sure = tune(**LEVELS["tolerances"], criterion="sure", noise_variance=noise)
    yield "one fit, GCV", by_gcv.single_fit
    yield REFERENCE, multipliers[0]
    yield "multiplier and round, GCV", by_gcv.fit
    yield "tolerance and round, GCV", tune(**LEVELS["tolerances"]).fit
    yield "tolerance and round, SURE", by_sure.fit
    yield "multiplier and round, 10 folds", multipliers[1]
    yield "tolerance and round, 10 folds", tolerance_and_round


def _fixed_levels(
    problem: Problem,
    spectrum: sdntk.Spectrum,
    folds: list[Part],
    tune: Callable[..., sdntk.Tuning],
) -> Iterator[tuple[str, Any]]:
    """None where equal points with other labels, as some tables have them, make it infeasible."""
    everything = Part(spectrum, np.arange(len(problem.y)), np.arange(0))
    if all(_fixed_is_feasible(problem, part) for part in (everything, *folds)):
        by_gcv = tune(**LEVELS["fixed"])
        yield "tolerance of 1%, round 0", by_gcv.single_fit
        yield "tolerance of 1%, round by GCV", by_gcv.fit
        _, by_folds = _by_folds(problem, spectrum, folds, "fixed")
        yield "tolerance of 1%, round by 10 folds", by_folds


def _fixed_is_feasible(problem: Problem, part: Part) -> bool:
    y = np.asarray(problem.y[part.kept])
    return bool((np.asarray(part.spectrum.floor(y)) < FIXED * np.mean(y**2, axis=0)).all())


def _one_shot_weights(
    problem: Problem, spectrum: sdntk.Spectrum, multiplier: float
) -> Iterator[tuple[str, Any]]:
    """At the multiplier of the best single fit, and at that which is best with them."""
    single = int(np.argmin(np.abs(MULTIPLIERS - multiplier)))
    for rounds in (2, 3):
        weights, values = map(np.asarray, _one_shot(spectrum, problem.y, MULTIPLIERS, rounds))
        for choice, number in (("", single), (" and multiplier", int(np.argmin(values)))):
            mixed = _mixed(problem, spectrum, MULTIPLIERS[number], weights[number])
            yield f"one-shot weights{choice}, {rounds} rounds", mixed


def _weights_of_points_left_out(
    problem: Problem, spectrum: sdntk.Spectrum, folds: list[Part]
) -> Iterator[tuple[str, Any]]:
    """Of a fifth of the points, and of all folds."""
    for name, left in (("held-out", parts(problem, HELD_OUT)[:1]), ("10-fold", folds)):
        rounds_of = _out_of_fold(problem, left)
        labels = problem.y[np.concatenate([part.left for part in left])]
        for rounds in (1, 2, 3) if name == "held-out" else (2, 3):
            weights, errors = map(np.asarray, _weights(rounds_of[:, :rounds], labels))
            best = int(np.argmin(errors))
            title = f"{name} weights, {rounds} rounds" if rounds > 1 else "one fit, held-out"
            yield title, _mixed(problem, spectrum, MULTIPLIERS[best], weights[best])


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
    judged = errors["squared_error"] if problem.y.ndim == 1 else errors["wrong"]
    return candidates[int(judged.where(errors["squared_error"].notna()).argmin())]


def _mixed(
    problem: Problem, spectrum: sdntk.Spectrum, multiplier: float, weights: np.ndarray
) -> Any:
    run = sdntk.distill_spectrum(
        spectrum, problem.y, multiplier=float(multiplier), rounds=len(weights), outputs="joint"
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
    """For every multiplier the one-shot weights, one vector for all outputs, and what they
    minimise.
    """

    def at(multiplier: Array) -> tuple[Array, Array]:
        run = sdntk.distill_spectrum(
            spectrum, y, multiplier=multiplier, rounds=rounds, outputs="joint"
        )
        weights, share = mixing.one_shot(run).weights, run.degrees_of_freedom / y.size
        residuals = jax.vmap(jnp.divide)(y[None] - run.fitted, 1 - share)
        return weights, jnp.mean(jnp.tensordot(weights, residuals, 1) ** 2)

    return jax.lax.map(at, multipliers)
