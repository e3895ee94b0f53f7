"""How many rounds, at which tolerance or multiplier: all are tried on one decomposition."""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._arguments import (
    ArrayLike,
    as_choice,
    as_flag,
    as_labels,
    as_parameter,
    as_positive,
    format_number,
    is_traced,
    require_every,
    require_one_shape,
    shown,
)
from sdntk._undecided import Criterion, warn_if_undecided
from sdntk.distillation import distill_spectrum
from sdntk.gram_matrices.compute import compute_gram
from sdntk.kernels.base import KernelFunction, as_pytree_kernel, check_points
from sdntk.spectra.base import AbstractSpectrum
from sdntk.spectra.fit import SpectralFit, check_spectrum
from sdntk.spectra.levels import Levels, errors_at, run_levels
from sdntk.theory.criteria import generalised_cross_validation, unbiased_risk
from sdntk.theory.multiplier import Status
from sdntk.theory.recurrence import ChainSpec, Outputs, num_residuals
from sdntk.theory.units import in_unit, mean_square, radius, unit_of

#: The grid where none is given, fractions of the labels' mean square from 0.1% to 98%, dense near 0
#: and near 1 (a logistic function of equal steps): that of the study docs/does_it_pay.md.
TOLERANCES = 1 / (1 + np.exp(-np.linspace(-7, 4, 40)))


class Choice(NamedTuple):
    """A level and a round.

    Attributes:
        level: the tolerance or multiplier, as it was given.
        round: t.
    """

    level: float
    round: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tuning:
    """What :func:`tune` found; as text, one sentence.

    Attributes:
        best: the level and round of the smallest value of the criterion.
        best_single: the best of the single fits, round 0 of every level.
        best_value, best_single_value: of the criterion.
        table: a tidy pandas table, a row for each level and round; columns ``tolerance`` or
            ``multiplier`` (the level), ``round``, ``active`` (the share of outputs that are),
            ``degrees_of_freedom`` (of all), ``training_error`` (mean over outputs), the criterion.
        criterion: its name.
        fit: the best round, with ``fitted`` and, where kernel and points were given, ``predict``.
        single_fit: the best single fit, likewise.
    """

    best: Choice
    best_single: Choice
    best_value: float
    best_single_value: float
    table: Any
    criterion: Criterion
    fit: SpectralFit
    single_fit: SpectralFit

    @property
    def sentence(self) -> str:
        """The best round beside the best single fit; what is at an end of the grid, or 0."""
        best, single = (self._remarks(choice) for choice in (self.best, self.best_single))
        name = self.table.columns[0]
        return (
            f"By {self.criterion}: round {self.best.round} at {name} {self.best.level:.4g} "
            f"({self.best_value:.4g}{best}); the best single fit is at {name} "
            f"{self.best_single.level:.4g} ({self.best_single_value:.4g}{single})."
        )

    def _remarks(self, choice: Choice) -> str:
        name = self.table.columns[0]
        feasible = self.table[self.table[self.criterion].notna()]
        at = feasible[(feasible[name] == choice.level) & (feasible["round"] == choice.round)]
        least, largest = feasible[name].min(), feasible[name].max()
        ends = {least: ", the least tried", largest: ", the largest tried"}
        end = ends.get(choice.level, "") if len(ends) == 2 else ""
        return end + ("" if at["active"].any() else ", collapsed")

    def __str__(self) -> str:
        return self.sentence


