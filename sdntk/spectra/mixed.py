"""Mixtures of a chain's rounds, f = sum_j w_j f_j (docs/theory.md, section 8)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_parameter
from sdntk.spectra.base import AbstractSpectrum
from sdntk.spectra.replay import replay
from sdntk.theory.units import linearly


def as_weights(
    value: ArrayLike, rounds: int, outputs: tuple[int, ...], dtype: Any
) -> Float[Array, "T *q"]:
    """Weights of rounds, checked: shape (T,), or (T, Q) where there are outputs."""
    weights = as_parameter("weights", value, dtype)
    shapes = [(rounds,)] + [(rounds, *outputs)] * bool(outputs)
    if weights.shape not in shapes:
        raise ValueError(
            f"weights must have shape {shapes[0]}, a number for each round"
            + (f", or {shapes[1]}, for each round and output" if outputs else "")
            + f"; their shape is {weights.shape}."
        )
    return weights


@jax.jit
def mix_rounds(
    spectrum: AbstractSpectrum,
    z: Float[Array, "m *P"],
    multipliers: Float[Array, "R *Q"],
    ground_truth_weight: Float[Array, "..."],
    weights: Float[Array, "T *q"],
) -> tuple[Float[Array, "m *P"], Float[Array, "m *P"]]:
    """Fitted and dual coordinates of the mixture; of the R rounds, the first T have weights."""

    def of(z: Float[Array, "m *P"]) -> tuple[Array, Array]:
        rounds = replay(spectrum, z, multipliers, ground_truth_weight)
        count = len(weights)
        fitted, duals = (_weighted_sum(v[:count], weights) for v in (rounds.fitted, rounds.duals))
        return fitted, spectrum.without_null_space(duals)

    fitted, duals = linearly(of, z)
    return fitted, duals


@jax.jit
def mix_filters(
    filters: Float[Array, "T m *P"], weights: Float[Array, "T *q"]
) -> Float[Array, "m *p"]:
    """The filter of the mixture, for each output where filters or weights are."""
    if filters.ndim == weights.ndim:
        filters = filters[..., None]
    return _weighted_sum(filters, weights)


@jax.jit
def mix_numbers(values: Float[Array, "T *Q"], weights: Float[Array, "T *q"]) -> Float[Array, "*Q"]:
    """Of what a mixture has as the sum of its rounds'."""
    return _weighted_sum(values[:, None], weights)[0]


def _weighted_sum(
    values: Float[Array, "T m *P"], weights: Float[Array, "T *q"]
) -> Float[Array, "m *p"]:
    """Without the nan of rounds that have no weight."""
    missing = (1,) * (values.ndim - 1 - weights.ndim)
    w = weights.reshape(len(weights), 1, *weights.shape[1:], *missing)
    return jnp.sum(w * jnp.where((w == 0) & jnp.isnan(values), 0, values), axis=0)
