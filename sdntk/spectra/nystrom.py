"""The spectrum from landmarks alone (Nystrom): one pass over the points, no K x K matrix.

With m landmarks L, g(L, L) = R R^T and phi(x) = R^{-1} g(L, x), the m x K matrix Phi = phi(X) gives
G' = Phi^T Phi / K, the Gram matrix of the kernel as far as the landmarks' functions reach. From

    Phi Phi^T / K = U D U^T,      z = (K d)^{-1/2} U^T Phi y

come eigenvalues and rotated labels, on which a chain runs as on any spectrum; a round with fitted
coordinates F z predicts f(x) = phi(x)^T U (K d)^{-1/2} F z, from the landmarks alone. The labels'
part outside that space is one more coordinate, of eigenvalue 0: its square over K is the floor.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk import _memory
from sdntk._arguments import (
    ArrayLike,
    DTypeLike,
    as_choice,
    as_columns,
    as_count,
    as_float_dtype,
    as_key,
    as_path,
    is_traced,
    require_function,
    require_one_shape,
)
from sdntk._linalg import matmul
from sdntk._progress import track
from sdntk._pytrees import pytree
from sdntk.gram_matrices.point_blocks import PointBlocks
from sdntk.kernels.base import KernelFunction, check_points, kernel_block
from sdntk.spectra.base import Eigenbasis, as_column
from sdntk.spectra.landmarks import CANDIDATES, Landmarks, Selection, landmarks_at, pivots
from sdntk.spectra.nystrom_sums import choose_size, features, sum_over_points
from sdntk.spectra.own_labels import known_coordinates, without_derivatives
from sdntk.theory.units import in_unit, out_of_unit, unit_of

#: The error against the full kernel is estimated on so many points.
SAMPLE = 256


class Lost(NamedTuple):
    """What the landmarks' space lacks of the kernel's, estimated on a few of the points.

    Attributes:
        trace: tr(G - G') / tr G.
        norm: |G - G'| / |G|, spectral norms. A single fit with multiplier c moves by at most
            |G - G'|/c of the labels' norm.
        num_points: on how many points.
    """

    trace: Float[Array, ""]
    norm: Float[Array, ""]
    num_points: Any


@pytree
class NystromSpectrum(Eigenbasis):
    """What r landmarks know of a Gram matrix of K points.

    It stands wherever a :class:`sdntk.Spectrum` does, outside of ``jax.jit`` for any labels, inside
    for those that it was made from. Its null space is one coordinate, the first one: the part of
    the labels that no function of the space can express.

    Attributes:
        eigenvalues: 0, and the d of G' in ascending order, those that are rounding exactly zero,
            shape (r + 1,).
        rotated_labels: z, shape (r + 1,) or (r + 1, Q).
        eigenvectors: U, of Phi Phi^T / K, shape (r, r).
        landmarks: shape (r, ...); predictions need no other points.
        factor: R, lower triangular, g(L, L) = R R^T, shape (r, r).
        labels: y, shape (K,) or (K, Q).
        lost: what the landmarks' space lacks of the kernel's, a :class:`Lost`.
        num_asked: how many landmarks were asked for; the others depended on these r.
        machine_epsilon: relative rounding of the kernel's values.
        source: the points, for values on them; transformations and files leave them out.
    """

    eigenvalues: Float[Array, " n"]
    rotated_labels: Float[Array, "n *Q"]
    eigenvectors: Float[Array, "r r"]
    landmarks: Float[Array, "r ..."]
    factor: Float[Array, "r r"]
    labels: Float[Array, "K *Q"]
    lost: Lost
    num_asked: int = dataclasses.field(metadata={"static": True})
    machine_epsilon: float = dataclasses.field(metadata={"static": True})
    source: Any = dataclasses.field(default=None, metadata={"dropped": True, "not_saved": True})

    @property
    def num_points(self) -> int:
        """K."""
        return self.labels.shape[0]

    @property
    def matrix(self) -> None:
        """There are no derivatives by the Gram matrix."""

    @property
    def has_basis_on_points(self) -> bool:
        """Values on the points take a pass over them."""
        return False

    @property
    def dual_points(self) -> Float[Array, "r ..."]:
        """The landmarks."""
        return self.landmarks

    def rotate(self, y: Float[Array, "K *Q"]) -> Float[Array, "n *Q"]:
        """Coordinates z of labels: known of those that the spectrum was made from; of others by
        a pass over the points.

        Raises:
            ValueError: other labels where points are no longer known (nan where they are traced).
                NotImplementedError: derivatives by the labels.
        """
        y = as_columns("y", y, self.num_points, self.dtype, most_axes=2)
        if y.shape == self.labels.shape:
            known, z = known_coordinates(self.labels, self.rotated_labels, y)
            if is_traced(known):
                return without_derivatives(y, jnp.where(known, z, jnp.nan))
            if known:
                return without_derivatives(y, z)
        if is_traced(y):
            raise ValueError(_OTHER_LABELS)
        by_features = jnp.zeros((len(self.landmarks), y[0].size), self.dtype)
        columns = y.reshape(len(y), -1)
        for start, phi in self._features_on_points(_OTHER_LABELS):
            part = columns[start : start + phi.shape[1]]
            by_features += matmul(phi, part)
        d, vectors = self.eigenvalues[1:], self.eigenvectors
        return _coordinates(d, vectors, by_features, y, float(len(y)))

    def unrotate(self, z: Float[Array, "n *P"]) -> Float[Array, "K *P"]:
        """Values on the training points, by a pass over them.

        Raises:
            ValueError: traced, or points are no longer known; a part outside the landmarks' space.
        """
        z = as_columns("z", z, len(self.eigenvalues), self.dtype)
        if is_traced(self, z):
            raise ValueError(f"{_NO_POINTS}, and cannot be traced (jit, vmap, derivatives).")
        if np.asarray(z[0]).any():
            raise ValueError(
                "z must have no part outside the landmarks' space: that of targets and labels has "
                "a norm here, and no values."
            )
        columns = self._by_features(z[1:].reshape(len(z) - 1, -1))
        parts = [matmul(phi.T, columns) for _, phi in self._features_on_points(_NO_POINTS)]
        return jnp.concatenate(parts).reshape(-1, *z.shape[1:])

    def as_duals(self, z: Float[Array, "n *P"]) -> Float[Array, "r *P"]:
        """Dual coefficients on the landmarks: f(x) = sum_i g(x, l_i) a_i / r."""
        z = as_columns("z", z, len(self.eigenvalues), self.dtype)
        columns = self.eigenvalues[1:, None] * z[1:].reshape(len(z) - 1, -1)
        duals = jax.scipy.linalg.solve_triangular(
            self.factor.T, self._by_features(columns), lower=False
        )
        return len(duals) * duals.reshape(-1, *z.shape[1:])

    def _by_features(self, z: Float[Array, "r P"]) -> Float[Array, "r P"]:
        """What phi(x) is multiplied with, for values of coordinates z: U (K d)^{-1/2} z."""
        d = self.eigenvalues[1:, None]
        roots = jnp.where(d > 0, jnp.sqrt(jnp.where(d > 0, d, 1) * self.num_points), jnp.inf)
        return matmul(self.eigenvectors, z / roots)

    def _features_on_points(self, unless: str) -> Any:
        """The start of every block of points, and phi on it."""
        if self.source is None:
            raise ValueError(f"{unless}.")
        size, start = choose_size(self.source, self.landmarks), 0
        description = f"Values on {self.num_points} points"
        for block in track(self.source.blocks(size), description, -(-self.num_points // size)):
            values = kernel_block(self.source.kernel, self.landmarks, jnp.asarray(block.x))
            yield start, features(self.factor, values)
            start += len(block.x)

    def describe_floor(self) -> str:
        """For a message: why there is a floor, and the ways out."""
        return (
            f"the functions of {len(self.landmarks)} landmarks cannot express the rest (more "
            "landmarks lower it; a fixed multiplier= has no floor)"
        )

    def __repr__(self) -> str:
        if is_traced(self):
            return super().__repr__()
        return f"{super().__repr__()[:-1]}, {len(self.landmarks)} landmarks)"


_NO_POINTS = (
    "values on the training points of a Nystrom spectrum take a pass over them, and this one (read "
    "from a file, or changed by a transformation) does not know them any longer"
)
_OTHER_LABELS = (
    "y must be the labels that this Nystrom spectrum was made from: it knows others by a pass over "
    "its points only, outside of jit, vmap and derivatives"
)


def nystrom(
    kernel: KernelFunction,
    x: Any,
    y: ArrayLike | None = None,
    *,
    landmarks: Any,
    key: Array | None = None,
    selection: Selection = "uniform",
    path: str | Path | None = None,
    block_size: int | None = None,
    dtype: DTypeLike | None = None,
) -> NystromSpectrum:
    """The spectrum of a kernel's Gram matrix as far as the functions of a few landmarks reach.

    One pass over the points, K m^2 operations and O(m^2) memory; no K x K matrix. What it gives is
    exact for the kernel g'(x, x') = phi(x) . phi(x'), which is g where all points are landmarks;
    ``spectrum.lost`` estimates how far G' is from G. The result goes into
    :func:`sdntk.distill_spectrum`, with its own labels ``spectrum.labels`` or, at the cost of
    another pass, with others; degrees of freedom are exact; predictions need landmarks alone.

    A tolerance below the floor, the mean square of the labels' part outside the landmarks' space,
    is infeasible, and with noisy labels the floor is high; fixed multipliers have none.

    The points are shared by local devices and by processes started with ``jax.distributed``, which
    must all call alike. Work of more than two seconds shows a progress bar.

    Args:
        kernel: g, a function of (n1, ...) and (n2, ...) arrays to (n1, n2).
        x: points, shape (K, ...), read block by block from memory or a memory map; or a function
            without arguments that yields blocks (x, y), the same in every call: it is called once
            more before the pass, to draw points, with a path once more for the first of them, and
            once for fitted values, if they are asked for.
        y: labels, shape (K,) or (K, Q); left out where ``x`` is a function.
        landmarks: how many points, m, to take; or points, shape (m, ...). Those that depend on
            others in the kernel's space, up to rounding, are left out.
        key: draws the landmarks, and the points on which ``lost`` is estimated;
            ``jax.random.key(0)`` when left out.
        selection: "uniform", points at random; or "pivoted", random pivots of a Cholesky factor on
            ten times as many random points: likely ones are those that the ones before explain
            least (m steps more, of 10 m kernel values and products).
        path: a file for the sums as they grow. The same call resumes a pass that was killed, and
            ends with the same bits.
        block_size: points at a time; chosen when left out.
        dtype: to which the kernel's values are rounded, and in which phi is computed, e.g.
            ``jnp.float32``, whose products take less time; the kernel's own when left out. Values
            are computed in float32, too, where that is as good as rounding them, as some of the
            points show (:func:`sdntk.kernel_operator`). Sums are float64 whatever it is.

    Returns:
        A :class:`sdntk.NystromSpectrum`.

    Raises:
        TypeError, ValueError: bad input, each named; a kernel that is indefinite on the landmarks
            or not finite; a file of another pass. MemoryError: m^2 numbers do not fit.

    Source: Williams and Seeger 2001, *Using the Nystrom Method to Speed Up Kernel Machines*;
    docs/theory.md, section 11.

    Example:
        >>> from sdntk import distill_spectrum, kernels
        >>> x = jax.random.normal(jax.random.key(1), (2000, 3))
        >>> y = jnp.sin(x[:, 0])
        >>> spectrum = nystrom(kernels.rbf(2.0), x, y, landmarks=100)
        >>> run = distill_spectrum(spectrum, y, multiplier=1e-4, rounds=3)
        >>> bool(spectrum.lost.norm < 0.001), run.fitted.shape
        (True, (3, 2000))
    """
    require_function("kernel", kernel, "two arrays of points")
    key = jax.random.key(0) if key is None else as_key("key", key)
    as_choice("selection", selection, get_args(Selection))
    size = None if block_size is None else as_count("block_size", block_size, at_least=1)
    kept_as = None if dtype is None else as_float_dtype("dtype", dtype)
    file = None if path is None else as_path("path", path)
    source = PointBlocks(kernel, x, y, in_double=kept_as is not None)

    chosen, sample = _draw(source, landmarks, key, selection, kept_as)
    sums, labels = sum_over_points(
        source, chosen, sample, block_size=size, dtype=kept_as, path=file
    )
    spectrum = spectrum_of_sums(chosen, sums.gram, sums.labels, labels, float(len(labels)))
    return dataclasses.replace(spectrum, lost=_lost(kernel, chosen, sample), source=source)


def spectrum_of_sums(
    landmarks: Landmarks,
    gram: Float[np.ndarray, "r r"],
    by_features: Float[np.ndarray, "r Q"],
    labels: Float[np.ndarray, "K *Q"],
    total: float,
) -> NystromSpectrum:
    """The spectrum from Phi Phi^T and Phi y; of weighted points from Phi S^2 Phi^T, Phi S^2 y and
    S y, with S = diag(sqrt(w)) and ``total`` the sum of the weights. What is lost is not known.
    """
    with jax.enable_x64(True):
        d, vectors = map(np.asarray, jnp.linalg.eigh(jnp.asarray(gram / total)))
    # Values are rounded each by itself: in the spectral norm that is about epsilon d_max, whatever
    # their number.
    kept = d > max(len(d) * np.finfo(d.dtype).eps, landmarks.epsilon) * d[-1]
    own_dtype = jnp.result_type(float)
    eigenvalues, basis = (jnp.asarray(v, own_dtype) for v in (np.where(kept, d, 0), vectors))
    y = jnp.asarray(labels, own_dtype)
    z = _coordinates(eigenvalues, basis, jnp.asarray(by_features, own_dtype), y, total)
    return NystromSpectrum(
        eigenvalues=jnp.concatenate([jnp.zeros(1, own_dtype), eigenvalues]),
        rotated_labels=z,
        eigenvectors=basis,
        landmarks=jnp.asarray(landmarks.points),
        factor=jnp.asarray(landmarks.factor, own_dtype),
        labels=y,
        lost=Lost(jnp.asarray(jnp.nan), jnp.asarray(jnp.nan), np.int64(0)),
        num_asked=landmarks.num_asked,
        machine_epsilon=landmarks.epsilon,
    )


def _draw(
    source: PointBlocks, landmarks: Any, key: Array, selection: Selection, dtype: np.dtype | None
) -> tuple[Landmarks, Float[np.ndarray, "n ..."]]:
    """The landmarks, and points on which to see what they lack."""
    for_landmarks, for_sample, for_pivots = jax.random.split(key, 3)
    if np.ndim(landmarks):
        points = check_points(source.kernel, "landmarks", landmarks)
        _require_memory(len(points), len(points))
        [sample] = source.draw([(SAMPLE, for_sample)])
        require_one_shape("landmarks", points, "x", sample)
        return landmarks_at(source.kernel, source.cast(points), dtype), sample
    number = as_count("landmarks", landmarks, at_least=1)
    candidates = number * (CANDIDATES if selection == "pivoted" else 1)
    _require_memory(number, candidates)
    drawn, sample = source.draw([(candidates, for_landmarks), (SAMPLE, for_sample)])
    if number > len(drawn):
        raise ValueError(
            f"landmarks must be at most {len(drawn)}, the number of points; got {number}."
        )
    if selection == "pivoted":
        drawn = drawn[pivots(source.kernel, drawn, number, for_pivots)]
    return landmarks_at(source.kernel, drawn, dtype)._replace(num_asked=number), sample


def _require_memory(number: int, candidates: int) -> None:
    """For sums, the factor, eigenvectors and work space, and for what pivots are chosen from."""
    shape = number, 4 * number + (candidates if candidates > number else 0)
    _memory.require_memory(
        _memory.matrix_bytes(shape, np.float64),
        f"A spectrum of {number} landmarks",
        ways_out='fewer landmarks, or selection="uniform"',
    )


def _coordinates(
    d: Float[Array, " r"],
    vectors: Float[Array, "r r"],
    by_features: Float[Array, "r Q"],
    y: Float[Array, "K *Q"],
    total: float,
) -> Float[Array, "n *Q"]:
    """Rotated labels from Phi y; the first is the norm of what lies outside."""
    unit = unit_of(y, joint=False)
    norms = jnp.sqrt(jnp.sum(in_unit(y, unit) ** 2, axis=0))
    projected = in_unit(matmul(vectors.T, by_features).reshape(len(d), *y.shape[1:]), unit)
    roots = as_column(jnp.sqrt(jnp.where(d > 0, d, jnp.inf) * total), projected)
    z = projected / roots
    outside = norms**2 - jnp.sum(z**2, axis=0)
    is_rounding = outside <= len(d) * jnp.finfo(y.dtype).eps * norms**2
    first = jnp.sqrt(jnp.where(is_rounding, 0, outside))
    return out_of_unit(jnp.concatenate([first[None], z]), unit)


def _lost(kernel: KernelFunction, landmarks: Landmarks, sample: Float[np.ndarray, "n ..."]) -> Lost:
    """What the landmarks' space lacks, seen on a few points."""
    x = check_points(kernel, "x", sample)
    values = np.asarray(kernel_block(kernel, x, x), np.float64)
    between = np.asarray(kernel_block(kernel, jnp.asarray(landmarks.points), x), np.float64)
    phi = np.asarray(features(jnp.asarray(landmarks.factor), jnp.asarray(between)))
    missing = values - phi.T @ phi
    trace, norm = (
        jnp.asarray(max(0.0, of(missing) / of(values)) if of(values) > 0 else 0.0)
        for of in (np.trace, _norm)
    )
    return Lost(trace, norm, np.int64(len(x)))


def _norm(matrix: Float[np.ndarray, "n n"]) -> float:
    return float(np.abs(np.linalg.eigvalsh(matrix)).max())
