"""The command line, ``sdntk``: parses, runs, prints. It switches x64 on.

A command's options are the fields of a dataclass. What takes long to import (pandas, matplotlib,
Flax) is imported by the commands that need it, so that ``--help`` comes at once.
"""

import dataclasses
import inspect
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import jax
import typer
from rich.console import Console

import sdntk
from sdntk.architectures import DEFAULT_DEPTH, ArchitectureName, fully_connected, named_architecture
from sdntk.datasets import CIFAR10_FLIPS
from sdntk.datasets.named import DatasetName, load_named

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


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


# Options that several commands have.
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
Rounds = Annotated[int, typer.Option(help="Rounds, the ordinary fit included.")]
Activation = Annotated[str, typer.Option(help="relu, erf, gelu or sin.")]
Out = Annotated[
    Path,
    typer.Option(help="Folder for tables and figures; a run is resumed in it.", file_okay=False),
]


def command(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make a function of one argument, ``options``, a command.

    The argument's type is a dataclass. Each of its fields is an option of the command.
    """
    options = get_type_hints(function)["options"]

    def run(**given: Any) -> None:
        import matplotlib as mpl

        mpl.use("agg")
        jax.config.update("jax_enable_x64", True)
        function(options(**given))

    run.__signature__ = inspect.signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = get_type_hints(options, include_extras=True)
    app.command(name=function.__name__, help=inspect.getdoc(function))(run)
    return function


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"sdntk {sdntk.__version__}, jax {jax.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Self-distillation in Hilbert space: what a round of retraining on one's own predictions does
    to a model.
    """


@dataclasses.dataclass(frozen=True)
class IllustrateOptions:
    """Options of :func:`illustrate`."""

    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Mean squared error of each round's fit.",
            show_default="0.045; with --seed, the floor + 0.003",
        ),
    ] = None
    rounds: Rounds = 6
    seed: Annotated[
        int | None,
        typer.Option(help="Sample fresh noise.", show_default="none: the authors' own labels"),
    ] = None
    out: Annotated[Path, typer.Option(help="Folder for the figures.", file_okay=False)] = Path(
        "illustration"
    )


@command
def illustrate(options: IllustrateOptions) -> None:
    """The paper's example: a table of every quantity of the theory, and six figures."""
    from sdntk.experiments import paper_example
    from sdntk.reports import paper_example as report
    from sdntk.reports.plotting import save_figures

    example = paper_example.illustrate(options.tolerance, options.rounds, options.seed)
    _print(
        report.quantities_table(example),
        sentences=report.verdict(example),
        figures=save_figures(report.plot(example), options.out),
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
        ),
    ] = None
    activation: Activation = "relu"
    train: Annotated[int, typer.Option(help="Training images, balanced by class.")] = 1000
    held_out: Annotated[
        int, typer.Option(help="Held-out images to choose a round or a tolerance by; may be 0.")
    ] = 300
    test: Annotated[int, typer.Option(help="Test images.")] = 360
    tolerance: Annotated[
        list[float] | None,
        typer.Option(
            help="As a fraction of ||y||^2/K; may be given several times.",
            show_default="0.01, 0.05, 0.2",
        ),
    ] = None
    rounds: Rounds = 10
    label_noise: Annotated[
        float, typer.Option(help="Share of wrong training and held-out labels.")
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
        float, typer.Option(help="Of the Krylov method: largest relative error of every round.")
    ] = 1e-6
    accuracy: Annotated[float | None, typer.Option("--accuracy", hidden=True)] = None
    gram_dtype: Annotated[
        str,
        typer.Option(
            help="In which the Krylov method keeps the Gram matrix: float64, or float32 for half "
            "the memory."
        ),
    ] = "float64"
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
    seeds: Annotated[int, typer.Option(help="Repetitions, each with its own images and noise.")] = 3
    first_seed: Annotated[int, typer.Option(help="The first seed; the others follow it.")] = 0
    out: Out = Path("ntk")


