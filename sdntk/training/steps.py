"""The steps of a group of networks in training, and the check of its stopping rules."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from sdntk.kernels.neural import EmpiricalNTK
from sdntk.training.ensemble import ApplyFn
from sdntk.training.optimisers import GaussNewton, LeastSquares
from sdntk.training.state import RUNNING, Objective, Stop, TrainingConfig, TrainingRun, TrainState

#: Folded into a network's key where it augments points. An epoch's number is folded into the same
#: key to shuffle them; no epoch's number is as large, so the two never draw the same.
AUGMENTATION = 2**32 - 1
#: Points whose losses and gradients a check computes at once, without batches: as many as
#: ``Ensemble.outputs`` evaluates.
POINTS_AT_ONCE = 1000
#: The same with batches, whose size says what memory allows: a batch, or so many if that is more.
POINTS_AT_ONCE_WITH_BATCHES = 100

#: For ``jax.vmap`` over networks: they share the penalty.
_BY_NETWORK = Objective(targets=0, initial_params=0, initial_outputs=0, penalty=None)  # type: ignore[arg-type]

StepFn = Callable[[TrainState, Objective, Array, int | Array], TrainState]


class _Batch(NamedTuple):
    """The points of a step with what belongs to each: y, and f_0 of a centred network."""

    points: Array
    targets: Array
    initial_outputs: Array | None


class _Aux(NamedTuple):
    """What the objective returns beside its value."""

    loss: Array
    model_state: Any


class _Sums(NamedTuple):
    """Losses summed over points, and the gradient of their sum."""

    loss: Array
    gradient: Any


@jax.jit
def copy(state: TrainState) -> TrainState:
    """A copy in memory of its own, which steps may overwrite."""
    return jax.tree.map(jnp.copy, state)


@functools.partial(jax.jit, static_argnames="training")
def init_optimiser(params: Any, *, training: TrainingConfig) -> Any:
    """The optimiser's state of every network before the first step."""
    return jax.vmap(training.optimiser.init)(params)


def take_steps(
    state: TrainState,
    objective: Objective,
    x: Array,
    first: int,
    count: int,
    *,
    training: TrainingConfig,
    apply_fn: ApplyFn,
) -> TrainState:
    """``count`` steps, from step ``first`` of the training on. ``state`` is given up: its memory is
    used again.

    One compiled loop, but on a CPU for networks with convolutions a loop of compiled steps: XLA
    makes convolutions an order of magnitude slower there within loops.
    """
    step = _step(training, apply_fn)
    if jax.default_backend() != "cpu" or not _has_convolutions(state, x, apply_fn):
        return _loop(state, objective, x, first, count, step=step)
    is_one = len(state.stop) == 1
    if is_one:
        group = state
        state, objective = _only((group, objective))
        for leaf in jax.tree.leaves(group):
            leaf.delete()
    for index in range(first, first + count):
        state = step(state, objective, x, index)
    return _as_group(state) if is_one else state


@jax.jit
def _only(networks: Any) -> Any:
    """What belongs to the only network, without the axis of networks: ``jax.vmap`` over an axis of
    length 1 makes matrix products and convolutions slower on a CPU.
    """
    return jax.tree.map(lambda leaf: leaf[0] if leaf.ndim else leaf, networks)


@jax.jit
def _as_group(network: Any) -> Any:
    """What belongs to one network, with an axis of networks."""
    return jax.tree.map(lambda leaf: leaf[None], network)


