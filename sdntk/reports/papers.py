"""Papers on self-distillation: a table of the paper's quantities beside the library's, and a figure
for each paper.
"""

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from sdntk.experiments.papers import PAPERS
from sdntk.experiments.papers.borup2021 import MULTIPLIER, Limits
from sdntk.experiments.papers.dang2026 import RIDGES, Proportional, Simulation
from sdntk.experiments.papers.das2023 import Weights
from sdntk.experiments.papers.findings import STANDARD_ERRORS, Finding, mean_and_error
from sdntk.experiments.papers.linear_model import Courses
from sdntk.experiments.papers.mobahi2020 import Chains
from sdntk.experiments.papers.pareek2024 import EIGENVALUES, Mixtures
from sdntk.experiments.papers.proportional_limit import Limit
from sdntk.reports import plotting

#: How figures name what a simulation has.
_ERROR_BARS = f"bars: {STANDARD_ERRORS} standard errors"
_CORRECTED = r"its weight times $(1 - df_0/n)/(1 - df_1/n)$"


def papers_table() -> Table:
    """A line for each paper."""
    table = Table(title="sdntk papers NAME: a paper's quantities beside the library's")
    for column in ("name", "paper", "arXiv", "what is shown"):
        table.add_column(column, no_wrap=column != "what is shown")
    for name, paper in PAPERS.items():
        table.add_row(name, paper.authors, paper.arxiv, paper.claim)
    return table


def quantities_table(name: str, finding: Finding) -> Table:
    """A row for each quantity: of the paper, of the library, and whether they agree."""
    paper = PAPERS[name]
    table = Table(title=f"{paper.authors} (arXiv {paper.arxiv}): {paper.claim}")
    for heading in ("quantity", "of the paper", "source", "of the library", "tolerance", "agree"):
        table.add_column(heading, justify="left" if heading in ("quantity", "source") else "right")
    for row in finding.quantities:
        table.add_row(
            row.quantity,
            f"{row.paper:.7g}",
            row.source,
            f"{row.library:.7g}",
            f"{row.tolerance:.1e} ({row.tolerance_is})" if row.tolerance else row.tolerance_is,
            "yes" if row.agrees else "NO",
        )
    return table


def verdict(finding: Finding) -> str:
    """How many quantities agree, and where the paper's are from."""
    rows = finding.quantities
    agree, read = sum(row.agrees for row in rows), sum(row.source == "read" for row in rows)
    return (
        f"{agree} of {len(rows)} quantities agree within their tolerances. Of the paper's, {read} "
        f"were read in it, and {len(rows) - read} derived from the formulas of docs/theory.md."
    )


def plot(name: str, finding: Finding) -> dict[str, Figure]:
    """The paper's figure, by its name."""
    return {name: _FIGURES[name](finding)}


def _panels(count: int, rows: int = 1) -> tuple[Figure, np.ndarray]:
    size = (4.8 * count, 3.8 * rows)
    return plt.subplots(rows, count, figsize=size, layout="constrained", squeeze=False)


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, fontsize="medium")


def _legend(ax: Axes, **where: Any) -> None:
    ax.legend(frameon=False, fontsize="small", **where)


# ---- one figure for each paper ----


def _mobahi2020(finding: Chains) -> Figure:
    figure, axes = _panels(2)
    left, right = axes[0]
    example = finding.examples[0.045]
    plotting.plot_data(left, example.x, example.y, example.x_plot, example.truth)
    plotting.plot_fits(left, example.x_plot, example.fits, example.run.status)
    left.set_ylim(top=2.3)  # room for the names
    _legend(left, ncols=2, loc="upper right")
    _title(left, "Tolerance 0.045: smoother, flatter, then zero")
    for (tolerance, example), colour in zip(finding.examples.items(), ("C0", "C1"), strict=True):
        active, error = int(example.run.active_rounds), example.test_error
        rounds = np.arange(len(error))
        right.plot(rounds, error, color=colour, linewidth=1)
        label = f"tolerance {tolerance}: {active} active rounds"
        right.plot(rounds[:active], error[:active], "o", color=colour, label=label)
        right.plot(rounds[active:], error[active:], "x", color=colour)
    right.plot([], [], "x", color="0.3", label="collapsed, f = 0")
    plotting.label_rounds(right)
    right.set(ylabel="mean squared distance to the true function", ylim=(0, None))
    _title(right, "Better at first, then worse, then zero")
    _legend(right)
    return figure


