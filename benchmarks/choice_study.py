"""The study "Does it pay?": what rules that choose a round, a level or weights are worth on real
data, beside one fit chosen by ten folds.

``python -m benchmarks.choice_study --tables FOLDER`` runs what its folder lacks (80 minutes on
two cores; any number of processes may share the work), and ``--gather`` puts the finished runs into
benchmarks/results/choices, with a figure.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import matplotlib as mpl
import typer

import sdntk
from benchmarks import choice_data, choice_tables, choices, report, runs
from sdntk._progress import track
from sdntk.experiments.records import Records
from sdntk.reports.plotting import save_figures

KEPT = report.RESULTS / "choices"
SPLITS = 50
FEW = 150
#: Training points of each table beside the few.
TRAIN = {
    "diabetes": 350,
    "Wage": 600,
    "Bikeshare": 600,
    "College": 600,
    "Hitters": 200,
    "Boston": 400,
}
OF_IMAGES = 600
#: Shares of wrong labels.
NOISES = (0.0, 0.2, 0.4)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Data, kernel and number of training points: the splits of one folder."""

    dataset: str
    kernel: str
    train: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.dataset}_{self.kernel}_{self.train}"

    @property
    def configuration(self) -> dict[str, Any]:
        """All that its rows depend on, but their number."""
        return dataclasses.asdict(self) | {
            "rounds": choices.ROUNDS,
            "folds": choices.FOLDS,
            "multipliers": choices.MULTIPLIERS.tolist(),
            "tolerances": choices.TOLERANCES.tolist(),
            "fixed tolerance": choices.FIXED,
            "held out, one part of": choices.HELD_OUT,
            "noises": NOISES if self.kernel == "ntk" else [0.0],
            "most test points": choice_data.MOST_TEST,
        }

    def problems(self, seed: int, tables: Path | None) -> dict[float, choice_data.Problem]:
        """One split, for every share of wrong labels."""
        if self.kernel == "ntk":
            return choice_data.images(self.dataset, self.train, seed, NOISES)
        return {0.0: choice_data.tabular(self.dataset, self.train, seed, tables)}


def settings() -> Iterator[Setting]:
    """Every one of the study."""
    for dataset, train in TRAIN.items():
        for number in (train, FEW):
            yield Setting(dataset, "matern", number)
    for dataset in choice_data.IMAGES:
        yield Setting(dataset, "ntk", OF_IMAGES)


def run(setting: Setting, folder: Path, splits: int, tables: Path | None) -> None:
    """Run the splits that the folder lacks; skip it where another process is at work on it."""
    with runs.alone(folder) as free:
        if not free:
            return
        records = Records(folder, setting.configuration)
        done = set(records["splits"].get("seed", []))
        left = [seed for seed in range(splits) if seed not in done]
        for seed in track(left, setting.name, len(left)):
            records.add("splits", rows_of(setting, seed, tables))


def _splits_done(folder: Path) -> int:
    is_there = (folder / "config.json").exists()
    return Records.open(folder)["splits"]["seed"].nunique() if is_there else 0


def rows_of(setting: Setting, seed: int, tables: Path | None) -> list[dict[str, Any]]:
    """A row for each rule, and share of wrong labels, of one split."""
    problems = setting.problems(seed, tables)
    first = next(iter(problems.values()))
    folds = choices.parts(first, choices.FOLDS)
    gram = first.kernel.values[: setting.train] / setting.train
    spectrum = sdntk.decompose(gram)
    rows = []
    with warnings.catch_warnings():
        # Said of some splits: that is what the study is about.
        warnings.simplefilter("ignore", sdntk.PrecisionWarning)
        warnings.simplefilter("ignore", sdntk.UndecidedWarning)
        for noise, problem in problems.items():
            for rule, predicted in choices.predictions(problem, spectrum, folds):
                rows.append(
                    {"seed": seed, "noise_rate": noise, "rule": rule, **problem.errors(predicted)}
                )
    return rows


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs whose names begin so. [default: all]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the runs are.")] = Path("choices"),
    tables: Annotated[Path | None, typer.Option(help="Of the .csv files of islp.")] = None,
    splits: Annotated[int, typer.Option(min=2, help="Of each setting.")] = SPLITS,
    gather: Annotated[
        bool, typer.Option("--gather", help="Run nothing: keep the tables of finished runs.")
    ] = False,
) -> None:
    """Run what is missing of the study, or keep what is finished."""
    jax.config.update("jax_enable_x64", True)
    mpl.use("agg")
    out.mkdir(parents=True, exist_ok=True)
    chosen = runs.chosen({setting.name: setting for setting in settings()}, names)
    if gather:
        keep([out / name for name in chosen if _splits_done(out / name) >= splits])
        return
    for name, setting in chosen.items():
        run(setting, out / name, splits, tables)


def keep(folders: list[Path]) -> None:
    """The tables of finished runs, and their figure."""
    if not folders:
        raise typer.BadParameter("no run is finished.")
    splits = choice_tables.read(folders)
    ratios = choice_tables.keep(splits, folders, KEPT, choices.REFERENCE)
    save_figures({"ratios": choice_tables.plot(ratios)}, KEPT)


if __name__ == "__main__":
    typer.run(main)
