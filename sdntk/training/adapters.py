"""Networks of several libraries behind one interface: their numbers drawn from a key, and their
outputs as a function of these numbers.
"""

import abc
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jaxtyping import Array, Float, Key

from sdntk._arguments import leaves_of, require_function, shown

#: How a fresh network is made: a function of a random state that returns a Flax NNX module; a Flax
#: Linen module; or init, a key to params, and apply, params and points to outputs.
Build = Callable[[nnx.Rngs], nnx.Module] | linen.Module | tuple[Callable[..., Any], ...]

#: What tells a Linen module whether it is trained: the argument of its ``__call__``, and its value
#: in training.
LINEN_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


class ApplyFn(abc.ABC):
    """The outputs of one network as a function of its numbers. Hashable: networks of equal
    structure share their compiled code.
    """

    @abc.abstractmethod
    def train(
        self, params: Any, model_state: Any, x: Float[Array, "n ..."]
    ) -> tuple[Float[Array, "n Q"], Any]:
        """Outputs in training mode, and the model state after them: batch statistics move."""

    @abc.abstractmethod
    def __call__(
        self, params: Any, model_state: Any, x: Float[Array, "n ..."]
    ) -> Float[Array, "n Q"]:
        """Outputs in evaluation mode."""

    @abc.abstractmethod
    def module(self, params: Any, model_state: Any) -> Any:
        """The network as its own library has it."""


class Drawn(NamedTuple):
    """A fresh network: the trained numbers, all others, and the outputs as a function of both."""

    params: Any
    model_state: Any
    apply_fn: ApplyFn


def require_build(build: Any) -> None:
    """Refuse what makes no network in any of the three ways.

    Raises:
        TypeError: ``build`` is neither a function, nor a Linen module, nor a pair of functions.
    """
    if isinstance(build, linen.Module):
        _require_call(build)
        if build.scope is not None:
            raise TypeError(
                "build must be a Linen module without variables; this one is bound to some, and "
                "module.unbind()[0] is not."
            )
        return
    if isinstance(build, tuple):
        if len(build) != 2:
            raise TypeError(f"build must be a pair (init, apply); it holds {len(build)} objects.")
        require_function("build's init", build[0], "a key")
        require_function("build's apply", build[1], "params and points", compiled=True)
        return
    if isinstance(build, nnx.Module):
        raise TypeError(
            "build must make a fresh network for each key, as lambda rngs: Network(rngs=rngs) "
            f"does; got a network, {shown(build)}."
        )
    if not callable(build):
        raise TypeError(
            "build must be a function of nnx.Rngs that returns a Flax NNX module, a Flax Linen "
            f"module, or a pair (init, apply); got {shown(build)}."
        )
    require_function("build", build, "nnx.Rngs", compiled=True)


