"""A safeguarded Newton iteration in log c: the one root finder behind every multiplier.

It looks for the root of an increasing function F(log c) inside a bracket. Newton's step is taken
when it stays in the bracket and is at most half the step before, else log c is bisected. For the F
of :mod:`sdntk.theory.multiplier`, exactly linear for a single eigenvalue, a warm start takes two to
five iterations.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class Residual(NamedTuple):
    """F, and its derivative by log c."""

    value: Float[Array, ""]
    slope: Float[Array, ""]


class Bracket(NamedTuple):
    """An interval that holds the root."""

    low: Float[Array, ""]
    high: Float[Array, ""]

    def holds(self, c: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether c lies strictly inside."""
        return (self.low < c) & (c < self.high)

    @property
    def middle(self) -> Float[Array, ""]:
        """The middle of log c, without overflow."""
        return jnp.sqrt(self.low) * jnp.sqrt(self.high)


class Root(NamedTuple):
    """A root and the iterations that it took."""

    value: Float[Array, ""]
    iterations: Int[Array, ""]


class _State(NamedTuple):
    c: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    last_move: Float[Array, ""]  # |log c_i - log c_{i-1}|
    iterations: Float[Array, ""]
    converged: Float[Array, ""]  # 0 or 1


# The state is one array: on the CPU, six scalars would be scheduled one by one, at the price of the
# sums themselves.
def _pack(state: _State) -> Float[Array, " 6"]:
    return jnp.stack(state)


def _unpack(packed: Float[Array, " 6"]) -> _State:
    return _State(*packed)


def find_root(
    residual: Callable[[Float[Array, ""]], Residual],
    bracket: Bracket,
    start: Float[Array, ""],
    *,
    noise: float,
    active: Bool[Array, ""],
    max_iterations: int,
) -> Root:
    """The root of F in a bracket, to the precision of the dtype times its condition number.

    Args:
        residual: F and its slope as a function of c.
        bracket: low <= root <= high.
        start: the first c, inside the bracket.
        noise: rounding of F: below it F counts as zero.
        active: where it is false, ``start`` is returned at once.
        max_iterations: after so many the last c is returned.
    """
    eps = float(jnp.finfo(start.dtype).eps)

    def step(packed: Float[Array, " 6"]) -> Float[Array, " 6"]:
        state = _unpack(packed)
        f = residual(state.c)
        low = jnp.where(f.value < 0, state.c, state.low)
        high = jnp.where(f.value > 0, state.c, state.high)
        move = -f.value / f.slope
        newton = state.c * jnp.exp(move)
        accepted = (low <= newton) & (newton <= high) & (jnp.abs(move) <= state.last_move / 2)

        # Newton's error after a step is below 3 move^2: below 50 eps once move < 4 sqrt(eps).
        at_root = jnp.abs(f.value) <= noise
        small_step = accepted & (jnp.abs(move) <= 4 * eps**0.5)
        converged = at_root | small_step | (high <= low * (1 + 4 * eps))

        following = jnp.where(accepted, newton, Bracket(low, high).middle)
        c = jnp.where(at_root, state.c, following)
        moved = jnp.abs(jnp.log(c / state.c))
        return _pack(_State(c, low, high, moved, state.iterations + 1, converged.astype(c.dtype)))

    def running(packed: Float[Array, " 6"]) -> Bool[Array, ""]:
        state = _unpack(packed)
        return (state.converged == 0) & (state.iterations < max_iterations)

    infinite, zero = jnp.full_like(start, jnp.inf), jnp.zeros_like(start)
    first = _State(start, *bracket, infinite, zero, (~active).astype(start.dtype))
    last = _unpack(lax.while_loop(running, step, _pack(first)))
    return Root(last.c, last.iterations.astype(jnp.int32))
