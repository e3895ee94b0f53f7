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

from sdntk._arguments import ArrayLike, as_real_array, require_function

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
    outputs, targets = _of_one_shape(outputs, targets)
    return jnp.mean(optax.losses.squared_error(outputs, targets), axis=-1)


def squared_error_of_softmax(
    outputs: Float[Array, "*n Q"], targets: Float[Array, "*n Q"]
) -> Float[Array, "*n"]:
    """(1/Q) sum_q (softmax(f)_q - p_q)^2, the loss of Mobahi et al. 2020, Fig. 4.

    Example:
        >>> squared_error_of_softmax(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0])).item()
        0.25
    """
    outputs, targets = _of_one_shape(outputs, targets)
    return squared_error(jax.nn.softmax(outputs), targets)


def brier_score(outputs: Float[Array, "*n Q"], targets: Float[Array, "*n Q"]) -> Float[Array, "*n"]:
    """sum_q (softmax(f)_q - p_q)^2 (Brier 1950): Q times :func:`squared_error_of_softmax`, against
    which a weight decay weighs Q times as much.

    Example:
        >>> brier_score(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0])).item()
        0.5
    """
    outputs, targets = _of_one_shape(outputs, targets)
    return outputs.shape[-1] * squared_error_of_softmax(outputs, targets)


def soft_cross_entropy(
    outputs: Float[Array, "*n Q"], targets: Float[Array, "*n Q"]
) -> Float[Array, "*n"]:
    """-sum_q p_q log softmax(f)_q, against the teacher's probabilities (Mobahi et al. 2020, Fig.
    5).

    Example:
        >>> round(soft_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([0.5, 0.5])).item(), 6)
        0.693147
    """
    outputs, targets = _of_one_shape(outputs, targets)
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
    outputs, targets = _of_one_shape(outputs, targets)
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
    require_function("loss", loss, "outputs and targets")
    outputs = _as_outputs("outputs", outputs)
    if loss is squared_error:
        return outputs
    return jax.nn.softmax(outputs)


def _as_outputs(name: str, value: ArrayLike) -> Float[Array, "*n Q"]:
    """``value`` as a floating-point array with an axis of outputs; not searched for nan, which a
    network that diverges has.
    """
    array = jnp.asarray(as_real_array(name, value))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (..., Q), Q >= 1; its shape is {array.shape}.")
    return array


def _of_one_shape(outputs: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    arrays = _as_outputs("outputs", outputs), _as_outputs("targets", targets)
    if arrays[0].shape != arrays[1].shape:
        raise ValueError(
            f"outputs and targets must have one shape; theirs are {arrays[0].shape} and "
            f"{arrays[1].shape}."
        )
    return arrays
