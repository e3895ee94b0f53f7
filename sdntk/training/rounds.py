"""The chain of rounds with networks: round t trains fresh weights on what round t - 1 predicts."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sdntk._arguments import (
    MOST_ROUNDS,
    ArrayLike,
    as_choice,
    as_count,
    as_float_array,
    as_keys,
    as_number,
    as_points,
    as_sequence,
    as_unit_interval,
    require_values,
)
from sdntk.theory.mixing import mix_targets
from sdntk.training.adapters import Build, require_build
from sdntk.training.course import TrainingResult
from sdntk.training.losses import Loss, predictions, squared_error
from sdntk.training.state import TrainingConfig
from sdntk.training.train import check_arguments, group_size, train_groups
from sdntk.training.validation import as_validation

#: What round t is trained on: the predictions of round t - 1, or its most probable classes.
Targets = Literal["soft", "hard"]


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of S chains.

    Attributes:
        index: t.
        targets: what the networks were trained on, shape (S, K, Q).
        trained: the networks at the end of the round.
    """

    index: int
    targets: Float[Array, "S K Q"]
    trained: TrainingResult


def distill_networks(
    build: Build,
    keys: Key[Array, "..."],
    x: ArrayLike,
    y: ArrayLike,
    training: TrainingConfig,
    *,
    rounds: int,
    targets: Targets = "soft",
    ground_truth_weight: ArrayLike = 0.0,
    penalties: Sequence[float] | None = None,
    temperature: float = 1.0,
    at_once: int | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
) -> Iterator[Round]:
    """Self-distillation of S networks, one chain for each key.

    Round 0 is trained on y, and round t on

        y_t = alpha y + (1 - alpha) p_{t-1},

    where alpha is the ``ground_truth_weight`` and p_{t-1} what the network of the round before
    predicts on the training points: its outputs for the squared error, else the softmax of its
    outputs over the ``temperature``. Every round starts from fresh weights. A network that diverges
    counts as diverged in all later rounds of its chain; the other chains continue.

    Source: Mobahi et al. 2020, section 5 and appendix D.

    Args:
        build: makes a fresh network: a function of ``nnx.Rngs`` that returns a Flax NNX module, a
            Flax Linen module, or a pair of functions (init, apply); see :func:`sdntk.train`.
        keys: S JAX keys, one for each chain; round t uses ``jax.random.fold_in(key, t)``.
        x: K points, shape (K, ...).
        y: labels, shape (K, Q); one-hot for the losses that take a softmax.
        training: how each round is trained.
        rounds: T, at least 1; round 0 is ordinary training.
        targets: "soft", or "hard", which replaces p_{t-1} by the one-hot vector of its largest
            entry.
        ground_truth_weight: alpha, between 0 and 1.
        penalties: T weights of |theta - theta_0|^2, one for each round; 0 by default.
        temperature: positive; larger ones soften the targets. It is 1 where they are no softmax:
            for the squared error, and for hard targets.
        at_once: how many chains are trained together in one vmapped computation; by default what is
            fastest on the device (:func:`sdntk.train`).
        validation: other points and their labels, the same in every round (:func:`sdntk.train`).

    Yields:
        :class:`Round`, for t = 0 .. T - 1, each when it has ended.

    Raises:
        TypeError, ValueError: an argument has another type or shape, or is out of range.

    Example:
        >>> from sdntk.architectures import fully_connected
        >>> from sdntk.networks import FiniteWidth
        >>> sizes = {"width": 16, "num_outputs": 1}
        >>> build = lambda rngs: FiniteWidth(fully_connected(1), (2,), **sizes, rngs=rngs)
        >>> x, y = jnp.eye(2), jnp.array([[1.0], [-1.0]])
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> chain = distill_networks(build, keys, x, y, TrainingConfig(steps=20), rounds=2)
        >>> [round_.trained.steps.tolist() for round_ in chain]
        [[20, 20], [20, 20]]
    """
    require_build(build)
    given = keys, x, y, ground_truth_weight, penalties, validation
    require_values("keys, x, y, ground_truth_weight, penalties and validation", given)
    x = as_points("x", x)
    y = as_float_array("y", y)
    as_keys("keys", keys)
    if y.ndim != 2 or len(y) != len(x) or y.size == 0:
        raise ValueError(
            f"y must have shape ({len(x)}, Q), a row for each point; its shape is {y.shape}."
        )
    rounds = as_count("rounds", rounds, at_least=1, at_most=MOST_ROUNDS)
    require_targets(targets, y.shape[1])
    alpha = as_unit_interval("ground_truth_weight", ground_truth_weight, dtype=y.dtype)
    penalties = [0.0] * rounds if penalties is None else as_sequence("penalties", penalties)
    if len(penalties) != rounds:
        raise ValueError(
            f"penalties must hold {rounds} numbers, one for each round; it holds {len(penalties)}."
        )
    checked = [check_arguments(x, training, penalty, name="penalties") for penalty in penalties]
    temperature = _as_temperature(temperature, training.loss, targets)
    held_out = as_validation(validation, x, y.shape[-1], training)
    size = group_size(at_once, len(keys))

    def distilled(outputs: Float[Array, "S K Q"]) -> Float[Array, "S K Q"]:
        return next_targets(outputs, y, training.loss, targets, alpha, temperature=temperature)

    train_round = functools.partial(
        train_groups, build, x=x, training=training, size=size, validation=held_out
    )
    return _rounds(train_round, keys, x, y, checked, distilled)


