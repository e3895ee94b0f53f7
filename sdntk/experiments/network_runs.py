"""What all experiments with networks share: how a chain runs, and groups of networks that train
and are measured.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
from jaxtyping import Array, Bool, Float

from sdntk._arguments import as_count, as_unit_interval
from sdntk.experiments.data import Classification
from sdntk.training.course import advance, as_ensemble, init
from sdntk.training.ensemble import Build, Ensemble
from sdntk.training.rounds import require_targets
from sdntk.training.state import TrainingConfig, TrainingRun

#: Settings of a training that are functions, of which nothing says whether they are the same.
_NAMELESS = ("loss", "optimiser", "augment")
#: What is measured of a network: see :func:`sdntk.experiments.network_classification.run`.
MEASURED = (
    "train_accuracy",
    "test_accuracy",
    "train_loss",
    "test_loss",
    "given_loss",
    "target_loss",
)


@dataclasses.dataclass(frozen=True)
class Chain:
    """How a chain runs: see :func:`sdntk.distill_networks`; networks are measured every
    ``measure_every`` steps.
    """

    training: TrainingConfig
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
            field.name
            for field in dataclasses.fields(TrainingConfig)
            if field.name not in _NAMELESS
        ]
        settings = [
            [getattr(self.training, name) for name in named],
            self.targets,
            self.measure_every,
            list(seeds),
        ]
        numbers = [float(self.ground_truth_weight), float(self.penalty)]
        return hashlib.sha256(repr([settings, numbers]).encode()).hexdigest()[:16]


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


def begin_fresh(
    build: Build,
    data: Classification,
    chain: Chain,
    seeds: list[int],
    fold: int,
    targets: Float[Array, "s K Q"],
    diverged: Bool[Array, " s"],
) -> TrainingRun:
    """The course of fresh networks with the keys ``fold_in(key(seed), fold)``."""
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), fold) for seed in seeds])
    penalty = jnp.asarray(chain.penalty, data.x.dtype)
    return init(build, keys, data.x, targets, chain.training, penalty, diverged)


def advance_and_measure(
    course: TrainingRun, x: Float[Array, "K ..."], data: Classification, chain: Chain
) -> tuple[TrainingRun, Float[Array, "s m"]]:
    """Steps up to the next multiple of ``measure_every`` or the end, and what the networks are
    then.
    """
    training = chain.training
    course = advance(course, x, training, every=chain.measure_every)
    return course, measure(as_ensemble(course, training), course.objective.targets, data, chain)


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


def with_rows(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The table with these rows in place of any of the same seed and round: the last round may have
    been run again.
    """
    joined = rows if table.empty else pd.concat([table, rows])
    return joined.drop_duplicates(["seed", "round"], keep="last").sort_values(
        ["seed", "round"], ignore_index=True
    )
