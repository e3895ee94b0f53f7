"""How close networks of finite width are to their kernel: a table, sentences and figures, from what
``compare_widths`` wrote.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdntk.experiments.comparison import gap_exponents
from sdntk.reports.plotting import (
    Colour,
    label_rounds,
    line_style,
    plot_envelope,
    round_colours,
)
from sdntk.reports.tables import mean_and_deviation, new_table

PLUS_MINUS = r"\pm"
GAPS = {"gap_train": "training points", "gap_test": "test points"}


def comparison_table(comparison: pd.DataFrame) -> Table:
    """Every round and width: mean and standard deviation over seeds."""
    columns = {
        "gap, training": "gap_train",
        "gap, test": "gap_test",
        "loss / eps": "loss_over_tolerance",
        "same class, test": "agreement_test",
        "test accuracy": "accuracy_test",
        "of the kernel": "kernel_accuracy_test",
        "change of NTK": "kernel_change",
        "NTK to infinite width": "kernel_error",
    }
    table = new_table(
        "Networks against their kernel, mean ± standard deviation over seeds "
        "(gaps and changes relative)",
        ["round", "width", *columns],
    )
    for index, rounds in comparison.groupby("round"):
        table.add_section()
        if rounds["collapsed"].all():
            table.add_row(str(index), "all", "collapsed: both are 0")
            continue
        for width, rows in rounds.groupby("width"):
            cells = [mean_and_deviation(rows[column]) for column in columns.values()]
            table.add_row(str(index), f"{width:,}", *cells)
    return table


def verdict(comparison: pd.DataFrame) -> str:
    """The exponents, and whether the optimiser left anything undone, in a sentence each."""
    lines = []
    for gap, where in GAPS.items():
        for fit in gap_exponents(comparison, gap).to_dict("records"):
            if np.isfinite(fit["exponent"]):
                lines.append(
                    f"Round {fit['round']}, {where}: gap ~ width^({_uncertain(fit, 3, '±')}), "
                    f"{fit['points']} networks (theory: -0.5)."
                )
    active = comparison[~comparison["collapsed"]]
    for index in comparison.loc[comparison["collapsed"], "round"].unique():
        lines.append(f"Round {index}: collapsed, the kernel's function and the networks' are 0.")
    if len(active):
        reached = (active["stop"] == "stationary").sum()
        lines.append(
            f"{reached} of {len(active)} trainings reached the gradient norm asked for; the "
            "largest that is left is "
            f"{active['stationarity'].max():.1e}."
        )
    return "\n".join(lines)


def plot(comparison: pd.DataFrame, fits: pd.DataFrame, title: str) -> dict[str, Figure]:
    """The figures by name: ``gaps`` against width, ``fits`` side by side, and ``accuracy`` by
    round; none of no round.
    """
    active = comparison[~comparison["collapsed"]]
    if active.empty:
        return {}
    return {
        "gaps": _gaps(active, title),
        "fits": _fits(fits, title),
        "accuracy": _accuracy(active, title),
    }


def _gaps(active: pd.DataFrame, title: str) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), sharey=True, layout="constrained")
    widths = sorted(active["width"].unique())
    for ax, (gap, where) in zip(axes, GAPS.items(), strict=True):
        fitted = gap_exponents(active, gap).set_index("round")
        colours = round_colours(len(fitted))
        for (index, rows), colour in zip(active.groupby("round"), colours, strict=True):
            plot_gap(ax, rows, gap, fitted.loc[index], name=f"round {index}", color=colour)
        ax.set(xscale="log", yscale="log", xlabel="width", title=where)
        ax.set_xticks(widths, labels=[f"{width:,}" for width in widths])
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.25, which="both")
        ax.legend(frameon=False, fontsize="small")
    axes[0].set_ylabel("gap: |network - kernel| / |kernel|")
    figure.suptitle(title, fontsize="medium")
    return figure


def plot_gap(
    ax: Axes,
    rows: pd.DataFrame,
    gap: str,
    fit: Mapping[str, Any] | pd.Series,
    *,
    name: str,
    color: Colour,
    **style: Any,
) -> Axes:
    """One round's gaps against the width, a point a network, and the fitted power law.

    Args:
        ax: where.
        rows: of :func:`sdntk.compare_widths`, one round.
        gap: "gap_train" or "gap_test".
        fit: the round's row of :func:`sdntk.gap_exponents`.
        name: for the legend.
        color: of points and line.
        **style: of the points.
    """
    label = f"{name}: one width"
    if np.isfinite(fit["exponent"]):
        label = f"{name}: width$^{{{_uncertain(fit, 2, PLUS_MINUS)}}}$"
        ends = np.array([rows["width"].min(), rows["width"].max()])
        law = np.exp(fit["intercept"]) * ends ** fit["exponent"]
        ax.plot(ends, law, color=color, linewidth=1.4, label=label)
        label = "_"  # the line has it
    points = {"marker": "o", "linestyle": "none", "markersize": 4, "alpha": 0.7, "label": label}
    ax.plot(rows["width"], rows[gap], color=color, **line_style(style, points))
    return ax


def _uncertain(fit: Mapping[str, Any] | pd.Series, digits: int, sign: str) -> str:
    """An exponent, with its standard error where there is one."""
    exponent = f"{fit['exponent']:.{digits}f}"
    if not np.isfinite(fit["standard_error"]):
        return exponent
    return f"{exponent} {sign} {fit['standard_error']:.{digits}f}"


def _fits(fits: pd.DataFrame, title: str) -> Figure:
    widths = sorted(fits["width"].unique())
    figure, axes = plt.subplots(
        1,
        len(widths),
        figsize=(3.4 * len(widths) + 0.6, 4.9),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    outputs = fits[["kernel", "network"]]
    ends = np.array([outputs.min().min(), outputs.max().max()])
    for ax, width in zip(axes[0], widths, strict=True):
        rows = fits[fits["width"] == width]
        ax.plot(ends, ends, color="0.6", linewidth=1, linestyle="--")
        colours = round_colours(rows["round"].nunique())
        for (index, one), colour in zip(rows.groupby("round"), colours, strict=True):
            points = {"color": colour, "markersize": 4, "label": f"round {index}"}
            ax.plot(one["kernel"], one["network"], ".", **points)
        ax.set(title=f"width {width:,}", xlabel="output of the kernel's fit", aspect="equal")
        ax.grid(alpha=0.25)
    axes[0, 0].set_ylabel("output of the network (first seed)")
    axes[0, 0].legend(frameon=False, fontsize="small", markerscale=2)
    figure.suptitle(f"{title}\nall outputs at test points", fontsize="medium")
    return figure


def _accuracy(active: pd.DataFrame, title: str) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
    widths = sorted(active["width"].unique())
    kernel = {"color": "crimson", "label": "kernel", "marker": "s"}
    for ax, (name, points) in zip(axes, {"train": "training", "test": "test"}.items(), strict=True):
        for width, colour in zip(widths, round_colours(len(widths)), strict=True):
            rows = active[active["width"] == width]
            network = {"color": colour, "label": f"networks, width {width:,}", "marker": "o"}
            plot_envelope(ax, rows, "round", f"accuracy_{name}", **network)
        plot_envelope(ax, active, "round", f"kernel_accuracy_{name}", **kernel)
        ax.set_ylabel(f"accuracy on {points} points, against their labels")
        label_rounds(ax)
        ax.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize="small")
    figure.suptitle(f"{title}\nmean and one standard deviation over seeds", fontsize="medium")
    return figure
