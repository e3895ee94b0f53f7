"""Whether to distil, before anything is trained: the chains of a kernel, or of a network's tangent
kernel, against the best single fit, judged on validation points.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdntk._arguments import (
    MOST_ROUNDS,
    ArrayLike,
    as_count,
    as_labels,
    as_parameter,
    as_real_array,
    is_traced,
    require_every,
    require_function,
    require_one_shape,
    require_type,
    shown,
)
from sdntk._progress import track
from sdntk.datasets.labels import one_hot
from sdntk.distillation import Distillation, distill_spectrum
from sdntk.kernels import KernelFunction, empirical_ntk
from sdntk.kernels.base import LibraryKernel, check_points
from sdntk.spectra.base import AbstractSpectrum, PrecisionWarning
from sdntk.spectra.choose import choose_spectrum
from sdntk.spectra.fit import predict_all
from sdntk.theory.multiplier import Status
from sdntk.theory.units import in_unit, unit_of

#: Chains' tolerances, in parts of the labels' mean square, where none are asked for.
TOLERANCES = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3)
#: Further single fits, beside the chains' own.
SINGLE_FITS = tuple(round(0.02 * step, 2) for step in range(1, 50))
#: Labels whose squares, in which losses are measured, are numbers, and some times as much still.
LEAST_LABEL, MOST_LABEL = np.finfo(float).tiny ** 0.5, np.finfo(float).max ** 0.5 / 4
#: So many times as large as those to learn, labels still have losses whose squares, in which their
#: standard error is measured, are numbers.
MOST_RATIO = 2.0**250


@dataclasses.dataclass(frozen=True, eq=False)
class Advice:
    """What :func:`advise` found; as text, one sentence.

    Attributes:
        table: a tidy pandas table, a row for each active round of each chain and for each single
            fit: ``tolerance`` (in parts of the labels' mean square), ``round``,
            ``validation_accuracy`` or ``validation_loss``, ``is_single_fit`` (round 0).
        measure: "accuracy", the share of points whose largest output is the right one, or "loss",
            the mean squared error over points and outputs.
        best_round, best_tolerance: of the best round after round 0; None where no chain gets there.
        best_single_tolerance: of the best single fit.
        gain: by how much the best round is better than the best single fit: more accuracy or less
            loss.
        standard_error: of the gain, from its differences point by point; nan where they do not
            tell: of a single point, or where they are equal up to rounding, but not 0.
        num_validation: validation points.
    """

    table: Any
    measure: Literal["accuracy", "loss"]
    best_round: int | None
    best_tolerance: float | None
    best_single_tolerance: float
    gain: float
    standard_error: float
    num_validation: int

    @property
    def interval(self) -> tuple[float, float]:
        """The gain's 95% interval, by Student's t; nan where the standard error is."""
        return self.gain - self._half_width, self.gain + self._half_width

    @property
    def _half_width(self) -> float:
        from scipy import stats  # here, as it takes long to import

        return float(stats.t.ppf(0.975, self.num_validation - 1)) * self.standard_error

    @property
    def pays(self) -> bool:
        """Whether there is evidence that distilling pays: the interval lies above 0."""
        return self.interval[0] > 0

    @property
    def sentence(self) -> str:
        """The best round, the best single fit, and what their difference says."""
        single = f"{self._value_of(0, self.best_single_tolerance):.3g}"
        of_single = f"the best single fit {single} (tolerance {self.best_single_tolerance:g})"
        if self.best_round is None or self.best_tolerance is None:
            return f"No chain is active after round 0; {of_single}: nothing to distil."
        reached = f"{self._value_of(self.best_round, self.best_tolerance):.3g}"
        return (
            f"Round {self.best_round} at tolerance {self.best_tolerance:g} reaches {reached} "
            f"({self.measure}) on validation; {of_single}, a gain of {self.gain:.2g} +- "
            f"{self._half_width:.2g}: {self._verdict}."
        )

    @property
    def _verdict(self) -> str:
        if self.pays:
            return "distilling pays"
        does_harm = self.interval[1] < 0
        return "distilling does harm" if does_harm else "no evidence that distilling pays"

    def _value_of(self, t: int, tolerance: float) -> float:
        rows = self.table[(self.table["round"] == t) & (self.table["tolerance"] == tolerance)]
        return float(rows[f"validation_{self.measure}"].iloc[0])

    def __str__(self) -> str:
        return self.sentence


def advise(
    module_or_kernel: Any,
    x: ArrayLike,
    y: ArrayLike,
    validation: Sequence[ArrayLike],
    *,
    tolerances: ArrayLike | None = None,
    rounds: int = 20,
) -> Advice:
    """Tell whether self-distillation is worth it, before any network is trained again.

    For a kernel g, round t of the chain at tolerance eps is the ridge fit

        f_t(x) = g_x^T (c_t I + G)^-1 y_t,    y_{t+1} = f_t(X),

    with c_t such that its mean squared error is eps. A wide network trained with weight decay c
    towards its initial weights follows it with its tangent kernel, g = Theta (docs/theory.md,
    section 6), and one weight decay means one c_t for all outputs: outputs are "joint". One
    decomposition of G serves all tolerances. Against the best round of all chains stands what needs
    no distillation: the best single fit, round 0 at any tolerance, at 49 more of them.

    Rounds and single fits are chosen on the points that judge them, which favours whichever are
    more. The interval of the gain is that of the two chosen, and does not count the choice: take
    "distilling pays" as a reason to try it, "no evidence" as one not to.

    Source: Mobahi et al. 2020, eqs. 27-31; Jacot et al. 2018.

    Args:
        module_or_kernel: a kernel, any function of two arrays of points; or a Flax NNX module, for
            its :func:`~sdntk.kernels.empirical_ntk` at its present weights. (Of a Flax Linen module
            the kernel is ``empirical_ntk(module.apply, variables)``.)
        x: training points, shape (K, ...).
        y: their labels: integer classes, shape (K,), which are learned as centred one-hot rows; or
            numbers, shape (K,) or (K, Q). One-hot rows, centred or not, count as classes.
        validation: points and labels (x, y) to judge by, the labels of the same kind.
        tolerances: of the chains, in parts of the labels' mean square; by default from 0.001 to
            0.3, those that are feasible.
        rounds: of each chain, round 0 among them, at least 2.

    Returns:
        An :class:`Advice`.

    Raises:
        ValueError, TypeError: bad input, each named; a tolerance that is infeasible; labels whose
            squares are no numbers, below 1e-153 or above 1e153; anything traced.
        ImportError: a module, and neural-tangents is missing.

    Example:
        >>> from sdntk import kernels
        >>> x = jnp.linspace(0, 1, 40)
        >>> y, clean = jnp.sin(6 * x) + 0.3 * jnp.cos(97 * x), jnp.sin(6 * x)
        >>> kernel = kernels.matern(1.5, length_scale=0.3)
        >>> advice = advise(kernel, x, y, (x, clean), tolerances=[0.05, 0.1], rounds=3)
        >>> advice.table[["tolerance", "round", "is_single_fit"]].head(3).values.tolist()
        [[0.02, 0, True], [0.04, 0, True], [0.05, 0, True]]
        >>> advice.pays
        False
    """
    # Within jit even a constant is traced.
    _refuse_traced(module_or_kernel, x, y, validation, tolerances, jnp.zeros(()))
    rounds = as_count("rounds", rounds, at_least=2, at_most=MOST_ROUNDS)
    asked = None if tolerances is None else _as_tolerances(tolerances)
    kernel = _as_kernel(module_or_kernel)
    points = check_points(kernel, "x", x)
    new, new_labels = _as_pair(validation)
    new_points = check_points(kernel, "validation's x", new)
    require_one_shape("x", points, "validation's x", new_points)
    task = _as_task(y, len(points), new_labels, len(new_points))

    spectrum = choose_spectrum(
        kernel, points, task.labels, method="dense", rtol=1e-6, rank_tolerance=None, chain={}
    ).spectrum
    _refuse_traced(spectrum)  # of a kernel that closes over what is
    chains, single_fits = _feasible(spectrum, task.labels, asked)
    runs = _run(spectrum, task.labels, chains, single_fits, rounds)
    predictions = predict_all([run for _, run in runs], kernel, points, new_points)
    return _compare(_judge(task, runs, predictions), task)


# ---- what is asked ----


def _refuse_traced(*values: Any) -> None:
    if is_traced(*values):
        raise TypeError(
            "module_or_kernel, x, y, validation and tolerances must have values: advise looks at "
            "them, and stands outside of jax.jit and other transformations."
        )


def _as_kernel(given: Any) -> KernelFunction:
    if isinstance(given, LibraryKernel):
        return given
    require_function("module_or_kernel", given, "two arrays of points, or a module")
    from flax import linen, nnx  # here, as they take long to import

    if isinstance(given, nnx.Module):
        return empirical_ntk(given)
    if isinstance(given, linen.Module):
        raise TypeError(
            "module_or_kernel must have weights, and a Flax Linen module has none of its own: use "
            "kernels.empirical_ntk(module.apply, variables)."
        )
    if isinstance(given, type) or not _takes_two(given):
        raise TypeError(
            "module_or_kernel must be a function of two arrays of points, or a module; "
            f"{shown(given)} is neither, but may make one: then call it, as in "
            "build(nnx.Rngs(0)), and hand over what it makes."
        )
    return given


def _takes_two(function: Any) -> bool:
    """Whether a function can be called with two arguments, as far as it tells."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some that are not written in Python
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def _as_pair(validation: Any) -> tuple[Any, Any]:
    expected = "a pair (x, y), points and their labels"
    require_type("validation", validation, (tuple, list), expected)
    if len(validation) != 2:
        raise ValueError(f"validation must be {expected}; it holds {len(validation)}.")
    return validation[0], validation[1]


def _as_tolerances(value: Any) -> list[float]:
    array = as_parameter("tolerances", value)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            "tolerances must be a sequence of numbers, one for each chain; its shape is "
            f"{array.shape}."
        )
    limits = jnp.finfo(jnp.result_type(float))
    least = float(limits.tiny / limits.eps)  # times the labels' mean square a normal number still
    expected = (
        f"must lie between 0 and 1, parts of the labels' mean square, and not below {least:.0e}"
    )
    require_every("tolerances", array, lambda a: (a >= least) & (a < 1), expected)
    # Through text, so that those of a float32 array are the numbers that were meant.
    return sorted({float(str(number)) for number in np.asarray(array)})


