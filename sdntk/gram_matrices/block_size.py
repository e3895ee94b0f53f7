"""What a Gram matrix will take, told before it is begun: bytes of memory and disk, and tiles that fit into memory."""

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

from sdntk.kernels import KernelFunction

#: Tiles of fewer points than the least make calls cost more than they save; larger ones than the largest only take memory.
LEAST_BLOCK, LARGEST_BLOCK = 250, 1000
#: A symmetric matrix is cut into about this many rows of tiles (and those on the diagonal again).
ROWS_OF_TILES = 4
#: Up to so many points one call of a cheap kernel is quicker than tiles.
SMALL = 512
#: Intermediate results of one tile may take this part of the free memory, and no more than this many bytes.
WORKSPACE_SHARE, WORKSPACE_BYTES = 1 / 8, 2**27
#: XLA holds several intermediate arrays of a tile at once: up to 7 of the largest size were seen.
ARRAYS_AT_ONCE = 16


def host_memory() -> int:
    """Bytes of the machine's memory that can be had now."""
    return max(0, min([psutil.virtual_memory().available, *_cgroup_rest()]))


def free_memory() -> int:
    """Bytes that can be had now, on the machine and, where there are accelerators, on each of them too."""
    free = [host_memory()]
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            free.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return max(0, min(free))


def over_processes(reduce: Callable[[Iterable[Any]], Any], value: Any) -> Any:
    """``min`` or ``max`` of the values of all processes started with ``jax.distributed``, which must all ask for it."""
    return value if jax.process_count() == 1 else reduce(multihost_utils.process_allgather(np.asarray(value)).tolist())


def _cgroup_rest(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What a container's limit leaves, where there is one (Linux, control groups version 2); the page cache can be had."""
    try:
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (folder / "memory.stat").read_text().splitlines()
        cache = next(int(line.split()[1]) for line in lines if line.startswith("file "))
        return [limit - used + cache]
    except (OSError, ValueError, StopIteration):  # no such control group, or no limit in it ("max")
        return []


def workspace(kernel: KernelFunction, points: tuple[Any, Any], size: int, budget: int) -> int:
    """An upper estimate of the bytes that a kernel takes for a tile of ``size`` squared, its values included.

    A bound from the shapes of the intermediate results where it keeps within the budget; else the compiler's own count,
    for which fused results take no memory.
    """
    values = size * size * jnp.result_type(float).itemsize
    largest = _largest_intermediate(kernel, points, size)
    bound = ARRAYS_AT_ONCE * max(largest or 0, values)
    if largest is None or bound <= budget:
        return bound
    analysis = jax.jit(kernel).lower(*_shapes(points, size)).compile().memory_analysis()
    if analysis is None:  # not every backend counts
        return bound
    return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)


def _shapes(points: tuple[Any, Any], size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct((min(size, len(x)), *x.shape[1:]), x.dtype) for x in points)


def _largest_intermediate(kernel: KernelFunction, points: tuple[Any, Any], size: int) -> int | None:
    """Bytes of the largest array between points and values; None for a kernel that JAX cannot trace."""
    try:
        traced = jax.make_jaxpr(kernel)(*_shapes(points, size))
    except Exception:  # a kernel may be any code, NumPy's too; what is wrong with it shows when it is called
        return None
    return _largest(traced.jaxpr)


def _largest(jaxpr: Any) -> int:
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in equation.outvars if hasattr(v.aval, "shape")]
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                sizes.append(_largest(inner))
    return max(sizes)


def choose_block_size(kernel: KernelFunction, points: tuple[Any, Any]) -> int:
    """The default tile: an even cut that spares half of the work of a symmetric matrix, keeps cores busy and fits in memory.

    Few points are taken at once, unless the kernel is a hungry one, which is an expensive one, too.
    """
    longest = max(map(len, points))
    wanted = longest if longest <= SMALL else min(max(longest // ROWS_OF_TILES, LEAST_BLOCK), LARGEST_BLOCK)
    size = _even_cut(longest, wanted)
    budget = int(max(2**20, min(WORKSPACE_BYTES, WORKSPACE_SHARE * free_memory())))
    needed = workspace(kernel, points, size, budget)
    return size if needed <= budget else _even_cut(longest, int(size * math.sqrt(budget / needed)))


def _even_cut(length: int, size: int) -> int:
    """The length of equal parts, as few as make them no longer than ``size``."""
    return math.ceil(length / math.ceil(length / max(size, 1)))


def work_bytes(kernel: KernelFunction, points: tuple[Any, Any], block_size: int) -> int:
    """Bytes of the points in blocks and of two tiles under way."""
    return sum(x.nbytes for x in points) + 2 * workspace(kernel, points, block_size, WORKSPACE_BYTES)


def require_memory(needed: int, what: str, free: int | None = None) -> None:
    """Refuse to begin what cannot be held.

    Raises:
        MemoryError: with what was needed, what is free, and the ways out.
    """
    free = free_memory() if free is None else free
    if needed > free:
        raise MemoryError(
            f"{what} needs about {format_bytes(needed)} of memory and {format_bytes(free)} are free. Ways out: "
            "path=... keeps it on disk, dtype=jnp.float32 halves it, a smaller block_size lessens the work space."
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
            f"{what} needs {format_bytes(needed)} of disk at {folder} and {format_bytes(free)} are free. Ways out: "
            "a path on another disk, dtype=jnp.float32 for half as much."
        )


def format_bytes(count: int) -> str:
    """A number of bytes for people: 1.5 GB is 1.5e9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def dense_path_fits(num_points: int) -> bool:
    """Whether an eigendecomposition fits: G as it is and symmetrised, eigenvectors, and LAPACK's work of twice that size.

    In every process, of those that share the work.
    """
    return bool(over_processes(min, 5 * matrix_bytes((num_points, num_points), jnp.result_type(float)) <= free_memory()))


def matrix_bytes(shape: tuple[int, int], dtype: Any) -> int:
    """Bytes of a dense matrix."""
    return math.prod(shape) * np.dtype(dtype).itemsize
