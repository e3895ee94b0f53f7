"""Residual networks for images of 32 x 32 pixels: a stem of 3 x 3 without pooling, batch
normalisation.
"""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from sdntk._arguments import as_count
from sdntk.networks.blocks import Classifier, ConvNorm

#: Channels of the four stages; all but the first halve height and width.
STAGES = (64, 128, 256, 512)


class _Block(nnx.Module):
    """x -> relu(F(x) + S(x)): F of convolutions with batch normalisation, S the identity where
    shapes allow it.
    """

    def __init__(self, layers: list[ConvNorm], shortcut: ConvNorm | None) -> None:
        self.layers, self.shortcut = nnx.List(layers), shortcut

    def __call__(self, x: Float[Array, "n H W C"]) -> Float[Array, "n H2 W2 C2"]:
        values = x
        for layer in self.layers[:-1]:
            values = nnx.relu(layer(values))
        return nnx.relu(
            self.layers[-1](values) + (x if self.shortcut is None else self.shortcut(x))
        )


class ResNet(Classifier):
    """A stem, four stages of residual blocks, the mean over pixels, and one linear layer (He et al.
    2016).

    Bottleneck blocks halve the image in their 3 x 3 convolution.

    Args:
        blocks: in each stage.
        bottleneck: blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions with four times the channels at
            their end, rather than of two 3 x 3 convolutions.
        num_classes: Q.
        rngs: a Flax NNX random state; its stream ``params`` draws the weights.
        dtype: of the computation, such as ``jnp.bfloat16``; the weights', float32, when None.
            Weights, batch statistics and outputs stay float32.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        num_classes: Any,
        *,
        bottleneck: bool,
        rngs: nnx.Rngs,
        dtype: Any = None,
    ) -> None:
        self.stem = ConvNorm(3, STAGES[0], 3, rngs=rngs, dtype=dtype)
        made, channels = [], STAGES[0]
        for stage, (width, count) in enumerate(zip(STAGES, blocks, strict=True)):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                made.append(
                    _block(channels, width, stride, bottleneck=bottleneck, rngs=rngs, dtype=dtype)
                )
                channels = 4 * width if bottleneck else width
        self.blocks = nnx.List(made)
        super().__init__(channels, as_count("num_classes", num_classes, at_least=1), rngs=rngs)

    def features(self, x: Float[Array, "n H W 3"]) -> Float[Array, "n h w C"]:
        """The last block's outputs."""
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return x


def resnet18(num_classes: Any, *, rngs: nnx.Rngs, dtype: Any = None) -> ResNet:
    """ResNet-18: 11,173,962 parameters for 10 classes.

    Source: K. He et al., Deep residual learning for image recognition, CVPR 2016.

    Example:
        >>> shapes = nnx.eval_shape(lambda: resnet18(10, rngs=nnx.Rngs(0)))
        >>> shapes.head.kernel.shape
        (512, 10)
    """
    return ResNet((2, 2, 2, 2), num_classes, bottleneck=False, rngs=rngs, dtype=dtype)


def resnet50(num_classes: Any, *, rngs: nnx.Rngs, dtype: Any = None) -> ResNet:
    """ResNet-50, the network of Mobahi et al. 2020, Fig. 4, 5, 7 and 9: 23,520,842 parameters for
    10 classes.

    Source: K. He et al., Deep residual learning for image recognition, CVPR 2016.

    Example:
        >>> shapes = nnx.eval_shape(lambda: resnet50(10, rngs=nnx.Rngs(0)))
        >>> shapes.head.kernel.shape
        (2048, 10)
    """
    return ResNet((3, 4, 6, 3), num_classes, bottleneck=True, rngs=rngs, dtype=dtype)


def _block(
    channels: int, width: int, stride: int, *, bottleneck: bool, rngs: nnx.Rngs, dtype: Any
) -> _Block:
    # outputs, size and stride of each convolution
    plan = (
        [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
        if bottleneck
        else [(width, 3, stride), (width, 3, 1)]
    )
    layers, inputs = [], channels
    for outputs, size, step in plan:
        layers.append(ConvNorm(inputs, outputs, size, stride=step, rngs=rngs, dtype=dtype))
        inputs = outputs
    same = stride == 1 and channels == inputs
    return _Block(
        layers,
        None if same else ConvNorm(channels, inputs, 1, stride=stride, rngs=rngs, dtype=dtype),
    )
