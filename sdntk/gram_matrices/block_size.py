"""What a Gram matrix will take, told before it is begun: bytes of memory and disk, and tiles that
fit into memory.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sdntk import _memory
from sdntk.kernels import KernelFunction

#: Tiles of fewer points than the least make calls cost more than they save; larger ones than the
#: largest only take memory.
LEAST_BLOCK, LARGEST_BLOCK = 250, 1000
#: A symmetric matrix is cut into about this many rows of tiles (and those on the diagonal again).
ROWS_OF_TILES = 4
#: Up to so many points one call of a cheap kernel is quicker than tiles.
SMALL = 512
#: Intermediate results of one tile may take this part of the free memory, and no more than this
#: many bytes.
WORKSPACE_SHARE, WORKSPACE_BYTES = 1 / 8, 2**27
#: XLA holds several intermediate arrays of a tile at once: up to 7 of the largest size were seen.
ARRAYS_AT_ONCE = 16


def workspace(kernel: KernelFunction, points: tuple[Any, Any], size: int, budget: int) -> int:
    """An upper estimate of the bytes that a kernel takes for a tile of ``size`` squared, its values
    included.

    A bound from the shapes of the intermediate results where it keeps within the budget; else the
    compiler's own count, for which fused results take no memory.
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
    """Bytes of the largest array between points and values; None for a kernel that JAX cannot
    trace.
    """
    try:
        traced = jax.make_jaxpr(kernel)(*_shapes(points, size))
    except (
        Exception
    ):  # a kernel may be any code, NumPy's too; what is wrong with it shows when it is called
        return None
    return _largest(traced.jaxpr)


def _largest(jaxpr: Any) -> int:
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [
            math.prod(v.aval.shape) * v.aval.dtype.itemsize
            for v in equation.outvars
            if hasattr(v.aval, "shape")
        ]
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                sizes.append(_largest(inner))
    return max(sizes)


def choose_block_size(kernel: KernelFunction, points: tuple[Any, Any]) -> int:
    """The default tile: an even cut that spares half of the work of a symmetric matrix, keeps cores
    busy and fits in memory.

    Few points are taken at once, unless the kernel is a hungry one, which is an expensive one, too.
    """
    longest = max(map(len, points))
    wanted = (
        longest
        if longest <= SMALL
        else min(max(longest // ROWS_OF_TILES, LEAST_BLOCK), LARGEST_BLOCK)
    )
    size = _even_cut(longest, wanted)
    budget = int(max(2**20, min(WORKSPACE_BYTES, WORKSPACE_SHARE * _memory.free_memory())))
    needed = workspace(kernel, points, size, budget)
    return size if needed <= budget else _even_cut(longest, int(size * math.sqrt(budget / needed)))


def _even_cut(length: int, size: int) -> int:
    """The length of equal parts, as few as make them no longer than ``size``."""
    return math.ceil(length / math.ceil(length / max(size, 1)))


def work_bytes(kernel: KernelFunction, points: tuple[Any, Any], block_size: int) -> int:
    """Bytes of the points in blocks and of two tiles under way."""
    return sum(x.nbytes for x in points) + 2 * workspace(
        kernel, points, block_size, WORKSPACE_BYTES
    )