class _Task(NamedTuple):
    """Labels to learn and to be judged by, in a unit in which those to learn are about 1."""

    labels: Float[Array, "K *Q"]
    validation: Float[np.ndarray, "n *Q"]
    measure: Literal["accuracy", "loss"]
    of_score: float  # a score's unit in the labels' own: that of losses, else 1

    def scores(self, predictions: Float[Array, "T n *Q"]) -> Float[np.ndarray, "T n"]:
        """How good predictions are, by round and point; more is better."""
        outputs = np.asarray(predictions, float)
        if self.measure == "accuracy":
            right = outputs.argmax(-1) == self.validation.argmax(-1)[None]
            return right.astype(float)
        error = np.square(outputs - self.validation[None])
        return -error.reshape(*error.shape[:2], -1).mean(-1)


def _as_task(y: ArrayLike, num_points: int, new: ArrayLike, num_new: int) -> _Task:
    both = [("y", as_real_array("y", y), num_points)]
    both.append(("validation's y", as_real_array("validation's y", new), num_new))
    kinds = [array.ndim == 1 and array.dtype.kind in "iu" for _, array, _ in both]
    if kinds[0] != kinds[1]:
        raise ValueError(
            "y and validation's y must both be integer classes, or both numbers; their dtypes are "
            f"{both[0][1].dtype} and {both[1][1].dtype}, their shapes {both[0][1].shape} and "
            f"{both[1][1].shape}."
        )
    rows = [as_labels(*named, dtype=jnp.result_type(float)) for named in both]
    if kinds[0]:  # classes as they are: a label of a million makes no million outputs
        classes, found = np.unique(np.concatenate([array for _, array, _ in both]), False, True)
        split = np.split(found, [num_points])
        rows = [one_hot(part, len(classes), centred=True) for part in split]
    if rows[0].shape[1:] != rows[1].shape[1:]:
        raise ValueError(
            f"y and validation's y must have as many outputs; their shapes are {rows[0].shape} and "
            f"{rows[1].shape}."
        )
    if not np.asarray(rows[0]).any():
        raise ValueError(
            f"y must not be 0 everywhere (in {rows[0].dtype}), nor of one class: there is nothing "
            "to learn."
        )
    by_class = all(_are_one_hot(np.asarray(part)) for part in rows)
    _require_squares(*map(np.asarray, rows))
    unit = unit_of(rows[0], joint=True)
    labels, validation = in_unit(rows[0], unit), np.asarray(rows[1], float) / float(unit)
    if by_class:
        return _Task(labels, validation, "accuracy", of_score=1.0)
    return _Task(labels, validation, "loss", of_score=float(unit) ** 2)


