"""Networks of one architecture with different weights, as one pytree with a leading axis."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from sdntk._arguments import ArrayLike, as_count, as_real_array
from sdntk._pytrees import pytree

#: A fresh network from a random state.
Build = Callable[[nnx.Rngs], nnx.Module]


@pytree
class Ensemble:
    """S networks f_s = network(theta_s), or centred ones, f_s = network(theta_s) - network(theta_s
    at initialisation).

    Attributes:
        params: the trained numbers (``nnx.Param``); every leaf has a leading axis S.
        model_state: all other numbers, batch statistics among them, likewise.
        initial_params: the params at initialisation of centred networks; None for others.
        apply_fn: the outputs of one network as a function of its numbers.
    """

    params: Any
    model_state: Any
    initial_params: Any
    apply_fn: "ApplyFn" = field(metadata={"static": True})

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.params)[0])

    def outputs(self, x: ArrayLike, *, batch_size: int = 1000) -> Float[Array, "S n Q"]:
        """The outputs of every network in evaluation mode.

        Args:
            x: points, shape (n, ...).
            batch_size: points evaluated at once, one network after the other: what memory allows.

        Returns:
            Shape (S, n, Q).
        """
        x = jnp.asarray(as_real_array("x", x))
        batch_size = as_count("batch_size", batch_size, at_least=1)
        if x.size == 0 or x.ndim == 0:
            raise ValueError(f"x must hold at least one point; its shape is {x.shape}.")
        starts = range(0, len(x), batch_size)
        outputs = []
        for s in range(len(self)):
            batches = [_outputs(self, s, x[start : start + batch_size]) for start in starts]
            outputs.append(jnp.concatenate(batches))
        return jnp.stack(outputs)


@dataclasses.dataclass(frozen=True)
class ApplyFn:
    """The outputs of one network as a function of its numbers: its graph definition in training and
    in evaluation mode. Hashable: networks of equal structure share their compiled code.
    """

    train_graphdef: Any
    eval_graphdef: Any

    def train(
        self, params: Any, model_state: Any, x: Float[Array, "n ..."]
    ) -> tuple[Float[Array, "n Q"], Any]:
        """Outputs in training mode, and the model state after them: batch statistics move."""
        # NNX updates variables in place, and only those that the current trace has made.
        params, model_state = jax.tree.map(lambda leaf: leaf, (params, model_state))
        network = nnx.merge(self.train_graphdef, params, model_state)
        outputs = network(x)
        _, _, model_state = _split(network)
        return outputs, model_state

    def __call__(
        self, params: Any, model_state: Any, x: Float[Array, "n ..."]
    ) -> Float[Array, "n Q"]:
        """Outputs in evaluation mode."""
        return nnx.merge(self.eval_graphdef, params, model_state)(x)


def initialise(build: Build, keys: Key[Array, " S"], *, centred: bool = False) -> Ensemble:
    """A fresh network for each key.

    Raises:
        TypeError: ``build`` does not return a Flax NNX module.
    """
    network = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    if not isinstance(network, nnx.Module):
        raise TypeError(
            f"build must return a Flax NNX module; it returned {type(network).__name__}."
        )
    network.train()
    train_graphdef, _, _ = _split(network)
    network.eval()
    eval_graphdef, _, _ = _split(network)
    params, model_state = _draw(build, keys)
    initial_params = params if centred else None
    return Ensemble(params, model_state, initial_params, ApplyFn(train_graphdef, eval_graphdef))


@functools.partial(jax.jit, static_argnames="build")
def _draw(build: Build, keys: Key[Array, " S"]) -> tuple[Any, Any]:
    """Params and model state of a fresh network for each key."""
    return jax.vmap(lambda key: _split(build(nnx.Rngs(key)))[1:])(keys)


def _split(network: nnx.Module) -> tuple[Any, Any, Any]:
    """Graph definition, params, and model state, which is all other numbers."""
    graphdef, params, *others = nnx.split(network, nnx.Param, ...)
    (model_state,) = others
    return graphdef, params, model_state


def members(ensemble: Ensemble, index: int | slice | Array) -> Ensemble:
    """Some of the networks; for an integer one, without the leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], ensemble)


@jax.jit
def _outputs(
    ensemble: Ensemble, index: int | Array, x: Float[Array, "n ..."]
) -> Float[Array, "n Q"]:
    return evaluate(members(ensemble, index), x)


def evaluate(network: Ensemble, x: Float[Array, "n ..."]) -> Float[Array, "n Q"]:
    """The outputs of one network (no leading axis) in evaluation mode, centred or not."""
    outputs = network.apply_fn(network.params, network.model_state, x)
    if network.initial_params is None:
        return outputs
    return outputs - network.apply_fn(network.initial_params, network.model_state, x)


def fastest_size(count: int) -> int:
    """How many of ``count`` networks are trained fastest in one vmapped step on this device.

    On a CPU one, whose cores it keeps busy: with all at once small CNNs took 2.3 times as long
    and small MLPs as long (benchmarks/results/networks.md). On an accelerator all.
    """
    return 1 if jax.default_backend() == "cpu" else count


def spread(tree: Any) -> Any:
    """The networks of a group distributed over all devices, where their number allows it; scalars,
    which the networks share, on each of them.
    """
    mesh = _mesh(len(jax.tree.leaves(tree)[0]))
    if mesh is None:
        return tree
    by_network = NamedSharding(mesh, PartitionSpec("networks"))
    on_each = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda leaf: by_network if jnp.ndim(leaf) else on_each, tree)
    return jax.device_put(tree, shardings)


def to_all_devices(x: Array, count: int) -> Array:
    """The points on every device that a group of ``count`` networks is distributed over."""
    mesh = _mesh(count)
    if mesh is None:
        return x
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec()))


def _mesh(count: int) -> jax.sharding.Mesh | None:
    """As many devices as divide ``count`` evenly; None for a single one."""
    devices = jax.devices()
    used = math.gcd(len(devices), count)
    if used == 1:
        return None
    automatic = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((used,), ("networks",), axis_types=automatic, devices=devices[:used])