@command
def ntk(options: NtkOptions) -> None:
    """Self-distillation with a neural tangent kernel on images: accuracy round by round, against
    the best single fit.
    """
    from sdntk import kernels
    from sdntk._progress import track
    from sdntk.experiments.kernel_classification import Experiment, run
    from sdntk.experiments.records import Records
    from sdntk.reports import kernel_classification as report
    from sdntk.reports.plotting import save_figures

    flips = None
    if options.dataset is DatasetName.CIFAR10 and options.noise is Noise.ASYMMETRIC:
        flips = CIFAR10_FLIPS
    rtol = options.rtol
    if options.accuracy is not None:
        _warn("--accuracy has been renamed to --rtol; the old name goes in version 0.4.")
        rtol = options.accuracy
    experiment = Experiment(
        train=options.train,
        held_out=options.held_out,
        test=options.test,
        tolerances=tuple(options.tolerance or (0.01, 0.05, 0.2)),
        rounds=options.rounds,
        noise_rate=options.label_noise,
        noise_kind=options.noise.value,
        flips=flips,
        outputs=options.outputs.value,
        unit_norm=options.unit_norm,
        method=options.method.value,
        rtol=rtol,
        gram_dtype=options.gram_dtype,
        seeds=tuple(range(options.first_seed, options.first_seed + options.seeds)),
    )
    depth = options.depth
    if depth is None:
        depth = DEFAULT_DEPTH[options.architecture]
    architecture = named_architecture(options.architecture, depth, options.activation)
    name = f"{options.architecture.value} NTK ({options.activation}, depth {depth})"
    data = load_named(options.dataset, options.folder, options.download)

    configuration = {
        "dataset": options.dataset.value,
        "kernel": name,
        "layers": architecture.config(),
        **experiment.configuration(),
    }
    records = Records(options.out, configuration)
    runs = run(data, kernels.ntk(architecture), experiment, records, store=options.store)
    for _ in track(runs, f"Seeds of {name} on {data.name}", options.seeds):
        pass
    _print(
        report.rounds_table(records),
        report.comparison_table(records),
        sentences=report.verdict(records),
        figures=save_figures(report.plot(records), options.out),
        folder=options.out,
    )


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Options of :func:`compare`."""

    widths: Annotated[str, typer.Option(help="Widths of the networks, with commas between.")] = (
        "64,256,1024"
    )
    seeds: Annotated[int, typer.Option(help="Networks of each width.")] = 4
    rounds: Rounds = 2
    tolerance: Annotated[
        float, typer.Option(help="Of every round, as a fraction of ||y||^2/K.")
    ] = 0.4
    depth: Annotated[int, typer.Option(help="Hidden layers.")] = 2
    activation: Activation = "erf"
    train: Annotated[
        int, typer.Option(help="Training images of the digits, balanced by class.")
    ] = 100
    test: Annotated[int, typer.Option(help="Test images, at most 360.")] = 360
    label_noise: Annotated[float, typer.Option(help="Share of wrong training labels.")] = 0.0
    stationarity: Annotated[
        float, typer.Option(help="Train every network to this norm of the gradient.")
    ] = 1e-7
    steps: Annotated[
        int, typer.Option(help="The most steps of a training: ReLU gets stuck at its kinks.")
    ] = 100
    out: Out = Path("compare")


@command
def compare(options: CompareOptions) -> None:
    """Networks of finite width side by side with their kernel, on digits: the gap against width,
    round by round.
    """
    from sdntk.experiments.comparison import TO_THE_OPTIMUM, compare_widths, fits_in
    from sdntk.experiments.data import digits_problem
    from sdntk.reports import comparison as report
    from sdntk.reports.plotting import save_figures

    problem = digits_problem(options.train, options.test, options.label_noise)
    training = dataclasses.replace(
        TO_THE_OPTIMUM, until_stationary=options.stationarity, steps=options.steps
    )
    configuration = {
        "dataset": "digits",
        "train": options.train,
        "test": options.test,
        "label_noise": options.label_noise,
    }
    table = compare_widths(
        fully_connected(options.depth, activation=options.activation),
        problem.x,
        problem.y,
        problem.x_test,
        problem.y_test,
        tolerance=options.tolerance * float((problem.y**2).mean()),
        rounds=options.rounds,
        widths=_integers("widths", options.widths),
        seeds=options.seeds,
        training=training,
        out=options.out,
        configuration=configuration,
    )
    title = (
        f"digits, fully connected, {options.depth} hidden layers, {options.activation}: "
        f"K = {options.train}, {options.label_noise:.0%} label noise, "
        f"$\\epsilon$ = {options.tolerance:g} $\\Vert y\\Vert^2/K$"
    )
    figures = report.plot(table, fits_in(options.out), title)
    _print(
        report.comparison_table(table),
        sentences=report.verdict(table),
        figures=save_figures(figures, options.out),
        folder=options.out,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworksOptions:
    """Options of :func:`networks`. Those of its experiments are None unless given."""

    figure: Annotated[
        int,
        typer.Option(
            help="Of the paper: 4 to 10. Its settings are the full ones; options below change them."
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
        typer.Option(help="Rounds, the ordinary training included.", show_default="12"),
    ] = None
    seeds: Annotated[
        int | None,
        typer.Option(help="Chains, each from weights of its own.", show_default="10"),
    ] = None
    at_once: Annotated[
        int | None,
        typer.Option(help="Chains trained together.", show_default="all; one on a CPU"),
    ] = None
    steps: Annotated[int | None, typer.Option(help="Of a round.", show_default="64000")] = None
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images in a step.", show_default="16; with cifar100 64"),
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(help="Of Adam.", show_default="0.001; with cifar100 0.0001")
    ] = None
    weight_decay: Annotated[
        float | None,
        typer.Option(help="As a penalty's gradient.", show_default="0.0001; with cifar100 0.00005"),
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
        typer.Option(help="Training images, balanced by class.", show_default="all"),
    ] = None
    test: Annotated[int | None, typer.Option(help="Test images.", show_default="all")] = None
    label_noise: Annotated[
        float | None, typer.Option(help="Share of wrong training labels.", show_default="0.0")
    ] = None
    measure_every: Annotated[
        int | None,
        typer.Option(help="Steps between measurements on all images.", show_default="1000"),
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


@command
def networks(options: NetworksOptions) -> None:
    """The paper's section 5: deep networks through rounds of self-distillation, every figure one
    command.
    """
    from sdntk.experiments import paper_figures
    from sdntk.experiments.records import Records
    from sdntk.reports import network_classification as report
    from sdntk.reports.plotting import save_figures

    experiments = paper_figures.experiments(options.figure, **options.settings())
    curves = {}
    if options.kernel is not None:
        curves = {e: paper_figures.kernel_rounds(options.kernel, e) for e in experiments}
        if all(curve is None for curve in curves.values()):
            raise ValueError(
                "kernel must be a folder of sdntk ntk on the same data set with the same label "
                f"noise; {options.kernel} is not."
            )
    for experiment in experiments:
        name = f"figure{options.figure}_{experiment.network}_{experiment.dataset}"
        records = Records(options.out / name, experiment.configuration())
        data = load_named(DatasetName(experiment.dataset), options.folder, options.download)
        paper_figures.run(data, experiment, records, at_once=options.at_once)
        figures = report.plot(records, curves.get(experiment))
        _print(
            report.rounds_table(records),
            sentences=report.verdict(records),
            figures=save_figures(figures, records.folder),
            folder=records.folder,
        )


def _integers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{name} must be integers with commas between, such as 64,256; got {text!r}."
        ) from None


def _print(
    *tables: "Table", sentences: str, figures: list[Path], folder: Path | None = None
) -> None:
    """What a command found, and the files that it wrote."""
    # Wide enough for the tables when nobody's window sets the width.
    console = Console() if sys.stdout.isatty() else Console(width=150)
    for table in tables:
        console.print(table)
    lines = [sentences, *(f"wrote {path}" for path in figures)]
    if folder is not None:
        lines.append(f"tables and configuration: {folder}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _warn(message: str) -> None:
    Console(stderr=True).print(f"[yellow]warning:[/yellow] {message}", highlight=False)


def main() -> None:
    """Entry point: bad input ends with its message and exit status 2, not with a traceback."""
    try:
        app()
    except (ValueError, TypeError, ImportError, MemoryError, OSError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(2)
