"""The options of the commands: a dataclass for each, a field for each option, with what it may be.

Only light modules are imported, so that ``--help`` comes at once.
"""

import dataclasses
import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from sdntk.architectures import ArchitectureName
from sdntk.datasets.named import DatasetName
from sdntk.experiments.papers import PAPERS


class Noise(StrEnum):
    """Kinds of label noise."""

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"


class Method(StrEnum):
    """How the spectrum is computed."""

    AUTO = "auto"
    DENSE = "dense"
    KRYLOV = "krylov"
    NYSTROM = "nystrom"


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
MOST = 1_000_000
MOST_LAYERS, MOST_ROUNDS = 1000, 10_000
#: Seeds are 32 bits to JAX's generator.
LAST_SEED = 2**32 - 1

_T = TypeVar("_T", float, list[float], None)


def _checked(is_right: Callable[[float], bool], right: str) -> Callable[[_T], _T]:
    """A callback that refuses a number, or one of several, with what would be right."""

    def check(given: _T) -> _T:
        for number in given if isinstance(given, list) else [given]:
            if number is not None and not is_right(number):
                raise typer.BadParameter(f"{number} is not {right}.")
        return given

    return check


positive = _checked(lambda number: 0 < number < math.inf, "a positive number")
not_negative = _checked(lambda number: 0 <= number < math.inf, "a number that is at least 0")
share = _checked(lambda number: 0 <= number <= 1, "a number from 0 to 1")
fraction = _checked(lambda number: 0 < number < 1, "a number between 0 and 1")


def integers(text: str) -> str:
    """Refuse what is not a list of positive integers."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 0 < int(part[:8]) <= MOST for part in parts):
        raise typer.BadParameter(
            f"{text!r} is not integers from 1 to {MOST:,} with commas between, such as 64,256."
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
    int, typer.Option(help="Rounds, the ordinary fit included.", min=1, max=MOST_ROUNDS)
]

Activation = Annotated[str, typer.Option(help="relu, erf, gelu or sin.")]

Out = Annotated[
    Path,
    typer.Option(help="Folder for tables and figures; a run is resumed in it.", file_okay=False),
]


def known_dataset(name: str | None) -> str | None:
    """A callback that refuses what is neither a data set's name nor an .npz file."""
    if name is None or name in list(DatasetName):
        return name
    if not name.endswith(".npz"):
        known = ", ".join(DatasetName)
        raise typer.BadParameter(f"{name!r} is none of {known}, and no file that ends in .npz.")
    if not Path(name).is_file():
        raise typer.BadParameter(f"there is no file {name}.")
    return name


@dataclasses.dataclass(frozen=True)
class IllustrateOptions:
    """Options of :func:`illustrate`."""

    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Mean squared error of each round's fit.",
            callback=positive,
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
            max=LAST_SEED,
        ),
    ] = None
    out: Annotated[Path, typer.Option(help="Folder for the figures.", file_okay=False)] = Path(
        "illustration"
    )


def known_paper(name: str | None) -> str | None:
    """A callback that refuses what is no paper's name."""
    if name is not None and name not in PAPERS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(PAPERS)}.")
    return name


