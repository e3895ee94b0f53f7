"""The training of a group of networks from its first step to its last, one look after the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from sdntk._pytrees import pytree
from sdntk.training.ensemble import Build, Ensemble, initialise, spread
from sdntk.training.state import _TRAINS, Course, Stop, Training, _Fixed, _Moving
from sdntk.training.steps import (
    _copy,
    _look,
    _looks,
    _optimiser_state,
    _shuffle,
    _take_steps,
)


@pytree
class Trained:
    """S networks at the end of their training.

    Attributes:
        ensemble: the networks.
        stop: why each ended, a :class:`Stop`. A network that diverged keeps the last weights that
            were finite.
        steps: how many steps each took.
        loss: mean loss over all points against the targets, without the penalty.
        stationarity: the norm of the gradient of the whole objective over all points.
    """

    ensemble: Ensemble
    stop: Int[Array, " S"]
    steps: Int[Array, " S"]
    loss: Float[Array, " S"]
    stationarity: Float[Array, " S"]


def fresh(
    build: Build, keys: Key[Array, " S"], training: Training
) -> tuple[Ensemble, Key[Array, " S"]]:
    """Networks at their initial weights, and the keys that order their points."""
    weights, order = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    return initialise(build, weights, centred=training.centred), order


def begin(
    networks: Ensemble,
    keys: Key[Array, " s"],
    x: Array,
    targets: Float[Array, "s K Q"],
    training: Training,
    penalty: Array,
    diverged: Bool[Array, " s"],
) -> Course:
    """The course of networks that take their steps together, before the first.

    A network that diverged in an earlier round has no targets and takes no step: it has diverged in
    this one, too.
    """
    count = len(keys)
    dtype = jax.eval_shape(
        networks.modes, *jax.tree.map(lambda leaf: leaf[0], (networks.params, networks.rest)), x
    ).dtype
    targets = jnp.where(diverged[:, None, None], 0, targets).astype(dtype)
    initial = networks.params if bool(penalty > 0) or training.centred else None
    offset = dataclasses.replace(networks, initial=None).outputs(x) if training.centred else None
    order = None if training.batch_size is None else jnp.tile(jnp.arange(len(x)), (count, 1))
    unknown = jnp.full(count, jnp.nan, targets.dtype)
    moving = _Moving(
        networks.params,
        networks.rest,
        _optimiser_state(networks.params, training=training),
        keys,
        order,
        jnp.zeros(count, int),
        jnp.where(diverged, int(Stop.DIVERGED), _TRAINS),
        unknown,
        unknown,
    )
    # A copy: what moves is given up at every step, and initial weights are the same arrays.
    moving, fixed = spread(_copy(moving)), spread(_Fixed(targets, initial, offset))
    course = Course(moving, fixed, penalty, np.int64(0), networks.modes)
    return _look(course, x, training) if _looks(training) else course


def is_over(course: Course, training: Training) -> bool:
    """Whether every network has stopped, or all steps are taken."""
    return bool(course.taken >= training.steps or np.all(np.asarray(course.moving.stop) != _TRAINS))


def advance(course: Course, x: Array, training: Training, *, until: int | None = None) -> Course:
    """The steps up to the next look at all points, the end of the epoch, or ``until``. ``course``
    is given up.
    """
    taken, moving = int(course.taken), course.moving
    until_look = training.check_every - taken % training.check_every
    count, position = (
        min(until_look, (training.steps if until is None else min(until, training.steps)) - taken),
        0,
    )
    if training.batch_size is not None:
        per_epoch = len(x) // training.batch_size
        position = taken % per_epoch
        count = min(count, per_epoch - position)
        moving = _shuffle(moving, taken // per_epoch) if position == 0 else moving
    moving = _take_steps(
        moving,
        position,
        count,
        course.fixed,
        x,
        course.penalty,
        training=training,
        modes=course.modes,
    )
    taken += count
    course = dataclasses.replace(course, moving=moving, taken=np.int64(taken))
    looks = _looks(training) and (count == until_look or taken == training.steps)
    return _look(course, x, training) if looks else course


def end(course: Course, x: Array, training: Training) -> Trained:
    """The networks as they are, with loss and stationarity over all points."""
    moving = _look(course, x, training).moving
    stop = jnp.where(moving.stop == _TRAINS, int(Stop.STEPS), moving.stop)
    return Trained(
        as_ensemble(course, training), stop, moving.steps, moving.loss, moving.stationarity
    )


def as_ensemble(course: Course, training: Training) -> Ensemble:
    """The networks as they are."""
    return Ensemble(
        course.moving.params,
        course.moving.rest,
        course.fixed.initial if training.centred else None,
        course.modes,
    )
