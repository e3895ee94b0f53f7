"""What networks and losses must return: shapes and dtypes, looked at once before a training.

A loss of another shape would still have a mean: of other numbers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk.training.ensemble import Ensemble, members, output_shape
from sdntk.training.losses import Loss


def check_shapes(
    networks: Ensemble, x: Float[Array, "K ..."], targets: Float[Array, "S K Q"], loss: Loss
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shape and dtype of a network's outputs, and of its losses.

    Raises:
        TypeError, ValueError: the networks do not take x, or do not return one real number for each
            target, in training and in evaluation; or the loss not one for each point.
    """
    outputs = output_shape(dataclasses.replace(networks, initial_params=None), x)
    in_training = jax.eval_shape(_outputs_in_training, networks, x)
    for returned in (outputs, in_training):
        if not _is_real(returned):
            raise TypeError(
                "build must make a network that returns one array of floating-point numbers, its "
                f"outputs; it returned {_described(returned)}."
            )
    if outputs.shape != targets.shape[1:]:
        raise ValueError(
            f"targets (y) must have shape {outputs.shape}, as the network's outputs have; theirs "
            f"is {targets.shape[1:]}."
        )
    if in_training.shape != outputs.shape:
        raise ValueError(
            "build must make a network whose outputs have one shape; theirs is "
            f"{in_training.shape} in training and {outputs.shape} in evaluation."
        )
    return outputs, _check_loss(loss, outputs)


@jax.jit  # whose trace is kept: every round looks
def _outputs_in_training(networks: Ensemble, x: Float[Array, "K ..."]) -> Any:
    network = members(networks, 0)
    outputs, _ = network.apply_fn.train(network.params, network.model_state, x)
    return outputs


def _check_loss(loss: Loss, outputs: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the losses of these outputs."""
    count, num_outputs = outputs.shape
    count += count == num_outputs  # else a loss for each output would look like one for each point
    given = jax.ShapeDtypeStruct((count, num_outputs), outputs.dtype)
    losses = jax.eval_shape(loss, given, given)
    if not _is_real(losses) or losses.shape != (count,):
        kind = ValueError if _is_real(losses) else TypeError
        raise kind(
            "training.loss must return one number for each point, shape (n,), in floating point; "
            f"for outputs of shape {given.shape} it returned {_described(losses)}."
        )
    return losses


def _is_real(returned: Any) -> bool:
    is_array = isinstance(returned, jax.ShapeDtypeStruct)
    return is_array and jnp.issubdtype(returned.dtype, jnp.floating)


def _described(returned: Any) -> str:
    if isinstance(returned, jax.ShapeDtypeStruct):
        return f"an array of shape {returned.shape} and dtype {returned.dtype}"
    return f"a {type(returned).__name__}"
