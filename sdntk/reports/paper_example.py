"""The paper's example (Mobahi et al. 2020, section 4): every quantity of the theory, in a table and
in figures.
"""

from collections.abc import Callable
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdntk import kernels
from sdntk.distillation import distill
from sdntk.experiments.paper_example import Illustration, effective_basis_functions
from sdntk.reports import plotting
from sdntk.theory import bounds
from sdntk.theory.multiplier import Status

#: Filters beside one another in a figure, at most.
_FILTERS_IN_A_ROW = 6


def quantities_table(example: Illustration) -> Table:
    """A row for each round: status, multiplier and norm between their bounds, losses, effective
    basis functions.
    """
    run, rounds = example.run, len(example.run.status)
    c_low, c_high = _multiplier_bounds(example)
    norm_low, norm_high = map(
        np.asarray,
        bounds.norm_bounds(run.eigenvalues, run.rotated_labels, example.tolerance, rounds),
    )
    norms = np.linalg.norm(run.targets, axis=1)
    basis = effective_basis_functions(run.filters)
    errors = example.test_error
    multipliers, losses = np.asarray(run.multipliers), np.asarray(run.training_loss)

    labels = "the authors' labels" if example.seed is None else f"fresh noise, seed {example.seed}"
    title = f"Self-distillation of the paper's example: tolerance {example.tolerance:.6g}, {labels}"
    table = Table(title=title)
    for heading in (
        "round",
        "status",
        "multiplier c",
        "bounds on c",
        "norm of targets",
        "its bounds",
        "training loss",
        "error to truth",
        "basis functions",
    ):
        table.add_column(heading, justify="left" if heading == "status" else "right")
    for t, code in enumerate(np.asarray(run.status)):
        multiplier, its_bounds = "-", "-"
        if code == Status.ACTIVE:
            multiplier = f"{multipliers[t]:.4e}"
            its_bounds = f"{c_low[t]:.1e} .. {c_high[t]:.1e}"
        table.add_row(
            str(t),
            Status(code).name.lower(),
            multiplier,
            its_bounds,
            f"{norms[t]:.4f}",
            f"{norm_low[t]:.3f} .. {norm_high[t]:.3f}",
            f"{losses[t]:.5f}",
            f"{errors[t]:.5f}",
            f"{basis[t]:.2f}",
        )
    return table


