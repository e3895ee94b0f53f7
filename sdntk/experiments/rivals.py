"""What else the trainings of a chain would buy: one network, its steps and weight decay chosen, or
the mean of as many networks.

Both learn the given labels only. States are written as networks train, so that a run killed at any
moment resumes where it was.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int

from sdntk.experiments.data import Split
from sdntk.experiments.network_classification import rows_with
from sdntk.experiments.network_runs import (
    Group,
    Measurements,
    NetworkChainSpec,
    RoundState,
    unfinished_groups,
)
from sdntk.experiments.records import Records, with_rows
from sdntk.experiments.tables import Columns
from sdntk.training.adapters import Build
from sdntk.training.course import as_ensemble
from sdntk.training.losses import predictions

_WHICH: Columns = {"weight_decay": float, "seed": int}
#: Columns of the table ``single_networks``.
SINGLE: Columns = {**_WHICH, "step": int, **dict.fromkeys(Measurements._fields, float)}
#: Columns of the table ``ensembles``.
ENSEMBLE: Columns = {
    **_WHICH,
    "networks": int,
    **dict.fromkeys(["train_accuracy", "held_out_accuracy", "test_accuracy"], float),
}
#: From here on the keys of an ensemble's networks are folded: no round's number is as large.
FIRST_MEMBER = 2**20


def train_single(
    build: Build,
    split: Split[Array],
    spec: NetworkChainSpec,
    records: Records,
    *,
    seed: int,
    weight_decay: float,
) -> None:
    """Train one network, round 0 of a chain with this seed, and write a row of the table
    ``single_networks`` for each look at it.

    Args:
        build: a fresh Flax NNX network from ``nnx.Rngs``.
        split: points and labels, the chain's.
        spec: the chain's; the network is looked at every ``measure_every`` steps.
        records: the chain's.
        seed: of the chain.
        weight_decay: what ``spec`` trains with, for the table.
    """
    which = {"weight_decay": weight_decay, "seed": seed}
    table = records.read("single_networks", SINGLE)
    steps = [*range(spec.measure_every, spec.training.steps, spec.measure_every)]
    steps.append(spec.training.steps)
    done = rows_with(table, which)["step"].tolist() == steps
    for group in _groups(build, split, spec, records, which, done, rounds=1, name="single"):
        looked = _look_at_every_step(group, len(steps))
        measured = {name: np.asarray(values) for name, values in looked._asdict().items()}
        rows = pd.DataFrame({**which, "step": steps, **measured})
        table = with_rows(table, rows, by=["weight_decay", "seed", "step"])
    records.put("single_networks", table)


def _look_at_every_step(group: Group, looks: int) -> Measurements:
    """The measurements of one network at every look, shape (looks,) each."""

    def observe(seen: Measurements, now: Measurements, step: Int[Array, " s"]) -> Measurements:
        look = (step[0] - 1) // group.spec.measure_every
        return jax.tree.map(lambda all_, new: all_.at[look].set(new[0]), seen, now)

    unknown = jnp.full(looks, jnp.nan, group.points.dtype)
    first = RoundState(
        np.int64(0), group.first_run(0), Measurements(*[unknown] * len(Measurements._fields))
    )
    return group.finish_round(group.resume(first), observe).observed


def train_ensemble(
    build: Build,
    split: Split[Array],
    spec: NetworkChainSpec,
    records: Records,
    *,
    seed: int,
    weight_decay: float,
) -> None:
    """Train as many networks as a chain has rounds, and write a row of the table ``ensembles`` for
    each number of them: accuracies of the mean of what they predict.

    Arguments are those of :func:`train_single`.
    """
    which = {"weight_decay": weight_decay, "seed": seed}
    table = records.read("ensembles", ENSEMBLE)
    done = len(rows_with(table, which)) == spec.rounds
    groups = _groups(build, split, spec, records, which, done, rounds=spec.rounds, name="ensemble")
    for group in groups:
        rows = pd.DataFrame(_train_members(group)).assign(**which)[[*ENSEMBLE]]
        table = with_rows(table, rows, by=["weight_decay", "seed", "networks"])
    records.put("ensembles", table)


def _train_members(group: Group) -> list[dict[str, float | int]]:
    """Accuracies of the mean of 1, 2, .. networks."""
    split, members = group.split, group.spec.rounds
    points = [split.x_train, split.x_held_out, split.x_test]
    labels = [split.clean_labels, split.held_out_labels, split.test_labels]
    nothing = [jnp.zeros((len(x), split.num_classes), jnp.float32) for x in points]
    accuracies = jnp.full((members, len(points)), jnp.nan, jnp.float32)
    state = group.resume(
        RoundState(np.int64(0), group.first_run(FIRST_MEMBER), (nothing, accuracies))
    )
    for member in range(int(state.round), members):
        state = group.finish_round(state, lambda observed, *_: observed)
        trained = as_ensemble(state.training_run, group.spec.training)
        sums, accuracies = state.observed
        sums = [
            total + predictions(group.spec.training.loss, trained.outputs(x)[0])
            for total, x in zip(sums, points, strict=True)
        ]
        row = jnp.stack([_accuracy(*both) for both in zip(sums, labels, strict=True)])
        accuracies = accuracies.at[member].set(row)
        if member + 1 < members:
            run = group.first_run(FIRST_MEMBER + member + 1)
            state = RoundState(np.int64(member + 1), run, (sums, accuracies))
            group.checkpoints.save_if_due(state)
    names = ("train_accuracy", "held_out_accuracy", "test_accuracy")
    return [
        {"networks": member + 1, **dict(zip(names, row, strict=True))}
        for member, row in enumerate(np.asarray(accuracies).tolist())
    ]


def _accuracy(outputs: Float[Array, "n Q"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    return jnp.mean(jnp.argmax(outputs, -1) == labels, dtype=jnp.float32)


def _groups(
    build: Build,
    split: Split[Array],
    spec: NetworkChainSpec,
    records: Records,
    which: Mapping[str, float],
    done: bool,
    *,
    rounds: int,
    name: str,
) -> Iterator[Group]:
    seed = int(which["seed"])
    return unfinished_groups(
        build,
        split,
        spec,
        records.folder / "checkpoints",
        [seed],
        finished={seed} if done else set(),
        at_once=1,
        rounds=rounds,
        description=name,
        suffix=f"_{name}_{which['weight_decay']:g}",
    )
