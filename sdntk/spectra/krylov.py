"""As many Lanczos steps as a chain asks for: the recurrence runs on what is known so far, and its
error bound decides.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk import _memory
from sdntk._arguments import (
    ArrayLike,
    as_count,
    as_float_array,
    as_labels,
    as_number,
    format_number,
    is_traced,
)
from sdntk._linalg import blas_in_one_thread
from sdntk._processes import over_processes
from sdntk._progress import Bar
from sdntk._warnings import renamed_arguments
from sdntk.gram_matrices.linear_operator import GramOperator
from sdntk.spectra.krylov_spectrum import (
    KrylovSpectrum,
    RitzValues,
    chain_error_bounds,
    require_proved_weight,
    ritz_values,
    with_vectors,
)
from sdntk.spectra.lanczos import Lanczos, lanczos_extend, lanczos_init
from sdntk.theory.recurrence import ChainSpec, Outputs, run_chain
from sdntk.theory.units import in_unit, unit_of

#: The first look at the error bound is after so many steps.
FIRST_LOOK = 16
#: The fraction by which steps grow up to the next look: while nothing is known of the rate, and at
#: most.
GROWTH, MOST_GROWTH = 0.2, 0.4


class AccuracyError(ValueError):
    """The accuracy asked for was not reached; the message names the one that was, and the ways
    out.
    """


@renamed_arguments(accuracy="rtol", products="operator")
def krylov(
    operator: GramOperator,
    y: ArrayLike,
    *,
    tolerance: ArrayLike | None = None,
    multiplier: ArrayLike | None = None,
    rounds: int,
    ground_truth_weight: ArrayLike = 0.0,
    outputs: Outputs = "separate",
    rtol: float = 1e-6,
    max_steps: int | None = None,
) -> KrylovSpectrum:
    """The spectrum that a chain of self-distillation needs, from products with the Gram matrix
    alone.

    Lanczos runs from the labels of all outputs, one block for all, until for every round the bound
    on the relative error of multipliers and fitted values is at most ``rtol``. The result goes
    into :func:`sdntk.distill_spectrum`, with the same labels and any tolerance
    (``run.error_bounds`` then says what it is worth).

    Args:
        operator: G, see :func:`sdntk.as_operator` and :func:`sdntk.kernel_operator`.
        y: labels, shape (K,) or (K, Q).
        tolerance: of the chain, as :func:`sdntk.distill` takes it; shape (n, 1) or (n, Q) for n
            chains; steps are taken until all of them are accurate.
        multiplier: in place of the tolerance, likewise.
        rounds: T.
        ground_truth_weight: alpha, as :func:`sdntk.distill` takes it; with a tolerance between 0
            and 1, since bounds are proved for such weights only.
        outputs: "separate" or "joint".
        rtol: the largest relative error.
        max_steps: the most Lanczos steps, each of which takes as many vectors as labels are
            linearly independent, and at least 4; when left out, steps for K/2 vectors, but 400 to
            4,000, and no more than fit into a quarter of the free memory.

    Returns:
        A :class:`sdntk.KrylovSpectrum`.

    Raises:
        AccuracyError: the bound stays above ``rtol``: multipliers so small, or a spectrum so
            steep, that rounding or the number of steps forbids it. NotImplementedError: traced
            arguments. TypeError, ValueError: other bad input.

    Source: Saad 2011, *Numerical Methods for Large Eigenvalue Problems*, section 6.6; Golub and
    Meurant 2010, *Matrices, Moments and Quadrature with Applications*.

    Example:
        >>> from sdntk import distill_spectrum, kernel_operator, kernels
        >>> x = jax.random.normal(jax.random.key(0), (300, 3))
        >>> y = jnp.sign(x[:, 0])
        >>> G = kernel_operator(kernels.matern(1.5, 2.0), x)
        >>> spectrum = krylov(G, y, tolerance=0.1, rounds=4)
        >>> run = distill_spectrum(spectrum, y, tolerance=0.1, rounds=4)
        >>> int(spectrum.steps) < 100, bool(run.error_bounds.fitted.max() < 1e-6)
        (True, True)
    """
    if not isinstance(operator, GramOperator):
        raise TypeError(
            "operator must be what as_operator(G) or kernel_operator(kernel, x) returns; got "
            f"{type(operator).__name__}."
        )
    labels = as_labels("y", y, operator.num_points, dtype=jnp.result_type(float))
    rtol = as_rtol(rtol)
    refuse_traced(labels, tolerance, multiplier, ground_truth_weight)
    chains = _chains(
        labels,
        tolerance,
        multiplier,
        rounds=rounds,
        ground_truth_weight=ground_truth_weight,
        outputs=outputs,
    )
    for chain in chains:
        require_proved_weight(chain)
    process = lanczos_init(labels)
    if max_steps is None:
        most = _agreed(operator, min, _affordable_steps(process))
    else:
        most = as_count("max_steps", max_steps, at_least=1)
    steps_to_exhaust = -(-len(labels) // process.width)
    return _take_steps(operator, process, chains, rtol, min(most, steps_to_exhaust))


def as_rtol(value: float) -> float:
    """The Krylov method's accuracy, checked."""
    return as_number("rtol", value, lambda rtol: rtol > 0, "must be one positive number")


