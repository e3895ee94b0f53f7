"""A data set by its name or file, as the command line takes it."""

from enum import StrEnum
from pathlib import Path

import jax

from sdntk import datasets


class DatasetName(StrEnum):
    """The data sets that have a name on the command line."""

    DIGITS = "digits"
    CIFAR10 = "cifar10"
    CIFAR100 = "cifar100"
    FASHION_MNIST = "fashion-mnist"


def load_named(dataset: DatasetName, folder: Path | None, download: bool) -> datasets.Dataset:
    """The data set of that name, from ``folder``, the cache, or (where asked to) its
    distribution.
    """
    if dataset is DatasetName.DIGITS:
        return datasets.digits(jax.random.key(0))
    load = {
        DatasetName.CIFAR10: datasets.cifar10,
        DatasetName.CIFAR100: datasets.cifar100,
        DatasetName.FASHION_MNIST: datasets.fashion_mnist,
    }[dataset]
    return load(folder, download=download)


def load_any(dataset: str, folder: Path | None, download: bool) -> datasets.Dataset:
    """The data set of that name, or in that .npz file.

    Raises:
        ValueError: neither a name nor a file that is named so.
    """
    if dataset.endswith(".npz"):
        return datasets.from_npz(dataset)
    names = [name.value for name in DatasetName]
    if dataset not in names:
        raise ValueError(
            f"dataset must be one of {', '.join(names)}, or a file that ends in .npz; got "
            f"{dataset!r}."
        )
    return load_named(DatasetName(dataset), folder, download)
