"""Chains a few rounds longer than asked for, so that code compiled for one length serves others."""

import dataclasses
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Array

from sdntk._arguments import is_traced
from sdntk.theory.recurrence import ChainSpec

_Tree = TypeVar("_Tree")


def compiled_rounds(rounds: int) -> int:
    """The number of rounds for which code is compiled.

    Up to 8 the next power of two, then the next multiple of 4; from 64 on the number itself, since
    to trim long chains took more time than a compilation saves over many runs.
    """
    if rounds <= 8:
        return 1 << (rounds - 1).bit_length()
    if rounds < 64:
        return -(-rounds // 4) * 4
    return rounds


def padded(chain: ChainSpec) -> ChainSpec:
    """The chain with as many rounds as code is compiled for."""
    return dataclasses.replace(chain, rounds=compiled_rounds(chain.rounds))


def trimmed(per_round: _Tree, rounds: int) -> _Tree:
    """The first rounds of arrays that have an axis of rounds first."""
    return jax.tree.map(lambda array: _leading(array, rounds), per_round)


def _leading(array: Array, count: int) -> Array:
    """The first entries. On a CPU through the host: slicing would be compiled for every count."""
    if len(array) == count:
        return array
    if is_traced(array) or not array.is_fully_addressable or jax.default_backend() != "cpu":
        return array[:count]
    first = np.asarray(array)[:count]
    # Not committed to a device unless it was: it must go with arrays on any.
    return jax.device_put(first, array.sharding if array.committed else None)
