"""The multiplier of one fit: (d, z, tolerance) -> c (theory: Mobahi et al. 2020, section 2, eqs. 17-24).

A fit with multiplier c shrinks the rotated label z_k to z_k d_k/(c + d_k) and leaves the residual z_k c/(c + d_k).
The multiplier that belongs to a tolerance eps is the root of

    h(c) = || z_k c/(c + d_k) || = s,        s = sqrt(K eps).

Where d_k = 0 the residual is z_k whatever c is, so the null space is deflated first: n0^2 = sum over {d_k = 0} of
z_k^2, then s^2 <- s^2 - n0^2, and only d_k > 0 are kept, n = ||z||. The root is found by Newton steps in log c on

    F = log( (h/s) (n - s)/(n - h) ),

which is exactly linear when there is a single eigenvalue. n - h is summed without cancellation, the paper's own bounds
(23, 24) bracket the root, and a step that leaves the bracket or shrinks too slowly is replaced by a bisection of log c.
"""

import dataclasses
import enum
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sdntk._arguments import ArrayLike, as_count, as_float_array, as_positive

#: Newton steps after which the solver gives up; the hardest of the adversarial spectra in the tests take 20.
MAX_ITERATIONS = 25


class Status(enum.IntEnum):
    """What became of a round: the labels' squared norm against K times the tolerance eps (theory: section 2.1).

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
        value: c; infinity when the fit is collapsed (every residual is the whole label), nan when infeasible.
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

    Solves ``(1/K) sum_k (z_k c/(c + d_k))^2 = tolerance`` (Mobahi et al. 2020, Prop. 2) to the precision of the dtype
    times the condition number of c, which grows without limit near collapse (as n/(n - s)) and near the floor.

    Args:
        eigenvalues: d, shape (m,), not negative. Exact zeros are the null space.
        z: the rotated labels V y, shape (m,).
        tolerance: eps, a positive scalar.
        num_points: K, when it is not m.

    Returns:
        A :class:`Multiplier`. Nothing is raised for a collapsed or an infeasible fit: both are a status.

    Raises:
        ValueError, TypeError: wrong shapes, nan, inf, negative eigenvalues, a tolerance that is not positive.

    Example:
        With a single eigenvalue, c = d s/(||z|| - s):

        >>> solution = solve_multiplier([2.0], [3.0], tolerance=1.0)
        >>> round(float(solution.value), 6), int(solution.status)
        (1.0, 0)
    """
    z = as_float_array("z", z)
    d = as_float_array("eigenvalues", eigenvalues, dtype=z.dtype)
    if z.ndim != 1 or z.shape != d.shape or z.size == 0:
        raise ValueError(f"eigenvalues and z must both have shape (m,), m >= 1; theirs are {d.shape} and {z.shape}.")
    if not isinstance(d, jax.core.Tracer) and bool((d < 0).any()):
        raise ValueError("eigenvalues must not be negative: set those that are rounding to zero.")
    points = z.size if num_points is None else as_count("num_points", num_points, at_least=1)
    eps = as_positive("tolerance", tolerance, (), dtype=z.dtype)
    return _solve(d, z, jnp.sqrt(points * eps))


@jax.jit
def _solve(d: Float[Array, " m"], z: Float[Array, " m"], s: Float[Array, ""]) -> Multiplier:
    return solve(d, z, s, jnp.zeros_like(s))


def solve(d: Float[Array, " m"], z: Float[Array, " m"], s: Float[Array, ""], guess: Float[Array, ""]) -> Multiplier:
    """:func:`solve_multiplier` without checks, for use inside jitted code: s = sqrt(K eps), and a guess at c (or 0)."""
    status = classify(d, z, s)
    active = status == Status.ACTIVE
    # Where there is no root, the solver is given a harmless problem, so that neither values nor derivatives turn nan.
    d_safe, z_safe = jnp.where(active, d, 1.0), jnp.where(active, z, 1.0)
    s_safe = jnp.where(active, s, 0.5)
    root, iterations = _root(d_safe, z_safe, s_safe, guess)
    no_root = jnp.where(status == Status.COLLAPSED, jnp.inf, jnp.nan)
    return Multiplier(jnp.where(active, root, no_root), status, jnp.where(active, iterations, 0))


def classify(d: Float[Array, " m"], z: Float[Array, " m"], s: Float[Array, ""]) -> Int[Array, ""]:
    """The :class:`Status` of a fit; a norm within rounding of s counts as equal to it."""
    slack = 2 * jnp.finfo(z.dtype).eps * z.size**0.5
    norm = jnp.linalg.norm(z)
    norm_null = jnp.linalg.norm(jnp.where(d > 0, 0, z))
    has_null_space = (d <= 0).any()
    collapsed = norm <= s * (1 + slack)
    infeasible = has_null_space & (s <= norm_null + slack * norm)
    status = jnp.where(collapsed, Status.COLLAPSED, jnp.where(infeasible, Status.INFEASIBLE, Status.ACTIVE))
    return status.astype(jnp.int32)


