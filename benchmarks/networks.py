"""Claim: an ensemble of networks trains at once no slower than its networks one after another, and
on a GPU in a third.

The same steps of the same 8 networks, Adam on batches: all in one vmapped step, one network after
the other (each compiled once, as a user's own loop would be), and as the library chooses by itself
for the device. All take turns.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from rich.progress import track

from benchmarks import report
from benchmarks.timing import take_turns
from sdntk import architectures, losses
from sdntk.networks import FiniteWidth
from sdntk.training.state import TrainingConfig
from sdntk.training.train import train

SETTINGS: dict[str, Any] = {
    "seeds": 8,
    "points": 256,
    "batch size": 64,
    "optimiser": "adam(1e-3)",
    "loss": "soft cross-entropy",
    "dtype": "float32",
    "repeats": 3,
}
#: For each network: the description, its width, the shape of a point, steps.
CASES: dict[str, tuple[architectures.Architecture, int, tuple[int, ...], int]] = {
    "MLP, 2 hidden layers of 256": (architectures.fully_connected(2), 256, (784,), 200),
    "CNN, 2 convolutions of 16, pooled": (
        architectures.convolutional(2, readout="pool"),
        16,
        (8, 8, 3),
        50,
    ),
}
#: Fractions of one after another that what the library chooses must not exceed.
GOALS = {"cpu": 1.1, "gpu": 1 / 3}


def methods(
    network: architectures.Architecture, width: int, shape: tuple[int, ...], steps: int
) -> dict[str, Callable[[], Any]]:
    """What is timed."""
    x = jax.random.normal(jax.random.key(0), (SETTINGS["points"], *shape), jnp.float32)
    y = jax.nn.one_hot(jnp.arange(len(x)) % 10, 10, dtype=jnp.float32)
    keys = jax.random.split(jax.random.key(1), SETTINGS["seeds"])
    training = TrainingConfig(
        loss=losses.soft_cross_entropy,
        optimiser=optax.adam(1e-3),
        steps=steps,
        batch_size=SETTINGS["batch size"],
    )

    def build(rngs: nnx.Rngs) -> FiniteWidth:
        return FiniteWidth(network, shape, width=width, num_outputs=10, rngs=rngs)

    def trained(at_once: int | None) -> Callable[[], Any]:
        return lambda: train(build, keys, x, y, training, at_once=at_once).loss

    return {
        "as sdntk chooses": trained(None),
        "all at once": trained(len(keys)),
        "one after another": trained(1),
    }


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run, print, and keep table and JSON; ``quick`` takes a tenth of the steps."""
    rows: list[dict[str, Any]] = []
    with jax.enable_x64(False):
        for label, (network, width, shape, steps) in track(CASES.items(), description="networks"):
            count = max(2, steps // 10) if quick else steps
            timings = take_turns(methods(network, width, shape, count), SETTINGS["repeats"])
            baseline = timings["one after another"].median
            for name, timing in timings.items():
                rows.append(
                    {
                        "network": label,
                        "steps": count,
                        "what": name,
                        "seconds (median)": timing.median,
                        "fastest .. slowest": "{:.3g} .. {:.3g}".format(*timing.spread),
                        "ms per step and network": timing.median / count / SETTINGS["seeds"] * 1e3,
                        "fraction of one after another": timing.median / baseline,
                        "goal": GOALS.get(jax.default_backend(), "")
                        if name == "as sdntk chooses"
                        else "",
                    }
                )
    name = report.record_name("networks", quick=quick)
    report.write(name, "Training 8 networks at once against one after another", SETTINGS, rows)
    return rows
