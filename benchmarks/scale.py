"""What each method takes by K, far past this machine: constants, runs that check the formulas of
:mod:`benchmarks.plan`, and the plan.

The constants are one device's. The checks run the same problem on 1, 2, 4 and 8 virtual devices and
processes of this machine, all processes on the same core, where none is slowed down by what another
does to the memory: CPU seconds, memory and what each receives over the network show whether work is
divided as the plan says. Whole chains on one device show whether the formulas leave anything out.
"""

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import typer

import sdntk
from benchmarks import plan, report
from benchmarks.plan import Constants, Cost
from benchmarks.timing import measure
from sdntk import kernels
from sdntk.gram_matrices.point_blocks import PointBlocks
from sdntk.spectra.lanczos import lanczos_extend, lanczos_init

SETTINGS: dict[str, Any] = {
    "kernel": "rbf(4), R^16, float64",
    "plan": f"{plan.ROUNDS} rounds, {plan.OUTPUTS} outputs, {plan.STEPS} Lanczos steps of "
    f"{plan.WIDTH} vectors; {plan.LANDMARKS} landmarks",
    "check": "30 Lanczos steps; CPU seconds of a process, all on one core",
    "seed": 0,
}
COUNTS = (1, 2, 4, 8)
CHECKED_STEPS, REPEATS = 30, 3
#: Of the plan.
SIZES = (10**4, 10**5, 10**6, 10**7, 10**8, 10**9)
SHARED_BY = (1, 8, 64, 1000)


def _kernel() -> Any:
    return kernels.rbf(4.0)  # not before a process has joined others


# ---- constants ----


def constants(*, quick: bool) -> Constants:
    """Measured on this device."""
    size, many = (1000, 8000) if quick else (8000, 100_000)
    x, v = _normal(size, plan.DIMENSIONS), _normal(size, plan.WIDTH)
    operator = sdntk.kernel_operator(_kernel(), x, keep=True)
    entries = plan.tile_entries(size, 1)

    # Together beyond caches.
    pieces = [_normal(plan.PIECE, size, seed) for seed in range(10)]
    against = jax.jit(lambda piece, v: v - piece.T @ (piece @ v))
    basis, fits = _normal(640, size), _normal(640, plan.ROUNDS * plan.OUTPUTS)
    multiply = jax.jit(lambda basis, fits: basis.T @ fits)
    few = sdntk.gram(_kernel(), x[:4000])

    one_block = _seconds(lambda: _pass(plan.BLOCK).eigenvalues)
    point = (_seconds(lambda: _pass(many).eigenvalues) - one_block) / (many - plan.BLOCK)
    walk = _seconds(lambda: _walk(10 * many)) / (10 * many)
    return Constants(
        value=_seconds(lambda: _kept(x)) / entries,
        product=_seconds(lambda: operator(v)) / (2 * entries),
        vector=_seconds(lambda: [against(piece, v) for piece in pieces])
        / (len(pieces) * pieces[0].size),
        qr=_seconds(lambda: jnp.linalg.qr(v)) / size,
        multiply=_seconds(lambda: multiply(basis, fits)) / (basis.size * fits.shape[1]),
        eigh=_seconds(lambda: jnp.linalg.eigh(few), repeats=1) / len(few) ** 3,
        point=point - walk,
        walk=walk,
        start=one_block - plan.BLOCK * point,
    )


def _seconds(run: Callable[[], Any], *, repeats: int = 9) -> float:
    return measure(run, repeats=repeats).median


def _normal(rows: int, columns: int, seed: int = 0) -> Any:
    return jax.random.normal(jax.random.key(seed), (rows, columns), jnp.float64)


def _kept(x: Any) -> list[Any]:
    """The tiles of a Gram matrix."""
    operator: Any = sdntk.kernel_operator(_kernel(), x, keep=True)
    return [stack.values for stack in operator.stacks()]


def _pass(size: int, landmarks: int = plan.LANDMARKS) -> Any:
    points = np.random.default_rng(0).normal(size=(size, plan.DIMENSIONS))
    return sdntk.nystrom(_kernel(), points, points[:, : plan.OUTPUTS], landmarks=points[:landmarks])


