"""Figures of a chain of self-distillation: Axes in, Axes out, and how figures are saved.

Every function draws on an Axes that the caller made, and passes ``**style`` on to matplotlib's
artists, so that any of their properties can be set. Composing a figure is the caller's.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cbook import normalize_kwargs
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from sdntk import _atomic
from sdntk._arguments import ArrayLike
from sdntk.distillation import Distillation
from sdntk.kernels import KernelFunction
from sdntk.theory import bounds
from sdntk.theory.multiplier import Status

#: Properties of an artist, as matplotlib takes them by keyword.
Style = dict[str, Any]
#: A colour as matplotlib takes it.
Colour = str | tuple[float, ...] | np.ndarray
#: Labels on an axis that counts eigenvalues, at most.
_MOST_TICKS = 8
#: Entries in a legend, at most; more rounds than this are named in part.
_MOST_NAMED = 8


def save_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as ``folder/NAME.png`` and close it; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        _atomic.replace(path, functools.partial(figure.savefig, dpi=150, format="png"))
        plt.close(figure)
        paths.append(path)
    return paths


def round_colours(rounds: int) -> Float[np.ndarray, "T 4"]:
    """One colour for each round, dark to light."""
    return mpl.colormaps["viridis"](np.linspace(0, 0.85, max(rounds, 2)))[:rounds]


def plot_kernel(ax: Axes, kernel: KernelFunction, *, points: int = 201, **style: Any) -> Axes:
    """g(x, t) over [0, 1]^2 as a map (Mobahi et al. 2020, Fig. 2a).

    Args:
        ax: where.
        kernel: g.
        points: on each axis.
        **style: of ``Axes.contourf``.
    """
    x = jnp.linspace(0, 1, points)
    defaults: Style = {"levels": 24, "cmap": "magma"}
    image = ax.contourf(x, x, np.asarray(kernel(x, x)).T, **defaults | style)
    ax.set(xlabel="x", ylabel="t", aspect="equal", title="Green's function g(x, t)")
    ax.figure.colorbar(image, ax=ax, format="%.3f", label="g(x, t)")
    return ax


def plot_data(
    ax: Axes, x: ArrayLike, y: ArrayLike, x_plot: ArrayLike, truth: ArrayLike, **style: Any
) -> Axes:
    """Training points and the function they were sampled from (Fig. 2b).

    Args:
        ax: where.
        x: training points, shape (K,).
        y: their labels, shape (K,).
        x_plot: points on which the function is drawn, shape (n,).
        truth: its values, shape (n,).
        **style: of the training points, a ``Line2D``.
    """
    ax.plot(x_plot, truth, color="0.55", linestyle="--", label="true function")
    points = {"marker": "o", "linestyle": "none", "color": "black", "label": "noisy labels"}
    ax.plot(x, y, **line_style(style, points))
    ax.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.set(xlabel="x", ylabel="y")
    _legend(ax)
    return ax


def plot_fits(
    ax: Axes, x_plot: ArrayLike, fits: ArrayLike, status: ArrayLike, **style: Any
) -> Axes:
    """Every round's f_t; collapsed rounds, which are all f = 0, are drawn and named once (Fig.
    2c).

    Args:
        ax: where.
        x_plot: points, shape (n,).
        fits: f_t on them, shape (T, n).
        status: of each round, a :class:`sdntk.Status`.
        **style: of the active rounds' lines.
    """
    fits = np.asarray(fits)
    is_active = np.asarray(status) == Status.ACTIVE
    active = np.flatnonzero(is_active)
    names = _round_names(active)
    for t, colour, name in zip(active, round_colours(len(active)), names, strict=True):
        line = {"color": colour, "linewidth": 2, "label": name}
        ax.plot(x_plot, fits[t], **line_style(style, line))
    if not is_active.all():
        first, last = int(np.argmin(is_active)), len(fits) - 1
        name = f"round {first}" if first == last else f"rounds {first}-{last}"
        line = {"color": "crimson", "linewidth": 1.5, "linestyle": ":"}
        ax.plot(x_plot, fits[first], **line_style({"label": f"{name}: collapsed"}, line))
    ax.set(xlabel="x", ylabel="f(x)")
    _legend(ax)
    return ax


def plot_filter(ax: Axes, diagonal: ArrayLike, **style: Any) -> Axes:
    """The diagonal of one filter as bars, the largest eigenvalue's first (Fig. 3).

    Args:
        ax: where.
        diagonal: in ascending order of the eigenvalues, shape (K,).
        **style: of ``Axes.bar``.
    """
    values = np.asarray(diagonal)[::-1]
    count = np.arange(1, len(values) + 1)
    defaults: Style = {"color": "C0", "width": 0.8}
    ax.bar(count, values, **defaults | normalize_kwargs(style, Rectangle))
    label_eigenvalues(ax, len(values))
    return ax


def plot_filter_ratios(ax: Axes, run: Distillation, tolerance: float, **style: Any) -> Axes:
    """Ratios of neighbouring diagonals of B_t against Theorem 5's lower bound, for every active
    round.

    Args:
        ax: where.
        run: of one output, with filters.
        tolerance: eps.
        **style: of the lines of the ratios.

    Raises:
        ValueError: a run without filters, or of several outputs.
    """
    if run.filters is None or run.filters.ndim != 2:
        raise ValueError(
            'run must be of one output and hold filters, which method="tridiagonal" does not give.'
        )
    d, diagonals = np.asarray(run.eigenvalues), np.asarray(run.filters)
    rank, active = int(run.spectrum.rank), int(run.active_rounds)
    # Pair k: the k-th largest eigenvalue and the next; eigenvalues ascend.
    pairs = np.arange(1, rank)
    large = len(d) - pairs
    small = large - 1

    names = _round_names(np.arange(active))
    # Markers of many pairs would hide the lines.
    marked = {"marker": "o" if rank <= 30 else "", "markersize": 4, "linewidth": 1}
    for t, colour in enumerate(round_colours(active)):
        b = diagonals[t]
        bound = np.asarray(bounds.filter_ratio_bound(d, run.rotated_labels, tolerance, t + 1))
        line = {"color": colour, "label": names[t], **marked}
        ax.plot(pairs, b[large] / b[small] - 1, **line_style(style, line))
        ax.plot(pairs, bound[large, small] - 1, ":", color=colour, linewidth=1.8)
    ax.plot([], [], ":", color="0.3", linewidth=1.8, label="Theorem 5: at least")
    ax.set(
        yscale="log",
        xlabel="k: the k-th largest eigenvalue against the next",
        ylabel="ratio of their diagonals of B, less 1",
    )
    label_eigenvalues(ax, rank - 1)
    _legend(ax)
    return ax


def plot_envelopes(ax: Axes, frame: pd.DataFrame, x: str, y: str, *, by: str, **style: Any) -> Axes:
    """The mean of column y against column x, a line for each value of column ``by``, and one
    standard deviation.

    The form of the paper's Fig. 4, where rows differ by their seed.

    Args:
        ax: where.
        frame: a row for each x, each value of ``by``, and each seed.
        x: the column on the horizontal axis.
        y: the column whose mean is drawn.
        by: the column that tells the lines apart.
        **style: of the lines.
    """
    values = frame[by].unique()
    for value, colour in zip(values, round_colours(len(values)), strict=True):
        line = {"color": colour, "marker": "o", "label": value}
        plot_envelope(ax, frame[frame[by] == value], x, y, **line_style(style, line))
    return ax


def plot_envelope(ax: Axes, frame: pd.DataFrame, x: str, y: str, **style: Any) -> Axes:
    """One line of :func:`plot_envelopes`; ``**style`` is the line's."""
    seeds = frame.groupby(x)[y]
    mean, deviation = seeds.mean(), seeds.std(ddof=0)
    (line,) = ax.plot(mean.index, mean, **line_style(style, {"markersize": 4, "linewidth": 1.6}))
    area: Style = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
    ax.fill_between(mean.index, mean - deviation, mean + deviation, **area)
    return ax


