"""The course of a training: a group of networks from its first step to its last."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from sdntk._arguments import require_values
from sdntk._pytrees import pytree
from sdntk._warnings import warn_renamed
from sdntk.training import steps
from sdntk.training.checks import check_shapes
from sdntk.training.ensemble import (
    Build,
    Ensemble,
    initialise,
    require_one_form,
    spread,
    to_all_devices,
)
from sdntk.training.state import RUNNING, Objective, Stop, TrainingConfig, TrainingRun, TrainState


@pytree
class TrainingResult:
    """S networks at the end of their training.

    Attributes:
        ensemble: the networks, an :class:`~sdntk.training.ensemble.Ensemble`.
        stop: why each ended, a :class:`~sdntk.training.state.Stop`. A network that diverged keeps
            its last finite weights.
        steps: how many steps each took.
        loss: mean loss over all points against the targets, without the penalty.
        grad_norm: the norm of the gradient of the whole objective over all points.
        validation_loss: mean loss on the validation points at every look, each ``check_every``
            steps; nan once a network has stopped. None without such points.
    """

    ensemble: Ensemble
    stop: Int[Array, " S"]
    steps: Int[Array, " S"]
    loss: Float[Array, " S"]
    grad_norm: Float[Array, " S"]
    validation_loss: Float[Array, "S looks"] | None = None

    @property
    def diverged(self) -> Bool[Array, " S"]:
        """Which networks diverged."""
        return self.stop == Stop.DIVERGED

    @property
    def stationarity(self) -> Float[Array, " S"]:
        """The old name of ``grad_norm``."""
        warn_renamed("TrainingResult.stationarity", "TrainingResult.grad_norm")
        return self.grad_norm


def init(
    build: Build,
    keys: Key[Array, " s"],
    x: Float[Array, "K ..."],
    targets: Float[Array, "s K Q"],
    training: TrainingConfig,
    penalty: Float[Array, ""],
    diverged: Bool[Array, " s"],
) -> TrainingRun:
    """A group of fresh networks before its first step, one network for each key.

    A network that ``diverged`` in an earlier round of its chain has no targets: it takes no step
    and has diverged in this round, too.
    """
    networks, data_keys = fresh_networks(build, keys, x, training)
    require_values("the weights that build makes", networks)
    x = to_all_devices(x, len(keys))
    outputs, loss = check_shapes(networks, x, targets, training.loss)
    targets = jnp.where(diverged[:, None, None], 0, targets).astype(outputs.dtype)

    needs_initial_params = training.centred or bool(penalty > 0)
    initial_params = networks.params if needs_initial_params else None
    initial_outputs = None
    if training.centred:
        uncentred = dataclasses.replace(networks, initial_params=None)
        initial_outputs = uncentred.outputs(x)

    permutation = None
    if training.batch_size is not None:
        permutation = jnp.tile(jnp.arange(len(x)), (len(keys), 1))
    state = TrainState(
        params=networks.params,
        model_state=networks.model_state,
        opt_state=steps.init_optimiser(networks.params, training=training),
        key=data_keys,
        permutation=permutation,
        step=jnp.zeros(len(keys), int),
        stop=jnp.where(diverged, int(Stop.DIVERGED), RUNNING).astype(int),
        loss=jnp.full(len(keys), jnp.nan, loss.dtype),
        grad_norm=jnp.full(len(keys), jnp.nan, outputs.dtype),
    )
    # Steps overwrite the state, and the initial weights are the same arrays: hence a copy.
    run = TrainingRun(
        steps.copy(state),
        Objective(targets, initial_params, initial_outputs, penalty),
        steps_taken=np.int64(0),
        apply_fn=networks.apply_fn,
    )
    run = spread_run(run)
    if training.has_stopping_rule:
        run = steps.apply_stopping_rules(run, x, training)
    return run


def as_others(run: TrainingRun, others: TrainingResult) -> TrainingRun:
    """The run of a group whose networks will be joined with these: one function gives the outputs
    of all, even where ``build`` makes an attribute, such as a lambda, anew for each network.

    Raises:
        ValueError: the networks of the two groups differ.
    """
    networks = others.ensemble
    numbers = [(networks.params, networks.model_state), (run.state.params, run.state.model_state)]
    require_one_form([jax.tree.map(lambda leaf: leaf[0], group) for group in numbers])
    return dataclasses.replace(run, apply_fn=networks.apply_fn)


def fresh_networks(
    build: Build, keys: Key[Array, " S"], x: Float[Array, "K ..."], training: TrainingConfig
) -> tuple[Ensemble, Key[Array, " S"]]:
    """Networks at their initial weights, and other keys, which shuffle and augment their points."""
    weight_keys, data_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    return initialise(build, weight_keys, x, centred=training.centred), data_keys


def spread_run(run: TrainingRun) -> TrainingRun:
    """The run with its networks distributed over all devices; also after it was on disk."""
    return dataclasses.replace(run, state=spread(run.state), objective=spread(run.objective))


def is_over(run: TrainingRun, training: TrainingConfig) -> bool:
    """Whether every network has stopped, or all steps are taken."""
    return bool(run.steps_taken >= training.steps or np.all(np.asarray(run.state.stop) != RUNNING))


def advance(
    run: TrainingRun, x: Float[Array, "K ..."], training: TrainingConfig, *, every: int
) -> TrainingRun:
    """Train up to the next multiple of ``every`` steps, or until the run is over.

    ``run`` is given up: its memory is used again.
    """
    until = min((int(run.steps_taken) // every + 1) * every, training.steps)
    while run.steps_taken < until and not is_over(run, training):
        run = _to_next_pause(run, x, training, until)
    return run


def _to_next_pause(
    run: TrainingRun, x: Float[Array, "K ..."], training: TrainingConfig, until: int
) -> TrainingRun:
    """Train up to the next check of the stopping rules or ``until``, whichever comes first."""
    taken = int(run.steps_taken)
    count = until - taken
    if training.has_stopping_rule:
        count = min(count, training.check_every - taken % training.check_every)
    state = steps.take_steps(
        run.state, run.objective, x, taken, count, training=training, apply_fn=run.apply_fn
    )
    taken += count
    run = dataclasses.replace(run, state=state, steps_taken=np.int64(taken))
    is_due = taken % training.check_every == 0 or taken == training.steps
    if training.has_stopping_rule and is_due:
        run = steps.apply_stopping_rules(run, x, training)
    return run


def finish(run: TrainingRun, x: Float[Array, "K ..."], training: TrainingConfig) -> TrainingResult:
    """The networks as they are, with loss and gradient norm over all points."""
    state = steps.apply_stopping_rules(run, x, training).state
    stop = jnp.where(state.stop == RUNNING, int(Stop.STEPS), state.stop)
    return TrainingResult(as_ensemble(run, training), stop, state.step, state.loss, state.grad_norm)


def as_ensemble(run: TrainingRun, training: TrainingConfig) -> Ensemble:
    """The networks as they are."""
    initial_params = run.objective.initial_params if training.centred else None
    return Ensemble(run.state.params, run.state.model_state, initial_params, run.apply_fn)
