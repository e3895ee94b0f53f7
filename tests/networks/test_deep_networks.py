"""ResNets, VGG and the small network; augmentation.

Must hold: the parameter counts of the literature; the same outputs as a second implementation,
written with shifts and matrix products, at the same weights and running statistics; batch
statistics move in training and are used in evaluation; bfloat16 changes the computation alone.
Augmented images are shifted and mirrored copies, all of them occur, and the key decides which.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sdntk import losses, networks
from sdntk.training.augmentation import MARGIN, crop_and_flip
from sdntk.training.optimisers import gauss_newton
from sdntk.training.state import TrainingConfig
from sdntk.training.train import train

COUNTS = {"resnet18": 11_173_962, "resnet50": 23_520_842, "vgg16": 14_728_266, "small_cnn": 24_458}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    network = nnx.eval_shape(lambda: getattr(networks, name)(10, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))) == COUNTS[name]
    more = nnx.eval_shape(lambda: getattr(networks, name)(100, rngs=nnx.Rngs(0)))
    features = more.head.kernel.shape[0]
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(more, nnx.Param))) == COUNTS[
        name
    ] + 90 * (features + 1)


def convolve(module, x):
    """Convolution and batch normalisation in evaluation mode, by shifts and matrix products."""
    kernel, stride = np.asarray(module.conv.kernel[...], float), module.conv.strides
    stride = stride if isinstance(stride, int) else stride[0]
    size = kernel.shape[0]
    x = np.pad(x, [(0, 0), *[(size // 2, size // 2)] * 2, (0, 0)])
    height, width = ((length - size) // stride + 1 for length in x.shape[1:3])
    total = sum(
        x[:, i : i + stride * height : stride, j : j + stride * width : stride] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )
    if module.conv.bias is not None:
        total = total + np.asarray(module.conv.bias[...], float)
    norm = module.norm
    mean, var, scale, bias = (
        np.asarray(v[...], float) for v in (norm.mean, norm.var, norm.scale, norm.bias)
    )
    return (total - mean) / np.sqrt(var + 1e-5) * scale + bias


def relu(x):
    return np.maximum(x, 0)


def second_opinion(network, x):
    """The network in evaluation mode, in float64."""
    if isinstance(network, networks.VGG):
        for stage in network.stages:
            for layer in stage:
                x = relu(convolve(layer, x))
            n, h, w, c = x.shape
            x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
    else:
        x = relu(convolve(network.stem, x))
        for block in network.blocks:
            values = x
            for layer in block.layers[:-1]:
                values = relu(convolve(layer, values))
            x = relu(
                convolve(block.layers[-1], values)
                + (x if block.shortcut is None else convolve(block.shortcut, x))
            )
    return x.mean((1, 2)) @ np.asarray(network.head.kernel[...], float) + np.asarray(
        network.head.bias[...], float
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_outputs_are_those_of_a_second_implementation(name):
    network = getattr(networks, name)(10, rngs=nnx.Rngs(1))
    keys = iter(jax.random.split(jax.random.key(2), 500))
    for _, module in nnx.iter_modules(
        network
    ):  # running statistics and scales that are not the initial ones
        if isinstance(module, nnx.BatchNorm):
            for leaf in (module.mean, module.var, module.scale, module.bias):
                leaf[...] = leaf[...] + 0.2 * jax.random.uniform(next(keys), leaf.shape, leaf.dtype)
    network.eval()
    x = jax.random.normal(jax.random.key(3), (2, 32, 32, 3), jnp.float32)
    expected = second_opinion(network, np.asarray(x, float))
    np.testing.assert_allclose(network(x), expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    assert network(x).dtype == jnp.float32


@pytest.mark.slow
def test_blocks_that_end_a_stage_halve_the_image():
    sizes = {"resnet18": 4, "resnet50": 4, "vgg16": 1, "small_cnn": 4}
    for name, size in sizes.items():
        shape = nnx.eval_shape(
            lambda name=name: getattr(networks, name)(10, rngs=nnx.Rngs(0)).features(
                jnp.zeros((1, 32, 32, 3), jnp.float32)
            )
        ).shape
        assert shape[1:3] == (size, size)


@pytest.mark.slow
def test_bfloat16_changes_the_computation_alone():
    x = jax.random.normal(jax.random.key(0), (8, 32, 32, 3), jnp.float32)
    exact, rough = (
        networks.small_cnn(10, rngs=nnx.Rngs(0), dtype=dtype) for dtype in (None, jnp.bfloat16)
    )
    for network in (exact, rough):
        network.train()
    a, b = exact(x), rough(x)
    assert a.dtype == b.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rough))} <= {jnp.dtype("float32")}
    assert 0 < float(jnp.abs(a - b).max()) < 0.1


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        networks.resnet18(0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="augment must be None with centred"):
        TrainingConfig(augment=crop_and_flip, centred=True)
    with pytest.raises(ValueError, match="augment must be None"):
        TrainingConfig(augment=crop_and_flip, optimiser=gauss_newton())


@pytest.mark.slow
def test_images_of_other_shapes_are_refused():
    network = networks.vgg16(10, rngs=nnx.Rngs(0))
    for shape in ((1, 31, 32, 3), (1, 32, 32, 1)):
        with pytest.raises(
            ValueError,
            match=r"x must have shape \(n, height, width, 3\), height and width at least 32",
        ):
            network(jnp.zeros(shape, jnp.float32))
    assert networks.small_cnn(10, rngs=nnx.Rngs(0))(jnp.zeros((2, 8, 8, 3), jnp.float32)).shape == (
        2,
        10,
    )


def test_augmented_images_are_shifted_and_mirrored_copies():
    image = jax.random.normal(jax.random.key(0), (1, 6, 6, 2)) + 3
    padded = np.pad(np.asarray(image[0]), [(MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)])
    copies = {}
    for i in range(2 * MARGIN + 1):
        for j in range(2 * MARGIN + 1):
            crop = padded[i : i + 6, j : j + 6]
            copies[crop.tobytes()], copies[crop[:, ::-1].tobytes()] = (i, j, 0), (i, j, 1)
    many = crop_and_flip(jax.random.key(1), jnp.broadcast_to(image, (4000, 6, 6, 2)))
    found = np.array([copies[np.asarray(one).tobytes()] for one in many])
    assert len(np.unique(found, axis=0)) == 2 * 81
    assert abs(found[:, 2].mean() - 0.5) < 0.04
    assert np.abs(found[:, :2].mean(axis=0) - MARGIN).max() < 0.2
    np.testing.assert_array_equal(
        many, crop_and_flip(jax.random.key(1), jnp.broadcast_to(image, (4000, 6, 6, 2)))
    )
    assert (
        many != crop_and_flip(jax.random.key(2), jnp.broadcast_to(image, (4000, 6, 6, 2)))
    ).any()


def test_training_sees_augmented_points_and_looks_see_them_as_they_are():
    """An augmentation that doubles points: a linear model learns half the weight, and its loss on
    the points says so.
    """

    class Linear(nnx.Module):
        def __init__(self, _):
            self.w = nnx.Param(jnp.zeros((1, 1)))

        def __call__(self, x):
            return x @ self.w[...]

    x = jnp.array([[1.0], [2.0], [-1.0]])
    training = TrainingConfig(
        optimiser=optax.sgd(0.05), steps=200, batch_size=3, augment=lambda _, x: 2 * x
    )
    trained = train(Linear, jax.random.split(jax.random.key(0), 2), x, x, training)
    np.testing.assert_allclose(
        trained.ensemble.outputs(x), jnp.broadcast_to(x / 2, (2, 3, 1)), rtol=1e-6
    )
    np.testing.assert_allclose(trained.loss, jnp.mean((x / 2) ** 2), rtol=1e-6)


def test_augmentation_is_new_in_every_step_and_for_every_network():
    """It hands its random number on as the batch: weights then remember what they saw."""

    class Remember(nnx.Module):
        def __init__(self, _):
            self.w = nnx.Param(jnp.zeros((3, 1)))

        def __call__(self, x):
            return x @ self.w[...]

    def noise(key, x):
        return x + jax.random.normal(key, x.shape)

    x = jnp.ones((4, 3))
    settings = {
        "loss": losses.squared_error,
        "optimiser": optax.sgd(0.1),
        "batch_size": 4,
        "augment": noise,
    }
    keys = jax.random.split(jax.random.key(0), 2)
    one, two = (
        train(Remember, keys, x, jnp.ones((4, 1)), TrainingConfig(steps=steps, **settings))
        for steps in (1, 2)
    )
    weights = [np.asarray(jax.tree.leaves(t.ensemble.params)[0]) for t in (one, two)]
    assert (weights[0][0] != weights[0][1]).any()
    assert not np.allclose(weights[1] - weights[0], weights[0], rtol=0.05)
    again = train(Remember, keys, x, jnp.ones((4, 1)), TrainingConfig(steps=2, **settings))
    np.testing.assert_array_equal(jax.tree.leaves(again.ensemble.params)[0], weights[1])
