"""A Gram matrix reduced to a tridiagonal one, G = Q T Q^T: whole chains, exactly, without the price
of eigenvectors.

A round asks for the resolvent (c I + T)^-1 only, which takes some K operations. The multiplier is
found as in :mod:`sdntk.theory.multiplier`, with r = c (c I + T)^-1 u for the residuals of targets u
in place of sums over eigenvalues:

    h = |r|,      h' = dh/dlog c = c^2 v . T (c I + T)^-1 v / h,      v = r/c,      n - h = (u -
    r).(u + r)/(n + h),

u - r = T v without cancellation. There is no eigenbasis in which a null space could be told apart
exactly: a tolerance is infeasible when a multiplier of machine_eps d_max does not reach it.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import linalg
from jaxtyping import Array, Bool, Float, Int

from sdntk._arguments import ArrayLike, as_labels, format_number, is_traced
from sdntk.spectra.base import as_gram
from sdntk.theory.multiplier import Status
from sdntk.theory.recurrence import Chain, Trajectory, distill_with_multiplier, map_outputs

#: Newton or bisection steps after which the solver gives up.
MAX_ITERATIONS = 60


@no_type_check  # in the tests: transformations rebuild pytrees with leaves of other shapes
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TridiagonalSpectrum:
    """G = Q T Q^T, T tridiagonal. It stands where a :class:`sdntk.Spectrum` does, but has no
    eigenvectors, hence no filters.

    Attributes:
        diagonal, beside: of T, shapes (K,) and (K - 1,).
        reflectors, factors: Householder vectors whose product is Q, shape (K - 1, K - 1), and their
            factors, shape (K - 1,).
        machine_epsilon: relative rounding of the Gram matrix.
        matrix: G, for derivatives only; None unless G was traced.
    """

    diagonal: Float[Array, " K"]
    beside: Float[Array, " K-1"]
    reflectors: Float[Array, "K-1 K-1"]
    factors: Float[Array, " K-1"]
    machine_epsilon: float = dataclasses.field(metadata={"static": True})
    matrix: Float[Array, "K K"] | None = None

    @property
    def num_points(self) -> int:
        """K."""
        return self.diagonal.shape[0]

    @property
    def dtype(self) -> Any:
        """Of what is computed with it."""
        return self.diagonal.dtype

    @property
    def eigenvalues(self) -> Float[Array, " K"]:
        """D, ascending, computed when asked for; those that are rounding are exactly zero."""
        d = jax.scipy.linalg.eigh_tridiagonal(self.diagonal, self.beside, eigvals_only=True)
        return jnp.where(d <= self.num_points * self.machine_epsilon * jnp.max(jnp.abs(d)), 0, d)

    @property
    def rank(self) -> Array:
        """The number of nonzero eigenvalues."""
        return jnp.sum(self.eigenvalues > 0)

    @property
    def largest(self) -> Float[Array, ""]:
        """A bound on the largest eigenvalue, by Gershgorin's circles."""
        e = jnp.abs(self.beside)
        return jnp.max(jnp.abs(self.diagonal) + jnp.pad(e, (0, 1)) + jnp.pad(e, (1, 0)))

    def rotate(self, y: Float[Array, "K *Q"]) -> Float[Array, "K *Q"]:
        """Q^T y."""
        return self._reflect(y, transpose=True)

    def unrotate(self, z: Float[Array, "K *Q"]) -> Float[Array, "K *Q"]:
        """Q z, all axes behind the first carried along."""
        return self._reflect(z, transpose=False)

    def _reflect(self, y: Float[Array, "K *Q"], *, transpose: bool) -> Float[Array, "K *Q"]:
        columns = y.reshape(len(y), -1)
        rest = _reflected(
            lax.stop_gradient((self.reflectors, self.factors)), columns[1:], transpose=transpose
        )
        return jnp.concatenate([columns[:1], rest]).reshape(y.shape)  # Q keeps the first coordinate

    def apply(self, v: Float[Array, "K *P"]) -> Float[Array, "K *P"]:
        """T v."""
        d, e = (a.reshape(-1, *(1 for _ in v.shape[1:])) for a in (self.diagonal, self.beside))
        nothing = jnp.zeros_like(v[:1])
        return (
            d * v + jnp.concatenate([e * v[1:], nothing]) + jnp.concatenate([nothing, e * v[:-1]])
        )

    def resolvent(self, c: Float[Array, "*Q"], u: Float[Array, "K *P"]) -> Float[Array, "K *P"]:
        """(c I + T)^-1 u; c is a scalar, or one for each column."""
        if c.ndim:
            return jax.vmap(self.resolvent, in_axes=(0, 1), out_axes=1)(c, u)
        lower, upper = jnp.pad(self.beside, (1, 0)), jnp.pad(self.beside, (0, 1))

        def solve(_: Any, u: Float[Array, "K P"]) -> Float[Array, "K P"]:
            return linalg.tridiagonal_solve(lower, lax.stop_gradient(c) + self.diagonal, upper, u)

        columns = u.reshape(len(u), -1)
        solution = lax.custom_linear_solve(
            lambda v: c * v + self.apply(v), columns, solve, symmetric=True
        )
        return solution.reshape(u.shape)

    def floor(self, y: ArrayLike) -> Float[Array, "*Q"]:
        """The training loss of the smallest multiplier that rounding allows for, machine_eps d_max.
        Shape () or (Q,).
        """
        labels = as_labels("y", y, self.num_points, dtype=self.dtype)
        c = self.machine_epsilon * self.largest
        return jnp.mean((c * self.resolvent(c, self.rotate(labels))) ** 2, axis=0)


