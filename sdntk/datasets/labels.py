"""Labels: as rows that a kernel method can learn, and with noise."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdntk._arguments import (
    MOST_CLASSES,
    ArrayLike,
    as_choice,
    as_count,
    as_flag,
    as_float_dtype,
    as_key,
    as_unit_interval,
    require_type,
    shown,
)
from sdntk.datasets._checks import as_class_labels
from sdntk.datasets.images import random_order

#: Of CIFAR-10, in the order of its labels.
CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905
#: Asymmetric noise for CIFAR-10 (Patrini et al. 2017): truck -> automobile, bird -> airplane, deer
#: -> horse, cat <-> dog.
CIFAR10_FLIPS: Mapping[int, int] = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
#: Another class at random, or one fixed other class for each.
NoiseKind = Literal["symmetric", "asymmetric"]


def flips_of(class_names: Sequence[str], kind: NoiseKind) -> Mapping[int, int] | None:
    """The classes that asymmetric noise usually turns into others, where there is a custom: on
    CIFAR-10, told by its classes' names. None elsewhere: the next class is taken.
    """
    is_cifar10 = tuple(class_names) == CIFAR10_CLASSES
    return CIFAR10_FLIPS if is_cifar10 and kind == "asymmetric" else None


def one_hot(
    labels: ArrayLike, num_classes: int, *, centred: bool = False, dtype: Any = None
) -> Float[Array, "K Q"]:
    """Row k is 1 at point k's class and 0 elsewhere; centred, 1/Q less everywhere, so that rows sum
    to zero.

    Centred rows suit a kernel method, which shrinks towards zero: what it shrinks to is then the
    guess that knows nothing.

    Args:
        labels: the class of each point, shape (K,), integers from 0 to num_classes - 1.
        num_classes: Q.
        centred: subtract 1/Q.
        dtype: of the result; by default JAX's, float64 where x64 is on.

    Raises:
        ValueError, TypeError: labels outside the classes, not integers, or not of shape (K,).

    Example:
        >>> one_hot(np.array([0, 1]), 2, centred=True).tolist()
        [[0.5, -0.5], [-0.5, 0.5]]
    """
    num_classes = as_count("num_classes", num_classes, at_least=1, at_most=MOST_CLASSES)
    centred = as_flag("centred", centred)
    dtype = jnp.result_type(float) if dtype is None else as_float_dtype("dtype", dtype)
    classes = as_class_labels("labels", labels, num_classes)
    rows = jax.nn.one_hot(classes, num_classes, dtype=dtype)
    return rows - 1 / num_classes if centred else rows


def label_noise(
    labels: ArrayLike,
    rate: float,
    key: Array,
    num_classes: int,
    *,
    kind: NoiseKind = "symmetric",
    flips: Mapping[int, int] | None = None,
) -> Int[np.ndarray, " K"]:
    """Labels of which a given share is wrong.

    Symmetric: round(rate K) points, drawn without replacement, get another class, drawn uniformly
    from the other Q - 1. Asymmetric: class a turns into a fixed class b for round(rate m) of the m
    points whose class turns into another. With one key, the labels that are wrong at a lower rate
    are wrong, and the same, at every higher rate.

    Args:
        labels: the class of each point, shape (K,), integers from 0 to num_classes - 1.
        rate: the share of wrong labels, from 0 to 1.
        key: a JAX key.
        num_classes: Q, at least 2.
        kind: "symmetric" or "asymmetric".
        flips: for asymmetric noise, b for each a, such as :data:`CIFAR10_FLIPS`; classes left out
            keep their labels. By default b = a + 1 modulo Q.

    Returns:
        The noisy labels, a new NumPy array of the labels' dtype. They are wrong where they differ
        from ``labels``.

    Raises:
        ValueError, TypeError: an argument is not as said above; flips name no class, or turn a
            class into itself.

    Source: G. Patrini et al., Making deep neural networks robust to label noise, CVPR 2017, section
    5.

    Example:
        >>> clean = np.repeat(np.arange(10), 100)
        >>> noisy = label_noise(clean, 0.4, jax.random.key(0), 10)
        >>> int(np.sum(noisy != clean))
        400
        >>> options = {"kind": "asymmetric", "flips": CIFAR10_FLIPS}
        >>> noisy = label_noise(clean, 1.0, jax.random.key(0), 10, **options)
        >>> int(noisy[950])
        1
    """
    num_classes = as_count("num_classes", num_classes, at_least=2, at_most=MOST_CLASSES)
    clean = as_class_labels("labels", labels, num_classes)
    as_unit_interval("rate", rate, dtype=jnp.result_type(float))
    as_choice("kind", kind, get_args(NoiseKind))
    order_key, class_key = jax.random.split(as_key("key", key))
    if kind == "symmetric" and flips is None:
        step = jax.random.randint(class_key, clean.shape, 1, num_classes, jnp.int32)
        wrong = (clean.astype(np.int64) + np.asarray(step)) % num_classes
    elif kind == "asymmetric":
        wrong = _as_table(flips, num_classes)[clean]
    else:
        raise ValueError('kind must be "symmetric" without flips, or "asymmetric" with them.')
    order = random_order(order_key, len(clean))
    order = order[(wrong != clean)[order]]
    chosen = order[: round(float(rate) * len(order))]
    noisy = clean.copy()
    noisy[chosen] = wrong[chosen]
    return noisy


def _as_table(flips: Mapping[int, int] | None, num_classes: int) -> Int[np.ndarray, " Q"]:
    """What each class turns into."""
    if flips is None:
        return (np.arange(num_classes) + 1) % num_classes
    require_type("flips", flips, Mapping, "a mapping from class to class")
    table = np.arange(num_classes)
    for old, new in flips.items():
        are_integers = all(isinstance(item, int | np.integer) for item in (old, new))
        if not (are_integers and 0 <= old < num_classes and 0 <= new < num_classes and old != new):
            raise ValueError(
                f"flips must turn classes from 0 to {num_classes - 1} into other ones; it turns "
                f"{shown(old)} into {shown(new)}."
            )
        table[old] = new
    return table
