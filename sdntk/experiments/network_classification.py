"""Self-distillation of network classifiers, recorded: every round of every seed against the
original labels.

The networks' side of :mod:`sdntk.experiments.kernel_classification`. Rows are written as rounds
end, states as networks train, so that a
run killed at any moment goes on in the middle of a round and ends with the same records.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int

from sdntk._arguments import as_count
from sdntk._progress import Bar
from sdntk._pytrees import register
from sdntk.experiments.checkpoints import Checkpoints
from sdntk.experiments.data import Classification
from sdntk.experiments.network_runs import (
    MEASURED,
    Chain,
    advance_and_measure,
    begin_fresh,
    groups_left,
    measure,
    with_rows,
)
from sdntk.experiments.records import Records
from sdntk.training.course import TrainingResult, as_ensemble, finish, is_over, spread_run
from sdntk.training.ensemble import Build, fastest_size, to_all_devices
from sdntk.training.rounds import next_targets, require_targets
from sdntk.training.state import Stop, TrainingRun
from sdntk.training.train import check_arguments


@register
class _Progress:
    """A round in the making: the networks, and the best that they have been."""

    round: Any  # t, an integer
    course: TrainingRun
    best: Float[Array, "s m"]  # MEASURED, at the best step
    best_step: Int[Array, " s"]


def run(
    build: Build,
    data: Classification,
    chain: Chain,
    records: Records,
    *,
    seeds: Sequence[int],
    at_once: int | None = None,
) -> Iterator[pd.DataFrame]:
    """Run the chains that the records lack, and yield the rows of each round that ends.

    The table ``rounds`` then has a row for each seed and round: train_accuracy and test_accuracy
    against the original labels, train_loss and test_loss against their one-hot vectors, given_loss
    against what round 0 learnt, target_loss against the round's own targets, all at its end, and
    with ``best_`` before the name at its best step, the measured one with the highest test accuracy
    (it is chosen by the test points, so it flatters); steps, stop, stationarity, and the seconds of
    the group's round, since it was last gone on with. A network that diverges has diverged in all
    later rounds, too. A group of chains that was killed in the middle goes on there; with another
    ``at_once`` it begins again.

    Args:
        build: a fresh Flax NNX network from ``nnx.Rngs``.
        data: points and labels.
        chain: how chains run.
        records: their configuration must name all that results depend on.
        seeds: a chain for each; round t uses the key ``fold_in(key(seed), t)``.
        at_once: how many chains are trained together; what is fastest on this device when None.
    """
    check_arguments(data.x, chain.training, chain.penalty)
    require_targets(chain.targets, data.y.shape[1])
    size = fastest_size(len(seeds)) if at_once is None else as_count("at_once", at_once, at_least=1)
    records.keep_configuration()  # before any state: only the same settings go on with one
    table = records["rounds"]
    done = {seed for seed in seeds if _rounds_done(table, [seed]) >= chain.rounds}
    states = records.folder / "checkpoints"
    groups = groups_left(seeds, done, size, lambda group: states / chain.name(group))
    with Bar(
        f"{len(seeds) - len(done)} chains of {chain.rounds} rounds",
        total=len(groups) * chain.rounds * chain.training.steps,
    ) as bar:
        for group in groups:
            yield from _run_group(build, data, chain, records, group, bar)


def _run_group(
    build: Build, data: Classification, chain: Chain, records: Records, seeds: list[int], bar: Bar
) -> Iterator[pd.DataFrame]:
    steps, name = chain.training.steps, chain.name(seeds)
    done = _rounds_done(records["rounds"], seeds)
    bar.advance(done * steps)
    checkpoints = Checkpoints(records.folder / "checkpoints" / name)
    first = jnp.broadcast_to(data.y, (len(seeds), *data.y.shape))
    progress = _begin(
        0,
        begin_fresh(build, data, chain, seeds, 0, first, jnp.zeros(len(seeds), bool)),
        data,
        chain,
    )
    if checkpoints.last is not None:
        progress = checkpoints.restore(progress)
        progress = dataclasses.replace(progress, course=spread_run(progress.course))
        bar.advance((int(progress.round) - done) * steps + int(progress.course.steps_taken))
    x = to_all_devices(data.x, len(seeds))
    while True:
        started, t = time.monotonic(), int(progress.round)
        while not is_over(progress.course, chain.training):
            before = int(progress.course.steps_taken)
            progress = _to_next_measurement(progress, x, data, chain)
            checkpoints.save(t * (steps + 1) + int(progress.course.steps_taken), progress)
            bar.advance(
                int(progress.course.steps_taken) - before,
                f"round {t}, loss {np.mean(progress.course.state.loss):.4g}",
            )
        bar.advance(steps - int(progress.course.steps_taken))
        trained = finish(progress.course, x, chain.training)
        rows = _rows(progress, trained, data, chain, seeds).assign(
            seconds=time.monotonic() - started
        )
        records.put("rounds", with_rows(records["rounds"], rows))
        yield rows
        if t + 1 == chain.rounds:
            checkpoints.close(delete=True)
            return
        learned = next_targets(
            trained.ensemble.outputs(data.x),
            data.y,
            chain.training.loss,
            chain.targets,
            chain.ground_truth_weight,
        )
        course = begin_fresh(build, data, chain, seeds, t + 1, learned, trained.diverged)
        progress = _begin(t + 1, course, data, chain)
        checkpoints.save((t + 1) * (steps + 1), progress)


def _begin(t: int, course: TrainingRun, data: Classification, chain: Chain) -> _Progress:
    measured = measure(as_ensemble(course, chain.training), course.objective.targets, data, chain)
    return _Progress(np.int64(t), course, measured, jnp.zeros(len(measured), int))


def _to_next_measurement(
    progress: _Progress, x: Float[Array, "K ..."], data: Classification, chain: Chain
) -> _Progress:
    """Steps up to the next measurement, and the best of what was measured."""
    course, measured = advance_and_measure(progress.course, x, data, chain)
    better = measured[:, 1] > progress.best[:, 1]
    best = jnp.where(better[:, None], measured, progress.best)
    return _Progress(
        progress.round, course, best, jnp.where(better, course.state.step, progress.best_step)
    )


def _rows(
    progress: _Progress,
    trained: TrainingResult,
    data: Classification,
    chain: Chain,
    seeds: list[int],
) -> pd.DataFrame:
    measured = np.asarray(measure(trained.ensemble, progress.course.objective.targets, data, chain))
    best = np.asarray(progress.best)
    return pd.DataFrame(
        {
            "seed": seeds,
            "round": int(progress.round),
            **{name: measured[:, i] for i, name in enumerate(MEASURED)},
            "best_step": np.asarray(progress.best_step),
            **{f"best_{name}": best[:, i] for i, name in enumerate(MEASURED)},
            "steps": np.asarray(trained.steps),
            "stop": [Stop(int(stop)).name.lower() for stop in trained.stop],
            "stationarity": np.asarray(trained.grad_norm),
        }
    )


def _rounds_done(table: pd.DataFrame, seeds: list[int]) -> int:
    """Rounds that every one of the seeds has behind it."""
    if table.empty:
        return 0
    known = set(table[["seed", "round"]].itertuples(index=False, name=None))
    return next(t for t in itertools.count() if not all((seed, t) in known for seed in seeds))
