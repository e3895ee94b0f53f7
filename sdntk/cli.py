"""The command line, ``sdntk``: parses, runs, prints. It switches x64 on."""

import dataclasses
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import jax
import matplotlib as mpl
import pandas as pd
import typer
from rich.console import Console

import sdntk
from sdntk import architectures, datasets, kernels
from sdntk._progress import track
from sdntk.architectures import DEFAULT_DEPTH, ArchitectureName, named_architecture
from sdntk.datasets.named import DatasetName, load_named
from sdntk.experiments.kernel_classification import Experiment, run
from sdntk.experiments.paper_example import illustrate as distil_paper_example
from sdntk.experiments.records import Records
from sdntk.reports import kernel_classification as classification_report
from sdntk.reports import paper_example as illustration

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


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
            "--version", help="Print the version and leave.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Self-distillation in Hilbert space: what a round of retraining on one's own predictions does
    to a model.
    """


@app.command()
def illustrate(
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Mean squared error of each round's fit. "
            "[default: 0.045; with --seed, floor + 0.003]"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds, the ordinary fit included.")] = 6,
    seed: Annotated[
        int | None, typer.Option(help="Draw fresh noise. [default: the authors' own labels]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures.", file_okay=False)] = Path(
        "illustration"
    ),
) -> None:
    """The paper's example: a table of every quantity of the theory, and six figures."""
    shown = distil_paper_example(tolerance, rounds, seed)
    console = _console()
    console.print(illustration.table(shown))
    best = int(shown.test_error.argmin())
    console.print(
        f"{int(shown.run.active_rounds)} active rounds; closest to the true function after round "
        f"{best} "
        f"(error {shown.test_error[best]:.5f}, round 0: {shown.test_error[0]:.5f})."
    )
    for path in illustration.save(shown, out):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


class Noise(StrEnum):
    """Kinds of label noise."""

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"


class Method(StrEnum):
    """How spectra are had."""

    AUTO = "auto"
    DENSE = "dense"
    KRYLOV = "krylov"


class Outputs(StrEnum):
    """Whether each class has a multiplier of its own."""

    SEPARATE = "separate"
    JOINT = "joint"


@app.command()
def ntk(
    dataset: Annotated[DatasetName, typer.Option(help="Images with labels.")] = DatasetName.DIGITS,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where the data set's files lie. [default: the distribution's place, or the cache]"
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the data set if it is not there.")
    ] = False,
    architecture: Annotated[
        ArchitectureName, typer.Option(help="The network whose kernel is taken.")
    ] = ArchitectureName.FULLY_CONNECTED,
    depth: Annotated[
        int | None,
        typer.Option(
            help="Hidden layers, convolutions, or 5, 7, 10 for myrtle. [default: 3; myrtle: 5]"
        ),
    ] = None,
    activation: Annotated[str, typer.Option(help="relu, erf, gelu or sin.")] = "relu",
    train: Annotated[int, typer.Option(help="Training images, balanced by class.")] = 1000,
    held_out: Annotated[
        int, typer.Option(help="Held-out images to choose a round or a tolerance by; may be 0.")
    ] = 300,
    test: Annotated[int, typer.Option(help="Test images.")] = 360,
    tolerance: Annotated[
        list[float] | None,
        typer.Option(
            help="As a fraction of ||y||^2/K; may be given several times. "
            "[default: 0.01, 0.05, 0.2]"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds, the ordinary fit included.")] = 10,
    label_noise: Annotated[
        float, typer.Option(help="Share of wrong training and held-out labels.")
    ] = 0.2,
    noise: Annotated[
        Noise, typer.Option(help="Another class at random, or one fixed other class for each.")
    ] = Noise.SYMMETRIC,
    outputs: Annotated[
        Outputs, typer.Option(help="A multiplier for each class, or one for all.")
    ] = Outputs.SEPARATE,
    method: Annotated[
        Method,
        typer.Option(
            help="By an eigendecomposition or by products alone. "
            "[auto: the first up to 6,000 images]"
        ),
    ] = Method.AUTO,
    accuracy: Annotated[
        float, typer.Option(help="Of the Krylov method: largest relative error of every round.")
    ] = 1e-6,
    gram_dtype: Annotated[
        str,
        typer.Option(
            help="In which the Krylov method keeps the Gram matrix: float64, or float32 for half "
            "the room."
        ),
    ] = "float64",
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the Krylov method's Gram matrix. [default: in memory]", file_okay=False
        ),
    ] = None,
    unit_norm: Annotated[bool, typer.Option("--unit-norm", help="Scale images to norm 1.")] = False,
    seeds: Annotated[
        int, typer.Option(help="Repetitions, each with its own images and noise.")
    ] = 3,
    first_seed: Annotated[int, typer.Option(help="The first seed; the others follow it.")] = 0,
    out: Annotated[
        Path,
        typer.Option(help="Folder for tables and figures; a run goes on in it.", file_okay=False),
    ] = Path("ntk"),
) -> None:
    """Self-distillation with a neural tangent kernel on images: accuracy round by round, against
    the best single fit.
    """
    flips = datasets.CIFAR10_FLIPS if dataset is DatasetName.CIFAR10 else None
    experiment = Experiment(
        train=train,
        held_out=held_out,
        test=test,
        tolerances=tuple(tolerance or (0.01, 0.05, 0.2)),
        rounds=rounds,
        label_noise=label_noise,
        noise=noise.value,
        flips=flips if noise is Noise.ASYMMETRIC else None,
        outputs=outputs.value,
        unit_norm=unit_norm,
        method=method.value,
        accuracy=accuracy,
        gram_dtype=gram_dtype,
        seeds=tuple(range(first_seed, first_seed + seeds)),
    )
    depth = DEFAULT_DEPTH[architecture] if depth is None else depth
    network = named_architecture(architecture, depth, activation)
    name = f"{architecture.value} NTK ({activation}, depth {depth})"
    data = load_named(dataset, folder, download)
    records = Records(
        out,
        {
            "dataset": dataset.value,
            "kernel": name,
            "layers": network.config(),
            **dataclasses.asdict(experiment),
        },
    )
    for _ in track(
        run(data, kernels.ntk(network), experiment, records, store=store),
        f"Seeds of {name} on {data.name}",
        seeds,
    ):
        pass
    console = _console()
    console.print(classification_report.rounds_table(records))
    console.print(classification_report.comparison_table(records))
    console.print(classification_report.verdict(records), highlight=False, soft_wrap=True)
    for path in classification_report.save(records):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    console.print(f"tables and configuration: {out}", highlight=False, soft_wrap=True)


