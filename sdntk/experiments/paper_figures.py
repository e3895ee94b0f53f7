"""The paper's experiments with deep networks: every setting of each figure, its data, and its
chains.

Settings that the paper's copy lacks (learning rates, weight decay) are those of theory.md, section
6.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import nnx
from jaxtyping import Array, Int

from sdntk import networks
from sdntk._arguments import as_count
from sdntk.datasets import Dataset, balanced_subset
from sdntk.experiments import early_stopping, kernel_tables, network_classification
from sdntk.experiments.data import Split, sample_split
from sdntk.experiments.network_runs import NetworkChainSpec
from sdntk.experiments.records import Records
from sdntk.training import losses
from sdntk.training.adapters import Build
from sdntk.training.augmentation import crop_and_flip
from sdntk.training.rounds import Targets, require_targets
from sdntk.training.state import TrainingConfig

NETWORKS = {
    "resnet18": networks.resnet18,
    "resnet50": networks.resnet50,
    "vgg16": networks.vgg16,
    "small": networks.small_cnn,
}
#: Hard targets are one-hot vectors to them.
LOSSES = {"squared": losses.squared_error_of_softmax, "cross-entropy": losses.soft_cross_entropy}
#: What settings are called in the configuration of records.
_NAMES_IN_RECORDS = {"noise_rate": "label_noise"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that an experiment's results depend on, but the data set's files.

    Attributes:
        network: of :data:`NETWORKS`.
        dataset: its name.
        loss: "squared", of the softmax, or "cross-entropy".
        targets: "soft" or "hard".
        rounds: T.
        seeds: chains, with the seeds 0, 1, ...
        steps: of a round.
        batch_size: images in a step.
        learning_rate, weight_decay: of Adam; the decay is added to the gradient, as the gradient of
            a penalty is.
        augment: whether images are cropped and flipped.
        early_stopping: whether fresh networks are stopped at the loss of every round, too.
        bfloat16: whether convolutions compute in it.
        train, test: images, balanced by class; all when None.
        noise_rate: share of wrong training labels.
        measure_every: steps between measurements.
        data_seed: of subset and label noise, the same for all chains.
    """

    network: str
    dataset: str
    loss: Literal["squared", "cross-entropy"]
    targets: Targets = "soft"
    rounds: int = 12
    seeds: int = 10
    steps: int = 64_000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    augment: bool = False
    early_stopping: bool = False
    bfloat16: bool = False
    train: int | None = None
    test: int | None = None
    noise_rate: float = 0.0
    measure_every: int = 1000
    data_seed: int = 0

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}; got {self.network!r}.")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}.")
        require_targets(self.targets, num_outputs=2)
        for name in ("rounds", "seeds", "steps", "batch_size", "measure_every"):
            as_count(name, getattr(self, name), at_least=1)
        for name in ("learning_rate", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}.")

    def configuration(self) -> dict[str, Any]:
        """The settings as records name them; the names in files do not change."""
        settings = dataclasses.asdict(self)
        return {_NAMES_IN_RECORDS.get(name, name): value for name, value in settings.items()}

    @property
    def training(self) -> TrainingConfig:
        """How a round is trained."""
        return TrainingConfig(
            loss=LOSSES[self.loss],
            optimiser=optimiser(self.learning_rate, self.weight_decay),
            steps=self.steps,
            batch_size=self.batch_size,
            augment=crop_and_flip if self.augment else None,
        )


