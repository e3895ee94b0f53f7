"""How precise a kernel's values are, by measurement: those of one that loses digits near angle 0,
and those computed in float32.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sdntk._arguments import is_traced
from sdntk.kernels.base import KernelFunction, LibraryKernel, kernel_block

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


#: Single precision is tried at so many of the points.
TRIED_IN_SINGLE = 256


@dataclasses.dataclass(frozen=True)
class InSingle:
    """A kernel whose points are rounded to float32, and whose values are computed in it, with x64
    on, too.
    """

    kernel: KernelFunction

    def __call__(self, x1: Float[Any, "n1 ..."], x2: Float[Any, "n2 ..."]) -> Float[Array, "n1 n2"]:
        x1, x2 = (x.astype(np.float32) for x in (x1, x2))
        with jax.enable_x64(False):
            return kernel_block(self.kernel, x1, x2)


def single_suffices(kernel: KernelFunction, x: Float[Any, "K ..."], dtype: np.dtype) -> bool:
    """Whether values that are to be kept in float32 may be computed in it: for some of the points
    the matrix moves by no more than the machine_eps d_max that keeping them so is taken to cost.

    Args:
        kernel: g; of a function that is none of this library's nothing is tried.
        x: points that it takes.
        dtype: in which values are to be kept.
    """
    if dtype != np.float32 or jnp.result_type(float) == np.float32 or len(x) < TRIED_IN_SINGLE:
        return False
    if not isinstance(kernel, LibraryKernel) or is_traced(kernel, x):
        return False
    some = x[:: len(x) // TRIED_IN_SINGLE]
    exact = np.asarray(kernel_block(kernel, some, some), np.float64)
    moved = np.asarray(InSingle(kernel)(some, some), np.float64) - exact
    allowed = np.finfo(np.float32).eps * np.linalg.norm(exact, 2)
    return bool(np.isfinite(moved).all() and np.linalg.norm(moved, 2) <= allowed)


def in_single_if_sufficient(
    kernel: KernelFunction, x: Float[Any, "K ..."], dtype: np.dtype | None
) -> KernelFunction:
    """The kernel that computes values to be kept in ``dtype``: in float32, or as it is."""
    if dtype is None or not single_suffices(kernel, x, dtype):
        return kernel
    return InSingle(kernel)
