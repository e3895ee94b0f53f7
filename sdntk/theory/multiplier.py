"""The multiplier of one fit: (d, z, tolerance) -> c (Mobahi et al. 2020, section 2, eqs. 17-24).

A fit with multiplier c shrinks the rotated label z_k to z_k d_k/(c + d_k) and leaves the residual
z_k c/(c + d_k). The multiplier that belongs to a tolerance eps is the root of

    h(c) = || z_k c/(c + d_k) || = s,        s = sqrt(K eps).

Where d_k = 0 the residual is z_k whatever c is, so the null space is deflated first: n0^2 = sum
over {d_k = 0} of z_k^2, then s^2 <- s^2 - n0^2, and only d_k > 0 are kept, n = ||z||. The root is
found by Newton steps in log c on

    F = log( (h/s) (n - s)/(n - h) ),

which is exactly linear when there is a single eigenvalue. n - h is summed without cancellation, the
paper's own bounds (23, 24) bracket the root, and a step that leaves the bracket or shrinks too
slowly is replaced by a bisection of log c.
"""

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sdntk._arguments import ArrayLike, as_count, as_float_array, as_positive, require_every
from sdntk._linalg import matmul
from sdntk._pytrees import pytree
from sdntk.theory import units
from sdntk.theory.newton import Bracket, Residual, Root, find_root

#: Newton steps after which the solver gives up; the hardest of the adversarial spectra in the tests
#: take 20.
MAX_ITERATIONS = 25


class Status(enum.IntEnum):
    """What became of a round: the labels' squared norm against K times the tolerance eps (theory:
    section 2.1).

    ACTIVE
        floor < eps < ||y||^2 / K: there is one multiplier c > 0.
    COLLAPSED
        eps >= ||y||^2 / K: the zero function is good enough, f = 0 (eq. 10). Tested first.
    INFEASIBLE
        eps <= floor: the labels have a part that no function of this space can express. Also where
        a traced Gram matrix is indefinite, which has no such space, and where weights outside [0,
        1] have made a round's targets so large that their squares overflow.
    """

    ACTIVE = 0
    COLLAPSED = 1
    INFEASIBLE = 2


@pytree
class Multiplier:
    """A multiplier and how it was found.

    Attributes:
        value: c; infinity when the fit is collapsed (every residual is the whole label), nan when
            infeasible.
        status: a :class:`Status`.
        iterations: Newton or bisection steps taken.
    """

    value: Float[Array, ""]
    status: Int[Array, ""]
    iterations: Int[Array, ""]


def solve_multiplier(
    eigenvalues: ArrayLike, z: ArrayLike, tolerance: ArrayLike, *, num_points: int | None = None
) -> Multiplier:
    """The multiplier c > 0 at which a fit's training loss equals the tolerance.

    Solves ``(1/K) sum_k (z_k c/(c + d_k))^2 = tolerance`` (Mobahi et al. 2020, Prop. 2) to the
    precision of the dtype times the condition number of c, which grows without limit near collapse
    (as n/(n - s)) and near the floor.

    Args:
        eigenvalues: d, shape (m,), not negative. Exact zeros are the null space.
        z: the rotated labels V y, shape (m,).
        tolerance: eps, a positive scalar.
        num_points: K, when it is not m.

    Returns:
        A :class:`Multiplier`. Nothing is raised for a collapsed or an infeasible fit: both are a
        status.

    Raises:
        ValueError, TypeError: wrong shapes, nan, inf, negative eigenvalues, a tolerance that is not
            positive.

    Example:
        With a single eigenvalue, c = d s/(||z|| - s):

        >>> solution = solve_multiplier([2.0], [3.0], tolerance=1.0)
        >>> round(float(solution.value), 6), int(solution.status)
        (1.0, 0)
    """
    z = as_float_array("z", z)
    d = as_float_array("eigenvalues", eigenvalues, dtype=z.dtype)
    if z.ndim != 1 or z.shape != d.shape or z.size == 0:
        raise ValueError(
            f"eigenvalues and z must both have shape (m,), m >= 1; theirs are {d.shape} and "
            f"{z.shape}."
        )
    expected = "must not be negative: set those that are rounding to zero"
    require_every("eigenvalues", d, lambda d: d >= 0, expected)
    points = z.size if num_points is None else as_count("num_points", num_points, at_least=1)
    eps = as_positive("tolerance", tolerance, (), dtype=z.dtype)
    return _solve(d, z, units.radius(eps, points))


