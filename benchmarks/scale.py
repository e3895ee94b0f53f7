"""What each method takes by K, far past this machine: a plan from measured constants, and runs
that check it.

The constants are one device's. The checks run the same problem on 1, 2, 4 and 8 virtual devices and
processes of this machine, which share its cores: they show that work, memory and communication are
divided as the plan says, and what dividing costs in time, but not how fast many devices are.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jax.experimental import multihost_utils

import sdntk
from benchmarks import report
from benchmarks.timing import measure
from sdntk import kernels

SETTINGS: dict[str, Any] = {
    "kernel": "rbf(4), R^16, float64",
    "landmarks": 1000,
    "vectors of a product": 9,
    "Lanczos steps": 70,
    "seed": 0,
    "repeats": 3,
}
DEVICES = (1, 2, 4, 8)
#: Of the plan.
SIZES = (10**4, 10**5, 10**6, 10**7, 10**8, 10**9)
SHARED_BY = (1, 8, 64, 1000)
_WIDTH, _STEPS, _LANDMARKS = 9, 70, 1000


class Constants(NamedTuple):
    """Seconds of one device.

    Attributes:
        value: for a value of the kernel.
        product: for an entry of a kept Gram matrix in a product with 9 vectors.
        vector: for an entry of the Lanczos vectors that 9 new ones are orthogonalised against.
        eigh: of an eigendecomposition, over K^3.
        point: for a point in a pass over 1,000 landmarks.
    """

    value: float
    product: float
    vector: float
    eigh: float
    point: float


class Cost(NamedTuple):
    """What a method takes on P devices, each a process of its own.

    Attributes:
        seconds: on each device, without communication.
        memory: bytes on each device.
        communication: bytes that each device receives.
    """

    seconds: float
    memory: float
    communication: float


def dense(size: float, devices: int, known: Constants) -> Cost:
    """By an eigendecomposition, which is one device's: G, eigenvectors and as much work space."""
    return Cost(known.value * size**2 / 2 / devices + known.eigh * size**3, 32 * size**2, 0)


def krylov(size: float, devices: int, known: Constants) -> Cost:
    """Half of G is kept and multiplied; every device has all Lanczos vectors, which it
    orthogonalises by itself, and receives all devices' parts of each product.
    """
    entries = size**2 / 2 / devices
    vectors = 8 * size * _WIDTH
    against = size * _WIDTH * _STEPS * (_STEPS + 1) / 2  # entries of all vectors before, by step
    return Cost(
        entries * (known.value + 2 * _STEPS * known.product) + against * known.vector,
        8 * entries + _STEPS * vectors,
        _STEPS * vectors * (devices if devices > 1 else 0),
    )


def recomputed(size: float, devices: int, known: Constants) -> Cost:
    """Likewise, but values are computed in every product and never kept."""
    kept = krylov(size, devices, known)
    entries = size**2 / 2 / devices
    again = entries * (_STEPS - 1) * known.value
    return Cost(kept.seconds + again, kept.memory - 8 * entries, kept.communication)


def nystrom(size: float, devices: int, known: Constants) -> Cost:
    """One pass over each device's share of the points, one sum in the end, one small
    eigendecomposition.
    """
    m = _LANDMARKS
    each = size / devices * known.point
    return Cost(
        each + known.eigh * m**3, 5 * 8 * m**2 + 8 * size, 8 * m**2 * devices * (devices > 1)
    )


METHODS: dict[str, Callable[[float, int, Constants], Cost]] = {
    "dense": dense,
    "Krylov, Gram matrix kept": krylov,
    "Krylov, values recomputed": recomputed,
    "Nystrom, 1,000 landmarks": nystrom,
}


def constants(*, quick: bool) -> Constants:
    """Measured on this device."""
    size, many = (1000, 10_000) if quick else (8000, 100_000)
    x = jax.random.normal(jax.random.key(0), (size, 16), jnp.float64)
    kernel = kernels.rbf(4.0)
    of_gram = measure(lambda: sdntk.gram(kernel, x), repeats=3).median
    operator = sdntk.kernel_operator(kernel, x, keep=True)
    v = jax.random.normal(jax.random.key(1), (size, _WIDTH), jnp.float64)
    product = measure(lambda: operator(v), repeats=5).median
    keys = jax.random.split(jax.random.key(2), 10)  # together beyond caches
    pieces = [jax.random.normal(key, (126, size), jnp.float64) for key in keys]
    against = jax.jit(lambda piece, v: v - piece.T @ (piece @ v))
    vector = measure(lambda: [against(piece, v) for piece in pieces], repeats=5).median
    small = sdntk.gram(kernel, x[: min(size, 4000)])
    eigh = measure(lambda: jnp.linalg.eigh(small), repeats=1).median
    points = np.random.default_rng(0).normal(size=(many, 16))
    landmarks = points[:_LANDMARKS]

    def fit() -> Any:
        return sdntk.nystrom(kernel, points, points[:, 0], landmarks=landmarks).eigenvalues

    own_eigh = measure(lambda: jnp.linalg.eigh(small[:_LANDMARKS, :_LANDMARKS]), repeats=3).median
    value = of_gram / (size**2 / 2)
    a_point = (measure(fit, repeats=3).median - own_eigh) / many
    return Constants(
        value=value,
        product=product / size**2,
        vector=vector / (len(pieces) * pieces[0].size),
        eigh=eigh / len(small) ** 3,
        point=a_point,
    )


