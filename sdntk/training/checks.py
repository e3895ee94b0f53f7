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
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise TypeError(
            "build must make a network that returns one array, its outputs; it returned "
            f"{_described(outputs)}."
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(
            "build must make a network whose outputs are real floating-point numbers; it returned "
            f"{_described(outputs)}."
        )
    if outputs.shape != targets.shape[1:]:
        raise ValueError(
            f"targets (y) must have shape {outputs.shape}, as the network's outputs have; theirs "
            f"is {targets.shape[1:]}."
        )
    in_training = jax.eval_shape(_outputs_in_training, networks, x)
    if _described(in_training) != _described(outputs):
        raise ValueError(
            "build must make a network with outputs of one shape and dtype; in training it "
            f"returned {_described(in_training)}, in evaluation {_described(outputs)}."
        )
    return outputs, _check_loss(loss, outputs)


def _outputs_in_training(networks: Ensemble, x: Float[Array, "K ..."]) -> Any:
    network = members(networks, 0)
    outputs, _ = network.apply_fn.train(network.params, network.model_state, x)
    return outputs


def _check_loss(loss: Loss, outputs: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the losses of these outputs."""
    count, num_outputs = outputs.shape
    count += count == num_outputs  # where the two are one, a loss of each output would look right
    given = jax.ShapeDtypeStruct((count, num_outputs), outputs.dtype)
    losses = jax.eval_shape(loss, given, given)
    is_real = isinstance(losses, jax.ShapeDtypeStruct) and jnp.issubdtype(
        losses.dtype, jnp.floating
    )
    if not is_real or losses.shape != (count,):
        kind = ValueError if is_real else TypeError
        raise kind(
            f"training.loss must return one real number for each point, shape (n,), here ({count},)"
            f" for outputs of shape {given.shape}; it returned {_described(losses)}."
        )
    return losses


def _described(value: Any) -> str:
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return f"a {type(value).__name__}"
