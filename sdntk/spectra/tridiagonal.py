"""The tridiagonal spectrum, G = Q T Q^T: whole chains, exactly, without the price of eigenvectors.

A round asks for the resolvent (c I + T)^-1 only, which takes some K operations. The multiplier is
found as in :mod:`sdntk.theory.multiplier`, with r = c (c I + T)^-1 u for the residuals of targets u
in place of sums over eigenvalues:

    h = |r|,      h' = dh/dlog c = r . T (c I + T)^-1 r / h,      n - h = (u - r).(u + r)/(n + h),

u - r = T (c I + T)^-1 u without cancellation. There is no eigenbasis in which a null space could
be told apart exactly: a tolerance is infeasible when a multiplier of machine_eps d_max does not
reach it.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import linalg
from jaxtyping import Array, Bool, Float

from sdntk._arguments import ArrayLike, as_columns, as_labels, format_number, is_traced
from sdntk._linalg import matmul
from sdntk._pytrees import pytree
from sdntk.spectra.base import AbstractSpectrum, as_shifted
from sdntk.spectra.matrix import GramMatrix, as_gram_matrix
from sdntk.theory.mixing import mix_targets
from sdntk.theory.multiplier import Multiplier, Status, as_status, radius_as_unit, without_root
from sdntk.theory.newton import Bracket, Residual, find_root
from sdntk.theory.recurrence import (
    ChainSpec,
    MultiplierPath,
    distill_with_multiplier,
    map_outputs,
    solve_rounds,
)
from sdntk.theory.units import in_unit, power_of_two, unit_of

#: Newton or bisection steps after which the solver gives up: more than in an eigenbasis, since a
#: bracket that starts at machine_eps d_max may first be bisected.
MAX_ITERATIONS = 60


@pytree
class TridiagonalSpectrum(AbstractSpectrum):
    """G = Q T Q^T, T tridiagonal. It stands where a :class:`sdntk.Spectrum` does, but has no
    eigenvectors, hence no filters.

    Attributes:
        diagonal, off_diagonal: of T, shapes (K,) and (K - 1,).
        reflectors, taus: Householder vectors whose reflections I - tau v v^T have the product Q,
            shape (K - 1, K - 1), and their factors tau, shape (K - 1,).
        machine_epsilon: relative rounding of the Gram matrix.
        matrix: G, for derivatives only; None unless G was traced.
    """

    diagonal: Float[Array, " K"]
    off_diagonal: Float[Array, " K-1"]
    reflectors: Float[Array, "K-1 K-1"]
    taus: Float[Array, " K-1"]
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
        """Eigenvalues d, ascending, computed when asked for; those that are rounding are exactly
        zero.
        """
        unit = power_of_two(self.largest)  # squares of entries are asked for
        d = jax.scipy.linalg.eigh_tridiagonal(
            self.diagonal / unit, self.off_diagonal / unit, eigvals_only=True
        )
        zero = d <= self.num_points * self.machine_epsilon * jnp.max(jnp.abs(d))
        return jnp.where(zero, 0, d * unit)

    @property
    def rank(self) -> Array:
        """The number of nonzero eigenvalues."""
        return jnp.sum(self.eigenvalues > 0)

    @property
    def largest(self) -> Float[Array, ""]:
        """A bound on the largest eigenvalue, by Gershgorin's circles."""
        e = jnp.abs(self.off_diagonal)
        return jnp.max(jnp.abs(self.diagonal) + jnp.pad(e, (0, 1)) + jnp.pad(e, (1, 0)))

    def rotate(self, y: Float[Array, "K *Q"]) -> Float[Array, "K *Q"]:
        """Q^T y, labels in the basis."""
        return self._reflect(as_columns("y", y, self.num_points, self.dtype), transpose=True)

    def unrotate(self, z: Float[Array, "K *Q"]) -> Float[Array, "K *Q"]:
        """Q z, all axes behind the first carried along."""
        return self._reflect(as_columns("z", z, self.num_points, self.dtype), transpose=False)

    def _reflect(self, y: Float[Array, "K *Q"], *, transpose: bool) -> Float[Array, "K *Q"]:
        columns = y.reshape(len(y), -1)
        rest = _reflected(
            lax.stop_gradient((self.reflectors, self.taus)), columns[1:], transpose=transpose
        )
        return jnp.concatenate([columns[:1], rest]).reshape(y.shape)  # Q keeps the first coordinate

    def apply(self, v: Float[Array, "K *P"]) -> Float[Array, "K *P"]:
        """T v."""
        v = as_columns("v", v, self.num_points, self.dtype)
        d, e = (
            a.reshape(-1, *(1 for _ in v.shape[1:])) for a in (self.diagonal, self.off_diagonal)
        )
        nothing = jnp.zeros_like(v[:1])
        return (
            d * v + jnp.concatenate([e * v[1:], nothing]) + jnp.concatenate([nothing, e * v[:-1]])
        )

    def resolvent(self, c: Float[Array, "*Q"], u: Float[Array, "K *P"]) -> Float[Array, "K *P"]:
        """(c I + T)^-1 u; c is a scalar, or one for each column."""
        c, u = as_shifted(c, u, self.num_points, self.dtype)
        if c.ndim:
            return jax.vmap(self.resolvent, in_axes=(0, 1), out_axes=1)(c, u)
        lower, upper = jnp.pad(self.off_diagonal, (1, 0)), jnp.pad(self.off_diagonal, (0, 1))

        def solve(_: Any, u: Float[Array, "K P"]) -> Float[Array, "K P"]:
            return linalg.tridiagonal_solve(lower, lax.stop_gradient(c) + self.diagonal, upper, u)

        columns = u.reshape(len(u), -1)
        solution = lax.custom_linear_solve(
            lambda v: c * v + self.apply(v), columns, solve, symmetric=True
        )
        return solution.reshape(u.shape)

    def multiplier_path(self, z: Float[Array, "K *Q"], chain: ChainSpec) -> MultiplierPath:
        """The recurrence on vectors of targets, without derivatives."""
        if chain.multiplier is not None:
            return distill_with_multiplier(chain.multiplier, chain.rounds)
        constant: Any = lax.stop_gradient((self, z, chain))
        spectrum, z, chain = constant
        s = chain.radius
        if z.ndim == 1 or chain.joint:
            return _to_tolerance(spectrum, chain, z.reshape(len(z), -1), s)
        return map_outputs(lambda z, s: _to_tolerance(spectrum, chain, z[:, None], s), z, s)

    @property
    def multipliers_are_constant(self) -> bool:
        """Always."""
        return True

    def floor(self, y: ArrayLike) -> Float[Array, "*Q"]:
        """The training loss of the smallest multiplier that rounding allows for, a few times
        machine_eps d_max. Shape () or (Q,).
        """
        labels = as_labels("y", y, self.num_points, dtype=self.dtype)
        unit = unit_of(labels, joint=False)
        c = _least_multiplier(self)
        residuals = c * self.resolvent(c, self.rotate(in_unit(labels, unit)))
        return jnp.mean(residuals**2, axis=0) * unit * unit


