"""How rich the functions of a round are: the kernel with which one fit gives the same, and its
Rademacher complexities (Mobahi et al. 2020, section 3.7).

Part of :mod:`sdntk.bounds`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk._arguments import (
    ArrayLike,
    as_float_array,
    as_real_array,
    every,
    is_traced,
    require_every,
)


def as_eigenvalues(eigenvalues: ArrayLike) -> Float[Array, " K"]:
    """Eigenvalues of a Gram matrix, checked."""
    d = as_float_array("eigenvalues", eigenvalues)
    if d.ndim != 1 or d.size == 0:
        raise ValueError(f"eigenvalues must have shape (K,), K >= 1; their shape is {d.shape}.")
    if not is_traced(d) and (not every(lambda d: d >= 0, d) or every(lambda d: d == 0, d)):
        raise ValueError("eigenvalues must be zero or positive, and one of them positive.")
    return d


def equivalent_eigenvalues(eigenvalues: ArrayLike, multipliers: ArrayLike) -> Float[Array, "T K"]:
    """Eigenvalues d' of the Gram matrix with which one ridge fit with multiplier c_0 gives f_t on
    the training points.

        d'_k = c_0 B_t[k]/(1 - B_t[k]) = c_0 / ( prod_{i=0..t} (d_k + c_i)/d_k - 1 ).

    d'_k = d_k for t = 0, and it falls with t: so do the complexities below. For pure
    self-distillation (no ground truth mixed in) of one output, or jointly of several.

    Args:
        eigenvalues: d, shape (K,).
        multipliers: c_0..c_{T-1}, shape (T,), as a run gives them: nan (or infinity) from collapse
            on.

    Returns:
        d', shape (T, K), in the order of ``eigenvalues``; 0 for d_k = 0 and once collapsed.

    Source: Mobahi et al. 2020, section 3.7 and appendix B (eqs. 54, 111).

    Example:
        >>> equivalent_eigenvalues([1.0], [1.0, 1.0]).tolist()  # 1/(2 - 1), 1/(4 - 1)
        [[1.0], [0.3333333333333333]]
    """
    d = as_eigenvalues(eigenvalues)
    c = jnp.asarray(as_real_array("multipliers", multipliers)).astype(d.dtype)
    if c.ndim != 1 or c.size == 0:
        raise ValueError(
            f"multipliers must have shape (T,), T >= 1: one output; their shape is {c.shape}."
        )
    expected = "must be positive (nan or infinity where a round has collapsed)"
    require_every("multipliers", c, lambda c: ~(c <= 0), expected)
    c = jnp.where(jnp.isnan(c), jnp.inf, c)
    kept = d > 0
    log_product = jnp.cumsum(jnp.log1p(c[:, None] / jnp.where(kept, d, 1)[None, :]), axis=0)
    first = jnp.where(jnp.isinf(c[0]), 0, c[0])
    return jnp.where(kept[None, :], first / jnp.expm1(log_product), 0)


def rademacher_bound(equivalent: ArrayLike, norm: ArrayLike) -> Float[Array, "*T"]:
    """Bound on the empirical Rademacher complexity of {f: RKHS norm of f <= M}: 2 M
    sqrt(trace(G')/K).

    With :func:`equivalent_eigenvalues` it falls with the rounds; Theorem 8 of Bartlett and
    Mendelson turns a complexity into a bound on the risk.

    Args:
        equivalent: eigenvalues d' of the Gram matrix G' = k/K, shape (..., K).
        norm: M, of a shape that broadcasts against (...).

    Returns:
        Shape (...), in the units of f.

    Source: Bartlett and Mendelson 2002, Lemma 22; Mobahi et al. 2020, section 3.7.

    Example:
        >>> float(rademacher_bound([2.0, 6.0], norm=1.0))                         # 2 sqrt(8/2)
        4.0
    """
    d = _equivalent(equivalent)
    norm = as_float_array("norm", norm, dtype=d.dtype)
    require_every("norm", norm, lambda norm: norm >= 0, "must be zero or positive")
    if norm.shape not in ((), d.shape[:-1]):
        raise ValueError(
            f"norm must be a scalar or have shape {d.shape[:-1]}, one for each spectrum; its shape "
            f"is {norm.shape}."
        )
    return 2 * norm * jnp.sqrt(jnp.mean(d, axis=-1))


def _equivalent(value: ArrayLike) -> Float[Array, "*T K"]:
    d = as_float_array("equivalent", value)
    if d.ndim == 0 or d.size == 0:
        raise ValueError(f"equivalent must have shape (..., K), K >= 1; its shape is {d.shape}.")
    require_every("equivalent", d, lambda d: d >= 0, "must be zero or positive")
    return d


def local_rademacher_bound(equivalent: ArrayLike) -> Float[Array, "*T"]:
    """The quantity in which the local Rademacher bound on the excess risk is affine.

        min_{0 <= k <= K} ( k/K + sqrt( (1/K) sum_{j > k} d'_j ) ),     d' descending.

    It sees the tail of the spectrum only: the sparser the filter, the smaller.

    Args:
        equivalent: eigenvalues d' of the equivalent Gram matrix, shape (..., K).

    Returns:
        Shape (...).

    Source: Bartlett, Bousquet and Mendelson 2005, Corollary 6.7; Mobahi et al. 2020, section 3.7.

    Example:
        >>> float(local_rademacher_bound([0.02, 50.0]))  # k = 1: 1/2 + sqrt(0.01)
        0.6
    """
    d = _equivalent(equivalent)
    num_points = d.shape[-1]
    ascending = jnp.sort(d, axis=-1)
    zero = jnp.zeros((*d.shape[:-1], 1), d.dtype)
    # Sums of the 0, 1, ..., K smallest.
    tails = jnp.concatenate([zero, jnp.cumsum(ascending, axis=-1)], axis=-1)
    kept = jnp.broadcast_to(jnp.arange(num_points, -1, -1, dtype=d.dtype), tails.shape)
    return jnp.min(kept / num_points + jnp.sqrt(tails / num_points), axis=-1)
