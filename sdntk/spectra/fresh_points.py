"""Retraining on new points in every round: no common eigenbasis, but every round is a linear map.

Fit t, on points X_t with targets u_t, takes at any points x the values

    f_t(x) = g_x^T (c I + G_t)^-1 u_t,      G_t the Gram matrix of X_t,

so its values on the first points and on the next ones are P_t u_t and S_t u_t. The labels of the
next points are y_{t+1} = S_t u_t + sigma e_{t+1}, and the next targets are these alone, or these
and all before them on the union of the points. With m_t = E u_t and C_t = Cov u_t / sigma^2,

    m_{t+1} = S_t m_t,      C_{t+1} = S_t C_t S_t^T + I,

(or the blocks that the union gives), m_0 = z*, C_0 = I; the expected error on the K first points is
|P_t m_t - z*|^2 / K + sigma^2 tr(P_t C_t P_t^T) / K.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk._arguments import is_traced
from sdntk._linalg import matmul
from sdntk.gram_matrices.compute import compute_gram
from sdntk.kernels.base import KernelFunction, kernel_precision
from sdntk.spectra.base import AbstractSpectrum
from sdntk.spectra.dense import decompose_checked
from sdntk.spectra.fit import refusing_derivatives
from sdntk.spectra.matrix import in_full_precision
from sdntk.spectra.retraining import (
    Course,
    in_own_unit,
    mean_squared_distance,
    out_of_unit,
)
from sdntk.theory.retraining import Keep, RetrainingSpec, draw_noise
from sdntk.theory.units import mean_square

#: The spectrum given may differ by this fraction from that of the first points.
SAME_GRAM = 1e-3


class RoundMap(NamedTuple):
    """What a fit makes of its N targets.

    Attributes:
        to_first: P_t, its values on the K first points, shape (K, N).
        to_next: S_t, its values on the n next points, shape (n, N); none of the last round.
    """

    to_first: Float[Array, "K N"]
    to_next: Float[Array, "n N"]


def round_maps(
    spectrum: AbstractSpectrum,
    kernel: KernelFunction,
    designs: list[Float[Array, "_ ..."]],
    multiplier: Float[Array, ""],
    keep: Keep,
) -> list[RoundMap]:
    """The maps of every round, by one decomposition a round.

    Args:
        spectrum: of the first points.
        kernel: the kernel.
        designs: the points of every round, those of the spectrum first, which the kernel takes.
        multiplier: c.
        keep: "replace", a round's points are its own; "accumulate", all points so far.

    Raises:
        ValueError: the spectrum is not that of the first points.
    """
    first, maps = designs[0], []
    for t, own in enumerate(designs):
        points = own if keep == "replace" else jnp.concatenate(designs[: t + 1])
        on = jnp.concatenate([first, *designs[t + 1 : t + 2]])
        cross = compute_gram(kernel, on, points).astype(spectrum.dtype)
        if t == 0:
            _require_spectrum_of(spectrum, cross[: len(first)])
            values = _values(spectrum, cross, multiplier)
        else:
            values = _values(_decompose(kernel, points), cross, multiplier)
        maps.append(RoundMap(values[: len(first)], values[len(first) :]))
    return maps


def _decompose(kernel: KernelFunction, x: Float[Array, "n ..."]) -> AbstractSpectrum:
    matrix = in_full_precision(compute_gram(kernel, x), kernel_precision(kernel, x))
    return decompose_checked(matrix)


@jax.jit
def _values(
    spectrum: AbstractSpectrum, cross: Float[Array, "n N"], multiplier: Float[Array, ""]
) -> Float[Array, "n N"]:
    """g_x^T (c I + G)^-1 for the points x of every row."""
    if spectrum.matrix is not None:
        cross = cross * refusing_derivatives(spectrum.matrix)
    return spectrum.unrotate(spectrum.resolvent(multiplier, spectrum.rotate(cross.T))).T


def _require_spectrum_of(spectrum: AbstractSpectrum, gram: Float[Array, "K K"]) -> None:
    difference = _relative_difference(spectrum, gram)
    if not is_traced(difference) and not difference <= SAME_GRAM:
        raise ValueError(
            "points[0] must be the points of the spectrum, in their order, with its kernel: "
            f"gram(kernel, points[0]) differs from its Gram matrix by {float(difference):.1e} of "
            "its norm."
        )


@jax.jit
def _relative_difference(spectrum: AbstractSpectrum, gram: Float[Array, "K K"]) -> Float[Array, ""]:
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    known = spectrum.unrotate(spectrum.apply(spectrum.rotate(identity)))
    size = jnp.max(jnp.abs(gram))
    return jnp.max(jnp.abs(known - gram)) / jnp.where(size > 0, size, 1)


def retrain_on_fresh_points(
    maps: list[RoundMap],
    signal: Float[Array, "K *P"],
    spec: RetrainingSpec,
    key: Array | None,
    draws: int,
) -> Course:
    """Rounds on the points of each.

    Args:
        maps: of every round.
        signal: z* on the first points.
        spec: what is asked for, without a real share.
        key: of the noise; None where there is none.
        draws: n.
    """
    signal, spec, unit = in_own_unit(signal, spec)
    return out_of_unit(_course(maps, signal, spec, key, draws), unit)


@partial(jax.jit, static_argnums=4)
def _course(
    maps: list[RoundMap],
    signal: Float[Array, "K *P"],
    spec: RetrainingSpec,
    key: Array | None,
    draws: int,
) -> Course:
    fitted = _fits(maps, signal, spec, key, draws)
    lost, gain = _lost_signal_and_gain(maps, signal, spec)
    noise = jnp.zeros((), signal.dtype) if spec.noise is None else spec.noise
    return Course(
        fitted=fitted,
        error=mean_squared_distance(fitted, signal),
        squared_bias=mean_square(lost, signal.size, over=tuple(range(1, lost.ndim))),
        variance=noise**2 * gain,
    )


def _fits(
    maps: list[RoundMap],
    signal: Float[Array, "K *P"],
    spec: RetrainingSpec,
    key: Array | None,
    draws: int,
) -> Float[Array, "n T K *P"]:
    """f_t on the first points, for every draw: draws are columns of one matrix product."""

    def noise_of(t: int, num_points: int) -> Float[Array, "m n *P"]:
        shape = (num_points, *signal.shape[1:])
        if key is None or spec.noise is None:
            return jnp.zeros((num_points, draws, *shape[1:]), signal.dtype)

        def one_draw(index: Array) -> Array:
            of_draw = jax.random.fold_in(key, index)
            return draw_noise(jax.random.fold_in(of_draw, t), shape, spec, first=t == 0)

        return jnp.moveaxis(jax.vmap(one_draw)(jnp.arange(draws)), 0, 1)

    targets = signal[:, None] + noise_of(0, len(signal))
    fitted = []
    for t, (to_first, to_next) in enumerate(maps):
        fitted.append(_times(to_first, targets))
        if t + 1 < len(maps):
            labels = _times(to_next, targets) + noise_of(t + 1, len(to_next))
            targets = _joined(targets, labels, spec.keep)
    return jnp.moveaxis(jnp.stack(fitted), 2, 0)


def _lost_signal_and_gain(
    maps: list[RoundMap], signal: Float[Array, "K *P"], spec: RetrainingSpec
) -> tuple[Float[Array, "T K *P"], Float[Array, " T"]]:
    """z* - E f_t on the first points, and the mean of Var f_t / sigma^2 over them."""
    mean, covariance = signal, jnp.eye(len(signal), dtype=signal.dtype)
    lost, gain = [], []
    for t, (to_first, to_next) in enumerate(maps):
        lost.append(signal - _times(to_first, mean))
        gain.append(jnp.sum(matmul(to_first, covariance) * to_first) / len(signal))
        if t + 1 < len(maps):
            mean = _joined(mean, _times(to_next, mean), spec.keep)
            across = matmul(to_next, covariance)
            own = matmul(across, to_next.T) + jnp.eye(len(to_next), dtype=signal.dtype)
            if spec.keep == "replace":
                covariance = own
            else:
                covariance = jnp.block([[covariance, across.T], [across, own]])
    return jnp.stack(lost), jnp.stack(gain)


def _joined(targets: Float[Array, "N *P"], labels: Float[Array, "n *P"], keep: Keep) -> Array:
    return labels if keep == "replace" else jnp.concatenate([targets, labels])


def _times(values: Float[Array, "n N"], columns: Float[Array, "N *P"]) -> Float[Array, "n *P"]:
    """A matrix product, all axes behind the first carried along."""
    product = matmul(values, columns.reshape(len(columns), -1))
    return product.reshape(-1, *columns.shape[1:])
