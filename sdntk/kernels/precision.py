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
    """An estimate, from above, of the error of a kernel's values: how far g(x, x') moves when x'
    moves from x by machine_eps, and no less than the root of machine_eps times g(x, x).

    Where a formula takes the angle from an inner product, rounding decides angles below that root:
    values of a point with itself and with its near-duplicates show how much that is. Luck may hide
    it, since a cosine that happens to be rounded to 1 does no harm.

    Args:
        kernel: g.
        x: points that it takes. Of traced ones nothing can be seen: 0.
    """
    if is_traced(kernel, x):
        return 0.0
    tried = x[:: -(-len(x) // TRIED)]
    movement, largest = map(float, _movement(kernel, tried))
    return max(SAFETY * movement, float(jnp.finfo(float).eps) ** 0.5 * largest)


@jax.jit
def _movement(
    kernel: LibraryKernel, x: Float[Array, "n ..."]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How far values move, and the largest of them."""
    x = x.astype(jnp.result_type(float))
    steps = 1 + jnp.arange(-2, 3) * jnp.finfo(x.dtype).eps

    def of(point: Float[Array, "..."]) -> Float[Array, " 5"]:
        return lax.map(lambda step: kernel.block(point[None], step * point[None])[0, 0], steps)

    values = lax.map(of, x)
    return jnp.max(jnp.ptp(values, axis=1)), jnp.max(jnp.abs(values))
