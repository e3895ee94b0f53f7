"""Parameters of kernels: kept as they were given, and taken to arrays where they are used.

A Python float stays one. An array made of it has the precision of the flag jax_enable_x64 as it was
then; a kernel made with the flag off would be inexact for ever.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import (
    ARRAYS,
    ArrayLike,
    as_real_array,
    as_scalar,
    as_scale,
    is_traced,
)

#: What a kernel holds: numbers that the flag has not touched, or what JAX was given or traces.
Parameter = float | np.ndarray | Array


def as_lengths(name: str, value: ArrayLike) -> Parameter:
    """``value`` as a positive length, or one for each coordinate."""
    given = as_real_array(name, value)
    return _as_given(given, as_scale(name, given))


def as_positive_number(name: str, value: ArrayLike) -> Parameter:
    """``value`` as one positive number."""
    given = as_real_array(name, value)
    return _as_given(given, as_scalar(name, given, lambda a: a > 0, "must be positive"))


def as_nonnegative_number(name: str, value: ArrayLike) -> Parameter:
    """``value`` as one number, 0 or more."""
    given = as_real_array(name, value)
    return _as_given(given, as_scalar(name, given, lambda a: a >= 0, "must not be negative"))


def _as_given(given: Any, checked: Array) -> Parameter:
    """What was given, of which ``checked`` is the array that today's flag makes."""
    if isinstance(given, jax.Array):
        return checked
    if given.ndim == 0:
        return float(given)
    is_floating = jnp.issubdtype(given.dtype, jnp.floating)
    kept = np.array(given, dtype=given.dtype if is_floating else np.float64)
    kept.flags.writeable = False
    return kept


def in_use(parameter: Parameter) -> Float[Array, "*p"]:
    """A parameter as an array: of a Python float in the default floating-point type, whatever that
    of the points, and so of one that a transformation traces.
    """
    if isinstance(parameter, float) or getattr(parameter, "weak_type", False):
        return jnp.asarray(parameter, jnp.result_type(float))
    return jnp.asarray(parameter)


def as_written(parameter: Any) -> str:
    """A parameter in the text of a kernel."""
    if is_traced(parameter):
        return "traced"
    return repr(np.asarray(parameter).tolist() if isinstance(parameter, ARRAYS) else parameter)