def _borup2021(finding: Limits) -> Figure:
    figure, axes = _panels(2)
    left, right = axes[0]
    alpha, d = 0.3, finding.eigenvalues
    shown = 0, 1, 2, 5
    for t, colour in zip(shown, plotting.round_colours(len(shown)), strict=True):
        left.plot(d, finding.filters[alpha][t], "o-", color=colour, label=f"round {t}")
    left.plot(
        d, finding.limits[alpha], "k--", linewidth=1.6, label=f"ridge fit with c/{alpha}: the limit"
    )
    left.set(xscale="log", xlabel="eigenvalue d of the Gram matrix", ylabel="filter $F_t(d)$")
    _title(left, rf"Filters of rounds with the share $\alpha$ = {alpha} of true labels")
    _legend(left)
    rounds = np.arange(60)
    for (alpha, filters), colour in zip(finding.filters.items(), ("C0", "C1", "C2"), strict=True):
        away = np.abs(filters - finding.limits[alpha]).max(axis=1)[: len(rounds)]
        rate = ((1 - alpha) * d / (MULTIPLIER + d)).max()
        seen = away > 1e-14
        right.plot(rounds[seen], away[seen], "o", color=colour, markersize=3, label=f"{alpha}")
        right.plot(rounds[seen], away[0] * rate ** rounds[seen], ":", color=colour)
    right.plot([], [], ":", color="0.3", label=r"slowest rate, max $(1 - \alpha)\, d/(c + d)$")
    right.set(yscale="log", ylim=(1e-15, 2), ylabel="largest distance of $F_t$ from its limit")
    plotting.label_rounds(right)
    _title(right, "Each round comes closer by a factor")
    _legend(right, title=r"share $\alpha$")
    return figure


def _das2023(finding: Weights) -> Figure:
    figure, axes = _panels(2)
    left, right = axes[0]
    left.plot(finding.noises, finding.best, color="0.3", label=r"$\xi^*$ of the formula")
    left.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
    left.annotate("1: the teacher's predictions alone", (1.2, 1.04), fontsize="small", color="0.4")
    limit = rf"limit for large noise, {finding.limit:.3f}"
    left.axhline(finding.limit, color="crimson", linewidth=1, linestyle=":", label=limit)
    for i, (sigma, (best, error)) in enumerate(finding.simulated.items()):
        label = f"simulated ({_ERROR_BARS})" if i == 0 else "_"
        left.errorbar(
            sigma, best, STANDARD_ERRORS * error, fmt="o", color=f"C{i}", capsize=3, label=label
        )
    left.set(xscale="log", xlabel=r"noise $\sigma$", ylabel=r"best weight $\xi^*$ of the teacher")
    _title(left, "The noisier, the more weight, above 1 too")
    _legend(left, loc="lower right")
    for i, (sigma, errors) in enumerate(finding.errors.items()):
        right.plot(finding.xi, errors, color=f"C{i}", label=rf"$\sigma$ = {sigma}")
        least = int(errors.argmin())
        right.plot(finding.xi[least], errors[least], "o", color=f"C{i}")
    right.axhline(1, color="0.85", linewidth=0.8, zorder=0)
    right.set(
        xlabel=r"weight $\xi$ of the teacher's predictions",
        ylabel="error of the parameter over the teacher's",
        ylim=(0, 1.6),
    )
    _title(right, "Expected error of the student's parameter")
    _legend(right)
    return figure


def _pareek2024(finding: Mixtures) -> Figure:
    figure, axes = _panels(2)
    left, right = axes[0]
    s = len(EIGENVALUES)
    left.plot(
        range(len(finding.formula)),
        finding.formula,
        "s",
        color="0.6",
        markersize=10,
        label="formula",
    )
    left.plot(range(len(finding.library)), finding.library, "o-", label="the library's weights")
    left.axhline(finding.best, color="crimson", linestyle=":", label="best filter of all")
    left.axvline(s, color="0.85", linewidth=0.8, zorder=0)
    plotting.label_rounds(left)
    left.set(xlabel="rounds after the first fit", ylabel="least expected error per point")
    _title(left, f"{s} distinct eigenvalues: {s} rounds reach the best, {s - 1} do not")
    _legend(left)
    for t, colour in enumerate(plotting.round_colours(len(finding.filters))):
        name = f"{t} round{'s' * (t != 1)}"
        right.plot(finding.d, finding.filters[t], color=colour, label=name)
    right.plot(EIGENVALUES, finding.targets, "o", color="crimson", label="best filter of all")
    right.set(xscale="log", ylim=(-0.8, 1.5), xlabel="eigenvalue d", ylabel="filter F(d)")
    _title(right, "The best mixtures of so many rounds")
    _legend(right)
    return figure


def _dang2026(finding: Proportional) -> Figure:
    figure, axes = _panels(2, rows=2)
    cells = zip(axes, finding.simulations, finding.curves, strict=True)
    for (left, right), simulation, curve in cells:
        _weights_of(left, finding.ridges, curve, simulation)
        _risks_of(right, finding.ridges, curve, simulation)
        for ax in (left, right):
            ax.set(xscale="log", xlabel=r"ridge $\lambda$")
            d = simulation.design
            _title(ax, f"{d.name} (n = {d.points}, p = {len(d.eigenvalues)})")
    return figure


