"""Points and their labels in blocks, read anew in every pass: arrays, memory maps, or blocks that a
function yields. No more than a block of them is in memory unless they are.
"""

import inspect
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sdntk._arguments import (
    ArrayLike,
    as_float_array,
    as_labels,
    as_real_array,
    is_traced,
    require_one_shape,
    shown,
)
from sdntk.kernels.base import KernelFunction, check_points


class Block(NamedTuple):
    """Consecutive points.

    Attributes:
        x: shape (n, ...), that the kernel takes.
        y: their labels, shape (n,) or (n, Q).
    """

    x: Float[np.ndarray, "n ..."]
    y: Float[np.ndarray, "n *Q"]

    @property
    def checksum(self) -> int:
        """Of its bytes."""
        return zlib.crc32(self.y.tobytes(), zlib.crc32(self.x.tobytes()))


class PointBlocks:
    """Points with labels, of which each pass yields blocks of a size.

    Attributes:
        kernel: that takes them.
        num_points: K; 0 until a function's blocks have been counted, by :meth:`draw`.
        num_outputs: Q, or 1; likewise.
        in_double: whether points are handed out in float64, whatever they are kept in.
    """

    def __init__(self, kernel: KernelFunction, x: Any, y: Any, *, in_double: bool = False) -> None:
        if is_traced(x, y):
            raise TypeError("x and y must have values: they cannot be traced (jit, vmap).")
        self.kernel = kernel
        self.in_double = in_double and _float() == np.float64
        self.num_points = self.num_outputs = 0
        self._make = x if callable(x) else None
        if self._make is not None:
            _require_no_arguments(self._make)
            if y is not None:
                raise ValueError("y must be left out where x is a function, which yields it, too.")
            return
        self._x = _as_rows("x", x)
        self.num_points = len(self._x)
        if y is None:
            raise ValueError("y must be given, unless x is a function that yields blocks (x, y).")
        self._y = np.asarray(as_labels("y", y, len(self._x), dtype=_float()))
        self.num_outputs = self._y[0].size

    def blocks(self, size: int) -> Iterator[Block]:
        """All points, in order, in blocks of ``size``; smaller ones where there are no more, or a
        function's own blocks end.

        Raises:
            TypeError, ValueError: what a function yields are no pairs of points and labels, or
                points that the kernel does not take.
        """
        for number, (x, y) in enumerate(self._own_blocks(size)):
            name = "x" if self._make is None else f"x of block {number}"
            for start in range(0, len(y), size):
                points = check_points(self.kernel, name, x[start : start + size])
                yield Block(self.cast(points), y[start : start + size])

    def cast(self, points: Any) -> Float[np.ndarray, "n ..."]:
        """Points in the dtype in which they are handed out."""
        return np.asarray(points, np.float64 if self.in_double else None)

    def _own_blocks(self, size: int) -> Iterator[tuple[Any, Float[np.ndarray, "n *Q"]]]:
        if self._make is None:
            for start in range(0, len(self._x), size):
                yield self._x[start : start + size], self._y[start : start + size]
            return
        first: Any = None
        for number, pair in enumerate(_as_iterator(self._make())):
            x, y = _as_pair(number, pair)
            first = (x[:1], y[:1]) if first is None else first
            require_one_shape(f"x of block {number}", x, "the block before", first[0])
            if y.shape[1:] != first[1].shape[1:]:
                raise ValueError(
                    f"y of block {number} must have shape (n, Q) or (n,) as that of the block "
                    f"before has; theirs are {y.shape[1:]} and {first[1].shape[1:]} behind n."
                )
            yield x, y
        if first is None:
            raise ValueError("x must yield at least one block of points.")

    def draw(self, wanted: Sequence[tuple[int, jax.Array]]) -> list[Float[np.ndarray, "n ..."]]:
        """Numbers of points at random, each by a key of its own: each point at most once, in random
        order; all of fewer. Those of a function take a pass, which counts them.
        """
        drawn = [_Drawn(number, key) for number, key in wanted]
        if self._make is None:
            rows = np.arange(len(self._x))
            for one in drawn:
                one.offer(0, rows)
            return [self.cast(check_points(self.kernel, "x", self._x[one.points])) for one in drawn]
        self.num_points = 0
        for index, block in enumerate(self.blocks(2**31)):
            for one in drawn:
                one.offer(index, block.x)
            self.num_points += len(block.x)
            self.num_outputs = block.y[0].size
        return [one.points for one in drawn]


class _Drawn:
    """Points of the least random numbers among all that were offered, however many come."""

    def __init__(self, number: int, key: jax.Array) -> None:
        self.number, self.key = number, key
        self.priorities = np.zeros(0)
        self.points: Any = None

    def offer(self, index: int, points: np.ndarray) -> None:
        """Points (or their numbers) of the block of that index."""
        bits = jax.random.bits(jax.random.fold_in(self.key, index), (2,), np.uint32)
        own = np.random.default_rng(np.asarray(bits)).random(len(points))
        own_least = own.argsort(kind="stable")[: self.number]
        priorities = np.concatenate([self.priorities, own[own_least]])
        offered = points[own_least]
        all_points = offered if self.points is None else np.concatenate([self.points, offered])
        least = priorities.argsort(kind="stable")[: self.number]
        self.priorities, self.points = priorities[least], all_points[least]


def _float() -> Any:
    return jax.dtypes.canonicalize_dtype(float)


def _require_no_arguments(function: Any) -> None:
    try:
        inspect.signature(function).bind()
    except TypeError:
        raise TypeError(
            "x must be an array of points, or a function without arguments that yields blocks "
            f"(x, y); {shown(function)} takes some."
        ) from None
    except ValueError:  # a function that does not tell
        return


def _as_rows(name: str, value: ArrayLike) -> np.ndarray:
    """Points as they lie, in memory or on disk."""
    rows = as_real_array(name, value)
    if rows.ndim == 0 or rows.size == 0:
        raise ValueError(
            f"{name} must hold at least one point, shape (K, ...) with K >= 1; its shape is "
            f"{rows.shape}."
        )
    return rows if isinstance(rows, np.ndarray) else np.asarray(rows)


def _as_iterator(blocks: Any) -> Iterator[Any]:
    try:
        return iter(blocks)
    except TypeError:
        raise TypeError(
            f"x, a function without arguments, must return an iterator of blocks (x, y); it "
            f"returned {shown(blocks)}."
        ) from None


def _as_pair(number: int, pair: Any) -> tuple[Any, Float[np.ndarray, "n *Q"]]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"x must yield pairs (x, y); block {number} is {shown(pair)}.")
    x = _as_rows(f"x of block {number}", pair[0])
    labels = as_float_array(f"y of block {number}", pair[1], dtype=_float())
    return x, np.asarray(as_labels(f"y of block {number}", labels, len(x), dtype=_float()))
