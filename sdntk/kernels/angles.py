"""Inner products of all pairs of two sets of vectors, in a form that keeps its digits at any angle.

A neural kernel is a function of |a|^2, |b|^2 and the angle theta between a and b, steep at 0 (ReLU)
or at small distances (sin). The inner product alone does not tell small angles: its rounding moves
the angle of two equal vectors to 1e-8. Half-angles do, since

    sin^2(theta/2) = |a/|a| - b/|b||^2 / 4       cos^2(theta/2) = |a/|a| + b/|b||^2 / 4

are sums of squares, and stay such through a layer of a network (docs/numerics.md, "Angles").
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from sdntk._linalg import matmul, safe_sqrt

#: Up to so many coordinates, every pair is computed by differences: about as fast as a product of
#: matrices.
FEW_COORDINATES = 32

#: sin^2(theta/2) or cos^2(theta/2) below which more coordinates than that are compared by
#: differences, pair by pair: at theta = 1/16 the cosine still tells theta to 16 machine_eps.
NEAR = 2.0**-10


class Pairs(NamedTuple):
    """Vectors a_i and b_j, as far as their inner products tell.

    Attributes:
        var1: |a_i|^2, shape (n1, 1).
        var2: |b_j|^2, shape (1, n2).
        sin2: sin^2(theta/2), theta the angle between a_i and b_j; 1/2 where one of them is 0.
        cos2: cos^2(theta/2).
        minus: |a_i - b_j|^2.
        plus: |a_i + b_j|^2.
    """

    var1: Float[Array, "n1 1"]
    var2: Float[Array, "1 n2"]
    sin2: Float[Array, "n1 n2"]
    cos2: Float[Array, "n1 n2"]
    minus: Float[Array, "n1 n2"]
    plus: Float[Array, "n1 n2"]

    @classmethod
    def of_angles(
        cls,
        var1: Float[Array, "n1 1"],
        var2: Float[Array, "1 n2"],
        sin2: Float[Array, "n1 n2"],
        cos2: Float[Array, "n1 n2"],
    ) -> "Pairs":
        """The distances from the law of cosines, a sum of positive terms."""
        norms = safe_sqrt(var1) * safe_sqrt(var2)
        lengths = (safe_sqrt(var1) - safe_sqrt(var2)) ** 2
        return cls(var1, var2, sin2, cos2, lengths + 4 * norms * sin2, lengths + 4 * norms * cos2)

    @property
    def half_angles(self) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
        """sin(theta/2) and cos(theta/2)."""
        return _root(self.sin2), _root(self.cos2)

    @property
    def cov(self) -> Float[Array, "n1 n2"]:
        """a_i . b_j."""
        return safe_sqrt(self.var1) * safe_sqrt(self.var2) * (self.cos2 - self.sin2)


@jax.custom_jvp
def _root(squared: Float[Array, "n1 n2"]) -> Float[Array, "n1 n2"]:
    """The root; its derivative is 0 where rounding alone decides it, at a kink of two sides."""
    return jnp.sqrt(jnp.maximum(squared, 0))


@_root.defjvp
def _derivative_of_root(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    (squared,), (tangent,) = primals, tangents
    kink = squared <= jnp.finfo(squared.dtype).eps ** 1.5
    root = _root(squared)
    return root, jnp.where(kink, 0, tangent / jnp.where(kink, 1, 2 * root))


def pairs_of_points(x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]) -> Pairs:
    """The pairs of points, |x|^2 taken as the mean over coordinates.

    Example:
        >>> pairs = pairs_of_points(jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0], [0.0, 2.0]]))
        >>> pairs.sin2.tolist(), pairs.minus.tolist()
        ([[0.0, 0.5]], [[0.5, 2.5]])
    """
    num = x1.shape[1]
    var1, var2 = jnp.sum(x1**2, axis=1) / num, jnp.sum(x2**2, axis=1) / num
    sin2, cos2, minus, plus = _compared(x1, x2)
    return Pairs(var1[:, None], var2[None, :], sin2, cos2, minus / num, plus / num)


class _Compared(NamedTuple):
    sin2: Float[Array, "n1 n2"]
    cos2: Float[Array, "n1 n2"]
    minus: Float[Array, "n1 n2"]
    plus: Float[Array, "n1 n2"]


@jax.custom_jvp
def _compared(x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]) -> _Compared:
    """All pairs, small angles and distances from differences of coordinates."""
    pairs = _by_products(x1, x2)
    antiparallel = pairs.cos2 < pairs.sin2
    if x1.shape[1] <= FEW_COORDINATES:
        rows = jax.tree.map(lambda x: x[:, :, None], _Directed.of(x1))
        columns = jax.tree.map(lambda x: x[:, None, :], _Directed.of(x2))
        near = _near(rows, columns, antiparallel)
    else:
        near = _near_ones(pairs, antiparallel, x1, x2)
    return _Compared(
        jnp.where(antiparallel, 1 - near.sin2, near.sin2),
        jnp.where(antiparallel, near.sin2, 1 - near.sin2),
        jnp.where(antiparallel, pairs.minus, near.distance),
        jnp.where(antiparallel, near.distance, pairs.plus),
    )


@_compared.defjvp
def _derivative(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[_Compared, _Compared]:
    """Where differences were taken, derivatives still go through products."""
    return _compared(*primals), jax.jvp(_by_products, primals, tangents)[1]


def _by_products(x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]) -> _Compared:
    norm1, norm2 = _norm(x1)[:, None], _norm(x2)[None, :]
    # Beyond 1 by rounding, where it is not taken.
    cosine = matmul(x1, x2.T) / jnp.where(norm1 > 0, norm1, 1) / jnp.where(norm2 > 0, norm2, 1)
    sin2, cos2 = (1 - cosine) / 2, (1 + cosine) / 2
    lengths = (norm1 - norm2) ** 2
    both = 4 * norm1 * norm2
    return _Compared(sin2, cos2, lengths + both * sin2, lengths + both * cos2)


def _norm(x: Float[Array, "n d"]) -> Float[Array, " n"]:
    return safe_sqrt(jnp.sum(x**2, axis=1))


class _Directed(NamedTuple):
    """Points and their directions x/r, coarse + fine, r nearly |x|, with half as many digits again
    as the dtype has.

    Rounding x/|x| would move directions by machine_eps, and with them angles of 1e-8 by 1e-8 of
    them: too much at norms of 1e6.
    """

    x: Float[Array, "d *n"]  # coordinates first: sums over them then run along the points
    coarse: Float[Array, "d *n"]
    fine: Float[Array, "d *n"]

    @classmethod
    def of(cls, x: Float[Array, "n d"]) -> "_Directed":
        """In coarse and r half of the digits are 0, so that their product is exact."""
        kind = jnp.finfo(x.dtype)

        def half(value: Array) -> Array:
            return lax.reduce_precision(value, kind.nexp, kind.nmant // 2 - 1)

        norm = _norm(x)
        radius = half(jnp.where(norm > 0, norm, 1))[:, None]
        coarse = half(x / radius)
        return cls(x.T, coarse.T, (x.T - radius.T * coarse.T) / radius.T)


class _Near(NamedTuple):
    """A point and the one of another point and its opposite that is nearer to it."""

    sin2: Float[Array, "*n"]
    distance: Float[Array, "*n"]  # squared


def _near(a: _Directed, b: _Directed, antiparallel: Bool[Array, "*n"]) -> _Near:
    """By differences: the parallelogram of u and v has half the area of that of u - v and u + v,
    |u| |v| sin(theta) = |u + v| h/2 with h the part of u - v that is orthogonal to u + v.
    """
    sign = jnp.where(antiparallel, -1, 1)[None].astype(a.x.dtype)
    u, v = a.coarse + a.fine, sign * (b.coarse + b.fine)
    difference = (a.coarse - sign * b.coarse) + (a.fine - sign * b.fine)
    total = u + v
    squared = _sum(total**2)
    along = _sum(difference * total) / jnp.where(squared > 0, squared, 1)
    orthogonal = _sum((difference - along[None] * total) ** 2)

    norms2 = _sum(u**2) * _sum(v**2)
    known = norms2 > 0
    norms2 = jnp.where(known, norms2, 1)
    sine2, cosine = squared * orthogonal / (4 * norms2), _sum(u * v) / jnp.sqrt(norms2)
    sin2 = jnp.where(known, sine2 / (2 * (1 + cosine)), 0.5)
    return _Near(sin2, _sum((a.x - sign * b.x) ** 2))


def _sum(x: Float[Array, "d *n"]) -> Float[Array, "*n"]:
    """Over few coordinates one by one, so that XLA forms no array of all pairs' coordinates."""
    if len(x) > FEW_COORDINATES:
        return jnp.sum(x, axis=0)
    return functools.reduce(operator.add, x)


