"""Stationary kernels in R^p, functions of the distance r = |x - x'| / length_scale.

Distances are taken from differences, not from |x|^2 + |x'|^2 - 2 x.x': that shortcut errs by about
1e-8 for points that nearly coincide, enough to make a Matern Gram matrix indefinite.
"""

import math
from dataclasses import field

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_number
from sdntk._linalg import safe_sqrt
from sdntk._pytrees import pytree
from sdntk.kernels.base import Kernel
from sdntk.kernels.parameters import Parameter, as_lengths, as_written, in_use


def _squared_distance(
    x: Float[Array, " p"], t: Float[Array, " p"], lengths: Parameter
) -> Float[Array, ""]:
    length_scale = in_use(lengths)
    if length_scale.ndim == 1 and length_scale.shape != x.shape:
        raise ValueError(
            f"length_scale must be a scalar or have one entry for each of the {x.size} "
            f"coordinates; its shape is {length_scale.shape}."
        )
    if length_scale.ndim == 1:
        return _sum_of_squares((x - t) / length_scale)
    # A common scale has its derivative after the sum, where (l/l)^2 = 1: a derivative of one number
    # costs less than one for each coordinate.
    constant = lax.stop_gradient(length_scale)
    return _sum_of_squares((x - t) / constant) * (constant / length_scale) ** 2


def _sum_of_squares(r: Float[Array, " p"]) -> Float[Array, ""]:
    # Beyond 1e4 length scales every kernel here is exactly 0; without the cap squares overflow and
    # derivatives turn nan.
    return jnp.sum(jnp.clip(r, -1e4, 1e4) ** 2)


@pytree
class RBF(Kernel):
    """The kernel that :func:`rbf` returns."""

    length_scale: Parameter

    parameter_checks = {"length_scale": as_lengths}  # noqa: RUF012

    def pair(self, x: Float[Array, " p"], t: Float[Array, " p"]) -> Float[Array, ""]:
        return jnp.exp(-_squared_distance(x, t, self.length_scale) / 2)

    def __repr__(self) -> str:
        return f"rbf({as_written(self.length_scale)})"


def rbf(length_scale: ArrayLike = 1.0) -> RBF:
    """The Gaussian kernel, g(x, x') = exp(-|x - x'|^2/(2 length_scale^2)), as in scikit-learn.

    Up to a factor it is the Green's function in R^p of L proportional to exp(-l^2 Laplacian/2): in
    Fourier space L is multiplication by exp(l^2 |omega|^2/2), so derivatives of all orders are
    penalised. No boundary conditions but decay at infinity. Source: Rasmussen and Williams 2006,
    eqs. 4.9-4.10; Girosi, Jones and Poggio 1995.

    Args:
        length_scale: l > 0, in the units of the points; a scalar, or one for each coordinate.

    Raises:
        ValueError, TypeError: ``length_scale`` is not positive.

    Example:
        >>> g = rbf(2.0)(jnp.array([[0.0, 0.0]]), jnp.array([[2.0, 0.0]]))
        >>> round(float(g[0, 0]), 6)                     # exp(-1/2)
        0.606531
    """
    return RBF(as_lengths("length_scale", length_scale))


@pytree
class Laplace(Kernel):
    """The kernel that :func:`laplace` returns."""

    length_scale: Parameter

    parameter_checks = {"length_scale": as_lengths}  # noqa: RUF012

    def pair(self, x: Float[Array, " p"], t: Float[Array, " p"]) -> Float[Array, ""]:
        return jnp.exp(-safe_sqrt(_squared_distance(x, t, self.length_scale)))

    def __repr__(self) -> str:
        return f"laplace({as_written(self.length_scale)})"


def laplace(length_scale: ArrayLike = 1.0) -> Laplace:
    """The Laplace (exponential) kernel, g(x, x') = exp(-|x - x'|/length_scale), |.| the Euclidean
    norm: :func:`matern` with nu = 1/2.

    scikit-learn's ``laplacian_kernel`` takes the sum of absolute differences in place of the norm.
    Both are equal on the line only.

    Up to a factor it is the Green's function in R^p of L proportional to (1/l^2 -
    Laplacian)^{(1 + p)/2}, with decay at infinity. Source: Rasmussen and Williams 2006, eq. 4.18.

    Args:
        length_scale: l > 0, in the units of the points; a scalar, or one for each coordinate.

    Raises:
        ValueError, TypeError: ``length_scale`` is not positive.

    Example:
        >>> g = laplace(5.0)(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]]))
        >>> round(float(g[0, 0]), 6)                     # exp(-1)
        0.367879
    """
    return Laplace(as_lengths("length_scale", length_scale))


@pytree
class Matern(Kernel):
    """The kernel that :func:`matern` returns."""

    length_scale: Parameter
    degree: int = field(metadata={"static": True})  # nu - 1/2

    parameter_checks = {"length_scale": as_lengths}  # noqa: RUF012

    def pair(self, x: Float[Array, " p"], t: Float[Array, " p"]) -> Float[Array, ""]:
        p = self.degree
        r = math.sqrt(2 * p + 1) * safe_sqrt(_squared_distance(x, t, self.length_scale))
        # exp(-r) is 0 from 746 on; without the cap the polynomial overflows and 0 * inf is nan.
        r = jnp.minimum(r, 800.0)
        f = math.factorial
        coefficients = [  # of r^p, ..., r^0, from integers: the last is exactly 1
            (f(p) * f(p + i) * 2 ** (p - i)) / (f(2 * p) * f(i) * f(p - i)) for i in range(p + 1)
        ]
        return jnp.polyval(jnp.asarray(coefficients, r.dtype), r) * jnp.exp(-r)

    def __repr__(self) -> str:
        return f"matern({self.degree + 0.5}, {as_written(self.length_scale)})"


#: From here on the formula's factorials leave the range of floating-point numbers.
LARGEST_NU = 80.5


def matern(nu: float, length_scale: ArrayLike = 1.0) -> Matern:
    """The Matern kernel for half-integer nu, as scikit-learn defines it: a polynomial in the
    distance times an exponential.

    With r = sqrt(2 nu) |x - x'|/length_scale and p = nu - 1/2:

        g = exp(-r) p!/(2p)! sum_{i=0..p} (p + i)!/(i! (p - i)!) (2 r)^{p - i};

    exp(-r) for nu = 1/2, (1 + r) exp(-r) for 3/2, (1 + r + r^2/3) exp(-r) for 5/2. Up to a factor
    it is the Green's function in R^p of L proportional to (2 nu/l^2 - Laplacian)^{nu + p/2} (here p
    is the dimension), with decay at infinity. Source: Rasmussen and Williams 2006, eqs. 4.14-4.17;
    Whittle 1963.

    Args:
        nu: smoothness, 0.5, 1.5, 2.5, ..., 80.5. Functions of the space have nu + p/2
            square-integrable derivatives.
        length_scale: l > 0, in the units of the points; a scalar, or one for each coordinate.

    Raises:
        ValueError, TypeError: ``nu`` is not a half-integer, ``length_scale`` is not positive.

    Example:
        >>> g = matern(1.5, 1.0)(jnp.array([[0.0]]), jnp.array([[0.0], [1.0]]))
        >>> [round(float(v), 6) for v in g[0]]
        [1.0, 0.483358]
    """
    expected = f"must be a half-integer 0.5, 1.5, 2.5, ... up to {LARGEST_NU} (rbf is the limit)"
    nu = as_number("nu", nu, lambda nu: 0 < nu <= LARGEST_NU and (nu - 0.5).is_integer(), expected)
    return Matern(as_lengths("length_scale", length_scale), int(nu))
