"""Gram matrices: X -> G, with the paper's 1/K in it (Mobahi et al. 2020, eqs. 15, 16)."""

from typing import Any

from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_float_array, as_points
from sdntk.kernels import KernelFunction


def gram(kernel: KernelFunction, x: ArrayLike, x2: ArrayLike | None = None) -> Float[Array, "n K"]:
    """The Gram matrix of a kernel, divided by the number of (training) points.

    ``gram(kernel, x)`` is G[j, k] = g(x_j, x_k)/K (eq. 15), and ``gram(kernel, x_new, x)`` is the cross-Gram matrix whose
    rows are g_x[k] = g(x_new, x_k)/K (eq. 16), K = len(x).

    Args:
        kernel: a function of (n1, ...) and (n2, ...) arrays that returns the (n1, n2) array of g(x, x').
        x: points, shape (n, ...).
        x2: the training points, shape (K, ...); ``x`` itself when left out.

    Returns:
        G, shape (n, K), in the kernel's floating-point dtype.

    Raises:
        TypeError: ``kernel`` is not callable. ValueError: bad points, or a kernel that returns another shape, nan or inf.

    Source: Mobahi et al. 2020, eqs. 15, 16.

    Example:
        >>> gram(lambda x, t: x[:, None] * t[None, :], jnp.array([1.0, 2.0])).tolist()
        [[0.5, 1.0], [1.0, 2.0]]
    """
    if not callable(kernel):
        raise TypeError(f"kernel must be a function of two arrays of points; got {type(kernel).__name__}.")
    x = as_points("x", x)
    x2 = x if x2 is None else as_points("x2", x2)
    if x.shape[1:] != x2.shape[1:] and (x.size, x2.size) != (len(x), len(x2)):
        raise ValueError(f"x and x2 must hold points of one shape; theirs are {x.shape[1:]} and {x2.shape[1:]}.")
    values: Any = kernel(x, x2)
    values = as_float_array("the kernel's values", values)
    if values.shape != (len(x), len(x2)):
        raise ValueError(
            f"kernel must return shape {(len(x), len(x2))} for {len(x)} and {len(x2)} points; it returned {values.shape}."
        )
    return values / len(x2)
