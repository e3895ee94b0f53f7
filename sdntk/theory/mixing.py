"""Targets that mix the ground truth into a round's predictions: the only place that knows how.

Round t is trained on  alpha_t y_0 + (1 - alpha_t) f_{t-1}  (Borup and Andersen 2021; with weights
of any size that change from round to round, Pareek, Du and Oh 2024). alpha = 0 is the
self-distillation of Mobahi et al. 2020.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def mix_targets(ground_truth: Any, predictions: Any, weight: Any) -> Any:
    """The targets alpha y_0 + (1 - alpha) f, for labels, rotated labels, or (with y_0 = 1) filters.

    Args:
        ground_truth: y_0.
        predictions: f, of a shape that broadcasts against it.
        weight: alpha, likewise.
    """
    return weight * ground_truth + (1 - weight) * predictions


def weights_handed_on(weight: Float[Array, "*t"], rounds: int) -> Float[Array, " T"]:
    """The weight with which each of T rounds is mixed into the targets of the next: alpha_1, ..,
    alpha_{T-1}, and one more for the last round, whose targets nobody asks for.

    Args:
        weight: alpha, one number for all, or alpha_1, .., alpha_{T-1}, shape (T - 1,).
        rounds: T.
    """
    if weight.ndim == 0:
        return jnp.broadcast_to(weight, (rounds,))
    return jnp.pad(weight, (0, 1))


def weights_within_unit(weights: Float[Array, " t"]) -> Bool[Array, ""]:
    """Whether all weights lie in [0, 1], where targets are means of what was there before."""
    return jnp.all((weights >= 0) & (weights <= 1))


def collapse_is_final(weights: Float[Array, " T"]) -> Bool[Array, ""]:
    """Whether no round can be active after one that is not: for weights in [0, 1] that do not
    increase from round to round (docs/theory.md, section 8).

    Filters P_t of targets are then not below alpha_t, so that alpha_{t+1} |z_0| <= alpha_t |z_0| <=
    |P_t z_0|, which was within the radius.
    """
    return weights_within_unit(weights) & jnp.all(weights[1:] <= weights[:-1])
