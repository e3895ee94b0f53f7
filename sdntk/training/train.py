"""One round: an ensemble of fresh networks trained on given targets, at once or a few at a time,
until its rule stops it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from sdntk._arguments import ArrayLike, as_count, as_float_array, as_points
from sdntk._progress import Bar
from sdntk.training.course import Trained, advance, begin, end, fresh, is_over
from sdntk.training.ensemble import Build, fastest_size, members, to_all_devices
from sdntk.training.optimisers import GaussNewton
from sdntk.training.state import Training


def train(
    build: Build,
    keys: Key[Array, "..."],
    x: ArrayLike,
    targets: ArrayLike,
    training: Training,
    *,
    penalty: ArrayLike = 0.0,
    at_once: Any = None,
) -> Trained:
    """Train a fresh network for each key, by the objective mean(loss) + penalty |theta - theta_0|^2
    over the K points.

    A kernel chain with ``outputs="joint"`` and multiplier c corresponds to the squared error of
    centred outputs with the penalty c/Q (theory.md, section 6). A network whose loss or weights
    become nan or inf is stopped by itself.

    Args:
        build: a fresh Flax NNX network from ``nnx.Rngs``, e.g. ``lambda rngs: FiniteWidth(...,
            rngs=rngs)``.
        keys: a JAX key for each of the S networks: it draws weights and the order of points.
        x: points, shape (K, ...).
        targets: shape (K, Q), or (S, K, Q) for each network its own.
        training: how.
        penalty: a number, at least 0.
        at_once: how many networks are trained in one vmapped step; what is fastest on this device
            when None: all on an accelerator, one on a CPU, whose cores one network keeps busy.

    Returns:
        :class:`Trained`.

    Raises:
        TypeError, ValueError: arguments of another type, shape or range.

    Example:
        >>> import optax
        >>> from sdntk.architectures import fully_connected
        >>> from sdntk.networks import FiniteWidth
        >>> sizes = {"width": 16, "num_outputs": 1}
        >>> build = lambda rngs: FiniteWidth(fully_connected(1), (2,), **sizes, rngs=rngs)
        >>> x, y = jnp.eye(2), jnp.array([[1.0], [-1.0]])
        >>> training = Training(optimiser=optax.adam(0.1), steps=200, until_loss=0.01)
        >>> trained = train(build, jax.random.split(jax.random.key(0), 3), x, y, training)
        >>> trained.ensemble.outputs(x).shape, bool((trained.loss <= 0.01).all())
        ((3, 2, 1), True)
    """
    x, targets = as_points("x", x), as_float_array("targets", targets)
    require_keys(keys)
    if (
        targets.ndim not in (2, 3)
        or targets.shape[-2] != len(x)
        or targets.shape[:-2] not in ((), (len(keys),))
    ):
        raise ValueError(
            f"targets must have shape ({len(x)}, Q), or ({len(keys)}, {len(x)}, Q) with a set "
            "for each of the "
            f"{len(keys)} keys; its shape is {targets.shape}."
        )
    penalty = check_arguments(x, training, penalty)
    targets = jnp.broadcast_to(targets, (len(keys), len(x), targets.shape[-1]))
    size = (
        fastest_size(len(keys))
        if at_once is None
        else min(as_count("at_once", at_once, at_least=1), len(keys))
    )
    return train_groups(build, keys, x, targets, training, penalty, size)


def train_groups(
    build: Build,
    keys: Key[Array, " S"],
    x: Float[Array, "K ..."],
    targets: Float[Array, "S K Q"],
    training: Training,
    penalty: Float[Array, ""],
    size: int,
    *,
    diverged: Bool[Array, " S"] | None = None,
) -> Trained:
    """:func:`train`, its arguments checked: ``size`` networks at once. Those marked as diverged are
    not trained.
    """
    diverged = jnp.zeros(len(keys), bool) if diverged is None else diverged
    networks, order = fresh(build, keys, training)
    groups = [slice(start, start + size) for start in range(0, len(keys), size)]
    done = []
    with Bar(f"Training {len(keys)} networks", total=training.steps * len(groups)) as bar:
        for group in groups:
            points = to_all_devices(x, len(order[group]))
            course = begin(
                members(networks, group),
                order[group],
                points,
                targets[group],
                training,
                penalty,
                diverged[group],
            )
            while not is_over(course, training):
                before, course = int(course.taken), advance(course, points, training)
                bar.advance(int(course.taken) - before, f"loss {np.mean(course.moving.loss):.4g}")
            bar.advance(training.steps - int(course.taken))
            done.append(end(course, points, training))
    if len(done) == 1:
        return done[0]
    if (
        len({len(ended.steps.devices()) for ended in done}) > 1
    ):  # groups of different sizes lie on different devices
        done = jax.device_put(done, jax.local_devices()[0])
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *done)


def require_keys(keys: Any) -> None:
    """Refuse what is no array of JAX keys, one for each network."""
    if np.ndim(keys) == 0 or len(keys) == 0:
        raise ValueError(
            "keys must hold a JAX key for each network, as jax.random.split(key, count) gives."
        )


def check_arguments(
    x: Float[Array, "K ..."], training: Training, penalty: ArrayLike
) -> Float[Array, ""]:
    """The penalty, where it and the settings suit each other and the points.

    Raises:
        ValueError: they do not.
    """
    penalty = as_float_array("penalty", penalty, dtype=x.dtype)
    if penalty.shape != () or not penalty >= 0:
        raise ValueError(f"penalty must be a number, at least 0; got {penalty}.")
    if isinstance(training.optimiser, GaussNewton) and not penalty > 0:
        raise ValueError(
            "penalty must be positive with gauss_newton, which solves for the regularised optimum."
        )
    if training.batch_size is not None and training.batch_size > len(x):
        raise ValueError(
            f"batch_size must be at most {len(x)}, the number of points; got {training.batch_size}."
        )
    return penalty