def _multiplier_bounds(
    example: Illustration,
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """The lower and the upper bound of every round's multiplier."""
    run = example.run
    of_round = jax.vmap(
        lambda z: bounds.multiplier_bounds(run.eigenvalues, z, example.tolerance), in_axes=1
    )
    low, high = of_round(run.spectrum.rotate(run.targets.T))
    return np.asarray(low), np.asarray(high)


def verdict(example: Illustration) -> str:
    """How many rounds are active, and which comes closest to the true function."""
    errors = example.test_error
    best = int(errors.argmin())
    return (
        f"{int(example.run.active_rounds)} active rounds; closest to the true function after round "
        f"{best} (error {errors[best]:.5f}, round 0: {errors[0]:.5f})."
    )


def plot(example: Illustration) -> dict[str, Figure]:
    """One figure for each of the paper's pictures, by file name; those of active rounds only if
    there is one.
    """
    figures = {
        "green_function": _single(
            lambda ax: plotting.plot_kernel(ax, kernels.cubic_spline()), size=(5.4, 4.4)
        ),
        "data": _single(lambda ax: _data(ax, example)),
        "fits": _single(lambda ax: _fits(ax, example)),
    }
    if int(example.run.active_rounds):
        figures["filters"] = _filters(example)
        figures["filter_ratios"] = _single(lambda ax: _ratios(ax, example))
        figures["early_stopping"] = _early_stopping(example)
    return figures


def _single(draw_on: Callable[[Axes], Any], size: tuple[float, float] = (6.4, 4.2)) -> Figure:
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    draw_on(ax)
    return figure


def _data(ax: Axes, example: Illustration) -> None:
    plotting.plot_data(ax, example.x, example.y, example.x_plot, example.truth)
    x, y = np.asarray(example.x), np.asarray(example.y)
    ax.plot(x[[0, -1]], y[[0, -1]], "o", markersize=12, markerfacecolor="none", color="crimson")
    ax.annotate(
        "every function of the space\nis 0 at both ends",
        (1, y[-1]),
        (0.6, 0.85),
        textcoords="axes fraction",
        color="crimson",
        arrowprops={"arrowstyle": "-", "color": "crimson", "shrinkB": 7},
    )
    ax.set_title(f"{len(x)} noisy samples of sin(2 pi x)", fontsize="medium")


def _fits(ax: Axes, example: Illustration) -> None:
    plotting.plot_data(ax, example.x, example.y, example.x_plot, example.truth)
    plotting.plot_fits(ax, example.x_plot, example.fits, example.run.status)
    ax.set_title(
        f"Round by round: smoother, flatter, then zero (tolerance {example.tolerance:.4g})",
        fontsize="medium",
    )


def _filters(example: Illustration) -> Figure:
    rounds = int(example.run.active_rounds)
    columns = min(rounds, _FILTERS_IN_A_ROW)
    rows = -(-rounds // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.3 * columns + 0.8, 2.8 * rows + 0.2),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    diagonals = np.asarray(example.run.filters)
    basis = effective_basis_functions(example.run.filters)
    for t, colour in enumerate(plotting.round_colours(rounds)):
        ax = axes.flat[t]
        plotting.plot_filter(ax, diagonals[t], color=colour)
        ax.set_title(f"round {t}\n{basis[t]:.1f} basis functions", fontsize="medium")
    for ax in axes.flat[rounds:]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("k, largest eigenvalue first", fontsize="small")
    for ax in axes[:, 0]:
        ax.set_ylabel("diagonal of B, entry k")
    return figure


def _ratios(ax: Axes, example: Illustration) -> None:
    plotting.plot_filter_ratios(ax, example.run, example.tolerance)
    ax.set_title(
        "Sparsity grows round by round, faster than Theorem 5 guarantees", fontsize="medium"
    )


def _early_stopping(example: Illustration) -> Figure:
    """The last active round against one fit with a larger tolerance and the same loss on the labels
    (section 3.4).
    """
    run = example.run
    late = int(run.active_rounds) - 1
    loss = float(np.mean((np.asarray(run.fitted)[late] - np.asarray(example.y)) ** 2))
    # Round 0 of this chain is the single fit.
    early = distill(
        kernels.cubic_spline(), example.x, example.y, tolerance=loss, rounds=len(run.status)
    )
    distilled = {"color": "C0", "label": f"self-distillation, round {late}"}
    stopped = {"color": "C1", "label": "early stopping, one fit"}

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
    left.plot(example.x_plot, example.fits[late], linewidth=2, **distilled)
    # Dashed, since the two curves may lie on each other.
    one_fit = early.predict(example.x_plot)[0]
    left.plot(example.x_plot, one_fit, linewidth=2, linestyle="--", **stopped)
    plotting.plot_data(left, example.x, example.y, example.x_plot, example.truth)
    left.set_title(f"Two fits with the same loss on the labels, {loss:.4f}", fontsize="medium")

    rank = int(run.spectrum.rank)
    k = np.arange(1, rank + 1)
    for diagonal, style, shift in (
        (run.filters[late], distilled, -0.2),
        (early.filters[0], stopped, 0.2),
    ):
        kept = np.asarray(diagonal)[::-1][:rank]
        right.bar(k + shift, kept / kept[0], width=0.4, **style)
    plotting.label_eigenvalues(right, rank)
    right.set(
        yscale="log",
        xlabel="k, largest eigenvalue first",
        ylabel="diagonal relative to its largest entry",
    )
    right.set_title("The single fit keeps what distillation drops", fontsize="medium")
    right.legend(frameon=False, fontsize="small")
    return figure
