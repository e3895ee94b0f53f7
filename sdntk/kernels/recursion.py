r"""The kernels of an infinitely wide network on vectors, layer by layer (Jacot et al. 2018).

    K_0(x, x') = x . x'/d,    Theta_0 = 0
    Dense:         K <- w^2 K + b^2,              Theta <- K + w^2 Theta
    Activation:    K <- E[phi(u) phi(v)],         Theta <- E[phi'(u) phi'(v)] Theta

with u, v of covariance K: neural-tangents' recursion, in half-angles, so that values keep their
digits for points of any direction and size (docs/numerics.md, "Angles").
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk._linalg import safe_sqrt
from sdntk.architectures import Activation, Architecture, Dense
from sdntk.kernels.angles import Pairs, pairs_of_points
from sdntk.kernels.moments import MOMENTS


def vector_kernel(
    architecture: Architecture,
    x1: Float[Array, "n1 d"],
    x2: Float[Array, "n2 d"],
    get: Literal["ntk", "nngp"],
) -> Float[Array, "n1 n2"]:
    """The NTK or NNGP of an architecture that flattens its points first.

    Example:
        >>> from sdntk.architectures import fully_connected
        >>> x = jnp.array([[1.0, 0.0]])
        >>> vector_kernel(fully_connected(depth=1), x, x, "ntk").round(12).tolist()
        [[2.0]]
    """
    pairs = pairs_of_points(x1, x2)
    tangent = jnp.zeros_like(pairs.sin2)
    for layer in architecture.layers:
        if isinstance(layer, Dense):
            pairs = _dense(layer, pairs)
            tangent = pairs.cov + layer.weight_std**2 * tangent
        if isinstance(layer, Activation):
            pairs, slope = MOMENTS[layer.name](pairs)
            tangent = slope * tangent
    return tangent if get == "ntk" else pairs.cov


def keeps_digits(architecture: Architecture) -> bool:
    """Whether values are right to rounding: those for vectors, but not of a ReLU behind another
    activation, which may hand on angles to the root of rounding only.
    """
    if architecture.smallest_image is not None:
        return False
    names = [layer.name for layer in architecture.layers if isinstance(layer, Activation)]
    leading = [name == "relu" for name in names]
    return leading == sorted(leading, reverse=True)


def _dense(layer: Dense, pairs: Pairs) -> Pairs:
    """The pairs of the vectors (w a, b) and (w b, b): a dense layer adds one coordinate, the bias.

    Their unit vectors are (p, q), p^2 + q^2 = 1, along the old direction and the bias.
    """
    w2, b2 = layer.weight_std**2, layer.bias_std**2
    minus, plus = w2 * pairs.minus, w2 * pairs.plus + 4 * b2
    if b2 == 0:
        return Pairs(w2 * pairs.var1, w2 * pairs.var2, pairs.sin2, pairs.cos2, minus, plus)
    var1, var2 = w2 * pairs.var1 + b2, w2 * pairs.var2 + b2
    p1, p2 = safe_sqrt(w2 * pairs.var1 / var1), safe_sqrt(w2 * pairs.var2 / var2)
    q1, q2 = jnp.sqrt(b2 / var1), jnp.sqrt(b2 / var2)
    unequal = (p1 - p2) ** 2 / 4
    sin2 = unequal + (q1 - q2) ** 2 / 4 + p1 * p2 * pairs.sin2
    cos2 = unequal + (q1 + q2) ** 2 / 4 + p1 * p2 * pairs.cos2
    return Pairs(var1, var2, sin2, cos2, minus, plus)
