"""The options of the commands: a dataclass for each, a field for each option, with what it may be.

Only light modules are imported, so that ``--help`` comes at once.
"""

import dataclasses
import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sdntk.architectures import ArchitectureName
from sdntk.datasets.named import DatasetName


class Noise(StrEnum):
    """Kinds of label noise."""

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"


class Method(StrEnum):
    """How the spectrum is computed."""

    AUTO = "auto"
    DENSE = "dense"
    KRYLOV = "krylov"


class Outputs(StrEnum):
    """Whether each class has a multiplier of its own."""

    SEPARATE = "separate"
    JOINT = "joint"


class GramDtype(StrEnum):
    """In what the values of a Gram matrix are kept."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


# ---- what options may be ----

#: More of anything than this is a slip of the keyboard.
_MOST = 1_000_000
_MOST_LAYERS, _MOST_ROUNDS = 1000, 10_000
#: Seeds are 32 bits to JAX's generator.
_LAST_SEED = 2**32 - 1

_T = TypeVar("_T", float, list[float], None)


def _checked(is_right: Callable[[float], bool], right: str) -> Callable[[_T], _T]:
    """A callback that refuses a number, or one of several, with what would be right."""

    def check(given: _T) -> _T:
        for number in given if isinstance(given, list) else [given]:
            if number is not None and not is_right(number):
                raise typer.BadParameter(f"{number} is not {right}.")
        return given

    return check


_positive = _checked(lambda number: 0 < number < math.inf, "a positive number")
_not_negative = _checked(lambda number: 0 <= number < math.inf, "a number that is at least 0")
_share = _checked(lambda number: 0 <= number <= 1, "a number from 0 to 1")
_fraction = _checked(lambda number: 0 < number < 1, "a number between 0 and 1")


def _integers(text: str) -> str:
    """Refuse what is not a list of positive integers."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 0 < int(part[:8]) <= _MOST for part in parts):
        raise typer.BadParameter(
            f"{text!r} is not integers from 1 to {_MOST:,} with commas between, such as 64,256."
        )
    return text


# ---- options that several commands have ----

Folder = Annotated[
    Path | None,
    typer.Option(
        help="Where the data set's files lie.",
        show_default="the distribution's place, or the cache",
    ),
]

Download = Annotated[
    bool,
    typer.Option(
        "--download", help="Fetch the data set if it is not there.", show_default="do not"
    ),
]

Rounds = Annotated[
    int, typer.Option(help="Rounds, the ordinary fit included.", min=1, max=_MOST_ROUNDS)
]

Activation = Annotated[str, typer.Option(help="relu, erf, gelu or sin.")]

Out = Annotated[
    Path,
    typer.Option(help="Folder for tables and figures; a run is resumed in it.", file_okay=False),
]


@dataclasses.dataclass(frozen=True)
class IllustrateOptions:
    """Options of :func:`illustrate`."""

    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Mean squared error of each round's fit.",
            callback=_positive,
            show_default="0.045; with --seed, the floor + 0.003",
        ),
    ] = None
    rounds: Rounds = 6
    seed: Annotated[
        int | None,
        typer.Option(
            help="Sample fresh noise.",
            show_default="none: the authors' own labels",
            min=0,
            max=_LAST_SEED,
        ),
    ] = None
    out: Annotated[Path, typer.Option(help="Folder for the figures.", file_okay=False)] = Path(
        "illustration"
    )


