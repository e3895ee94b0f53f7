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
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk._warnings import warn
from sdntk.datasets import Dataset, one_hot
from sdntk.datasets.labels import NoiseKind
from sdntk.distillation import Distillation, distill_spectrum
from sdntk.experiments.data import Split, first_test_images, sample_split
from sdntk.experiments.kernel_tables import Level, Planned, Tables, columns, tabulate
from sdntk.experiments.records import Records, with_rows
from sdntk.experiments.single_fits import compare_with_single_fits
from sdntk.gram_matrices.compute import gram
from sdntk.gram_matrices.operator import GramOperator, as_operator, kernel_operator
from sdntk.kernels import KernelFunction
from sdntk.spectra.base import AbstractSpectrum
from sdntk.spectra.choose import Choice, Method, krylov_or_dense
from sdntk.spectra.dense import decompose
from sdntk.spectra.fit import predict_all
from sdntk.spectra.nystrom import nystrom

#: Up to so many training images the default is an eigendecomposition (minutes); beyond, the Krylov
#: method.
DENSE_IMAGES = 6000
#: The single fits to choose from, beside the chains' own: their tolerances, as fractions of the
#: labels' mean square.
SINGLE_FITS = tuple(round(0.02 * step, 2) for step in range(1, 50))
#: Beside chains of a fixed multiplier: multipliers, as fractions of the largest eigenvalue.
SINGLE_MULTIPLIERS = tuple(10.0 ** (-step / 3) for step in range(22))
#: What settings are called in the configuration of records.
_NAMES_IN_RECORDS = {"noise_rate": "label_noise", "noise_kind": "noise", "rtol": "accuracy"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is done to the data, and how often.

    Attributes:
        train: K, the number of training images. held_out: images to choose by. test: images to
            judge by.
        tolerances: one chain for each, as fractions of the labels' mean square ||y||^2/K.
        multipliers: in their place, c in every round; one chain for each.
        rounds: T.
        noise_rate: the share of wrong training and held-out labels. noise_kind, flips: how they are
            wrong, see :func:`sdntk.datasets.label_noise`.
        outputs: "separate", a multiplier for each class, or "joint".
        unit_norm: scale images to norm 1 after standardising.
        method: "dense", "krylov", "nystrom", or "auto": the first up to :data:`DENSE_IMAGES`
            training images, then the second.
        rtol: of the Krylov method, the largest relative error of every round. gram_dtype: in which
            it keeps the values of the Gram matrix; of the Nystrom method, in which it computes.
        landmarks: of the Nystrom method, how many training images.
        seeds: one repetition for each.
    """

    train: int
    held_out: int
    test: int
    tolerances: tuple[float, ...] = ()
    multipliers: tuple[float, ...] = ()
    rounds: int = 10
    noise_rate: float = 0.2
    noise_kind: NoiseKind = "symmetric"
    flips: Mapping[int, int] | None = None
    outputs: Literal["separate", "joint"] = "separate"
    unit_norm: bool = False
    method: Literal["auto", "dense", "krylov", "nystrom"] = "auto"
    rtol: float = 1e-6
    gram_dtype: str = "float64"
    landmarks: int | None = None
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds must hold at least one seed.")
        if bool(self.tolerances) == bool(self.multipliers):
            raise ValueError(
                "tolerances must hold at least one tolerance, or multipliers one multiplier, and "
                "not both."
            )
        if self.method not in ("auto", "dense", "krylov", "nystrom"):
            raise ValueError(
                f'method must be "auto", "dense", "krylov" or "nystrom"; got {self.method!r}.'
            )
        if (self.method == "nystrom") != (self.landmarks is not None):
            raise ValueError('landmarks must be given for method "nystrom", and for no other.')
        for multiplier in self.multipliers:
            if not 0 < multiplier < np.inf:
                raise ValueError(f"multipliers must be positive numbers; got {multiplier}.")
        for tolerance in self.tolerances:
            if not 0 < tolerance < 1:
                raise ValueError(
                    "tolerances must be fractions of the labels' mean square, between 0 and 1; "
                    f"got {tolerance}."
                )

    @property
    def level(self) -> Level:
        """What a chain keeps in every round."""
        return "multiplier" if self.multipliers else "tolerance"

    @property
    def levels(self) -> tuple[float, ...]:
        """Of the chains."""
        return self.multipliers or self.tolerances

    @property
    def by_krylov(self) -> bool:
        """Whether the method is the Krylov method, be it by its name or by the number of images."""
        return self.method == "krylov" or (self.method == "auto" and self.train > DENSE_IMAGES)

    def configuration(self) -> dict[str, Any]:
        """The settings as records name them; the names in files do not change."""
        settings = dataclasses.asdict(self)
        for name in ("multipliers", "landmarks"):  # earlier versions had none of these
            if not settings[name]:
                del settings[name]
        return {_NAMES_IN_RECORDS.get(name, name): value for name, value in settings.items()}


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

    * ``rounds``: a row for each seed, tolerance (or multiplier) and round, with accuracies and
      losses;
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
    known = columns(experiment.level)
    tables = Tables(*(records.read(name, own) for name, own in known.items()))
    finished = _finished_seeds(tables, experiment)
    tables = Tables(*(table[table["seed"].isin(finished)] for table in tables))
    for seed in experiment.seeds:
        if seed not in finished:
            split = split_of(data, experiment, seed)
            folder = None if store is None else store / f"seed{seed}"
            rows = _run_seed(split, kernel, experiment, seed, folder)
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
    rounds = list(itertools.product(experiment.levels, range(experiment.rounds)))
    done = tables.rounds.groupby("seed")[[experiment.level, "round"]]
    whole = [seed for seed, rows in done if [*rows.itertuples(index=False, name=None)] == rounds]
    others = set(tables.classes["seed"]) & set(tables.single_fits["seed"])
    return [seed for seed in experiment.seeds if seed in whole and seed in others]


def _run_seed(
    split: Split[np.ndarray],
    kernel: KernelFunction,
    experiment: Experiment,
    seed: int,
    store: Path | None,
) -> Tables:
    labels = one_hot(split.noisy_labels, split.num_classes, centred=True)
    choice = _choose_spectrum(kernel, split.x_train, labels, experiment, seed, store)
    chains = plan(experiment, choice)
    runs = run_all(chains, choice.spectrum, labels, experiment)

    x_new = split.x_test
    if len(split.x_held_out):
        x_new = np.concatenate([split.x_held_out, split.x_test])
    if choice.spectrum.has_basis_on_points:
        fitted = [np.asarray(run.fitted) for run in runs]
        predictions = _predict(runs, kernel, split.x_train, x_new)
    else:  # one pass over the images for all chains, not one for each
        known, everywhere = len(split.x_train), np.concatenate([split.x_train, x_new])
        values = _predict(runs, kernel, choice.spectrum.dual_points, everywhere)
        fitted = [of_run[:, :known] for of_run in values]
        predictions = [of_run[:, known:] for of_run in values]
    return tabulate(chains, runs, fitted, predictions, split, experiment.level)


def _predict(
    runs: list[Distillation], kernel: KernelFunction, x: Any, x_new: Float[np.ndarray, "n ..."]
) -> list[Float[np.ndarray, "_ n Q"]]:
    return [np.asarray(v) for v in predict_all(runs, kernel, x, x_new)]


def plan(experiment: Experiment, choice: Choice) -> list[Planned]:
    """The chains of one seed: one for each tolerance or multiplier, and the single fits.

    A Krylov spectrum is accurate for the chains' levels and larger ones, and what landmarks cannot
    express makes small tolerances infeasible: levels smaller than all of the chains' are left out.
    """
    chains = [Planned(level, experiment.rounds, False) for level in experiment.levels]
    grid = SINGLE_FITS
    if experiment.level == "multiplier":
        d_max = float(choice.spectrum.largest)
        grid = tuple(float(f"{d_max * share:.3g}") for share in SINGLE_MULTIPLIERS)
    single_fits = sorted({*grid, *experiment.levels})
    if choice.method is not Method.DENSE:
        smallest = min(experiment.levels)
        single_fits = [level for level in single_fits if level >= smallest]
    return chains + [Planned(level, 1, True) for level in single_fits]


def run_all(
    chains: list[Planned],
    spectrum: AbstractSpectrum,
    labels: Float[Array, "K Q"],
    experiment: Experiment,
) -> list[Distillation]:
    """Every chain on one spectrum."""
    unit = _unit_of_levels(labels, experiment)

    def kept_level(chain: Planned) -> dict[str, Any]:
        return {experiment.level: chain.level * unit}

    return [
        distill_spectrum(
            spectrum,
            labels,
            rounds=chain.rounds,
            outputs=experiment.outputs,
            **kept_level(chain),
        )
        for chain in chains
    ]


def _unit_of_levels(labels: Float[Array, "K Q"], experiment: Experiment) -> Float[Array, "*P"]:
    """||y||^2/K, of which tolerances are fractions: for each class, or the mean of all; 1 for
    multipliers.
    """
    of_classes = jnp.mean(labels**2, axis=0)
    if experiment.level == "multiplier":
        of_classes = jnp.ones_like(of_classes)
    return of_classes if experiment.outputs == "separate" else jnp.mean(of_classes)


def _choose_spectrum(
    kernel: KernelFunction,
    x: Float[np.ndarray, "K ..."],
    labels: Float[Array, "K Q"],
    experiment: Experiment,
    seed: int,
    store: Path | None,
) -> Choice:
    """By the experiment's method; the dense one where the Krylov method fails and memory allows
    it.
    """

    def dense() -> AbstractSpectrum:
        return decompose(gram(kernel, x))

    if experiment.method == "nystrom":
        key = jax.random.fold_in(jax.random.key(seed), 2)
        dtype = None if experiment.gram_dtype == "float64" else experiment.gram_dtype
        spectrum = nystrom(kernel, x, labels, landmarks=experiment.landmarks, key=key, dtype=dtype)
        return Choice(spectrum, Method.NYSTROM, "as asked for")
    if not experiment.by_krylov:
        return Choice(dense(), Method.DENSE, "as asked for")
    unit = jnp.atleast_1d(_unit_of_levels(labels, experiment))
    levels: dict[str, Any] = {experiment.level: jnp.array(experiment.levels)[:, None] * unit[None]}
    choice = krylov_or_dense(
        lambda: _operator(kernel, x, experiment, store),
        dense,
        labels,
        num_points=len(x),
        rounds=experiment.rounds,
        **levels,
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
