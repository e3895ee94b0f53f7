"""Runs and spectra in files: what took minutes is not lost with the process."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sdntk import _archive, architectures
from sdntk._arguments import require_function
from sdntk.kernels import KernelFunction, algebra, dot_products, green, stationary
from sdntk.kernels.base import as_pytree_kernel
from sdntk.kernels.neural import InfiniteWidth
from sdntk.spectra.base import AbstractSpectrum, ErrorBounds
from sdntk.spectra.chain import Distillation
from sdntk.spectra.choose import Method
from sdntk.spectra.dense import Spectrum
from sdntk.spectra.fit import SpectralFit
from sdntk.spectra.krylov_spectrum import KrylovSpectrum
from sdntk.spectra.nystrom import Lost, NystromSpectrum
from sdntk.spectra.tridiagonal import TridiagonalSpectrum

_CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Distillation,
        SpectralFit,
        Spectrum,
        TridiagonalSpectrum,
        KrylovSpectrum,
        NystromSpectrum,
        Lost,
        ErrorBounds,
        Method,
        InfiniteWidth,
        stationary.RBF,
        stationary.Matern,
        stationary.Laplace,
        green.BrownianBridge,
        green.BrownianMotion,
        green.CubicSpline,
        green.PeriodicSpline,
        dot_products.Linear,
        dot_products.Polynomial,
        dot_products.Constant,
        algebra.Sum,
        algebra.Product,
        algebra.Scaled,
        algebra.Power,
        algebra.OnColumns,
        architectures.Architecture,
        architectures.Activation,
        architectures.AveragePool,
        architectures.Conv,
        architectures.Dense,
        architectures.Flatten,
        architectures.GlobalAveragePool,
    )
}


def load(path: str | Path, *, kernel: KernelFunction | None = None) -> Any:
    """A run, a fit or a spectrum that its ``save`` has written.

    Kernels of this library, sums and products too, are saved with a run, but for those of finite
    networks and of neural-tangents' own functions; other functions are not, and are given again
    here.

    Args:
        path: the file.
        kernel: for a run whose kernel was not saved.

    Returns:
        What was saved: a :class:`sdntk.Distillation`, :class:`sdntk.SpectralFit`,
        :class:`sdntk.Spectrum`, :class:`sdntk.TridiagonalSpectrum`,
        :class:`sdntk.KrylovSpectrum` or :class:`sdntk.NystromSpectrum`.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it holds something else or is damaged;
            its numbers are in float64 and x64 is off; a kernel is given for what has one or takes
            none.

    Example:
        >>> import tempfile
        >>> from sdntk import datasets, distill, kernels
        >>> x, y = datasets.mobahi_example()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = distill(kernels.cubic_spline(), x, y, tolerance=0.045, rounds=5)
        ...     run.save(f"{folder}/run.npz")
        ...     again = load(f"{folder}/run.npz")
        >>> bool((again.predict([0.25]) == run.predict([0.25])).all())
        True
    """
    if kernel is not None:
        require_function("kernel", kernel, "two arrays of points")
    value = _archive.load(path, _CLASSES)
    try:
        _check_shapes(value)
    except Exception as error:  # of JAX, about shapes; whatever it is, the file is not ours
        raise ValueError(
            f"path {path} does not hold what sdntk has saved, or is damaged: shapes of its arrays "
            f"do not go together ({type(error).__name__})."
        ) from None
    if kernel is None:
        return value
    known = isinstance(value, AbstractSpectrum) or value.kernel is not None
    if known or value.x is None:
        raise ValueError(
            f"kernel must be left out: what {path} holds has one already, or was made from a "
            "spectrum only and knows no points."
        )
    return dataclasses.replace(value, kernel=as_pytree_kernel(kernel))


def _check_shapes(value: Any) -> None:
    """Raise unless the parts go together: only shapes are computed."""
    if isinstance(value, AbstractSpectrum):
        z = jax.ShapeDtypeStruct((_num_vectors(value),), value.dtype)
        duals = jax.eval_shape(lambda spectrum, v: spectrum.as_duals(v), value, z)
        _require(duals.shape == (_num_duals(value),))
        if isinstance(value, NystromSpectrum):
            _require(value.rotated_labels.shape[1:] == value.labels.shape[1:])
            _require(len(value.rotated_labels) == len(value.eigenvalues))
        return
    _require(isinstance(value, Distillation | SpectralFit))
    _check_shapes(value.spectrum)
    duals = jax.eval_shape(lambda run: run.compute_duals(), value)
    _require(value.x is None or len(value.x) == _num_duals(value.spectrum))
    if value.kernel is not None:
        values = jax.eval_shape(value.kernel, value.x[:1], value.x[:1])
        _require(values.shape == (1, 1))
    if isinstance(value, Distillation):
        _check_rounds(value)
    elif value.degrees_of_freedom is not None:
        _require(value.degrees_of_freedom.shape in ((), duals.shape[1:]))


def _check_rounds(run: Distillation) -> None:
    of_rounds = [run.multipliers, run.training_loss, run.norms, run.iterations]
    if run.error_bounds is not None:
        of_rounds += run.error_bounds
    _require(all(array.shape == run.status.shape for array in of_rounds))
    _require(run.active_rounds.shape == run.status.shape[1:])
    duals = jax.eval_shape(lambda run: run.compute_duals(), run)
    if run.known_fitted is not None:
        _require(run.known_fitted.shape == duals.shape)
    else:
        _require(not run.spectrum.has_basis_on_points)
    _require(run.ground_truth_weight.shape in ((), (len(run.status) - 1,)))
    _require(run.filters is None or len(run.filters) == len(run.status))
    _require(jnp.issubdtype(run.status.dtype, jnp.integer))
    _require(run.method is None or isinstance(run.method, Method))
    _require(isinstance(run.method_reason, str))


def _num_vectors(spectrum: AbstractSpectrum) -> int:
    if isinstance(spectrum, TridiagonalSpectrum):  # whose eigenvalues would have to be computed
        return spectrum.num_points
    return len(spectrum.eigenvalues)


def _num_duals(spectrum: AbstractSpectrum) -> int:
    points = spectrum.dual_points
    return spectrum.num_points if points is None else len(points)


def _require(condition: Any) -> None:
    if not condition:
        raise ValueError("parts that do not go together")
