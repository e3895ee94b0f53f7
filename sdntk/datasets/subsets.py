"""Subsets of a data set, balanced by class."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Int

from sdntk._arguments import ArrayLike, as_count, as_key, as_sequence
from sdntk.datasets._checks import as_class_labels
from sdntk.datasets.images import random_order


def balanced_subset(labels: ArrayLike, size: int, key: Array) -> Int[np.ndarray, " size"]:
    """Indices of a random subset in which every class is equally frequent:
    ``balanced_subsets(labels, [size], key)[0]``.

    With one key, a smaller subset is part of every larger one: a learning curve needs no other
    points.

    Example:
        >>> labels = np.repeat(np.arange(10), 100)
        >>> chosen = balanced_subset(labels, 50, jax.random.key(0))
        >>> np.bincount(labels[chosen])
        array([5, 5, 5, 5, 5, 5, 5, 5, 5, 5])
    """
    return balanced_subsets(labels, [as_count("size", size, at_least=1)], key)[0]


def balanced_subsets(
    labels: ArrayLike, sizes: Sequence[int], key: Array
) -> tuple[Int[np.ndarray, " _"], ...]:
    """Indices of disjoint random subsets (training, held out, ...), drawn without replacement and
    balanced by class.

    Where a size is no multiple of the number of classes, some classes, drawn at random, have one
    point more than others.

    Args:
        labels: the class of each point, shape (K,), integers. The classes are those that occur.
        sizes: the size of each subset.
        key: a JAX key.

    Returns:
        For each size an array of indices, shape (size,), in random order. The first depends on its
        size and the key alone.

    Raises:
        ValueError: a class has fewer points than the sizes take, or what the arguments say of
            shapes and values.

    Example:
        >>> labels = np.repeat(np.arange(10), 100)
        >>> train, held_out = balanced_subsets(labels, [500, 100], jax.random.key(0))
        >>> train.shape, held_out.shape, set(train) & set(held_out)
        ((500,), (100,), set())
    """
    names, classes, counts = np.unique(
        as_class_labels("labels", labels), return_inverse=True, return_counts=True
    )
    sizes = [as_count("sizes", size, at_least=1) for size in as_sequence("sizes", sizes)]
    if not sizes:
        raise ValueError("sizes must hold the size of at least one subset; it is empty.")
    key = as_key("key", key)
    shares = np.array(
        [_shares(size, len(names), jax.random.fold_in(key, 1 + i)) for i, size in enumerate(sizes)]
    )
    ends = np.cumsum(shares, axis=0)
    for name, count, needed in zip(names, counts, ends[-1], strict=True):
        if needed > count:
            raise ValueError(
                f"sizes {sizes} take {needed} points of class {name}, but labels hold only "
                f"{count} of it."
            )
    order = random_order(jax.random.fold_in(key, 0), len(classes))
    shuffled = classes[order]
    rank = _rank_within_class(shuffled, counts)
    starts = ends - shares
    return tuple(
        order[(start[shuffled] <= rank) & (rank < end[shuffled])]
        for start, end in zip(starts, ends, strict=True)
    )


def _shares(size: int, num_classes: int, key: Array) -> Int[np.ndarray, " Q"]:
    """How many points of each class: as equal as possible, never fewer for a larger size."""
    each, rest = divmod(size, num_classes)
    return each + (random_order(key, num_classes).argsort() < rest)


def _rank_within_class(
    classes: Int[np.ndarray, " K"], counts: Int[np.ndarray, " Q"]
) -> Int[np.ndarray, " K"]:
    """For each point, how many points of its class come before it."""
    rank = np.empty(len(classes), int)
    rank[np.argsort(classes, kind="stable")] = np.arange(len(classes)) - np.repeat(
        np.cumsum(counts) - counts, counts
    )
    return rank
