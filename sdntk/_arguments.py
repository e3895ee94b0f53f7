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
import os
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from typing_extensions import TypeAliasType

from sdntk import _memory

_T = TypeVar("_T")


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
#: What is taken where a file or a folder is wanted.
PathLike = TypeAliasType("PathLike", str | os.PathLike[str])

#: Sequences that stand for one thing.
TEXT = (str, bytes, bytearray, memoryview)
#: What holds numbers by itself, without a conversion.
ARRAYS = (jax.Array, np.ndarray, np.generic)
#: No count is larger: it would not fit into the 32 bits of an index.
MOST = 2**31 - 1
#: No chain has more rounds, and nothing more classes: each takes memory of its own.
MOST_ROUNDS = MOST_CLASSES = 10**6
#: Whether an array of so many bytes fits into memory is asked before it is copied.
LARGE_BYTES = 10**8


# ---- arrays ----


def is_traced(*values: Any) -> bool:
    """Whether any of the values (pytrees) holds a tracer, that is, has no values to look at yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves_of(values))


def require_values(name: str, *values: Any) -> None:
    """Refuse tracers, and to run where all that JAX does is traced, for what looks at values."""
    if is_traced(*values, jnp.zeros(())):
        raise TypeError(f"{name} must have values: they cannot be traced (jit, vmap, derivatives).")


def leaves_of(tree: Any) -> list[Any]:
    """The leaves of a pytree; iterators, of which JAX warns, and what JAX cannot flatten count as
    leaves.
    """
    try:
        return jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Iterator))
    except (TypeError, ValueError):  # keys that cannot be sorted
        return [tree]


def every(condition: Callable[[Any], Any], array: Array) -> bool:
    """Whether the condition holds for every entry of an array that is not traced.

    In NumPy: nothing is compiled for a check, and it works while something else is traced. Of an
    array that several processes share, each looks at its own part.
    """
    shared = isinstance(array, jax.Array) and not array.is_fully_addressable
    parts = [shard.data for shard in array.addressable_shards] if shared else [array]
    return all(bool(np.all(condition(np.asarray(part)))) for part in parts)


def as_real_array(name: str, value: Any) -> Any:
    """``value`` as an array of real numbers in their own dtype, JAX's or NumPy's, not yet searched
    for nan; nothing is copied.
    """
    if not isinstance(value, jax.Array):
        value = _as_numpy(name, value)
    elif not is_traced(value) and value.is_deleted():
        raise ValueError(f"{name} must have values; this array was donated, and JAX deleted it.")
    kind = getattr(value.dtype, "kind", None)  # JAX's keys have none
    if kind not in {"f", "i", "u", "b"} and not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} must hold real numbers (float, int or bool); it has dtype {value.dtype}."
        )
    return value


def _as_numpy(name: str, value: Any) -> Any:
    """``value`` as NumPy takes it, or as JAX does where it is a sequence of tracers."""
    parts = [value, *value] if isinstance(value, list | tuple) else [value]
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise ValueError(
            f"{name} must have no masked entries, since NumPy would take what lies under the mask: "
            "fill them, or leave their points out."
        )
    try:
        array = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return jnp.asarray(value)
    except Exception as error:  # __array__ may raise anything
        kind = ValueError if isinstance(error, ValueError) else TypeError  # ragged sequences
        raise kind(f"{name} must be an array of numbers with one shape; {error}") from None
    if array.nbytes > LARGE_BYTES:
        description = f"{name}, an array of shape {array.shape},"
        _memory.require_memory(array.nbytes, description, ways_out="fewer entries")
    if array.dtype.kind == "f" and array.itemsize > 8:  # JAX knows no longer ones
        return array.astype(np.float64)
    return array


def as_float_array(
    name: str, value: ArrayLike, *, dtype: DTypeLike | None = None, finite: bool | None = True
) -> Float[Array, "..."]:
    """``value`` as a real floating-point array; integers and booleans are converted, nan and
    (unless ``finite`` is off) inf refused; with None, neither is searched for.
    """
    real = as_real_array(name, value)
    with jax.ensure_compile_time_eval():  # what has values keeps them while others are traced
        array = jnp.asarray(real)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(jnp.result_type(float))
        if dtype is not None:
            array = array.astype(dtype)
    if is_traced(array) or finite is None:
        return array
    if finite and not every(np.isfinite, array):
        raise ValueError(f"{name} must be finite; it holds nan or inf (in {array.dtype}).")
    if not finite and not every(lambda a: a == a, array):
        raise ValueError(f"{name} must hold numbers; it holds nan.")
    return array


def as_points(name: str, value: ArrayLike) -> Float[Array, "K ..."]:
    """``value`` as a non-empty array of points, shape (K, ...)."""
    points = as_float_array(name, value)
    if points.ndim == 0 or points.size == 0:
        raise ValueError(
            f"{name} must hold at least one point, shape (K, ...) with K >= 1; its shape is "
            f"{points.shape}."
        )
    return points


def require_one_shape(
    name1: str, points1: Float[Any, "n1 ..."], name2: str, points2: Float[Any, "n2 ..."]
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


def as_columns(
    name: str, value: ArrayLike, num_rows: int, dtype: DTypeLike, *, most_axes: int = 64
) -> Float[Array, "m *P"]:
    """``value`` as vectors of ``num_rows`` numbers, shape (m, ...), in no smaller dtype; nan may be
    among them, as after an infeasible round.
    """
    array = jnp.asarray(as_real_array(name, value))
    array = array.astype(jnp.promote_types(array.dtype, dtype))
    if not 1 <= array.ndim <= most_axes or len(array) != num_rows or array.size == 0:
        more = "..." if most_axes > 2 else "Q"
        raise ValueError(
            f"{name} must have shape ({num_rows}, {more}); its shape is {array.shape}."
        )
    return array


def as_positive(
    name: str, value: ArrayLike, shape: tuple[int, ...], *, dtype: DTypeLike
) -> Float[Array, "*shape"]:
    """``value`` as positive numbers, broadcast to ``shape``: a scalar, or one number for each
    output.
    """
    array = as_parameter(name, value, dtype)
    if array.shape not in ((), shape):
        expected = (
            "a scalar" if shape == () else f"a scalar or have shape {shape}, one for each output"
        )
        raise ValueError(f"{name} must be {expected}; its shape is {array.shape}.")
    require_every(name, array, lambda a: a > 0, "must be positive")
    return jnp.broadcast_to(array, shape)


def as_unit_interval(name: str, value: ArrayLike, *, dtype: DTypeLike) -> Float[Array, ""]:
    """``value`` as one number from 0 to 1."""
    return as_scalar(
        name, value, lambda a: (a >= 0) & (a <= 1), "must lie between 0 and 1", dtype=dtype
    )


def as_round_weights(
    name: str, value: ArrayLike, rounds: int, *, dtype: DTypeLike
) -> Float[Array, "*t"]:
    """``value`` as one real number, or one for each round after the first."""
    array = as_parameter(name, value, dtype)
    if array.shape not in ((), (rounds - 1,)):
        raise ValueError(
            f"{name} must be a scalar or have shape ({rounds - 1},), a number for each of "
            f"{rounds} rounds but the first; its shape is {array.shape}."
        )
    return array


def as_scalar(
    name: str,
    value: ArrayLike,
    condition: Callable[[Any], Any],
    expected: str,
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, ""]:
    """``value`` as one number, which may be traced."""
    array = as_parameter(name, value, dtype)
    if array.shape != ():
        raise ValueError(f"{name} must be a scalar; its shape is {array.shape}.")
    require_every(name, array, condition, expected)
    return array


def as_scale(name: str, value: ArrayLike) -> Float[Array, "..."]:
    """``value`` as a positive length: a scalar, or one for each coordinate."""
    array = as_parameter(name, value)
    if array.ndim > 1 or array.size == 0:
        raise ValueError(
            f"{name} must be a scalar or one-dimensional (one for each coordinate); got shape "
            f"{array.shape}."
        )
    return as_positive(name, array, array.shape, dtype=array.dtype)


def as_parameter(
    name: str, value: ArrayLike, dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """``value`` as numbers that are no labels, hence no booleans."""
    return as_float_array(name, _not_boolean(name, as_real_array(name, value)), dtype=dtype)


def _not_boolean(name: str, array: Any) -> Any:
    if array.dtype == bool:
        raise TypeError(f"{name} must be a number, not a boolean.")
    return array


def require_every(name: str, array: Array, condition: Callable[[Any], Any], expected: str) -> None:
    """Refuse an array, unless it is traced, with an entry for which the condition does not hold."""
    if not is_traced(array) and not every(condition, array):
        raise ValueError(f"{name} {expected}; got {shown(array)} (in {array.dtype}).")


# ---- plain Python values, which are never traced ----


def as_count(name: str, value: Any, *, at_least: int, at_most: int = MOST) -> int:
    """``value`` as a Python integer from ``at_least`` to ``at_most``."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool":
        raise TypeError(f"{name} must be an integer, not a boolean.")
    try:
        count = operator.index(value)
    except Exception:  # __index__ may raise anything
        raise TypeError(f"{name} must be an integer; got {shown(value)}.") from None
    if np.ma.is_masked(value):
        raise ValueError(f"{name} must be an integer; it is masked.")
    if count < at_least:
        raise ValueError(f"{name} must be at least {at_least}; got {shown(count)}.")
    if count > at_most:
        raise ValueError(f"{name} must be at most {at_most}; got {shown(count)}.")
    return count


