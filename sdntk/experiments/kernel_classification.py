"""Self-distillation of a kernel classifier on images, as section 5 of the paper does it with
networks, and its baseline.

Each seed draws its own training and held-out images and its own label noise. Accuracy is measured
round by round against the original labels. Beside every chain stands what a practitioner would do
without distillation: one fit, whose tolerance is chosen on the held-out images, as the chain's best
round is.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from sdntk import _memory
from sdntk._linalg import matmul
from sdntk._progress import track
from sdntk.datasets import Dataset, balanced_subsets, label_noise, one_hot, standardise
from sdntk.distillation import Distillation, distill_spectrum
from sdntk.experiments.data import Draw
from sdntk.experiments.records import Records
from sdntk.gram_matrices.compute import gram
from sdntk.gram_matrices.operator import GramOperator, as_operator, kernel_operator
from sdntk.kernels.base import KernelFunction, kernel_block
from sdntk.spectra.dense import Spectrum, decompose
from sdntk.spectra.krylov import AccuracyError, krylov
from sdntk.spectra.krylov_spectrum import KrylovSpectrum
from sdntk.theory.multiplier import Status

#: Up to so many training images the default is an eigendecomposition (minutes); beyond, the Krylov
#: method.
DENSE_IMAGES = 6000
#: The single fits to choose from, beside the chains' own: their tolerances, as fractions of the
#: labels' mean square.
SINGLE_FITS = tuple(round(0.02 * step, 2) for step in range(1, 50))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is done to the data, and how often. Tolerances are fractions of the labels' mean square
    ||y||^2/K.

    Attributes:
        train: K, the number of training images; held_out, test: of those to choose by, and to judge
            by.
        tolerances: one chain for each.
        rounds: T. label_noise: the share of wrong training and held-out labels. noise, flips: its
            kind, see :func:`sdntk.datasets.label_noise`.
        outputs: "separate", a multiplier for each class, or "joint".
        unit_norm: scale images to norm 1 after standardising.
        method: "dense", "krylov", or "auto": the first up to :data:`DENSE_IMAGES` training images.
        accuracy: of the Krylov method; gram_dtype: in which it keeps the values of the Gram matrix.
        seeds: one repetition for each.
    """

    train: int
    held_out: int
    test: int
    tolerances: tuple[float, ...]
    rounds: int = 10
    label_noise: float = 0.2
    noise: Any = "symmetric"
    flips: Mapping[int, int] | None = None
    outputs: Any = "separate"
    unit_norm: bool = False
    method: Any = "auto"
    accuracy: float = 1e-6
    gram_dtype: Any = "float64"
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds must hold at least one seed.")
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
        return bool(
            self.method == "krylov" or (self.method == "auto" and self.train > DENSE_IMAGES)
        )


