"""Matrix products that keep the digits of their dtype, a root that has a derivative everywhere, and
small factorisations that leave the other cores alone.
"""

import contextlib
import functools
import threading
from typing import Any, ClassVar

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


class blas_in_one_thread(contextlib.AbstractContextManager[None]):  # noqa: N801 (used as a function)
    """Within it LAPACK's factorisations on a CPU run in one thread, those of all Python threads.

    OpenBLAS's other threads go on spinning for a while after each; between the factorisations of a
    few columns they took a fifth of the time of the products that ran beside them.
    """

    lock = threading.Lock()
    number_inside: ClassVar[int] = 0
    limit: ClassVar[Any] = None

    def __enter__(self) -> None:
        kind = type(self)
        with kind.lock:
            if kind.number_inside == 0:
                kind.limit = _libraries().limit(limits=1, user_api="blas")
            kind.number_inside += 1

    def __exit__(self, *exception: object) -> None:
        kind = type(self)
        with kind.lock:
            kind.number_inside -= 1
            if kind.number_inside == 0:
                kind.limit.restore_original_limits()


@functools.cache
def _libraries() -> Any:
    import scipy.linalg  # noqa: F401 (jaxlib's LAPACK is its; it must be loaded to be found)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
