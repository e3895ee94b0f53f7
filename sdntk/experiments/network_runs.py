"""What all experiments with networks share: how a chain runs, and the training of one group of
networks, measured and resumable at any moment.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdntk._arguments import as_count, as_unit_interval
from sdntk._progress import Bar
from sdntk._pytrees import pytree
from sdntk.experiments.checkpoints import Checkpoints
from sdntk.experiments.data import Split
from sdntk.training.adapters import Build
from sdntk.training.course import advance, as_ensemble, init, is_over, spread_run
from sdntk.training.ensemble import Ensemble, fastest_size, to_all_devices
from sdntk.training.rounds import Targets, require_targets
from sdntk.training.state import TrainingConfig, TrainingRun

#: Settings of a training that are functions and cannot be compared.
_FUNCTIONS = ("loss", "optimiser", "augment")


@dataclasses.dataclass(frozen=True)
class NetworkChainSpec:
    """How a chain of networks runs: see :func:`sdntk.distill_networks`.

    Attributes:
        training: how a round is trained.
        rounds: T.
        targets: "soft" or "hard".
        ground_truth_weight: alpha, between 0 and 1.
        penalty: the weight of |theta - theta_0|^2 in every round.
        measure_every: steps between measurements.
    """

    training: TrainingConfig
    rounds: int
    targets: Targets = "soft"
    ground_truth_weight: float = 0.0
    penalty: float = 0.0
    measure_every: int = 100

    def __post_init__(self) -> None:
        for name in ("rounds", "measure_every"):
            as_count(name, getattr(self, name), at_least=1)
        as_unit_interval(
            "ground_truth_weight", self.ground_truth_weight, dtype=jnp.result_type(float)
        )
        require_targets(self.targets, num_outputs=2)

    def folder_name(self, seeds: Sequence[int]) -> str:
        """The name of the folder for a group's states: a hash of the seeds and of all settings that
        can be compared, but for the number of rounds.
        """
        names = [field.name for field in dataclasses.fields(TrainingConfig)]
        settings = [
            [getattr(self.training, name) for name in names if name not in _FUNCTIONS],
            self.targets,
            self.measure_every,
            list(seeds),
        ]
        numbers = [float(self.ground_truth_weight), float(self.penalty)]
        return hashlib.sha256(repr([settings, numbers]).encode()).hexdigest()[:16]


class Measurements(NamedTuple):
    """Accuracies and mean losses of each of s networks.

    Attributes:
        train_accuracy, test_accuracy: against the original labels.
        noisy_train_accuracy: against the noisy labels, which round 0 learns.
        held_out_accuracy: against the held-out images' noisy labels; nan where none are held out.
        train_loss, test_loss: against their one-hot vectors.
        given_loss: against what round 0 learns, the noisy labels.
        target_loss: against the round's own targets.
    """

    train_accuracy: Float[Array, " s"]
    noisy_train_accuracy: Float[Array, " s"]
    held_out_accuracy: Float[Array, " s"]
    test_accuracy: Float[Array, " s"]
    train_loss: Float[Array, " s"]
    test_loss: Float[Array, " s"]
    given_loss: Float[Array, " s"]
    target_loss: Float[Array, " s"]


#: What an experiment keeps of the measurements of a round: a pytree of arrays.
_Observed = TypeVar("_Observed")


@pytree
class RoundState(Generic[_Observed]):
    """The state of a group of networks within one round. Arrays only, so it can be checkpointed and
    resumed.
    """

    round: np.integer | np.ndarray  # t
    training_run: TrainingRun
    observed: _Observed


@dataclasses.dataclass(frozen=True)
class Group:
    """Networks that are trained together, a seed each."""

    build: Build
    split: Split[Array]
    spec: NetworkChainSpec
    seeds: list[int]
    points: Float[Array, "K ..."]  # the training points, on every device
    checkpoints: Checkpoints
    bar: Bar

    def fresh_run(
        self, fold: int, targets: Float[Array, "s K Q"], diverged: Bool[Array, " s"]
    ) -> TrainingRun:
        """Fresh networks with the keys ``fold_in(key(seed), fold)``."""
        keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), fold) for seed in self.seeds])
        penalty = jnp.asarray(self.spec.penalty, self.points.dtype)
        return init(
            self.build,
            keys,
            self.split.x_train,
            targets,
            self.spec.training,
            penalty,
            diverged,
        )

    def first_run(self, fold: int) -> TrainingRun:
        """Fresh networks that learn the labels of round 0."""
        y, count = self.split.y, len(self.seeds)
        return self.fresh_run(fold, jnp.broadcast_to(y, (count, *y.shape)), jnp.zeros(count, bool))

    def resume(self, first: RoundState[_Observed]) -> RoundState[_Observed]:
        """The last state on disk, spread over the devices as it was; ``first`` if there is none."""
        if self.checkpoints.last is None:
            return first
        state = self.checkpoints.restore(first)
        return dataclasses.replace(state, training_run=spread_run(state.training_run))

    def finish_round(
        self,
        state: RoundState[_Observed],
        observe: Callable[[_Observed, Measurements, Int[Array, " s"]], _Observed],
        *,
        is_done: Callable[[_Observed], bool] = lambda _: False,
    ) -> RoundState[_Observed]:
        """Train to the end of the round, with states on disk as it goes.

        Args:
            state: where the round is.
            observe: what to keep, given what was kept so far, the measurements, and each network's
                number of steps.
            is_done: whether what was observed is enough, and the rest of the round not needed.
        """
        training = self.spec.training
        while not (is_over(state.training_run, training) or is_done(state.observed)):
            before = int(state.training_run.steps_taken)
            run = advance(state.training_run, self.points, training, every=self.spec.measure_every)
            observed = observe(state.observed, self.measure(run), run.state.step)
            state = RoundState(state.round, run, observed)
            self.checkpoints.save_if_due(state)
            note = f"round {int(state.round)}, loss {np.mean(run.state.loss):.4g}"
            self.bar.advance(int(run.steps_taken) - before, note)
        self.bar.advance(training.steps - int(state.training_run.steps_taken))
        return state

    def measure(self, run: TrainingRun) -> Measurements:
        """What the networks are now."""
        training = self.spec.training
        return measure(as_ensemble(run, training), run.objective.targets, self.split, training)


def measure(
    ensemble: Ensemble,
    targets: Float[Array, "s K Q"],
    split: Split[Array],
    training: TrainingConfig,
) -> Measurements:
    """Accuracies and losses of each network, ``targets`` being what it is trained on."""
    outputs, test_outputs = ensemble.outputs(split.x_train), ensemble.outputs(split.x_test)
    if len(split.x_held_out):
        held_out_outputs = ensemble.outputs(split.x_held_out)

    def accuracy(outputs: Float[Array, "s n Q"], labels: Int[Array, " n"]) -> Float[Array, " s"]:
        return jnp.mean(jnp.argmax(outputs, -1) == labels[None], -1)

    def loss(outputs: Float[Array, "s n Q"], rows: Float[Array, "*s n Q"]) -> Float[Array, " s"]:
        rows = jnp.broadcast_to(rows.astype(outputs.dtype), outputs.shape)
        return jnp.mean(training.loss(outputs, rows), -1)

    def one_hot(labels: Int[Array, " n"]) -> Float[Array, "n Q"]:
        return jax.nn.one_hot(labels, split.num_classes, dtype=outputs.dtype)

    unknown = jnp.full(len(ensemble), jnp.nan)
    held_out = (
        accuracy(held_out_outputs, split.held_out_labels) if len(split.x_held_out) else unknown
    )
    measured = Measurements(
        train_accuracy=accuracy(outputs, split.clean_labels),
        noisy_train_accuracy=accuracy(outputs, split.noisy_labels),
        held_out_accuracy=held_out,
        test_accuracy=accuracy(test_outputs, split.test_labels),
        train_loss=loss(outputs, one_hot(split.clean_labels)),
        test_loss=loss(test_outputs, one_hot(split.test_labels)),
        given_loss=loss(outputs, split.y),
        target_loss=loss(outputs, targets),
    )
    return jax.tree.map(lambda values: values.astype(split.x_train.dtype), measured)


def unfinished_groups(
    build: Build,
    split: Split[Array],
    spec: NetworkChainSpec,
    folder: Path,
    seeds: Sequence[int],
    *,
    finished: Collection[int],
    at_once: int | None,
    rounds: int,
    description: str,
    suffix: str = "",
) -> Iterator[Group]:
    """The groups of seeds that are not finished, one after the other, under one progress bar.

    A group's states are deleted once the caller asks for the next group. Those of groups that were
    finished before go, too: a run may have been killed between the last row of a group and the end
    of its states.

    Args:
        build: a fresh network.
        split: the data.
        spec: how chains run.
        folder: of the states, in one folder for each group.
        seeds: all seeds.
        finished: those of them that need no training.
        at_once: the size of a group; what is fastest on this device when None.
        rounds: rounds of each group, for the progress bar.
        description: for the progress bar.
        suffix: of the names of the groups' folders.
    """
    size = fastest_size(len(seeds)) if at_once is None else as_count("at_once", at_once, at_least=1)

    def states(group: list[int]) -> Path:
        return folder / (spec.folder_name(group) + suffix)

    for group in _in_groups([seed for seed in seeds if seed in finished], size):
        shutil.rmtree(states(group), ignore_errors=True)

    groups = _in_groups([seed for seed in seeds if seed not in finished], size)
    with Bar(description, total=len(groups) * rounds * spec.training.steps) as bar:
        for group in groups:
            checkpoints = Checkpoints(states(group))
            points = to_all_devices(split.x_train, len(group))
            yield Group(build, split, spec, group, points, checkpoints, bar)
            checkpoints.close(delete=True)


def _in_groups(seeds: list[int], size: int) -> list[list[int]]:
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]
