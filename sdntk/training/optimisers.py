"""Gauss-Newton in function space, in optax's form: for the regularised optimum of a network on few
points, in a few steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

#: A step that raises the objective is halved at most this often, which leaves 1/4096 of it; if that
#: still raises it, no step is taken.
MOST_HALVINGS = 12
#: An objective counts as raised if it grows by more than this many machine epsilons. At the optimum
#: steps change nothing but rounding, and rounding errors of a sum of n terms grow like sqrt(n):
#: 64 allows for some 4,000 terms.
ROUNDING_UNITS = 64


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """The problem mean((f(theta) - y)^2) + penalty |theta - theta_0|^2, over the K points and Q
    outputs.

    Attributes:
        outputs: theta to f, shape (K, Q).
        tangent_kernel: theta to J J^T, shape (K Q, K Q), where J is the Jacobian of the entries of
            f in row-major order.
        targets: y, shape (K, Q).
        initial: theta_0.
        penalty: c/Q for the multiplier c of a kernel fit with ``outputs="joint"`` (docs/theory.md,
            section 6).
    """

    outputs: Callable[[Any], Float[Array, "K Q"]]
    tangent_kernel: Callable[[Any], Float[Array, "KQ KQ"]]
    targets: Float[Array, "K Q"]
    initial: Any
    penalty: Float[Array, ""]


class GaussNewton(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    """What :func:`gauss_newton` returns."""


def gauss_newton() -> GaussNewton:
    """Minimise a :class:`LeastSquares` problem by solving its linearisation at every step, exactly
    and in function space.

        theta <- theta_0 + J^T (J J^T + K Q penalty I)^{-1} (y - f + J (theta - theta_0)).

    This is ridge regression with the network's tangent kernel at the current weights. For a network
    that is linear in its weights it ends in one step, at large widths in a few. A step that would
    raise the objective is halved until it does not. One step takes the tangent kernel, (K Q)^2
    numbers, and the solution of K Q equations: it is meant for about a thousand of them. The
    network must treat points independently.

    ``update`` takes the extra arguments ``value`` (the objective at params), ``value_fn`` (the
    objective as a function of params) and ``problem``, a :class:`LeastSquares`.
    :func:`sdntk.train` passes them.

    Source: docs/theory.md, section 6; Bjorck 1996, *Numerical Methods for Least Squares Problems*,
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
    """Optax's form of no state."""
    del params
    return optax.EmptyState()


def _update(
    updates: Any,
    state: optax.EmptyState,
    params: Any,
    *,
    value: Float[Array, ""],
    value_fn: Callable[[Any], Float[Array, ""]],
    problem: LeastSquares,
    **_: Any,
) -> tuple[Any, optax.EmptyState]:
    """The full step times the length that backtracking finds; the gradient is not used."""
    del updates
    step = _full_step(problem, params)
    length = _backtrack(params, step, value, value_fn)
    return optax.tree.scale(length, step), state


class _Backtracking(NamedTuple):
    length: Float[Array, ""]
    halvings: Int[Array, ""]


def _backtrack(
    params: Any, step: Any, value: Float[Array, ""], value_fn: Callable[[Any], Float[Array, ""]]
) -> Float[Array, ""]:
    """The largest of 1, 1/2, 1/4, ... times which the step does not raise the objective; 0 if none
    is found.
    """
    allowed = value * (1 + ROUNDING_UNITS * jnp.finfo(value.dtype).eps)

    def is_too_long(tried: _Backtracking) -> Bool[Array, ""]:
        moved = value_fn(optax.tree.add_scale(params, tried.length, step))
        # Not "moved > allowed": an objective of nan counts as raised.
        return ~(moved <= allowed) & (tried.halvings < MOST_HALVINGS)

    def halve(tried: _Backtracking) -> _Backtracking:
        return _Backtracking(tried.length / 2, tried.halvings + 1)

    first = _Backtracking(jnp.ones_like(value), jnp.array(0))
    found = jax.lax.while_loop(is_too_long, halve, first)
    return jnp.where(found.halvings < MOST_HALVINGS, found.length, 0)


def _full_step(problem: LeastSquares, params: Any) -> Any:
    """From theta to the optimum of the problem linearised there."""
    outputs, pull_back = jax.vjp(problem.outputs, params)
    moved = optax.tree.sub(params, problem.initial)
    _, linear_change = jax.jvp(problem.outputs, (params,), (moved,))  # J (theta - theta_0)

    # (J J^T + K Q penalty I) dual = y - f + J (theta - theta_0)
    kernel = problem.tangent_kernel(params)
    ridge = outputs.size * problem.penalty * jnp.eye(outputs.size, dtype=kernel.dtype)
    residual = (problem.targets - outputs + linear_change).ravel()
    dual = jax.scipy.linalg.solve(kernel + ridge, residual, assume_a="pos")

    # theta_0 + J^T dual - theta
    (pulled_back,) = pull_back(dual.reshape(outputs.shape))
    return optax.tree.sub(pulled_back, moved)
