"""What self-distillation of deep networks showed: tables, verdict and the paper's figures, from the
records.
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdntk.experiments.records import Records
from sdntk.reports.plotting import draw_envelope, draw_envelopes, label_rounds
from sdntk.reports.tables import mean_and_deviation
from sdntk.training.state import Stop

_TRAIN, _TEST, _STOPPED = "C0", "C3", "C2"


def rounds_table(records: Records) -> Table:
    """Every round: mean and standard deviation over seeds; beside it the networks that were stopped
    early, if any.

    Chains that diverged are left out, and of the networks stopped early those that did not reach
    the round's loss.
    """
    frame, stopped = _whole_chains(records)
    shown = {
        "train accuracy": "train_accuracy",
        "test accuracy": "test_accuracy",
        "train loss": "train_loss",
        "test loss": "test_loss",
        "loss to given labels": "given_loss",
    }
    beside = [] if stopped.empty else ["stopped early: test accuracy", "at step", "reached"]
    table = Table(
        title="Self-distillation, mean ± standard deviation over seeds "
        "(accuracy and loss to the original labels)"
    )
    for column in ("round", *shown, *beside):
        table.add_column(column, justify="right")
    for t, rows in frame.groupby("round"):
        cells = [mean_and_deviation(rows[column]) for column in shown.values()]
        if not stopped.empty:
            early = stopped[stopped["round"] == t]
            reached = early.dropna(subset="step")
            cells += (
                [mean_and_deviation(reached[column]) for column in ("test_accuracy", "step")]
                if len(reached)
                else ["", ""]
            )
            cells.append(f"{len(reached)} of {len(early)}")
        table.add_row(str(t), *cells)
    return table


def verdict(records: Records) -> str:
    """Does training accuracy fall every round, test accuracy rise first, and does a network stopped
    early do as well?
    """
    frame, stopped = _whole_chains(records)
    if frame.empty:
        return "Every chain diverged."
    train, test = (
        frame.groupby("round")[column].mean() for column in ("train_accuracy", "test_accuracy")
    )
    falls = train.diff().dropna() < 0
    chains, diverged = (
        records["rounds"]["seed"].nunique(),
        records["rounds"]["seed"].nunique() - frame["seed"].nunique(),
    )
    lines = [f"{diverged} of {chains} chains diverged and are left out."] if diverged else []
    lines.append(
        f"Mean training accuracy falls in {falls.sum()} of {len(falls)} later rounds: from "
        f"{train.iloc[0]:.4f} to "
        f"{train.iloc[-1]:.4f}."
    )
    best = test.idxmax()
    gains = frame.pivot(index="seed", columns="round", values="test_accuracy")
    gains = gains[best] - gains[0]
    rise = (
        f"rises to {test[best]:.4f} in round {best} (by {gains.mean():.4f}, standard deviation "
        "over seeds "
        f"{gains.std(ddof=0):.4f})"
        if best > 0
        else "does not rise"
    )
    lines.append(
        f"Mean test accuracy starts at {test.iloc[0]:.4f}, {rise}, and ends at {test.iloc[-1]:.4f}."
    )
    if not stopped.empty:
        lines.append(_verdict_on_early_stopping(frame, stopped))
    return "\n".join(lines)


def _verdict_on_early_stopping(frame: pd.DataFrame, stopped: pd.DataFrame) -> str:
    """Both sides over the same rounds, and over all seeds: what only some seeds reach is reached by
    the better ones.
    """
    missed = stopped.loc[stopped["step"].isna(), "round"]
    reached = sorted(set(stopped["round"]) - set(missed))
    if not reached:
        return "No round's loss was reached by every network that was to be stopped there."
    early, rounds = (
        table[table["round"].isin(reached)].groupby("round")["test_accuracy"].mean()
        for table in (stopped, frame)
    )
    return (
        f"One network stopped early, at the losses of rounds {', '.join(map(str, reached))}, "
        "which every seed reached: mean "
        f"test accuracy {early.max():.4f} at best (round {early.idxmax()}); self-distillation in "
        "these rounds "
        f"{rounds.max():.4f} (round {rounds.idxmax()})."
    )


def _whole_chains(records: Records) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rounds, and the networks stopped early, of the seeds whose chains did not diverge: means
    are of the same seeds.
    """
    frame, stopped = records["rounds"], records["early_stopping"]
    gone = frame.loc[frame["stop"] == Stop.DIVERGED.name.lower(), "seed"]
    return frame[~frame["seed"].isin(gone)], stopped if stopped.empty else stopped[
        ~stopped["seed"].isin(gone)
    ]


