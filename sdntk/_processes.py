"""What processes started with ``jax.distributed`` tell each other. All of them must call alike."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float


def over_processes(reduce: Callable[[Iterable[Any]], Any], value: Any) -> Any:
    """``min`` or ``max`` of the values of all processes."""
    if jax.process_count() == 1:
        return value
    return reduce(multihost_utils.process_allgather(np.asarray(value)).tolist())


def sum_over_processes(value: Float[Any, "*n"]) -> Float[Any, "*n"]:
    """The sum of the arrays of all processes, the same bits in each of them; where there are
    several, NumPy's and read-only.

    By one all-reduce: what a process holds and receives does not grow with their number.
    """
    if jax.process_count() == 1:
        return value
    with jax.enable_x64(bool(value.dtype == np.float64)):
        parts, add = _reduction()
        own = jax.device_put(jnp.asarray(value)[None], next(iter(parts.addressable_devices)))
        shape = (jax.process_count(), *value.shape)
        total = add(jax.make_array_from_single_device_arrays(shape, parts, [own]))
        return np.asarray(total.addressable_data(0))


@functools.cache
def _reduction() -> tuple[NamedSharding, Callable[[Any], Any]]:
    """How arrays, one from each process, lie on the first device of each, and their sum."""
    first = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh([first[index] for index in sorted(first)], ("processes",))
    parts, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("processes",), ()))
    return parts, jax.jit(lambda arrays: jnp.sum(arrays, axis=0), out_shardings=whole)
