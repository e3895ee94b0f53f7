"""Trainable networks of finite width, from the description that their kernel is built from."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sdntk import architectures
from sdntk._arguments import ArrayLike, as_count, as_real_array, require_type, shown
from sdntk.architectures import Architecture
from sdntk.networks import layers

#: Descriptions of layers that have weights.
_WEIGHTED = (architectures.Dense, architectures.Conv)


class FiniteWidth(nnx.Module):
    """A network of finite width in the NTK parameterisation: weights w are drawn from N(0, 1), and
    the forward pass scales them.

    As the width grows, the tangent kernel (1/Q) sum_q <df_q(x)/dw, df_q(x')/dw> approaches
    ``sdntk.kernels.ntk(architecture)`` with an error of order 1/sqrt(width), and the outputs at
    initialisation a Gaussian process with covariance ``sdntk.kernels.nngp(architecture)``.

    Source: Jacot et al. 2018, *Neural Tangent Kernel*.

    Args:
        architecture: the layers, an :class:`~sdntk.architectures.Architecture`.
        point_shape: the shape of one point; (height, width, channels) for convolutions and pooling.
        width: neurons of each hidden layer, channels of each convolution.
        num_outputs: Q.
        rngs: a Flax NNX random state; its stream ``params`` (or the default one) draws the weights,
            in JAX's default floating-point dtype.

    Raises:
        TypeError, ValueError: an argument has another type or is out of range, or points of this
            shape do not fit the architecture.

    Example:
        >>> from sdntk.architectures import fully_connected
        >>> sizes = {"width": 64, "num_outputs": 10}
        >>> network = FiniteWidth(fully_connected(2), (8, 8, 1), **sizes, rngs=nnx.Rngs(0))
        >>> network(jnp.ones((3, 8, 8, 1))).shape
        (3, 10)
    """

    def __init__(
        self,
        architecture: Architecture,
        point_shape: tuple[int, ...],
        *,
        width: int,
        num_outputs: int,
        rngs: nnx.Rngs,
    ) -> None:
        require_type(
            "architecture", architecture, Architecture, "an sdntk.architectures.Architecture"
        )
        require_type("rngs", rngs, nnx.Rngs, "a Flax NNX random state, nnx.Rngs(0)")
        width = as_count("width", width, at_least=1)
        num_outputs = as_count("num_outputs", num_outputs, at_least=1)
        self.architecture = architecture
        self.point_shape = _as_point_shape(architecture, point_shape)

        num_weighted = sum(isinstance(layer, _WEIGHTED) for layer in architecture.layers)
        weighted: list[nnx.Module] = []
        shape = self.point_shape
        for layer in architecture.layers:
            if isinstance(layer, _WEIGHTED):
                is_last = len(weighted) == num_weighted - 1
                outputs = num_outputs if is_last else width
                weighted.append(layers.build(layer, shape[-1], outputs, rngs=rngs))
                shape = (*shape[:-1], outputs)
            else:
                shape = _shape_after(layer, shape)
        self.weighted = nnx.List(weighted)

    def __call__(self, x: ArrayLike) -> Float[Array, "n Q"]:
        """The outputs for points, shape (n, *point_shape)."""
        values = jnp.asarray(as_real_array("x", x))
        if values.shape[1:] != self.point_shape:
            raise ValueError(
                f"x must hold points of shape {self.point_shape}; its shape is {values.shape}."
            )
        weighted = iter(self.weighted)
        for layer in self.architecture.layers:
            if isinstance(layer, _WEIGHTED):
                values = next(weighted)(values)
            else:
                values = _apply(layer, values)
        return values


def _shape_after(layer: architectures.Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one point after a layer without weights."""
    points = jax.ShapeDtypeStruct((1, *shape), jnp.result_type(float))
    return jax.eval_shape(lambda x: _apply(layer, x), points).shape[1:]


def _apply(layer: architectures.Layer, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """The outputs of a layer without weights."""
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


def _as_point_shape(architecture: Architecture, point_shape: tuple[int, ...]) -> tuple[int, ...]:
    """``point_shape`` as a tuple of Python integers that the architecture can take."""
    if not isinstance(point_shape, tuple):
        raise TypeError(
            f"point_shape must be a tuple, the shape of one point; got {shown(point_shape)}."
        )
    shape = tuple(as_count("point_shape", length, at_least=1) for length in point_shape)
    smallest = architecture.smallest_image
    if smallest is None:
        return shape
    height, width = smallest
    if len(shape) != 3 or shape[0] < height or shape[1] < width:
        raise ValueError(
            f"point_shape must be (height, width, channels), of at least {height} x {width} "
            f"pixels, for this architecture; got {shape}."
        )
    return shape
