"""Rotated labels of a spectrum that knows those that it was made from."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sdntk.theory.units import in_unit, out_of_unit, unit_of


def known_coordinates(
    own: Float[Array, "K *Q"], rotated: Float[Array, "m *Q"], y: Float[Array, "K *Q"]
) -> tuple[Bool[Array, ""], Float[Array, "m *Q"]]:
    """Whether labels are those of a spectrum, in any unit of theirs, and then their coordinates.

    Args:
        own: the spectrum's labels.
        rotated: their coordinates.
        y: labels of the same shape.
    """
    unit, asked = (unit_of(labels, joint=False) for labels in (own, y))
    known = jnp.array_equal(in_unit(y, asked), in_unit(own, unit))
    return known, out_of_unit(in_unit(rotated, unit), asked)


@jax.custom_jvp
def without_derivatives(y: Float[Array, "K *Q"], z: Float[Array, "m *Q"]) -> Float[Array, "m *Q"]:
    """The coordinates z of labels y, which refuse derivatives by them."""
    del y
    return z


@without_derivatives.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "Derivatives by the labels leave the Krylov space, and on a Nystrom spectrum take a pass "
        "over the points: both have those by tolerance and multiplier only. Use a dense one, "
        "decompose(G)."
    )
