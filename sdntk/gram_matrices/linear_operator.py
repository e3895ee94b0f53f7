"""What Krylov methods ask of a Gram matrix: its products with vectors."""

import abc

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_columns


class GramOperator(abc.ABC):
    """A symmetric Gram matrix G as a linear operator: ``operator(v)`` is G v.

    Attributes:
        num_points: K.
        dtype: of the values of G. Products are computed in float64 when x64 is on, whatever it is.
        description: where the values come from, in words.
        shared: whether several processes compute each product together, so that all must call.
        precision: the error of the kernel's values beyond the rounding of their dtype, times K that
            of G's; see :meth:`sdntk.kernels.Kernel.precision`.
    """

    num_points: int
    dtype: np.dtype
    description: str
    shared: bool = False
    precision: float = 0.0

    @abc.abstractmethod
    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        """G v."""

    def _vectors(self, v: ArrayLike) -> Float[Array, "K Q"]:
        vectors = as_columns("v", v, self.num_points, jnp.float32, most_axes=2)
        if vectors.ndim != 2:
            raise ValueError(
                f"v must have shape ({self.num_points}, Q), a column for each vector; its shape is "
                f"{vectors.shape}."
            )
        return vectors