#: Zero eigenvalues come out as up to about machine_eps d_max, of either sign: a shift so much
#: larger leaves their residuals right to a few percent.
BEYOND_ROUNDING = 32


def _least_multiplier(spectrum: TridiagonalSpectrum) -> Float[Array, ""]:
    """The smallest multiplier that rounding allows for."""
    return BEYOND_ROUNDING * spectrum.machine_epsilon * spectrum.largest


def runs_here() -> bool:
    """Whether JAX has the reduction where it runs: everywhere but on TPUs."""
    return jax.default_backend() != "tpu"


def tridiagonalise(G: ArrayLike) -> TridiagonalSpectrum:  # noqa: N803 (theory's name)
    """Householder reduction of a Gram matrix, G = Q T Q^T: for chains that need no eigenvectors.

    Of many points (not below 2,000) it is quicker than :func:`sdntk.decompose`: at 8,000, in two
    thirds of the time.

    Args:
        G: the symmetric positive semi-definite Gram matrix, shape (K, K). A neural kernel's, on
            images, must be a store, which knows the kernel's precision, unless it is well
            conditioned.

    Returns:
        A :class:`TridiagonalSpectrum`, for :func:`sdntk.distill_spectrum`.

    Raises:
        ValueError, TypeError: not a square matrix of finite numbers, not symmetric, or (unless
            traced) indefinite beyond rounding. A traced indefinite matrix gives nan.
            NotImplementedError: on a TPU.

    Warns:
        PrecisionWarning: G or the reduction is in float32.

    Source: Golub and Van Loan 2013, *Matrix Computations*, section 8.3.1.

    Example:
        >>> T = tridiagonalise(jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]))
        >>> T.unrotate(T.apply(T.rotate(jnp.array([1.0, 1.0, 2.0])))).round(12).tolist()
        [2.0, 3.0, 3.0]
    """
    return tridiagonalise_checked(as_gram_matrix(G))