def tune(
    spectrum: AbstractSpectrum,
    y: ArrayLike,
    *,
    tolerances: ArrayLike | None = None,
    multipliers: ArrayLike | None = None,
    rounds: int = 10,
    criterion: Criterion = "gcv",
    noise_variance: ArrayLike | None = None,
    validation: Any = None,
    kernel: KernelFunction | None = None,
    x: ArrayLike | None = None,
    relative: bool = False,
    ground_truth_weight: ArrayLike = 0.0,
    outputs: Outputs = "separate",
) -> Tuning:
    """The level and the round that a criterion prefers: all rounds of a chain at every level of a
    grid, on one decomposition, in one compiled pass.

    The criterion of several outputs is the mean of theirs, so that of outputs in several units the
    largest decides; one level and round serves all.

    On real data the default is on average as good as one fit by ten folds, and so is the best
    single fit; where there is hardly any noise GCV lost up to 5% (docs/does_it_pay.md).

    Args:
        spectrum: of the Gram matrix. A Krylov spectrum knows no trace, and serves "held_out" alone.
        y: labels, shape (K,) or (K, Q).
        tolerances: L of them, positive, shape (L,). By default 40 fractions of the labels' mean
            square, from 0.1% to 98%: then take the labels' mean off first.
        multipliers: in place of tolerances.
        rounds: T of every chain.
        criterion: "gcv" or "sure", from degrees of freedom (:mod:`sdntk.selection`), or "held_out".
        noise_variance: sigma^2 of the labels, for "sure"; shape () or (Q,).
        validation: points and labels (x_new, y_new) that are held out, for "held_out".
        kernel: of the spectrum, where predictions are wanted; "held_out" asks for it.
        x: its training points, shape (K, ...), with the kernel.
        relative: whether tolerances are fractions of the labels' mean square (of each output; of
            all, where outputs are joint).
        ground_truth_weight: as :func:`sdntk.distill` takes it.
        outputs: likewise.

    Returns:
        A :class:`Tuning`. Infeasible levels are in its table, with nan.

    Raises:
        ValueError, TypeError: bad input, each named; no level is feasible. NotImplementedError:
            traced arguments.

    Warns:
        UndecidedWarning: "gcv" or "sure" of fewer than 50 points; "gcv" where the degrees of
            freedom of the best exceed half of the residuals' number.

    Source: docs/theory.md, section 9.

    Example:
        >>> from sdntk import decompose, gram, kernels
        >>> x = jnp.linspace(0, 1, 100)
        >>> y = jnp.sin(6 * x) + 0.5 * jax.random.normal(jax.random.key(0), (100,))
        >>> spectrum = decompose(gram(kernels.matern(1.5, 0.3), x))
        >>> found = tune(spectrum, y - y.mean())
        >>> found.best_value <= found.best_single_value, len(found.table)
        (True, 400)
    """
    grid = _as_grid(
        spectrum,
        y,
        tolerances=tolerances,
        multipliers=multipliers,
        relative=relative,
        rounds=rounds,
        ground_truth_weight=ground_truth_weight,
        outputs=outputs,
    )
    as_choice("criterion", criterion, get_args(Criterion))
    if validation is not None and criterion != "held_out":
        raise ValueError(
            f'validation is for criterion "held_out"; that asked for is "{criterion}".'
        )
    if noise_variance is not None and criterion != "sure":
        raise ValueError(
            f'noise_variance is for criterion "sure"; that asked for is "{criterion}".'
        )
    points = _as_training_points(spectrum, kernel, x)
    if criterion == "held_out":
        held_out = _as_held_out(grid, kernel, points, validation)
        found = _run(grid, with_duals=True)
        by_output = held_out.errors(found)
    else:
        found = _run(grid, with_duals=False)
        by_output = _from_degrees_of_freedom(criterion, grid, found, noise_variance)
    values = np.asarray(by_output).reshape(*by_output.shape[:2], -1).mean(axis=2)
    if np.isnan(values).all():
        raise ValueError(
            f"{grid.name}s must hold a feasible one; the smallest feasible tolerance lies just "
            f"above {format_number(float(np.max(np.asarray(spectrum.floor(grid.labels)))))}."
        )

    best, best_single = _best(grid, values), _best(grid, values[:, :1])
    least = float(np.nanmin(values)), float(np.nanmin(values[:, 0]))
    df = float(np.max(np.asarray(found.degrees_of_freedom[grid.place_of(best), best.round])))
    warn_if_undecided(criterion, len(grid.labels), df, grid.num_residuals)
    fits = [_fit(grid, choice, kernel, points) for choice in (best, best_single)]
    table = _as_table(grid, criterion, values, found)
    return Tuning(best, best_single, *least, table, criterion, *fits)


# ---- what is asked for ----


