"""Frozen dataclasses that are JAX pytrees."""

import dataclasses
from typing import TypeVar, cast, dataclass_transform

import jax

_K = TypeVar("_K", bound=type)


@dataclass_transform(frozen_default=True)
def register(cls: _K) -> _K:
    """Make a class a frozen dataclass and a pytree: its fields are leaves, so new values compile
    nothing anew.
    """
    return cast(
        _K, jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))
    )
