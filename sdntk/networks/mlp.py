"""A fully connected network with He's initial weights, the one that small studies train."""

import itertools
import math
from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_count, as_real_array, require_type
from sdntk.networks.blocks import as_counts


class MLP(nnx.Module):
    """Hidden layers of ReLU units, and a linear readout; points are flattened first.

    Weights are normal (truncated at two standard deviations) with variance 2/fan-in, and biases 0
    (He et al. 2015). (For the NTK
    parameterisation see :class:`sdntk.networks.FiniteWidth`.)

    Args:
        num_inputs: the numbers of one point.
        num_outputs: Q.
        widths: units of each hidden layer, at least one.
        rngs: a Flax NNX random state; its stream ``params`` draws the weights.

    Raises:
        TypeError, ValueError: an argument has another type or is out of range.

    Example:
        >>> network = MLP(64, 10, widths=(256, 256), rngs=nnx.Rngs(0))
        >>> network(jnp.ones((3, 8, 8, 1))).shape
        (3, 10)
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, *, widths: Sequence[int], rngs: nnx.Rngs
    ) -> None:
        require_type("rngs", rngs, nnx.Rngs, "a Flax NNX random state, nnx.Rngs(0)")
        self.num_inputs = as_count("num_inputs", num_inputs, at_least=1)
        hidden = as_counts("widths", widths)
        sizes = (self.num_inputs, *hidden, as_count("num_outputs", num_outputs, at_least=1))
        self.layers = nnx.List(
            nnx.Linear(n, m, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
            for n, m in itertools.pairwise(sizes)
        )

    def __call__(self, x: ArrayLike) -> Float[Array, "n Q"]:
        """The outputs for points, shape (n, ...)."""
        values = as_real_array("x", x)
        shape = values.shape
        if math.prod(shape[1:]) != self.num_inputs or not shape:
            raise ValueError(
                f"x must hold points of {self.num_inputs} numbers; its shape is {shape}."
            )
        values = values.reshape(len(values), self.num_inputs)
        for layer in self.layers[:-1]:
            values = nnx.relu(layer(values))
        return self.layers[-1](values)
