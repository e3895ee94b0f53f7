"""The strided convolutional network.

Must hold: outputs are those of sums over windows, at even and odd sizes; weights are normal with
variance 2/fan-in, biases 0; it can memorise labels that have nothing to do with its images.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sdntk
from sdntk import losses, networks

RNG = np.random.default_rng(0)


def convolved(images: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Stride 2, each output the sum over its 3 x 3 window; as many zeros around the image as the
    windows need, the odd one after it.
    """
    sides = [-(-side // 2) for side in images.shape[1:3]]
    missing = [
        max(0, 2 * (out - 1) + 3 - side) for out, side in zip(sides, images.shape[1:3], strict=True)
    ]
    margins = [(count // 2, count - count // 2) for count in missing]
    padded = np.pad(images, ((0, 0), *margins, (0, 0)))
    out = np.zeros((len(images), *sides, filters.shape[-1]))
    for i, j in np.ndindex(*sides):
        window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        out[:, i, j] = np.einsum("nhwc,hwcd->nd", window, filters)
    return out


@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 5, 1), (1, 1, 4)])
def test_outputs_are_sums_over_windows(shape):
    network = networks.StridedCNN(shape, 3, channels=(4, 5), rngs=nnx.Rngs(0))
    images = RNG.normal(size=(6, *shape)).astype(np.float32)
    values = images.astype(float)
    for layer in network.convolutions:
        values = np.maximum(convolved(values, np.asarray(layer.kernel[...], float)), 0)
    expected = values.reshape(6, -1) @ np.asarray(network.head.kernel[...], float)
    np.testing.assert_allclose(network(images), expected, rtol=1e-5, atol=1e-5)


def test_of_no_images_there_are_no_outputs():
    network = networks.StridedCNN((8, 8, 3), 5, rngs=nnx.Rngs(0))
    assert network(jnp.ones((0, 8, 8, 3))).shape == (0, 5)


def test_initial_weights():
    network = networks.StridedCNN((32, 32, 3), 10, channels=(64, 128), rngs=nnx.Rngs(1))
    fans = (3 * 9, 64 * 9, 8 * 8 * 128)
    for layer, fan_in in zip((*network.convolutions, network.head), fans, strict=True):
        weights = np.asarray(layer.kernel[...], float)
        error = np.sqrt(2 / weights.size)  # relative, of a variance of so many
        assert np.var(weights) == pytest.approx(2 / fan_in, rel=5 * error)
        assert not layer.bias[...].any()


@pytest.mark.slow
def test_it_memorises_labels_drawn_at_random():
    x = RNG.normal(size=(100, 12, 12, 3)).astype(np.float32)
    labels = RNG.integers(0, 5, 100)
    training = sdntk.TrainingConfig(
        loss=losses.brier_score, optimiser=optax.adam(1e-3), steps=150, batch_size=25
    )
    y = np.eye(5, dtype=np.float32)[labels]

    def build(rngs):
        return networks.StridedCNN((12, 12, 3), 5, rngs=rngs)

    trained = sdntk.train(build, jax.random.split(jax.random.key(0), 1), x, y, training)
    outputs = trained.ensemble.outputs(x)[0]
    assert np.mean(np.argmax(outputs, -1) == labels) == 1


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 1), (8, 8, 3), (2, 8, 7, 3)])
def test_other_images_are_refused(shape):
    network = networks.StridedCNN((8, 8, 3), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"x must have shape \(n, 8, 8, 3\); its shape is"):
        network(jnp.ones(shape))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": (8, 8)}, r"shape must be \(height, width, channels\)"),
        ({"shape": (8, 0, 3)}, "shape must be"),
        ({"shape": (2**31 - 1, 2, 3)}, "shape must be"),
        ({"num_outputs": 0}, "num_outputs must be"),
        ({"num_outputs": 2**31 - 1}, "num_outputs must be"),
        ({"channels": ()}, "channels must not be empty"),
    ],
)
def test_wrong_sizes_are_refused(wrong, message):
    given = {"shape": (8, 8, 3), "num_outputs": 3, "rngs": nnx.Rngs(0), **wrong}
    with pytest.raises(ValueError, match=message):
        networks.StridedCNN(given.pop("shape"), given.pop("num_outputs"), **given)
