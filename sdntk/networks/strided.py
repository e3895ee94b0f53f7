"""A small convolutional network that can overfit: no normalisation, no mean over the image."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sdntk._arguments import (
    MOST_CLASSES,
    ArrayLike,
    as_count,
    as_real_array,
    as_sequence,
    require_type,
)
from sdntk.networks.blocks import MOST, as_counts


class StridedCNN(nnx.Module):
    """Convolutions of 3 x 3 pixels and stride 2 with ReLU, and a linear readout of all that they
    leave of the image.

    Each halves height and width (rounded up), so that a step is cheap without an accelerator; the
    readout sees every place for itself, so that the network memorises a subset of images, wrong
    labels too. Weights are normal (truncated at two standard deviations) with variance 2/fan-in,
    and biases 0 (He et al. 2015).

    Args:
        shape: of an image, (height, width, channels).
        num_outputs: Q.
        channels: of each convolution, at least one.
        rngs: a Flax NNX random state; its stream ``params`` draws the weights.

    Raises:
        TypeError, ValueError: an argument has another type or is out of range.

    Example:
        >>> network = StridedCNN((32, 32, 3), 10, rngs=nnx.Rngs(0))
        >>> network(jnp.ones((2, 32, 32, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_outputs: int,
        *,
        channels: Sequence[int] = (16, 32, 64),
        rngs: nnx.Rngs,
    ) -> None:
        require_type("rngs", rngs, nnx.Rngs, "a Flax NNX random state, nnx.Rngs(0)")
        self.shape = tuple(
            as_count("shape", n, at_least=1, at_most=MOST) for n in as_sequence("shape", shape)
        )
        if len(self.shape) != 3:
            raise ValueError(f"shape must be (height, width, channels); got {self.shape}.")
        height, width, inputs = self.shape
        init = nnx.initializers.he_normal()
        layers = []
        for outputs in as_counts("channels", channels):
            layers.append(nnx.Conv(inputs, outputs, (3, 3), strides=2, kernel_init=init, rngs=rngs))
            height, width, inputs = math.ceil(height / 2), math.ceil(width / 2), outputs
        self.convolutions = nnx.List(layers)
        num_outputs = as_count("num_outputs", num_outputs, at_least=1, at_most=MOST_CLASSES)
        self.head = nnx.Linear(height * width * inputs, num_outputs, kernel_init=init, rngs=rngs)

    def __call__(self, x: ArrayLike) -> Float[Array, "n Q"]:
        """The outputs for images, shape (n, height, width, channels).

        Raises:
            TypeError, ValueError: no numbers, or images of another shape.
        """
        x = jnp.asarray(as_real_array("x", x))
        if x.shape[1:] != self.shape:
            sizes = ", ".join(map(str, self.shape))
            raise ValueError(f"x must have shape (n, {sizes}); its shape is {x.shape}.")
        x = x.astype(self.head.kernel.dtype)
        for convolution in self.convolutions:
            x = nnx.relu(convolution(x))
        return self.head(x.reshape(len(x), math.prod(x.shape[1:])))
