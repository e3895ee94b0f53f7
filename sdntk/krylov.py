"""The spectrum from matrix-vector products alone: block Lanczos from the labels of all outputs.

The fits f_t on the training points are functions of G applied to the labels Y, and a Krylov space span(Y, G Y, G^2 Y, ...)
stays what it is under every shift c I. With Y = V_1 R, V_1 of r orthonormal columns, and after m steps

    G V = V T + V_{m+1} B E_m^T,      V = (V_1, .., V_m),  V^T V = I,      T block tridiagonal (m r, m r),

the Ritz values of T stand in for d, its eigenvectors' first r components times R for z. The recurrence runs on them as on a
dense spectrum, for every tolerance and every round. All outputs share one space: what G does to the labels of one tells of
the others. Labels of few dimensions are joined by random vectors for the same sake: a product with a few vectors takes as
long as one with a single vector, which would need half as many steps again.
"""

import dataclasses
from functools import partial
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_labels, is_traced
from sdntk._linalg import matmul
from sdntk.products import Products
from sdntk.spectrum import Eigenbasis, null_space_loss

#: Room is made for so many Lanczos vectors at first, and then for twice as many: code is compiled for each room.
FIRST_ROOM = 256
#: Blocks have at least so many vectors.
LEAST_WIDTH = 4
#: Rounding acts like a perturbation of G of so many units of machine_eps * d_max (the tests check it).
ROUNDING = 16


@no_type_check  # in the tests: transformations rebuild pytrees with leaves of other shapes
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KrylovSpectrum(Eigenbasis):
    """What Lanczos steps from labels know of a Gram matrix: M Ritz pairs, some of them zero, for padding.

    It stands wherever a :class:`sdntk.Spectrum` does, for the labels that it was made from.

    Attributes:
        eigenvalues: the Ritz values, shape (M,), never negative; those that are rounding are exactly zero.
        rotated_labels: z, the labels' coordinates on the Ritz vectors, shape (M,) or (M, Q).
        residuals: B times the last r components of each eigenvector of T, shape (r, M): by how much each Ritz pair fails to
            be an eigenpair of G.
        basis: V^T, shape (M, K).
        ritz_vectors: the eigenvectors of T, shape (M, M).
        labels: y, shape (K,) or (K, Q).
        perturbation: the norm of the perturbation of G that rounding amounts to.
        steps: how many Lanczos steps were taken.
        machine_epsilon: relative rounding of G's values.
    """

    eigenvalues: Float[Array, " M"]
    rotated_labels: Float[Array, "M *Q"]
    residuals: Float[Array, "r M"]
    basis: Float[Array, "M K"]
    ritz_vectors: Float[Array, "M M"]
    labels: Float[Array, "K *Q"]
    perturbation: Float[Array, ""]
    steps: Any
    machine_epsilon: float = dataclasses.field(metadata={"static": True})

    @property
    def num_points(self) -> int:
        """K."""
        return self.labels.shape[0]

    @property
    def matrix(self) -> None:
        """There are no derivatives by the Gram matrix."""

    def rotate(self, y: Float[Array, "K *Q"]) -> Float[Array, "M *Q"]:
        """Z: the coordinates of the labels that the spectrum was made from.

        Raises:
            ValueError: other labels, which it knows nothing of (nan where they are traced). NotImplementedError: derivatives
            by the labels.
        """
        if y.shape != self.labels.shape or not (is_traced(y, self.labels) or np.array_equal(y, self.labels)):
            raise ValueError("y must be the labels that this Krylov spectrum was made from: it knows no others.")
        z = self.rotated_labels
        if is_traced(y, self.labels):
            z = jnp.where(jnp.array_equal(y, self.labels), z, jnp.nan)
        return _without_derivatives(y, z)

    def unrotate(self, z: Float[Array, "M *Q"]) -> Float[Array, "K *Q"]:
        """Back to the training points, all axes behind the first carried along."""
        inner = matmul(self.ritz_vectors, z.reshape(len(z), -1))
        return matmul(self.basis.T, inner).reshape(-1, *z.shape[1:])

    def floor(self, y: ArrayLike) -> Float[Array, "*Q"]:
        """As :meth:`sdntk.Spectrum.floor`, for its own labels."""
        labels = as_labels("y", y, self.num_points, dtype=self.eigenvalues.dtype)
        return null_space_loss(self.eigenvalues, self.rotate(labels), self.num_points)


