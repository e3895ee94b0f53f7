"""Image data sets, subsets and standardisation; files themselves are in test_archives.py, labels in
test_labels.py.

Must hold:
- loaders put each byte where the format says, shown on small files written byte by byte from the
  format's description, and go through the real code: only the table of names, sizes and checksums
  is another (its real entries were tried by hand);
- the tables agree with the published sizes; truncated, altered and missing files and labels out of
  range are refused;
- subsets are balanced, disjoint, without repetition, uniform, nested in their size, and fixed by
  the key;
- standardised training images have mean 0 and deviation 1, others get the training images'
  statistics, unit norm is 1;
- importing sdntk imports neither pooch nor scikit-learn.
"""

import dataclasses
import gzip
import hashlib
import itertools
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.stats

from sdntk.datasets import (
    balanced_subset,
    balanced_subsets,
    cifar,
    cifar10,
    cifar100,
    digits,
    fashion,
    fashion_mnist,
    standardise,
)

KEY = jax.random.key(5)


def value(image, row, column, channel):
    return (31 * image + 7 * row + 3 * column + 101 * channel) % 256


def expected_images(numbers, height, width, channels):
    return np.array(
        [
            [
                [[value(n, i, j, c) for c in range(channels)] for j in range(width)]
                for i in range(height)
            ]
            for n in numbers
        ]
    )


def cifar_record(number, label_bytes):
    """Label bytes, then the red, the green and the blue plane, each row by row."""
    return bytes(label_bytes) + bytes(
        value(number, i, j, c) for c, i, j in itertools.product(range(3), range(32), range(32))
    )


def write(folder, source, contents, checksums=True):
    """The files in the source's folder, and the source with their sizes and checksums."""
    folder = folder / source.folder
    folder.mkdir(exist_ok=True)
    files = []
    for file, content in zip(source.files, contents, strict=True):
        (folder / file.name).write_bytes(content)
        files.append(
            dataclasses.replace(
                file,
                size=len(content),
                checksum=f"md5:{hashlib.md5(content).hexdigest()}"
                if checksums and file.checksum
                else None,
            )
        )
    return dataclasses.replace(source, files=tuple(files))


