"""Kernels of inner products, constants, and why white noise is none."""

from dataclasses import field
from typing import Any, NoReturn

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_count
from sdntk._pytrees import pytree
from sdntk.kernels.base import Kernel
from sdntk.kernels.parameters import (
    Parameter,
    as_nonnegative_number,
    as_positive_number,
    as_written,
    in_use,
)


def _inner_product(x: Float[Array, " p"], t: Float[Array, " p"]) -> Float[Array, ""]:
    return jnp.dot(x, t, precision=lax.Precision.HIGHEST)


@pytree
class Linear(Kernel):
    """The kernel that :func:`linear` returns."""

    def pair(self, x: Float[Array, " p"], t: Float[Array, " p"]) -> Float[Array, ""]:
        return _inner_product(x, t)

    def __repr__(self) -> str:
        return "linear()"


def linear() -> Linear:
    """The inner product, g(x, x') = <x, x'>: its functions are linear ones, f(x) = <w, x>, and
    their penalty is |w|^2.

    With an intercept, whose square is penalised as well: ``linear() + 1.0``. Values have the dtype
    of the points. Source: Rasmussen and Williams 2006, section 4.2.2.

    Example:
        >>> linear()(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])).tolist()
        [[11.0]]
    """
    return Linear()


@pytree
class Polynomial(Kernel):
    """The kernel that :func:`polynomial` returns."""

    bias: Parameter
    degree: int = field(metadata={"static": True})

    parameter_checks = {"bias": as_nonnegative_number}  # noqa: RUF012

    def pair(self, x: Float[Array, " p"], t: Float[Array, " p"]) -> Float[Array, ""]:
        return (_inner_product(x, t) + in_use(self.bias)) ** self.degree

    def __repr__(self) -> str:
        return f"polynomial({self.degree}, {as_written(self.bias)})"


def polynomial(degree: int, bias: ArrayLike = 1.0) -> Polynomial:
    """The polynomial kernel, g(x, x') = (<x, x'> + bias)^degree: its functions are the polynomials
    of that degree, or with bias 0 the homogeneous ones.

    scikit-learn's ``polynomial_kernel`` with gamma = 1 and coef0 = bias. Source: Rasmussen and
    Williams 2006, section 4.2.2.

    Args:
        degree: an integer, 1 or more.
        bias: a number, 0 or more: of a negative one the kernel may not be positive semi-definite.

    Raises:
        ValueError, TypeError: ``degree`` or ``bias`` is not such a number.

    Example:
        >>> polynomial(2, 1.0)(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])).tolist()
        [[144.0]]
    """
    return Polynomial(as_nonnegative_number("bias", bias), as_count("degree", degree, at_least=1))


@pytree
class Constant(Kernel):
    """The kernel that :func:`constant` returns."""

    value: Parameter

    parameter_checks = {"value": as_positive_number}  # noqa: RUF012

    def pair(self, x: Float[Array, " p"], t: Float[Array, " p"]) -> Float[Array, ""]:
        del x, t
        return in_use(self.value)

    def __repr__(self) -> str:
        return f"constant({as_written(self.value)})"


def constant(value: ArrayLike = 1.0) -> Constant:
    """The constant kernel, g(x, x') = value, whose functions are the constants: in a sum it is an
    intercept, penalised with its square over value.

    ``k + 1.0`` is ``k + constant(1.0)``.

    Args:
        value: a positive number.

    Raises:
        ValueError, TypeError: ``value`` is not positive.

    Example:
        >>> constant(2.0)(jnp.array([0.0]), jnp.array([1.0, 5.0])).tolist()
        [[2.0, 2.0]]
    """
    return Constant(as_positive_number("value", value))


def white(*_arguments: Any, **_named: Any) -> NoReturn:
    """White noise, value * [x = x'], which is refused: it is no function of the space.

    In a Gram matrix it adds value to the diagonal, and so does the multiplier: a fit with
    multiplier c solves (G + c I) a = y, G divided by the K points, so noise of variance v is
    ``multiplier=v / K``. As a kernel it would be counted twice; and between new points and training
    points it is 0, so predictions would not know of it.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "kernels.white is no kernel here: white noise is no function of the space, and the "
        "multiplier of a fit is that already. For noise of variance v on K points pass "
        "multiplier=v / K, or a tolerance=, which chooses the multiplier."
    )
