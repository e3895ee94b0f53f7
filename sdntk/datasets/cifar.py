"""CIFAR-10 and CIFAR-100 in their binary form: records of label bytes and 3,072 pixels, plane after
plane. No pickle.
"""

import numpy as np
from jaxtyping import Int32, UInt8

from sdntk._arguments import PathLike, as_flag
from sdntk.datasets._files import File, Source, read_files
from sdntk.datasets.images import Dataset
from sdntk.datasets.labels import CIFAR10_CLASSES

_URL = "https://www.cs.toronto.edu/~kriz/"

_CIFAR10 = Source(
    title="CIFAR-10",
    files=(
        File("data_batch_1.bin", 30_730_000, "md5:5dd7e06a14cb22eb9f671a540d1b7c25"),
        File("data_batch_2.bin", 30_730_000, "md5:5ea93a67294ea407fff1d09f752e9692"),
        File("data_batch_3.bin", 30_730_000, "md5:942cd6a4bcdd0dd3c604fbe906cb4421"),
        File("data_batch_4.bin", 30_730_000, "md5:ae636b3ba5c66a11e91e8cb52e771fcb"),
        File("data_batch_5.bin", 30_730_000, "md5:53f37980c15c3d472c316c40844f3f0d"),
        File("test_batch.bin", 30_730_000, "md5:803d5f7f4d78ea53de84dbe85f74fb6d"),
    ),
    url=_URL,
    downloads=(
        File(
            "cifar-10-binary.tar.gz",
            170_052_171,
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    folder="cifar-10-batches-bin",
)

#: Of the unpacked files no checksum is published; the archive's sha256 guards them, or their size
#: and the range of labels.
_CIFAR100 = Source(
    title="CIFAR-100",
    files=(File("train.bin", 153_700_000), File("test.bin", 30_740_000)),
    url=_URL,
    downloads=(
        File(
            "cifar-100-binary.tar.gz",
            168_513_733,
            "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    ),
    folder="cifar-100-binary",
)

_COARSE = (
    "aquatic_mammals",
    "fish",
    "flowers",
    "food_containers",
    "fruit_and_vegetables",
    "household_electrical_devices",
    "household_furniture",
    "insects",
    "large_carnivores",
    "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes",
    "large_omnivores_and_herbivores",
    "medium_mammals",
    "non-insect_invertebrates",
    "people",
    "reptiles",
    "small_mammals",
    "trees",
    "vehicles_1",
    "vehicles_2",
)
_FINE = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm """.split()  # noqa: SIM905
)


def cifar10(folder: PathLike | None = None, *, download: bool = False) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in red, green and blue, in
    10 classes.

    Args:
        folder: the unpacked folder ``cifar-10-batches-bin``, the archive
            ``cifar-10-binary.tar.gz``, or a folder that holds either. Left out: the user's cache.
        download: fetch the archive if it is not there (170 MB), into ``folder`` or the cache.

    Returns:
        A :class:`Dataset`, images (n, 32, 32, 3) of 0 to 255. An archive is read as it is; unpacked
        files load faster.

    Raises:
        FileNotFoundError: files are missing. ValueError: a file is truncated, damaged or another
            one.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.

    Example:
        >>> data = cifar10(download=True)  # doctest: +SKIP
        >>> data.train_images.shape  # doctest: +SKIP
        (50000, 32, 32, 3)
    """
    *train, test = _read(_CIFAR10, folder, download, (CIFAR10_CLASSES,))
    return _dataset("CIFAR-10", np.concatenate(train), test, 0, CIFAR10_CLASSES)


def cifar100(
    folder: PathLike | None = None, *, coarse: bool = False, download: bool = False
) -> Dataset:
    """CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels in red, green and blue,
    in 100 classes.

    Args:
        folder: the unpacked folder ``cifar-100-binary``, the archive ``cifar-100-binary.tar.gz``,
            or a folder that holds either. Left out: the user's cache.
        coarse: label with the 20 superclasses instead.
        download: fetch the archive if it is not there (169 MB), into ``folder`` or the cache.

    Returns:
        A :class:`Dataset`, images (n, 32, 32, 3) of 0 to 255. An archive is read as it is; unpacked
        files load faster.

    Raises:
        FileNotFoundError: files are missing. ValueError: a file is truncated, damaged or another
            one.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.

    Example:
        >>> data = cifar100(download=True)  # doctest: +SKIP
        >>> data.num_classes  # doctest: +SKIP
        100
    """
    coarse = as_flag("coarse", coarse)
    train, test = _read(_CIFAR100, folder, download, (_COARSE, _FINE))
    return _dataset("CIFAR-100", train, test, 0 if coarse else 1, _COARSE if coarse else _FINE)


def _read(
    source: Source, folder: PathLike | None, download: bool, classes: tuple[tuple[str, ...], ...]
) -> list[UInt8[np.ndarray, "_ record"]]:
    """The records of each file; ``classes`` are the names behind each label byte."""
    contents = read_files(source, folder, download=download)
    records = [
        np.frombuffer(content, np.uint8).reshape(-1, len(classes) + 3072) for content in contents
    ]
    for file, rows in zip(source.files, records, strict=True):
        for byte, names in enumerate(classes):
            if rows[:, byte].max() >= len(names):
                raise ValueError(
                    f"{file.name} of {source.title} is damaged: label byte {byte} should be "
                    f"below {len(names)} and reaches "
                    f"{rows[:, byte].max()}. Delete it. {source.remedy}"
                )
    return records


def _dataset(
    name: str,
    train: UInt8[np.ndarray, "n record"],
    test: UInt8[np.ndarray, "m record"],
    label_byte: int,
    class_names: tuple[str, ...],
) -> Dataset:
    return Dataset(
        name,
        _images(train),
        _labels(train, label_byte),
        _images(test),
        _labels(test, label_byte),
        class_names,
    )


def _images(records: UInt8[np.ndarray, "n record"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    return np.ascontiguousarray(records[:, -3072:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _labels(records: UInt8[np.ndarray, "n record"], byte: int) -> Int32[np.ndarray, " n"]:
    return records[:, byte].astype(np.int32)