def plot_level(ax: Axes, values: pd.Series, **style: Any) -> Axes:
    """The mean over seeds of a number that depends on nothing else, across the whole axis, and one
    standard deviation; ``**style`` is the line's.
    """
    mean, deviation = values.mean(), values.std(ddof=0)
    line = ax.axhline(mean, **line_style(style, {"linestyle": "--", "linewidth": 1.4}))
    ax.axhspan(mean - deviation, mean + deviation, color=line.get_color(), alpha=0.12, linewidth=0)
    return ax


def label_rounds(ax: Axes) -> Axes:
    """Rounds on the horizontal axis: whole numbers."""
    ax.set(xlabel="round of self-distillation")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    first, last = ax.get_xlim()
    if last - first < 1:  # one round only
        middle = round((first + last) / 2)
        ax.set(xlim=(middle - 1, middle + 1), xticks=[middle])
    return ax


def label_eigenvalues(ax: Axes, count: int) -> Axes:
    """The numbers 1 .. ``count`` on the horizontal axis, as many of them as can be read."""
    step = 1 + (count - 1) // _MOST_TICKS
    ax.set_xticks(np.arange(1, count + 1, step))
    return ax


def line_style(given: Style, defaults: Style) -> Style:
    """The properties of a line: those given, under any of their names, and the defaults of the
    others.
    """
    return defaults | normalize_kwargs(given, Line2D)


def _round_names(rounds: Sequence[int] | np.ndarray) -> list[str]:
    """Labels of rounds for a legend; of many, evenly spaced ones, and "_" (no entry) for the
    others.
    """
    step = 1 + (len(rounds) - 1) // _MOST_NAMED
    return [f"round {t}" if i % step == 0 else "_" for i, t in enumerate(rounds)]


def _legend(ax: Axes) -> None:
    ax.legend(frameon=False, fontsize="small")
