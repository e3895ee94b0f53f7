"""Data to learn from: the paper's example, images with labels, and what is done to them before
learning.

Images and labels are NumPy arrays on the host; subsets and noisy labels are drawn by JAX keys
alone, so a key fixes them. With JAX's default key (threefry) they are the same on every platform.
Nothing is downloaded unless asked for.
"""

from sdntk.datasets.cifar import cifar10, cifar100
from sdntk.datasets.examples import mobahi_example, mobahi_truth
from sdntk.datasets.fashion import fashion_mnist
from sdntk.datasets.images import Dataset, digits, standardise
from sdntk.datasets.labels import CIFAR10_FLIPS, label_noise, one_hot
from sdntk.datasets.npz import from_npz
from sdntk.datasets.subsets import balanced_subset, balanced_subsets

__all__ = [
    "CIFAR10_FLIPS",
    "Dataset",
    "balanced_subset",
    "balanced_subsets",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "from_npz",
    "label_noise",
    "mobahi_example",
    "mobahi_truth",
    "one_hot",
    "standardise",
]
