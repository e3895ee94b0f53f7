"""Claim: training through sdntk costs no more than the plain Flax loop for the same network.

Steps per second of every deep network and ensemble size, Adam on batches of random images: by
sdntk's training, and by the loop of Flax's own examples (``nnx.Optimizer`` within ``nnx.jit``), one
network after another. On a GPU also the share of its peak that the model's floating-point
operations make up.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.progress import track

from benchmarks import report
from benchmarks.timing import take_turns
from sdntk import losses
from sdntk.experiments.paper_figures import NETWORKS
from sdntk.training.state import TrainingConfig
from sdntk.training.train import train

SETTINGS: dict[str, Any] = {
    "images": "64 of 32 x 32 x 3, random",
    "batch size": 16,
    "order": "another in every epoch",
    "optimiser": "adam(1e-3)",
    "loss": "soft cross-entropy",
    "dtype": "float32",
    "repeats": 3,
    "goal": "seconds of sdntk over those of the plain loop, at most 1.1",
}
#: On a CPU for each network the steps timed and the ensemble sizes; on an accelerator ten times the
#: steps, and more sizes.
CASES = {"small": (40, (1, 3)), "resnet18": (2, (1,)), "vgg16": (2, (1,)), "resnet50": (2, (1,))}
ON_ACCELERATORS = (1, 2, 4, 8)
GOAL = 1.1
#: In an epoch.
BATCHES = 4
#: Peak of dense TF32 products, which XLA takes for float32 there, in operations per second, by the
#: device's name.
PEAKS = {"NVIDIA H100 80GB HBM3": 4.95e14, "NVIDIA H200": 4.95e14}


def methods(network: str, count: int, steps: int) -> dict[str, Callable[[], Any]]:
    """What is timed: both compile in the warm-up."""
    size = SETTINGS["batch size"]
    x = jax.random.normal(jax.random.key(0), (BATCHES * size, 32, 32, 3), jnp.float32)
    y = jax.nn.one_hot(jnp.arange(len(x)) % 10, 10, dtype=jnp.float32)
    training = TrainingConfig(
        loss=losses.soft_cross_entropy, optimiser=optax.adam(1e-3), steps=steps, batch_size=size
    )
    keys = jax.random.split(jax.random.key(1), count)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return NETWORKS[network](10, rngs=rngs)

    @nnx.jit
    def step(model: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def loss_of(model: Any) -> jax.Array:
            return optax.softmax_cross_entropy(model(x), y).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    def plain() -> list[jax.Array]:
        found = []
        for seed in range(count):
            model = build(nnx.Rngs(seed))
            optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
            order = np.random.default_rng(seed)
            for i in range(steps):
                if i % BATCHES == 0:
                    batches = iter(order.permutation(len(x)).reshape(BATCHES, size))
                rows = next(batches)
                loss = step(model, optimizer, x[rows], y[rows])
            found.append(loss)
        return found

    return {"sdntk": lambda: train(build, keys, x, y, training).loss, "plain Flax loop": plain}


def flops_per_step(network: str) -> float:
    """Of value and gradient for one batch, as XLA counts them."""
    model = NETWORKS[network](10, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    x = jnp.zeros((SETTINGS["batch size"], 32, 32, 3), jnp.float32)
    loss = jax.jit(jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(x)), allow_int=True))
    return float(loss.lower(state).compile().cost_analysis()["flops"])  # type: ignore[index]


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run, print, and keep table and JSON; ``quick`` takes the small network only."""
    on_cpu, rows = jax.default_backend() == "cpu", []
    peak = PEAKS.get(jax.devices()[0].device_kind)
    cases = {"small": CASES["small"]} if quick else CASES
    with jax.enable_x64(False):
        for network, (steps, sizes) in track(cases.items(), description="training"):
            steps = steps if on_cpu else 10 * steps
            work = None if peak is None else flops_per_step(network)
            for count in sizes if on_cpu else ON_ACCELERATORS:
                # What a training costs beside its steps (building, the last look) is the same in
                # both lengths.
                short, long = (
                    take_turns(methods(network, count, n), SETTINGS["repeats"])
                    for n in (steps, 3 * steps)
                )
                seconds = {
                    name: (long[name].median - short[name].median) / (2 * steps) for name in long
                }
                for name, value in seconds.items():
                    rows.append(
                        {
                            "network": network,
                            "networks at once": count,
                            "what": name,
                            "steps per second": 1 / value,
                            "seconds (median)": value,
                            "fastest .. slowest, whole run, s": "{:.3g} .. {:.3g}".format(
                                *long[name].spread
                            ),
                            "seconds over the plain loop's": value / seconds["plain Flax loop"],
                            "goal": GOAL if name == "sdntk" else "",
                            "utilisation": ""
                            if work is None or peak is None
                            else count * work / value / peak,
                        }
                    )
    name = report.record_name("training", quick=quick)
    report.write(
        name,
        "Steps per second of deep networks, all networks of an ensemble taking one each",
        SETTINGS,
        rows,
    )
    return rows
