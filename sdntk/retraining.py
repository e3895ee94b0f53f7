"""Retraining a kernel machine on its own output, with noise in every round, of a signal that is
known: :func:`retrain`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

import jax
import numpy as np
from jaxtyping import Array, Float

from sdntk import _memory
from sdntk._arguments import (
    LARGE_BYTES,
    MOST_ROUNDS,
    TEXT,
    ArrayLike,
    as_choice,
    as_count,
    as_key,
    as_labels,
    as_positive,
    as_real_array,
    as_scalar,
    as_unit_interval,
    is_traced,
    require_function,
    require_one_shape,
    shown,
)
from sdntk._pytrees import pytree
from sdntk._summary import rounds_as_frame, rounds_as_text, span
from sdntk.distillation import warn_of_rounding
from sdntk.kernels.base import KernelFunction, check_points
from sdntk.spectra.base import AbstractSpectrum
from sdntk.spectra.fit import check_spectrum
from sdntk.spectra.fresh_points import retrain_on_fresh_points, round_maps
from sdntk.spectra.retraining import retrain_on_spectrum
from sdntk.theory.retraining import Keep, RetrainingSpec


@pytree
class Retraining:
    """Rounds of retraining on one's own output: K points, Q outputs, T rounds, n draws.

    The axis Q is there when the signal has one. Errors are mean squared distances to the signal on
    the training points (with new points in every round, on the first ones), averaged over points
    and outputs, in the signal's unit squared.

    Attributes:
        fitted: f_t on those points for every draw of the noise, shape (n, T, K) or (n, T, K, Q).
        error: of every draw and round, shape (n, T).
        squared_bias: the error of the expectation of f_t, shape (T,), by its closed form.
        variance: the mean variance of f_t, shape (T,), likewise.
        multiplier: c, shape () or (Q,).
        noise: sigma.
        real_share: a.
        keep: "replace" or "accumulate".
    """

    fitted: Float[Array, "n T K *P"]
    error: Float[Array, "n T"]
    squared_bias: Float[Array, " T"]
    variance: Float[Array, " T"]
    multiplier: Float[Array, "*Q"]
    noise: Float[Array, ""]
    real_share: Float[Array, ""]
    keep: str = dataclasses.field(metadata={"static": True})

    @property
    def expected_error(self) -> Float[Array, " T"]:
        """The expectation of ``error``, shape (T,): ``squared_bias`` and ``variance`` together."""
        return self.squared_bias + self.variance

    def to_frame(self) -> Any:
        """The rounds as a tidy pandas table.

        Returns:
            A row for each round with the columns round, expected_error, mean_error and
            standard_error (of that mean over the draws; nan of a single one), squared_bias and
            variance.

        Raises:
            ValueError: several courses, stacked by ``jax.vmap``.
        """
        if self._is_stacked:
            raise ValueError(
                "these are several courses of retraining, stacked by jax.vmap: take one of them, "
                "such as jax.tree.map(lambda leaf: leaf[0], run)."
            )
        mean, standard_error = self._over_draws()
        return rounds_as_frame(
            {
                "expected_error": self.expected_error,
                "mean_error": mean,
                "standard_error": standard_error,
                "squared_bias": self.squared_bias,
                "variance": self.variance,
            }
        )

    def __repr__(self) -> str:
        try:
            return self._as_text()
        except Exception:  # transformations put anything in place of arrays
            return f"{type(self).__name__}(leaves that are no arrays)"

    def _as_text(self) -> str:
        if self._is_stacked:
            return f"Retraining({len(self.error)} courses, stacked)"
        draws, rounds, points, *outputs = self.fitted.shape
        parts = [f"{points} points", *(f"{count} outputs" for count in outputs), f"{rounds} rounds"]
        title = f"Retraining({', '.join([*parts, self.keep, f'{draws} draws'])})"
        if is_traced(self):
            return f"{title[:-1]}, traced)"
        columns = {
            "expected error": np.asarray(self.expected_error),
            "mean error": self._over_draws()[0],
            "standard error": self._over_draws()[1],
        }
        cells = {name: [span(value) for value in values] for name, values in columns.items()}
        return rounds_as_text(title, cells)

    @property
    def _is_stacked(self) -> bool:
        return self.error.ndim > 2

    def _over_draws(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean error of every round, and its standard error."""
        errors = np.asarray(self.error)
        draws = len(errors)
        unit = np.max(errors, axis=0)  # so that no square is out of range
        unit = np.where((unit > 0) & np.isfinite(unit), unit, 1)
        mean = np.mean(errors / unit, axis=0) * unit
        if draws == 1:
            return mean, np.full_like(mean, np.nan)
        with np.errstate(invalid="ignore"):  # errors that overflowed: inf, whose spread is nan
            deviation = np.std(errors / unit, axis=0, ddof=1)
        return mean, deviation * unit / draws**0.5


