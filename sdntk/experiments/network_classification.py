"""Self-distillation of network classifiers, recorded: every round of every seed against the
original labels.

The networks' side of :mod:`sdntk.experiments.kernel_classification`. Rows are written as rounds
end, states as networks train, so that a
run killed at any moment goes on in the middle of a round and ends with the same records.
"""

import dataclasses
import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float, Int

from sdntk._arguments import as_count, as_unit_interval
from sdntk._progress import Bar
from sdntk._pytrees import register
from sdntk.experiments.checkpoints import Checkpoints
from sdntk.experiments.records import Records
from sdntk.training.course import Trained, advance, as_ensemble, begin, end, fresh, is_over
from sdntk.training.ensemble import Build, Ensemble, fastest_size, spread, to_all_devices
from sdntk.training.rounds import next_targets, require_targets
from sdntk.training.state import Course, Stop, Training
from sdntk.training.train import check_arguments

#: Settings of a training that are functions, of which nothing says whether they are the same.
_NAMELESS = ("loss", "optimiser", "augment")
#: What is measured of a network: see :func:`run`.
MEASURED = (
    "train_accuracy",
    "test_accuracy",
    "train_loss",
    "test_loss",
    "given_loss",
    "target_loss",
)


@dataclasses.dataclass(frozen=True)
class Classification:
    """Data with the labels to learn in round 0, which may be noisy, and the original ones, by which
    all is judged.

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
    """How a chain runs: see :func:`sdntk.distill_networks`; networks are measured every
    ``measure_every`` steps.
    """

    training: Training
    rounds: Any
    targets: Any = "soft"
    ground_truth_weight: Any = 0.0
    penalty: Any = 0.0
    measure_every: Any = 100

    def __post_init__(self) -> None:
        for name in ("rounds", "measure_every"):
            as_count(name, getattr(self, name), at_least=1)
        as_unit_interval(
            "ground_truth_weight", self.ground_truth_weight, dtype=jnp.result_type(float)
        )
        require_targets(self.targets, num_outputs=2)

    def name(self, seeds: Sequence[int]) -> str:
        """Of the folder of a group's states: another one for other settings (functions have no
        names).
        """
        named = [
            field.name for field in dataclasses.fields(Training) if field.name not in _NAMELESS
        ]
        settings = [
            [getattr(self.training, name) for name in named],
            self.targets,
            self.measure_every,
            list(seeds),
        ]
        numbers = [float(self.ground_truth_weight), float(self.penalty)]
        return hashlib.sha256(repr([settings, numbers]).encode()).hexdigest()[:16]


@register
class _Progress:
    """A round in the making: the networks, and the best that they have been."""

    round: Any  # t, an integer
    course: Course
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


def groups_left(
    seeds: Sequence[int], done: set[int], size: int, states: Callable[[list[int]], Path]
) -> list[list[int]]:
    """The seeds that are not done, ``size`` at a time.

    States of groups that are done go: a run may have been killed between the last row of a group
    and the end of its states.
    """

    def groups(some: list[int]) -> list[list[int]]:
        return [some[start : start + size] for start in range(0, len(some), size)]

    for group in groups([seed for seed in seeds if seed in done]):
        shutil.rmtree(states(group), ignore_errors=True)
    return groups([seed for seed in seeds if seed not in done])


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
        progress = _on_devices(checkpoints.restore(progress))
        bar.advance((int(progress.round) - done) * steps + int(progress.course.taken))
    x = to_all_devices(data.x, len(seeds))
    while True:
        started, t = time.monotonic(), int(progress.round)
        while not is_over(progress.course, chain.training):
            before = int(progress.course.taken)
            progress = _to_next_measurement(progress, x, data, chain)
            checkpoints.save(t * (steps + 1) + int(progress.course.taken), progress)
            bar.advance(
                int(progress.course.taken) - before,
                f"round {t}, loss {np.mean(progress.course.moving.loss):.4g}",
            )
        bar.advance(steps - int(progress.course.taken))
        trained = end(progress.course, x, chain.training)
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
        course = begin_fresh(
            build, data, chain, seeds, t + 1, learned, trained.stop == Stop.DIVERGED
        )
        progress = _begin(t + 1, course, data, chain)
        checkpoints.save((t + 1) * (steps + 1), progress)


def _begin(t: int, course: Course, data: Classification, chain: Chain) -> _Progress:
    measured = measure(as_ensemble(course, chain.training), course.fixed.targets, data, chain)
    return _Progress(np.int64(t), course, measured, jnp.zeros(len(measured), int))


def begin_fresh(
    build: Build,
    data: Classification,
    chain: Chain,
    seeds: list[int],
    fold: int,
    targets: Float[Array, "s K Q"],
    diverged: Bool[Array, " s"],
) -> Course:
    """The course of fresh networks with the keys ``fold_in(key(seed), fold)``."""
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), fold) for seed in seeds])
    networks, order = fresh(build, keys, chain.training)
    penalty = jnp.asarray(chain.penalty, data.x.dtype)
    return begin(
        networks,
        order,
        to_all_devices(data.x, len(seeds)),
        targets,
        chain.training,
        penalty,
        diverged,
    )


def _on_devices(progress: _Progress) -> _Progress:
    """A state from the disk, spread over the devices as it was."""
    return dataclasses.replace(progress, course=spread_again(progress.course))


def spread_again(course: Course) -> Course:
    """A course from the disk, spread over the devices as it was."""
    return dataclasses.replace(course, moving=spread(course.moving), fixed=spread(course.fixed))


def _to_next_measurement(
    progress: _Progress, x: Float[Array, "K ..."], data: Classification, chain: Chain
) -> _Progress:
    """Steps up to the next measurement, and the best of what was measured."""
    course, measured = advance_and_measure(progress.course, x, data, chain)
    better = measured[:, 1] > progress.best[:, 1]
    best = jnp.where(better[:, None], measured, progress.best)
    return _Progress(
        progress.round, course, best, jnp.where(better, course.moving.steps, progress.best_step)
    )


def advance_and_measure(
    course: Course, x: Float[Array, "K ..."], data: Classification, chain: Chain
) -> tuple[Course, Float[Array, "s m"]]:
    """Steps up to the next multiple of ``measure_every`` or the end, and what the networks are
    then.
    """
    training = chain.training
    until = (int(course.taken) // chain.measure_every + 1) * chain.measure_every
    while not is_over(course, training) and course.taken < until:
        course = advance(course, x, training, until=until)
    return course, measure(as_ensemble(course, training), course.fixed.targets, data, chain)


def measure(
    ensemble: Ensemble, targets: Float[Array, "s K Q"], data: Classification, chain: Chain
) -> Float[Array, "s m"]:
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
            jnp.mean(
                loss(outputs, jnp.broadcast_to(data.y.astype(outputs.dtype), outputs.shape)), -1
            ),
            jnp.mean(loss(outputs, targets), -1),
        ],
        axis=1,
    ).astype(data.x.dtype)


def _rows(
    progress: _Progress, trained: Trained, data: Classification, chain: Chain, seeds: list[int]
) -> pd.DataFrame:
    measured = np.asarray(measure(trained.ensemble, progress.course.fixed.targets, data, chain))
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
            "stationarity": np.asarray(trained.stationarity),
        }
    )


def _rounds_done(table: pd.DataFrame, seeds: list[int]) -> int:
    """Rounds that every one of the seeds has behind it."""
    if table.empty:
        return 0
    known = set(table[["seed", "round"]].itertuples(index=False, name=None))
    return next(t for t in itertools.count() if not all((seed, t) in known for seed in seeds))


def with_rows(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The table with these rows in place of any of the same seed and round: the last round may have
    been run again.
    """
    joined = rows if table.empty else pd.concat([table, rows])
    return joined.drop_duplicates(["seed", "round"], keep="last").sort_values(
        ["seed", "round"], ignore_index=True
    )