class _Grid(NamedTuple):
    """Chains at several levels."""

    spectrum: AbstractSpectrum
    labels: Float[Array, "K *Q"]
    name: Literal["tolerance", "multiplier"]
    levels: Float[np.ndarray, " L"]  # as they were given
    chain: ChainSpec  # with any one multiplier
    relative: bool

    def level(self, number: int | slice) -> Float[Array, "..."]:
        """The tolerances or multipliers of chains, a number or one for each output."""
        levels = jnp.asarray(self.levels[number], self.labels.dtype)
        if not self.relative:
            return levels
        all_alike = self.chain.joint and self.labels.ndim == 2
        over = (1, 2) if all_alike else 1
        squares = mean_square(self.labels[None], self.num_residuals, over=over)[0]
        return levels * squares if squares.ndim == 0 else jnp.multiply.outer(levels, squares)

    def place_of(self, choice: Choice) -> int:
        """Of its level among all."""
        return int(np.argmax(self.levels == np.asarray(choice.level, self.levels.dtype)))

    @property
    def num_residuals(self) -> int:
        """How many residuals an error averages over."""
        return num_residuals(self.labels, len(self.labels), joint=self.chain.joint)


def _as_grid(
    spectrum: AbstractSpectrum,
    y: ArrayLike,
    *,
    tolerances: ArrayLike | None,
    multipliers: ArrayLike | None,
    relative: bool,
    **chain: Any,
) -> _Grid:
    """All of it checked."""
    check_spectrum(spectrum)
    labels = as_labels("y", y, spectrum.num_points, dtype=spectrum.dtype)
    name: Literal["tolerance", "multiplier"]
    if tolerances is not None and multipliers is not None:
        raise ValueError("only one of tolerances and multipliers may be given; both were.")
    if multipliers is not None:
        name, value = "multiplier", multipliers
    elif tolerances is not None:
        name, value = "tolerance", tolerances
    else:
        name, value, relative = "tolerance", TOLERANCES, True
    levels = as_parameter(f"{name}s", value, dtype=labels.dtype)
    if levels.ndim != 1 or levels.size == 0:
        raise ValueError(
            f"{name}s must have shape (L,), a number for each chain; theirs is {levels.shape}."
        )
    if is_traced(spectrum, labels, levels):
        raise NotImplementedError(
            "tune cannot be traced (jit, vmap, derivatives), since it looks at values."
        )
    require_every(f"{name}s", levels, lambda levels: levels > 0, "must be positive")
    relative = as_flag("relative", relative)
    if relative and name == "multiplier":
        raise ValueError("relative is for tolerances; multipliers have the unit of the spectrum.")
    one = ChainSpec.checked(labels, tolerance=None, multiplier=1.0, **chain)
    seen = np.asarray(labels).any(axis=None if one.joint else 0)
    if relative and not seen.all():
        raise ValueError(
            "y must not be 0 for an output, of whose mean square levels are fractions."
        )
    return _Grid(spectrum, labels, name, np.asarray(levels), one, relative)


def _as_training_points(
    spectrum: AbstractSpectrum, kernel: KernelFunction | None, x: ArrayLike | None
) -> Float[Array, "K ..."] | None:
    if (kernel is None) != (x is None):
        raise ValueError("kernel and x must be given together, or both be left out.")
    if kernel is None or x is None:
        return None
    points = check_points(kernel, "x", x)
    if len(points) != spectrum.num_points:
        raise ValueError(
            f"x must hold the {spectrum.num_points} training points of the spectrum; it holds "
            f"{len(points)}."
        )
    return points if spectrum.dual_points is None else spectrum.dual_points


# ---- criteria ----


def _run(grid: _Grid, *, with_duals: bool) -> Levels:
    spectrum, labels, joint = grid.spectrum, grid.labels, grid.chain.joint
    unit = unit_of(labels, joint=joint)
    scaled = in_unit(labels, unit)
    z = spectrum.rotate(scaled)
    outside = jnp.zeros(z.shape[1:], z.dtype)
    if len(z) < len(labels):  # a basis of fewer vectors leaves a part of the labels out
        outside = jnp.maximum(jnp.sum(scaled**2, axis=0) - jnp.sum(z**2, axis=0), 0)

    levels = grid.level(slice(None))
    if labels.ndim == 2 and not joint and levels.ndim == 1:
        levels = jnp.broadcast_to(levels[:, None], (len(levels), labels.shape[1]))
    given: dict[str, Any] = {"radius": None, "multiplier": levels}
    if grid.name == "tolerance":
        given = {"radius": radius(levels, grid.num_residuals), "multiplier": None}
    chains = dataclasses.replace(grid.chain, **given)
    return run_levels(
        spectrum, z, unit, outside, chains, relative=grid.relative, with_duals=with_duals
    )


