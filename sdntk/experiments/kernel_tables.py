"""What is recorded of a kernel's self-distillation on images: tables of rounds, of classes and of
single fits, measured from chains and their predictions.
"""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from sdntk.datasets import one_hot
from sdntk.distillation import Distillation
from sdntk.experiments.data import Split
from sdntk.experiments.tables import Columns
from sdntk.theory.multiplier import Status

#: What a chain keeps in every round.
Level = Literal["tolerance", "multiplier"]


class Planned(NamedTuple):
    """One chain to run."""

    level: float  # a tolerance as a fraction of the labels' mean square, or a multiplier
    rounds: int
    is_single_fit: bool


class Tables(NamedTuple):
    """What is recorded: see :func:`sdntk.experiments.kernel_classification.run`."""

    rounds: pd.DataFrame
    classes: pd.DataFrame
    single_fits: pd.DataFrame


_MEASURED: Columns = {
    **dict.fromkeys(["train_accuracy", "noisy_train_accuracy", "held_out_accuracy"], float),
    **dict.fromkeys(["test_accuracy", "train_loss", "test_loss", "training_loss"], float),
    "error_bound": float,
    "active_classes": int,
}
_OF_CLASSES: Columns = {
    "class": int,
    "multiplier": float,
    "status": str,
    "training_loss": float,
    "norm": float,
}


def columns(level: Level = "tolerance") -> dict[str, Columns]:
    """The columns of :class:`Tables`, by table; one is named after the chains' level."""
    chain: Columns = {"seed": int, level: float, "round": int}
    measured = {**chain, **_MEASURED}
    return {"rounds": measured, "classes": {**chain, **_OF_CLASSES}, "single_fits": measured}


def level_of(table: pd.DataFrame) -> Level:
    """What the chains of a table of rounds or single fits keep."""
    return "multiplier" if "multiplier" in table else "tolerance"


def tabulate(
    chains: list[Planned],
    runs: list[Distillation],
    fitted: list[Float[np.ndarray, "_ K Q"]],
    predictions: list[Float[np.ndarray, "_ n Q"]],
    split: Split[np.ndarray],
    level: Level = "tolerance",
) -> Tables:
    """The tables of one seed, from every chain, its fitted values and its predictions at held-out
    and test images.
    """
    rounds, classes, single_fits = [], [], []
    for chain, run, old, new in zip(chains, runs, fitted, predictions, strict=True):
        measured = measure(run, old, new, split)
        measured.insert(0, level, chain.level)
        if chain.is_single_fit:
            single_fits.append(measured)
        else:
            rounds.append(measured)
            of_classes = per_class(run)
            if level not in of_classes:  # a fixed multiplier is there already
                of_classes.insert(0, level, chain.level)
            classes.append(of_classes.assign(**{level: chain.level}))
    return Tables(
        *(pd.concat(parts, ignore_index=True) for parts in (rounds, classes, single_fits))
    )


def measure(
    run: Distillation,
    fitted: Float[np.ndarray, "T K Q"],
    predictions: Float[np.ndarray, "T n Q"],
    split: Split[np.ndarray],
) -> pd.DataFrame:
    """For each round: accuracy on training (original and noisy labels), held-out (noisy) and test
    images, and losses.

    ``train_loss`` and ``test_loss`` are mean squared distances to the original labels' rows,
    ``training_loss`` to the round's own targets. A class that has collapsed predicts 0; where all
    have, every image counts as the first class. ``error_bound`` is that of the Krylov method on
    multipliers and fitted values, the largest over classes.
    """
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
