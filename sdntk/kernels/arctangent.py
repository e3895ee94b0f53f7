r"""The angle of a right triangle's legs, in arithmetic that XLA vectorises on a CPU: its own
arctangent took half of what a ReLU kernel costs beside its inner products.

    a = arctan(s/c) = o + arctan r,    |r| <= tan(pi/8),    arctan r = r p(r^2)

where o is 0, pi/4 or pi/2 and r is s/c, (s - c)/(s + c) or -c/s, and p the polynomial that is
nearest to arctan(sqrt z)/sqrt z. Its nearest singularity, z = -1, lies so far from such z that each
degree divides the error by 25.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_TAN = float(np.sqrt(2) - 1)  # tan(pi/8)
#: The coefficients of p by the digits of a dtype, the constant one first; computed with 50 digits,
#: as the tests do again.
_POLYNOMIALS = {
    np.dtype(np.float64): (
        *(1.0, -0.33333333333333121, 0.19999999999940891, -0.14285714279250245),
        *(0.11111110744919658, -0.090908968090640271, 0.07692045330902225),
        *(-0.066629518136291901, 0.058468782973308725, -0.050351024566015518),
        *(0.037965257453865936, -0.017805397205419445),
    ),
    np.dtype(np.float32): (
        *(0.99999999937122816, -0.33333306893048513, 0.19998183041083206),
        *(-0.14239532669648975, 0.10569828806414448, -0.060263052276584591),
    ),
}


class Acute(NamedTuple):
    """An angle from 0 to pi/2, and what is missing to pi/2; both keep their digits where small."""

    angle: Float[Array, "*n"]
    complement: Float[Array, "*n"]


@jax.custom_jvp
def angle_of_legs(s: Float[Array, "*n"], c: Float[Array, "*n"]) -> Acute:
    """arctan(s/c) and arctan(c/s) for s, c >= 0, not both 0.

    Example:
        >>> acute = angle_of_legs(jnp.float32(1.0), jnp.float32(0.0))
        >>> round(float(acute.angle), 6), float(acute.complement)
        (1.570796, 0.0)
    """
    polynomial = _POLYNOMIALS.get(np.dtype(s.dtype))
    if polynomial is None:
        return Acute(jnp.arctan2(s, c), jnp.arctan2(c, s))
    flat, steep = s <= _TAN * c, c <= _TAN * s
    r = jnp.where(flat, s, jnp.where(steep, -c, s - c))
    r = r / jnp.where(flat, c, jnp.where(steep, s, s + c))
    z, p = r * r, jnp.full_like(r, polynomial[-1])
    for coefficient in reversed(polynomial[:-1]):
        p = p * z + coefficient
    quarter, arctan = jnp.pi / 4, r * p
    return Acute(
        jnp.where(flat, 0, jnp.where(steep, 2 * quarter, quarter)) + arctan,
        jnp.where(flat, 2 * quarter, jnp.where(steep, 0, quarter)) - arctan,
    )


@angle_of_legs.defjvp
def _derivative(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Acute, Acute]:
    (s, c), (ds, dc) = primals, tangents
    turned = (c * ds - s * dc) / (s * s + c * c)
    return angle_of_legs(s, c), Acute(turned, -turned)
