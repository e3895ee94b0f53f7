"""Early stopping beside self-distillation: does one network, stopped where a round's loss is
reached, do as well?

Round t of a chain ends with some loss against the labels that round 0 was given, larger than round
0's. A fresh network that is trained on those labels passes this loss on its way down; what it is
there, stopped early, stands beside the round (Mobahi et al. 2020, section 5 and Fig. 6, left). One
training of each seed serves all rounds: until a loss is reached nothing tells a network that is to
stop there from one that is to go on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

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
    with_rows,
)
from sdntk.experiments.records import Records
from sdntk.training.course import is_over, spread_run
from sdntk.training.ensemble import Build, fastest_size, to_all_devices
from sdntk.training.state import Stop, TrainingRun

#: In place of a round's number, for the key of the network that is stopped early.
_FRESH = 2**31 - 1


@register
class _Progress:
    course: TrainingRun
    reached: Float[
        Array, "s T m"
    ]  # the step, then MEASURED, where each round's loss was first reached; nan before


def run(
    build: Build,
    data: Classification,
    chain: Chain,
    records: Records,
    *,
    seeds: Sequence[int],
    at_once: int | None = None,
) -> None:
    """Train a fresh network for each seed and write the table ``early_stopping``.

    It has a row for each seed and round of the table ``rounds``: ``level``, the round's given_loss;
    ``step``, the first measured step at which the fresh network's given_loss is at most that;
    accuracies and losses there. They are nan where the level was not reached, and the level itself
    where the round diverged. A run that was killed goes on where it was; with another ``at_once``
    the group that it was at begins again.

    Args:
        build: a fresh Flax NNX network from ``nnx.Rngs``.
        data: points and labels, the chain's.
        chain: the chain whose rounds the records hold; networks are measured every
            ``measure_every`` steps.
        records: the chain's, all of its rounds done.
        seeds: of the chain.
        at_once: how many networks are trained together; what is fastest on this device when None.

    Raises:
        ValueError: the records lack rounds of these seeds.

    Source: Mobahi et al. 2020, section 5.
    """
    levels = dict(zip(seeds, _levels(records, seeds, chain.rounds), strict=True))
    size = fastest_size(len(seeds)) if at_once is None else as_count("at_once", at_once, at_least=1)
    done = set(seeds) & set(records["early_stopping"].get("seed", ()))

    def states(group: list[int]) -> Path:
        return records.folder / "checkpoints" / f"{chain.name(group)}_early_stopping"

    groups = groups_left(seeds, done, size, states)
    with Bar(
        f"{len(seeds) - len(done)} networks, stopped early",
        total=len(groups) * chain.training.steps,
    ) as bar:
        for group in groups:
            checkpoints, of_group = (
                Checkpoints(states(group)),
                np.stack([levels[seed] for seed in group]),
            )
            reached = _train(build, data, chain, checkpoints, group, of_group, bar)
            rows = _rows(group, of_group, np.asarray(reached))
            records.put("early_stopping", with_rows(records["early_stopping"], rows))
            checkpoints.close(delete=True)


def _levels(records: Records, seeds: Sequence[int], rounds: int) -> Float[np.ndarray, "S T"]:
    table, wanted = records["rounds"], pd.MultiIndex.from_product([seeds, range(rounds)])
    table = table if table.empty else table.set_index(["seed", "round"])
    if not wanted.isin(table.index).all():
        raise ValueError(f"records must hold {rounds} rounds of each of the seeds {list(seeds)}.")
    found = table.loc[wanted]
    levels = found["given_loss"].where(found["stop"] != Stop.DIVERGED.name.lower())
    return levels.to_numpy().reshape(len(seeds), rounds)


def _train(
    build: Build,
    data: Classification,
    chain: Chain,
    checkpoints: Checkpoints,
    seeds: list[int],
    levels: Float[np.ndarray, "s T"],
    bar: Bar,
) -> Float[Array, "s T m"]:
    training = chain.training
    targets = jnp.broadcast_to(data.y, (len(seeds), *data.y.shape))
    course = begin_fresh(build, data, chain, seeds, _FRESH, targets, jnp.zeros(len(seeds), bool))
    progress = _Progress(
        course, jnp.full((*levels.shape, 1 + len(MEASURED)), jnp.nan, data.x.dtype)
    )
    if checkpoints.last is not None:
        progress = checkpoints.restore(progress)
        progress = _Progress(spread_run(progress.course), progress.reached)
        bar.advance(int(progress.course.steps_taken))
    x = to_all_devices(data.x, len(seeds))
    asked = jnp.isfinite(jnp.asarray(levels))
    while not is_over(progress.course, training) and bool(
        (asked & jnp.isnan(progress.reached[..., 0])).any()
    ):
        before = int(progress.course.steps_taken)
        course, measured = advance_and_measure(progress.course, x, data, chain)
        progress = _Progress(
            course,
            _first_reached(progress.reached, measured, course.state.step, jnp.asarray(levels)),
        )
        checkpoints.save(int(course.steps_taken), progress)
        bar.advance(int(course.steps_taken) - before, f"loss {np.mean(course.state.loss):.4g}")
    bar.advance(training.steps - int(progress.course.steps_taken))
    return progress.reached


def _first_reached(
    reached: Float[Array, "s T m"],
    measured: Float[Array, "s m2"],
    steps: Array,
    levels: Float[Array, "s T"],
) -> Float[Array, "s T m"]:
    given = measured[:, MEASURED.index("given_loss")]
    now = jnp.isnan(reached[..., 0]) & (given[:, None] <= levels)
    row = jnp.concatenate([steps[:, None].astype(measured.dtype), measured], axis=1)
    return jnp.where(now[..., None], row[:, None], reached)


def _rows(seeds: list[int], levels: np.ndarray, reached: np.ndarray) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {
            "seed": seed,
            "round": t,
            "level": levels[s, t],
            **dict(zip(("step", *MEASURED), reached[s, t], strict=True)),
        }
        for s, seed in enumerate(seeds)
        for t in range(levels.shape[1])
    ]
    return pd.DataFrame(rows)
