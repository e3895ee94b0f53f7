"""The paper's example end to end (Mobahi et al. 2020, section 4): every quantity of the theory,
computed, told and drawn.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdntk import kernels
from sdntk.distillation import distill
from sdntk.experiments.paper_example import Illustration, effective_basis_functions
from sdntk.reports import plotting
from sdntk.theory import bounds
from sdntk.theory.multiplier import Status


def table(shown: Illustration) -> Table:
    """A row for each round: status, multiplier and norm between their bounds, losses, effective
    basis functions.
    """
    run, d = shown.run, shown.run.eigenvalues
    rounds = len(run.status)
    bounds_of = jax.vmap(lambda z: bounds.multiplier_bounds(d, z, shown.tolerance), in_axes=1)
    c_low, c_high = map(np.asarray, bounds_of(run.spectrum.rotate(run.targets.T)))
    norm_low, norm_high = map(
        np.asarray, bounds.norm_bounds(d, run.rotated_labels, shown.tolerance, rounds)
    )
    norms, basis, errors = (
        np.linalg.norm(run.targets, axis=1),
        effective_basis_functions(run.filters),
        shown.test_error,
    )
    status, multipliers, losses = map(np.asarray, (run.status, run.multipliers, run.training_loss))
    labels = "the authors' labels" if shown.seed is None else f"fresh noise, seed {shown.seed}"
    out = Table(
        title=f"Self-distillation of the paper's example: tolerance {shown.tolerance:.6g}, {labels}"
    )
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
        out.add_column(heading, justify="left" if heading == "status" else "right")
    for t in range(rounds):
        active = status[t] == Status.ACTIVE
        out.add_row(
            str(t),
            Status(status[t]).name.lower(),
            f"{multipliers[t]:.4e}" if active else "-",
            f"{c_low[t]:.1e} .. {c_high[t]:.1e}" if active else "-",
            f"{norms[t]:.4f}",
            f"{norm_low[t]:.3f} .. {norm_high[t]:.3f}",
            f"{losses[t]:.5f}",
            f"{errors[t]:.5f}",
            f"{basis[t]:.2f}",
        )
    return out


def draw(shown: Illustration) -> dict[str, Figure]:
    """One figure for each of the paper's pictures, by file name; those of active rounds only if
    there is one.
    """
    figures = {
        "green_function": _single(
            lambda ax: plotting.draw_kernel(ax, kernels.cubic_spline()), size=(5.4, 4.4)
        ),
        "data": _single(lambda ax: _data(ax, shown)),
        "fits": _single(lambda ax: _fits(ax, shown)),
    }
    if int(shown.run.active_rounds):
        figures["filters"] = _filters(shown)
        figures["filter_ratios"] = _single(lambda ax: _ratios(ax, shown))
        figures["early_stopping"] = _early_stopping(shown)
    return figures


def save(shown: Illustration, folder: Path) -> list[Path]:
    """Write every figure as a PNG under ``folder``; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in draw(shown).items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
        plt.close(figure)
    return paths


def _single(draw_on: Callable[[Axes], Any], size: tuple[float, float] = (6.4, 4.2)) -> Figure:
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    draw_on(ax)
    return figure


def _data(ax: Axes, shown: Illustration) -> None:
    plotting.draw_data(ax, shown.x, shown.y, shown.x_plot, shown.truth)
    x, y = np.asarray(shown.x), np.asarray(shown.y)
    ax.plot(x[[0, -1]], y[[0, -1]], "o", markersize=12, markerfacecolor="none", color="crimson")
    ax.annotate(
        "every function of the space\nis 0 at both ends",
        (1, y[-1]),
        (0.6, 0.85),
        textcoords="axes fraction",
        color="crimson",
        arrowprops={"arrowstyle": "-", "color": "crimson", "shrinkB": 7},
    )
    ax.set_title("11 noisy samples of sin(2 pi x)", fontsize="medium")


def _fits(ax: Axes, shown: Illustration) -> None:
    plotting.draw_data(ax, shown.x, shown.y, shown.x_plot, shown.truth)
    plotting.draw_fits(ax, shown.x_plot, shown.fits, shown.run.status)
    ax.set_title(
        f"Round by round: smoother, flatter, then zero (tolerance {shown.tolerance:.4g})",
        fontsize="medium",
    )


def _filters(shown: Illustration) -> Figure:
    run, rounds = shown.run, int(shown.run.active_rounds)
    width = 2.3 * rounds + 0.8
    figure, axes = plt.subplots(
        1, rounds, figsize=(width, 3.0), sharey=True, layout="constrained", squeeze=False
    )
    diagonals, basis = np.asarray(run.filters), effective_basis_functions(run.filters)
    for t, (ax, colour) in enumerate(zip(axes[0], plotting.round_colours(rounds), strict=True)):
        plotting.draw_filter(ax, diagonals[t], colour=colour)
        ax.set_title(f"round {t}\n{basis[t]:.1f} basis functions", fontsize="medium")
        ax.set_xlabel("k, largest eigenvalue first", fontsize="small")
    axes[0, 0].set_ylabel("diagonal of B, entry k")
    return figure


def _ratios(ax: Axes, shown: Illustration) -> None:
    plotting.draw_filter_ratios(ax, shown.run, shown.tolerance)
    ax.set_title(
        "Sparsity grows round by round, faster than Theorem 5 guarantees", fontsize="medium"
    )


def _early_stopping(shown: Illustration) -> Figure:
    """The last active round against one fit with a larger tolerance and the same loss on the labels
    (section 3.4).
    """
    run, late = shown.run, int(shown.run.active_rounds) - 1
    loss = float(np.mean((np.asarray(run.fitted)[late] - np.asarray(shown.y)) ** 2))
    early = distill(
        kernels.cubic_spline(), shown.x, shown.y, tolerance=loss, rounds=len(run.status)
    )  # its round 0
    distilled, stopped = f"self-distillation, round {late}", "early stopping, one fit"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
    left.plot(shown.x_plot, shown.fits[late], color="C0", linewidth=2, label=distilled)
    left.plot(shown.x_plot, early.predict(shown.x_plot)[0], color="C1", linewidth=2, label=stopped)
    plotting.draw_data(left, shown.x, shown.y, shown.x_plot, shown.truth)
    left.set_title(f"Two fits with the same loss on the labels, {loss:.4f}", fontsize="medium")
    bars = ((run.filters[late], distilled, "C0", -0.2), (early.filters[0], stopped, "C1", 0.2))
    for diagonal, name, colour, shift in bars:
        kept = np.asarray(diagonal)[::-1][: int(run.spectrum.rank)]
        right.bar(
            np.arange(1, len(kept) + 1) + shift, kept / kept[0], width=0.4, color=colour, label=name
        )
    right.set(
        yscale="log",
        xlabel="k, largest eigenvalue first",
        ylabel="diagonal relative to its largest entry",
    )
    right.set_title("The single fit keeps what distillation drops", fontsize="medium")
    right.legend(frameon=False, fontsize="small")
    return figure
