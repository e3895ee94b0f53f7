"""Products with a Gram matrix that its devices hold, of one process or of several."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from sdntk._arguments import is_traced
from sdntk._linalg import matmul
from sdntk.gram_matrices.linear_operator import GramOperator


class Dense(GramOperator):
    """A matrix that fits on its devices."""

    description = "a dense matrix"

    def __init__(self, matrix: Float[Array, "K K"]) -> None:
        self.matrix = matrix
        self.num_points = len(matrix)
        self.dtype = matrix.dtype

    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        v = self._vectors(v)
        same_dtype = self.matrix.dtype == v.dtype
        if same_dtype or is_traced(self.matrix) or len(self.matrix.sharding.device_set) > 1:
            return _dense_product(self.matrix, v)
        return _converted_product(self.matrix, v)


@jax.jit
def _dense_product(matrix: Float[Array, "K K"], v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
    return matmul(matrix.astype(v.dtype), v)


#: Rows that are converted to the vectors' dtype at a time: all at once would take several times as
#: long, and more memory.
CONVERTED_ROWS = 250


@jax.jit
def _converted_product(matrix: Float[Array, "K K"], v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
    count = min(CONVERTED_ROWS, len(matrix))

    def multiply(i: Array, product: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        # The last block may hold rows of the last but one.
        start = jnp.minimum(i * count, len(matrix) - count)
        rows = jax.lax.dynamic_slice_in_dim(matrix, start, count)
        part = matmul(jax.lax.optimization_barrier(rows.astype(v.dtype)), v)
        return jax.lax.dynamic_update_slice_in_dim(product, part, start, 0)

    return jax.lax.fori_loop(0, -(-len(matrix) // count), multiply, jnp.zeros_like(v))


class Shared(GramOperator):
    """A matrix that is sharded over the devices of several processes."""

    description = "a matrix of many processes"
    shared = True

    def __init__(self, matrix: Float[Array, "K K"]) -> None:
        if not isinstance(matrix.sharding, NamedSharding):
            raise TypeError(
                "G, if several processes hold it, must have a NamedSharding; its sharding is "
                f"{matrix.sharding}."
            )
        self.matrix = matrix
        self.num_points = len(matrix)
        self.dtype = matrix.dtype
        everywhere = NamedSharding(matrix.sharding.mesh, PartitionSpec())
        self.product = jax.jit(_dense_product, out_shardings=everywhere)

    def __call__(self, v: Float[Array, "K Q"]) -> Float[Array, "K Q"]:
        # Through the host: an array of this process alone does not go with one of them all, but a
        # NumPy array does.
        vectors = np.asarray(self._vectors(v))
        return jnp.asarray(np.asarray(self.product(self.matrix, vectors)))
