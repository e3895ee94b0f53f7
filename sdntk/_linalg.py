"""Matrix products that keep the digits of their dtype, and a root that has a derivative
everywhere.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def matmul(a: Float[Array, "n K"], b: Float[Array, "K *Q"]) -> Float[Array, "n *Q"]:
    """A @ b in full precision: left alone, GPUs and TPUs multiply float32 matrices with 10 bits or
    fewer.
    """
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def tensordot(a: Float[Array, "..."], b: Float[Array, "..."], axes: Any) -> Float[Array, "..."]:
    """:func:`jax.numpy.tensordot` in full precision, likewise."""
    return jnp.tensordot(a, b, axes, precision=lax.Precision.HIGHEST)


def safe_sqrt(squared: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The square root with derivative 0 at 0: no nan from duplicated points, zero labels or
    collapsed rounds.
    """
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0 * squared)
