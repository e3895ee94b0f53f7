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
from jax import lax
from jaxtyping import Array, Float

from sdntk._linalg import safe_sqrt
from sdntk.kernels.angles import Pairs
from sdntk.kernels.arctangent import angle_of_legs

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
    half = angle_of_legs(half_sin, half_cos)
    angle, rest = 2 * half.angle, 2 * half.complement
    sin2 = jnp.maximum(pairs.sin2 - (sine - angle * cosine) / (2 * PI), 0)
    # A wall: XLA would compute both anew for each number that depends on them.
    sin2, slope = lax.optimization_barrier((sin2, rest / (2 * PI)))
    after = Pairs.of_angles(pairs.var1 / 2, pairs.var2 / 2, sin2, 1 - sin2)
    return Moments(after, slope)


def erf(pairs: Pairs) -> Moments:
    """E[phi phi] = (2/pi) f, f = atan(2 cov/r), and E[phi' phi'] = (4/pi)/r, with
    r^2 = (1 + 2|a|^2)(1 + 2|b|^2) - 4 cov^2.

    1 - cos t' follows from f of a and of b with themselves, f1 and f2, less f.
    """
    var1, var2 = pairs.var1, pairs.var2
    r = jnp.sqrt(1 + 2 * (var1 + var2) + 4 * _area(pairs))
    f1, f2 = _erf_of_one(var1), _erf_of_one(var2)
    less1, less2 = _erf_difference(pairs, var1, var2, r), _erf_difference(pairs, var2, var1, r)

    root1, root2 = safe_sqrt(f1), safe_sqrt(f2)
    known = root1 * root2 > 0
    unequal = (less1 - less2) / jnp.where(known, root1 + root2, 1)  # root1 - root2
    gap = (less1 + less2 - unequal**2) / 2 / jnp.where(known, root1 * root2, 1)
    after = _of_gap(2 / PI * f1, 2 / PI * f2, jnp.where(known, gap, 1), pairs.cov)
    return Moments(after, 4 / PI / r)


def _erf_of_one(var: Array) -> Array:
    return jnp.arctan2(2 * var, jnp.sqrt(1 + 4 * var))


def _erf_difference(pairs: Pairs, var: Array, other: Array, r: Array) -> Array:
    """The f of a vector with itself less |f| of it with the other one, from the sine of that."""
    numerator = 2 * (var * (var - other) + _area(pairs) * (1 + 2 * var))
    sides = var * r + jnp.abs(pairs.cov) * jnp.sqrt(1 + 4 * var)
    sizes = jnp.sqrt(1 + 2 * var) * jnp.sqrt(1 + 2 * other)
    return jnp.arcsin(jnp.clip(numerator / jnp.where(sides > 0, sides, 1) / sizes, -1, 1))


def sin(pairs: Pairs) -> Moments:
    """E[phi phi] = (exp(-|a - b|^2/2) - exp(-|a + b|^2/2))/2, and E[phi' phi'] with their sum.

    With E(x) = 1 - exp(-x), m the smaller and M the larger of |a|^2 and |b|^2,

        sin^2 t' = ( E(|a - b|^2) E(|a + b|^2) - (exp(-m) E(M - m))^2 ) / ( E(2 m) E(2 M) ).
    """
    var1, var2, cov = pairs.var1, pairs.var2, jnp.abs(pairs.cov)
    smaller, difference = jnp.minimum(var1, var2), jnp.abs(var1 - var2)
    sizes = _rise(2 * var1) * _rise(2 * var2)
    known = sizes > 0
    sizes = jnp.where(known, sizes, 1)
    apart = _rise(pairs.minus) * _rise(pairs.plus)
    sine2 = (apart - (jnp.exp(-smaller) * _rise(difference)) ** 2) / sizes

    nearer = jnp.minimum(pairs.minus, pairs.plus)
    cosine = jnp.exp(-nearer / 2) * _rise(2 * cov) / jnp.sqrt(sizes)
    gap = jnp.where(known, jnp.clip(sine2, 0, 1) / (1 + cosine), 1)
    after = _of_gap(_rise(2 * var1) / 2, _rise(2 * var2) / 2, gap, pairs.cov)
    return Moments(after, (jnp.exp(-pairs.minus / 2) + jnp.exp(-pairs.plus / 2)) / 2)


def _rise(x: Array) -> Array:
    return -jnp.expm1(-x)


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


def _of_gap(
    var1: Float[Array, "n1 1"],
    var2: Float[Array, "1 n2"],
    gap: Float[Array, "n1 n2"],
    cov: Float[Array, "n1 n2"],
) -> Pairs:
    """Pairs of an odd activation, from 1 - |cos t'| and the sign of the covariance."""
    near = jnp.clip(gap, 0, 1) / 2
    sin2 = jnp.where(cov < 0, 1 - near, near)
    return Pairs.of_angles(var1, var2, sin2, jnp.where(cov < 0, near, 1 - near))


#: The moments of each of :data:`sdntk.architectures.ACTIVATIONS`.
MOMENTS: dict[str, Callable[[Pairs], Moments]] = {
    "relu": relu,
    "erf": erf,
    "gelu": gelu,
    "sin": sin,
}
