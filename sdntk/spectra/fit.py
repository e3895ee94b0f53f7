"""A fit: a filter on a spectrum, and what it predicts.

Every method of this library maps rotated labels z to fitted coordinates F(d) z and dual
coefficients F(d)/d z (docs/theory.md, section 5). Whatever has these is a fit: a filter of your own
(:func:`fit_filter`), or a round of self-distillation.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdntk import _archive
from sdntk._arguments import (
    ArrayLike,
    as_float_array,
    as_labels,
    every,
    is_traced,
    require_one_shape,
)
from sdntk._linalg import matmul
from sdntk._pytrees import pytree
from sdntk.gram_matrices.cross_products import cross_product
from sdntk.kernels.base import KernelFunction, as_pytree_kernel, check_points
from sdntk.kernels.precision import in_single_if_sufficient
from sdntk.spectra.base import AbstractSpectrum, as_column
from sdntk.theory.filters import divided_by_eigenvalues
from sdntk.theory.units import linearly

EPS_OF_SINGLE = float(np.finfo(np.float32).eps)


class Predictor:
    """What predicts from dual coefficients a: f(x) = g_x^T a (Mobahi et al. 2020, Prop. 1).

    Attributes:
        spectrum: of the Gram matrix.
        kernel: the kernel, if known (then :meth:`predict` works).
        x: the training points, if known.
    """

    spectrum: AbstractSpectrum
    kernel: Any
    x: Any

    def compute_duals(self) -> Float[Array, "..."]:
        """The dual coefficients, computed anew."""
        raise NotImplementedError

    @functools.cached_property
    def dual_coefficients(self) -> Float[Array, "..."]:
        """Dual coefficients a = V^T F(d)/d z: f(x) = g_x^T a. Computed when first asked for."""
        if is_traced(self):
            return self.compute_duals()
        with jax.ensure_compile_time_eval():  # kept for later: it must not belong to any trace
            return self.compute_duals()

    def predict(self, x_new: ArrayLike) -> Float[Array, "..."]:
        """Predictions f(x) at new points, of every round where there are several.

        Args:
            x_new: points, shape (n, ...).

        Returns:
            f(x_new), shape (n,) or (n, Q), after an axis T for a chain.

        Raises:
            ValueError: bad points, or no kernel is known (use :meth:`predict_from`).
        """
        if self.kernel is None or self.x is None:
            raise ValueError(
                "this run knows no kernel, since it was made from a spectrum only: "
                f"use run.predict_from(sdntk.gram(kernel, x_new, {self._points_of_duals}))."
            )
        return predict_all([self], self.kernel, self.x, x_new)[0]

    def predict_from(self, cross_gram: ArrayLike) -> Float[Array, "..."]:
        """Predictions from ``gram(kernel, x_new, x)``, shape (n, K) (eqs. 16, 44); of landmarks
        from ``gram(kernel, x_new, run.spectrum.landmarks)``, in the order in which it has them.
        """
        duals = self.dual_coefficients
        num_points = duals.shape[self._points_axis]
        cross = as_float_array("cross_gram", cross_gram, dtype=duals.dtype)
        if cross.ndim != 2 or cross.shape[1] != num_points or len(cross) == 0:
            raise ValueError(
                f"cross_gram must have shape (n, {num_points}), as gram(kernel, x_new, "
                f"{self._points_of_duals}) has; its shape is {cross.shape}."
            )
        axis = self._points_axis
        columns = _as_columns(duals, axis)
        everything = np.arange(columns.shape[1])
        return _from_columns(matmul(cross, columns), everything, _other_axes(duals, axis), axis)

    def save(self, path: str | Path) -> None:
        """Write all of it to a file, from which :func:`sdntk.load` reads it again.

        A kernel that is no kernel of this library is left out.

        Args:
            path: the file, NumPy's .npz; one that is there is replaced.
        """
        try:
            _archive.save(path, self)
        except _archive.NotSavedError:
            without: Any = self
            _archive.save(path, dataclasses.replace(without, kernel=None))

    @property
    def _points_of_duals(self) -> str:
        """For a message: the points that dual coefficients are of."""
        return "x" if self.spectrum.dual_points is None else "run.spectrum.landmarks"

    @property
    def _points_axis(self) -> int:
        """Which axis of the dual coefficients is that of the points."""
        return 0


def predict_all(
    fits: Sequence[Predictor],
    kernel: KernelFunction,
    x: Float[Any, "K ..."],
    x_new: ArrayLike,
) -> list[Float[Array, "..."]]:
    """The predictions of several fits at new points, from one pass over the cross-Gram matrix.

    Args:
        fits: of one kernel and the same training points.
        kernel: theirs.
        x: the training points, shape (K, ...), which the kernel takes.
        x_new: points, shape (n, ...).
    """
    new: Any = check_points(kernel, "x_new", x_new)
    require_one_shape("x_new", new, "x", x)
    shapes, used, columns = [], [], []
    for fit in fits:
        # Kept by the fit unless it is one of many.
        duals = fit.dual_coefficients if len(fits) == 1 else fit.compute_duals()
        axis = fit._points_axis
        shapes.append(_other_axes(duals, axis))
        used.append(_columns_in_use(duals, axis))
        columns.append(_as_columns(duals, axis)[:, used[-1]])
    together = jnp.concatenate(columns, axis=1)

    # Fits of values that were kept in float32 need no better ones.
    if all(fit.spectrum.machine_epsilon >= EPS_OF_SINGLE for fit in fits):
        kernel = in_single_if_sufficient(kernel, new, x, np.dtype(np.float32))
    values = cross_product(kernel, new, x, together)

    parts = jnp.split(values, np.cumsum([len(of_fit) for of_fit in used])[:-1], axis=1)
    return [
        _from_columns(part, of_fit, shape, fit._points_axis)
        for part, of_fit, shape, fit in zip(parts, used, shapes, fits, strict=True)
    ]


def _other_axes(duals: Float[Array, "..."], axis: int) -> tuple[int, ...]:
    """Of rounds and outputs."""
    return duals.shape[:axis] + duals.shape[axis + 1 :]


def _columns_in_use(duals: Float[Array, "..."], axis: int) -> Int[np.ndarray, " n"]:
    """Which of :func:`_as_columns` are not zero: collapsed rounds predict 0. All of traced ones."""
    if is_traced(duals):
        return np.arange(duals.size // duals.shape[axis])
    return np.flatnonzero(np.any(np.asarray(duals), axis=axis))


@functools.partial(jax.jit, static_argnums=1)
def _as_columns(duals: Float[Array, "..."], axis: int) -> Float[Array, "K n"]:
    """Dual coefficients with a column for each round and output; ``axis`` is that of the points."""
    columns = jnp.moveaxis(duals, axis, 0)
    return columns.reshape(len(columns), -1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _from_columns(
    values: Float[Array, "m n"], used: Int[Any, " n"], shape: tuple[int, ...], axis: int
) -> Float[Array, "..."]:
    """What :func:`_as_columns` made into columns, of which some were used, for m points and in the
    shape of the other axes.
    """
    columns = jnp.zeros((len(values), math.prod(shape)), values.dtype).at[:, used].set(values)
    return jnp.moveaxis(columns.reshape(len(values), *shape), 0, axis)


@pytree
class SpectralFit(Predictor):
    """A filter on a spectrum: one fit of K points and Q outputs.

    The axis Q is there when the labels have one.

    Attributes:
        spectrum: of the Gram matrix, in a basis of m vectors.
        fitted_coordinates: F(d) z, shape (m,) or (m, Q).
        dual_coordinates: F(d)/d z, likewise; 0 where d = 0.
        filter: F(d), shape (m,) or (m, Q); None for a round on a spectrum without eigenvectors.
        kernel: the kernel, if known (then :meth:`predict` works).
        x: the training points, if known.
        degrees_of_freedom: sum_k d f(x_k)/d y_k, shape () or (Q,), of joint outputs together; None
            where they are not known: on a Krylov spectrum, and of rounds without eigenvectors (then
            ``run.degrees_of_freedom`` has them).
    """

    spectrum: AbstractSpectrum
    fitted_coordinates: Float[Array, "m *Q"]
    dual_coordinates: Float[Array, "m *Q"]
    filter: Float[Array, "m *q"] | None
    kernel: Any = None
    x: Float[Array, "K ..."] | None = None
    degrees_of_freedom: Float[Array, "*Q"] | None = None

    @property
    def fitted(self) -> Float[Array, "K *Q"]:
        """Fitted values f(x_k): V^T F(d) z, shape (K,) or (K, Q). On a Nystrom spectrum they take a
        pass over the points.
        """
        if self.spectrum.has_basis_on_points:
            return _unrotate(self.spectrum, self.fitted_coordinates)
        fitted: Array = linearly(self.spectrum.unrotate, self.fitted_coordinates)
        return fitted

    def compute_duals(self) -> Float[Array, "K *Q"]:
        """Dual coefficients a = V^T F(d)/d z, shape (K,) or (K, Q); on a Nystrom spectrum those of
        its landmarks.
        """
        return _as_duals(self.spectrum, self.dual_coordinates)

    def __repr__(self) -> str:
        shape = self.fitted_coordinates.shape[1:]
        outputs = f", {shape[0]} outputs" if shape else ""
        kernel = "" if self.kernel is None else f", {kernel_name(self.kernel)}"
        return f"SpectralFit({self.spectrum.num_points} points{outputs}{kernel})"


@jax.jit
def _unrotate(spectrum: AbstractSpectrum, z: Float[Array, "m *P"]) -> Float[Array, "K *P"]:
    return linearly(spectrum.unrotate, z)


@jax.jit
def _as_duals(spectrum: AbstractSpectrum, v: Float[Array, "m *P"]) -> Float[Array, "n *P"]:
    return linearly(spectrum.as_duals, v)


def fit_filter(
    spectrum: AbstractSpectrum,
    y: ArrayLike,
    filter: ArrayLike | Callable[[Array], Array],  # noqa: A002 (the contract's name)
    kernel: KernelFunction | None = None,
    x: ArrayLike | None = None,
) -> SpectralFit:
    """A fit by a spectral filter of your own: f = V^T F(D) V y on the training points.

    Its dual coefficients are a = V^T (F(D)/D) V y, 0 where d = 0, and f(x) = g_x^T a anywhere.
    Derivatives by labels and by the filter's parameters are available, those by the Gram matrix are
    refused. On a Krylov spectrum a Ritz value stands for several eigenvalues: there a filter must
    be smooth, and how far it is from that on the Gram matrix itself is not known.

    Args:
        spectrum: what :func:`sdntk.decompose` returns, or :func:`sdntk.krylov` for its own labels.
        y: labels, shape (K,) or (K, Q).
        filter: F, an array of shape (m,) (or (m, Q), one for each output) in the order of
            ``spectrum.eigenvalues``, or a function of d that returns one, such as
            ``lambda d: sdntk.filters.ridge(d, 0.1)``. It must be 0 where d = 0: no function of the
            space has a part there.
        kernel: the kernel of the spectrum, where :meth:`SpectralFit.predict` is wanted.
        x: its training points, shape (K, ...), with the kernel.

    Returns:
        A :class:`SpectralFit` with ``fitted``, ``dual_coefficients``, ``predict`` and
        ``predict_from``.

    Raises:
        TypeError, ValueError: a spectrum of another type or without eigenvectors; wrong shapes, nan
            or inf; labels whose norm overflows; a filter that is not 0 where d = 0; a kernel
            without points, or the reverse.

    Source: Lo Gerfo et al. 2008, *Spectral Algorithms for Supervised Learning*; docs/theory.md,
    section 5.

    Example:
        Iterated Tikhonov regularisation:

        >>> from sdntk import decompose, filters, gram, kernels
        >>> kernel, x = kernels.rbf(0.3), jnp.linspace(0, 1, 20)
        >>> spectrum = decompose(gram(kernel, x))
        >>> twicing = lambda d: filters.iterated_tikhonov(d, 0.01, 2)
        >>> fit = fit_filter(spectrum, jnp.sin(6 * x), twicing, kernel=kernel, x=x)
        >>> fit.predict([0.25, 0.5]).round(2).tolist()
        [0.97, 0.14]
    """
    check_spectrum(spectrum)
    labels = as_labels("y", y, spectrum.num_points, dtype=spectrum.dtype)
    d = spectrum.eigenvalues
    if not spectrum.has_eigenvectors:
        raise ValueError(
            "spectrum must have eigenvectors, on which a filter acts, as what decompose(G) returns "
            f"has; a {type(spectrum).__name__} has none."
        )
    values = _as_filter(filter, d, labels)
    if (kernel is None) != (x is None):
        raise ValueError("kernel and x must be given together, or both be left out.")
    points = None
    if kernel is not None and x is not None:
        points = check_points(kernel, "x", x)
        if len(points) != spectrum.num_points:
            raise ValueError(
                f"x must hold the {spectrum.num_points} training points of the spectrum; it holds "
                f"{len(points)}."
            )
        points = points if spectrum.dual_points is None else spectrum.dual_points
    z = linearly(spectrum.rotate, labels)
    if not is_traced(z) and not every(np.isfinite, z):
        raise ValueError(
            f"y must be smaller: rotated labels overflow in {labels.dtype}. Divide it by a number."
        )
    if spectrum.matrix is not None:
        z = z * refusing_derivatives(spectrum.matrix)
    by_output = values.reshape(*values.shape, *(1 for _ in range(z.ndim - values.ndim)))
    duals = divided_by_eigenvalues(by_output, d) * z
    df = None
    if spectrum.has_all_eigenvalues:
        df = jnp.broadcast_to(jnp.sum(values, axis=0), labels.shape[1:])
    return SpectralFit(spectrum, by_output * z, duals, values, as_pytree_kernel(kernel), points, df)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def refusing_derivatives(
    matrix: Float[Array, "K K"], of: str = "retraining and of a filter's fit"
) -> Float[Array, ""]:
    """1, as a factor of what would have wrong derivatives by the Gram matrix."""
    del of  # for the message of its derivatives
    return jnp.ones((), matrix.dtype)


@refusing_derivatives.defjvp
def _refusing_derivatives_jvp(of: str, primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        f"Derivatives of {of} with respect to the Gram matrix (kernel hyperparameters, points) are "
        "not available: those of distill and distill_spectrum are. What does not depend on it is "
        "held constant by jax.lax.stop_gradient."
    )


def _as_filter(
    value: ArrayLike | Callable[[Array], Array],
    d: Float[Array, " m"],
    labels: Float[Array, "K *Q"],
) -> Float[Array, "m *q"]:
    given = value(d) if callable(value) else value
    values = as_float_array("filter", given, dtype=d.dtype)
    shapes = (d.shape, (*d.shape, *labels.shape[1:]))
    if values.shape not in shapes:
        raise ValueError(
            f"filter must have shape {shapes[0]}, one number for each eigenvalue"
            + (f", or {shapes[1]}, for each output" if labels.ndim == 2 else "")
            + f"; its shape is {values.shape}."
        )
    outside = jnp.where(as_column(d, values) > 0, 0, values)
    if not is_traced(outside) and not every(lambda part: part == 0, outside):
        raise ValueError(
            "filter must be 0 where an eigenvalue is 0, since no function of the space has a part "
            f"there; it reaches {float(np.abs(np.asarray(outside)).max()):g}."
        )
    return values


def check_spectrum(spectrum: Any) -> None:
    """Refuse what is no spectrum.

    Raises:
        TypeError: with its type.
    """
    if not isinstance(spectrum, AbstractSpectrum):
        raise TypeError(
            "spectrum must be what decompose(G), tridiagonalise(G) or krylov(operator, y, ...) "
            f"returns; got {type(spectrum).__name__}."
        )


def kernel_name(kernel: Any) -> str:
    """A kernel for a repr."""
    if isinstance(kernel, jax.tree_util.Partial):
        return getattr(kernel.func, "__name__", repr(kernel.func))
    text = repr(kernel)
    return text if len(text) <= 60 and "\n" not in text else type(kernel).__name__
