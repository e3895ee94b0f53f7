"""Memory and disk: what is free, what a matrix needs, and a refusal before work that cannot be held
is begun.
"""

import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.experimental import multihost_utils


def host_memory() -> int:
    """Bytes of the machine's memory that can be had now."""
    return max(0, min([psutil.virtual_memory().available, *_cgroup_rest()]))


def free_memory() -> int:
    """Bytes that can be had now, on the machine and, where there are accelerators, on each of them
    too.
    """
    free = [host_memory()]
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            free.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return max(0, min(free))


def over_processes(reduce: Callable[[Iterable[Any]], Any], value: Any) -> Any:
    """``min`` or ``max`` of the values of all processes started with ``jax.distributed``, which
    must all ask for it.
    """
    return (
        value
        if jax.process_count() == 1
        else reduce(multihost_utils.process_allgather(np.asarray(value)).tolist())
    )


def _cgroup_rest(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What a container's limit leaves, where there is one (Linux, control groups version 2); the
    page cache can be had.
    """
    try:
        limit, used = (
            int((folder / name).read_text()) for name in ("memory.max", "memory.current")
        )
        lines = (folder / "memory.stat").read_text().splitlines()
        cache = next(int(line.split()[1]) for line in lines if line.startswith("file "))
        return [limit - used + cache]
    except (OSError, ValueError, StopIteration):  # no such control group, or no limit in it ("max")
        return []


def require_memory(needed: int, what: str, free: int | None = None) -> None:
    """Refuse to begin what cannot be held.

    Raises:
        MemoryError: with what was needed, what is free, and the ways out.
    """
    free = free_memory() if free is None else free
    if needed > free:
        raise MemoryError(
            f"{what} needs about {format_bytes(needed)} of memory and {format_bytes(free)} are "
            "free. Ways out: "
            "path=... keeps it on disk, dtype=jnp.float32 halves it, a smaller block_size "
            "lessens the work space."
        )


def require_disk(needed: int, folder: Path, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        OSError: with what was needed, what is free, and the ways out.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"{what} needs {format_bytes(needed)} of disk at {folder} and {format_bytes(free)} "
            "are free. Ways out: "
            "a path on another disk, dtype=jnp.float32 for half as much."
        )


def format_bytes(count: int) -> str:
    """A number of bytes for people: 1.5 GB is 1.5e9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def dense_path_fits(num_points: int) -> bool:
    """Whether an eigendecomposition fits: G as it is and symmetrised, eigenvectors, and LAPACK's
    work of twice that size.

    In every process, of those that share the work.
    """
    return bool(
        over_processes(
            min, 5 * matrix_bytes((num_points, num_points), jnp.result_type(float)) <= free_memory()
        )
    )


def matrix_bytes(shape: tuple[int, int], dtype: Any) -> int:
    """Bytes of a dense matrix."""
    return math.prod(shape) * np.dtype(dtype).itemsize