def _require_squares(y: Float[np.ndarray, "K *Q"], new: Float[np.ndarray, "n *Q"]) -> None:
    """Refuse labels of which losses, about their squares, leave the range of numbers."""
    largest, largest_new = (float(np.abs(part).max()) for part in (y, new))
    least = max(LEAST_LABEL, float(np.finfo(y.dtype).tiny))
    if not least <= largest <= MOST_LABEL:
        raise ValueError(
            f"y must reach between {least:.1e} and {MOST_LABEL:.1e}, so that its squares are "
            f"numbers; it reaches {largest:.3g}. Divide it and validation's y by one number."
        )
    most = min(MOST_LABEL, MOST_RATIO * largest)
    if largest_new > most:
        raise ValueError(
            f"validation's y must reach {most:.1e} at most where y reaches {largest:.3g}, so that "
            f"losses and their standard error are numbers; it reaches {largest_new:.3g}."
        )


def _are_one_hot(rows: Float[np.ndarray, "n *Q"]) -> bool:
    """Whether each row has one number at one place, and one smaller number at all others."""
    if rows.ndim == 1 or rows.shape[1] < 2:
        return False
    top: Bool[np.ndarray, "n Q"] = rows == rows.max()
    return bool((top.sum(1) == 1).all() and np.unique(rows[~top]).size == 1)


