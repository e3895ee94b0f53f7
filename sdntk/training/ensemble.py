"""Networks of one architecture and different weights, as one pytree with a leading axis."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from sdntk._pytrees import pytree

#: A fresh network from a random state.
Build = Callable[[nnx.Rngs], nnx.Module]


@pytree
class Ensemble:
    """S networks f_s = network(theta_s), or with ``initial`` centred ones: less what it was at the
    initial weights.

    Attributes:
        params: the trained numbers (``nnx.Param``), every leaf with a leading axis S.
        rest: all other numbers, batch statistics among them, likewise.
        initial: the weights at initialisation of centred networks; None otherwise.
    """

    params: Any
    rest: Any
    initial: Any
    modes: "Modes" = field(metadata={"static": True})

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.params)[0])

    def outputs(self, x: Float[Array, "n ..."], *, batch_size: int = 1000) -> Float[Array, "S n Q"]:
        """The outputs of every network, in evaluation mode, a network after the other and in
        batches.
        """
        parts = [
            jnp.concatenate(
                [_outputs(self, s, x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
            )
            for s in range(len(self))
        ]
        return jnp.stack(parts)


@dataclasses.dataclass(frozen=True)
class Modes:
    """A network's structure without its numbers, in training and in evaluation mode."""

    training: Any
    evaluation: Any

    def train(
        self, params: Any, rest: Any, x: Float[Array, "n ..."]
    ) -> tuple[Float[Array, "n Q"], Any]:
        """Outputs in training mode, and the other numbers afterwards: batch statistics move."""
        params, rest = jax.tree.map(
            lambda leaf: leaf, (params, rest)
        )  # NNX changes variables of the present trace only
        network = nnx.merge(self.training, params, rest)
        outputs = network(x)
        return outputs, _split(network)[2]

    def __call__(self, params: Any, rest: Any, x: Float[Array, "n ..."]) -> Float[Array, "n Q"]:
        """Outputs in evaluation mode."""
        return nnx.merge(self.evaluation, params, rest)(x)


def initialise(build: Build, keys: Key[Array, " S"], *, centred: bool = False) -> Ensemble:
    """A network for each key.

    Raises:
        TypeError: ``build`` does not return a Flax NNX module.
    """
    network = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    if not isinstance(network, nnx.Module):
        raise TypeError(
            f"build must return a Flax NNX module; it returned {type(network).__name__}."
        )
    network.train()
    training = _split(network)[0]
    network.eval()
    modes = Modes(training, _split(network)[0])
    params, rest = _numbers(build, keys)
    return Ensemble(params, rest, params if centred else None, modes)


@functools.partial(jax.jit, static_argnames="build")
def _numbers(build: Build, keys: Key[Array, " S"]) -> tuple[Any, Any]:
    return jax.vmap(lambda key: _split(build(nnx.Rngs(key)))[1:])(keys)


def _split(network: nnx.Module) -> tuple[Any, Any, Any]:
    """Structure, parameters, and all other numbers."""
    graph, params, *rest = nnx.split(network, nnx.Param, ...)
    return graph, params, rest[0]


def members(ensemble: Ensemble, index: int | slice | Array) -> Ensemble:
    """Some of the networks; one, its numbers without the leading axis, for an integer."""
    return jax.tree.map(lambda leaf: leaf[index], ensemble)


@jax.jit
def _outputs(
    ensemble: Ensemble, index: int | Array, x: Float[Array, "n ..."]
) -> Float[Array, "n Q"]:
    return evaluate(members(ensemble, index), x)


def evaluate(network: Ensemble, x: Float[Array, "n ..."]) -> Float[Array, "n Q"]:
    """The outputs of one network in evaluation mode, centred or not."""
    outputs = network.modes(network.params, network.rest, x)
    if network.initial is None:
        return outputs
    return outputs - network.modes(network.initial, network.rest, x)


def fastest_size(count: int) -> int:
    """On a CPU one: all at once, small CNNs took twice as long and small MLPs 0.9 times
    (benchmarks/results/networks.md).
    """
    return 1 if jax.default_backend() == "cpu" else count


def spread(tree: Any) -> Any:
    """The networks of a group over all devices, where their number allows it."""
    mesh = _mesh(len(jax.tree.leaves(tree)[0]))
    if mesh is None:
        return tree
    return jax.device_put(
        tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("networks"))
    )


def to_all_devices(x: Array, count: int) -> Array:
    """The points on every device that a group of ``count`` networks is spread over."""
    mesh = _mesh(count)
    return (
        x
        if mesh is None
        else jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    )


def _mesh(count: int) -> jax.sharding.Mesh | None:
    devices = jax.devices()
    used = math.gcd(len(devices), count)
    if used == 1:
        return None
    automatic = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((used,), ("networks",), axis_types=automatic, devices=devices[:used])
