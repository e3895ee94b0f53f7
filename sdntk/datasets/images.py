"""Images with labels: the form that every image data set has, the one that needs no files, and
standardisation.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Real

from sdntk._arguments import (
    ArrayLike,
    as_count,
    as_flag,
    as_float_dtype,
    as_key,
    as_real_array,
    as_sequence,
    require_type,
)
from sdntk.datasets._checks import as_class_labels


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, split into training and test data. NumPy arrays, read-only, on the host.

    Attributes:
        name: the data set's name.
        train_images: shape (n_train, H, W, C), uint8 (raw pixels take an eighth of the memory of
            float64) or float32. See :func:`standardise`.
        train_labels: shape (n_train,), int32, the index of each image's class.
        test_images: shape (n_test, H, W, C), likewise.
        test_labels: shape (n_test,), int32.
        class_names: a name for each class.

    Raises:
        TypeError, ValueError: not as said above.
    """

    name: str
    train_images: Real[np.ndarray, "n_train H W C"]
    train_labels: Int32[np.ndarray, " n_train"]
    test_images: Real[np.ndarray, "n_test H W C"]
    test_labels: Int32[np.ndarray, " n_test"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        require_type("name", self.name, str, "a str")
        names = as_sequence("class_names", self.class_names)
        if not names:
            raise ValueError("class_names must hold a name for each class; it is empty.")
        for name in names:
            require_type("class_names", name, str, "a str for each class")
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            require_type(f"{part}_images", images, np.ndarray, "a NumPy array")
            require_type(f"{part}_labels", labels, np.ndarray, "a NumPy array")
            _as_images(f"{part}_images", images)
            as_class_labels(f"{part}_labels", labels, self.num_classes)
            if len(images) != len(labels):
                raise ValueError(
                    f"{part}_labels must hold a class for each of the {len(images)} images; it "
                    f"holds {len(labels)}."
                )
            for array in (images, labels):
                array.setflags(write=False)  # JAX may share a NumPy array's memory

    @property
    def num_classes(self) -> int:
        """Q."""
        return len(self.class_names)


def digits(key: Array | None = None, *, num_test: int = 360) -> Dataset:
    """Handwritten digits: 1,797 images of 8 x 8 pixels from 0 to 16, in 10 classes. Comes with
    scikit-learn, offline.

    Args:
        key: a JAX key that draws the test images. There is no official split; without a key the
            last ``num_test`` images are the test images. The file goes from writer to writer, so
            those are by writers whom training hardly sees.
        num_test: the number of test images, from 1 to 1,796.

    Returns:
        A :class:`Dataset`, images (n, 8, 8, 1).

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (its test part),
    UCI repository, 1998.

    Example:
        >>> data = digits()
        >>> data.train_images.shape, data.test_images.shape, int(data.train_images.max())
        ((1437, 8, 8, 1), (360, 8, 8, 1), 16)
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    num_test = as_count("num_test", num_test, at_least=1)
    if num_test >= len(labels):
        raise ValueError(
            f"num_test must leave training images, at most {len(labels) - 1} of {len(labels)}; "
            f"got {num_test}."
        )
    order = np.arange(len(labels)) if key is None else random_order(as_key("key", key), len(labels))
    images = pixels.astype(np.uint8).reshape(-1, 8, 8, 1)[order]
    labels = labels.astype(np.int32)[order]
    names = tuple(str(digit) for digit in range(10))
    return Dataset(
        "digits",
        images[:-num_test],
        labels[:-num_test],
        images[-num_test:],
        labels[-num_test:],
        names,
    )


def random_order(key: Array, size: int) -> np.ndarray:
    """0 .. size - 1 in random order: random bits, sorted stably, so that no platform's own sort has
    a say.
    """
    return np.argsort(np.asarray(jax.random.bits(key, (size,), jnp.uint32)), kind="stable")


def standardise(
    train: ArrayLike, *others: ArrayLike, unit_norm: bool = False, dtype: Any = None
) -> tuple[Float[np.ndarray, "_ H W C"], ...]:
    """Images minus the training images' mean, divided by their standard deviation, channel by
    channel.

    Mean and deviation are over the training images and their pixels, in float64. By channel and not
    by pixel: that is what networks are trained on, and pixels that hardly vary (corners) stay
    small. A constant channel becomes 0.

    Args:
        train: training images, shape (n, H, W, C), of integers or floats.
        *others: more images (test, held out) of the same H, W and C, treated with the training
            images' statistics.
        unit_norm: then scale each image to Euclidean norm 1, as is common for neural tangent
            kernels, whose values on the sphere depend on angles alone. An image that is zero stays
            zero.
        dtype: of the result, float32 or float64; by default JAX's, float64 where x64 is on.

    Returns:
        As many NumPy arrays as there were arguments, in their shapes.

    Raises:
        ValueError, TypeError: not images of one size, no training images, not finite, dtype not
            floating-point.

    Example:
        >>> data = digits()
        >>> train, test = standardise(data.train_images, data.test_images)
        >>> bool(abs(train.mean()) < 1e-12), round(float(train.std()), 6), test.shape
        (True, 1.0, (360, 8, 8, 1))
    """
    unit_norm = as_flag("unit_norm", unit_norm)
    default = jnp.result_type(float)
    dtype = as_float_dtype("dtype", default if dtype is None else dtype, on_host=True)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64; got {dtype}.")
    images = [_as_images(name, value) for name, value in _named(train, others)]
    for name, array in zip(dict(_named(train, others)), images, strict=True):
        if array.shape[1:] != images[0].shape[1:]:
            raise ValueError(
                f"{name} must have images of shape {images[0].shape[1:]}, as train has; got "
                f"{array.shape[1:]}."
            )
    mean, deviation = _channel_statistics(images[0])
    return tuple(_scale(array, mean, deviation, unit_norm, dtype) for array in images)


def _named(train: ArrayLike, others: tuple[ArrayLike, ...]) -> list[tuple[str, ArrayLike]]:
    return [("train", train), *((f"others[{i}]", other) for i, other in enumerate(others))]


def _as_images(name: str, value: ArrayLike) -> np.ndarray:
    array = np.asarray(as_real_array(name, value))
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers; it has dtype {array.dtype}.")
    if array.ndim != 4 or array.size == 0:
        raise ValueError(
            f"{name} must be images, shape (n, H, W, C) with n >= 1; its shape is {array.shape}."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; it holds nan or inf.")
    return array


def _channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each channel's mean and standard deviation, repeated for every pixel, shape (H, W, C).

    In two passes and in blocks: the images are never held in float64. Over images first, for NumPy
    is slow where the last axis is short; the same goes for what is returned.
    """

    def for_every_pixel(channels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(channels, images.shape[1:]))

    mean = for_every_pixel(images.mean(axis=0, dtype=np.float64).mean(axis=(0, 1)))
    blocks = np.array_split(images, -(-len(images) // 256))
    squares = sum(np.sum((block - mean) ** 2, axis=0) for block in blocks)
    deviation = for_every_pixel(np.sqrt(np.mean(squares / len(images), axis=(0, 1))))
    lowest, highest = images.min(axis=0).min(axis=(0, 1)), images.max(axis=0).max(axis=(0, 1))
    constant = lowest == highest  # of which rounding would make noise
    return np.where(constant, lowest, mean), np.where(constant, 1, deviation)


def _scale(
    images: np.ndarray, mean: np.ndarray, deviation: np.ndarray, unit_norm: bool, dtype: np.dtype
) -> np.ndarray:
    scaled = np.subtract(images, mean, dtype=dtype, casting="same_kind")
    scaled /= deviation.astype(dtype)
    if unit_norm:
        norms = np.sqrt(np.sum(scaled**2, axis=(1, 2, 3), keepdims=True))
        scaled /= np.where(norms > 0, norms, 1)
    return scaled