# One for equal settings: what is compiled for one experiment serves the next.
@functools.cache
@functools.cache  # one for equal settings: code is compiled for each
def optimiser(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """Adam, the weight decay added to the gradient, as the gradient of a penalty is."""
    adam = optax.adam(learning_rate)
    if not weight_decay:
        return optax.chain(adam)
    return optax.chain(optax.add_decayed_weights(weight_decay), adam)


#: What the paper's trainings take from the data set.
_OF_DATASET: dict[str, dict[str, Any]] = {
    "cifar10": {"batch_size": 16, "learning_rate": 1e-3, "weight_decay": 1e-4},
    "cifar100": {"batch_size": 64, "learning_rate": 1e-4, "weight_decay": 5e-5},
}
_CIFAR10, _CIFAR100 = (
    Experiment("resnet50", name, "squared", **settings) for name, settings in _OF_DATASET.items()
)
#: The experiments that each figure of Mobahi et al. 2020 shows.
FIGURES: dict[int, tuple[Experiment, ...]] = {
    4: (_CIFAR10,),
    5: (dataclasses.replace(_CIFAR10, loss="cross-entropy"),),
    6: (
        dataclasses.replace(_CIFAR10, early_stopping=True),
        dataclasses.replace(_CIFAR100, network="vgg16"),
    ),
    7: (_CIFAR10,),
    8: (_CIFAR100,),
    9: (dataclasses.replace(_CIFAR10, loss="cross-entropy", targets="hard"),),
    10: (dataclasses.replace(_CIFAR100, loss="cross-entropy", targets="hard"),),
}


def experiments(figure: int, **given: Any) -> list[Experiment]:
    """The experiments of a figure, with these settings in place of its own.

    Another data set brings batch size, learning rate and weight decay with it, where they are not
    given. Figure 6 shows two networks on two data sets: given one of these, it is that half; and
    where settings make both halves one, the first.

    Raises:
        ValueError: no such figure, or settings that no experiment has.

    Example:
        >>> [(e.network, e.dataset) for e in experiments(6)]
        [('resnet50', 'cifar10'), ('vgg16', 'cifar100')]
        >>> chosen = experiments(6, dataset="cifar100", rounds=4)
        >>> [(e.network, e.batch_size, e.rounds) for e in chosen]
        [('vgg16', 64, 4)]
    """
    if figure not in FIGURES:
        raise ValueError(f"figure must be from 4 to 10; got {figure}.")
    changes = _OF_DATASET.get(given.get("dataset", ""), {}) | given
    most = max(_agreement(preset, given) for preset in FIGURES[figure])
    chosen: list[Experiment] = []
    for preset in FIGURES[figure]:
        experiment = dataclasses.replace(preset, **changes)
        is_new = all(_names(experiment) != _names(other) for other in chosen)
        if _agreement(preset, given) == most and is_new:
            chosen.append(experiment)
    return chosen


def _agreement(preset: Experiment, given: dict[str, Any]) -> int:
    """How many of network and data set are given as the preset has them."""
    return sum(given.get(name) == getattr(preset, name) for name in ("network", "dataset"))


def _names(experiment: Experiment) -> tuple[str, str]:
    return experiment.network, experiment.dataset


def prepare(data: Dataset, experiment: Experiment) -> Split[Array]:
    """The images that an experiment asks for, standardised, in float32 and on the device.

    Raises:
        ValueError: more images than there are, or images without three colours.
    """
    if data.train_images.ndim != 4 or data.train_images.shape[-1] != 3:
        raise ValueError(
            "dataset must hold images of shape (height, width, 3) for these networks; those of "
            f"{data.name} have shape {data.train_images.shape[1:]}."
        )
    subset_key, noise_key = jax.random.split(jax.random.key(experiment.data_seed))
    test: Int[np.ndarray, " n"] | slice = slice(None)
    if experiment.test is not None:
        key = jax.random.fold_in(subset_key, 1)
        test = balanced_subset(data.test_labels, experiment.test, key)
    split = sample_split(
        data,
        subset_key,
        noise_key,
        train=experiment.train,
        test=test,
        noise_rate=experiment.noise_rate,
        dtype=jnp.float32,
    )
    return split.on_device()


def run(
    data: Dataset, experiment: Experiment, records: Records, *, at_once: int | None = None
) -> None:
    """Run the chains, and the networks stopped early, that the records lack."""
    split = prepare(data, experiment)
    spec = NetworkChainSpec(
        experiment.training,
        experiment.rounds,
        experiment.targets,
        measure_every=experiment.measure_every,
    )
    build = _builder(experiment.network, data.num_classes, experiment.bfloat16)
    seeds = range(experiment.seeds)
    for _ in network_classification.run(build, split, spec, records, seeds=seeds, at_once=at_once):
        pass
    if experiment.early_stopping:
        early_stopping.run(build, split, spec, records, seeds=seeds, at_once=at_once)


@functools.cache  # one function for one network: code is compiled for each function
def _builder(network: str, num_classes: int, bfloat16: bool) -> Build:
    dtype = jnp.bfloat16 if bfloat16 else None

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return NETWORKS[network](num_classes, rngs=rngs, dtype=dtype)

    return build


def kernel_rounds(folder: Path, experiment: Experiment) -> pd.DataFrame | None:
    """The table ``rounds`` that ``sdntk ntk`` left in a folder; None if its data set or label noise
    is another than the experiment's.

    Raises:
        ValueError: the folder holds no records, or others.
    """
    records = Records.open(folder)
    if "kernel" not in records.configuration:
        raise ValueError(
            f"kernel must be a folder that sdntk ntk wrote; {folder} holds other records."
        )
    rounds = records.read("rounds", kernel_tables.columns()["rounds"])
    if rounds.empty:
        raise ValueError(
            f"kernel must be a folder in which sdntk ntk has ended; {folder} holds no rounds."
        )
    expected: dict[str, Any] = {
        "dataset": experiment.dataset,
        "label_noise": experiment.noise_rate,
    }
    if experiment.noise_rate:
        expected["noise"] = "symmetric"
    is_same = all(records.configuration.get(name) == value for name, value in expected.items())
    return rounds if is_same else None
