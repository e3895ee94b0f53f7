"""Networks of other libraries.

Must hold: a Flax NNX module, a Linen module and a plain pair (init, apply) with the same weights
give the same chain to 1e-6. A second chain compiles nothing, however its equal networks are made.
Networks in a file have the same outputs in a fresh process, batch statistics included. A file takes
no more memory than its size, whatever it claims. What makes no networks is refused by name.
"""

import dataclasses
import itertools
import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from helpers import BatchNormNetwork

from sdntk import _archive, losses
from sdntk.training.ensemble import SavedNetworks, initialise, load
from sdntk.training.rounds import distill_networks
from sdntk.training.state import TrainingConfig
from sdntk.training.train import train

X = jax.random.normal(jax.random.key(0), (20, 5))
Y = jnp.sin(X[:, :3])
SINGLE = X.astype(jnp.float32)  # as Flax NNX's own layers are
KEYS = jax.random.split(jax.random.key(1), 2)
DOUBLE = {"param_dtype": jnp.float64}


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = jnp.tanh(linen.Dense(8, **DOUBLE)(x))
        return linen.Dense(3, **DOUBLE)(hidden)


def initial(key):
    """The weights of all three networks: those that Linen draws."""
    return Linen().init(key, X[:1])["params"]


def apply(params, x):
    first, last = params["Dense_0"], params["Dense_1"]
    hidden = jnp.tanh(x @ first["kernel"] + first["bias"][None])
    return hidden @ last["kernel"] + last["bias"][None]


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.weights = nnx.data(jax.tree.map(nnx.Param, initial(rngs.params.key[...])))

    def __call__(self, x):
        return apply(jax.tree.map(lambda param: param[...], self.weights, is_leaf=is_param), x)


def is_param(value):
    return isinstance(value, nnx.Param)


#: The same network in three libraries, each made anew.
BUILDS = {
    "nnx": lambda: lambda rngs: NNX(rngs),
    "linen": lambda: Linen(),
    "pair": lambda: (lambda key: initial(key), apply),
}


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.slow_cases
def test_one_chain_in_three_libraries(batch_size):
    settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=50, batch_size=batch_size)
    by_nnx, by_linen, by_pair = (
        [
            done.trained.ensemble.outputs(X)
            for done in distill_networks(build(), KEYS, X, Y, settings, rounds=3)
        ]
        for build in BUILDS.values()
    )
    np.testing.assert_allclose(by_linen, by_nnx, rtol=0, atol=1e-6)
    np.testing.assert_allclose(by_pair, by_nnx, rtol=0, atol=1e-6)
    assert by_nnx[0].dtype == jnp.float64
    assert not np.allclose(by_nnx[0], by_nnx[1], atol=1e-2)


@pytest.mark.parametrize("library", BUILDS)
@pytest.mark.slow_cases
def test_a_second_chain_compiles_nothing(library, caplog):
    """With other seeds, other numbers, and an equal network that is made by a new function."""
    settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=5, batch_size=8, until_loss=1e-9)

    def compiled(seed):
        keys = jax.random.split(jax.random.key(seed), 2)
        caplog.clear()
        with jax.log_compiles():
            chain = list(distill_networks(BUILDS[library](), keys, X + seed, Y, settings, rounds=2))
            jax.block_until_ready([done.trained.ensemble.outputs(X) for done in chain])
        return [line for line in caplog.messages if line.startswith("Finished XLA compilation")]

    jax.clear_caches()
    assert compiled(0)
    assert not compiled(1)


class Modern(linen.Module):
    """Batch statistics and dropout."""

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Dense(16, **DOUBLE)(x)
        x = linen.BatchNorm(use_running_average=not train, **DOUBLE)(x)
        x = linen.Dropout(0.2, deterministic=not train)(linen.relu(x))
        return linen.Dense(3, **DOUBLE)(x)


def test_batch_statistics_of_linen_move_and_dropout_ends_with_training():
    settings = TrainingConfig(
        loss=losses.soft_cross_entropy, optimiser=optax.adam(1e-2), steps=60, batch_size=10
    )
    labels = jax.nn.one_hot(jnp.argmax(X[:, :3], axis=1), 3)
    trained = train(Modern(), KEYS, X, labels, settings).ensemble
    outputs = trained.outputs(X)
    np.testing.assert_allclose(outputs, trained.outputs(X, batch_size=7), rtol=1e-12)
    assert np.mean(np.argmax(outputs, -1) == np.argmax(labels, -1)[None]) > 0.8
    module, variables = trained.module(1)
    assert np.abs(variables["batch_stats"]["BatchNorm_0"]["mean"]).max() > 1e-3
    # Linen keeps batch statistics in float32.
    np.testing.assert_allclose(module.apply(variables, X), outputs[1], rtol=1e-5)
    before, after = (network.model_state["key"] for network in (fresh(Modern()), trained))
    assert not np.array_equal(*map(jax.random.key_data, (before, after)))  # other units each step


