"""The paper's example end to end (Mobahi et al. 2020, section 4): every quantity of the theory, computed, told and drawn."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from rich.table import Table

from sdntk import bounds, kernels, plotting
from sdntk.datasets import mobahi_example, mobahi_truth
from sdntk.distillation import Distillation, distill
from sdntk.multiplier import Status

#: Above the floor of the labels by this much: near the 0.045 that is the default with the authors' own labels.
DEFAULT_MARGIN = 0.003
DEFAULT_TOLERANCE = 0.045


@dataclasses.dataclass(frozen=True)
class Illustration:
    """The example's run, and what it was run on."""

    tolerance: float
    seed: int | None
    x: Float[Array, " K"]
    y: Float[Array, " K"]
    x_plot: Float[Array, " n"]
    run: Distillation
    fits: Float[Array, "T n"]

    @property
    def test_error(self) -> Float[Array, " T"]:
        """Mean squared distance of f_t to the true function, sin(2 pi x), on the plotted points."""
        return jnp.mean((self.fits - mobahi_truth(self.x_plot)[None]) ** 2, axis=1)


def illustrate(tolerance: float | None = None, rounds: int = 6, seed: int | None = None) -> Illustration:
    """Distil the paper's example.

    Args:
        tolerance: eps; 0.045 with the authors' labels, and 0.003 above the labels' floor with fresh noise, if left out.
        rounds: T.
        seed: draws fresh noise; the authors' own labels if left out.
    """
    x, y = mobahi_example(None if seed is None else jax.random.key(seed))
    if tolerance is None:
        ends = (float(y[0]) ** 2 + float(y[-1]) ** 2) / len(y)  # every function of the space is 0 there: the floor
        tolerance = DEFAULT_TOLERANCE if seed is None else ends + DEFAULT_MARGIN
    run = distill(kernels.cubic_spline(), x, y, tolerance=tolerance, rounds=rounds)
    x_plot = jnp.linspace(0, 1, 201)
    return Illustration(tolerance, seed, x, y, x_plot, run, run.predict(x_plot))


def effective_basis_functions(diagonal: Float[Array, "... K"]) -> Float[Array, "..."]:
    """(sum B)^2 / sum B^2: how many basis functions a filter spreads over; 0 for the zero filter."""
    total, square = jnp.sum(diagonal, axis=-1), jnp.sum(diagonal**2, axis=-1)
    return jnp.where(square > 0, total**2 / jnp.where(square > 0, square, 1), 0)


def table(shown: Illustration) -> Table:
    """A row for each round: status, multiplier and norm between their bounds, losses, effective basis functions."""
    run = shown.run
    d, rounds = run.eigenvalues, len(run.status)
    norm_low, norm_high = bounds.norm_bounds(d, run.rotated_labels, shown.tolerance, rounds)
    basis = effective_basis_functions(run.filters)
    labels = "the authors' labels" if shown.seed is None else f"fresh noise, seed {shown.seed}"
    out = Table(title=f"Self-distillation of the paper's example: tolerance {shown.tolerance:.6g}, {labels}")
    for heading in ("round", "status", "multiplier c", "bounds on c", "norm of targets", "its bounds", "training loss",
                    "error to truth", "basis functions"):  # fmt: skip
        out.add_column(heading, justify="left" if heading == "status" else "right")
    for t in range(rounds):
        targets = run.targets[t]
        c_low, c_high = bounds.multiplier_bounds(d, run.spectrum.rotate(targets), shown.tolerance)
        active = int(run.status[t]) == Status.ACTIVE
        out.add_row(
            str(t),
            Status(int(run.status[t])).name.lower(),
            f"{run.multipliers[t]:.4e}" if active else "-",
            f"{c_low:.1e} .. {c_high:.1e}" if active else "-",
            f"{jnp.linalg.norm(targets):.4f}",
            f"{norm_low[t]:.3f} .. {norm_high[t]:.3f}",
            f"{run.training_loss[t]:.5f}",
            f"{shown.test_error[t]:.5f}",
            f"{basis[t]:.2f}",
        )
    return out


def draw(shown: Illustration) -> dict[str, Figure]:
    """One figure for each of the paper's pictures, by file name."""
    return {
        "green_function": _single(lambda ax: plotting.draw_kernel(ax, kernels.cubic_spline()), size=(5.4, 4.4)),
        "data": _single(lambda ax: _data(ax, shown)),
        "fits": _single(lambda ax: _fits(ax, shown)),
        "filters": _filters(shown),
        "filter_ratios": _single(lambda ax: _ratios(ax, shown)),
        "early_stopping": _early_stopping(shown),
    }