# ---- checks on virtual devices and processes ----


def check(kind: str, count: int, *, quick: bool) -> dict[str, Any]:
    """One run of the same problem, divided."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = count if kind == "processes" else 1
    devices = 1 if kind == "processes" else count
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    with tempfile.TemporaryDirectory() as folder:
        running = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.scale", str(index), str(processes)),
                    *(address, str(Path(folder) / f"{index}.json"), str(int(quick))),
                ],
                env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            )
            for index in range(processes)
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            raise RuntimeError(f"a run on {count} {kind} failed")
        found = [json.loads((Path(folder) / f"{i}.json").read_text()) for i in range(processes)]
    return {name: max(of[name] for of in found) for name in found[0]} | {
        "eigenvalue": found[0]["eigenvalue"]
    }


def _child(index: int, processes: int, address: str, out: Path, quick: int) -> None:
    """Seconds, bytes of tiles on the fullest device, and bytes received, of one process."""
    jax.config.update("jax_enable_x64", True)
    if processes > 1:
        jax.distributed.initialize(address, num_processes=processes, process_id=index)
    received = [0]
    gather = multihost_utils.process_allgather

    def counted(value: Any, *args: Any, **options: Any) -> Any:
        gathered = gather(value, *args, **options)
        received[0] += np.asarray(gathered).nbytes
        return gathered

    multihost_utils.process_allgather = counted  # type: ignore[assignment]
    size, many = (600, 4000) if quick else (6000, 100_000)
    rng, kernel = np.random.default_rng(0), kernels.rbf(4.0)
    x, v = rng.normal(size=(size, 16)), jnp.asarray(rng.normal(size=(size, _WIDTH)))
    operator: Any = sdntk.kernel_operator(kernel, x, keep=True, block_size=size // 30)
    by_device: dict[Any, int] = {}
    for stack in operator.stacks():
        device = next(iter(stack.values.devices()))
        by_device[device] = by_device.get(device, 0) + stack.values.nbytes
    received[0] = 0
    product = measure(lambda: operator(v), repeats=3).median
    of_product = received[0] / 4  # one uncounted, three counted

    points = rng.normal(size=(many, 16))
    landmarks = points[: 100 if quick else 500]
    received[0] = 0

    def fit() -> Any:
        return sdntk.nystrom(kernel, points, points[:, 0], landmarks=landmarks).eigenvalues

    nystrom_seconds = measure(fit, repeats=1).median
    found = {
        "product": product,
        "bytes of tiles": max(by_device.values()),
        "received in a product": of_product,
        "nystrom": nystrom_seconds,
        "received in a pass": received[0] / 2,
        "eigenvalue": float(fit()[-1]),
    }
    out.write_text(json.dumps(found))


# ---- the table ----


def _row(
    part: str, case: str, size: Any, devices: int, seconds: Any, memory: Any, sent: Any
) -> Any:
    return {
        "part": part,
        "case": case,
        "K": size,
        "devices": devices,
        "seconds": seconds,
        "GB on a device": memory,
        "GB received": sent,
    }


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure, check, plan; keep table and JSON."""
    known = constants(quick=quick)
    rows = [
        _row("constant", f"{name}, seconds", "", 1, value, "", "")
        for name, value in known._asdict().items()
    ]
    size, many = (600, 4000) if quick else (6000, 100_000)
    for kind in ("devices", "processes"):
        for count in DEVICES[: 2 if quick else None]:
            found = check(kind, count, quick=quick)
            rows += [
                _row(
                    f"check, {kind}",
                    "a product, tiles kept",
                    size,
                    count,
                    found["product"],
                    found["bytes of tiles"] / 1e9,
                    found["received in a product"] / 1e9,
                ),
                _row(
                    f"check, {kind}",
                    f"Nystrom pass; d_max {found['eigenvalue']:.12f}",
                    many,
                    count,
                    found["nystrom"],
                    "",
                    found["received in a pass"] / 1e9,
                ),
            ]
    for name, method in METHODS.items():
        for points in SIZES:
            for devices in SHARED_BY:
                cost = method(points, devices, known)
                rows.append(
                    _row(
                        "plan",
                        name,
                        points,
                        devices,
                        cost.seconds,
                        cost.memory / 1e9,
                        cost.communication / 1e9,
                    )
                )
    title = "Time, memory and communication by K: constants, checks, plan"
    report.write(report.record_name("scale", quick=quick), title, SETTINGS, rows)
    return rows


if __name__ == "__main__":
    typer.run(_child)
