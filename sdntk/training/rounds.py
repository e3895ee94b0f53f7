"""The chain of rounds with networks: round t trains fresh weights on what round t - 1 predicts."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sdntk._arguments import ArrayLike, as_count, as_float_array, as_points, as_unit_interval
from sdntk.training.course import Trained
from sdntk.training.ensemble import Build, fastest_size
from sdntk.training.losses import Loss, predictions
from sdntk.training.state import Stop, Training
from sdntk.training.train import check_arguments, require_keys, train_groups

#: What round t learns of round t - 1: its predictions, or the class that it gives the most.
Targets = Literal["soft", "hard"]


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of S chains.

    Attributes:
        index: t.
        targets: what it was trained on, shape (S, K, Q).
        trained: the networks at its end.
    """

    index: int
    targets: Float[Array, "S K Q"]
    trained: Trained


def distill_networks(
    build: Build,
    keys: Key[Array, "..."],
    x: ArrayLike,
    y: ArrayLike,
    training: Training,
    *,
    rounds: Any,
    targets: Any = "soft",
    ground_truth_weight: ArrayLike = 0.0,
    penalties: Sequence[float] | None = None,
) -> Iterator[Round]:
    """Self-distillation of S networks, a chain for each key, one round after the other.

    Round 0 learns y; round t learns alpha y + (1 - alpha) p_{t-1}, p_{t-1} the predictions of the
    network before on the training points (for the squared error its outputs, else their softmax),
    alpha the ``ground_truth_weight``. Every round starts from fresh weights. A network that
    diverges has diverged in all later rounds, too, and leaves the others as they are.

    Source: Mobahi et al. 2020, section 5 and appendix D.

    Args:
        build: a fresh Flax NNX network from ``nnx.Rngs``.
        keys: a JAX key for each chain; round t uses ``jax.random.fold_in(key, t)``.
        x: points, shape (K, ...).
        y: labels, shape (K, Q): one-hot for the losses of softmax.
        training: how a round is trained, a :class:`~sdntk.training.state.Training`.
        rounds: T.
        targets: "soft", or "hard": the one-hot vector of the largest prediction.
        ground_truth_weight: alpha, between 0 and 1.
        penalties: for each round the weight of |theta - theta_0|^2; 0 when left out.

    Yields:
        :class:`Round`, for t = 0 .. T - 1.

    Raises:
        TypeError, ValueError: arguments of another type, shape or range.

    Example:
        >>> from sdntk.architectures import fully_connected
        >>> from sdntk.networks import FiniteWidth
        >>> sizes = {"width": 16, "num_outputs": 1}
        >>> build = lambda rngs: FiniteWidth(fully_connected(1), (2,), **sizes, rngs=rngs)
        >>> x, y = jnp.eye(2), jnp.array([[1.0], [-1.0]])
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> chain = distill_networks(build, keys, x, y, Training(steps=20), rounds=2)
        >>> [done.trained.steps.tolist() for done in chain]
        [[20, 20], [20, 20]]
    """
    x, y = as_points("x", x), as_float_array("y", y)
    require_keys(keys)
    if y.ndim != 2 or len(y) != len(x):
        raise ValueError(
            f"y must have shape ({len(x)}, Q), a row for each point; its shape is {y.shape}."
        )
    rounds = as_count("rounds", rounds, at_least=1)
    require_targets(targets, y.shape[1])
    alpha = as_unit_interval("ground_truth_weight", ground_truth_weight, dtype=y.dtype)
    if penalties is not None and len(penalties) != rounds:
        raise ValueError(
            f"penalties must hold {rounds} numbers, one for each round; it holds {len(penalties)}."
        )
    checked = [
        check_arguments(x, training, 0.0 if penalties is None else penalties[t])
        for t in range(rounds)
    ]
    return _rounds(build, keys, x, y, training, checked, targets, alpha)


def _rounds(
    build: Build,
    keys: Key[Array, " S"],
    x: Float[Array, "K ..."],
    y: Float[Array, "K Q"],
    training: Training,
    penalties: list[Float[Array, ""]],
    targets: Any,
    alpha: Float[Array, ""],
) -> Iterator[Round]:
    learned, diverged = jnp.broadcast_to(y, (len(keys), *y.shape)), jnp.zeros(len(keys), bool)
    for t, penalty in enumerate(penalties):
        fresh = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t)
        size = fastest_size(len(keys))
        trained = train_groups(build, fresh, x, learned, training, penalty, size, diverged=diverged)
        yield Round(t, learned, trained)
        diverged = trained.stop == Stop.DIVERGED
        if t + 1 < len(penalties):
            learned = next_targets(trained.ensemble.outputs(x), y, training.loss, targets, alpha)


def require_targets(targets: Any, num_outputs: int) -> None:
    """Refuse unknown targets, and classes where there is but one output."""
    if targets not in get_args(Targets):
        raise ValueError(f"targets must be 'soft' or 'hard'; got {targets!r}.")
    if targets == "hard" and num_outputs == 1:
        raise ValueError(
            "targets must be 'soft' where y has a single output: hard targets are one-hot "
            "vectors of classes."
        )


def next_targets(
    outputs: Float[Array, "S K Q"],
    y: Float[Array, "K Q"],
    loss: Loss,
    targets: Any,
    ground_truth_weight: Any,
) -> Float[Array, "S K Q"]:
    """What the next round learns of networks with these outputs on the training points: alpha y +
    (1 - alpha) p.
    """
    if targets == "soft":
        predicted = predictions(loss, outputs)
    else:
        predicted = jax.nn.one_hot(
            jnp.argmax(outputs, axis=-1), outputs.shape[-1], dtype=outputs.dtype
        )
    return ground_truth_weight * y[None] + (1 - ground_truth_weight) * predicted
