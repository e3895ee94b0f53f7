"""Weighted points by way of landmarks (Nystrom): the same problem as
:mod:`sdntk.estimators.chains` decomposes, without a matrix of all pairs of points.

With phi(x) = R^{-1} k(L, x), R R^T = k(L, L), weights w_i and S = diag(sqrt(w)), the matrix is
S Phi^T Phi S/W. Its eigenvalues are those of Phi S^2 Phi^T/W, which one pass over the points sums.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk.estimators.chains import Asked, Problem
from sdntk.estimators.gram_values import GramValues
from sdntk.kernels.base import KernelFunction, LibraryKernel, kernel_block
from sdntk.spectra.landmarks import Landmarks, landmarks_at
from sdntk.spectra.nystrom import spectrum_of_sums
from sdntk.spectra.nystrom_sums import features
from sdntk.theory.units import in_unit, unit_of

#: Points are taken so many at a time.
BLOCK = 4096


def decompose(
    gram_values: GramValues,
    x: Float[np.ndarray, "K ..."],
    labels: Float[np.ndarray, "K Q"],
    weights: Float[np.ndarray, " K"],
    asked: Asked,
    number: int,
    key: Array,
) -> tuple[Problem, GramValues]:
    """Weighted points, decomposed, and the kernel with landmarks in the place of training points.

    Args:
        gram_values: the kernel.
        x: points.
        labels: theirs.
        weights: of the points.
        asked: of the chains.
        number: how many of the points of positive weight are landmarks.
        key: draws them.
    """
    there = np.flatnonzero(weights > 0)
    drawn = np.asarray(jax.random.permutation(key, len(there)))[:number]
    kernel = _on_arrays(gram_values.kernel)
    landmarks = landmarks_at(kernel, x[there[drawn]])

    total, root = float(weights.sum()), np.sqrt(weights)
    unit = np.abs(labels).max(axis=0, initial=1e-300)
    offset = unit * (weights @ (labels / unit)) / total if asked.center else 0 * unit
    weighted = root[:, None] * (labels - offset)
    gram, by_labels = _sums(kernel, landmarks, x, root, weighted)
    spectrum = spectrum_of_sums(landmarks, gram, by_labels, weighted, total)

    of_labels = unit_of(jnp.asarray(weighted), joint=asked.joint)
    rank = len(landmarks.points)
    problem = Problem(
        spectrum=spectrum,
        root=jnp.asarray(root),
        total=jnp.asarray(total),
        offset=jnp.asarray(offset),
        labels=jnp.asarray(weighted),
        unit=of_labels,
        z=in_unit(spectrum.rotated_labels, of_labels),
        scale=jnp.full(rank, np.sqrt(len(x) / total) / rank),
        indefinite=jnp.asarray(False),
    )
    return problem, gram_values.at_landmarks(landmarks.points)


def _on_arrays(kernel: KernelFunction) -> KernelFunction:
    """A kernel that is none of this library's may know NumPy's arrays only."""
    if isinstance(kernel, LibraryKernel):
        return kernel
    return lambda x1, x2: np.asarray(kernel(np.asarray(x1), np.asarray(x2)))


def _sums(
    kernel: KernelFunction,
    landmarks: Landmarks,
    x: Float[np.ndarray, "K ..."],
    root: Float[np.ndarray, " K"],
    labels: Float[np.ndarray, "K Q"],
) -> tuple[Float[np.ndarray, "r r"], Float[np.ndarray, "r Q"]]:
    """Phi S^2 Phi^T and Phi S times the weighted labels."""
    rank, size = len(landmarks.points), min(BLOCK, len(x))
    points, factor = jnp.asarray(landmarks.points), jnp.asarray(landmarks.factor)
    gram, by_labels = np.zeros((rank, rank)), np.zeros((rank, labels.shape[1]))
    for start in range(0, len(x), size):
        rows = np.arange(start, start + size) % len(x)  # the last block repeats the first points
        here = np.where(np.arange(start, start + size) < len(x), root[rows], 0.0)
        phi = np.asarray(features(factor, kernel_block(kernel, points, jnp.asarray(x[rows]))))
        phi = phi * here
        gram += phi @ phi.T
        by_labels += phi @ labels[rows]
    return gram, by_labels