def fresh(build):
    return initialise(build, KEYS, X)


def test_members_as_their_own_library_has_them():
    settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=3)
    networks = {
        name: train(build(), KEYS, X, Y, settings).ensemble for name, build in BUILDS.items()
    }
    for network in networks.values():
        assert len(network) == 2
    of_pair, params = networks["pair"].module(1)
    np.testing.assert_allclose(of_pair(params, X), networks["pair"].outputs(X)[1], rtol=1e-12)
    by_nnx = train(BatchNormNetwork, KEYS, SINGLE, Y, settings).ensemble
    np.testing.assert_allclose(by_nnx.module(0)(SINGLE), by_nnx.outputs(SINGLE)[0], rtol=1e-5)
    with pytest.raises(ValueError, match="index must be at most 1; got 2"):
        by_nnx.module(2)


#: Networks in files: by what they are made, and whether they are centred.
SAVED = {
    "nnx": (BatchNormNetwork, False),
    "linen": (Modern(), False),
    "pair": (BUILDS["pair"](), False),
    "centred": (BUILDS["nnx"](), True),
}

READ = """
    import json, sys
    import jax
    jax.config.update("jax_enable_x64", True)
    sys.path[:0] = sys.argv[2:]
    from test_adapters import SAVED, SINGLE, load
    outputs = {
        name: load(f"{sys.argv[1]}/{name}", build).outputs(SINGLE).tolist()
        for name, (build, _) in SAVED.items()
    }
    print(json.dumps(outputs))
"""


@pytest.mark.slow
def test_networks_in_a_file_have_the_same_outputs_in_a_fresh_process(tmp_path, request):
    outputs = {}
    for name, (build, centred) in SAVED.items():
        settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=20, centred=centred)
        networks = train(build, KEYS, SINGLE, Y, settings).ensemble
        networks.save(tmp_path / name)
        outputs[name] = networks.outputs(SINGLE)
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READ), tmp_path, *request.path.parents[:2]],
        capture_output=True,
        text=True,
        check=True,
    )
    for name, read in json.loads(ran.stdout).items():
        np.testing.assert_allclose(read, outputs[name], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", SAVED)
def test_networks_in_a_file_are_the_networks(name, tmp_path):
    build, centred = SAVED[name]
    settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=5, centred=centred)
    networks = train(build, KEYS, SINGLE, Y, settings).ensemble
    networks.save(tmp_path / "networks")
    read = load(tmp_path / "networks", build)
    np.testing.assert_array_equal(read.outputs(SINGLE), networks.outputs(SINGLE))
    assert jax.tree.structure(read) == jax.tree.structure(networks)


def test_files_of_other_networks(tmp_path):
    path = tmp_path / "networks"
    fresh(BUILDS["pair"]()).save(path)
    wide = (lambda key: {**initial(key), "more": jnp.ones(2)}, apply)
    with pytest.raises(ValueError, match=r"build must make the networks that .* params\['more'\]"):
        load(path, wide)
    with pytest.raises(ValueError, match=r"with params\['Dense_1.*; it makes nothing more"):
        load(path, (lambda key: {"Dense_0": initial(key)["Dense_0"]}, apply))
    with pytest.raises(ValueError, match="which are not of Flax Linen"):
        load(path, Linen())
    whole = _archive.load(path, {"SavedNetworks": SavedNetworks})
    for arrays, message in [
        ((1.0, *whole.arrays[1:]), "does not hold what sdntk has saved"),
        ((whole.arrays[0][:1], *whole.arrays[1:]), "does not hold what sdntk has saved"),
        ([array[:0] for array in whole.arrays], "the number of networks must be at least 1"),
        ((whole.arrays[0].astype(int), *whole.arrays[1:]), "with .*, integers of shape"),
    ]:
        arrays = tuple(arrays)
        _archive.save(path, whole._replace(arrays=arrays))
        with pytest.raises(ValueError, match=message):
            load(path, BUILDS["pair"]())
    path.write_bytes(b"no file of ours")
    with pytest.raises(ValueError, match="does not hold what sdntk has saved"):
        load(path, BUILDS["pair"]())
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing", BUILDS["pair"]())


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (((1, 2**20, 2**20), "float32"), r"of shape \(5, 8\); it makes .* \(1048576, 8\)"),
        (((2**26, 5), "float32"), "the number of points must be at most 1"),
        (((0, 5), "float32"), "the number of points must be at least 1"),
        (((1, 5), "int32"), "the dtype of a point must be a floating-point dtype"),
        (((1, 2**40), "float32"), "each size of a point must be at most"),
        (None, "which are not of Flax Linen"),
    ],
)
def test_a_file_takes_no_memory_for_what_it_claims(point, message, tmp_path):
    """Terabytes, which nobody has."""
    path = tmp_path / "networks"
    fresh(Linen()).save(path)
    saved = _archive.load(path, {"SavedNetworks": SavedNetworks})
    _archive.save(path, saved._replace(point=point))
    with pytest.raises(ValueError, match=message):
        load(path, Linen())