def tridiagonalise(G: ArrayLike) -> TridiagonalSpectrum:  # noqa: N803 (theory's name)
    """Householder reduction of a Gram matrix, G = Q T Q^T: for chains that need no eigenvectors.

    Of many points (not below 2,000) it is quicker than :func:`sdntk.decompose`: at 8,000, in two
    thirds of the time.

    Args:
        G: the symmetric positive semi-definite Gram matrix, shape (K, K).

    Returns:
        A :class:`TridiagonalSpectrum`, for :func:`sdntk.distill_spectrum`.

    Raises:
        ValueError, TypeError: not a square matrix of finite numbers, not symmetric, or (unless
            traced) indefinite beyond rounding. A traced indefinite matrix gives nan.

    Warns:
        PrecisionWarning: G or the reduction is in float32.

    Source: Golub and Van Loan 2013, *Matrix Computations*, section 8.3.1.

    Example:
        >>> T = tridiagonalise(jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]))
        >>> T.unrotate(T.apply(T.rotate(jnp.array([1.0, 1.0, 2.0])))).round(12).tolist()
        [2.0, 3.0, 3.0]
    """
    matrix, machine_eps = as_gram(G)
    diagonal, beside, reflectors, factors = _reduce(lax.stop_gradient(matrix))
    reduced = TridiagonalSpectrum(
        diagonal, beside, reflectors, factors, machine_eps, matrix if is_traced(matrix) else None
    )
    rounding = len(matrix) * machine_eps * reduced.largest
    indefinite = (rounding > 0) & _has_eigenvalue_below(-rounding, diagonal, beside)
    if not is_traced(indefinite) and indefinite:
        raise ValueError(
            "G must be positive semi-definite; it has an eigenvalue below "
            f"{format_number(-float(rounding))}, beyond "
            "rounding. The kernel is not positive definite, or its values are less precise than "
            "their dtype."
        )
    return dataclasses.replace(reduced, diagonal=jnp.where(indefinite, jnp.nan, diagonal))


