"""Claim: a Gram matrix of a neural tangent kernel costs little more than half of what
neural_tangents.batch takes for it.

The baseline is what a user of neural-tangents writes today: ``nt.batch(kernel_fn, batch_size)``
around a jitted kernel function, at the batch size that suits it best here (it must divide K), on
the same kernel, points, dtype and machine. All methods take turns, so that whatever else the
machine does befalls all of them.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.progress import track

import sdntk
from benchmarks import report
from benchmarks.timing import measure, take_turns
from sdntk import architectures
from sdntk.kernels import load_neural_tangents, ntk

SETTINGS: dict[str, Any] = {
    "points": "32 x 32 x 3, standard normal",
    "dtype": "float64",
    "seed": 0,
    "repeats": 5,
}
#: For each kernel: its sizes, and the parts into which nt.batch may cut K.
CASES: dict[str, tuple[architectures.Architecture, dict[int, tuple[int, ...]]]] = {
    "fully connected, 3 hidden layers, ReLU": (
        architectures.fully_connected(3),
        {1000: (1, 2), 3000: (2, 3, 6), 8000: (4, 8)},
    ),
    "3 convolutions, ReLU, Flatten": (
        architectures.convolutional(3),
        {120: (1, 2, 4), 240: (2, 4)},
    ),
}
#: Fractions of the best nt.batch that the fully connected kernel must not exceed.
GOALS = {3000: 0.6, 8000: 0.55}


def stax_kernel_fn(network: architectures.Architecture) -> Callable[..., Any]:
    """The same network as a user of neural-tangents writes it, its kernel function jitted."""
    nt = load_neural_tangents()
    std = {"W_std": architectures.SQRT_2}
    body: list[Any] = []
    for layer in network.layers[:-1]:
        if isinstance(layer, architectures.Conv):
            body.append(nt.stax.Conv(1, layer.filter_shape, padding="SAME", **std))
        elif isinstance(layer, architectures.Dense):
            body.append(nt.stax.Dense(1, **std))
        else:
            body.append(
                nt.stax.Relu() if isinstance(layer, architectures.Activation) else nt.stax.Flatten()
            )
    _, _, kernel_fn = nt.stax.serial(*body, nt.stax.Dense(1, **std))
    return jax.jit(kernel_fn, static_argnames="get")


def methods(
    network: architectures.Architecture, size: int, parts: tuple[int, ...], folder: Path
) -> dict[str, Callable[[], Any]]:
    """What is timed: each a function of no arguments that returns the whole Gram matrix."""
    x = jax.random.normal(jax.random.key(SETTINGS["seed"]), (size, 32, 32, 3), jnp.float64)
    kernel, kernel_fn, nt = ntk(network), stax_kernel_fn(network), load_neural_tangents()
    stores = itertools.count()

    def batched(count: int) -> Callable[[], Any]:
        function = nt.batch(kernel_fn, batch_size=size // count) if count > 1 else kernel_fn
        return lambda: function(x, None, "ntk")

    return {
        "sdntk.gram": lambda: sdntk.gram(kernel, x),
        "sdntk.gram(path=...)": lambda: (
            sdntk.gram(kernel, x, path=folder / str(next(stores))).shape
        ),
        **{
            f"nt.batch, {size // n}" if n > 1 else "kernel_fn, unbatched": batched(n) for n in parts
        },
    }


def time_size(
    label: str, network: architectures.Architecture, size: int, parts: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Rows for one kernel and one K."""
    with tempfile.TemporaryDirectory() as folder:
        timed = methods(network, size, parts, Path(folder))
        ours = np.asarray(timed["sdntk.gram"]()) * size
        theirs = np.asarray(timed[list(timed)[-1]]())
        difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
        stored = timed.pop(
            "sdntk.gram(path=...)"
        )  # by itself: the disk is busy for a while after it
        timings = take_turns(timed, SETTINGS["repeats"])
        timings["sdntk.gram(path=...)"] = measure(stored, repeats=SETTINGS["repeats"])
    batched = [timing.median for name, timing in timings.items() if name.startswith("nt.batch")]
    rows = []
    for name, timing in timings.items():
        goal = (
            GOALS.get(size)
            if name == "sdntk.gram" and network is CASES[next(iter(CASES))][0]
            else None
        )
        rows.append(
            {
                "kernel": label,
                "K": size,
                "what": name,
                "seconds (median)": timing.median,
                "fastest .. slowest": "{:.3g} .. {:.3g}".format(*timing.spread),
                "ns per entry": timing.median / size**2 * 1e9,
                "fraction of the best nt.batch": timing.median / min(batched) if batched else "",
                "goal": goal or "",
                "note": f"largest relative difference to nt {difference:.1e}"
                if name == "sdntk.gram"
                else "",
            }
        )
    return rows


def plot(rows: list[dict[str, Any]], name: str) -> None:
    """Seconds against K for every method, the batch sizes of nt.batch as one: the best."""
    figure, axes = plt.subplots(
        1, len(CASES), figsize=(11, 4.6), layout="constrained", squeeze=False
    )
    for ax, label in zip(axes[0], CASES, strict=True):
        best: dict[str, dict[int, float]] = {}
        for row in rows:
            if row["kernel"] == label:
                method = (
                    "nt.batch, best batch size"
                    if row["what"].startswith("nt.batch")
                    else row["what"]
                )
                seconds = best.setdefault(method, {})
                seconds[row["K"]] = min(row["seconds (median)"], seconds.get(row["K"], np.inf))
        for method, seconds in best.items():
            ax.plot(list(seconds), list(seconds.values()), "o-", label=method)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="K, number of points",
            ylabel="seconds for the K x K Gram matrix",
            title=label,
        )
        sizes = sorted({row["K"] for row in rows if row["kernel"] == label})
        ax.set_xticks(sizes, labels=[f"{size:,}" for size in sizes])
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.25, which="both")
        ax.legend(frameon=False)
    figure.suptitle(
        f"Gram matrices of neural tangent kernels, float64, {jax.devices()[0].device_kind}"
    )
    figure.savefig(report.RESULTS / f"{name}.png", dpi=150)
    plt.close(figure)


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run, print, and keep table, JSON and plot; ``quick`` takes the smallest size of each
    kernel.
    """
    cases = [
        (label, network, size, parts)
        for label, (network, sizes) in CASES.items()
        for size, parts in list(sizes.items())[: 1 if quick else None]
    ]
    rows: list[dict[str, Any]] = []
    for case in track(cases, description="gram"):
        rows += time_size(*case)
    name = report.record_name("gram", quick=quick)
    report.write(
        name,
        "Gram matrices of neural tangent kernels against neural_tangents.batch",
        SETTINGS,
        rows,
    )
    plot(rows, name)
    return rows