# ---- what is computed ----


def _feasible(
    spectrum: AbstractSpectrum, labels: Float[Array, "K *Q"], asked: list[float] | None
) -> tuple[list[float], list[float]]:
    """The tolerances of chains, and of further single fits, that some function reaches."""
    unreachable = float(jnp.mean(spectrum.floor(labels)) / jnp.mean(labels**2))
    known = sorted(set(TOLERANCES) if asked is None else asked)
    chains = [tolerance for tolerance in known if tolerance > unreachable]
    if not chains or (asked is not None and len(chains) < len(asked)):
        raise ValueError(
            f"tolerances must lie above {unreachable:.3g}, the part of the labels' mean square "
            "that no function of this kernel's space reaches (labels of points that coincide "
            f"differ, or the kernel is of low rank); the smallest is {known[0]:g}."
        )
    return chains, [t for t in SINGLE_FITS if t > unreachable and t not in chains]


def _run(
    spectrum: AbstractSpectrum,
    labels: Float[Array, "K *Q"],
    chains: list[float],
    single_fits: list[float],
    rounds: int,
) -> list[tuple[float, Distillation]]:
    mean_square = float(jnp.mean(labels**2))
    lengths = {**dict.fromkeys(single_fits, 1), **dict.fromkeys(chains, rounds)}
    runs = []
    for part, length in track(sorted(lengths.items()), "Chains by tolerance", len(lengths)):
        with warnings.catch_warnings():
            # Whatever rounding makes of a multiplier, validation points judge the fit.
            warnings.simplefilter("ignore", PrecisionWarning)
            run = distill_spectrum(
                spectrum, labels, tolerance=part * mean_square, rounds=length, outputs="joint"
            )
        runs.append((part, run))
    return runs


class _Judged(NamedTuple):
    """A round on the validation points."""

    tolerance: float
    round: int
    scores: Float[np.ndarray, " n"]


def _judge(
    task: _Task, runs: list[tuple[float, Distillation]], predictions: list[Any]
) -> list[_Judged]:
    """Every active round: what has collapsed predicts 0 and is no fit."""
    return [
        _Judged(tolerance, t, scores)
        for (tolerance, run), values in zip(runs, predictions, strict=True)
        for t, scores in enumerate(task.scores(values))
        if run.status[t] == Status.ACTIVE
    ]


def _compare(judged: list[_Judged], task: _Task) -> Advice:
    import pandas as pd  # takes as long to import as JAX

    # Of equals the earlier round, and there the larger tolerance, which is the simpler function.
    order = sorted(judged, key=lambda row: (-row.scores.mean(), row.round, -row.tolerance))
    single = next(row for row in order if row.round == 0)
    best = next((row for row in order if row.round > 0), None)
    sign = task.of_score if task.measure == "accuracy" else -task.of_score
    in_order = sorted(judged, key=lambda row: (row.round, row.tolerance))
    table = pd.DataFrame(
        {
            "tolerance": [row.tolerance for row in in_order],
            "round": [row.round for row in in_order],
            f"validation_{task.measure}": [sign * row.scores.mean() for row in in_order],
            "is_single_fit": [row.round == 0 for row in in_order],
        }
    )
    differences = (single if best is None else best).scores - single.scores
    # Fits have half of their digits at least.
    rounding = float(jnp.finfo(task.labels.dtype).eps) ** 0.5 * np.abs(single.scores).max()
    return Advice(
        table=table,
        measure=task.measure,
        best_round=None if best is None else best.round,
        best_tolerance=None if best is None else best.tolerance,
        best_single_tolerance=single.tolerance,
        gain=float(differences.mean()) * task.of_score,
        standard_error=_standard_error(differences, rounding) * task.of_score,
        num_validation=len(differences),
    )


def _standard_error(differences: Float[np.ndarray, " n"], rounding: float) -> float:
    """That of their mean; nan where they do not tell."""
    count = len(differences)
    alike = differences.any() and np.ptp(differences) <= rounding
    if count == 1 or alike:
        return float("nan")
    return float(np.std(differences, ddof=1) / np.sqrt(count))
