"""Figures.

Must hold: with 60 points, ticks and legends stay few; every plot function takes the style of its
artists; a network has one colour in all panels and in the legend; figures are saved and closed.
"""

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import sdntk
from sdntk import kernels
from sdntk.experiments.paper_figures import FIGURES
from sdntk.experiments.records import Records
from sdntk.reports import network_classification, plotting


@pytest.fixture(autouse=True)
def _no_window():
    mpl.use("agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def run():
    x = jnp.linspace(0, 1, 60)
    y = jnp.sin(2 * jnp.pi * x) + 0.3 * jax.random.normal(jax.random.key(0), x.shape)
    return sdntk.distill(kernels.cubic_spline(), x, y, tolerance=0.1, rounds=4)


def axes():
    return Figure().subplots()


def test_sixty_points_have_few_ticks(run):
    for ax in (
        plotting.plot_filter(axes(), run.filters[0]),
        plotting.plot_filter_ratios(axes(), run, 0.1),
    ):
        ticks = ax.get_xticks()
        assert 4 <= len(ticks) <= 9
        assert ticks[0] == 1
        assert ticks[-1] <= 60


def test_few_eigenvalues_have_a_tick_each():
    assert plotting.label_eigenvalues(axes(), 8).get_xticks().tolist() == list(range(1, 9))


def test_many_rounds_have_a_short_legend():
    fits, x = np.linspace(1, 0.1, 40)[:, None] * np.ones(5), np.linspace(0, 1, 5)
    ax = plotting.plot_fits(axes(), x, fits, np.zeros(40, int))
    assert len(ax.lines) == 40
    assert 4 <= len(ax.get_legend().get_texts()) <= 9


def test_one_round_has_one_tick():
    frame = pd.DataFrame({"round": [0, 0], "accuracy": [0.5, 0.6]})
    ax = plotting.label_rounds(plotting.plot_envelope(axes(), frame, "round", "accuracy"))
    assert ax.get_xticks().tolist() == [0]


def test_style_reaches_the_artists_under_any_of_its_names(run):
    frame = pd.DataFrame({"round": [0, 1], "accuracy": [0.5, 0.6], "chain": "a"})
    x = np.linspace(0, 1, 60)
    styled = [
        plotting.plot_data(axes(), x, x, x, x, lw=3, c="red").lines[1],
        plotting.plot_fits(axes(), x, run.fitted[:1], run.status[:1], lw=3, c="red").lines[0],
        plotting.plot_filter_ratios(axes(), run, 0.1, lw=3, c="red").lines[0],
        plotting.plot_envelope(axes(), frame, "round", "accuracy", lw=3, c="red").lines[0],
        plotting.plot_envelopes(
            axes(), frame, "round", "accuracy", by="chain", lw=3, c="red"
        ).lines[0],
        plotting.plot_level(axes(), frame["accuracy"], lw=3, c="red").lines[0],
    ]
    for line in styled:
        assert line.get_linewidth() == 3
        assert to_rgba(line.get_color()) == to_rgba("red")
    bars = plotting.plot_filter(axes(), run.filters[0], fc="red", alpha=0.5).patches
    assert bars[0].get_facecolor() == to_rgba("red", 0.5)
    ax = plotting.plot_kernel(axes(), kernels.cubic_spline(), points=11, levels=3)
    assert ax.collections


def test_a_network_has_one_colour_in_all_panels_and_in_the_legend(tmp_path):
    records = Records(tmp_path, {**FIGURES[6][0].configuration(), "seeds": 1})
    rows = {"seed": 0, "round": range(3), "stop": "steps", "given_loss": 0.1}
    measured = ("train_accuracy", "test_accuracy", "train_loss", "test_loss")
    rounds = pd.DataFrame(rows | dict.fromkeys(measured, 0.5))
    records.put("rounds", rounds)
    records.put("early_stopping", rounds.assign(level=0.1, step=10.0))
    kernel = rounds.assign(tolerance=0.1, active_classes=10)
    figures = network_classification.plot(records, kernel)
    networks = [ax.lines[0] for figure in figures.values() for ax in figure.axes]
    assert len({line.get_color() for line in networks}) == 1
    (legend,) = figures["rounds"].legends
    handle, *others = legend.get_lines()
    assert handle.get_color() == networks[0].get_color()
    assert len(others) == 1
    stopped = [ax.lines[1].get_color() for ax in figures["early_stopping"].axes]
    assert len(set(stopped)) == 1
    assert stopped[0] != networks[0].get_color()


def test_figures_are_saved_and_closed(tmp_path):
    figure, ax = plt.subplots()
    ax.plot([0, 1], [0, 1])
    (path,) = plotting.save_figures({"line": figure}, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "line.png"
    assert image.imread(path).shape[0] > 300
    assert not plt.get_fignums()
