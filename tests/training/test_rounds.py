"""The chain of rounds with networks.

Must hold: a linearised network (neural-tangents' linearize), trained through the rounds, equals
``distill`` on its empirical kernel to 1e-6 in every round, on training and on new points; with
several outputs, a ridge regression with the whole tangent kernel. Targets, soft, hard and mixed,
are what the network before predicts; every round starts from fresh weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sdntk
from sdntk import losses
from sdntk.architectures import fully_connected
from sdntk.kernels import empirical_ntk, load_neural_tangents, tangent_kernel
from sdntk.networks import FiniteWidth
from sdntk.training.optimisers import gauss_newton
from sdntk.training.rounds import distill_networks, next_targets
from sdntk.training.state import Stop, TrainingConfig
from sdntk.training.train import train_groups

X = jax.random.normal(jax.random.key(0), (15, 4))
NEW = jax.random.normal(jax.random.key(1), (6, 4))
KEYS = jax.random.split(jax.random.key(2), 2)
EXACT = TrainingConfig(
    optimiser=gauss_newton(), centred=True, until_stationary=1e-12, steps=5, check_every=1
)


def erf_network(outputs, rngs):
    return FiniteWidth(
        fully_connected(2, activation="erf"), (4,), width=32, num_outputs=outputs, rngs=rngs
    )


ORIGIN = {
    outputs: nnx.split(erf_network(outputs, nnx.Rngs(7)), nnx.Param, ...) for outputs in (1, 3)
}


def origin(outputs):
    """(apply, weights) of the network that is linearised."""
    graph, weights, rest = ORIGIN[outputs]
    return lambda w, x: nnx.merge(graph, w, rest)(x), weights


class Linearised(nnx.Module):
    """A network's Taylor expansion at one set of weights, from which every training of it
    starts.
    """

    def __init__(self, outputs, rngs):
        del rngs
        self.outputs = outputs
        self.weights = nnx.List([nnx.Param(leaf) for leaf in jax.tree.leaves(origin(outputs)[1])])

    def __call__(self, x):
        apply, weights = origin(self.outputs)
        moved = jax.tree.unflatten(
            jax.tree.structure(weights), [weight[...] for weight in self.weights]
        )
        return load_neural_tangents().linearize(apply, weights)(moved, x)


@pytest.mark.slow
def test_a_linearised_network_is_distill_on_its_empirical_kernel():
    y = jnp.sin(3 * X[:, :1]) + X[:, 1:2]
    run = sdntk.distill(
        empirical_ntk(erf_network(1, nnx.Rngs(7))),
        X,
        y,
        tolerance=0.1 * float(jnp.mean(y**2)),
        rounds=4,
    )
    active = int(run.active_rounds[0])
    assert active >= 3
    penalties = run.multipliers[:active, 0].tolist()
    chain = distill_networks(
        lambda rngs: Linearised(1, rngs), KEYS, X, y, EXACT, rounds=active, penalties=penalties
    )
    for done in chain:
        for points, expected in ((X, run.fitted[done.index]), (NEW, run.predict(NEW)[done.index])):
            for outputs in done.trained.ensemble.outputs(points):
                np.testing.assert_allclose(
                    outputs, expected, rtol=0, atol=1e-6 * float(jnp.abs(expected).max())
                )
        np.testing.assert_allclose(done.trained.loss, run.training_loss[done.index, 0], rtol=1e-6)


@pytest.mark.slow
def test_with_several_outputs_it_is_ridge_regression_with_the_whole_tangent_kernel():
    y, c = jnp.stack([jnp.sin(2 * X[:, 0]), X[:, 1], X[:, 2] * X[:, 3]], axis=1), 0.05
    kernel = tangent_kernel(*origin(3), X)
    trace = np.asarray(kernel).reshape(15, 3, 15, 3).trace(axis1=1, axis2=3) / 3
    np.testing.assert_allclose(trace, empirical_ntk(erf_network(3, nnx.Rngs(7)))(X, X), rtol=1e-10)
    targets = np.asarray(y).ravel()
    chain = distill_networks(
        lambda r: Linearised(3, r), KEYS[:1], X, y, EXACT, rounds=3, penalties=[c / 3, 2 * c / 3, c]
    )
    for done, multiplier in zip(chain, (c, 2 * c, 3 * c), strict=True):
        targets = kernel @ np.linalg.solve(kernel + 15 * multiplier * np.eye(45), targets)
        np.testing.assert_allclose(
            done.trained.ensemble.outputs(X)[0].ravel(), targets, rtol=0, atol=1e-9
        )


@pytest.mark.parametrize(
    ("loss", "targets", "alpha"),
    [
        (losses.squared_error, "soft", 0.0),
        (losses.soft_cross_entropy, "soft", 0.3),
        (losses.hard_cross_entropy, "hard", 0.0),
        (losses.squared_error_of_softmax, "hard", 0.25),
    ],
)
def test_targets_are_what_the_network_before_predicts(loss, targets, alpha):
    y = jax.nn.one_hot(jnp.argmax(X[:, :3], axis=1), 3)
    settings = TrainingConfig(loss=loss, optimiser=optax.adam(1e-2), steps=15)
    build = lambda rngs: erf_network(3, rngs)  # noqa: E731
    options = {"rounds": 3, "targets": targets, "ground_truth_weight": alpha}
    first, *later = distill_networks(build, KEYS, X, y, settings, **options)
    np.testing.assert_array_equal(first.targets, np.stack([y, y]))
    for before, done in zip([first, *later], later, strict=False):
        outputs = np.asarray(before.trained.ensemble.outputs(X))
        if targets == "hard":
            predicted = np.eye(3)[outputs.argmax(-1)]
        else:
            softmax = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
            predicted = outputs if loss is losses.squared_error else softmax
        np.testing.assert_allclose(
            done.targets, alpha * np.asarray(y) + (1 - alpha) * predicted, rtol=1e-12
        )
    chains = [np.asarray(done.trained.ensemble.outputs(NEW)) for done in (first, *later)]
    assert not np.allclose(chains[0][0], chains[0][1])  # another key, other weights
    again = next(iter(distill_networks(build, KEYS[:1], X, y, settings, **options)))
    np.testing.assert_array_equal(
        again.trained.ensemble.outputs(NEW)[0], chains[0][0]
    )  # a chain depends on its own key only


def test_the_temperature_softens_the_targets():
    y = jax.nn.one_hot(jnp.argmax(X[:, :3], axis=1), 3)
    settings = TrainingConfig(loss=losses.soft_cross_entropy, optimiser=optax.adam(1e-2), steps=15)
    options = {"rounds": 2, "ground_truth_weight": 0.3, "temperature": 4.0}
    first, second = distill_networks(lambda r: erf_network(3, r), KEYS, X, y, settings, **options)
    softened = np.exp(np.asarray(first.trained.ensemble.outputs(X)) / 4)
    predicted = softened / softened.sum(-1, keepdims=True)
    np.testing.assert_allclose(second.targets, 0.3 * np.asarray(y) + 0.7 * predicted, rtol=1e-12)


@pytest.mark.parametrize("temperature", [1e-38, 1e-46, 1e-300])
def test_at_the_smallest_temperatures_targets_are_one_hot(temperature):
    outputs = jnp.array([[[1.0, 3.0, 2.0], [-5.0, -5.0, -9.0]]], jnp.float32)
    y = jnp.zeros((2, 3), jnp.float32)
    args = losses.soft_cross_entropy, "soft", 0.0
    targets = next_targets(outputs, y, *args, temperature=temperature)
    np.testing.assert_array_equal(targets, [[[0, 1, 0], [0.5, 0.5, 0]]])


@pytest.mark.usefixtures("as_users_call")
def test_chains_cannot_be_traced():
    def chain(y):
        return distill_networks(lambda r: erf_network(3, r), KEYS, X, y, DIVERGING, rounds=2)

    with pytest.raises(TypeError, match=r"keys, x, y, .* must have values: they cannot be traced"):
        jax.jit(chain)(X[:, :3])


def test_chains_at_once_are_chains_one_by_one():
    settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=15, batch_size=5, check_every=5)
    options = {"rounds": 2, "validation": (NEW, NEW[:, :1])}
    single, together = (
        list(
            distill_networks(
                lambda rngs: erf_network(1, rngs),
                KEYS,
                X,
                X[:, :1],
                settings,
                at_once=at_once,
                **options,
            )
        )
        for at_once in (1, 2)
    )
    for one, other in zip(single, together, strict=True):
        outputs = (done.trained.ensemble.outputs(NEW) for done in (one, other))
        np.testing.assert_allclose(*outputs, rtol=1e-9, atol=1e-12)
        assert one.trained.validation_loss.shape == (2, 3)
        recorded = (done.trained.validation_loss for done in (one, other))
        np.testing.assert_allclose(*recorded, rtol=1e-9)


def test_every_round_starts_from_fresh_weights():
    settings = TrainingConfig(optimiser=optax.sgd(0.0), steps=1)
    chain = distill_networks(
        lambda rngs: erf_network(1, rngs), KEYS, X, X[:, :1], settings, rounds=3
    )
    outputs = np.concatenate([done.trained.ensemble.outputs(NEW)[..., 0] for done in chain])
    assert np.linalg.matrix_rank(outputs) == 6  # none is another


@pytest.mark.slow
def test_a_network_that_diverges_leaves_the_other_chains_as_they_were():
    """Its outputs, which may be no numbers, are nobody's targets; it has diverged in every later
    round.
    """
    y = jnp.stack([X[:, 0], X[:, 1]], axis=1)
    labels = jnp.stack(
        [y, y * 1e250]
    )  # for the second chain alone: given to the rounds as they stand behind the checks
    settings = TrainingConfig(optimiser=optax.sgd(0.05), steps=10)
    build = lambda rngs: erf_network(2, rngs)  # noqa: E731
    alone = list(distill_networks(build, KEYS[:1], X, y, settings, rounds=3))
    options = {"size": 2, "diverged": jnp.array([False, True])}
    both = train_groups(
        build, KEYS, X, labels.at[1, 0].set(jnp.inf), settings, jnp.array(0.0), **options
    )
    assert both.stop.tolist() == [Stop.STEPS, Stop.DIVERGED]
    assert both.steps.tolist() == [10, 0]
    chain = list(distill_networks(build, KEYS, X, y, DIVERGING, rounds=3))
    ends = np.array([done.trained.stop for done in chain])
    assert (ends[:, 0] == Stop.DIVERGED).any()
    first = int(np.argmax(ends[:, 0] == Stop.DIVERGED))
    assert (ends[first:, 0] == Stop.DIVERGED).all()
    assert chain[-1].index == 2
    assert np.isfinite(alone[2].trained.loss).all()


#: Long steps on a loss without bounds: what diverges in the first round.
DIVERGING = TrainingConfig(optimiser=optax.sgd(1e3), steps=200)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": X[:3]}, r"y must have shape \(15, Q\)"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"targets": "hard", "y": X[:, :1]}, "targets must be 'soft' where y has a single output"),
        ({"targets": "warm"}, "targets must be 'soft' or 'hard'; got 'warm'"),
        ({"ground_truth_weight": 2.0}, "ground_truth_weight must lie between 0 and 1"),
        ({"penalties": [1.0]}, "penalties must hold 2 numbers"),
        ({"temperature": 2.0}, "temperature must be 1 with squared_error and with hard targets"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"at_once": 0}, "at_once must be at least 1"),
        ({"validation": (NEW, NEW[:3])}, r"validation's y must have shape \(6, 4\)"),
    ],
)
def test_bad_input(change, message):
    arguments = {
        "build": lambda rngs: erf_network(4, rngs),
        "keys": KEYS,
        "x": X,
        "y": X,
        "training": TrainingConfig(steps=1),
    }
    with pytest.raises(ValueError, match=message):
        distill_networks(**(arguments | {"rounds": 2} | change))
