"""Self-distillation of a kernel classifier on images, as section 5 of the paper does it with
networks, and its baseline.

Each seed samples its own training and held-out images and its own label noise. Accuracy is measured
round by round against the original labels. Beside every chain stands what a practitioner would do
without distillation: one fit, whose tolerance is chosen on the held-out images, as the chain's best
round is.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int

from sdntk._warnings import warn
from sdntk.datasets import Dataset, one_hot
from sdntk.datasets.labels import NoiseKind
from sdntk.distillation import Distillation, distill_spectrum
from sdntk.experiments.data import Split, first_test_images, sample_split
from sdntk.experiments.records import Records, with_rows
from sdntk.experiments.single_fits import compare_with_single_fits
from sdntk.experiments.tables import Columns
from sdntk.gram_matrices.compute import gram
from sdntk.gram_matrices.operator import GramOperator, as_operator, kernel_operator
from sdntk.kernels import KernelFunction
from sdntk.spectra.base import AbstractSpectrum
from sdntk.spectra.choose import Choice, Method, krylov_or_dense
from sdntk.spectra.dense import decompose
from sdntk.spectra.fit import predict_all
from sdntk.theory.multiplier import Status

#: Up to so many training images the default is an eigendecomposition (minutes); beyond, the Krylov
#: method.
DENSE_IMAGES = 6000
#: The single fits to choose from, beside the chains' own: their tolerances, as fractions of the
#: labels' mean square.
SINGLE_FITS = tuple(round(0.02 * step, 2) for step in range(1, 50))
#: What settings are called in the configuration of records.
_NAMES_IN_RECORDS = {"noise_rate": "label_noise", "noise_kind": "noise", "rtol": "accuracy"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is done to the data, and how often. Tolerances are fractions of the labels' mean square
    ||y||^2/K.

    Attributes:
        train: K, the number of training images. held_out: images to choose by. test: images to
            judge by.
        tolerances: one chain for each.
        rounds: T.
        noise_rate: the share of wrong training and held-out labels. noise_kind, flips: how they are
            wrong, see :func:`sdntk.datasets.label_noise`.
        outputs: "separate", a multiplier for each class, or "joint".
        unit_norm: scale images to norm 1 after standardising.
        method: "dense", "krylov", or "auto": the first up to :data:`DENSE_IMAGES` training images.
        rtol: of the Krylov method, the largest relative error of every round. gram_dtype: in which
            it keeps the values of the Gram matrix.
        seeds: one repetition for each.
    """

    train: int
    held_out: int
    test: int
    tolerances: tuple[float, ...]
    rounds: int = 10
    noise_rate: float = 0.2
    noise_kind: NoiseKind = "symmetric"
    flips: Mapping[int, int] | None = None
    outputs: Literal["separate", "joint"] = "separate"
    unit_norm: bool = False
    method: Literal["auto", "dense", "krylov"] = "auto"
    rtol: float = 1e-6
    gram_dtype: str = "float64"
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds must hold at least one seed.")
        if not self.tolerances:
            raise ValueError("tolerances must hold at least one tolerance.")
        if self.method not in ("auto", "dense", "krylov"):
            raise ValueError(f'method must be "auto", "dense" or "krylov"; got {self.method!r}.')
        for tolerance in self.tolerances:
            if not 0 < tolerance < 1:
                raise ValueError(
                    "tolerances must be fractions of the labels' mean square, between 0 and 1; "
                    f"got {tolerance}."
                )

    @property
    def by_krylov(self) -> bool:
        """Whether the method is the Krylov method, be it by its name or by the number of images."""
        return self.method == "krylov" or (self.method == "auto" and self.train > DENSE_IMAGES)

    def configuration(self) -> dict[str, Any]:
        """The settings as records name them; the names in files do not change."""
        settings = dataclasses.asdict(self)
        return {_NAMES_IN_RECORDS.get(name, name): value for name, value in settings.items()}