def test_names_of_weights_may_look_alike(tmp_path):
    def init(key):
        first, second = jax.random.normal(key, (2, 5, 3))
        return {"a/b": first, "a": {"b": second}}

    build = (init, lambda params, x: x @ params["a/b"] - 2 * x @ params["a"]["b"])
    networks = fresh(build)
    networks.save(tmp_path / "networks")
    read = load(tmp_path / "networks", build)
    np.testing.assert_array_equal(read.outputs(X), networks.outputs(X))


def test_traced_networks(tmp_path):
    networks, path = fresh(Linen()), tmp_path / "networks"
    for save in (jax.jit, jax.vmap):
        with pytest.raises(TypeError, match="the networks must have values: they cannot be traced"):
            save(lambda traced: traced.save(path))(networks)
    assert not path.exists()
    networks.save(path)
    outputs = jax.jit(lambda x: load(path, Linen()).outputs(x))(X)
    np.testing.assert_allclose(outputs, networks.outputs(X), rtol=1e-12)


@pytest.mark.parametrize("library", BUILDS)
def test_points_that_networks_do_not_take(library):
    message = r"x must hold points that the networks take; for those of shape \(4,\) they raised"
    with pytest.raises(ValueError, match=message):
        fresh(BUILDS[library]()).outputs(X[:, :4])


class Layers(linen.Module):
    """Attributes as users write them."""

    features: list[int]
    options: dict[str, list[int]] = dataclasses.field(default_factory=lambda: {"use": [1]})
    kinds: set[str] = dataclasses.field(default_factory=lambda: {"dense"})

    @linen.compact
    def __call__(self, x):
        for features in self.features:
            x = linen.Dense(features, **DOUBLE)(jnp.tanh(x))
        return x


def test_lists_dicts_and_sets_among_the_attributes_of_linen(tmp_path, caplog):
    settings = TrainingConfig(steps=2)
    networks = train(Layers([8, 3]), KEYS, X, Y, settings).ensemble
    assert networks.outputs(X).shape == (2, 20, 3)
    assert networks.apply_fn != fresh(Layers([9, 3])).apply_fn
    networks.save(tmp_path / "networks")
    read = load(tmp_path / "networks", Layers([8, 3]))
    np.testing.assert_array_equal(read.outputs(X), networks.outputs(X))
    caplog.clear()
    with jax.log_compiles():
        train(Layers([8, 3]), KEYS, X, Y, settings)  # equal, and made anew
    assert not [line for line in caplog.messages if line.startswith("Finished XLA compilation")]


class Activated(nnx.Module):
    """An attribute that is another one in every network, and a state that evaluation moves, too."""

    def __init__(self, rngs):
        self.weights = nnx.Param(initial(rngs.params.key[...])["Dense_0"]["kernel"][:, :3])
        self.activation = lambda x: jnp.tanh(x)
        self.calls = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] += 1
        return self.activation(x @ self.weights[...])


@pytest.mark.parametrize("at_once", [1, 2])
def test_attributes_made_anew_for_each_network(at_once):
    trained = train(Activated, KEYS, X, Y, TrainingConfig(steps=3), at_once=at_once).ensemble
    assert trained.model_state["calls"][...].tolist() == [3, 3]
    weights = trained.params["weights"][...]
    np.testing.assert_allclose(trained.outputs(X), np.tanh(np.asarray(X) @ weights), rtol=1e-12)


class Attribute(linen.Module):
    """Of Linen, but for what a test puts in place of its parts."""

    value: object = None
    state: object = None
    dtype: object = jnp.float64

    @linen.compact
    def __call__(self, x, train=False):
        if self.state and (train or self.is_initializing()):
            self.state(self)
        weights = self.param("w", lambda _: jnp.ones((5, 3), self.dtype))
        return x @ weights


