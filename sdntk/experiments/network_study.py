"""What rounds do to a network, on anyone's data: chains at several weight decays, and beside them
what the same trainings would buy elsewhere.

Does a round beat (b) one network whose steps and weight decay were chosen, or (c) the mean of as
many networks as the chain trained? All choices are made on held-out images with noisy labels, and
judged on test images. Beside them the chain of the network's own tangent kernel.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from sdntk import kernels, networks
from sdntk._arguments import as_count, as_number, as_unit_interval
from sdntk.architectures import fully_connected
from sdntk.datasets import Dataset
from sdntk.datasets.labels import NoiseKind, flips_of
from sdntk.experiments import kernel_classification, network_classification, rivals
from sdntk.experiments.data import Split, most_balanced
from sdntk.experiments.network_runs import NetworkChainSpec
from sdntk.experiments.paired import compare_chains
from sdntk.experiments.paper_figures import NETWORKS, optimiser
from sdntk.experiments.records import Records
from sdntk.training import losses
from sdntk.training.adapters import Build
from sdntk.training.rounds import Targets, require_targets
from sdntk.training.state import TrainingConfig

#: The squared loss of the softmax, summed over classes, or cross-entropy.
LOSSES = {"squared": losses.brier_score, "cross-entropy": losses.soft_cross_entropy}
#: Weight decays that single networks are chosen from, beside the chains' own.
SINGLE_DECAYS = (1e-4, 1e-3, 1e-2, 3e-2)
#: A training is looked at so often: single networks may stop at each of these steps.
LOOKS = 10
#: Of the test images, where no number is given.
MOST_TEST_IMAGES = 2000
#: Networks that are made for the points they get; others take images in three colours.
_OF_ANY_SIZE = ("mlp", "strided")
#: Pixels of images that convolutional networks take.
_SIDE = 32


@dataclasses.dataclass(frozen=True)
class NetworkStudy:
    """All that a study's results depend on, but the data set's files.

    Attributes:
        dataset: its name.
        network: "mlp", "strided" (:class:`sdntk.networks.StridedCNN`), or of
            :data:`sdntk.experiments.paper_figures.NETWORKS`.
        widths: of the mlp's hidden layers.
        loss: "squared", of the softmax and summed over classes, or "cross-entropy".
        targets: "soft" or "hard".
        rounds: T.
        seeds: repetitions, each with images, wrong labels and weights of its own.
        steps: of a round.
        batch_size: images in a step.
        learning_rate: of Adam.
        weight_decays: a chain for each; added to the gradient, as the gradient of a penalty is.
        train, held_out: images, balanced by class.
        test: test images, the first ones.
        noise_rate, noise_kind, flips: of training and held-out labels, see
            :func:`sdntk.datasets.label_noise`.
        tolerances: of the kernel's chains, as fractions of the labels' mean square.
    """

    dataset: str
    network: str = "mlp"
    widths: tuple[int, ...] = (256, 256)
    loss: str = "squared"
    targets: Targets = "soft"
    rounds: int = 12
    seeds: int = 6
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decays: tuple[float, ...] = (1e-3, 1e-2)
    train: int = 1000
    held_out: int = 300
    test: int = 360
    noise_rate: float = 0.4
    noise_kind: NoiseKind = "symmetric"
    flips: Mapping[int, int] | None = None
    tolerances: tuple[float, ...] = (0.01, 0.05, 0.2)

    def __post_init__(self) -> None:
        known = (*_OF_ANY_SIZE, *NETWORKS)
        if self.network not in known:
            raise ValueError(f"network must be one of {', '.join(known)}; got {self.network!r}.")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}.")
        require_targets(self.targets, num_outputs=2)
        for name in ("rounds", "seeds", "steps", "batch_size", "train", "held_out", "test"):
            as_count(name, getattr(self, name), at_least=1)
        as_unit_interval("noise_rate", self.noise_rate, dtype=jnp.result_type(float))
        if not self.weight_decays or len(set(self.weight_decays)) < len(self.weight_decays):
            raise ValueError("weight_decay must be given once or several times, never twice alike.")
        for decay in self.weight_decays:
            as_number("weight_decay", decay, lambda x: x >= 0, "must be at least 0")
        as_number("learning_rate", self.learning_rate, lambda x: x >= 0, "must be at least 0")
        if self.batch_size > self.train:
            raise ValueError(
                f"batch_size must be at most train, {self.train} images; got {self.batch_size}."
            )

    def configuration(self, data: Dataset) -> dict[str, Any]:
        """The settings as records name them."""
        return {
            **dataclasses.asdict(self),
            "num_classes": data.num_classes,
            "single_decays": self.single_decays,
            "looks": LOOKS,
        }

    @property
    def single_decays(self) -> tuple[float, ...]:
        """What the weight decay of a single network is chosen from."""
        return tuple(sorted({*SINGLE_DECAYS, *self.weight_decays}))

    @property
    def number_of_units(self) -> int:
        """How often :func:`run_networks` yields; :func:`run_kernel` yields once a seed."""
        return self.seeds * (len(self.weight_decays) + len(self.single_decays) + 1)

    @property
    def has_kernel(self) -> bool:
        """Whether the chains of its own tangent kernel belong to it."""
        return self.network == "mlp"

    @property
    def look_every(self) -> int:
        """Steps from one look at a single network to the next."""
        return math.ceil(self.steps / LOOKS)

    def spec(self, weight_decay: float, *, look_every: int | None = None) -> NetworkChainSpec:
        """How a chain with this weight decay runs; it is looked at once a round."""
        training = TrainingConfig(
            loss=LOSSES[self.loss],
            optimiser=optimiser(self.learning_rate, weight_decay),
            steps=self.steps,
            batch_size=self.batch_size,
        )
        looks = self.steps if look_every is None else look_every
        return NetworkChainSpec(training, self.rounds, self.targets, measure_every=looks)

    @property
    def for_kernel(self) -> kernel_classification.Experiment:
        """The kernel's chains on the same images and labels."""
        return kernel_classification.Experiment(
            train=self.train,
            held_out=self.held_out,
            test=self.test,
            tolerances=self.tolerances,
            rounds=self.rounds,
            noise_rate=self.noise_rate,
            noise_kind=self.noise_kind,
            flips=self.flips,
            seeds=tuple(range(self.seeds)),
        )


