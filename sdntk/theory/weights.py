r"""The best weights of a chain's rounds, found in an orthogonal basis of the rounds.

With one multiplier c, A = D (c + D)^-1, the mixtures of T rounds whose weights have the sum 1 are

    F = sum_{j<T} w_j A^{j+1} = A - A (I - A) q(A),      q any polynomial of degree T - 2

(docs/theory.md, section 8). Powers of A are close to dependent: their Gram matrix's condition
passes 1e7 at T = 4, so that normal equations for w drown in rounding at five or six rounds. Here
they are replaced by products (A - t_0) .. (A - t_j), each t the eigenvalue of A where the last
product is largest (Leja's order). Products are far from dependent and keep the digits of every
entry; made orthonormal one after the other (:func:`orthonormal_polynomials`), they give every
problem a closed solution. Back in powers, the coefficients of a product alternate in sign, so that
they cancel nowhere. Rounds that cannot be told from the earlier ones get no say.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from sdntk._linalg import matmul, safe_sqrt

#: Rounds count as dependent where rounding moves their weights by more than this fraction.
TOLERANCE = 1e-3


class Solution(NamedTuple):
    """Weights of T rounds, and how far they can be told.

    Attributes:
        weights: w, shape (T,), of sum 1.
        condition: the condition number, in the Frobenius norm, of the differences of successive
            rounds, each divided by its norm; infinite where they are dependent as far as the dtype
            tells.
        rounding: by about which fraction of the largest weight rounding moves the weights.
    """

    weights: Float[Array, " T"]
    condition: Float[Array, ""]
    rounding: Float[Array, ""]


class Operator(NamedTuple):
    """A = D (c I + D)^-1, on vectors of N entries.

    Attributes:
        times: v -> A v.
        c: the multiplier.
        eigenvalues: d that belongs to each entry, shape (N,); None where D is not diagonal.
    """

    times: Callable[[Array], Array]
    c: Float[Array, ""]
    eigenvalues: Float[Array, " N"] | None

    def product(
        self, v: Float[Array, " N"], counted: Float[Array, " N"]
    ) -> tuple[Float[Array, " N"], Float[Array, ""]]:
        """(A - t) v and t, which makes it small: an eigenvalue, or Rayleigh's quotient."""
        if self.eigenvalues is None:
            image = self.times(v)
            t = jnp.sum(counted * v * image)  # of a vector of norm 1
            return image - t * v, t
        c, d = self.c, self.eigenvalues
        chosen = d[jnp.argmax(counted * jnp.abs(v))]
        # a - t = c (d - d_t)/((c + d)(c + d_t)): all digits, also next to 1.
        return c / (c + d) * ((d - chosen) / (c + chosen)) * v, chosen / (c + chosen)


class Polynomials(NamedTuple):
    """Polynomials p_i of degree i for which p_i(A) v are orthonormal.

    Attributes:
        vectors: p_i(A) v, shape (n, N); zero from the first i on that rounding forbids.
        rows: the coefficients of p_i, lowest first, shape (n, n), of powers A^j v divided by their
            norms.
        norms: |A^j v|, shape (n,).
        condition: of all n powers, divided by their norms.
    """

    vectors: Float[Array, "n N"]
    rows: Float[Array, "n n"]
    norms: Float[Array, " n"]
    condition: Float[Array, ""]

    def in_powers(self, coefficients: Float[Array, " n"]) -> Float[Array, " n"]:
        """The polynomial sum_i g_i p_i in powers of A, lowest first."""
        scaled = matmul(self.rows.T, coefficients)
        return jnp.where(self.norms > 0, scaled / jnp.where(self.norms > 0, self.norms, 1), 0)

    def harmless(
        self, coefficients: Float[Array, " n"], size: Float[Array, ""]
    ) -> Bool[Array, " n"]:
        """Up to which i sum_i g_i p_i(A) v does not drown, as a sum of powers, in the rounding of
        numbers of this size.
        """
        rounding = jnp.finfo(coefficients.dtype).eps * jnp.sqrt(jnp.sum(self.rows**2, axis=1))
        drowned = jnp.abs(coefficients) * rounding > TOLERANCE * size
        return jnp.cumsum(drowned) == 0


