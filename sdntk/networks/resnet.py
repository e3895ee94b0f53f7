"""Residual networks for images of 32 x 32 pixels, whose first convolution is 3 x 3 without
pooling.
"""

import math
from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from sdntk._arguments import DTypeLike, as_flag
from sdntk.networks.blocks import Classifier, ConvNorm, as_counts, check_settings

#: Channels of the four stages; each but the first halves height and width.
STAGES = (64, 128, 256, 512)


class _Plan(NamedTuple):
    """One convolution of a block: output channels, width of the filter, stride."""

    outputs: int
    size: int
    stride: int = 1


class _Block(nnx.Module):
    """x -> relu(F(x) + S(x)), F a stack of convolutions, S one convolution or, without
    ``shortcut``, the identity.
    """

    def __init__(self, layers: list[ConvNorm], shortcut: ConvNorm | None) -> None:
        self.layers = nnx.List(layers)
        self.shortcut = shortcut

    def __call__(self, x: Float[Array, "n H W C"]) -> Float[Array, "n H2 W2 C2"]:
        values = x
        for layer in self.layers[:-1]:
            values = nnx.relu(layer(values))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return nnx.relu(self.layers[-1](values) + x)


class ResNet(Classifier):
    """A first convolution, four stages of residual blocks, the mean over pixels, and one linear
    layer (He et al. 2016).

    Args:
        blocks: the number of blocks in each stage.
        bottleneck: blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions, the last with four times the
            channels, instead of two 3 x 3 convolutions. They halve the image in the 3 x 3 one.
        num_classes: Q.
        rngs: a Flax NNX random state; its stream ``params`` draws the weights.
        dtype: of the convolutions, such as ``jnp.bfloat16``; float32 by default. Weights, batch
            statistics and outputs are float32 in any case.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        num_classes: int,
        *,
        bottleneck: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ) -> None:
        dtype, bottleneck = (
            check_settings(num_classes, rngs, dtype),
            as_flag("bottleneck", bottleneck),
        )
        blocks = as_counts("blocks", blocks)
        if len(blocks) != len(STAGES):
            raise ValueError(f"blocks must hold {len(STAGES)} numbers, one for each stage.")
        self.stem = ConvNorm(3, STAGES[0], 3, rngs=rngs, dtype=dtype)
        made = []
        channels = STAGES[0]
        for stage, (width, count) in enumerate(zip(STAGES, blocks, strict=True)):
            outputs = 4 * width if bottleneck else width
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                if bottleneck:
                    plan = [_Plan(width, 1), _Plan(width, 3, stride), _Plan(outputs, 1)]
                else:
                    plan = [_Plan(width, 3, stride), _Plan(width, 3)]
                made.append(_block(channels, plan, rngs=rngs, dtype=dtype))
                channels = outputs
        self.blocks = nnx.List(made)
        super().__init__(channels, num_classes, rngs=rngs)

    def features(self, x: Float[Array, "n H W 3"]) -> Float[Array, "n h w C"]:
        """The last block's outputs."""
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return x


def resnet18(num_classes: int, *, rngs: nnx.Rngs, dtype: DTypeLike | None = None) -> ResNet:
    """ResNet-18: 11,173,962 parameters for 10 classes.

    Source: K. He et al., Deep residual learning for image recognition, CVPR 2016.

    Example:
        >>> shapes = nnx.eval_shape(lambda: resnet18(10, rngs=nnx.Rngs(0)))
        >>> shapes.head.kernel.shape
        (512, 10)
    """
    return ResNet((2, 2, 2, 2), num_classes, bottleneck=False, rngs=rngs, dtype=dtype)


def resnet50(num_classes: int, *, rngs: nnx.Rngs, dtype: DTypeLike | None = None) -> ResNet:
    """ResNet-50, the network of Mobahi et al. 2020, Fig. 4, 5, 7 and 9: 23,520,842 parameters for
    10 classes.

    Source: K. He et al., Deep residual learning for image recognition, CVPR 2016.

    Example:
        >>> shapes = nnx.eval_shape(lambda: resnet50(10, rngs=nnx.Rngs(0)))
        >>> shapes.head.kernel.shape
        (2048, 10)
    """
    return ResNet((3, 4, 6, 3), num_classes, bottleneck=True, rngs=rngs, dtype=dtype)


def _block(channels: int, plan: list[_Plan], *, rngs: nnx.Rngs, dtype: DTypeLike | None) -> _Block:
    """A block for so many input channels, its shortcut the identity where shapes allow it."""
    layers = []
    inputs = channels
    for conv in plan:
        layers.append(
            ConvNorm(inputs, conv.outputs, conv.size, stride=conv.stride, rngs=rngs, dtype=dtype)
        )
        inputs = conv.outputs
    stride = math.prod(conv.stride for conv in plan)
    if stride == 1 and channels == inputs:
        return _Block(layers, shortcut=None)
    return _Block(layers, ConvNorm(channels, inputs, 1, stride=stride, rngs=rngs, dtype=dtype))
