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


def measured_precision(kernel: LibraryKernel, x: Float[Array, "K ..."]) -> float | Float[Array, ""]:
    """An estimate, from above, of the error of a kernel's values: how far g(x, x') moves when x'
    moves from x by machine_eps, and no less than the root of machine_eps times g(x, x).

    Where a formula takes the angle from an inner product, rounding decides angles below that root:
    values of a point with itself and with its near-duplicates show how much that is. Luck may hide
    it, since a cosine that happens to be rounded to 1 does no harm.

    Args:
        kernel: g.
        x: points that it takes. Of traced ones the estimate is traced, without derivatives.
    """
    root = float(jnp.finfo(float).eps) ** 0.5
    with jax.ensure_compile_time_eval():  # of points that are known, while others are traced
        tried = lax.stop_gradient(x)[:: -(-len(x) // TRIED)]
        movement, largest = _movement(kernel, tried)
        estimate = lax.stop_gradient(jnp.maximum(SAFETY * movement, root * largest))
    return estimate if is_traced(estimate) else float(estimate)


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
