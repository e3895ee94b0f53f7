"""Values that no argument was made for, and what is legitimately good for each kind of argument."""

import datetime
import decimal
import enum
import fractions
import itertools
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.sparse

HUGE = 10**400


class Plain:
    pass


class Colour(enum.Enum):
    RED = 1


class Word(enum.StrEnum):
    RED = "red"


class Step(enum.IntEnum):
    TWO = 2


class WithGradient:
    """Like a torch tensor that requires a gradient: it has numbers, and refuses to give them."""

    shape, dtype, ndim = (3,), np.dtype(float), 1

    def __array__(self, *_, **__):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    def __len__(self):
        return 3


class Raising:
    def __repr__(self):
        raise RuntimeError("no repr")

    def __index__(self):
        raise RuntimeError("no index")

    def __float__(self):
        raise RuntimeError("no float")


class RaisingSequence(Sequence):
    def __len__(self):
        return 3

    def __getitem__(self, _):
        raise RuntimeError("no items")


class RaisingPath(os.PathLike):
    def __fspath__(self):
        raise RuntimeError("no path")


class BytesPath(os.PathLike):
    def __fspath__(self):
        return b"abc"


class Unhashable:
    __hash__ = None

    def __call__(self, *_, **__):
        return None


def deleted():
    array = jnp.arange(3.0) + 1
    array.delete()
    return array


def structured():
    return np.array([(1, 2.0)], dtype=[("a", int), ("b", float)])


MASKED = np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])

#: By name, made anew for every call.
POOL: dict[str, Callable[[], Any]] = {
    # types
    "None": lambda: None,
    "word": lambda: "abc",
    "number as a word": lambda: "1.5",
    "empty word": lambda: "",
    "word with a null": lambda: "a\0b",
    "bytes": lambda: b"12",
    "bytearray": lambda: bytearray(b"12"),
    "dict": lambda: {"a": 1},
    "empty dict": dict,
    "set": lambda: {1, 2},
    "object": object,
    "class": lambda: Plain,
    "instance": Plain,
    "generator": lambda: (i for i in (1.0, 2.0)),
    "endless": itertools.count,
    "function": lambda: lambda *_, **__: None,
    "module": lambda: np,
    "ellipsis": lambda: ...,
    "slice": lambda: slice(3),
    "true": lambda: True,
    "false": lambda: np.False_,
    "booleans": lambda: np.array([True, False, True]),
    "complex": lambda: 1j,
    "complex array": lambda: np.ones(3) * 1j,
    "date": lambda: np.datetime64("2020-01-01"),
    "python's date": lambda: datetime.date(2020, 1, 1),
    "dates": lambda: np.array(["2020-01-01"] * 3, "datetime64[D]"),
    "duration": lambda: np.timedelta64(3, "s"),
    "durations": lambda: np.arange(1, 4).astype("timedelta64[s]"),
    "decimal": lambda: decimal.Decimal("0.5"),
    "fraction": lambda: fractions.Fraction(1, 2),
    "series": lambda: pd.Series([1.0, 2.0, 3.0]),
    "series of words": lambda: pd.Series(["a", "b", "c"]),
    "series with a gap": lambda: pd.Series([1, None, 3], dtype="Int64"),
    "table": lambda: pd.DataFrame({"a": [1.0, 2.0, 3.0]}),
    "table of words": lambda: pd.DataFrame({"a": ["x", "y", "z"]}),
    "masked": lambda: MASKED.copy(),
    "masked integers": lambda: np.ma.array([0, 1, 2], mask=[False, True, False]),
    "masked number": lambda: np.ma.array(3, mask=True),
    "masked constant": lambda: np.ma.masked,
    "masked rows": lambda: [MASKED[:2], MASKED[:2], MASKED[1:]],
    "list with a masked entry": lambda: [1.0, np.ma.masked, 2.0],
    "objects": lambda: np.array([1.0, "a", None], object),
    "structured": structured,
    "words": lambda: ["a", "b", "c"],
    "array of words": lambda: np.array(["a", "b", "c"]),
    "key": lambda: jax.random.key(0),
    "keys": lambda: jax.random.split(jax.random.key(0), 3),
    "with a gradient": WithGradient,
    "list with a gradient": lambda: [WithGradient(), 1.0, 2.0],
    "raising": Raising,
    "sparse": lambda: scipy.sparse.eye(3, format="csr"),
    "ragged": lambda: [[1.0], [1.0, 2.0], [3.0]],
    "list with None": lambda: [1.0, None, 2.0],
    "raising sequence": RaisingSequence,
    "raising path": RaisingPath,
    "path of bytes": BytesPath,
    "unhashable function": Unhashable,
    "mixed keys": lambda: {1: 1.0, "a": 2.0},
    "numpy's word": lambda: np.str_("abc"),
    "void": lambda: np.void(b"ab"),
    "missing": lambda: pd.NA,
    "timestamp": lambda: pd.Timestamp("2020-01-01"),
    "categories": lambda: pd.Categorical(["a", "b", "a"]),
    "intervals": lambda: pd.interval_range(0, 3),
    "index": lambda: pd.Index([1, 2, 3]),
    "brain floats": lambda: jnp.ones(3, jnp.bfloat16),
    "complex numbers of jax": lambda: jnp.ones(3) * 1j,
    "list of booleans": lambda: [True, False, True],
    "list of dates": lambda: [np.datetime64("2020-01-01")] * 3,
    "nested lists": lambda: [[["a"]], [[1]]],
    "enum": lambda: Colour.RED,
    "word's enum": lambda: Word.RED,
    "number's enum": lambda: Step.TWO,
    "path": lambda: Path("elsewhere"),
    "deleted": deleted,
    "long doubles": lambda: np.ones(3, np.longdouble),
    "half precision": lambda: np.ones(3, np.float16),
    # shapes
    "empty list": list,
    "empty tuple": tuple,
    "empty rows": lambda: np.zeros((3, 0)),
    "no rows": lambda: np.zeros((0, 3)),
    "zero axes": lambda: np.array(0.5),
    "three axes": lambda: np.ones((3, 2, 2)),
    "six axes": lambda: np.ones((1,) * 6),
    "seven": lambda: np.linspace(0.1, 0.7, 7),
    "three": lambda: [0.1, 0.2, 0.3],
    "range": lambda: range(3),
    "not square": lambda: np.ones((3, 2)),
    "huge broadcast": lambda: np.broadcast_to(1.0, (2**20, 2**20)),
    "huge row": lambda: np.broadcast_to(1.0, (3, 2**40)),
    # ranges
    "nan": lambda: np.nan,
    "inf": lambda: np.inf,
    "nans": lambda: [np.nan, 1.0, 2.0],
    "infs": lambda: jnp.array([np.inf, 1.0, 2.0]),
    "minus infinity": lambda: -np.inf,
    "minus one": lambda: -1,
    "minus ones": lambda: -np.ones(3),
    "zero": lambda: 0,
    "zeros": lambda: np.zeros(3),
    "one and a half": lambda: 1.5,
    "subnormal": lambda: 1e-320,
    "large": lambda: 1e300,
    "huge": lambda: HUGE,
    "huge negative": lambda: -HUGE,
    "huge beyond text": lambda: 10**5000,
    "huge entry": lambda: [HUGE, 1, 2],
    "32 bits": lambda: 2**31,
    "64 bits": lambda: 2**63,
}


