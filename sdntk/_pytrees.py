"""Frozen dataclasses that are JAX pytrees."""

import dataclasses
from typing import Any, TypeVar, cast, dataclass_transform

import jax

_K = TypeVar("_K", bound=type)


@dataclass_transform(frozen_default=True)
def pytree(cls: _K) -> _K:
    """Make a class a frozen dataclass and a pytree.

    Its fields are leaves, so new values compile nothing anew, but for those with
    ``metadata={"static": True}``, and those with ``metadata={"dropped": True}`` and a default,
    which transformations forget.
    """
    # A repr that the class, or its base, has written stays.
    without_repr = "__repr__" not in {name for base in cls.__mro__[:-1] for name in vars(base)}
    frozen: Any = dataclasses.dataclass(frozen=True, eq=False, repr=without_repr)(cls)
    # The tests check shapes, but not here: transformations build pytrees of leaves of any shape.
    frozen.__no_type_check__ = True
    fields = dataclasses.fields(frozen)
    static = [f.name for f in fields if f.metadata.get("static")]
    dropped = [f.name for f in fields if f.metadata.get("dropped")]
    leaves = [f.name for f in fields if f.name not in {*static, *dropped}]

    # With the class among what is compared: jax.tree_util.register_dataclass leaves it out, so that
    # two classes without fields are one to jit, which may then run one's program for the other.
    def flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(value, name) for name in leaves], (
            frozen,
            *(getattr(value, name) for name in static),
        )

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children, known = flatten(value)
        keys = map(jax.tree_util.GetAttrKey, leaves)
        return list(zip(keys, children, strict=True)), known

    def unflatten(known: tuple[Any, ...], children: Any) -> Any:
        return frozen(**dict(zip((*leaves, *static), (*children, *known[1:]), strict=True)))

    jax.tree_util.register_pytree_with_keys(frozen, flatten_with_keys, unflatten, flatten)
    return cast(_K, frozen)