@jax.custom_jvp
def _without_derivatives(y: Float[Array, "K *Q"], z: Float[Array, "M *Q"]) -> Float[Array, "M *Q"]:
    del y
    return z


@_without_derivatives.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "Derivatives by the labels leave the Krylov space: a Krylov spectrum has those by tolerance and multiplier only. "
        "Use a dense one, decompose(G)."
    )


@no_type_check  # in the tests: transformations rebuild pytrees with leaves of other shapes
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lanczos:
    """Where a block Lanczos process is; :func:`extend` goes on with it.

    Attributes:
        labels: y, shape (K,) or (K, Q).
        start: R, with V_1 R = y, shape (r,) or (r, Q).
        basis: V^T, shape (room, K), zero where there is none yet.
        projected: T, shape (room, room), likewise.
        following: V_{m+1}, shape (K, r); columns are zero where the Krylov space is exhausted.
        coupling: B, shape (r, r): how G leads from the last block to the following one.
        steps: m.
    """

    labels: Float[Array, "K *Q"]
    start: Float[Array, "r *Q"]
    basis: Float[Array, "room K"]
    projected: Float[Array, "room room"]
    following: Float[Array, "K r"]
    coupling: Float[Array, "r r"]
    steps: Any

    @property
    def width(self) -> int:
        """The number r of vectors that each step adds."""
        return self.following.shape[1]


def begin(labels: Float[Array, "K *Q"]) -> Lanczos:
    """The process before its first step."""
    num_points, dtype = len(labels), labels.dtype
    columns = labels.reshape(num_points, -1)
    # What is rounding to one output may be all that another has; squares of the smallest numbers are zero.
    largest = jnp.abs(columns).max(axis=0, keepdims=True)
    scaled = columns / jnp.where(largest > 0, largest, 1)
    norms = jnp.linalg.norm(scaled, axis=0, keepdims=True)
    vectors, sizes, _ = jnp.linalg.svd(scaled / jnp.where(norms > 0, norms, 1), full_matrices=False)
    rank = int(np.sum(np.asarray(sizes) > ROUNDING * jnp.finfo(dtype).eps * sizes[0]))
    more = max(0, min(LEAST_WIDTH, num_points) - rank)
    random = jax.random.normal(jax.random.key(0), (num_points, more), dtype)
    following = jnp.linalg.qr(jnp.concatenate([vectors[:, :rank], random], axis=1))[0]
    start = jnp.pad(matmul(following[:, :rank].T, columns), ((0, more), (0, 0)))
    width = rank + more
    empty, nothing = jnp.zeros((0, 0), dtype), jnp.zeros((width, width), dtype)
    start = start.reshape(width, *labels.shape[1:])
    return Lanczos(labels, start, jnp.zeros((0, num_points), dtype), empty, following, nothing, np.int64(0))


def extend(process: Lanczos, products: Products, steps: int) -> Lanczos:
    """The process after ``steps`` steps in all; ``process`` is given up.

    New vectors are orthogonalised against the last two blocks, to which alone exact arithmetic would have them leaning, and
    then, at their full length, against all: without that, rounding makes copies of Ritz values, and takes about 2.5 times as
    many steps.
    """
    process = _with_room(process, steps)
    state = (process.basis, process.projected, process.following, process.coupling)
    for step in range(int(process.steps), steps):
        state = _step(*state, products(state[2]), step)
    return Lanczos(process.labels, process.start, *state, np.int64(max(steps, int(process.steps))))