def _near_ones(
    pairs: _Compared,
    antiparallel: Bool[Array, "n1 n2"],
    x1: Float[Array, "n1 d"],
    x2: Float[Array, "n2 d"],
) -> _Near:
    """``pairs``, those nearly parallel or antiparallel by :func:`_near`."""
    known = _Near(
        jnp.where(antiparallel, pairs.cos2, pairs.sin2),
        jnp.where(antiparallel, pairs.plus, pairs.minus),
    )
    wanted = known.sin2 < NEAR
    # Directions take as long as products of matrices, and of most blocks no pair is near.
    first = _replace_same if x1.shape == x2.shape else _replace_near
    return _unless_none(first, known, wanted, antiparallel, x1, x2)


def _unless_none(replace: Any, known: _Near, wanted: Bool[Array, "n1 n2"], *others: Any) -> _Near:
    """What ``replace`` makes of ``known``; that itself where nothing is wanted."""
    found: _Near = lax.cond(
        jnp.any(wanted), replace, lambda known, *_: known, known, wanted, *others
    )
    return found


def _replace_same(
    known: _Near,
    wanted: Bool[Array, "n n"],
    antiparallel: Bool[Array, "n n"],
    x1: Float[Array, "n d"],
    x2: Float[Array, "n d"],
) -> _Near:
    """A point with itself, on the diagonal of most Gram matrices, is told without directions."""
    i = jnp.arange(len(x1))
    itself = wanted[i, i] & jnp.all(x1 == x2, axis=1)
    known = _Near(*(part.at[i, i].set(jnp.where(itself, 0, part[i, i])) for part in known))
    wanted = wanted.at[i, i].set(wanted[i, i] & ~itself)
    return _unless_none(_replace_near, known, wanted, antiparallel, x1, x2)


def _replace_near(
    known: _Near,
    wanted: Bool[Array, "n1 n2"],
    antiparallel: Bool[Array, "n1 n2"],
    x1: Float[Array, "n1 d"],
    x2: Float[Array, "n2 d"],
) -> _Near:
    """The wanted ones by :func:`_near`: in each turn one of each row, until none is left."""
    rows = jnp.arange(len(wanted))
    points1, points2 = _Directed.of(x1), _Directed.of(x2)

    def turn(state: tuple[_Near, Array]) -> tuple[_Near, Array]:
        known, left = state
        column = jnp.argmax(left, axis=1)
        found = left[rows, column]
        others = jax.tree.map(lambda x: x[:, column], points2)
        near = _near(points1, others, antiparallel[rows, column])

        def put(old: Array, new: Array) -> Array:
            return old.at[rows, column].set(jnp.where(found, new, old[rows, column]))

        return _Near(*map(put, known, near)), left.at[rows, column].set(False)

    near, _ = lax.while_loop(lambda state: jnp.any(state[1]), turn, (known, wanted))
    return near
