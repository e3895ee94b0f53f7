"""Early stopping beside self-distillation: does one network, stopped where a round's loss is reached, do as well?

Round t of a chain ends with some loss against the labels that round 0 was given, larger than round 0's. A fresh network that
is trained on those labels passes this loss on its way down; what it is there, stopped early, stands beside the round
(Mobahi et al. 2020, section 5 and Fig. 6, left). One training of each seed serves all rounds: until a loss is reached
nothing tells a network that is to stop there from one that is to go on.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from sdntk._progress import Bar
from sdntk.checkpoints import Checkpoints
from sdntk.ensemble import Build
from sdntk.kernels._base import register
from sdntk.network_classification import MEASURED, Chain, Classification, advance_and_measure, spread_again
from sdntk.records import Records
from sdntk.training import Course, begin, fastest_size, fresh, is_over, to_all_devices

#: In place of a round's number, for the key of the network that is stopped early.
_FRESH = 2**31 - 1


@register
class _Progress:
    course: Course
    reached: Float[Array, "s T m"]  # the step, then MEASURED, where each round's loss was first reached; nan before


def run(
    build: Build, data: Classification, chain: Chain, records: Records, *, seeds: Sequence[int], at_once: int | None = None
) -> None:
    """Train a fresh network for each seed and write the table ``early_stopping``.

    It has a row for each seed and round of the table ``rounds``: ``level``, the round's given_loss; ``step``, the first
    measured step at which the fresh network's given_loss is at most that; accuracies and losses there. They are nan where
    the level was not reached. A run that was killed goes on where it was.

    Args:
        build: a fresh Flax NNX network from ``nnx.Rngs``.
        data: points and labels, the chain's.
        chain: the chain whose rounds the records hold; networks are measured every ``measure_every`` steps.
        records: the chain's, all of its rounds done.
        seeds: of the chain.
        at_once: how many networks are trained together; what is fastest on this device when None.

    Raises:
        ValueError: the records lack rounds of these seeds.

    Source: Mobahi et al. 2020, section 5.
    """
    levels = _levels(records, seeds, chain.rounds)
    size = fastest_size(len(seeds)) if at_once is None else at_once
    with Bar(f"{len(seeds)} networks, stopped early", total=-(-len(seeds) // size) * chain.training.steps) as bar:
        for start in range(0, len(seeds), size):
            group = list(seeds[start : start + size])
            if set(group) <= set(records["early_stopping"].get("seed", ())):
                bar.advance(chain.training.steps)
                continue
            reached = _train(build, data, chain, records, group, levels[start : start + size], bar)
            rows = _rows(group, levels[start : start + size], np.asarray(reached))
            records.put("early_stopping", pd.concat([records["early_stopping"], rows], ignore_index=True))


def _levels(records: Records, seeds: Sequence[int], rounds: int) -> Float[np.ndarray, "S T"]:
    table = records["rounds"]
    if not table.empty:
        table = table.pivot(index="seed", columns="round", values="given_loss").reindex(list(seeds), columns=range(rounds))
    if table.empty or not np.isfinite(table.to_numpy()).all():
        raise ValueError(f"records must hold {rounds} rounds of each of the seeds {list(seeds)}, none of them diverged.")
    return table.to_numpy()


def _train(
    build: Build, data: Classification, chain: Chain, records: Records, seeds: list[int], levels: np.ndarray, bar: Bar
) -> Float[Array, "s T m"]:
    training = chain.training
    checkpoints = Checkpoints(records.folder / "checkpoints" / f"{chain.name(seeds)}_early_stopping")
    progress = _begin(build, data, chain, seeds, levels)
    if checkpoints.last is not None:
        progress = checkpoints.restore(progress)
        progress = _Progress(spread_again(progress.course), progress.reached)
        bar.advance(int(progress.course.taken))
    x = to_all_devices(data.x, len(seeds))
    while not is_over(progress.course, training) and bool(jnp.isnan(progress.reached[..., 0]).any()):
        before = int(progress.course.taken)
        course, measured = advance_and_measure(progress.course, x, data, chain)
        progress = _Progress(course, _first_reached(progress.reached, measured, course.moving.steps, jnp.asarray(levels)))
        checkpoints.save(int(course.taken), progress)
        bar.advance(int(course.taken) - before, f"loss {np.mean(course.moving.loss):.4g}")
    bar.advance(training.steps - int(progress.course.taken))
    checkpoints.close(delete=True)
    return progress.reached


def _begin(build: Build, data: Classification, chain: Chain, seeds: list[int], levels: np.ndarray) -> _Progress:
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), _FRESH) for seed in seeds])
    networks, order = fresh(build, keys, chain.training)
    targets = jnp.broadcast_to(data.y, (len(seeds), *data.y.shape))
    penalty = jnp.asarray(chain.penalty, data.x.dtype)
    x = to_all_devices(data.x, len(seeds))
    course = begin(networks, order, x, targets, chain.training, penalty, jnp.zeros(len(seeds), bool))
    return _Progress(course, jnp.full((*levels.shape, 1 + len(MEASURED)), jnp.nan, data.x.dtype))


def _first_reached(
    reached: Float[Array, "s T m"], measured: Float[Array, "s m2"], steps: Array, levels: Float[Array, "s T"]
) -> Float[Array, "s T m"]:
    given = measured[:, MEASURED.index("given_loss")]
    now = jnp.isnan(reached[..., 0]) & (given[:, None] <= levels)
    row = jnp.concatenate([steps[:, None].astype(measured.dtype), measured], axis=1)
    return jnp.where(now[..., None], row[:, None], reached)


def _rows(seeds: list[int], levels: np.ndarray, reached: np.ndarray) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {"seed": seed, "round": t, "level": levels[s, t], **dict(zip(("step", *MEASURED), reached[s, t], strict=True))}
        for s, seed in enumerate(seeds)
        for t in range(levels.shape[1])
    ]
    return pd.DataFrame(rows)
