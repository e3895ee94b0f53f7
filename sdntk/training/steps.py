"""Optimiser steps of a group of networks, and looks at loss and gradient over all points."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from sdntk.kernels import tangent_kernel
from sdntk.training.ensemble import Modes
from sdntk.training.optimisers import GaussNewton, LeastSquares
from sdntk.training.state import _TRAINS, Course, Stop, Training, _Fixed, _Moving

#: What keys of augmentation are folded in from; epochs, whose order keys are folded from the same,
#: are fewer.
_AUGMENTATION = 2**32 - 1


@jax.jit
def _copy(moving: _Moving) -> _Moving:
    return jax.tree.map(jnp.copy, moving)


@functools.partial(jax.jit, static_argnames="training")
def _optimiser_state(params: Any, *, training: Training) -> Any:
    return jax.vmap(training.optimiser.init)(params)


@jax.jit
def _shuffle(moving: _Moving, epoch: int | Array) -> _Moving:
    """A new order of the points."""
    assert moving.order is not None
    size = moving.order.shape[1]
    order = jax.vmap(lambda key: jax.random.permutation(jax.random.fold_in(key, epoch), size))(
        moving.key
    )
    return dataclasses.replace(moving, order=order)


def _take_steps(
    moving: _Moving,
    position: int,
    count: int,
    fixed: _Fixed,
    x: Array,
    penalty: Array,
    *,
    training: Training,
    modes: Modes,
) -> _Moving:
    """``count`` steps from ``position`` in the epoch, in one compiled loop.

    On a CPU in a loop of compiled steps: XLA makes compiled loops of convolutions there an order of
    magnitude slower.
    """
    if jax.default_backend() != "cpu":
        return _steps(moving, fixed, x, penalty, position, count, training=training, modes=modes)
    for step in range(position, position + count):
        moving = _step(moving, fixed, x, penalty, step, training=training, modes=modes)
    return moving


@functools.partial(jax.jit, static_argnames=("training", "modes"), donate_argnames="moving")
def _steps(
    moving: _Moving,
    fixed: _Fixed,
    x: Array,
    penalty: Array,
    position: Array,
    count: Array,
    *,
    training: Training,
    modes: Modes,
) -> _Moving:
    return jax.lax.fori_loop(
        position,
        position + count,
        lambda i, m: _step(m, fixed, x, penalty, i, training=training, modes=modes),
        moving,
    )


@functools.partial(jax.jit, static_argnames=("training", "modes"), donate_argnames="moving")
def _step(
    moving: _Moving,
    fixed: _Fixed,
    x: Array,
    penalty: Array,
    position: int | Array,
    *,
    training: Training,
    modes: Modes,
) -> _Moving:
    """One step of every network that still trains."""
    one = functools.partial(
        _step_of_one, x=x, penalty=penalty, position=position, training=training, modes=modes
    )
    return jax.vmap(one)(moving, fixed)


def _step_of_one(
    moving: _Moving,
    fixed: _Fixed,
    *,
    x: Array,
    penalty: Array,
    position: int | Array,
    training: Training,
    modes: Modes,
) -> _Moving:
    points, targets, offset = x, fixed.targets, fixed.offset
    if moving.order is not None and training.batch_size is not None:
        start = position * training.batch_size
        rows = jax.lax.dynamic_slice_in_dim(moving.order, start, training.batch_size)
        points, targets, offset = x[rows], targets[rows], None if offset is None else offset[rows]
    if training.augment is not None:
        key = jax.random.fold_in(jax.random.fold_in(moving.key, _AUGMENTATION), moving.steps)
        points = training.augment(key, points)

    def objective(params: Any) -> tuple[Array, tuple[Array, Any]]:
        outputs, rest = modes.train(params, moving.rest, points)
        loss = jnp.mean(training.loss(outputs if offset is None else outputs - offset, targets))
        return loss + _penalty(penalty, params, fixed.initial), (loss, rest)

    (value, (loss, rest)), gradient = jax.value_and_grad(objective, has_aux=True)(moving.params)
    extra: dict[str, Any] = {
        "value": value,
        "grad": gradient,
        "value_fn": lambda params: objective(params)[0],
    }
    if isinstance(training.optimiser, GaussNewton):
        extra["problem"] = _problem(moving, fixed, x, penalty, modes)
    updates, optimiser = optax.with_extra_args_support(training.optimiser).update(
        gradient, moving.optimiser, moving.params, **extra
    )
    trains = moving.stop == _TRAINS
    finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(updates))
    stop = jnp.where(trains & ~finite, int(Stop.DIVERGED), moving.stop)
    moved = dataclasses.replace(
        moving,
        params=optax.apply_updates(moving.params, updates),
        rest=rest,
        optimiser=optimiser,
        steps=moving.steps + 1,
        loss=loss,
    )
    chosen = jax.tree.map(functools.partial(jax.lax.select, trains & finite), moved, moving)
    return dataclasses.replace(chosen, stop=stop)


def _penalty(penalty: Array, params: Any, initial: Any) -> Array | float:
    return (
        0.0
        if initial is None
        else penalty * optax.tree.norm(optax.tree.sub(params, initial), squared=True)
    )


def _problem(
    moving: _Moving, fixed: _Fixed, x: Array, penalty: Array, modes: Modes
) -> LeastSquares:
    """What Gauss-Newton wants to know."""

    def outputs(params: Any) -> Array:
        values = modes(params, moving.rest, x)
        return values if fixed.offset is None else values - fixed.offset

    def kernel(params: Any) -> Array:
        return tangent_kernel(lambda params, x: modes(params, moving.rest, x), params, x)

    return LeastSquares(outputs, kernel, fixed.targets, fixed.initial, penalty)


#: Points whose losses and gradients are computed together when all are looked at; fewer where
#: training takes batches, which are what memory allows.
_AT_ONCE, _AT_ONCE_IN_BATCHES = 1000, 100


def _look(course: Course, x: Array, training: Training) -> Course:
    """Loss and gradient over all points, in evaluation mode; networks that have met a rule stop."""
    moving, fixed = course.moving, course.fixed
    total = None
    at_once = (
        _AT_ONCE if training.batch_size is None else max(training.batch_size, _AT_ONCE_IN_BATCHES)
    )
    for start in range(0, len(x), at_once):
        rows = slice(start, start + at_once)
        part = _Fixed(
            fixed.targets[:, rows], None, None if fixed.offset is None else fixed.offset[:, rows]
        )
        sums = _sums(
            moving.params, moving.rest, part, x[rows], training=training, modes=course.modes
        )
        total = sums if total is None else optax.tree.add(total, sums)
    assert total is not None
    judged = _judged(moving, fixed.initial, total, course.penalty, len(x), training=training)
    return dataclasses.replace(course, moving=judged)


def _looks(training: Training) -> bool:
    return training.until_loss is not None or training.until_stationary is not None


@functools.partial(jax.jit, static_argnames=("training", "modes"))
def _sums(
    params: Any, rest: Any, fixed: _Fixed, x: Array, *, training: Training, modes: Modes
) -> tuple[Array, Any]:
    """The sum of losses over some points, and its gradient, of every network."""

    def loss(params: Any, rest: Any, fixed: _Fixed) -> Array:
        outputs = modes(params, rest, x)
        return jnp.sum(
            training.loss(
                outputs if fixed.offset is None else outputs - fixed.offset, fixed.targets
            )
        )

    return jax.vmap(jax.value_and_grad(loss))(params, rest, fixed)


@functools.partial(jax.jit, static_argnames="training")
def _judged(
    moving: _Moving,
    initial: Any,
    sums: tuple[Array, Any],
    penalty: Array,
    num_points: int | Array,
    *,
    training: Training,
) -> _Moving:
    def one(moving: _Moving, initial: Any, sums: tuple[Array, Any]) -> _Moving:
        loss = sums[0] / num_points
        gradient = optax.tree.scale(1 / num_points, sums[1])
        if initial is not None:
            gradient = optax.tree.add_scale(
                gradient, 2 * penalty, optax.tree.sub(moving.params, initial)
            )
        stationarity = optax.tree.norm(gradient)
        stop = moving.stop
        for rule, reached in (
            (Stop.DIVERGED, ~jnp.isfinite(loss)),
            (Stop.LOSS, training.until_loss is not None and loss <= training.until_loss),
            (
                Stop.STATIONARY,
                training.until_stationary is not None and stationarity <= training.until_stationary,
            ),
        ):
            stop = jnp.where((stop == _TRAINS) & reached, int(rule), stop)
        return dataclasses.replace(moving, loss=loss, stationarity=stationarity, stop=stop)

    return jax.vmap(one)(moving, initial, sums)