class Planned(NamedTuple):
    """One chain to run."""

    tolerance: float  # as a fraction of the labels' mean square
    rounds: int
    is_single_fit: bool


class Tables(NamedTuple):
    """What is recorded: see :func:`run`."""

    rounds: pd.DataFrame
    classes: pd.DataFrame
    single_fits: pd.DataFrame


_CHAIN: Columns = {"seed": int, "tolerance": float, "round": int}
_MEASURED: Columns = {
    **_CHAIN,
    **dict.fromkeys(["train_accuracy", "noisy_train_accuracy", "held_out_accuracy"], float),
    **dict.fromkeys(["test_accuracy", "train_loss", "test_loss", "training_loss"], float),
    "error_bound": float,
    "active_classes": int,
}
_OF_CLASSES: Columns = {
    **_CHAIN,
    "class": int,
    "multiplier": float,
    "status": str,
    "training_loss": float,
    "norm": float,
}
#: The columns of :class:`Tables`.
COLUMNS = {"rounds": _MEASURED, "classes": _OF_CLASSES, "single_fits": _MEASURED}


def split_of(data: Dataset, experiment: Experiment, seed: int) -> Split[np.ndarray]:
    """A seed's images and labels."""
    subset_key, noise_key = jax.random.split(jax.random.key(seed))
    return sample_split(
        data,
        subset_key,
        noise_key,
        train=experiment.train,
        held_out=experiment.held_out,
        test=first_test_images(data, experiment.test),
        noise_rate=experiment.noise_rate,
        noise_kind=experiment.noise_kind,
        flips=experiment.flips,
        unit_norm=experiment.unit_norm,
    )


def run(
    data: Dataset,
    kernel: KernelFunction,
    experiment: Experiment,
    records: Records,
    *,
    store: Path | None = None,
) -> Iterator[int]:
    """Run every seed that the records lack, write its rows, and yield it. The records then hold
    these tables.

    * ``rounds``: a row for each seed, tolerance and round, with accuracies and losses;
    * ``classes``: a row for each of those and each class, with multiplier, status, training loss
      and norm;
    * ``single_fits``: a row for each seed and each single fit, with the same measurements as
      ``rounds``;
    * ``comparison``: see :func:`~sdntk.experiments.single_fits.compare_with_single_fits`.

    The Krylov method keeps its Gram matrix in the folder ``store``, a seed's own within it, and
    resumes from what is there; in memory when that is None. Its single fits are at no smaller
    tolerances than the chains', for which steps are taken. Where it does not reach its relative
    error, and memory allows it, an eigendecomposition takes over, with a warning.
    """
    tables = Tables(*(records.read(name, columns) for name, columns in COLUMNS.items()))
    finished = _finished_seeds(tables, experiment)
    tables = Tables(*(table[table["seed"].isin(finished)] for table in tables))
    for seed in experiment.seeds:
        if seed not in finished:
            split = split_of(data, experiment, seed)
            folder = None if store is None else store / f"seed{seed}"
            rows = _run_seed(split, kernel, experiment, folder)
            for table in rows:
                table.insert(0, "seed", seed)
            both = zip(tables, rows, strict=True)
            tables = Tables(*(with_rows(old, new, by=["seed"]) for old, new in both))
        for name, table in tables._asdict().items():
            records.put(name, table)
        records.put("comparison", compare_with_single_fits(tables.rounds, tables.single_fits))
        yield seed


def _finished_seeds(tables: Tables, experiment: Experiment) -> list[int]:
    """Those that have all their rounds, and rows in the other tables."""
    rounds = list(itertools.product(experiment.tolerances, range(experiment.rounds)))
    done = tables.rounds.groupby("seed")[["tolerance", "round"]]
    whole = [seed for seed, rows in done if [*rows.itertuples(index=False, name=None)] == rounds]
    others = set(tables.classes["seed"]) & set(tables.single_fits["seed"])
    return [seed for seed in experiment.seeds if seed in whole and seed in others]