def tridiagonalise_checked(matrix: GramMatrix) -> TridiagonalSpectrum:
    """:func:`tridiagonalise` for a matrix that has been checked.

    Raises:
        ValueError: indefinite beyond rounding. NotImplementedError: on a TPU.
    """
    if not runs_here():
        raise NotImplementedError(
            "the tridiagonal path does not run on a TPU, for which JAX has no reduction to "
            'tridiagonal form: take the dense one, decompose(G) or method="dense".'
        )
    machine_eps = matrix.machine_epsilon
    diagonal, off_diagonal, reflectors, taus = _reduce(lax.stop_gradient(matrix.values))
    reduced = TridiagonalSpectrum(
        diagonal, off_diagonal, reflectors, taus, machine_eps, matrix.traced
    )
    rounding = matrix.rounding(reduced.largest)
    below = _has_eigenvalue_below(-rounding, reduced.diagonal, reduced.off_diagonal)
    indefinite = (rounding > 0) & below
    if not is_traced(indefinite) and indefinite:
        raise ValueError(
            "G must be positive semi-definite; it has an eigenvalue below "
            f"{format_number(-float(rounding))}, beyond rounding. The kernel is not positive "
            "definite, or its values are less precise than their dtype (then distill(kernel, x, y, "
            'method="tridiagonal") or a store, gram(kernel, x, path=...), which know '
            "kernel.precision(x); of a matrix in memory, decompose with a rank_tolerance)."
        )
    return dataclasses.replace(
        reduced,
        diagonal=jnp.where(indefinite, jnp.nan, reduced.diagonal),
        machine_epsilon=matrix.effective_epsilon(reduced.largest),
    )


@jax.jit
def _has_eigenvalue_below(
    level: Float[Array, ""], diagonal: Float[Array, " K"], off_diagonal: Float[Array, " K-1"]
) -> Bool[Array, ""]:
    """Sylvester's law of inertia: T - level I has a pivot that is not positive."""

    def pivot(before: Array, row: _Row) -> tuple[Array, Array]:
        eliminated = row.off_diagonal / jnp.where(before > 0, before, 1) * row.off_diagonal
        now = row.diagonal - level - eliminated
        return now, now

    rows = _Row(diagonal, jnp.pad(off_diagonal, (1, 0)))
    pivots = lax.scan(pivot, jnp.ones_like(level), rows)[1]
    return ~jnp.all(pivots > 0)


class _Row(NamedTuple):
    """A row of T: its entry on the diagonal, and the one before it."""

    diagonal: Array
    off_diagonal: Array


@jax.jit
def _reduce(matrix: Float[Array, "K K"]) -> tuple[Array, Array, Array, Array]:
    if len(matrix) == 1:
        none = jnp.zeros(0, matrix.dtype)
        return matrix[0], none, none.reshape(0, 0), none
    reduced, diagonal, off_diagonal, taus = linalg.tridiagonal(matrix, lower=True)
    return diagonal, off_diagonal, reduced[1:, :-1], taus


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
        def reflect(x: Float[Array, "n P"], one: _Reflection) -> tuple[Float[Array, "n P"], None]:
            place = jnp.arange(len(one.column))
            below = jnp.where(place > one.position, one.column, 0)
            v = jnp.where(place == one.position, 1, below)
            return x - one.tau * v[:, None] * matmul(v[None], x), None

        vectors, taus = reflections
        every = _Reflection(jnp.arange(len(taus)), vectors.T, taus)
        return lax.scan(reflect, x, every, reverse=transpose)[0]

    def product(_: Any, x: Float[Array, "n P"], *, transpose: bool) -> Float[Array, "n P"]:
        return linalg.ormqr(*reflections, x, left=True, transpose=transpose)

    return lax.custom_linear_solve(
        one_by_one,
        columns,
        solve=partial(product, transpose=transpose),
        transpose_solve=partial(product, transpose=not transpose),
    )


