"""What self-distillation of deep networks showed: tables, verdict and the paper's figures, from the
records.
"""

from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdntk.experiments.records import Records
from sdntk.reports.plotting import label_rounds, plot_envelope, plot_envelopes
from sdntk.reports.tables import mean_and_deviation, new_table, over_seeds
from sdntk.training.state import Stop

#: One look for one chain of networks, and for those stopped early, in all panels.
_CHAIN = {"color": "C0", "marker": "o"}
_STOPPED = {"color": "C1", "marker": "s"}
#: Columns of the table of rounds: their headings and names.
_ROUNDS = {
    "train accuracy": "train_accuracy",
    "test accuracy": "test_accuracy",
    "train loss": "train_loss",
    "test loss": "test_loss",
    "loss to given labels": "given_loss",
}


class _WholeChains(NamedTuple):
    """Tables of the seeds whose chains did not diverge, so that all means are of the same seeds."""

    rounds: pd.DataFrame
    stopped: pd.DataFrame  # the networks stopped early; may be empty


def rounds_table(records: Records) -> Table:
    """Every round: mean and standard deviation over seeds; beside it the networks that were stopped
    early, if any.

    Chains that diverged are left out, and of the networks stopped early those that did not reach
    the round's loss.
    """
    chains = _whole_chains(records)
    columns = ["round", *_ROUNDS]
    if not chains.stopped.empty:
        columns += ["stopped early: test accuracy", "at step", "reached"]
    table = new_table(
        "Self-distillation, mean ± standard deviation over seeds "
        "(accuracy and loss to the original labels)",
        columns,
    )
    for t, rows in chains.rounds.groupby("round"):
        cells = [mean_and_deviation(rows[column]) for column in _ROUNDS.values()]
        if not chains.stopped.empty:
            cells += _early_cells(chains.stopped[chains.stopped["round"] == t])
        table.add_row(str(t), *cells)
    return table


def _early_cells(stopped: pd.DataFrame) -> list[str]:
    """Of the networks that were to be stopped at one round's loss."""
    reached = stopped.dropna(subset="step")
    means = ["", ""]
    if len(reached):
        means = [mean_and_deviation(reached[column]) for column in ("test_accuracy", "step")]
    return [*means, f"{len(reached)} of {len(stopped)}"]


def verdict(records: Records) -> str:
    """Does training accuracy fall every round, test accuracy rise first, and does a network stopped
    early do as well?
    """
    frame, stopped = _whole_chains(records)
    if frame.empty:
        return "Every chain diverged."
    lines = []
    chains = records["rounds"]["seed"].nunique()
    diverged = chains - frame["seed"].nunique()
    if diverged:
        lines.append(f"{diverged} of {chains} chains diverged and are left out.")

    train = frame.groupby("round")["train_accuracy"].mean()
    falls = train.diff().dropna() < 0
    lines.append(
        f"Mean training accuracy falls in {falls.sum()} of {len(falls)} later rounds: from "
        f"{train.iloc[0]:.4f} to {train.iloc[-1]:.4f}."
    )

    test = frame.groupby("round")["test_accuracy"].mean()
    best = test.idxmax()
    rise = "does not rise"
    if best > 0:
        of_seeds = frame.pivot(index="seed", columns="round", values="test_accuracy")
        gains = of_seeds[best] - of_seeds[0]
        rise = (
            f"rises to {test[best]:.4f} in round {best} (by {gains.mean():.4f}, standard deviation "
            f"over seeds {gains.std(ddof=0):.4f})"
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
        f"which every seed reached: mean test accuracy {early.max():.4f} at best (round "
        f"{early.idxmax()}); self-distillation in these rounds {rounds.max():.4f} (round "
        f"{rounds.idxmax()})."
    )


def _whole_chains(records: Records) -> _WholeChains:
    rounds, stopped = records["rounds"], records["early_stopping"]
    diverged = rounds.loc[rounds["stop"] == Stop.DIVERGED.name.lower(), "seed"]
    if not stopped.empty:
        stopped = stopped[~stopped["seed"].isin(diverged)]
    return _WholeChains(rounds[~rounds["seed"].isin(diverged)], stopped)


def plot(records: Records, kernel: pd.DataFrame | None = None) -> dict[str, Figure]:
    """The figures by name: ``rounds`` (the paper's Fig. 7), and ``early_stopping`` (its Fig. 6,
    left) where there is any.

    Args:
        records: of the networks.
        kernel: the table ``rounds`` of ``sdntk ntk`` on the same data, to be plotted beside.
    """
    figures = {"rounds": _rounds(records, kernel)}
    if not records["early_stopping"].empty:
        figures["early_stopping"] = _early_stopping(records)
    return figures


def _rounds(records: Records, kernel: pd.DataFrame | None) -> Figure:
    chains, c = _whole_chains(records), records.configuration
    loss = "mean squared error" if c["loss"] == "squared" else "cross-entropy"
    panels = {
        "train_accuracy": "accuracy on training images\n(original labels)",
        "test_accuracy": "accuracy on test images",
        "train_loss": f"loss on training images:\n{loss} to original labels",
        "test_loss": f"loss on test images:\n{loss} to original labels",
    }
    figure, axes = plt.subplots(2, 2, figsize=(9.4, 7), sharex=True, layout="constrained")
    for ax, (column, name) in zip(axes.flat, panels.items(), strict=True):
        plot_envelope(ax, chains.rounds, "round", column, label=c["network"], **_CHAIN)
        if kernel is not None and column.endswith("accuracy"):
            _plot_kernel(ax, kernel, column)
        ax.set(ylabel=name)
        ax.grid(alpha=0.25)
    for ax in axes[1]:
        label_rounds(ax)
    handles = axes[0, 1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(_headline(records), fontsize="medium")
    return figure


def _plot_kernel(ax: Axes, kernel: pd.DataFrame, column: str) -> None:
    """The rounds of a kernel in which a class is left, a line for each tolerance."""
    active = kernel[kernel["active_classes"] > 0]
    names = active["tolerance"].map("kernel, $\\epsilon$ = {:g} $\\Vert y\\Vert^2/K$".format)
    style = {"linestyle": "--", "marker": "^"}
    plot_envelopes(ax, active.assign(chain=names), "round", column, by="chain", **style)


def _early_stopping(records: Records) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    chains = _whole_chains(records)
    reached = chains.stopped.dropna(subset="step")
    share = ""
    if len(reached) < len(chains.stopped):
        share = f"\n({len(reached)} of {len(chains.stopped)} came so far)"
    stopped = {"label": f"one network, first measured at or\nbelow that round's loss{share}"}
    panels = {
        "train_accuracy": "accuracy on training images",
        "test_accuracy": "accuracy on test images",
    }
    for ax, (column, name) in zip(axes, panels.items(), strict=True):
        plot_envelope(ax, chains.rounds, "round", column, label="self-distillation", **_CHAIN)
        plot_envelope(ax, reached, "round", column, **stopped, **_STOPPED)
        ax.set(ylabel=name)
        ax.grid(alpha=0.25)
        label_rounds(ax)
    axes[0].legend(frameon=False, fontsize="small")
    figure.suptitle(_headline(records), fontsize="medium")
    return figure


def _headline(records: Records) -> str:
    c = records.configuration
    images = "all" if c["train"] is None else f"{c['train']:,}"
    return (
        f"{c['network']} on {c['dataset']} ({images} training images, {c['label_noise']:.0%} "
        "label noise)\n"
        f"{c['loss']} loss, {c['targets']} targets, {c['steps']:,} steps a round; "
        f"{over_seeds(c['seeds'])}"
    )
