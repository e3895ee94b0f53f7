"""What a study of networks showed: tables, verdict and figure, from its records."""

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from sdntk.experiments.network_study import NetworkStudy
from sdntk.experiments.paired import whole_chains
from sdntk.experiments.records import Records
from sdntk.reports import best_rounds
from sdntk.reports import kernel_classification as kernel_report
from sdntk.reports.plotting import label_rounds, plot_envelope, plot_level, round_colours
from sdntk.reports.tables import mean_and_deviation, new_table, over_seeds

_COLUMNS = {
    "training, original labels": "train_accuracy",
    "training, given labels": "noisy_train_accuracy",
    "held out, noisy labels": "held_out_accuracy",
    "test": "test_accuracy",
}
_RIVALS = {
    "round 0": "round 0",
    "single network": "one network, steps and decay chosen",
    "ensemble": "the mean of as many networks",
}
#: Weight decays that the best round is shown against.
_SEVERAL = 3


def rounds_table(records: Records) -> Table:
    """Every round of every chain: mean and standard deviation over seeds."""
    table = new_table(
        "Accuracies of every round, mean ± standard deviation over seeds",
        ["weight decay", "round", *_COLUMNS],
    )
    for (decay, t), rows in _whole(records).groupby(["weight_decay", "round"]):
        cells = [mean_and_deviation(rows[column]) for column in _COLUMNS.values()]
        table.add_row(f"{decay:g}", str(t), *cells)
    return table


def comparison_table(records: Records) -> Table:
    """The chosen round against its rivals."""
    columns = ["weight decay", "chosen round", "accuracy", "rival", "its accuracy", "difference"]
    table = new_table(
        "Test accuracy of the round that held-out images chose, and of what else the trainings "
        "would buy",
        [*columns, "95% interval", "the round is"],
    )
    for row in records["comparison"].itertuples():
        several = row.seeds > 1
        table.add_row(
            _decay(row.weight_decay),
            f"{row.chosen_round:.1f}",
            f"{row.test_accuracy:.3f}",
            _RIVALS[row.rival],
            f"{row.rival_accuracy:.3f}",
            f"{row.difference:+.3f}" + (f" ± {row.standard_error:.3f}" if several else ""),
            f"{row.low:+.3f} .. {row.high:+.3f}" if several else "-",
            row.verdict,
        )
    return table


def _decay(weight_decay: float) -> str:
    return "chosen" if np.isnan(weight_decay) else f"{weight_decay:g}"


def verdict(records: Records) -> str:
    """What every chain does, and whether it pays; a paragraph for each weight decay."""
    rounds, comparison = _whole(records), records["comparison"]
    if rounds.empty:
        return "Every chain diverged."
    chance = 1 / int(records.configuration["num_classes"])
    lines = [*_about_diverged(records)]
    for decay, chain in rounds.groupby("weight_decay"):
        against = comparison[comparison["weight_decay"] == decay]
        course = f"Weight decay {decay:g}: test accuracy {_course(chain, chance)}."
        lines.append(f"{course} {_whether_it_pays(against)}")
    if rounds["weight_decay"].nunique() >= _SEVERAL:
        lines.append(best_rounds.sentence(rounds))
    chosen = comparison[comparison["weight_decay"].isna()]
    if len(chosen):
        lines.append(f"With the weight decay chosen on held-out images: {_whether_it_pays(chosen)}")
    kernel = _kernel(records)
    if kernel is not None:
        lines.append(f"Their tangent kernel: {kernel_report.verdict(kernel)}")
    return "\n".join(lines)


def _course(chain: pd.DataFrame, chance: float) -> str:
    """How a chain's mean test accuracy moves."""
    mean = chain.groupby("round")["test_accuracy"].mean()
    best, last = int(mean.idxmax()), int(mean.index[-1])
    collapsed = best_rounds.collapsed_round(mean, chance)
    if collapsed == 0:
        return "is at chance throughout"
    start = f"starts at {mean[0]:.3f}"
    if last == 0:
        return start
    if best == 0:
        text = f"{start}, only falls"
    else:
        text = f"{start}, rises to {mean[best]:.3f} in round {best}"
        if best == last:
            return f"{text}, the last one: more rounds may be better"
    if collapsed is not None:
        return f"{text}, and is at chance from round {collapsed} on: collapsed"
    return f"{text}, and ends at {mean[last]:.3f}"


def _whether_it_pays(comparison: pd.DataFrame) -> str:
    """The chosen round against each rival, in a sentence."""
    first = comparison.iloc[0]
    differences = [
        f"against {_RIVALS[row.rival]} {row.difference:+.3f} ({_interval(row)}): {row.verdict}"
        for row in comparison.itertuples()
    ]
    return (
        f"The round that held-out images choose (on average {first['chosen_round']:.1f}) reaches "
        f"{first['test_accuracy']:.3f}: {'; '.join(differences)}."
    )


