"""What every kernel of the library shares: batching, compilation and the checks of shapes and
domains live here once.

A kernel is any function of two arrays of points, (n1, ...) and (n2, ...), that returns the (n1, n2)
array of g(x, x'). The author of a kernel of this library writes :meth:`Kernel.pair`, the formula
for one pair of points.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_points, every, is_traced

#: A kernel: (n1, ...) and (n2, ...) arrays to an (n1, n2) array, NumPy or JAX.
KernelFunction = Callable[[Any, Any], Any]


class Kernel(abc.ABC):
    """A kernel given by its value for one pair of points, compiled, and batched over both
    arguments.
    """

    #: Whether points are single numbers; then arrays of shape (n,) and (n, 1) are both welcome.
    one_dimensional: ClassVar[bool] = False
    #: The interval that points must come from, if any.
    domain: ClassVar[tuple[float, float] | None] = None

    @abc.abstractmethod
    def pair(self, x: Float[Array, "*p"], t: Float[Array, "*p"]) -> Float[Array, ""]:
        """g(x, t) for one pair of points, shape () for one-dimensional kernels and (p,) for the
        others.
        """

    def __call__(self, x1: ArrayLike, x2: ArrayLike) -> Float[Array, "n1 n2"]:
        """g(x1_i, x2_j) for all pairs.

        Args:
            x1: points, shape (n1, ...); coordinates beyond the first axis are flattened to one
                vector.
            x2: points, shape (n2, ...), of the same coordinates.

        Raises:
            ValueError: shapes do not match, or (unless traced) a point lies outside the kernel's
                domain.
        """
        x1, x2 = self._as_coordinates("x1", x1), self._as_coordinates("x2", x2)
        if x1.shape[1:] != x2.shape[1:]:
            raise ValueError(
                f"x1 and x2 must hold points of one shape; theirs are {x1.shape[1:]} and "
                f"{x2.shape[1:]}."
            )
        return _all_pairs(self, x1, x2)

    def _as_coordinates(self, name: str, points: ArrayLike) -> Float[Array, "n *p"]:
        x = as_points(name, points)
        if not self.one_dimensional:
            return x.reshape(x.shape[0], -1)
        if x.size != x.shape[0]:
            raise ValueError(
                f"{name} must hold single numbers, shape (n,) or (n, 1), for "
                f"{type(self).__name__}, a kernel on the line; "
                f"its shape is {x.shape}."
            )
        x = x.reshape(-1)
        if self.domain is not None and not is_traced(x):
            low, high = self.domain
            if not every(lambda x: (x >= low) & (x <= high), x):
                worst = next(value for value in x.tolist() if not low <= value <= high)
                raise ValueError(
                    f"{name} must lie in [{low:g}, {high:g}], the domain of "
                    f"{type(self).__name__}; it holds {worst:g}."
                )
        return x


@jax.jit
def _all_pairs(
    kernel: Kernel, x1: Float[Array, "n1 *p"], x2: Float[Array, "n2 *p"]
) -> Float[Array, "n1 n2"]:
    return jax.vmap(lambda x: jax.vmap(lambda t: kernel.pair(x, t))(x2))(x1)
