"""The spectrum from matrix-vector products alone: Lanczos from each output's labels.

The fits f_t on the training points are functions of G applied to the labels y, and a Krylov space span(y, G y, G^2 y, ...)
stays what it is under every shift c I. After m steps

    G V = V T + beta_m v_{m+1} e_m^T,      V^T V = I,   V e_1 = y/|y|,   T tridiagonal (m, m),

the Ritz values of T stand in for d, |y| times the first components of T's eigenvectors for z. The recurrence runs on them
as on a dense spectrum, for every tolerance and every round.
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
from sdntk.spectrum import null_space_loss

#: Room for Lanczos vectors is made in steps of so many, and code is compiled once for each.
CAPACITY_STEP = 64
#: Rounding acts like a perturbation of G of so many units of machine_eps * d_max (the tests check it).
ROUNDING = 16


@no_type_check  # in the tests: transformations rebuild pytrees with leaves of other shapes
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KrylovSpectrum:
    """What m Lanczos steps from each of Q outputs' labels know of a Gram matrix; padded with zeros to a common length.

    It stands wherever a :class:`sdntk.Spectrum` does, for the labels that it was made from.

    Attributes:
        eigenvalues: the Ritz values, shape (m,) or (m, Q), never negative; those that are rounding are exactly zero.
        rotated_labels: z, the labels' coordinates on the Ritz vectors, shape (m,) or (m, Q).
        residuals: beta_m times the last component of each eigenvector of T, shape (m,) or (m, Q): by how much each Ritz
            pair fails to be an eigenpair of G.
        basis: V^T of each output, shape (Q, m, K).
        ritz_vectors: the eigenvectors of each T, shape (Q, m, m).
        labels: y, shape (K,) or (K, Q).
        perturbation: the norm of the perturbation of G that rounding amounts to, shape () or (Q,).
        steps: how many Lanczos steps were taken.
        machine_epsilon: relative rounding of G's values.
    """

    eigenvalues: Float[Array, "m *Q"]
    rotated_labels: Float[Array, "m *Q"]
    residuals: Float[Array, "m *Q"]
    basis: Float[Array, "q m K"]
    ritz_vectors: Float[Array, "q m m"]
    labels: Float[Array, "K *Q"]
    perturbation: Float[Array, "*Q"]
    steps: Any
    machine_epsilon: float = dataclasses.field(metadata={"static": True})

    @property
    def num_points(self) -> int:
        """K."""
        return self.labels.shape[0]

    @property
    def rank(self) -> Array:
        """The number of nonzero Ritz values, shape () or (Q,): the dimension of G that the labels see."""
        return jnp.sum(self.eigenvalues > 0, axis=0)

    def rotate(self, y: Float[Array, "K *Q"]) -> Float[Array, "m *Q"]:
        """Z: the coordinates of the labels that the spectrum was made from.

        Raises:
            ValueError: other labels, which it knows nothing of.
        """
        if y.shape != self.labels.shape or not (is_traced(y, self.labels) or np.array_equal(y, self.labels)):
            raise ValueError("y must be the labels that this Krylov spectrum was made from: it knows no others.")
        return self.rotated_labels

    def unrotate(self, z: Float[Array, "m *Q"]) -> Float[Array, "K *Q"]:
        """Back to the training points; axes between the first (Ritz vectors) and the last (outputs) are carried along."""
        outputs = z[..., None] if self.labels.ndim == 1 else z
        coordinates = jnp.moveaxis(outputs, -1, 0)

        def back(item: tuple[Array, Array, Array]) -> Array:
            basis, vectors, z = item
            inner = matmul(vectors, z.reshape(len(z), -1))
            return matmul(basis.T, inner).reshape(-1, *z.shape[1:])

        values = jnp.moveaxis(jax.lax.map(back, (self.basis, self.ritz_vectors, coordinates)), 0, -1)
        return values[..., 0] if self.labels.ndim == 1 else values

    def floor(self, y: ArrayLike) -> Float[Array, "*Q"]:
        """As :meth:`sdntk.Spectrum.floor`, for its own labels."""
        labels = as_labels("y", y, self.num_points, dtype=self.eigenvalues.dtype)
        return null_space_loss(self.eigenvalues, self.rotate(labels), self.num_points)


@no_type_check  # in the tests: transformations rebuild pytrees with leaves of other shapes
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lanczos:
    """Where the Lanczos processes of Q outputs are, side by side; :func:`extend` goes on with them.

    Attributes:
        labels: y, shape (K,) or (K, Q).
        basis: the orthonormal vectors v_1, v_2, ..., shape (Q, capacity, K), zero where there is none yet.
        following: v_{m+1}, shape (Q, K); zero where the Krylov space is exhausted.
        alpha, beta: the diagonal of T, and what is beside it, shape (Q, capacity).
        steps: m.
    """

    labels: Float[Array, "K *Q"]
    basis: Float[Array, "q capacity K"]
    following: Float[Array, "q K"]
    alpha: Float[Array, "q capacity"]
    beta: Float[Array, "q capacity"]
    steps: Any


def begin(labels: Float[Array, "K *Q"]) -> Lanczos:
    """The processes before their first step."""
    y = labels.reshape(len(labels), -1).T
    norms = jnp.linalg.norm(y, axis=1, keepdims=True)
    empty = jnp.zeros((len(y), 0), y.dtype)
    start = jnp.where(norms > 0, y / jnp.where(norms > 0, norms, 1), 0)
    return Lanczos(labels, jnp.zeros((len(y), 0, y.shape[1]), y.dtype), start, empty, empty, np.int64(0))


def extend(process: Lanczos, products: Products, steps: int) -> Lanczos:
    """The processes after ``steps`` steps in all; ``process`` is given up.

    All outputs share each product. New vectors are orthogonalised against all before them, twice: without that,
    rounding makes copies of Ritz values, and takes about 2.5 times as many steps.
    """
    capacity = -(-steps // CAPACITY_STEP) * CAPACITY_STEP
    missing = capacity - process.alpha.shape[1]
    if missing > 0:
        grow = lambda a: jnp.pad(a, [(0, missing if axis == 1 else 0) for axis in range(a.ndim)])  # noqa: E731
        process = dataclasses.replace(process, basis=grow(process.basis), alpha=grow(process.alpha), beta=grow(process.beta))
    state = (process.basis, process.following, process.alpha, process.beta)
    for step in range(int(process.steps), steps):
        state = _step(*state, products(state[1].T), step)
    return Lanczos(process.labels, *state, np.int64(max(steps, int(process.steps))))


@partial(jax.jit, donate_argnums=(0, 1, 2, 3))
def _step(
    basis: Float[Array, "q m K"],
    vector: Float[Array, "q K"],
    alpha: Float[Array, "q m"],
    beta: Float[Array, "q m"],
    product: Float[Array, "K q"],
    step: int | Array,
) -> tuple[Array, ...]:
    """One step, given G times its vector: the vector joins the basis, the next one comes out."""
    basis = jax.lax.dynamic_update_slice_in_dim(basis, vector[:, None], step, 1)

    def of_one(item: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        known, vector, w = item
        diagonal = jnp.vdot(vector, w, precision="highest")
        for _ in range(2):
            w = w - matmul(known.T, matmul(known, w))
        return w, diagonal, jnp.linalg.norm(w)

    w, diagonal, norm = jax.lax.map(of_one, (basis, vector, product.T))
    alpha = jax.lax.dynamic_update_slice_in_dim(alpha, diagonal[:, None], step, 1)
    size = jnp.max(jnp.abs(alpha) + beta, axis=1)
    exhausted = norm <= ROUNDING * jnp.finfo(w.dtype).eps * size  # what is left is rounding
    norm = jnp.where(exhausted, 0, norm)
    beta = jax.lax.dynamic_update_slice_in_dim(beta, norm[:, None], step, 1)
    return basis, jnp.where(exhausted[:, None], 0, w / jnp.where(exhausted, 1, norm)[:, None]), alpha, beta


def spectrum_of(process: Lanczos, *, machine_epsilon: float) -> KrylovSpectrum:
    """What the processes know so far. It shares their basis: :func:`extend` ends its use."""
    d, z, residuals, vectors, perturbation = _ritz(
        process.labels, process.alpha, process.beta, process.steps, machine_epsilon
    )
    if process.labels.ndim == 1:
        d, z, residuals, perturbation = (array[..., 0] for array in (d, z, residuals, perturbation))
    return KrylovSpectrum(
        d, z, residuals, process.basis, vectors, process.labels, perturbation, process.steps, machine_epsilon
    )  # fmt: skip


@jax.jit
def _ritz(
    labels: Float[Array, "K *Q"],
    alpha: Float[Array, "q m"],
    beta: Float[Array, "q m"],
    steps: int | Array,
    machine_epsilon: float | Array,
) -> tuple[Array, ...]:
    """Ritz values, rotated labels and residuals, each (m, q), eigenvectors of T, and what rounding amounts to."""
    places = jnp.arange(alpha.shape[1])
    beside = jnp.where(places < steps - 1, beta, 0)[:, :-1]
    last = (places == steps - 1).astype(alpha.dtype)
    eps, num_points = jnp.finfo(alpha.dtype).eps, labels.shape[0]

    def of_one(alpha: Array, beside: Array, beta: Array, norm: Array) -> tuple[Array, ...]:
        raw, vectors = jnp.linalg.eigh(jnp.diag(alpha) + jnp.diag(beside, 1) + jnp.diag(beside, -1))
        size = jnp.max(jnp.abs(raw))
        zero = raw <= num_points * eps * size
        dropped = jnp.max(jnp.where(zero, jnp.abs(raw), 0))
        negative = jnp.min(raw) < -num_points * jnp.maximum(eps, machine_epsilon) * size
        d = jnp.where(zero, jnp.where(negative, jnp.nan, 0), raw)
        return d, norm * vectors[0], jnp.dot(last, beta) * (last @ vectors), vectors, ROUNDING * eps * size + dropped

    norms = jnp.linalg.norm(labels.reshape(num_points, -1), axis=0)
    d, z, residuals, vectors, perturbation = jax.vmap(of_one)(alpha, beside, beta, norms)
    return d.T, z.T, residuals.T, vectors, perturbation
