"""Augmentation of images: functions of a key and a batch, run on the device within the compiled
step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

#: From a key and points to points of the same shape and dtype.
Augment = Callable[[Key[Array, ""], Float[Array, "n ..."]], Float[Array, "n ..."]]

#: Zeros on each side before a crop of the original size.
MARGIN = 4


def crop_and_flip(key: Key[Array, ""], images: Float[Array, "n H W C"]) -> Float[Array, "n H W C"]:
    """Each image shifted by up to 4 pixels either way, zeros moving in, and mirrored left to right
    with probability 1/2.

    The standard augmentation of CIFAR (He et al. 2016, section 4.2). Standardised images have mean
    zero, so zeros are grey.

    Args:
        key: a JAX key.
        images: shape (n, H, W, C).

    Returns:
        Images of the same shape and dtype.

    Example:
        >>> images = jnp.arange(64.0).reshape(1, 8, 8, 1)
        >>> crop_and_flip(jax.random.key(0), images).shape
        (1, 8, 8, 1)
    """
    to_shift, to_flip = jax.random.split(key)
    corners = jax.random.randint(to_shift, (len(images), 2), 0, 2 * MARGIN + 1)
    flipped = jax.random.bernoulli(to_flip, shape=(len(images),))
    padded = jnp.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))

    def one(image: Float[Array, "H2 W2 C"], corner: Array, flip: Array) -> Float[Array, "H W C"]:
        crop = jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])
        return jnp.where(flip, crop[:, ::-1], crop)

    return jax.vmap(one)(padded, corners, flipped)
