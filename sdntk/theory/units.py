"""Units in which labels are of size 1, whatever they are of: powers of two, by which no digit
changes.

A chain asks for squares: of labels, of residuals, of their norm. In the labels' own unit those of
1e160 overflow and those of 1e-160 vanish, though no multiplier, state or filter depends on the
unit. So labels, and the radius s = sqrt(K eps) with them, are divided by a power of two where they
come in, and what is in the labels' unit is multiplied by it on its way out.

What is divided twice is multiplied by inverses: XLA makes x/u/u into x/(u u), which may be no
number.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def power_of_two(
    values: Float[Array, "..."], axis: int | tuple[int, ...] | None = None
) -> Float[Array, "..."]:
    """The power of two next to the largest magnitude, at most that; 1 where all are zero.

    It is a constant to derivatives, and it and its inverse are normal numbers.

    Args:
        values: of any shape.
        axis: over which the largest is taken; all axes when left out.
    """
    largest = jnp.max(jnp.abs(lax.stop_gradient(values)), axis=axis)
    exponent = jnp.frexp(largest)[1] - 1
    limits = jnp.finfo(largest.dtype)
    exponent = jnp.clip(exponent, limits.minexp + 1, limits.maxexp - 2)
    return jnp.where(largest > 0, jnp.ldexp(jnp.ones_like(largest), exponent), 1)


def unit_of(labels: Float[Array, "m *Q"], *, joint: bool) -> Float[Array, "*q"]:
    """The unit of each output's labels; one for all outputs that share a multiplier."""
    return power_of_two(labels, axis=None if joint else 0)


def in_unit(values: Float[Array, "..."], unit: Float[Array, "*q"]) -> Float[Array, "..."]:
    """Labels, or their like, in their unit; outputs are the last axis."""
    return values * _for_last_axes(1 / unit, values)


def out_of_unit(values: Float[Array, "..."], unit: Float[Array, "*q"]) -> Float[Array, "..."]:
    """What :func:`in_unit` was applied to."""
    return values * _for_last_axes(unit, values)


def _for_last_axes(unit: Float[Array, "*q"], values: Float[Array, "..."]) -> Float[Array, "..."]:
    return unit.reshape((1,) * (values.ndim - unit.ndim) + unit.shape)


def radius(tolerance: Float[Array, "*Q"], count: int) -> Float[Array, "*Q"]:
    """The radius s = sqrt(count * eps), also where count * eps overflows."""
    unit = power_of_two(jnp.sqrt(tolerance), axis=())
    inverse = 1 / unit
    return jnp.sqrt(count * (tolerance * inverse * inverse)) * unit


def linearly(function: Callable[[Array], Any], labels: Float[Array, "m *Q"]) -> Any:
    """The values of a function linear in every output's labels, also where sums on the way to them
    would overflow.

    Args:
        function: from labels to a pytree of arrays whose last axis is that of the outputs.
        labels: shape (m,) or (m, Q).
    """
    unit = unit_of(labels, joint=False)
    return jax.tree.map(lambda v: out_of_unit(v, unit), function(in_unit(labels, unit)))


def mean_square(
    values: Float[Array, "T *mQ"], count: int, *, over: int | tuple[int, ...]
) -> Float[Array, "T *q"]:
    """The sum of squares over some axes, divided by a number: out of range only where the result
    is.
    """
    # Halfway, so that neither squares nor what derivatives meet is out of range before the rest.
    root = power_of_two(jnp.sqrt(jnp.abs(lax.stop_gradient(values))), axis=over)
    return jnp.sum((values / jnp.expand_dims(root, over)) ** 2, axis=over) / count * root * root