def _weights_of(
    ax: Axes, ridges: np.ndarray, curve: tuple[Limit, ...], simulation: Simulation
) -> None:
    best = np.array([float(limit.risks.best_weight) for limit in curve])
    one_shot = np.array([limit.weight_of_one_shot for limit in curve])
    ax.plot(ridges, best, color="C0", label=r"$\xi^*$, limit")
    found, error = simulation.best_weight()
    _points(ax, found, error, "o", "C0", "best on average over draws")
    ax.plot(ridges, one_shot, "--", color="C1", label="one_shot's weight, limit")
    _points(ax, *mean_and_error(simulation.one_shot), "s", "C1", "one_shot, mean over draws")
    ax.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    middle = np.concatenate([best, one_shot, found])
    ax.set(ylabel=r"weight $\xi$ of the teacher", ylim=(middle.min() - 1, middle.max() + 1))
    _legend(ax)


def _risks_of(
    ax: Axes, ridges: np.ndarray, curve: tuple[Limit, ...], simulation: Simulation
) -> None:
    drawn = simulation.risks
    curve_of_best = [x.risks.least for x in curve]
    for name, colour, found, limit in (
        ("teacher, R", "C2", mean_and_error(drawn.teacher), [x.risks.teacher for x in curve]),
        ("student of it alone, $R_{pd}$", "C3", mean_and_error(drawn.student),
         [x.risks.student for x in curve]),
        (r"best mixture, $R^*$", "C0", simulation.least(), curve_of_best),
    ):  # fmt: skip
        ax.plot(ridges, limit, color=colour, label=name)
        _points(ax, *found, "o", colour, "_")
    reached, error = mean_and_error(simulation.reached)
    _points(ax, reached, error, "s", "C1", "one_shot's mixture")
    corrected, error = mean_and_error(simulation.corrected)
    _points(ax, corrected, error, "^", "C4", _CORRECTED)
    low, high = float(min(curve_of_best)), float(drawn.student.mean(axis=0)[-1])
    room = high - low
    ax.set(ylabel="risk at new points", ylim=(low - 0.15 * room, high + 0.75 * room))
    ax.plot([], [], "ko", markersize=4, label=f"dots: library ({_ERROR_BARS})")
    _legend(ax)


def _points(
    ax: Axes, mean: np.ndarray, error: np.ndarray, marker: str, colour: str, label: str
) -> None:
    ax.errorbar(
        RIDGES,
        mean,
        STANDARD_ERRORS * np.asarray(error),
        fmt=marker,
        color=colour,
        markersize=4,
        capsize=2,
        linewidth=1,
        label=label,
    )


def _dohmatob2024(finding: Courses) -> Figure:
    figure, axes = _panels(2)
    left, right = axes[0]
    _courses(left, finding)
    left.set_ylim(top=1.4 * left.get_ylim()[1])
    _title(left, "Each round trained on the last one's output")
    (ridge,) = finding.levels
    run = finding.runs[ridge]
    rounds = np.arange(len(run.squared_bias))
    right.plot(rounds, run.squared_bias, "o-", color="C2", markersize=4, label="signal lost")
    right.plot(rounds, run.variance, "o-", color="C3", markersize=4, label="variance")
    plain = finding.formula["no ridge"]
    right.plot(rounds, plain, ":", color="C0", label="variance without ridge, (t + 1)-fold")
    plotting.label_rounds(right)
    right.set(ylabel="mean squared error per point", xlabel="round of retraining")
    _title(right, "With the ridge: what is lost, and what noise adds")
    _legend(right)
    return figure


def _gerstgrasser2024(finding: Courses) -> Figure:
    figure, axes = _panels(2)
    left, right = axes[0]
    _courses(left, finding)
    left.set_ylim(top=1.3 * left.get_ylim()[1])
    _title(left, "Labels that accumulate, or replace each other")
    kept = [name for name in finding.formula if name != "the last labels only"]
    _courses(right, finding, kept)
    right.set_ylim(bottom=0.045)
    _title(right, "The two that keep all labels, closer")
    return figure


def _courses(ax: Axes, finding: Courses, names: list[str] | None = None) -> None:
    """Lines by the formula, dots by the library's draws, and what they tend to."""
    for i, name in enumerate(finding.formula if names is None else names):
        rounds = np.arange(len(finding.formula[name]))
        ax.plot(rounds, finding.formula[name], color=f"C{i}", label=f"{name}: formula")
        mean, error = mean_and_error(np.asarray(finding.runs[name].error))
        bars = STANDARD_ERRORS * error
        ax.errorbar(rounds, mean, bars, fmt="o", color=f"C{i}", markersize=3, capsize=2, label="_")
        if name in finding.levels:
            level = finding.levels[name]
            ax.axhline(level, color=f"C{i}", linestyle=":", label=f"{name}: limit {level:.3g}")
    ax.plot([], [], "ko", markersize=3, label=f"dots: library's draws ({_ERROR_BARS})")
    plotting.label_rounds(ax)
    ax.set(xlabel="round of retraining", ylabel="mean squared error per point", ylim=(0, None))
    _legend(ax)


_FIGURES: Mapping[str, Callable[..., Figure]] = {
    "mobahi2020": _mobahi2020,
    "borup2021": _borup2021,
    "das2023": _das2023,
    "pareek2024": _pareek2024,
    "dang2026": _dang2026,
    "dohmatob2024": _dohmatob2024,
    "gerstgrasser2024": _gerstgrasser2024,
}
