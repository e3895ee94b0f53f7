"""Choosing a round, a tolerance or a multiplier without held-out data.

Each criterion estimates the risk of every round from the labels that it was fitted to: what the fit
has learnt of their noise is told by its degrees of freedom (docs/theory.md, section 9).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import (
    ArrayLike,
    as_count,
    as_flag,
    as_float_array,
    as_key,
    as_labels,
    as_positive,
    is_traced,
    require_every,
    require_type,
)
from sdntk._array_like import ActsAsArray
from sdntk._linalg import matmul
from sdntk._pytrees import pytree
from sdntk.gram_matrices.operator import kernel_operator
from sdntk.spectra.base import AbstractSpectrum
from sdntk.spectra.chain import Distillation
from sdntk.spectra.degrees_of_freedom import traces_of_filters
from sdntk.spectra.fit import check_spectrum
from sdntk.spectra.padding import trimmed
from sdntk.spectra.probes import Traces, traces_by_coordinates, traces_by_own_block
from sdntk.theory.criteria import generalised_cross_validation, unbiased_risk
from sdntk.theory.multiplier import Status
from sdntk.theory.recurrence import num_residuals
from sdntk.theory.units import in_unit, linearly, mean_square, out_of_unit, unit_of

#: Probes of an estimate, where their number is left out.
PROBES = 32
#: A label counts as a probe if their mean squared distance is less.
SAME_PROBE = 1e-5


@pytree
class Estimate(ActsAsArray):
    """An estimate by random probes; wherever an array is wanted, the array ``value``.

    Attributes:
        value: shape (T,) or (T, Q).
        standard_error: of the same shape.
    """

    value: Float[Array, "T *Q"]
    standard_error: Float[Array, "T *Q"]

    @property
    def _array(self) -> Any:
        return self.value


def degrees_of_freedom(
    run: Distillation,
    relative: bool = False,
    key: Array | None = None,
    probes: int | ArrayLike | None = None,
) -> Float[Array, "T *Q"] | Estimate:
    """Degrees of freedom df_t = sum_k d f_t(x_k)/d y_k of every round, also where
    ``run.degrees_of_freedom`` cannot know them.

    With c_t chosen by a tolerance,  df_t = tr F_t + sum_i v_i . g_i,  where dc_i = g_i . dz_0 and
    v_i = d f_t/d c_i. A Krylov run knows all of it but tr F_t, which is the mean of e^T F_t e over
    vectors e of random signs, the probes.

    Args:
        run: of a chain, on any spectrum.
        relative: whether its tolerance was a fraction of the labels' mean square, as in
            ``tolerance=0.1 * jnp.mean(y**2)``: then it follows the labels, too. Where it had one
            for each output, the fraction is of that output's mean square.
        key: of a Krylov run that knows its kernel, for probes in a Lanczos block of their own.
        probes: with a key, how many (32 when left out). Without, of a Krylov run that has probes
            among its labels, these, shape (K, n): vectors of random signs that lie in the Krylov
            space already, so that nothing new is computed.

    Returns:
        Shape (T,) or (T, Q); with joint outputs, of all of them together. Of a Krylov run an
        :class:`Estimate`. 0 where collapsed, nan once infeasible.

    Raises:
        ValueError, TypeError: bad input, each named; a Krylov run without key and probes, or
            without a kernel; several runs, stacked by ``jax.vmap``. NotImplementedError: a Krylov
            run that is traced.

    Source: docs/theory.md, section 9; Hutchinson 1989, *A stochastic estimator of the trace of the
    influence matrix*.

    Example:
        >>> from sdntk import distill, kernels
        >>> x = jnp.linspace(0, 1, 40)
        >>> y = jnp.sin(6 * x) + 0.3 * jax.random.normal(jax.random.key(0), (40,))
        >>> run = distill(kernels.rbf(0.3), x, y, tolerance=0.1 * jnp.mean(y**2), rounds=3)
        >>> relative = degrees_of_freedom(run, relative=True)
        >>> [f"{of_fraction - of_number:.1f}"
        ...  for of_fraction, of_number in zip(relative, run.degrees_of_freedom)]
        ['-0.2', '-0.7', '-0.9']
    """
    _require_run(run)
    relative = as_flag("relative", relative)
    chain = run.with_known_multipliers()
    response = run.multiplier_responses(relative=relative)
    if run.spectrum.has_all_eigenvalues:
        if key is not None or probes is not None:
            raise ValueError(
                "key and probes are for Krylov runs: of this spectrum the trace is known."
            )
        return trimmed(traces_of_filters(run.spectrum.eigenvalues, chain), len(response)) + response
    if is_traced(run, key, probes):
        raise NotImplementedError(
            "degrees of freedom of a Krylov run cannot be traced (jit, vmap, derivatives), since "
            "their number of Lanczos steps follows from values."
        )
    if key is not None:
        count = PROBES if probes is None else as_count("probes", probes, at_least=2)
        if run.kernel is None or run.x is None:
            raise ValueError(
                "run must know its kernel, for products with the probes, as a run of distill(...) "
                "does; of one on a Krylov spectrum give probes that are among its labels."
            )
        operator = kernel_operator(run.kernel, run.x)
        found = traces_by_own_block(operator, chain, as_key("key", key), count)
    elif probes is not None:
        z = _coordinates_of(run, probes)
        found = traces_by_coordinates(run.spectrum.eigenvalues, z, chain)
    else:
        raise ValueError(
            "key must be given, such as jax.random.key(0): a Krylov run knows no trace, and "
            "random probes estimate it."
        )
    traces = Traces(*trimmed(tuple(found), len(response)))
    return Estimate(traces.mean + response, traces.standard_error)


def _coordinates_of(run: Distillation, probes: ArrayLike) -> Float[Array, "M n"]:
    """Of probes that are among the labels of the run."""
    vectors = as_float_array("probes", probes, dtype=run.spectrum.dtype)
    labels = linearly(run.spectrum.unrotate, run.rotated_labels).reshape(
        run.spectrum.num_points, -1
    )
    if vectors.ndim != 2 or len(vectors) != len(labels) or vectors.shape[1] < 2:
        raise ValueError(
            f"probes must have shape ({len(labels)}, n), n >= 2, or be a number, with a key; their "
            f"shape is {vectors.shape}."
        )
    require_every("probes", vectors, lambda v: abs(v) == 1, "must be vectors of +1 and -1")
    # |v - l|^2/K of all pairs.
    distance = 1 + jnp.mean(labels**2, axis=0)[None] - 2 * matmul(vectors.T, labels) / len(labels)
    if not bool(jnp.all(jnp.min(distance, axis=1) < SAME_PROBE)):
        raise ValueError(
            "probes must be among the labels that the Krylov spectrum was made from, as with "
            "krylov(operator, jnp.concatenate([y, probes], axis=1), ...)."
        )
    columns = jnp.argmin(distance, axis=1)
    return run.rotated_labels.reshape(len(run.rotated_labels), -1)[:, columns]


def gcv(
    run: Distillation, degrees_of_freedom: ArrayLike | Estimate | None = None
) -> Float[Array, "T *Q"]:
    """Generalised cross-validation of every round,  (|y - f_t|^2/K) / (1 - df_t/K)^2.

    It estimates the risk against *noisy* labels, without their variance. Its values are biased
    where df_t is a large part of K; it is infinite from df_t = K on. What scikit-learn's RidgeCV
    calls by this name is :func:`leave_one_out`.

    Args:
        run: of a chain.
        degrees_of_freedom: df_t; ``run.degrees_of_freedom`` when left out. A Krylov run, or one
            whose tolerance is a fraction of the labels' mean square, has them from
            :func:`degrees_of_freedom`.

    Returns:
        Shape (T,) or (T, Q), in the labels' unit squared; with joint outputs, of all together, with
        K Q in place of K. nan once infeasible.

    Source: Golub, Heath and Wahba 1979, *Generalized cross-validation as a method for choosing a
    good ridge parameter*; docs/theory.md, section 9.

    Example:
        >>> from sdntk import datasets, distill, kernels
        >>> x, y = datasets.mobahi_example()
        >>> run = distill(kernels.cubic_spline(), x, y, tolerance=0.045, rounds=4)
        >>> int(jnp.argmin(gcv(run)))
        1
    """
    _require_run(run)
    df = _as_degrees_of_freedom(run, degrees_of_freedom)
    return generalised_cross_validation(_training_error(run), df, _count(run))


def sure(
    run: Distillation,
    noise_variance: ArrayLike,
    degrees_of_freedom: ArrayLike | Estimate | None = None,
) -> Float[Array, "T *Q"]:
    """Stein's unbiased risk estimate of every round,  |y - f_t|^2/K - sigma^2 + 2 sigma^2 df_t/K.

    Its mean over Gaussian noise is the risk |f_t - f|^2/K against the labels' mean f, whatever that
    is.

    Args:
        run: of a chain.
        noise_variance: sigma^2 of the labels, positive, shape () or (Q,).
        degrees_of_freedom: as :func:`gcv` takes them.

    Returns:
        Shape (T,) or (T, Q), in the labels' unit squared; with joint outputs, of all together, with
        K Q in place of K. nan once infeasible.

    Source: Stein 1981, *Estimation of the mean of a multivariate normal distribution*;
    docs/theory.md, section 9.

    Example:
        >>> from sdntk import datasets, distill, kernels
        >>> x, y = datasets.mobahi_example()
        >>> run = distill(kernels.cubic_spline(), x, y, tolerance=0.045, rounds=4)
        >>> int(jnp.argmin(sure(run, 0.25)))
        1
    """
    _require_run(run)
    outputs = run.status.shape[1:]
    variance = as_positive("noise_variance", noise_variance, outputs, dtype=run.spectrum.dtype)
    df = _as_degrees_of_freedom(run, degrees_of_freedom)
    if variance.ndim:
        variance = variance[None]
    return unbiased_risk(_training_error(run), df, _count(run), variance)


def leave_one_out(
    spectrum: AbstractSpectrum, y: ArrayLike, multiplier: ArrayLike
) -> Float[Array, "K *Q"]:
    """What a fit with a multiplier is off at each point, when it is fitted to all others.

    y_k - f^(-k)(x_k) = (y_k - f_k)/(1 - S_kk) = a_k / [(c I + G)^-1]_kk,  with the Gram matrix G of
    all points and the multiplier c of the fit to all of them: with K c of scikit-learn's alpha, the
    residuals of K fits with the same alpha. A chain has no such shortcut.

    Args:
        spectrum: of all points; a Krylov spectrum cannot serve.
        y: labels, shape (K,) or (K, Q).
        multiplier: c > 0, a scalar, or one for each output.

    Returns:
        Residuals, shape (K,) or (K, Q), in the labels' unit.

    Raises:
        ValueError, TypeError: bad input, each named.

    Source: Allen 1974; Craven and Wahba 1979, *Smoothing noisy data with spline functions*.

    Example:
        Of two points that know nothing of each other, each is fitted by 0 without itself:

        >>> from sdntk import decompose
        >>> leave_one_out(decompose(jnp.eye(2)), [3.0, -2.0], 0.5).round(12).tolist()
        [3.0, -2.0]
    """
    check_spectrum(spectrum)
    labels = as_labels("y", y, spectrum.num_points, dtype=spectrum.dtype)
    if not (spectrum.has_all_eigenvalues and spectrum.has_basis_on_points):
        raise ValueError(
            "spectrum must be of all vectors, as what decompose(G) or tridiagonalise(G) returns "
            "is; a Krylov or Nystrom spectrum knows those of its labels only."
        )
    c = as_positive("multiplier", multiplier, labels.shape[1:], dtype=labels.dtype)
    rotation = spectrum.rotate(jnp.eye(spectrum.num_points, dtype=spectrum.dtype))

    def diagonal(c: Float[Array, ""]) -> Float[Array, " K"]:
        return jnp.sum(rotation * spectrum.resolvent(c, rotation), axis=0)

    unit = unit_of(labels, joint=False)
    z = spectrum.rotate(in_unit(labels, unit))
    duals = spectrum.unrotate(spectrum.resolvent(c, z))
    of_each = diagonal(c) if c.ndim == 0 else jnp.stack([diagonal(one) for one in c], axis=1)
    if of_each.ndim < duals.ndim:
        of_each = of_each[:, None]
    return out_of_unit(duals / of_each, unit)


def _training_error(run: Distillation) -> Float[Array, "T *Q"]:
    """|y - f_t|^2/K of every round, against the labels themselves; with joint outputs over K Q."""
    residuals = run.rotated_labels[None] - run.fitted_coordinates
    over = 1 if run.status.ndim == run.rotated_labels.ndim else (1, 2)
    return mean_square(residuals, _count(run), over=over)


def _count(run: Distillation) -> int:
    joint = run.status.ndim < run.rotated_labels.ndim
    return num_residuals(run.rotated_labels, run.spectrum.num_points, joint=joint)


def _as_degrees_of_freedom(
    run: Distillation, value: ArrayLike | Estimate | None
) -> Float[Array, "T *Q"]:
    if value is None:
        return run.degrees_of_freedom
    given = value.value if isinstance(value, Estimate) else value
    if not is_traced(given, run) and np.shape(given) == run.status.shape:
        given = np.where(
            np.asarray(run.status) == Status.INFEASIBLE, 0, given
        )  # nan is right there
    df = as_float_array("degrees_of_freedom", given, dtype=run.spectrum.dtype, finite=False)
    if df.shape != run.status.shape:
        raise ValueError(
            f"degrees_of_freedom must have shape {run.status.shape}, as "
            f"sdntk.selection.degrees_of_freedom(run) has; their shape is {df.shape}."
        )
    return df


def _require_run(run: Any) -> None:
    expected = "what distill or distill_spectrum returns"
    require_type("run", run, Distillation, expected)
    run.require_one()
