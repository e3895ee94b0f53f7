"""As many Lanczos steps as a chain asks for: the recurrence runs on what is known so far, and its
error bound decides.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

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
    format_number,
    is_traced,
)
from sdntk._progress import Bar
from sdntk.gram_matrices.products import Products
from sdntk.spectra.krylov_spectrum import KrylovSpectrum, chain_error_bounds, spectrum_of
from sdntk.spectra.lanczos import Lanczos, begin, extend
from sdntk.theory.recurrence import Chain, Trajectory, run_chain

#: The first look at the error bound; and how many more steps are taken, as a fraction, up to the
#: next one: while nothing is known, and at most.
FIRST_LOOK, GROWTH, MOST_GROWTH = 16, 0.2, 0.4


class AccuracyError(ValueError):
    """The accuracy asked for was not reached; the message names the one that was, and the ways
    out.
    """


def krylov(
    products: Products,
    y: ArrayLike,
    *,
    tolerance: ArrayLike | None = None,
    multiplier: ArrayLike | None = None,
    rounds: Any,
    ground_truth_weight: ArrayLike = 0.0,
    outputs: Any = "separate",
    accuracy: Any = 1e-6,
    max_steps: Any = None,
) -> KrylovSpectrum:
    """The spectrum that a chain of self-distillation needs, from products with the Gram matrix
    alone.

    Lanczos runs from the labels of all outputs, one block for all, until for every round the bound
    on the relative error of multipliers and fitted values is at most ``accuracy``. The result goes
    into :func:`sdntk.distill_spectrum`, with the same labels and any tolerance
    (``run.error_bounds`` then says what it is worth).

    Args:
        products: G, see :func:`sdntk.products`.
        y: labels, shape (K,) or (K, Q).
        tolerance: of the chain, as :func:`sdntk.distill` takes it; of shape (n, 1) or (n, Q), of n
            chains, to serve all of which steps are taken.
        multiplier: in place of the tolerance, likewise.
        rounds: T.
        ground_truth_weight: alpha.
        outputs: "separate" or "joint".
        accuracy: the largest relative error.
        max_steps: the most Lanczos steps, each of which takes as many vectors as labels are
            linearly independent, and at least 4; when left out, steps for K/2 vectors, but 400 to
            4,000, and no more than fit into a quarter of the free memory.

    Returns:
        A :class:`sdntk.KrylovSpectrum`.

    Raises:
        AccuracyError: the bound stays above ``accuracy``: multipliers so small, or a spectrum so
            steep, that rounding or the number of steps forbids it. NotImplementedError: traced
            arguments. TypeError, ValueError: other bad input.

    Source: Saad 2011, *Numerical Methods for Large Eigenvalue Problems*, section 6.6; Golub and
    Meurant 2010, *Matrices, Moments and Quadrature with Applications*.

    Example:
        >>> from sdntk import distill_spectrum, kernels, products
        >>> x = jax.random.normal(jax.random.key(0), (300, 3))
        >>> y = jnp.sign(x[:, 0])
        >>> spectrum = krylov(products(kernels.matern(1.5, 2.0), x), y, tolerance=0.1, rounds=4)
        >>> run = distill_spectrum(spectrum, y, tolerance=0.1, rounds=4)
        >>> int(spectrum.steps) < 100, bool(run.error_bounds.fitted.max() < 1e-6)
        (True, True)
    """
    labels = as_labels("y", y, products.num_points, dtype=jnp.result_type(float))
    accuracy = float(as_float_array("accuracy", accuracy))
    if not accuracy > 0:
        raise ValueError(f"accuracy must be positive; got {accuracy}.")
    refuse_traced(labels, tolerance, multiplier, ground_truth_weight)
    process = begin(labels)
    if max_steps is not None:
        most = as_count("max_steps", max_steps, at_least=1)
    else:
        most = _agreed(products, min, _most_steps(process))
    chains = _chains(
        labels,
        tolerance,
        multiplier,
        rounds=rounds,
        ground_truth_weight=ground_truth_weight,
        outputs=outputs,
    )
    return _take_steps(
        products, process, chains, accuracy, min(most, -(-len(labels) // process.width))
    )


def refuse_traced(*values: Any) -> None:
    """Raise unless all of these have values to look at."""
    if is_traced(*values):
        raise NotImplementedError(
            "the Krylov method cannot be traced (jit, vmap, derivatives), since its number of "
            "steps follows from values: "
            'use the dense one (method="dense").'
        )


def _chains(
    labels: Float[Array, "K *Q"],
    tolerance: ArrayLike | None,
    multiplier: ArrayLike | None,
    **settings: Any,
) -> list[Chain]:
    """A chain for each row of a tolerance or multiplier of two axes; a single one otherwise."""
    name, value = ("tolerance", tolerance) if multiplier is None else ("multiplier", multiplier)
    levels = None if value is None else as_float_array(name, value)
    if levels is None or levels.ndim != 2:
        return [Chain.of(labels, tolerance=tolerance, multiplier=multiplier, **settings)]
    rows = [row[0] if row.size == 1 else row for row in levels]
    other = {"tolerance": None, "multiplier": None}
    return [Chain.of(labels, **(other | {name: row}), **settings) for row in rows]


def _most_steps(process: Lanczos) -> int:
    num_points = len(process.labels)
    vectors = max(400, min(num_points // 2, 4000))
    # With the Ritz vectors, of which padding may make four times as many, here and on the host.
    of_each = (num_points + 8 * vectors) * process.labels.dtype.itemsize
    return max(1, min(vectors, _memory.free_memory() // 4 // of_each) // process.width)


def _agreed(products: Products, reduce: Callable[[Iterable[float]], float], value: Any) -> Any:
    """What processes that share the products must decide alike."""
    return _memory.over_processes(reduce, value) if products.shared else value


def _take_steps(
    products: Products, process: Lanczos, chains: list[Chain], accuracy: float, most: int
) -> KrylovSpectrum:
    num_points, steps = len(process.labels), min(FIRST_LOOK, most)
    eps = max(float(jnp.finfo(dtype).eps) for dtype in (products.dtype, process.labels.dtype))
    before, before_rounding, looks = np.inf, np.inf, []
    with Bar(f"Lanczos steps, {num_points} points, {products.what}", total=most) as bar:
        while True:
            process, taken = extend(process, products, steps), steps - process.steps
            spectrum = spectrum_of(process, machine_epsilon=eps)
            found = [_reached(spectrum, chain) for chain in chains]
            reached, rounding = (
                _agreed(products, max, max(float(bounds[i]) for bounds in found)) for i in (0, 1)
            )
            # What rounding alone forbids, once multipliers are known well enough to tell, more
            # steps do not mend.
            hopeless = min(rounding, before_rounding) > accuracy and max(reached, before) < 1
            bar.advance(taken, f"error below {reached:.1e}")
            if reached <= accuracy:
                return spectrum
            final = process.exhausted or hopeless
            if steps >= most or final:
                raise AccuracyError(_complaint(spectrum, reached, rounding, accuracy, final))
            before, before_rounding = reached, rounding
            looks.append((steps, reached))
            steps = min(most, _next_look(looks, accuracy))


def _next_look(looks: list[tuple[int, float]], accuracy: float) -> int:
    """Where the bound will have come down to the accuracy, if it goes on falling geometrically."""
    steps, bound = looks[-1]
    if len(looks) < 2 or not bound < looks[-2][1] < np.inf:
        return steps + max(4, int(GROWTH * steps))
    per_step = np.log(looks[-2][1] / bound) / (steps - looks[-2][0])
    missing = max(2, int(np.ceil(np.log(bound / accuracy) / per_step)))
    return steps + min(missing, max(4, int(MOST_GROWTH * steps)))


def _reached(spectrum: KrylovSpectrum, chain: Chain) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The largest error bound of a chain's rounds, and what of it no further steps would mend."""
    path = _path(spectrum, chain)
    no_residuals = dataclasses.replace(spectrum, residuals=jnp.zeros_like(spectrum.residuals))
    return _largest_bound(spectrum, path, chain), _largest_bound(no_residuals, path, chain)


