"""How precise the values of a kernel are that loses digits near angle 0, by measurement."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdntk._arguments import is_traced
from sdntk.kernels.base import LibraryKernel

#: So many of the points are tried.
TRIED = 8

#: Values are taken to err by at most so many times as much as they were seen to move.
SAFETY = 4


def measured_precision(kernel: LibraryKernel, x: Float[Array, "K ..."]) -> float:
    """A bound on the error of a kernel's values, from how far g(x, x') moves when x' moves from x
    by machine_eps.

    Where a formula takes the angle from an inner product, rounding decides angles below the root of
    machine_eps: values of a point with itself and with its near-duplicates show how much that is.

    Args:
        kernel: g.
        x: points that it takes. Of traced ones nothing can be seen: 0.
    """
    if is_traced(kernel, x):
        return 0.0
    tried = x[:: -(-len(x) // TRIED)]
    return SAFETY * float(_movement(kernel, tried))


@jax.jit
def _movement(kernel: LibraryKernel, x: Float[Array, "n ..."]) -> Float[Array, ""]:
    x = x.astype(jnp.result_type(float))
    steps = 1 + jnp.arange(-2, 3) * jnp.finfo(x.dtype).eps

    def of(point: Float[Array, "..."]) -> Float[Array, ""]:
        values = lax.map(lambda step: kernel.block(point[None], step * point[None]), steps)
        return jnp.ptp(values)

    return jnp.max(lax.map(of, x))
