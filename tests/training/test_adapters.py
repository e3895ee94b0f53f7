"""Networks of other libraries.

Must hold: a Flax NNX module, a Linen module and a plain pair (init, apply) with the same weights
give the same chain to 1e-6. A second chain compiles nothing, however its equal networks are made.
Networks in a file have the same outputs in a fresh process, batch statistics included.
"""

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
    with pytest.raises(ValueError, match=r"build must make the networks that .*params/more"):
        load(path, wide)
    with pytest.raises(ValueError, match="which have 4 arrays; it makes one of 2"):
        load(path, (lambda key: {"Dense_0": initial(key)["Dense_0"]}, apply))
    whole = _archive.load(path, {"SavedNetworks": SavedNetworks})
    for arrays, message in [
        ((1.0, *whole.arrays[1:]), "does not hold what sdntk has saved"),
        ((whole.arrays[0][:1], *whole.arrays[1:]), "does not hold what sdntk has saved"),
        ((whole.arrays[0].astype(int), *whole.arrays[1:]), "of another shape or kind"),
    ]:
        _archive.save(path, whole._replace(arrays=arrays))
        with pytest.raises(ValueError, match=message):
            load(path, BUILDS["pair"]())
    path.write_bytes(b"no file of ours")
    with pytest.raises(ValueError, match="does not hold what sdntk has saved"):
        load(path, BUILDS["pair"]())
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing", BUILDS["pair"]())


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (3, r"build must be a function of nnx.Rngs .*, or a pair \(init, apply\); got 3"),
        ((apply,), r"build must be a pair \(init, apply\); it holds 1 objects"),
        ((initial, None), "build's apply must be a function of params and points"),
        ((None, apply), "build's init must be a function of a key"),
        ((lambda _: {"w": jnp.arange(3)}, apply), "build's init must return params, a pytree of"),
        ((lambda _: (), apply), "build's init must return params"),
        ((initial, lambda p, x: (apply(p, x), x)), "network that returns one array, its outputs"),
        (BatchNormNetwork(nnx.Rngs(0)), "build must make a fresh network for each key"),
        (lambda _: Linen(), "build must return a Flax NNX module; it returned Linen"),
    ],
)
def test_bad_builds(build, message):
    with pytest.raises(TypeError, match=message):
        train(build, KEYS, X, Y, TrainingConfig(steps=1))