@jax.jit
def _solve(d: Float[Array, " m"], z: Float[Array, " m"], s: Float[Array, ""]) -> Multiplier:
    support, unit = support_of(d), units.power_of_two(z)
    return solve(support, support.split(z / unit), s / unit, jnp.zeros_like(s))


class SquaredLabels(NamedTuple):
    """z_k^2 on the support of the spectrum, and what lies outside it."""

    kept: Float[Array, " m"]  # z_k^2 where d_k > 0, else 0
    null: Float[Array, ""]  # n0^2: the sum of z_k^2 where d_k = 0


class Support(NamedTuple):
    """The eigenvalues d_k > 0, in the shape of all: a harmless 1 stands where d_k = 0."""

    d: Float[Array, " m"]
    d_min: Float[Array, ""]
    d_max: Float[Array, ""]
    kept: Bool[Array, " m"]

    def split(self, z: Float[Array, " m"]) -> SquaredLabels:
        """The squared labels on the support and in the null space."""
        z2 = z**2
        return SquaredLabels(
            kept=jnp.where(self.kept, z2, 0), null=jnp.sum(jnp.where(self.kept, 0, z2))
        )


def support_of(d: Float[Array, " m"]) -> Support:
    """Deflate the null space of the eigenvalues."""
    kept = d > 0
    d_min = jnp.min(jnp.where(kept, d, jnp.inf))
    return Support(jnp.where(kept, d, 1), d_min, jnp.max(d), kept)


class Deflated(NamedTuple):
    """A fit on the support: what the null space has left of norm and radius."""

    n: Float[Array, ""]  # || z restricted to d_k > 0 ||
    s: Float[Array, ""]  # sqrt(s^2 - n0^2), n0 = || z restricted to d_k = 0 ||
    gap: Float[Array, ""]  # n - s
    status: Int[Array, ""]  # a Status; a norm within rounding of s counts as equal to it


def deflate(support: Support, z2: SquaredLabels, radius: Float[Array, ""]) -> Deflated:
    """The fit on the support, for the radius s = sqrt(K eps), whose square may be no number."""
    n2 = weighted_sums(jnp.ones_like(z2.kept), weights=z2.kept)[0]
    n, n0, norm = jnp.sqrt(n2), jnp.sqrt(z2.null), jnp.sqrt(n2 + z2.null)
    left = jnp.sqrt(jnp.maximum(radius - n0, 0)) * jnp.sqrt(radius + n0)
    s = jnp.where(n0 > 0, left, radius)
    # n^2 - s^2 on the support is that of the whole: positive unless collapsed.
    gap = (norm - radius) * ((norm + radius) / (n + s))

    slack = 2 * jnp.finfo(z2.kept.dtype).eps * z2.kept.size**0.5
    collapsed = norm <= radius * (1 + slack)
    beyond_floor = ~support.kept.all() & (radius <= n0 + slack * norm)
    infeasible = beyond_floor | ~jnp.isfinite(norm)
    return Deflated(n, s, gap, as_status(collapsed, infeasible))


def as_status(collapsed: Bool[Array, ""], infeasible: Bool[Array, ""]) -> Int[Array, ""]:
    """The :class:`Status` of a fit; collapse counts first."""
    unless_collapsed = jnp.where(infeasible, Status.INFEASIBLE, Status.ACTIVE)
    return jnp.where(collapsed, Status.COLLAPSED, unless_collapsed).astype(jnp.int32)


def without_root(status: Int[Array, ""]) -> Float[Array, ""]:
    """What stands for the multiplier of a fit that is not active: infinity if collapsed, or nan."""
    return jnp.where(status == Status.COLLAPSED, jnp.inf, jnp.nan)


def weighted_sums(*rows: Float[Array, " m"], weights: Float[Array, " m"]) -> Float[Array, " r"]:
    """Weighted sums of several rows as one matrix-vector product: on the CPU up to three times as
    fast as jnp.sum.
    """
    return matmul(jnp.stack(rows), weights)


