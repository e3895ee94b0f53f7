"""Networks of one architecture with different weights, as one pytree with a leading axis."""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from sdntk import _archive
from sdntk._arguments import (
    ArrayLike,
    as_count,
    as_flag,
    as_float_dtype,
    as_real_array,
    require_values,
    shown,
)
from sdntk._pytrees import pytree
from sdntk.training.adapters import ApplyFn, Build, draw, form, needs_point, point_of, require_build


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

        Raises:
            TypeError, ValueError: x holds no points that the networks take.
        """
        x = jnp.asarray(as_real_array("x", x))
        batch_size = as_count("batch_size", batch_size, at_least=1)
        if x.size == 0 or x.ndim == 0:
            raise ValueError(f"x must hold at least one point; its shape is {x.shape}.")
        output_shape(self, x[:batch_size])
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

        Raises:
            TypeError: the networks are traced.
        """
        require_values("the networks", self)
        centred = self.initial_params is not None
        point = point_of(self.apply_fn)
        shape = None if point is None else (point.shape, str(point.dtype))
        arrays = tuple(map(_as_plain, jax.tree.leaves(self)))
        _archive.save(path, SavedNetworks(shape, centred, _names(self), arrays))


class SavedNetworks(NamedTuple):
    """An ensemble in a file: its numbers, without the code of its networks.

    Attributes:
        point: shape and dtype of a point, where the networks' numbers depend on it.
        centred: whether the params at initialisation are among them.
        names: where in the ensemble each array belongs, in the order of its leaves.
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
        build: what the networks were made with, or its equal: the file holds numbers only. The
            ``init`` of a Linen module is traced, not run.

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
        arrays = [_as_leaf(array) for array in saved.arrays]
        held = list(_described(saved.names, arrays))
        (count,) = {array.shape[0] for array in arrays}  # as many networks in each
        as_count("the number of networks", count, at_least=1)
        centred = as_flag("centred", saved.centred)
        point = None if saved.point is None else _as_point(*saved.point)
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"path {path} does not hold what sdntk has saved: {error}.") from None
    like = _like(build, point, path, centred=centred)
    made = _described(_names(like), jax.tree.leaves(like))
    for theirs, ours in itertools.zip_longest(held, made, fillvalue="nothing more"):
        if theirs != ours:
            raise ValueError(
                f"build must make the networks that {path} holds, with {theirs}; it makes {ours}."
            )
    return jax.tree.unflatten(jax.tree.structure(like), arrays)


def _like(build: Build, point: jax.ShapeDtypeStruct | None, path: Any, *, centred: bool) -> Any:
    """An ensemble as ``build`` makes it."""
    if needs_point(build) != (point is not None):
        raise ValueError(
            f"build must make the networks that {path} holds, "
            f"which are {'' if point else 'not '}of Flax Linen."
        )
    key = jax.random.split(jax.random.key(0), 1)
    fresh = functools.partial(initialise, build, centred=centred)
    if point is None:
        return fresh(key, jnp.zeros((1,)))
    try:  # in shapes only: those of weights follow that of a point, which a file may claim as huge
        return jax.eval_shape(fresh, key, point)
    except Exception as error:  # a module may raise anything
        raise ValueError(
            f"build must make the networks that {path} holds, which take points of shape "
            f"{shown(point.shape[1:])}; {error}"
        ) from error


def _as_point(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    """The one point by whose shape and dtype Linen draws weights."""
    one, *sizes = shape
    as_count("the number of points", one, at_least=1, at_most=1)
    sizes = [as_count("each size of a point", size, at_least=1) for size in sizes]
    kind = as_float_dtype("the dtype of a point", dtype, on_host=True)
    return jax.ShapeDtypeStruct((1, *sizes), jax.dtypes.canonicalize_dtype(kind))


def _names(ensemble: Ensemble) -> tuple[str, ...]:
    """Where in an ensemble each of its arrays belongs."""
    paths, _ = jax.tree.flatten_with_path(ensemble)
    return tuple(jax.tree_util.keystr(path).removeprefix(".") for path, _ in paths)


def _described(names: Any, arrays: list[Any]) -> Iterator[str]:
    """What must be the same for arrays to stand for others: all but their precision."""
    for name, array in zip(names, arrays, strict=True):
        kind = next(kind for kind, of in _KINDS.items() if jnp.issubdtype(array.dtype, of))
        yield f"{name}, {kind} of shape {array.shape[1:]}"


_KINDS = {
    "keys": jax.dtypes.prng_key,
    "booleans": jnp.bool_,
    "integers": jnp.integer,
    "real numbers": jnp.floating,
    "complex numbers": jnp.complexfloating,
}


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
        TypeError: ``build`` makes no network. ValueError: it makes different ones for two keys.
    """
    drawn = [draw(build, key, x) for key in keys]
    numbers = [(one.params, one.model_state) for one in drawn]
    require_one_form(numbers)
    params, model_state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *numbers)
    initial_params = params if centred else None
    return Ensemble(params, model_state, initial_params, drawn[0].apply_fn)


def require_one_form(networks: list[Any]) -> None:
    """Refuse networks whose numbers cannot be stacked."""
    if any(form(other) != form(networks[0]) for other in networks[1:]):
        raise ValueError(
            "build must make networks whose numbers have the same structure and shapes for every "
            "key."
        )


def members(ensemble: Ensemble, index: int | slice | Array) -> Ensemble:
    """Some of the networks; for an integer one, without the leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], ensemble)


@jax.jit
def _outputs(
    ensemble: Ensemble, index: int | Array, x: Float[Array, "n ..."]
) -> Float[Array, "n Q"]:
    return evaluate(members(ensemble, index), x)


def output_shape(ensemble: Ensemble, x: Float[Array, "n ..."]) -> Any:
    """What each of the networks returns for these points, as shape and dtype.

    Raises:
        ValueError: it takes no such points.
    """
    try:
        return jax.eval_shape(_outputs, ensemble, 0, x)
    except Exception as error:  # a network may raise anything
        raise ValueError(
            f"x must hold points that the networks take; for those of shape {x.shape[1:]} they "
            f"raised {type(error).__name__}: {error}"
        ) from error


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