@dataclasses.dataclass(frozen=True)
class PapersOptions:
    """Options of :func:`papers`."""

    name: Annotated[
        str | None,
        typer.Argument(
            help=f"Of a paper: {', '.join(PAPERS)}.",
            callback=known_paper,
            show_default="none: they are listed",
        ),
    ] = None
    out: Annotated[
        Path, typer.Option(help="Folder for the table and the figure.", file_okay=False)
    ] = Path("papers")


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
            max=MOST_LAYERS,
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
            callback=fraction,
            show_default="0.01, 0.05, 0.2",
        ),
    ] = None
    multiplier: Annotated[
        list[float] | None,
        typer.Option(
            help="In place of tolerances, the same c in every round; may be given several times.",
            callback=positive,
            show_default="none: tolerances",
        ),
    ] = None
    rounds: Rounds = 10
    label_noise: Annotated[
        float, typer.Option(help="Share of wrong training and held-out labels.", callback=share)
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
            help="By an eigendecomposition, by products with the Gram matrix alone, or by "
            "landmarks; auto: the first up to 6,000 images, then the second."
        ),
    ] = Method.AUTO
    landmarks: Annotated[
        int | None,
        typer.Option(
            help="Of the Nystrom method: how many of the training images.",
            show_default="1,000, or all of fewer",
            min=1,
            max=MOST,
        ),
    ] = None
    rtol: Annotated[
        float,
        typer.Option(
            help="Of the Krylov method: largest relative error of every round.", callback=fraction
        ),
    ] = 1e-6
    accuracy: Annotated[
        float | None, typer.Option("--accuracy", hidden=True, callback=fraction)
    ] = None
    gram_dtype: Annotated[
        GramDtype,
        typer.Option(
            help="In which the Krylov method keeps the Gram matrix, and the Nystrom method "
            "computes: float64, or float32 for half the memory."
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
        typer.Option(help="Repetitions, each with its own images and noise.", min=1, max=MOST),
    ] = 3
    first_seed: Annotated[
        int,
        typer.Option(help="The first seed; the others follow it.", min=0, max=LAST_SEED - MOST),
    ] = 0
    out: Out = Path("ntk")

    def __post_init__(self) -> None:
        if self.tolerance and self.multiplier:
            raise ValueError("only one of --tolerance and --multiplier may be given.")
        if self.landmarks is not None and self.method is not Method.NYSTROM:
            raise ValueError("--landmarks is of --method nystrom only.")
        if self.store is not None and self.method in (Method.DENSE, Method.NYSTROM):
            raise ValueError("--store keeps the Gram matrix of --method krylov only.")

    @property
    def tolerances(self) -> tuple[float, ...]:
        """Of the chains; none where multipliers are given."""
        return () if self.multiplier else tuple(self.tolerance or (0.01, 0.05, 0.2))

    @property
    def number_of_landmarks(self) -> int | None:
        """None for other methods."""
        if self.method is not Method.NYSTROM:
            return None
        return self.landmarks or min(1000, self.train)


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Options of :func:`compare`."""

    widths: Annotated[
        str,
        typer.Option(help="Widths of the networks, with commas between.", callback=integers),
    ] = "64,256,1024"
    seeds: Annotated[int, typer.Option(help="Networks of each width.", min=1, max=MOST)] = 4
    rounds: Rounds = 2
    tolerance: Annotated[
        float,
        typer.Option(help="Of every round, as a fraction of ||y||^2/K.", callback=fraction),
    ] = 0.4
    dataset: Annotated[
        str,
        typer.Option(
            help="digits, fashion-mnist, cifar10, cifar100, or an .npz file with x_train, y_train, "
            "x_test, y_test.",
            callback=known_dataset,
        ),
    ] = "digits"
    folder: Folder = None
    download: Download = False
    architecture: Annotated[
        ArchitectureName, typer.Option(help="Of the networks and of their kernel.")
    ] = ArchitectureName.FULLY_CONNECTED
    depth: Annotated[
        int | None,
        typer.Option(
            help="Hidden layers, convolutions, or 5, 7, 10 for myrtle.",
            show_default="2; myrtle: 5",
            min=1,
            max=MOST_LAYERS,
        ),
    ] = None
    activation: Activation = "erf"
    train: Annotated[int, typer.Option(help="Training images, balanced by class.", min=1)] = 100
    test: Annotated[int, typer.Option(help="Test images, the first ones.", min=1)] = 360
    label_noise: Annotated[
        float, typer.Option(help="Share of wrong training labels.", callback=share)
    ] = 0.0
    stationarity: Annotated[
        float,
        typer.Option(help="Train every network to this norm of the gradient.", callback=positive),
    ] = 1e-7
    steps: Annotated[
        int,
        typer.Option(
            help="The most steps of a training: ReLU gets stuck at its kinks.", min=1, max=MOST
        ),
    ] = 100
    out: Out = Path("compare")
