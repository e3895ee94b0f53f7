"""The one pass over all points that a Nystrom spectrum takes: Phi Phi^T and Phi Y, block by block.

The devices of a process take turns, and so do processes started with ``jax.distributed``, which
must all call alike: each block is one device's, each device has sums of its own, in float64
whatever the blocks are computed in, and the sums are added up at the end. With a file the sums are
written as they grow, and a killed pass resumes to the same bits.
"""

import contextlib
import functools
import hashlib
import itertools
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdntk import _archive
from sdntk._linalg import matmul
from sdntk._processes import over_processes, sum_over_processes
from sdntk._progress import Bar
from sdntk.gram_matrices.block_size import WORKSPACE_BYTES, workspace
from sdntk.gram_matrices.point_blocks import Block, PointBlocks
from sdntk.gram_matrices.tiles import local_devices
from sdntk.kernels.base import KernelFunction, kernel_block
from sdntk.kernels.precision import in_single_if_sufficient
from sdntk.spectra.landmarks import Landmarks

#: Values of a block take about so many bytes.
BLOCK_BYTES = 2**25
#: So many times as many points as landmarks are in a block, where the kernel takes all landmarks.
TILES_OF_BLOCK = 4
#: A kernel is known by its values between landmarks and so many of the points.
PROBES = 64
#: Sums are written at most every so many seconds, and at the end.
SECONDS_BETWEEN_WRITES = 10.0


class Sums(NamedTuple):
    """What the pass adds up, in float64.

    Attributes:
        gram: Phi Phi^T, its lower triangle.
        labels: Phi Y.
    """

    gram: Float[Any, "r r"]
    labels: Float[Any, "r Q"]


class Progress(NamedTuple):
    """A pass under way, as it is kept in a file.

    Attributes:
        of: what the pass is of, a hash of all that decides the sums but the points themselves.
        num_blocks: how many blocks have been read.
        checksum: of their points and labels.
        sums: of each device.
    """

    of: str
    num_blocks: int
    checksum: int
    sums: tuple[Sums, ...]


