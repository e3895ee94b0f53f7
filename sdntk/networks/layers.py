"""Layers with weights in the NTK parameterisation: weights are drawn from N(0, 1), and the forward
pass scales them.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sdntk import _memory, architectures
from sdntk._arguments import LARGE_BYTES


class Dense(nnx.Module):
    """y = weight_std w^T x / sqrt(d) + bias_std b, for d inputs (Jacot et al. 2018)."""

    def __init__(
        self, layer: architectures.Dense, inputs: int, outputs: int, *, rngs: nnx.Rngs
    ) -> None:
        self.scale = layer.weight_std / math.sqrt(inputs)
        self.bias_std = layer.bias_std
        self.kernel = nnx.Param(_normal(rngs, (inputs, outputs)))
        self.bias = nnx.Param(_normal(rngs, (outputs,))) if layer.bias_std else None

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n outputs"]:
        """The layer's outputs."""
        return _with_bias(self.scale * (x @ self.kernel[...]), self.bias, self.bias_std)


class Conv(nnx.Module):
    """y = weight_std (w * x) / sqrt(d) + bias_std b, with zero padding; d is the number of entries
    of the filter times that of input channels.
    """

    def __init__(
        self, layer: architectures.Conv, inputs: int, outputs: int, *, rngs: nnx.Rngs
    ) -> None:
        self.scale = layer.weight_std / math.sqrt(inputs * math.prod(layer.filter_shape))
        self.bias_std = layer.bias_std
        self.kernel = nnx.Param(_normal(rngs, (*layer.filter_shape, inputs, outputs)))
        self.bias = nnx.Param(_normal(rngs, (outputs,))) if layer.bias_std else None

    def __call__(self, x: Float[Array, "n H W d"]) -> Float[Array, "n H W outputs"]:
        """The layer's outputs."""
        values = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return _with_bias(self.scale * values, self.bias, self.bias_std)


def build(
    layer: architectures.Dense | architectures.Conv, inputs: int, outputs: int, *, rngs: nnx.Rngs
) -> nnx.Module:
    """The layer of a description, for this many input and output neurons or channels."""
    if isinstance(layer, architectures.Conv):
        return Conv(layer, inputs, outputs, rngs=rngs)
    return Dense(layer, inputs, outputs, rngs=rngs)


def _with_bias(values: Array, bias: nnx.Param[Array] | None, bias_std: float) -> Array:
    if bias is None:
        return values
    return values + bias_std * bias[...].reshape((1,) * (values.ndim - 1) + (-1,))


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
    needed = math.prod(shape) * jnp.result_type(float).itemsize
    if needed > LARGE_BYTES:
        description = f"A layer with weights of shape {shape}, of this width or num_outputs,"
        _memory.require_memory(needed, description, ways_out="a smaller width or point_shape")
    return jax.random.normal(rngs.params(), shape, jnp.result_type(float))