@jax.jit
def _path(spectrum: KrylovSpectrum, chain: Chain) -> Trajectory:
    return run_chain(
        spectrum.eigenvalues,
        spectrum.rotated_labels,
        chain,
        chain.terms(spectrum.num_points, spectrum.labels),
    )


@jax.jit
def _largest_bound(spectrum: KrylovSpectrum, path: Trajectory, chain: Chain) -> Float[Array, ""]:
    bounds = chain_error_bounds(spectrum, path, chain)
    return jnp.maximum(bounds.multipliers.max(), bounds.fitted.max())


def _complaint(
    spectrum: KrylovSpectrum, reached: float, rounding: float, accuracy: float, final: bool
) -> str:
    cause = (
        f"rounding alone amounts to {format_number(rounding)} of it: multipliers are too small "
        "against the largest "
        "eigenvalue, or a round is too close to collapse or to what the kernel can express"
        if final
        else "each round needs directions of small eigenvalue that so few steps do not find"
    )
    single = spectrum.labels.dtype == jnp.float32
    return (
        f"accuracy {format_number(accuracy)} was not reached: after {int(spectrum.steps)} "
        "Lanczos steps the relative error "
        f"is bounded by {format_number(reached)} only; {cause}. Ways out: larger tolerance, "
        "fewer rounds, larger accuracy, "
        + ("float64, " if single else "")
        + ("" if final else "more steps (max_steps), ")
        + 'or the dense path (method="dense").'
    )
