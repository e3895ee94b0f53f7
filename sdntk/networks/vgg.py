"""Stacks of 3 x 3 convolutions with batch normalisation: VGG-16, and a small one for machines
without an accelerator.
"""

from flax import nnx
from jaxtyping import Array, Float

from sdntk._arguments import DTypeLike, as_sequence
from sdntk.networks.blocks import Classifier, ConvNorm, as_counts, check_settings

#: Channels of each convolution, stage by stage; a maximum over 2 x 2 pixels follows each stage.
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SMALL = ((16,), (32,), (64,))


class VGG(Classifier):
    """Stages of convolutions, the mean over the pixels that are left, and one linear layer.

    Args:
        stages: channels of each convolution, stage by stage.
        num_classes: Q.
        rngs: a Flax NNX random state; its stream ``params`` draws the weights.
        dtype: of the convolutions, as in :class:`sdntk.networks.ResNet`.
    """

    def __init__(
        self,
        stages: tuple[tuple[int, ...], ...],
        num_classes: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ) -> None:
        dtype = check_settings(num_classes, rngs, dtype)
        stages = tuple(as_counts("stages", stage) for stage in as_sequence("stages", stages))
        if not stages:
            raise ValueError("stages must hold the channels of at least one stage.")
        made = []
        channels = 3
        for stage in stages:
            layers = []
            for outputs in stage:
                layers.append(ConvNorm(channels, outputs, 3, bias=True, rngs=rngs, dtype=dtype))
                channels = outputs
            made.append(nnx.List(layers))
        self.stages = nnx.List(made)
        self.smallest = 2 ** len(stages)
        super().__init__(channels, num_classes, rngs=rngs)

    def features(self, x: Float[Array, "n H W 3"]) -> Float[Array, "n h w C"]:
        """The last stage's outputs."""
        for stage in self.stages:
            for layer in stage:
                x = nnx.relu(layer(x))
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return x


def vgg16(num_classes: int, *, rngs: nnx.Rngs, dtype: DTypeLike | None = None) -> VGG:
    """VGG-16 with batch normalisation and one linear layer, for images of 32 x 32: 14,728,266
    parameters for 10 classes.

    The network of Mobahi et al. 2020, Fig. 6 (right). The original, for images of 224 x 224, has
    three linear layers.

    Source: K. Simonyan and A. Zisserman, Very deep convolutional networks for large-scale image
    recognition, ICLR 2015.

    Example:
        >>> shapes = nnx.eval_shape(lambda: vgg16(10, rngs=nnx.Rngs(0)))
        >>> shapes.head.kernel.shape
        (512, 10)
    """
    return VGG(VGG16, num_classes, rngs=rngs, dtype=dtype)


def small_cnn(num_classes: int, *, rngs: nnx.Rngs, dtype: DTypeLike | None = None) -> VGG:
    """Three convolutions of 16, 32 and 64 channels: 24,458 parameters for 10 classes, for machines
    without an accelerator.

    Example:
        >>> import jax.numpy as jnp
        >>> small_cnn(10, rngs=nnx.Rngs(0))(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """
    return VGG(SMALL, num_classes, rngs=rngs, dtype=dtype)