def refuse_traced(*values: Any) -> None:
    """Raise unless all of these have values to look at."""
    if is_traced(*values):
        raise NotImplementedError(
            "the Krylov method cannot be traced (jit, vmap, derivatives), since its number of "
            'steps follows from values: use the dense one (method="dense").'
        )


def _chains(
    labels: Float[Array, "K *Q"],
    tolerance: ArrayLike | None,
    multiplier: ArrayLike | None,
    **settings: Any,
) -> list[ChainSpec]:
    """A chain for each row of a tolerance or multiplier of two axes; a single one otherwise."""
    name, value = "multiplier", multiplier
    if multiplier is None:
        name, value = "tolerance", tolerance
    levels = None if value is None else as_float_array(name, value)
    if levels is None or levels.ndim != 2:
        return [ChainSpec.checked(labels, tolerance=tolerance, multiplier=multiplier, **settings)]
    if levels.size == 0:
        raise ValueError(f"{name} must hold a row for each chain; its shape is {levels.shape}.")
    chains = []
    for row in levels:
        level = row[0] if row.size == 1 else row
        one: dict[str, Any] = {"tolerance": None, "multiplier": None} | {name: level}
        chains.append(ChainSpec.checked(labels, **one, **settings))
    return chains


def _affordable_steps(process: Lanczos) -> int:
    """The default of ``max_steps``: as documented, and within a quarter of the free memory."""
    num_points = len(process.labels)
    vectors = max(400, min(num_points // 2, 4000))
    # With the Ritz vectors, of which padding may make four times as many, here and on the host.
    bytes_each = (num_points + 8 * vectors) * process.labels.dtype.itemsize
    affordable = _memory.free_memory() // 4 // bytes_each
    return max(1, min(vectors, affordable) // process.width)


def _agreed(operator: GramOperator, reduce: Callable[[Iterable[float]], float], value: Any) -> Any:
    """What processes that share the operator must decide alike."""
    return over_processes(reduce, value) if operator.shared else value


class _Look(NamedTuple):
    """The error bound after some steps, the largest of all rounds of all chains."""

    steps: int
    bound: float
    rounding: float  # what of the bound no further steps would mend


def _take_steps(
    operator: GramOperator, process: Lanczos, chains: list[ChainSpec], rtol: float, most: int
) -> KrylovSpectrum:
    """Lanczos steps until the bound is at most ``rtol``, or cannot become so."""
    num_points, steps = len(process.labels), min(FIRST_LOOK, most)
    dtypes = (operator.dtype, process.labels.dtype)
    eps = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    unit = unit_of(process.labels, joint=chains[0].joint)
    chains = [chain.in_unit(unit) for chain in chains]
    looks = [_Look(0, np.inf, np.inf)]
    with Bar(f"Lanczos steps, {num_points} points, {operator.description}", total=most) as bar:
        while True:
            with blas_in_one_thread():
                process = lanczos_extend(process, operator, steps)
                jax.block_until_ready(process.block)  # steps run behind what Python does
            values, vectors = ritz_values(
                process, machine_epsilon=eps, precision=operator.precision
            )
            look = _look(operator, process, values, unit, chains)
            bar.advance(steps - looks[-1].steps, f"error below {look.bound:.1e}")
            if look.bound <= rtol:
                return with_vectors(process, values, vectors, machine_epsilon=eps)

            # What rounding alone forbids, once multipliers are known well enough to tell, more
            # steps do not mend.
            rounding = min(look.rounding, looks[-1].rounding)
            known = max(look.bound, looks[-1].bound) < 1
            final = process.exhausted or (rounding > rtol and known)
            if steps >= most or final:
                raise AccuracyError(_complaint(process, look, rtol, final))
            looks.append(look)
            steps = min(most, _next_look(looks, rtol))


def _look(
    operator: GramOperator,
    process: Lanczos,
    values: RitzValues,
    unit: Float[Array, "*Q"],
    chains: list[ChainSpec],
) -> _Look:
    bounds = np.stack([_bounds(values, unit, chain) for chain in chains])
    largest = map(float, bounds.max(axis=0))  # nan where one is
    bound, rounding = (_agreed(operator, max, value) for value in largest)
    return _Look(process.steps, bound, rounding)


def _next_look(looks: list[_Look], rtol: float) -> int:
    """Where the bound will have come down to ``rtol``, if it goes on falling geometrically."""
    before, last = looks[-2:]
    if not last.bound < before.bound < np.inf:
        return last.steps + max(4, int(GROWTH * last.steps))
    per_step = np.log(before.bound / last.bound) / (last.steps - before.steps)
    missing = max(2, int(np.ceil(np.log(last.bound / rtol) / per_step)))
    return last.steps + min(missing, max(4, int(MOST_GROWTH * last.steps)))


@jax.jit
def _bounds(values: RitzValues, unit: Float[Array, "*Q"], chain: ChainSpec) -> Float[Array, " 2"]:
    """The error bound of a chain in this unit, the largest of all rounds, and what of it no further
    steps would mend.
    """
    z = in_unit(values.rotated_labels, unit)
    path = run_chain(values.eigenvalues, z, chain)

    def largest(residuals: Array) -> Array:
        bounds = chain_error_bounds(values._replace(residuals=residuals), z, path, chain)
        return jnp.maximum(bounds.multipliers.max(), bounds.fitted.max())

    return jax.vmap(largest)(jnp.stack([values.residuals, jnp.zeros_like(values.residuals)]))


def _complaint(process: Lanczos, look: _Look, rtol: float, final: bool) -> str:
    cause = "each round needs directions of small eigenvalue that so few steps do not find"
    if final:
        cause = (
            f"rounding alone amounts to {format_number(look.rounding)} of it: multipliers are too "
            "small against the largest eigenvalue, or a round is too close to collapse or to what "
            "the kernel can express"
        )
    ways = ["larger tolerance", "fewer rounds", "larger rtol"]
    if process.labels.dtype == jnp.float32:
        ways.append("float64")
    if not final:
        ways.append("more steps (max_steps)")
    return (
        f"accuracy {format_number(rtol)} was not reached: after {look.steps} Lanczos steps the "
        f"relative error is bounded by {format_number(look.bound)} only; {cause}. Ways out: "
        f'{", ".join(ways)}, or the dense path (method="dense").'
    )
