"""Retraining on one's own predictions with noise in every round: its recurrences, and the expected
error of every round in closed form.

With one multiplier c, round t fits its targets u_t: f_t = A u_t, A = D (c I + D)^-1. Its labels
are the last round's predictions with new noise, the share a of them real,

    y_0 = z* + sigma e_0,    y_t = (1 - a) (f_{t-1} + sigma e_t) + a (z* + sigma e'_t),

e_t and e'_t independent standard normal. Its targets are these labels ("replace"), or the mean of
all labels so far ("accumulate"), since one fit to several labels of each point is a fit to their
mean:

    u_t = (1 - w_t) u_{t-1} + w_t y_t,    w_t = 1, or w_t = 1/(t + 1).

All of it is linear, so the mean of f_t is what the recurrence without noise gives, and its variance
is that of every coordinate by itself. Sources: Dohmatob et al. 2024 (replace); Gerstgrasser et al.
2024 (accumulate); docs/theory.md, section 10.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdntk._pytrees import pytree
from sdntk.theory.mixing import mix_targets

#: What becomes of the labels of earlier rounds: new ones take their place, or join them.
Keep = Literal["replace", "accumulate"]


@pytree
class RetrainingSpec:
    """What is asked of a course of retraining.

    Attributes:
        multiplier: c of every round, shape () or (Q,).
        noise: sigma, in the labels' unit; None where there is none.
        real_share: a; None where it is zero.
        rounds: T.
        keep: "replace" or "accumulate".
    """

    multiplier: Float[Array, "*Q"]
    noise: Float[Array, ""] | None
    real_share: Float[Array, ""] | None
    rounds: int = dataclasses.field(metadata={"static": True})
    keep: Keep = dataclasses.field(metadata={"static": True})

    @property
    def newest_shares(self) -> Float[Array, " T"]:
        """w_t: the share of a round's own labels in its targets, 1 in round 0."""
        dtype = self.multiplier.dtype
        if self.keep == "replace":
            return jnp.ones(self.rounds, dtype)
        return 1 / jnp.arange(1, self.rounds + 1, dtype=dtype)

    @property
    def synthetic_share(self) -> Float[Array, ""] | float:
        """1 - a: the share of predictions in a round's labels."""
        return 1.0 if self.real_share is None else 1 - self.real_share

    def labels(self, real: Array, synthetic: Array) -> Array:
        """(1 - a) synthetic + a real, for labels, or for their noise."""
        if self.real_share is None:
            return synthetic
        return mix_targets(real, synthetic, self.real_share)


class _Round(NamedTuple):
    """What one round hands to the next, up to what it stands for: labels, or what they lack."""

    targets: Float[Array, "m *P"]
    fitted: Float[Array, "m *P"]


def fits(
    signal: Float[Array, "m *P"],
    noise: Float[Array, "T m *P"] | None,
    fit: Callable[[Array], Array],
    spec: RetrainingSpec,
) -> Float[Array, "T m *P"]:
    """f_t of every round, for noise that is drawn.

    Args:
        signal: z*, in the basis that ``fit`` works in.
        noise: of the labels of every round, there too: sigma ((1 - a) e_t + a e'_t), in round 0
            sigma e_0; None where there is none.
        fit: targets u to A u.
        spec: what is asked for.
    """

    def one_round(last: _Round, now: tuple[Array, Array | None]) -> tuple[_Round, Array]:
        share, error = now
        labels = spec.labels(signal, last.fitted)
        labels = labels if error is None else labels + error
        targets = mix_targets(labels, last.targets, share)
        fitted = fit(targets)
        return _Round(targets, fitted), fitted

    start = _Round(signal, signal)  # round 0 is given the signal as if it had been predicted
    return lax.scan(one_round, start, (spec.newest_shares, noise))[1]


def lost_signal(
    unfitted: Float[Array, "m *P"], fit: Callable[[Array], Array], spec: RetrainingSpec
) -> Float[Array, "T m *P"]:
    """z* - E f_t of every round: what of the signal is lost, without cancellation.

    With v_t = z* - E u_t, what the targets lack, z* - E f_t = (1 - A) z* + A v_t, and
    v_{t+1} = (1 - w) v_t + w (1 - a) (z* - E f_t), w = w_{t+1}, from v_0 = 0. In an eigenbasis, of
    "replace" without a real share, it is (1 - A^{t+1}) z*.

    Args:
        unfitted: (1 - A) z* = c (c I + G)^-1 z*.
        fit: targets u to A u.
        spec: what is asked for.
    """
    kept = spec.synthetic_share

    def one_round(last: _Round, share: Array) -> tuple[_Round, Array]:
        missing = mix_targets(kept * last.fitted, last.targets, share)
        lost = unfitted + fit(missing)
        return _Round(missing, lost), lost

    nothing = jnp.zeros_like(unfitted)
    return lax.scan(one_round, _Round(nothing, nothing), spec.newest_shares)[1]


def noise_gain(ridge: Float[Array, "m *Q"], spec: RetrainingSpec) -> Float[Array, "T m *Q"]:
    """Var f_t / sigma^2 of every coordinate: A^2 V_t, V_t the variance of its targets for noise of
    variance 1.

    V_t = ((1 - w) + w (1 - a) A)^2 V_{t-1} + w^2 ((1 - a)^2 + a^2), w = w_t, from V_0 = 1. At A = 1
    and a = 0 that is t + 1 ("replace"), and 1 + 1/4 + ... + 1/(t + 1)^2 ("accumulate").

    Args:
        ridge: A = d/(c + d).
        spec: what is asked for.
    """
    a, kept = spec.real_share, spec.synthetic_share
    shares = spec.newest_shares
    of_labels = jnp.ones_like(shares)
    if a is not None:
        of_labels = of_labels.at[1:].set((1 - a) ** 2 + a**2)

    def one_round(variance: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        share, fresh = now
        variance = mix_targets(kept * ridge, 1, share) ** 2 * variance + share**2 * fresh
        return variance, ridge**2 * variance

    return lax.scan(one_round, jnp.zeros_like(ridge), (shares, of_labels))[1]


def draw_noise(
    key: Array, shape: tuple[int, ...], spec: RetrainingSpec, *, first: Array | bool
) -> Float[Array, "..."]:
    """The noise of a round's labels, sigma ((1 - a) e + a e'); of the first round sigma e.

    Args:
        key: of this round and draw.
        shape: of the labels.
        spec: what is asked for, with a noise.
        first: whether it is round 0, which may be traced.
    """
    of_predictions, of_real = jax.random.split(key)
    dtype = spec.multiplier.dtype
    noise = jax.random.normal(of_predictions, shape, dtype)
    if spec.real_share is not None:
        real = jax.random.normal(of_real, shape, dtype)
        noise = mix_targets(real, noise, jnp.where(first, 0, spec.real_share))
    assert spec.noise is not None
    return spec.noise * noise