def solve(
    support: Support, z2: SquaredLabels, s: Float[Array, ""], guess: Float[Array, ""]
) -> Multiplier:
    """:func:`solve_multiplier` on split labels, for use inside jitted code.

    Args:
        support: of the eigenvalues.
        z2: squared labels, split by it, in a unit in which the largest are about 1.
        s: sqrt(K eps), in the same unit.
        guess: at c, or 0.
    """
    fit = lax.stop_gradient(deflate(support, z2, s))
    active = fit.status == Status.ACTIVE
    root = _root(*lax.stop_gradient((support, z2.kept, fit, guess)))

    # Relative to s, and labels to their norm: squares of what is much smaller vanish.
    per_radius = 1 / radius_as_unit(s, active)
    n = jnp.where(active, fit.n, 1)

    def squared_residual(c: Float[Array, ""]) -> Residual:
        ratio = support.d / c
        a = 1 / (1 + ratio)
        a2 = (a * (n * per_radius)) ** 2
        return Residual(*weighted_sums(a2, 2 * a2 * (a * ratio), weights=z2.kept / n**2))

    s2 = (s * per_radius) ** 2 - z2.null * per_radius * per_radius
    c = implicit_root(root.value, squared_residual, s2, active)
    return Multiplier(jnp.where(active, c, without_root(fit.status)), fit.status, root.iterations)


def radius_as_unit(s: Float[Array, "*Q"], active: Bool[Array, "*Q"]) -> Float[Array, "*Q"]:
    """The radius s as a constant; 1 where there is no root, so that all stays finite."""
    return lax.stop_gradient(jnp.where(active, s, 1))


def implicit_root(
    c: Float[Array, "*Q"],
    squared_residual: Callable[[Float[Array, "*Q"]], Residual],
    s2: Float[Array, "*Q"],
    active: Bool[Array, "*Q"],
) -> Float[Array, "*Q"]:
    """A constant c, known to solve h^2(c) = s^2, with the derivatives that this equation gives it.

    Two Newton steps in log c, whose value is rounding and left out, have the derivatives of the
    root up to the third. (``jax.custom_jvp`` would do for the first: inside a scan, JAX loses such
    rules on the way to second ones.)

    Args:
        c: the root.
        squared_residual: h^2 and its derivative by log c, as a function of c.
        s2: s^2, in the same unit.
        active: where it is false, c is no root, and gets no derivatives.
    """
    x = jnp.zeros_like(c)
    for _ in range(2):
        h2 = squared_residual(c * jnp.exp(x))
        excess = jnp.where(active, h2.value - s2, 0)
        x = x - excess / jnp.where(active & (h2.slope > 0), h2.slope, 1)
    return c * jnp.exp(x - lax.stop_gradient(x))


def _root(support: Support, z2: Float[Array, " m"], fit: Deflated, guess: Float[Array, ""]) -> Root:
    """The root of sum_k z_k^2 (c/(c + d_k))^2 = s^2; 1, at once, unless the fit is active."""
    eps = float(jnp.finfo(z2.dtype).eps)
    active = fit.status == Status.ACTIVE

    # The bounds (23, 24), a little wider, for a root on one of them (a single eigenvalue).
    margin = 1 + eps**0.25
    low = jnp.where(active, support.d_min * (fit.s / fit.gap) / margin, 1)
    high = jnp.where(active, support.d_max * (fit.s / fit.gap) * margin, 1)
    bracket = Bracket(low, high)

    return find_root(
        lambda c: _log_residual(c, support.d, z2, fit),
        bracket,
        jnp.where(bracket.holds(guess), guess, low),
        noise=eps * (4 + z2.size**0.5),
        active=active,
        max_iterations=MAX_ITERATIONS,
    )


def _log_residual(
    c: Float[Array, ""], d: Float[Array, " m"], z2: Float[Array, " m"], fit: Deflated
) -> Residual:
    """F = log( (h/s) (n - s)/(n - h) ) and its derivative by log c."""
    w = 1 / (c + d)
    a, b = c * w, d * w  # a + b = 1
    # h^2 = sum z^2 a^2 is s^2 at the root: so scaled, it neither over- nor underflows.
    a2 = (a * (fit.n / fit.s)) ** 2
    h2, h2_slope, one_minus_a2 = weighted_sums(a2, a2 * b, b * (1 + a), weights=z2) / fit.n**2
    h = jnp.sqrt(h2)  # h/s
    s = fit.s / fit.n
    g = one_minus_a2 / (1 + h * s)  # (n - h)/n, summed without cancellation
    return Residual(jnp.log(h * (fit.gap / fit.n) / g), h2_slope / h2 * (1 + h * s / g))
