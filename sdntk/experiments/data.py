"""One seed's data: points and labels, sampled from a data set."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from sdntk.datasets import (
    Dataset,
    balanced_subsets,
    digits,
    label_noise,
    one_hot,
    standardise,
)
from sdntk.datasets.labels import NoiseKind

#: np.ndarray: on the host, as a split is sampled; or Array, on the device.
_Array = TypeVar("_Array", np.ndarray, Array)


@dataclasses.dataclass(frozen=True)
class Split(Generic[_Array]):
    """Training, held-out and test points of one data set, with their classes.

    Attributes:
        x_train: training points. clean_labels: their original classes, by which accuracy is
            measured. noisy_labels: the classes to learn, some of them wrong.
        x_held_out: points to choose a round or a tolerance by; there may be none.
            held_out_labels: their classes, as noisy as those to learn.
        x_test: points to judge by. test_labels: their original classes.
        num_classes: Q.
    """

    x_train: Float[_Array, "K ..."]
    clean_labels: Int[_Array, " K"]
    noisy_labels: Int[_Array, " K"]
    x_held_out: Float[_Array, "h ..."]
    held_out_labels: Int[_Array, " h"]
    x_test: Float[_Array, "n ..."]
    test_labels: Int[_Array, " n"]
    num_classes: int

    @functools.cached_property
    def y(self) -> Float[Array, "K Q"]:
        """The one-hot vectors of the noisy labels, in the dtype of the points."""
        return jax.nn.one_hot(self.noisy_labels, self.num_classes, dtype=self.x_train.dtype)

    def on_device(self) -> "Split[Array]":
        """The same with JAX arrays."""
        arrays = {
            field.name: jnp.asarray(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "num_classes"
        }
        return Split(**arrays, num_classes=self.num_classes)


def sample_split(
    data: Dataset,
    subset_key: Key[Array, ""],
    noise_key: Key[Array, ""],
    *,
    train: int | None,
    held_out: int = 0,
    test: Int[np.ndarray, " n"] | slice,
    noise_rate: float = 0.0,
    noise_kind: NoiseKind = "symmetric",
    flips: Mapping[int, int] | None = None,
    unit_norm: bool = False,
    dtype: type | None = None,
) -> Split[np.ndarray]:
    """Sample training and held-out images, disjoint and balanced by class, and the label noise.

    All images are standardised by the training images' statistics.

    Args:
        data: the data set.
        subset_key: chooses the training and held-out images.
        noise_key: chooses the wrong labels.
        train: K, the number of training images; all of them when None, and none are held out.
        held_out: the number of held-out images.
        test: which of the test images, e.g. :func:`first_test_images`.
        noise_rate: the share of wrong labels among training and held-out images.
        noise_kind: see :func:`sdntk.datasets.label_noise`.
        flips: of asymmetric noise.
        unit_norm: scale images to norm 1 after standardising.
        dtype: of the images; by default JAX's.

    Raises:
        ValueError: more images than there are, or another argument out of its range.
    """
    most = most_balanced(data)
    if (train or 0) + held_out > most:
        raise ValueError(
            f"train and held_out must be at most {most:,} images together: {data.name} has no more "
            f"than {most // data.num_classes:,} of its rarest class; got {train} and {held_out}."
        )
    if train is None:
        train_rows, held_out_rows = np.arange(len(data.train_labels)), np.zeros(0, int)
    elif held_out:
        train_rows, held_out_rows = balanced_subsets(
            data.train_labels, [train, held_out], subset_key
        )
    else:
        (train_rows,) = balanced_subsets(data.train_labels, [train], subset_key)
        held_out_rows = np.zeros(0, int)

    labels = data.train_labels[np.concatenate([train_rows, held_out_rows])]
    noisy = label_noise(
        labels, noise_rate, noise_key, data.num_classes, kind=noise_kind, flips=flips
    )

    # Together, since an image set must not be empty.
    others = np.concatenate([data.train_images[held_out_rows], data.test_images[test]])
    x_train, x_others = standardise(
        data.train_images[train_rows], others, unit_norm=unit_norm, dtype=dtype
    )
    size = len(train_rows)
    return Split(
        x_train=x_train,
        clean_labels=labels[:size],
        noisy_labels=noisy[:size],
        x_held_out=x_others[: len(held_out_rows)],
        held_out_labels=noisy[size:],
        x_test=x_others[len(held_out_rows) :],
        test_labels=data.test_labels[test],
        num_classes=data.num_classes,
    )


def most_balanced(data: Dataset) -> int:
    """The most training images that are balanced by class."""
    counts = np.bincount(data.train_labels, minlength=data.num_classes)
    return int(counts.min()) * data.num_classes


def first_test_images(data: Dataset, count: int) -> slice:
    """The first ``count`` test images.

    Raises:
        ValueError: there are not that many, or none are asked for.
    """
    available = len(data.test_labels)
    if not 0 < count <= available:
        raise ValueError(
            f"test must be from 1 to {available}, the test images there are; got {count}."
        )
    return slice(count)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Points with labels to regress on: any numbers, in a column for each output.

    Accuracies take the largest entry of a row as its class.
    """

    x: Float[Array, "K ..."]
    y: Float[Array, "K Q"]
    x_test: Float[Array, "n ..."]
    y_test: Float[Array, "n Q"]


def digits_problem(train: int, test: int, noise_rate: float = 0.0) -> Problem:
    """:func:`regression_problem` on scikit-learn's digits."""
    return regression_problem(digits(jax.random.key(0)), train, test, noise_rate)


def regression_problem(data: Dataset, train: int, test: int, noise_rate: float = 0.0) -> Problem:
    """The data of ``sdntk compare``: images with centred one-hot labels, always the same images."""
    split = sample_split(
        data,
        jax.random.key(1),
        jax.random.key(2),
        train=train,
        test=first_test_images(data, test),
        noise_rate=noise_rate,
    )
    y, y_test = (
        one_hot(labels, data.num_classes, centred=True)
        for labels in (split.noisy_labels, split.test_labels)
    )
    return Problem(jnp.asarray(split.x_train), y, jnp.asarray(split.x_test), y_test)
