"""What training error and degrees of freedom say of a fit's risk (docs/theory.md, section 9)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def generalised_cross_validation(
    error: Float[Array, "..."], degrees_of_freedom: Float[Array, "..."], count: int | float | Array
) -> Float[Array, "..."]:
    """(|y - f|^2/n) / (1 - df/n)^2; infinite from df = n on.

    Args:
        error: |y - f|^2/n.
        degrees_of_freedom: df.
        count: n, the number of residuals.
    """
    left = 1 - degrees_of_freedom / count
    return jnp.where(left <= 0, jnp.inf, error / jnp.where(left <= 0, 1, left) ** 2)


def unbiased_risk(
    error: Float[Array, "..."],
    degrees_of_freedom: Float[Array, "..."],
    count: int | float | Array,
    noise_variance: Float[Array, "..."],
) -> Float[Array, "..."]:
    """|y - f|^2/n - sigma^2 + 2 sigma^2 df/n (Stein).

    Args:
        error: |y - f|^2/n.
        degrees_of_freedom: df.
        count: n, the number of residuals.
        noise_variance: sigma^2, of a shape that broadcasts against the others.
    """
    return error + noise_variance * (2 * degrees_of_freedom / count - 1)
