"""Self-distillation of network classifiers, recorded: every round of every seed against the original labels.

The networks' side of :mod:`sdntk.kernel_classification`. Rows are written as rounds end, states as networks train, so that a
run killed at any moment goes on in the middle of a round and ends with the same records.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int

from sdntk._arguments import as_count
from sdntk._progress import Bar
from sdntk.checkpoints import Checkpoints
from sdntk.ensemble import Build, Ensemble
from sdntk.kernels._base import register
from sdntk.network_distillation import next_targets
from sdntk.records import Records
from sdntk.training import Course, Stop, Training, advance, as_ensemble, begin, end, fastest_size, fresh, is_over, spread

#: What is measured of a network: see :func:`run`.
MEASURED = ("train_accuracy", "test_accuracy", "train_loss", "test_loss", "target_loss")


@dataclasses.dataclass(frozen=True)
class Classification:
    """Data with the labels to learn in round 0, which may be noisy, and the original ones, by which all is judged.

    Attributes:
        x: training points. y: what round 0 learns, shape (K, Q), one-hot.
        labels: the original classes of x. x_test, test_labels: points to judge by.
    """

    x: Float[Array, "K ..."]
    y: Float[Array, "K Q"]
    labels: Int[Array, " K"]
    x_test: Float[Array, "n ..."]
    test_labels: Int[Array, " n"]


@dataclasses.dataclass(frozen=True)
class Chain:
    """How a chain runs: see :func:`sdntk.distill_networks`; networks are measured every ``measure_every`` steps."""

    training: Training
    rounds: int
    targets: Any = "soft"
    ground_truth_weight: float = 0.0
    measure_every: int = 100


@register
class _Progress:
    """A round in the making: the networks, and the best that they have been."""

    course: Course
    best: Float[Array, "s m"]  # MEASURED, at the best step
    best_step: Int[Array, " s"]


def run(
    build: Build, data: Classification, chain: Chain, records: Records, *, seeds: Sequence[int], at_once: int | None = None
) -> Iterator[pd.DataFrame]:
    """Run the chains that the records lack, and yield the rows of each round that ends.

    The table ``rounds`` then has a row for each seed and round: train_accuracy and test_accuracy against the original
    labels, train_loss and test_loss against their one-hot vectors, target_loss against the round's own targets, all at its
    end, and with ``best_`` before the name at its best step, the measured one with the highest test accuracy (it is chosen
    by the test points, so it flatters); steps, stop, stationarity, and the seconds of the group's round.

    Args:
        build: a fresh Flax NNX network from ``nnx.Rngs``.
        data: points and labels.
        chain: how chains run.
        records: their configuration must name all that results depend on.
        seeds: a chain for each; round t uses the key ``fold_in(key(seed), t)``.
        at_once: how many chains are trained together; what is fastest on this device when None.
    """
    size = fastest_size(len(seeds)) if at_once is None else as_count("at_once", at_once, at_least=1)
    groups = [list(seeds[start : start + size]) for start in range(0, len(seeds), size)]
    with Bar(
        f"{len(seeds)} chains of {chain.rounds} rounds", total=len(groups) * chain.rounds * chain.training.steps
    ) as bar:
        for group in groups:
            yield from _run_group(build, data, chain, records, group, bar)


def _run_group(
    build: Build, data: Classification, chain: Chain, records: Records, seeds: list[int], bar: Bar
) -> Iterator[pd.DataFrame]:
    steps = chain.training.steps
    done = _rounds_done(records, seeds)
    bar.advance(done * steps)
    if done == chain.rounds:
        return
    checkpoints = Checkpoints(records.folder / "checkpoints" / "-".join(map(str, seeds)))
    first = jnp.broadcast_to(data.y, (len(seeds), *data.y.shape))
    progress, t = _begin(build, data, chain, seeds, 0, first), 0
    if checkpoints.last is not None:
        progress, t = checkpoints.restore(progress), checkpoints.last // (steps + 1)
        course = progress.course
        course = dataclasses.replace(course, moving=spread(course.moving), fixed=spread(course.fixed))
        progress = dataclasses.replace(progress, course=course)
    while True:
        started = time.monotonic()
        while not is_over(progress.course, chain.training):
            before = int(progress.course.taken)
            progress = _to_next_measurement(progress, data, chain)
            checkpoints.save(t * (steps + 1) + int(progress.course.taken), progress)
            bar.advance(int(progress.course.taken) - before, f"round {t}, loss {np.mean(progress.course.moving.loss):.4g}")
        bar.advance(steps - int(progress.course.taken))
        rows = _rows(progress, data, chain, seeds, t).assign(seconds=time.monotonic() - started)
        records.put("rounds", _with(records["rounds"], rows))
        yield rows
        if t + 1 == chain.rounds:
            checkpoints.close(delete=True)
            return
        outputs = as_ensemble(progress.course, chain.training).outputs(data.x)
        learned = next_targets(outputs, data.y, chain.training.loss, chain.targets, chain.ground_truth_weight)
        t += 1
        progress = _begin(build, data, chain, seeds, t, learned)
        checkpoints.save(t * (steps + 1), progress)


def _begin(
    build: Build, data: Classification, chain: Chain, seeds: list[int], t: int, targets: Float[Array, "s K Q"]
) -> _Progress:
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), t) for seed in seeds])
    networks, order = fresh(build, keys, chain.training)
    course = begin(networks, order, data.x, targets, chain.training, jnp.zeros((), data.x.dtype))
    worst = jnp.full((len(seeds), len(MEASURED)), -jnp.inf, data.x.dtype)
    return _Progress(course, worst, jnp.zeros(len(seeds), int))


def _to_next_measurement(progress: _Progress, data: Classification, chain: Chain) -> _Progress:
    """Steps up to the next multiple of ``measure_every`` or the end, and what the networks are then."""
    course, training = progress.course, chain.training
    until = (int(course.taken) // chain.measure_every + 1) * chain.measure_every
    while not is_over(course, training) and course.taken < until:
        course = advance(course, data.x, training, until=until)
    measured = _measure(as_ensemble(course, training), course.fixed.targets, data, chain)
    better = measured[:, 1] > progress.best[:, 1]
    best = jnp.where(better[:, None], measured, progress.best)
    return _Progress(course, best, jnp.where(better, course.moving.steps, progress.best_step))


def _measure(ensemble: Ensemble, targets: Float[Array, "s K Q"], data: Classification, chain: Chain) -> Float[Array, "s m"]:
    """MEASURED, a row for each network."""
    loss, num_classes = chain.training.loss, data.y.shape[1]
    outputs, at_test = ensemble.outputs(data.x), ensemble.outputs(data.x_test)
    original, original_test = (
        jnp.broadcast_to(jax.nn.one_hot(labels, num_classes, dtype=values.dtype), values.shape)
        for labels, values in ((data.labels, outputs), (data.test_labels, at_test))
    )
    return jnp.stack(
        [
            jnp.mean(jnp.argmax(outputs, -1) == data.labels[None], -1),
            jnp.mean(jnp.argmax(at_test, -1) == data.test_labels[None], -1),
            jnp.mean(loss(outputs, original), -1),
            jnp.mean(loss(at_test, original_test), -1),
            jnp.mean(loss(outputs, targets), -1),
        ],
        axis=1,
    ).astype(data.x.dtype)


def _rows(progress: _Progress, data: Classification, chain: Chain, seeds: list[int], t: int) -> pd.DataFrame:
    trained = end(progress.course, data.x, chain.training)
    measured = np.asarray(_measure(trained.ensemble, progress.course.fixed.targets, data, chain))
    best = np.asarray(progress.best)
    return pd.DataFrame({
        "seed": seeds,
        "round": t,
        **{name: measured[:, i] for i, name in enumerate(MEASURED)},
        "best_step": np.asarray(progress.best_step),
        **{f"best_{name}": best[:, i] for i, name in enumerate(MEASURED)},
        "steps": np.asarray(trained.steps),
        "stop": [Stop(int(stop)).name.lower() for stop in trained.stop],
        "stationarity": np.asarray(trained.stationarity),
    })  # fmt: skip


def _rounds_done(records: Records, seeds: list[int]) -> int:
    """Rounds that every one of the seeds has behind it."""
    table = records["rounds"]
    if table.empty:
        return 0
    known = set(table[["seed", "round"]].itertuples(index=False, name=None))
    return next(t for t in itertools.count() if not all((seed, t) in known for seed in seeds))


def _with(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The table with these rows in place of any of the same seed and round: the last round may have been run again."""
    joined = rows if table.empty else pd.concat([table, rows])
    return joined.drop_duplicates(["seed", "round"], keep="last").sort_values(["seed", "round"], ignore_index=True)
