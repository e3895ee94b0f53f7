"""One seed's data: points and labels, drawn from a data set."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdntk import datasets


@dataclasses.dataclass(frozen=True)
class Classification:
    """Data with the labels to learn in round 0, which may be noisy, and the original ones, by which
    all is judged.

    Attributes:
        x: training points. y: what round 0 learns, shape (K, Q), one-hot.
        labels: the original classes of x. x_test, test_labels: points to judge by.
    """

    x: Float[Array, "K ..."]
    y: Float[Array, "K Q"]
    labels: Int[Array, " K"]
    x_test: Float[Array, "n ..."]
    test_labels: Int[Array, " n"]


@dataclasses.dataclass(frozen=True)
class Draw:
    """One seed's data: points with original and noisy labels. Held-out labels are as noisy as the
    training labels.
    """

    x_train: Float[np.ndarray, "K H W C"]
    x_new: Float[np.ndarray, "n H W C"]  # held-out images, then test images
    clean: Int[np.ndarray, " K"]
    noisy: Int[np.ndarray, " K"]
    held_out: Int[np.ndarray, " n_held"]
    test: Int[np.ndarray, " n_test"]
    num_classes: int


@dataclasses.dataclass(frozen=True)
class Problem:
    """Data for both sides; labels (K, Q) and (n, Q), of which accuracies take the largest entry."""

    x: Float[Array, "K ..."]
    y: Float[Array, "K Q"]
    x_test: Float[Array, "n ..."]
    y_test: Float[Array, "n Q"]


def digits_problem(train: int, test: int, label_noise: float = 0.0) -> Problem:
    """The data of ``sdntk compare``: scikit-learn's digits, centred one-hot labels, always the same
    draw.
    """
    data = datasets.digits(jax.random.key(0))
    (rows,) = datasets.balanced_subsets(data.train_labels, [train], jax.random.key(1))
    labels = datasets.label_noise(
        data.train_labels[rows], label_noise, jax.random.key(2), data.num_classes
    )
    if not 0 < test <= len(data.test_labels):
        raise ValueError(
            f"test must be from 1 to {len(data.test_labels)}, the test images there are; got "
            f"{test}."
        )
    x, x_test = datasets.standardise(data.train_images[rows], data.test_images[:test])
    y, y_test = (
        datasets.one_hot(of, data.num_classes, centred=True)
        for of in (labels, data.test_labels[:test])
    )
    return Problem(*map(jnp.asarray, (x, y, x_test, y_test)))