def _walk(size: int) -> None:
    """What every process does with all points: draw some, and look at every block."""
    points = np.zeros((size, plan.DIMENSIONS))
    source = PointBlocks(_kernel(), points, points[:, : plan.OUTPUTS])
    source.draw([(plan.LANDMARKS, jax.random.key(0)), (100, jax.random.key(1))])
    np.concatenate([block.y for block in source.blocks(plan.BLOCK)])


# ---- whole chains on this device ----


def check_chains(known: Constants, *, quick: bool) -> list[dict[str, Any]]:
    """Seconds of whole chains, compiled before, beside the plan's."""
    size, many = (1000, 8000) if quick else (8000, 100_000)
    x = _normal(size, plan.DIMENSIONS)
    y = jax.nn.one_hot(jnp.argmax(x[:, : plan.OUTPUTS], axis=1), plan.OUTPUTS)
    y -= y.mean(axis=0)
    few = size // 2
    tolerance = 0.05 * float(jnp.mean(y**2))
    chain: dict[str, Any] = {"tolerance": tolerance, "rounds": plan.ROUNDS, "outputs": "joint"}
    rows = []

    def dense() -> Any:
        return sdntk.distill(_kernel(), x[:few], y[:few], method="dense", **chain).fitted

    def krylov() -> Any:
        spectrum = sdntk.krylov(sdntk.kernel_operator(_kernel(), x, keep=True), y, **chain)
        run = sdntk.distill_spectrum(spectrum, y, **chain)
        return run.fitted, spectrum.steps

    steps = int(krylov()[1])
    for case, num_points, run, planned in (
        ("dense chain", few, dense, plan.dense(few, 1, known)),
        (f"Krylov chain, {steps} steps", size, krylov, plan.krylov(size, 1, known, steps)),
        ("Nystrom pass", many, lambda: _pass(many).eigenvalues, plan.nystrom(many, 1, known)),
    ):
        taken = _seconds(run, repeats=1)
        rows.append(_row("check, one device", case, num_points, 1, Cost(taken, 0, 0), planned))
    return rows


# ---- checks on virtual devices and processes ----


def check_devices(count: int, *, quick: bool) -> list[dict[str, Any]]:
    """A product and a pass, divided among virtual devices: seconds, and bytes of tiles."""
    [found] = _run("devices", 1, quick, devices=count)
    size, many = _sizes(quick)
    entries = 8 * plan.tile_entries(size, count)
    case = f"Nystrom pass; d_max {found['eigenvalue']:.12f}"
    product = Cost(found["product"], found["tiles"], 0)
    planned = Cost(0, entries, 0)
    return [
        _row("check, devices", "a product, tiles kept", size, count, product, planned),
        _row("check, devices", case, many, count, Cost(found["pass"], 0, 0), None),
    ]


def check_processes(count: int, known: Constants, quick: bool) -> list[dict[str, Any]]:
    """Lanczos steps and a pass, divided among processes; ``known`` of a single core."""
    size, many = _sizes(quick)
    rows = []
    for part, points, planned in (
        ("lanczos", size, plan.lanczos(size, count, known, CHECKED_STEPS)),
        ("pass", many, plan.nystrom(many, count, known)),
    ):
        found = _run(part, count, quick)
        taken = Cost(
            max(one["seconds"] for one in found),
            max(one["memory"] for one in found) - _memory_of_code(part),
            np.mean([one["received"] for one in found]) / count,
        )
        case = f"{part}; {found[0]['value']:.12f}"
        rows.append(_row("check, processes", case, points, count, taken, planned))
    return rows


@functools.cache
def _memory_of_code(part: str) -> float:
    """Bytes that Python and compiled code take, seen where points are few."""
    [small] = _run(part, 1, True)
    return float(small["memory"])


def _sizes(quick: bool) -> tuple[int, int]:
    """Points of the product and of the pass."""
    return (600, 4000) if quick else (6000, 100_000)