def save(shown: Illustration, folder: Path) -> list[Path]:
    """Write every figure as a PNG under ``folder``; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in draw(shown).items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
        plt.close(figure)
    return paths


def _single(draw_on, size=(6.4, 4.2)) -> Figure:  # type: ignore[no-untyped-def]
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    draw_on(ax)
    return figure


def _data(ax: plt.Axes, shown: Illustration) -> None:
    plotting.draw_data(ax, shown.x, shown.y, shown.x_plot, mobahi_truth(shown.x_plot))
    ends = np.array([0, -1])
    ax.plot(shown.x[ends], shown.y[ends], "o", markersize=12, markerfacecolor="none", color="crimson")
    ax.annotate(
        "no function of the space\nis other than 0 at the ends", (1, float(shown.y[-1])), (0.62, 1.0),
        color="crimson", arrowprops={"arrowstyle": "-", "color": "crimson", "shrinkB": 7},
    )  # fmt: skip
    ax.set_title("11 noisy samples of sin(2 pi x)")


def _fits(ax: plt.Axes, shown: Illustration) -> None:
    ax.plot(shown.x_plot, mobahi_truth(shown.x_plot), color="0.55", linestyle="--", label="true function")
    ax.plot(shown.x, shown.y, "o", color="black", markersize=4, label="labels")
    plotting.draw_fits(ax, shown.x_plot, shown.fits, shown.run.status)
    ax.set_title(f"Every round's fit: first smoother, then flatter, then zero (tolerance {shown.tolerance:.4g})")


def _filters(shown: Illustration) -> Figure:
    run = shown.run
    rounds = max(int(run.active_rounds), 1)
    figure, axes = plt.subplots(
        1, rounds, figsize=(2.3 * rounds + 0.8, 3.0), sharey=True, layout="constrained", squeeze=False
    )
    basis = effective_basis_functions(run.filters)
    for t, (ax, colour) in enumerate(zip(axes[0], plotting.round_colours(rounds), strict=True)):
        plotting.draw_filter(ax, run.filters[t], colour=colour)
        ax.set_title(f"round {t}\n{basis[t]:.1f} basis functions", fontsize="medium")
        ax.set_xlabel("k, by eigenvalue")
    axes[0, 0].set_ylabel("diagonal of B, entry k")
    return figure


def _ratios(ax: plt.Axes, shown: Illustration) -> None:
    plotting.draw_filter_ratios(ax, shown.run, shown.tolerance)
    ax.set_title("Sparsity grows round by round, faster than the bound")


def _early_stopping(shown: Illustration) -> Figure:
    """The last active round against one fit with a larger tolerance, the same loss on the original labels (section 3.4)."""
    run, late = shown.run, max(int(shown.run.active_rounds) - 1, 0)
    loss = float(jnp.mean((run.fitted[late] - shown.y) ** 2))
    early = distill(kernels.cubic_spline(), shown.x, shown.y, tolerance=loss, rounds=1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
    distilled, stopped = f"self-distillation, round {late}", "early stopping, one fit"
    left.plot(shown.x_plot, mobahi_truth(shown.x_plot), color="0.55", linestyle="--", label="true function")
    left.plot(shown.x, shown.y, "o", color="black", markersize=4, label="labels")
    left.plot(shown.x_plot, shown.fits[late], color="C0", linewidth=2, label=distilled)
    left.plot(shown.x_plot, early.predict(shown.x_plot)[0], color="C1", linewidth=2, label=stopped)
    left.set(xlabel="x", ylabel="f(x)", title=f"Both miss the labels by {loss:.4f} (mean square)")
    left.legend(frameon=False, fontsize="small")
    bars = ((run.filters[late], distilled, "C0", -0.2), (early.filters[0], stopped, "C1", 0.2))
    for diagonal, name, colour, shift in bars:
        kept = np.asarray(diagonal)[::-1]
        kept = kept[kept > 0]
        right.bar(np.arange(1, len(kept) + 1) + shift, kept / kept[0], width=0.4, color=colour, label=name)
    right.set(yscale="log", xlabel="k, by eigenvalue", ylabel="filter relative to its largest entry",
              title="The single fit cannot be as sparse")  # fmt: skip
    right.set_xticks(np.arange(1, len(run.eigenvalues) - 1))
    right.legend(frameon=False, fontsize="small")
    return figure
