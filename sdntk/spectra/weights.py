"""Weights of the rounds of a plain chain on a spectrum: one problem, or one for each output with a
multiplier of its own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk.spectra.base import AbstractSpectrum, as_column
from sdntk.spectra.fit import refusing_derivatives
from sdntk.theory import weights as solvers
from sdntk.theory.units import in_unit, power_of_two

_Solve = Callable[[Array, Array, Array], solvers.Solution]


def _by_output(
    solve: _Solve, c: Float[Array, "*Q"], z: Float[Array, "m *P"], std: Float[Array, "*P"]
) -> solvers.Solution:
    """One problem, or one for each output with a multiplier of its own."""
    if c.ndim == 0:
        return solve(c, z, std)
    return jax.vmap(solve, in_axes=(0, 1, 0), out_axes=-1)(c, z, std)


def _operator(
    spectrum: AbstractSpectrum, c: Float[Array, ""], like: Float[Array, "m *P"]
) -> solvers.Operator:
    """A on vectors in the basis (all outputs one after the other) and, behind them, on the
    eigenvalues.
    """
    d = spectrum.eigenvalues
    a = d / (c + d)
    if spectrum.has_eigenvectors:
        on_labels = jnp.broadcast_to(as_column(d, like), like.shape).ravel()
        of_entries = jnp.concatenate([on_labels, d])
        return solvers.Operator(lambda v: of_entries / (c + of_entries) * v, c, of_entries)

    def times(v: Float[Array, " N"]) -> Float[Array, " N"]:
        u = v[: like.size].reshape(like.shape)
        u = spectrum.apply(spectrum.resolvent(c, u))
        return jnp.concatenate([u.ravel(), a * v[like.size :]])

    return solvers.Operator(times, c, None)


def _effective_epsilon(spectrum: AbstractSpectrum, c: Float[Array, ""]) -> Float[Array, ""]:
    """How far rounding of the Gram matrix moves A = D (c I + D)^-1: its slope is at most 1/(4 c)
    where d = c.
    """
    eps = max(spectrum.machine_epsilon, float(jnp.finfo(spectrum.dtype).eps))
    return eps * jnp.maximum(1, spectrum.largest / (4 * c))


@partial(jax.jit, static_argnames="rounds")
def one_shot_weights(
    spectrum: AbstractSpectrum,
    z: Float[Array, "m *P"],
    multipliers: Float[Array, "T *Q"],
    plain: Any,
    *,
    rounds: int,
) -> solvers.Solution:
    """Those without held-out data, :func:`sdntk.mixing.one_shot`, from rotated labels z; nan unless
    the chain is plain.
    """
    c = multipliers[0]
    z = in_unit(z, power_of_two(z, axis=0 if c.ndim else None))

    def solve(c: Float[Array, ""], z: Float[Array, "m *P"], _: Array) -> solvers.Solution:
        eigenvalues = spectrum.eigenvalues
        return solvers.best_for_residuals(
            _operator(spectrum, c, z),
            (c * spectrum.resolvent(c, z)).ravel(),
            c / (c + eigenvalues),
            rounds,
            _effective_epsilon(spectrum, c),
        )

    solution = _by_output(solve, c, _not_by_matrix(z, spectrum), jnp.zeros(z.shape[1:], z.dtype))
    return _nan_unless(plain, solution)


@partial(jax.jit, static_argnames="rounds")
def oracle_weights(
    spectrum: AbstractSpectrum,
    signal: Float[Array, "K *P"],
    noise_variance: Float[Array, "*P"],
    multipliers: Float[Array, "T *Q"],
    plain: Any,
    *,
    rounds: int,
) -> solvers.Solution:
    """Those for a known signal, :func:`sdntk.mixing.oracle`; nan unless the chain is plain."""
    c, std = multipliers[0], jnp.sqrt(noise_variance)
    sizes = jnp.concatenate([jnp.abs(signal), std[None]])
    unit = power_of_two(sizes, axis=0 if c.ndim else None)
    z, std = spectrum.rotate(in_unit(signal, unit)), in_unit(std, unit)

    def solve(c: Float[Array, ""], z: Float[Array, "m *P"], std: Array) -> solvers.Solution:
        d = spectrum.eigenvalues
        noise, a = jnp.sqrt(jnp.sum(std**2)), d / (c + d)
        left = c * spectrum.resolvent(c, z)
        change = spectrum.apply(spectrum.resolvent(c, left))
        return solvers.best_for_errors(
            _operator(spectrum, c, z),
            jnp.concatenate([left.ravel(), -noise * a]),
            jnp.concatenate([change.ravel(), noise * a * c / (c + d)]),
            rounds,
            _effective_epsilon(spectrum, c),
        )

    return _nan_unless(plain, _by_output(solve, c, _not_by_matrix(z, spectrum), std))


def _nan_unless(plain: Any, solution: solvers.Solution) -> solvers.Solution:
    return solvers.Solution(*(jnp.where(plain, value, jnp.nan) for value in solution))


def _not_by_matrix(z: Float[Array, "m *P"], spectrum: AbstractSpectrum) -> Float[Array, "m *P"]:
    if spectrum.matrix is None:
        return z
    return z * refusing_derivatives(spectrum.matrix, "mixing weights")
