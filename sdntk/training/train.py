"""One round: an ensemble of fresh networks, trained on given targets."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from sdntk._arguments import (
    ArrayLike,
    as_count,
    as_float_array,
    as_keys,
    as_points,
    as_scalar,
    require_type,
    require_values,
)
from sdntk._progress import Bar
from sdntk.training.adapters import Build, require_build
from sdntk.training.course import TrainingResult, advance, as_others, finish, init, is_over
from sdntk.training.ensemble import fastest_size, to_all_devices
from sdntk.training.optimisers import GaussNewton
from sdntk.training.state import TrainingConfig
from sdntk.training.validation import Validation, as_validation, recorded

#: The progress bar moves about so often: its looks at the networks interrupt quick steps.
SECONDS_BETWEEN_NOTES = 0.5


def train(
    build: Build,
    keys: Key[Array, "..."],
    x: ArrayLike,
    targets: ArrayLike,
    training: TrainingConfig,
    *,
    penalty: ArrayLike = 0.0,
    at_once: int | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
) -> TrainingResult:
    """Train a fresh network for each key.

    Each network minimises, over its weights theta,

        (1/K) sum_k loss(f(x_k), y_k) + penalty |theta - theta_0|^2,

    where theta_0 are the weights that it starts from. With the squared error, centred outputs and
    the penalty c/Q this is the counterpart of a kernel fit with ``outputs="joint"`` and the
    multiplier c (docs/theory.md, section 6). A network whose objective or gradient is no
    longer finite stops at the weights that it has, and the others continue.

    Args:
        build: makes a fresh network: a function of ``nnx.Rngs`` that returns a Flax NNX module, as
            ``lambda rngs: FiniteWidth(..., rngs=rngs)`` does; a Flax Linen module; or a pair of
            functions (init, apply), ``init(key)`` to params, any pytree of floating-point arrays,
            and ``apply(params, x)`` to outputs. A Linen module is called as
            ``module.apply(variables, x)``, in training with all its collections mutable; whether it
            is trained it learns from an argument ``train``, ``training``, ``is_training``,
            ``deterministic`` or ``use_running_average``, if it has one.
        keys: S JAX keys, one for each network: they draw its weights and shuffle its points.
        x: K points, shape (K, ...).
        targets: y, shape (K, Q) for all networks, or (S, K, Q) with a set for each.
        training: how the networks are trained.
        penalty: a number, at least 0; positive with :func:`~sdntk.optimisers.gauss_newton`.
        at_once: how many networks take their steps together in one vmapped computation. By default
            what is fastest on the device: one on a CPU, all on an accelerator.
        validation: points that are not trained on and their targets, shapes (n, ...) and (n, Q):
            the mean loss on them is recorded every ``check_every`` steps, and may stop a network
            (``TrainingConfig.patience``).

    Returns:
        :class:`~sdntk.training.course.TrainingResult`. Numbers are in the dtype of the network's
        outputs, losses in that of the loss.

    Raises:
        TypeError, ValueError: an argument has another type or shape, or is out of range.

    Example:
        >>> import optax
        >>> from sdntk.architectures import fully_connected
        >>> from sdntk.networks import FiniteWidth
        >>> sizes = {"width": 16, "num_outputs": 1}
        >>> build = lambda rngs: FiniteWidth(fully_connected(1), (2,), **sizes, rngs=rngs)
        >>> x, y = jnp.eye(2), jnp.array([[1.0], [-1.0]])
        >>> training = TrainingConfig(optimiser=optax.adam(0.1), steps=200, until_loss=0.01)
        >>> result = train(build, jax.random.split(jax.random.key(0), 3), x, y, training)
        >>> result.ensemble.outputs(x).shape, bool((result.loss <= 0.01).all())
        ((3, 2, 1), True)
    """
    require_build(build)
    given = keys, x, targets, penalty, validation
    require_values("keys, x, targets, penalty and validation", given)
    x = as_points("x", x)
    targets = as_float_array("targets", targets)
    count = len(as_keys("keys", keys))
    if targets.size == 0 or targets.shape[:-1] not in ((len(x),), (count, len(x))):
        raise ValueError(
            f"targets must have shape ({len(x)}, Q), or ({count}, {len(x)}, Q) with a set for each "
            f"of the {count} keys; its shape is {targets.shape}."
        )
    penalty = check_arguments(x, training, penalty)
    targets = jnp.broadcast_to(targets, (count, len(x), targets.shape[-1]))
    held_out = as_validation(validation, x, targets.shape[-1], training)
    size = group_size(at_once, count)
    return train_groups(build, keys, x, targets, training, penalty, size, validation=held_out)


def group_size(at_once: int | None, count: int) -> int:
    """How many of ``count`` networks are trained at once, what is fastest when None."""
    if at_once is None:
        return fastest_size(count)
    return min(as_count("at_once", at_once, at_least=1), count)


def train_groups(
    build: Build,
    keys: Key[Array, " S"],
    x: Float[Array, "K ..."],
    targets: Float[Array, "S K Q"],
    training: TrainingConfig,
    penalty: Float[Array, ""],
    size: int,
    *,
    diverged: Bool[Array, " S"] | None = None,
    validation: Validation | None = None,
) -> TrainingResult:
    """:func:`train` with its arguments checked, ``size`` networks at once. Networks that have
    ``diverged`` before are not trained.
    """
    if diverged is None:
        diverged = jnp.zeros(len(keys), bool)
    groups = [slice(start, start + size) for start in range(0, len(keys), size)]
    results: list[TrainingResult] = []
    with Bar(f"Training {len(keys)} networks", total=training.steps * len(groups)) as bar:
        for group in groups:
            run = init(build, keys[group], x, targets[group], training, penalty, diverged[group])
            if results:
                run = as_others(run, results[0])
            points = to_all_devices(x, len(keys[group]))
            looks: list[np.ndarray] = []
            every = training.check_every
            while not is_over(run, training):
                before, started = run.steps_taken, time.monotonic()
                run = advance(run, points, training, every=every)
                if validation is not None:
                    run = validation.look(run, training, looks)
                bar.advance(int(run.steps_taken - before), f"loss {np.mean(run.state.loss):.4g}")
                if validation is None and time.monotonic() - started < SECONDS_BETWEEN_NOTES:
                    every *= 2
            bar.advance(training.steps - int(run.steps_taken))
            result = finish(run, points, training)
            if validation is not None:
                losses = recorded(looks, result.steps, training)
                result = dataclasses.replace(result, validation_loss=losses)
            results.append(result)
    return _joined(results)


def _joined(results: list[TrainingResult]) -> TrainingResult:
    """The results of all groups as one."""
    if len(results) == 1:
        return results[0]
    if len({len(result.steps.devices()) for result in results}) > 1:
        # Groups of different sizes lie on different devices.
        results = jax.device_put(results, jax.local_devices()[0])
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *results)


def check_arguments(
    x: Float[Array, "K ..."],
    training: TrainingConfig,
    penalty: ArrayLike,
    *,
    name: str = "penalty",
) -> Float[Array, ""]:
    """The penalty as an array, after checking that it, the settings and the points go together.

    Raises:
        ValueError, TypeError: they do not.
    """
    require_type("training", training, TrainingConfig, "an sdntk.TrainingConfig")
    penalty = as_scalar(
        name, penalty, lambda p: p >= 0, "must be a number, at least 0", dtype=x.dtype
    )
    if isinstance(training.optimiser, GaussNewton) and not penalty > 0:
        raise ValueError(
            f"{name} must be positive with gauss_newton, which solves for the regularised optimum."
        )
    if training.batch_size is not None and training.batch_size > len(x):
        raise ValueError(
            f"batch_size must be at most {len(x)}, the number of points; got {training.batch_size}."
        )
    return penalty
