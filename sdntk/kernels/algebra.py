"""Sums, products, multiples and powers of kernels, and kernels that see some columns.

All are positive semi-definite if their parts are: sums and positive multiples of positive
semi-definite matrices are, and so are products entry by entry (Schur 1911). A part checks its own
points, knows its own precision and keeps its own parameters; NumPy's arithmetic on the parts' Gram
matrices gives the same values.
"""

import abc
from dataclasses import field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sdntk._arguments import (
    ARRAYS,
    ArrayLike,
    as_count,
    as_points,
    as_sequence,
    is_traced,
    shown,
)
from sdntk._pytrees import pytree
from sdntk.kernels.base import LibraryKernel, as_pytree_kernel, kernel_block
from sdntk.kernels.dot_products import Constant
from sdntk.kernels.parameters import Parameter, as_positive_number, as_written

_Values = TypeVar("_Values")


class Composed(LibraryKernel):
    """A kernel whose values are made from those of its parts, entry by entry."""

    @property
    @abc.abstractmethod
    def parts(self) -> tuple[LibraryKernel, ...]:
        """The kernels that it is made from."""

    @abc.abstractmethod
    def combine(self, *values: Any) -> Any:
        """Its values from those of its parts."""

    @abc.abstractmethod
    def spread(self, largest: list[Any], errors: list[Any]) -> Any:
        """The largest error of a value from the parts' largest values and errors."""

    @property
    def has_known_leaves(self) -> bool:
        """Whether those of all parts are known."""
        return all(part.has_known_leaves for part in self.parts)

    def check(self, name: str, points: ArrayLike) -> Float[Array, "n ..."]:
        """``points`` as an array that every part takes."""
        x = as_points(name, points)
        for part in self.parts:
            part.check(name, x)
        return x

    def require_one_shape(
        self, name1: str, x1: Float[Array, "n1 ..."], name2: str, x2: Float[Array, "n2 ..."]
    ) -> None:
        """Refuse two sets of points of different shapes in the coordinates of a part."""
        for part in self.parts:
            part.require_one_shape(name1, x1, name2, x2)

    def block(
        self, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]
    ) -> Float[Array, "n1 n2"]:
        """g(x1_i, x2_j) for all pairs of points that :meth:`check` let pass."""
        return self.combine(*(kernel_block(part, x1, x2) for part in self.parts))

    def diagonal(self, x: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """g(x_i, x_i) of points that :meth:`check` let pass."""
        return self.combine(*(part.diagonal(x) for part in self.parts))

    def precision(self, x: ArrayLike) -> float | Float[Array, ""]:
        """The largest error of a value beyond rounding, from those of the parts.

        The values of a positive semi-definite kernel are bounded by its diagonal (Cauchy-Schwarz).
        """
        points = self.check("x", x)
        errors = [part.precision(points) for part in self.parts]
        if all(isinstance(error, float) and error == 0 for error in errors):
            return 0.0
        with jax.ensure_compile_time_eval():  # of what is known, while others are traced
            largest = [jnp.max(jnp.abs(part.diagonal(points))) for part in self.parts]
            error = lax.stop_gradient(jnp.asarray(self.spread(largest, errors)))
        return error if is_traced(error) else float(error)


class _OfTwo(Composed):
    """A composed kernel of two parts, its fields ``k1`` and ``k2``."""

    k1: LibraryKernel
    k2: LibraryKernel

    @property
    def parts(self) -> tuple[LibraryKernel, ...]:
        return self.k1, self.k2


@pytree
class Sum(_OfTwo):
    """The kernel ``k1 + k2``."""

    k1: LibraryKernel
    k2: LibraryKernel

    def combine(self, *values: Any) -> Any:
        return values[0] + values[1]

    def spread(self, largest: list[Any], errors: list[Any]) -> Any:
        del largest
        return errors[0] + errors[1]

    def __repr__(self) -> str:
        # A constant beside anything else is written as the number that it was.
        is_constant = [isinstance(part, Constant) for part in self.parts]
        left, right = (
            as_written(part.value)
            if isinstance(part, Constant) and not all(is_constant)
            else _text(part, binding)
            for part, binding in zip(self.parts, (1, 2), strict=True)
        )
        return f"{left} + {right}"


@pytree
class Product(_OfTwo):
    """The kernel ``k1 * k2``."""

    k1: LibraryKernel
    k2: LibraryKernel

    def combine(self, *values: Any) -> Any:
        return values[0] * values[1]

    def spread(self, largest: list[Any], errors: list[Any]) -> Any:
        return largest[0] * errors[1] + largest[1] * errors[0] + errors[0] * errors[1]

    def __repr__(self) -> str:
        return f"{_text(self.k1, 2)} * {_text(self.k2, 3)}"


class _OfOne(Composed):
    """A composed kernel of one part, its field ``kernel``."""

    kernel: LibraryKernel

    @property
    def parts(self) -> tuple[LibraryKernel, ...]:
        return (self.kernel,)


@pytree
class Scaled(_OfOne):
    """The kernel ``factor * kernel``."""

    factor: Parameter
    kernel: LibraryKernel

    parameter_checks = {"factor": as_positive_number}  # noqa: RUF012

    def combine(self, *values: Any) -> Any:
        return self.factor * values[0]

    def spread(self, largest: list[Any], errors: list[Any]) -> Any:
        del largest
        return self.factor * errors[0]

    def __repr__(self) -> str:
        return f"{as_written(self.factor)} * {_text(self.kernel, 3)}"


@pytree
class Power(_OfOne):
    """The kernel ``kernel ** exponent``."""

    kernel: LibraryKernel
    exponent: int = field(metadata={"static": True})

    def combine(self, *values: Any) -> Any:
        return values[0] ** self.exponent

    def spread(self, largest: list[Any], errors: list[Any]) -> Any:
        # (a + e)^n - a^n <= n (a + e)^(n-1) e, without a difference of nearly equal numbers.
        return self.exponent * (largest[0] + errors[0]) ** (self.exponent - 1) * errors[0]

    def __repr__(self) -> str:
        return f"{_text(self.kernel, 4)} ** {self.exponent}"


@pytree
class OnColumns(LibraryKernel):
    """The kernel that :func:`on_columns` returns."""

    kernel: LibraryKernel
    columns: tuple[int, ...] = field(metadata={"static": True})

    @property
    def has_known_leaves(self) -> bool:
        """Whether those of the kernel are known."""
        return self.kernel.has_known_leaves

    def check(self, name: str, points: ArrayLike) -> Float[Array, "n p"]:
        """``points`` as a table with these columns, which the kernel takes."""
        x = as_points(name, points)
        if x.ndim != 2 or x.shape[1] <= max(self.columns):
            raise ValueError(
                f"{name} must be a table, shape (n, p) with p > {max(self.columns)}, for a kernel "
                f"on its columns {list(self.columns)}; its shape is {x.shape}."
            )
        with jax.ensure_compile_time_eval():  # what has values keeps them while others are traced
            seen = self._seen(x)
        self.kernel.check(f"{name}[:, {list(self.columns)}]", seen)
        return x

    def require_one_shape(
        self, name1: str, x1: Float[Array, "n1 p1"], name2: str, x2: Float[Array, "n2 p2"]
    ) -> None:
        """Refuse two tables with different numbers of columns."""
        super().require_one_shape(name1, x1, name2, x2)
        self.kernel.require_one_shape(name1, self._seen(x1), name2, self._seen(x2))

    def _seen(self, x: Float[Array, "n p"]) -> Float[Array, "n q"]:
        return x[:, np.asarray(self.columns)]

    def block(self, x1: Float[Array, "n1 p"], x2: Float[Array, "n2 p"]) -> Float[Array, "n1 n2"]:
        """g(x1_i, x2_j) for all pairs of points that :meth:`check` let pass."""
        return kernel_block(self.kernel, self._seen(x1), self._seen(x2))

    def diagonal(self, x: Float[Array, "n p"]) -> Float[Array, " n"]:
        """g(x_i, x_i) of points that :meth:`check` let pass."""
        return self.kernel.diagonal(self._seen(x))

    def precision(self, x: ArrayLike) -> float | Float[Array, ""]:
        """That of the kernel on its columns."""
        return self.kernel.precision(self._seen(self.check("x", x)))

    def __repr__(self) -> str:
        return f"on_columns({self.kernel}, {list(self.columns)})"


@pytree
class FromFunction(LibraryKernel):
    """A function of the user's as a part of another kernel."""

    function: Any  # a pytree, most often without leaves

    @property
    def has_known_leaves(self) -> bool:
        """Nothing is known of what a function depends on."""
        return False

    def block(
        self, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]
    ) -> Float[Array, "n1 n2"]:
        """What the function returns, checked for its shape and dtype."""
        return kernel_block(self.function, x1, x2)

    def diagonal(self, x: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """g(x_i, x_i), from blocks: the function may be NumPy's, which JAX cannot batch."""
        few = 16
        blocks = [x[start : start + few] for start in range(0, len(x), few)]
        return jnp.concatenate([jnp.diagonal(self.block(part, part)) for part in blocks])

    def __repr__(self) -> str:
        function = getattr(self.function, "func", self.function)
        return getattr(function, "__name__", None) or repr(function)


# ---- how they are made and written ----


def add(k1: Any, k2: Any) -> LibraryKernel:
    """``k1 + k2`` of kernels, functions and positive numbers, which stand for constants.

    Raises:
        ValueError, TypeError: a number is not positive.
    """
    left, right = (
        Constant(as_positive_number("a number added to a kernel", k))
        if _is_number(k)
        else _as_kernel(k)
        for k in (k1, k2)
    )
    return NotImplemented if left is None or right is None else Sum(left, right)


def multiply(k1: Any, k2: Any) -> LibraryKernel:
    """``k1 * k2`` of kernels, functions and a positive number.

    Raises:
        ValueError, TypeError: a number is not positive.
    """
    if _is_number(k1) or _is_number(k2):
        factor, kernel = (k1, k2) if _is_number(k1) else (k2, k1)
        return Scaled(as_positive_number("the factor of a kernel", factor), kernel)
    left, right = _as_kernel(k1), _as_kernel(k2)
    return NotImplemented if left is None or right is None else Product(left, right)


def power(kernel: LibraryKernel, exponent: Any) -> LibraryKernel:
    """``kernel ** exponent``, the product of so many.

    Raises:
        ValueError, TypeError: ``exponent`` is not an integer, 1 or more: of other powers it is not
            known that they are positive semi-definite.
    """
    return Power(kernel, as_count("exponent", exponent, at_least=1))


def on_columns(kernel: Any, columns: Any) -> OnColumns:
    """The kernel on some columns of a table: g(x[:, columns], x'[:, columns]).

    Sums and products of kernels on different columns treat groups of features each in their own
    way.

    Args:
        kernel: a kernel, or a function of two arrays of points.
        columns: the numbers of different columns, from 0, in the order in which the kernel takes
            them.

    Raises:
        TypeError: ``kernel`` is not a function, ``columns`` are not integers. ValueError: a column
            is negative or occurs twice, or there is none; on the call, points have too few columns.

    Example:
        >>> from sdntk.kernels import linear, rbf
        >>> kernel = on_columns(rbf(1.0), [0, 1]) + on_columns(linear(), [2])
        >>> kernel(jnp.array([[0.0, 0.0, 3.0]]), jnp.array([[0.0, 0.0, 5.0]])).tolist()
        [[16.0]]
    """
    part = _as_kernel(kernel)
    if part is None:
        raise TypeError(f"kernel must be a function of two arrays of points; got {shown(kernel)}.")
    numbers = tuple(as_count("columns", c, at_least=0) for c in as_sequence("columns", columns))
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(
            "columns must hold the numbers of different columns, at least one; got "
            f"{shown(columns)}."
        )
    return OnColumns(part, numbers)


def _as_kernel(value: Any) -> LibraryKernel | None:
    """A kernel, or a function as one; None for anything else."""
    if isinstance(value, LibraryKernel):
        return value
    if not callable(value) or isinstance(value, type):
        return None
    return FromFunction(as_pytree_kernel(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (*ARRAYS, int, float))


#: How strongly the signs bind, from + to a kernel by itself.
_BINDING = {Sum: 1, Product: 2, Scaled: 2, Power: 3}


def _text(kernel: LibraryKernel, least: int) -> str:
    """A kernel as a part of another, in parentheses where it binds more weakly than ``least``."""
    return f"({kernel})" if _BINDING.get(type(kernel), 4) < least else repr(kernel)
