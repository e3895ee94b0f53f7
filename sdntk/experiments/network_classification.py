"""Self-distillation of network classifiers, recorded: every round of every seed against the
original labels.

The networks' side of :mod:`sdntk.experiments.kernel_classification`. Rows are written as rounds
end, states as networks train, so that a run killed at any moment resumes in the middle of a round
and ends with the same records.
"""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Int

from sdntk.experiments.data import Split
from sdntk.experiments.network_runs import (
    Group,
    Measurements,
    NetworkChainSpec,
    RoundState,
    measure,
    unfinished_groups,
)
from sdntk.experiments.records import Records, with_rows
from sdntk.experiments.tables import Columns
from sdntk.training.adapters import Build
from sdntk.training.course import TrainingResult, finish
from sdntk.training.rounds import next_targets, require_targets
from sdntk.training.state import Stop, TrainingRun
from sdntk.training.train import check_arguments

#: Columns of the table ``rounds``.
COLUMNS: Columns = {
    **dict.fromkeys(["seed", "round"], int),
    **dict.fromkeys(Measurements._fields, float),
    "best_step": int,
    **{f"best_{name}": float for name in Measurements._fields},
    "steps": int,
    "stop": str,
    **dict.fromkeys(["stationarity", "seconds"], float),
}


class _Best(NamedTuple):
    """What each network was at the measured step with the highest test accuracy."""

    measurements: Measurements
    step: Int[Array, " s"]


def run(
    build: Build,
    split: Split[Array],
    spec: NetworkChainSpec,
    records: Records,
    *,
    seeds: Sequence[int],
    at_once: int | None = None,
    setting: Mapping[str, float] | None = None,
) -> Iterator[pd.DataFrame]:
    """Run the chains that the records lack, and yield the rows of each round that ends.

    The table ``rounds`` then has a row for each seed and round: train_accuracy and test_accuracy
    against the original labels, train_loss and test_loss against their one-hot vectors, given_loss
    against what round 0 learnt, target_loss against the round's own targets, all at its end, and
    with ``best_`` before the name at its best step, the measured one with the highest test accuracy
    (it is chosen by the test points, so it flatters); steps, stop, stationarity, and the seconds of
    the group's round since it was last resumed. A network that diverges has diverged in all later
    rounds, too. A group of chains that was killed in the middle is resumed there; with another
    ``at_once`` it starts again.

    Args:
        build: a fresh Flax NNX network from ``nnx.Rngs``.
        split: points and labels.
        spec: how chains run.
        records: their configuration must name all that results depend on.
        seeds: a chain for each; round t uses the key ``fold_in(key(seed), t)``.
        at_once: how many chains are trained together; what is fastest on this device when None.
        setting: what tells these chains from others in the same records: columns by name, the
            table's first.

    Raises:
        ValueError: settings out of their range; the folder holds states of other work.
    """
    check_arguments(split.x_train, spec.training, spec.penalty)
    require_targets(spec.targets, split.num_classes)
    # Before any state: only a run of the same configuration may resume from one.
    records.keep_configuration()
    setting = setting or {}
    table = records.read("rounds", columns_with(setting, COLUMNS))
    records.put("rounds", table)  # where it is whole, its CSV may not be
    own = rows_with(table, setting)
    finished = {seed for seed in seeds if _rounds_done(own, seed) >= spec.rounds}
    groups = unfinished_groups(
        build,
        split,
        spec,
        records.folder / "checkpoints",
        seeds,
        finished=finished,
        at_once=at_once,
        rounds=spec.rounds,
        description=f"{len(seeds) - len(finished)} chains of {spec.rounds} rounds",
        suffix="".join(f"_{value:g}" for value in setting.values()),
    )
    for group in groups:
        yield from _run_chains(group, records, setting)


def columns_with(setting: Mapping[str, float], columns: Columns) -> Columns:
    """The columns of a table whose rows are told apart by a setting, too."""
    return {**dict.fromkeys(setting, float), **columns}


def rows_with(table: pd.DataFrame, setting: Mapping[str, float]) -> pd.DataFrame:
    """The rows of one setting."""
    for name, value in setting.items():
        table = table[table[name] == value]
    return table


def _run_chains(
    group: Group, records: Records, setting: Mapping[str, float]
) -> Iterator[pd.DataFrame]:
    """All rounds of one group that are not done yet."""
    spec = group.spec
    state = group.resume(_start_round(group, 0, group.first_run(0)))
    group.bar.advance(int(state.round) * spec.training.steps + int(state.training_run.steps_taken))
    for t in range(int(state.round), spec.rounds):
        started = time.monotonic()
        state = group.finish_round(state, _better)
        trained = finish(state.training_run, group.points, spec.training)
        rows = _rows(group, state, trained).assign(seconds=time.monotonic() - started)
        rows = rows.assign(**setting)[[*columns_with(setting, COLUMNS)]]
        table = records.read("rounds", columns_with(setting, COLUMNS))
        records.put("rounds", with_rows(table, rows, by=[*setting, "seed", "round"]))
        yield rows
        if t + 1 < spec.rounds:
            state = _start_round(group, t + 1, _next_run(group, t + 1, trained))
            group.checkpoints.save_if_due(state)


def _start_round(group: Group, t: int, run: TrainingRun) -> RoundState[_Best]:
    measurements = group.measure(run)
    steps = jnp.zeros(len(group.seeds), int)
    return RoundState(np.int64(t), run, _Best(measurements, steps))


def _next_run(group: Group, t: int, trained: TrainingResult) -> TrainingRun:
    """Fresh networks that learn what those of the round before predict."""
    spec = group.spec
    targets = next_targets(
        trained.ensemble.outputs(group.split.x_train),
        group.split.y,
        spec.training.loss,
        spec.targets,
        spec.ground_truth_weight,
    )
    return group.fresh_run(t, targets, trained.diverged)


def _better(best: _Best, measurements: Measurements, steps: Int[Array, " s"]) -> _Best:
    """Of each network, the better of two measured steps."""
    is_better = measurements.test_accuracy > best.measurements.test_accuracy
    return jax.tree.map(
        lambda now, before: jnp.where(is_better, now, before), _Best(measurements, steps), best
    )


def _rows(group: Group, state: RoundState[_Best], trained: TrainingResult) -> pd.DataFrame:
    """A row for each network at the end of a round."""
    targets = state.training_run.objective.targets
    at_end = measure(trained.ensemble, targets, group.split, group.spec.training)
    best = state.observed
    columns = {
        "seed": group.seeds,
        "round": int(state.round),
        **_columns(at_end),
        "best_step": np.asarray(best.step),
        **_columns(best.measurements, prefix="best_"),
        "steps": np.asarray(trained.steps),
        "stop": [Stop(int(stop)).name.lower() for stop in trained.stop],
        "stationarity": np.asarray(trained.grad_norm),
    }
    return pd.DataFrame(columns)


def _columns(measurements: Measurements, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: np.asarray(values) for name, values in measurements._asdict().items()}


def _rounds_done(table: pd.DataFrame, seed: int) -> int:
    """How many rounds of a seed, from the first, the table holds."""
    rounds = set(table.loc[table["seed"] == seed, "round"])
    return next(t for t in itertools.count() if t not in rounds)