def _with_room(process: Lanczos, steps: int) -> Lanczos:
    room, num_points = len(process.basis), len(process.labels)
    needed = steps * process.width
    if needed <= room:
        return process
    size = max(room, min(FIRST_ROOM, num_points))
    while size < needed:
        size *= 2
    more = size - room
    basis = jnp.pad(process.basis, ((0, more), (0, 0)))
    return dataclasses.replace(process, basis=basis, projected=jnp.pad(process.projected, ((0, more), (0, more))))


@partial(jax.jit, donate_argnums=(0, 1, 2, 3))
def _step(
    basis: Float[Array, "room K"],
    projected: Float[Array, "room room"],
    block: Float[Array, "K r"],
    coupling: Float[Array, "r r"],
    product: Float[Array, "K r"],
    step: int | Array,
) -> tuple[Array, ...]:
    """One step, given G times its block: the block joins the basis, the next one comes out."""
    here, width = step * block.shape[1], block.shape[1]
    before = jnp.maximum(here - width, 0)
    basis = jax.lax.dynamic_update_slice(basis, block.T, (here, 0))
    diagonal = matmul(block.T, product)
    size = jnp.max(jnp.abs(projected)) + jnp.linalg.norm(diagonal)
    for values, row, column in (
        (coupling, here, before), (coupling.T, before, here), ((diagonal + diagonal.T) / 2, here, here)
    ):  # fmt: skip
        projected = jax.lax.dynamic_update_slice(projected, values, (row, column))

    last = jax.lax.dynamic_slice_in_dim(basis, before, min(2 * width, len(basis)))
    w = product - matmul(last.T, matmul(last, product))
    w, coupling = _orthonormal(w, ROUNDING * jnp.finfo(product.dtype).eps * size)  # what is below is rounding
    w, rest = jnp.linalg.qr(w - matmul(basis.T, matmul(basis, w)))
    return basis, projected, jnp.where(jnp.diagonal(rest)[None] == 0, 0, w), matmul(rest, coupling)


def _orthonormal(w: Float[Array, "K r"], least: Float[Array, ""]) -> tuple[Float[Array, "K r"], Float[Array, "r r"]]:
    """Orthonormal columns V and B with W = V B, singular values of at most ``least`` and their columns set to zero."""
    columns, triangular = jnp.linalg.qr(w)
    left, sizes, right = jnp.linalg.svd(triangular)
    sizes = jnp.where(sizes <= least, 0, sizes)
    return jnp.where(sizes[None] > 0, matmul(columns, left), 0), sizes[:, None] * right


def spectrum_of(process: Lanczos, *, machine_epsilon: float) -> KrylovSpectrum:
    """What the process knows so far. It shares its basis: :func:`extend` ends its use."""
    d, z, residuals, vectors, perturbation = _ritz(
        process.projected, process.start, process.coupling, process.steps, len(process.labels), machine_epsilon
    )
    return KrylovSpectrum(
        d, z, residuals, process.basis, vectors, process.labels, perturbation, process.steps, machine_epsilon
    )  # fmt: skip


@jax.jit
def _ritz(
    projected: Float[Array, "room room"],
    start: Float[Array, "r *Q"],
    coupling: Float[Array, "r r"],
    steps: int | Array,
    num_points: int | Array,
    machine_epsilon: float | Array,
) -> tuple[Array, ...]:
    """Ritz values, rotated labels, residuals, eigenvectors of T, and what rounding amounts to."""
    width, eps = len(coupling), jnp.finfo(projected.dtype).eps
    raw, vectors = jnp.linalg.eigh(projected)
    size = jnp.max(jnp.abs(raw))
    zero = raw <= num_points * eps * size
    dropped = jnp.max(jnp.where(zero, jnp.abs(raw), 0))
    negative = jnp.min(raw) < -num_points * jnp.maximum(eps, machine_epsilon) * size
    d = jnp.where(zero, jnp.where(negative, jnp.nan, 0), raw)
    last = jax.lax.dynamic_slice_in_dim(vectors, (steps - 1) * width, width)
    return d, matmul(vectors[:width].T, start), matmul(coupling, last), vectors, ROUNDING * eps * size + dropped
