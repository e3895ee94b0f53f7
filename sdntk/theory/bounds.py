"""What the theory guarantees, one function for each proposition and theorem (Mobahi et al. 2020,
sections 2.3 and 3).

Throughout d are the eigenvalues of the Gram matrix, z = V y the rotated labels of one output, s =
sqrt(K eps), r0 = ||z||/s and kappa = d_max/d_min. All functions are pure; ``jax.jit`` and
``jax.vmap`` work on them.

**The null space.** The paper assumes d_min > 0. Here exact zeros among the d (which is what
:func:`sdntk.decompose` makes of rounding) are allowed: d_min and kappa are taken over d_k > 0; in
round 0, n0 = ||z restricted to d_k > 0|| and s0 = sqrt(K (eps - floor)) take the places of ||z||
and s; from z_1 on the null part is gone and the bounds start again with r0 = ||z_1||/s.

**States.** A collapsed problem gives the bounds of the zero function where there are any (norms 0,
rounds 0) and nan otherwise; an infeasible one gives nan.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from sdntk._arguments import (
    MOST_ROUNDS,
    ArrayLike,
    as_count,
    as_flag,
    as_float_array,
    as_positive,
    as_scalar,
)
from sdntk.theory import filters, units
from sdntk.theory.complexity import (
    as_eigenvalues,
    equivalent_eigenvalues,
    local_rademacher_bound,
    rademacher_bound,
)
from sdntk.theory.multiplier import Status, Support, deflate, solve, support_of

__all__ = [
    "equivalent_eigenvalues",
    "filter_ratio_bound",
    "guaranteed_rounds",
    "local_rademacher_bound",
    "multiplier_bounds",
    "norm_bounds",
    "rademacher_bound",
    "sparsity_index",
    "sparsity_limit",
]


class _Problem(NamedTuple):
    """A checked problem, and what all bounds are made of."""

    d: Float[Array, " K"]
    z: Float[Array, " K"]  # in units of ``unit``, as is s
    s: Float[Array, ""]  # sqrt(K eps)
    unit: Float[Array, ""]
    support: Support
    r0: Float[Array, ""]  # n0/s0: the range part of the labels over what is left of the radius
    r0_minus_1: Float[Array, ""]  # the same less 1, without cancellation
    s0: Float[Array, ""]
    status: Array

    @property
    def kappa(self) -> Float[Array, ""]:
        return self.support.d_max / self.support.d_min

    @property
    def active(self) -> Bool[Array, ""]:
        return self.status == Status.ACTIVE

    def if_active(self, value: Array, *, collapsed: float = jnp.nan) -> Array:
        """``value`` if the problem is active, ``collapsed`` if it is that, nan if infeasible."""
        otherwise = jnp.where(self.status == Status.COLLAPSED, collapsed, jnp.nan)
        return jnp.where(self.active, value, otherwise)

    def after_round_0(self) -> "_Problem":
        """The problem of round 1: labels z_1 = A_0 z_0, whose null part is gone."""
        z2 = self.support.split(self.z)
        c = solve(self.support, z2, self.s, jnp.zeros_like(self.s)).value
        return _problem(self.d, filters.ridge(self.d, c) * self.z, self.s, self.unit)


def _checked(eigenvalues: ArrayLike, z: ArrayLike, tolerance: ArrayLike) -> _Problem:
    d = as_eigenvalues(eigenvalues)
    z = as_float_array("z", z, dtype=d.dtype)
    if z.shape != d.shape:
        raise ValueError(
            f"z must have the shape of eigenvalues, {d.shape}: one output; its shape is {z.shape}."
        )
    eps = as_positive("tolerance", tolerance, (), dtype=d.dtype)
    return _in_unit(d, z, units.radius(eps, d.size))


@jax.jit
def _in_unit(d: Float[Array, " K"], z: Float[Array, " K"], s: Float[Array, ""]) -> _Problem:
    unit = units.power_of_two(z)
    return _problem(d, z / unit, s / unit, unit)


def _problem(
    d: Float[Array, " K"], z: Float[Array, " K"], s: Float[Array, ""], unit: Float[Array, ""]
) -> _Problem:
    support = support_of(d)
    fit = deflate(support, support.split(z), s)
    return _Problem(d, z, s, unit, support, fit.n / fit.s, fit.gap / fit.s, fit.s, fit.status)


def multiplier_bounds(
    eigenvalues: ArrayLike, z: ArrayLike, tolerance: ArrayLike
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Bounds on the multiplier of one fit: d_min s/(||z|| - s) <= c <= d_max s/(||z|| - s).

    Equal, hence exact, when all nonzero eigenvalues are. With a null space, s0/(n0 - s0) takes the
    place of s/(||z|| - s).

    Args:
        eigenvalues: d, shape (K,), zero or positive.
        z: rotated labels of the fit, shape (K,).
        tolerance: eps > 0.

    Returns:
        (lower, upper), scalars in the units of d; nan unless the fit is active.

    Raises:
        ValueError, TypeError: wrong shapes, nan, inf, negative eigenvalues, a tolerance that is not
            positive. So do all functions here.

    Source: Mobahi et al. 2020, eqs. 21-24. Holds for every active fit.

    Example:
        >>> [round(float(b), 6) for b in multiplier_bounds([1.0, 2.0], [1.0, 1.0], tolerance=0.25)]
        [1.0, 2.0]
    """
    p = _checked(eigenvalues, z, tolerance)
    return p.if_active(p.support.d_min / p.r0_minus_1), p.if_active(p.support.d_max / p.r0_minus_1)


