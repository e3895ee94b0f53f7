"""Networks of one architecture with different weights, as one pytree with a leading axis."""

import math
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from sdntk import _archive
from sdntk._arguments import ArrayLike, as_count, as_real_array
from sdntk._pytrees import pytree
from sdntk.training.adapters import ApplyFn, Build, draw, point_of, require_build


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

    def module(self, index: int) -> Any:
        """Network ``index`` as its own library has it, with what belongs to evaluation (batch
        statistics).

        Returns:
            A Flax NNX module in evaluation mode; for a Linen module (module, variables), for a pair
            (init, apply) the pair (apply, params). Of a centred network the network itself, whose
            outputs at initialisation are not subtracted.

        Example:
            >>> from sdntk import TrainingConfig, train
            >>> init = lambda key: jax.random.normal(key, (2, 1))
            >>> build = (init, lambda weights, x: x @ weights)
            >>> x, y = jnp.eye(2), jnp.array([[1.0], [-1.0]])
            >>> trained = train(build, jax.random.split(jax.random.key(0)), x, y, TrainingConfig())
            >>> apply, weights = trained.ensemble.module(1)
            >>> bool((apply(weights, x) == trained.ensemble.outputs(x)[1]).all())
            True
        """
        index = as_count("index", index, at_least=0, at_most=len(self) - 1)
        network = members(self, index)
        return network.apply_fn.module(network.params, network.model_state)

    def save(self, path: str | Path) -> None:
        """Write the networks' numbers into one file, all of them or nothing; :func:`load` reads
        them.
        """
        names, leaves = _named_leaves(self)
        centred = self.initial_params is not None
        point = point_of(self.apply_fn)
        shape = None if point is None else (point.shape, str(point.dtype))
        saved = SavedNetworks(shape, centred, names, tuple(map(_as_plain, leaves)))
        _archive.save(path, saved)


class SavedNetworks(NamedTuple):
    """An ensemble in a file: its numbers, without the code of its networks.

    Attributes:
        point: shape and dtype of a point, where the networks' numbers depend on it.
        centred: whether the params at initialisation are among them.
        names: where in the ensemble each array belongs.
        arrays: the arrays; a key as its kind and its numbers.
    """

    point: tuple[tuple[int, ...], str] | None
    centred: bool
    names: tuple[str, ...]
    arrays: tuple[Any, ...]


def load(path: str | Path, build: Build) -> Ensemble:
    """The networks that :meth:`Ensemble.save` has written: in another process, too, their outputs
    are the same.

    Args:
        path: the file.
        build: what the networks were made with, or its equal: the file holds numbers only.

    Raises:
        FileNotFoundError: there is no such file. TypeError: ``build`` makes no network. ValueError:
            the file holds something else or is damaged; its networks are not those that ``build``
            makes; its numbers are in float64 and x64 is off.

    Example:
        >>> import tempfile
        >>> from sdntk import TrainingConfig, train
        >>> build = (lambda key: jax.random.normal(key, (2, 1)), lambda weights, x: x @ weights)
        >>> x, y = jnp.eye(2), jnp.array([[1.0], [-1.0]])
        >>> networks = train(build, jax.random.split(jax.random.key(0)), x, y, TrainingConfig())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     networks.ensemble.save(f"{folder}/networks.npz")
        ...     again = load(f"{folder}/networks.npz", build)
        >>> bool((again.outputs(x) == networks.ensemble.outputs(x)).all())
        True
    """
    require_build(build)
    saved = _archive.load(path, {"SavedNetworks": SavedNetworks})
    if not isinstance(saved, SavedNetworks):
        raise ValueError(f"path {path} holds no networks; sdntk.load reads runs and spectra.")
    try:
        stored = dict(zip(saved.names, map(_as_leaf, saved.arrays), strict=True))
        (_,) = {array.shape[0] for array in stored.values()}  # as many networks in each
        shape, dtype = saved.point or ((1,), "float32")
        points = jnp.zeros(shape, dtype)
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"path {path} does not hold what sdntk has saved: {error}.") from None
    like = initialise(build, jax.random.split(jax.random.key(0), 1), points, centred=saved.centred)
    names, leaves = _named_leaves(like)
    for name, leaf in zip(names, leaves, strict=True):
        if name not in stored or not _is_like(stored[name], leaf):
            raise ValueError(
                f"build must make the networks that {path} holds; it makes {name} of shape "
                f"{leaf.shape[1:]}, which is not there or of another shape or kind."
            )
    if len(stored) != len(names):
        raise ValueError(
            f"build must make the networks that {path} holds, which have {len(stored)} arrays; it "
            f"makes one of {len(names)}."
        )
    return jax.tree.unflatten(jax.tree.structure(like), [stored[name] for name in names])


def _named_leaves(ensemble: Ensemble) -> tuple[tuple[str, ...], tuple[Array, ...]]:
    """The arrays of an ensemble, and where in it they belong."""
    paths, _ = jax.tree.flatten_with_path(ensemble)
    names = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths)
    return names, tuple(leaf for _, leaf in paths)


def _is_like(stored: Array, leaf: Array) -> bool:
    """Whether an array can stand for a leaf: of its shape and kind, in whatever precision."""
    kinds = (jax.dtypes.prng_key, jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    same = [
        jnp.issubdtype(stored.dtype, kind) == jnp.issubdtype(leaf.dtype, kind) for kind in kinds
    ]
    return stored.shape[1:] == leaf.shape[1:] and all(same)


def _as_plain(leaf: Array) -> Any:
    """A leaf as a file can hold it: a key as its kind and its numbers."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
    return leaf


def _as_leaf(stored: Any) -> Array:
    if isinstance(stored, tuple):
        kind, numbers = stored
        return jax.random.wrap_key_data(numbers, impl=kind)
    return stored


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
