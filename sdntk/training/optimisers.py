"""Gauss-Newton in function space, in optax's form: the regularised optimum of a network on few
points in a few steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

#: A step is halved at most so often while it makes the objective larger; then none is taken.
MOST_HALVINGS = 12


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """mean((f(theta) - y)^2) + penalty |theta - theta_0|^2, with what Gauss-Newton has to know of
    f.

    Attributes:
        outputs: theta to f, shape (K, Q).
        tangent_kernel: theta to J J^T, shape (K Q, K Q), J the Jacobian of f's entries in row-major
            order.
        targets: y, shape (K, Q).
        initial: theta_0.
        penalty: c/Q for a kernel chain's joint multiplier c (theory.md, section 6).
    """

    outputs: Callable[[Any], Float[Array, "K Q"]]
    tangent_kernel: Callable[[Any], Float[Array, "KQ KQ"]]
    targets: Float[Array, "K Q"]
    initial: Any
    penalty: Float[Array, ""]


class GaussNewton(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    """What :func:`gauss_newton` returns."""


def gauss_newton() -> GaussNewton:
    """Minimise a :class:`LeastSquares` problem by solving its linearisation at every step, exactly,
    in function space.

        theta <- theta_0 + J^T (J J^T + K Q penalty I)^{-1} (y - f + J (theta - theta_0))

    This is ridge regression with the network's tangent kernel at the present weights; where the
    network is linear in them it ends in one step, and at large widths in a few. Steps that would
    raise the objective are halved. The cost of one is the tangent kernel's, (K Q)^2 numbers, and
    the solution of K Q equations: it is meant for a thousand of them or so. The network must treat
    points independently.

    ``update`` wants the extra arguments ``value`` (the objective at params), ``value_fn`` (the
    objective, a function of params) and ``problem``, a :class:`LeastSquares`, as
    :func:`sdntk.training.train.train` gives them.

    Source: theory.md, section 6; Bjorck 1996, *Numerical Methods for Least Squares Problems*,
    section 9.2.

    Example:
        >>> y, initial = jnp.array([[3.0]]), jnp.array([1.0])
        >>> outputs, kernel = lambda w: w[:, None] ** 2, lambda w: 4 * w[:, None] ** 2
        >>> problem = LeastSquares(outputs, kernel, y, initial, jnp.array(0.1))
        >>> penalty = lambda w: 0.1 * jnp.sum((w - initial) ** 2)
        >>> value_fn = lambda w: jnp.mean((outputs(w) - y) ** 2) + penalty(w)
        >>> w, optimiser = initial, gauss_newton()
        >>> for _ in range(10):
        ...     extra = {"value": value_fn(w), "value_fn": value_fn, "problem": problem}
        ...     w = w + optimiser.update(None, optimiser.init(w), w, **extra)[0]
        >>> abs(jax.grad(value_fn)(w)).item() < 1e-6
        True
    """
    return GaussNewton(_init, _update)


def _init(params: Any) -> optax.EmptyState:
    del params
    return optax.EmptyState()


def _update(
    updates: Any,
    state: Any,
    params: Any,
    *,
    value: Array,
    value_fn: Callable[[Any], Array],
    problem: LeastSquares,
    **_: Any,
) -> tuple[Any, Any]:
    del updates
    step = _full_step(problem, params)

    def too_long(carry: tuple[Array, Array]) -> Array:
        length, halvings = carry
        moved = value_fn(optax.tree.add_scale(params, length, step))
        allowed = value * (
            1 + 64 * jnp.finfo(value.dtype).eps
        )  # at the optimum all that is left is rounding
        return ~(moved <= allowed) & (halvings < MOST_HALVINGS)

    def halve(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return carry[0] / 2, carry[1] + 1

    length, halvings = jax.lax.while_loop(too_long, halve, (jnp.ones_like(value), jnp.array(0)))
    return optax.tree.scale(jnp.where(halvings < MOST_HALVINGS, length, 0), step), state


def _full_step(problem: LeastSquares, params: Any) -> Any:
    """From theta to the optimum of the problem linearised there."""
    outputs, transpose = jax.vjp(problem.outputs, params)
    moved = optax.tree.sub(params, problem.initial)
    along = jax.jvp(problem.outputs, (params,), (moved,))[1]  # J (theta - theta_0)
    kernel = problem.tangent_kernel(params)
    ridge = outputs.size * problem.penalty * jnp.eye(outputs.size, dtype=kernel.dtype)
    residual = (problem.targets - outputs + along).ravel()
    dual = jax.scipy.linalg.solve(kernel + ridge, residual, assume_a="pos")
    return optax.tree.sub(transpose(dual.reshape(outputs.shape))[0], moved)
