"""Early stopping beside self-distillation: does one network, stopped where a round's loss is
reached, do as well?

Round t of a chain ends with some loss against the labels that round 0 was given, larger than round
0's. A fresh network that is trained on those labels passes this loss on its way down; what it is
there, stopped early, stands beside the round (Mobahi et al. 2020, section 5 and Fig. 6, left). One
training of each seed serves all rounds: until a loss is reached, a network that is to stop there is
the same as one that is trained further.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int

from sdntk.experiments import network_classification
from sdntk.experiments.data import Split
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
from sdntk.training.state import Stop

#: In place of a round's number, for the key of the network that is stopped early.
_FRESH = 2**31 - 1


#: Columns of the table ``early_stopping``.
COLUMNS: Columns = {
    **dict.fromkeys(["seed", "round"], int),
    **dict.fromkeys(["level", "step", *Measurements._fields], float),
}


class _Reached(NamedTuple):
    """When each of s networks first had each of T losses, and what it was then; nan before."""

    step: Float[Array, "s T"]
    measurements: Measurements  # shape (s, T) each


def run(
    build: Build,
    split: Split[Array],
    spec: NetworkChainSpec,
    records: Records,
    *,
    seeds: Sequence[int],
    at_once: int | None = None,
) -> None:
    """Train a fresh network for each seed and write the table ``early_stopping``.

    It has a row for each seed and round of the table ``rounds``: ``level``, the round's given_loss;
    ``step``, the first measured step at which the fresh network's given_loss is at most that;
    accuracies and losses there. They are nan where the level was not reached, and the level itself
    where the round diverged. A run that was killed is resumed where it was; with another
    ``at_once`` the group that it was at starts again.

    Args:
        build: a fresh Flax NNX network from ``nnx.Rngs``.
        split: points and labels, the chain's.
        spec: of the chain whose rounds the records hold; networks are measured every
            ``measure_every`` steps.
        records: the chain's, all of its rounds done.
        seeds: of the chain.
        at_once: how many networks are trained together; what is fastest on this device when None.

    Raises:
        ValueError: the records lack rounds of these seeds; the folder holds states of other work.

    Source: Mobahi et al. 2020, section 5.
    """
    levels = dict(zip(seeds, _levels(records, seeds, spec.rounds), strict=True))
    table = records.read("early_stopping", COLUMNS)
    records.put("early_stopping", table)  # where it is whole, its CSV may not be
    done = table.groupby("seed")["round"].nunique()
    finished = {seed for seed in seeds if done.get(seed, 0) >= spec.rounds}
    groups = unfinished_groups(
        build,
        split,
        spec,
        records.folder / "checkpoints",
        seeds,
        finished=finished,
        at_once=at_once,
        rounds=1,
        description=f"{len(seeds) - len(finished)} networks, stopped early",
        suffix="_early_stopping",
    )
    for group in groups:
        of_group = np.stack([levels[seed] for seed in group.seeds])
        rows = _rows(group.seeds, of_group, _train(group, jnp.asarray(of_group)))
        table = with_rows(table, rows, by=["seed", "round"])
        records.put("early_stopping", table)


def _levels(records: Records, seeds: Sequence[int], rounds: int) -> Float[np.ndarray, "S T"]:
    """The loss against the given labels at the end of every round; nan where it diverged."""
    rows = records.read("rounds", network_classification.COLUMNS)
    table = rows.set_index(["seed", "round"])
    wanted = pd.MultiIndex.from_product([seeds, range(rounds)])
    if not wanted.isin(table.index).all():
        raise ValueError(f"records must hold {rounds} rounds of each of the seeds {list(seeds)}.")
    chosen = table.loc[wanted]
    levels = chosen["given_loss"].where(chosen["stop"] != Stop.DIVERGED.name.lower())
    return levels.to_numpy().reshape(len(seeds), rounds)


def _train(group: Group, levels: Float[Array, "s T"]) -> _Reached:
    """Train a group until every level is reached, or all steps are taken."""
    has_level = jnp.isfinite(levels)
    nowhere = jnp.full(levels.shape, jnp.nan, group.points.dtype)
    nothing = Measurements(*[nowhere] * len(Measurements._fields))

    def observe(reached: _Reached, measurements: Measurements, steps: Int[Array, " s"]) -> _Reached:
        is_there = measurements.given_loss[:, None] <= levels
        is_first = jnp.isnan(reached.step) & is_there
        now = _Reached(steps.astype(nowhere.dtype), measurements)
        return jax.tree.map(lambda new, old: jnp.where(is_first, new[:, None], old), now, reached)

    def all_reached(reached: _Reached) -> bool:
        return not bool((has_level & jnp.isnan(reached.step)).any())

    first = RoundState(np.int64(0), group.first_run(_FRESH), _Reached(nowhere, nothing))
    state = group.resume(first)
    group.bar.advance(int(state.training_run.steps_taken))
    return group.finish_round(state, observe, is_done=all_reached).observed


def _rows(seeds: list[int], levels: Float[np.ndarray, "s T"], reached: _Reached) -> pd.DataFrame:
    """A row for each network and round."""
    rounds = levels.shape[1]
    columns = {
        "seed": np.repeat(seeds, rounds),
        "round": np.tile(np.arange(rounds), len(seeds)),
        "level": levels.ravel(),
        "step": np.ravel(reached.step),
    }
    measured = {name: np.ravel(values) for name, values in reached.measurements._asdict().items()}
    return pd.DataFrame(columns | measured)
