"""Spectral filters: diagonals F(d) that turn rotated labels into rotated predictions.

Ridge regression, a round of self-distillation, ground truth mixed in, iterated Tikhonov,
truncation, early stopping, gradient descent and gradient flow all map the labels y to f = V^T F(D)
V y on the training points (docs/theory.md, section 5). A new method is a new filter, not a new
subsystem: :func:`sdntk.fit_filter` makes a fit of any. All are 0 where d = 0, so that no function
outside the space is asked for.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdntk._arguments import (
    ArrayLike,
    as_columns,
    as_count,
    as_float_array,
    as_round_weights,
    as_scalar,
    every,
    format_number,
    is_traced,
    require_every,
)
from sdntk.theory.mixing import mix_targets, weights_handed_on


def ridge(eigenvalues: ArrayLike, multiplier: ArrayLike) -> Float[Array, "..."]:
    """One fit with multiplier c: A = D (c I + D)^-1 (Mobahi et al. 2020, eqs. 17, 30).

    An infinite multiplier is the collapsed fit, A = 0. Early stopping in the paper's sense (section
    3.4) is this filter for a larger tolerance, hence a larger c.

    Args:
        eigenvalues: d, any shape, not negative.
        multiplier: c, positive, of a shape that broadcasts against d.

    Raises:
        ValueError, TypeError: an argument out of its range.

    Example:
        >>> ridge(jnp.array([0.0, 1.0, 3.0]), 1.0).tolist()
        [0.0, 0.5, 0.75]
    """
    d = _eigenvalues(eigenvalues)
    c = _multipliers(multiplier, "multiplier")
    _require_one_shape(eigenvalues=d, multiplier=c)
    return d / (c + d)


def mix(filters: ArrayLike, ground_truth_weight: ArrayLike) -> Float[Array, "..."]:
    """The filter of a round's targets, alpha y_0 + (1 - alpha) f: P = alpha I + (1 - alpha) F
    (Borup & Andersen 2021).

    With alpha = 0 the targets are the last round's predictions (the paper's self-distillation). Any
    real alpha is allowed (docs/theory.md, section 8).

    Raises:
        ValueError, TypeError: not real numbers, or a weight that is not one number.

    Example:
        >>> mix(jnp.array([0.0, 0.5]), 0.25).tolist()
        [0.25, 0.625]
    """
    values = as_float_array("filters", filters)
    weight = ground_truth_weight
    alpha = as_scalar(
        "ground_truth_weight", weight, lambda a: a == a, "must be a number", dtype=values.dtype
    )
    return mix_targets(1, values, alpha)


def distillation(
    eigenvalues: ArrayLike, multipliers: ArrayLike, ground_truth_weight: ArrayLike = 0.0
) -> tuple[Float[Array, "T m *p"], Float[Array, "T m *p"]]:
    """Every round's filter, and the filter of every round's targets, given every round's
    multiplier.

    F_t = A_t P_t with P_t = alpha_t I + (1 - alpha_t) F_{t-1}, P_0 = I and A_t = D (c_t I + D)^-1.
    With alpha = 0, F_t = B_t = prod_{i=0..t} A_i (Mobahi et al. 2020, eqs. 31, 45); with equal
    multipliers too, (D/(c + D))^{t+1}.

    Args:
        eigenvalues: d, shape (m,) or (m, Q), not negative.
        multipliers: c_t, positive, shape (T,) or (T, Q); infinity for a collapsed round.
        ground_truth_weight: alpha, a scalar or shape (T - 1,), one for each later round; any real
            numbers (docs/theory.md, section 8).

    Returns:
        F and P, each of shape (T, m) or (T, m, Q).

    Raises:
        ValueError, TypeError: an argument out of its range, or shapes that do not go together.

    Example:
        >>> filters, targets = distillation(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0]))
        >>> filters.tolist(), targets.tolist()
        ([[0.5, 0.75], [0.25, 0.5625]], [[1.0, 1.0], [0.5, 0.75]])
    """
    d = _eigenvalues(eigenvalues)
    c_t = _multipliers(multipliers).astype(d.dtype)
    one_of_each = d.ndim in (1, 2) and c_t.ndim in (1, 2) and d.size > 0 and c_t.size > 0
    if not one_of_each or (d.ndim == c_t.ndim == 2 and d.shape[1] != c_t.shape[1]):
        raise ValueError(
            "eigenvalues and multipliers must have shapes (m,) or (m, Q) and (T,) or (T, Q); "
            f"theirs are {d.shape} and {c_t.shape}."
        )
    rounds = len(c_t)
    alpha = as_round_weights("ground_truth_weight", ground_truth_weight, rounds, dtype=d.dtype)
    if d.ndim < c_t.ndim:
        d = d[:, None]

    def round_(
        targets: Float[Array, "m *p"], now: tuple[Float[Array, "*Q"], Float[Array, ""]]
    ) -> tuple[Float[Array, "m *p"], tuple[Array, Array]]:
        c, weight = now
        column = c.reshape((1,) * (d.ndim - c.ndim) + c.shape)
        fitted = ridge(d, column) * targets
        return mix_targets(1, fitted, weight), (fitted, targets)

    shape = jnp.broadcast_shapes(d.shape, (1, *c_t.shape[1:]))
    given = c_t, weights_handed_on(alpha, rounds)
    _, (filters, targets) = lax.scan(round_, jnp.ones(shape, d.dtype), given)
    return filters, targets


def iterated_tikhonov(
    eigenvalues: ArrayLike, multiplier: ArrayLike, count: ArrayLike
) -> Float[Array, "..."]:
    """Ridge fits to what the fits before have left over: F = I - (c (c I + D)^-1)^m.

    From f_0 = 0, m times  f <- f + A (y - f),  A = D (c I + D)^-1: boosting with a ridge fit
    ("twicing" for m = 2). It weakens the regularisation with every step, as self-distillation
    strengthens it.

    Args:
        eigenvalues: d, any shape, not negative.
        multiplier: c, positive, of a shape that broadcasts against d.
        count: m, the number of fits, zero or positive.

    Raises:
        ValueError, TypeError: an argument out of its range.

    Source: Engl, Hanke and Neubauer 1996, *Regularization of Inverse Problems*, section 5.1;
    docs/theory.md, section 8.

    Example:
        >>> iterated_tikhonov(jnp.array([0.0, 1.0]), 1.0, 2).tolist()  # 1 - 1/4
        [0.0, 0.75]
    """
    d = _eigenvalues(eigenvalues)
    c = _in_range("multiplier", multiplier, lambda c: c > 0, "positive")
    m = _in_range("count", count, lambda m: m >= 0, "zero or positive")
    _require_one_shape(eigenvalues=d, multiplier=c, count=m)
    return -jnp.expm1(-m * jnp.log1p(d / c))


def truncated(eigenvalues: ArrayLike, rank: int) -> Float[Array, "m ..."]:
    """Principal components: F = 1 for the ``rank`` largest eigenvalues, 0 for the others.

    Of equal eigenvalues the later ones are kept; those that are 0 never are.

    Args:
        eigenvalues: d, shape (m,) or (m, Q), not negative.
        rank: how many are kept, zero or positive.

    Raises:
        ValueError, TypeError: an argument out of its range.

    Source: Engl, Hanke and Neubauer 1996, *Regularization of Inverse Problems*, section 4.1.

    Example:
        >>> truncated(jnp.array([0.0, 0.5, 2.0, 3.0]), 2).tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    d = _eigenvalues(eigenvalues)
    if d.ndim not in (1, 2):
        raise ValueError(f"eigenvalues must have shape (m,) or (m, Q); their shape is {d.shape}.")
    rank = as_count("rank", rank, at_least=0)
    position = jnp.argsort(jnp.argsort(d, axis=0), axis=0)  # from the smallest
    return ((position >= len(d) - rank) & (d > 0)).astype(d.dtype)


