"""Losses of a network's outputs against targets, in optax's style: one number for each point.

Each takes outputs and targets of shape (..., n, Q) and returns losses of shape (..., n); training
averages them over the points. Targets are labels in round 0, and predictions of the round before in
later ones.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

#: outputs (..., Q) and targets (..., Q) to losses (...).
Loss = Callable[[Float[Array, "*n Q"], Float[Array, "*n Q"]], Float[Array, "*n"]]


def squared_error(
    outputs: Float[Array, "*n Q"], targets: Float[Array, "*n Q"]
) -> Float[Array, "*n"]:
    """(1/Q) sum_q (f_q - y_q)^2 of the raw outputs, the loss of the theory (Mobahi et al. 2020, eq.
    1).

    Example:
        >>> squared_error(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])).item()
        2.5
    """
    return jnp.mean(optax.losses.squared_error(outputs, targets), axis=-1)


def squared_error_of_softmax(
    outputs: Float[Array, "*n Q"], targets: Float[Array, "*n Q"]
) -> Float[Array, "*n"]:
    """(1/Q) sum_q (softmax(f)_q - p_q)^2, the loss of Mobahi et al. 2020, Fig. 4.

    Example:
        >>> squared_error_of_softmax(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0])).item()
        0.25
    """
    return squared_error(jax.nn.softmax(outputs), targets)


def soft_cross_entropy(
    outputs: Float[Array, "*n Q"], targets: Float[Array, "*n Q"]
) -> Float[Array, "*n"]:
    """-sum_q p_q log softmax(f)_q, against the teacher's probabilities (Mobahi et al. 2020, Fig.
    5).

    Example:
        >>> round(soft_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([0.5, 0.5])).item(), 6)
        0.693147
    """
    return optax.losses.softmax_cross_entropy(outputs, targets)


def hard_cross_entropy(
    outputs: Float[Array, "*n Q"], targets: Float[Array, "*n Q"]
) -> Float[Array, "*n"]:
    """-log softmax(f)_q at q = argmax p, the teacher's hard label (Mobahi et al. 2020, appendix
    D.3).

    Example:
        >>> round(hard_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([0.4, 0.6])).item(), 6)
        0.693147
    """
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        outputs, jnp.argmax(targets, axis=-1)
    )


def predictions(loss: Loss, outputs: Float[Array, "*n Q"]) -> Float[Array, "*n Q"]:
    """The predictions of a network that was trained with this loss: its outputs for
    :func:`squared_error`, else their softmax.

    Example:
        >>> predictions(soft_cross_entropy, jnp.array([0.0, 0.0])).tolist()
        [0.5, 0.5]
    """
    if loss is squared_error:
        return outputs
    return jax.nn.softmax(outputs)
