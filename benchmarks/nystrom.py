"""Claim: a million points on two cores, in hardly more than the time of the NumPy loop that their
arithmetic takes; and what landmarks lose on CIFAR-10.

A million points come from a function, block by block; a process of its own fits them, so that its
memory can be told. The rival is the plain loop over the same blocks: kernel, triangular solution,
Phi Phi^T. On CIFAR-10 ``sdntk ntk`` runs with landmarks and, at the same multipliers, with all
images.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.linalg
import typer

from benchmarks import report
from benchmarks.cifar10 import run_process
from sdntk import datasets, distill_spectrum, kernels, nystrom

SETTINGS: dict[str, Any] = {
    "points": "R^16, standard normal, sin(x_0) + x_1 x_2 and noise of deviation 0.5",
    "kernel": "rbf(4)",
    "landmarks": 1000,
    "block": 4000,
    "rounds": 10,
    "multiplier": 1e-6,
    "images": "CIFAR-10, fully connected ReLU NTK, 3 hidden layers, 40% label noise, float32",
    "seed": 0,
    "repeats": 1,
}
#: Of the million: seconds over the loop's, and GB at the peak.
GOALS = {"a million points": 1.3, "GB of host memory at the peak": 3}
#: On CIFAR-10.
MULTIPLIERS = (1e-4, 1e-3, 1e-2)
LANDMARKS = (1000, 2000, 4000, 8000)
_BLOCK, _NOISE = 4000, 0.5


def block(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and their labels without noise; the same in every call."""
    rng = np.random.default_rng([SETTINGS["seed"], number])
    x = rng.normal(size=(_BLOCK, 16))
    return x, np.sin(x[:, 0]) + x[:, 1] * x[:, 2]