def gradient_descent(eigenvalues: ArrayLike, step: ArrayLike, count: int) -> Float[Array, "..."]:
    """Gradient descent on the loss ||f - y||^2/(2K) from f = 0: F = I - (I - step D)^count.

    On the training points  f <- f + step G (y - f),  ``count`` times. For small steps it is
    :func:`gradient_flow` at the time step * count.

    Args:
        eigenvalues: d, any shape, not negative.
        step: the learning rate, positive, below 2/d_max.
        count: how many steps, zero or positive.

    Raises:
        ValueError, TypeError: an argument out of its range; a step of 2/d_max or more, for which
            the iteration diverges.

    Source: Engl, Hanke and Neubauer 1996, *Regularization of Inverse Problems*, section 6.1
    (Landweber's iteration).

    Example:
        >>> gradient_descent(jnp.array([0.0, 1.0]), 0.5, 2).tolist()  # 1 - 1/4
        [0.0, 0.75]
    """
    d = _eigenvalues(eigenvalues)
    step = _in_range("step", step, lambda step: step > 0, "positive")
    count = as_count("count", count, at_least=0)
    _require_one_shape(eigenvalues=d, step=step)
    moved = step * d
    if not is_traced(moved) and not every(lambda moved: moved < 2, moved):
        raise ValueError(
            f"step must be below 2/d_max, or gradient descent diverges; step * d_max is "
            f"{format_number(float(jnp.max(moved)))}."
        )
    # Where steps are small, 1 - (1 - x)^count cancels.
    small = moved < 0.5
    by_logarithm = -jnp.expm1(count * jnp.log1p(-jnp.where(small, moved, 0)))
    return jnp.where(small, by_logarithm, 1 - (1 - moved) ** count)