def retrain(
    spectrum: AbstractSpectrum,
    signal: ArrayLike,
    *,
    multiplier: ArrayLike,
    rounds: int,
    noise: ArrayLike,
    keep: Keep = "replace",
    real_share: ArrayLike = 0.0,
    key: Array | None = None,
    draws: int = 1,
    points: ArrayLike | Sequence[ArrayLike] | None = None,
    kernel: KernelFunction | None = None,
) -> Retraining:
    """Retrain a kernel machine on its own output, with noise in every round ("model collapse").

    Round t is one fit, f_t = A u_t on the training points, A = G (c I + G)^-1, of targets u_t. From
    a known signal z*, with noise of standard deviation sigma and the share a of real labels,

        y_0 = z* + sigma e_0,    y_t = (1 - a) (f_{t-1} + sigma e_t) + a (z* + sigma e'_t),

    and u_t = y_t ("replace"), or the mean of y_0..y_t ("accumulate": one fit to all labels so far).
    With w = 1, or w = 1/(t + 1), and A now the eigenvalues d/(c + d), the expected error is

        E |f_t - z*|^2 = sum_k ((A M_t - 1)^2 z*^2 + sigma^2 A^2 V_t),
        M_t = ((1 - w) + w (1 - a) A) M_{t-1} + w a,                           M_0 = 1,
        V_t = ((1 - w) + w (1 - a) A)^2 V_{t-1} + w^2 ((1 - a)^2 + a^2),       V_0 = 1,

    coordinate by coordinate in the eigenbasis. The part of the signal outside the space (A = 0) is
    lost in round 0, and counts.

    Args:
        spectrum: what :func:`sdntk.decompose` or :func:`sdntk.tridiagonalise` returns. A Krylov
            spectrum knows the labels only that it was made from: it serves where noise is 0.
        signal: z* on the training points, shape (K,) or (K, Q).
        multiplier: c > 0 of every round, a scalar or one for each output (scikit-learn's ``alpha``
            is K c).
        rounds: T >= 1; round 0 is trained on the signal with noise.
        noise: sigma, the standard deviation of the noise of each label in each round, in the
            signal's unit; 0 for none.
        keep: "replace", a round sees its own labels only; "accumulate", all labels so far.
        real_share: a in [0, 1], the share of fresh real labels in those of each later round (with
            "accumulate", in the batch that is added).
        key: a JAX key, for the noise; draw i of round t has a key of its own, whatever the numbers
            of draws and rounds.
        draws: how often all rounds are run, with noise of their own.
        points: new points in every round: T designs, an array of shape (T, n, ...) or a sequence of
            arrays (n_t, ...). The first are the spectrum's own, on which fits are judged in every
            round; round t is trained on f_{t-1} with noise at the points of design t (with
            "accumulate", at those of all designs so far together), by one decomposition a round.
        kernel: the kernel of the spectrum, with ``points``.

    Returns:
        A :class:`Retraining` with ``fitted``, ``error`` and ``expected_error``, all mean squares
        averaged over points and outputs. With ``points`` the expectation is exact, too: by the
        product of the rounds' linear maps, in n^3 operations a round.

    Raises:
        ValueError, TypeError: bad input, each named; noise without a key, or on a Krylov spectrum;
            ``points`` that are not T designs, without a kernel, with a real share (whose labels
            would ask for the signal there), with a multiplier for each output, or not the
            spectrum's own first. MemoryError: draws and rounds that do not fit.

    Warns:
        PrecisionWarning: float32; a multiplier so small against d_max that rounding decides the
            fits.

    It may be jitted and vmapped over signal, multiplier, noise, real share and key. Sizes of labels
    from 1e-150 to 1e150 have errors that are numbers (in float64).

    Source: Dohmatob et al. 2024, arXiv 2402.07712 ("replace"); Gerstgrasser et al. 2024, arXiv
    2404.01413 ("accumulate"); arXiv 2509.22341 (real share); Wu, Yang and Sun 2026, arXiv
    2602.14029 (new points). docs/theory.md, section 10.

    Example:
        >>> from sdntk import decompose, gram, kernels
        >>> x = jnp.linspace(0, 1, 30)
        >>> spectrum = decompose(gram(kernels.rbf(0.3), x))
        >>> run = retrain(spectrum, jnp.sin(6 * x), multiplier=1e-3, rounds=8, noise=0.2,
        ...               key=jax.random.key(0), draws=100)
        >>> run.error.shape
        (100, 8)
        >>> [f"{error:.4f}" for error in run.expected_error[::3].tolist()]
        ['0.0068', '0.0252', '0.0426']
    """
    check_spectrum(spectrum)
    dtype = spectrum.dtype
    z = as_labels("signal", signal, spectrum.num_points, dtype=dtype)
    shape = () if points is not None else z.shape[1:]
    rounds = as_count("rounds", rounds, at_least=1, at_most=MOST_ROUNDS)
    draws = as_count("draws", draws, at_least=1)
    sigma = as_scalar("noise", noise, lambda s: s >= 0, "must be zero or positive", dtype=dtype)
    a = as_unit_interval("real_share", real_share, dtype=dtype)
    spec = RetrainingSpec(
        multiplier=as_positive("multiplier", multiplier, shape, dtype=dtype),
        noise=None if _is_zero(sigma) else sigma,
        real_share=None if _is_zero(a) else a,
        rounds=rounds,
        keep=_as_keep(keep),
    )
    key = _as_key_of_noise(key, spec)
    _require_all_labels(spectrum, spec, points)
    designs = _as_designs(points, kernel, spectrum.num_points, spec)
    _require_memory(draws, rounds, z)
    if not is_traced(spec.multiplier, spectrum):
        with jax.ensure_compile_time_eval():  # of values, while others are traced
            warn_of_rounding(float(np.asarray(spec.multiplier).min()), spectrum)

    if designs is None or kernel is None:
        course = retrain_on_spectrum(spectrum, z, spec, key, draws)
    else:
        maps = round_maps(spectrum, kernel, designs, spec.multiplier, spec.keep)
        course = retrain_on_fresh_points(maps, z, spec, key, draws)
    return Retraining(
        *course, multiplier=spec.multiplier, noise=sigma, real_share=a, keep=spec.keep
    )


