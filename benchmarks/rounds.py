"""Claim: a round of training costs what a loop written by hand costs.

One network for one round, fresh weights and all: by sdntk's training, and by loops that a user
would write, a jitted ``fori_loop`` and a Python loop of a jitted step, with the same sampling,
network and optimiser, so that the loss in the end is the same.
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
from sdntk import losses, networks
from sdntk.training.state import TrainingConfig
from sdntk.training.train import train

SETTINGS: dict[str, Any] = {
    "mlp": "1,000 points of 64 numbers, 2 x 256 ReLU, 1,000 steps of 64",
    "small": "160 images of 32 x 32 x 3, three convolutions, 500 steps of 16",
    "optimiser": "adam(1e-3), weight decay 1e-3 as a penalty's gradient",
    "dtype": "float32",
    "repeats": 5,
    "goal": "seconds of sdntk over those of the faster loop, at most 1.15 and 1.10",
}
GOALS = {"mlp": 1.15, "small": 1.1}
#: Points' shape, their number, steps, and points in a step.
SIZES = {"mlp": ((64,), 1000, 1000, 64), "small": ((32, 32, 3), 160, 500, 16)}
OPTIMISER = optax.chain(optax.add_decayed_weights(1e-3), optax.adam(1e-3))
KEY = jax.random.key(1)


def build_mlp(rngs: nnx.Rngs) -> nnx.Module:
    """Two hidden layers of 256."""
    return networks.MLP(64, 10, widths=(256, 256), rngs=rngs)


def build_small(rngs: nnx.Rngs) -> nnx.Module:
    """Three convolutions with batch normalisation."""
    return networks.small_cnn(10, rngs=rngs)


BUILD = {"mlp": build_mlp, "small": build_small}


def methods(network: str, steps: int | None = None) -> dict[str, Callable[[], jax.Array]]:
    """What is timed: each returns the loss of all points in the end."""
    shape, count, all_steps, batch = SIZES[network]
    steps = all_steps if steps is None else steps
    x = jax.random.normal(jax.random.key(0), (count, *shape), jnp.float32)
    y = jax.nn.one_hot(jnp.arange(count) % 10, 10, dtype=jnp.float32)
    training = TrainingConfig(
        loss=losses.brier_score, optimiser=OPTIMISER, steps=steps, batch_size=batch
    )
    build, per_epoch = BUILD[network], count // batch
    weight_key, data_key = jax.random.split(KEY)
    graph, *_ = nnx.split(build(nnx.Rngs(0)), nnx.Param, ...)

    def step(index: Any, carry: Any) -> Any:
        params, state, opt_state, order = carry
        epoch, position = jnp.divmod(index, per_epoch)
        order = jax.lax.cond(
            position == 0,
            lambda _: jax.random.permutation(jax.random.fold_in(data_key, epoch), count),
            lambda order: order,
            order,
        )
        rows = jax.lax.dynamic_slice_in_dim(order, position * batch, batch)

        def loss_of(params: Any) -> Any:
            model = nnx.merge(graph, params, state, copy=True)
            loss = jnp.mean(losses.brier_score(model(x[rows]), y[rows]))
            _, _, *state_after = nnx.split(model, nnx.Param, ...)
            return loss, state_after[0]

        gradient, state = jax.grad(loss_of, has_aux=True)(params)
        updates, opt_state = OPTIMISER.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, order

    def fresh() -> Any:
        _, params, *state = nnx.split(build(nnx.Rngs(weight_key)), nnx.Param, ...)
        return params, state[0], OPTIMISER.init(params), jnp.arange(count)

    in_one = jax.jit(lambda carry: jax.lax.fori_loop(0, steps, step, carry), donate_argnums=0)
    jitted_step = jax.jit(step, donate_argnums=1)

    @jax.jit
    def last_look(params: Any, state: Any) -> jax.Array:
        model = nnx.merge(graph, params, state)
        model.eval()
        return jnp.mean(losses.brier_score(model(x), y))

    def fori_loop() -> jax.Array:
        params, state, *_ = in_one(fresh())
        return last_look(params, state)

    def python_loop() -> jax.Array:
        carry = fresh()
        for index in range(steps):
            carry = jitted_step(index, carry)
        return last_look(*carry[:2])

    ours = lambda: train(build, KEY[None], x, y, training).loss[0]  # noqa: E731
    return {"sdntk": ours, "fori_loop by hand": fori_loop, "loop of steps by hand": python_loop}


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run, print, and keep table and JSON; ``quick`` takes a tenth of the steps."""
    rows = []
    with jax.enable_x64(False):
        for network in track(SIZES, description="rounds"):
            steps = SIZES[network][2] // (10 if quick else 1)
            timings = take_turns(methods(network, steps), SETTINGS["repeats"])
            fastest = min(t.median for name, t in timings.items() if name != "sdntk")
            rows += [
                {
                    "network": network,
                    "what": name,
                    "seconds (median)": timing.median,
                    "fastest .. slowest, s": "{:.3g} .. {:.3g}".format(*timing.spread),
                    "seconds over the faster loop's": timing.median / fastest,
                    "goal": GOALS[network] if name == "sdntk" else "",
                }
                for name, timing in timings.items()
            ]
    title = "Seconds of one round of one network, fresh weights to the last look"
    report.write(report.record_name("rounds", quick=quick), title, SETTINGS, rows)
    return rows
