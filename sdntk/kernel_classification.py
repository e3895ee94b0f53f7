"""Self-distillation of a kernel classifier on images, as section 5 of the paper does it with networks, and its baseline.

Each seed draws its own training and held-out images and its own label noise. Accuracy is measured round by round against
the original labels. Beside every chain stands what a practitioner would do without distillation: one fit, whose tolerance
is chosen on the held-out images, as the chain's best round is.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from sdntk.datasets import Dataset, balanced_subsets, label_noise, one_hot, standardise
from sdntk.distillation import Distillation, distill_spectrum
from sdntk.gram import gram
from sdntk.kernels import KernelFunction
from sdntk.multiplier import Status
from sdntk.records import Records
from sdntk.spectrum import decompose

#: The single fits to choose from, beside the chains' own: their tolerances, as fractions of the labels' mean square.
SINGLE_FITS = tuple(round(0.02 * step, 2) for step in range(1, 50))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is done to the data, and how often. Tolerances are fractions of the labels' mean square ||y||^2/K.

    Attributes:
        train: K, the number of training images; held_out, test: of those to choose by, and to judge by.
        tolerances: one chain for each.
        rounds: T. label_noise: the share of wrong training and held-out labels. noise, flips: its kind, see
            :func:`sdntk.datasets.label_noise`.
        outputs: "separate", a multiplier for each class, or "joint".
        unit_norm: scale images to norm 1 after standardising.
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
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds must hold at least one seed.")
        for tolerance in self.tolerances:
            if not 0 < tolerance < 1:
                raise ValueError(
                    f"tolerances must be fractions of the labels' mean square, between 0 and 1; got {tolerance}."
                )


@dataclasses.dataclass(frozen=True)
class Draw:
    """One seed's data: points with original and noisy labels. Held-out labels are as noisy as the training labels."""

    x_train: Float[np.ndarray, "K H W C"]
    x_new: Float[np.ndarray, "n H W C"]  # held-out images, then test images
    clean: Int[np.ndarray, " K"]
    noisy: Int[np.ndarray, " K"]
    held_out: Int[np.ndarray, " n_held"]
    test: Int[np.ndarray, " n_test"]
    num_classes: int


def draw(data: Dataset, experiment: Experiment, seed: int) -> Draw:
    """A seed's training and held-out images, disjoint and balanced by class, and the label noise."""
    choice, noise = jax.random.split(jax.random.key(seed))
    train, held_out = balanced_subsets(data.train_labels, [experiment.train, experiment.held_out], choice)
    if not 0 < experiment.test <= len(data.test_labels):
        raise ValueError(
            f"test must be from 1 to {len(data.test_labels)}, the test images there are; got {experiment.test}."
        )
    labels = data.train_labels[np.concatenate([train, held_out])]
    noisy = label_noise(
        labels, experiment.label_noise, noise, data.num_classes, kind=experiment.noise, flips=experiment.flips
    )
    x_train, x_held_out, x_test = standardise(
        data.train_images[train], data.train_images[held_out], data.test_images[: experiment.test],
        unit_norm=experiment.unit_norm,
    )  # fmt: skip
    return Draw(
        x_train, np.concatenate([x_held_out, x_test]), labels[: len(train)], noisy[: len(train)], noisy[len(train) :],
        data.test_labels[: experiment.test], data.num_classes,
    )  # fmt: skip


def run(data: Dataset, kernel: KernelFunction, experiment: Experiment, records: Records) -> Iterator[int]:
    """Run every seed that the records lack, write its rows, and yield it. The records then hold these tables.

    * ``rounds``: a row for each seed, tolerance and round, with accuracies and losses;
    * ``classes``: a row for each of those and each class, with multiplier, status, training loss and norm;
    * ``single_fits``: a row for each seed and each single fit, with the same measurements as ``rounds``;
    * ``comparison``: see :func:`compare`.
    """
    done = set(records["single_fits"].get("seed", ()))  # the table that is written last
    for seed in experiment.seeds:
        if seed not in done:
            _run_seed(draw(data, experiment, seed), kernel, experiment, records, seed)
        records.put("comparison", compare(records["rounds"], records["single_fits"]))
        yield seed


