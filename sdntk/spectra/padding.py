"""Chains a few rounds longer than asked for, so that code compiled for one length serves others."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
    rounds = compiled_rounds(chain.rounds)
    weight = padded_weight(chain.ground_truth_weight, rounds)
    return dataclasses.replace(chain, rounds=rounds, ground_truth_weight=weight)


def padded_weight(weight: Float[Array, "..."], rounds: int) -> Float[Array, "..."]:
    """The ground truth's weight in a chain of more rounds; further ones are 0, with which collapse
    stays as final as it was.
    """
    missing = rounds - 1 - weight.size
    if weight.ndim == 0 or missing == 0:
        return weight
    if not weight.is_fully_addressable:
        return jnp.pad(weight, (0, missing))
    return jax.device_put(np.pad(np.asarray(weight), (0, missing)))


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
