"""The figures of the study, from its tables."""

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdntk.reports.plotting import label_rounds, plot_envelope, round_colours

_NAMES = {
    "digits": "digits, 1,000 images,\nmlp 2 x 256",
    "fashion-mnist": "Fashion-MNIST, 2,000 images,\nmlp 2 x 256",
    "cifar10": "CIFAR-10, 1,000 images,\nstrided CNN",
}
_CLASSES = 10
#: Share of wrong labels at which losses, targets and the kernel are shown.
_NOISE = 0.4


def plot(tables: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    """The figures by name; those of which nothing is finished are left out."""
    rounds, chains, comparison = tables["rounds"], tables["chains"], tables["comparison"]
    plain = {"loss": "squared", "targets": "soft"}
    squared, rivals = _where(rounds, **plain), _where(comparison, **plain)
    most = squared[squared["steps"] == squared.groupby("dataset")["steps"].transform("max")]
    fewer = squared.drop(most.index)
    figures = {}
    if len(squared):
        figures["rounds"] = _grid_of_noise(most, rivals)
        figures["best_rounds"] = _best_rounds(_where(chains, **plain))
    if len(fewer):
        figures["rounds_fewer_steps"] = _grid_of_noise(fewer, rivals)
    if len(rounds) > len(squared):
        figures["losses_and_targets"] = _losses_and_targets(rounds)
    if "kernel" in tables:
        figures["kernel"] = _beside_the_kernel(most, tables["kernel"])
    return figures


def _where(table: pd.DataFrame, **values: float | str) -> pd.DataFrame:
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def _datasets(table: pd.DataFrame) -> list[str]:
    return [name for name in _NAMES if (table["dataset"] == name).any()]


def _grid(rows: Sequence[str], columns: int) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(0.6 + 3.7 * columns, 0.9 + 2.7 * len(rows)),
        sharex="row",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for name, row in zip(rows, axes, strict=True):
        row[0].set(ylabel=f"{_NAMES[name]}\n\ntest accuracy")
        for ax in row:
            ax.grid(alpha=0.25)
    return figure, axes


def _chains(ax: Axes, rounds: pd.DataFrame, by: str, values: Sequence[float], name: str) -> None:
    """A line for each of the values, in one colour for each wherever it is drawn."""
    for value, colour in zip(values, round_colours(len(values)), strict=True):
        own = rounds[rounds[by] == value]
        if len(own):
            style = {"color": colour, "marker": "o", "markersize": 3, "label": f"{name} {value:g}"}
            plot_envelope(ax, own, "round", "test_accuracy", **style)
    ax.axhline(1 / _CLASSES, color="0.6", linewidth=0.8, linestyle=":", label="chance")


def _finish(figure: Figure, axes: np.ndarray, title: str) -> Figure:
    for ax in axes.flat:
        label_rounds(ax)
        if ax not in axes[-1]:
            ax.set(xlabel="")
    _name_below(figure, axes)
    figure.suptitle(title, fontsize="medium")
    return figure


def _name_below(figure: Figure, axes: np.ndarray) -> None:
    """One legend for all axes, each label once."""
    entries: dict[str, Artist] = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": 3, "frameon": False}
    figure.legend([*entries.values()], [*entries], **place)


def _grid_of_noise(rounds: pd.DataFrame, rivals: pd.DataFrame) -> Figure:
    """A row for each data set, a column for each share of wrong labels."""
    names, noises = _datasets(rounds), sorted(rounds["noise_rate"].unique())
    figure, axes = _grid(names, len(noises))
    decays = sorted(rounds["weight_decay"].unique())
    for name, ax_row in zip(names, axes, strict=True):
        for noise, ax in zip(noises, ax_row, strict=True):
            own = _where(rounds, dataset=name, noise_rate=noise)
            if own.empty:
                ax.set_axis_off()
                continue
            _chains(ax, own, "weight_decay", decays, "weight decay")
            ax.set(title=f"{noise:.0%} wrong labels, {own['steps'].iloc[0]:,} steps a round")
            ax.title.set_fontsize("medium")
            setting = {key: own[key].iloc[0] for key in ("dataset", "noise_rate", "steps")}
            own_rivals = _where(rivals, **setting)
            for rival, label, colour in (
                ("single network", "one network, steps and decay chosen", "C3"),
                ("ensemble", "the mean of as many networks, decay {decay:g}", "C1"),
            ):
                row = _where(own_rivals, rival=rival).iloc[0]
                label = label.format(decay=row["weight_decay"])
                ax.axhline(row["rival_accuracy"], color=colour, linestyle="--", label=label)
    return _finish(figure, axes, _title("squared loss of the softmax, soft targets", rounds))


def _best_rounds(chains: pd.DataFrame) -> Figure:
    """Where the best round is, and what the chosen one gains, against the weight decay."""
    names = _datasets(chains)
    figure, axes = plt.subplots(
        2,
        len(names),
        figsize=(0.6 + 3.9 * len(names), 6.6),
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for name, (above, below) in zip(names, axes.T, strict=True):
        own = chains[chains["dataset"] == name]
        decays = sorted(own["weight_decay"].unique())
        for label, colour, style, group in _lines(own):
            place = group["weight_decay"].map({decay: i for i, decay in enumerate(decays)})
            line = {"color": colour, "linestyle": style, "label": label, "capsize": 2}
            above.errorbar(place, group["best_round"], group["best_round_error"], **line)
            censored = group[group["censored"] > 0]
            mark = {"color": colour, "marker": "^", "markersize": 7, "linestyle": "none"}
            above.plot(place[censored.index], censored["best_round"], **mark)
            gain, error = group["over_round_0"], group["over_round_0_error"]
            below.errorbar(place, gain, error, **line)
        above.plot([], [], "^", color="0.4", label="some seeds are best in their last round")
        above.set(title=f"{_NAMES[name]}, {own['steps'].max():,} steps")
        for ax in (above, below):
            ax.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
            ax.set(xlabel="weight decay")
            ax.grid(alpha=0.25)
        below.axhline(0, color="0.6", linewidth=0.8)
    axes[0, 0].set(ylabel="round with the highest test accuracy")
    axes[1, 0].set(ylabel="accuracy of the held-out choice\nof the round, above round 0")
    _name_below(figure, axes[0])
    seeds = chains["seeds"].max()
    figure.suptitle(f"Means over {seeds} seeds with their standard errors", fontsize="medium")
    return figure


def _lines(chains: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Label, colour and style of the chains of one data set with the same noise and steps."""
    noises = sorted(chains["noise_rate"].unique())
    for (noise, steps), group in chains.groupby(["noise_rate", "steps"]):
        is_most = steps == chains["steps"].max()
        yield (
            f"{noise:.0%} wrong labels" + ("" if is_most else f", {steps:,} steps"),
            f"C{noises.index(noise)}",
            "-" if is_most else ":",
            group.sort_values("weight_decay"),
        )


def _losses_and_targets(rounds: pd.DataFrame) -> Figure:
    """A row for each data set, a column for each loss with each kind of targets."""
    pairs = [
        (loss, targets) for loss in ("squared", "cross-entropy") for targets in ("soft", "hard")
    ]
    most = rounds.groupby("dataset")["steps"].transform("max")
    rounds = _where(rounds[rounds["steps"] == most], noise_rate=_NOISE)
    others = rounds[(rounds["loss"] != "squared") | (rounds["targets"] != "soft")]
    names, decays = _datasets(others), sorted(rounds["weight_decay"].unique())
    figure, axes = _grid(names, len(pairs))
    for name, ax_row in zip(names, axes, strict=True):
        for (loss, targets), ax in zip(pairs, ax_row, strict=True):
            own = _where(rounds, dataset=name, loss=loss, targets=targets)
            _chains(ax, own, "weight_decay", decays, "weight decay")
            ax.set(title=f"{loss} loss, {targets} targets")
            ax.title.set_fontsize("medium")
    return _finish(figure, axes, _title(f"{_NOISE:.0%} wrong labels", rounds))


def _beside_the_kernel(rounds: pd.DataFrame, kernel: pd.DataFrame) -> Figure:
    """A row for each data set: networks by their weight decay, the kernel by its tolerance."""
    names = _datasets(kernel)
    figure, axes = _grid(names, 2)
    decays, tolerances = (
        sorted(table[column].unique())
        for table, column in ((rounds, "weight_decay"), (kernel, "tolerance"))
    )
    for name, (left, right) in zip(names, axes, strict=True):
        own = _where(rounds, dataset=name, noise_rate=_NOISE)
        _chains(left, own, "weight_decay", decays, "weight decay")
        of_kernel = _where(kernel, dataset=name, noise_rate=_NOISE)
        of_kernel = of_kernel[of_kernel["active_classes"] > 0]
        _chains(right, of_kernel, "tolerance", tolerances, "tolerance")
        left.set(title="networks")
        right.set(title="kernel: NTK, fully connected")
    return _finish(figure, axes, _title(f"{_NOISE:.0%} wrong labels", rounds))


def _title(what: str, rounds: pd.DataFrame) -> str:
    seeds = rounds["seed"].nunique()
    return f"{what}; chains: mean over {seeds} seeds, and one standard deviation"