def _run_seed(
    split: Split[np.ndarray], kernel: KernelFunction, experiment: Experiment, store: Path | None
) -> Tables:
    labels = one_hot(split.noisy_labels, split.num_classes, centred=True)
    choice = _choose_spectrum(kernel, split.x_train, labels, experiment, store)
    chains = plan(experiment, choice.method)
    runs = run_all(chains, choice.spectrum, labels, experiment)
    x_new = jnp.asarray(np.concatenate([split.x_held_out, split.x_test]))
    predictions = predict_all(runs, kernel, jnp.asarray(split.x_train), x_new)
    return tabulate(chains, runs, [np.asarray(values) for values in predictions], split)


def plan(experiment: Experiment, method: Method) -> list[Planned]:
    """The chains of one seed: one for each tolerance, and the single fits.

    A Krylov spectrum is accurate for the chains' tolerances and larger ones, so smaller ones are
    left out.
    """
    chains = [Planned(tolerance, experiment.rounds, False) for tolerance in experiment.tolerances]
    single_fits = sorted({*SINGLE_FITS, *experiment.tolerances})
    if method is Method.KRYLOV:
        smallest = min(experiment.tolerances)
        single_fits = [tolerance for tolerance in single_fits if tolerance >= smallest]
    return chains + [Planned(tolerance, 1, True) for tolerance in single_fits]


def run_all(
    chains: list[Planned],
    spectrum: AbstractSpectrum,
    labels: Float[Array, "K Q"],
    experiment: Experiment,
) -> list[Distillation]:
    """Every chain on one spectrum."""
    scale = _mean_square(labels, experiment)
    return [
        distill_spectrum(
            spectrum,
            labels,
            tolerance=chain.tolerance * scale,
            rounds=chain.rounds,
            outputs=experiment.outputs,
        )
        for chain in chains
    ]


def _mean_square(labels: Float[Array, "K Q"], experiment: Experiment) -> Float[Array, "*P"]:
    """||y||^2/K, of which tolerances are fractions: for each class, or the mean of all."""
    of_classes = jnp.mean(labels**2, axis=0)
    return of_classes if experiment.outputs == "separate" else jnp.mean(of_classes)


def _choose_spectrum(
    kernel: KernelFunction,
    x: Float[np.ndarray, "K ..."],
    labels: Float[Array, "K Q"],
    experiment: Experiment,
    store: Path | None,
) -> Choice:
    """By the experiment's method; the dense one where the Krylov method fails and memory allows
    it.
    """

    def dense() -> AbstractSpectrum:
        return decompose(gram(kernel, x))

    if not experiment.by_krylov:
        return Choice(dense(), Method.DENSE, "as asked for")
    scale = jnp.atleast_1d(_mean_square(labels, experiment))
    choice = krylov_or_dense(
        lambda: _operator(kernel, x, experiment, store),
        dense,
        labels,
        num_points=len(x),
        tolerance=jnp.array(experiment.tolerances)[:, None] * scale[None],
        rounds=experiment.rounds,
        outputs=experiment.outputs,
        rtol=experiment.rtol,
    )
    if choice.method is Method.DENSE:
        warn(f"An eigendecomposition takes over: {choice.reason}.", UserWarning)
    return choice


def _operator(
    kernel: KernelFunction,
    x: Float[np.ndarray, "K ..."],
    experiment: Experiment,
    store: Path | None,
) -> GramOperator:
    """The Gram matrix of the Krylov method, in memory or on the disk."""
    if store is None:
        return kernel_operator(kernel, x, keep=True, dtype=experiment.gram_dtype)
    return as_operator(gram(kernel, x, path=store, dtype=experiment.gram_dtype))


