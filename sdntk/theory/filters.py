"""Spectral filters: diagonals F(d) that turn rotated labels into rotated predictions (theory: one
language for all).

Ridge regression, a round of self-distillation, ground truth mixed in, early stopping and gradient
flow all map the labels y to f = V^T F(D) V y on the training points. A new method is a new filter,
not a new subsystem.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike


def ridge(eigenvalues: ArrayLike, multiplier: ArrayLike) -> Float[Array, "..."]:
    """One fit with multiplier c: A = D (c I + D)^-1 (Mobahi et al. 2020, eqs. 17, 30).

    An infinite multiplier is the collapsed fit, A = 0. Early stopping in the paper's sense (section
    3.4) is this filter for a larger tolerance, hence a larger c.

    Args:
        eigenvalues: d, any shape, not negative.
        multiplier: c, positive, of a shape that broadcasts against d.

    Example:
        >>> ridge(jnp.array([0.0, 1.0, 3.0]), 1.0).tolist()
        [0.0, 0.5, 0.75]
    """
    d, c = jnp.asarray(eigenvalues), jnp.asarray(multiplier)
    return d / (c + d)


def mix(filters: ArrayLike, ground_truth_weight: ArrayLike) -> Float[Array, "..."]:
    """The filter of a round's targets, alpha y_0 + (1 - alpha) f: P = alpha I + (1 - alpha) F
    (Borup & Andersen 2021).

    With alpha = 0 the targets are the last round's predictions (the paper's self-distillation).

    Example:
        >>> mix(jnp.array([0.0, 0.5]), 0.25).tolist()
        [0.25, 0.625]
    """
    alpha = jnp.asarray(ground_truth_weight)
    return alpha + (1 - alpha) * jnp.asarray(filters)


def distillation(
    eigenvalues: Float[Array, "m *q"],
    multipliers: Float[Array, "T *Q"],
    ground_truth_weight: ArrayLike = 0.0,
) -> tuple[Float[Array, "T m *p"], Float[Array, "T m *p"]]:
    """Every round's filter, and the filter of every round's targets, given every round's
    multiplier.

    F_t = A_t P_t with P_t = alpha I + (1 - alpha) F_{t-1}, P_0 = I and A_t = D (c_t I + D)^-1. With
    alpha = 0, F_t = B_t = prod_{i=0..t} A_i (Mobahi et al. 2020, eqs. 31, 45); with equal
    multipliers too, (D/(c + D))^{t+1}.

    Args:
        eigenvalues: d, shape (m,) or (m, Q).
        multipliers: c_t, shape (T,) or (T, Q); infinity for a collapsed round.
        ground_truth_weight: alpha, a scalar.

    Returns:
        F and P, each of shape (T, m) or (T, m, Q).

    Example:
        >>> filters, targets = distillation(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0]))
        >>> filters.tolist(), targets.tolist()
        ([[0.5, 0.75], [0.25, 0.5625]], [[1.0, 1.0], [0.5, 0.75]])
    """
    d = eigenvalues if eigenvalues.ndim >= multipliers.ndim else eigenvalues[:, None]

    def round_(
        targets: Float[Array, "m *p"], c: Float[Array, "*Q"]
    ) -> tuple[Float[Array, "m *p"], tuple[Array, Array]]:
        fitted = ridge(d, c.reshape((1,) * (d.ndim - c.ndim) + c.shape)) * targets
        return mix(fitted, ground_truth_weight), (fitted, targets)

    shape = jnp.broadcast_shapes(d.shape, (1, *multipliers.shape[1:]))
    _, (filters, targets) = lax.scan(round_, jnp.ones(shape, d.dtype), multipliers)
    return filters, targets


def gradient_flow(eigenvalues: ArrayLike, time: ArrayLike) -> Float[Array, "..."]:
    """Gradient flow on the loss ||f - y||^2/(2K) from f = 0, stopped at ``time``: F = I - exp(-tau
    D).

    Example:
        >>> gradient_flow(jnp.array([0.0]), 1.0).tolist()
        [0.0]
    """
    return -jnp.expm1(-jnp.asarray(time) * jnp.asarray(eigenvalues))