def deflate(
    d: Float[Array, " m"], z: Float[Array, " m"], s: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """(n, s, n - s) of the range part, d_k > 0: what is left of norm and radius once the null space has had its share."""
    norm = jnp.linalg.norm(z)
    n = jnp.linalg.norm(jnp.where(d > 0, z, 0))
    n0 = jnp.linalg.norm(jnp.where(d > 0, 0, z))
    s_range = jnp.sqrt(jnp.maximum((s - n0) * (s + n0), 0))
    gap = (norm - s) * (norm + s) / (n + s_range)  # n^2 - s_range^2 = ||z||^2 - s^2: positive as long as not collapsed
    return n, s_range, gap


class _Search(NamedTuple):
    """The state of the root finder."""

    c: Float[Array, ""]
    low: Float[Array, ""]  # the root lies between these two
    high: Float[Array, ""]
    moved: Float[Array, ""]  # length of the last step in log c
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


@jax.custom_jvp
def _root(
    d: Float[Array, " m"], z: Float[Array, " m"], s: Float[Array, ""], guess: Float[Array, ""]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The root c of an active fit, and the iterations it took."""
    eps = float(jnp.finfo(z.dtype).eps)
    kept = d > 0
    n, s, gap = deflate(d, z, s)
    # The bounds (23), a little wider so that a root on one of them (a single eigenvalue) lies inside.
    margin = 1 + eps**0.25
    low = jnp.min(jnp.where(kept, d, jnp.inf)) * (s / gap) / margin
    high = jnp.max(d) * (s / gap) * margin
    start = jnp.where((low < guess) & (guess < high), guess, low)
    noise = eps * (4 + z.size**0.5)  # rounding of F
    z_over_s, z_over_n = jnp.where(kept, z / s, 0), jnp.where(kept, z / n, 0)
    d = jnp.where(kept, d, 1)  # any positive number: its z is zero

    def step(at: _Search) -> _Search:
        f, slope = _log_residual(at.c, d, z_over_s, z_over_n, s / n, gap / n)
        low, high = jnp.where(f < 0, at.c, at.low), jnp.where(f > 0, at.c, at.high)
        move = -f / slope
        newton, middle = at.c * jnp.exp(move), jnp.sqrt(low) * jnp.sqrt(high)
        accepted = (low <= newton) & (newton <= high) & (jnp.abs(move) <= at.moved / 2)
        at_root = jnp.abs(f) <= noise
        # Newton's error after a step is below 3 move^2, so a step under sqrt(eps)/4 has reached the dtype's precision.
        converged = at_root | (accepted & (jnp.abs(move) <= 0.25 * eps**0.5)) | (high <= low * (1 + 4 * eps))
        c = jnp.where(at_root, at.c, jnp.where(accepted, newton, middle))
        return _Search(c, low, high, jnp.abs(jnp.log(c / at.c)), at.iterations + 1, converged)

    found = lax.while_loop(
        lambda at: ~at.converged & (at.iterations < MAX_ITERATIONS),
        step,
        _Search(start, low, high, jnp.full_like(start, jnp.inf), jnp.int32(0), jnp.bool_(False)),
    )
    return found.c, found.iterations


def _log_residual(
    c: Float[Array, ""],
    d: Float[Array, " m"],
    z_over_s: Float[Array, " m"],
    z_over_n: Float[Array, " m"],
    s_over_n: Float[Array, ""],
    gap_over_n: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """F = log( (h/s) (n - s)/(n - h) ) and its derivative by log c."""
    a, b = c / (c + d), d / (c + d)  # a + b = 1
    residual = (z_over_s * a) ** 2
    h2 = jnp.sum(residual)
    h = jnp.sqrt(h2)  # h/s
    g = jnp.sum(z_over_n**2 * b * (1 + a)) / (1 + h * s_over_n)  # (n - h)/n
    slope_h = jnp.sum(residual * b) / h2  # of log h
    return jnp.log(h * gap_over_n / g), slope_h * (1 + h * s_over_n / g)


@_root.defjvp
def _root_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Any, Any]:
    """The derivative of c by the implicit function theorem on ||r|| = s, r = z c/(c + d); right where
    eigenvalues coincide, too.
    """
    (d, z, s, guess), (d_dot, z_dot, s_dot, _) = primals, tangents
    c, iterations = _root(d, z, s, guess)
    w = 1 / (c + d)
    r = c * w * z
    residual_dot = c * w * (z_dot - d_dot * w * z)  # at fixed c
    c_dot = (s * s_dot - jnp.sum(r * residual_dot)) / jnp.sum(r * z * d * w**2)
    return (c, iterations), (c_dot, np.zeros(iterations.shape, jax.dtypes.float0))
