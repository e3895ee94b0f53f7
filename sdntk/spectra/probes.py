"""Traces of filters that no eigenvalue tells: tr F = E[e^T F e] over random signs e (Hutchinson).

Lanczos steps from a block of probes give e^T F(G) e as a Gauss quadrature, sum_j F(theta_j) z_j^2
over Ritz values theta and the probe's coordinates z on their vectors, exact for polynomials of
twice as many degrees as steps. So each probe is worth one number, and their scatter says how far
the mean may be off.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk._linalg import tensordot
from sdntk.gram_matrices.linear_operator import GramOperator
from sdntk.spectra.degrees_of_freedom import ChainOnSpectrum
from sdntk.spectra.krylov_spectrum import ritz_values
from sdntk.spectra.lanczos import lanczos_extend, lanczos_init
from sdntk.theory import filters

#: Steps before the first look; every following look is after twice as many.
FIRST_LOOK = 8
#: Steps are enough once the last ones moved the mean by at most this part of its standard error.
SMALL_CHANGE = 0.1


class Traces(NamedTuple):
    """Estimates of tr F_t, and their standard errors, each of shape (T,) or (T, Q)."""

    mean: Float[Array, "T *Q"]
    standard_error: Float[Array, "T *Q"]


def traces_by_own_block(
    operator: GramOperator, chain: ChainOnSpectrum, key: Array, count: int
) -> Traces:
    """By Lanczos steps from ``count`` probes, as many steps as their scatter asks for."""
    probes = random_signs(key, operator.num_points, count, chain.z.dtype)
    process, steps = lanczos_init(probes), FIRST_LOOK
    most = -(-operator.num_points // process.width)
    eps = max(float(jnp.finfo(dtype).eps) for dtype in (operator.dtype, probes.dtype))
    last = None
    while True:
        process = lanczos_extend(process, operator, min(steps, most))
        values = ritz_values(process, machine_epsilon=eps, precision=operator.precision)[0]
        found = traces_by_coordinates(values.eigenvalues, values.rotated_labels, chain)
        if last is not None:
            moved = jnp.abs(found.mean - last.mean) <= SMALL_CHANGE * found.standard_error
            if bool(jnp.all(moved | jnp.isnan(found.mean))):
                return found
        if process.exhausted or steps >= most:
            return found
        last, steps = found, 2 * steps


@jax.jit
def traces_by_coordinates(
    ritz_values: Float[Array, " M"], z: Float[Array, "M n"], chain: ChainOnSpectrum
) -> Traces:
    """From the coordinates of n probes on Ritz vectors."""
    of_one = filters.distillation(ritz_values, chain.multipliers, chain.ground_truth_weight)[0]
    by_probe = chain.outputs_with_one_multiplier * tensordot(of_one, z**2, ((1,), (0,)))
    count = z.shape[1]
    scatter = (
        jnp.std(by_probe, axis=-1, ddof=1)
        if count > 1
        else jnp.full_like(by_probe[..., 0], jnp.inf)
    )
    return Traces(jnp.mean(by_probe, axis=-1), scatter / count**0.5)


def random_signs(key: Array, num_points: int, count: int, dtype: Any) -> Float[Array, "K n"]:
    """Probes, of +1 and -1."""
    return jax.random.rademacher(key, (num_points, count), dtype)