def gradient_flow(eigenvalues: ArrayLike, time: ArrayLike) -> Float[Array, "..."]:
    """Gradient flow on the loss ||f - y||^2/(2K) from f = 0, stopped at ``time``: F = I - exp(-tau
    D).

    Args:
        eigenvalues: d, any shape, not negative.
        time: tau, zero or positive, of a shape that broadcasts against d.

    Raises:
        ValueError, TypeError: an argument out of its range.

    Example:
        >>> gradient_flow(jnp.array([0.0]), 1.0).tolist()
        [0.0]
    """
    d = _eigenvalues(eigenvalues)
    tau = _in_range("time", time, lambda tau: tau >= 0, "zero or positive")
    _require_one_shape(eigenvalues=d, time=tau)
    return -jnp.expm1(-tau * d)


def divided_by_eigenvalues(filter_: ArrayLike, eigenvalues: ArrayLike) -> Float[Array, "m *Q"]:
    """F(d)/d, the filter of the dual coefficients; 0 where d = 0.

    There it could be anything: sum_k v_k g(., x_k) is the zero function for every v with G v = 0.

    Args:
        filter_: F(d), shape (m,) or (m, Q).
        eigenvalues: d, shape (m,), not negative.

    Raises:
        ValueError, TypeError: an argument out of its range, or shapes that do not go together.
    """
    d = _eigenvalues(eigenvalues)
    if d.ndim != 1 or d.size == 0:
        raise ValueError(f"eigenvalues must have shape (m,), m >= 1; their shape is {d.shape}.")
    values = as_columns("filter_", filter_, len(d), d.dtype)
    d = d.reshape(-1, *(1 for _ in values.shape[1:]))
    return jnp.where(d > 0, values / jnp.where(d > 0, d, 1), 0)


def _eigenvalues(value: ArrayLike) -> Float[Array, "..."]:
    return _in_range("eigenvalues", value, lambda d: d >= 0, "zero or positive")


def _multipliers(value: ArrayLike, name: str = "multipliers") -> Float[Array, "..."]:
    return _in_range(name, value, lambda c: c > 0, "positive", finite=False)


def _in_range(
    name: str,
    value: ArrayLike,
    condition: Callable[[Any], Any],
    expected: str,
    *,
    finite: bool = True,
) -> Float[Array, "..."]:
    array = as_float_array(name, value, finite=finite)
    require_every(name, array, condition, f"must be {expected}")
    return array


def _require_one_shape(**arrays: Float[Array, "..."]) -> None:
    """Refuse arrays that do not broadcast against each other."""
    shapes = [array.shape for array in arrays.values()]
    try:
        jnp.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(
            f"{' and '.join(arrays)} must have shapes that broadcast against each other; theirs "
            f"are {' and '.join(map(str, shapes))}."
        ) from None