class Trained(linen.Module):
    """A further output in training."""

    @linen.compact
    def __call__(self, x, train):
        outputs = linen.Dense(4)(x)
        return outputs if train else outputs[:, :3]


def grows(module):
    count = module.variable("stats", "count", lambda: jnp.zeros(()))
    if not module.is_initializing():
        count.value = count.value + jnp.ones(2)


def sows(module):
    module.sow("mine", "count", jnp.ones(()))


class Grows(Activated):
    def __call__(self, x):
        self.more = nnx.Variable(jnp.zeros(()))
        return super().__call__(x)


class WithInt(nnx.Module):
    def __init__(self, rngs):
        self.weights = nnx.Param(jnp.ones((5, 3), int) * rngs.params().ndim)

    def __call__(self, x):
        return x @ self.weights[...]


class WithList(Activated):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.sizes = [5, 3]


class OfLinen(linen.Module):
    """Without weights, and what is called."""


class OfNNX(nnx.Module):
    def __init__(self, rngs):
        del rngs


class WithoutWeights(linen.Module):
    def __call__(self, x):
        return x[:, :3]


def drawn_in_turn(*params):
    """An init that returns other params for another key."""
    turns = itertools.cycle(params)
    return lambda _: next(turns)


ONE, OTHER = jnp.ones((5, 3)), jnp.ones((5, 4))
LINEAR = lambda params, x: x @ jax.tree.leaves(params)[0][:, :3]  # noqa: E731
FLOATING = r"build must make networks whose weights \(params\) are .* floating-point .*found "
ALIKE = "build must make networks whose numbers have the same structure and shapes for every key"
KEPT = r"build must make networks whose state \(all but their weights\) keeps its structure"
HASHABLE = "build must make networks with hashable attributes"
OUTPUTS = "network that returns one array of floating-point numbers, its outputs; it returned an"


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Attribute(ONE), HASHABLE),
        (Attribute(np.ones(3)), HASHABLE),
        (WithList, HASHABLE),
        (Attribute().bind({"params": {"w": ONE}}), "Linen module without variables; .* bound"),
        (OfLinen(), "networks with a method __call__; OfLinen has none"),
        (OfNNX, "networks with a method __call__; OfNNX has none"),
        (WithoutWeights(), FLOATING + "none"),
        (Attribute(dtype=int), FLOATING + "int64"),
        (WithInt, FLOATING + "int64"),
        ((lambda _: {1: ONE, "a": ONE}, LINEAR), FLOATING + "dict"),
        ((initial, lambda params, x: (apply(params, x) * 9).astype(int)), OUTPUTS),
        ((initial, lambda params, x: apply(params, x) > 0), OUTPUTS),
        ((initial, lambda params, x: apply(params, x) * 1j), OUTPUTS),
        (Trained(), r"outputs have one shape; theirs is \(20, 4\) in training and \(20, 3\) in"),
        (Attribute(state=grows), KEPT),
        (Attribute(state=sows), KEPT),
        (Grows, KEPT),
        ((drawn_in_turn({"a": ONE}, {"a": OTHER}), LINEAR), ALIKE),
        ((drawn_in_turn({"a": ONE}, {"b": ONE}), LINEAR), ALIKE),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2])
def test_builds_whose_networks_cannot_be_trained(build, message, at_once):
    with pytest.raises((TypeError, ValueError), match=message):
        train(build, KEYS, X, Y, TrainingConfig(steps=1), at_once=at_once)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (3, r"build must be a function of nnx.Rngs .*, or a pair \(init, apply\); got 3"),
        ((apply,), r"build must be a pair \(init, apply\); it holds 1 objects"),
        ((initial, None), "build's apply must be a function of params and points"),
        ((None, apply), "build's init must be a function of a key"),
        ((lambda _: {"w": jnp.arange(3)}, apply), "weights .* floating-point .* found int64"),
        ((lambda _: (), apply), "weights .* floating-point .* found none"),
        (
            (initial, lambda p, x: (apply(p, x), x)),
            "network that returns .* numbers, its outputs; it returned a tuple",
        ),
        (BatchNormNetwork(nnx.Rngs(0)), "build must make a fresh network for each key"),
        (lambda _: Linen(), "build must return a Flax NNX module; it returned Linen"),
    ],
)
def test_bad_builds(build, message):
    with pytest.raises(TypeError, match=message):
        train(build, KEYS, X, Y, TrainingConfig(steps=1))
