"""How far a chain on a Krylov spectrum is from the chain on the Gram matrix itself: bounds from
what Lanczos knows.

Three things part the two.

* With the chain's multipliers fixed, the resolvent of T in place of G's errs, on coordinates p, by
  at most

      tau_i(p) = |B E_m^T (T + c_i)^{-1} p|,

  and what comes after contracts it: a product of filters is off by at most the sum of its tau, each
  of the coordinates that the filters before it left. Filters are free to change places, so the fit
  f_t = A_0 .. A_t y takes them in the order A_t, .., A_0: the large multipliers of late rounds
  smooth what the small ones are applied to.
* The multiplier of a round is a root of h = |c (c + G)^{-1} x_t| = s. Squared norms are known to
  second order in the above (as those of Gauss quadrature are): the cross term is a product of two
  residuals. A root moves by the error of h^2 over its slope, and the roots before it move the
  targets: |d log x_t / d log c_i| <= q_i = c_i/(c_i + d) in the basis of G.
* Rounding acts like a perturbation of G. And squared norms are rounded: near collapse all hangs on
  |u_t|^2 - s^2, their small difference.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sdntk._linalg import matmul
from sdntk.spectra.base import ErrorBounds
from sdntk.spectra.lanczos import ROUNDING
from sdntk.theory import filters
from sdntk.theory.multiplier import Status

#: Shifts of log c that are larger, all rounds together, are not bounded: within them slopes are
#: steady to 10%.
LARGEST_SHIFT = 0.02


@partial(jax.jit, static_argnames="by_tolerance")
def error_bounds(
    d: Float[Array, " M"],
    z: Float[Array, "M P"],
    residuals: Float[Array, "r M"],
    perturbation: Float[Array, ""],
    multipliers: Float[Array, " T"],
    status: Int[Array, " T"],
    s: Float[Array, ""],
    alpha: Float[Array, ""],
    *,
    by_tolerance: bool,
) -> ErrorBounds:
    """Bounds for P outputs that share their multipliers.

    Args:
        d: the Ritz values of a :class:`sdntk.spectra.krylov_spectrum.KrylovSpectrum`.
        z: its rotated labels.
        residuals: of its Ritz pairs.
        perturbation: that rounding amounts to.
        multipliers: c_t of the chain on it, infinite once collapsed.
        status: of its rounds.
        s: sqrt(K eps), the radius of every round.
        alpha: the ground truth's weight.
        by_tolerance: whether the multipliers came from the tolerance, or were given and are exact.
    """
    largest = jnp.max(jnp.abs(z))
    nothing = largest == 0  # labels of zeros
    z, s = (
        values / jnp.where(nothing, 1, largest) for values in (z, s)
    )  # squares of small numbers are zero
    c = jnp.where(status == Status.ACTIVE, multipliers, 1.0)
    _, diagonals = filters.distillation(
        d, jnp.where(status == Status.ACTIVE, multipliers, jnp.inf), alpha
    )
    targets = diagonals[..., None] * z[None]  # u_t
    own = jax.vmap(lambda u, c: _resolvent_errors(d, residuals, perturbation, u, c))(targets, c)
    of_norms = ROUNDING * jnp.finfo(z.dtype).eps  # rounding of squared norms, as a fraction
    q = (c[:, None] / (c[:, None] + d[None]))[..., None]  # c_t (c_t + T)^{-1} of every round
    shrunk = q * targets
    backwards = partial(_run_backwards, d, residuals, perturbation, c)
    cross = backwards(shrunk, own=c)[0][:, 0]
    of_fits = [
        _mixed(errors, alpha) for errors in backwards(jnp.broadcast_to(z, targets.shape), own=None)
    ]
    rounds = jnp.arange(len(c))

    def round_(carry: Any, now: Any) -> tuple[Any, ErrorBounds]:
        (exact, rounded, before, shifts), (t, u, p, tau, rounding, cross, of_fit) = carry, now
        exact, rounded, kept = exact + tau, rounded + rounding, u - p
        fixed, size_p = exact + rounded, jnp.linalg.norm(p)

        def known(v: Array) -> Array:
            """tau_i(v) of every round i, rounding included."""
            tau, rounding = jax.vmap(lambda c: _resolvent_errors(d, residuals, perturbation, v, c))(
                c
            )
            return tau + rounding

        # How h^2/2 moves with log c of the rounds before, at most, and with this round's own, at
        # least.
        doubt = fixed * (2 * size_p + fixed) + size_p * known(p)
        by_others = jnp.sum(
            jnp.where(rounds < t, shifts * (jnp.sum(p[None] ** 2 * q, axis=(1, 2)) + doubt), 0)
        )
        slope = jnp.sum(p**2 * (1 - q[t])) - doubt[t]
        off = (
            exact * cross
            + size_p * rounded
            + fixed**2 / 2
            + by_others
            + of_norms * (jnp.sum(u**2) + s**2) / 2
        )
        shift = 1.11 * off / jnp.where(slope > 0, slope, 1)
        allowed = (slope > 0) & (shift + jnp.sum(shifts) <= LARGEST_SHIFT)
        shifts = shifts.at[t].set(jnp.where(allowed, shift, jnp.inf) if by_tolerance else 0)
        moves = jnp.sqrt(jnp.sum((kept[None] * q) ** 2, axis=(1, 2))) + known(kept) + fixed
        error = sum(of_fit) + 1.03 * jnp.sum(jnp.where(shifts > 0, shifts * moves, 0))
        size = jnp.linalg.norm(kept)
        relative = jnp.where(nothing, 0.0, jnp.where(size > error, error / (size - error), jnp.inf))
        bounds = ErrorBounds(jnp.expm1(shifts[t]), relative)
        # No doubt that a collapsed round is one; what is infeasible by a Krylov spectrum need not
        # be so.
        below = (jnp.linalg.norm(u) + before) * (1 + of_norms) <= s
        ended = jnp.where((status[t] == Status.COLLAPSED) & below, 0.0, jnp.inf)
        active = status[t] == Status.ACTIVE
        bounds = jax.tree.map(lambda bound: jnp.where(active, bound, ended), bounds)
        rest = 1 - alpha
        after = (
            rest * exact,
            rest * rounded,
            rest * jnp.where(active, error, ended),
            jnp.where(active, shifts, 0 * shifts),
        )
        return after, bounds

    zero = jnp.zeros_like(s)
    start = (zero, zero, zero, jnp.zeros_like(c))
    return lax.scan(round_, start, (rounds, targets, shrunk, *own, cross, of_fits))[1]


def _resolvent_errors(
    d: Float[Array, " M"],
    residuals: Float[Array, "r M"],
    perturbation: Float[Array, ""],
    p: Float[Array, "M P"],
    c: Array,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """tau(p) of the shift c, and what rounding adds to it."""
    shrunk = p / (c + d)[:, None]
    return jnp.linalg.norm(matmul(residuals, shrunk)), perturbation * jnp.linalg.norm(shrunk)


def _run_backwards(
    d: Float[Array, " M"],
    residuals: Float[Array, "r M"],
    perturbation: Float[Array, ""],
    c: Float[Array, " T"],
    p: Float[Array, "T M P"],
    *,
    own: Float[Array, " T"] | None,
) -> tuple[Float[Array, "T T"], Float[Array, "T T"]]:
    """Sums of tau_i and of its rounding over i = t, .., k, the filters of these rounds applied to
    p_t in this order.

    Shape (t, k) for the rounds t and k <= t; round t's own filter is d/(c_t + d), or own/(c_t + d).
    They bound the error of A_k .. A_t p_t, and |V_{m+1}^T A_k .. A_t V p_t|.
    """
    rounds = jnp.arange(len(c))

    def back(
        carry: tuple[Array, Array, Array], i: Array
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        p, residual, rounding = carry
        found = jax.vmap(lambda p: _resolvent_errors(d, residuals, perturbation, p, c[i]))(p)
        numerator = jnp.broadcast_to(d[None, :, None], p.shape)
        if own is not None:
            numerator = jnp.where((rounds == i)[:, None, None], own[i], numerator)
        inside = i <= rounds
        residual, rounding = (
            s + jnp.where(inside, e, 0) for s, e in zip((residual, rounding), found, strict=True)
        )
        p = jnp.where(inside[:, None, None], numerator * p / (c[i] + d)[None, :, None], p)
        return (p, residual, rounding), (residual, rounding)

    zero = jnp.zeros_like(c)
    residual, rounding = lax.scan(back, (p, zero, zero), rounds, reverse=True)[1]
    return residual.T, rounding.T


def _mixed(errors: Float[Array, "T T"], alpha: Float[Array, ""]) -> Float[Array, " T"]:
    """The error of the fit A_t P_t z, from those of A_k .. A_t z, of which alpha makes a weighted
    mean.
    """
    t, k = jnp.indices(errors.shape)
    weights = jnp.where(k <= t, (1 - alpha) ** jnp.maximum(t - k, 0), 0) * jnp.where(
        k > 0, alpha, 1
    )
    return jnp.sum(weights * errors, axis=1)
