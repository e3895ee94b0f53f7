"""The trainable network of a description, whose kernel at infinite width :func:`sdntk.kernels.ntk`
gives.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sdntk import architectures
from sdntk._arguments import ArrayLike, as_count
from sdntk.architectures import Architecture
from sdntk.networks import layers


class FiniteWidth(nnx.Module):
    """A network of finite width in the NTK parameterisation, from the description that its kernel
    is built from.

    All weights are drawn from N(0, 1). As the width grows, the network's tangent kernel (the mean
    over its outputs of <df_q(x)/dw, df_q(x')/dw>) approaches ``sdntk.kernels.ntk(architecture)``
    with an error of order 1/sqrt(width), and its outputs at initialisation a Gaussian process of
    covariance ``sdntk.kernels.nngp(architecture)``.

    Source: Jacot et al. 2018, *Neural Tangent Kernel*.

    Args:
        architecture: the layers, an :class:`~sdntk.architectures.Architecture`.
        point_shape: the shape of one point: (height, width, channels) for layers that look at
            images, any other else.
        width: neurons in each hidden layer, channels in each convolution.
        num_outputs: Q.
        rngs: a Flax NNX random state; its stream ``params`` (or the default one) draws the weights.

    Raises:
        TypeError, ValueError: an argument is out of range, or points of this shape do not fit the
            architecture.

    Example:
        >>> from sdntk.architectures import fully_connected
        >>> sizes = {"width": 64, "num_outputs": 10}
        >>> network = FiniteWidth(fully_connected(2), (8, 8, 1), **sizes, rngs=nnx.Rngs(0))
        >>> network(jnp.ones((3, 8, 8, 1))).shape
        (3, 10)
    """

    def __init__(
        self, architecture: Any, point_shape: Any, *, width: Any, num_outputs: Any, rngs: nnx.Rngs
    ) -> None:
        if not isinstance(architecture, Architecture):
            raise TypeError(
                "architecture must be an sdntk.architectures.Architecture; got "
                f"{type(architecture).__name__}."
            )
        width, num_outputs = (
            as_count("width", width, at_least=1),
            as_count("num_outputs", num_outputs, at_least=1),
        )
        self.architecture, self.point_shape = (
            architecture,
            _as_point_shape(architecture, point_shape),
        )
        weighted = [
            layer
            for layer in architecture.layers
            if isinstance(layer, (architectures.Dense, architectures.Conv))
        ]
        shape = self.point_shape
        modules: list[nnx.Module] = []
        for layer in architecture.layers:
            if isinstance(layer, (architectures.Dense, architectures.Conv)):
                outputs = num_outputs if len(modules) == len(weighted) - 1 else width
                modules.append(layers.build(layer, shape[-1], outputs, rngs=rngs))
                shape = (*shape[:-1], outputs)
            else:
                shape = jax.eval_shape(
                    lambda x, layer=layer: _apply(layer, x), jnp.zeros((1, *shape))
                ).shape[1:]
        self.weighted = nnx.List(modules)

    def __call__(self, x: ArrayLike) -> Float[Array, "n Q"]:
        """The outputs for points, shape (n, *point_shape)."""
        x = jnp.asarray(x)
        if x.shape[1:] != self.point_shape:
            raise ValueError(
                f"x must hold points of shape {self.point_shape}; its shape is {x.shape}."
            )
        weighted = iter(self.weighted)
        for layer in self.architecture.layers:
            x = (
                next(weighted)(x)
                if isinstance(layer, (architectures.Dense, architectures.Conv))
                else _apply(layer, x)
            )
        return x


def _apply(layer: architectures.Layer, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """A layer without weights."""
    match layer:
        case architectures.Activation(name):
            return architectures.ACTIVATIONS[name](x)
        case architectures.AveragePool(window):
            return nnx.avg_pool(x, window, window)
        case architectures.GlobalAveragePool():
            return jnp.mean(x, axis=(1, 2))
        case architectures.Flatten():
            return x.reshape(len(x), -1)
    raise AssertionError(layer)


def _as_point_shape(architecture: Architecture, point_shape: Any) -> tuple[int, ...]:
    if not isinstance(point_shape, tuple):
        raise TypeError(
            f"point_shape must be a tuple, the shape of one point; got {point_shape!r}."
        )
    shape = tuple(as_count("point_shape", length, at_least=1) for length in point_shape)
    smallest = architecture.smallest_image
    if smallest is not None and (
        len(shape) != 3 or shape[0] < smallest[0] or shape[1] < smallest[1]
    ):
        raise ValueError(
            f"point_shape must be (height, width, channels), of at least {smallest[0]} x "
            f"{smallest[1]} pixels, for this "
            f"architecture; got {shape}."
        )
    return shape