@jax.jit
def _has_eigenvalue_below(
    level: Float[Array, ""], diagonal: Float[Array, " K"], beside: Float[Array, " K-1"]
) -> Bool[Array, ""]:
    """Sylvester's law of inertia: T - level I has a pivot that is not positive."""

    def pivot(before: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        now = row[0] - level - row[1] ** 2 / jnp.where(before > 0, before, 1)
        return now, now

    return ~jnp.all(
        lax.scan(pivot, jnp.ones_like(level), (diagonal, jnp.pad(beside, (1, 0))))[1] > 0
    )


@jax.jit
def _reduce(matrix: Float[Array, "K K"]) -> tuple[Array, Array, Array, Array]:
    if len(matrix) == 1:
        none = jnp.zeros(0, matrix.dtype)
        return matrix[0], none, none.reshape(0, 0), none
    reduced, diagonal, beside, factors = linalg.tridiagonal(matrix, lower=True)
    return diagonal, beside, reduced[1:, :-1], factors


def _reflected(
    reflections: tuple[Float[Array, "n n"], Float[Array, " n"]],
    columns: Float[Array, "n P"],
    *,
    transpose: bool,
) -> Float[Array, "n P"]:
    """The product of the reflections, or its transpose, times columns.

    JAX knows no derivatives of ``ormqr``. So it is called as what solves the equation with the
    transpose, which is written out for JAX to look at, and never run.
    """

    def one_by_one(x: Float[Array, "n P"]) -> Float[Array, "n P"]:
        def reflect(
            x: Float[Array, "n P"], reflection: tuple[Array, Array, Array]
        ) -> tuple[Float[Array, "n P"], None]:
            index, column, factor = reflection
            place = jnp.arange(len(column))
            v = jnp.where(place == index, 1, jnp.where(place > index, column, 0))
            return x - factor * v[:, None] * (v @ x)[None], None

        vectors, factors = reflections
        return lax.scan(
            reflect, x, (jnp.arange(len(factors)), vectors.T, factors), reverse=transpose
        )[0]

    def product(_: Any, x: Float[Array, "n P"], *, transpose: bool) -> Float[Array, "n P"]:
        return linalg.ormqr(*reflections, x, left=True, transpose=transpose)

    there, back = (partial(product, transpose=which) for which in (transpose, not transpose))
    return lax.custom_linear_solve(one_by_one, columns, solve=there, transpose_solve=back)


class _State(NamedTuple):
    targets: Float[Array, "K P"]
    last: Float[Array, ""]  # c_{t-1}, and before it c_{t-2}: 0 when there is none
    last_but_one: Float[Array, ""]
    status: Int[Array, ""]


def trajectory(
    spectrum: TridiagonalSpectrum, z: Float[Array, "K *Q"], chain: Chain, terms: int
) -> Trajectory:
    """Multipliers and status of every round, without derivatives: as
    :func:`sdntk.theory.recurrence.run_chain`.
    """
    if not chain.by_tolerance:
        return distill_with_multiplier(chain.level, chain.rounds)
    spectrum, z, chain = lax.stop_gradient((spectrum, z, chain))
    of_one = partial(_to_tolerance, spectrum, chain)
    s2 = terms * chain.level
    if z.ndim == 1 or chain.joint:
        return of_one(z.reshape(len(z), -1), s2)
    return map_outputs(lambda z, s2: of_one(z[:, None], s2), z, s2)


def _to_tolerance(
    spectrum: TridiagonalSpectrum, chain: Chain, z: Float[Array, "K P"], s2: Float[Array, ""]
) -> Trajectory:
    alpha = chain.ground_truth_weight

    def active(state: _State) -> tuple[_State, Trajectory]:
        guess = jnp.where(
            state.last_but_one > 0, state.last * (state.last / state.last_but_one), state.last
        )
        found = _solve(spectrum, state.targets, s2, guess)
        solved = found.status == Status.ACTIVE
        duals = spectrum.resolvent(jnp.where(solved, found.multipliers, 1), state.targets)
        targets = alpha * z + (1 - alpha) * jnp.where(solved, spectrum.apply(duals), 0)
        return _State(targets, found.multipliers, state.last, found.status), found

    def ended(state: _State) -> tuple[_State, Trajectory]:
        c = jnp.where(state.status == Status.COLLAPSED, jnp.inf, jnp.nan).astype(s2.dtype)
        return state, Trajectory(c, state.status, jnp.int32(0))

    def round_(state: _State, _: None) -> tuple[_State, Trajectory]:
        return lax.cond(state.status == Status.ACTIVE, active, ended, state)

    zero = jnp.zeros_like(s2)
    return lax.scan(
        round_, _State(z, zero, zero, jnp.int32(Status.ACTIVE)), None, length=chain.rounds
    )[1]


def _solve(
    spectrum: TridiagonalSpectrum,
    targets: Float[Array, "K P"],
    s2: Float[Array, ""],
    guess: Float[Array, ""],
) -> Trajectory:
    """The multiplier of one round."""
    eps = float(jnp.finfo(targets.dtype).eps)
    n, s, d_max = jnp.linalg.norm(targets), jnp.sqrt(s2), spectrum.largest
    gap, slack = (n**2 - s2) / (n + s), 2 * eps * targets.size**0.5
    least = spectrum.machine_epsilon * d_max
    too_far = jnp.linalg.norm(least * spectrum.resolvent(least, targets)) >= s
    collapsed = n <= s * (1 + slack)
    status = jnp.where(
        collapsed, Status.COLLAPSED, jnp.where(too_far, Status.INFEASIBLE, Status.ACTIVE)
    ).astype(jnp.int32)
    going = status == Status.ACTIVE
    high = jnp.where(going, d_max * (s / gap) * (1 + eps**0.25), 1)
    low = jnp.where(going, jnp.minimum(least, high / 2), 1)

    def step(state: Any) -> Any:
        c, low, high, last_move, iterations, _ = state
        f, slope = _log_residual(spectrum, targets, c, n, s, gap)
        low, high = jnp.where(f < 0, c, low), jnp.where(f > 0, c, high)
        move = -f / slope
        newton, middle = c * jnp.exp(move), jnp.sqrt(low) * jnp.sqrt(high)
        accepted = (low <= newton) & (newton <= high) & (jnp.abs(move) <= last_move / 2)
        at_root = jnp.abs(f) <= eps * (4 + targets.size**0.5)
        converged = (
            at_root | (accepted & (jnp.abs(move) <= 4 * eps**0.5)) | (high <= low * (1 + 4 * eps))
        )
        after = jnp.where(at_root, c, jnp.where(accepted, newton, middle))
        return after, low, high, jnp.abs(jnp.log(after / c)), iterations + 1, converged

    first = jnp.where(
        (low < guess) & (guess < high), guess, jnp.where(going, jnp.sqrt(low) * jnp.sqrt(high), 1)
    )
    start = (first, low, high, jnp.full_like(s, jnp.inf), jnp.int32(0), ~going)
    c, *_, iterations, _ = lax.while_loop(
        lambda state: ~state[5] & (state[4] < MAX_ITERATIONS), step, start
    )
    no_root = jnp.where(status == Status.COLLAPSED, jnp.inf, jnp.nan)
    return Trajectory(jnp.where(going, c, no_root), status, iterations)


def _log_residual(
    spectrum: TridiagonalSpectrum, targets: Array, c: Array, n: Array, s: Array, gap: Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """F = log( (h/s) (n - s)/(n - h) ) and its derivative by log c."""
    duals = spectrum.resolvent(c, targets)
    fitted, residuals = spectrum.apply(duals), c * duals
    h = jnp.linalg.norm(residuals)
    h_slope = c**2 * jnp.sum(duals * spectrum.apply(spectrum.resolvent(c, duals))) / h
    g = jnp.sum(fitted * (targets + residuals)) / (n + h)  # n - h, without cancellation
    return jnp.log(h / s * gap / g), h_slope / h + h_slope / g
