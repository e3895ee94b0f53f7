"""Retraining on a spectrum: rounds with noise that is drawn, and their expected error.

The recurrences are those of :mod:`sdntk.theory.retraining`, run in the basis of any spectrum. Only
the variance asks for eigenvalues: it is a trace, and needs no eigenvectors.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk._mapping import map_items
from sdntk.spectra.base import AbstractSpectrum, as_column
from sdntk.spectra.fit import refusing_derivatives
from sdntk.theory import filters
from sdntk.theory.retraining import RetrainingSpec, draw_noise, fits, lost_signal, noise_gain
from sdntk.theory.units import mean_square, power_of_two


class Course(NamedTuple):
    """Rounds of retraining, n draws of them; squares are averaged over points and outputs.

    Attributes:
        fitted: f_t on the training points, shape (n, T, K) or (n, T, K, Q).
        error: the mean squared distance of f_t to the signal, shape (n, T).
        squared_bias: that of the expectation of f_t, shape (T,).
        variance: the mean variance of f_t, shape (T,).
    """

    fitted: Float[Array, "n T K *P"]
    error: Float[Array, "n T"]
    squared_bias: Float[Array, " T"]
    variance: Float[Array, " T"]


def retrain_on_spectrum(
    spectrum: AbstractSpectrum,
    signal: Float[Array, "K *P"],
    spec: RetrainingSpec,
    key: Array | None,
    draws: int,
) -> Course:
    """Rounds on the same points, of a spectrum.

    Args:
        spectrum: any that knows what it is asked for: a Krylov spectrum only where no noise is.
        signal: z* on the training points.
        spec: what is asked for.
        key: of the noise; None where there is none.
        draws: n.
    """
    signal, spec, unit = in_own_unit(signal, spec)
    z = spectrum.rotate(signal)
    if spectrum.matrix is not None:
        z = z * refusing_derivatives(spectrum.matrix)
    return out_of_unit(_course(spectrum, signal, z, spec, key, draws), unit)


@jax.jit
def in_own_unit(
    signal: Float[Array, "K *P"], spec: RetrainingSpec
) -> tuple[Float[Array, "K *P"], RetrainingSpec, Float[Array, ""]]:
    """The signal and sigma in a unit in which the larger of them is about 1, and that unit."""
    noise, largest = spec.noise, jnp.max(jnp.abs(signal))
    if noise is None:
        unit = power_of_two(largest)
        return signal / unit, spec, unit
    unit = power_of_two(jnp.maximum(largest, noise))
    return signal / unit, dataclasses.replace(spec, noise=noise / unit), unit


@jax.jit
def out_of_unit(course: Course, unit: Float[Array, ""]) -> Course:
    """What was computed in a unit of the labels, in their own."""
    fitted, *squares = course
    return Course(fitted * unit, *(square * unit * unit for square in squares))


@partial(jax.jit, static_argnums=5)
def _course(
    spectrum: AbstractSpectrum,
    signal: Float[Array, "K *P"],
    z: Float[Array, "m *P"],
    spec: RetrainingSpec,
    key: Array | None,
    draws: int,
) -> Course:
    def fit(targets: Float[Array, "m *P"]) -> Float[Array, "m *P"]:
        return spectrum.apply(spectrum.resolvent(spec.multiplier, targets))

    def fitted_with(noise: Float[Array, "T K *P"] | None) -> Float[Array, "T K *P"]:
        rotated = None if noise is None else _each_round(spectrum.rotate, noise)
        return _each_round(spectrum.unrotate, fits(z, rotated, fit, spec))

    fitted = for_every_draw(fitted_with, signal.shape, spec, key, draws)
    return Course(
        fitted=fitted,
        error=mean_squared_distance(fitted, signal),
        squared_bias=_squared_bias(spectrum, signal, z, fit, spec),
        variance=_variance(spectrum, spec),
    )


def for_every_draw(
    fitted_with: Callable[[Array | None], Array],
    shape: tuple[int, ...],
    spec: RetrainingSpec,
    key: Array | None,
    draws: int,
) -> Float[Array, "n T K *P"]:
    """The rounds of every draw of the noise.

    Args:
        fitted_with: from the noise of all rounds, shape (T, K) or (T, K, Q), to their fits.
        shape: of the labels of a round.
        spec: what is asked for.
        key: of the noise; without one, all draws are alike.
        draws: n.
    """
    if key is None or spec.noise is None:
        fitted = fitted_with(None)
        return jnp.broadcast_to(fitted, (draws, *fitted.shape))

    def one_draw(index: Array) -> Array:
        of_draw = jax.random.fold_in(key, index)

        def of_round(t: Array) -> Array:
            of_this = jax.random.fold_in(of_draw, t)
            return draw_noise(of_this, shape, spec, first=t == 0)

        return fitted_with(jax.vmap(of_round)(jnp.arange(spec.rounds)))

    drawn: Float[Array, "n T K *P"] = map_items(one_draw, jnp.arange(draws))
    return drawn


def mean_squared_distance(
    values: Float[Array, "n T K *P"], signal: Float[Array, "K *P"]
) -> Float[Array, "n T"]:
    """To the signal, averaged over points and outputs."""
    axes = tuple(range(2, values.ndim))
    return mean_square(values - signal[None, None], signal.size, over=axes)


def _each_round(
    change: Callable[[Array], Array], values: Float[Array, "T m *P"]
) -> Float[Array, "T K *P"]:
    """A change of basis of all rounds and outputs in one matrix product."""
    columns = jnp.moveaxis(values, 1, 0)
    changed = change(columns.reshape(len(columns), -1))
    return jnp.moveaxis(changed.reshape(-1, *columns.shape[1:]), 0, 1)


def _squared_bias(
    spectrum: AbstractSpectrum,
    signal: Float[Array, "K *P"],
    z: Float[Array, "m *P"],
    fit: Callable[[Array], Array],
    spec: RetrainingSpec,
) -> Float[Array, " T"]:
    c = spec.multiplier
    unfitted = (c[None] if c.ndim else c) * spectrum.resolvent(c, z)
    lost = lost_signal(unfitted, fit, spec)
    axes = tuple(range(1, lost.ndim))
    bias = mean_square(lost, signal.size, over=axes)
    if len(z) >= spectrum.num_points:
        return bias
    outside = signal - spectrum.unrotate(z)  # of a basis of few vectors: no round has a part there
    return bias + jnp.sum(outside**2) / signal.size


def _variance(spectrum: AbstractSpectrum, spec: RetrainingSpec) -> Float[Array, " T"]:
    if spec.noise is None:
        return jnp.zeros(spec.rounds, spectrum.dtype)
    c, d = spec.multiplier, spectrum.eigenvalues
    ridge = filters.ridge(as_column(d, d[:, None]), c[None]) if c.ndim else filters.ridge(d, c)
    gain = jnp.sum(noise_gain(ridge, spec), axis=1) / spectrum.num_points
    return spec.noise**2 * (jnp.mean(gain, axis=1) if gain.ndim == 2 else gain)
