"""Fashion-MNIST in the idx format: a big-endian header (0, 0, 8, number of axes, length of each),
then bytes.
"""

import math

import numpy as np
from jaxtyping import UInt8

from sdntk._arguments import PathLike
from sdntk.datasets._files import File, Source, read_files
from sdntk.datasets.images import Dataset

_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

#: The authors' README publishes the MD5 of the gzipped files, which guards downloads. Debian's are
#: compressed anew: what is read is checked by the MD5 of the content.
_SOURCE = Source(
    title="Fashion-MNIST",
    files=(
        File("train-images-idx3-ubyte", 47_040_016, "md5:f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        File("train-labels-idx1-ubyte", 60_008, "md5:9018921c3c673c538a1fc5bad174d6f9"),
        File("t10k-images-idx3-ubyte", 7_840_016, "md5:8181f5470baa50b63fa0f6fddb340f0a"),
        File("t10k-labels-idx1-ubyte", 10_008, "md5:15d484375f8d13e6eb1aabb0c3f46965"),
    ),
    url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/",
    downloads=(
        File("train-images-idx3-ubyte.gz", checksum="md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        File("train-labels-idx1-ubyte.gz", checksum="md5:25c81989df183df01b3e8a0aad5dffbe"),
        File("t10k-images-idx3-ubyte.gz", checksum="md5:bef4ecab320f06d8554ea6380940ec79"),
        File("t10k-labels-idx1-ubyte.gz", checksum="md5:bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    system_folders=("/usr/share/datasets/fashion-mnist",),
)


def fashion_mnist(folder: PathLike | None = None, *, download: bool = False) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 grey pixels in 10 classes.

    Args:
        folder: where the four files lie, as ``train-images-idx3-ubyte`` or gzipped. Left out: where
            Debian's package dataset-fashion-mnist puts them, then the user's cache.
        download: fetch files that are not there (31 MB), into ``folder`` or the cache.

    Returns:
        A :class:`Dataset`, images (n, 28, 28, 1) of 0 to 255.

    Raises:
        FileNotFoundError: files are missing. ValueError: a file is truncated, damaged or another
            one.

    Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv 1708.07747.

    Example:
        >>> data = fashion_mnist()  # doctest: +SKIP
        >>> data.train_images.shape  # doctest: +SKIP
        (60000, 28, 28, 1)
    """
    arrays = [
        _parse_idx(file.name, content)
        for file, content in zip(
            _SOURCE.files, read_files(_SOURCE, folder, download=download), strict=True
        )
    ]
    train_images, train_labels, test_images, test_labels = arrays
    return Dataset(
        "Fashion-MNIST",
        train_images[..., None],
        train_labels.astype(np.int32),
        test_images[..., None],
        test_labels.astype(np.int32),
        _CLASSES,
    )


def _parse_idx(name: str, content: bytes) -> UInt8[np.ndarray, "..."]:
    """An idx file's array."""
    axes = content[3] if content[:3] == b"\0\0\x08" else 0  # 8: unsigned bytes
    shape = tuple(np.frombuffer(content[4 : 4 + 4 * axes], ">u4").tolist())
    if axes == 0 or len(content) != 4 + 4 * axes + math.prod(shape):
        raise ValueError(
            f"{name} is not in the idx format of bytes: header {content[:4].hex()}, "
            f"{len(content):,} bytes."
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
