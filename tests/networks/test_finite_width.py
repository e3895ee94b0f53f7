"""Networks of finite width from a description.

Must hold: with the same weights they compute what tests/helpers.py, written from the description
alone, computes; over random weights their tangent kernel and the covariance of their outputs are,
within five standard errors, the kernels of the same description at infinite width; the distance
falls with the root of the width.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import finite_network

from sdntk.architectures import (
    ACTIVATIONS,
    Architecture,
    Flatten,
    convolutional,
    fully_connected,
    myrtle,
)
from sdntk.kernels import empirical_ntk, nngp, ntk
from sdntk.networks import FiniteWidth

RNG = np.random.default_rng(0)
VECTORS, IMAGES = RNG.normal(size=(5, 7)), RNG.normal(size=(4, 8, 8, 3))
WIDE = {
    **{
        name: (fully_connected(2, activation=name, weight_std=1.3, bias_std=0.2), VECTORS[:3], 512)
        for name in ACTIVATIONS
    },
    "convolutional": (convolutional(1, bias_std=0.2), IMAGES[:3, :4, :5], 64),
    "pooling": (
        convolutional(1, readout="pool", activation="erf", filter_shape=(3, 2)),
        IMAGES[:3, :4, :5],
        128,
    ),
    "small Myrtle": (
        Architecture(myrtle().layers[2:5] + myrtle().layers[-4:]),
        IMAGES[:2, :4, :6],
        64,
    ),
}


def network(architecture, x, width, outputs, key=0):
    return FiniteWidth(
        architecture, x.shape[1:], width=width, num_outputs=outputs, rngs=nnx.Rngs(key)
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", WIDE)
def test_they_compute_what_the_description_says(case):
    architecture, x, _ = WIDE[case]
    module = network(architecture, x, 6, 3)
    weights = [
        (layer.kernel[...], jnp.zeros(1) if layer.bias is None else layer.bias[...])
        for layer in module.weighted
    ]
    _, apply = finite_network(architecture, 6, 3)
    np.testing.assert_allclose(module(jnp.asarray(x)), apply(weights, x), rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("case", WIDE)
def test_random_networks_show_the_kernels_of_infinite_width(case):
    architecture, x, width = WIDE[case]
    seeds, x = 30, jnp.asarray(x)
    graph, _, rest = nnx.split(network(architecture, x, width, 16), nnx.Param, ...)

    @jax.jit
    def draw(key):
        params = nnx.split(network(architecture, x, width, 16, key), nnx.Param, ...)[1]
        outputs = nnx.merge(graph, params, rest)(x)
        tangent = empirical_ntk(lambda w, x: nnx.merge(graph, w, rest)(x), params, output=0)
        return tangent(x, x), outputs @ outputs.T / 16

    draws = list(map(draw, jax.random.split(jax.random.key(1), seeds)))
    samples = (np.stack(values) for values in zip(*draws, strict=True))
    for sample, kernel in zip(samples, (ntk, nngp), strict=True):
        error = np.std(sample, axis=0, ddof=1) / np.sqrt(seeds)
        expected = kernel(architecture)(x, x)
        # Finite networks are biased too, by terms of order 1/width.
        np.testing.assert_array_less(
            abs(np.mean(sample, axis=0) - expected), 5 * error + 1 / width * abs(expected).max()
        )
        assert np.max(error) < 0.25 * abs(expected).max()


@pytest.mark.slow
def test_the_tangent_kernel_approaches_the_closed_form():
    architecture, errors = fully_connected(2), []
    expected = ntk(architecture)(VECTORS, VECTORS)
    for width in (16, 128, 1024):  # in theory the error shrinks by the root of 8 each time
        sample = [
            empirical_ntk(network(architecture, VECTORS, width, 1, seed))(VECTORS, VECTORS)
            for seed in range(4)
        ]
        errors.append(
            np.mean([np.linalg.norm(value - expected) for value in sample])
            / np.linalg.norm(expected)
        )
    assert errors[1] < errors[0] / 1.8
    assert errors[2] < errors[1] / 1.8
    assert errors[2] < 0.1


def test_same_seed_same_weights_and_no_bias_without_one():
    first, again, other = (
        network(fully_connected(1), VECTORS, 4, 2, seed)(VECTORS) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    module = network(fully_connected(1), VECTORS, 4, 2)
    assert [layer.bias for layer in module.weighted] == [None, None]
    assert sum(w.size for w in jax.tree.leaves(nnx.state(module, nnx.Param))) == 7 * 4 + 4 * 2


@pytest.mark.usefixtures("single_precision")
def test_float32():
    module = network(convolutional(1, bias_std=0.1), IMAGES, 4, 2)
    assert module(jnp.asarray(IMAGES)).dtype == jnp.float32


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"architecture": "mlp"}, TypeError, "architecture must be"),
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"num_outputs": 2.5}, TypeError, "num_outputs must be an integer"),
        ({"point_shape": 7}, TypeError, "point_shape must be a tuple"),
        (
            {"point_shape": (7,), "architecture": myrtle()},
            ValueError,
            r"point_shape must be \(height, width, channels\).*4 x 4",
        ),
    ],
)
def test_bad_input(change, error, message):
    arguments = {
        "architecture": Architecture((Flatten(), *fully_connected(1).layers[1:])),
        "point_shape": (7,),
    }
    arguments |= {"width": 4, "num_outputs": 2, "rngs": nnx.Rngs(0), **change}
    with pytest.raises(error, match=message):
        FiniteWidth(**arguments)


def test_points_of_another_shape():
    with pytest.raises(ValueError, match=r"x must hold points of shape \(7,\)"):
        network(fully_connected(1), VECTORS, 4, 2)(VECTORS[:, :3])