def norm_bounds(
    eigenvalues: ArrayLike, z: ArrayLike, tolerance: ArrayLike, rounds: int
) -> tuple[Float[Array, " T"], Float[Array, " T"]]:
    """Bounds on ||y_t|| = ||z_t||, the norm of round t's targets, for t = 0..rounds-1.

    With a(x) = ((r0 - 1)^2 + x (2 r0 - 1))/(r0 - 1 + x)^2 and b(x) = r0^2 x/(r0 - 1 + x)^2,

        a(kappa)^t r0 - b(kappa) (a(kappa)^t - 1)/(a(kappa) - 1)  <=  ||z_t||/s  <=  the same with
        1/kappa for kappa.

    Computed by iterating r <- a r - b, which is the same and needs no special case at a = 1. A
    lower bound below zero is given as zero; so it holds after collapse too. With a null space, z_1
    is bounded with n0 and s0, and from there on the bounds start again at the true ||z_1||, which
    costs one solve for c_0.

    Args:
        eigenvalues: d, shape (K,).
        z: rotated labels z_0, shape (K,).
        tolerance: eps > 0.
        rounds: T >= 1.

    Returns:
        (lower, upper), each of shape (T,), in the units of the labels.

    Source: Mobahi et al. 2020, Prop. 3 (eqs. 125-128), the upper bound by its proof (eq. 141).

    Example:
        One eigenvalue: both are exact, and the norm falls by s in each round.

        >>> lower, upper = norm_bounds([2.0], [3.0], tolerance=1.0, rounds=4)
        >>> lower.tolist(), upper.tolist()
        ([3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0])
    """
    p = _checked(eigenvalues, z, tolerance)
    rounds = as_count("rounds", rounds, at_least=1, at_most=MOST_ROUNDS)
    return _norm_bound(p, rounds, lower=True), _norm_bound(p, rounds, lower=False)


@partial(jax.jit, static_argnames=("rounds", "lower"))
def _norm_bound(p: _Problem, rounds: int, *, lower: bool) -> Float[Array, " T"]:
    def from_start(p: _Problem, rounds: int) -> Float[Array, " T"]:
        return _proposition_3(p, p.kappa if lower else 1 / p.kappa, rounds)

    bound = from_start(p, rounds)
    q = p.after_round_0()
    from_z1 = jnp.where(
        q.active, from_start(q, rounds), 0
    )  # of z_1, z_2, ...; 0 when round 1 has collapsed
    restarted = jnp.concatenate([bound[:2], from_z1[1:]])[:rounds]
    bound = p.if_active(jnp.where((~p.support.kept.all()), restarted, bound), collapsed=0.0)
    return bound.at[0].set(jnp.linalg.norm(p.z)) * p.unit


def _proposition_3(p: _Problem, x: Float[Array, ""], rounds: int) -> Float[Array, " T"]:
    """s0 times r_0, r_1, ..., where r_{t+1} = a(x) r_t - b(x)."""
    unit = units.power_of_two(p.r0)  # r0^2 may be no number
    r0, r0_minus_1 = p.r0 / unit, p.r0_minus_1 / unit
    level = r0_minus_1 + x / unit
    a = (r0_minus_1**2 + x / unit * (r0 + r0_minus_1)) / level**2
    b = r0**2 * x / level**2
    _, r = lax.scan(lambda r, _: (jnp.maximum(a * r - b, 0), r), p.r0, None, length=rounds)
    return p.s0 * r