def draw(records: Records, kernel: pd.DataFrame | None = None) -> dict[str, Figure]:
    """The figures by name: ``rounds`` (the paper's Fig. 7), and ``early_stopping`` (its Fig. 6,
    left) where there is any.

    Args:
        records: of the networks.
        kernel: the table ``rounds`` of ``sdntk ntk`` on the same data, to be drawn beside.
    """
    figures = {"rounds": _rounds(records, kernel)}
    if not records["early_stopping"].empty:
        figures["early_stopping"] = _early_stopping(records)
    return figures


def save(records: Records, kernel: pd.DataFrame | None = None) -> list[Path]:
    """Write the figures beside the tables."""
    paths = []
    for name, figure in draw(records, kernel).items():
        paths.append(records.folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
        plt.close(figure)
    return paths


def _rounds(records: Records, kernel: pd.DataFrame | None) -> Figure:
    frame, c = _whole_chains(records)[0], records.configuration
    loss = "mean squared error" if c["loss"] == "squared" else "cross-entropy"
    panels = {
        "train_accuracy": ("accuracy on training images\n(original labels)", _TRAIN),
        "test_accuracy": ("accuracy on test images", _TEST),
        "train_loss": (f"loss on training images:\n{loss} to original labels", _TRAIN),
        "test_loss": (f"loss on test images:\n{loss} to original labels", _TEST),
    }
    figure, axes = plt.subplots(2, 2, figsize=(9.4, 7), sharex=True, layout="constrained")
    for ax, (column, (name, colour)) in zip(axes.ravel(), panels.items(), strict=True):
        draw_envelope(ax, frame, "round", column, color=colour, marker="o", label=c["network"])
        if kernel is not None and "accuracy" in column:
            _draw_kernel(ax, kernel, column)
        ax.set(ylabel=name)
        ax.grid(alpha=0.25)
    for ax in axes[1]:
        label_rounds(ax)
    if kernel is not None:
        figure.legend(
            *axes[0, 1].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
    figure.suptitle(_headline(records), fontsize="medium")
    return figure


def _draw_kernel(ax: Axes, kernel: pd.DataFrame, column: str) -> None:
    active = kernel[kernel["active_classes"] > 0]
    draw_envelopes(
        ax,
        active.assign(
            chain=active["tolerance"].map("kernel, $\\epsilon$ = {:g} $\\Vert y\\Vert^2/K$".format)
        ),
        "round",
        column,
        by="chain",
    )


def _early_stopping(records: Records) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    frame, stopped = _whole_chains(records)
    reached = stopped.dropna(subset="step")
    share = (
        "" if len(reached) == len(stopped) else f"\n({len(reached)} of {len(stopped)} came so far)"
    )
    for ax, column in zip(axes, ("train_accuracy", "test_accuracy"), strict=True):
        draw_envelope(
            ax, frame, "round", column, color=_TEST, marker="o", label="self-distillation"
        )
        draw_envelope(
            ax,
            reached,
            "round",
            column,
            color=_STOPPED,
            marker="s",
            label=f"one network, first measured at or\nbelow that round's loss{share}",
        )
        ax.set(ylabel=f"accuracy on {'training' if column.startswith('train') else 'test'} images")
        ax.grid(alpha=0.25)
        label_rounds(ax)
    axes[0].legend(frameon=False, fontsize="small")
    figure.suptitle(_headline(records), fontsize="medium")
    return figure


def _headline(records: Records) -> str:
    c: dict[str, Any] = records.configuration
    images = "all" if c["train"] is None else f"{c['train']:,}"
    several = (
        f"mean and one standard deviation over {c['seeds']} seeds" if c["seeds"] > 1 else "one seed"
    )
    return (
        f"{c['network']} on {c['dataset']} ({images} training images, {c['label_noise']:.0%} "
        "label noise)\n"
        f"{c['loss']} loss, {c['targets']} targets, {c['steps']:,} steps a round; {several}"
    )