def _run_seed(drawn: Draw, kernel: KernelFunction, experiment: Experiment, records: Records, seed: int) -> None:
    spectrum = decompose(gram(kernel, drawn.x_train))
    cross = gram(kernel, drawn.x_new, drawn.x_train)
    labels = one_hot(drawn.noisy, drawn.num_classes, centred=True)
    mean_square = jnp.mean(labels**2, axis=0)

    def chain(fraction: float, rounds: int) -> tuple[Distillation, list[dict[str, Any]]]:
        tolerance = fraction * (mean_square if experiment.outputs == "separate" else jnp.mean(mean_square))
        chained = distill_spectrum(spectrum, labels, tolerance=tolerance, rounds=rounds, outputs=experiment.outputs)
        named = {"seed": seed, "tolerance": fraction}
        return chained, [named | row for row in measure(chained, cross, drawn)]

    rounds, classes, single_fits = [], [], []
    for fraction in experiment.tolerances:
        chained, rows = chain(fraction, experiment.rounds)
        rounds += rows
        classes += [{"seed": seed, "tolerance": fraction, **row} for row in per_class(chained)]
    for fraction in sorted({*SINGLE_FITS, *experiment.tolerances}):
        single_fits += chain(fraction, 1)[1]
    for table, rows in (("rounds", rounds), ("classes", classes), ("single_fits", single_fits)):
        others = records[table]
        kept = others[others["seed"] != seed] if len(others) else others  # of a run that was killed between two tables
        records.put(table, pd.concat([kept, pd.DataFrame(rows)], ignore_index=True))


def measure(chained: Distillation, cross: Any, drawn: Draw) -> list[dict[str, Any]]:
    """For each round: accuracy on training (original and noisy labels), held-out (noisy) and test images, and losses.

    ``train_loss`` and ``test_loss`` are mean squared distances to the original labels' rows, ``training_loss`` to the
    round's own targets. A class that has collapsed predicts 0; where all have, every image counts as the first class.
    """
    fitted, new = np.asarray(chained.fitted), np.asarray(chained.predict_from(cross))
    held_out, test = new[:, : len(drawn.held_out)], new[:, len(drawn.held_out) :]
    active = np.asarray(chained.status) == Status.ACTIVE

    def accuracy(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
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
        "active_classes": active.reshape(len(fitted), -1).sum(axis=1) * (1 if active.ndim == 2 else drawn.num_classes),
    }
    return pd.DataFrame(columns).to_dict("records")


def per_class(chained: Distillation) -> list[dict[str, Any]]:
    """For each round and class: multiplier, status, training loss and norm; with joint outputs one "class", -1, for all."""
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
    """Does distillation beat one good fit? For each seed and chain, both chosen by held-out accuracy, judged on test images.

    Columns: ``first_round`` and ``best_round`` (test accuracies of round 0 and of the round that was chosen), ``round``
    (which), ``single_fit`` (test accuracy of the single fit that was chosen), ``single_tolerance`` (which), ``gain``
    (best_round - single_fit), and the same by hindsight, chosen on the test images: ``hindsight_best_round``,
    ``hindsight_single_fit``. The smaller tolerance, and the earlier round, wins a tie. In the row of tolerance "chosen" the
    chain's tolerance, too, is chosen on the held-out images.
    """
    rows = []
    for seed, chains in rounds[rounds["seed"].isin(single_fits["seed"])].groupby("seed"):
        singles = single_fits[single_fits["seed"] == seed]
        single = singles.loc[singles["held_out_accuracy"].idxmax()]
        named = [(f"{tolerance:g}", chain) for tolerance, chain in chains.groupby("tolerance")]
        for name, chain in [*named, ("chosen", chains.sort_values(["tolerance", "round"]))]:
            best = chain.loc[chain["held_out_accuracy"].idxmax()]
            start = chain[(chain["round"] == 0) & (chain["tolerance"] == best["tolerance"])].iloc[0]
            rows.append({
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
            })  # fmt: skip
    return pd.DataFrame(rows)