@app.command()
def compare(
    widths: Annotated[
        str, typer.Option(help="Widths of the networks, with commas between.")
    ] = "64,256,1024",
    seeds: Annotated[int, typer.Option(help="Networks of each width.")] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds, the ordinary fit included.")] = 2,
    tolerance: Annotated[
        float, typer.Option(help="Of every round, as a fraction of ||y||^2/K.")
    ] = 0.4,
    depth: Annotated[int, typer.Option(help="Hidden layers.")] = 2,
    activation: Annotated[str, typer.Option(help="relu, erf, gelu or sin.")] = "erf",
    train: Annotated[
        int, typer.Option(help="Training images of the digits, balanced by class.")
    ] = 100,
    test: Annotated[int, typer.Option(help="Test images, at most 360.")] = 360,
    label_noise: Annotated[float, typer.Option(help="Share of wrong training labels.")] = 0.0,
    stationarity: Annotated[
        float, typer.Option(help="Train every network to this norm of the gradient.")
    ] = 1e-7,
    steps: Annotated[
        int, typer.Option(help="The most steps of a training: ReLU gets stuck at its kinks.")
    ] = 100,
    out: Annotated[
        Path,
        typer.Option(help="Folder for tables and figures; a run goes on in it.", file_okay=False),
    ] = Path("compare"),
) -> None:
    """Networks of finite width side by side with their kernel, on digits: the gap against width,
    round by round.
    """
    from sdntk.experiments import comparison, data  # here: Flax and optax take seconds to import
    from sdntk.reports import comparison as comparison_report

    architecture = architectures.fully_connected(depth, activation=activation)
    problem = data.digits_problem(train, test, label_noise)
    table = comparison.compare(
        architecture,
        problem.x,
        problem.y,
        problem.x_test,
        problem.y_test,
        tolerance=tolerance * float((problem.y**2).mean()),
        rounds=rounds,
        widths=_integers("widths", widths),
        seeds=seeds,
        training=dataclasses.replace(
            comparison.TO_THE_OPTIMUM, until_stationary=stationarity, steps=steps
        ),
        out=out,
        configuration={
            "dataset": "digits",
            "train": train,
            "test": test,
            "label_noise": label_noise,
        },
    )
    console = _console()
    console.print(comparison_report.comparison_table(table))
    console.print(comparison_report.verdict(table), highlight=False, soft_wrap=True)
    title = (
        f"digits, fully connected, {depth} hidden layers, {activation}: K = {train}, "
        f"{label_noise:.0%} label noise, "
        f"$\\epsilon$ = {tolerance:g} $\\Vert y\\Vert^2/K$"
    )
    for path in comparison_report.save(table, comparison.fits_in(out), title, out):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    console.print(f"tables and configuration: {out}", highlight=False, soft_wrap=True)