def orthonormal_polynomials(
    operator: Operator, start: Float[Array, " N"], counted: Float[Array, " N"], count: int
) -> Polynomials:
    """Products of shifted operators, made orthonormal one by one, twice over.

    Args:
        operator: A.
        start: v.
        counted: 1 for entries that inner products sum over, 0 for those that are only carried
            along.
        count: n, how many.
    """
    eps = float(jnp.finfo(start.dtype).eps)
    # A diagonal operator's products keep the digits of every entry.
    most = (TOLERANCE / eps) ** (1 if operator.eigenvalues is None else 2)
    dependent = (16 + len(start) ** 0.5) * eps  # what rounding leaves of a vector of norm 1

    def norm(v: Float[Array, " N"]) -> Float[Array, ""]:
        return safe_sqrt(jnp.sum(counted * v**2))

    def step(state: _Process, i: Array) -> tuple[_Process, Float[Array, ""]]:
        vector, row = state.product, state.row
        for _ in range(2):
            along = matmul(state.vectors, counted * vector)
            vector = vector - matmul(state.vectors.T, along)
            row = row - matmul(state.rows.T, along)
        size = norm(vector)
        told = state.told & (size > dependent) & (state.norm > 0)
        inverse = jnp.where(told, 1 / jnp.where(told, size, 1), 0)
        told &= _condition(state.rows.at[i].set(row * inverse), i + 1) <= most
        inverse, row = jnp.where(told, inverse, 0), jnp.where(told, row, 0)

        power = operator.times(state.power)
        ratio = norm(power)
        ratios = state.ratios.at[i].set(ratio)
        product, t = operator.product(state.product, counted)
        length = _nonzero(norm(product))
        following = _Process(
            vectors=state.vectors.at[i].set(vector * inverse),
            rows=state.rows.at[i].set(row * inverse),
            ratios=ratios,
            product=product / length,
            row=(jnp.roll(state.row * ratios, 1).at[0].set(0) - t * state.row) / length,
            power=power / _nonzero(ratio),
            norm=state.norm * ratio,
            told=told,
        )
        return following, state.norm

    size = norm(start)
    first, nothing = start / _nonzero(size), jnp.zeros((count, count), start.dtype)
    process = _Process(
        vectors=jnp.zeros((count, len(start)), start.dtype),
        rows=nothing,
        ratios=nothing[0],
        product=first,
        row=nothing[0].at[0].set(1),
        power=first,
        norm=size,
        told=size > 0,
    )
    process, norms = lax.scan(step, process, jnp.arange(count))
    condition = jnp.where(process.told, _condition(process.rows, count), jnp.inf)
    return Polynomials(process.vectors, process.rows, norms, condition)


class _Process(NamedTuple):
    """What goes from degree to degree."""

    vectors: Float[Array, "n N"]
    rows: Float[Array, "n n"]
    ratios: Float[Array, " n"]  # |A^{j+1} v|/|A^j v|
    product: Float[Array, " N"]  # (A - t_0) .. (A - t_{i-1}) v, divided by its norm
    row: Float[Array, " n"]  # its coefficients
    power: Float[Array, " N"]  # A^i v, divided by its norm
    norm: Float[Array, ""]  # |A^i v|
    told: Array  # whether all up to now could be told from the ones before


def _condition(rows: Float[Array, "n n"], count: Any) -> Float[Array, ""]:
    """Of ``count`` powers of norm 1, from the inverse of their coefficients on orthonormal ones."""
    return safe_sqrt(count * jnp.sum(rows**2))


