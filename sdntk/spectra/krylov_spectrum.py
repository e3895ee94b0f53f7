"""The spectrum from matrix-vector products alone: block Lanczos from the labels of all outputs.

The fits f_t on the training points are functions of G applied to the labels Y, and a Krylov space
span(Y, G Y, G^2 Y, ...) stays what it is under every shift c I. With Y = V_1 R, V_1 of r
orthonormal columns, and after m steps

    G V = V T + V_{m+1} B E_m^T,      V = (V_1, .., V_m),  V^T V = I,      T block tridiagonal (m r,
    m r),

the Ritz values of T stand in for d, its eigenvectors' first r components times R for z. The
recurrence runs on them as on a dense spectrum, for every tolerance and every round. All outputs
share one space: what G does to the labels of one tells of the others. Labels of few dimensions are
joined by random vectors for the same sake: a product with a few vectors takes as long as one with a
single vector, which would need half as many steps again.
"""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import as_columns, format_number, is_traced, require_every
from sdntk._linalg import blas_in_one_thread, matmul
from sdntk._pytrees import pytree
from sdntk.spectra.base import Eigenbasis, ErrorBounds, as_column
from sdntk.spectra.krylov_bounds import error_bounds
from sdntk.spectra.lanczos import ROUNDING, Lanczos
from sdntk.spectra.own_labels import known_coordinates, without_derivatives
from sdntk.theory.recurrence import ChainSpec, MultiplierPath

#: A spectrum has this number of pieces, or that times a power of two, the last ones empty: code is
#: compiled for each number. More from the beginning where points are many: they take many steps,
#: and empty pieces cost less than another compilation.
LEAST_PIECES, LEAST_OF_MANY, MANY_POINTS = 2, 8, 2**14
#: Rows of T up to which one thread diagonalises it: several would disturb the steps that follow.
ONE_THREAD = 1000


