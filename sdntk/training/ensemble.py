"""Networks of one architecture with different weights, as one pytree with a leading axis."""

import math
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from sdntk._arguments import ArrayLike, as_count, as_real_array
from sdntk._pytrees import pytree
from sdntk.training.adapters import ApplyFn, Build, draw


@pytree
class Ensemble:
    """S networks f_s = network(theta_s), or centred ones, f_s = network(theta_s) - network(theta_s
    at initialisation).

    Attributes:
        params: the trained numbers; every leaf has a leading axis S.
        model_state: all other numbers, batch statistics among them, likewise.
        initial_params: the params at initialisation of centred networks; None for others.
        apply_fn: the outputs of one network as a function of its numbers.
    """

    params: Any
    model_state: Any
    initial_params: Any
    apply_fn: ApplyFn = field(metadata={"static": True})

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


def initialise(
    build: Build, keys: Key[Array, " S"], x: Float[Array, "K ..."], *, centred: bool = False
) -> Ensemble:
    """A fresh network for each key, for points such as x.

    Raises:
        TypeError: ``build`` makes no network.
    """
    drawn = [draw(build, key, x) for key in keys]
    params, model_state = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *((one.params, one.model_state) for one in drawn)
    )
    initial_params = params if centred else None
    return Ensemble(params, model_state, initial_params, drawn[0].apply_fn)


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

    On a CPU one, whose cores it keeps busy: with all at once small CNNs took twice as long and
    small MLPs 0.9 times (benchmarks/results/networks.md). On an accelerator all.
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
