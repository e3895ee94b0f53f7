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

from sdntk._arguments import ArrayLike, as_labels, format_number, is_traced
from sdntk._linalg import matmul
from sdntk.gram_matrices.products import Products
from sdntk.spectra.dense import Eigenbasis, null_space_loss

#: Lanczos vectors are kept in pieces of about this number, of whole blocks: never is more than one of them partly empty.
PIECE = 128
#: A spectrum has this number of pieces, or that times a power of two, the last ones empty: code is compiled for each number.
LEAST_PIECES = 2
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
        basis: V^T in pieces, together of shape (M, K).
        ritz_vectors: the eigenvectors of T, shape (M, M).
        labels: y, shape (K,) or (K, Q).
        perturbation: the norm of the perturbation of G that rounding amounts to.
        steps: how many Lanczos steps were taken.
        machine_epsilon: relative rounding of G's values.
    """

    eigenvalues: Float[Array, " M"]
    rotated_labels: Float[Array, "M *Q"]
    residuals: Float[Array, "r M"]
    basis: tuple[Float[Array, "rows K"], ...]
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
        inner = matmul(self.ritz_vectors, z.reshape(len(z), -1)).reshape(len(self.basis), -1, z[0].size)
        total = sum(matmul(piece.T, part) for piece, part in zip(self.basis, inner, strict=True))
        return jnp.asarray(total).reshape(-1, *z.shape[1:])

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


@dataclasses.dataclass(frozen=True)
class Lanczos:
    """Where a block Lanczos process is; :func:`extend` goes on with it.

    Attributes:
        labels: y, shape (K,) or (K, Q).
        start: R, with V_1 R = y, shape (r,) or (r, Q).
        basis: V^T in pieces, shape (n r, K) each, zero where there is none yet.
        diagonals, couplings: the blocks of T on its diagonal and below, shape (r, r), one of each for every step; the last
            coupling is B, by which G leads from the last block to the following one.
        blocks: V_m and V_{m+1}, shape (K, r) each; columns are zero where the Krylov space is exhausted.
        size: the largest entry of T.
    """

    labels: Float[Array, "K *Q"]
    start: Float[Array, "r *Q"]
    basis: tuple[Float[Array, "rows K"], ...]
    diagonals: tuple[Float[Array, "r r"], ...]
    couplings: tuple[Float[Array, "r r"], ...]
    blocks: tuple[Float[Array, "K r"], Float[Array, "K r"]]
    size: Float[Array, ""]

    @property
    def steps(self) -> int:
        """The number m of steps taken."""
        return len(self.diagonals)

    @property
    def width(self) -> int:
        """The number r of vectors that each step adds."""
        return self.blocks[1].shape[1]

    @property
    def exhausted(self) -> bool:
        """Whether the Krylov space has no further directions."""
        return self.steps > 0 and not np.asarray(self.couplings[-1]).any()

    @property
    def projected(self) -> Float[np.ndarray, "n n"]:
        """T, shape (m r, m r)."""
        width, (diagonals, couplings) = self.width, map(np.stack, jax.device_get((self.diagonals, self.couplings)))
        blocks = np.zeros((self.steps, width, self.steps, width), diagonals.dtype)
        for i, (diagonal, coupling) in enumerate(zip(diagonals, couplings, strict=True)):
            blocks[i, :, i] = diagonal
            if i + 1 < self.steps:
                blocks[i + 1, :, i], blocks[i, :, i + 1] = coupling, coupling.T
        return blocks.reshape(self.steps * width, -1)


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
    start = start.reshape(rank + more, *labels.shape[1:])
    return Lanczos(labels, start, (), (), (), (jnp.zeros_like(following), following), jnp.zeros((), dtype))


def extend(process: Lanczos, products: Products, steps: int) -> Lanczos:
    """The process after ``steps`` steps in all; ``process`` is given up.

    New vectors are orthogonalised against the last two blocks, to which alone exact arithmetic would have them leaning, and
    then, at their full length, against all: without that, rounding makes copies of Ritz values, and takes about 2.5 times as
    many steps.
    """
    basis, diagonals, couplings = [*process.basis], [*process.diagonals], [*process.couplings]
    (before, block), size, width = process.blocks, process.size, process.width
    of_piece = max(1, PIECE // width)
    coupling = couplings[-1] if couplings else jnp.zeros((width, width), block.dtype)
    for step in range(process.steps, steps):
        if step % of_piece == 0:
            basis.append(jnp.zeros((of_piece * width, len(block)), block.dtype))
        basis[-1] = _put(basis[-1], block, (step % of_piece) * width)
        diagonal, w, coupling, size = _step(before, block, coupling, products(block), size)
        for piece in basis:
            w = _orthogonalise(w, piece)
        before = block
        block, coupling = _orthonormalise(w, coupling)
        diagonals.append(diagonal)
        couplings.append(coupling)
    return Lanczos(
        process.labels, process.start, tuple(basis), tuple(diagonals), tuple(couplings), (before, block), size
    )  # fmt: skip


@partial(jax.jit, donate_argnames="piece")
def _put(piece: Float[Array, "rows K"], block: Float[Array, "K r"], row: int | Array) -> Float[Array, "rows K"]:
    return jax.lax.dynamic_update_slice_in_dim(piece, block.T, row, 0)


@jax.jit
def _step(
    before: Float[Array, "K r"],
    block: Float[Array, "K r"],
    coupling: Float[Array, "r r"],
    product: Float[Array, "K r"],
    size: Float[Array, ""],
) -> tuple[Array, ...]:
    """One step, given G times its block: T's block on the diagonal, new directions V and B with V B, and the size of T."""
    diagonal = matmul(block.T, product)
    last = jnp.concatenate([before, block], axis=1).T
    w = product - matmul(last.T, matmul(last, product))
    size = jnp.maximum(size, jnp.max(jnp.abs(coupling)))
    rounding = ROUNDING * jnp.finfo(product.dtype).eps * (size + jnp.linalg.norm(diagonal))
    diagonal = (diagonal + diagonal.T) / 2
    return diagonal, *_orthonormal(w, rounding), jnp.maximum(size, jnp.max(jnp.abs(diagonal)))