def _interval(row: Any) -> str:
    return "one seed" if row.seeds == 1 else f"95% from {row.low:+.3f} to {row.high:+.3f}"


def _about_diverged(records: Records) -> Iterator[str]:
    keys = ["weight_decay", "seed"]
    chains, whole = (
        len(rounds[keys].drop_duplicates()) for rounds in (records["rounds"], _whole(records))
    )
    if whole < chains:
        yield f"{chains - whole} of {chains} chains diverged; left out."


def _whole(records: Records) -> pd.DataFrame:
    """The rounds of chains that did not diverge."""
    return whole_chains(records["rounds"])


def plot(records: Records, study: NetworkStudy) -> dict[str, Figure]:
    """The figures by name: ``rounds``, and with several weight decays ``best_rounds``; none where
    every chain diverged.
    """
    rounds = _whole(records)
    if rounds.empty:
        return {}
    figures = {"rounds": _plot_rounds(records, study)}
    if rounds["weight_decay"].nunique() >= _SEVERAL:
        figures["best_rounds"] = best_rounds.plot(rounds)
        title = _headline(study, spread=f"means over {study.seeds} seeds")
        figures["best_rounds"].suptitle(title, fontsize="medium")
    return figures


def _plot_rounds(records: Records, study: NetworkStudy) -> Figure:
    """The form of the paper's Fig. 4 and 7: accuracy and loss, on training images against the
    original and the given labels, and on test images.
    """
    loss = "squared error" if study.loss == "squared" else "cross-entropy"
    panels = {
        "train_accuracy": "accuracy on training images\n(original labels)",
        "noisy_train_accuracy": "accuracy on training images\n(given labels)",
        "test_accuracy": "accuracy on test images",
        "train_loss": f"{loss} on training images\n(original labels)",
        "given_loss": f"{loss} on training images\n(given labels)",
        "test_loss": f"{loss} on test images",
    }
    rounds, kernel, comparison = _whole(records), _kernel(records), records["comparison"]
    decays = sorted(rounds["weight_decay"].unique())
    figure, axes = plt.subplots(2, 3, figsize=(12.5, 7.2), sharex=True, layout="constrained")
    for ax, (column, name) in zip(axes.flat, panels.items(), strict=True):
        for decay, colour in zip(decays, round_colours(len(decays)), strict=True):
            chain = rounds[rounds["weight_decay"] == decay]
            style = {"color": colour, "marker": "o", "label": f"networks, weight decay {decay:g}"}
            plot_envelope(ax, chain, "round", column, **style)
        # Its losses are of other outputs.
        if kernel is not None and column in ("train_accuracy", "test_accuracy"):
            _plot_kernel(ax, kernel["rounds"], column)
        ax.set(ylabel=name)
        ax.grid(alpha=0.25)
    for rival, colour in (("single network", "C3"), ("ensemble", "C1")):
        rows = comparison[comparison["rival"] == rival]
        if len(rows):
            level = pd.Series([rows["rival_accuracy"].iloc[0]])
            plot_level(axes[0, 2], level, color=colour, label=_RIVALS[rival])
    for ax in axes[1]:
        label_rounds(ax)
    handles = axes[0, 2].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    title = _headline(study, spread=over_seeds(study.seeds))
    figure.suptitle(title, fontsize="medium")
    return figure


def _plot_kernel(ax: plt.Axes, rounds: pd.DataFrame, column: str) -> None:
    """The kernel's rounds in which a class is left, a line for each tolerance."""
    tolerances = sorted(rounds["tolerance"].unique())
    for tolerance, marker in zip(tolerances, "^vsd" * len(tolerances), strict=False):
        rows = rounds[(rounds["tolerance"] == tolerance) & (rounds["active_classes"] > 0)]
        label = f"their tangent kernel, $\\epsilon$ = {tolerance:g} $\\Vert y\\Vert^2/K$"
        style = {"color": "0.45", "linestyle": "--", "marker": marker, "label": label}
        plot_envelope(ax, rows, "round", column, **style)


def _kernel(records: Records) -> Records | None:
    """The kernel's records, if there are any."""
    folder = records.folder / "kernel"
    return Records.open(folder) if (folder / "config.json").exists() else None


def _headline(study: NetworkStudy, *, spread: str) -> str:
    network = study.network
    if network == "mlp":
        network = f"mlp of widths {', '.join(map(str, study.widths))}"
    return (
        f"{network} on {study.dataset} ({study.train:,} training images, {study.noise_rate:.0%} "
        f"label noise)\n{study.loss} loss, {study.targets} targets, {study.steps:,} steps a round; "
        f"{spread}"
    )