def sum_over_points(
    source: PointBlocks,
    landmarks: Landmarks,
    sample: Float[np.ndarray, "n ..."],
    *,
    block_size: int | None,
    dtype: np.dtype | None,
    path: Path | None,
) -> tuple[Sums, Float[np.ndarray, "K *Q"]]:
    """The sums over all points, and their labels.

    Args:
        source: the points.
        landmarks: of the spectrum.
        sample: some of the points, at which precision is tried.
        block_size: points in a block; chosen when None.
        dtype: to which values are rounded, and of Phi; the kernel's own when None.
        path: a file for the sums as they grow.

    Raises:
        ValueError: values of the kernel that are not finite; a file of other points, landmarks or
            blocks, or that is damaged.
    """
    size = block_size or choose_size(source, landmarks.points)
    work = _Pass(source, landmarks, sample, np.dtype(dtype or jnp.result_type(float)))
    devices = local_devices()
    before, kept = Progress("", 0, 0, ()), None
    if path is not None:
        first = next(source.blocks(PROBES)).x
        identity = _identity(source.kernel, landmarks, first, size, work.dtype, len(devices))
        shape = len(landmarks.points), source.num_outputs
        kept = _Kept(_of_process(path), identity, shape, len(devices))
        before = kept.read()

    labels, checksum, number = [], 0, 0
    sums, turns = dict(enumerate(before.sums)), itertools.cycle(range(len(devices)))
    description = f"{len(landmarks.points)} landmarks, blocks of {size} points"
    with Bar(description, -(-source.num_points // size)) as bar:
        for number, block in enumerate(source.blocks(size), start=1):
            labels.append(block.y)
            checksum = zlib.crc32(block.checksum.to_bytes(4, "big"), checksum) if kept else 0
            turn = next(turns) if _is_own(number) else None
            if number > before.num_blocks:
                if turn is not None:
                    sums[turn] = work.add(sums.get(turn), block, size, devices[turn])
                if kept is not None:
                    kept.write_now_and_then(number, checksum, sums)
            elif number == before.num_blocks and checksum != before.checksum:
                raise ValueError(f"path {path} holds sums over other points or labels.")
            bar.advance(1)
    if number < before.num_blocks:
        raise ValueError(f"path {path} holds sums over more points.")
    if kept is not None and number > before.num_blocks:
        kept.write(number, checksum, sums)
    own = _added(_on_host(sums), labels[0], len(landmarks.points))
    added = Sums(*map(sum_over_processes, own))
    if not all(np.isfinite(part).all() for part in added):
        raise ValueError(
            "the kernel's values must be finite; between points and landmarks some are not."
        )
    return added, np.concatenate(labels)


def _is_own(number: int) -> bool:
    """Whether a block, counted from 1, is this process's."""
    return (number - 1) % jax.process_count() == jax.process_index()


def choose_size(source: PointBlocks, landmarks: Float[Any, "r ..."]) -> int:
    """The default size of a block: values in the memory of a few tiles of the kernel's."""
    number, tile = len(landmarks), _rows_at_once(source, landmarks)
    by_kernel = TILES_OF_BLOCK * tile if tile == number else tile
    size = min(by_kernel, BLOCK_BYTES // (8 * number), source.num_points)
    return int(over_processes(min, max(1, size)))


def _rows_at_once(source: PointBlocks, landmarks: Float[Any, "r ..."]) -> int:
    """How many landmarks a call of the kernel takes: all, unless it needs much memory."""
    x = jnp.asarray(landmarks)
    rows = len(x)
    while rows > 1 and workspace(source.kernel, (x, x), rows, WORKSPACE_BYTES) > WORKSPACE_BYTES:
        rows = -(-rows // 2)
    return rows


class _Pass:
    """What every block is added with, brought to each device once."""

    def __init__(
        self,
        source: PointBlocks,
        landmarks: Landmarks,
        sample: Float[np.ndarray, "n ..."],
        dtype: np.dtype,
    ) -> None:
        self.kernel = in_single_if_sufficient(source.kernel, sample, landmarks.points, dtype)
        self.dtype = dtype
        self.points = landmarks.points
        self.factor = np.asfortranarray(landmarks.factor.astype(dtype))
        rows = _rows_at_once(source, landmarks.points)
        self.parts = [slice(start, start + rows) for start in range(0, len(self.points), rows)]
        self.on_host = jax.default_backend() == "cpu"
        self.brought: dict[Any, tuple[list[Array], Array]] = {}
        self.under_way: dict[Any, Array] = {}

    def add(self, sums: Sums | None, block: Block, size: int, device: Any) -> Sums:
        """The sums, and what a block adds to them."""
        # No more than two blocks of a device are under way: else values would fill the memory.
        jax.block_until_ready(self.under_way.get(device))
        missing = size - len(block.x)
        x = np.concatenate([block.x, np.repeat(block.x[-1:], missing, axis=0)])
        labels = np.zeros((size, block.y[0].size))
        labels[: len(block.y)] = block.y.reshape(len(block.y), -1)
        with contextlib.nullcontext() if device is None else jax.default_device(device):
            if device not in self.brought:
                parts = [jnp.asarray(self.points[part]) for part in self.parts]
                self.brought[device] = parts, jnp.asarray(self.factor)
            landmarks, factor = self.brought[device]
            points = jnp.asarray(x)
            values = [
                kernel_block(self.kernel, part, points).astype(self.dtype) for part in landmarks
            ]
            self.under_way[device] = values[-1]
            if self.on_host:
                return _add_on_host(sums, self.factor, values, labels, len(block.x))
            with jax.enable_x64(True):
                known = _no_sums(len(factor), labels) if sums is None else sums
                return _add(known, factor, values, labels, len(block.x))


def _no_sums(rank: int, labels: Float[np.ndarray, "b Q"]) -> Sums:
    return Sums(np.zeros((rank, rank), order="F"), np.zeros((rank, labels.shape[1])))


def _add_on_host(
    sums: Sums | None,
    factor: Float[np.ndarray, "r r"],
    values: list[Float[Array, "_ b"]],
    labels: Float[np.ndarray, "b Q"],
    count: int,
) -> Sums:
    """On a CPU by BLAS, in place: its triangular solutions and symmetric products take two thirds
    of the time of XLA's.
    """
    import scipy.linalg  # not with sdntk: most users need none of it

    gram, by_labels = _no_sums(len(factor), labels) if sums is None else sums
    phi = np.concatenate(values)  # its own, and Fortran's once it is transposed
    phi[:, count:] = 0
    solve, multiply = scipy.linalg.get_blas_funcs(("trsm", "syrk"), (phi,))
    phi = solve(1.0, factor, phi.T, side=1, lower=1, trans_a=1, overwrite_b=1).T
    if phi.dtype == gram.dtype:
        gram = multiply(1.0, phi.T, beta=1.0, c=gram, trans=1, lower=1, overwrite_c=1)
    else:
        gram += multiply(1.0, phi.T, trans=1, lower=1)
    return Sums(gram, by_labels + phi @ labels)


@functools.partial(jax.jit, donate_argnames="sums")
def _add(
    sums: Sums,
    factor: Float[Array, "r r"],
    values: list[Float[Array, "_ b"]],
    labels: Float[Array, "b Q"],
    count: Int[Array, ""],
) -> Sums:
    """On an accelerator; ``count`` of the columns are points."""
    phi = features(factor, jnp.concatenate(values))
    phi = jnp.where(jnp.arange(len(labels))[None] < count, phi, 0)
    gram = matmul(phi, phi.T).astype(sums.gram.dtype)
    return Sums(sums.gram + gram, sums.labels + matmul(phi.astype(labels.dtype), labels))


@jax.jit
def features(factor: Float[Array, "r r"], values: Float[Array, "r b"]) -> Float[Array, "r b"]:
    """phi(x) = R^{-1} g(L, x), a column for each point."""
    return jax.scipy.linalg.solve_triangular(factor, values.astype(factor.dtype), lower=True)


# ---- at the end ----


def _on_host(sums: dict[int, Sums]) -> tuple[Sums, ...]:
    return tuple(Sums(*map(np.asarray, sums[device])) for device in sorted(sums))


def _added(found: tuple[Sums, ...], labels: Float[np.ndarray, "b *Q"], rank: int) -> Sums:
    """Those of all devices, with the upper triangle; zeros where there are none."""
    if not found:
        return Sums(np.zeros((rank, rank)), np.zeros((rank, labels[0].size)))
    gram = functools.reduce(np.add, (part.gram for part in found))
    by_labels = functools.reduce(np.add, (part.labels for part in found))
    return Sums(np.tril(gram) + np.tril(gram, -1).T, by_labels)


# ---- the file ----


class _Kept:
    """A file of a pass's progress."""

    def __init__(self, path: Path, identity: str, shape: tuple[int, int], num_devices: int) -> None:
        self.path = path
        self.identity = identity
        self.shape, self.num_devices = shape, num_devices
        self.written = time.monotonic()

    def read(self) -> Progress:
        """What is there, or the beginning.

        Raises:
            ValueError: the file is of another pass, or damaged.
        """
        if self.path.is_dir():
            raise ValueError(f"path {self.path} is a folder; the sums are kept in a file.")
        if not self.path.exists():
            return Progress(self.identity, 0, 0, ())
        found = read_progress(self.path)
        if not self._is_sound(found):
            raise ValueError(
                f"path {self.path} holds something else than sums over blocks of the same size on "
                "as many devices, for the same kernel and landmarks: take another path, or delete "
                "it."
            )
        return Progress(*found)

    def _is_sound(self, found: Any) -> bool:
        """Whether this is the progress of the same pass, with sums that can be added to."""
        if not isinstance(found, Progress) or found.of != self.identity:
            return False
        numbers = all(type(value) is int for value in (found.num_blocks, found.checksum))
        if not numbers or type(found.sums) is not tuple or len(found.sums) > self.num_devices:
            return False
        rank, outputs = self.shape
        shapes = Sums((rank, rank), (rank, outputs))
        return all(
            isinstance(sums, Sums)
            and all(
                isinstance(part, np.ndarray) and part.dtype == np.float64 and part.shape == shape
                for part, shape in zip(sums, shapes, strict=True)
            )
            for sums in found.sums
        )

    def write_now_and_then(self, num_blocks: int, checksum: int, sums: dict[int, Sums]) -> None:
        """Write the progress unless that was done a moment ago."""
        if time.monotonic() - self.written >= SECONDS_BETWEEN_WRITES:
            self.write(num_blocks, checksum, sums)

    def write(self, num_blocks: int, checksum: int, sums: dict[int, Sums]) -> None:
        """Write the progress, all of it or nothing."""
        progress = Progress(self.identity, num_blocks, checksum, _on_host(sums))
        _archive.save(self.path, progress)
        self.written = time.monotonic()


def read_progress(path: Path) -> Any:
    """What a file holds, any of these classes."""
    return _archive.load(path, {kind.__name__: kind for kind in (Progress, Sums)})


def _of_process(path: Path) -> Path:
    """A file for each process that shares a pass."""
    if jax.process_count() == 1:
        return path
    return path.with_name(f"{path.stem}.{jax.process_index()}{path.suffix}")


def _identity(
    kernel: KernelFunction,
    landmarks: Landmarks,
    first: Float[np.ndarray, "n ..."],
    size: int,
    dtype: np.dtype,
    num_devices: int,
) -> str:
    """Of all that decides the sums but the points. Kernels that agree between landmarks may differ
    between those and the first of the points.
    """
    shared = size, dtype.name, num_devices, jax.process_index(), jax.process_count()
    digest = hashlib.sha256(repr((*shared, landmarks.points.shape)).encode())
    digest.update(landmarks.points.tobytes())
    digest.update(landmarks.factor.tobytes())
    between = kernel_block(kernel, jnp.asarray(landmarks.points), jnp.asarray(first))
    digest.update(np.asarray(between).tobytes())
    return digest.hexdigest()
