"""The one-dimensional example of Mobahi et al. 2020."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_float_array, as_key, as_positive

#: The authors' own noisy labels, as a follow-up paper published them (Borup and Andersen 2021,
#: arXiv 2102.13088).
_MOBAHI_LABELS = (
    0.38476636465198066,
    1.2333967683416893,
    1.33232242217057,
    0.69201594888895180,
    -0.29756145531871736,
    -0.24189291901377769,
    -0.7964485769175675,
    -0.9616480167034174,
    -0.49672509509916934,
    -0.3469066003991437,
    0.5589512650600734,
)


def mobahi_truth(x: ArrayLike) -> Float[Array, "*n"]:
    """The function behind the paper's example, sin(2 pi x) (Mobahi et al. 2020, section 4)."""
    return jnp.sin(2 * jnp.pi * as_float_array("x", x))


def mobahi_example(
    key: Array | None = None, *, noise: float = 0.5
) -> tuple[Float[Array, " 11"], Float[Array, " 11"]]:
    """The paper's example: 11 equally spaced points on [0, 1], labels sin(2 pi x) + noise.

    Args:
        key: a JAX key for fresh normal noise; the authors' own labels when left out.
        noise: standard deviation of fresh noise.

    Returns:
        x and y, each of shape (11,), in the default floating-point dtype.

    Source: Mobahi et al. 2020, section 4; the labels from Borup and Andersen 2021.

    Example:
        >>> x, y = mobahi_example()
        >>> x.shape, round(float(y[0]), 6)
        ((11,), 0.384766)
    """
    x = jnp.asarray(np.linspace(0, 1, 11))
    sigma = as_positive("noise", noise, (), dtype=x.dtype)
    if key is None:
        return x, jnp.asarray(_MOBAHI_LABELS)
    return x, mobahi_truth(x) + sigma * jax.random.normal(as_key("key", key), x.shape, x.dtype)