class TestCifar:
    def write10(self, folder, monkeypatch, last_label=9, checksums=True):
        """Five batches of two images and a test batch of two."""
        batches = [
            [cifar_record(2 * b + i, [(2 * b + i) % 10]) for i in range(2)] for b in range(6)
        ]
        batches[5][1] = cifar_record(11, [last_label])
        source = write(folder, cifar._CIFAR10, [b"".join(batch) for batch in batches], checksums)
        monkeypatch.setattr(cifar, "_CIFAR10", source)

    def write100(self, folder, monkeypatch, labels=((3, 77), (19, 99), (0, 0))):
        records = [cifar_record(n, pair) for n, pair in enumerate(labels)]
        source = write(folder, cifar._CIFAR100, [b"".join(records[:2]), records[2]])
        monkeypatch.setattr(cifar, "_CIFAR100", source)

    def test_cifar10(self, tmp_path, monkeypatch):
        self.write10(tmp_path, monkeypatch)
        data = cifar10(tmp_path)
        np.testing.assert_array_equal(data.train_images, expected_images(range(10), 32, 32, 3))
        np.testing.assert_array_equal(data.test_images, expected_images(range(10, 12), 32, 32, 3))
        np.testing.assert_array_equal(data.train_labels, np.arange(10))
        np.testing.assert_array_equal(data.test_labels, [0, 9])
        assert data.class_names[3] == "cat"
        assert (data.name, data.num_classes) == ("CIFAR-10", 10)
        assert (data.train_images.dtype, data.train_labels.dtype) == (np.uint8, np.int32)
        with pytest.raises(ValueError, match="read-only"):
            data.train_images[0] = 0

    @pytest.mark.parametrize("coarse", [False, True])
    def test_cifar100(self, tmp_path, monkeypatch, coarse):
        self.write100(tmp_path, monkeypatch)
        data = cifar100(tmp_path, coarse=coarse)
        np.testing.assert_array_equal(data.train_images, expected_images(range(2), 32, 32, 3))
        np.testing.assert_array_equal(data.test_images, expected_images([2], 32, 32, 3))
        np.testing.assert_array_equal(data.train_labels, [3, 19] if coarse else [77, 99])
        np.testing.assert_array_equal(data.test_labels, [0])
        assert data.num_classes == (20 if coarse else 100)
        assert [data.class_names[k] for k in data.train_labels] == (
            ["food_containers", "vehicles_2"] if coarse else ["snail", "worm"]
        )

    def test_truncated(self, tmp_path, monkeypatch):
        self.write10(tmp_path, monkeypatch)
        path = tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(
            ValueError,
            match=r"data_batch_4\.bin is damaged.*expected 6,146 bytes, got 6,145.*kriz/cifar-10-b",
        ):
            cifar10(tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(
            FileNotFoundError,
            match=r"CIFAR-100 was not found.*train\.bin, test\.bin.*cifar-100-binary\.tar",
        ):
            cifar100(tmp_path)

    def test_labels_out_of_range(self, tmp_path, monkeypatch):
        self.write10(tmp_path, monkeypatch, last_label=10, checksums=False)
        with pytest.raises(
            ValueError, match=r"test_batch\.bin.*label byte 0 should be below 10 and reaches 10"
        ):
            cifar10(tmp_path)

    @pytest.mark.parametrize(
        ("pair", "message"),
        [((20, 0), "byte 0 should be below 20"), ((0, 100), "byte 1 .* below 100")],
    )
    def test_labels_of_cifar100_out_of_range(self, tmp_path, monkeypatch, pair, message):
        self.write100(tmp_path, monkeypatch, labels=((0, 0), pair, (0, 0)))
        with pytest.raises(ValueError, match=rf"train\.bin.*{message}"):
            cifar100(tmp_path)

    def test_tables(self):
        assert [file.size for file in cifar._CIFAR10.files] == [10_000 * 3073] * 6
        assert [file.size for file in cifar._CIFAR100.files] == [50_000 * 3074, 10_000 * 3074]
        assert len(set(cifar._FINE)) == 100
        assert tuple(sorted(cifar._FINE)) == cifar._FINE
        assert len(set(cifar._COARSE)) == 20


class TestFashion:
    def contents(self):
        """Three training and two test images of 28 x 28: magic number, lengths of the axes,
        big-endian, then bytes.
        """
        for numbers in (range(3), range(3, 5)):
            images = bytes(
                value(n, i, j, 0) for n, i, j in itertools.product(numbers, range(28), range(28))
            )
            yield struct.pack(">IIII", 0x803, len(numbers), 28, 28) + images
            yield struct.pack(">II", 0x801, len(numbers)) + bytes(n + 5 for n in numbers)

    @pytest.mark.parametrize("gzipped", [False, True])
    def test_fashion_mnist(self, tmp_path, monkeypatch, gzipped):
        monkeypatch.setattr(fashion, "_SOURCE", write(tmp_path, fashion._SOURCE, self.contents()))
        if gzipped:
            for path in list(tmp_path.iterdir()):
                (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
        data = fashion_mnist(tmp_path)
        np.testing.assert_array_equal(data.train_images, expected_images(range(3), 28, 28, 1))
        np.testing.assert_array_equal(data.test_images, expected_images(range(3, 5), 28, 28, 1))
        np.testing.assert_array_equal(data.train_labels, [5, 6, 7])
        np.testing.assert_array_equal(data.test_labels, [8, 9])
        assert data.class_names[9] == "Ankle boot"

    @pytest.mark.parametrize(
        "damage",
        [lambda c: b"\0\0\x0d" + c[3:], lambda c: c + b"!", lambda c: c[:2], lambda _: b""],
    )
    def test_not_idx(self, tmp_path, monkeypatch, damage):
        contents = list(self.contents())
        contents[1] = damage(contents[1])
        monkeypatch.setattr(fashion, "_SOURCE", write(tmp_path, fashion._SOURCE, contents))
        with pytest.raises(ValueError, match="train-labels-idx1-ubyte is not in the idx format"):
            fashion_mnist(tmp_path)

    def test_tables(self):
        sizes = [file.size for file in fashion._SOURCE.files]
        assert sizes == [16 + 60_000 * 784, 8 + 60_000, 16 + 10_000 * 784, 8 + 10_000]
        assert [d.name for d in fashion._SOURCE.downloads] == [
            f"{file.name}.gz" for file in fashion._SOURCE.files
        ]


class TestDigits:
    def test_as_scikit_learn_has_them(self):
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        data = digits()
        images = np.concatenate([data.train_images, data.test_images])
        np.testing.assert_array_equal(images[..., 0], pixels.reshape(-1, 8, 8))
        np.testing.assert_array_equal(np.concatenate([data.train_labels, data.test_labels]), labels)
        assert data.class_names == tuple("0123456789")

    def test_drawn_by_a_key(self):
        def rows(*datasets):
            return sorted(
                bytes([k, *x.ravel()])
                for d in datasets
                for x, k in zip(
                    np.concatenate([d.train_images, d.test_images]),
                    [*d.train_labels, *d.test_labels],
                    strict=True,
                )
            )

        data, again, other = (
            digits(KEY, num_test=97),
            digits(KEY, num_test=97),
            digits(jax.random.key(6), num_test=97),
        )
        assert len(data.test_images) == 97
        np.testing.assert_array_equal(data.test_images, again.test_images)
        assert np.any(data.test_images != other.test_images)
        assert rows(data) == rows(digits())

    def test_bad_input(self):
        with pytest.raises(
            ValueError, match="num_test must leave training images, at most 1796 of 1797; got 1797"
        ):
            digits(num_test=1797)
        with pytest.raises(
            TypeError, match=r"key must be one JAX key, such as jax\.random\.key\(0\)"
        ):
            balanced_subset([0, 1], 1, jax.random.split(KEY))


class TestSubsets:
    LABELS = np.random.default_rng(1).permutation(
        np.repeat(np.arange(7), [60, 61, 70, 80, 90, 100, 120])
    )

    @pytest.mark.parametrize("size", [1, 6, 7, 70, 75, 420])
    def test_balanced(self, size):
        chosen = balanced_subset(self.LABELS, size, KEY)
        assert chosen.shape == (size,)
        assert len(set(chosen)) == size
        counts = np.bincount(self.LABELS[chosen], minlength=7)
        assert counts.max() - counts.min() == (size % 7 > 0)

    def test_disjoint(self):
        sizes = [71, 140, 1, 203]
        parts = balanced_subsets(self.LABELS, sizes, KEY)
        assert [len(part) for part in parts] == sizes
        assert len(set(np.concatenate(parts))) == sum(sizes)
        for part, size in zip(parts, sizes, strict=True):
            counts = np.bincount(self.LABELS[part], minlength=7)
            assert counts.max() - counts.min() == (size % 7 > 0)

    def test_nested_and_the_first_independent_of_the_others(self):
        sets = [balanced_subset(self.LABELS, size, KEY) for size in (5, 10, 50, 51, 200)]
        assert all(set(a) < set(b) for a, b in itertools.pairwise(sets))
        np.testing.assert_array_equal(balanced_subsets(self.LABELS, [50, 30], KEY)[0], sets[2])

    def test_fixed_by_the_key_in_either_precision(self):
        chosen = balanced_subset(self.LABELS, 75, KEY)
        with jax.enable_x64(False):
            np.testing.assert_array_equal(balanced_subset(self.LABELS, 75, KEY), chosen)
        assert np.any(chosen != balanced_subset(self.LABELS, 75, jax.random.key(6)))

    def test_one_key_for_all_time(self):
        """Written down once: where this fails, earlier results can no longer be reproduced."""
        assert balanced_subset(np.arange(20) % 4, 6, jax.random.key(0)).tolist() == [
            9,
            10,
            3,
            12,
            1,
            4,
        ]

    def test_uniform(self):
        """Three points of each class of 20, 200 keys: below chi-square's usual spread, since drawn
        without replacement.
        """
        labels = np.arange(60) % 3
        hits = np.zeros(60)
        for key in jax.random.split(KEY, 200):
            hits[balanced_subset(labels, 9, key)] += 1
        share = 3 / 20
        statistic = np.sum((hits - 200 * share) ** 2) / (200 * share * (1 - share))
        assert scipy.stats.chi2(59).ppf(1e-3) < statistic < scipy.stats.chi2(59).ppf(1 - 1e-3)

    def test_no_order_of_classes_in_the_subset(self):
        """A batch of the subset's first half is no class's own: the indices come shuffled."""
        labels = np.repeat(np.arange(2), 500)
        half = labels[balanced_subset(labels, 1000, KEY)][:500]
        assert 200 < half.sum() < 300

    @pytest.mark.parametrize(
        ("sizes", "error", "message"),
        [
            (
                [430],
                ValueError,
                r"sizes \[430\] take 6[12] points of class 0, but labels hold only 60 of it",
            ),
            ([210, 217], ValueError, "take 61 points of class 0"),
            ([0], ValueError, "sizes must be at least 1"),
            ([], ValueError, "sizes must hold the size of at least one subset"),
        ],
    )
    def test_bad_sizes(self, sizes, error, message):
        with pytest.raises(error, match=message):
            balanced_subsets(self.LABELS, sizes, KEY)

    def test_bad_labels(self):
        with pytest.raises(TypeError, match="labels must be integers"):
            balanced_subset(np.ones(3), 1, KEY)


class TestStandardise:
    TRAIN = (
        np.random.default_rng(2).integers(0, 256, (1500, 4, 5, 3)).astype(np.uint8)
    )  # six blocks

    def test_statistics_of_the_training_images(self):
        train, other = standardise(self.TRAIN, self.TRAIN[:7] // 2)
        np.testing.assert_allclose(train.mean(axis=(0, 1, 2)), 0, atol=1e-13)
        np.testing.assert_allclose(train.std(axis=(0, 1, 2)), 1, rtol=1e-13)
        mean, deviation = self.TRAIN.mean(axis=(0, 1, 2)), self.TRAIN.std(axis=(0, 1, 2))
        np.testing.assert_allclose(
            other, (self.TRAIN[:7] // 2 - mean[None, None, None]) / deviation, atol=1e-13
        )

    @pytest.mark.parametrize("scale", [1.0, 1e-3])
    def test_invariant_to_shift_and_scale(self, scale):
        (shifted,) = standardise(self.TRAIN * scale + 1e3)
        np.testing.assert_allclose(shifted, standardise(self.TRAIN)[0], atol=1e-9)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_unit_norm_and_dtype(self, dtype):
        train, other = standardise(self.TRAIN, self.TRAIN[:3], unit_norm=True, dtype=dtype)
        assert train.dtype == other.dtype == dtype
        for images in (train, other):
            np.testing.assert_allclose(
                np.sum(images**2, axis=(1, 2, 3)), 1, rtol=10 * np.finfo(dtype).eps
            )

    def test_constant_channels_and_zero_images_become_zero(self):
        images = np.zeros((3, 2, 2, 2))
        images[0, ..., 0], images[1, ..., 0], images[..., 1] = 1, -1, 0.1
        (scaled,) = standardise(images, unit_norm=True)
        np.testing.assert_allclose(scaled[..., 1], 0, atol=1e-15)
        np.testing.assert_allclose(np.abs(scaled[:, 0, 0, 0]), [0.5, 0.5, 0])

    @pytest.mark.usefixtures("single_precision")
    def test_default_dtype_follows_jax(self):
        assert standardise(self.TRAIN)[0].dtype == np.float32

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (
                lambda x: standardise(x[0]),
                ValueError,
                r"train must be images, shape \(n, H, W, C\).*\(4, 5, 3\)",
            ),
            (lambda x: standardise(x[:0]), ValueError, "train must be images"),
            (
                lambda x: standardise(x, x[:, :2]),
                ValueError,
                r"others\[0\] must have images of shape \(4, 5, 3\).*\(2, 5, 3\)",
            ),
            (lambda x: standardise(x, x * np.nan), ValueError, r"others\[0\] must be finite"),
            (lambda x: standardise(x * 1j), TypeError, "train must hold real numbers"),
            (
                lambda x: standardise(x, dtype=int),
                TypeError,
                "dtype must be a floating-point dtype; got int64",
            ),
        ],
    )
    def test_bad_input(self, call, error, message):
        with pytest.raises(error, match=message):
            call(self.TRAIN[:4])


def test_the_import_is_light():
    code = (
        "import sys, sdntk; "
        "sys.exit(any(name in sys.modules for name in ('pooch', 'sklearn', 'requests')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
