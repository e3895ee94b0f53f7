"""The data of the study of choices: real tables, and images with wrong labels, each cut at random
into training and test points, as Gram matrices.

The tables are those of the book "An introduction to statistical learning" (James et al. 2023), in
the PyPI package islp: unpack its wheel, and ISLP/data is the folder of the .csv files. Diabetes and
digits come with scikit-learn.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int
from sklearn.datasets import load_diabetes

import sdntk
from sdntk._pytrees import pytree
from sdntk.architectures import fully_connected
from sdntk.datasets.images import random_order
from sdntk.datasets.named import load_any
from sdntk.kernels.base import KernelFunction

#: Of each table of the folder: what is predicted, and the columns that would give it away.
TABLES = {
    "Wage": ("wage", ["logwage"]),
    "Bikeshare": ("bikers", ["casual", "registered"]),
    "College": ("Outstate", []),
    "Hitters": ("Salary", []),
    "Boston": ("medv", []),
}
IMAGES = ("digits", "fashion-mnist", "cifar10")
#: At most so many test points.
MOST_TEST = 2000


@pytree
class Precomputed:
    """A kernel of numbered points, whose values are known: k(i, j) = values[i, j]."""

    values: Float[Array, "N K"]

    def __call__(self, x1: Float[Array, "n 1"], x2: Float[Array, "m 1"]) -> Float[Array, "n m"]:
        return self.values[x1[:, 0].astype(int)][:, x2[:, 0].astype(int)]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Training points 0 .. K - 1, and test points after them.

    Attributes:
        kernel: of all of them with the training points.
        y: labels without their mean, shape (K,) or (K, Q); of images, noisy.
        y_test: of the test points, clean, less the same mean.
        offset: what was taken off.
    """

    kernel: Precomputed
    y: Float[Array, "K *Q"]
    y_test: Float[np.ndarray, "n *Q"]
    offset: Float[np.ndarray, "*Q"]

    @property
    def numbers(self) -> Float[Array, "K 1"]:
        """The training points, as the kernel takes them."""
        return jnp.arange(len(self.y), dtype=float)[:, None]

    @property
    def cross(self) -> Float[Array, "n K"]:
        """The Gram matrix of test and training points."""
        return self.kernel.values[len(self.y) :] / len(self.y)

    def errors(self, predicted: Any) -> dict[str, float]:
        """The mean squared error on the test points, and for images the share that is wrong."""
        squared = float(np.mean((np.asarray(predicted) - self.y_test) ** 2))
        if self.y_test.ndim == 1:
            return {"squared_error": squared, "wrong": float("nan")}
        guess = np.argmax(np.asarray(predicted) + self.offset, axis=1)
        right = np.argmax(self.y_test + self.offset, axis=1)
        return {"squared_error": squared, "wrong": float(np.mean(guess != right))}


def table(name: str, folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Points and labels; a column of a table's words is a column of 0 and 1 for each word."""
    if name == "diabetes":
        return load_diabetes(return_X_y=True, scaled=False)
    if folder is None:
        raise ValueError(f"{name} needs the folder of the .csv files: --tables FOLDER.")
    label, given_away = TABLES[name]
    frame = pd.read_csv(folder / f"{name}.csv").dropna().drop(columns=given_away)
    y = frame.pop(label).to_numpy(float)
    words = [column for column in frame if not pd.api.types.is_numeric_dtype(frame[column])]
    if name == "Bikeshare":
        words = sorted({*words, "hr", "season", "weekday"})
    return pd.get_dummies(frame, columns=words, dtype=float).to_numpy(float), y


def table_split(
    name: str, train: int, seed: int, folder: Path | None = None
) -> tuple[Float[np.ndarray, "N p"], Float[np.ndarray, " N"]]:
    """One split of a table, training points first: columns standardised on these, and labels."""
    x, y = table(name, folder)
    order = random_order(jax.random.key(seed), len(y))[: train + MOST_TEST]
    x, y = x[order], y[order]
    deviation = x[:train].std(axis=0)
    x = (x - x[:train].mean(axis=0)) / np.where(deviation == 0, 1, deviation)
    x[:, deviation == 0] = 0
    return x, y


def tabular(name: str, train: int, seed: int, folder: Path | None = None) -> Problem:
    """One split of a table, with the Matern-3/2 kernel whose length scale is the median distance
    between training points.
    """
    x, y = table_split(name, train, seed, folder)
    apart = np.sqrt(((x[:train, None] - x[None, :train]) ** 2).sum(axis=2))
    scale = float(np.median(apart[np.triu_indices(train, 1)]))
    values = _values(sdntk.kernels.matern(1.5, scale), x, train)
    offset = y[:train].mean()
    return Problem(Precomputed(values), jnp.asarray(y[:train] - offset), y[train:] - offset, offset)


class ImageSplit(NamedTuple):
    """One split of a data set of images, training images first.

    Attributes:
        points: images of norm 1.
        right: their classes.
        noisy: for each share of wrong labels the classes of the training images.
    """

    points: Float[np.ndarray, "N ..."]
    right: Int[np.ndarray, " N"]
    noisy: dict[float, Int[np.ndarray, " K"]]


def image_split(name: str, train: int, seed: int, noises: tuple[float, ...]) -> ImageSplit:
    """One split; every share of wrong labels is of the same images."""
    pool, classes = _pool(name)
    order_key, noise_key = jax.random.split(jax.random.key(seed))
    order = random_order(order_key, len(classes))[: train + MOST_TEST]
    right, num_classes = classes[order], classes.max() + 1
    points = sdntk.datasets.standardise(pool[order[:train]], pool[order[train:]], unit_norm=True)
    noisy = {
        noise: sdntk.datasets.label_noise(right[:train], noise, noise_key, int(num_classes))
        for noise in noises
    }
    return ImageSplit(np.concatenate(points), right, noisy)


def images(name: str, train: int, seed: int, noises: tuple[float, ...]) -> dict[float, Problem]:
    """One split of a data set of images for each share of wrong labels: the tangent kernel of an
    infinitely wide network of two hidden layers.
    """
    split = image_split(name, train, seed, noises)
    one_hot = np.eye(_pool(name)[1].max() + 1)
    values = _values(sdntk.kernels.ntk(fully_connected(2)), split.points, train)
    kernel = Precomputed(values / jnp.mean(jnp.diagonal(values)))
    problems = {}
    for noise, noisy in split.noisy.items():
        offset = one_hot[noisy].mean(axis=0)
        y, y_test = one_hot[noisy] - offset, one_hot[split.right[train:]] - offset
        problems[noise] = Problem(kernel, jnp.asarray(y), y_test, offset)
    return problems


@functools.cache
def _pool(name: str) -> tuple[np.ndarray, np.ndarray]:
    """All images and their classes."""
    data = load_any(name, None, False)
    return (
        np.concatenate([data.train_images, data.test_images]),
        np.concatenate([data.train_labels, data.test_labels]),
    )


def _values(kernel: KernelFunction, points: np.ndarray, train: int) -> Float[Array, "N K"]:
    """The kernel itself; a Gram matrix is divided by the number of training points."""
    return train * jnp.asarray(sdntk.gram(kernel, points, points[:train]))