def study_of(data: Dataset, **given: Any) -> NetworkStudy:
    """The study of a data set, with fewer images than by default where it has fewer, and with its
    usual asymmetric noise.
    """
    most = most_balanced(data)
    if "train" not in given and "held_out" not in given:
        given["held_out"] = min(NetworkStudy.held_out, most // 4)
        given["train"] = min(NetworkStudy.train, most - given["held_out"])
    given.setdefault("test", min(len(data.test_labels), MOST_TEST_IMAGES))
    kind = given.get("noise_kind", NetworkStudy.noise_kind)
    given.setdefault("flips", flips_of(data.class_names, kind))
    train = given.get("train", NetworkStudy.train)
    given.setdefault("batch_size", min(NetworkStudy.batch_size, train))
    return NetworkStudy(data.name, **given)


def run(data: Dataset, study: NetworkStudy, records: Records) -> Iterator[str]:
    """Run what the records lack, a chain or its like at a time, and yield what was done.

    The records then hold the tables of :func:`run_networks`, and in the folder ``kernel`` those of
    :mod:`sdntk.experiments.kernel_classification`, where the network is an mlp.
    """
    yield from run_networks(data, study, records)
    if study.has_kernel:
        yield from run_kernel(data, study, records)


def run_networks(data: Dataset, study: NetworkStudy, records: Records) -> Iterator[str]:
    """The chains of networks and their rivals.

    The records then hold these tables.

    * ``rounds``: see :func:`sdntk.experiments.network_classification.run`, for each weight decay;
    * ``single_networks``: a row for each weight decay, seed and look;
    * ``ensembles``: a row for each seed and number of networks, at the first weight decay;
    * ``comparison``: see :func:`sdntk.experiments.paired.compare_chains`.
    """
    build = builder(study, data)
    splits = functools.cache(functools.partial(split_of, data, study))
    for decay, seed in itertools.product(study.weight_decays, range(study.seeds)):
        chains = network_classification.run(
            build,
            splits(seed),
            study.spec(decay),
            records,
            seeds=[seed],
            setting={"weight_decay": decay},
        )
        for _ in chains:
            pass
        yield f"chain, weight decay {decay:g}"
    for decay, seed in itertools.product(study.single_decays, range(study.seeds)):
        spec = study.spec(decay, look_every=study.look_every)
        rivals.train_single(build, splits(seed), spec, records, seed=seed, weight_decay=decay)
        yield f"single network, weight decay {decay:g}"
    first = study.weight_decays[0]
    for seed in range(study.seeds):
        spec = study.spec(first)
        rivals.train_ensemble(build, splits(seed), spec, records, seed=seed, weight_decay=first)
        yield f"{study.rounds} networks, weight decay {first:g}"
    records.put("comparison", compare_chains(records))


def run_kernel(data: Dataset, study: NetworkStudy, records: Records) -> Iterator[str]:
    """The chains of the tangent kernel of the fully connected network with as many hidden layers as
    the study's mlp, in the records' folder ``kernel``.
    """
    experiment, depth = study.for_kernel, len(study.widths)
    own = Records(
        records.folder / "kernel",
        {"dataset": study.dataset, "kernel": f"NTK, depth {depth}", **experiment.configuration()},
    )
    kernel = kernels.ntk(fully_connected(depth))
    for _ in kernel_classification.run(data, kernel, experiment, own):
        yield f"kernel, depth {depth}"


def split_of(data: Dataset, study: NetworkStudy, seed: int) -> Split[Array]:
    """A seed's images and labels, in float32 and on the device; the kernel has the same."""
    split = kernel_classification.split_of(data, study.for_kernel, seed)
    points: dict[str, Any] = {
        name: as_network_input(getattr(split, name), study.network)
        for name in ("x_train", "x_held_out", "x_test")
    }
    return dataclasses.replace(split, **points).on_device()


def as_network_input(images: np.ndarray, network: str) -> np.ndarray:
    """Images in float32; for deep networks in three colours and at least 32 x 32: grey ones
    repeated, small ones enlarged by a whole factor, the rest zeros around them.
    """
    images = images.astype(np.float32)
    if network in _OF_ANY_SIZE:
        return images
    height, width, channels = images.shape[1:]
    if height == 1 or channels not in (1, 3):
        raise ValueError(
            f"network must be mlp or strided for points of shape {images.shape[1:]}; {network} "
            "takes images of one or three colours."
        )
    if channels == 1:
        images = np.repeat(images, 3, axis=-1)
    factor = max(1, _SIDE // max(height, width))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    missing = [max(0, _SIDE - side) for side in images.shape[1:3]]
    margins = [(side // 2, side - side // 2) for side in missing]
    return np.pad(images, ((0, 0), *margins, (0, 0)))


def builder(study: NetworkStudy, data: Dataset) -> Build:
    """Makes a fresh network of the study."""
    return _builder(study.network, study.widths, data.num_classes, data.train_images.shape[1:])


@functools.cache  # one function for one network: code is compiled for each function
def _builder(
    network: str, widths: tuple[int, ...], num_classes: int, shape: tuple[int, ...]
) -> Build:
    def build(rngs: nnx.Rngs) -> nnx.Module:
        if network == "mlp":
            return networks.MLP(math.prod(shape), num_classes, widths=widths, rngs=rngs)
        if network == "strided":
            return networks.StridedCNN(shape, num_classes, rngs=rngs)
        return NETWORKS[network](num_classes, rngs=rngs)

    return build
