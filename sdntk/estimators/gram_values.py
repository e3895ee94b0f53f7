"""A kernel as an estimator takes it: by name, of this library, of scikit-learn, any function of two
arrays of points, or precomputed.

Values are computed for points padded to a class of sizes
(:func:`sdntk.estimators.chains.size_class`), so that code is compiled once for all of a class.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import pdist

from sdntk import kernels
from sdntk._arguments import as_number, shown
from sdntk.architectures import fully_connected
from sdntk.estimators.chains import padded, size_class
from sdntk.kernels.base import LibraryKernel, kernel_block, kernel_precision

#: At most so many different points tell the median distance.
MOST_DISTANCES = 1000
#: What length_scale="auto" tries, times the median distance.
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Predictions are made of at most so many points at a time.
MOST_NEW = 4096


def _ntk(depth: int = 2, **architecture: Any) -> Any:
    return kernels.ntk(fully_connected(depth, **architecture))


def _matern(length_scale: float, nu: float = 1.5) -> Any:
    return kernels.matern(nu, length_scale)


def _polynomial(degree: int = 3, bias: float = 1.0) -> Any:
    return kernels.polynomial(degree, bias)


#: Kernels by name, as functions of their parameters.
WITH_LENGTH_SCALE: dict[str, Callable[..., Any]] = {
    "rbf": kernels.rbf,
    "laplace": kernels.laplace,
    "matern": _matern,
}
WITHOUT: dict[str, Callable[..., Any]] = {
    "linear": kernels.linear,
    "polynomial": _polynomial,
    "ntk": _ntk,
}


def candidates(
    kernel: Any, length_scale: Any, params: Mapping[str, Any] | None, x: Float[np.ndarray, "K *p"]
) -> dict[float | None, Any]:
    """The kernels to choose from, by their length scale; one alone by None where it has none.

    Raises:
        ValueError, TypeError: name the parameter of the estimator.
    """
    if not isinstance(kernel, str) or kernel == "precomputed":
        if params is not None or not _is_default(length_scale):
            name = "length_scale" if params is None else "kernel_params"
            raise ValueError(
                f"{name} must be left out unless kernel is a name of a kernel with parameters; "
                f"kernel is {shown(kernel)}."
            )
        if kernel != "precomputed" and not callable(kernel):
            raise TypeError(
                "kernel must be a name, a kernel of sdntk or scikit-learn, or a function of two "
                f"arrays of points; got {shown(kernel)}."
            )
        return {None: kernel}
    if params is not None and not isinstance(params, Mapping):
        raise TypeError(
            f'kernel_params must be a mapping, such as {{"nu": 2.5}}, or None; got {shown(params)}.'
        )
    named = {**WITH_LENGTH_SCALE, **WITHOUT}
    if kernel not in named:
        names = ", ".join(f'"{name}"' for name in named)
        raise ValueError(f'kernel must be one of {names}, "precomputed"; got "{kernel}".')
    if kernel in WITHOUT:
        if not _is_default(length_scale):
            raise ValueError(f'length_scale must be left out: kernel "{kernel}" has none.')
        return {None: _made(kernel, named[kernel], params)}
    made = functools.partial(_made, kernel, named[kernel], params)
    return {scale: made(length_scale=scale) for scale in _length_scales(length_scale, x)}


def _made(name: str, make: Callable[..., Any], params: Mapping[str, Any] | None, **own: Any) -> Any:
    try:
        return make(**own, **(params or {}))
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(
            f'kernel_params must hold parameters of kernel "{name}" but its length scale; got '
            f"{shown(params)}."
        ) from error


def _is_default(length_scale: Any) -> bool:
    return isinstance(length_scale, str) and length_scale == "median"


def _length_scales(length_scale: Any, x: Float[np.ndarray, "K p"]) -> list[float]:
    if not isinstance(length_scale, str):
        expected = 'must be a positive number, "median" or "auto"'
        return [as_number("length_scale", length_scale, lambda scale: scale > 0, expected)]
    if length_scale not in ("median", "auto"):
        raise ValueError(
            f'length_scale must be a positive number, "median" or "auto"; got "{length_scale}".'
        )
    median = median_distance(x)
    return [median] if length_scale == "median" else [scale * median for scale in SCALES]


def median_distance(x: Float[np.ndarray, "K p"]) -> float:
    """The median distance between different points, of 1,000 at most; 1 where all are equal.

    Equal points count once, so that a point of weight 2 is two points.
    """
    different = np.unique(x, axis=0)
    if len(different) > MOST_DISTANCES:
        evenly = np.linspace(0, len(different) - 1, MOST_DISTANCES).astype(int)
        different = different[evenly]
    if len(different) == 1:
        return 1.0
    median = float(np.median(pdist(different)))
    return median if np.isfinite(median) and median > 0 else 1.0


@dataclasses.dataclass(frozen=True)
class GramValues:
    """Values k(x, x_i) of a kernel, without a factor 1/K.

    Attributes:
        kernel: any of what an estimator takes, but a name other than "precomputed".
        x: training points, or None of a precomputed matrix.
        precision: of the values (:meth:`sdntk.kernels.Kernel.precision`).
    """

    kernel: Any
    x: Float[np.ndarray, "K ..."] | None
    precision: float

    @classmethod
    def of(cls, kernel: Any, x: Float[np.ndarray, "K ..."]) -> "GramValues":
        """``x`` are training points, or a precomputed matrix."""
        if isinstance(kernel, str):
            lost = 0.0 if x.dtype == np.float64 else float(np.finfo(x.dtype).eps * np.abs(x).max())
            return cls(kernel, None, lost)
        points = jnp.asarray(_repeated(x, size_class(len(x))))
        return cls(kernel, x, float(kernel_precision(kernel, points)))

    @property
    def num_points(self) -> int:
        """Of training points, or landmarks; 0 of a precomputed matrix, which does not tell."""
        return 0 if self.x is None else len(self.x)

    def of_training_points(self, matrix: Any = None) -> Float[Any, "m m"]:
        """Among training points, padded."""
        x = matrix if self.x is None else self.x
        size = size_class(len(x))
        return self._values(x, size, size)

    def at_landmarks(self, points: Float[np.ndarray, "r ..."]) -> "GramValues":
        """The same kernel, for predictions from these points alone."""
        return dataclasses.replace(self, x=np.asarray(points))

    def at(self, x_new: Float[np.ndarray, "n ..."]) -> Float[Any, "m K"]:
        """Between new points, padded, and training points, padded."""
        num = x_new.shape[1] if self.x is None else len(self.x)
        return self._values(x_new, size_class(len(x_new)), size_class(num))

    def _values(self, rows: Any, num_rows: int, num_columns: int) -> Float[Any, "r c"]:
        if self.x is None:
            return padded(rows, num_rows, num_columns)
        if isinstance(self.kernel, LibraryKernel):
            # Padded by points that the kernel takes; their values count for nothing.
            checked = self.kernel.check("X", _repeated(rows, num_rows))
            return kernel_block(self.kernel, checked, jnp.asarray(_repeated(self.x, num_columns)))
        values = np.asarray(kernel_block(self.kernel, rows, self.x))
        return padded(values, num_rows, num_columns)


def _repeated(x: Float[np.ndarray, "n ..."], size: int) -> Float[np.ndarray, "m ..."]:
    """Points, with the first one repeated up to a size."""
    return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])


def require_symmetric(matrix: Float[np.ndarray, "K *n"]) -> None:
    """Refuse a precomputed matrix that is none of training points with themselves.

    Raises:
        ValueError: names X.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            'X must be the square matrix of the training points for kernel="precomputed"; its '
            f"shape is {matrix.shape}."
        )
    asymmetry, size = float(np.abs(matrix - matrix.T).max()), float(np.abs(matrix).max())
    if asymmetry > np.finfo(matrix.dtype).eps ** 0.5 * size:
        raise ValueError(
            f'X must be symmetric for kernel="precomputed"; |X - X^T| reaches {asymmetry:.3g} '
            f"where |X| reaches {size:.3g}."
        )
