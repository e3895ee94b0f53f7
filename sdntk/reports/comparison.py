"""How close networks of finite width are to their kernel: a table, a sentence and figures, from
what compare wrote.
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdntk.experiments.comparison import exponents
from sdntk.reports.plotting import draw_envelope, label_rounds, round_colours
from sdntk.reports.tables import mean_and_deviation

PLUS_MINUS = r"\pm"
GAPS = {"gap_train": "training points", "gap_test": "test points"}


def comparison_table(comparison: pd.DataFrame) -> Table:
    """Every round and width: mean and standard deviation over seeds."""
    shown = {
        "gap, training": "gap_train",
        "gap, test": "gap_test",
        "loss / eps": "loss_over_tolerance",
        "same class, test": "agreement_test",
        "test accuracy": "accuracy_test",
        "of the kernel": "kernel_accuracy_test",
        "change of NTK": "kernel_change",
        "NTK to infinite width": "kernel_error",
    }
    table = Table(
        title="Networks against their kernel, mean ± standard deviation over seeds "
        "(gaps and changes relative)"
    )
    for column in ("round", "width", *shown):
        table.add_column(column, justify="right")
    for index, rounds in comparison.groupby("round"):
        table.add_section()
        if rounds["collapsed"].all():
            table.add_row(str(index), "all", "collapsed: both are 0")
            continue
        for width, rows in rounds.groupby("width"):
            table.add_row(
                str(index),
                f"{width:,}",
                *(mean_and_deviation(rows[column]) for column in shown.values()),
            )
    return table


def verdict(comparison: pd.DataFrame) -> str:
    """The exponents, and whether the optimiser left anything undone, in a sentence each."""
    lines = []
    for gap, where in GAPS.items():
        for fit in exponents(comparison, gap).to_dict("records"):
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


def draw(comparison: pd.DataFrame, fits: pd.DataFrame, title: str) -> dict[str, Figure]:
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


def save(comparison: pd.DataFrame, fits: pd.DataFrame, title: str, folder: Path) -> list[Path]:
    """Write the figures beside the tables."""
    paths = []
    for name, figure in draw(comparison, fits, title).items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
        plt.close(figure)
    return paths


def _gaps(active: pd.DataFrame, title: str) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), sharey=True, layout="constrained")
    for ax, (gap, where) in zip(axes, GAPS.items(), strict=True):
        fitted = exponents(active, gap).set_index("round")
        for (index, rows), colour in zip(
            active.groupby("round"), round_colours(len(fitted)), strict=True
        ):
            draw_gap(ax, rows, gap, fitted.loc[index], colour=colour, name=f"round {index}")
        ax.set(xscale="log", yscale="log", xlabel="width", title=where)
        widths = sorted(active["width"].unique())
        ax.set_xticks(widths, labels=[f"{width:,}" for width in widths])
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.25, which="both")
        ax.legend(frameon=False, fontsize="small")
    axes[0].set_ylabel("gap: |network - kernel| / |kernel|")
    figure.suptitle(title, fontsize="medium")
    return figure


def draw_gap(ax: Axes, rows: pd.DataFrame, gap: str, fit: Any, *, colour: Any, name: str) -> Axes:
    """One round's gaps against the width, a point a network, and the fitted power law."""
    ax.plot(rows["width"], rows[gap], "o", color=colour, markersize=4, alpha=0.7)
    ends = np.array([rows["width"].min(), rows["width"].max()])
    label = f"{name}: one width"
    if np.isfinite(fit["exponent"]):
        label = f"{name}: width$^{{{_uncertain(fit, 2, PLUS_MINUS)}}}$"
        ax.plot(
            ends,
            np.exp(fit["intercept"]) * ends ** fit["exponent"],
            color=colour,
            linewidth=1.4,
            label=label,
        )
    else:
        ax.plot([], [], "o", color=colour, label=label)
    return ax


def _uncertain(fit: Any, digits: int, sign: str) -> str:
    """An exponent, with its standard error where there is one."""
    exponent = f"{fit['exponent']:.{digits}f}"
    return (
        f"{exponent} {sign} {fit['standard_error']:.{digits}f}"
        if np.isfinite(fit["standard_error"])
        else exponent
    )


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
    ends = np.array(
        [fits[["kernel", "network"]].min().min(), fits[["kernel", "network"]].max().max()]
    )
    for ax, width in zip(axes[0], widths, strict=True):
        rows = fits[fits["width"] == width]
        ax.plot(ends, ends, color="0.6", linewidth=1, linestyle="--")
        for (index, one), colour in zip(
            rows.groupby("round"), round_colours(rows["round"].nunique()), strict=True
        ):
            ax.plot(
                one["kernel"],
                one["network"],
                ".",
                color=colour,
                markersize=4,
                label=f"round {index}",
            )
        ax.set(title=f"width {width:,}", xlabel="output of the kernel's fit", aspect="equal")
        ax.grid(alpha=0.25)
    axes[0, 0].set_ylabel("output of the network (first seed)")
    axes[0, 0].legend(frameon=False, fontsize="small", markerscale=2)
    figure.suptitle(f"{title}\nall outputs at test points", fontsize="medium")
    return figure


def _accuracy(active: pd.DataFrame, title: str) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
    widths = sorted(active["width"].unique())
    for ax, name in zip(axes, ("train", "test"), strict=True):
        for width, colour in zip(widths, round_colours(len(widths)), strict=True):
            rows = active[active["width"] == width]
            draw_envelope(
                ax,
                rows,
                "round",
                f"accuracy_{name}",
                color=colour,
                label=f"networks, width {width:,}",
                marker="o",
            )
        draw_envelope(
            ax,
            active,
            "round",
            f"kernel_accuracy_{name}",
            color="crimson",
            label="kernel",
            marker="s",
        )
        ax.set_ylabel(
            f"accuracy on {'training' if name == 'train' else 'test'} points, against their labels"
        )
        label_rounds(ax)
        ax.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize="small")
    figure.suptitle(f"{title}\nmean and one standard deviation over seeds", fontsize="medium")
    return figure
