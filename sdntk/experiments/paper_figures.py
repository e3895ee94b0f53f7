"""The paper's experiments with deep networks: every setting of each figure, the data drawn, the
chain run.

Settings that the paper's copy lacks (learning rates, weight decay) are those of theory.md, section
6.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from sdntk import networks
from sdntk._arguments import as_count
from sdntk.datasets import Dataset, balanced_subset, label_noise, standardise
from sdntk.experiments import early_stopping, network_classification
from sdntk.experiments.data import Classification
from sdntk.experiments.network_runs import Chain
from sdntk.experiments.records import Records
from sdntk.training import losses
from sdntk.training.augmentation import crop_and_flip
from sdntk.training.rounds import require_targets
from sdntk.training.state import TrainingConfig

NETWORKS = {
    "resnet18": networks.resnet18,
    "resnet50": networks.resnet50,
    "vgg16": networks.vgg16,
    "small": networks.small_cnn,
}
#: Hard targets are one-hot vectors to them.
LOSSES = {"squared": losses.squared_error_of_softmax, "cross-entropy": losses.soft_cross_entropy}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that an experiment's results depend on, but the data set's files.

    Attributes:
        network: of :data:`NETWORKS`.
        dataset: its name.
        loss: "squared", of the softmax, or "cross-entropy".
        targets: "soft" or "hard".
        rounds: T. seeds: chains, with the seeds 0, 1, ...
        steps: of a round. batch_size: images in a step.
        learning_rate, weight_decay: of Adam; the decay is added to the gradient, as the gradient of
            a penalty is.
        augment: whether images are cropped and flipped.
        early_stopping: whether fresh networks are stopped at the loss of every round, too.
        bfloat16: whether convolutions compute in it.
        train, test: images, balanced by class; all when None.
        label_noise: share of wrong training labels.
        measure_every: steps between measurements.
        data_seed: of subset and label noise, the same for all chains.
    """

    network: str
    dataset: str
    loss: str
    targets: str = "soft"
    rounds: Any = 12
    seeds: Any = 10
    steps: Any = 64_000
    batch_size: Any = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    augment: bool = False
    early_stopping: bool = False
    bfloat16: bool = False
    train: Any = None
    test: Any = None
    label_noise: float = 0.0
    measure_every: Any = 1000
    data_seed: Any = 0

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

    @property
    def training(self) -> TrainingConfig:
        """How a round is trained."""
        return TrainingConfig(
            loss=LOSSES[self.loss],
            optimiser=_optimiser(self.learning_rate, self.weight_decay),
            steps=self.steps,
            batch_size=self.batch_size,
            augment=crop_and_flip if self.augment else None,
        )


# One for equal settings: what is compiled for one experiment serves the next.
@functools.cache
def _optimiser(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return optax.chain(*decay, optax.adam(learning_rate))


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
    agreement = {
        e: sum(given.get(name) == getattr(e, name) for name in ("network", "dataset"))
        for e in FIGURES[figure]
    }
    chosen = [e for e, count in agreement.items() if count == max(agreement.values())]
    changed = [
        dataclasses.replace(e, **_OF_DATASET.get(given.get("dataset", ""), {}) | given)
        for e in chosen
    ]
    return list({(e.network, e.dataset): e for e in reversed(changed)}.values())[::-1]


def prepare(data: Dataset, experiment: Experiment) -> Classification:
    """The images that an experiment asks for, standardised, in float32, with noisy labels to learn
    and the original ones.

    Raises:
        ValueError: more images than there are, or images without three colours.
    """
    if data.train_images.ndim != 4 or data.train_images.shape[-1] != 3:
        raise ValueError(
            "dataset must hold images of shape (height, width, 3) for these networks; those of "
            f"{data.name} have shape "
            f"{data.train_images.shape[1:]}."
        )
    choice, noise = jax.random.split(jax.random.key(experiment.data_seed))
    train = _some(data.train_labels, experiment.train, choice)
    test = _some(data.test_labels, experiment.test, jax.random.fold_in(choice, 1))
    clean = data.train_labels[train]
    noisy = label_noise(clean, experiment.label_noise, noise, data.num_classes)
    x, x_test = standardise(data.train_images[train], data.test_images[test], dtype=jnp.float32)
    y = jax.nn.one_hot(noisy, data.num_classes, dtype=jnp.float32)
    labels = jnp.asarray(clean), jnp.asarray(data.test_labels[test])
    return Classification(jnp.asarray(x), y, labels[0], jnp.asarray(x_test), labels[1])


def _some(labels: Any, size: Any, key: Any) -> Any:
    return slice(None) if size is None else balanced_subset(labels, size, key)


def run(
    data: Dataset, experiment: Experiment, records: Records, *, at_once: int | None = None
) -> None:
    """Run the chains, and the networks stopped early, that the records lack."""
    prepared = prepare(data, experiment)
    chain = Chain(
        experiment.training,
        experiment.rounds,
        experiment.targets,
        measure_every=experiment.measure_every,
    )
    dtype = jnp.bfloat16 if experiment.bfloat16 else None
    build = _builder(experiment.network, data.num_classes, dtype)
    seeds = range(experiment.seeds)
    for _ in network_classification.run(
        build, prepared, chain, records, seeds=seeds, at_once=at_once
    ):
        pass
    if experiment.early_stopping:
        early_stopping.run(build, prepared, chain, records, seeds=seeds, at_once=at_once)


@functools.cache  # one function for one network: code is compiled for each function
def _builder(network: str, num_classes: int, dtype: Any) -> Any:
    def build(rngs: nnx.Rngs) -> nnx.Module:
        return NETWORKS[network](num_classes, rngs=rngs, dtype=dtype)

    return build