def as_number(name: str, value: Any, condition: Callable[[float], bool], expected: str) -> float:
    """``value`` as a finite Python number for which the condition holds."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} must be a Python number, which cannot be traced; got {value!r}.")
    real = _not_boolean(name, as_real_array(name, value))
    if real.shape != ():
        raise TypeError(f"{name} must be a Python number; got an array of shape {real.shape}.")
    number = float(real)
    if not (math.isfinite(number) and condition(number)):
        raise ValueError(f"{name} {expected}; got {number}.")
    return number


def as_flag(name: str, value: Any) -> bool:
    """``value`` as a Python boolean: nothing else is taken for one."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False; got {shown(value)}.")
    return bool(value)


def as_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """``value`` as one of several words."""
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        words = f"{', '.join(others)} or {last}" if others else last
        one_of = "one of " if len(others) > 1 else ""
        raise ValueError(f"{name} must be {one_of}{words}; got {shown(value)}.")
    return value


def as_path(name: str, value: Any) -> Path:
    """``value`` as the path of a file or a folder."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, a str or a pathlib.Path; got {shown(value)}.")
    try:
        text = os.fspath(value)
    except Exception:  # __fspath__ may raise anything
        text = ""
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{name} must name a file or a folder; got {shown(value)}.")
    return Path(text)


def as_sequence(name: str, value: Any) -> list[Any]:
    """``value`` as a list of what it holds: a list, a tuple, a range or an array of one axis."""
    if hasattr(value, "__array__"):
        value = as_real_array(name, value)
    is_array = isinstance(value, ARRAYS) and value.ndim == 1
    if not is_array and (not isinstance(value, Sequence) or isinstance(value, TEXT)):
        raise TypeError(f"{name} must be a sequence; got {shown(value)}.")
    try:
        return list(value)
    except Exception as error:  # __getitem__ may raise anything
        raise TypeError(f"{name} must be a sequence that can be read; {error}.") from None


def as_float_dtype(name: str, value: Any, *, on_host: bool = False) -> np.dtype:
    """``value`` as a real floating-point dtype that JAX can hold now, or (on the host) NumPy."""
    try:
        if hasattr(value, "dtype") and not isinstance(value, type):
            raise TypeError  # NumPy would take the dtype of an array
        dtype = np.dtype(value)
    except Exception:
        raise TypeError(f"{name} must be a floating-point dtype; got {shown(value)}.") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point dtype; got {dtype}.")
    if not on_host and dtype != jax.dtypes.canonicalize_dtype(dtype):
        raise ValueError(
            f"{name} {dtype} needs x64: jax.config.update('jax_enable_x64', True) before "
            "anything else."
        )
    return dtype


def as_key(name: str, value: Any) -> Array:
    """``value`` as one JAX key, of the new kind (a scalar) or the old one (a vector of uint32)."""
    if _key_shape(value) != ():
        raise TypeError(
            f"{name} must be one JAX key, such as jax.random.key(0); got {shown(value)}."
        )
    return value


def as_keys(name: str, value: Any) -> Array:
    """``value`` as a non-empty vector of JAX keys, of the new kind or the old one."""
    shape = _key_shape(value)
    if shape is None:
        raise TypeError(
            f"{name} must hold a JAX key for each network, as jax.random.split(key, count) gives; "
            f"got {shown(value)}."
        )
    if len(shape) != 1 or shape == (0,):
        raise ValueError(
            f"{name} must hold a JAX key for each network, as jax.random.split(key, count) gives; "
            f"these have shape {shape}."
        )
    return value


def _key_shape(value: Any) -> tuple[int, ...] | None:
    """The shape of an array of keys; None for anything else."""
    if not isinstance(value, jax.Array):
        return None
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.shape
    try:  # of the old kind: numbers, whose last axis has the length that the generator takes
        return jax.eval_shape(jax.random.wrap_key_data, value).shape
    except (TypeError, ValueError):
        return None


def require_function(name: str, value: Any, of: str, *, compiled: bool = False) -> None:
    """Refuse what cannot be called or, of what JAX compiles for each function, not be hashed."""
    if not callable(value):
        raise TypeError(f"{name} must be a function of {of}; got {shown(value)}.")
    if compiled and not isinstance(value, Hashable):
        raise TypeError(f"{name} must be hashable, to be compiled once; {shown(value)} is not.")


def require_type(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    """Refuse an object of another type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {expected}; got {shown(value)}.")


# ---- values in messages ----


def shown(value: Any) -> str:
    """A value for a message: its text if that is short and can be had, else its type."""
    try:
        text = str(value) if isinstance(value, jax.Array | np.generic) else repr(value)
    except Exception:  # __repr__ may raise anything
        text = ""
    if not text or len(text) > 80 or "\n" in text:
        return f"a value of type {type(value).__name__}"
    return text


def format_number(value: float) -> str:
    """A number for a message: eight digits, in whichever notation is shorter."""
    return f"{value:.8g}" if math.isfinite(value) else str(value)