def guaranteed_rounds(
    eigenvalues: ArrayLike, z: ArrayLike, tolerance: ArrayLike, *, tight: bool = False
) -> Float[Array, ""]:
    """t_low, a number of rounds that must pass before collapse: active_rounds >= ceil(t_low).

    t_low = (r0 - 1)/kappa. Near interpolation (eps -> 0) it tends to ||y_0||/(kappa s). With
    ``tight``, the sharper value before the proof's last step, log((r0^2 + kappa - 1)/(r0 (r0 +
    kappa - 1)))/log a(kappa), which is r0 - 1 at kappa = 1. With a null space, round 0 and then the
    t_low of the problem that starts at z_1.

    Args:
        eigenvalues: d, shape (K,).
        z: rotated labels z_0, shape (K,).
        tolerance: eps > 0.
        tight: give the sharper value.

    Returns:
        t_low, a scalar, not rounded; 0 when collapsed from the start, nan when infeasible.

    Source: Mobahi et al. 2020, Prop. 4 (eq. 142); tight: eq. 144.

    Example:
        >>> float(guaranteed_rounds([1.0, 2.0], [3.0, 4.0], tolerance=0.5))      # r0 = 5, kappa = 2
        2.0
    """
    p = _checked(eigenvalues, z, tolerance)
    return _guaranteed_rounds(p, tight=as_flag("tight", tight))


@partial(jax.jit, static_argnames="tight")
def _guaranteed_rounds(p: _Problem, *, tight: bool) -> Float[Array, ""]:
    proposition = _proposition_4_tight if tight else _proposition_4
    q = p.after_round_0()
    from_z1 = jnp.where(q.active, proposition(q), 0)
    return p.if_active(jnp.where(~p.support.kept.all(), 1 + from_z1, proposition(p)), collapsed=0.0)


def _proposition_4(p: _Problem) -> Float[Array, ""]:
    return p.r0_minus_1 / p.kappa


def _proposition_4_tight(p: _Problem) -> Float[Array, ""]:
    """Eq. 144 with both logarithms written as log(1 - ...), which keeps its digits near kappa =
    1.
    """
    excess = p.kappa - 1
    level = p.r0 + excess
    numerator = jnp.log1p(-(excess / level) * (p.r0_minus_1 / p.r0))
    log_a = jnp.log1p(-(excess / level) * (p.kappa / level))
    return jnp.where(excess > 0, numerator / jnp.where(excess > 0, log_a, 1), p.r0_minus_1)


def filter_ratio_bound(
    eigenvalues: ArrayLike, z: ArrayLike, tolerance: ArrayLike, t: ArrayLike
) -> Float[Array, "K K"]:
    """How much more the filter keeps of a large eigenvalue's direction than of a small one's, after
    t rounds.

    For d_k >= d_j and every t whose rounds 0..t-1 are active,

        B_{t-1}[k,k] / B_{t-1}[j,j]  >=  ( (r0 - 1 + d_min/d_j) / (r0 - 1 + d_min/d_k) )^t.

    Args:
        eigenvalues: d, shape (K,).
        z: rotated labels z_0, shape (K,).
        tolerance: eps > 0.
        t: the number of rounds, zero or more.

    Returns:
        The bound for all pairs, [k, j], shape (K, K): 1 for equal eigenvalues, infinite where d_j
        alone is 0, and the trivial bound 0 where the theorem says nothing (d_k < d_j, or both in
        the null space); nan unless round 0 is active.

    Source: Mobahi et al. 2020, Theorem 5 (eqs. 46, 147); with a null space, r0 = n0/s0 for all t.

    Example:
        >>> bound = filter_ratio_bound([1.0, 2.0], [3.0, 4.0], tolerance=0.5, t=2)     # r0 = 5
        >>> round(float(bound[1, 0]), 6) == round((5.0 / 4.5) ** 2, 6), float(bound[0, 1])
        (True, 0.0)
    """
    p = _checked(eigenvalues, z, tolerance)
    return _filter_ratio_bound(p, _as_rounds(t, p))