def _is_zero(value: Float[Array, ""]) -> bool:
    return not is_traced(value) and float(value) == 0


def _as_keep(value: Any) -> Keep:
    return "replace" if as_choice("keep", value, get_args(Keep)) == "replace" else "accumulate"


def _as_key_of_noise(key: Any, spec: RetrainingSpec) -> Array | None:
    if key is not None:
        key = as_key("key", key)
    elif spec.noise is not None:
        raise ValueError(
            "key must be given, a JAX key such as jax.random.key(0), since noise is not 0."
        )
    return key if spec.noise is not None else None


def _require_all_labels(spectrum: AbstractSpectrum, spec: RetrainingSpec, points: Any) -> None:
    if spectrum.has_all_eigenvalues or (spec.noise is None and points is None):
        return
    raise ValueError(
        f"spectrum must know what any labels become, as what decompose(G) returns does: a "
        f"{type(spectrum).__name__} knows those it was made from, and serves without noise and new "
        "points only."
    )


def _as_designs(
    points: Any, kernel: Any, num_points: int, spec: RetrainingSpec
) -> list[Float[Array, "_ ..."]] | None:
    """The points of every round, checked; None where all are the spectrum's own."""
    if (points is None) != (kernel is None):
        raise ValueError("points and kernel must be given together, or both be left out.")
    if points is None:
        return None
    require_function("kernel", kernel, "two arrays of points")
    if spec.real_share is not None:
        raise ValueError(
            "real_share must be 0 with points: fresh real labels at new points would ask for the "
            "signal there, and only that at the spectrum's own is given."
        )
    items = _as_items(points)
    if len(items) != spec.rounds:
        raise ValueError(
            f"points must hold {spec.rounds} designs, one for each round, the spectrum's own "
            f"points first; it holds {len(items)}."
        )
    designs = [check_points(kernel, f"points[{t}]", design) for t, design in enumerate(items)]
    first = designs[0]
    if len(first) != num_points:
        raise ValueError(
            f"points[0] must be the {num_points} points of the spectrum; it holds {len(first)}."
        )
    for t, design in enumerate(designs):
        require_one_shape("points[0]", first, f"points[{t}]", design)
    return [design.reshape(len(design), *first.shape[1:]) for design in designs]


def _as_items(points: Any) -> list[Any]:
    if isinstance(points, Sequence) and not isinstance(points, TEXT):
        try:
            return list(points)
        except Exception as error:  # __getitem__ may raise anything
            raise TypeError(f"points must be a sequence that can be read; {error}.") from None
    if not hasattr(points, "__array__") and not isinstance(points, jax.Array):
        raise TypeError(
            "points must hold a design for each round, an array (T, n, ...) or a sequence of "
            f"arrays; got {shown(points)}."
        )
    array = as_real_array("points", points)
    if array.ndim < 2:
        raise ValueError(
            f"points must have shape (T, n, ...), a design for each round; its shape is "
            f"{array.shape}."
        )
    return list(array[:MOST_ROUNDS])


def _require_memory(draws: int, rounds: int, signal: Float[Array, "K *Q"]) -> None:
    needed = 3 * draws * rounds * signal.size * signal.dtype.itemsize
    if needed > LARGE_BYTES:
        description = f"retraining, {draws} draws of {rounds} rounds,"
        _memory.require_memory(needed, description, ways_out="fewer draws or rounds")
