"""Whether to distil, before anything is trained: the chains of a kernel, or of a network's tangent
kernel, against the best single fit, judged on validation points.
"""

import dataclasses
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

#: Chains' tolerances, in parts of the labels' mean square, where none are asked for.
TOLERANCES = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3)
#: Further single fits, beside the chains' own.
SINGLE_FITS = tuple(round(0.02 * step, 2) for step in range(1, 50))
#: Standard errors on either side of a mean that make a 95% interval.
NORMAL_95 = 1.96


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
        standard_error: of the gain, from its differences point by point; nan of a single point.
    """

    table: Any
    measure: Literal["accuracy", "loss"]
    best_round: int | None
    best_tolerance: float | None
    best_single_tolerance: float
    gain: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The gain's 95% interval."""
        half = NORMAL_95 * self.standard_error
        return self.gain - half, self.gain + half

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
            f"{NORMAL_95 * self.standard_error:.2g}: {self._verdict}."
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
            its :func:`~sdntk.kernels.empirical_ntk` at its present weights.
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
        ValueError, TypeError: bad input, each named; a tolerance that is infeasible.
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
    require_function("module_or_kernel", module_or_kernel, "two arrays of points, or a module")
    if is_traced(x, y, validation, tolerances):
        raise TypeError("x, y, validation and tolerances must have values: advise looks at them.")
    rounds = as_count("rounds", rounds, at_least=2, at_most=MOST_ROUNDS)
    asked = None if tolerances is None else _as_tolerances(tolerances)
    kernel = _as_kernel(module_or_kernel)
    points = check_points(kernel, "x", x)
    new, new_labels = _as_pair(validation)
    new_points = check_points(kernel, "validation[0]", new)
    require_one_shape("validation[0]", new_points, "x", points)
    task = _as_task(y, len(points), new_labels, len(new_points))

    spectrum = choose_spectrum(
        kernel, points, task.labels, method="dense", rtol=1e-6, rank_tolerance=None, chain={}
    ).spectrum
    chains, single_fits = _feasible(spectrum, task.labels, asked)
    runs = _run(spectrum, task.labels, chains, single_fits, rounds)
    predictions = predict_all([run for _, run in runs], kernel, points, new_points)
    return _compare(_judge(task, runs, predictions), task.measure)


# ---- what is asked ----


def _as_kernel(module_or_kernel: Any) -> KernelFunction:
    if isinstance(module_or_kernel, LibraryKernel):
        return module_or_kernel
    from flax import nnx  # here, as it takes long to import

    is_module = isinstance(module_or_kernel, nnx.Module)
    return empirical_ntk(module_or_kernel) if is_module else module_or_kernel


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
    expected = "must lie between 0 and 1, parts of the labels' mean square"
    require_every("tolerances", array, lambda a: (a > 0) & (a < 1), expected)
    # Through text, so that those of a float32 array are the numbers that were meant.
    return sorted({float(str(number)) for number in np.asarray(array)})


class _Task(NamedTuple):
    """Labels to learn and to be judged by."""

    labels: Float[Array, "K *Q"]
    validation: Float[np.ndarray, "n *Q"]
    measure: Literal["accuracy", "loss"]

    def scores(self, predictions: Float[Array, "T n *Q"]) -> Float[np.ndarray, "T n"]:
        """How good predictions are, by round and point; more is better."""
        outputs = np.asarray(predictions)
        if self.measure == "accuracy":
            right = outputs.argmax(-1) == self.validation.argmax(-1)[None]
            return right.astype(float)
        error = np.square(outputs - self.validation[None])
        return -error.reshape(*error.shape[:2], -1).mean(-1)


def _as_task(y: ArrayLike, num_points: int, new: ArrayLike, num_new: int) -> _Task:
    both = [("y", as_real_array("y", y), num_points)]
    both.append(("validation[1]", as_real_array("validation[1]", new), num_new))
    kinds = [array.ndim == 1 and array.dtype.kind in "iu" for _, array, _ in both]
    if kinds[0] != kinds[1]:
        raise ValueError(
            "y and validation[1] must both be integer classes, or both numbers; their dtypes are "
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
            f"y and validation[1] must have as many outputs; their shapes are {rows[0].shape} and "
            f"{rows[1].shape}."
        )
    if not np.any(rows[0]):
        raise ValueError("y must not be 0 everywhere, nor of one class: there is nothing to learn.")
    by_class = all(_are_one_hot(np.asarray(part)) for part in rows)
    return _Task(rows[0], np.asarray(rows[1]), "accuracy" if by_class else "loss")


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


def _compare(judged: list[_Judged], measure: Literal["accuracy", "loss"]) -> Advice:
    import pandas as pd  # takes as long to import as JAX

    # Of equals the earlier round, and there the larger tolerance, which is the simpler function.
    order = sorted(judged, key=lambda row: (-row.scores.mean(), row.round, -row.tolerance))
    single = next(row for row in order if row.round == 0)
    best = next((row for row in order if row.round > 0), None)
    sign = 1.0 if measure == "accuracy" else -1.0
    in_order = sorted(judged, key=lambda row: (row.round, row.tolerance))
    table = pd.DataFrame(
        {
            "tolerance": [row.tolerance for row in in_order],
            "round": [row.round for row in in_order],
            f"validation_{measure}": [sign * row.scores.mean() for row in in_order],
            "is_single_fit": [row.round == 0 for row in in_order],
        }
    )
    differences = np.zeros(1) if best is None else best.scores - single.scores
    count = len(differences)
    error = float(np.std(differences, ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    return Advice(
        table=table,
        measure=measure,
        best_round=None if best is None else best.round,
        best_tolerance=None if best is None else best.tolerance,
        best_single_tolerance=single.tolerance,
        gain=float(differences.mean()),
        standard_error=error,
    )