class _Reflection(NamedTuple):
    """I - tau v v^T; v is 1 at ``position``, 0 before it, and ``column`` after it."""

    position: Array
    column: Array
    tau: Array


def _to_tolerance(
    spectrum: TridiagonalSpectrum, chain: ChainSpec, z: Float[Array, "K P"], s: Float[Array, ""]
) -> MultiplierPath:
    """Every round solved to the radius s = sqrt(K eps); targets are vectors."""

    def solve_round(targets: Float[Array, "K P"], guess: Float[Array, ""]) -> Multiplier:
        return _solve(spectrum, targets, s, guess)

    def next_targets(
        targets: Float[Array, "K P"], found: Multiplier, weight: Float[Array, ""]
    ) -> Float[Array, "K P"]:
        solved = found.status == Status.ACTIVE
        duals = spectrum.resolvent(jnp.where(solved, found.value, 1), targets)
        fitted = jnp.where(solved, spectrum.apply(duals), 0)
        return mix_targets(z, fitted, weight)

    return solve_rounds(z, solve_round, next_targets, chain.weights, s.dtype)


class _Problem(NamedTuple):
    """One round: targets u, n = |u| and s."""

    targets: Float[Array, "K P"]
    n: Float[Array, ""]
    s: Float[Array, ""]  # 1 unless the round is active


def _solve(
    spectrum: TridiagonalSpectrum,
    targets: Float[Array, "K P"],
    s: Float[Array, ""],
    guess: Float[Array, ""],
) -> Multiplier:
    """The multiplier of one round."""
    eps = float(jnp.finfo(targets.dtype).eps)
    n = jnp.linalg.norm(targets)

    # Which of the three states it is: the smallest multiplier that rounding allows for decides.
    least = _least_multiplier(spectrum)
    smallest_residual = jnp.linalg.norm(least * spectrum.resolvent(least, targets) / s)
    collapsed = n <= s * (1 + 2 * eps * targets.size**0.5)
    reachable = (smallest_residual < 1) & jnp.isfinite(n)
    status = as_status(collapsed, ~reachable)
    active = status == Status.ACTIVE
    problem = _Problem(targets, n, radius_as_unit(s, active))

    # The upper of the bounds (23, 24), a little wider so that a root on it is inside. The lower one
    # needs d_min, which is not known: a cold start is in the middle.
    upper = spectrum.largest * (s / (n - s)) * (1 + eps**0.25)
    high = jnp.where(active, upper, 1)
    low = jnp.where(active, jnp.minimum(least, high / 2), 1)
    bracket = Bracket(low, high)

    root = find_root(
        lambda c: _log_residual(spectrum, problem, c),
        bracket,
        jnp.where(bracket.holds(guess), guess, bracket.middle),
        noise=eps * (4 + targets.size**0.5),
        active=active,
        max_iterations=MAX_ITERATIONS,
    )
    c = jnp.where(active, root.value, without_root(status))
    return Multiplier(c, status, root.iterations)


def _log_residual(
    spectrum: TridiagonalSpectrum, problem: _Problem, c: Float[Array, ""]
) -> Residual:
    """F = log( (h/s) (n - s)/(n - h) ) and its derivative by log c."""
    duals = spectrum.resolvent(c, problem.targets)
    fitted, residuals = spectrum.apply(duals), c * duals
    # Relative to s: squares of what is much smaller than the labels vanish.
    relative = residuals / problem.s
    h = jnp.linalg.norm(relative)
    h_slope = jnp.sum(relative * spectrum.apply(spectrum.resolvent(c, relative))) / h
    # (n - s)/s and (n - h)/s, the latter without cancellation.
    gap = (problem.n - problem.s) / problem.s
    g = jnp.sum(fitted / problem.s * (problem.targets + residuals)) / (problem.n + h * problem.s)
    return Residual(jnp.log(h * (gap / g)), h_slope / h + h_slope / g)
