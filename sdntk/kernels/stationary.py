"""Stationary kernels in R^p, functions of the distance r = |x - x'| / length_scale.

Distances are taken from differences, not from |x|^2 + |x'|^2 - 2 x.x': that shortcut errs by about
1e-8 for points that nearly coincide, enough to make a Matern Gram matrix indefinite.
"""

import abc
import math
from dataclasses import field

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_number
from sdntk._linalg import safe_sqrt
from sdntk._pytrees import pytree
from sdntk.kernels.base import Kernel
from sdntk.kernels.parameters import Parameter, as_lengths, as_written, in_use

#: So many coordinates are summed in one pass over all pairs, which keeps nothing but their sum.
COORDINATES = 16


class Stationary(Kernel):
    """A function of r^2 = |x - x'|^2 / length_scale^2."""

    length_scale: Parameter

    parameter_checks = {"length_scale": as_lengths}  # noqa: RUF012

    @abc.abstractmethod
    def of_squared_distance(self, r2: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """g, for r^2 of any shape."""

    def pair(self, x: Float[Array, " p"], t: Float[Array, " p"]) -> Float[Array, ""]:
        """g(x, t) for one pair of points."""
        return self.of_squared_distance(_squared_distances(x[None], t[None], self.length_scale))[
            0, 0
        ]

    def block(
        self, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]
    ) -> Float[Array, "n1 n2"]:
        """g(x1_i, x2_j) for all pairs of points that :meth:`check` let pass; compiled."""
        return _of_all_pairs(self, x1, x2)


@jax.jit
def _of_all_pairs(
    kernel: Stationary, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]
) -> Float[Array, "n1 n2"]:
    rows, columns = kernel.coordinates(x1), kernel.coordinates(x2)
    return kernel.of_squared_distance(_squared_distances(rows, columns, kernel.length_scale))


def _squared_distances(
    x1: Float[Array, "n1 p"], x2: Float[Array, "n2 p"], lengths: Parameter
) -> Float[Array, "n1 n2"]:
    length_scale = in_use(lengths)
    if length_scale.ndim == 1 and length_scale.shape != x1.shape[1:]:
        raise ValueError(
            f"length_scale must be a scalar or have one entry for each of the {x1.shape[1]} "
            f"coordinates; its shape is {length_scale.shape}."
        )
    # Points are scaled by a power of two, which is exact: of x/l - x'/l a fused multiply-add leaves
    # the rounding of x/l, which for points that nearly coincide is more than their difference.
    power = _power_of_two(length_scale)
    mantissa = length_scale / power
    rows, columns = (x / jnp.broadcast_to(power, x.shape) for x in (x1, x2))
    if length_scale.ndim == 1:
        return _sums_of_squares(rows, columns, 1 / mantissa)
    # A common scale has its derivative after the sum: a derivative of one number costs less than
    # one for each coordinate.
    return _sums_of_squares(rows, columns) / mantissa**2


def _power_of_two(length_scale: Float[Array, "*p"]) -> Float[Array, "*p"]:
    """The greatest power of two up to a length."""
    _, exponent = jnp.frexp(lax.stop_gradient(length_scale))
    return jnp.ldexp(jnp.ones_like(length_scale), exponent - 1)


def _sums_of_squares(
    x1: Float[Array, "n1 p"], x2: Float[Array, "n2 p"], weights: Float[Array, " p"] | None = None
) -> Float[Array, "n1 n2"]:
    """sum_i (w_i (x_i - x'_i))^2, coordinate by coordinate: an array of all differences would take
    p times the memory and, on a CPU, ten times as long.
    """
    num_coordinates = x1.shape[1]
    sums = jnp.zeros((len(x1), len(x2)), jnp.result_type(x1, x2))
    by_coordinate = x1.T, x2.T, weights
    if num_coordinates <= COORDINATES:
        return _add_squares(sums, *by_coordinate)
    num_parts = -(-num_coordinates // COORDINATES)
    missing = num_parts * COORDINATES - num_coordinates

    def in_parts(values: Float[Array, "p ..."]) -> Float[Array, "k q ..."]:
        padding = ((0, missing), *[(0, 0)] * (values.ndim - 1))
        return jnp.pad(values, padding).reshape(num_parts, COORDINATES, *values.shape[1:])

    parts = jax.tree.map(in_parts, by_coordinate)
    return lax.scan(lambda sums, part: (_add_squares(sums, *part), None), sums, parts)[0]


def _add_squares(
    sums: Float[Array, "n1 n2"],
    x1: Float[Array, "q n1"],
    x2: Float[Array, "q n2"],
    weights: Float[Array, " q"] | None,
) -> Float[Array, "n1 n2"]:
    # Beyond 5e3 length scales every kernel here is exactly 0; without the cap squares overflow and
    # derivatives turn nan.
    for i in range(len(x1)):
        difference = jnp.clip(x1[i][:, None] - x2[i][None], -1e4, 1e4)
        sums += (difference if weights is None else weights[i] * difference) ** 2
    return sums


@pytree
class RBF(Stationary):
    """The kernel that :func:`rbf` returns."""

    length_scale: Parameter

    def of_squared_distance(self, r2: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.exp(-r2 / 2)

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
class Laplace(Stationary):
    """The kernel that :func:`laplace` returns."""

    length_scale: Parameter

    def of_squared_distance(self, r2: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.exp(-safe_sqrt(r2))

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
class Matern(Stationary):
    """The kernel that :func:`matern` returns."""

    length_scale: Parameter
    degree: int = field(metadata={"static": True})  # nu - 1/2

    def of_squared_distance(self, r2: Float[Array, "*n"]) -> Float[Array, "*n"]:
        p = self.degree
        r = math.sqrt(2 * p + 1) * safe_sqrt(r2)
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
