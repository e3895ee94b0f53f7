"""Checks of what users pass in: every message names the argument, what was wrong and what would be
right.

They stand at the doors: public functions check their arguments and hand them to functions that
trust them, so that no array is searched for nan twice.

Checks of values need values. Under ``jax.jit``, ``jax.vmap`` and ``jax.grad`` an argument may be a
tracer, which has a shape and a dtype but no values; then the checks of values are skipped, and
those of shapes are not.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from typing_extensions import TypeAliasType


@runtime_checkable
class SupportsArray(Protocol):
    """What NumPy can convert to an array: pandas' tables, Gram matrices on disk."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray: ...


#: What the library takes where it wants an array: anything that JAX or NumPy takes, and sequences
#: of numbers too.
#: (An alias with a name: help() shows that, not what it stands for.)
ArrayLike = TypeAliasType("ArrayLike", jax.typing.ArrayLike | Sequence[Any] | SupportsArray)
#: What is taken where a dtype is wanted.
DTypeLike = TypeAliasType("DTypeLike", jax.typing.DTypeLike)


def is_traced(*values: Any) -> bool:
    """Whether any of the values (pytrees) holds a tracer, that is, has no values to look at yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def every(condition: Callable[[Any], Any], array: Array) -> bool:
    """Whether the condition holds for every entry of an array that is not traced.

    In NumPy: nothing is compiled for a check, and it works while something else is traced. Of an
    array that several processes share, each looks at its own part.
    """
    shared = isinstance(array, jax.Array) and not array.is_fully_addressable
    parts = [shard.data for shard in array.addressable_shards] if shared else [array]
    return all(bool(np.all(condition(np.asarray(part)))) for part in parts)


def as_float_array(
    name: str, value: ArrayLike, *, dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """``value`` as a real floating-point array; integers and booleans are converted, nan and inf
    refused.
    """
    if not isinstance(value, jax.Array):
        try:
            value = np.asarray(value)
        except ValueError as error:  # ragged nested sequences
            raise ValueError(
                f"{name} must be an array of numbers with one shape; {error}"
            ) from None
    if value.dtype.kind not in "fiub" and not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} must hold real numbers (float, int or bool); it has dtype {value.dtype}."
        )
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    if dtype is not None:
        array = array.astype(dtype)
    if not is_traced(array) and not every(np.isfinite, array):
        raise ValueError(f"{name} must be finite; it holds nan or inf (in {array.dtype}).")
    return array


def as_float_dtype(name: str, value: Any) -> np.dtype:
    """``value`` as a real floating-point dtype that JAX can hold now."""
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name} must be a floating-point dtype; got {value!r}.") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point dtype; got {dtype}.")
    if dtype != jax.dtypes.canonicalize_dtype(dtype):
        raise ValueError(
            f"{name} {dtype} needs x64: jax.config.update('jax_enable_x64', True) before "
            "anything else."
        )
    return dtype


def as_points(name: str, value: ArrayLike) -> Float[Array, "K ..."]:
    """``value`` as a non-empty array of points, shape (K, ...)."""
    points = as_float_array(name, value)
    if points.ndim == 0 or points.shape[0] == 0:
        raise ValueError(
            f"{name} must hold at least one point, shape (K, ...) with K >= 1; its shape is "
            f"{points.shape}."
        )
    return points


def require_one_shape(
    name1: str, points1: Float[Array, "n1 ..."], name2: str, points2: Float[Array, "n2 ..."]
) -> None:
    """Refuse two sets of points of different shapes; single numbers may be (n,) or (n, 1)."""
    shape1, shape2 = points1.shape[1:], points2.shape[1:]
    single_numbers = points1.size == len(points1) and points2.size == len(points2)
    if shape1 != shape2 and not single_numbers:
        raise ValueError(
            f"{name1} and {name2} must hold points of one shape; theirs are {shape1} and {shape2}."
        )


def as_labels(
    name: str, value: ArrayLike, num_points: int, *, dtype: DTypeLike
) -> Float[Array, "K *Q"]:
    """``value`` as labels of ``num_points`` points, shape (K,) or (K, Q)."""
    labels = as_float_array(name, value, dtype=dtype)
    if labels.ndim not in (1, 2) or labels.shape[0] != num_points or 0 in labels.shape:
        raise ValueError(
            f"{name} must have shape ({num_points},) or ({num_points}, Q), a row for each of the "
            f"{num_points} points; "
            f"its shape is {labels.shape}."
        )
    return labels


def as_positive(
    name: str, value: ArrayLike, shape: tuple[int, ...], *, dtype: DTypeLike
) -> Float[Array, "*shape"]:
    """``value`` as positive numbers, broadcast to ``shape``: a scalar, or one number for each
    output.
    """
    array = as_float_array(name, value, dtype=dtype)
    if array.shape not in ((), shape):
        expected = (
            "a scalar" if shape == () else f"a scalar or have shape {shape}, one for each output"
        )
        raise ValueError(f"{name} must be {expected}; its shape is {array.shape}.")
    if not is_traced(array) and not every(lambda a: a > 0, array):
        raise ValueError(f"{name} must be positive; got {value} (in {array.dtype}).")
    return jnp.broadcast_to(array, shape)


def as_unit_interval(name: str, value: ArrayLike, *, dtype: DTypeLike) -> Float[Array, ""]:
    """``value`` as one number from 0 to 1."""
    array = as_float_array(name, value, dtype=dtype)
    if array.shape != ():
        raise ValueError(f"{name} must be a scalar; its shape is {array.shape}.")
    if not is_traced(array) and not 0 <= float(array) <= 1:
        raise ValueError(f"{name} must lie between 0 and 1; got {value}.")
    return array


def as_count(name: str, value: Any, *, at_least: int) -> int:
    """``value`` as a Python integer that is at least ``at_least``."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, not a boolean.")
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer; got {value!r}.") from None
    if count < at_least:
        raise ValueError(f"{name} must be at least {at_least}; got {count}.")
    return count


def as_scale(name: str, value: ArrayLike) -> Float[Array, "..."]:
    """``value`` as a positive length: a scalar, or one for each coordinate."""
    array = as_float_array(name, value)
    if array.ndim > 1:
        raise ValueError(
            f"{name} must be a scalar or one-dimensional (one for each coordinate); got shape "
            f"{array.shape}."
        )
    return as_positive(name, array, array.shape, dtype=array.dtype)


def format_number(value: float) -> str:
    """A number for a message: eight digits, in whichever notation is shorter."""
    return f"{value:.8g}" if math.isfinite(value) else str(value)