def draw(build: Build, key: Key[Array, ""], x: Float[Array, "K ..."]) -> Drawn:
    """A fresh network for one key.

    Nothing is traced: operations compile once for each shape, whatever function they stand in, so
    that a new but equal ``build`` compiles nothing.

    Args:
        build: how it is made.
        key: draws its weights.
        x: points, of which a Linen module learns their shape.

    Raises:
        TypeError: ``build`` returns something else than it should.
    """
    if isinstance(build, linen.Module):
        drawn = _draw_linen(build, key, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    elif isinstance(build, tuple):
        drawn = _draw_pair(build, key)
    else:
        drawn = _draw_nnx(build, key)
    _require_weights(drawn.params)
    _require_hashable(drawn.apply_fn)
    params, model_state = jax.tree.map(jnp.asarray, (drawn.params, drawn.model_state))
    return Drawn(params, model_state, drawn.apply_fn)


def form(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """A pytree's structure and the shapes of its leaves: what networks of one kind share."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jnp.shape(leaf) for leaf in leaves]


def _require_call(network: Any) -> None:
    if not callable(network):
        raise TypeError(
            f"build must make networks with a method __call__; {type(network).__name__} has none."
        )


def _require_weights(params: Any) -> None:
    leaves = leaves_of(params)
    if not leaves or not all(map(_is_floating, leaves)):
        found = sorted({str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in leaves})
        raise TypeError(
            "build must make networks whose weights (params) are a pytree of floating-point "
            "arrays, at least one, with keys of one type in each dict; found "
            f"{', '.join(found) or 'none'}."
        )


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating)


def _require_hashable(apply_fn: ApplyFn) -> None:
    try:
        hash(apply_fn)
    except Exception as error:  # __hash__ may raise anything
        raise TypeError(
            "build must make networks with hashable attributes, such as numbers and tuples (no "
            f"arrays, and in NNX no lists), to be compiled once; {error}."
        ) from None


def _kept(after: Any, before: Any) -> Any:
    """The model state after a step, in the dtypes of the one before: batch statistics take on that
    of the points.
    """
    if form(after) != form(before):
        raise ValueError(
            "build must make networks whose state (all but their weights) keeps its structure and "
            "shapes while they are trained; what Linen's sow collects belongs in the collection "
            "'intermediates', which is not kept."
        )
    return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), after, before)


# ---- Flax NNX ----


@dataclasses.dataclass(frozen=True)
class NNXApply(ApplyFn):
    """A Flax NNX module: its graph definition in training and in evaluation mode."""

    train_graphdef: Any
    eval_graphdef: Any

    def train(
        self, params: Any, model_state: Any, x: Float[Array, "n ..."]
    ) -> tuple[Float[Array, "n Q"], Any]:
        network = _merged(self.train_graphdef, params, model_state)
        outputs = network(x)
        _, _, after = _split(network)
        return outputs, _kept(after, model_state)

    def __call__(
        self, params: Any, model_state: Any, x: Float[Array, "n ..."]
    ) -> Float[Array, "n Q"]:
        return self.module(params, model_state)(x)

    def module(self, params: Any, model_state: Any) -> Any:
        return _merged(self.eval_graphdef, params, model_state)


def _draw_nnx(build: Callable[[nnx.Rngs], nnx.Module], key: Key[Array, ""]) -> Drawn:
    network = build(nnx.Rngs(key))
    if not isinstance(network, nnx.Module):
        raise TypeError(
            f"build must return a Flax NNX module; it returned {type(network).__name__}. (A Flax "
            "Linen module, or a pair of functions init and apply, is itself the build.)"
        )
    _require_call(network)
    network.train()
    train_graphdef, _, _ = _split(network)
    network.eval()
    eval_graphdef, params, model_state = _split(network)
    return Drawn(params, model_state, NNXApply(train_graphdef, eval_graphdef))


def _merged(graphdef: Any, params: Any, model_state: Any) -> nnx.Module:
    """The network with these numbers. Its variables are new ones: NNX updates them in place, and
    only those that the current trace has made.
    """
    return nnx.merge(graphdef, *jax.tree.map(lambda leaf: leaf, (params, model_state)))


def _split(network: nnx.Module) -> tuple[Any, Any, Any]:
    """Graph definition, params, and model state, which is all other numbers."""
    graphdef, params, *others = nnx.split(network, nnx.Param, ...)
    (model_state,) = others
    return graphdef, params, model_state


# ---- Flax Linen ----


@dataclasses.dataclass(frozen=True)
class LinenApply(ApplyFn):
    """A Flax Linen module, called as ``module.apply(variables, x)``, with the argument of
    :data:`LINEN_MODES` that it has, if any; one without is called alike in training and evaluation.

    Its params are the collection ``params``; the model state holds the other collections, all
    mutable in training, and a key, from which every step draws what the module asks for (dropout).

    Attributes:
        definition: the module.
        identity: what modules are compared by: lists and dicts among its attributes have no hash.
        point: shape and dtype of a point, with a leading axis of length 1.
    """

    definition: linen.Module = dataclasses.field(compare=False)
    identity: Any
    point: jax.ShapeDtypeStruct

    def train(
        self, params: Any, model_state: Any, x: Float[Array, "n ..."]
    ) -> tuple[Float[Array, "n Q"], Any]:
        key, now = jax.random.split(model_state["key"])
        before = model_state["collections"]
        outputs, after = self.definition.apply(
            {"params": params, **before},
            x,
            **_modes(self.definition, training=True),
            rngs=now,
            mutable=list(before),
        )
        return outputs, {"collections": _kept(after, before), "key": key}

    def __call__(
        self, params: Any, model_state: Any, x: Float[Array, "n ..."]
    ) -> Float[Array, "n Q"]:
        definition, variables = self.module(params, model_state)
        return definition.apply(variables, x, **_modes(definition, training=False))

    def module(self, params: Any, model_state: Any) -> Any:
        return self.definition, {"params": params, **model_state["collections"]}


def _draw_linen(module: linen.Module, key: Key[Array, ""], point: jax.ShapeDtypeStruct) -> Drawn:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    points = jnp.zeros(point.shape, point.dtype)
    collections = dict(module.init(key, points, **_modes(module, training=False)))
    params = collections.pop("params", {})
    # Folded in, as the key itself has drawn the weights.
    model_state = {"collections": collections, "key": jax.random.fold_in(key, 1)}
    return Drawn(params, model_state, LinenApply(module, _identity(module), point))


def _identity(value: Any) -> Any:
    """A module, or an attribute of one, as a value that has a hash if what it holds has one."""
    if isinstance(value, linen.Module):
        names = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
        return type(value), tuple(_identity(getattr(value, name)) for name in names)
    if isinstance(value, Mapping):
        return type(value), frozenset((key, _identity(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_identity, value))
    return frozenset(value) if isinstance(value, set) else value


def point_of(apply_fn: ApplyFn) -> jax.ShapeDtypeStruct | None:
    """Shape and dtype of a point, where a network cannot be made without (Linen)."""
    return apply_fn.point if isinstance(apply_fn, LinenApply) else None


def needs_point(build: Build) -> bool:
    """Whether its networks cannot be made without a point."""
    return isinstance(build, linen.Module)


def _modes(module: linen.Module, *, training: bool) -> dict[str, Any]:
    """The argument that tells a module whether it is trained."""
    known = inspect.signature(type(module).__call__).parameters
    return {name: on == training for name, on in LINEN_MODES.items() if name in known}


# ---- a pair of functions ----


@dataclasses.dataclass(frozen=True)
class PairApply(ApplyFn):
    """A function of params and points, the same in training and in evaluation."""

    function: Callable[[Any, Array], Array]

    def train(
        self, params: Any, model_state: Any, x: Float[Array, "n ..."]
    ) -> tuple[Float[Array, "n Q"], Any]:
        return self.function(params, x), model_state

    def __call__(
        self, params: Any, model_state: Any, x: Float[Array, "n ..."]
    ) -> Float[Array, "n Q"]:
        del model_state
        return self.function(params, x)

    def module(self, params: Any, model_state: Any) -> Any:
        del model_state
        return self.function, params


def _draw_pair(pair: tuple[Callable[..., Any], ...], key: Key[Array, ""]) -> Drawn:
    init, apply = pair
    return Drawn(init(key), (), PairApply(apply))
