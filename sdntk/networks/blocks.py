"""Building blocks of image classifiers with batch normalisation."""

import abc
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sdntk._arguments import (
    MOST_CLASSES,
    ArrayLike,
    DTypeLike,
    as_count,
    as_float_dtype,
    as_real_array,
    as_sequence,
    require_type,
)


def check_settings(num_classes: int, rngs: nnx.Rngs, dtype: DTypeLike | None) -> Any:
    """The dtype of convolutions, after checking what all classifiers take.

    Raises:
        TypeError, ValueError: no number of classes, no random state, or no floating-point dtype.
    """
    as_count("num_classes", num_classes, at_least=1, at_most=MOST_CLASSES)
    require_type("rngs", rngs, nnx.Rngs, "a Flax NNX random state, nnx.Rngs(0)")
    return None if dtype is None else as_float_dtype("dtype", dtype)


def as_counts(name: str, value: Sequence[int]) -> tuple[int, ...]:
    """``value`` as at least one number of blocks or channels."""
    counts = tuple(
        as_count(name, item, at_least=1, at_most=MOST) for item in as_sequence(name, value)
    )
    if not counts:
        raise ValueError(f"{name} must not be empty.")
    return counts


#: No network has more blocks in a stage, or channels: none of so many could be compiled.
MOST = 10_000


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

    def __call__(self, x: ArrayLike) -> Float[Array, "n Q"]:
        """The logits of images, shape (n, height, width, 3).

        Raises:
            TypeError, ValueError: no numbers, images of another shape, or too small.
        """
        x = jnp.asarray(as_real_array("x", x))
        if x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < self.smallest:
            raise ValueError(
                "x must have shape (n, height, width, 3), height and width at least "
                f"{self.smallest}; its shape is {x.shape}."
            )
        # The weights' dtype, whatever the images' is and whatever convolutions compute in.
        dtype = self.head.kernel.dtype
        features = self.features(x.astype(dtype)).astype(dtype)
        return self.head(jnp.mean(features, axis=(1, 2)))
