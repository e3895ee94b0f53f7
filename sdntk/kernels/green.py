"""Green's functions of differential operators on the line: L g(., t) = delta(. - t) (Mobahi et al.
2020, eq. 14).

R(f) = int f (L f) is the penalty that self-distillation amplifies; the boundary conditions make L
invertible, and g is its inverse: if L phi = lambda phi, then int g(x, t) phi(t) dt = phi(x)/lambda.
"""

import math
from dataclasses import field

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk._arguments import as_count
from sdntk._pytrees import pytree
from sdntk.kernels.base import Kernel


@pytree
class CubicSpline(Kernel):
    """The kernel that :func:`cubic_spline` returns."""

    one_dimensional = True
    domain = (0.0, 1.0)

    def pair(self, x: Float[Array, ""], t: Float[Array, ""]) -> Float[Array, ""]:
        lo, hi = jnp.minimum(x, t), jnp.maximum(x, t)
        return lo * (1 - hi) * (hi * (2 - hi) - lo**2) / 6

    def __repr__(self) -> str:
        return "cubic_spline()"


def cubic_spline() -> CubicSpline:
    """The paper's example: the Green's function of the fourth derivative.

    Operator L = d^4/dx^4, so R(f) = int (f'')^2, on [0, 1] with f(0) = f(1) = f''(0) = f''(1) = 0:

        g(x, t) = max(x - t, 0)^3/6 - x (1 - t)(x^2 - 2 t + t^2)/6
                = lo (1 - hi)(hi (2 - hi) - lo^2)/6,     lo = min(x, t), hi = max(x, t).

    Eigenfunctions sin(k pi x) with eigenvalues (k pi)^4 of L, k = 1, 2, ... Every admissible
    function is 0 at both ends: a training point there makes a row of the Gram matrix vanish.

    Source: Mobahi et al. 2020, eqs. 55-59 (after Rytgaard 2016).

    Example:
        >>> g = cubic_spline()(jnp.array([0.0, 0.5]), jnp.array([0.5]))
        >>> [round(float(v), 6) for v in g[:, 0]]        # 1/48 in the middle, 0 at the ends
        [0.0, 0.020833]
    """
    return CubicSpline()


@pytree
class BrownianBridge(Kernel):
    """The kernel that :func:`brownian_bridge` returns."""

    one_dimensional = True
    domain = (0.0, 1.0)

    def pair(self, x: Float[Array, ""], t: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.minimum(x, t) * (1 - jnp.maximum(x, t))

    def __repr__(self) -> str:
        return "brownian_bridge()"


def brownian_bridge() -> BrownianBridge:
    """The covariance of the Brownian bridge: the Green's function of -d^2/dx^2 with both ends held.

    Operator L = -d^2/dx^2, so R(f) = int (f')^2, on [0, 1] with f(0) = f(1) = 0:

        g(x, t) = min(x, t) (1 - max(x, t)).

    Eigenfunctions sin(k pi x) with eigenvalues (k pi)^2 of L, k = 1, 2, ... Rows of points at 0 and
    at 1 vanish.

    Source: Rasmussen and Williams 2006, *Gaussian Processes for Machine Learning*, appendix B.

    Example:
        >>> float(brownian_bridge()(jnp.array([0.5]), jnp.array([0.5]))[0, 0])
        0.25
    """
    return BrownianBridge()


@pytree
class BrownianMotion(Kernel):
    """The kernel that :func:`brownian_motion` returns."""

    one_dimensional = True
    domain = (0.0, 1.0)

    def pair(self, x: Float[Array, ""], t: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.minimum(x, t)

    def __repr__(self) -> str:
        return "brownian_motion()"


def brownian_motion() -> BrownianMotion:
    """The covariance of Brownian motion: the Green's function of -d^2/dx^2 with one end held and
    the other free.

    Operator L = -d^2/dx^2, so R(f) = int (f')^2, on [0, 1] with f(0) = 0 and f'(1) = 0:

        g(x, t) = min(x, t).

    Eigenfunctions sin((k - 1/2) pi x) with eigenvalues ((k - 1/2) pi)^2 of L, k = 1, 2, ... The row
    of a point at 0 vanishes.

    Source: Rasmussen and Williams 2006, appendix B (the Wiener process).

    Example:
        >>> float(brownian_motion()(jnp.array([0.25]), jnp.array([0.75]))[0, 0])
        0.25
    """
    return BrownianMotion()


#: B_{2m}(u) as a polynomial in v = u (1 - u), highest power first: symmetric about 1/2, and little
#: cancellation.
_BERNOULLI_IN_V = {
    1: (-1.0, 1 / 6),
    2: (1.0, 0.0, -1 / 30),
    3: (-1.0, -1 / 2, 0.0, 1 / 42),
    4: (1.0, 4 / 3, 2 / 3, 0.0, -1 / 30),
}


@pytree
class PeriodicSpline(Kernel):
    """The kernel that :func:`periodic_spline` returns."""

    order: int = field(metadata={"static": True})

    one_dimensional = True

    def pair(self, x: Float[Array, ""], t: Float[Array, ""]) -> Float[Array, ""]:
        m = self.order
        u = jnp.abs(x - t)
        u = u - jnp.floor(u)
        if m in _BERNOULLI_IN_V:
            coefficients = jnp.asarray(_BERNOULLI_IN_V[m], u.dtype)
            return (-1) ** (m - 1) / math.factorial(2 * m) * jnp.polyval(coefficients, u * (1 - u))
        # The first term dropped is below 1e-18 of the leading one.
        k = jnp.arange(math.ceil(10 ** (18 / (2 * m))), 0, -1)
        terms = jnp.cos(2 * math.pi * k * u) * k.astype(u.dtype) ** (-2 * m)
        return 2 * (2 * math.pi) ** (-2 * m) * jnp.sum(terms)

    def __repr__(self) -> str:
        return f"periodic_spline({self.order})"


#: Of :func:`periodic_spline`: float64 holds its values and their products.
LARGEST_ORDER = 80


def periodic_spline(order: int) -> PeriodicSpline:
    """Periodic smoothing splines: the reproducing kernel of int (f^(m))^2 over mean-zero functions
    of period 1.

    Operator L = (-1)^m d^{2m}/dx^{2m} on the circle R/Z. Constants are in its null space and not in
    the function space, so L g(., t) = delta(. - t) - 1 (the delta function on mean-zero functions):

        g(x, t) = (-1)^{m-1} B_{2m}(frac(x - t))/(2m)!
                = 2 sum_{k >= 1} cos(2 pi k (x - t))/(2 pi k)^{2m},

    B the Bernoulli polynomials; from m = 5 on the Fourier series is summed. Eigenfunctions cos(2 pi
    k x) and sin(2 pi k x) with eigenvalue (2 pi k)^{2m} of L, so each occurs twice. Points may be
    any real numbers.

    Source: Wahba 1990, *Spline Models for Observational Data*, section 2.1.

    Args:
        order: m, the derivative that the penalty squares, from 1 to 80: values fall like
            (2 pi)^-2m.

    Raises:
        ValueError, TypeError: ``order`` is not an integer in this range.

    Example:
        >>> g = periodic_spline(1)(jnp.array([0.0]), jnp.array([1.0]))
        >>> float(g[0, 0]) * 12  # B_2(0)/2 = 1/12
        1.0
    """
    return PeriodicSpline(as_count("order", order, at_least=1, at_most=LARGEST_ORDER))
