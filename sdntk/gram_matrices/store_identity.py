"""What a Gram matrix on disk was made from: checksums of the points, dtypes, and the kernel's
values at a few of the points.
"""

import dataclasses
import hashlib
import math
from typing import Any, get_args, get_origin

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdntk._arguments import every, is_traced
from sdntk.kernels.base import KernelFunction, kernel_block, kernel_precision

#: A kernel's values are compared at this many points of each side, and at the nearest neighbours
#: of those.
_PROBES = 3


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a store was made from, as it is written into it.

    A kernel may be any function, so it is recognised by its values at a few of the points.

    Attributes:
        symmetric: whether the matrix is of one set of points.
        points, points2: checksums of the points of rows and columns.
        computed_in: the dtype of the kernel's values.
        kernel_values: at a few of the points.
        precision: of all of the kernel's values; see :meth:`sdntk.kernels.Kernel.precision`.
    """

    symmetric: bool
    points: str
    points2: str
    computed_in: str
    kernel_values: list[list[float]]
    precision: float

    @classmethod
    def of(
        cls, kernel: KernelFunction, x: Float[Array, "n ..."], x2: Float[Array, "K ..."] | None
    ) -> "Identity":
        """The identity of ``sdntk.gram(kernel, x, x2)``."""
        rows = np.asarray(x)
        columns = rows if x2 is None else np.asarray(x2)
        some_rows, some_columns = _probes(rows, columns)
        values = kernel_block(
            kernel, jnp.asarray(rows[some_rows]), jnp.asarray(columns[some_columns])
        )
        if is_traced(values) or not every(np.isfinite, values):
            raise ValueError(
                "the kernel's values must be finite, and known (not traced), for a Gram matrix "
                "with path."
            )
        checksum = _checksum(rows)
        return cls(
            symmetric=x2 is None,
            points=checksum,
            points2=checksum if x2 is None else _checksum(columns),
            computed_in=str(values.dtype),
            kernel_values=np.asarray(values, np.float64).tolist(),
            precision=float(kernel_precision(kernel, x)),
        )

    @classmethod
    def from_json(cls, value: Any) -> "Identity":
        """An identity as :func:`dataclasses.asdict` gives it, from a file that may be anyone's.

        Raises:
            ValueError: a part is missing, too many or of another type.
        """
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or set(value) != set(kinds):
            raise ValueError(f"its identity must consist of {', '.join(kinds)}")
        for name, kind in kinds.items():
            if not _is_of(kind, value[name]):
                raise ValueError(f"its identity's {name} is not what this library writes")
        if len({len(row) for row in value["kernel_values"]}) != 1:
            raise ValueError("its identity's kernel_values are no matrix")
        if value["precision"] < 0:
            raise ValueError("its identity's precision is negative")
        return cls(**value)

    def same_points(self, theirs: "Identity") -> bool:
        """Whether both matrices are of the same points."""
        mine = (self.symmetric, self.points, self.points2)
        return mine == (theirs.symmetric, theirs.points, theirs.points2)

    def same_values(self, theirs: "Identity") -> bool:
        """Whether both kernels have the same values, up to rounding."""
        mine, other = np.asarray(self.kernel_values), np.asarray(theirs.kernel_values)
        eps = jnp.finfo(self.computed_in).eps
        return mine.shape == other.shape and np.allclose(
            mine, other, rtol=eps**0.5, atol=8 * eps * abs(mine).max()
        )


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a part of an identity is of the type that its field has, and finite."""
    if get_origin(kind) is list:
        (of,) = get_args(kind)
        return isinstance(value, list) and all(_is_of(of, part) for part in value)
    return type(value) is kind and (kind is not float or math.isfinite(value))


def _probes(
    x: Float[np.ndarray, "n ..."], x2: Float[np.ndarray, "K ..."]
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " q"]]:
    """Indices of a few points of x, and of as many of x2 with the nearest neighbours of the former.

    Neighbours, since between distant points many kernels agree.
    """
    rows, columns = (
        np.linspace(0, len(points) - 1, min(_PROBES, len(points))).astype(int) for points in (x, x2)
    )
    probes, flat = x[rows].reshape(len(rows), -1), x2.reshape(len(x2), -1)
    squares = np.einsum("kd,kd->k", flat, flat)
    distances = squares - 2 * probes @ flat.T + np.sum(probes**2, axis=1, keepdims=True)
    distances[distances <= 1e-6 * squares.max()] = np.inf  # the point itself, and its duplicates
    return rows, np.unique([*columns, *distances.argmin(axis=1)])


def _checksum(x: Float[np.ndarray, "n ..."]) -> str:
    """sha256 of an array's dtype, shape and bytes."""
    array = np.ascontiguousarray(x)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()
