"""Building blocks of image classifiers with batch normalisation."""

import abc

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sdntk._arguments import DTypeLike


class ConvNorm(nnx.Module):
    """A convolution with zero padding, then batch normalisation of its channels."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        bias: bool = False,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None,
    ) -> None:
        margin = (size // 2, size // 2)
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=(margin, margin),
            use_bias=bias,
            dtype=dtype,
            kernel_init=nnx.initializers.he_normal(),
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n H W C"]) -> Float[Array, "n H2 W2 C2"]:
        """Normalises by the batch's statistics in training mode, by the running ones in evaluation
        mode.
        """
        return self.norm(self.conv(x))


class Classifier(nnx.Module):
    """Features of an image, averaged over its pixels, then one linear layer."""

    #: The smallest height and width of an image.
    smallest = 1

    def __init__(self, channels: int, num_classes: int, *, rngs: nnx.Rngs) -> None:
        self.head = nnx.Linear(channels, num_classes, rngs=rngs)

    @abc.abstractmethod
    def features(self, x: Float[Array, "n H W C"]) -> Float[Array, "n h w channels"]:
        """What is averaged over pixels and given to the linear layer."""

    def __call__(self, x: Float[Array, "n H W C"]) -> Float[Array, "n Q"]:
        """The logits of images, shape (n, height, width, 3).

        Raises:
            ValueError: images of another shape, or too small.
        """
        if x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < self.smallest:
            raise ValueError(
                "x must have shape (n, height, width, 3), height and width at least "
                f"{self.smallest}; its shape is {x.shape}."
            )
        # The weights' dtype, whatever the images' is and whatever convolutions compute in.
        dtype = self.head.kernel.dtype
        features = self.features(x.astype(dtype)).astype(dtype)
        return self.head(jnp.mean(features, axis=(1, 2)))