def _as_temperature(temperature: float, loss: Loss, targets: Targets) -> float:
    """A positive number, and 1 where it would change nothing."""
    temperature = as_number("temperature", temperature, lambda t: t > 0, "must be positive")
    if (loss is squared_error or targets == "hard") and temperature != 1:
        raise ValueError(
            "temperature must be 1 with squared_error and with hard targets, which take no softmax."
        )
    return temperature


def _rounds(
    train_round: Callable[..., TrainingResult],
    keys: Key[Array, " S"],
    x: Float[Array, "K ..."],
    y: Float[Array, "K Q"],
    penalties: list[Float[Array, ""]],
    distilled: Callable[[Array], Array],
) -> Iterator[Round]:
    """The rounds, given how one is trained, and the targets after it as a function of outputs."""
    y_t = jnp.broadcast_to(y, (len(keys), *y.shape))
    diverged = jnp.zeros(len(keys), bool)
    for t, penalty in enumerate(penalties):
        trained = train_round(
            keys=round_keys(keys, t), targets=y_t, penalty=penalty, diverged=diverged
        )
        yield Round(t, y_t, trained)
        diverged = trained.diverged
        if t + 1 < len(penalties):
            y_t = distilled(trained.ensemble.outputs(x))


def round_keys(keys: Key[Array, " S"], t: int) -> Key[Array, " S"]:
    """The keys of round t of the chains with these keys."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t)


def require_targets(targets: str, num_outputs: int) -> None:
    """Raise a ValueError for unknown targets, and for hard ones where there is a single output."""
    as_choice("targets", targets, get_args(Targets))
    if targets == "hard" and num_outputs == 1:
        raise ValueError(
            "targets must be 'soft' where y has a single output: hard targets are one-hot "
            "vectors of classes."
        )


def next_targets(
    outputs: Float[Array, "S K Q"],
    y: Float[Array, "K Q"],
    loss: Loss,
    targets: Targets,
    ground_truth_weight: Float[Array, ""] | float,
    *,
    temperature: float = 1.0,
) -> Float[Array, "S K Q"]:
    """The targets of the round after one whose networks have these outputs on the training points:
    alpha y + (1 - alpha) p, where soft ones that are a softmax are softened by the temperature.
    """
    if targets == "soft":
        predicted = predictions(loss, _softened(outputs, temperature))
    else:
        classes = jnp.argmax(outputs, axis=-1)
        predicted = jax.nn.one_hot(classes, outputs.shape[-1], dtype=outputs.dtype)
    return mix_targets(y[None], predicted, ground_truth_weight)


def _softened(outputs: Float[Array, "S K Q"], temperature: float) -> Float[Array, "S K Q"]:
    """The outputs over the temperature, for a softmax: it does not see that the largest of a point
    is 0, which stays so however small the temperature is.
    """
    if temperature == 1:
        return outputs
    below = outputs - jnp.max(outputs, axis=-1, keepdims=True)
    return jnp.where(below == 0, 0, below / temperature)