def _shuffled(order: Int[Array, " K"], key: Key[Array, ""], epoch: int | Array) -> Int[Array, " K"]:
    """A new order of a network's points."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), len(order))


def _has_convolutions(state: TrainState, x: Array, apply_fn: ApplyFn) -> bool:
    """Whether the networks convolve, in whatever library they are written."""

    def without_first_axis(leaf: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)

    numbers = jax.tree.map(without_first_axis, (state.params, state.model_state))
    points = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    leaves, structure = jax.tree.flatten((*numbers, points))
    return "conv_general_dilated" in _program(apply_fn, structure, *leaves)


@functools.cache
def _program(apply_fn: ApplyFn, structure: Any, *leaves: jax.ShapeDtypeStruct) -> str:
    """The text of what a network computes, of arguments with this structure and these leaves."""
    return str(jax.make_jaxpr(apply_fn)(*jax.tree.unflatten(structure, leaves)))


@functools.partial(jax.jit, static_argnames="step", donate_argnames="state")
def _loop(
    state: TrainState, objective: Objective, x: Array, first: Array, count: Array, *, step: StepFn
) -> TrainState:
    def body(index: Array, state: TrainState) -> TrainState:
        return step(state, objective, x, index)

    is_one = len(state.stop) == 1
    if is_one:
        state, objective = _only((state, objective))
    state = jax.lax.fori_loop(first, first + count, body, state)
    return _as_group(state) if is_one else state


@functools.lru_cache(maxsize=256)  # settings are hashed once a loop, not in every step
def _step(training: TrainingConfig, apply_fn: ApplyFn) -> StepFn:
    """The compiled step of every network that is still training; of one without the axis of
    networks, or of several.
    """

    def step_of_one(
        state: TrainState, objective: Objective, x: Array, index: int | Array
    ) -> TrainState:
        position = index
        if training.batch_size is not None:
            epoch, position = jnp.divmod(index, len(x) // training.batch_size)
            assert state.permutation is not None
            order = jax.lax.cond(
                position == 0,
                _shuffled,
                lambda order, *_: order,
                state.permutation,
                state.key,
                epoch,
            )
            state = dataclasses.replace(state, permutation=order)
        batch = _batch(state, objective, x, position, training)
        value_and_aux = _objective_on(state, objective, batch, training, apply_fn)
        return _update(state, objective, x, value_and_aux, training, apply_fn)

    @functools.partial(jax.jit, donate_argnames="state")
    def step(state: TrainState, objective: Objective, x: Array, index: int | Array) -> TrainState:
        if not state.stop.ndim:
            return step_of_one(state, objective, x, index)
        in_axes = (0, _BY_NETWORK, None, None)
        return jax.vmap(step_of_one, in_axes=in_axes)(state, objective, x, index)

    return step


def _batch(
    state: TrainState,
    objective: Objective,
    x: Array,
    position: int | Array,
    training: TrainingConfig,
) -> _Batch:
    """The points of a step: all of them, or batch ``position`` of the epoch; augmented."""
    batch = _Batch(x, objective.targets, objective.initial_outputs)
    if state.permutation is not None and training.batch_size is not None:
        start = position * training.batch_size
        rows = jax.lax.dynamic_slice_in_dim(state.permutation, start, training.batch_size)
        batch = jax.tree.map(lambda values: values[rows], batch)
    if training.augment is not None:
        key = jax.random.fold_in(jax.random.fold_in(state.key, AUGMENTATION), state.step)
        batch = batch._replace(points=training.augment(key, batch.points))
    return batch


def _objective_on(
    state: TrainState,
    objective: Objective,
    batch: _Batch,
    training: TrainingConfig,
    apply_fn: ApplyFn,
) -> Callable[[Any], tuple[Array, _Aux]]:
    """The objective on a batch as a function of the params."""

    def value_and_aux(params: Any) -> tuple[Array, _Aux]:
        outputs, model_state = apply_fn.train(params, state.model_state, batch.points)
        outputs = _centred(outputs, batch.initial_outputs)
        loss = jnp.mean(training.loss(outputs, batch.targets))
        return loss + _penalty(params, objective), _Aux(loss, model_state)

    return value_and_aux


def _centred(outputs: Array, initial_outputs: Array | None) -> Array:
    """The outputs minus f_0 for a centred network, as they are for any other."""
    if initial_outputs is None:
        return outputs
    return outputs - initial_outputs


def _penalty(params: Any, objective: Objective) -> Array | float:
    """The term penalty |theta - theta_0|^2 of the objective."""
    if objective.initial_params is None:
        return 0.0
    moved = optax.tree.sub(params, objective.initial_params)
    return objective.penalty * optax.tree.norm(moved, squared=True)


def _update(
    state: TrainState,
    objective: Objective,
    x: Array,
    value_and_aux: Callable[[Any], tuple[Array, _Aux]],
    training: TrainingConfig,
    apply_fn: ApplyFn,
) -> TrainState:
    """The state after the optimiser's step, if the network is training and its objective and
    gradient are finite; else the state as it was, and a network that was training has diverged.
    """
    (value, aux), gradient = jax.value_and_grad(value_and_aux, has_aux=True)(state.params)
    optimiser = optax.with_extra_args_support(training.optimiser)

    def moved(state: TrainState) -> TrainState:
        update = optimiser.update
        if isinstance(training.optimiser, GaussNewton):
            problem = _least_squares(state, objective, x, apply_fn)
            update = functools.partial(update, problem=problem)
        updates, opt_state = update(
            gradient,
            state.opt_state,
            state.params,
            value=value,
            grad=gradient,
            value_fn=lambda params: value_and_aux(params)[0],
        )
        return dataclasses.replace(
            state,
            params=optax.apply_updates(state.params, updates),
            model_state=aux.model_state,
            opt_state=opt_state,
            step=state.step + 1,
            loss=aux.loss,
        )

    # Looked at before the step: what depends on the updates keeps XLA from writing over the state.
    is_training = state.stop == RUNNING
    is_finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
    after = jax.lax.cond(is_training & is_finite, moved, lambda state: state, state)
    stop = jnp.where(is_training & ~is_finite, int(Stop.DIVERGED), state.stop)
    return dataclasses.replace(after, stop=stop)


def _least_squares(
    state: TrainState, objective: Objective, x: Array, apply_fn: ApplyFn
) -> LeastSquares:
    """The objective over all points, as Gauss-Newton takes it."""

    def outputs(params: Any) -> Array:
        return _centred(apply_fn(params, state.model_state, x), objective.initial_outputs)

    def tangent_kernel(params: Any) -> Array:
        return EmpiricalNTK(params, (state.model_state,), apply_fn).by_outputs(x)

    return LeastSquares(
        outputs=outputs,
        tangent_kernel=tangent_kernel,
        targets=objective.targets,
        initial=objective.initial_params,
        penalty=objective.penalty,
    )


def apply_stopping_rules(run: TrainingRun, x: Array, training: TrainingConfig) -> TrainingRun:
    """Compute loss and gradient norm over all points in evaluation mode, and stop the networks that
    meet a rule.
    """
    at_once = POINTS_AT_ONCE
    if training.batch_size is not None:
        at_once = max(training.batch_size, POINTS_AT_ONCE_WITH_BATCHES)
    slices = [slice(start, start + at_once) for start in range(0, len(x), at_once)]
    total = functools.reduce(optax.tree.add, (_sums(run, rows, x, training) for rows in slices))
    state = _judge(run.state, run.objective, total, len(x), training=training)
    return dataclasses.replace(run, state=state)


def _sums(run: TrainingRun, rows: slice, x: Array, training: TrainingConfig) -> _Sums:
    """The losses of every network summed over some points, and their gradient."""
    objective = run.objective
    initial_outputs = objective.initial_outputs
    if initial_outputs is not None:
        initial_outputs = initial_outputs[:, rows]
    batch = _Batch(x[rows], objective.targets[:, rows], initial_outputs)
    state = run.state
    return _sum_losses(
        state.params, state.model_state, batch, training=training, apply_fn=run.apply_fn
    )


@functools.partial(jax.jit, static_argnames=("training", "apply_fn"))
def _sum_losses(
    params: Any,
    model_state: Any,
    batch: _Batch,
    *,
    training: TrainingConfig,
    apply_fn: ApplyFn,
) -> _Sums:
    def total(params: Any, model_state: Any, targets: Array, initial_outputs: Any) -> Array:
        outputs = apply_fn(params, model_state, batch.points)
        return jnp.sum(training.loss(_centred(outputs, initial_outputs), targets))

    total_and_gradient = jax.value_and_grad(total)
    of_networks = params, model_state, batch.targets, batch.initial_outputs
    if len(batch.targets) > 1:
        return _Sums(*jax.vmap(total_and_gradient)(*of_networks))
    return _as_group(_Sums(*total_and_gradient(*_only(of_networks))))


@functools.partial(jax.jit, static_argnames="training")
def _judge(
    state: TrainState,
    objective: Objective,
    total: _Sums,
    num_points: int | Array,
    *,
    training: TrainingConfig,
) -> TrainState:
    """The state with loss and gradient norm over all points, and the rules that are met."""

    def judge_one(state: TrainState, objective: Objective, total: _Sums) -> TrainState:
        loss = total.loss / num_points
        gradient = optax.tree.scale(1 / num_points, total.gradient)
        if objective.initial_params is not None:  # the gradient of penalty |theta - theta_0|^2
            moved = optax.tree.sub(state.params, objective.initial_params)
            gradient = optax.tree.add_scale(gradient, 2 * objective.penalty, moved)
        grad_norm = optax.tree.norm(gradient)
        stop = jnp.where(state.stop == RUNNING, _rule(loss, grad_norm, training), state.stop)
        return dataclasses.replace(state, loss=loss, grad_norm=grad_norm, stop=stop)

    return jax.vmap(judge_one, in_axes=(0, _BY_NETWORK, 0))(state, objective, total)


def _rule(loss: Array, grad_norm: Array, training: TrainingConfig) -> Array:
    """The first rule that a network meets, or :data:`RUNNING`."""
    rules = {
        Stop.DIVERGED: ~jnp.isfinite(loss),
        Stop.LOSS: loss <= _limit(training.until_loss),
        Stop.STATIONARY: grad_norm <= _limit(training.until_stationary),
    }
    return jnp.select(list(rules.values()), [int(stop) for stop in rules], RUNNING)


def _limit(until: float | None) -> float:
    """No finite number is below the limit of a rule that was not set."""
    return -math.inf if until is None else until
