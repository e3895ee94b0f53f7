"""A-posteriori error bounds of a chain of self-distillation on a Krylov spectrum.

How far are the multipliers and fits that the recurrence finds on Ritz values from those of the Gram
matrix itself? Each function here is one inequality, which docs/krylov_bounds.md proves and whose
number there it cites. The proofs have two parts:

* multipliers fixed: every resolvent errs by its residual, and what follows contracts the error;
* multipliers moved: each solves |c (c + G)^{-1} x_t| = s, and a root moves by the error of the left
  side over its slope. Squared norms are known to second order in the residuals.

Symbols, here and there: W the Ritz vectors, D = diag(d) the Ritz values, R their residuals; for
round t the multiplier c_t, the targets u_t, the filters a_t = d/(c_t + d) and q_t = 1 - a_t, the
residual p_t = q_t u_t and the fit a_t u_t, all of them coordinates on the Ritz vectors.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sdntk._linalg import matmul
from sdntk.spectra.base import ErrorBounds
from sdntk.spectra.lanczos import ROUNDING
from sdntk.theory import filters
from sdntk.theory.mixing import weights_handed_on, weights_within_unit
from sdntk.theory.multiplier import Status
from sdntk.theory.units import power_of_two

#: Multipliers are bounded while their shifts of log c, of all rounds together, stay below this.
LARGEST_SHIFT = 0.02

#: At least exp(4 LARGEST_SHIFT) = 1.0833, by which the ratio of an error to the slope may grow
#: within the largest shift (docs/krylov_bounds.md, (10)); the rest is for the bound's own rounding.
SLOPE_SLACK = 1.11

#: At least exp(LARGEST_SHIFT) = 1.0203, by which a fit's derivative may grow within it
#: (docs/krylov_bounds.md, (12)).
FIT_SLACK = 1.03


class RitzPairs(NamedTuple):
    """What Lanczos knows of G: G W = W D + V_+ R + F with |F| <= perturbation;
    docs/krylov_bounds.md, (1).
    """

    d: Float[Array, " M"]
    residuals: Float[Array, "r M"]
    perturbation: Float[Array, ""]

    def residual_filters(self, c: Float[Array, " T"]) -> Float[Array, "T M"]:
        """q_i = c_i/(c_i + d) of every round."""
        return c[:, None] / (c[:, None] + self.d[None])


class Errors(NamedTuple):
    """A bound in two parts, of any shape: more Lanczos steps reduce the first one only."""

    lanczos: Float[Array, "..."]
    rounding: Float[Array, "..."]

    @property
    def total(self) -> Float[Array, "..."]:
        """The bound."""
        return self.lanczos + self.rounding


class FixedRound(NamedTuple):
    """Round t, for P outputs, with all multipliers fixed (docs/krylov_bounds.md, (3) to (5)).

    Attributes:
        t: its number.
        status: a :class:`sdntk.Status`.
        c: the multiplier; 1 where the round is not active.
        of_teacher: |1 - alpha_t|, of the weight of the last fit in the targets; 0 in round 0.
        targets: u_t.
        residual: p_t.
        errors: bounds on those of the residual and of the fit.
        fit_error: a sharper bound on that of the fit.
        overlap: how far G leads the residual out of the Krylov space.
    """

    t: Int[Array, "*T"]
    status: Int[Array, "*T"]
    c: Float[Array, "*T"]
    of_teacher: Float[Array, "*T"]
    targets: Float[Array, "*T M P"]
    residual: Float[Array, "*T M P"]
    errors: Errors
    fit_error: Float[Array, "*T"]
    overlap: Float[Array, "*T"]


class Inherited(NamedTuple):
    """What a round's bound takes over from the rounds before it.

    Attributes:
        shifts: bounds on |log c - log c_i| of every round i so far since the last collapse, c the
            exact chain's; 0 for all others; infinite where there is no bound.
        fit_error: of the last fit.
    """

    shifts: Float[Array, " T"]
    fit_error: Float[Array, ""]


@partial(jax.jit, static_argnames="by_tolerance")
def error_bounds(
    d: Float[Array, " M"],
    z: Float[Array, "M P"],
    residuals: Float[Array, "r M"],
    perturbation: Float[Array, ""],
    multipliers: Float[Array, " T"],
    status: Int[Array, " T"],
    s: Float[Array, ""],
    alpha: Float[Array, "*t"],
    *,
    by_tolerance: bool,
) -> ErrorBounds:
    """Bounds for P outputs that share their multipliers. By tolerance they are proved for weights
    alpha in [0, 1] only, and infinite for others.

    Args:
        d: the Ritz values of a :class:`sdntk.spectra.krylov_spectrum.KrylovSpectrum`.
        z: its rotated labels, in a unit in which the largest are about 1.
        residuals: of its Ritz pairs.
        perturbation: the norm of the perturbation that rounding amounts to.
        multipliers: c_t of the chain on it, infinite where collapsed.
        status: of its rounds.
        s: sqrt(K eps), the radius of every round, in the same unit.
        alpha: the ground truth's weight, or one for each later round, shape (T - 1,).
        by_tolerance: whether the multipliers came from the tolerance, or were given and are exact.
    """
    # Relative to the largest eigenvalue, since squares of duals are asked for.
    unit = power_of_two(d)
    multipliers = multipliers / unit
    ritz = RitzPairs(d / unit, residuals / unit, perturbation / unit)
    rounds = fixed_rounds(ritz, z, multipliers, status, alpha)

    def next_round(before: Inherited, now: FixedRound) -> tuple[Inherited, ErrorBounds]:
        shifts = before.shifts
        if by_tolerance:
            shift = multiplier_shift(ritz, rounds.c, now, s, shifts)
            shifts = shifts.at[now.t].set(jnp.where(proved, shift, jnp.inf))
        error = fit_error(ritz, rounds.c, now, shifts)
        relative = relative_fit_error(error, jnp.linalg.norm(now.targets - now.residual))
        relative = jnp.where(jnp.any(z != 0), relative, 0.0)  # fits to zeros are zeros

        certain = collapse_is_certain(now, before.fit_error, s) & (now.status == Status.COLLAPSED)
        unless_active = jnp.where(certain, 0.0, jnp.inf)
        active = now.status == Status.ACTIVE
        bounds = ErrorBounds(
            multipliers=jnp.where(active, multiplier_error(shifts[now.t]), unless_active),
            fitted=jnp.where(active, relative, unless_active),
        )
        # A certain collapse starts the chain anew, from labels; after another nothing is known.
        shifts = jnp.where(active, shifts, jnp.where(certain, 0.0, shifts.at[now.t].set(jnp.inf)))
        return Inherited(shifts, jnp.where(active, error, unless_active)), bounds

    proved = weights_within_unit(weights_handed_on(alpha, len(rounds.c)))
    start = Inherited(jnp.zeros_like(rounds.c), jnp.zeros_like(s))
    return lax.scan(next_round, start, rounds)[1]


def fixed_rounds(
    ritz: RitzPairs,
    z: Float[Array, "M P"],
    multipliers: Float[Array, " T"],
    status: Int[Array, " T"],
    alpha: Float[Array, "*t"],
) -> FixedRound:
    """Every round of the chain with multipliers c_t, stacked."""
    active = status == Status.ACTIVE
    c = jnp.where(active, multipliers, 1.0)
    # alpha_t; alpha_0 is 1.
    of_labels = jnp.roll(weights_handed_on(alpha, len(c)), 1).at[0].set(1)
    of_teacher = jnp.abs(1 - of_labels)
    # What a collapsed round hands on is 0, and has no error.
    shares = teacher_shares(of_teacher * jnp.roll(active, 1))
    filter_of_targets = filters.distillation(
        ritz.d, jnp.where(active, multipliers, jnp.inf), alpha
    )[1]
    targets = filter_of_targets[:, :, None] * z[None]
    q = ritz.residual_filters(c)
    residual = q[:, :, None] * targets
    return FixedRound(
        t=jnp.arange(len(c)),
        status=status,
        c=c,
        of_teacher=of_teacher,
        targets=targets,
        residual=residual,
        errors=accumulated_errors(ritz, c, targets, shares),
        fit_error=fixed_fit_errors(ritz, c, z, shares * jnp.abs(of_labels)[None]),
        overlap=overlaps(ritz, c, residual),
    )


def resolvent_errors(ritz: RitzPairs, p: Float[Array, "M P"], c: Float[Array, ""]) -> Errors:
    """Bounds on |A W p - W a p| for one filter, A = G (c + G)^{-1}; docs/krylov_bounds.md, (2).

    The same bounds hold for |Q W p - W q p|, Q = c (c + G)^{-1}.
    """
    resolved = p / (c + ritz.d)[:, None]
    return Errors(
        lanczos=jnp.linalg.norm(matmul(ritz.residuals, resolved)),
        rounding=ritz.perturbation * jnp.linalg.norm(resolved),
    )


def every_resolvent_error(
    ritz: RitzPairs, p: Float[Array, "M P"], c: Float[Array, " T"]
) -> Float[Array, " T"]:
    """The total of :func:`resolvent_errors` for the multiplier of every round."""
    return jax.vmap(lambda c_i: resolvent_errors(ritz, p, c_i).total)(c)


def accumulated_errors(
    ritz: RitzPairs,
    c: Float[Array, " T"],
    targets: Float[Array, "T M P"],
    shares: Float[Array, "T T"],
) -> Errors:
    """Bounds on the errors of residuals and fits, multipliers fixed; docs/krylov_bounds.md, (3).

    A round inherits |1 - alpha_t| times the error of the round before, and adds its resolvent's.
    """
    own = jax.vmap(partial(resolvent_errors, ritz))(targets, c)
    return Errors(matmul(shares, own.lanczos), matmul(shares, own.rounding))


def teacher_shares(of_teacher: Float[Array, " T"]) -> Float[Array, "T T"]:
    """What share of fit i is left in the targets of round t: prod over j = i+1..t of |1 - alpha_j|.

    Shape (t, i); 1 for i = t and 0 for i > t.
    """
    t, i = jnp.indices((len(of_teacher), len(of_teacher)))
    factors = jnp.where(t > i, of_teacher[:, None], 1)
    return jnp.where(t >= i, jnp.cumprod(factors, axis=0), 0)


def fixed_fit_errors(
    ritz: RitzPairs,
    c: Float[Array, " T"],
    z: Float[Array, "M P"],
    weights: Float[Array, "T T"],
) -> Float[Array, " T"]:
    """Bounds on the error of every fit, multipliers fixed; docs/krylov_bounds.md, (4).

    The fit is a sum of products A_t .. A_k of filters, with weights of size w_tk: |alpha_k| times
    the teacher's share. Late filters are applied first: their large multipliers smooth what
    follows.
    """
    every_z = jnp.broadcast_to(z, (len(c), *z.shape))
    a = filters.ridge(ritz.d[None], c[:, None])
    return jnp.sum(weights * product_errors(ritz, c, every_z, own=a).total, axis=1)


def overlaps(
    ritz: RitzPairs, c: Float[Array, " T"], residual: Float[Array, "T M P"]
) -> Float[Array, " T"]:
    """Bounds on |V_+^T Q_i A_{i+1} .. A_{t-1} Q_t W p_t|, i <= t; docs/krylov_bounds.md, (5).

    How far G leads each residual out of the Krylov space; one bound a round, for all i.
    """
    q = ritz.residual_filters(c)
    return product_errors(ritz, c, residual, own=q).total[:, 0]


def product_errors(
    ritz: RitzPairs, c: Float[Array, " T"], p: Float[Array, "T M P"], *, own: Float[Array, "T M"]
) -> Errors:
    """Bounds on the errors of products A_k .. A_{t-1} B_t W p_t of filters, applied from right to
    left: sums of resolvent errors over i = t, .., k.

    Args:
        ritz: the Ritz pairs.
        c: the multipliers.
        p: what the product of each round t is applied to.
        own: the filter B_t of each round on the Ritz values, a_t or q_t.

    Returns:
        Bounds of shape (t, k); zero for k > t.
    """
    rounds = jnp.arange(len(c))

    def apply_filter(left: Float[Array, "T M P"], i: Array) -> tuple[Array, Errors]:
        """Filter i, on what the filters t, .., i+1 have left of p_t, for every round t >= i."""
        a = filters.ridge(ritz.d, c[i])[None]
        which = jnp.where((rounds == i)[:, None], own, a)
        errors = jax.vmap(lambda p: resolvent_errors(ritz, p, c[i]))(left)
        begun = rounds >= i
        left = jnp.where(begun[:, None, None], which[:, :, None] * left, left)
        return left, Errors(*(jnp.where(begun, error, 0) for error in errors))

    each = lax.scan(apply_filter, p, rounds, reverse=True)[1]
    return Errors(*(jnp.cumsum(error[::-1], axis=0)[::-1].T for error in each))


def residual_norm_error(now: FixedRound, s: Float[Array, ""]) -> Float[Array, ""]:
    """Bound on | |Q_t x_t|^2 - s^2 | / 2, the error of an equation; docs/krylov_bounds.md, (6).

    Second order in what more steps would reduce. The last term is what rounding leaves of the
    equation |p_t| = s.
    """
    errors = now.errors
    noise = ROUNDING * jnp.finfo(s.dtype).eps
    return (
        errors.lanczos * now.overlap
        + errors.rounding * jnp.linalg.norm(now.residual)
        + errors.total**2 / 2
        + noise * (jnp.sum(now.targets**2) + s**2) / 2
    )


def form_errors(
    ritz: RitzPairs, c: Float[Array, " T"], v: Float[Array, "M P"], error: Float[Array, ""]
) -> Float[Array, " T"]:
    """Bounds on |<x, Q_i x> - sum v^2 q_i| for every round i, where |x - W v| <= error;
    docs/krylov_bounds.md, (7).

    The same bounds hold for |<x, A_i x> - sum v^2 a_i|.
    """
    size = jnp.linalg.norm(v)
    return error * (2 * size + error) + size * every_resolvent_error(ritz, v, c)


def multiplier_shift(
    ritz: RitzPairs,
    c: Float[Array, " T"],
    now: FixedRound,
    s: Float[Array, ""],
    shifts: Float[Array, " T"],
) -> Float[Array, ""]:
    """Bound on |log c - log c_t|, c the exact chain's, given those of the rounds before;
    docs/krylov_bounds.md, (10).

    Infinite where too little is known: then the exact round need not even be active.
    """
    q = ritz.residual_filters(c)
    squares = jnp.sum(now.residual**2, axis=1)
    doubts = form_errors(ritz, c, now.residual, now.errors.total)
    before = jnp.where(jnp.arange(len(c)) < now.t, shifts, 0)
    earlier = jnp.sum(before * (matmul(q, squares) + doubts))
    slope = jnp.sum(squares * (1 - q[now.t])) - doubts[now.t]

    positive = slope > 0
    shift = SLOPE_SLACK * (residual_norm_error(now, s) + earlier) / jnp.where(positive, slope, 1)
    within = positive & (shift + jnp.sum(shifts) <= LARGEST_SHIFT)
    return jnp.where(within, shift, jnp.inf)


def multiplier_error(shift: Float[Array, ""]) -> Float[Array, ""]:
    """Bound on |c_t - c| / c, given one on |log c - log c_t|; docs/krylov_bounds.md, (11)."""
    return jnp.expm1(shift)


def fit_error(
    ritz: RitzPairs, c: Float[Array, " T"], now: FixedRound, shifts: Float[Array, " T"]
) -> Float[Array, ""]:
    """Bound on |f_t - f|, f the exact chain's fit, with its own multipliers;
    docs/krylov_bounds.md, (12).
    """
    q = ritz.residual_filters(c)
    fit = now.targets - now.residual
    moved = jnp.linalg.norm(q[:, :, None] * fit[None], axis=(1, 2))
    sensitivity = moved + every_resolvent_error(ritz, fit, c) + now.errors.total
    return now.fit_error + FIT_SLACK * jnp.sum(shifts * sensitivity)


def relative_fit_error(error: Float[Array, ""], size: Float[Array, ""]) -> Float[Array, ""]:
    """Bound on |f_t - f| / |f|, where f_t is of this size and |f_t - f| <= error;
    docs/krylov_bounds.md, (13).
    """
    known = size > error
    return jnp.where(known, error / jnp.where(known, size - error, 1), jnp.inf)


def collapse_is_certain(
    now: FixedRound, last_fit_error: Float[Array, ""], s: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether the exact chain's targets are within the radius, too; docs/krylov_bounds.md, (14).

    What is infeasible on a Krylov spectrum proves nothing: G may express what the Ritz vectors
    cannot.
    """
    noise = ROUNDING * jnp.finfo(s.dtype).eps
    inherited = jnp.where(now.of_teacher > 0, now.of_teacher * last_fit_error, 0)
    size = jnp.linalg.norm(now.targets) + inherited
    return size * (1 + noise) <= s