@partial(jax.jit, donate_argnames="w")
def _orthogonalise(w: Float[Array, "K r"], piece: Float[Array, "rows K"]) -> Float[Array, "K r"]:
    return w - matmul(piece.T, matmul(piece, w))


@jax.jit
def _orthonormalise(
    w: Float[Array, "K r"], coupling: Float[Array, "r r"]
) -> tuple[Float[Array, "K r"], Float[Array, "r r"]]:
    """The following block, and the coupling B that leads to it."""
    w, rest = jnp.linalg.qr(w)
    return jnp.where(jnp.diagonal(rest)[None] == 0, 0, w), matmul(rest, coupling)


def _orthonormal(w: Float[Array, "K r"], least: Float[Array, ""]) -> tuple[Float[Array, "K r"], Float[Array, "r r"]]:
    """Orthonormal columns V and B with W = V B, singular values of at most ``least`` and their columns set to zero."""
    columns, triangular = jnp.linalg.qr(w)
    left, sizes, right = jnp.linalg.svd(triangular)
    sizes = jnp.where(sizes <= least, 0, sizes)
    return jnp.where(sizes[None] > 0, matmul(columns, left), 0), sizes[:, None] * right


def spectrum_of(process: Lanczos, *, machine_epsilon: float) -> KrylovSpectrum:
    """What the process knows so far. It shares its basis: :func:`extend` ends its use.

    Raises:
        ValueError: the Gram matrix is indefinite beyond rounding.
    """
    d, vectors, perturbation = _ritz(process, machine_epsilon)
    width, count, rows = process.width, LEAST_PIECES, len(process.basis[0])
    while count < len(process.basis):
        count *= 2
    empty = jnp.zeros_like(process.basis[0])  # one for all pieces that are not there yet
    more = (0, count * rows - len(d))
    z = np.tensordot(vectors[:width], np.asarray(process.start), (0, 0))
    residuals = np.asarray(process.couplings[-1]) @ vectors[-width:]
    return KrylovSpectrum(
        eigenvalues=jnp.asarray(np.pad(d, more)),
        rotated_labels=jnp.asarray(np.pad(z, (more, *((0, 0) for _ in z.shape[1:])))),
        residuals=jnp.asarray(np.pad(residuals, ((0, 0), more))),
        basis=process.basis + (empty,) * (count - len(process.basis)),
        ritz_vectors=jnp.asarray(np.pad(vectors, (more, more))),
        labels=process.labels,
        perturbation=perturbation,
        steps=np.int64(process.steps),
        machine_epsilon=machine_epsilon,
    )


def _ritz(
    process: Lanczos, machine_epsilon: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n n"], Float[Array, ""]]:
    """Ritz values, eigenvectors of T, and what rounding amounts to."""
    num_points = len(process.labels)
    d, vectors = np.linalg.eigh(process.projected)
    eps, size = float(np.finfo(d.dtype).eps), np.abs(d).max()
    if d[0] < -num_points * max(eps, machine_epsilon) * size:
        raise ValueError(
            f"the Gram matrix must be positive semi-definite; after {process.steps} Lanczos steps a Ritz value is "
            f"{format_number(float(d[0]))}, the largest is {format_number(float(d[-1]))}, and rounding does not explain it."
        )
    zero = d <= num_points * eps * size
    dropped = np.abs(d[zero]).max(initial=0)
    return np.where(zero, 0, d), vectors, jnp.asarray(ROUNDING * eps * size + dropped, d.dtype)