def numbers(value: Any, finite: bool = True) -> np.ndarray | None:
    """The value as an array of (finite) real numbers; None if it is not legitimately one."""
    parts = [value, *value] if isinstance(value, list | tuple) else [value]
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array = np.asarray(value)
    except Exception:
        return None
    is_float = jnp.issubdtype(array.dtype, jnp.floating)  # also those that NumPy does not know
    if (array.dtype.kind not in "fiub" and not is_float) or array.nbytes > 1e9:
        return None
    return array if not finite or np.isfinite(array).all() else None


@dataclass(frozen=True)
class Argument:
    """One argument: a value that is good, and what else is (``never`` tried: by name)."""

    good: Any
    accepts: Callable[[Any], bool]
    never: frozenset[str] = frozenset()


def optional(argument: Argument, good: Any = None) -> Argument:
    return Argument(good, lambda v: v is None or argument.accepts(v), argument.never)


def _array(good: Any, condition: Callable[[np.ndarray], Any]) -> Argument:
    def accepts(value):
        array = numbers(value)
        return array is not None and bool(condition(array))

    return Argument(good, accepts)


def points(good):
    return _array(good, lambda a: a.ndim > 0 and a.size > 0)


def rows(good, axes=(1, 2, 3)):
    return _array(good, lambda a: a.ndim in axes and len(a) == len(good) and a.size > 0)


def labels(good):
    return rows(good, (1, 2))


