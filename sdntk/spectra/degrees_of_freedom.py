"""Degrees of freedom of a chain, df_t = sum_k d f_t(x_k)/d y_k, in closed form.

Fit t is f_t = F_t y with F_t a filter of G, whose trace are its degrees of freedom as long as its
multipliers are given. Where a tolerance chooses them they follow the labels, and move the fit:

    df_t = tr F_t + sum_i v_i . g_i,        dc_i = g_i . dz_0,       v_i = d f_t / d c_i.

With u the targets of a round, a = (c I + G)^-1 u, r = c a and A = G (c I + G)^-1, the equation
|r| = s that c solves gives

    g = -( P q r + sum_i (q r . v_i) g_i ) / (r . A a),       q = c (c I + G)^-1,

P the filter of the targets and v_i those of the rounds before; |r|^2 z_0/|z_0|^2 is added above
where s is a fraction of |z_0|. A and q commute with every filter of G, so a spectrum's ``apply``
and ``resolvent`` are all that is needed, in whatever basis (docs/theory.md, section 9).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdntk._linalg import tensordot
from sdntk._mapping import map_items
from sdntk.spectra.base import AbstractSpectrum
from sdntk.theory import filters
from sdntk.theory.mixing import mix_targets, weights_handed_on
from sdntk.theory.units import in_unit, power_of_two, unit_of


class ChainOnSpectrum(NamedTuple):
    """A chain whose multipliers are known.

    Attributes:
        spectrum: of G.
        z: the rotated labels.
        multipliers: c_t, infinite where collapsed; one for all outputs where there is no axis Q.
        ground_truth_weight: alpha, or one for each later round, shape (T - 1,).
    """

    spectrum: AbstractSpectrum
    z: Float[Array, "m *P"]
    multipliers: Float[Array, "T *Q"]
    ground_truth_weight: Float[Array, "*t"]

    @property
    def outputs_with_one_multiplier(self) -> int:
        """How many outputs share each multiplier."""
        return self.z.shape[1] if self.z.ndim > self.multipliers.ndim else 1


@jax.jit
def traces_of_filters(d: Float[Array, " K"], chain: ChainOnSpectrum) -> Float[Array, "T *Q"]:
    """The trace of F_t of every round, of outputs that share a multiplier together.

    Args:
        d: all eigenvalues of G but zeros.
        chain: in any basis.
    """
    of_one = filters.distillation(d, chain.multipliers, chain.ground_truth_weight)[0]
    return chain.outputs_with_one_multiplier * jnp.sum(of_one, axis=1)


@partial(jax.jit, static_argnames="relative")
def multiplier_responses(chain: ChainOnSpectrum, *, relative: bool) -> Float[Array, "T *Q"]:
    """sum_i v_i . g_i of every round: what labels do to a fit by way of the multipliers that a
    tolerance chooses. 0 where collapsed.

    Args:
        chain: with multipliers that a tolerance has chosen.
        relative: whether the tolerance is a fraction of the labels' mean square, and not a number.
    """
    spectrum, z, c, alpha = chain

    def of_one(z: Float[Array, "m P"], c: Float[Array, " T"]) -> Float[Array, " T"]:
        return _responses(ChainOnSpectrum(spectrum, z, c, alpha), relative)

    z = in_unit(z, unit_of(z, joint=c.ndim == 1))
    if c.ndim == 1:
        return of_one(z.reshape(len(z), -1), c)
    responses: Float[Array, "Q T"] = map_items(lambda one: of_one(*one), (z.T[:, :, None], c.T))
    return responses.T


class _State(NamedTuple):
    """Targets u, and what du = P dz_0 + sum_i v_i (g_i . dz_0) needs beside the filter P."""

    targets: Float[Array, "m P"]
    moves: Float[Array, "m P T"]  # v_i
    gradients: Float[Array, "m P T"]  # g_i


class _Round(NamedTuple):
    number: Array  # t
    multiplier: Float[Array, ""]
    following_weight: Float[Array, ""]  # alpha of round t + 1


def _responses(chain: ChainOnSpectrum, relative: bool) -> Float[Array, " T"]:
    """:func:`multiplier_responses` for outputs that share a multiplier."""
    spectrum, z, multipliers, alpha = chain
    rounds = len(multipliers)
    weights = weights_handed_on(alpha, rounds)
    numbers = jnp.arange(rounds)
    filter_of_targets = _filter_of_targets(chain)

    def active_round(state: _State, now: _Round) -> tuple[_State, Float[Array, ""]]:
        c = now.multiplier
        duals = spectrum.resolvent(c, state.targets)
        move = -spectrum.apply(spectrum.resolvent(c, duals))  # d(A u)/dc = -A a

        # r in a unit of its own: its square may be no number.
        residuals = c * duals
        r = residuals / power_of_two(residuals)
        qr = c * spectrum.resolvent(c, r)
        on_moves = tensordot(qr, state.moves, 2)
        pull = -(filter_of_targets(now.number, qr) + tensordot(state.gradients, on_moves, 1))
        if relative:
            pull = pull + jnp.sum(residuals * r) * (z / jnp.sum(z**2))
        gradient = pull / jnp.sum(r * -move)

        is_own = now.number == numbers
        moves = jnp.where(is_own, move[..., None], _fit(spectrum, c, state.moves))
        gradients = jnp.where(is_own, gradient[..., None], state.gradients)
        weight = now.following_weight
        targets = mix_targets(z, _fit(spectrum, c, state.targets), weight)
        return _State(targets, (1 - weight) * moves, gradients), jnp.sum(moves * gradients)

    def ended_round(state: _State, now: _Round) -> tuple[_State, Float[Array, ""]]:
        targets = mix_targets(z, jnp.zeros_like(z), now.following_weight)
        following = _State(targets, jnp.zeros_like(state.moves), state.gradients)
        return following, jnp.zeros((), z.dtype)

    def one_round(state: _State, now: _Round) -> tuple[_State, Float[Array, ""]]:
        active = jnp.isfinite(now.multiplier)
        with_number = now._replace(multiplier=jnp.where(active, now.multiplier, 1))
        return lax.cond(active, active_round, ended_round, state, with_number)

    none = jnp.zeros((*z.shape, rounds), z.dtype)
    return lax.scan(one_round, _State(z, none, none), _Round(numbers, multipliers, weights))[1]


def _fit(
    spectrum: AbstractSpectrum, c: Float[Array, ""], targets: Float[Array, "m *n"]
) -> Float[Array, "m *n"]:
    """A times targets; 0 of a collapsed round."""
    collapsed = jnp.isinf(c)
    fitted = spectrum.apply(spectrum.resolvent(jnp.where(collapsed, 1, c), targets))
    return jnp.where(collapsed, 0, fitted)


def _filter_of_targets(
    chain: ChainOnSpectrum,
) -> Callable[[Array, Float[Array, "m P"]], Float[Array, "m P"]]:
    """The filter P of a round's targets, as a function of the round's number and a vector."""
    spectrum, _, multipliers, alpha = chain
    rounds = len(multipliers)
    weights = weights_handed_on(alpha, rounds)

    def in_eigenbasis(t: Array, w: Float[Array, "m P"]) -> Float[Array, "m P"]:
        return of_targets[t][:, None] * w

    def by_rounds(t: Array, w: Float[Array, "m P"]) -> Float[Array, "m P"]:
        """The targets of a chain with these multipliers that starts from the vector."""

        def one_round(targets: Float[Array, "m P"], now: _Round) -> tuple[Array, None]:
            following = mix_targets(
                w, _fit(spectrum, now.multiplier, targets), now.following_weight
            )
            return jnp.where(now.number < t, following, targets), None

        return lax.scan(one_round, w, _Round(jnp.arange(rounds), multipliers, weights))[0]

    if not spectrum.has_eigenvectors:
        return by_rounds
    of_targets = filters.distillation(spectrum.eigenvalues, multipliers, alpha)[1]
    return in_eigenbasis
