"""What a kernel's self-distillation on images showed: tables and figures from its records, and the
comparison with the best single fit.
"""

from collections.abc import Iterable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdntk.experiments.kernel_tables import level_of
from sdntk.experiments.records import Records
from sdntk.experiments.single_fits import chosen_by
from sdntk.reports.plotting import label_rounds, plot_envelope, plot_envelopes, plot_level
from sdntk.reports.tables import mean_and_deviation, new_table, over_seeds

#: Columns of the table of rounds: their headings and names.
_ROUNDS = {
    "train accuracy": "train_accuracy",
    "held-out accuracy (noisy)": "held_out_accuracy",
    "test accuracy": "test_accuracy",
    "test loss": "test_loss",
    "training loss": "training_loss",
    "active classes": "active_classes",
}


def rounds_table(records: Records) -> Table:
    """Every round of every chain, and the single fit that held-out images choose: mean and standard
    deviation over seeds.
    """
    table = new_table(
        "Self-distillation, mean ± standard deviation over seeds "
        "(accuracy against the original labels)",
        [level_of(records["rounds"]), "round", *_ROUNDS],
    )
    for value, chain in _by_level(records["rounds"]):
        for t, rows in chain.groupby("round"):
            table.add_row(f"{value:g}", str(t), *_means(rows, _ROUNDS.values()))
        table.add_section()
    single = _chosen_single_fits(records)
    chosen = mean_and_deviation(single[level_of(single)])
    table.add_row(f"one fit, {chosen}", "-", *_means(single, _ROUNDS.values()))
    return table


def _by_level(table: pd.DataFrame) -> Any:
    """Each tolerance, or multiplier, with its rows."""
    return table.groupby(level_of(table))


def _means(rows: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    return [mean_and_deviation(rows[column]) for column in columns]


def comparison_table(records: Records) -> Table:
    """Distillation against one fit: see
    :func:`sdntk.experiments.single_fits.compare_with_single_fits`.
    """
    level = level_of(records["rounds"])
    columns = ["first_round", "round", "best_round", f"single_{level}", "single_fit", "gain"]
    headings = [name.replace("_", " ") for name in columns]
    table = new_table(
        f"Best round against best single fit: test accuracy, both chosen {_chosen_on(records)}",
        [level, *headings, "gain by hindsight"],
    )
    for name, rows in records["comparison"].groupby(level, sort=False):
        hindsight = rows["hindsight_best_round"] - rows["hindsight_single_fit"]
        table.add_row(str(name), *_means(rows, columns), mean_and_deviation(hindsight))
    return table


def verdict(records: Records) -> str:
    """Does test accuracy rise and fall, at which tolerance, by how much, and does it beat one fit?
    In a sentence each.
    """
    level = level_of(records["rounds"])
    lines = [_course(_shown(level, value), rows) for value, rows in _by_level(records["rounds"])]
    chosen = _chosen_chains(records)
    best, single, gain = chosen["best_round"], chosen["single_fit"], chosen["gain"]
    spread = "one seed"
    if len(gain) > 1:
        spread = f"standard deviation over {len(gain)} seeds {gain.std(ddof=0):.4f}"
    lines.append(
        f"{level.capitalize()} and round chosen {_chosen_on(records)} reach {best.mean():.4f} on "
        f"test images; one fit, its {level} chosen in the same way, {single.mean():.4f}: a gain of "
        f"{gain.mean():+.4f} from distillation ({spread})."
    )
    return "\n".join(lines)


def _shown(level: str, value: float) -> str:
    return f"c = {value:g}" if level == "multiplier" else f"{value:g} ||y||^2/K"


def _course(name: str, rows: pd.DataFrame) -> str:
    """How the mean test accuracy of one chain rises and falls, in a sentence."""
    accuracy = rows.groupby("round")["test_accuracy"].mean()
    active = rows.groupby("round")["active_classes"].mean()
    best = accuracy.idxmax()
    last = accuracy[active > 0].index[-1]
    rise = "does not rise"
    if best > 0:
        rise = f"rises by {accuracy[best] - accuracy[0]:.4f} to round {best}"
    end = ""
    if last != accuracy.index[-1]:
        end = f"; then all classes collapse in round {last + 1}"
    return (
        f"At {name} mean test accuracy starts at {accuracy[0]:.4f}, {rise}, "
        f"and is {accuracy[last]:.4f} in round {last}{end}."
    )


def plot(records: Records) -> dict[str, Figure]:
    """The figures by name: ``rounds`` (the paper's Fig. 4 and 7), ``single_fits`` and, where rounds
    have multipliers of their own, ``multipliers``.
    """
    figures = {"rounds": _rounds(records), "single_fits": _single_fits(records)}
    if level_of(records["rounds"]) == "tolerance":
        figures["multipliers"] = _multipliers(records)
    return figures


def _rounds(records: Records) -> Figure:
    panels = {
        "train_accuracy": "accuracy on training images\n(original labels)",
        "test_accuracy": "accuracy on test images",
        "train_loss": "loss on training images: mean\nsquared error to original labels",
        "test_loss": "loss on test images: mean\nsquared error to original labels",
    }
    frame, single = _while_active(records), _chosen_single_fits(records)
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.4), sharex=True, layout="constrained")
    for ax, (column, name) in zip(axes.ravel(), panels.items(), strict=True):
        plot_envelopes(ax, frame, "round", column, by="chain")
        plot_level(
            ax,
            single[column],
            color="0.25",
            label=f"one fit, {level_of(single)} chosen {_chosen_on(records)}",
        )
        ax.set(ylabel=name)
        ax.grid(alpha=0.25)
    for ax in axes[1]:
        label_rounds(ax)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
    )
    figure.suptitle(_headline(records), fontsize="medium")
    return figure