def _as_rounds(t: ArrayLike, p: _Problem) -> Float[Array, ""]:
    return as_scalar(
        "t", t, lambda t: t >= 0, "must be a scalar, zero or positive", dtype=p.d.dtype
    )


@jax.jit
def _filter_ratio_bound(p: _Problem, t: Float[Array, ""]) -> Float[Array, "K K"]:
    kept = p.support.kept
    level = p.r0_minus_1 + jnp.where(kept, p.support.d_min / p.support.d, jnp.inf)
    covered = kept[:, None] & (p.d[:, None] >= p.d[None, :])
    return p.if_active(
        jnp.where(covered, (level[None, :] / jnp.where(kept, level, 1)[:, None]) ** t, 0)
    )


def sparsity_index(
    eigenvalues: ArrayLike, z: ArrayLike, tolerance: ArrayLike, t: ArrayLike | None = None
) -> Float[Array, ""]:
    """S_{t-1}, the least guaranteed ratio of neighbouring diagonals of B_{t-1}; the larger, the
    sparser.

    With d_1 < d_2 < ... the distinct nonzero eigenvalues,

        S_{t-1} = min_k ( (r0 - 1 + d_min/d_k) / (r0 - 1 + d_min/d_{k+1}) )^t.

    Eigenvalues closer than K * machine_eps * d_max are merged: equal ones would make the index 1
    for no reason. When one distinct eigenvalue is left there is no pair to compare, and the index
    is infinite (the minimum over nothing).

    Args:
        eigenvalues: d, shape (K,).
        z: rotated labels z_0, shape (K,).
        tolerance: eps > 0. The largest index (t left out) grows as eps falls (Theorem 6).
        t: the number of rounds; :func:`guaranteed_rounds` when left out, which gives the largest
            guaranteed index.

    Returns:
        A scalar >= 1; nan unless round 0 is active.

    Source: Mobahi et al. 2020, eqs. 49-51.

    Example:
        >>> index = sparsity_index([1.0, 2.0, 2.0], [3.0, 0.0, 4.0], tolerance=1 / 3, t=1)
        >>> round(float(index), 6)  # 5/4.5
        1.111111
    """
    p = _checked(eigenvalues, z, tolerance)
    rounds = _guaranteed_rounds(p, tight=False) if t is None else _as_rounds(t, p)
    smaller, larger, distinct = _neighbours(p.d)
    drop = p.support.d_min / smaller - p.support.d_min / larger
    log_ratio = jnp.log1p(drop / (p.r0_minus_1 + p.support.d_min / larger))
    return p.if_active(
        jnp.exp(rounds * jnp.min(jnp.where(distinct, log_ratio, jnp.inf), initial=jnp.inf))
    )


def sparsity_limit(eigenvalues: ArrayLike) -> Float[Array, ""]:
    """What the largest guaranteed sparsity index tends to near interpolation, eps -> 0.

        exp( (d_min/kappa) min_k (1/d_k - 1/d_{k+1}) ),

    over the distinct nonzero eigenvalues, merged as in :func:`sparsity_index`; infinite when there
    is only one.

    Args:
        eigenvalues: d, shape (K,).

    Returns:
        A scalar >= 1.

    Source: Mobahi et al. 2020, Theorem 6 (eqs. 52, 155).

    Example:
        >>> round(float(sparsity_limit([1.0, 2.0])), 6)           # exp(1/2 (1 - 1/2))
        1.284025
    """
    d = as_eigenvalues(eigenvalues)
    _, d_min, d_max, _ = support_of(d)
    smaller, larger, distinct = _neighbours(d)
    drop = jnp.min(jnp.where(distinct, 1 / smaller - 1 / larger, jnp.inf), initial=jnp.inf)
    return jnp.exp(d_min * (d_min / d_max) * drop)


def _neighbours(
    d: Float[Array, " K"],
) -> tuple[Float[Array, " K-1"], Float[Array, " K-1"], Bool[Array, " K-1"]]:
    """Neighbours in ascending order, and whether they are distinct and nonzero (pairs that are not
    are set to 1, 1).
    """
    d = jnp.sort(d)
    distinct = (d[:-1] > 0) & (d[1:] - d[:-1] > d.size * jnp.finfo(d.dtype).eps * d[-1])
    return jnp.where(distinct, d[:-1], 1), jnp.where(distinct, d[1:], 1), distinct
