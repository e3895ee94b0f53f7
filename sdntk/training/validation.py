"""Points that are not trained on: the loss on them as networks train, and the stop by it."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdntk._arguments import as_float_array, as_points, require_one_shape, shown
from sdntk.training.course import as_ensemble
from sdntk.training.losses import Loss
from sdntk.training.state import RUNNING, Stop, TrainingConfig, TrainingRun


class Validation(NamedTuple):
    """n points and their targets, the same for all networks."""

    x: Float[Array, "n ..."]
    y: Float[Array, "n Q"]

    def look(
        self, run: TrainingRun, training: TrainingConfig, looks: list[np.ndarray]
    ) -> TrainingRun:
        """Add the loss of every network to those of earlier looks, and stop those that have run out
        of patience.
        """
        outputs = as_ensemble(run, training).outputs(self.x)
        looks.append(np.asarray(_mean_losses(outputs, self.y, loss=training.loss)))
        if training.patience is None or len(looks) <= training.patience:
            return run
        losses = np.nan_to_num(np.stack(looks), nan=np.inf, posinf=np.inf)
        last, earlier = losses[-training.patience :], losses[: -training.patience]
        has_stalled = last.min(0) >= earlier.min(0)
        state = run.state
        stop = jnp.where((state.stop == RUNNING) & has_stalled, int(Stop.PATIENCE), state.stop)
        return dataclasses.replace(run, state=dataclasses.replace(state, stop=stop))


def recorded(
    looks: list[np.ndarray], steps: Int[Array, " s"], training: TrainingConfig
) -> Float[Array, "s looks"]:
    """The losses of all looks that a training may have: nan where a network had stopped before."""
    count = -(-training.steps // training.check_every)
    dtype = looks[0].dtype if looks else float
    losses = np.full((len(steps), count), np.nan, dtype)
    if looks:
        losses[:, : len(looks)] = np.stack(looks, axis=1)
    was_over = np.arange(count)[None] * training.check_every >= np.asarray(steps)[:, None]
    return jnp.asarray(np.where(was_over, np.nan, losses).astype(dtype))


@functools.partial(jax.jit, static_argnames="loss")
def _mean_losses(
    outputs: Float[Array, "s n Q"], y: Float[Array, "n Q"], *, loss: Loss
) -> Float[Array, " s"]:
    return jnp.mean(jax.vmap(loss, in_axes=(0, None))(outputs, y.astype(outputs.dtype)), -1)


def as_validation(
    value: Any, x: Float[Array, "K ..."], num_outputs: int, training: TrainingConfig
) -> Validation | None:
    """``validation`` as points like x and targets, or None.

    Raises:
        TypeError, ValueError: it is no such pair, or missing where ``training`` has patience.
    """
    if value is None:
        if training.patience is not None:
            raise ValueError("validation must be points and targets (x, y) with patience.")
        return None
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"validation must be a pair (x, y); got {shown(value)}.")
    points = as_points("validation's x", value[0])
    require_one_shape("x", x, "validation's x", points)
    y = as_float_array("validation's y", value[1])
    if y.shape != (len(points), num_outputs):
        raise ValueError(
            f"validation's y must have shape ({len(points)}, {num_outputs}), a row for each of its "
            f"points; its shape is {y.shape}."
        )
    return Validation(points, y)