@app.command()
def networks(
    figure: Annotated[
        int,
        typer.Option(
            help="Of the paper: 4 to 10. Its settings are the full ones; options below change them."
        ),
    ],
    network: Annotated[str | None, typer.Option(help="resnet18, resnet50, vgg16 or small.")] = None,
    dataset: Annotated[
        DatasetName | None, typer.Option(help="Images with labels, 32 x 32 and in colour.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where the data set's files lie. [default: the distribution's place, or the cache]"
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the data set if it is not there.")
    ] = False,
    loss: Annotated[
        str | None, typer.Option(help="squared (of the softmax) or cross-entropy.")
    ] = None,
    targets: Annotated[str | None, typer.Option(help="soft or hard.")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds, the ordinary training included.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Chains, each from weights of its own.")] = None,
    at_once: Annotated[
        int | None, typer.Option(help="Chains trained together. [default: all; one on a CPU]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of a round.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="As a penalty's gradient.")] = None,
    augment: Annotated[bool | None, typer.Option(help="Crop and flip images.")] = None,
    early_stopping: Annotated[
        bool | None,
        typer.Option(
            help="Stop fresh networks at every round's loss, too. "
            "[default: in the left half of figure 6]"
        ),
    ] = None,
    bfloat16: Annotated[bool | None, typer.Option(help="Convolutions in bfloat16.")] = None,
    train: Annotated[
        int | None, typer.Option(help="Training images, balanced by class. [default: all]")
    ] = None,
    test: Annotated[int | None, typer.Option(help="Test images. [default: all]")] = None,
    label_noise: Annotated[
        float | None, typer.Option(help="Share of wrong training labels.")
    ] = None,
    measure_every: Annotated[
        int | None, typer.Option(help="Steps between measurements on all images.")
    ] = None,
    kernel: Annotated[
        Path | None,
        typer.Option(help="A folder of sdntk ntk on the same data, whose curves to draw beside."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder for tables and figures; a run goes on in it.", file_okay=False),
    ] = Path("networks"),
) -> None:
    """The paper's section 5: deep networks through rounds of self-distillation, every figure one
    command.
    """
    from sdntk.experiments import (
        paper_figures as network_experiment,
    )  # here: Flax and optax take seconds to import
    from sdntk.reports import network_classification as network_report

    changes = {
        "network": network,
        "dataset": dataset and dataset.value,
        "loss": loss,
        "targets": targets,
        "rounds": rounds,
        "seeds": seeds,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "augment": augment,
        "early_stopping": early_stopping,
        "bfloat16": bfloat16,
        "train": train,
        "test": test,
        "label_noise": label_noise,
        "measure_every": measure_every,
    }
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    experiments = network_experiment.experiments(figure, **given)
    curves = (
        {experiment: _kernel_rounds(kernel, experiment) for experiment in experiments}
        if kernel
        else {}
    )
    if kernel and all(frame is None for frame in curves.values()):
        raise ValueError(
            "kernel must be a folder of sdntk ntk on the same data set with the same label "
            f"noise; {kernel} is not."
        )
    console = _console()
    for experiment in experiments:
        place = out / f"figure{figure}_{experiment.network}_{experiment.dataset}"
        records = Records(place, dataclasses.asdict(experiment))
        network_experiment.run(
            load_named(DatasetName(experiment.dataset), folder, download),
            experiment,
            records,
            at_once=at_once,
        )
        console.print(network_report.rounds_table(records))
        console.print(network_report.verdict(records), highlight=False, soft_wrap=True)
        for path in network_report.save(records, curves.get(experiment)):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)
        console.print(f"tables and configuration: {place}", highlight=False, soft_wrap=True)


def _kernel_rounds(folder: Path, experiment: Any) -> pd.DataFrame | None:
    """The rounds that :func:`ntk` left in a folder; None if its data set or label noise is
    another.
    """
    records = Records.open(folder)
    if "kernel" not in records.configuration or records["rounds"].empty:
        raise ValueError(
            f"kernel must be a folder that sdntk ntk wrote; {folder} holds other records."
        )
    noise = experiment.label_noise
    expected = {"dataset": experiment.dataset, "label_noise": noise} | (
        {"noise": Noise.SYMMETRIC.value} if noise else {}
    )
    same = all(records.configuration[name] == value for name, value in expected.items())
    return records["rounds"] if same else None


def _integers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{name} must be integers with commas between, such as 64,256; got {text!r}."
        ) from None


def _console() -> Console:
    """Standard output; wide enough for the tables when nobody's window sets the width."""
    return Console() if sys.stdout.isatty() else Console(width=150)


def main() -> None:
    """Entry point: bad input ends with its message and exit status 2, not with a traceback."""
    jax.config.update("jax_enable_x64", True)
    mpl.use("agg")
    try:
        app()
    except (ValueError, TypeError, ImportError, MemoryError, OSError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(2)
