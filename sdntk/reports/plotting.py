"""Figures of a chain of self-distillation: Axes in, Axes out. Composing and saving them is the
caller's.
"""

from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sdntk.distillation import Distillation
from sdntk.kernels import KernelFunction
from sdntk.theory import bounds
from sdntk.theory.multiplier import Status


def round_colours(rounds: int) -> Any:
    """One colour for each round, dark to light."""
    return mpl.colormaps["viridis"](np.linspace(0, 0.85, max(rounds, 2)))[:rounds]


def draw_kernel(ax: Axes, kernel: KernelFunction, *, points: int = 201) -> Axes:
    """g(x, t) over [0, 1]^2 as a map (Mobahi et al. 2020, Fig. 2a)."""
    x = jnp.linspace(0, 1, points)
    image = ax.contourf(x, x, np.asarray(kernel(x, x)).T, levels=24, cmap="magma")
    ax.set(xlabel="x", ylabel="t", aspect="equal", title="Green's function g(x, t)")
    ax.figure.colorbar(image, ax=ax, format="%.3f", label="g(x, t)")
    return ax


def draw_data(ax: Axes, x: Any, y: Any, x_plot: Any, truth: Any) -> Axes:
    """Training points and the function they were drawn from (Fig. 2b)."""
    ax.plot(x_plot, truth, color="0.55", linestyle="--", label="true function")
    ax.plot(x, y, "o", color="black", label="noisy labels")
    ax.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.set(xlabel="x", ylabel="y")
    ax.legend(frameon=False, fontsize="small")
    return ax


def draw_fits(ax: Axes, x_plot: Any, fits: Any, status: Any) -> Axes:
    """Every round's f_t; collapsed rounds, which are all f = 0, are drawn and named once (Fig.
    2c).
    """
    active = np.asarray(status) == Status.ACTIVE
    for t, colour in zip(np.flatnonzero(active), round_colours(int(active.sum())), strict=True):
        ax.plot(x_plot, fits[t], color=colour, linewidth=2, label=f"round {t}")
    if not active.all():
        first = int(np.argmin(active))
        name = (
            f"round {first}: collapsed"
            if first == len(fits) - 1
            else f"rounds {first}-{len(fits) - 1}: collapsed"
        )
        ax.plot(x_plot, fits[first], color="crimson", linewidth=1.5, linestyle=":", label=name)
    ax.set(xlabel="x", ylabel="f(x)")
    ax.legend(frameon=False, fontsize="small")
    return ax


def draw_filter(
    ax: Axes, diagonal: Any, *, colour: Any = "C0", label: str | None = None, width: float = 0.8
) -> Axes:
    """The diagonal of one filter as bars, the largest eigenvalue's first (Fig. 3)."""
    values = np.asarray(diagonal)[::-1]
    ax.bar(np.arange(1, len(values) + 1), values, color=colour, label=label, width=width)
    ax.set_xticks(np.arange(1, len(values) + 1, 1 + len(values) // 8))
    return ax


def draw_filter_ratios(ax: Axes, run: Distillation, tolerance: float) -> Axes:
    """Ratios of neighbouring diagonals of B_t against Theorem 5's lower bound, for every active
    round.

    Raises:
        ValueError: a run without filters, or of several outputs.
    """
    if run.filters is None or run.filters.ndim != 2:
        raise ValueError(
            'run must be of one output and hold filters, which method="tridiagonal" does not give.'
        )
    d, diagonals = np.asarray(run.eigenvalues), np.asarray(run.filters)
    rank, active = int(run.spectrum.rank), int(run.active_rounds)
    pairs = np.arange(1, rank)  # pair k: the k-th largest eigenvalue and the next
    large, small = len(d) - pairs, len(d) - pairs - 1
    for t, colour in zip(range(active), round_colours(active), strict=True):
        b = diagonals[t]
        bound = np.asarray(bounds.filter_ratio_bound(d, run.rotated_labels, tolerance, t + 1))
        ax.plot(
            pairs,
            b[large] / b[small] - 1,
            "o-",
            color=colour,
            markersize=4,
            linewidth=1,
            label=f"round {t}",
        )
        ax.plot(pairs, bound[large, small] - 1, ":", color=colour, linewidth=1.8)
    ax.plot([], [], ":", color="0.3", linewidth=1.8, label="Theorem 5: at least")
    ax.set(
        yscale="log",
        xlabel="k: the k-th largest eigenvalue against the next",
        ylabel="ratio of their diagonals of B, less 1",
    )
    ax.set_xticks(pairs)
    ax.legend(frameon=False, fontsize="small")
    return ax


def draw_envelopes(ax: Axes, frame: pd.DataFrame, x: str, y: str, *, by: str) -> Axes:
    """The mean of column y against column x, a line for each value of column ``by``, and one
    standard deviation.

    The form of the paper's Fig. 4, where rows differ by their seed.
    """
    values = frame[by].unique()
    for value, colour in zip(values, round_colours(len(values)), strict=True):
        draw_envelope(ax, frame[frame[by] == value], x, y, color=colour, marker="o", label=value)
    return ax


def draw_envelope(
    ax: Axes, frame: pd.DataFrame, x: str, y: str, *, color: Any, label: str, marker: str = ""
) -> Axes:
    """One line of :func:`draw_envelopes`."""
    seeds = frame.groupby(x)[y]
    mean, deviation = seeds.mean(), seeds.std(ddof=0)
    ax.plot(mean.index, mean, color=color, label=label, marker=marker, markersize=4, linewidth=1.6)
    ax.fill_between(
        mean.index, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0
    )
    return ax


def draw_level(ax: Axes, values: pd.Series, *, color: Any, label: str) -> Axes:
    """The mean over seeds of a number that depends on nothing else, across the whole axis, and one
    standard deviation.
    """
    mean, deviation = values.mean(), values.std(ddof=0)
    ax.axhline(mean, color=color, linestyle="--", linewidth=1.4, label=label)
    ax.axhspan(mean - deviation, mean + deviation, color=color, alpha=0.12, linewidth=0)
    return ax


def label_rounds(ax: Axes) -> Axes:
    """Rounds on the horizontal axis: whole numbers."""
    first, last = ax.get_xlim()
    if last - first < 1:  # one round only
        ax.set_xlim((first + last) / 2 - 1, (first + last) / 2 + 1)
    ax.set(xlabel="round of self-distillation")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax
