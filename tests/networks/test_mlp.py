"""The fully connected network.

Must hold: outputs are those of matrix products; weights are normal with variance 2/fan-in, biases
0; wide ones have the covariance of theory.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sdntk import kernels, networks
from sdntk.architectures import fully_connected

RNG = np.random.default_rng(0)


def test_outputs_are_those_of_matrix_products():
    network = networks.MLP(12, 3, widths=(7, 5), rngs=nnx.Rngs(0))
    x = RNG.normal(size=(4, 2, 3, 2)).astype(np.float32)
    values = x.reshape(4, 12)
    for layer in network.layers[:-1]:
        values = np.maximum(values @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...]), 0)
    last = network.layers[-1]
    expected = values @ np.asarray(last.kernel[...]) + np.asarray(last.bias[...])
    np.testing.assert_allclose(network(x), expected, rtol=1e-5, atol=1e-6)


def test_initial_weights():
    network = networks.MLP(400, 10, widths=(300, 200), rngs=nnx.Rngs(1))
    for layer, fan_in in zip(network.layers, (400, 300, 200), strict=True):
        weights = np.asarray(layer.kernel[...], float)
        error = np.sqrt(2 / weights.size)  # relative, of a variance of so many
        assert np.var(weights) == pytest.approx(2 / fan_in, rel=5 * error)
        assert not layer.bias[...].any()


def test_the_outputs_of_wide_ones_have_the_covariance_of_theory():
    """That of the Gaussian process: weights of variance 2/fan-in, no biases (Lee et al. 2018)."""
    network = networks.MLP(6, 4000, widths=(2000,), rngs=nnx.Rngs(2))
    x = RNG.normal(size=(5, 6)).astype(np.float32)
    outputs = np.asarray(network(x), float)
    nngp = kernels.nngp(fully_connected(1, weight_std=np.sqrt(2), bias_std=0.0))(x, x)
    # E[(2 relu(u) relu(v))^2] <= 6 var(u) var(v), and a covariance of so many outputs.
    error = np.sqrt(np.outer(np.diag(nngp), np.diag(nngp)) * (6 / 2000 + 2 / 4000))
    assert (np.abs(outputs @ outputs.T / 4000 - nngp) < 4 * error).all()


def test_wrong_points_are_refused():
    network = networks.MLP(12, 3, widths=(7,), rngs=nnx.Rngs(0))
    for x in (jnp.ones((2, 11)), jnp.ones(12), jnp.ones((12, 0)), jnp.float32(1)):
        with pytest.raises(ValueError, match="x must"):
            network(x)
    with pytest.raises(ValueError, match="widths must"):
        networks.MLP(12, 3, widths=(), rngs=nnx.Rngs(0))
    assert jax.eval_shape(network, jnp.ones((0, 12))).shape == (0, 3)
