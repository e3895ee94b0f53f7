"""Self-distillation of a kernel machine: :func:`distill` in one call, :func:`distill_spectrum` on a
decomposition.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import ArrayLike, as_labels, format_number, is_traced
from sdntk._warnings import renamed_arguments, warn
from sdntk.kernels.base import KernelFunction, check_points
from sdntk.spectra.base import AbstractSpectrum, PrecisionWarning
from sdntk.spectra.chain import Distillation
from sdntk.spectra.choose import MethodName, choose_spectrum
from sdntk.spectra.fit import (
    as_pytree_kernel,
    check_spectrum,
)
from sdntk.spectra.run_chain import run_on_spectrum
from sdntk.theory.multiplier import Status
from sdntk.theory.recurrence import ChainSpec, Outputs

#: machine_eps * d_max / c above which a multiplier is not to be trusted: it is then off by about
#: this fraction.
PRECISION_TOLERANCE = 1e-3


@renamed_arguments(accuracy="rtol")
def distill(
    kernel: KernelFunction,
    x: ArrayLike,
    y: ArrayLike,
    *,
    tolerance: ArrayLike | None = None,
    multiplier: ArrayLike | None = None,
    rounds: int,
    ground_truth_weight: ArrayLike = 0.0,
    outputs: Outputs = "separate",
    rank_tolerance: ArrayLike | None = None,
    method: MethodName = "dense",
    rtol: float = 1e-6,
    landmarks: Any = None,
    key: Array | None = None,
) -> Distillation:
    """Train a kernel machine on its own predictions, round after round.

    Round t solves  f_t = argmin R(f)  subject to  (1/K) sum_k (f(x_k) - (y_t)_k)^2 <= tolerance
    and hands y_{t+1} = f_t(x_1..x_K) to the next (Mobahi et al. 2020, eqs. 4, 27-31), until no
    function but 0 is needed.

    Args:
        kernel: g(x, x'), from :mod:`sdntk.kernels` or any function of (n1, ...) and (n2, ...)
            arrays to (n1, n2).
        x: training points, shape (K, ...).
        y: labels y_0, shape (K,) or (K, Q); integers and booleans are converted.
        tolerance: eps > 0, the mean squared error of each round against its targets; a scalar, or
            one for each output.
        multiplier: c > 0 in place of the tolerance, the same in each round (scikit-learn's
            ``alpha`` is K c).
        rounds: T >= 1; round 0 is ordinary training, so these are t = 0..T-1.
        ground_truth_weight: alpha, any real number, or shape (T - 1,), one for each later round:
            round t's targets are alpha_t y_0 + (1 - alpha_t) f_{t-1} (docs/theory.md, section 8).
            With a tolerance a round may be active after a collapsed one, unless weights lie in [0,
            1] and do not increase; and |alpha_t| > 1 may make a round infeasible.
        outputs: "separate", each output with its own multiplier and its own collapse (the paper's,
            section 3.6), or "joint", one multiplier for all and the loss averaged over points and
            outputs.
        rank_tolerance: see :func:`sdntk.decompose`.
        method: "dense", by an eigendecomposition; "tridiagonal", as exact and, of many points,
            quicker, but without eigenvectors, hence without ``filters``; "krylov", by products with
            the Gram matrix alone, as many as its ``rtol`` asks for (with a tolerance, for weights
            in [0, 1]); "nystrom", of millions of points, as far as the functions of ``landmarks``
            reach (:func:`sdntk.nystrom`); or "auto": dense up to 2,000 points, of traced arguments,
            with a rank tolerance and for weights that krylov does not take, else krylov. Where the
            Krylov method does not reach its accuracy, and memory allows it, the dense one takes
            over.
            ``run.method`` says which it was, ``run.method_reason`` why.
        rtol: of the Krylov method: the largest relative error of every c_t and f_t;
            ``run.error_bounds`` holds what was achieved.
        landmarks: of the Nystrom method: how many of the points to take, or points.
        key: of the Nystrom method: draws landmarks; ``jax.random.key(0)`` when left out.

    Returns:
        A :class:`Distillation`.

    Raises:
        ValueError, TypeError: bad input, each named; an infeasible tolerance, with the smallest
            feasible one; weights that make a later round infeasible, with the round; an indefinite
            Gram matrix. (Under jit each is a status, INFEASIBLE, and multipliers and fitted values
            are nan from there on.) AccuracyError: the Krylov method does not
            reach its accuracy, and the dense one does not fit into memory.

    Warns:
        PrecisionWarning: float32; a multiplier so small against d_max that rounding decides it;
            losses, norms or rotated labels too large or too small for any number, which hold inf or
            0 (multipliers, states and filters depend on no unit of the labels, and are right).

    Example:
        The paper's example (section 4), which collapses after four rounds:

        >>> from sdntk import datasets, distill, kernels
        >>> x, y = datasets.mobahi_example()
        >>> run = distill(kernels.cubic_spline(), x, y, tolerance=0.045, rounds=5)
        >>> [f"{c:.5e}" for c in run.multipliers[:4].tolist()], int(run.active_rounds)
        (['2.70525e-06', '8.76276e-05', '2.73755e-04', '7.90018e-04'], 4)
        >>> run.predict([0.25]).shape
        (5, 1)
    """
    points = check_points(kernel, "x", x)
    chain: dict[str, Any] = {
        "tolerance": tolerance,
        "multiplier": multiplier,
        "rounds": rounds,
        "ground_truth_weight": ground_truth_weight,
        "outputs": outputs,
    }
    chosen = choose_spectrum(
        kernel,
        points,
        y,
        method=method,
        rtol=rtol,
        rank_tolerance=rank_tolerance,
        landmarks=landmarks,
        key=key,
        chain=chain,
    )
    run = distill_spectrum(chosen.spectrum, y, **chain)
    return dataclasses.replace(
        run,
        kernel=as_pytree_kernel(kernel),
        x=points if chosen.spectrum.dual_points is None else chosen.spectrum.dual_points,
        method=chosen.method,
        method_reason=chosen.reason,
    )


def distill_spectrum(
    spectrum: AbstractSpectrum,
    y: ArrayLike,
    *,
    tolerance: ArrayLike | None = None,
    multiplier: ArrayLike | None = None,
    rounds: int,
    ground_truth_weight: ArrayLike = 0.0,
    outputs: Outputs = "separate",
) -> Distillation:
    """:func:`distill` on a decomposition that is at hand, for many label sets and tolerances on one
    Gram matrix.

    Arguments, result, errors and warnings are those of :func:`distill`. It may be jitted, vmapped
    over labels and tolerances, and differentiated with respect to labels, tolerance and multiplier;
    with respect to the Gram matrix, when it was decomposed under the same transformation,
    eigenvalues may coincide as they like (first derivatives only).

    Example:
        >>> from sdntk import datasets, decompose, distill_spectrum, gram, kernels
        >>> x, y = datasets.mobahi_example()
        >>> spectrum = decompose(gram(kernels.cubic_spline(), x))
        >>> run = lambda eps: distill_spectrum(spectrum, y, tolerance=eps, rounds=9)
        >>> jax.vmap(lambda eps: run(eps).active_rounds)(jnp.array([0.042, 0.045, 0.1])).tolist()
        [5, 4, 2]
    """
    check_spectrum(spectrum)
    labels = as_labels("y", y, spectrum.num_points, dtype=spectrum.dtype)
    chain = ChainSpec.checked(
        labels,
        tolerance=tolerance,
        multiplier=multiplier,
        rounds=rounds,
        ground_truth_weight=ground_truth_weight,
        outputs=outputs,
    )
    spectrum.check_chain(chain)
    run = run_on_spectrum(spectrum, labels, chain)
    if not is_traced(run):
        _raise_if_infeasible(run, labels, tolerance)
        _warn_if_imprecise(run)
        _warn_if_out_of_range(run)
    return run


def _raise_if_infeasible(run: Distillation, labels: Float[Array, "K *P"], tolerance: Any) -> None:
    by_round = np.asarray(run.status) == Status.INFEASIBLE
    if not by_round[-1].any():  # what is infeasible stays so
        return
    if np.isnan(float(run.spectrum.largest)):
        raise ValueError(
            "spectrum must be that of a positive semi-definite matrix; its eigenvalues are nan, "
            "which stands for an indefinite one where it was traced (jit, vmap, derivatives)."
        )
    infeasible = by_round[0]
    if not infeasible.any():
        _raise_for_later_round(run, by_round, tolerance)
    floor = np.asarray(run.spectrum.floor(labels))
    first = int(np.argmax(infeasible))
    worst, which = float(floor.mean()), ""
    if infeasible.ndim:
        worst, which = float(floor[first]), f" for output {first}"
    asked = float(np.broadcast_to(np.asarray(tolerance, float), infeasible.shape).flat[first])
    raise ValueError(
        f"tolerance {format_number(asked)} is infeasible{which}: no function of this space comes "
        f"closer to the labels than a mean squared error of {format_number(worst)}, because "
        f"{run.spectrum.describe_floor()}. The smallest feasible tolerance lies just above "
        f"{format_number(worst)}."
    )


def _raise_for_later_round(run: Distillation, infeasible: np.ndarray, tolerance: Any) -> None:
    """Of rounds (and outputs) that the weights have made infeasible, name the first."""
    t, *output = (int(index) for index in np.argwhere(infeasible)[0])
    asked = float(np.broadcast_to(np.asarray(tolerance, float), infeasible.shape[1:])[*output])
    weight = np.broadcast_to(np.asarray(run.ground_truth_weight), (len(infeasible) - 1,))[t - 1]
    which = f" for output {output[0]}" if output else ""
    raise ValueError(
        f"ground_truth_weight {format_number(float(weight))} makes round {t} infeasible{which}: "
        "the part of its targets that no function of this space can express, or that rounding "
        f"hides, has outgrown the tolerance {format_number(asked)}. With weights between 0 and 1 "
        "targets do not outgrow the labels."
    )


def _warn_if_imprecise(run: Distillation) -> None:
    multipliers = np.asarray(run.multipliers)[np.asarray(run.status) == Status.ACTIVE]
    if multipliers.size > 0:
        warn_of_rounding(float(multipliers.min()), run.spectrum)


def warn_of_rounding(c_min: float, spectrum: AbstractSpectrum) -> None:
    """Warn if the smallest multiplier is so small against d_max that rounding decides it."""
    eps, d_max = spectrum.machine_epsilon, float(spectrum.largest)
    ratio = eps * d_max / c_min if c_min > 0 else np.inf
    if ratio <= PRECISION_TOLERANCE:
        return
    other = "float64" if eps > 1e-10 else "a kernel whose spectrum falls more slowly"
    warn(
        f"multipliers are not to be trusted: machine_eps * d_max / c = {eps:.1e} * {d_max:.1e} / "
        f"{c_min:.1e} = {ratio:.1e}, about the fraction by which rounding moves the smallest "
        f"multiplier. Remedy: a larger tolerance, or {other}.",
        PrecisionWarning,
    )


def _warn_if_out_of_range(run: Distillation) -> None:
    """Say which numbers in the labels' unit have become inf or 0: multipliers, states and filters
    depend on no unit, and are right.
    """
    values = {
        name: np.asarray(getattr(run, name))
        for name in ("training_loss", "norms", "rotated_labels")
    }
    active = np.asarray(run.status) == Status.ACTIVE
    zero = {name: active & (values[name] == 0) for name in ("training_loss", "norms")}
    lost = [name for name, value in values.items() if np.isinf(value).any()]
    if any(where.any() for where in zero.values()):  # rarely: fits are large
        fits = _anything(np.asarray(run.fitted_coordinates), active)
        targets = np.concatenate([_anything(values["rotated_labels"][None], active), fits[:-1]])
        there = {"training_loss": targets, "norms": fits}
        lost += [name for name in zero if name not in lost and (zero[name] & there[name]).any()]
    if not lost:
        return
    sizes = np.abs(values["rotated_labels"]).max(axis=0)
    low, high = (format_number(float(size)) for size in (sizes.min(), sizes.max()))
    reach = high if low == high else f"{low} to {high}, by output"
    warn(
        f"{' and '.join(lost)} cannot be told in {run.spectrum.dtype}, and hold inf or 0 where "
        f"they are too large or too small: the rotated labels reach {reach}. Remedy: divide the "
        "labels by that, and a tolerance by its square.",
        PrecisionWarning,
    )


def _anything(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Whether there is anything but zeros in each round (and output)."""
    return np.asarray(values.any(axis=tuple(range(1, 1 + values.ndim - like.ndim))))
