"""What a Gram matrix on disk was made from: checksums of the points, dtypes, and the kernel's
values at a few of the points.
"""

import dataclasses
import hashlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdntk._arguments import every, is_traced
from sdntk.gram_matrices.tiles import as_values
from sdntk.kernels import KernelFunction

#: How many points of each side, beside neighbours, the kernel is known by.
_PROBES = 3


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a store was made from. A kernel, which may be any function, is known by its values at a
    few of the points.
    """

    symmetric: bool
    points: str
    points2: str
    computed_in: str
    kernel_values: list[list[float]]

    @classmethod
    def of(cls, kernel: KernelFunction, points: tuple[Any, Any], symmetric: bool) -> "Identity":
        rows, columns = _probes(*map(np.asarray, points))
        values = as_values(
            kernel(jnp.asarray(rows), jnp.asarray(columns)), (len(rows), len(columns))
        )
        if is_traced(values) or not every(np.isfinite, values):
            raise ValueError(
                "the kernel's values must be finite, and known (not traced), for a Gram matrix "
                "with path."
            )
        points1, points2 = (_checksum(x) for x in (points[:1] * 2 if symmetric else points))
        return cls(
            symmetric, points1, points2, str(values.dtype), np.asarray(values, np.float64).tolist()
        )

    def same_values(self, theirs: "Identity") -> bool:
        mine, other = np.asarray(self.kernel_values), np.asarray(theirs.kernel_values)
        eps = jnp.finfo(self.computed_in).eps
        return mine.shape == other.shape and np.allclose(
            mine, other, rtol=eps**0.5, atol=8 * eps * abs(mine).max()
        )


def _probes(x: np.ndarray, x2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A few points of x, and of x2 as many and the nearest neighbour of each: between distant
    points many kernels agree.
    """
    some = [
        np.linspace(0, len(points) - 1, min(_PROBES, len(points))).astype(int) for points in (x, x2)
    ]
    rows, flat = x[some[0]].reshape(len(some[0]), -1), x2.reshape(len(x2), -1)
    squares = np.einsum("kd,kd->k", flat, flat)
    distances = squares - 2 * rows @ flat.T + np.sum(rows**2, axis=1, keepdims=True)
    distances[distances <= 1e-6 * squares.max()] = np.inf  # the point itself, and its duplicates
    return x[some[0]], x2[np.unique([*some[1], *distances.argmin(axis=1)])]


def _checksum(x: Any) -> str:
    """sha256 of an array's dtype, shape and bytes."""
    array = np.ascontiguousarray(x)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()