def tabulate(
    chains: list[Planned],
    runs: list[Distillation],
    predictions: list[Float[np.ndarray, "_ n Q"]],
    split: Split[np.ndarray],
) -> Tables:
    """The tables of one seed, from every chain and its predictions at held-out and test images."""
    rounds, classes, single_fits = [], [], []
    for chain, run, new in zip(chains, runs, predictions, strict=True):
        measured = measure(run, new, split)
        measured.insert(0, "tolerance", chain.tolerance)
        if chain.is_single_fit:
            single_fits.append(measured)
        else:
            rounds.append(measured)
            of_classes = per_class(run)
            of_classes.insert(0, "tolerance", chain.tolerance)
            classes.append(of_classes)
    return Tables(
        *(pd.concat(parts, ignore_index=True) for parts in (rounds, classes, single_fits))
    )


def measure(
    run: Distillation, predictions: Float[np.ndarray, "T n Q"], split: Split[np.ndarray]
) -> pd.DataFrame:
    """For each round: accuracy on training (original and noisy labels), held-out (noisy) and test
    images, and losses.

    ``train_loss`` and ``test_loss`` are mean squared distances to the original labels' rows,
    ``training_loss`` to the round's own targets. A class that has collapsed predicts 0; where all
    have, every image counts as the first class. ``error_bound`` is that of the Krylov method on
    multipliers and fitted values, the largest over classes.
    """
    fitted = np.asarray(run.fitted)
    rounds, num_held_out = len(fitted), len(split.x_held_out)
    held_out, test = predictions[:, :num_held_out], predictions[:, num_held_out:]

    def loss(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        rows = np.asarray(one_hot(labels, split.num_classes, centred=True))
        return np.mean((outputs - rows) ** 2, axis=(1, 2))

    columns = {
        "round": np.arange(rounds),
        "train_accuracy": _accuracy(fitted, split.clean_labels),
        "noisy_train_accuracy": _accuracy(fitted, split.noisy_labels),
        "held_out_accuracy": _accuracy(held_out, split.held_out_labels),
        "test_accuracy": _accuracy(test, split.test_labels),
        "train_loss": loss(fitted, split.clean_labels),
        "test_loss": loss(test, split.test_labels),
        "training_loss": np.reshape(run.training_loss, (rounds, -1)).mean(axis=1),
        "error_bound": _error_bound(run),
        "active_classes": _active_classes(run, split.num_classes),
    }
    return pd.DataFrame(columns)


def _accuracy(
    outputs: Float[np.ndarray, "T n Q"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " T"]:
    """The share of images whose largest output is their class; nan of no images."""
    if not len(labels):
        return np.full(len(outputs), np.nan)
    return np.mean(outputs.argmax(axis=-1) == labels, axis=-1)


def _error_bound(run: Distillation) -> Float[np.ndarray, " T"]:
    """The largest bound over classes, on multipliers and on fitted values; nan where there is
    none.
    """
    rounds = len(run.status)
    if run.error_bounds is None:
        return np.full(rounds, np.nan)
    largest = [np.reshape(bound, (rounds, -1)).max(axis=1) for bound in run.error_bounds]
    return np.max(largest, axis=0)


def _active_classes(run: Distillation, num_classes: int) -> Int[np.ndarray, " T"]:
    """How many classes have not collapsed; with joint outputs all or none."""
    active = np.asarray(run.status) == Status.ACTIVE
    return active.sum(axis=1) if active.ndim == 2 else active * num_classes


def per_class(run: Distillation) -> pd.DataFrame:
    """For each round and class: multiplier, status, training loss and norm; with joint outputs one
    "class", -1, for all.
    """
    multipliers = np.asarray(run.multipliers)
    rounds = len(multipliers)
    classes = np.arange(multipliers.shape[1]) if multipliers.ndim == 2 else np.array([-1])
    columns = {
        "round": np.repeat(np.arange(rounds), len(classes)),
        "class": np.tile(classes, rounds),
        "multiplier": multipliers.ravel(),
        "status": [Status(code).name.lower() for code in np.ravel(run.status).tolist()],
        "training_loss": np.ravel(run.training_loss),
        "norm": np.ravel(run.norms),
    }
    return pd.DataFrame(columns)
