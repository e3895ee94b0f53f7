"""Descriptions of networks.

Must hold: depth counts hidden layers; a description is equal, hashable and repeatable from its repr
and from its config; Myrtle-5, 7 and 10 have the blocks of Shankar et al. 2020; the activations are
the functions that the kernels are of; layers out of order and hyperparameters out of range are
refused in words that name the argument.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from sdntk import architectures
from sdntk.architectures import (
    ACTIVATIONS,
    Activation,
    Architecture,
    AveragePool,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    convolutional,
    fully_connected,
    myrtle,
)

EXAMPLES = {
    "fully connected": fully_connected(),
    "fully connected, erf": fully_connected(2, activation="erf", weight_std=1.5, bias_std=0.05),
    "linear": fully_connected(0),
    "convolutional": convolutional(2, filter_shape=(5, 3)),
    "pooling": convolutional(3, readout="pool"),
    **{f"Myrtle-{depth}": myrtle(depth) for depth in (5, 7, 10)},
}


def test_depth_counts_hidden_layers():
    layers = fully_connected(depth=3).layers
    assert [type(layer) for layer in layers] == [Flatten, *[Dense, Activation] * 3, Dense]
    assert [type(layer) for layer in convolutional(2, readout="pool").layers] == [
        *[Conv, Activation] * 2,
        GlobalAveragePool,
        Dense,
    ]
    assert set(layers[1::2]) == {Dense(weight_std=np.sqrt(2), bias_std=0.0)}


@pytest.mark.parametrize(("depth", "blocks"), [(5, (2, 1, 1)), (7, (2, 2, 2)), (10, (3, 3, 3))])
def test_myrtle_has_the_papers_blocks(depth, blocks):
    layers = myrtle(depth).layers
    letters = {Conv: "C", Activation: "r", AveragePool: "p", GlobalAveragePool: "g", Dense: "D"}
    first, second, third = ("Cr" * count for count in blocks)
    assert "".join(letters[type(layer)] for layer in layers) == f"{first}p{second}p{third}gD"
    assert all(layer.filter_shape == (3, 3) for layer in layers if isinstance(layer, Conv))
    assert sum(isinstance(layer, (Conv, Dense)) for layer in layers) == depth
    assert myrtle(depth).smallest_image == (4, 4)


@pytest.mark.parametrize("name", EXAMPLES)
def test_plain_data(name):
    architecture = EXAMPLES[name]
    assert eval(repr(architecture), vars(architectures)) == architecture
    again = Architecture.from_config(json.loads(json.dumps(architecture.config())))
    assert again == architecture
    assert hash(again) == hash(architecture)
    assert {architecture: 1}[again] == 1
    assert len(set(EXAMPLES.values())) == len(EXAMPLES)


def test_activations():
    x = np.linspace(-3, 3, 13)
    expected = {
        "relu": np.maximum(x, 0),
        "erf": scipy.special.erf(x),
        "gelu": x * scipy.special.ndtr(x),
        "sin": np.sin(x),
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), values, rtol=0, atol=1e-15)


def test_smallest_image():
    assert fully_connected().smallest_image is None
    assert convolutional().smallest_image == (1, 1)
    assert Architecture(
        (AveragePool((2, 3)), AveragePool((1, 2)), Flatten(), Dense())
    ).smallest_image == (2, 6)


CASES = {
    "depth negative": (lambda: fully_connected(-1), ValueError, "depth must be at least 0; got -1"),
    "depth a fraction": (lambda: convolutional(2.5), TypeError, "depth"),
    "no convolution": (lambda: convolutional(0), ValueError, "depth must be at least 1; got 0"),
    "no such Myrtle": (lambda: myrtle(6), ValueError, "depth must be 5, 7 or 10.*got 6"),
    "activation": (
        lambda: fully_connected(activation="tanh"),
        ValueError,
        "activation must be one of 'relu'.*'tanh'",
    ),
    "readout": (
        lambda: convolutional(readout="max"),
        ValueError,
        "readout must be 'flatten' or 'pool'; got 'max'",
    ),
    "weight_std zero": (
        lambda: fully_connected(weight_std=0),
        ValueError,
        "weight_std must be finite and positive; got 0",
    ),
    "weight_std nan": (
        lambda: myrtle(weight_std=np.nan),
        ValueError,
        "weight_std must be finite and positive; got nan",
    ),
    "bias_std negative": (
        lambda: Conv(bias_std=-0.1),
        ValueError,
        "bias_std must be finite and at least 0; got -0.1",
    ),
    "weight_std a vector": (
        lambda: fully_connected(weight_std=[1.0, 2.0]),
        TypeError,
        "weight_std must be a Python number",
    ),
    "filter empty": (lambda: Conv((0, 3)), ValueError, "filter_shape must be at least 1; got 0"),
    "window empty": (lambda: AveragePool((2, 0)), ValueError, "window must be at least 1; got 0"),
    "no readout": (
        lambda: Architecture((Flatten(), Activation())),
        ValueError,
        "must end with Dense.*Activation",
    ),
    "no layers": (lambda: Architecture(()), ValueError, "Flatten or GlobalAveragePool"),
    "not flattened": (
        lambda: Architecture((Conv(), Dense())),
        ValueError,
        "Flatten or GlobalAveragePool.*once",
    ),
    "flattened twice": (
        lambda: Architecture((Flatten(), Flatten(), Dense())),
        ValueError,
        "Flatten.*once",
    ),
    "dense on images": (
        lambda: Architecture((Dense(), Flatten(), Dense())),
        ValueError,
        "before Flatten.*Conv or AveragePool",
    ),
    "conv on vectors": (
        lambda: Architecture((Flatten(), Conv(), Dense())),
        ValueError,
        "after Flatten.*Dense; got Conv",
    ),
    "not a layer": (
        lambda: Architecture.from_config([{"layer": "Max"}]),
        ValueError,
        "config must name.*Dense.*'Max'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    build, error, message = CASES[case]
    with pytest.raises(error, match=message):
        build()
