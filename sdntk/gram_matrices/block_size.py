"""Memory and disk that a Gram matrix needs, estimated before it is computed, and tiles that fit
into memory.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sdntk import _memory
from sdntk.kernels.base import KernelFunction

#: Tiles of fewer points than the least make calls cost more than they save; larger ones than the
#: largest only take memory.
LEAST_BLOCK, LARGEST_BLOCK = 250, 1000
#: A symmetric matrix is cut into about this many rows of tiles (and those on the diagonal again).
ROWS_OF_TILES = 4
#: Up to so many points one call of a cheap kernel is quicker than tiles.
SMALL = 512
#: Intermediate results of one tile may take this part of the free memory, and no more than this
#: many bytes.
WORKSPACE_SHARE, WORKSPACE_BYTES = 1 / 8, 2**28
#: XLA holds several intermediate arrays of a tile at once: up to 7 of the largest size were seen.
ARRAYS_AT_ONCE = 16

#: Points of rows and of columns.
Points = tuple[Float[Any, "n ..."], Float[Any, "K ..."]]


def choose_block_size(kernel: KernelFunction, points: Points) -> int:
    """The default side of a tile: an even cut that spares half of the work of a symmetric matrix,
    keeps cores busy and fits into memory.

    Few points are taken at once, unless the kernel needs much memory, for such a kernel is slow
    too.
    """
    longest = max(map(len, points))
    wanted = longest
    if longest > SMALL:
        wanted = min(max(longest // ROWS_OF_TILES, LEAST_BLOCK), LARGEST_BLOCK)
    size = _even_cut(longest, wanted)
    budget = int(max(2**20, min(WORKSPACE_BYTES, WORKSPACE_SHARE * _memory.free_memory())))
    needed = workspace(kernel, points, size, budget)
    if needed <= budget:
        return size
    return _even_cut(longest, int(size * math.sqrt(budget / needed)))


def _even_cut(length: int, size: int) -> int:
    """The length of equal parts, as few as make them no longer than ``size``."""
    return math.ceil(length / math.ceil(length / max(size, 1)))


def work_bytes(kernel: KernelFunction, points: Points, block_size: int) -> int:
    """Bytes of the points in blocks and of two tiles under way."""
    tile = workspace(kernel, points, block_size, WORKSPACE_BYTES)
    return sum(x.nbytes for x in points) + 2 * tile


def workspace(kernel: KernelFunction, points: Points, size: int, budget: int) -> int:
    """An upper estimate of the bytes that a kernel takes for a tile of ``size`` squared, its values
    included.

    A bound from the shapes of the intermediate results if it keeps within the budget; else the
    compiler's own count, in which fused results take no memory.
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


def _shapes(points: Points, size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """A block of rows and one of columns, as the compiler is told of them."""
    return tuple(jax.ShapeDtypeStruct((min(size, len(x)), *x.shape[1:]), x.dtype) for x in points)


def _largest_intermediate(kernel: KernelFunction, points: Points, size: int) -> int | None:
    """Bytes of the largest array between points and values; None for a kernel that JAX cannot
    trace.
    """
    try:
        traced = jax.make_jaxpr(kernel)(*_shapes(points, size))
    except Exception:
        # A kernel may be any code, NumPy's too; what is wrong with it shows when it is called.
        return None
    return _largest(traced.jaxpr)


def _largest(jaxpr: Any) -> int:
    """Bytes of the largest result in a program and in the programs that it calls."""
    largest = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if hasattr(variable.aval, "shape"):
                size = math.prod(variable.aval.shape) * variable.aval.dtype.itemsize
                largest = max(largest, size)
        for parameter in jax.tree.leaves(equation.params, is_leaf=_is_program):
            if _is_program(parameter):
                largest = max(largest, _largest(parameter))
    return largest


def _is_program(parameter: Any) -> bool:
    return hasattr(parameter, "eqns")
