"""scikit-learn's KernelRidge, tuned by ten folds, beside an estimator that tunes itself, on the
data of the study "Does it pay?".

``python -m benchmarks.estimator_study --tables FOLDER`` runs what its folder lacks (some hours
on two cores, most of them for images), ``--gather`` puts the finished runs into
benchmarks/results/estimators.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import scipy.linalg
import typer
from jaxtyping import Float
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, KFold

import sdntk
from benchmarks import choice_data, choice_study, choice_tables, report, runs
from sdntk import SelfDistilledClassifier, SelfDistilledRegressor
from sdntk._progress import track
from sdntk.estimators.choosing import MULTIPLIERS
from sdntk.estimators.gram_values import SCALES, median_distance
from sdntk.experiments.records import Records

KEPT = report.RESULTS / "estimators"
FOLDS = KFold(10)
REFERENCE = "KernelRidge, 10 folds"
#: What is compared with it: parameters of the estimator.
RULES: dict[str, dict[str, Any]] = {
    "auto": {"length_scale": "auto"},
    "auto, by GCV": {"length_scale": "auto", "criterion": "gcv"},
    "tolerance of 1%, one round": {"tolerance": 0.01, "rounds": 1},
    "tolerance of 1%, rounds chosen": {"tolerance": 0.01, "rounds": "auto"},
    "tolerance of 1%, rounds by GCV": {"tolerance": 0.01, "rounds": "auto", "criterion": "gcv"},
}


class Data(NamedTuple):
    """One split, with labels as they are fitted: classes are noisy, test labels are right."""

    x: Float[np.ndarray, "K p"]
    y: np.ndarray
    x_test: Float[np.ndarray, "n p"]
    y_test: np.ndarray

    @property
    def is_classification(self) -> bool:
        """Whether labels are classes."""
        return self.y.dtype.kind == "i"

    @property
    def targets(self) -> Float[np.ndarray, "K *Q"]:
        """What least squares are of."""
        return np.eye(int(self.y_test.max()) + 1)[self.y] if self.is_classification else self.y

    def error(self, predicted: np.ndarray) -> float:
        """The mean squared error, or the share of wrong classes."""
        if self.is_classification:
            return float(np.mean(predicted != self.y_test))
        return float(np.mean((predicted - self.y_test) ** 2))


def data_of(
    setting: choice_study.Setting, seed: int, tables: Path | None
) -> Iterator[tuple[float, Data]]:
    """One split, for every share of wrong labels."""
    train = setting.train
    if setting.kernel != "ntk":
        x, y = choice_data.table_split(setting.dataset, train, seed, tables)
        yield 0.0, Data(x[:train], y[:train], x[train:], y[train:])
        return
    split = choice_data.image_split(setting.dataset, train, seed, choice_study.NOISES)
    x = split.points.reshape(len(split.points), -1).astype(float)
    if x.shape[1] > train:
        x = in_span(x, train)
    for noise, noisy in split.noisy.items():
        yield noise, Data(x[:train], np.asarray(noisy), x[train:], split.right[train:])


def in_span(x: Float[np.ndarray, "N p"], train: int) -> Float[np.ndarray, "N q"]:
    """Fewer coordinates, with the same distances from training points (the first ones): those in
    the training points' span, and how far a point lies from it.
    """
    basis = np.linalg.qr(x[:train].T)[0]
    inside = x @ basis
    outside = np.linalg.norm(x - inside @ basis.T, axis=1)
    outside[:train] = 0
    return np.column_stack([inside, outside])


# ---- the reference ----


def tuned_kernel_ridges(data: list[Data]) -> list[tuple[KernelRidge, dict[str, float]]]:
    """What GridSearchCV over multipliers and length scales chooses by squared error, and its
    parameters, for several labels of the same points: one eigendecomposition for each fold and
    length scale.
    """
    x, centred = data[0].x, [one.targets - one.targets.mean(axis=0) for one in data]
    best: list[tuple[float, dict[str, float]]] = [(np.inf, {}) for _ in data]
    for gamma, alphas in _grid(data[0]).items():
        all_errors = _errors_of_folds(_rbf(x, gamma), centred, alphas)
        for number, errors in enumerate(all_errors):
            if errors.min() < best[number][0]:
                alpha = float(alphas[np.argmin(errors)])
                best[number] = (float(errors.min()), {"gamma": gamma, "alpha": alpha})
    return [
        (KernelRidge(kernel="rbf", **chosen).fit(x, labels), chosen)
        for labels, (_, chosen) in zip(centred, best, strict=True)
    ]


def _grid(data: Data) -> dict[float, Float[np.ndarray, " L"]]:
    """Multipliers (scikit-learn's alphas) for each length scale (its gammas)."""
    median = median_distance(data.x)
    return {1 / (2 * (scale * median) ** 2): len(data.x) * MULTIPLIERS for scale in SCALES}


def _rbf(x: Float[np.ndarray, "K p"], gamma: float) -> Float[np.ndarray, "K K"]:
    return KernelRidge(kernel="rbf", gamma=gamma)._get_kernel(x)


def _errors_of_folds(
    gram: Float[np.ndarray, "K K"],
    labels: list[Float[np.ndarray, "K *Q"]],
    alphas: Float[np.ndarray, " L"],
) -> Float[np.ndarray, "n L"]:
    """The mean over folds of the mean squared error, for all labels and every alpha."""
    errors = []
    for kept, left in FOLDS.split(gram):
        d, vectors = scipy.linalg.eigh(gram[np.ix_(kept, kept)], driver="evd")
        cross = gram[np.ix_(left, kept)] @ vectors
        of_fold = []
        for y in labels:
            rotated = vectors.T @ y[kept].reshape(len(kept), -1)
            filtered = rotated[None] / (d[None, :, None] + alphas[:, None, None])
            residuals = cross @ filtered - y[left].reshape(len(left), -1)
            of_fold.append(np.mean(residuals**2, axis=(1, 2)))
        errors.append(of_fold)
    return np.mean(errors, axis=0)


# ---- splits ----


def predictions(data: Data, model: KernelRidge) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Each rule, its test error, and what it took and chose; ``model`` is the reference."""
    outputs = model.predict(data.x_test) + data.targets.mean(axis=0)
    predicted = outputs.argmax(axis=1) if data.is_classification else outputs
    yield REFERENCE, data.error(predicted), {"rounds": 1}
    make: Any = SelfDistilledClassifier if data.is_classification else SelfDistilledRegressor
    for rule, parameters in RULES.items():
        start = time.perf_counter()
        try:
            fitted = make(**parameters).fit(data.x, data.y)
        except ValueError as error:
            if "infeasible" not in str(error):
                raise
            continue  # equal points with other labels
        seconds = time.perf_counter() - start
        yield (
            rule,
            data.error(fitted.predict(data.x_test)),
            {
                "rounds": fitted.rounds_,
                "seconds": seconds,
            },
        )


def rows_of(setting: choice_study.Setting, seed: int, tables: Path | None) -> list[dict[str, Any]]:
    """A row for each rule, and share of wrong labels, of one split."""
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sdntk.PrecisionWarning)
        warnings.simplefilter("ignore", sdntk.UndecidedWarning)
        problems = dict(data_of(setting, seed, tables))
        references = tuned_kernel_ridges(list(problems.values()))
        for (noise, data), (model, _) in zip(problems.items(), references, strict=True):
            for rule, error, found in predictions(data, model):
                row = {"seed": seed, "noise_rate": noise, "rule": rule, "error": error}
                rows.append(row | {"rounds": None, "seconds": None} | found)
    return rows


def seconds_of(work: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def times_of(setting: choice_study.Setting, tables: Path | None) -> list[dict[str, Any]]:
    """Seconds of GridSearchCV itself, and of the estimator's second fits, on the first split."""
    data = next(data_of(setting, 0, tables))[1]
    centred = data.targets - data.targets.mean(axis=0)
    grid = [{"gamma": [gamma], "alpha": alphas} for gamma, alphas in _grid(data).items()]
    search = GridSearchCV(
        KernelRidge(kernel="rbf"), grid, cv=FOLDS, scoring="neg_mean_squared_error"
    )
    make: Any = SelfDistilledClassifier if data.is_classification else SelfDistilledRegressor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = {REFERENCE: seconds_of(lambda: search.fit(data.x, centred))}
        for rule in ("auto", "auto, by GCV"):
            ours = make(**RULES[rule]).fit(data.x, data.y)
            row[rule] = seconds_of(partial(ours.fit, data.x, data.y))
    assert search.best_params_ == tuned_kernel_ridges([data])[0][1]
    return [row]


def run(setting: choice_study.Setting, folder: Path, splits: int, tables: Path | None) -> None:
    """Run the splits that the folder lacks; skip it where another process is at work on it."""
    configuration = {
        "dataset": setting.dataset,
        "kernel": "rbf",
        "train": setting.train,
        "multipliers": MULTIPLIERS.tolist(),
        "scales": list(SCALES),
        "rules": RULES,
        "most test points": choice_data.MOST_TEST,
    }
    with runs.alone(folder) as free:
        if not free:
            return
        records = Records(folder, configuration)
        done = set(records["splits"].get("seed", []))
        left = [seed for seed in range(splits) if seed not in done]
        for seed in track(left, folder.name, len(left)):
            records.add("splits", rows_of(setting, seed, tables))
        if len(records["times"]) == 0:
            records.add("times", times_of(setting, tables))


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs whose names begin so. [default: all]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the runs are.")] = Path("estimators"),
    tables: Annotated[Path | None, typer.Option(help="Of the .csv files of islp.")] = None,
    splits: Annotated[int, typer.Option(min=2, help="Of each setting.")] = choice_study.SPLITS,
    gather: Annotated[
        bool, typer.Option("--gather", help="Run nothing: keep the tables of finished runs.")
    ] = False,
) -> None:
    """Run what is missing, or keep what is finished."""
    jax.config.update("jax_enable_x64", True)
    out.mkdir(parents=True, exist_ok=True)
    every = {f"{s.dataset}_{s.train}": s for s in choice_study.settings()}
    chosen = runs.chosen(every, names)
    if gather:
        keep([out / name for name in chosen if (out / name / "times.csv").exists()])
        return
    for name, setting in chosen.items():
        run(setting, out / name, splits, tables)


def keep(folders: list[Path]) -> None:
    """The tables of finished runs."""
    if not folders:
        raise typer.BadParameter("no run is finished.")
    splits, times = [], []
    for folder in folders:
        records = Records.open(folder)
        setting = {name: records.configuration[name] for name in ("dataset", "kernel", "train")}
        splits.append(records["splits"].assign(**setting))
        times.append(records["times"].assign(**setting))
    choice_tables.keep(pd.concat(splits, ignore_index=True), folders, KEPT, REFERENCE)
    pd.concat(times, ignore_index=True).round(4).to_csv(KEPT / "times.csv", index=False)


if __name__ == "__main__":
    typer.run(main)
