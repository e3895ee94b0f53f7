"""One round: an ensemble of fresh networks trained on given targets, at once or a few at a time,
until its rule stops it.
"""

import dataclasses
import enum
import functools
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from sdntk._arguments import ArrayLike, as_count, as_float_array, as_points
from sdntk._progress import Bar
from sdntk._pytrees import register
from sdntk.kernels import tangent_kernel
from sdntk.training.augmentation import Augment
from sdntk.training.ensemble import (
    Build,
    Ensemble,
    Modes,
    fastest_size,
    initialise,
    members,
    spread,
    to_all_devices,
)
from sdntk.training.losses import Loss, squared_error
from sdntk.training.optimisers import GaussNewton, LeastSquares


class Stop(enum.IntEnum):
    """Why a network's training ended."""

    STEPS = 0
    LOSS = 1
    STATIONARY = 2
    DIVERGED = 3


@dataclasses.dataclass(frozen=True)
class Training:
    """How a round is trained. Hashable, so that rounds with equal settings are compiled once.

    Attributes:
        loss: of :mod:`sdntk.losses`, or a function like them.
        optimiser: any optax optimiser: ``optax.adam(1e-3)``, ``optax.adamw`` (weight decay),
            ``optax.sgd``; with all points in every step ``optax.lbfgs()`` and
            :func:`sdntk.optimisers.gauss_newton`.
        steps: the most steps.
        batch_size: points in a step, drawn without replacement in every epoch; all when None.
        until_loss: stop a network once its mean loss over all points, the penalty left out, is at
            most this.
        until_stationary: stop a network once the gradient's norm, of the whole objective over all
            points, is at most this.
        check_every: steps from one look at loss and gradient over all points to the next.
        centred: train f(x) - f_0(x), f_0 the network at its initial weights (the Gaussian process
            that it starts from is no part of the kernel's prediction).
        augment: what is done to the points of a step, such as
            :func:`sdntk.training.augmentation.crop_and_flip`; their targets stay.
            Looks at all points see them as they are.
    """

    loss: Loss = squared_error
    optimiser: Any = field(default_factory=lambda: optax.adam(1e-3))
    steps: Any = 1000
    batch_size: Any = None
    until_loss: Any = None
    until_stationary: Any = None
    check_every: Any = 10
    centred: bool = False
    augment: Augment | None = None

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "check_every",
            *(["batch_size"] if self.batch_size is not None else []),
        ):
            as_count(name, getattr(self, name), at_least=1)
        for name in ("until_loss", "until_stationary"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(
                    self, name, float(value)
                )  # hashable, whatever kind of number it was
                if not value >= 0:
                    raise ValueError(f"{name} must be at least 0; got {value}.")
        if not isinstance(self.optimiser, optax.GradientTransformation):
            raise TypeError(
                f"optimiser must be an optax optimiser; got {type(self.optimiser).__name__}."
            )
        if self.augment is not None and (self.centred or isinstance(self.optimiser, GaussNewton)):
            raise ValueError("augment must be None with centred networks, or with gauss_newton.")
        if isinstance(self.optimiser, GaussNewton) and (
            self.loss is not squared_error or self.batch_size is not None
        ):
            raise ValueError("loss must be squared_error, and batch_size None, with gauss_newton.")


@register
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


#: In place of a :class:`Stop` while a network trains.
_TRAINS = -1
#: What keys of augmentation are folded in from; epochs, whose order keys are folded from the same,
#: are fewer.
_AUGMENTATION = 2**32 - 1


@register
class _Moving:
    """What changes in training. Leaves have a leading axis s, a network each, but where one is
    looked at alone.
    """

    params: Any
    rest: Any
    optimiser: Any
    key: Key[Array, "*s"]
    order: Int[Array, "*s K"] | None  # of the points in this epoch, where they come in batches
    steps: Int[Array, "*s"]
    stop: Int[Array, "*s"]
    loss: Float[Array, "*s"]
    stationarity: Float[Array, "*s"]


@register
class _Fixed:
    """What does not. Leaves have a leading axis s, too."""

    targets: Float[Array, "*s K Q"]
    initial: Any  # the weights at initialisation, where the penalty or centring wants them
    offset: Float[Array, "*s K Q"] | None  # the initial outputs of centred networks


@register
class Course:
    """A group of networks in training: nothing but numbers, and so kept and gone on with as it
    is.
    """

    moving: _Moving
    fixed: _Fixed
    penalty: Float[Array, ""]
    taken: Any  # steps of the group, an integer
    modes: Modes = field(metadata={"static": True})


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


def _looks(training: Training) -> bool:
    return training.until_loss is not None or training.until_stationary is not None


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
