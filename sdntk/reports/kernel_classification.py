"""What a kernel's self-distillation on images showed: tables and figures from its records, and the
honest comparison.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdntk.experiments.kernel_classification import chosen_by
from sdntk.experiments.records import Records
from sdntk.reports.plotting import draw_envelope, draw_envelopes, draw_level, label_rounds
from sdntk.reports.tables import mean_and_deviation


def rounds_table(records: Records) -> Table:
    """Every round of every chain, and the single fit that held-out images choose: mean and standard
    deviation over seeds.
    """
    shown = {
        "train accuracy": "train_accuracy",
        "held-out accuracy (noisy)": "held_out_accuracy",
        "test accuracy": "test_accuracy",
        "test loss": "test_loss",
        "training loss": "training_loss",
        "active classes": "active_classes",
    }
    table = Table(
        title="Self-distillation, mean ± standard deviation over seeds "
        "(accuracy against the original labels)"
    )
    for column in ("tolerance", "round", *shown):
        table.add_column(column, justify="right")
    frame = records["rounds"]
    last = None
    for (tolerance, t), rows in frame.groupby(["tolerance", "round"]):
        if last is not None and tolerance != last:
            table.add_section()
        cells = [mean_and_deviation(rows[column]) for column in shown.values()]
        table.add_row(f"{tolerance:g}", str(t), *cells)
        last = tolerance
    single = _chosen_single_fits(records)
    table.add_section()
    table.add_row(
        f"one fit, {mean_and_deviation(single['tolerance'])}",
        "-",
        *(mean_and_deviation(single[column]) for column in shown.values()),
    )
    return table


def comparison_table(records: Records) -> Table:
    """Distillation against one fit: see :func:`sdntk.experiments.kernel_classification.compare`."""
    table = Table(
        title="Best round against best single fit: test accuracy, both chosen "
        + _chosen_on(records)
    )
    shown = ("first_round", "round", "best_round", "single_tolerance", "single_fit", "gain")
    for column in ("tolerance", *(name.replace("_", " ") for name in shown), "gain by hindsight"):
        table.add_column(column, justify="right")
    for tolerance, rows in records["comparison"].groupby("tolerance", sort=False):
        hindsight = rows["hindsight_best_round"] - rows["hindsight_single_fit"]
        cells = [mean_and_deviation(rows[column]) for column in shown] + [
            mean_and_deviation(hindsight)
        ]
        table.add_row(str(tolerance), *cells)
    return table


def verdict(records: Records) -> str:
    """Does test accuracy rise and fall, at which tolerance, by how much, and does it beat one fit?
    In a sentence each.
    """
    lines = []
    for tolerance, rows in records["rounds"].groupby("tolerance"):
        course = rows.groupby("round")["test_accuracy"].mean()
        active = rows.groupby("round")["active_classes"].mean()
        best = course.idxmax()
        rise = (
            f"rises by {course[best] - course[0]:.4f} to round {best}"
            if best > 0
            else "does not rise"
        )
        last = course[active > 0].index[-1]
        end = "" if last == course.index[-1] else f"; then all classes collapse in round {last + 1}"
        lines.append(
            f"At {tolerance:g} ||y||^2/K mean test accuracy starts at {course[0]:.4f}, {rise}, "
            f"and is {course[last]:.4f} in "
            f"round {last}{end}."
        )
    chosen = records["comparison"].query("tolerance == 'chosen'")
    best, single, gain = (chosen[column] for column in ("best_round", "single_fit", "gain"))
    lines.append(
        f"Tolerance and round chosen {_chosen_on(records)} reach {best.mean():.4f} on test "
        "images; one fit, its tolerance "
        f"chosen in the same way, {single.mean():.4f}: a gain of {gain.mean():+.4f} from "
        "distillation "
        + (
            f"(standard deviation over {len(gain)} seeds {gain.std(ddof=0):.4f})."
            if len(gain) > 1
            else "(one seed)."
        )
    )
    return "\n".join(lines)


def draw(records: Records) -> dict[str, Figure]:
    """The figures by name: ``rounds`` (the paper's Fig. 4 and 7), ``single_fits`` and
    ``multipliers``.
    """
    return {
        "rounds": _rounds(records),
        "single_fits": _single_fits(records),
        "multipliers": _multipliers(records),
    }


def save(records: Records) -> list[Path]:
    """Write the figures beside the tables."""
    paths = []
    for name, figure in draw(records).items():
        paths.append(records.folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
        plt.close(figure)
    return paths


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
        draw_envelopes(ax, frame, "round", column, by="chain")
        draw_level(
            ax,
            single[column],
            color="0.25",
            label=f"one fit, tolerance chosen {_chosen_on(records)}",
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
    def draw_on(ax: Axes) -> None:
        frame = records["single_fits"]
        draw_envelope(
            ax, frame, "tolerance", "test_accuracy", color="C0", label="one fit: test images"
        )
        if frame["held_out_accuracy"].notna().any():
            draw_envelope(
                ax,
                frame,
                "tolerance",
                "held_out_accuracy",
                color="C1",
                label="one fit: held-out images, noisy labels",
            )
        chosen = records["comparison"].query("tolerance == 'chosen'")
        draw_level(
            ax,
            chosen["best_round"],
            color="C3",
            label=f"best round of self-distillation, chosen {_chosen_on(records)}",
        )
        ax.set(
            xlabel="tolerance $\\epsilon$, as a fraction of $\\Vert y\\Vert^2/K$", ylabel="accuracy"
        )

    return _one(records, draw_on)


def _multipliers(records: Records) -> Figure:
    def draw_on(ax: Axes) -> None:
        chains = _while_active(records)[["seed", "tolerance", "round", "chain"]]
        active = records["classes"].dropna(subset="multiplier").merge(chains)
        draw_envelopes(ax, active, "round", "multiplier", by="chain")
        ax.set(yscale="log", ylabel="multiplier $c_t$, over seeds and the classes not collapsed")
        label_rounds(ax)

    return _one(records, draw_on)


def _one(records: Records, draw_on: Callable[[Axes], None]) -> Figure:
    figure, ax = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    draw_on(ax)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize="small")
    ax.set_title(_headline(records), fontsize="medium")
    return figure


def _while_active(records: Records) -> pd.DataFrame:
    """The rounds in which a class is left, with the name of their chain, which says when none
    was.
    """
    frame = records["rounds"]
    active = frame[frame["active_classes"] > 0]
    names = {}
    for tolerance, rows in frame.groupby("tolerance"):
        collapsed = rows.loc[rows["active_classes"] == 0, "round"]
        end = f", collapsed in round {collapsed.min()}" if len(collapsed) else ""
        names[tolerance] = f"$\\epsilon$ = {tolerance:g} $\\Vert y\\Vert^2/K${end}"
    return active.assign(chain=active["tolerance"].map(names))


def _headline(records: Records) -> str:
    c = records.configuration
    several = f"mean and one standard deviation over {len(c['seeds'])} seeds"
    return (
        f"{c['dataset']}, {c['kernel']}, K = {c['train']}, {c['label_noise']:.0%} label noise\n"
        f"{several if len(c['seeds']) > 1 else 'one seed'}"
    )


def _chosen_single_fits(records: Records) -> pd.DataFrame:
    """For each seed the single fit with the best held-out accuracy."""
    frame = records["single_fits"]
    return frame.loc[frame.groupby("seed")[chosen_by(frame)].idxmax()]


def _chosen_on(records: Records) -> str:
    """How rounds and tolerances were chosen, in words."""
    held_out = chosen_by(records["rounds"]) == "held_out_accuracy"
    return "on held-out images" if held_out else "by hindsight on the test images"