@dataclasses.dataclass(frozen=True)
class NtkOptions:
    """Options of :func:`ntk`."""

    dataset: Annotated[DatasetName, typer.Option(help="Images with labels.")] = DatasetName.DIGITS
    folder: Folder = None
    download: Download = False
    architecture: Annotated[
        ArchitectureName, typer.Option(help="The network whose kernel is taken.")
    ] = ArchitectureName.FULLY_CONNECTED
    depth: Annotated[
        int | None,
        typer.Option(
            help="Hidden layers, convolutions, or 5, 7, 10 for myrtle.",
            show_default="3; myrtle: 5",
            min=1,
            max=_MOST_LAYERS,
        ),
    ] = None
    activation: Activation = "relu"
    train: Annotated[int, typer.Option(help="Training images, balanced by class.", min=1)] = 1000
    held_out: Annotated[
        int,
        typer.Option(help="Held-out images to choose a round or a tolerance by; may be 0.", min=0),
    ] = 300
    test: Annotated[int, typer.Option(help="Test images.", min=1)] = 360
    tolerance: Annotated[
        list[float] | None,
        typer.Option(
            help="As a fraction of ||y||^2/K; may be given several times.",
            callback=_fraction,
            show_default="0.01, 0.05, 0.2",
        ),
    ] = None
    rounds: Rounds = 10
    label_noise: Annotated[
        float, typer.Option(help="Share of wrong training and held-out labels.", callback=_share)
    ] = 0.2
    noise: Annotated[
        Noise, typer.Option(help="Another class at random, or one fixed other class for each.")
    ] = Noise.SYMMETRIC
    outputs: Annotated[
        Outputs, typer.Option(help="A multiplier for each class, or one for all.")
    ] = Outputs.SEPARATE
    method: Annotated[
        Method,
        typer.Option(
            help="By an eigendecomposition or by products with the Gram matrix alone; auto: the "
            "first up to 6,000 images."
        ),
    ] = Method.AUTO
    rtol: Annotated[
        float,
        typer.Option(
            help="Of the Krylov method: largest relative error of every round.", callback=_fraction
        ),
    ] = 1e-6
    accuracy: Annotated[
        float | None, typer.Option("--accuracy", hidden=True, callback=_fraction)
    ] = None
    gram_dtype: Annotated[
        GramDtype,
        typer.Option(
            help="In which the Krylov method keeps the Gram matrix: float64, or float32 for half "
            "the memory."
        ),
    ] = GramDtype.FLOAT64
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the Krylov method's Gram matrix.",
            show_default="none: it is kept in memory",
            file_okay=False,
        ),
    ] = None
    unit_norm: Annotated[
        bool, typer.Option("--unit-norm", help="Scale images to norm 1.", show_default="do not")
    ] = False
    seeds: Annotated[
        int,
        typer.Option(help="Repetitions, each with its own images and noise.", min=1, max=_MOST),
    ] = 3
    first_seed: Annotated[
        int,
        typer.Option(help="The first seed; the others follow it.", min=0, max=_LAST_SEED - _MOST),
    ] = 0
    out: Out = Path("ntk")


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Options of :func:`compare`."""

    widths: Annotated[
        str,
        typer.Option(help="Widths of the networks, with commas between.", callback=_integers),
    ] = "64,256,1024"
    seeds: Annotated[int, typer.Option(help="Networks of each width.", min=1, max=_MOST)] = 4
    rounds: Rounds = 2
    tolerance: Annotated[
        float,
        typer.Option(help="Of every round, as a fraction of ||y||^2/K.", callback=_fraction),
    ] = 0.4
    depth: Annotated[int, typer.Option(help="Hidden layers.", min=1, max=_MOST_LAYERS)] = 2
    activation: Activation = "erf"
    train: Annotated[
        int, typer.Option(help="Training images of the digits, balanced by class.", min=1)
    ] = 100
    test: Annotated[int, typer.Option(help="Test images, at most 360.", min=1)] = 360
    label_noise: Annotated[
        float, typer.Option(help="Share of wrong training labels.", callback=_share)
    ] = 0.0
    stationarity: Annotated[
        float,
        typer.Option(help="Train every network to this norm of the gradient.", callback=_positive),
    ] = 1e-7
    steps: Annotated[
        int,
        typer.Option(
            help="The most steps of a training: ReLU gets stuck at its kinks.", min=1, max=_MOST
        ),
    ] = 100
    out: Out = Path("compare")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworksOptions:
    """Options of :func:`networks`. Those of its experiments are None unless given."""

    figure: Annotated[
        int,
        typer.Option(
            help="Of the paper: 4 to 10. Its settings are the full ones; options below change "
            "them.",
            min=4,
            max=10,
        ),
    ]
    network: Annotated[
        str | None,
        typer.Option(
            help="resnet18, resnet50, vgg16 or small.",
            show_default="resnet50; vgg16 in the right half of figure 6",
        ),
    ] = None
    dataset: Annotated[
        DatasetName | None,
        typer.Option(
            help="Images with labels, 32 x 32 and in colour.",
            show_default="cifar10; cifar100 in figures 8, 10 and the right half of 6",
        ),
    ] = None
    folder: Folder = None
    download: Download = False
    loss: Annotated[
        str | None,
        typer.Option(
            help="squared (of the softmax) or cross-entropy.",
            show_default="squared; cross-entropy in figures 5, 9, 10",
        ),
    ] = None
    targets: Annotated[
        str | None,
        typer.Option(help="soft or hard.", show_default="soft; hard in figures 9, 10"),
    ] = None
    rounds: Annotated[
        int | None,
        typer.Option(
            help="Rounds, the ordinary training included.",
            show_default="12",
            min=1,
            max=_MOST_ROUNDS,
        ),
    ] = None
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Chains, each from weights of its own.", show_default="10", min=1, max=_MOST
        ),
    ] = None
    at_once: Annotated[
        int | None,
        typer.Option(help="Chains trained together.", show_default="all; one on a CPU", min=1),
    ] = None
    steps: Annotated[
        int | None, typer.Option(help="Of a round.", show_default="64000", min=1, max=2**31 - 1)
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images in a step.", show_default="16; with cifar100 64", min=1),
    ] = None
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of Adam.", show_default="0.001; with cifar100 0.0001", callback=_not_negative
        ),
    ] = None
    weight_decay: Annotated[
        float | None,
        typer.Option(
            help="As a penalty's gradient.",
            show_default="0.0001; with cifar100 0.00005",
            callback=_not_negative,
        ),
    ] = None
    augment: Annotated[
        bool | None, typer.Option(help="Crop and flip images.", show_default="no-augment")
    ] = None
    early_stopping: Annotated[
        bool | None,
        typer.Option(
            help="Stop fresh networks at every round's loss, too.",
            show_default="in the left half of figure 6",
        ),
    ] = None
    bfloat16: Annotated[
        bool | None, typer.Option(help="Convolutions in bfloat16.", show_default="no-bfloat16")
    ] = None
    train: Annotated[
        int | None,
        typer.Option(help="Training images, balanced by class.", show_default="all", min=1),
    ] = None
    test: Annotated[int | None, typer.Option(help="Test images.", show_default="all", min=1)] = None
    label_noise: Annotated[
        float | None,
        typer.Option(help="Share of wrong training labels.", show_default="0.0", callback=_share),
    ] = None
    measure_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between measurements on all images.",
            show_default="1000",
            min=1,
            max=2**31 - 1,
        ),
    ] = None
    kernel: Annotated[
        Path | None,
        typer.Option(
            help="A folder of sdntk ntk on the same data, whose curves to plot beside.",
            show_default="none",
        ),
    ] = None
    out: Out = Path("networks")

    def settings(self) -> dict[str, Any]:
        """What is given of the experiments' settings, as :class:`paper_figures.Experiment` calls
        them.
        """
        others = {"figure", "folder", "download", "at_once", "kernel", "out"}
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in others and getattr(self, field.name) is not None
        }
        if "dataset" in given:
            given["dataset"] = given["dataset"].value
        if "label_noise" in given:
            given["noise_rate"] = given.pop("label_noise")
        return given