@pytree
class KrylovSpectrum(Eigenbasis):
    """What Lanczos steps from labels know of a Gram matrix: M Ritz pairs, some of them zero, for
    padding.

    It stands wherever a :class:`sdntk.Spectrum` does, for the labels that it was made from.

    Attributes:
        eigenvalues: the Ritz values, shape (M,), never negative; those that are rounding are
            exactly zero.
        rotated_labels: z, the labels' coordinates on the Ritz vectors, shape (M,) or (M, Q).
        residuals: B times the last r components of each eigenvector of T, shape (r, M): by how much
            each Ritz pair fails to be an eigenpair of G.
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

    @property
    def has_all_eigenvalues(self) -> bool:
        """A Ritz value stands for several."""
        return False

    def rotate(self, y: Float[Array, "K *Q"]) -> Float[Array, "M *Q"]:
        """The coordinates z of the labels that the spectrum was made from, in any unit of theirs.

        Raises:
            ValueError: other labels, which it knows nothing of (nan where they are traced).
                NotImplementedError: derivatives by the labels.
        """
        y = as_columns("y", y, self.num_points, self.dtype)
        others = "y must be the labels that this Krylov spectrum was made from: it knows no others."
        if y.shape != self.labels.shape:
            raise ValueError(others)
        known, z = known_coordinates(self.labels, self.rotated_labels, y)
        if is_traced(known):
            z = jnp.where(known, z, jnp.nan)
        elif not known:
            raise ValueError(others)
        return without_derivatives(y, z)

    def unrotate(self, z: Float[Array, "M *Q"]) -> Float[Array, "K *Q"]:
        """Back to the training points, all axes behind the first carried along."""
        z = as_columns("z", z, len(self.eigenvalues), self.dtype)
        columns = z.reshape(len(z), -1)
        total = jnp.zeros((self.num_points, columns.shape[1]), self.dtype)
        start = 0
        for piece in self.basis:
            vectors = self.ritz_vectors[start : start + len(piece)]
            # Empty pieces are left out, and no product is there before the last one was added: XLA
            # computes all terms of a sum first, as many arrays as the result has.
            total = jax.lax.cond(
                jnp.any(vectors != 0), _add_piece, _add_nothing, total, piece, vectors, columns
            )
            start += len(piece)
        return total.reshape(-1, *z.shape[1:])

    def check_chain(self, chain: ChainSpec) -> None:
        """Refuse weights for which no error bound is proved; traced ones get infinite bounds."""
        require_proved_weight(chain)

    def error_bounds(
        self, z: Float[Array, "M *Q"], path: MultiplierPath, chain: ChainSpec
    ) -> ErrorBounds:
        """What Lanczos knows of the error, for each round (and output)."""
        return chain_error_bounds(self, z, path, chain)

    def eigenvalues_for(self, z: Float[Array, "M *Q"]) -> Float[Array, "M *Q"]:
        """The Ritz values, for each output where there are several."""
        return jnp.broadcast_to(as_column(self.eigenvalues, z), z.shape)

    def __repr__(self) -> str:
        if is_traced(self):
            return super().__repr__()
        return f"{super().__repr__()[:-1]}, {int(self.steps)} Lanczos steps)"

    def _describe_null_space(self) -> str:
        """For a message: how far the zeros among the Ritz values can be told."""
        return f"as far as {int(self.steps)} Lanczos steps tell, some of {self.num_points}"


def _add_piece(total: Array, piece: Array, vectors: Array, columns: Array) -> Array:
    return total + matmul(piece.T, matmul(vectors, columns))


def _add_nothing(total: Array, *_: Array) -> Array:
    return total


class RitzValues(NamedTuple):
    """What error bounds ask of Ritz pairs, padded as in :class:`KrylovSpectrum`."""

    eigenvalues: Float[Array, " M"]
    rotated_labels: Float[Array, "M *Q"]
    residuals: Float[Array, "r M"]
    perturbation: Float[Array, ""]


def ritz_values(
    process: Lanczos, *, machine_epsilon: float, precision: float = 0.0
) -> tuple[RitzValues, Float[np.ndarray, "n n"]]:
    """What the process knows so far, and the eigenvectors of T, not padded.

    Args:
        process: Lanczos steps.
        machine_epsilon: relative rounding of G's values.
        precision: the error of G beyond that, in the spectral norm.

    Raises:
        ValueError: the Gram matrix is indefinite beyond rounding.
    """
    num_points, width = len(process.labels), process.width
    small = process.steps * width <= ONE_THREAD
    with blas_in_one_thread() if small else contextlib.nullcontext():
        d, vectors = np.linalg.eigh(process.projected)
    eps, size = float(np.finfo(d.dtype).eps), np.abs(d).max()
    if d[0] < -max(num_points * max(eps, machine_epsilon) * size, precision):
        raise ValueError(
            f"the Gram matrix must be positive semi-definite; after {process.steps} Lanczos "
            f"steps a Ritz value is {format_number(float(d[0]))}, the largest is "
            f"{format_number(float(d[-1]))}, and rounding does not explain it. The kernel is not "
            "positive definite, or its values are less precise than their dtype (then "
            "kernel_operator(kernel, x), which knows kernel.precision(x))."
        )
    zero = d <= num_points * eps * size
    dropped = np.abs(d[zero]).max(initial=0) + float(process.discarded)
    z = np.tensordot(vectors[:width], np.asarray(process.start), (0, 0))
    residuals = np.asarray(process.couplings[-1]) @ vectors[-width:]
    more = (0, _pieces(process) * len(process.basis[0]) - len(d))
    values = RitzValues(
        eigenvalues=jnp.asarray(np.pad(np.where(zero, 0, d), more)),
        rotated_labels=jnp.asarray(np.pad(z, (more, *((0, 0) for _ in z.shape[1:])))),
        residuals=jnp.asarray(np.pad(residuals, ((0, 0), more))),
        perturbation=jnp.asarray(ROUNDING * eps * size + dropped, d.dtype),
    )
    return values, vectors


def _pieces(process: Lanczos) -> int:
    """How many pieces a spectrum has, empty ones among them."""
    pieces = LEAST_PIECES if len(process.labels) < MANY_POINTS else LEAST_OF_MANY
    while pieces < len(process.basis):
        pieces *= 2
    return pieces


def with_vectors(
    process: Lanczos,
    values: RitzValues,
    vectors: Float[np.ndarray, "n n"],
    *,
    machine_epsilon: float,
) -> KrylovSpectrum:
    """The spectrum of what :func:`ritz_values` returns. It shares the basis of the process:
    :func:`lanczos_extend` ends its use.
    """
    empty = jnp.zeros_like(process.basis[0])  # one for all pieces that are not there yet
    more = (0, len(values.eigenvalues) - len(vectors))
    return KrylovSpectrum(
        **values._asdict(),
        basis=process.basis + (empty,) * (_pieces(process) - len(process.basis)),
        ritz_vectors=jnp.asarray(np.pad(vectors, (more, more))),
        labels=process.labels,
        steps=np.int64(process.steps),
        machine_epsilon=machine_epsilon,
    )


def require_proved_weight(chain: ChainSpec) -> None:
    """Refuse weights outside [0, 1] together with a tolerance (docs/krylov_bounds.md, "Weights
    outside [0, 1]").

    Raises:
        ValueError: with the ways out.
    """
    if chain.radius is not None:
        require_every(
            "ground_truth_weight",
            chain.ground_truth_weight,
            lambda alpha: (alpha >= 0) & (alpha <= 1),
            "must lie between 0 and 1 where the Krylov method solves for a tolerance, whose error "
            'bounds hold for no others (with a multiplier, or with method="dense", any weights do)',
        )


def chain_error_bounds(
    spectrum: KrylovSpectrum | RitzValues,
    z: Float[Array, "M *Q"],
    path: MultiplierPath,
    chain: ChainSpec,
) -> ErrorBounds:
    """How far a chain on a Krylov spectrum is at most from that on the Gram matrix, for each round
    (and output). See :mod:`sdntk.spectra.krylov_bounds`.

    The rotated labels z and the chain are in a unit in which labels are about 1.
    """
    by_tolerance = chain.radius is not None
    s = chain.radius if by_tolerance else jnp.ones(path.multipliers.shape[1:], z.dtype)

    def of(z: Array, multipliers: Array, status: Array, s: Array) -> ErrorBounds:
        return error_bounds(
            spectrum.eigenvalues,
            z,
            spectrum.residuals,
            spectrum.perturbation,
            multipliers,
            status,
            s,
            chain.ground_truth_weight,
            by_tolerance=by_tolerance,
        )

    if z.ndim == 1:
        return of(z[:, None], path.multipliers, path.status, s)
    if chain.joint:
        return of(z, path.multipliers, path.status, s)
    by_output = jax.vmap(of, in_axes=(2, 1, 1, 0), out_axes=1)
    return by_output(z[:, None, :], path.multipliers, path.status, s)
