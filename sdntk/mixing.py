"""Weights with which the rounds of a chain are mixed: the best ones for held-out data, without any,
or for a known signal.

With one multiplier c a chain's rounds are f_j = A^{j+1} y, A = D (c I + D)^-1, and every chain with
any ground-truth weights ends in a mixture sum_j w_j f_j of them, sum_j w_j = 1 (docs/theory.md,
section 8): the weights w are the parameter, ``run.mix(w)`` is the fit. Weights may be negative
(they undo shrinkage) or above 1 (they shrink more).

Every problem here is a least-squares problem with one linear constraint, solved in an orthogonal
basis of the rounds. No mixture of any number of rounds is better, for a known signal z* and noise
variance sigma^2, than the filter F_k = z*_k^2/(z*_k^2 + sigma^2).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import (
    ArrayLike,
    as_float_array,
    as_labels,
    as_parameter,
    format_number,
    is_traced,
    require_every,
    require_type,
)
from sdntk._array_like import ActsAsArray
from sdntk._pytrees import pytree
from sdntk._warnings import warn
from sdntk.spectra.base import PrecisionWarning
from sdntk.spectra.chain import Distillation
from sdntk.spectra.weights import one_shot_weights, oracle_weights
from sdntk.theory import weights as solvers
from sdntk.theory.multiplier import Status
from sdntk.theory.units import power_of_two


@pytree
class MixingWeights(ActsAsArray):
    """Weights of T rounds, of sum 1; wherever an array is wanted, the array ``weights``.

    Attributes:
        weights: w, shape (T,), or (T, Q) for weights of each output.
        condition: the condition number (in the Frobenius norm) of the differences of successive
            rounds, each divided by its norm, shape () or (Q,). It grows about fivefold with every
            round; infinite where the dtype cannot tell one round from the others, whose weights
            then are those of fewer rounds.
        rounding: by about which fraction of the largest weight rounding may move the weights, shape
            () or (Q,). Mixed fits move much less.
    """

    weights: Float[Array, "T *Q"]
    condition: Float[Array, "*Q"]
    rounding: Float[Array, "*Q"]

    @property
    def _array(self) -> Any:
        return self.weights


def one_shot(run: Distillation) -> MixingWeights:
    """Weights chosen without held-out data, by generalised cross-validation of mixtures.

    They minimise |sum_j w_j r_j|^2 subject to sum_j w_j = 1, where r_j = (y - f_j)/(1 - df_j/K) and
    df_j = tr A^{j+1}: w = Q^{-1} 1/(1^T Q^{-1} 1), Q_jl = r_j . r_l/K. For two rounds this is Dang
    et al.'s xi = (R - C)/(R + R_pd - 2 C), each risk estimated by generalised cross-validation. The
    student's estimate is not leave-one-out, and on many points w_1 tends to xi* (1 - df_1/K)/(1 -
    df_0/K), xi* being the best weight: see docs/papers.md. On few points (tens), or with
    many rounds, weights and multiplier tuned like this fit the noise: then choose the multiplier
    alone.

    Args:
        run: a chain with a fixed multiplier and ground-truth weight 0, on a spectrum that has all
            eigenvalues (dense or tridiagonal). Traced, another one gives nan.

    Returns:
        :class:`MixingWeights`, an array w of shape (T,), or (T, Q) for outputs with multipliers of
        their own, in the run's dtype; of joint outputs one vector.

    Raises:
        TypeError, ValueError: another run, by name.

    Warns:
        PrecisionWarning: rounding decides the weights.

    Source: Dang, Patil and Rinaldo 2026, for two rounds; docs/theory.md, section 8.

    Example:
        >>> from sdntk import distill, kernels
        >>> x = jnp.linspace(0, 1, 200)
        >>> y = jnp.sin(6 * x) + 0.3 * jax.random.normal(jax.random.key(0), (200,))
        >>> run = distill(kernels.rbf(0.3), x, y, multiplier=1e-4, rounds=3)
        >>> w = one_shot(run)
        >>> w.shape, float(w.sum().round(12)), run.mix(w).fitted.shape
        ((3,), 1.0, (200,))
    """
    _check_run(run)
    solution = one_shot_weights(
        run.spectrum,
        run.rotated_labels,
        run.multipliers,
        _is_plain(run),
        rounds=len(run.status),
    )
    return _result(solution)


def oracle(run: Distillation, signal: ArrayLike, noise_variance: ArrayLike) -> MixingWeights:
    """The best weights for a known signal: what no choice from data can do better than.

    Of labels z* + noise they minimise the expected error on the training points,
    sum_k ((1 - F_k) z*_k)^2 + sigma^2 F_k^2,  F = sum_j w_j A^{j+1},  sum_j w_j = 1.
    One round more never makes it larger; the floor is that of F_k = z*_k^2/(z*_k^2 + sigma^2). For
    two rounds xi = w_1 = -(c/2) R'(c)/|f_0 - f_1|^2 in expectation, 0 where c is best for one.

    Args:
        run: a chain with a fixed multiplier and ground-truth weight 0, on a dense or tridiagonal
            spectrum; its labels do not count. Traced, another one gives nan.
        signal: z*, its values on the training points, of the shape of the run's labels, (K,) or
            (K, Q).
        noise_variance: sigma^2 >= 0, in the labels' unit squared: a scalar, or (Q,), one for each
            output.

    Returns:
        :class:`MixingWeights`, an array w of shape (T,), or (T, Q) for outputs with multipliers of
        their own; of joint outputs one vector, for the sum of their risks.

    Raises:
        TypeError, ValueError: another run, a signal of another shape, a negative variance.

    Warns:
        PrecisionWarning: rounding decides the weights.

    Source: docs/theory.md, section 8; Dang, Patil and Rinaldo 2026, for two rounds.

    Example:
        The noisier the labels, the more weight the later rounds get:

        >>> from sdntk import distill, kernels
        >>> x = jnp.linspace(0, 1, 50)
        >>> truth = jnp.sin(6 * x)
        >>> run = distill(kernels.rbf(0.3), x, truth, multiplier=1e-3, rounds=2)
        >>> [f"{oracle(run, truth, noise)[1]:.1f}" for noise in (0.01, 0.1, 1.0)]
        ['-1.1', '0.8', '2.8']
    """
    _check_run(run)
    spectrum, outputs = run.spectrum, run.rotated_labels.shape[1:]
    z = as_labels("signal", signal, spectrum.num_points, dtype=spectrum.dtype)
    if z.shape[1:] != outputs:
        raise ValueError(
            f"signal must have the shape of the run's labels, {(spectrum.num_points, *outputs)}; "
            f"its shape is {z.shape}."
        )
    variance = as_parameter("noise_variance", noise_variance, z.dtype)
    if variance.shape not in ((), outputs):
        expected = "a scalar" if not outputs else f"a scalar or have shape {outputs}"
        raise ValueError(f"noise_variance must be {expected}; its shape is {variance.shape}.")
    require_every("noise_variance", variance, lambda v: v >= 0, "must be zero or positive")
    solution = oracle_weights(
        spectrum,
        z,
        jnp.broadcast_to(variance, outputs),
        run.multipliers,
        _is_plain(run),
        rounds=len(run.status),
    )
    return _result(solution)


def held_out(predictions: ArrayLike, y: ArrayLike) -> MixingWeights:
    """The weights that are best on held-out data: minimise |y - sum_j w_j p_j|^2, sum_j w_j = 1.

    Predictions may come from anything that has rounds: kernels (``run.predict(x_val)``), with fixed
    multipliers or tolerances, and networks. A round that predicts what the one before it does, such
    as all but the first of the collapsed ones, gets weight 0.

    Args:
        predictions: p_j of each round at the held-out points, shape (T, n) or (T, n, Q).
        y: their labels, shape (n,) or (n, Q).

    Returns:
        :class:`MixingWeights`, an array w of shape (T,): one vector, for all outputs together.

    Raises:
        TypeError, ValueError: shapes that do not go together; nan or inf.

    Warns:
        PrecisionWarning: rounding of the predictions, in their own dtype, decides the weights, or
            fewer held-out labels than rounds.

    Source: docs/theory.md, section 8.

    Example:
        >>> predictions = jnp.array([[1.0, 2.0, 3.0], [0.5, 1.0, 1.5]])
        >>> held_out(predictions, jnp.array([1.5, 3.0, 4.5])).round(9).tolist()
        [2.0, -1.0]
    """
    p = as_float_array("predictions", predictions)
    if p.ndim not in (2, 3) or p.size == 0:
        raise ValueError(
            "predictions must have shape (T, n) or (T, n, Q), rounds first; their shape is "
            f"{p.shape}."
        )
    dtype = jnp.promote_types(p.dtype, jnp.result_type(float))
    labels = as_float_array("y", y, dtype=dtype)
    if labels.shape != p.shape[1:]:
        raise ValueError(
            f"y must have shape {p.shape[1:]}, as each round's predictions have; its shape is "
            f"{labels.shape}."
        )
    eps = jnp.asarray(jnp.finfo(p.dtype).eps, dtype)
    return _result(_held_out(p.astype(dtype), labels, eps))


def per_round(weights: ArrayLike) -> Float[Array, " n"]:
    """The teacher's weight in each round of a chain that ends in the mixture.

    With F_t = A ((1 - xi_t) + xi_t F_{t-1}) and F_0 = A, the last round is F_{T-1} = sum_j w_j
    A^{j+1} for xi_{T-j} = S_j/S_{j-1}, S_j = w_j + .. + w_{T-1}. With a fixed multiplier,
    ``distill_spectrum(..., ground_truth_weight=1 - per_round(w))`` then ends in ``run.mix(w)``. For
    T = 3, xi_2 = 1 - w_0 and xi_1 = w_2/(w_1 + w_2).

    Args:
        weights: w, of sum 1, shape (T,).

    Returns:
        xi_1, .., xi_{T-1}, shape (T - 1,). Where a sum S_j and all later ones are 0, the rounds
        that do not count have xi = 0. Traced, a singular one is inf.

    Raises:
        TypeError, ValueError: weights of another shape, or whose sum is not 1; a sum S_j that is 0
            though a later one is not: no chain ends in this mixture, though ``run.mix(w)`` makes
            it. w is the safe parameter.

    Source: Pareek, Du and Oh 2024; docs/theory.md, section 8.

    Example:
        >>> per_round([0.5, 0.25, 0.25]).tolist()
        [0.5, 0.5]
    """
    w = as_parameter("weights", weights)
    if w.ndim != 1 or w.size == 0:
        raise ValueError(f"weights must have shape (T,), T >= 1; their shape is {w.shape}.")
    if is_traced(w):
        return _per_round(w)
    values = np.asarray(w)
    total, size = float(values.sum()), float(np.abs(values).sum())
    if not abs(total - 1) <= 32 * float(jnp.finfo(w.dtype).eps) * max(size, 1):
        raise ValueError(
            f"weights must have the sum 1; theirs is {format_number(total)}. (run.mix takes any.)"
        )
    xi = _per_round(w)
    singular = np.isinf(np.asarray(xi))
    if singular.any():
        j = len(values) - 2 - int(np.argmax(singular))
        raise ValueError(
            f"weights from round {j} on have the sum 0, though those from round {j + 1} on have "
            "not: no chain of rounds ends in this mixture. Use the weights themselves, which are "
            "the safe parameter: run.mix(weights)."
        )
    return xi


_per_round = jax.jit(solvers.weights_of_teachers)


# ---- runs ----


def _check_run(run: Distillation) -> None:
    """Refuse a run whose rounds are not the powers of one filter, or whose traces are unknown."""
    require_type("run", run, Distillation, "what distill or distill_spectrum returns")
    run.require_one()
    spectrum = run.spectrum
    if not (spectrum.has_all_eigenvalues and spectrum.has_basis_on_points):
        raise ValueError(
            "run must be on a spectrum that has all eigenvalues, dense or tridiagonal: a "
            f"{type(spectrum).__name__} knows no trace of all, and no signal but its labels."
        )
    if is_traced(run):
        return
    if not bool(_is_plain(run)):
        raise ValueError(
            "run must be a chain with a fixed multiplier and ground_truth_weight 0, "
            "distill(..., multiplier=c, rounds=T): the rounds of others are no powers of one "
            "filter."
        )


def _is_plain(run: Distillation) -> Any:
    """Whether the rounds are powers of one filter that does not depend on the labels."""
    np_or_jnp: Any = jnp if is_traced(run) else np
    c, status, steps, alpha = (
        np_or_jnp.asarray(v)
        for v in (run.multipliers, run.status, run.iterations, run.ground_truth_weight)
    )
    same = (c == c[:1]).all() & (status == Status.ACTIVE).all()
    return same & (steps == 0).all() & (alpha == 0).all()


@jax.jit
def _held_out(
    predictions: Float[Array, "T n *Q"], y: Float[Array, "n *Q"], eps: Float[Array, ""]
) -> solvers.Solution:
    inverse = 1 / jnp.maximum(power_of_two(predictions), power_of_two(y))
    rows = predictions.reshape(len(predictions), -1)
    return solvers.best_for_labels(rows * inverse, y.ravel() * inverse, eps)


# ---- results ----


def _result(solution: solvers.Solution) -> MixingWeights:
    """The weights, with a warning where rounding decides them."""
    found = MixingWeights(*solution)
    if not is_traced(solution):
        _warn_if_imprecise(found)
    return found


def _warn_if_imprecise(found: MixingWeights) -> None:
    rounding, condition = np.asarray(found.rounding), np.asarray(found.condition)
    if (rounding <= solvers.TOLERANCE).all():
        return
    rounds = f"{len(found.weights)} rounds"
    if np.isinf(condition).any():
        cause = (
            f"the {rounds} cannot be told apart in {found.weights.dtype}, or on so few points; "
            "what cannot be told has got no weight"
        )
    else:
        cause = (
            f"the differences of the {rounds} have the condition {condition.max():.1e}, and "
            f"rounding may move the weights by {rounding.max():.1e} of the largest"
        )
    warn(
        f"weights are not to be trusted: {cause}. Remedy: fewer rounds, float64, or more points. "
        "(The mixed fit moves less than the weights.)",
        PrecisionWarning,
    )
