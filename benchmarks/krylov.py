"""Claim: by products with the Gram matrix alone, a chain of rounds is many times faster than by an eigendecomposition.

The Gram matrix is given. The eigh path is one decomposition and the chain on it; the Krylov path Lanczos steps, as many as
its error bound asks for, and the same chain. Beside it stand the true error and the bound. A product is held against the
time that reading G once takes on this machine (the sum of its entries).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import sdntk
from benchmarks import report
from benchmarks.timing import Timing, measure
from sdntk import architectures, kernels

SETTINGS: dict[str, Any] = {
    "dimension": 5, "labels": "sum of sines", "noise": 0.3, "tolerance": 1e-2, "rounds": 10, "accuracy": 1e-6, "seed": 0,
    "repeats": "3, of eigh above K = 2000 one",
}  # fmt: skip
SIZES = (2000, 4000, 8000)
KERNELS: dict[str, Any] = {
    "Matern-3/2, length scale 1": kernels.matern(1.5, 1.0),
    "ReLU NTK, 2 hidden layers": kernels.ntk(architectures.fully_connected(2)),
}
#: At K = 8000: how many times faster than the eigh path; and the part of the memory bandwidth that a product reaches.
GOALS = {"Matern-3/2, length scale 1": 15, "ReLU NTK, 2 hidden layers": 40, "product": 0.7}


def problem(size: int) -> tuple[jax.Array, jax.Array]:
    """Points, and labels of which noise makes the share ``noise`` of the variance."""
    rng = np.random.default_rng(SETTINGS["seed"])
    x = rng.normal(size=(size, SETTINGS["dimension"]))
    smooth = np.sin(x).sum(axis=1)
    noise = SETTINGS["noise"]
    y = smooth / smooth.std() * (1 - noise) ** 0.5 + rng.normal(size=size) * noise**0.5
    return jnp.asarray(x), jnp.asarray(y)


def time_case(name: str, size: int) -> list[dict[str, Any]]:
    """Rows for one kernel and one K."""
    x, y = problem(size)
    matrix = jax.block_until_ready(sdntk.gram(KERNELS[name], x))
    chain = {"tolerance": SETTINGS["tolerance"] * float(jnp.mean(y**2)), "rounds": SETTINGS["rounds"]}

    def by_krylov() -> sdntk.Distillation:
        spectrum = sdntk.krylov(sdntk.products(matrix), y, **chain, accuracy=SETTINGS["accuracy"])
        return sdntk.distill_spectrum(spectrum, y, **chain)

    def by_eigh() -> sdntk.Distillation:
        return sdntk.distill_spectrum(sdntk.decompose(matrix), y, **chain)

    run = by_krylov()
    assert isinstance(run.spectrum, sdntk.KrylovSpectrum)
    (exact,), eigh = _timed(by_eigh, 3 if size <= 2000 else 1)
    active = int(exact.active_rounds)
    errors = [
        float(jnp.abs(run.multipliers / exact.multipliers - 1)[:active].max()),
        float((jnp.linalg.norm(run.fitted - exact.fitted, axis=1) / jnp.linalg.norm(exact.fitted, axis=1))[:active].max()),
    ]
    bounds = [float(bound.max()) for bound in run.error_bounds or ()]
    krylov = measure(by_krylov, repeats=3, warm_up=False)
    note = (
        f"{int(run.spectrum.steps)} steps, {active} rounds active; errors of c {errors[0]:.1e}, of f {errors[1]:.1e}; "
        f"bounds {bounds[0]:.1e}, {bounds[1]:.1e}"
    )
    goal: Any = GOALS[name] if size == max(SIZES) else ""
    rows = [
        _row(name, size, "eigh path", eigh, 1.0, "", ""),
        _row(name, size, "Krylov path", krylov, eigh.median / krylov.median, goal, note),
    ]
    if name == next(iter(KERNELS)):
        product, read = sdntk.products(matrix), jax.jit(jnp.sum)
        reading = measure(lambda: read(matrix), repeats=9)
        timing = measure(lambda: product(y[:, None]), repeats=9)
        speed, memory = (f"{matrix.nbytes / seconds.median / 1e9:.1f} GB/s" for seconds in (timing, reading))
        rows.append(
            _row(
                name,
                size,
                "one product",
                timing,
                reading.median / timing.median,
                GOALS["product"],
                f"{speed}; memory {memory}",
            )
        )
    return rows


def _timed(run: Callable[[], Any], repeats: int) -> tuple[Any, Timing]:
    """The result and the timing; of work of minutes the one run, which compiles for a second, is both."""
    results: list[Any] = []

    def kept() -> Any:
        results[:] = [run()]
        return results

    return results, measure(kept, repeats=repeats, warm_up=repeats > 1)


def _row(name: str, size: int, what: str, timing: Timing, times: float, goal: Any, note: str) -> dict[str, Any]:
    return {
        "kernel": name,
        "K": size,
        "what": what,
        "seconds (median)": timing.median,
        "fastest .. slowest": "{:.3g} .. {:.3g}".format(*timing.spread),
        "times as fast as eigh path (product: as reading G)": times,
        "goal": goal,
        "note": note,
    }


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run, print, and keep table and JSON; ``quick`` takes the smallest size only."""
    cases = [(name, size) for name in KERNELS for size in (SIZES[:1] if quick else SIZES)]
    rows = [row for case in track(cases, description="krylov") for row in time_case(*case)]
    name = "krylov" if jax.default_backend() == "cpu" else f"krylov_{jax.default_backend()}"
    report.write(name, "Chains of rounds without an eigendecomposition", SETTINGS, rows)
    return rows
