"""Memory and disk: what is free, what a matrix needs, and an error before work that does not fit is
begun.
"""

import ctypes
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from sdntk._processes import over_processes


def host_memory() -> int:
    """Bytes of the machine's memory that are available now."""
    return max(0, min([psutil.virtual_memory().available, *_cgroup_rest()]))


def free_memory() -> int:
    """Bytes that are available now on the machine and, if there are accelerators, on each of them
    too.
    """
    free = [host_memory()]
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            free.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return max(0, min(free))


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to 2 GB, for what it takes next: the system zeroes
    every page that it hands out, which took a fifth of the time of a tile. glibc only.
    """
    arena_max, mmap_threshold, trim_threshold = -8, -3, -1  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system's library
        return
    for option, value in ((arena_max, 1), (mmap_threshold, 2**30), (trim_threshold, 2**31 - 1)):
        mallopt(option, value)


#: Where arrays begin that JAX takes on a CPU without a copy: at multiples of so many bytes.
ALIGNMENT = 64


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that JAX takes on a CPU without a copy."""
    needed = math.prod(shape) * dtype.itemsize
    buffer = np.empty(needed + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + needed].view(dtype).reshape(shape)


def _cgroup_rest(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that a container's limit leaves, if there is one (Linux, control groups version 2); the
    page cache counts as free.
    """
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        cache = next(int(line.split()[1]) for line in lines if line.startswith("file "))
        return [limit - used + cache]
    except (OSError, ValueError, StopIteration):  # no such control group, or no limit in it ("max")
        return []


#: Of a Gram matrix that does not fit into memory.
WAYS_OUT = (
    "path=... keeps it on disk, dtype=jnp.float32 halves it, a smaller block_size lessens the work "
    "space"
)


def require_memory(
    needed: int, description: str, free: int | None = None, *, ways_out: str = WAYS_OUT
) -> None:
    """Refuse to begin what does not fit into memory.

    Raises:
        MemoryError: with what was needed, what is free, and the ways out.
    """
    free = free_memory() if free is None else free
    if needed > free:
        raise MemoryError(
            f"{description} needs about {format_bytes(needed)} of memory and "
            f"{format_bytes(free)} are free. Ways out: {ways_out}."
        )


def require_disk(needed: int, folder: Path, description: str) -> None:
    """Refuse to begin what does not fit onto the disk.

    Raises:
        OSError: with what was needed, what is free, and the ways out.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"{description} needs {format_bytes(needed)} of disk at {folder} and "
            f"{format_bytes(free)} are free. Ways out: a path on another disk, dtype=jnp.float32 "
            "for half as much."
        )


def format_bytes(count: int) -> str:
    """A number of bytes for people: 1.5 GB is 1.5e9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def dense_path_fits(num_points: int) -> bool:
    """Whether an eigendecomposition fits into memory, in each of the processes that share the work.

    It takes five matrices: G as it is and symmetrised, eigenvectors, and LAPACK's work space of
    twice that size.
    """
    needed = 5 * matrix_bytes((num_points, num_points), jnp.result_type(float))
    return bool(over_processes(min, needed <= free_memory()))


def matrix_bytes(shape: tuple[int, int], dtype: jax.typing.DTypeLike) -> int:
    """Bytes of a dense matrix."""
    return math.prod(shape) * np.dtype(dtype).itemsize