def blocks(num_points: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All points, with noise."""
    for number in range(num_points // _BLOCK):
        x, clean = block(number)
        noise = np.random.default_rng([SETTINGS["seed"] + 1, number]).normal(size=_BLOCK)
        yield x, clean + _NOISE * noise


def landmarks() -> np.ndarray:
    """Points of no block."""
    return block(10**6)[0][: SETTINGS["landmarks"]]


def fit(num_points: int) -> dict[str, Any]:
    """Seconds of the fit, and the test error of every round."""
    start = time.perf_counter()
    spectrum = nystrom(kernels.rbf(4.0), lambda: blocks(num_points), landmarks=landmarks())
    run = distill_spectrum(
        spectrum,
        spectrum.labels,
        multiplier=SETTINGS["multiplier"],
        rounds=SETTINGS["rounds"],
    )
    jax.block_until_ready(run.multipliers)
    seconds = time.perf_counter() - start
    x, clean = block(10**6 + 1)
    cross = kernels.rbf(4.0)(x, spectrum.landmarks) / len(spectrum.landmarks)
    errors = np.mean((np.asarray(run.predict_from(cross)) - clean) ** 2, axis=1)
    return {"seconds": seconds, "test errors": errors.tolist(), "rank": len(spectrum.landmarks)}


def loop(num_points: int) -> float:
    """Seconds of the plain loop."""
    start, points = time.perf_counter(), landmarks()
    squares = np.sum(points**2, axis=1)[:, None]

    def values(x: np.ndarray) -> np.ndarray:
        return np.exp(-(squares + np.sum(x**2, axis=1)[None] - 2 * points @ x.T) / 32)

    factor = np.linalg.cholesky(values(points) + 1e-12 * np.eye(len(points)))
    gram, by_labels = np.zeros((len(points), len(points))), np.zeros(len(points))
    for x, y in blocks(num_points):
        phi = scipy.linalg.solve_triangular(factor, values(x), lower=True, check_finite=False)
        gram += phi @ phi.T
        by_labels += phi @ y
    return time.perf_counter() - start


def million(*, quick: bool) -> list[dict[str, Any]]:
    """Rows of the million points."""
    num_points = 40_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        found = Path(name) / "found.json"
        arguments = ["-m", "benchmarks.nystrom", str(num_points), str(found)]
        _, memory = run_process([sys.executable, *arguments])
        fitted = json.loads(found.read_text())
    seconds = fitted["seconds"]
    of_loop = loop(num_points)
    errors = ", ".join(f"{error:.4f}" for error in fitted["test errors"])
    on_goal = not quick and jax.default_backend() == "cpu"
    figures = {
        "a million points": (
            seconds / of_loop,
            f"seconds over the NumPy loop's, {of_loop:.1f}; test error by round: {errors}",
        ),
        "GB of host memory at the peak": (memory / 1e9, f"{fitted['rank']} landmarks"),
    }
    return [
        {
            "case": f"{num_points:,} points in R^16",
            "K": num_points,
            "what": what,
            "figure": figure,
            "goal": GOALS[what] if on_goal else "",
            "seconds (median)": seconds,
            "note": note,
        }
        for what, (figure, note) in figures.items()
    ]


def images(*, quick: bool) -> list[dict[str, Any]]:
    """Rows of CIFAR-10: the best test accuracy of landmarks and of all images."""
    train, test = (1000, 500) if quick else (50_000, 10_000)
    chosen = (100, 200) if quick else LANDMARKS
    methods = {f"{m:,} landmarks": ["--method", "nystrom", "--landmarks", str(m)] for m in chosen}
    methods["all images"] = ["--method", "krylov", "--rtol", "1e-5"]
    rows = []
    for name, options in methods.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", "from sdntk.cli import main; main()", "ntk"]
            sizes = ["--train", str(train), "--held-out", "0", "--test", str(test)]
            levels = [part for c in MULTIPLIERS for part in ("--multiplier", str(c))]
            fixed = ["--dataset", "cifar10", "--label-noise", "0.4", "--seeds", "1"]
            kept = ["--gram-dtype", "float32", "--out", folder]
            seconds, memory = run_process([*command, *fixed, *sizes, *levels, *options, *kept])
            rounds = pd.read_parquet(Path(folder) / "rounds.parquet")
        best = rounds.loc[rounds["test_accuracy"].idxmax()]
        first = rounds[rounds["round"] == 0]["test_accuracy"].max()
        rows.append(
            {
                "case": f"CIFAR-10, {name}",
                "K": train,
                "what": "test accuracy in the best round",
                "figure": float(best["test_accuracy"]),
                "goal": "",
                "seconds (median)": seconds,
                "note": f"c = {best['multiplier']:g}, round {best['round']:.0f}; best round 0 "
                f"{first:.4f}; {memory / 1e9:.1f} GB",
            }
        )
    return rows


def plot(rows: list[dict[str, Any]], name: str) -> None:
    """Accuracy against time on CIFAR-10."""
    shown = [row for row in rows if row["case"].startswith("CIFAR-10")]
    figure, ax = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    for row in shown:
        exact = row["case"].endswith("all images")
        style: dict[str, Any] = (
            {"color": "C3", "marker": "s"} if exact else {"color": "C0", "marker": "o"}
        )
        ax.plot(row["seconds (median)"], row["figure"], linestyle="", **style)
        ax.annotate(
            row["case"].removeprefix("CIFAR-10, "),
            (row["seconds (median)"], row["figure"]),
            textcoords="offset points",
            xytext=(0, -14),
            ha="center",
        )
    ax.set(
        xlabel="seconds of sdntk ntk, predictions included",
        ylabel="test accuracy in the best round",
        title=f"CIFAR-10, K = {shown[0]['K']:,}, 40% wrong labels: landmarks and all images\n"
        "fully connected ReLU NTK, multipliers 1e-4, 1e-3, 1e-2, ten rounds",
    )
    ax.margins(x=0.18, y=0.12)
    ax.grid(alpha=0.25)
    figure.savefig(report.RESULTS / f"{name}.png", dpi=150)
    plt.close(figure)


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run, print, and keep table, JSON and figure; ``quick`` takes few points. Without the data set
    no images.
    """
    rows = million(quick=quick)
    name = report.record_name("nystrom", quick=quick)
    try:
        datasets.cifar10()
        rows += images(quick=quick)
        plot(rows, name)
    except FileNotFoundError as error:
        print(f"nystrom: images are left out. {error}")
    report.write(name, "Landmarks: a million points, and CIFAR-10", SETTINGS, rows)
    return rows


def _child(num_points: int, found: Path) -> None:
    jax.config.update("jax_enable_x64", True)
    found.write_text(json.dumps(fit(num_points)))


if __name__ == "__main__":
    typer.run(_child)