def columns(good, any_length=False):
    """Vectors, nan and infinities among them."""

    def accepts(value):
        array = numbers(value, finite=False)
        if array is None or array.ndim == 0 or array.shape[-1] == 0:
            return False
        return any_length or len(array) == len(good)

    return Argument(good, accepts)


def square(good):
    return _array(good, lambda a: a.ndim == 2 and a.shape[0] == a.shape[1] > 0)


def with_axes(good, condition=np.isfinite, axes=(1,), least=1):
    return _array(good, lambda a: a.ndim in axes and a.size >= least and np.all(condition(a)))


def any_shape(good, condition=np.isfinite):
    return _array(good, lambda a: np.all(condition(a)))


def multipliers(good, axes=range(9), nan=False):
    """Positive, infinite ones (and nan) among them."""

    def accepts(value):
        array = numbers(value, finite=False)
        if array is None or array.ndim not in axes or (array.size == 0 and 0 not in axes):
            return False
        return bool(np.all((array > 0) | (nan & np.isnan(array))))

    return Argument(good, accepts)


def number(good, condition=lambda a: a > 0):
    return _array(good, lambda a: a.ndim == 0 and a.dtype != bool and condition(a))


def per_output(good):
    return _array(good, lambda a: a.ndim < 3 and a.dtype != bool and np.all(a > 0))


def unit(good):
    return number(good, lambda a: 0 <= a <= 1)


def classes(good):
    return _array(good, lambda a: a.ndim == 1 and a.dtype.kind in "iu" and np.all(a >= 0))


def count(good, at_least=1, at_most=2**31 - 1):
    def accepts(value):
        if isinstance(value, bool | np.bool_) or numbers(value) is None:
            return False
        try:
            return at_least <= operator.index(value) <= at_most
        except Exception:
            return False

    return Argument(good, accepts)


def counts(good):
    def accepts(value):
        array = None if isinstance(value, bytearray) else numbers(value)
        return array is not None and array.ndim == 1 and all(map(count(1).accepts, array))

    return Argument(good, accepts)


def numbers_of_columns(good):
    """Of different ones, from 0."""

    def accepts(value):
        array = None if isinstance(value, bytearray) else numbers(value)
        if array is None or array.ndim != 1 or not all(map(count(1, 0).accepts, array)):
            return False
        return len(array) > 0 and len(set(array.tolist())) == len(array)

    return Argument(good, accepts)


def choice(good, *others):
    return Argument(good, lambda v: isinstance(v, str) and v in (good, *others))


def flag(good, never=()):
    return Argument(good, lambda v: isinstance(v, bool | np.bool_), frozenset(never))


def path(good):
    def accepts(value):
        return isinstance(value, str | os.PathLike) and str(value) and "\0" not in str(value)

    return Argument(good, accepts)


def mapping(good):
    return Argument(good, lambda v: isinstance(v, Mapping))


def words(good):
    def accepts(value):
        is_sequence = isinstance(value, list | tuple) and len(value) > 0
        return is_sequence and all(isinstance(item, str) for item in value)

    return Argument(good, accepts)


def only(good, *kinds):
    """An object of the library, or of these types."""
    return Argument(good, lambda v: isinstance(v, kinds))


def function(good):
    """A function that is called. What another one does is its own affair, unless it returns
    nothing.
    """
    return Argument(good, lambda _: False, frozenset({"class"}))


def or_function(argument: Argument) -> Argument:
    """Something, or a function that is called and returns it."""
    return Argument(argument.good, argument.accepts, function(None).never)


def function_kept(good):
    """A function that is kept, not called."""
    return Argument(good, callable)


def one_key(good):
    return Argument(good, lambda v: _is_key(v) and v.shape == ())


def some_keys(good):
    return Argument(good, lambda v: _is_key(v) and v.ndim == 1 and len(v) > 0)


def _is_key(value):
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def dtype(good):
    return Argument(good, lambda v: v is None)


def pytree(good):
    """Arrays in any containers."""

    def accepts(value):
        if isinstance(value, Iterator) or (
            isinstance(value, dict) and {*map(type, value)} != {str}
        ):
            return False
        leaves = jax.tree.leaves(value)
        plain = all(isinstance(leaf, jax.Array | np.ndarray | float) for leaf in leaves)
        arrays = [numbers(leaf, finite=False) for leaf in leaves]
        are_floats = [a is not None and jnp.issubdtype(a.dtype, jnp.floating) for a in arrays]
        return bool(leaves) and plain and all(are_floats)

    return Argument(good, accepts)