def _run(part: str, processes: int, quick: bool, *, devices: int = 1) -> list[dict[str, Any]]:
    """What processes say of a part that they share, all on one core, but for virtual devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PJRT_NPROC": str(4 * devices)}
    if part != "devices":
        settings |= {"OPENBLAS_NUM_THREADS": "1", "PJRT_NPROC": "1"}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.json" for index in range(processes)]
        program = [sys.executable, "-m", "benchmarks.scale", part]
        running = [
            subprocess.Popen(
                [*program, str(index), str(processes), address, str(file), str(int(quick))],
                env=os.environ | settings,
            )
            for index, file in enumerate(files)
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            raise RuntimeError(f"{part} on {processes} processes, {devices} devices failed")
        return [json.loads(file.read_text()) for file in files]


def _child(part: str, index: int, processes: int, address: str, out: Path, quick: int) -> None:
    jax.config.update("jax_enable_x64", True)
    if part != "devices":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if processes > 1:
        jax.distributed.initialize(address, num_processes=processes, process_id=index)
    found = _PARTS[part](bool(quick))
    out.write_text(json.dumps(found))


def _on_devices(quick: bool) -> dict[str, Any]:
    size, many = _sizes(quick)
    x, v = _normal(size, plan.DIMENSIONS), _normal(size, plan.WIDTH)
    operator: Any = sdntk.kernel_operator(_kernel(), x, keep=True)
    by_device: dict[Any, int] = {}
    for stack in operator.stacks():
        device = next(iter(stack.values.devices()))
        by_device[device] = by_device.get(device, 0) + stack.values.nbytes
    return {
        "product": _seconds(lambda: operator(v)),
        "tiles": max(by_device.values()),
        "pass": _seconds(lambda: _pass(many).eigenvalues, repeats=1),
        "eigenvalue": float(_pass(many).eigenvalues[-1]),
    }


def _lanczos_of_process(quick: bool) -> dict[str, Any]:
    size = _sizes(quick)[0]
    x, y = _normal(size, plan.DIMENSIONS), _normal(size, plan.WIDTH, 1)

    def run() -> Any:
        operator = sdntk.kernel_operator(_kernel(), x, keep=True)
        return lanczos_extend(lanczos_init(y), operator, CHECKED_STEPS).size

    return _watched(run)


def _pass_of_process(quick: bool) -> dict[str, Any]:
    many = _sizes(quick)[1]
    return _watched(lambda: _pass(many, 50 if quick else plan.LANDMARKS).eigenvalues[-1])


_PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "devices": _on_devices,
    "lanczos": _lanczos_of_process,
    "pass": _pass_of_process,
    "constants": lambda quick: constants(quick=quick)._asdict(),
}


def _watched(run: Callable[[], Any]) -> dict[str, Any]:
    """CPU seconds and bytes over the loopback of a run, the most memory of the first."""
    value = float(run())
    peak = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    received, seconds = _loopback(), []
    for _ in range(REPEATS):
        start = time.process_time()
        float(run())
        seconds.append(time.process_time() - start)
    return {
        "seconds": float(np.median(seconds)),
        "memory": peak,
        "received": (_loopback() - received) / REPEATS,
        "value": value,
    }


def _loopback() -> int:
    """Bytes that all processes have received over the loopback."""
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_recv)


# ---- the table ----


def _row(
    part: str, case: str, size: Any, devices: int, taken: Cost | None, planned: Cost | None
) -> dict[str, Any]:
    def cells(cost: Cost | None) -> tuple[Any, ...]:
        if cost is None:
            return ("", "", "")
        return (cost.seconds or "", cost.memory / 1e9 or "", cost.communication / 1e9 or "")

    names = ("seconds", "GB on a device", "GB received")
    return (
        {"part": part, "case": case, "K": size, "devices": devices}
        | dict(zip(names, cells(taken), strict=True))
        | {f"planned {name}": cell for name, cell in zip(names, cells(planned), strict=True)}
    )


def _constant_rows(part: str, known: Constants) -> list[dict[str, Any]]:
    return [
        _row(part, name, "", 1, Cost(value, 0, 0), None) for name, value in known._asdict().items()
    ]


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure, check, plan; keep table and JSON."""
    known = constants(quick=quick)
    of_a_core = Constants(**_run("constants", 1, quick)[0])
    rows = _constant_rows("constant", known) + _constant_rows("constant, one core", of_a_core)
    rows += check_chains(known, quick=quick)
    for count in COUNTS[: 2 if quick else None]:
        rows += check_devices(count, quick=quick)
        rows += check_processes(count, of_a_core, quick)
    for name, method in plan.METHODS.items():
        for size in SIZES:
            for devices in SHARED_BY:
                rows.append(_row("plan", name, size, devices, None, method(size, devices, known)))
    title = "Time, memory and communication by K: constants, checks, plan"
    report.write(report.record_name("scale", quick=quick), title, SETTINGS, rows)
    return rows


if __name__ == "__main__":
    typer.run(_child)