def draw(data: Dataset, experiment: Experiment, seed: int) -> Draw:
    """A seed's training and held-out images, disjoint and balanced by class, and the label
    noise.
    """
    choice, noise = jax.random.split(jax.random.key(seed))
    sizes = [experiment.train, *([experiment.held_out] if experiment.held_out else [])]
    train, *others = balanced_subsets(data.train_labels, sizes, choice)
    held_out = np.concatenate([*others, np.zeros(0, int)])
    if not 0 < experiment.test <= len(data.test_labels):
        raise ValueError(
            f"test must be from 1 to {len(data.test_labels)}, the test images there are; got "
            f"{experiment.test}."
        )
    labels = data.train_labels[np.concatenate([train, held_out])]
    noisy = label_noise(
        labels,
        experiment.label_noise,
        noise,
        data.num_classes,
        kind=experiment.noise,
        flips=experiment.flips,
    )
    new = np.concatenate([data.train_images[held_out], data.test_images[: experiment.test]])
    x_train, x_new = standardise(data.train_images[train], new, unit_norm=experiment.unit_norm)
    return Draw(
        x_train,
        x_new,
        labels[: len(train)],
        noisy[: len(train)],
        noisy[len(train) :],
        data.test_labels[: experiment.test],
        data.num_classes,
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
    * ``comparison``: see :func:`compare`.

    The Krylov method keeps its Gram matrix in the folder ``store``, a seed's own within it, and
    goes on with what is there; in memory when that is None. Its single fits are at no smaller
    tolerances than the chains', for which steps are taken. Where it does not reach its accuracy,
    and memory allows it, an eigendecomposition takes over, with a warning.
    """
    done = set(records["single_fits"].get("seed", ()))  # the table that is written last
    for seed in experiment.seeds:
        if seed not in done:
            _run_seed(draw(data, experiment, seed), kernel, experiment, records, seed, store)
        records.put("comparison", compare(records["rounds"], records["single_fits"]))
        yield seed


def _run_seed(
    drawn: Draw,
    kernel: KernelFunction,
    experiment: Experiment,
    records: Records,
    seed: int,
    store: Path | None,
) -> None:
    labels = one_hot(drawn.noisy, drawn.num_classes, centred=True)
    mean_square = jnp.mean(labels**2, axis=0, keepdims=True)
    scale = (
        mean_square if experiment.outputs == "separate" else jnp.mean(mean_square, keepdims=True)
    )
    tolerances = jnp.array(experiment.tolerances)[:, None] * scale
    spectrum = _spectrum(
        kernel,
        drawn.x_train,
        labels,
        tolerances,
        experiment,
        None if store is None else store / f"seed{seed}",
    )

    def chain(fraction: float, rounds: int) -> Distillation:
        tolerance = fraction * (scale[0] if experiment.outputs == "separate" else scale[0, 0])
        return distill_spectrum(
            spectrum, labels, tolerance=tolerance, rounds=rounds, outputs=experiment.outputs
        )

    fits = sorted({*SINGLE_FITS, *experiment.tolerances})
    if isinstance(spectrum, KrylovSpectrum):
        fits = [fraction for fraction in fits if fraction >= min(experiment.tolerances)]
    planned = [("rounds", fraction, experiment.rounds) for fraction in experiment.tolerances]
    planned += [("single_fits", fraction, 1) for fraction in fits]
    runs = [chain(fraction, rounds) for _, fraction, rounds in planned]
    tables: dict[str, list[dict[str, Any]]] = {"rounds": [], "classes": [], "single_fits": []}
    for (table, fraction, _), run, new in zip(
        planned, runs, _predictions(kernel, drawn, runs), strict=True
    ):
        tables[table] += [
            {"seed": seed, "tolerance": fraction, **row} for row in measure(run, new, drawn)
        ]
        if table == "rounds":
            tables["classes"] += [
                {"seed": seed, "tolerance": fraction, **row} for row in per_class(run)
            ]
    for table, rows in tables.items():
        others = records[table]
        kept = (
            others[others["seed"] != seed] if len(others) else others
        )  # of a run that was killed between two tables
        records.put(table, pd.concat([kept, pd.DataFrame(rows)], ignore_index=True))


def _spectrum(
    kernel: KernelFunction,
    x: Float[np.ndarray, "K ..."],
    labels: Float[Array, "K Q"],
    tolerances: Float[Array, "n P"],
    experiment: Experiment,
    store: Path | None,
) -> Spectrum | KrylovSpectrum:
    """By the experiment's method; the dense one where the Krylov method fails and memory allows
    it.
    """
    if experiment.by_krylov:
        try:
            return krylov(
                _products(kernel, x, experiment, store),
                labels,
                tolerance=tolerances,
                rounds=experiment.rounds,
                outputs=experiment.outputs,
                rtol=experiment.accuracy,
            )
        except AccuracyError as error:
            failed = error.with_traceback(
                None
            )  # which would keep the Gram matrix and the Lanczos vectors in memory
        if not _memory.dense_path_fits(len(x)):
            raise failed
        warnings.warn(
            f"An eigendecomposition takes over, since the Krylov method failed: {failed}",
            stacklevel=2,
        )
    return decompose(gram(kernel, x))


def _products(
    kernel: KernelFunction,
    x: Float[np.ndarray, "K ..."],
    experiment: Experiment,
    store: Path | None,
) -> GramOperator:
    """The Gram matrix of the Krylov method, in memory or on the disk."""
    if store is None:
        return kernel_operator(kernel, x, keep=True, dtype=experiment.gram_dtype)
    return as_operator(gram(kernel, x, path=store, dtype=experiment.gram_dtype))


#: Predictions are made of all rounds of all chains together, at so many images from so many
#: training images at a time.
_AT_ONCE, _FROM = 500, 5000


def _predictions(
    kernel: KernelFunction, drawn: Draw, runs: list[Distillation]
) -> list[Float[np.ndarray, "T n Q"]]:
    """Every run's predictions for the new images."""
    duals = [np.moveaxis(np.asarray(run.dual_coefficients), 1, 0) for run in runs]
    shapes = [dual.shape[1:] for dual in duals]
    columns = np.concatenate([dual.reshape(len(dual), -1) for dual in duals], axis=1)
    del duals
    known, new = drawn.x_train, drawn.x_new
    parts = [slice(start, start + _FROM) for start in range(0, len(known), _FROM)]

    def at(images: Float[np.ndarray, "n H W C"]) -> np.ndarray:
        """In parts: images are on the device, and their Gram matrix is, as few at a time."""
        terms = (
            matmul(
                kernel_block(kernel, jnp.asarray(images), jnp.asarray(known[part])),
                jnp.asarray(columns[part]),
            )
            for part in parts
        )
        return np.asarray(sum(terms)) / len(known)

    starts = range(0, len(new), _AT_ONCE)
    # The images were checked when they were standardised: not once more for every block.
    blocks = track(starts, f"Predictions at {len(new)} images", len(starts))
    values = np.concatenate([at(new[start : start + _AT_ONCE]) for start in blocks])
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    return [
        np.moveaxis(part.reshape(-1, *shape), 0, 1)
        for part, shape in zip(np.split(values, ends, axis=1), shapes, strict=True)
    ]


def measure(
    chained: Distillation, new: Float[np.ndarray, "T n Q"], drawn: Draw
) -> list[dict[str, Any]]:
    """For each round: accuracy on training (original and noisy labels), held-out (noisy) and test
    images, and losses.

    ``train_loss`` and ``test_loss`` are mean squared distances to the original labels' rows,
    ``training_loss`` to the round's own targets. A class that has collapsed predicts 0; where all
    have, every image counts as the first class. ``error_bound`` is that of the Krylov method on
    multipliers and fitted values, the largest over classes.
    """
    fitted = np.asarray(chained.fitted)
    held_out, test = new[:, : len(drawn.held_out)], new[:, len(drawn.held_out) :]
    active = np.asarray(chained.status) == Status.ACTIVE
    bounds = chained.error_bounds or [np.full(active.shape, np.nan)]

    def accuracy(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if not len(labels):
            return np.full(len(outputs), np.nan)
        return np.mean(outputs.argmax(axis=-1) == labels, axis=-1)

    def loss(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        rows = np.asarray(one_hot(labels, drawn.num_classes, centred=True))
        return np.mean((outputs - rows) ** 2, axis=(1, 2))

    columns = {
        "round": np.arange(len(fitted)),
        "train_accuracy": accuracy(fitted, drawn.clean),
        "noisy_train_accuracy": accuracy(fitted, drawn.noisy),
        "held_out_accuracy": accuracy(held_out, drawn.held_out),
        "test_accuracy": accuracy(test, drawn.test),
        "train_loss": loss(fitted, drawn.clean),
        "test_loss": loss(test, drawn.test),
        "training_loss": np.asarray(chained.training_loss).reshape(len(fitted), -1).mean(axis=1),
        "error_bound": np.max(
            [np.reshape(bound, (len(fitted), -1)).max(axis=1) for bound in bounds], axis=0
        ),
        "active_classes": active.reshape(len(fitted), -1).sum(axis=1)
        * (1 if active.ndim == 2 else drawn.num_classes),
    }
    return pd.DataFrame(columns).to_dict("records")


def per_class(chained: Distillation) -> list[dict[str, Any]]:
    """For each round and class: multiplier, status, training loss and norm; with joint outputs one
    "class", -1, for all.
    """
    multipliers = np.asarray(chained.multipliers)
    rounds, classes = multipliers.reshape(len(multipliers), -1).shape
    columns = {
        "round": np.repeat(np.arange(rounds), classes),
        "class": np.tile(np.arange(classes) if multipliers.ndim == 2 else [-1], rounds),
        "multiplier": multipliers.ravel(),
        "status": [Status(code).name.lower() for code in np.ravel(chained.status).tolist()],
        "training_loss": np.ravel(chained.training_loss),
        "norm": np.ravel(chained.norms),
    }
    return pd.DataFrame(columns).to_dict("records")


def compare(rounds: pd.DataFrame, single_fits: pd.DataFrame) -> pd.DataFrame:
    """Does distillation beat one good fit? For each seed and chain, both chosen by held-out
    accuracy, judged on test images.

    Columns: ``first_round`` and ``best_round`` (test accuracies of round 0 and of the round that
    was chosen), ``round`` (which), ``single_fit`` (test accuracy of the single fit that was
    chosen), ``single_tolerance`` (which), ``gain`` (best_round - single_fit), and the same by
    hindsight, chosen on the test images: ``hindsight_best_round``, ``hindsight_single_fit``. The
    smaller tolerance, and the earlier round, wins a tie. In the row of tolerance "chosen" the
    chain's tolerance, too, is chosen on the held-out images. Without held-out images all is chosen
    by hindsight, on the test images.
    """
    judge, rows = chosen_by(rounds), []
    for seed, chains in rounds[rounds["seed"].isin(single_fits["seed"])].groupby("seed"):
        singles = single_fits[single_fits["seed"] == seed]
        single = singles.loc[singles[judge].idxmax()]
        named = [(f"{tolerance:g}", chain) for tolerance, chain in chains.groupby("tolerance")]
        for name, chain in [*named, ("chosen", chains.sort_values(["tolerance", "round"]))]:
            best = chain.loc[chain[judge].idxmax()]
            start = chain[(chain["round"] == 0) & (chain["tolerance"] == best["tolerance"])].iloc[0]
            rows.append(
                {
                    "seed": seed,
                    "tolerance": name,
                    "first_round": start["test_accuracy"],
                    "best_round": best["test_accuracy"],
                    "round": int(best["round"]),
                    "single_fit": single["test_accuracy"],
                    "single_tolerance": single["tolerance"],
                    "gain": best["test_accuracy"] - single["test_accuracy"],
                    "hindsight_best_round": chain["test_accuracy"].max(),
                    "hindsight_single_fit": singles["test_accuracy"].max(),
                }
            )
    return pd.DataFrame(rows)


def chosen_by(table: pd.DataFrame) -> str:
    """The column that rounds and tolerances are chosen by: accuracy on held-out images where there
    are any.
    """
    return "held_out_accuracy" if table["held_out_accuracy"].notna().any() else "test_accuracy"
