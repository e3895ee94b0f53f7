r"""What an activation phi makes of inner products: E[phi(u) phi(v)] and E[phi'(u) phi'(v)].

u and v are Gaussian with the variances and the covariance of a pair of vectors; the moments are
the inner products after a layer of infinite width, and the factor by which its tangent kernel is
multiplied. Near angle 0, at small and at large norms the textbook forms lose digits, up to half of
them; these do not: no difference of nearly equal numbers is taken where its rounding would count.

Sources: Cho and Saul 2009 (ReLU); Williams 1997 (erf); Tsuchida et al. 2021, *Avoiding Kernel Fixed
Points* (GELU); for the sine, E[exp(i w.u)] of a Gaussian. docs/numerics.md, "Angles".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk._linalg import safe_sqrt
from sdntk.kernels.angles import Pairs

PI = jnp.pi


class Moments(NamedTuple):
    """What an activation makes of pairs.

    Attributes:
        pairs: with a_i . b_j = E[phi(u_i) phi(v_j)].
        slope: E[phi'(u_i) phi'(v_j)].
    """

    pairs: Pairs
    slope: Float[Array, "n1 n2"]


def relu(pairs: Pairs) -> Moments:
    """E[phi phi] = |a||b| (sin t + (pi - t) cos t)/(2 pi), E[phi' phi'] = (pi - t)/(2 pi), t the
    angle.

    1 - cos t' of the new angle is that of the old one less (sin t - t cos t)/pi.
    """
    half_sin, half_cos = pairs.half_angles
    sine, cosine = 2 * half_sin * half_cos, pairs.cos2 - pairs.sin2
    angle, rest = 2 * jnp.arctan2(half_sin, half_cos), 2 * jnp.arctan2(half_cos, half_sin)
    sin2 = jnp.maximum(pairs.sin2 - (sine - angle * cosine) / (2 * PI), 0)
    after = Pairs.of_angles(pairs.var1 / 2, pairs.var2 / 2, sin2, 1 - sin2)
    return Moments(after, rest / (2 * PI))


def erf(pairs: Pairs) -> Moments:
    """E[phi phi] = (2/pi) atan(2 cov/sqrt(D)), E[phi' phi'] = (4/pi)/sqrt(D), with
    D = (1 + 2|a|^2)(1 + 2|b|^2) - 4 cov^2.
    """
    D = 1 + 2 * (pairs.var1 + pairs.var2) + 4 * _area(pairs)  # noqa: N806 (the equation's name)
    root = jnp.sqrt(D)

    def variance(var: Array) -> Array:
        return 2 / PI * jnp.arctan2(2 * var, jnp.sqrt(1 + 4 * var))

    after = _of_covariance(
        variance(pairs.var1), variance(pairs.var2), 2 / PI * jnp.arctan2(2 * pairs.cov, root)
    )
    return Moments(after, 4 / PI / root)


def sin(pairs: Pairs) -> Moments:
    """E[phi phi] = (exp(-|a - b|^2/2) - exp(-|a + b|^2/2))/2, and E[phi' phi'] with their sum."""
    cov = pairs.cov
    nearer = jnp.exp(-jnp.minimum(pairs.minus, pairs.plus) / 2)
    product = -jnp.sign(cov) * nearer * jnp.expm1(-2 * jnp.abs(cov)) / 2
    after = _of_covariance(
        -jnp.expm1(-2 * pairs.var1) / 2, -jnp.expm1(-2 * pairs.var2) / 2, product
    )
    return Moments(after, (jnp.exp(-pairs.minus / 2) + jnp.exp(-pairs.plus / 2)) / 2)


def gelu(pairs: Pairs) -> Moments:
    """The exact GELU, u times the normal distribution function of u.

        2 pi E[phi phi] = |a||b| f,  f = (pi - p) cos t + m,  m = |a||b| (cos^2 t + r^2)/(P r)
        2 pi E[phi' phi'] = pi - p + (cov/r) (1/r^2 + (2 + |a|^2 + |b|^2)/P)

    with P = (1 + |a|^2)(1 + |b|^2), r^2 = P - cov^2 and the angle p = atan2(r, cov).
    """
    var1, var2, cosine = pairs.var1, pairs.var2, pairs.cos2 - pairs.sin2
    norm1, norm2 = safe_sqrt(var1), safe_sqrt(var2)
    r2 = 1 + var1 + var2 + _area(pairs)
    r = jnp.sqrt(r2)
    p = jnp.arctan2(r, pairs.cov)
    m = (norm1 / (1 + var1)) * (norm2 / (1 + var2)) * (cosine**2 + r2) / r

    same1, same2 = _gelu_of_one(var1), _gelu_of_one(var2)
    f1, f2 = PI - same1.p + same1.m, PI - same2.p + same2.m
    # f of equal vectors, in the mean, less f: where the angle vanishes, all three terms do.
    gap = (
        2 * PI * pairs.sin2 + (cosine * p - (same1.p + same2.p) / 2) + ((same1.m + same2.m) / 2 - m)
    )
    root1, root2 = jnp.sqrt(f1), jnp.sqrt(f2)
    unequal = ((same2.p - same1.p) + (same1.m - same2.m)) / (root1 + root2)  # root1 - root2
    sin2 = jnp.clip((gap - unequal**2 / 2) / (2 * root1 * root2), 0, 1)

    after = Pairs.of_angles(var1 * f1 / (2 * PI), var2 * f2 / (2 * PI), sin2, 1 - sin2)
    steep = pairs.cov / r * (1 / r2 + (1 / (1 + var1) + 1 / (1 + var2)))
    return Moments(after, (PI - p + steep) / (2 * PI))


class _OfOne(NamedTuple):
    p: Array
    m: Array


def _gelu_of_one(var: Array) -> _OfOne:
    """Of a vector with itself."""
    r = jnp.sqrt(1 + 2 * var)
    return _OfOne(jnp.arctan2(r, var), 2 * var / ((1 + var) * r))


def _area(pairs: Pairs) -> Float[Array, "n1 n2"]:
    """|a|^2 |b|^2 - cov^2 = |a|^2 |b|^2 sin^2 t."""
    return 4 * (pairs.var1 * pairs.sin2) * (pairs.var2 * pairs.cos2)


def _of_covariance(
    var1: Float[Array, "n1 1"], var2: Float[Array, "1 n2"], cov: Float[Array, "n1 n2"]
) -> Pairs:
    """Pairs of a bounded activation, which smooths: the angle to the root of rounding is enough for
    another one, and is all that is known for an unbounded one after it.
    """
    norms = safe_sqrt(var1) * safe_sqrt(var2)
    cosine = jnp.clip(cov / jnp.where(norms > 0, norms, 1), -1, 1)
    return Pairs.of_angles(var1, var2, (1 - cosine) / 2, (1 + cosine) / 2)


#: The moments of each of :data:`sdntk.architectures.ACTIVATIONS`.
MOMENTS: dict[str, Callable[[Pairs], Moments]] = {
    "relu": relu,
    "erf": erf,
    "gelu": gelu,
    "sin": sin,
}
