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

import dataclasses
import enum
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sdntk._arguments import ArrayLike, as_count, as_float_array, as_positive, every, is_traced
from sdntk._linalg import matmul

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
        eps <= floor: the labels have a part that no function of this space can express.
    """

    ACTIVE = 0
    COLLAPSED = 1
    INFEASIBLE = 2


@no_type_check  # in the tests: transformations rebuild pytrees with leaves of other shapes
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
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
    if not is_traced(d) and not every(lambda d: d >= 0, d):
        raise ValueError("eigenvalues must not be negative: set those that are rounding to zero.")
    points = z.size if num_points is None else as_count("num_points", num_points, at_least=1)
    eps = as_positive("tolerance", tolerance, (), dtype=z.dtype)
    return _solve(d, z, points * eps)


@jax.jit
def _solve(d: Float[Array, " m"], z: Float[Array, " m"], s2: Float[Array, ""]) -> Multiplier:
    of_range = range_part(d)
    z2, null2 = of_range.split(z)
    return solve(of_range, z2, null2, s2, jnp.zeros_like(s2))


class Range(NamedTuple):
    """The eigenvalues d_k > 0, in the shape of all: where d_k = 0 a harmless 1 stands, with labels
    that are 0.
    """

    d: Float[Array, " m"]
    d_min: Float[Array, ""]
    d_max: Float[Array, ""]
    kept: Bool[Array, " m"]

    def split(self, z: Float[Array, " m"]) -> tuple[Float[Array, " m"], Float[Array, ""]]:
        """The squared labels of the range, and the sum n0^2 of those of the null space."""
        z2 = z**2
        return jnp.where(self.kept, z2, 0), jnp.sum(jnp.where(self.kept, 0, z2))


def range_part(d: Float[Array, " m"]) -> Range:
    """Deflate the null space of the eigenvalues."""
    kept = d > 0
    return Range(jnp.where(kept, d, 1), jnp.min(jnp.where(kept, d, jnp.inf)), jnp.max(d), kept)


class Deflated(NamedTuple):
    """A fit on the range: what is left of norm and radius once the null space has had its share."""

    n: Float[Array, ""]  # || z restricted to d_k > 0 ||
    s: Float[Array, ""]  # sqrt(s^2 - n0^2), n0 = || z restricted to d_k = 0 ||
    gap: Float[Array, ""]  # n - s
    status: Int[Array, ""]  # a Status; a norm within rounding of s counts as equal to it


def deflate(
    of_range: Range, z2: Float[Array, " m"], null2: Float[Array, ""], s2: Float[Array, ""]
) -> Deflated:
    """The fit on the range with squared labels z2, null-space norm null2 = n0^2 and radius s2 = s^2
    = K eps.
    """
    n2 = weighted_sums(jnp.ones_like(z2), weights=z2)[0]
    n, s = jnp.sqrt(n2), jnp.sqrt(jnp.maximum(s2 - null2, 0))
    gap = (n2 + null2 - s2) / (
        n + s
    )  # n^2 - s^2 of the range is that of the whole: positive unless collapsed
    slack = 2 * jnp.finfo(z2.dtype).eps * z2.size**0.5
    norm, n0, radius = jnp.sqrt(n2 + null2), jnp.sqrt(null2), jnp.sqrt(s2)
    collapsed = norm <= radius * (1 + slack)
    infeasible = ~of_range.kept.all() & (radius <= n0 + slack * norm)
    status = jnp.where(
        collapsed, Status.COLLAPSED, jnp.where(infeasible, Status.INFEASIBLE, Status.ACTIVE)
    )
    return Deflated(n, s, gap, status.astype(jnp.int32))


def weighted_sums(*rows: Float[Array, " m"], weights: Float[Array, " m"]) -> Float[Array, " r"]:
    """Weighted sums of several rows as one matrix-vector product: on the CPU up to three times as
    fast as jnp.sum.
    """
    return matmul(jnp.stack(rows), weights)


def solve(
    of_range: Range,
    z2: Float[Array, " m"],
    null2: Float[Array, ""],
    s2: Float[Array, ""],
    guess: Float[Array, ""],
) -> Multiplier:
    """:func:`solve_multiplier` on split labels, for use inside jitted code: s2 = K eps, and a guess
    at c (or 0).
    """
    fit = lax.stop_gradient(deflate(of_range, z2, null2, s2))
    root, iterations = _root(
        *lax.stop_gradient((of_range.d, z2, fit, guess, of_range.d_min, of_range.d_max))
    )
    root = implicit_root(root, of_range.d, z2, s2 - null2, fit.status == Status.ACTIVE)
    no_root = jnp.where(fit.status == Status.COLLAPSED, jnp.inf, jnp.nan)
    return Multiplier(jnp.where(fit.status == Status.ACTIVE, root, no_root), fit.status, iterations)


def implicit_root(
    c: Float[Array, ""],
    d: Float[Array, " m"],
    z2: Float[Array, " m"],
    s2: Float[Array, ""],
    active: Bool[Array, ""],
) -> Float[Array, ""]:
    """A constant c, known to solve sum_k z_k^2 (c/(c + d_k))^2 = s^2, with the derivatives that
    this equation gives it.

    Two Newton steps in log c, whose value is rounding and left out, have the derivatives of the
    root up to the third. (``jax.custom_jvp`` would do for the first: inside a scan, JAX loses such
    rules on the way to second ones.)
    """
    x = jnp.zeros_like(c)
    for _ in range(2):
        a = 1 / (1 + d / (c * jnp.exp(x)))
        h2, slope = weighted_sums(a**2, 2 * a**2 * (1 - a), weights=z2)
        x = x - jnp.where(active, h2 - s2, 0) / jnp.where(active & (slope > 0), slope, 1)
    return c * jnp.exp(x - lax.stop_gradient(x))


def _root(
    d: Float[Array, " m"],
    z2: Float[Array, " m"],
    fit: Deflated,
    guess: Float[Array, ""],
    d_min: Float[Array, ""],
    d_max: Float[Array, ""],
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The root c of sum_k z_k^2 (c/(c + d_k))^2 = s^2, and the iterations it took; 1, at once,
    unless the fit is active.
    """
    eps = float(jnp.finfo(z2.dtype).eps)
    active = fit.status == Status.ACTIVE
    # The bounds (23), a little wider so that a root on one of them (a single eigenvalue) lies
    # inside.
    margin = 1 + eps**0.25
    low = jnp.where(active, d_min * (fit.s / fit.gap) / margin, 1)
    high = jnp.where(active, d_max * (fit.s / fit.gap) * margin, 1)
    noise = eps * (4 + z2.size**0.5)  # rounding of F

    def step(state: Float[Array, " 6"]) -> Float[Array, " 6"]:
        c, low, high, last_move, iterations, _ = state
        f, slope = _log_residual(c, d, z2, fit)
        low, high = jnp.where(f < 0, c, low), jnp.where(f > 0, c, high)
        move = -f / slope
        newton, middle = c * jnp.exp(move), jnp.sqrt(low) * jnp.sqrt(high)
        accepted = (low <= newton) & (newton <= high) & (jnp.abs(move) <= last_move / 2)
        at_root = jnp.abs(f) <= noise
        # Newton's error after a step is below 3 move^2: below 50 eps after a step under 4
        # sqrt(eps).
        converged = (
            at_root | (accepted & (jnp.abs(move) <= 4 * eps**0.5)) | (high <= low * (1 + 4 * eps))
        )
        c_next = jnp.where(at_root, c, jnp.where(accepted, newton, middle))
        return jnp.stack(
            [
                c_next,
                low,
                high,
                jnp.abs(jnp.log(c_next / c)),
                iterations + 1,
                converged.astype(c.dtype),
            ]
        )

    def running(state: Float[Array, " 6"]) -> Bool[Array, ""]:
        *_, iterations, converged = state
        return (converged == 0) & (iterations < MAX_ITERATIONS)

    # The state is one array: on the CPU, six scalars would be scheduled one by one, at the price of
    # the sums themselves.
    first = jnp.where((low < guess) & (guess < high), guess, low)
    state = jnp.stack(
        [
            first,
            low,
            high,
            jnp.full_like(first, jnp.inf),
            jnp.zeros_like(first),
            (~active).astype(first.dtype),
        ]
    )
    c, *_, iterations, _ = lax.while_loop(running, step, state)
    return c, iterations.astype(jnp.int32)


def _log_residual(
    c: Float[Array, ""], d: Float[Array, " m"], z2: Float[Array, " m"], fit: Deflated
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """F = log( (h/s) (n - s)/(n - h) ) and its derivative by log c."""
    w = 1 / (c + d)
    a, b = c * w, d * w  # a + b = 1
    a2 = (
        a * (fit.n / fit.s)
    ) ** 2  # h^2 = sum z^2 a^2 is s^2 at the root: so scaled, it neither over- nor underflows
    h2, h2_slope, one_minus_a2 = weighted_sums(a2, a2 * b, b * (1 + a), weights=z2) / fit.n**2
    h = jnp.sqrt(h2)  # h/s
    s = fit.s / fit.n
    g = one_minus_a2 / (1 + h * s)  # (n - h)/n, summed without cancellation
    return jnp.log(h * (fit.gap / fit.n) / g), h2_slope / h2 * (1 + h * s / g)