def _from_degrees_of_freedom(
    criterion: Criterion, grid: _Grid, found: Levels, noise_variance: ArrayLike | None
) -> Float[Array, "L T *Q"]:
    if not grid.spectrum.has_all_eigenvalues:
        raise ValueError(
            f'criterion "{criterion}" needs degrees of freedom, hence a trace, which a Krylov '
            'spectrum does not know: criterion="held_out", or a dense spectrum.'
        )
    error, df = found.training_error, found.degrees_of_freedom
    if criterion == "gcv":
        return generalised_cross_validation(error, df, grid.num_residuals)
    if noise_variance is None:
        raise ValueError('noise_variance must be given for criterion "sure".')
    variance = as_positive("noise_variance", noise_variance, error.shape[2:], dtype=error.dtype)
    return unbiased_risk(error, df, grid.num_residuals, jnp.broadcast_to(variance, error.shape))


class _HeldOut(NamedTuple):
    """Validation points."""

    spectrum: AbstractSpectrum
    cross: Float[Array, "n K"]
    labels: Float[Array, "n *Q"]

    def errors(self, found: Levels) -> Float[Array, "L T"]:
        """The mean squared error over points and outputs."""
        errors = errors_at(self.spectrum, self.cross, self.labels, found.duals)
        infeasible = (found.status == Status.INFEASIBLE).reshape(*errors.shape, -1).any(axis=2)
        return jnp.where(infeasible, jnp.nan, errors)


def _as_held_out(
    grid: _Grid, kernel: KernelFunction | None, points: Any, validation: Any
) -> _HeldOut:
    if kernel is None or points is None:
        raise ValueError('kernel and x must be given for criterion "held_out".')
    if validation is None:
        raise ValueError('validation=(x_new, y_new) must be given for criterion "held_out".')
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise ValueError(f"validation must be a pair (x_new, y_new); got {shown(validation)}.")
    pair = validation
    new = check_points(kernel, "validation[0]", pair[0])
    require_one_shape("validation[0]", new, "x", points)
    labels = as_labels("validation[1]", pair[1], len(new), dtype=grid.labels.dtype)
    if labels.shape[1:] != grid.labels.shape[1:]:
        raise ValueError(
            f"validation[1] must have shape {(len(new), *grid.labels.shape[1:])}, with the outputs "
            f"of y; its shape is {labels.shape}."
        )
    cross = compute_gram(kernel, new, points).astype(labels.dtype)
    return _HeldOut(grid.spectrum, cross, labels)


# ---- what was found ----


def _best(grid: _Grid, values: Float[np.ndarray, "L t"]) -> Choice:
    level, t = np.unravel_index(np.nanargmin(values), values.shape)
    return Choice(float(grid.levels[level]), int(t))


def _fit(grid: _Grid, choice: Choice, kernel: KernelFunction | None, points: Any) -> SpectralFit:
    number = grid.place_of(choice)
    weight = grid.chain.ground_truth_weight
    run = distill_spectrum(
        grid.spectrum,
        grid.labels,
        rounds=choice.round + 1,
        ground_truth_weight=weight if weight.ndim == 0 else weight[: choice.round],
        outputs="joint" if grid.chain.joint else "separate",
        **{grid.name: grid.level(number)},
    )
    fit = run.fits[choice.round]
    return dataclasses.replace(fit, kernel=as_pytree_kernel(kernel), x=points)


def _as_table(
    grid: _Grid, criterion: Criterion, values: Float[np.ndarray, "L T"], found: Levels
) -> Any:
    import pandas as pd  # takes as long to import as JAX

    def over_outputs(array: Array, total: Any) -> np.ndarray:
        by_round = np.asarray(array).reshape(*values.shape, -1)
        return np.asarray(total(by_round, axis=2)).ravel()

    rounds = values.shape[1]
    return pd.DataFrame(
        {
            grid.name: np.repeat(grid.levels, rounds),
            "round": np.tile(np.arange(rounds), len(grid.levels)),
            "active": over_outputs(found.status == Status.ACTIVE, np.mean),
            "degrees_of_freedom": over_outputs(found.degrees_of_freedom, np.sum),
            "training_error": over_outputs(found.training_error, np.mean),
            criterion: values.ravel(),
        }
    )
