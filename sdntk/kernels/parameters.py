"""Parameters of kernels: kept as they were given, and taken to arrays where they are used.

A Python float stays one. An array made of it has the precision of the flag jax_enable_x64 as it was
then; a kernel made with the flag off would be inexact for ever.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import (
    ARRAYS,
    ArrayLike,
    as_parameter,
    as_real_array,
    as_scalar,
    as_scale,
    is_traced,
    shown,
)

_Kernel = TypeVar("_Kernel")

#: What a kernel holds: numbers that the flag has not touched, or what JAX was given or traces.
Parameter = float | np.ndarray | Array
#: Between the name of a part and that of its parameter, as in scikit-learn.
SEPARATOR = "__"


def as_lengths(name: str, value: ArrayLike) -> Parameter:
    """``value`` as a positive length, or one for each coordinate."""
    given = as_real_array(name, value)
    return _as_given(given, as_scale(name, given))


def as_positive_number(name: str, value: ArrayLike) -> Parameter:
    """``value`` as one positive number, as a factor or a constant must be."""
    given = as_real_array(name, value)
    expected = "must be positive, or the kernel is not positive semi-definite"
    return _as_given(given, as_scalar(name, given, lambda a: a > 0, expected))


def as_nonnegative_number(name: str, value: ArrayLike) -> Parameter:
    """``value`` as one number, 0 or more."""
    given = as_real_array(name, value)
    expected = "must be 0 or more, or the kernel may not be positive semi-definite"
    return _as_given(given, as_scalar(name, given, lambda a: a >= 0, expected))


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


# ---- by name ----


def named_parameters(kernel: Any) -> dict[str, Any]:
    """The leaves of a kernel by the names that lead to them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(kernel)
    return {jax.tree_util.keystr(path, simple=True, separator=SEPARATOR): a for path, a in leaves}


def with_parameters(kernel: _Kernel, values: Mapping[str, Any]) -> _Kernel:
    """The kernel with some of its leaves replaced.

    Raises:
        ValueError: it has no parameter of a name. TypeError, ValueError: a value is not one that
            its part takes.
    """
    known = named_parameters(kernel)
    for name in values:
        if name not in known:
            have = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{name} is no parameter of {shown(kernel)}: {have}.")
    new = {name: _checked(kernel, name, name, value) for name, value in values.items()}
    return jax.tree.unflatten(jax.tree.structure(kernel), (known | new).values())


def _checked(kernel: Any, path: str, name: str, value: Any) -> Any:
    """A value for the parameter that ``path`` leads to, ``name`` from the kernel that was asked."""
    head, _, rest = path.partition(SEPARATOR)
    part = getattr(kernel, head, None)
    if rest and hasattr(part, "parameter_checks"):
        return _checked(part, rest, name, value)
    if head in kernel.parameter_checks:
        return kernel.parameter_checks[head](name, value)
    array, shape = as_parameter(name, value), np.shape(named_parameters(kernel)[path])
    if array.shape != shape:  # a network's weights
        raise ValueError(f"{name} must have shape {shape}; its shape is {array.shape}.")
    return array
