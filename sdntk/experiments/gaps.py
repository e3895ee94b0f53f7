"""How far a network of finite width is from its kernel: outputs, classes, tangent kernels."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from sdntk.kernels.neural import EmpiricalNTK
from sdntk.training.ensemble import Ensemble


def agreement(
    name: str,
    network: Float[Array, "n Q"],
    kernel: Float[Array, "n Q"],
    labels: Float[Array, "n Q"],
) -> dict[str, float]:
    """How close the outputs of network and kernel are on one set of points, and to the labels."""
    of_network, of_kernel, of_labels = map(_classes, (network, kernel, labels))
    return {
        f"gap_{name}": _relative_distance(network, kernel),
        f"agreement_{name}": float(np.mean(of_network == of_kernel)),
        f"accuracy_{name}": float(np.mean(of_network == of_labels)),
        f"kernel_accuracy_{name}": float(np.mean(of_kernel == of_labels)),
    }


def _relative_distance(a: Float[Array, "m n"], b: Float[Array, "m n"]) -> float:
    """|a - b| / |b| in the Frobenius norm."""
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def _classes(values: Float[Array, "n Q"]) -> np.ndarray:
    """The largest output, or the sign of a single one."""
    if values.shape[1] == 1:
        return np.asarray(values[:, 0] > 0)
    return np.asarray(jnp.argmax(values, axis=1))


def kernel_changes(network: Ensemble, x: Array, infinite: Float[Array, "K K"]) -> dict[str, float]:
    """Relative Frobenius distances between the tangent kernels at the start, at the end, and at
    infinite width.
    """
    initial, final = (
        EmpiricalNTK(params, (network.model_state,), network.apply_fn, None, 3)(x, x)
        for params in (network.initial_params, network.params)
    )
    return {
        "kernel_change": _relative_distance(final, initial),
        "kernel_error_initial": _relative_distance(initial, infinite),
        "kernel_error": _relative_distance(final, infinite),
    }


#: Test points whose outputs are kept for a figure.
SHOWN = 50


def side_by_side(kernel: Float[Array, "n Q"], network: Float[Array, "n Q"]) -> pd.DataFrame:
    """A row for each of the first points and each output."""
    points, outputs = np.indices(kernel[:SHOWN].shape).reshape(2, -1)
    columns = {
        "point": points,
        "output": outputs,
        "kernel": np.asarray(kernel[:SHOWN]).ravel(),
        "network": np.asarray(network[:SHOWN]).ravel(),
    }
    return pd.DataFrame(columns)
