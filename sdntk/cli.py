"""The command line, ``sdntk``: parses, runs, prints. It switches x64 on.

A command's options are the fields of a dataclass of :mod:`sdntk.cli_options`. What takes long to
import (pandas, matplotlib, Flax) is imported by the commands that need it, so that ``--help`` comes
at once.
"""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import jax
import typer
from rich.console import Console

import sdntk
from sdntk import _memory
from sdntk._folders import hold, is_read_only
from sdntk.architectures import DEFAULT_DEPTH, ArchitectureName, named_architecture
from sdntk.cli_network_options import NetworksOptions
from sdntk.cli_options import (
    CompareOptions,
    IllustrateOptions,
    NtkOptions,
    PapersOptions,
)
from sdntk.datasets.labels import flips_of
from sdntk.datasets.named import DatasetName, load_any, load_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.table import Table

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def command(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make a function of one argument, ``options``, a command.

    The argument's type is a dataclass. Each of its fields is an option of the command.
    """
    options = get_type_hints(function)["options"]

    def run(**given: Any) -> None:
        import matplotlib as mpl

        mpl.use("agg")
        jax.config.update("jax_enable_x64", True)
        _memory.keep_freed_memory()
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


@command
def illustrate(options: IllustrateOptions) -> None:
    """The paper's example: a table of every quantity of the theory, and six figures."""
    from sdntk.experiments import paper_example
    from sdntk.reports import paper_example as report

    example = paper_example.illustrate(options.tolerance, options.rounds, options.seed)
    with hold(options.out):
        _print(
            report.quantities_table(example),
            sentences=report.verdict(example),
            figures=_save(report.plot(example), options.out),
        )


@command
def papers(options: PapersOptions) -> None:
    """Papers on self-distillation, each in less than a minute: a table of its quantities beside the
    library's, and a figure. Without NAME they are listed.
    """
    from sdntk.reports import papers as report

    if options.name is None:
        _print(report.papers_table(), sentences="", figures=[])
        return
    from sdntk.experiments.papers import study

    finding = study(options.name)
    with hold(options.out):
        _print(
            report.quantities_table(options.name, finding),
            sentences=report.verdict(finding),
            figures=_save(
                report.plot(options.name, finding),
                options.out,
                tables={options.name: finding.to_frame()},
            ),
        )


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

    rtol = options.rtol
    if options.accuracy is not None:
        _warn("--accuracy has been renamed to --rtol; the old name goes in version 0.4.")
        rtol = options.accuracy
    data = load_named(options.dataset, options.folder, options.download)
    experiment = Experiment(
        train=options.train,
        held_out=options.held_out,
        test=options.test,
        tolerances=options.tolerances,
        multipliers=tuple(options.multiplier or ()),
        rounds=options.rounds,
        noise_rate=options.label_noise,
        noise_kind=options.noise.value,
        flips=flips_of(data.class_names, options.noise.value),
        outputs=options.outputs.value,
        unit_norm=options.unit_norm,
        method=options.method.value,
        rtol=rtol,
        gram_dtype=options.gram_dtype.value,
        landmarks=options.number_of_landmarks,
        seeds=tuple(range(options.first_seed, options.first_seed + options.seeds)),
    )
    depth = options.depth
    if depth is None:
        depth = DEFAULT_DEPTH[options.architecture]
    architecture = named_architecture(options.architecture, depth, options.activation)
    name = f"{options.architecture.value} NTK ({options.activation}, depth {depth})"

    configuration = {
        "dataset": options.dataset.value,
        "kernel": name,
        "layers": architecture.config(),
        **experiment.configuration(),
    }
    # In one order, so that no two commands wait for each other.
    first, second = sorted((options.out, options.store or options.out), key=Path.resolve)
    with hold(first), hold(second):
        records = Records(options.out, configuration)
        runs = run(data, kernels.ntk(architecture), experiment, records, store=options.store)
        for _ in track(runs, f"Seeds of {name} on {data.name}", options.seeds):
            pass
        _print(
            report.rounds_table(records),
            report.comparison_table(records),
            sentences=report.verdict(records),
            figures=_save(report.plot(records), options.out),
            folder=options.out,
        )


@command
def compare(options: CompareOptions) -> None:
    """Networks of finite width side by side with their kernel: the gap against width, round by
    round.
    """
    from sdntk.experiments.comparison import TO_THE_OPTIMUM, compare_widths, fits_in
    from sdntk.experiments.data import regression_problem
    from sdntk.reports import comparison as report

    data = load_any(options.dataset, options.folder, options.download)
    problem = regression_problem(data, options.train, options.test, options.label_noise)
    depth = options.depth
    if depth is None:
        depth = 5 if options.architecture is ArchitectureName.MYRTLE else 2
    training = dataclasses.replace(
        TO_THE_OPTIMUM, until_stationary=options.stationarity, steps=options.steps
    )
    configuration = {
        "dataset": data.name,
        "train": options.train,
        "test": options.test,
        "label_noise": options.label_noise,
    }
    title = (
        f"{data.name}, {options.architecture.value}, depth {depth}, {options.activation}: "
        f"K = {options.train}, {options.label_noise:.0%} label noise, "
        f"$\\epsilon$ = {options.tolerance:g} $\\Vert y\\Vert^2/K$"
    )
    with hold(options.out):
        table = compare_widths(
            named_architecture(options.architecture, depth, options.activation),
            problem.x,
            problem.y,
            problem.x_test,
            problem.y_test,
            tolerance=options.tolerance * float((problem.y**2).mean()),
            rounds=options.rounds,
            widths=[int(width) for width in options.widths.split(",")],
            seeds=options.seeds,
            training=training,
            out=options.out,
            configuration=configuration,
        )
        _print(
            report.comparison_table(table),
            sentences=report.verdict(table),
            figures=_save(report.plot(table, fits_in(options.out), title), options.out),
            folder=options.out,
        )


@command
def networks(options: NetworksOptions) -> None:
    """Networks through rounds of self-distillation, beside one network and an ensemble of as many,
    and beside their kernel: minutes, offline. With --figure the paper's section 5, every figure one
    command.
    """
    if options.figure is not None:
        _paper_figure(options, options.figure)
        return
    from sdntk._progress import track
    from sdntk.experiments import network_study
    from sdntk.experiments.records import Records
    from sdntk.reports import network_study as report

    given = options.of_study()
    dataset = given.pop("dataset", "digits")
    data = load_any(dataset, options.folder, options.download)
    study = network_study.study_of(data, **given)
    with hold(options.out):
        records = Records(options.out, study.configuration(data))
        units = network_study.run(data, study, records)
        number = study.number_of_units + study.seeds * study.has_kernel
        for _ in track(units, f"Chains and their rivals on {data.name}", number):
            pass
        _print(
            report.rounds_table(records),
            report.comparison_table(records),
            sentences=report.verdict(records),
            figures=_save(report.plot(records, study), options.out),
            folder=options.out,
        )


def _paper_figure(options: NetworksOptions, figure: int) -> None:
    """The paper's section 5."""
    from sdntk.experiments import paper_figures
    from sdntk.experiments.records import Records
    from sdntk.reports import network_classification as report

    experiments = paper_figures.experiments(figure, **options.of_figure())
    curves = {}
    if options.kernel is not None:
        curves = {e: paper_figures.kernel_rounds(options.kernel, e) for e in experiments}
        if all(curve is None for curve in curves.values()):
            raise ValueError(
                "kernel must be a folder of sdntk ntk on the same data set with the same label "
                f"noise; {options.kernel} is not."
            )
    for experiment in experiments:
        name = f"figure{figure}_{experiment.network}_{experiment.dataset}"
        data = load_named(DatasetName(experiment.dataset), options.folder, options.download)
        with hold(options.out / name):
            records = Records(options.out / name, experiment.configuration())
            paper_figures.run(data, experiment, records, at_once=options.at_once)
            _print(
                report.rounds_table(records),
                sentences=report.verdict(records),
                figures=_save(report.plot(records, curves.get(experiment)), records.folder),
                folder=records.folder,
            )


def _save(
    figures: Mapping[str, "Figure"],
    folder: Path,
    tables: Mapping[str, "DataFrame"] | None = None,
) -> list[Path]:
    """Write the figures, and tables as CSV; of a finished run on a read-only disk, say that none
    are written.
    """
    from sdntk.reports.plotting import save_figures
    from sdntk.reports.tables import save_tables

    try:
        return [*save_tables(tables or {}, folder), *save_figures(figures, folder)]
    except OSError as error:
        if not is_read_only(error):
            raise
        _warn(f"no figures are written: {error}")
        return []


def _print(
    *tables: "Table", sentences: str, figures: list[Path], folder: Path | None = None
) -> None:
    """What a command found, and the files that it wrote."""
    # Wide enough for the tables when nobody's window sets the width.
    console = Console() if sys.stdout.isatty() else Console(width=150)
    for table in tables:
        console.print(table)
    lines = [*([sentences] if sentences else []), *(f"wrote {path}" for path in figures)]
    if folder is not None:
        lines.append(f"tables and configuration: {folder}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _warn(message: str) -> None:
    Console(stderr=True).print(f"[yellow]warning:[/yellow] {message}", highlight=False)


#: Bad input, and what the machine cannot give. JAX's own: out of memory on a device.
_OF_USERS = (ValueError, TypeError, ImportError, MemoryError, OSError, jax.errors.JaxRuntimeError)


def main() -> None:
    """Entry point: bad input ends with its message and exit status 2, not with a traceback."""
    try:
        app()
    except _OF_USERS as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(2)