def _single_fits(records: Records) -> Figure:
    figure, ax = _one_panel(records)
    frame = records["single_fits"]
    level = level_of(frame)
    test = {"color": "C0", "label": "one fit: test images"}
    plot_envelope(ax, frame, level, "test_accuracy", **test)
    if frame["held_out_accuracy"].notna().any():
        held_out = {"color": "C1", "label": "one fit: held-out images, noisy labels"}
        plot_envelope(ax, frame, level, "held_out_accuracy", **held_out)
    chosen = _chosen_chains(records)
    plot_level(
        ax,
        chosen["best_round"],
        color="C3",
        label=f"best round of self-distillation, chosen {_chosen_on(records)}",
    )
    names = {
        "tolerance": "tolerance $\\epsilon$, as a fraction of $\\Vert y\\Vert^2/K$",
        "multiplier": "multiplier $c$",
    }
    ax.set(
        xlabel=names[level],
        ylabel="accuracy",
        xscale="log" if level == "multiplier" else "linear",
    )
    ax.legend(frameon=False, fontsize="small")
    return figure


def _multipliers(records: Records) -> Figure:
    figure, ax = _one_panel(records)
    rounds = _while_active(records)
    chains = rounds[["seed", level_of(rounds), "round", "chain"]]
    active = records["classes"].dropna(subset="multiplier").merge(chains)
    plot_envelopes(ax, active, "round", "multiplier", by="chain")
    ax.set(yscale="log", ylabel="multiplier $c_t$, over seeds and the classes not collapsed")
    label_rounds(ax)
    ax.legend(frameon=False, fontsize="small")
    return figure


def _one_panel(records: Records) -> tuple[Figure, Axes]:
    figure, ax = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    ax.grid(alpha=0.25)
    ax.set_title(_headline(records), fontsize="medium")
    return figure, ax


def _while_active(records: Records) -> pd.DataFrame:
    """The rounds in which a class is left, with the name of their chain, which says when none
    was.
    """
    frame = records["rounds"]
    active = frame[frame["active_classes"] > 0]
    names, level = {}, level_of(frame)
    for value, rows in _by_level(frame):
        collapsed = rows.loc[rows["active_classes"] == 0, "round"]
        end = f", collapsed in round {collapsed.min()}" if len(collapsed) else ""
        name = f"$\\epsilon$ = {value:g} $\\Vert y\\Vert^2/K$"
        if level == "multiplier":
            name = f"$c$ = {value:g}"
        names[value] = name + end
    return active.assign(chain=active[level].map(names))


def _headline(records: Records) -> str:
    c = records.configuration
    return (
        f"{c['dataset']}, {c['kernel']}, K = {c['train']}, {c['label_noise']:.0%} label noise\n"
        f"{over_seeds(len(c['seeds']))}"
    )


def _chosen_chains(records: Records) -> pd.DataFrame:
    """The rows of the comparison in which tolerances or multipliers are chosen, too."""
    comparison = records["comparison"]
    return comparison[comparison[level_of(comparison)] == "chosen"]


def _chosen_single_fits(records: Records) -> pd.DataFrame:
    """For each seed the single fit with the best held-out accuracy."""
    frame = records["single_fits"]
    return frame.loc[frame.groupby("seed")[chosen_by(frame)].idxmax()]


def _chosen_on(records: Records) -> str:
    """How rounds and tolerances were chosen, in words."""
    held_out = chosen_by(records["rounds"]) == "held_out_accuracy"
    return "on held-out images" if held_out else "by hindsight on the test images"
