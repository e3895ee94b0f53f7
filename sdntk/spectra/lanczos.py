"""The block Lanczos process: orthonormal vectors from products with the Gram matrix, in pieces, and
its projection.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._linalg import matmul
from sdntk.gram_matrices.linear_operator import GramOperator
from sdntk.theory.units import in_unit, out_of_unit, power_of_two, unit_of

#: Lanczos vectors are kept in pieces of about this number, of whole blocks: never is more than one
#: of them partly empty.
PIECE = 128
#: Blocks have at least so many vectors.
LEAST_WIDTH = 4
#: Rounding acts like a perturbation of G of so many units of machine_eps * d_max (the tests check
#: it).
ROUNDING = 16


@dataclasses.dataclass(frozen=True)
class Lanczos:
    """The state of a block Lanczos process; :func:`lanczos_extend` continues it.

    Attributes:
        labels: y, shape (K,) or (K, Q).
        start: R, with V_1 R = y, shape (r,) or (r, Q).
        basis: V^T in pieces, shape (n r, K) each, zero where there is none yet.
        diagonals, couplings: the blocks of T on its diagonal and below, shape (r, r), one of each
            for every step; the last coupling is B, by which G leads from the last block to the
            following one.
        previous, block: V_m and V_{m+1}, shape (K, r) each; columns are zero where the Krylov space
            is exhausted.
        size: the largest entry of T.
        discarded: the norm of all couplings that were taken for zero.
    """

    labels: Float[Array, "K *Q"]
    start: Float[Array, "r *Q"]
    basis: tuple[Float[Array, "rows K"], ...]
    diagonals: tuple[Float[Array, "r r"], ...]
    couplings: tuple[Float[Array, "r r"], ...]
    previous: Float[Array, "K r"]
    block: Float[Array, "K r"]
    size: Float[Array, ""]
    discarded: Float[Array, ""]

    @property
    def steps(self) -> int:
        """The number m of steps taken."""
        return len(self.diagonals)

    @property
    def width(self) -> int:
        """The number r of vectors that each step adds."""
        return self.block.shape[1]

    @property
    def exhausted(self) -> bool:
        """Whether the Krylov space has no further directions."""
        return self.steps > 0 and not np.asarray(self.couplings[-1]).any()

    @property
    def projected(self) -> Float[np.ndarray, "n n"]:
        """T, shape (m r, m r)."""
        diagonals, couplings = map(np.stack, jax.device_get((self.diagonals, self.couplings)))
        blocks = np.zeros((self.steps, self.width, self.steps, self.width), diagonals.dtype)
        for i, diagonal in enumerate(diagonals):
            blocks[i, :, i] = diagonal
        for i, coupling in enumerate(couplings[:-1]):
            blocks[i + 1, :, i] = coupling
            blocks[i, :, i + 1] = coupling.T
        return blocks.reshape(self.steps * self.width, -1)


def lanczos_init(labels: Float[Array, "K *Q"]) -> Lanczos:
    """The process before its first step."""
    num_points, dtype = len(labels), labels.dtype
    columns = labels.reshape(num_points, -1)

    # An orthonormal basis of the labels, each scaled to norm 1: what is rounding to one output may
    # be all that another has.
    unit = unit_of(columns, joint=False)
    scaled = in_unit(columns, unit)
    norms = jnp.linalg.norm(scaled, axis=0, keepdims=True)
    vectors, sizes, _ = jnp.linalg.svd(scaled / jnp.where(norms > 0, norms, 1), full_matrices=False)
    rank = int(np.sum(np.asarray(sizes) > ROUNDING * jnp.finfo(dtype).eps * sizes[0]))

    # Random vectors join labels of few dimensions.
    more = max(0, min(LEAST_WIDTH, num_points) - rank)
    random = jax.random.normal(jax.random.key(0), (num_points, more), dtype)
    block = jnp.linalg.qr(jnp.concatenate([vectors[:, :rank], random], axis=1))[0]
    start = out_of_unit(matmul(block[:, :rank].T, scaled), unit)
    start = jnp.pad(start, ((0, more), (0, 0)))
    return Lanczos(
        labels=labels,
        start=start.reshape(rank + more, *labels.shape[1:]),
        basis=(),
        diagonals=(),
        couplings=(),
        previous=jnp.zeros_like(block),
        block=block,
        size=jnp.zeros((), dtype),
        discarded=jnp.zeros((), dtype),
    )


def lanczos_extend(process: Lanczos, operator: GramOperator, steps: int) -> Lanczos:
    """The process after ``steps`` steps in all; ``process`` must not be used afterwards.

    New vectors are orthogonalised against the last two blocks, the only ones that they overlap with
    in exact arithmetic, and then, at their full length, against all: without that, rounding makes
    copies of Ritz values, and takes about 2.5 times as many steps.
    """
    basis, diagonals, couplings = [*process.basis], [*process.diagonals], [*process.couplings]
    previous, block = process.previous, process.block
    size, discarded = process.size, process.discarded
    width = process.width
    per_piece = max(1, PIECE // width)
    coupling = jnp.zeros((width, width), block.dtype)
    if couplings:
        coupling = couplings[-1]

    for step in range(process.steps, steps):
        if step % per_piece == 0:
            basis.append(jnp.zeros((per_piece * width, len(block)), block.dtype))
        basis[-1] = _put(basis[-1], block, (step % per_piece) * width)

        new = _step(previous, block, coupling, operator(block), size, discarded)
        directions = new.directions
        for piece in basis:
            directions = _orthogonalise(directions, piece)
        previous, size, discarded = block, new.size, new.discarded
        block, coupling = _orthonormalise(directions, new.coupling)

        diagonals.append(new.diagonal)
        couplings.append(coupling)

    return dataclasses.replace(
        process,
        basis=tuple(basis),
        diagonals=tuple(diagonals),
        couplings=tuple(couplings),
        previous=previous,
        block=block,
        size=size,
        discarded=discarded,
    )


@partial(jax.jit, donate_argnames="piece")
def _put(
    piece: Float[Array, "rows K"], block: Float[Array, "K r"], row: int | Array
) -> Float[Array, "rows K"]:
    return jax.lax.dynamic_update_slice_in_dim(piece, block.T, row, 0)


class _Step(NamedTuple):
    diagonal: Float[Array, "r r"]  # T's block on the diagonal
    directions: Float[Array, "K r"]  # V, orthonormal
    coupling: Float[Array, "r r"]  # B: what G adds to the last two blocks is V B
    size: Float[Array, ""]  # the largest entry of T
    discarded: Float[Array, ""]  # the norm of all couplings that were taken for zero


@jax.jit
def _step(
    previous: Float[Array, "K r"],
    block: Float[Array, "K r"],
    coupling: Float[Array, "r r"],
    product: Float[Array, "K r"],
    size: Float[Array, ""],
    discarded: Float[Array, ""],
) -> _Step:
    """One step, given G times its block."""
    last_two = jnp.concatenate([previous, block], axis=1).T
    overlap = matmul(last_two, product)
    diagonal = overlap[block.shape[1] :]
    w = product - matmul(last_two.T, overlap)

    size = jnp.maximum(size, jnp.max(jnp.abs(coupling)))
    rounding = ROUNDING * jnp.finfo(product.dtype).eps * (size + _norm(diagonal))
    diagonal = (diagonal + diagonal.T) / 2
    found = _orthonormal(w, rounding)
    return _Step(
        diagonal,
        found.columns,
        found.coupling,
        size=jnp.maximum(size, jnp.max(jnp.abs(diagonal))),
        discarded=jnp.hypot(discarded, found.discarded),
    )


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


class _Orthonormal(NamedTuple):
    columns: Float[Array, "K r"]
    coupling: Float[Array, "r r"]
    discarded: Float[Array, ""]  # the norm of what was taken for zero


def _orthonormal(w: Float[Array, "K r"], least: Float[Array, ""]) -> _Orthonormal:
    """Orthonormal columns V and B with W = V B, singular values of at most ``least`` and their
    columns set to zero.
    """
    columns, triangular = jnp.linalg.qr(w)
    left, sizes, right = jnp.linalg.svd(triangular)
    discarded = _norm(jnp.where(sizes <= least, sizes, 0))
    sizes = jnp.where(sizes <= least, 0, sizes)
    kept = jnp.where(sizes[None] > 0, matmul(columns, left), 0)
    return _Orthonormal(kept, sizes[:, None] * right, discarded)


def _norm(values: Float[Array, "..."]) -> Float[Array, ""]:
    """The root of the sum of squares of values of any size."""
    unit = power_of_two(values)
    return jnp.linalg.norm(values / unit) * unit