def _nonzero(size: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """A norm to divide by."""
    return jnp.where(size > 0, size, 1)


def best_for_errors(
    operator: Operator,
    error: Float[Array, " N"],
    change: Float[Array, " N"],
    rounds: int,
    eps: Float[Array, ""],
) -> Solution:
    """Weights that minimise |error + q(A) change|, where round 0 has the error, and round j that of
    round 0 plus (I + A + .. + A^{j-1}) times the change that round 1 makes.

    Args:
        operator: A.
        error: of round 0.
        change: error of round 1 less that of round 0.
        rounds: T.
        eps: relative rounding of A.
    """
    first = jnp.zeros(rounds, error.dtype).at[0].set(1)
    if rounds == 1:
        return Solution(first, jnp.ones_like(eps), jnp.zeros_like(eps))
    found = orthonormal_polynomials(operator, change, jnp.ones_like(change), rounds - 1)
    along = -matmul(found.vectors, error)
    kept = found.harmless(along, safe_sqrt(jnp.sum(error**2)))
    q = found.in_powers(jnp.where(kept, along, 0))
    condition = jnp.where(kept.all(), found.condition, jnp.inf)
    return Solution(weights_of_changes(q), condition, eps * condition)


def weights_of_changes(changes: Float[Array, " n"]) -> Float[Array, " n+1"]:
    """The weights w of f_0 + sum_{j>=1} v_j (f_j - f_{j-1}): 1 - v_1, v_j - v_{j+1}, v_{T-1}."""
    one, zero = jnp.ones(1, changes.dtype), jnp.zeros(1, changes.dtype)
    return jnp.concatenate([one, changes]) - jnp.concatenate([changes, zero])


def best_for_residuals(
    operator: Operator,
    residuals: Float[Array, " N"],
    filter_left: Float[Array, " m"],
    rounds: int,
    eps: Float[Array, ""],
) -> Solution:
    """Weights that minimise |sum_j w_j r_j|, r_j = (y - f_j)/(1 - df_j/K).

    With v_j = w_j/(1 - df_j/K) the sum is P y, P = sum_j v_j (I - A^{j+1}) = (I - A) p(A), p any
    polynomial of degree T - 1, and the constraint sum w = 1 is tr P / K = 1.

    Args:
        operator: A, on vectors in the basis and, behind them, one of the m eigenvalues.
        residuals: y - f_0 in the basis, all outputs one after the other.
        filter_left: 1 - a, a the eigenvalues of A.
        rounds: T.
        eps: relative rounding of A.
    """
    start = jnp.concatenate([residuals, filter_left])
    counted = jnp.concatenate([jnp.ones_like(residuals), jnp.zeros_like(filter_left)])
    found = orthonormal_polynomials(operator, start, counted, rounds)
    traces = jnp.mean(found.vectors[:, len(residuals) :], axis=1)  # tr (I - A) p_i(A) / K
    kept = found.harmless(traces, safe_sqrt(jnp.sum(traces**2)))
    traces = jnp.where(kept, traces, 0)
    squared = jnp.sum(traces**2)
    p = found.in_powers(traces / _nonzero(squared))

    def trace(power: Float[Array, " N"], _: None) -> tuple[Array, Array]:
        return operator.times(power), jnp.mean(power[len(residuals) :])

    left = jnp.cumsum(lax.scan(trace, start, None, length=rounds)[1])  # 1 - df_j/K
    weights = left * (p - jnp.concatenate([p[1:], jnp.zeros(1, p.dtype)]))
    first = jnp.zeros(rounds, p.dtype).at[0].set(1)
    condition = jnp.where(kept.all(), found.condition, jnp.inf)
    return Solution(jnp.where(squared > 0, weights, first), condition, eps * condition)


def best_for_labels(
    predictions: Float[Array, "T n"], y: Float[Array, " n"], eps: Float[Array, ""]
) -> Solution:
    """Weights that minimise |y - sum_j w_j p_j|: f_0 + sum_j v_j (f_j - f_{j-1}) leaves v free.

    A round that equals the one before it gets no weight.

    Args:
        predictions: p_j of every round.
        y: the labels, of the same size.
        eps: relative rounding of the predictions.
    """
    rounds, count = predictions.shape
    one = jnp.ones_like(eps)
    if rounds == 1:
        return Solution(jnp.ones(1, y.dtype), one, jnp.zeros_like(eps))
    changes = jnp.diff(predictions, axis=0).T
    sizes = safe_sqrt(jnp.sum(changes**2, axis=0))
    scale = _nonzero(sizes)
    left = y - predictions[0]
    q, r = jnp.linalg.qr(changes / scale[None])
    u, singular, vh = jnp.linalg.svd(r, full_matrices=False)
    told = singular > singular[0] * jnp.finfo(y.dtype).eps / TOLERANCE
    inverse = jnp.where(told, 1 / jnp.where(told, singular, 1), 0)
    scaled = matmul(vh.T, inverse * matmul(u.T, matmul(q.T, left)))
    weights = weights_of_changes(scaled / scale)

    different = jnp.sum(sizes > 0)
    condition = safe_sqrt(different * jnp.sum(inverse**2))
    condition = jnp.where(jnp.sum(told) == different, jnp.maximum(condition, 1), jnp.inf)
    # Rounding of predictions, relative to their differences; through the fit to the labels, and
    # through what is left of them.
    values = jnp.max(jnp.sqrt(jnp.sum(predictions**2, axis=1)))
    relative = eps * values * jnp.max(jnp.where(sizes > 0, 1 / scale, 0))
    rest = jnp.sqrt(jnp.sum((left - matmul(changes, scaled / scale)) ** 2))
    moved = relative * (condition * jnp.sqrt(jnp.sum(scaled**2)) + condition**2 * rest) / count**0.5
    smallest = jnp.min(jnp.where(sizes > 0, scale, jnp.inf))
    rounding = jnp.where(different > 0, moved / smallest / jnp.max(jnp.abs(weights)), 0)
    rounding = jnp.where(jnp.isnan(rounding), jnp.inf, rounding)  # infinite condition, nothing left
    return Solution(weights, condition, rounding)


def weights_of_teachers(weights: Float[Array, " T"]) -> Float[Array, " T-1"]:
    """xi_t of rounds 1..T-1 with which F_t = A ((1 - xi_t) + xi_t F_{t-1}) ends in sum_j w_j
    A^{j+1}.

    F_{T-1} has the coefficients w_j = xi_{T-1} .. xi_{T-j} (1 - xi_{T-1-j}), so the sums S_j = w_j
    + .. + w_{T-1} are products of the last j teachers' weights, and xi_{T-j} = S_j/S_{j-1}.
    Infinite where S_{j-1} is 0 and S_j is not; 0 where both are, as then no earlier round counts.
    """
    from_last = jnp.cumsum(weights[::-1])[::-1]
    sizes = jnp.cumsum(jnp.abs(weights[::-1]))[::-1]
    rounding = len(weights) * jnp.finfo(weights.dtype).eps * sizes
    sums = jnp.where(jnp.abs(from_last) <= rounding, 0, from_last).at[0].set(1)
    above, below = sums[1:], sums[:-1]
    singular = (below == 0) & (above != 0)
    ratio = jnp.where(below == 0, 0, above / jnp.where(below == 0, 1, below))
    return jnp.where(singular, jnp.inf, ratio)[::-1]
