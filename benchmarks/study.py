"""The study "What a round does to a network": chains of networks over noise, weight decay, steps,
loss and targets, on three data sets, beside their rivals and a kernel's chains.

``python -m benchmarks.study`` runs what its folder lacks (hours on two cores; any number of
processes may share the work) and ``--gather`` puts the tables of the finished runs in
benchmarks/results/study, beside those kept there, with figures.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer

from benchmarks import report, runs, study_figures, study_tables
from sdntk._progress import track
from sdntk.datasets.named import load_any
from sdntk.experiments import network_study
from sdntk.experiments.network_study import NetworkStudy
from sdntk.experiments.records import Records
from sdntk.reports.plotting import save_figures
from sdntk.training.rounds import Targets

KEPT = report.RESULTS / "study"
#: Shares of wrong labels.
NOISES = (0.0, 0.2, 0.4)
#: Of the kernel, from small to large, as fractions of the labels' mean square.
TOLERANCES = (0.003, 0.01, 0.03, 0.1, 0.3)
#: For each data set: its networks and images, and every number of steps with its weight decays.
DATA: dict[str, dict[str, Any]] = {
    "digits": {
        "rounds": 16,
        "steps": (1000, 200),
        "weight_decays": (1e-3, 1e-4, 3e-3, 1e-2, 3e-2),
        "train": 1000,
        "test": 360,
    },
    "fashion-mnist": {
        "rounds": 12,
        "steps": (1000, 200),
        "weight_decays": (1e-3, 1e-4, 1e-2, 3e-2),
        "train": 2000,
        "test": 2000,
    },
    "cifar10": {
        "network": "strided",
        "rounds": 12,
        "steps": (300,),
        "weight_decays": (1e-3, 1e-4, 1e-2, 3e-2),
        "train": 1000,
        "test": 2000,
    },
}
#: Beside the squared loss with soft targets.
LOSSES_AND_TARGETS: tuple[tuple[str, Targets], ...] = (
    ("squared", "hard"),
    ("cross-entropy", "soft"),
    ("cross-entropy", "hard"),
)


def studies() -> Iterator[NetworkStudy]:
    """Every run: noise x steps with the squared loss and soft targets; with 40% noise the other
    losses and targets, too.
    """
    for dataset, setting in DATA.items():
        study = functools.partial(
            NetworkStudy,
            dataset,
            seeds=8,
            tolerances=TOLERANCES,
            **{name: value for name, value in setting.items() if name != "steps"},
        )
        first = setting["steps"][0]
        for steps, noise in itertools.product(setting["steps"], reversed(NOISES)):
            yield study(steps=steps, noise_rate=noise)
        for loss, targets in LOSSES_AND_TARGETS:
            yield study(steps=first, loss=loss, targets=targets)


def takes_the_kernel(study: NetworkStudy) -> bool:
    """Whether it is the first of those with the same labels: the kernel's chains have no steps,
    loss or hard targets.
    """
    first = DATA[study.dataset]["steps"][0]
    return (study.steps, study.loss, study.targets) == (first, "squared", "soft")


def name_of(study: NetworkStudy) -> str:
    """Of a run's folder."""
    return study_tables.name_of(dataclasses.asdict(study))


def run(study: NetworkStudy, folder: Path) -> None:
    """Run what the folder lacks; nothing where another process is at it."""
    data = load_any(study.dataset, None, False)
    with runs.alone(folder) as free:
        if not free:
            return
        records = Records(folder, study.configuration(data))
        units, number = network_study.run_networks(data, study, records), study.number_of_units
        if takes_the_kernel(study):
            units = itertools.chain(units, network_study.run_kernel(data, study, records))
            number += study.seeds
        for _ in track(units, folder.name, number):
            pass


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs whose names begin so. [default: all]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the runs are.")] = Path("study"),
    gather: Annotated[
        bool, typer.Option("--gather", help="Run nothing: keep the tables of finished runs.")
    ] = False,
) -> None:
    """Run what is missing of the study, or keep what is finished."""
    mpl.use("agg")
    out.mkdir(parents=True, exist_ok=True)
    chosen = runs.chosen({name_of(study): study for study in studies()}, names)
    if gather:
        if names:
            raise typer.BadParameter("--gather takes all runs, hence no names.")
        folders = [out / name for name in chosen]
        finished = [folder for folder in folders if (folder / "comparison.csv").exists()]
        if not finished:
            raise typer.BadParameter(f"no run is finished in {out}.")
        order = [folder.name for folder in folders]
        save_figures(study_figures.plot(study_tables.gather(finished, KEPT, order)), KEPT)
        return
    for name, study in chosen.items():
        run(study, out / name)


if __name__ == "__main__":
    typer.run(main)
